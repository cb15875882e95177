"""A run that cannot be read from the ledger: whoever looks for it is told so, by each command."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from onceflow import cli
from onceflow.agents.agent import agent
from onceflow.agents.journal import segment_key
from onceflow.agents.run import Run
from onceflow.errors import ConfigError
from onceflow.event import Event
from onceflow.observe import open_runs
from tests.tenant import KEY, Tenant

runner = CliRunner()


@agent("waits", on="t")
async def waits(run: Run, event: Event) -> None:
    await run.wait_for("signed", event.id)


@pytest.fixture(autouse=True)
def other(monkeypatch: pytest.MonkeyPatch) -> str:
    """A ledger of two runs, of which one cannot be read; the id of the other one."""
    tenant = Tenant(waits)
    tenant.event(waits)
    other = tenant.event(waits, 2)
    records = {**tenant.memory.records, segment_key("acme", KEY, 1): b"spoiled"}
    messages: Any = [
        SimpleNamespace(key=lambda key=key: key, value=lambda value=value: value, partition=lambda: 3)
        for key, value in records.items()
    ]
    monkeypatch.setattr(open_runs, "_records", lambda *_: iter(messages))
    return other.hex()


def listed(arguments: str) -> Any:
    """What `runs list` tells programs, as (run, state)."""
    result = runner.invoke(cli.app, ["runs", "list", "--flow", "f", "--json", *arguments.split()])
    assert result.exit_code == 0, result.output
    return [(run["run"], run["state"]) for run in json.loads(result.stdout)]


def test_the_list_has_it_with_what_is_known_of_it(other: str) -> None:
    assert listed("") == [(other, "waiting"), (KEY.hex(), "unreadable")]
    assert listed("--state unreadable") == [(KEY.hex(), "unreadable")]
    assert listed("--state waiting") == [(other, "waiting")]
    assert listed("--tenant beta") == []
    table = runner.invoke(cli.app, ["runs", "list", "--flow", "f", "--state", "unreadable"]).stdout
    for known in (KEY.hex(), "acme", "segment 1: "):
        assert known in table


@pytest.mark.parametrize("command", ["show", "cancel", "resolve --again"])
def test_who_asks_for_it_is_told_why_it_does_not_go_on_and_what_helps(command: str) -> None:
    result = runner.invoke(cli.app, ["runs", *command.split(), KEY.hex()[:12], "--flow", "f"])
    assert isinstance(result.exception, ConfigError)
    said = str(result.exception)
    assert said.startswith(f"run {KEY.hex()} of tenant acme cannot be read from the ledger (segment 1: ")
    assert "start the version of onceflow that wrote its records" in said
