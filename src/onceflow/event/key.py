"""An event's key, and the slot that it belongs to.

The same tenant, source, id and content give the same 16 bytes, for ever and everywhere.
"""

from collections.abc import Iterable
from functools import lru_cache
from struct import Struct

import msgspec
from confluent_kafka import murmur2
from xxhash import xxh3_128_digest

from onceflow.event.attributes import TEXT_MAX_BYTES
from onceflow.event.incoming import Incoming
from onceflow.event.json_text import decode_any, too_deep

_encode_sorted = msgspec.json.Encoder(order="sorted").encode
_length = Struct(">I").pack
_LENGTHS = [_length(size) for size in range(TEXT_MAX_BYTES + 1)]


def idempotency_key(tenant: str, source: str, id: str, data: bytes, content: str = "bytes") -> bytes:
    """The 16 bytes that name an event; in hex, its run's id.

    xxh3_128( f(tenant) f(source) f(id) xxh3_128(data) ), seed 0; f(x) = 4-byte big-endian length, then UTF-8.

    `content` says what of the data counts. "bytes": all, as sent; "ignore": nothing; "canonical": re-encoded
    with sorted keys and no blanks, of doubled keys the last. Canonical integers are exact, other numbers the
    nearest double: 1.0, 1.00 and 1e0 are the same, 1 and 1.0 are not. What cannot be decoded (1e400, an
    integer of more than some 4,300 digits, more than 200 levels) counts as its bytes.
    """
    if content != "bytes":
        data = _canonical(bytes(data)) if content == "canonical" else _ignored(content)
    text = id.encode()
    return xxh3_128_digest(_fields(tenant, source) + _length(len(text)) + text + xxh3_128_digest(data))


def idempotency_keys(events: Iterable[Incoming], content: str) -> list[bytes]:
    """The keys of events of one tenant; as `idempotency_key`, in half the time where they have one source."""
    if content != "bytes":
        return [idempotency_key(e.tenant, e.source, e.id, e.data, content) for e in events]
    keys: list[bytes] = []
    digest, source, fields = xxh3_128_digest, None, b""
    for event in events:
        if event.source != source:
            source = event.source
            fields = _fields(event.tenant, source)
        text = event.id.encode()
        keys.append(digest(fields + _LENGTHS[len(text)] + text + digest(event.data)))
    return keys


def _fields(tenant: str, source: str) -> bytes:
    """f(tenant) f(source), which many events have in common."""
    a, b = tenant.encode(), source.encode()
    return _length(len(a)) + a + _length(len(b)) + b


def _ignored(content: str) -> bytes:
    if content != "ignore":
        raise ValueError(f"content is {content!r}: use bytes, canonical or ignore")
    return b""


def _canonical(data: bytes) -> bytes:
    if too_deep(data):
        return data
    try:
        return _encode_sorted(decode_any(data))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return data


@lru_cache(maxsize=65_536)
def home_slot(tenant: str, slots: int) -> int:
    """The slot that owns a tenant: the partition that Java clients choose for this key."""
    return murmur2(tenant.encode(), slots)
