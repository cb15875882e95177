"""What a run asks for and what happens to it, and what an answer means for the call it belongs to.

The rules for an answer are one function, `judged`. They follow from what is known about the effect: a tool
that raises RetryLater, GiveUp or Failed says that *this* attempt changed nothing; any other exception or a
time-out leaves open whether it did, and so does an earlier attempt without an answer.
"""

import random
from enum import StrEnum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from onceflow.agents.call import Call
from onceflow.agents.journal import CALL_FAILED, UNUSABLE_RESULT, Entry, Wait
from onceflow.agents.tool import Tool
from onceflow.errors import Failed, GiveUp, RetryLater, as_text

if TYPE_CHECKING:
    from onceflow.agents.machine import Machine

RESULT_MAX_BYTES = 500_000  # of what a tool returns, as it is stored
PORTION_MAX_BYTES = 600_000  # of a record's entries, unless it has one only; an event has 1,000,000
_ENTRY_BYTES = 800  # more than what else an entry has: place, tool, the call's key, times, counts
_NO_WAIT = Wait(0)
SEND_WITHIN_MS = 10_000  # an execution on record is sent so soon, or put on record anew


# --- effects: what a run asks for ---


Kind = Literal["call", "undo", "reconcile"]


class StartCall(msgspec.Struct, frozen=True):
    """Start a call of a tool, `delay_s` from now: the tool itself, what undoes it, or what finds out about it."""

    run: "Machine"
    place: str
    tool: Tool[Any, Any]
    call: Call
    delay_s: float = 0.0
    kind: Kind = "call"
    undone: Any = None  # kind `undo`: the result that is undone, None if it may or may not have happened
    send_by_ms: int = 0  # not to be sent later; 0: whenever


class Record(msgspec.Struct, frozen=True):
    """Write entries of the run's journal into the ledger."""

    number: int  # of the segment; 0: the run's first, which carries its event
    entries: dict[str, Entry]
    calls: list[StartCall] = []  # to be sent once this is committed: it is their barrier


class Parked(NamedTuple):
    """Write this segment and a dead letter: the run stays open until a person resolves it."""

    record: Record
    reason: str
    message: str


class AskKey(NamedTuple):
    """Ask who makes a call of scope `tenant`."""

    run: "Machine"
    place: str
    tool: Tool[Any, Any]
    digest: bytes
    arguments: bytes  # fingerprint


class KeyDecided(NamedTuple):
    """Such a call, which this run has made, has an outcome; open: a person must say which."""

    run: "Machine"
    place: str
    digest: bytes
    outcome: Entry
    ttl_s: float  # of its tool


class LeaveKey(NamedTuple):
    """The run fails: is the effect to be undone, or has another run its result too?"""

    run: "Machine"
    place: str
    digest: bytes
    entry: Entry  # what this run knows of the call


class KeyUndone(NamedTuple):
    """The effect is undone."""

    run: "Machine"
    place: str
    digest: bytes
    ttl_s: float  # of its tool


class KeyKept(NamedTuple):
    """The run has completed with the result of such a call."""

    run: "Machine"
    place: str
    digest: bytes


class WaitBegun(NamedTuple):
    """The run waits for a signal; one that came early may end it."""

    run: "Machine"
    place: str
    wait: Wait


class Asleep(NamedTuple):
    """The run only waits: the machine is given up, and the run goes on from the ledger when a wait ends."""

    run: "Machine"
    due_ms: int  # when the first of its waits is over; 0: never


class Completed(msgspec.Struct, frozen=True):
    """The run's end: what the agent returned."""

    value: Any
    written: bytes = b""  # its completion, once the value is known to make one


class RunFailed(NamedTuple):
    """The run's end: it failed for good."""

    code: str
    message: str
    detail: str  # for the dead letter: the traceback


KeyEffect = AskKey | KeyDecided | LeaveKey | KeyUndone | KeyKept
Effect = StartCall | Record | Parked | WaitBegun | Asleep | KeyEffect | Completed | RunFailed


def chunks(entries: dict[str, Entry], *, beside_event: bool = False) -> list[dict[str, Entry]]:
    """Entries in portions of which each fits into a record of the ledger; `beside_event`: the first with its event."""
    if sum([_bytes_of(entry) for entry in entries.values()]) <= PORTION_MAX_BYTES:
        return [entries]
    portions: list[dict[str, Entry]] = [{}]
    size = 0
    for place, entry in entries.items():
        takes = _bytes_of(entry)
        first = not portions[-1] and not (beside_event and len(portions) == 1)
        if size + takes > PORTION_MAX_BYTES and not first:
            portions.append({})
            size = 0
        portions[-1][place] = entry
        size += takes
    return portions


def _bytes_of(entry: Entry) -> int:
    """What an entry takes in a record, at most; counted, for it is asked of each."""
    size = _ENTRY_BYTES if entry.result is None else _ENTRY_BYTES + len(entry.result)
    if entry.error is None and entry.wait is None and not entry.lineage:
        return size
    wait = entry.wait or _NO_WAIT
    size += _text_bytes(*(entry.error or ()), wait.type, wait.id, *wait.until)
    return size + sum([_text_bytes(tenant, *ids) for tenant, ids in entry.lineage])


def _text_bytes(*texts: str) -> int:
    return sum([4 * len(text) + 5 for text in texts])  # of UTF-8 and of msgpack, at most


def undo_key(key: str) -> str:
    """The key of the compensation of a call."""
    return blake2b(f"{key}/undo".encode(), digest_size=16).hexdigest()


def later_key(key: str, undone: int) -> str:
    """The key of a call that is made anew after its effect was undone so often."""
    return blake2b(f"{key}/{undone}".encode(), digest_size=16).hexdigest()


# --- happenings: answers ---


class Returned(msgspec.Struct, frozen=True, gc=False):
    """A call's answer: its encoded result."""

    place: str
    attempt: int
    result: bytes


class Raised(msgspec.Struct, frozen=True):
    """A call's answer: this attempt failed."""

    place: str
    attempt: int
    error: BaseException


class FoundNotDone(msgspec.Struct, frozen=True):
    """A reconciliation's answer: the call did not happen."""

    place: str
    attempt: int


Answer = Returned | Raised | FoundNotDone


class UnusableResult(Exception):  # noqa: N818
    """The tool returned something that cannot be stored; its effect has happened."""


class NotSent(Exception):  # noqa: N818
    """Nothing was sent: the time by which the attempt had to be was over, or its tool is left in peace so long (s)."""

    def __init__(self, after_s: float = 0.0) -> None:
        super().__init__(after_s)
        self.after_s = after_s


# --- what an answer means ---


class Next(StrEnum):
    """What becomes of a call that an answer does not end."""

    AGAIN = "again"
    UNKNOWN = "unknown"  # and nobody may call it again: its tool's `on_unknown` decides


class Waiting(msgspec.Struct):
    """A call of a run that was asked for and has no outcome yet."""

    started: StartCall
    attempts: int = 1  # by the tool's retry policy
    unknown: bool = False  # an earlier attempt may have done it
    asked_ms: int = 0
    made: int = 0  # attempts of the call, while its reconciliation is asked
    over: bool = False  # the last answer is that nobody knows, and no other will come


def judged(waiting: Waiting, answer: Answer) -> Entry | Next:
    """The outcome that an answer gives to a call, or what is next; notes in `waiting` what it leaves open."""
    tool = waiting.started.tool
    if isinstance(answer, Returned):
        return _entry(waiting, result=answer.result)
    if isinstance(answer, FoundNotDone):
        waiting.unknown = False
        waiting.attempts = waiting.made or waiting.attempts
        if waiting.attempts < tool.retry.attempts:
            return Next.AGAIN
        message = f"{tool.name}: it did not happen, in {waiting.attempts} attempts"
        return _entry(waiting, error=(CALL_FAILED, message))
    error = answer.error
    text = as_text(error)
    named = f"{tool.name}: {type(error).__name__}" + (f": {text}" if text else "")
    if isinstance(error, NotSent):
        return Next.AGAIN
    if isinstance(error, UnusableResult):
        code = CALL_FAILED if tool.effect == "read" else UNUSABLE_RESULT
        return _entry(waiting, error=(code, f"{tool.name}: {text}"))
    if isinstance(error, (Failed, GiveUp)):
        if waiting.unknown:
            return Next.UNKNOWN
        if isinstance(error, Failed):
            return _entry(waiting, error=(as_text(error.code), as_text(error.message)))
        return _entry(waiting, error=(CALL_FAILED, named))
    if tool.effect in ("keyed", "blind") and not isinstance(error, RetryLater):
        waiting.unknown = True
    never_again = tool.effect == "blind" and waiting.unknown and waiting.started.kind != "reconcile"
    if waiting.attempts < tool.retry.attempts and not never_again:
        return Next.AGAIN
    if waiting.unknown:
        return Next.UNKNOWN
    return _entry(waiting, error=(CALL_FAILED, f"{named} (attempt {waiting.attempts}, the last)"))


def _entry(waiting: Waiting, *, result: bytes | None = None, error: tuple[str, str] | None = None) -> Entry:
    started = waiting.started
    run, tool, call = started.run, started.tool, started.call
    known = run.journal.get(started.place)
    intent = None if known is None else known.intent
    return Entry(
        tool.name,
        tool.version,
        call.fingerprint,
        result,
        error,
        intent,
        asked_ms=waiting.asked_ms if intent is None else intent.made_ms,
        done_ms=run.now_ms,
        lineage=call.lineage,
    )


def retry_delay_s(waiting: Waiting, answer: Answer) -> float:
    """Seconds until the next attempt: by the tool's policy, with full jitter that a replay would draw again."""
    call, error = waiting.started.call, answer.error if isinstance(answer, Raised) else None
    if isinstance(error, NotSent):
        return error.after_s
    unit = random.Random(f"{call.key}/{call.attempt}").random()  # noqa: S311 (spreads load, no secret)
    delay_s = waiting.started.tool.retry.delay_s(waiting.attempts, unit)
    if isinstance(error, RetryLater) and error.after_s is not None:
        delay_s = max(delay_s, error.after_s)
    return delay_s
