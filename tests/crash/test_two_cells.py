"""Two cells of one flow: they come, leave, die, freeze, are copied; slots move, and the output is right."""

import shutil
import signal
from pathlib import Path

import pytest

from tests.crash.cells import Cell
from tests.crash.scene import Scene

pytestmark = pytest.mark.crash


def two_cells(scene: Scene) -> tuple[Cell, Cell]:
    """Two cells that share the slots, under load."""
    scene.load.start()
    first = scene.cell("a").start()
    scene.wait_for_output(1)
    second = scene.cell("b").start()
    scene.wait(lambda: bool(second.identity), "b has an identity")
    scene.wait_for_members({first.identity: True, second.identity: True})
    return first, second


def test_cells_join_leave_die_and_come_back(scene: Scene) -> None:
    scene.seed(41)
    first, second = two_cells(scene)
    scene.wait_for_output(scene.random.randint(1, 2_000))
    assert second.end(signal.SIGTERM) == 0
    scene.say("b: SIGTERM")
    scene.wait_for_members({first.identity: True})
    scene.wait_for_output(scene.random.randint(1, 2_000))
    second.start()
    scene.wait_for_members({first.identity: True, second.identity: True})
    scene.wait_for_output(scene.random.randint(1, 2_000))
    first.kill()
    scene.say("a: kill -9")
    scene.wait_for_members({second.identity: True})
    scene.wait_for_output(scene.random.randint(1, 2_000))
    first.start()
    scene.wait_for_members({first.identity: True, second.identity: True})
    scene.finish()


def test_a_cell_asked_to_end_while_slots_come_to_it_ends_with_0(scene: Scene) -> None:
    """Its client may be handed slots in the very moment in which it leaves."""
    scene.seed(43, events_per_s=300)
    first, second = two_cells(scene)
    for _ in range(3):
        second.kill()
        second.start()
        scene.wait(lambda: "cell started" in second.text(), "b has started")
        assert second.end(signal.SIGTERM) == 0, second.text()[-2_000:]
        scene.say("b: SIGTERM, status 0")
        second.start()
    scene.wait_for_members({first.identity: True, second.identity: True})
    scene.finish()


@pytest.mark.parametrize("seed", [51, 52])
def test_a_zombie_writes_nothing_that_counts(scene: Scene, seed: int) -> None:
    """A cell frozen past its session, its slots taken over, wakes up: it ends with 3, or goes on rightly."""
    scene.seed(seed, events_per_s=700)
    first, second = two_cells(scene)
    scene.wait_for_output(scene.random.randint(1, 2_000))
    first.send(signal.SIGSTOP)
    scene.say("a: SIGSTOP")
    scene.wait_for_members({second.identity: True})
    scene.wait_for_output(scene.random.randint(1, 2_000))
    first.send(signal.SIGCONT)
    scene.say("a: SIGCONT")
    scene.wait_for_members({first.identity: True, second.identity: True})
    scene.finish()
    assert first.statuses in ([0], [3, 0]), first.statuses


def test_a_copied_state_directory_does_no_harm(scene: Scene, tmp_path: Path) -> None:
    """Two cells with one identity fence each other in turn; each end is a 3 whose message names that cause."""
    scene.seed(61, events_per_s=500)
    scene.load.start()
    first = scene.cell("a").start()
    scene.wait_for_output(500)
    assert first.end(signal.SIGTERM) == 0
    second = scene.cell("b")
    shutil.copytree(first.state, second.state)
    first.start()
    second.start()
    scene.wait(lambda: len(first.statuses) + len(second.statuses) >= 5, "five ends in a duel")
    logs = [log.read_text() for cell in (first, second) for log in cell.directory.glob("*.log")]
    assert any("copied" in log for log in logs)
    if second.running():
        second.kill()
    scene.cells.remove(second)
    scene.say("b is gone")
    scene.finish()
    assert set(first.statuses + second.statuses) <= {0, 3, -9}


def test_a_stale_state_directory_does_no_harm(scene: Scene, tmp_path: Path) -> None:
    """A view brought back from before most completions is brought up to date before it decides anything."""
    scene.seed(71)
    scene.load.start()
    cell = scene.cell("a").start()
    scene.wait_for_output(1_000)
    assert cell.end(signal.SIGTERM) == 0
    shutil.copytree(cell.state, tmp_path / "stale")
    cell.start()
    scene.wait_for_output(4_000)
    cell.kill()
    shutil.rmtree(cell.state)
    shutil.copytree(tmp_path / "stale", cell.state)
    scene.say("the state of before is back")
    cell.start()
    scene.wait_for_output(100)
    scene.finish()
