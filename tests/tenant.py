"""One tenant for tests: its lane, its ledger in a dictionary, what the lane decided. Nothing is committed by itself."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import msgspec

from onceflow.agents.agent import Agent
from onceflow.agents.call import NotDone
from onceflow.agents.calling import Answered
from onceflow.agents.calls import FoundNotDone, NotSent, Parked, Raised, Returned, StartCall
from onceflow.agents.capacity import Capacity
from onceflow.agents.happenings import (
    Arrived,
    Due,
    Ended,
    Noted,
    Redrive,
    Resumed,
    Signalled,
    Sleeping,
    WriteEnd,
    unwritten,
)
from onceflow.agents.journal import OpenRun, open_runs, run_prefix, runs_of
from onceflow.agents.lane import Lane
from onceflow.agents.order import in_turn
from onceflow.agents.poison import Watch
from onceflow.agents.shared import Shared, decode_shared
from onceflow.agents.signals import Kept, Signal, decode_kept
from onceflow.event import Incoming
from onceflow.state.ledger import Change

NOW = 1_800_000_000_000
INCOMING = Incoming("acme", "erp", "evt-1", "t", None, b"7")
KEY = bytes(range(16))


class Memory:
    """A tenant's ledger, in a dictionary."""

    def __init__(self, name: str, inbox: Any, agents: Iterable[Agent[Any, Any]]) -> None:
        self.records: dict[bytes, bytes] = {}
        self._name = name
        self._inbox = inbox
        self.agents = {agent.name: agent for agent in agents}

    def shared(self, key: bytes) -> Shared | None:
        value = self.records.get(key)
        return None if value is None else decode_shared(value)

    def failed(self, key: bytes) -> OpenRun | None:
        runs = runs_of(sorted(self.records.items()))
        return next((run for run in runs if run.failed and run.key == key), None)

    def put(self, change: Change) -> None:
        key, value = change
        if value is None:
            del self.records[key]
        else:
            self.records[key] = value

    def saved(self, key: bytes) -> OpenRun:
        held = sorted(self.records.items())
        (found,) = open_runs((k, v) for k, v in held if k.startswith(run_prefix(self._name, key)))
        return found

    def run(self, key: bytes, inbox: Any) -> Arrived:
        saved = self.saved(key)
        return Arrived.again(saved, inbox, self.agents[saved.begun.agent])

    def inbox(self, source: Any) -> Any:
        return self._inbox

    def signals(self, prefix: bytes) -> list[tuple[bytes, Kept]]:
        return [(k, decode_kept(v)) for k, v in sorted(self.records.items()) if k.startswith(prefix)]


class Tenant:
    """A lane, the ledger of its tenant, and what it decided. `name`: the tenant's."""

    def __init__(self, *agents: Agent[Any, Any], name: str = "acme", write_end: WriteEnd = unwritten) -> None:
        self.name = name
        self.write_end = write_end
        self.source = SimpleNamespace(topic="events", partition=3, grant=SimpleNamespace(live=True))
        self.memory = Memory(name, self.source, agents)
        self.now = NOW
        self.ended: list[Ended] = []
        self.noted: list[Noted] = []
        self.begun: list[Arrived] = []  # whose runs the ledger holds since
        self.parked: list[Parked] = []
        self.due_ms = 0
        self.planned: list[tuple[Due, int]] = []  # what the lane is to be told, and when
        self.started: list[StartCall] = []
        self.held: list[StartCall] = []  # until what was decided is committed
        self.abandoned = 0
        self.begin_anew()

    def begin_anew(self, watch: Watch | None = None) -> None:
        """Another process, with what the ledger holds."""
        self.started.clear()
        self.held = []
        self.capacity = Capacity(runs_per_lane=10, runs_per_cell=10, watch=watch)
        calls = (self.started.extend, self.abandon)
        self.lane = Lane(self.name, self.capacity, *calls, self.memory, write_end=self.write_end)

    def abandon(self, runs: Iterable[Any]) -> None:
        """Their calls are given up."""
        self.abandoned += len(list(runs))

    def resume(self) -> None:
        """The runs in the ledger go on."""
        for saved, goes_on in in_turn(open_runs(sorted(self.memory.records.items()))):
            again = Arrived.again(saved, self.source, self.memory.agents[saved.begun.agent])
            sleeping = Sleeping(saved.key, self.source, saved.begun.line, saved.begun.turn)
            self.take(Resumed(again) if goes_on else sleeping)

    def take(self, *happenings: Any) -> None:
        again: list[Any] = list(happenings)
        while again:
            given, again = again, []
            decided = self.lane.take(given, self.now)
            again += decided.looked
            again += [due for due, ms in decided.due if 0 < ms <= self.now]
            self.planned += [(due, ms) for due, ms in decided.due if ms]
            self.due_ms = next((ms for due, ms in reversed(decided.due) if due.key), self.due_ms)
            self.ended += decided.ended
            self.noted += decided.noted
            self.begun += decided.begun
            self.parked += [parked for _, parked in decided.parked]
            self.held += decided.calls

    @staticmethod
    def event_key(number: int) -> bytes:
        """The key of the run of this event."""
        return KEY if number == 1 else number.to_bytes(16, "big")

    def event(
        self,
        by: Agent[Any, Any],
        number: int = 1,
        *,
        data: bytes = b"7",
        redrive: Redrive | None = None,
    ) -> bytes:
        """An event is read; its run's key."""
        key = self.event_key(number) if redrive is None else redrive.key
        incoming = Incoming(self.name, "erp", f"evt-{number}", "t", None, data)
        arrived = Arrived(self.source, number, NOW, b"{}", None, incoming, by, key=key)
        if redrive is not None:
            arrived.redrive, arrived.root = redrive, redrive.root
        self.take(arrived)
        return key

    def signalled(self, given: Signal, offset: int = 9) -> Noted:
        """A signal is read at this offset."""
        self.take(Signalled(self.source, offset, 3, self.now, given, f"signals/3/{offset}", b"{..}", None))
        return next(noted for noted in self.noted if noted.offset == offset)

    def commit(self) -> None:
        """All that was decided is committed."""
        held, self.held = self.held, []
        for call in held:
            if call.run.wants(call):
                self.started.append(call)
            else:
                self.take(Answered(call.run, Raised(call.place, call.call.attempt, NotSent())))

    def answer(self, result: Any, by: int = 0) -> StartCall:
        """The oldest call that was sent is answered (`by`: of this event's run): with a result, or an exception."""
        self.commit()
        key = self.event_key(by)
        call = next(each for each in self.started if not by or each.run.token.key == key)
        self.started.remove(call)
        answer: Any
        if result is NotDone:
            answer = FoundNotDone(call.place, call.call.attempt)
        elif isinstance(result, BaseException):
            answer = Raised(call.place, call.call.attempt, result)
        else:
            answer = Returned(call.place, call.call.attempt, msgspec.msgpack.encode(result))
        self.take(Answered(call.run, answer))
        return call

    @property
    def outcome(self) -> Any:
        (ended,) = self.ended
        return ended.outcome

    @property
    def asleep(self) -> bool:
        return self.capacity.in_flight == 0 and not self.lane.idle
