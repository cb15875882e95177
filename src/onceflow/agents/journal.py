"""A run's journal and how it is stored: in a lane's snapshot as a cache, in the ledger as the truth.

The ledger gets a run's journal in segments: each holds what is new since the one before. The first one also
holds the event, so that the run no longer needs the record it was read from. When the run ends, its segments
are deleted (tombstones) in the transaction that carries its completion.

    Kafka key     tenant · 00 · "r" · run key (16 bytes) · number of the segment (4 bytes, big-endian)
    value         Segment, msgpack

Places other than a call's own: FAILING says that the run has failed and undoes what stands; UNDO + place is
the compensation of the call at that place; PARKED says that a person must resolve it, and for which place; AGAIN
says when the run is tried again; UNDONE + place, how often the effect of the call at that place was undone; FAILED that
the run has failed for good, and is kept to be redriven.
"""

import logging
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import msgspec

from onceflow.errors import ConfigError
from onceflow.event import Incoming
from onceflow.state.ledger import Change

FORMAT = 2  # in 1 an event's data stood beside the document that holds them
FAILING = "!"
PARKED = "?"
UNDO = "~"
AGAIN = "^"
UNDONE = "%"
FAILED = "."
SPECIAL = (FAILING, PARKED, UNDO, AGAIN, UNDONE, FAILED)  # what the places that are no call's own begin with

log = logging.getLogger("onceflow.run")

_RUN_KEY_BYTES = 16
NUMBER_BYTES = 4


class Intent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is on record before a call of a keyed or blind tool is sent."""

    key: str  # the call key
    executions: int  # how often it may have been sent, this time included
    made_ms: int  # when the call was first intended, or again as a person said: what `ttl` counts from
    send_by_ms: int  # no execution so far is sent later than this
    again: bool = False  # a person has said that the call is to be sent again
    shared: bytes = b""  # of a call of scope `tenant`: the digest of its key
    asks: bool = False  # only a person may say how it came out: its run failed, and is redriven
    kept: bool = False  # by a redrive, from the run that failed: there was nothing to undo
    undoable: bool = False  # its tool has a compensation


class Wait(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What ends a wait: its time, or a signal."""

    due_ms: int  # when its time is over; 0: never
    type: str = ""  # of the signal; "": none, the run sleeps
    id: str = ""
    until: tuple[str, ...] = ()  # the statuses that end it; (): any


class Retry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is remembered of a call, or of a run, whose next attempt is a wait."""

    attempts: int  # used, by its retry policy
    executions: int = 0  # how often the call was sent
    unknown: bool = False  # one of them may have done it


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A journal's record of a call or a wait: its result, or why it failed for good; neither: it is open."""

    tool: str
    version: int
    arguments: bytes  # fingerprint
    result: bytes | None = None  # as the tool encodes it
    error: tuple[str, str] | None = None  # a code of `CALL_CODES` or of `Failed`, and a message
    intent: Intent | None = None
    wait: Wait | None = None
    retry: Retry | None = None  # with `wait`: an attempt that is due then
    asked_ms: int = 0  # when the agent asked for it; 0: not known
    done_ms: int = 0  # when it had its outcome
    lineage: tuple[tuple[str, list[str]], ...] = ()  # tenant and ids of what it has found

    @property
    def open(self) -> bool:
        """Whether the call has no outcome yet."""
        return self.result is None and self.error is None


CALL_FAILED = "call-failed"
OUTCOME_UNKNOWN = "outcome-unknown"
UNUSABLE_RESULT = "result-unusable"  # the effect stands, but what the tool returned cannot be kept
KEY_REUSED = "key-reused"
WAIT_EXPIRED = "wait-expired"
FAILED_KEPT_MS = 14 * 24 * 3_600_000  # what is kept of a failed run, as long as its dead letter
NIL = b"\xc0"  # None, as msgpack
GONE = Entry("", 0, b"")  # what was at this place is forgotten


class Begun(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a run is made from."""

    agent: str
    version: int
    incoming: Incoming  # as it is stored
    time_ms: int  # of the event's record
    origin: str
    value: bytes | None = None  # of the event's record, where `incoming.document` isn't the same
    headers: list[tuple[str, bytes | None]] | None = None
    root: bytes = b""  # of a redrive: the key of the run that failed first
    line: bytes = b""  # runs of one line follow one another (`order_by`)
    turn: int = 0  # of one that has not begun: its number in the line


class Segment(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A record of the ledger. Begins with a format number, as every stored form."""

    format: int
    begun: Begun | None
    entries: dict[str, Entry]


class OpenRun(msgspec.Struct):
    """A run that the ledger holds."""

    tenant: str
    key: bytes
    begun: Begun
    journal: dict[str, Entry]
    segments: int  # how many numbers are taken

    @property
    def begun_at_all(self) -> bool:
        """Whether it has a journal; otherwise it waits for the run before it (a redrive that waits has one already)."""
        return bool(self.journal)

    @property
    def makes_shared(self) -> bool:
        """Whether it makes, or undoes, a call of scope `tenant`."""
        entries = self.journal.values()
        return any(entry.open and entry.intent is not None and entry.intent.shared for entry in entries)

    @property
    def failed(self) -> bool:
        """Whether it has ended, and is kept to be redriven."""
        return FAILED in self.journal

    @property
    def parked(self) -> bool:
        """Whether it waits for a person."""
        parked = self.journal.get(PARKED)
        return parked is not None and parked.error is not None


class Unreadable(NamedTuple):
    """A run of which the ledger holds a record that cannot be read: it does not go on, and all others do."""

    tenant: str
    key: bytes
    why: str

    def report(self) -> None:
        """Say so, with the remedy."""
        log.error(
            "a run cannot be read from the ledger, and does not go on: its records stay in F.ledger; start the version "
            "of onceflow that wrote them",
            extra={"run": self.key.hex(), "tenant": self.tenant, "cause": self.why},
        )


def parked(agent: str, reason: str, message: str, place: str, now_ms: int) -> Entry:
    """The entry at PARKED: a person must say how the call at `place` ("": none) came out."""
    return Entry(agent, 0, place.encode(), None, (reason, message), asked_ms=now_ms)


def settled(agent: str) -> Entry:
    """The entry at PARKED of a run that goes on."""
    return Entry(agent, 0, b"", NIL)


def expired(known: Entry) -> Entry:
    """The outcome of a wait whose time is over: a sleep has ended, a signal did not come."""
    wait = known.wait
    if wait is None or not wait.type:
        return msgspec.structs.replace(known, result=NIL)
    message = f"no signal {wait.type!r} for {wait.id!r} came in time"
    return msgspec.structs.replace(known, error=(WAIT_EXPIRED, message))


def first_due_ms(waits: Iterable[Wait]) -> int:
    """When the first of these waits is over; 0: none ever is."""
    return min((wait.due_ms for wait in waits if wait.due_ms), default=0)


def segment_key(tenant: str, run_key: bytes, number: int) -> bytes:
    """The Kafka key of a segment."""
    return _segments_of(tenant) + run_key + number.to_bytes(NUMBER_BYTES, "big")


def segment_keys(tenant: str, run_key: bytes, count: int) -> list[bytes]:
    """The Kafka keys of a run's first segments."""
    prefix = _segments_of(tenant) + run_key
    return [prefix + number.to_bytes(NUMBER_BYTES, "big") for number in range(count)]


def run_prefix(tenant: str, run_key: bytes) -> bytes:
    """What the Kafka keys of a run's segments begin with."""
    return _segments_of(tenant) + run_key


@lru_cache(maxsize=16_384)
def _segments_of(tenant: str) -> bytes:
    return tenant.encode() + b"\0r"


def encode_segment(begun: Begun | None, entries: dict[str, Entry]) -> bytes:
    """The value of a segment."""
    return _encoder.encode(Segment(FORMAT, begun, entries))


def failed(agent: str, code: str, message: str, now_ms: int) -> Entry:
    """The entry at FAILED."""
    return Entry(agent, 0, b"", None, (code, message), wait=Wait(now_ms + FAILED_KEPT_MS))


def kept_until_ms(run: OpenRun) -> int:
    """Until when what is kept of a failed run is."""
    return (run.journal[FAILED].wait or Wait(0)).due_ms


def open_runs(records: Iterable[tuple[bytes, bytes]]) -> list[OpenRun]:
    """The runs of `runs_of` that have not ended."""
    return [run for run in runs_of(records) if not run.failed]


def failed_runs(runs: Iterable[OpenRun]) -> list[tuple[str, bytes, int]]:
    """What is kept of failed runs, as (tenant, what their Kafka keys begin with, until when)."""
    return [(run.tenant, run_prefix(run.tenant, run.key), kept_until_ms(run)) for run in runs if run.failed]


def runs_of(records: Iterable[tuple[bytes, bytes]]) -> list[OpenRun]:
    """The runs that these records hold, as `read_runs` does; those that cannot be read are reported."""
    runs, unreadable = read_runs(records)
    for each in unreadable:
        each.report()
    return runs


def run_by_run(records: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Sorted records of one slot: those of each run together, each of the others by itself."""
    for _, together in groupby(records, key=lambda record: _belongs_to(record[0])):
        yield list(together)


def _belongs_to(key: bytes) -> bytes:
    return key[:-NUMBER_BYTES] if _is_segment(key) else key


def read_runs(records: Iterable[tuple[bytes, bytes]]) -> tuple[list[OpenRun], list[Unreadable]]:
    """The runs that these records of one slot hold, in the order of their keys; `records`: (Kafka key, value), sorted.

    Raises ConfigError for a record of a newer format.
    """
    runs: dict[tuple[str, bytes], OpenRun] = {}
    unreadable: dict[tuple[str, bytes], Unreadable] = {}
    for record_key, value in records:
        tenant, _, rest = record_key.partition(b"\0")
        if rest[:1] != b"r":
            continue
        run_key, number = rest[1 : 1 + _RUN_KEY_BYTES], int.from_bytes(rest[1 + _RUN_KEY_BYTES :], "big")
        at = (tenant.decode(), run_key)
        if at in unreadable:
            check_format(value)
            continue
        try:
            segment = _decoded(value)
            run = runs.get(at)
            if run is None:
                if segment.begun is None:
                    raise ValueError("its first segment is not there")
                run = runs[at] = OpenRun(*at, segment.begun, {}, 0)
        except ValueError as error:
            unreadable[at] = Unreadable(*at, f"segment {number}: {error}")
            continue
        run.journal |= segment.entries
        run.segments = number + 1
    found = [run for at, run in runs.items() if at not in unreadable]
    for run in found:
        for place in [place for place, entry in run.journal.items() if not entry.tool]:
            del run.journal[place]
    return found, [*unreadable.values()]


def entries_of(change: Change) -> dict[str, Entry]:
    """What a change of the ledger says of a run's calls and waits; nothing, if it is no segment."""
    key, value = change
    return _decoded(value).entries if value is not None and _is_segment(key) else {}


def _is_segment(key: bytes) -> bool:
    return key.startswith(b"\0r", key.find(b"\0"))


def check_format(value: bytes) -> None:
    """Raise ConfigError for a record of a newer format, ValueError for what has none."""
    head = msgspec.msgpack.decode(value)
    number = head[0] if isinstance(head, list) and head else None
    if not isinstance(number, int):
        raise ValueError("it has no format")  # noqa: TRY004 (of the record, not of an argument)
    if number > FORMAT:
        raise ConfigError(
            f"F.ledger holds records of format {number}; this version knows {FORMAT}. Run the version of "
            "onceflow that wrote them, or a newer one."
        )


def _decoded(value: bytes) -> Segment:
    check_format(value)
    return _decode(value)


_encoder = msgspec.msgpack.Encoder()
_decode = msgspec.msgpack.Decoder(Segment).decode
