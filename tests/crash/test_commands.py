"""Parked runs, and the people who decide about them: through the command line, on a real Kafka."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from onceflow import cli
from onceflow.agents.commands import Command
from onceflow.config import load
from onceflow.errors import ConfigError
from onceflow.observe.open_runs import find_run, send_command
from tests.crash.checker import Event
from tests.crash.effects import World
from tests.crash.scene import Scene

pytestmark = pytest.mark.crash


class Operator:
    """Uses the command line of this flow."""

    def __init__(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        self._flow = scene.flow
        monkeypatch.setenv("ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS", scene.bootstrap_servers)
        monkeypatch.setenv("ONCEFLOW_EVENTS__SHARED", scene.shared)
        monkeypatch.setenv("ONCEFLOW_EVENTS__TENANT_PREFIX", scene.own_prefix)

    def says(self, *arguments: str) -> str:
        result = CliRunner().invoke(
            cli.app, ["runs", *arguments, "--flow", self._flow], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return result.stdout

    def parked(self) -> list[str]:
        return [run["run"] for run in json.loads(self.says("list", "--state", "parked", "--json"))]


def ended(scene: Scene) -> dict[str, dict[str, Any]]:
    """The completions so far, by the event's id; each once."""
    scene.outputs.more()
    found = [json.loads(output.value or b"") for output in scene.outputs.found[f"{scene.flow}.completions"]]
    by_event = {each["causeid"]: each for each in found}
    assert len(by_event) == len(found), found
    return by_event


def test_a_parked_run_goes_on_as_a_person_decides(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four orders are at sea when the cell is killed; each is decided otherwise, and the cell killed in between."""
    scene.seed(51)
    world = World(tmp_path)
    cell = scene.cell(
        "a", "tests.crash.parking_flow", CRASH_WORLD=str(world.directory), CRASH_GATE=str(world.gate)
    ).start()
    orders = {how: Event("tenant-1", "shop", how, b"{}") for how in ("result", "again", "fail", "cancel")}
    for order in orders.values():
        scene.send(order)
    scene.load.flush()
    scene.wait(lambda: len(list(world.done())) == 8, "all are reserved and being shipped")
    cell.kill()
    world.gate.touch()
    cell.start()
    operator = Operator(scene, monkeypatch)
    scene.wait(lambda: len(operator.parked()) == 4, "all are parked")
    shown = json.loads(operator.says("show", orders["again"].key[:12], "--json"))
    assert shown["state"] == "parked"
    assert [(step["what"], step["state"]) for step in shown["steps"]] == [
        ("reserve", "done"),
        ("ship", "open"),
        ("parked", "open"),
    ]
    assert ", since 20" in shown["steps"][-1]["detail"]
    assert operator.says("resolve", orders["result"].key, "--result", '"seen"').endswith("has ended\n")
    cell.kill()
    cell.start()
    for how in ("again", "fail"):
        operator.says("resolve", orders[how].key, f"--{how}")
    operator.says("cancel", orders["cancel"].key)
    with pytest.raises(ConfigError, match="no run in the ledger has this id"):
        operator.says("resolve", orders["result"].key, "--again")

    scene.wait(lambda: len(ended(scene)) == 4, "all have ended")
    assert world.operations("result") == ["reserve", "ship"]
    assert world.operations("again") == ["reserve", "ship", "ship"]
    assert world.operations("fail") == ["reserve", "ship"]
    assert world.operations("cancel") == ["reserve", "ship", "release"]
    (_, second) = [answer for name, order, _, answer in world.done() if (name, order) == ("ship", "again")]
    data = {order: completion["data"] for order, completion in ended(scene).items()}
    assert data.pop("cancel")["code"] == "cancelled"
    assert data == {"result": {"ship": "seen"}, "again": {"ship": second}, "fail": {"ship": "not"}}


def test_of_two_people_who_decide_the_second_is_refused(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen the same state, and want the call made again: it is made once more, not twice."""
    scene.seed(52)
    world = World(tmp_path)
    cell = scene.cell(
        "a", "tests.crash.parking_flow", CRASH_WORLD=str(world.directory), CRASH_GATE=str(world.gate)
    ).start()
    order = Event("tenant-1", "shop", "order", b"{}")
    scene.send(order)
    scene.load.flush()
    scene.wait(lambda: len(list(world.done())) == 2, "it is being shipped")
    cell.kill()
    cell.start()
    operator = Operator(scene, monkeypatch)
    scene.wait(lambda: len(operator.parked()) == 1, "it is parked")
    settings = load(scene.flow)
    seen = find_run(scene.flow, settings, order.key)
    again = Command("again", seen.tenant, seen.key.hex(), seen.segments)
    for _ in range(2):
        send_command(scene.flow, settings, again)
    scene.wait(lambda: cell.text().count("an operator has decided") == 2, "both were heard")
    world.gate.touch()
    scene.wait(lambda: len(ended(scene)) == 1, "it has ended")
    assert world.operations("order") == ["reserve", "ship", "ship"]
