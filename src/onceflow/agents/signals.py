"""Signals: what ends a wait from outside. How one is read, kept, and matched; all of it functions of values.

A signal is a CloudEvent on the `signals` topic: `type` is its name, `subject` the wait's id, `data.status` what
became of it. One that finds its wait open ends it. One that finds none is kept for a wait to come. A signal
(source, id) ends at most one wait; while it is kept, another with the same type, id and status that comes within
15 minutes is a copy of it (vendors send in bursts).

    Kafka key     tenant · 00 · "s" · digest of type and id (16 bytes) · digest of source and event id (16 bytes)
    value         Kept, msgpack
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any
from uuid import UUID

import msgspec

from onceflow.agents.journal import Wait, check_format
from onceflow.event import Incoming, InvalidData

FORMAT = 1
SIGNAL_MAX_BYTES = 900_000  # as it is stored: with what was sent, in one record of the ledger
KEPT_MS = 72 * 3_600_000  # for a wait to come; taken ones as long, so that a copy is known
KEPT_MAX = 100  # of one type and id, that no wait has taken: each that comes is compared with them
BURST_MS = 15 * 60_000
TEXT_MAX = 10_000  # characters of what names the signal of a wait

_KIND = b"\0s"


class Signal(msgspec.Struct, frozen=True):
    """What ended a wait."""

    type: str
    id: str  # of the wait: the CloudEvent's subject
    status: str
    data: Any  # as JSON
    source: str
    event_id: str


class Kept(msgspec.Struct, array_like=True, frozen=True):
    """A signal as the ledger holds it. Begins with a format number, as every stored form."""

    format: int
    signal: Signal
    time_ms: int  # of its record
    taken: bool  # it has ended a wait
    origin: str
    value: bytes | None = None  # as it was sent, for a dead letter
    headers: list[tuple[str, bytes | None]] | None = None


def waited_for(type: object, id: object, until: Iterable[object]) -> tuple[str, str, tuple[str, ...]]:
    """What `run.wait_for` was given, as signals have it. Raises TypeError or ValueError, which say what to write."""
    name, subject = _text("type", type), _text("id", id)
    statuses = tuple(_text("until", each) for each in ([until] if isinstance(until, str) else until))
    if sum(map(len, (name, subject, *statuses))) > TEXT_MAX:
        raise ValueError(f"run.wait_for: type, id and until have more than {TEXT_MAX} characters")
    if not (name and subject):
        raise ValueError(
            f"run.wait_for: type={name!r}, id={subject!r}; a signal has both and would never end this wait"
        )
    return name, subject, statuses


def _text(name: str, value: object) -> str:
    """A text. A number or a UUID of an event's data is taken as written."""
    if isinstance(value, str):
        text = str.__str__(value)
    elif isinstance(value, int | UUID) and not isinstance(value, bool):
        text = str(value)
    else:
        raise TypeError(f"run.wait_for: {name}={value!r}; write a text")
    text.encode()  # half a surrogate pair is no text: the agent is told so
    return text


def read_signal(incoming: Incoming) -> Signal | str:
    """The signal in an event, or why it is none."""
    try:
        subject = incoming.attributes().get("subject")
    except InvalidData as error:
        return str(error)
    if not isinstance(subject, str) or not subject:
        return "a signal needs the attribute `subject`: the id of the wait that it ends"
    try:
        data = msgspec.json.decode(incoming.data or b"null")
    except msgspec.DecodeError as error:
        return f"its data cannot be decoded: {error}"
    status = data.get("status", "") if isinstance(data, dict) else ""
    if not isinstance(status, str):
        return "data.status must be a text"
    signal = Signal(incoming.type, subject, status, data, incoming.source, incoming.id)
    try:
        size = len(msgspec.msgpack.encode(signal))
    except OverflowError as error:
        return f"its data cannot be stored: {error}; write such a number as a text"
    if size > SIGNAL_MAX_BYTES:
        return f"it takes {size} bytes as it is stored, at most {SIGNAL_MAX_BYTES} fit"
    return signal


def signal_prefix(tenant: str, type: str, id: str) -> bytes:
    """What the Kafka keys of the signals for a wait begin with."""
    return tenant.encode() + _KIND + _digest(type, id)


def signal_key(tenant: str, signal: Signal) -> bytes:
    """The Kafka key of a signal."""
    return signal_prefix(tenant, signal.type, signal.id) + _digest(signal.source, signal.event_id)


def kept_signals(records: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, bytes, int]]:
    """The signals among these records of one slot, as (tenant, Kafka key, until when they are kept)."""
    found = []
    for key, value in records:
        tenant, _, rest = key.partition(b"\0")
        if rest[:1] == _KIND[1:]:
            found.append((tenant.decode(), key, decode_kept(value).time_ms + KEPT_MS))
    return found


def encode_kept(kept: Kept) -> bytes:
    return msgspec.msgpack.encode(kept)


def decode_kept(value: bytes) -> Kept:
    """Raises ConfigError for a record of a newer format."""
    check_format(value)
    return _decode(value)


def ends(wait: Wait, signal: Signal) -> bool:
    """Whether a signal ends a wait; a status that isn't final does not."""
    return (wait.type, wait.id) == (signal.type, signal.id) and (
        not wait.until or signal.status in wait.until
    )


def in_burst(kept: Iterable[Kept], signal: Signal, time_ms: int) -> bool:
    """Whether it is a copy of one that was kept a short while ago."""
    return any(
        each.signal.status == signal.status and abs(time_ms - each.time_ms) < BURST_MS for each in kept
    )


def _digest(*parts: str) -> bytes:
    return blake2b(msgspec.msgpack.encode(parts), digest_size=16).digest()


_decode = msgspec.msgpack.Decoder(Kept).decode
