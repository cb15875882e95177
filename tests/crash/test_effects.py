"""Effects counted in a world that survives every process: a crash anywhere, and each is done once or undone once."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.crash import points
from tests.crash.checker import Event
from tests.crash.effects import World
from tests.crash.load import FAILING
from tests.crash.scene import MODES, Scene

pytestmark = pytest.mark.crash

ORDERS = 60
REFUSED = b"{" + FAILING + b"}"


@pytest.fixture
def orders(scene: Scene) -> list[Event]:
    scene.seed(41)
    events = []
    for number in range(ORDERS):
        data = REFUSED if number % 5 == 4 else json.dumps({"n": number}).encode()
        events.append(Event(f"tenant-{number % 7}", "shop", f"order-{number}", data))
        scene.send(events[-1])
    scene.load.flush()
    return events


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("point", points.EFFECTS, ids=lambda point: point.name)
def test_each_effect_is_done_once_wherever_the_process_dies(
    scene: Scene, world: World, orders: list[Event], tmp_path: Path, point: points.Point
) -> None:
    """The plan is another one at each asking; so an effect of another plan would have another key, and be seen."""
    world.gate.touch()
    chance = random.Random(point.name)
    note = tmp_path / "note"
    note.touch()
    for mode in MODES:
        cell = world.cell(scene, f"cell, {mode}")
        cell.doom = points.environment(point, chance.randint(1, point.passes // 3), note)
        for number in range(ORDERS // 3):  # so that there is something to die at
            data = REFUSED if number % 5 == 4 else b"{}"
            orders.append(Event(f"tenant-{number % 7}", "shop", f"order-{mode[:3]}-{number}", data))
            scene.send(orders[-1])
        scene.load.flush()
        scene.let_die(cell, mode)
    world.cell(scene, "last").start()
    scene.finish(agent="orders", contents=world.contents)
    assert world.wrong(orders) == []


def test_a_blind_call_is_never_made_again_and_the_agent_is_told(
    scene: Scene, world: World, orders: list[Event]
) -> None:
    """All orders are at sea when the cell is killed: none is shipped twice, and each completion says so."""
    cell = world.cell(scene, "a").start()
    served = [event for event in orders if FAILING not in event.data]

    def shipped() -> list[str]:
        return [order for operation, order, _, _ in world.done() if operation == "ship"]

    scene.wait(lambda: len(shipped()) == len(served), "all are being shipped")
    cell.kill()
    world.gate.touch()
    cell.start()
    said = []

    def contents(event: Event, data: Any) -> str:
        said.append(data["ship"])
        return world.contents(event, data)

    scene.finish(agent="orders", contents=contents)
    assert set(said) == {"unknown"}
    assert Counter(shipped()) == Counter(event.key for event in served)
