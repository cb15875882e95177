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

ORDERS, TENANTS = 40, 8
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


def at_sea(scene: Scene, world: World, module: str = "tests.crash.effects_flow") -> Cell:
    """A cell all of whose orders are at sea, and arrive when the world's gate is open."""
    scene.seed(91)
    for number in range(ORDERS):
        scene.send(Event(f"tenant-{number}", "shop", f"order-{number}", b"{}"))
    scene.load.flush()
    cell = world.cell(scene, "a", module).start(ONCEFLOW_GRACE=f"{GRACE_S:g}")
    scene.wait(lambda: len(shipped(world)) == ORDERS, "all are being shipped")
    return cell


def asked_to_end_while_it_ships(scene: Scene, world: World) -> Cell:
    """A cell that has been asked to end meanwhile."""
    cell = at_sea(scene, world, "tests.crash.grace_flow")
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
    """It waits for the calls of those that it keeps; of the others' the new owner knows that they may have happened, as
    they have not come to their end in the time that there is.
    """
    cell = asked_to_end_while_it_ships(scene, world)
    other = world.cell(scene, "b", "tests.crash.grace_flow").start()
    scene.wait(lambda: bool(other.identity), "b has an identity")
    scene.wait_for_members({cell.identity: True, other.identity: True})
    world.gate.touch()
    assert cell.end() == 0, cell.text()
    said = finish(scene, world)
    assert 0 < said.count("unknown") < ORDERS, said


def test_when_slots_move_the_calls_that_nobody_may_repeat_come_to_their_end_first(
    scene: Scene, world: World
) -> None:
    cell = at_sea(scene, world)
    other = world.cell(scene, "b").start()
    scene.wait(lambda: "waiting for calls that nobody may repeat" in cell.text(), "slots are about to move")
    world.gate.touch()
    scene.wait(lambda: bool(other.identity), "b has an identity")
    scene.wait_for_members({cell.identity: True, other.identity: True})
    assert "unknown" not in finish(scene, world)


@pytest.mark.parametrize("how", ["the slots move", "the grace period ends"])
def test_calls_that_were_not_sent_yet_are_not_unknown(scene: Scene, world: World, how: str) -> None:
    """They are on record and wait for their turn: a tenant has one call of a tool at a time."""
    scene.seed(92)
    for number in range(ORDERS):
        scene.send(Event(f"tenant-{number % TENANTS}", "shop", f"order-{number}", b"{}"))
    scene.load.flush()
    one_at_a_time = {"ONCEFLOW_LIMITS__CALLS_AT_ONCE": "1", "ONCEFLOW_GRACE": "0.1"}
    cell = world.cell(scene, "a").start(**one_at_a_time)
    scene.wait(
        lambda: len(world.done()) == 2 * ORDERS + TENANTS, "all are charged, and one of each is shipped"
    )
    if how == "the slots move":
        other = world.cell(scene, "b").start()
        scene.wait(lambda: bool(other.identity), "b has an identity")
        scene.wait_for_members({cell.identity: True, other.identity: True})
    else:
        assert cell.end(signal.SIGTERM) == 0, cell.text()
        cell.start()
    world.gate.touch()
    assert finish(scene, world).count("unknown") <= TENANTS
