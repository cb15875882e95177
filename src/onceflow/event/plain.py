"""Events that are no CloudEvents: where they carry their attributes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec
from msgspec import Raw

from onceflow.errors import ConfigError
from onceflow.event.attributes import attribute_fault, text_of
from onceflow.event.json_text import decode_members

_decode_elements = msgspec.json.Decoder(list[Raw]).decode


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
            if fault := attribute_fault(name, text[1:]):
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
            inner = decode_members(raw).get(token)
        elif raw.startswith(b"[") and re.fullmatch("0|[1-9][0-9]{0,6}", token):
            inner = next(iter(_decode_elements(raw)[int(token) :]), None)
        if inner is None:
            return None
        raw = bytes(inner)
    return raw.decode() if _INTEGER.fullmatch(raw) else text_of(raw)
