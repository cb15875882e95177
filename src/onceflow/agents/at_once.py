"""Runs that end at once, as those of agents that only compute do. They need no lane.

A lane that is looked up, or made, for a tenant who is seldom heard of costs more than such a run itself.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from onceflow.agents.calls import Completed, Effect
from onceflow.agents.capacity import Capacity
from onceflow.agents.failures import failure
from onceflow.agents.happenings import Arrivals, Arrived, Decided, Ended, EndedAtOnce, Happening
from onceflow.agents.machine import Machine, begin
from onceflow.agents.state import AskFlag
from onceflow.event import Event, InvalidData


class Beginning:
    """Events that came together: their runs begin one after another, until one does not end at once."""

    def __init__(self, arrivals: Arrivals, computing: memoryview, flags: AskFlag) -> None:
        """`computing`: where the key of the run stands that has the thread, see `poison`."""
        self.arrivals = arrivals
        self.goes_on: tuple[Machine, list[Effect]] | None = None  # the last that has begun, if it goes on
        self._computing = computing
        self._flags = flags
        self._next = 0  # index of the first event whose run has not begun
        self._others: list[int] = []  # of those that did not just return a value
        self._values: list[Any] = []

    def go_on(self, now_ms: int, decided: Decided) -> None:
        """Let runs begin until one `goes_on`."""
        arrivals, computing, values = self.arrivals, self._computing, self._values
        agent, keys, incomings = arrivals.agent, arrivals.keys, arrivals.incomings
        self.goes_on = None
        for index in range(self._next, len(incomings)):
            incoming, key = incomings[index], keys[index]
            computing[:] = key
            try:
                data = agent.decode(incoming.data)
            except InvalidData as error:
                self._others.append(index)
                decided.end(Ended(arrivals.one(index), failure(error)))
                continue
            begun = begin(agent, Event(incoming, key.hex(), data), self._machine, index, now_ms)
            if isinstance(begun, Completed):
                values.append(begun.value)
            else:
                self._others.append(index)
                self._next, self.goes_on = index + 1, begun
                return
        self._next = len(incomings)

    def rest(self) -> Iterator[Arrived]:
        """The events whose runs have not begun, for somebody else to let them begin."""
        for index in range(self._next, len(self.arrivals)):
            self._others.append(index)
            yield self.arrivals.one(index)

    def ended(self) -> list[EndedAtOnce]:
        """What became of those that returned a value, once there is no rest."""
        if not self._values:
            return []
        if self._others:
            self.arrivals.take_out(self._others)
        return [EndedAtOnce(self.arrivals, self._values)]

    def _machine(self, event: Event[Any], index: int, now_ms: int) -> Machine:
        arrived = self.arrivals.one(index)
        return Machine(arrived.agent, arrived, root=event.key, flags=self._flags, now_ms=now_ms)


def begin_without_lane(
    tenant: str,
    happenings: Sequence[Happening],
    capacity: Capacity,
    flags: AskFlag,
    now_ms: int,
    decided: Decided,
) -> Sequence[Happening | Beginning]:
    """Let runs of a tenant that has no lane begin, as long as they end at once; what is left for a lane."""
    watch = capacity.watch
    for number, happening in enumerate(happenings):
        if type(happening) is not Arrivals:
            return happenings[number:]
        if not happening.source.grant.live:
            continue
        if not (watch.clears(happening.keys) and capacity.may_begin(tenant, 0)):
            return happenings[number:]
        beginning = Beginning(happening, watch.names.computing, flags)
        beginning.go_on(now_ms, decided)
        if beginning.goes_on is not None:
            return [beginning, *happenings[number + 1 :]]
        decided.ended_at_once += beginning.ended()
    watch.names.rest()
    return ()
