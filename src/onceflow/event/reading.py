"""Bytes become an event, or a reason why not.

`read_event` turns what Kafka holds (value, headers, key) into an `Incoming`, or says in one line why it
cannot: an `Unusable`. No bytes whatsoever make it raise. An event that passes is checked once and for all:
its attributes are within their limits, and the whole is UTF-8 and well-formed JSON of at most 200 levels. Its
data stays the text that was sent: the key is made of those bytes, and most events never need more.

Two readers agree on every event. The fast one settles, in about a microsecond, an event of which *every* copy
of every attribute is plainly good; it refuses none. What it cannot settle (an escape or a character beyond
ASCII in an attribute, a tenant named twice, any fault) goes to the careful one, which sees each copy by name
and words the reason. JSON keys may be doubled: the last wins, but one bad copy spoils the event, or two
programs could see two different events in one record.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw
from msgspec.structs import force_setattr

from onceflow.event.attributes import (
    KNOWN,
    TENANT_MAX,
    TEXT_MAX_BYTES,
    Time,
    attribute_fault,
    is_tenant,
    text_of,
)
from onceflow.event.incoming import Headers, Incoming, Reason, Unusable
from onceflow.event.json_text import malformed, too_deep
from onceflow.event.plain import PlainMapping

SIZE_MAX_BYTES = 1_000_000
_BACKSLASH, _DELETE = 0x5C, 0x7F
_EDGES = (1, 9999)  # the years in which a time may have no UTC, as which it is stored


def read_event(
    value: bytes | None,
    headers: Headers,
    kafka_key: bytes | None = None,
    topic_tenant: str = "",
    plain: PlainMapping | None = None,
    size_max: int = SIZE_MAX_BYTES,
) -> Incoming | Unusable:
    """The event in a record. `topic_tenant` = the tenant that owns the topic, "" on a shared one."""
    if value and not headers and plain is None and len(value) <= size_max:
        return _read_structured(value, topic_tenant)
    value = value or b""
    size = len(value)
    binary = has_attributes = False
    for name, content in headers or ():
        size += len(name if name.isascii() else name.encode(errors="surrogatepass")) + len(content or b"")
        if name.startswith("ce_"):
            has_attributes = True
            binary = binary or name == "ce_specversion"
    if size > size_max:
        return Unusable(
            Reason.TOO_LARGE,
            f"value and headers are {size} bytes, at most {size_max} are taken",
            topic_tenant,
        )
    if binary:
        return _read_binary(value, headers or (), topic_tenant)
    if not value:
        if has_attributes:
            missing = "no value, and among the ce_ headers no ce_specversion: expected a CloudEvent"
            return Unusable(Reason.INVALID, missing, topic_tenant)
        return Unusable(
            Reason.UNDECODABLE, "no value and no ce_ headers: expected a CloudEvent", topic_tenant
        )
    if plain is not None:
        return _read_plain(value, headers or (), kafka_key, topic_tenant, plain)
    return _read_structured(value, topic_tenant)


class Structured(Incoming, frozen=True, kw_only=True, gc=False):
    """An event in structured mode as the fast reader makes it; its data is a view of the document.

    msgspec holds every copy of a doubled key to its type. An unknown attribute that has the name of one of our fields
    is of no harm: it fails here, and the careful reader takes the event; or we write over it.
    """

    specversion: Literal["1.0"]
    id: Annotated[str, Meta(min_length=1, max_length=TEXT_MAX_BYTES)]
    source: Annotated[str, Meta(min_length=1, max_length=TEXT_MAX_BYTES)]
    type: Annotated[str, Meta(min_length=1, max_length=TEXT_MAX_BYTES)]
    tenant: Annotated[str, Meta(min_length=1, max_length=TENANT_MAX)] = ""
    time: Time | None = None
    data: Raw = Raw()
    data_base64: None = None
    headers: None = None

    def whole(self) -> Incoming:
        """The same event as one that may be kept."""
        return Incoming(
            self.tenant, self.source, self.id, self.type, self.time, bytes(self.data), self.document
        )


class _Copy:
    """A key of a JSON object that equals only itself: a mapping with such keys keeps doubled ones apart."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _Version(msgspec.Struct, gc=False):
    specversion: Raw = Raw(b"null")


_NULL = Raw(b"null")

_decode_structured = msgspec.json.Decoder(Structured).decode
_decode_version = msgspec.json.Decoder(_Version).decode
_decode_copies = msgspec.json.Decoder(dict[_Copy, Raw], dec_hook=lambda _, name: _Copy(name)).decode


def read_fast(value: bytes, topic_tenant: str) -> Structured | None:
    """The event, if every copy of every attribute is plainly good; None = the careful reader decides."""
    if too_deep(value):
        return None
    try:
        multibyte = 0 if value.isascii() else len(value) - len(str(value, "utf-8"))
        event = _decode_structured(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    # In JSON text a control character is an escape, DEL, or beyond ASCII. If all of those are inside the
    # data, no copy of an attribute holds one, and a limit on its characters is a limit on its bytes.
    if _BACKSLASH in value and value.count(b"\\") != bytes(event.data).count(b"\\"):
        return None
    if _DELETE in value:
        return None
    if multibyte:
        data = bytes(event.data)
        if multibyte != len(data) - len(str(data, "utf-8")):
            return None
    # A pattern in the structure would double the cost. So the tenant is checked here, and must be one copy.
    named = value.count(b'"tenant"')
    if named > 1 and named - bytes(event.data).count(b'"tenant"') > 1:
        return None
    if topic_tenant:
        if event.tenant and event.tenant != topic_tenant:
            return None
        force_setattr(event, "tenant", topic_tenant)
    if not is_tenant(event.tenant):
        return None
    if event.time is not None and event.time.year in _EDGES:
        return None
    force_setattr(event, "document", value)
    return event


def _read_structured(value: bytes, topic_tenant: str) -> Incoming | Unusable:
    event = read_fast(value, topic_tenant)
    return _read_carefully(value, topic_tenant) if event is None else event.whole()


def _read_carefully(value: bytes, topic_tenant: str) -> Incoming | Unusable:
    if fault := malformed(value):
        return Unusable(Reason.UNDECODABLE, fault, topic_tenant)
    try:
        copies = _decode_copies(value)
    except msgspec.ValidationError:
        return Unusable(Reason.INVALID, "JSON but no object: expected a CloudEvent", topic_tenant)
    data = b""
    attributes: list[tuple[str, object]] = []
    for copy, raw in copies.items():
        if copy.name == "data":
            data = bytes(raw)
        elif copy.name in KNOWN:
            attributes.append((copy.name, text_of(bytes(raw))))
    return _assemble(attributes, topic_tenant, data, document=value)


def _read_binary(
    value: bytes, headers: Sequence[tuple[str, bytes | None]], topic_tenant: str
) -> Incoming | Unusable:
    attributes: list[tuple[str, str | None]] = []
    for name, content in headers:
        if name.startswith("ce_"):
            try:
                attributes.append((name[3:], None if content is None else str(content, "utf-8")))
            except UnicodeDecodeError as error:
                fault = f"invalid UTF-8 at byte {error.start} of a header, {name!a}"
                return Unusable(Reason.UNDECODABLE, fault, topic_tenant)
    event = _binary_fast(attributes, value, headers, topic_tenant) or _assemble(
        attributes, topic_tenant, value, headers=tuple(headers)
    )
    if value and (fault := malformed(value)):
        return Unusable(Reason.UNDECODABLE, fault, event.tenant)
    return event


def _binary_fast(
    attributes: list[tuple[str, str | None]],
    data: bytes,
    headers: Sequence[tuple[str, bytes | None]],
    topic_tenant: str,
) -> Incoming | None:
    """As `read_fast`, for attributes from headers."""
    unique = dict(attributes)
    if len(unique) != len(attributes):
        return None
    try:
        envelope = msgspec.convert(unique, Structured)
    except msgspec.ValidationError:
        return None
    tenant = envelope.tenant or topic_tenant
    texts = envelope.id + envelope.source + envelope.type
    if not (texts.isascii() and texts.isprintable() and is_tenant(tenant)):
        return None
    if topic_tenant and tenant != topic_tenant:
        return None
    if envelope.time is not None and envelope.time.year in _EDGES:
        return None
    return Incoming(
        tenant, envelope.source, envelope.id, envelope.type, envelope.time, data, headers=tuple(headers)
    )


def _read_plain(
    value: bytes,
    headers: Sequence[tuple[str, bytes | None]],
    kafka_key: bytes | None,
    topic_tenant: str,
    plain: PlainMapping,
) -> Incoming | Unusable:
    if fault := malformed(value):
        return Unusable(Reason.UNDECODABLE, fault, topic_tenant)
    try:
        is_cloud_event = _decode_version(value).specversion != _NULL
    except msgspec.ValidationError:
        is_cloud_event = False  # JSON, but no object
    if is_cloud_event:
        return _read_structured(value, topic_tenant)
    try:
        attributes = plain.attributes(value, headers, kafka_key)
    except UnicodeDecodeError as error:
        fault = (
            f"invalid UTF-8 at byte {error.start} of the Kafka key or of a header that [events.plain] names"
        )
        return Unusable(Reason.UNDECODABLE, fault, topic_tenant)
    return _assemble([("specversion", "1.0"), *attributes], topic_tenant, value)


def _assemble(
    attributes: Iterable[tuple[str, object]],
    topic_tenant: str,
    data: bytes,
    document: bytes = b"",
    headers: tuple[tuple[str, bytes | None], ...] | None = None,
) -> Incoming | Unusable:
    """The event of these attributes (every copy, in the order sent; None = unset), or its first fault."""
    found: dict[str, str] = {}
    faults: dict[str, str] = {}
    for name, content in attributes:
        if name not in KNOWN:
            continue
        if content is None:
            found.pop(name, None)
        elif fault := attribute_fault(name, content):
            faults.setdefault(name, fault)
        else:
            found[name] = str(content)
    tenant = topic_tenant or ("" if "tenant" in faults else found.get("tenant", ""))
    for name in ("specversion", "id", "source", "type"):
        if name not in found:
            faults.setdefault(name, f'attribute "{name}" is missing')
    if not tenant:
        faults.setdefault("tenant", 'attribute "tenant" is missing: a shared topic needs it in every event')
    if faults:
        return Unusable(Reason.INVALID, next(iter(faults.values())), tenant)
    if found.get("tenant", tenant) != tenant:
        fault = f'attribute "tenant" is another than the tenant of this topic, {tenant}'
        return Unusable(Reason.WRONG_TENANT, fault, tenant)
    time = msgspec.convert(found["time"], Time) if "time" in found else None
    if time is not None and not _has_utc(time):
        return Unusable(
            Reason.INVALID, 'attribute "time" must be between the years 1 and 9999 in UTC', tenant
        )
    return Incoming(tenant, found["source"], found["id"], found["type"], time, data, document, headers)


def _has_utc(time: datetime) -> bool:
    try:
        time.astimezone(UTC)
    except OverflowError:
        return False
    return True
