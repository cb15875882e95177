"""What an attribute of an event may hold."""

import re
from datetime import datetime
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta

from onceflow.event.json_text import decode_any

TEXT_MAX_BYTES = 512
"""The limit of id, source and type, each."""

TENANT_MAX = 128  # characters

KNOWN = frozenset(("specversion", "id", "source", "type", "tenant", "time", "data_base64"))
Time = Annotated[datetime, Meta(tz=True)]

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # and halves of pairs, which are no text
_OTHER_TYPE = object()


@lru_cache(maxsize=65_536)
def is_tenant(text: str) -> bool:
    """Whether this may be a tenant's name. To be asked of short texts only: the answer is kept."""
    return _TENANT.fullmatch(text) is not None


def attribute_fault(name: str, content: object) -> str:
    """What is wrong with one copy of an attribute that we know; "" = nothing."""
    if name == "data_base64":
        return 'attribute "data_base64" is not taken: send the data as JSON, in "data"'
    if not isinstance(content, str):
        return f'attribute "{name}" must be a string'
    if name == "specversion":
        return "" if content == "1.0" else 'attribute "specversion" must be "1.0"'
    if name == "time":
        try:
            msgspec.convert(content, Time)
        except msgspec.ValidationError:
            return 'attribute "time" must be an RFC 3339 time with an offset, as 2026-08-01T12:00:00Z'
        return ""
    if name == "tenant":
        fits = len(content) <= TENANT_MAX and is_tenant(content)  # what is longer must not stay in the cache
        return "" if fits else f'attribute "tenant" must match {_TENANT.pattern}'
    size = len(content.encode(errors="surrogatepass"))
    if not 1 <= size <= TEXT_MAX_BYTES:
        return f'attribute "{name}" must be 1 to {TEXT_MAX_BYTES} bytes, not {size}'
    if _CONTROL.search(content):
        return f'attribute "{name}" must hold no control characters'
    return ""


def text_of(raw: bytes) -> object:
    """A JSON text as what `attribute_fault` takes: a string, None for null, or something that is neither."""
    if raw.startswith(b'"'):
        return decode_any(raw)
    return None if raw == b"null" else _OTHER_TYPE
