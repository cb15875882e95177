"""What an operator sends through an inbox: what is taken there, and what is refused."""

import msgspec
import pytest

from onceflow.agents.commands import HEADER, Command
from onceflow.event import Unusable, home_slot
from onceflow.stream.headers import command_of

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
