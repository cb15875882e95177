"""JSON text that came from outside: is it well-formed, and what does it hold."""

import re
from array import array
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import msgspec
from msgspec import Raw

LEVELS_MAX = 200
_SHALLOW_BYTES = 2 * LEVELS_MAX  # JSON text of more levels is longer: it closes what it opens

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
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    bare = text.translate(_BRACKETS, _NEITHER_BRACKET_NOR_QUOTE)
    # Two quotes side by side change nothing for what is around them; what is between two others is a string.
    steps = b"".join(bare.replace(b'""', b"").split(b'"')[::2])
    # Taking out the innermost pairs makes all of it one level shallower, and spares most data the slow sum.
    for _ in range(_PEELS):
        steps = steps.replace(b"\x01\xff", b"")
    return max(accumulate(array("b", steps)), default=0) > LEVELS_MAX - _PEELS


def malformed(text: bytes) -> str:
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


class InvalidData(ValueError):  # noqa: N818 (reads as what it says)
    """The data of an event is not what its agent takes. One line, without values of the data."""


decode_any = msgspec.json.Decoder().decode
decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_raw = msgspec.json.Decoder(Raw).decode


def decode_json_or_none(text: bytes) -> Any:
    """As `decode_json`; of no text, None."""
    try:
        return decode_any(text) if text else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return decode_json(text)  # which words it


def decode_json(text: bytes, decode: Callable[[bytes], Any] = decode_any) -> Any:
    """What JSON text holds; raises InvalidData."""
    try:
        return decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # `from None`: the cause may quote a value, and tracebacks are logged.
        raise InvalidData(without_value(str(error))) from None
    except Exception as error:  # noqa: BLE001 (a type's __post_init__ may raise anything)
        raise InvalidData(f"its type raised {type(error).__name__}") from None


def without_value(message: str) -> str:
    """A decoder's message in one line, less the value that msgspec quotes for enumerations and tags."""
    message = re.sub(r"^(Invalid (?:enum )?value) .*?( - at `[^`]*`)?$", r"\1\2", message, flags=re.DOTALL)
    return " ".join(message.split())
