"""Fourteen welcome e-mails: many runs that ask for one effect of their tenant, and a crash at any point."""

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.crash import points
from tests.crash.checker import Event
from tests.crash.effects import World
from tests.crash.scene import MODES, Scene

pytestmark = pytest.mark.crash

EVENTS, CUSTOMERS, TENANTS = 84, 3, 7
POINTS = ("intent committed", "effect done", "ledger written", "compensation begun")


def customer_of(event: Event) -> str:
    """Tenant and customer that an event is about."""
    return f"{event.tenant}/customer-{int(event.id.rpartition('-')[2]) % CUSTOMERS}"


@pytest.mark.parametrize("name", POINTS)
def test_each_customer_is_welcomed_once_wherever_the_process_dies(
    scene: Scene, tmp_path: Path, name: str
) -> None:
    """Some runs fail: what only they have is undone, and done anew for who asks next; it stands once, or not at all."""
    scene.seed(43)
    world, point, chance = World(tmp_path), points.POINTS[name], random.Random(name)
    note = tmp_path / "note"
    note.touch()
    events = []
    for mode in MODES:
        cell = scene.cell(f"cell, {mode}", "tests.crash.shared_flow", CRASH_WORLD=str(world.directory))
        cell.doom = points.environment(point, chance.randint(1, 3), note)
        for number in range(EVENTS):
            alone = number // TENANTS % CUSTOMERS == 2  # each run of this customer fails
            data = b'{"fails":true}' if alone or number % 5 == 4 else b"{}"
            event = Event(f"{mode[:3]}-{number % TENANTS}", "crm", f"{mode[:3]}-{number // TENANTS}", data)
            events.append(event)
            scene.send(event)
        scene.load.flush()
        scene.let_die(cell, mode, lambda cell=cell: "slots granted" in cell.text())
    scene.cell("last", "tests.crash.shared_flow", CRASH_WORLD=str(world.directory)).start()

    def contents(event: Event, data: str) -> str:
        customer = customer_of(event)
        made = [answer for name, who, _, answer in world.done() if (name, who) == ("welcome", customer)]
        return "" if data in made else f"{data} is no welcome of {customer}: {made}"

    scene.finish(agent="greets", contents=contents)
    standing: Counter[str] = Counter()
    for operation, customer, _, _ in world.done():
        standing[customer] += 1 if operation == "welcome" else -1
    wanted = {customer_of(event) for event in events if b"fails" not in event.data}
    assert {customer for customer, count in standing.items() if count} == wanted
    assert set(standing.values()) <= {0, 1}
    keys = Counter(key for _, _, key, _ in world.done())
    assert max(keys.values()) == 1


def test_who_waits_for_a_call_that_is_put_off_holds_no_input_and_survives_a_kill(
    scene: Scene, tmp_path: Path
) -> None:
    """More than a lane has room for, of one customer."""
    scene.seed(44)
    world, gate = World(tmp_path), tmp_path / "gate"
    told = {"CRASH_WORLD": str(world.directory), "CRASH_GATE": str(gate)}
    cell = scene.cell("cell", "tests.crash.shared_flow", **told)
    for number in range(200):
        scene.send(Event("acme", "crm", f"news-{number * CUSTOMERS}", b"{}"))
    scene.load.flush()
    cell.start()
    scene.wait(lambda: scene.unfinished() == 0, "every event is finished, or its run is in the ledger")
    assert scene.outputs.more() == 0
    cell.kill()
    gate.touch()
    cell.start()
    scene.finish(agent="greets", contents=lambda event, data: "")
    assert [operation for operation, *_ in world.done()] == ["welcome"]
