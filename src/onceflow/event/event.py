"""What an agent sees of an event."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from types import MappingProxyType
from typing import Any, Generic

import msgspec
import pydantic
from msgspec import Raw
from msgspec.structs import force_setattr
from typing_extensions import TypeVar

from onceflow.errors import ConfigError
from onceflow.event.incoming import Incoming
from onceflow.event.json_text import InvalidData, decode_json, decode_json_or_none, without_value
from onceflow.event.kinds import undecodable

T = TypeVar("T", default=Any)


class NotRead:
    """The attributes of an event that nobody has asked for. No encoder takes it, so none writes an event as a whole."""

    def __repr__(self) -> str:
        return "…"


_NOT_READ = NotRead()


class Event(msgspec.Struct, Generic[T], frozen=True, eq=False, gc=False):
    """An event as an agent sees it: read-only; `data` is of the type that the agent declares."""

    _incoming: Incoming
    _key: str
    _data: T
    _attributes: Mapping[str, Any] | NotRead = _NOT_READ

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
        if isinstance(found, NotRead):
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
        return decode_json_or_none
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        return lambda data: _decode_model(kind, bytes(data) or b"null")
    try:
        unknown = undecodable(kind)
    except TypeError as error:
        unknown = f"{kind!r} ({error})"
    if unknown:
        raise ConfigError(
            f"event data cannot be decoded as {unknown}: declare Event[S] with a msgspec Struct, a dataclass, "
            "a TypedDict or a pydantic model, or plain Event for JSON values"
        )
    decode = msgspec.json.Decoder(kind, dec_hook=_nested).decode
    return lambda data: decode_json(data or b"null", decode)


def _nested(kind: Any, value: Any) -> Any:
    """A pydantic model within another type, from JSON values; decoded as one that is all of the data."""
    return value if kind is object else _decode_model(kind, json.dumps(value).encode())


def _decode_model(model: type[pydantic.BaseModel], text: bytes) -> pydantic.BaseModel:
    decode_json(text)  # pydantic alone would take 1e400 for infinity
    try:
        return model.model_validate_json(text)
    except Exception as error:  # noqa: BLE001 (a validator may raise anything)
        raise InvalidData(_why_not(error)) from None


def _why_not(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        with suppress(Exception):  # it words what a validator raised, whose text may raise too
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = "".join(f".{part}" for part in first["loc"])
            return without_value(f"{first['msg']} - at `${where}`")
    return f"a validator raised {type(error).__name__}"  # whose text may quote a value
