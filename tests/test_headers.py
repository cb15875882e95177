"""What the headers of an inbox's records say: what an operator sends, what is taken of that, and what is refused."""

import msgspec
import pytest

from onceflow.agents.commands import HEADER, Command
from onceflow.agents.happenings import Redrive
from onceflow.event import Unusable, home_slot
from onceflow.stream.headers import command_of, forwarding, redrive_headers, redrive_of

SLOTS, RUN = 16, "ab" * 16
HOME = home_slot("acme", SLOTS)


def sent(slot: int, **fields: str) -> Command | Unusable | None:
    value = msgspec.json.encode({"run": RUN, "tenant": "acme", "action": "cancel", **fields})
    return command_of([(HEADER, b"1")], value, slot, SLOTS)


def test_a_command_is_taken_in_its_tenants_slot() -> None:
    command = sent(HOME)
    assert isinstance(command, Command)
    assert (command.run, command.tenant, command.action) == (RUN, "acme", "cancel")


@pytest.mark.parametrize(
    ("slot", "fields"),
    [
        ((HOME + 1) % SLOTS, {}),
        (home_slot("", SLOTS), {"tenant": ""}),
        (HOME, {"run": "no hex"}),
        (HOME, {"action": "dance"}),
    ],
    ids=["another slot's tenant", "no tenant", "no run", "no action that is known"],
)
def test_a_command_that_fits_nobody_here_is_refused(slot: int, fields: dict[str, str]) -> None:
    assert isinstance(sent(slot, **fields), Unusable)


def test_another_record_is_no_command() -> None:
    assert command_of([("content-type", b"application/json")], b"{}", HOME, SLOTS) is None


def test_what_is_sent_with_a_redrive_is_read_as_it_was() -> None:
    redrive = Redrive(b"f" * 16, b"r" * 16, "f.dead-letters/3/17", 4)
    assert redrive_of(redrive_headers(redrive)) == redrive  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "headers",
    [
        [("onceflow-origin", b"events/1/2"), ("onceflow-time", b"soon")],
        [("onceflow-origin", b"events/1/2"), ("onceflow-time", b"--1")],
        [("onceflow-origin", b"\xff"), ("onceflow-time", b"1"), ("onceflow-tenant", b"\xff")],
        [("onceflow-redrive", b"again")],
        [("onceflow-redrive", b"\xff \xff \xff \xff")],
        [("onceflow-redrive", b"%b %b f.dead-letters/3/17 many" % (b"a" * 32, b"b" * 32))],
    ],
)
def test_no_headers_that_somebody_sends_to_the_inbox_end_the_cell(headers: list[tuple[str, bytes]]) -> None:
    forwarding(headers)
    assert redrive_of(headers) is None
