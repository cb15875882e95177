"""An event as it was read, and why a record may be none."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from onceflow.event.json_text import decode_json, decode_members

Headers = Sequence[tuple[str, bytes | None]] | None

HEADER_BYTES = 200  # more than what a header takes in memory beside its name and content

_NOT_ATTRIBUTES = frozenset(("data", "data_base64"))


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


class Unusable(NamedTuple):
    """Why a record is no event. `detail` is one line and shows no value of it; `tenant` is "" if unknown."""

    reason: Reason
    detail: str
    tenant: str


def record_bytes(value: bytes | None, headers: Headers) -> int:
    """What a record that is under way takes in memory, at most: what bounds that counts in these."""
    size = len(value or b"")
    if headers:
        size += sum([len(name) + len(content or b"") + HEADER_BYTES for name, content in headers])
    return size


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

    def stored(self) -> "Incoming":
        """The event as it is stored: its data once, if the document holds it."""
        if not self.document:
            return self
        return Incoming(
            self.tenant, self.source, self.id, self.type, self.time, b"", self.document, self.headers
        )

    def restored(self) -> "Incoming":
        """The event that was `stored` so, or with its data apart."""
        if not self.document or self.data:
            return self
        data = bytes(decode_members(self.document).get("data", b""))
        return msgspec.structs.replace(self, data=data)

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
            for name, raw in decode_members(self.document).items():
                if name not in _NOT_ATTRIBUTES and bytes(raw) != b"null":
                    found[name] = decode_json(bytes(raw))
        for name, value in self.headers or ():
            attribute = "datacontenttype" if name == "content-type" else name.removeprefix("ce_")
            if attribute != name and attribute not in _NOT_ATTRIBUTES and value is not None:
                found[attribute] = value.decode(errors="replace")
        return found
