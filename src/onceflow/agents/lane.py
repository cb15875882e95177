"""A lane: one tenant's share of a cell, with its runs in flight and the events that wait for a turn.

Like a run it is a state machine: happenings in, decisions out; the calls that its runs ask for go to whoever
was given. A lane's snapshot is the cache of its runs' journals: after a crash a run whose event comes again
from the same record, with the same version of its agent, goes on with it and skips finished steps.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import msgspec

from onceflow.agents.agent import Agent
from onceflow.agents.calls import Completed, Effect, Parked, Record, RunFailed, StartCall
from onceflow.agents.executor import Answered
from onceflow.agents.journal import Begun, Entry, OpenRun
from onceflow.agents.machine import Machine, failure
from onceflow.event import Event, Headers, Incoming, InvalidData

SNAPSHOT_FORMAT = 1


class Source(Protocol):
    """The input an event was read from. `grant.live`: whether its slot is still owned under the same grant."""

    topic: str
    partition: int
    grant: Any


class Arrived(msgspec.Struct):
    """Happening: an event that is the first with its key."""

    source: Any  # a Source
    offset: int
    time_ms: int  # the record's time
    value: bytes | None  # as it was sent, for a dead letter
    headers: Headers
    incoming: Incoming
    agent: Agent[Any, Any]
    forwarded_from: str | None = None
    key: bytes = b""  # the run's key, 16 bytes; dedup fills it in
    seen: Any = None  # what dedup knows the event by
    saved: OpenRun | None = (
        None  # what the ledger holds of its run; then `source` is the slot's inbox, `offset` -1
    )

    @classmethod
    def again(cls, saved: OpenRun, inbox: Any, agent: Agent[Any, Any], seen: Any) -> "Arrived":
        """The event of a run that the ledger holds."""
        begun, incoming = saved.begun, saved.begun.incoming
        value = begun.value if begun.value is not None else (incoming.document or incoming.data)
        headers = incoming.headers if begun.headers is None else begun.headers
        origin = begun.origin
        return cls(inbox, -1, begun.time_ms, value, headers, incoming, agent, origin, saved.key, seen, saved)

    def begun(self) -> Begun:
        """What the ledger must hold of it."""
        agent, incoming = self.agent, self.incoming
        value = None if self.value in (incoming.document, incoming.data) else self.value
        headers = None if incoming.headers is not None or self.headers is None else list(self.headers)
        return Begun(agent.name, agent.version, incoming, self.time_ms, self.origin, value, headers)

    @property
    def origin(self) -> str:
        """topic/partition/offset of the record in which the producer sent the event."""
        return self.forwarded_from or self.record

    @property
    def record(self) -> str:
        """topic/partition/offset of the record that was read here."""
        return f"{self.source.topic}/{self.source.partition}/{self.offset}"


class Turn(NamedTuple):
    """Happening: the cell has room again for runs of this lane."""


class Lost(NamedTuple):
    """Happening: the grant of the tenant's slot is gone; everything of it is to be dropped."""

    grant: Any


class Settled(NamedTuple):
    """Happening: the tenant's slot was granted; `finished` says which records need no journal any more."""

    finished: Callable[[str], bool]


class Resumed(NamedTuple):
    """Happening: a run that the ledger holds goes on here."""

    arrived: Arrived


class Barrier(NamedTuple):
    """Happening: a segment of a run's journal is committed."""

    run: Machine
    number: int


class Ended(msgspec.Struct, frozen=True):
    """Decision: a run ended."""

    arrived: Arrived
    outcome: Completed | RunFailed
    segments: int = 0  # that the ledger has of it


class Written(NamedTuple):
    """Decision: a run's journal goes on in the ledger; with `parked`, the run waits for a person."""

    arrived: Arrived
    record: Record
    parked: Parked | None


Happening = Arrived | Answered | Turn | Lost | Settled | Resumed | Barrier
Decision = Ended | Written


class Journal(msgspec.Struct, array_like=True):
    """A run's journal in a lane's snapshot."""

    key: bytes
    record: str
    origin: str
    agent: str
    version: int
    entries: dict[str, Entry]


class Snapshot(msgspec.Struct, array_like=True):
    """What a lane leaves for its successor. Begins with a format number, as every stored form."""

    format: int
    tenant: str
    journals: list[Journal]


class Capacity:
    """Bounds the runs in flight, per lane and per cell. Room that becomes free goes round the lanes that wait."""

    def __init__(self, *, runs_per_lane: int, runs_per_cell: int) -> None:
        self.runs_per_lane = runs_per_lane
        self.runs_per_cell = runs_per_cell
        self.in_flight = 0  # runs, and turns not yet used
        self.closed = False  # no more runs begin: the cell is stopping
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._turns: set[str] = set()

    def take(self, tenant: str, in_lane: int) -> bool:
        """Take room for a run, or queue the lane for a turn."""
        if self.closed or in_lane >= self.runs_per_lane:
            return False  # the lane asks again when one of its runs ends
        if tenant in self._turns:
            self._turns.remove(tenant)
            return True
        if self._waiting or self.in_flight >= self.runs_per_cell:
            self._waiting[tenant] = None
            return False
        self.in_flight += 1
        return True

    def give_back(self, runs: int = 1) -> None:
        """Runs have ended."""
        self.in_flight -= runs

    def give_back_turn(self, tenant: str) -> None:
        """A lane does not use its turn."""
        if tenant in self._turns:
            self._turns.remove(tenant)
            self.in_flight -= 1

    def turns(self) -> list[str]:
        """The lanes whose turn it is, as many as there is room for runs; each has room for one run now."""
        tenants: list[str] = []
        while self._waiting and self.in_flight < self.runs_per_cell:
            tenant, _ = self._waiting.popitem(last=False)
            self._turns.add(tenant)
            self.in_flight += 1
            tenants.append(tenant)
        return tenants


class Lane:
    """One tenant's runs. `start` takes the calls that runs ask for."""

    def __init__(
        self,
        tenant: str,
        capacity: Capacity,
        start: Callable[[Iterable[StartCall]], None],
        abandon: Callable[[Iterable[Machine]], None],
        snapshot: bytes | None = None,
    ) -> None:
        self.tenant = tenant
        self._capacity = capacity
        self._start = start
        self._abandon = abandon
        self._runs: set[Machine] = set()
        self._queue: deque[Arrived] = deque()
        self._journals = {} if snapshot is None else _restored(snapshot)

    @property
    def waiting(self) -> int:
        """Events that wait for a turn."""
        return len(self._queue)

    @property
    def has_journals(self) -> bool:
        """Whether it holds journals of runs whose event did not come again yet."""
        return bool(self._journals)

    @property
    def idle(self) -> bool:
        """Whether nothing is lost when this lane is discarded."""
        return not (self._runs or self._queue or self._journals)

    def take(self, happenings: Iterable[Happening], now_ms: int) -> list[Decision]:
        """Work on what happened; return what was decided: runs that ended, and what is to be written of others."""
        decided: list[Decision] = []
        calls: list[StartCall] = []
        for happening in happenings:
            if type(happening) is Arrived:
                if not happening.source.grant.live:
                    continue
                if self._queue or not self._capacity.take(self.tenant, len(self._runs)):
                    self._queue.append(happening)
                else:
                    self._begin(happening, now_ms, calls, decided)
            elif type(happening) is Answered:
                run, answer = happening
                if run in self._runs:
                    self._note(run, run.answer(answer, now_ms), calls, decided)
            elif type(happening) is Barrier:
                if happening.run in self._runs:
                    self._note(
                        happening.run, happening.run.committed(happening.number, now_ms), calls, decided
                    )
            elif type(happening) is Resumed:
                if happening.arrived.source.grant.live:
                    self._queue.append(happening.arrived)
            elif type(happening) is Lost:
                self._drop(happening.grant)
            elif type(happening) is Settled:
                done = happening.finished
                self._journals = {
                    k: journal for k, journal in self._journals.items() if not done(journal.record)
                }
        while self._queue and self._capacity.take(self.tenant, len(self._runs)):
            self._begin(self._queue.popleft(), now_ms, calls, decided)
        self._capacity.give_back_turn(self.tenant)
        if calls:
            self._start(calls)
        return decided

    def snapshot(self) -> bytes:
        """The journals of runs in flight, and of runs whose event did not come again yet."""
        journals = list(self._journals.values())
        for run in self._runs:
            if run.journal and not run.segments:  # what the ledger holds needs no cache
                arrived: Arrived = run.token
                journals.append(
                    Journal(
                        arrived.key,
                        arrived.record,
                        arrived.origin,
                        run.agent.name,
                        run.agent.version,
                        dict(run.journal),
                    )
                )
        return msgspec.msgpack.encode(Snapshot(SNAPSHOT_FORMAT, self.tenant, journals))

    def _begin(self, arrived: Arrived, now_ms: int, calls: list[StartCall], decided: list[Decision]) -> None:
        agent, saved = arrived.agent, arrived.saved
        try:
            data = agent.decode(arrived.incoming.data)
        except InvalidData as error:
            self._capacity.give_back()
            decided.append(Ended(arrived, failure(error), 0 if saved is None else saved.segments))
            return
        run = Machine(agent, arrived)
        if saved is not None:
            run.journal, run.segments = saved.journal, saved.segments
            arrived.saved = None
        elif self._journals:
            run.journal = self._journal_of(arrived)
        effects = run.begin(Event(arrived.incoming, arrived.key.hex(), data), now_ms)
        if run.ended and not run.segments:  # at once, as most do that only compute
            self._capacity.give_back()
            decided.append(Ended(arrived, effects[0]))  # type: ignore[arg-type]
        else:
            self._runs.add(run)
            self._note(run, effects, calls, decided)

    def _journal_of(self, arrived: Arrived) -> dict[str, Entry]:
        journal = self._journals.pop(arrived.key, None)
        made_by = (arrived.origin, arrived.agent.name, arrived.agent.version)
        if journal is None or (journal.origin, journal.agent, journal.version) != made_by:
            return {}
        return journal.entries

    def _note(
        self, run: Machine, effects: Iterable[Effect], calls: list[StartCall], decided: list[Decision]
    ) -> None:
        for effect in effects:
            if type(effect) is StartCall:
                calls.append(effect)
                continue
            if type(effect) is Record:
                decided.append(Written(run.token, effect, None))
                continue
            self._runs.discard(run)
            self._capacity.give_back()
            if type(effect) is Parked:
                decided.append(Written(run.token, effect.record, effect))
            else:
                decided.append(Ended(run.token, effect, run.segments))  # type: ignore[arg-type]

    def _drop(self, grant: Any) -> None:
        gone = [run for run in self._runs if run.token.source.grant is grant]
        self._runs.difference_update(gone)
        self._capacity.give_back(len(gone))
        self._abandon(gone)
        for run in gone:
            run.close()
        self._queue = deque(arrived for arrived in self._queue if arrived.source.grant is not grant)


def snapshot_tenant(snapshot: bytes) -> str | None:
    """The tenant of a snapshot; None if it is of another format, and so left aside."""
    head = msgspec.msgpack.decode(snapshot)
    return str(head[1]) if head[0] == SNAPSHOT_FORMAT else None


def _restored(snapshot: bytes) -> dict[bytes, Journal]:
    journals = msgspec.msgpack.decode(snapshot, type=Snapshot).journals
    return {journal.key: journal for journal in journals}


def utc_text(time_ms: int) -> str:
    """A time as CloudEvents writes it (RFC 3339, UTC, milliseconds)."""
    text = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
