"""Steps of runs in flight, counted outside: a crash repeats none that is finished as long as recovery is kept."""

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.cells import Cell
from tests.crash.checker import Event
from tests.crash.scene import OWN, Scene

pytestmark = pytest.mark.crash

RUNS = 60


class Steps:
    """The flow `steps_flow`: what its calls have noted, and the gate that holds each run's last call."""

    def __init__(self, scene: Scene, directory: Path) -> None:
        self.notes, self.gate = directory / "notes", directory / "gate"
        self.notes.touch()
        paths = {"CRASH_NOTES": str(self.notes), "CRASH_GATE": str(self.gate)}
        self.cell = scene.cell("a", "tests.crash.steps_flow", **paths)

    def noted(self) -> Iterator[tuple[str, str, str]]:
        """Tool, run and answer of each call that began."""
        for line in self.notes.read_text().splitlines():
            name, run, answer = line.split()
            yield name, run, answer

    def count(self) -> Counter[str]:
        return Counter(name for name, _, _ in self.noted())

    def contents(self, event: Event, data: Any) -> str:
        """Each step's result in the completion is what some call of that step answered."""
        answers = {(name, answer) for name, run, answer in self.noted() if run == event.key}
        return (
            "" if set(data.items()) <= answers and len(data) == 3 else f"{data} was never answered: {answers}"
        )


@pytest.fixture
def steps(scene: Scene, tmp_path: Path) -> Steps:
    scene.seed(31)
    for number in range(RUNS):
        tenant = OWN[number % 3] if number % 5 == 0 else f"tenant-{number % 20}"
        topic = scene.own_prefix + tenant if tenant in OWN else ""
        scene.send(Event(tenant, "erp", f"evt-{number}", b'{"n":%d}' % number), topic=topic)
    scene.load.flush()
    return Steps(scene, tmp_path)


def epoch(cell: Cell) -> int:
    """The last epoch of the dataflow whose snapshots are on disk."""
    (file,) = cell.recovery.glob("part-*.sqlite3")
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        rows = connection.execute("select max(commit_epoch) from commits").fetchall()
    connection.close()
    return rows[0][0] or 0


@pytest.mark.parametrize("kept", [True, False], ids=["recovery kept", "recovery deleted"])
def test_finished_steps_are_skipped_after_a_crash(scene: Scene, steps: Steps, kept: bool) -> None:
    """All runs stand in their third call when the cell is killed; with recovery kept only that one is made again."""
    cell = steps.cell.start()
    scene.wait(lambda: steps.count()["check"] == RUNS, "all runs are in their last call")
    reached = epoch(cell)
    scene.wait(lambda: epoch(cell) >= reached + 2, "the journals are on disk")
    assert steps.count() == dict.fromkeys(("look_up", "ask_model", "check"), RUNS)

    cell.kill()
    if not kept:
        cell.lose_recovery()
    cell.start()
    scene.wait(lambda: steps.count()["check"] >= 2 * RUNS, "all runs are in their last call again")
    steps.gate.touch()
    scene.finish(agent="steps", contents=steps.contents)

    again = RUNS if kept else 2 * RUNS
    assert steps.count() == {"look_up": again, "ask_model": again, "check": 2 * RUNS}


def test_a_stale_recovery_directory_changes_nothing(scene: Scene, steps: Steps, tmp_path: Path) -> None:
    """Journals of runs that have ended since, brought back, are dropped: nothing is called or completed again."""
    cell = steps.cell.start()
    scene.wait(lambda: steps.count()["check"] == RUNS, "all runs are in their last call")
    reached = epoch(cell)
    scene.wait(lambda: epoch(cell) >= reached + 2, "the journals are on disk")
    cell.kill()
    shutil.copytree(cell.recovery, tmp_path / "stale")
    steps.gate.touch()
    cell.start()
    scene.settle()
    cell.kill()
    calls = steps.count()

    cell.lose_recovery()
    shutil.copytree(tmp_path / "stale", cell.recovery)
    cell.start()
    fresh = Event("tenant-1", "erp", "evt-after", b'{"n":0}')
    scene.send(fresh)
    scene.finish(agent="steps", contents=steps.contents)
    assert steps.count() - calls == dict.fromkeys(("look_up", "ask_model", "check"), 1)
