"""A cell that is asked to end while its calls are under way: it stays in its group until they have returned."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from onceflow.config import Settings
from tests.crash.cells import END_S, Cell
from tests.crash.checker import Event
from tests.crash.effects import World
from tests.crash.scene import Scene

pytestmark = pytest.mark.crash

ORDERS = 40
GRACE_S = 2 * END_S  # longer than a test waits for an end
SESSION_S = Settings().session_timeout.total_seconds()
PUT_OUT_S = (
    2.5 * SESSION_S
)  # unpolled, `grace_flow`'s client falls silent after one session, and is dead after two


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def shipped(world: World) -> list[str]:
    return [effect.order for effect in world.done() if effect.operation == "ship"]


def asked_to_end_while_it_ships(scene: Scene, world: World) -> Cell:
    """A cell that has been asked to end; all orders are at sea, and arrive when the world's gate is open."""
    scene.seed(91)
    for number in range(ORDERS):
        scene.send(Event(f"tenant-{number}", "shop", f"order-{number}", b"{}"))
    scene.load.flush()
    cell = world.cell(scene, "a", "tests.crash.grace_flow").start(ONCEFLOW_GRACE=f"{GRACE_S:g}")
    scene.wait(lambda: len(shipped(world)) == ORDERS, "all are being shipped")
    cell.send(signal.SIGTERM)
    scene.wait(lambda: "stopping" in cell.text(), "it has been asked to end")
    return cell


def finish(scene: Scene, world: World) -> list[str]:
    """Check what came out, and return what the completions say of the shipping: each was done once."""
    said: list[str] = []

    def contents(event: Event, data: Any) -> str:
        said.append(data["ship"])
        return world.contents(event, data)

    scene.finish(agent="orders", contents=contents)
    assert sorted(shipped(world)) == sorted(sent.event.key for sent in scene.load.sent)
    return said


def test_what_a_long_call_returns_while_the_cell_ends_is_kept(scene: Scene, world: World) -> None:
    """A `blind` call whose result is not committed would be one that nobody knows the outcome of."""
    cell = asked_to_end_while_it_ships(scene, world)
    asked_at = time.monotonic()
    scene.wait(lambda: time.monotonic() > asked_at + PUT_OUT_S, "its group would have put it out by now")
    world.gate.touch()
    assert cell.end() == 0, cell.text()
    assert "unknown" not in finish(scene, world)


def test_slots_may_move_while_a_cell_ends(scene: Scene, world: World) -> None:
    """It waits for the calls of those that it keeps; of the others' the new owner knows that they may have happened."""
    cell = asked_to_end_while_it_ships(scene, world)
    other = world.cell(scene, "b", "tests.crash.grace_flow").start()
    scene.wait(lambda: bool(other.identity), "b has an identity")
    scene.wait_for_members({cell.identity: True, other.identity: True})
    world.gate.touch()
    assert cell.end() == 0, cell.text()
    said = finish(scene, world)
    assert 0 < said.count("unknown") < ORDERS, said
