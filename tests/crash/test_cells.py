"""More than two cells, cells that come and go, and cells that find what another version of onceflow has left.

`test_two_cells` has copied and stale state directories, `test_refusals` shared ones.
"""

import pickle
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer
from rocksdict import Options, Rdict

from tests.crash.cells import Cell
from tests.crash.checker import Event
from tests.crash.scene import Scene
from tests.crash.test_steps import RUNS, Steps, epoch

pytestmark = pytest.mark.crash


def cells_at_work(scene: Scene, names: str) -> list[Cell]:
    """So many cells that share the slots, under load."""
    scene.load.start()
    cells = [scene.cell(name).start() for name in names]
    scene.wait(lambda: all(cell.identity for cell in cells), "all have an identity")
    wait_for(scene, cells)
    return cells


def wait_for(scene: Scene, cells: list[Cell]) -> None:
    """Wait until these share the slots among them."""
    scene.wait_for_members({cell.identity: True for cell in cells})


def back_at_work(scene: Scene, cell: Cell) -> None:
    """Start a cell, and wait until it has slots: from then on it can be asked to end."""
    cell.start()
    scene.wait(lambda: "slots granted" in cell.text(), f"{cell.name} is at work")


@pytest.mark.parametrize("seed", [161, pytest.param(162, marks=pytest.mark.soak)])
def test_three_cells_in_all_kinds_of_trouble(scene: Scene, seed: int) -> None:
    """Each trouble hits a cell that the seed chooses, at a moment that it chooses; the others go on."""
    scene.seed(seed, events_per_s=700)
    cells = cells_at_work(scene, "abc")
    troubles = [*("killed", "killed for longer", "ended", "ended for longer", "frozen"), "frozen"]
    scene.random.shuffle(troubles)
    for trouble in troubles:
        victim, *others = scene.random.sample(cells, 3)
        scene.wait_for_output(scene.random.randint(1, 1_000))
        scene.say(f"{victim.name} is {trouble}")
        if trouble == "frozen":
            victim.send(signal.SIGSTOP)
        elif trouble.startswith("killed"):
            victim.kill()
        else:
            assert victim.end(signal.SIGTERM) == 0, victim.text()[-2_000:]
        if trouble == "frozen" or trouble.endswith("for longer"):
            wait_for(scene, others)
            scene.wait_for_output(scene.random.randint(1, 500))
        if trouble == "frozen":
            victim.send(signal.SIGCONT)
        else:
            back_at_work(scene, victim)
        wait_for(scene, cells)
    scene.finish()


def test_a_rolling_restart_under_load(scene: Scene) -> None:
    """Every cell ends with 0, and the next one is stopped when it is back at work."""
    scene.seed(163, events_per_s=700)
    cells = cells_at_work(scene, "abc")
    for cell in cells:
        scene.wait_for_output(scene.random.randint(1, 500))
        assert cell.end(signal.SIGTERM) == 0, cell.text()[-2_000:]
        scene.say(f"{cell.name}: SIGTERM, status 0")
        back_at_work(scene, cell)
    scene.finish()
    assert all(set(cell.statuses) == {0} for cell in cells), [cell.statuses for cell in cells]


def test_cells_that_come_and_go_every_few_seconds(scene: Scene) -> None:
    """One stays. Every few seconds a new one comes, and the oldest other one goes, politely or not."""
    scene.seed(164, events_per_s=500)
    (stays,) = cells_at_work(scene, "s")
    guests: list[Cell] = []
    for number in range(10):
        guests.append(scene.cell(f"guest-{number}").start())
        scene.wait_for_sent(scene.random.randint(500, 2_000))
        if len(guests) > scene.random.randint(0, 2) and guests[0].running():
            oldest = guests.pop(0)
            if scene.random.random() < 0.5:
                oldest.kill()
            else:
                # Before that it is Python that is asked to end, not the cell.
                scene.wait(lambda cell=oldest: "cell started" in cell.text(), f"{oldest.name} has started")
                assert oldest.end(signal.SIGTERM) == 0, oldest.text()[-2_000:]
            scene.say(f"{oldest.name} is gone, status {oldest.statuses[-1]}")
    scene.finish()
    assert set(stays.statuses) == {0}, stays.log


def test_a_view_of_another_format_is_put_aside_and_built_anew(scene: Scene) -> None:
    """And knows all that was done: nothing is done again."""
    scene.seed(171)
    scene.load.start()
    cell = scene.cell("a").start()
    scene.wait_for_output(2_000)
    assert cell.end(signal.SIGTERM) == 0, cell.text()
    view = Rdict(str(cell.state / "seen"), Options(raw_mode=True))
    assert view[b"format"] == b"1"
    view[b"format"] = b"0"
    view.close()
    cell.start()
    scene.wait_for_output(100)
    assert "put a view aside" in cell.text(), cell.log
    scene.finish()


def test_progress_of_a_newer_version_is_refused(scene: Scene) -> None:
    """Status 2 and what to do; and nothing is decided."""
    scene.seed(172)
    scene.load.start()
    cell = scene.cell("a").start()
    scene.wait_for_output(500)
    scene.settle()
    assert cell.end(signal.SIGTERM) == 0, cell.text()
    producer = Producer({"bootstrap.servers": scene.bootstrap_servers})
    newer = msgspec.msgpack.encode([2, "in a form that nobody knows yet"])
    producer.produce(f"{scene.flow}.progress", newer, f"{scene.shared}/0".encode(), 0)
    assert producer.flush(20) == 0
    cell.start()
    assert cell.end() == 2, cell.text()
    for words in ("F.progress holds records of format 2", "Run the version of onceflow that wrote them"):
        assert words in cell.text(), cell.log
    scene.finish()


def test_journals_of_another_format_are_left_aside(scene: Scene, tmp_path: Path) -> None:
    """Snapshots of a format that this version does not know: the runs begin anew, and complete once."""
    scene.seed(173)
    for number in range(RUNS):
        scene.send(Event(f"tenant-{number % 20}", "erp", f"evt-{number}", b'{"n":%d}' % number))
    scene.load.flush()
    steps = Steps(scene, tmp_path)
    cell = steps.cell.start()
    scene.wait(lambda: steps.count()["check"] == RUNS, "all runs are in their last call")
    reached = epoch(cell)
    scene.wait(lambda: epoch(cell) >= reached + 2, "the journals are on disk")
    cell.kill()
    (file,) = cell.recovery.glob("part-*.sqlite3")
    with closing(sqlite3.connect(file)) as database, database:
        rows = database.execute("select rowid, ser_change from snaps").fetchall()
        changed = [(of_another_format(change), row) for row, change in rows if change is not None]
        assert any(change is not None for change, _ in changed), rows
        database.executemany("update snaps set ser_change = coalesce(?, ser_change) where rowid = ?", changed)
    cell.start()
    scene.wait(lambda: steps.count()["check"] == 2 * RUNS, "all runs are in their last call again")
    steps.gate.touch()
    scene.finish(agent="steps", contents=steps.contents)
    assert steps.count() == dict.fromkeys(("look_up", "ask_model", "check"), 2 * RUNS)


def of_another_format(change: bytes) -> bytes | None:
    """A lane's snapshot as Bytewax stores it, with another format number; None if it is another's state."""
    state = pickle.loads(change)
    if not isinstance(state, bytes):
        return None
    return pickle.dumps(msgspec.msgpack.encode([99, *msgspec.msgpack.decode(state)[1:]]))
