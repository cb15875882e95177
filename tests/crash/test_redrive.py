"""Dead letters that are redriven, and runs in the order of their account, through kills: on a real Kafka."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from onceflow import cli
from onceflow.config import load
from onceflow.observe.open_runs import read_runs
from onceflow.observe.status import read_status
from tests.crash import points
from tests.crash.checker import Event
from tests.crash.effects import World
from tests.crash.load import TYPE
from tests.crash.scene import Scene

pytestmark = pytest.mark.crash

ORDERS = 12


@pytest.fixture(autouse=True)
def _settings(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS", scene.bootstrap_servers)
    monkeypatch.setenv("ONCEFLOW_EVENTS__SHARED", scene.shared)
    monkeypatch.setenv("ONCEFLOW_EVENTS__TENANT_PREFIX", scene.own_prefix)
    monkeypatch.setenv("ONCEFLOW_EVENTS__SIGNALS", f"{scene.flow}-signals")


def letters(scene: Scene, *arguments: str, status: int = 0) -> Any:
    """What `onceflow dead-letters …` says."""
    arguments = ("dead-letters", *arguments, "--flow", scene.flow)
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def completions(scene: Scene) -> list[dict[str, Any]]:
    scene.outputs.more()
    return [json.loads(output.value or b"") for output in scene.outputs.found[f"{scene.flow}.completions"]]


def test_a_redriven_run_does_once_what_was_not_done_and_keeps_what_stands(
    scene: Scene, tmp_path: Path
) -> None:
    """All is asked for twice, the cell dies twice on the way, and its state is lost the second time."""
    scene.seed(61)
    world, note = World(tmp_path), tmp_path / "note"
    note.touch()
    cell = scene.cell("a", "tests.crash.redrive_flow", CRASH_WORLD=str(world.directory)).start()
    for number in range(ORDERS):
        scene.send(Event(f"tenant-{number % 3}", "shop", f"order-{number}", b"{}"))
    scene.load.flush()
    scene.wait(lambda: len(completions(scene)) == ORDERS, "all have failed")
    assert len([run for run in read_runs(scene.flow, load(scene.flow)) if run.failed]) == ORDERS
    cell.kill()
    (world.directory / "mended").touch()
    first = letters(scene, "redrive", "--all", "--reason", "agent-failed", "--json")
    assert [each["refused"] for each in first] == [""] * ORDERS
    assert letters(scene, "redrive", "--all", "--reason", "agent-failed", "--json") == first
    for name, times in (("effect done", 3), ("ledger written", 1)):
        cell.doom = points.environment(points.POINTS[name], times, note)
        died = cell.statuses.count(-9)
        cell.start()
        scene.wait(lambda died=died: cell.statuses.count(-9) > died, f"it dies: {name}")
    cell.doom = {}
    cell.lose_state()
    cell.lose_recovery()
    cell.start()
    scene.wait(lambda: len(completions(scene)) == 2 * ORDERS, "all have been redriven")
    assert all(
        each["before"] for each in letters(scene, "redrive", "--all", "--reason", "agent-failed", "--json")
    )
    done = [each for each in completions(scene) if each["type"] == "sells.completed"]
    assert sorted(each["id"] for each in done) == sorted(each["run"] for each in first)
    roots = {each["id"] for each in completions(scene) if each["type"] == "sells.failed"}
    assert {each["rootrun"] for each in done} == roots
    for number in range(ORDERS):
        assert world.operations(f"order-{number}") == ["mail", "charge", "refund", "charge"]
    answers = {answer for _, _, _, answer in world.done()}
    assert all(set(each["data"]) <= answers for each in done)
    assert read_runs(scene.flow, load(scene.flow)) == []


def test_an_event_that_no_agent_took_is_read_again_and_what_is_kept_can_be_discarded(
    scene: Scene, tmp_path: Path
) -> None:
    scene.seed(62)
    world = World(tmp_path)
    cell = scene.cell(
        "a", "tests.crash.redrive_flow", CRASH_WORLD=str(world.directory), CRASH_TYPES="order.placed"
    ).start()
    for id, kind in (("taken", "order.placed"), ("new", TYPE)):
        scene.send(Event("tenant-1", "shop", id, b"{}"), kind=kind)
    scene.load.flush()
    scene.wait(lambda: len(letters(scene, "list", "--json")) == 2, "both are dead letters")
    (failed,) = letters(scene, "list", "--reason", "agent-failed", "--json")
    assert "1 something was kept" in letters(scene, "discard", failed["at"])
    assert read_runs(scene.flow, load(scene.flow)) == []
    assert "redriven or discarded before" in letters(scene, "redrive", failed["at"])
    cell.kill()
    (world.directory / "mended").touch()
    cell.start(CRASH_TYPES=f"order.placed,{TYPE}")
    for _ in range(2):
        assert "read again" in letters(scene, "redrive", "--all", "--reason", "unknown-type")
    scene.wait(lambda: len(completions(scene)) == 2, "it has its completion")
    scene.wait(
        lambda: read_status(scene.flow, load(scene.flow)).unfinished == 0, "and its copy is a duplicate"
    )
    assert Counter(each["causeid"] for each in completions(scene)) == {"taken": 1, "new": 1}
    assert world.operations("new") == ["mail", "charge"]


def test_runs_of_an_account_follow_one_another_and_no_input_hangs_on_a_wait(
    scene: Scene, tmp_path: Path
) -> None:
    """Each run sleeps; the cell is killed three times, and its state lost once."""
    scene.seed(63)
    world = World(tmp_path)
    cell = scene.cell("a", "tests.crash.redrive_flow", CRASH_WORLD=str(world.directory)).start()
    for number in range(5):
        for account in ("x", "y"):
            data = json.dumps({"account": account, "number": number}).encode()
            scene.send(Event("tenant-1", "bank", f"{account}-{number}", data), kind="account.moved")
    scene.load.flush()
    settings = load(scene.flow)
    scene.wait(lambda: read_status(scene.flow, settings).unfinished == 0, "no input hangs on them")
    assert len(read_runs(scene.flow, settings)) > 4, "they wait in the ledger"
    for kill in range(3):
        before = len(list(world.done()))
        cell.kill()
        if kill == 1:
            cell.lose_state()
            cell.lose_recovery()
        cell.start()
        scene.wait(lambda before=before: len(list(world.done())) > before, "a run goes on")
    scene.wait(lambda: len(completions(scene)) == 10, "all have ended")
    moved: dict[str, list[int]] = defaultdict(list)
    for _, what, _, _ in world.done():
        account, _, number = what.partition("/")
        moved[account].append(int(number))
    assert moved == {"x": list(range(10)), "y": list(range(10))}
