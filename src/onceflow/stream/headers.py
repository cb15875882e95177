"""What the headers of a flow's own records say: where a forwarded event came from, and what an operator asks for."""

import re
from typing import NamedTuple

from onceflow.agents.commands import HEADER, Command, decode_command
from onceflow.agents.happenings import Redrive
from onceflow.event import Headers, Reason, Unusable, home_slot

OURS = "onceflow-"  # what our headers begin with
REDRIVE = "onceflow-redrive"
_TIME = re.compile(rb"-?[0-9]{1,18}")
_REDRIVE = re.compile(rb"([0-9a-f]{32}) ([0-9a-f]{32}) ([!-~]+) ([0-9]+)")  # as `redrive_headers` writes it
KEY = "onceflow-key"  # the record's Kafka key, where an event is made of it and it has to be kept


def without_ours(headers: Headers) -> list[tuple[str, bytes | None]]:
    """The headers of a record as its producer sent it."""
    return [(name, content) for name, content in headers or () if not name.startswith(OURS)]


def with_key(headers: Headers, key: bytes | None) -> list[tuple[str, bytes | None]]:
    """Headers that keep their record's Kafka key, and no other of that name."""
    return [*[header for header in headers or () if header[0] != KEY], (KEY, key)]


def key_of(headers: Headers) -> list[bytes | None]:
    """The Kafka key that they keep, if they do."""
    return [content for name, content in headers or () if name == KEY]


class Forwarding(NamedTuple):
    """What the headers of a forwarded event say of the record it was sent in."""

    origin: str
    time_ms: int
    tenant: str = ""  # of a redrive: whose topic it came from


def forwarding(headers: Headers) -> Forwarding | None:
    """Read them; None if the record was not forwarded. To be believed on the flow's own topics only.

    What no cell has written is as good as none: somebody has sent an event to the inbox.
    """
    found = {name: content for name, content in headers or () if name.startswith(OURS) and content}
    origin, time_ms = found.get("onceflow-origin"), found.get("onceflow-time")
    if origin is None or time_ms is None or not _TIME.fullmatch(time_ms):
        return None
    tenant = found.get("onceflow-tenant") or b""
    return Forwarding(origin.decode(errors="replace"), int(time_ms), tenant.decode(errors="replace"))


def command_of(headers: Headers, value: bytes | None, slot: int, slots: int) -> Command | Unusable | None:
    """What an operator has sent through the inbox of this slot; None: the record is none of that kind."""
    if not any(name == HEADER for name, _ in headers or ()):
        return None
    try:
        command = decode_command(value or b"")
        bytes.fromhex(command.run)
    except ValueError as error:
        return Unusable(Reason.INVALID, f"no command that this version knows: {error}", "")
    if command.action == "accept-loss":
        return command
    if not command.tenant or home_slot(command.tenant, slots) != slot:
        return Unusable(Reason.INVALID, "a command for another slot's tenant", "")
    return command


def redrive_headers(redrive: Redrive) -> list[tuple[str, str | bytes | None]]:
    """What says, on a record of the inbox, that its event is to be done anew."""
    text = f"{redrive.run.hex()} {redrive.root.hex()} {redrive.letter} {redrive.segments}"
    return [(REDRIVE, text.encode())]


def redrive_of(headers: Headers) -> Redrive | None:
    """Read them; None if there are none, or none that a command has written. To be believed in the inbox only."""
    text = next((content for name, content in headers or () if name == REDRIVE and content), b"")
    if (found := _REDRIVE.fullmatch(text)) is None:
        return None
    run, root, letter, segments = (part.decode() for part in found.groups())
    return Redrive(bytes.fromhex(run), bytes.fromhex(root), letter, int(segments))
