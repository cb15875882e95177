"""What happens to a lane, and what it decides: the values that go in and out of it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import xxhash

from onceflow.agents.agent import Agent
from onceflow.agents.calling import Answered
from onceflow.agents.calls import Completed, Parked, RunFailed, StartCall
from onceflow.agents.commands import Command
from onceflow.agents.journal import Begun, OpenRun
from onceflow.agents.shared import Shared
from onceflow.agents.signals import Kept, Signal
from onceflow.agents.sleep import Awaited
from onceflow.event import Headers, Incoming, record_bytes
from onceflow.state.ledger import Change

NO_OFFSET = -1  # of what no record has led to


class Source(Protocol):
    """The input an event was read from. `grant.live`: whether its slot is still owned under the same grant."""

    topic: str
    partition: int
    grant: Any


class Redrive(NamedTuple):
    """What an event is read again for: its run has failed, and is to be done anew as another run."""

    run: bytes  # the key of the run that failed
    root: bytes  # of the one that failed first
    letter: str  # where its dead letter lies: topic/partition/offset
    segments: int  # that the ledger holds of the failed run; 0: it had changed nothing

    @property
    def key(self) -> bytes:
        """The key of the new run: asked for twice, it is one."""
        return xxhash.xxh3_128_digest(self.root + self.letter.encode())


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
    seen: bytes = b""  # what dedup knows the run by
    identity: bytes | None = None  # and the event's source and id, where conflicts are rejected
    saved: OpenRun | None = (
        None  # what the ledger holds of its run; then `source` is the slot's inbox, `offset` -1
    )
    redrive: Redrive | None = None  # of a run that has failed
    root: bytes = b""  # the run that failed first, of a redrive
    line: bytes = b""  # what it follows others in
    turn: int = 0  # its number there, once it is in the ledger before it has begun
    woken: bool = False  # it slept in this lane: the time of its deadline is known already

    @classmethod
    def again(
        cls,
        saved: OpenRun,
        inbox: Any,
        agent: Agent[Any, Any],
        seen: bytes = b"",
        identity: bytes | None = None,
    ) -> "Arrived":
        """The event of a run that the ledger holds."""
        begun, incoming = saved.begun, saved.begun.incoming.restored()
        value = begun.value if begun.value is not None else (incoming.document or incoming.data)
        headers = incoming.headers if begun.headers is None else begun.headers
        origin = begun.origin
        again = cls(
            inbox, -1, begun.time_ms, value, headers, incoming, agent, origin, saved.key, seen, identity
        )
        again.saved, again.root, again.line, again.turn = saved, begun.root, begun.line, begun.turn
        return again

    def begun(self) -> Begun:
        """What the ledger must hold of it."""
        agent, incoming = self.agent, self.incoming
        value = None if self.value in (incoming.document, incoming.data) else self.value
        headers = None if incoming.headers is not None or self.headers is None else list(self.headers)
        return Begun(
            agent.name,
            agent.version,
            incoming.stored(),
            self.time_ms,
            self.origin,
            value,
            headers,
            self.root,
            self.line,
            self.turn,
        )

    @property
    def size(self) -> int:
        """Bytes of the record."""
        return record_bytes(self.value, self.headers)

    @property
    def origin(self) -> str:
        """topic/partition/offset of the record in which the producer sent the event."""
        return self.forwarded_from or self.record

    @property
    def record(self) -> str:
        """topic/partition/offset of the record that was read here."""
        return f"{self.source.topic}/{self.source.partition}/{self.offset}"


class Arrivals(msgspec.Struct):
    """Happening: events of one tenant for one agent, read from one input together; the columns are of equal length.

    Most events come so, and their runs end at once. What is special (forwarded, in order, with headers of its own) is
    an Arrived.
    """

    source: Any  # a Source
    agent: Agent[Any, Any]
    offsets: list[int]
    times_ms: list[int]
    incomings: list[Incoming]
    keys: list[bytes] = []  # the runs'; dedup fills these in
    seen: list[bytes] = []
    identities: list[bytes] = []  # where conflicts are rejected

    def __len__(self) -> int:
        return len(self.offsets)

    def one(self, index: int) -> Arrived:
        """One of the events."""
        incoming = self.incomings[index].whole()
        return Arrived(
            self.source,
            self.offsets[index],
            self.times_ms[index],
            incoming.document,
            None,
            incoming,
            self.agent,
            None,
            self.keys[index],
            self.seen[index],
            self.identities[index] if self.identities else None,
        )

    def take_out(self, indices: list[int]) -> "Arrivals":
        """Take some of the events out, by their index, ascending; return these."""
        taken = Arrivals(self.source, self.agent, [], [], [])
        for mine, theirs in zip(self._columns, taken._columns, strict=True):
            if mine:
                theirs.extend([mine.pop(index) for index in reversed(indices)])
                theirs.reverse()
        return taken

    @property
    def _columns(self) -> tuple[list[Any], ...]:
        return (self.offsets, self.times_ms, self.incomings, self.keys, self.seen, self.identities)

    @property
    def size(self) -> int:
        """Bytes of the records; none of them has headers."""
        return sum([len(incoming.document) for incoming in self.incomings])


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


class Sleeping(NamedTuple):
    """Happening: the ledger holds a run that waits: for a person, for its agent, or for the run before it."""

    key: bytes
    inbox: Any
    line: bytes = b""
    turn: int = 0


WriteEnd = Callable[[Arrived, Completed, int], Completed | RunFailed]


def unwritten(arrived: Arrived, end: Completed, now_ms: int) -> Completed:
    """Where nobody writes completions, any value is one."""
    return end


class Ended(msgspec.Struct, frozen=True):
    """A run ended."""

    arrived: Arrived
    outcome: Completed | RunFailed
    segments: int = 0  # that the ledger has of it
    changes: Sequence[Change] = ()  # of the ledger
    kept: bool = False  # what the ledger has is kept, to be redriven

    @property
    def to_redrive(self) -> tuple[bytes, int]:
        """The run that is to be done anew, and how many segments are kept of it.

        A redrive that ended before it began has forgotten nothing of the run that failed: it is that one still.
        """
        redrive = self.arrived.redrive
        if redrive is not None and redrive.segments and not self.segments:
            return redrive.run, redrive.segments
        return self.arrived.key, self.segments if self.kept else 0


class EndedAtOnce(msgspec.Struct, frozen=True):
    """Runs ended without having asked for anything; what their agent returned."""

    arrivals: Arrivals
    values: list[Any]


class Due(NamedTuple):
    """Happening: the time of a wait is over; or a signal was kept long enough (`record`: its Kafka key)."""

    key: bytes
    record: bytes = b""


class Signalled(msgspec.Struct):
    """Happening: a signal was read."""

    source: Any  # a Source
    offset: int
    size: int
    time_ms: int
    signal: Signal
    origin: str
    value: bytes | None  # as it was sent, for a dead letter
    headers: Headers


class Commanded(NamedTuple):
    """Happening: a person has decided something about a run."""

    source: Any
    offset: int
    size: int
    command: Command


class Noted(NamedTuple):
    """A record that is no event is finished (offset -1: there is none), and the ledger changes with it."""

    source: Any
    offset: int
    size: int
    changes: tuple[Change, ...] = ()  # of the ledger
    keep_until_ms: int = 0  # a signal is kept; then it is due
    unclaimed: Kept | None = None  # for a dead letter


class Looked(NamedTuple):
    """Happening: a wait for a signal has begun. One may have come early."""

    awaited: Awaited
    source: Any


Happening = (
    Arrived
    | Arrivals
    | Answered
    | Turn
    | Lost
    | Settled
    | Resumed
    | Sleeping
    | Due
    | Signalled
    | Commanded
    | Looked
)


class Decided(msgspec.Struct):
    """What was decided in one look at what has happened to a tenant. All that is to be committed is so at once."""

    ledger: list[Change] = []  # in order
    calls: list[StartCall] = []  # to be sent once that is committed
    begun: list[Arrived] = []  # the ledger holds their runs now: their records are finished
    ended: list[Ended] = []
    ended_at_once: list[EndedAtOnce] = []
    parked: list[tuple[Arrived, Parked]] = []  # they wait for a person
    noted: list[Noted] = []
    due: list[tuple[Due, int]] = []  # the lane is to be told then (ms; 0: never)
    looked: list[Looked] = []  # the lane is to be told at once

    def end(self, ended: Ended) -> None:
        """A run has ended."""
        self.ended.append(ended)
        self.ledger += ended.changes

    def note(self, noted: Noted) -> None:
        """A record is finished, or only the ledger changes."""
        self.noted.append(noted)
        self.ledger += noted.changes
        if noted.keep_until_ms:
            self.due.append((Due(b"", noted.changes[0][0]), noted.keep_until_ms))


class Memory(Protocol):
    """What the ledger holds of the lane's tenant, with what was decided and is not committed yet."""

    def run(self, key: bytes, inbox: Any) -> "Arrived | str":
        """An open run, to go on with; or why it cannot."""

    def inbox(self, source: Any) -> Any:
        """The inbox of the slot that a source belongs to."""

    def signals(self, prefix: bytes) -> list[tuple[bytes, Kept]]:
        """The signals whose Kafka keys begin with `prefix`."""

    def shared(self, key: bytes) -> Shared | None:
        """What is known of the call of scope `tenant` with this Kafka key."""

    def failed(self, key: bytes) -> OpenRun | None:
        """What is kept of a run that has failed."""

    def put(self, change: Change) -> None:
        """Take note of a change that was decided; the same object goes to the outbox."""
