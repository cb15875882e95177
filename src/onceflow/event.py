"""What an event is, and its key.

`read_event` turns what Kafka holds (value, headers, key) into an `Incoming`, or says in one line why it
cannot: an `Unusable`. No bytes whatsoever make it raise. An event that passes is checked once and for all:
its attributes are within their limits, and the whole is UTF-8 and well-formed JSON of at most 200 levels. Its
data stays the text that was sent: the key is made of those bytes, and most events never need more.

Two readers agree on every event. The fast one settles, in about a microsecond, an event of which *every* copy
of every attribute is plainly good; it refuses none. What it cannot settle (an escape or a character beyond
ASCII in an attribute, a tenant named twice, any fault) goes to the careful one, which sees each copy by name
and words the reason. JSON keys may be doubled: the last wins, but one bad copy spoils the event, or two
programs could see two different events in one record.

`idempotency_key` names an event: the same tenant, source, id and content give the same 16 bytes, for ever and
everywhere. `Event` and `data_decoder` are what an agent sees of it.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate
from struct import Struct
from types import MappingProxyType
from typing import Annotated, Any, Generic, Literal, NamedTuple

import msgspec
import pydantic
from confluent_kafka import murmur2
from msgspec import Meta, Raw
from msgspec.structs import force_setattr
from typing_extensions import TypeVar
from xxhash import xxh3_128_digest

from onceflow.errors import ConfigError

SIZE_MAX_BYTES = 1_000_000
LEVELS_MAX = 200
TEXT_MAX_BYTES = 512
"""The limit of id, source and type, each."""

Headers = Sequence[tuple[str, bytes | None]] | None


class Reason(StrEnum):
    """Why a record or a run went to the dead letters."""

    UNDECODABLE = "undecodable"
    INVALID = "invalid"
    WRONG_TENANT = "wrong-tenant"
    TOO_LARGE = "too-large"
    UNKNOWN_TYPE = "unknown-type"
    CONFLICT = "conflict"
    AGENT_FAILED = "agent-failed"
    EXPIRED = "expired"
    POISON = "poison"
    NONDETERMINISTIC = "nondeterministic"
    UNKNOWN_OUTCOME = "unknown-outcome"
    UNCLAIMED_SIGNAL = "unclaimed-signal"


class Incoming(msgspec.Struct, frozen=True, gc=False):
    """A well-formed event as it was read; `data` is JSON text, exactly as sent (b"" = absent).

    `document` (structured mode) and `headers` (binary mode) are kept for the attributes that we do not know.
    """

    tenant: str
    source: str
    id: str
    type: str
    time: datetime | None
    data: bytes
    document: bytes = b""
    headers: tuple[tuple[str, bytes | None], ...] | None = None

    def whole(self) -> "Incoming":
        """The same event as one that may be kept."""
        return self

    def attributes(self) -> dict[str, Any]:
        """All attributes apart from the data, as JSON values; those sent as null are unset.

        Raises InvalidData for an unknown attribute that holds a number no program can take, as 1e400.
        """
        found: dict[str, Any] = {
            "tenant": self.tenant,
            "source": self.source,
            "id": self.id,
            "type": self.type,
        }
        if self.document:
            for name, raw in _decode_members(self.document).items():
                if name not in _NOT_ATTRIBUTES and raw != _NULL:
                    found[name] = _decode_json(bytes(raw))
        for name, value in self.headers or ():
            attribute = "datacontenttype" if name == "content-type" else name.removeprefix("ce_")
            if attribute != name and attribute not in _NOT_ATTRIBUTES and value is not None:
                found[attribute] = value.decode(errors="replace")
        return found


class Unusable(NamedTuple):
    """Why a record is no event. `detail` is one line and shows no value of it; `tenant` is "" if unknown."""

    reason: Reason
    detail: str
    tenant: str


def read_event(
    value: bytes | None,
    headers: Headers,
    kafka_key: bytes | None = None,
    topic_tenant: str = "",
    plain: "PlainMapping | None" = None,
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
    tenant: Annotated[str, Meta(min_length=1, max_length=128)] = ""
    time: Annotated[datetime, Meta(tz=True)] | None = None
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


_Time = Annotated[datetime, Meta(tz=True)]
_NULL = Raw(b"null")
_OTHER_TYPE = object()
_KNOWN = frozenset(("specversion", "id", "source", "type", "tenant", "time", "data_base64"))
_NOT_ATTRIBUTES = frozenset(("data", "data_base64"))
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # and halves of pairs, which are no text
_BACKSLASH, _DELETE = 0x5C, 0x7F
_SHALLOW_BYTES = 2 * LEVELS_MAX  # JSON text of more levels is longer: it closes what it opens

_decode_structured = msgspec.json.Decoder(Structured).decode
_decode_version = msgspec.json.Decoder(_Version).decode
_decode_copies = msgspec.json.Decoder(dict[_Copy, Raw], dec_hook=lambda _, name: _Copy(name)).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_elements = msgspec.json.Decoder(list[Raw]).decode
_decode_raw = msgspec.json.Decoder(Raw).decode
_decode_any = msgspec.json.Decoder().decode
_encode_sorted = msgspec.json.Encoder(order="sorted").encode


@lru_cache(maxsize=65_536)
def _is_tenant(text: str) -> bool:
    return _TENANT.fullmatch(text) is not None


def read_fast(value: bytes, topic_tenant: str) -> Structured | None:
    """The event, if every copy of every attribute is plainly good; None = the careful reader decides."""
    if len(value) > _SHALLOW_BYTES and too_deep(value):
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
    if not _is_tenant(event.tenant):
        return None
    force_setattr(event, "document", value)
    return event


def _read_structured(value: bytes, topic_tenant: str) -> Incoming | Unusable:
    event = read_fast(value, topic_tenant)
    return _read_carefully(value, topic_tenant) if event is None else event.whole()


def _read_carefully(value: bytes, topic_tenant: str) -> Incoming | Unusable:
    if fault := _malformed(value):
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
        elif copy.name in _KNOWN:
            attributes.append((copy.name, _text(bytes(raw))))
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
    if value and (fault := _malformed(value)):
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
    if not (texts.isascii() and texts.isprintable() and _is_tenant(tenant)):
        return None
    if topic_tenant and tenant != topic_tenant:
        return None
    return Incoming(
        tenant, envelope.source, envelope.id, envelope.type, envelope.time, data, headers=tuple(headers)
    )


def _read_plain(
    value: bytes,
    headers: Sequence[tuple[str, bytes | None]],
    kafka_key: bytes | None,
    topic_tenant: str,
    plain: "PlainMapping",
) -> Incoming | Unusable:
    if fault := _malformed(value):
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
        if name not in _KNOWN:
            continue
        if content is None:
            found.pop(name, None)
        elif fault := _attribute_fault(name, content):
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
    time = msgspec.convert(found["time"], _Time) if "time" in found else None
    return Incoming(tenant, found["source"], found["id"], found["type"], time, data, document, headers)


def _attribute_fault(name: str, content: object) -> str:
    """What is wrong with one copy of an attribute that we know; "" = nothing."""
    if name == "data_base64":
        return 'attribute "data_base64" is not taken: send the data as JSON, in "data"'
    if not isinstance(content, str):
        return f'attribute "{name}" must be a string'
    if name == "specversion":
        return "" if content == "1.0" else 'attribute "specversion" must be "1.0"'
    if name == "time":
        try:
            msgspec.convert(content, _Time)
        except msgspec.ValidationError:
            return 'attribute "time" must be an RFC 3339 time with an offset, as 2026-08-01T12:00:00Z'
        return ""
    if name == "tenant":
        return "" if _is_tenant(content) else f'attribute "tenant" must match {_TENANT.pattern}'
    size = len(content.encode(errors="surrogatepass"))
    if not 1 <= size <= TEXT_MAX_BYTES:
        return f'attribute "{name}" must be 1 to {TEXT_MAX_BYTES} bytes, not {size}'
    if _CONTROL.search(content):
        return f'attribute "{name}" must hold no control characters'
    return ""


def _text(raw: bytes) -> object:
    """A JSON text as what `_assemble` takes: a string, None for null, or something that is neither."""
    if raw.startswith(b'"'):
        return _decode_any(raw)
    return None if raw == b"null" else _OTHER_TYPE


def _malformed(text: bytes) -> str:
    """Why this is no UTF-8 JSON text of bounded depth; "" = it is."""
    if too_deep(text):
        return f"more than {LEVELS_MAX} levels of arrays and objects"
    try:
        str(text, "utf-8")
        _decode_raw(text)
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start}"
    except msgspec.DecodeError as error:
        return f"not JSON (or with half a surrogate pair): {error}"
    return ""


_BRACKETS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: a level down, a level up
_NEITHER_BRACKET_NOR_QUOTE = bytes(set(range(256)) - set(b'[{]}"'))
_PEELS = 4


def too_deep(text: bytes) -> bool:
    """Whether JSON text nests deeper than LEVELS_MAX; of malformed text, at least its well-formed beginning.

    Decoders go one call deeper with each level, so this comes first. It is linear: for 1 MB some
    tens of milliseconds at worst.
    """
    if len(text) <= _SHALLOW_BYTES or text.count(b"[") + text.count(b"{") <= LEVELS_MAX:
        return False
    if _BACKSLASH in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    bare = text.translate(_BRACKETS, _NEITHER_BRACKET_NOR_QUOTE)
    # Two quotes side by side change nothing for what is around them; what is between two others is a string.
    steps = b"".join(bare.replace(b'""', b"").split(b'"')[::2])
    # Taking out the innermost pairs makes all of it one level shallower, and spares most data the slow sum.
    for _ in range(_PEELS):
        steps = steps.replace(b"\x01\xff", b"")
    return max(accumulate(array("b", steps)), default=0) > LEVELS_MAX - _PEELS


class _Place(NamedTuple):
    kind: Literal["header", "key", "pointer", "constant"]
    name: str = ""
    tokens: tuple[str, ...] = ()


_PLACES = 'write "header:NAME", "key", "/json/pointer" or "=constant"'
_INTEGER = re.compile(rb"-?[0-9]+")


@dataclass(frozen=True, slots=True)
class PlainMapping:
    """Where events that are no CloudEvents carry their attributes; their data is the whole value.

    A JSON pointer may lead to a string or an integer (taken as its digits); null and nothing mean unset.
    """

    places: tuple[tuple[str, _Place], ...]

    @classmethod
    def parse(cls, mapping: Mapping[str, str]) -> "PlainMapping":
        """From `[events.plain]`; tenant may be left out where all events come from tenants' own topics."""
        if unknown := sorted(set(mapping) - {"tenant", "id", "source", "type"}):
            raise ConfigError(
                f"events.plain.{unknown[0]}: remove it; tenant, id, source and type can be mapped"
            )
        for name in ("id", "source", "type"):
            if name not in mapping:
                raise ConfigError(f"events.plain.{name} is missing: {_PLACES}")
        return cls(tuple((name, cls._place(name, text)) for name, text in mapping.items()))

    @staticmethod
    def _place(name: str, text: str) -> _Place:
        if text == "key":
            return _Place("key")
        if text.startswith("header:") and text != "header:":
            return _Place("header", text.removeprefix("header:"))
        if text.startswith("="):
            if fault := _attribute_fault(name, text[1:]):
                raise ConfigError(f"events.plain.{name}: {fault}")
            return _Place("constant", text[1:])
        if text.startswith("/"):
            if re.search(r"~(?![01])", text):
                raise ConfigError(f'events.plain.{name}: in a JSON pointer write "~" as "~0" and "/" as "~1"')
            tokens = tuple(token.replace("~1", "/").replace("~0", "~") for token in text[1:].split("/"))
            return _Place("pointer", text, tokens)
        raise ConfigError(f"events.plain.{name} is {text!r}: {_PLACES}")

    def attributes(
        self, value: bytes, headers: Sequence[tuple[str, bytes | None]], kafka_key: bytes | None
    ) -> list[tuple[str, object]]:
        """Each mapped attribute of a well-formed value, every copy; UnicodeDecodeError if one is no text."""
        found: list[tuple[str, object]] = []
        for name, place in self.places:
            if place.kind == "header":
                copies = [content for header, content in headers if header == place.name]
                found += [(name, None if copy is None else str(copy, "utf-8")) for copy in copies]
            elif place.kind == "key":
                found.append((name, None if kafka_key is None else str(kafka_key, "utf-8")))
            elif place.kind == "pointer":
                found.append((name, _pointed(value, place.tokens)))
            else:
                found.append((name, place.name))
        return found


def _pointed(value: bytes, tokens: tuple[str, ...]) -> object:
    """What an RFC 6901 pointer finds: text, None, or something that is neither."""
    raw = value.strip()
    for token in tokens:
        inner: Raw | None = None
        if raw.startswith(b"{"):
            inner = _decode_members(raw).get(token)
        elif raw.startswith(b"[") and re.fullmatch("0|[1-9][0-9]{0,6}", token):
            inner = next(iter(_decode_elements(raw)[int(token) :]), None)
        if inner is None:
            return None
        raw = bytes(inner)
    return raw.decode() if _INTEGER.fullmatch(raw) else _text(raw)


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
        return _encode_sorted(_decode_any(data))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return data


@lru_cache(maxsize=65_536)
def home_slot(tenant: str, slots: int) -> int:
    """The slot that owns a tenant: the partition that Java clients choose for this key."""
    return murmur2(tenant.encode(), slots)


class InvalidData(ValueError):  # noqa: N818 (reads as what it says)
    """The data of an event is not what its agent takes. One line, without values of the data."""


T = TypeVar("T", default=Any)


class Event(msgspec.Struct, Generic[T], frozen=True, eq=False, gc=False):
    """An event as an agent sees it: read-only; `data` is of the type that the agent declares."""

    _incoming: Incoming
    _key: str
    _data: T
    _attributes: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, incoming: Incoming, key: str, data: T) -> "Event[T]":
        """The event as read, with its key in hex and its data decoded."""
        return cls(incoming, key, data)

    @property
    def tenant(self) -> str:
        return self._incoming.tenant

    @property
    def id(self) -> str:
        return self._incoming.id

    @property
    def source(self) -> str:
        return self._incoming.source

    @property
    def type(self) -> str:
        return self._incoming.type

    @property
    def time(self) -> datetime | None:
        """When it happened, by its producer's clock; aware, or None if the producer did not say."""
        return self._incoming.time

    @property
    def data(self) -> T:
        return self._data

    @property
    def key(self) -> str:
        """The idempotency key in hex: the id of the event's run."""
        return self._key

    @property
    def raw(self) -> Raw:
        """The data's JSON text, to be passed on as it is; `null` when absent."""
        data = self._incoming.data or b"null"
        return data if isinstance(data, Raw) else Raw(data)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """All attributes as JSON values, unknown ones too (`traceparent`); decoded when first asked for."""
        found = self._attributes
        if found is None:
            found = MappingProxyType(self._incoming.attributes())
            force_setattr(self, "_attributes", found)
        return found

    def __repr__(self) -> str:
        return f"Event(tenant={self.tenant!r}, source={self.source!r}, id={self.id!r}, type={self.type!r})"


def data_decoder(kind: Any) -> Callable[[bytes], Any]:
    """A function from an event's data to `kind`: Any, a pydantic model, or any type that msgspec decodes.

    Strict: nothing is coerced. Absent data reads as null, so a kind that takes None takes it. The function
    raises InvalidData; this one raises ConfigError for a kind that no data could ever fill.
    """
    if kind is Any:
        return _decode_json_or_none
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        return lambda data: _decode_model(kind, bytes(data) or b"null")
    try:
        supported = not isinstance(msgspec.inspect.type_info(kind), msgspec.inspect.CustomType)
    except TypeError:
        supported = False
    if not supported:
        raise ConfigError(
            f"event data cannot be decoded as {kind!r}: declare Event[S] with a msgspec Struct, a dataclass, "
            "a TypedDict or a pydantic model, or plain Event for JSON values"
        )
    decode = msgspec.json.Decoder(kind).decode
    return lambda data: _decode_json(data or b"null", decode)


def _decode_json_or_none(text: bytes) -> Any:
    try:
        return _decode_any(text) if text else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_json(text)  # which words it


def _decode_json(text: bytes, decode: Callable[[bytes], Any] = _decode_any) -> Any:
    try:
        return decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # `from None`: the cause may quote a value, and tracebacks are logged.
        raise InvalidData(_without_value(str(error))) from None


def _decode_model(model: type[pydantic.BaseModel], text: bytes) -> pydantic.BaseModel:
    _decode_json(text)  # pydantic alone would take 1e400 for infinity
    try:
        return model.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = "".join(f".{part}" for part in first["loc"])
        raise InvalidData(_without_value(f"{first['msg']} - at `${where}`")) from None


def _without_value(message: str) -> str:
    """A decoder's message in one line, less the value that msgspec quotes for enumerations and tags."""
    message = re.sub(r"^(Invalid (?:enum )?value) .*?( - at `[^`]*`)?$", r"\1\2", message, flags=re.DOTALL)
    return " ".join(message.split())
