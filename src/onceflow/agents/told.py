"""What tells calls apart: their arguments, as bytes that are the same in every process.

What has no encoding counts by its text. An address in it, as in that of most objects and functions, is another one in
the next process: a replay could not know that it asks for the same call.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from onceflow.event import NotRead

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+>")


def _text(value: Any) -> str | None:
    if isinstance(value, NotRead):  # an event counts by what it holds
        return None
    text = repr(value)
    if _ADDRESS.search(text):
        raise TypeError(text)
    return text


encode_sorted = msgspec.msgpack.Encoder(enc_hook=_text, order="sorted").encode


def as_told(tool: str, arguments: Mapping[str, Any]) -> bytes:
    """Arguments of a tool that have no encoding, as text; raises TypeError for one that has no stable form."""
    for name, value in arguments.items():
        if _has_address(value):
            raise TypeError(
                f"tool {tool}: its argument {name}, a {type(value).__name__}, has no stable form: it looks different "
                "in each replay. Pass what the tool needs of it, as texts, numbers, lists, dicts, a dataclass, a "
                "Struct or a pydantic model"
            )
    return repr(arguments).encode("utf-8", "surrogatepass")


def _has_address(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_address(each) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_has_address, value))
    return not isinstance(value, str | bytes) and _ADDRESS.search(repr(value)) is not None


def sorted_text(value: Any) -> str:
    """What has no encoding, as text: `repr`, but sets and dicts in an order that all processes agree on."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{sorted_text(k)}: {sorted_text(v)}' for k, v in value.items()))}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(sorted_text, value)))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(sorted_text, value))}]"
    return repr(value)
