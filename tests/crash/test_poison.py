"""Events whose run kills its cell each time, among many others: on a real Kafka."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from onceflow import cli
from onceflow.agents.poison import NAMES_BYTES, Names
from onceflow.stream.standing import EXIT_STATUS
from tests.crash.checker import Event
from tests.crash.effects import World
from tests.crash.scene import Scene
from tests.waiting import wait_until

pytestmark = pytest.mark.crash

ORDERS = 40
KILLER = "order-that-kills-0"
DEAD = (-signal.SIGKILL, EXIT_STATUS)
DEATHS_MAX = (
    3 + 6
)  # of one that kills: two make it a suspect; log2(ORDERS) until it is alone, and one of it alone


class Shop:
    """The flow `poison_flow`, its world, and what came out of it."""

    def __init__(self, scene: Scene, directory: Path, *kills: str) -> None:
        scene.seed(71)
        self._scene = scene
        self.world = World(directory)
        self.cell = scene.cell("a", "tests.crash.poison_flow", CRASH_WORLD=str(self.world.directory))
        for number in range(ORDERS):
            self._send(f"order-{number}", number, "")
        for number, kind in enumerate(kills):
            self._send(f"order-that-kills-{number}", number, kind)
        assert scene.load is not None
        scene.load.flush()

    def under_way(self) -> tuple[int, int]:
        """The number of the cell's process, and how many runs its file names."""
        file = self.cell.state / "under-way"
        names = Names(memoryview(bytearray(file.read_bytes() if file.exists() else NAMES_BYTES)))
        return names.life, len(names.found())

    def _send(self, order: str, number: int, kills: str) -> None:
        data = json.dumps({"kills": kills} if kills else {}).encode()
        self._scene.send(Event(f"tenant-{number % 7}", "shop", order, data))

    def completions(self) -> dict[str, dict[str, Any]]:
        """By order."""
        found = [json.loads(output.value or b"") for output in self._found("completions")]
        assert len({each["causeid"] for each in found}) == len(found), "a completion came twice"
        return {each["causeid"]: each for each in found}

    def reasons(self) -> dict[str, str]:
        """Why an order is a dead letter, by its run."""
        letters = [dict(output.headers) for output in self._found("dead-letters")]
        return {letter["onceflow-run"].decode(): letter["onceflow-reason"].decode() for letter in letters}

    def _found(self, topic: str) -> list[Any]:
        self._scene.outputs.more()
        return self._scene.outputs.found[f"{self._scene.flow}.{topic}"]

    def run(self, until: Callable[[], bool], what: str) -> int:
        """Start the cell whenever it has died; how often it died. Not the scene's way: to that a death is wrong."""

        def so() -> bool:
            if self.cell.ended() is not None:
                assert self.cell.statuses[-1] in DEAD, self.cell.text()[-2_000:]
                self.cell.start()
            return until()

        self.cell.start()
        wait_until(so, 120, what)
        return sum(self.cell.statuses.count(status) for status in DEAD)

    def run_to_end(self, orders: int) -> int:
        return self.run(lambda: len(self.completions()) >= orders, f"{orders} orders are complete")


@pytest.mark.parametrize("kills", ["at once", "in a call", "after an effect", "never ends"])
def test_an_event_that_kills_its_cell_is_a_dead_letter_and_all_others_are_done(
    scene: Scene, tmp_path: Path, kills: str
) -> None:
    shop = Shop(scene, tmp_path, kills)
    deaths = shop.run_to_end(ORDERS + 1)
    found = shop.completions()
    poison = found.pop(KILLER)
    assert (poison["type"], poison["data"]["code"]) == ("sells.failed", "poison")
    assert {each["type"] for each in found.values()} == {"sells.completed"}
    assert shop.reasons() == {poison["id"]: "poison"}
    assert 3 <= deaths <= DEATHS_MAX
    assert all(shop.world.operations(order) == ["charge"] for order in found)
    undone = ["charge", "refund"] if kills == "after an effect" else []
    assert shop.world.operations(KILLER) == undone
    assert shop.cell.end(signal.SIGTERM) == 0


def test_several_that_kill_are_found_and_no_other_is_blamed(scene: Scene, tmp_path: Path) -> None:
    shop = Shop(scene, tmp_path, "in a call", "at once", "after an effect", "in a call")
    deaths = shop.run_to_end(ORDERS + 4)
    failed = {order for order, each in shop.completions().items() if each["type"] == "sells.failed"}
    assert failed == {f"order-that-kills-{number}" for number in range(4)}
    assert list(shop.reasons().values()) == ["poison"] * 4
    assert deaths <= 4 * DEATHS_MAX


def test_one_that_kills_even_when_it_is_undone_is_parked_until_a_person_has_decided(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(scene, tmp_path, "undone")
    shop.run(lambda: len(shop.completions()) >= ORDERS and bool(shop.reasons()), "it is parked")
    (run,) = shop.reasons()
    assert shop.reasons() == {run: "unknown-outcome"}
    assert KILLER not in shop.completions()
    (shop.world.directory / "mended").touch()
    monkeypatch.setenv("ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS", scene.bootstrap_servers)
    monkeypatch.setenv("ONCEFLOW_EVENTS__SHARED", scene.shared)
    arguments = ["runs", "resolve", run, "--again", "--flow", scene.flow]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    scene.wait(lambda: KILLER in shop.completions(), "it has been undone")
    assert shop.completions()[KILLER]["data"]["code"] == "poison"
    assert shop.world.operations(KILLER) == ["charge", "refund"]


def test_kills_of_a_busy_cell_blame_nobody(scene: Scene, tmp_path: Path) -> None:
    shop = Shop(scene, tmp_path)
    gate = shop.world.directory / "closed"
    gate.touch()
    for life, wanted in enumerate((ORDERS, ORDERS, 1), 1):  # the third time they run apart
        shop.cell.start()
        scene.wait(lambda now=(life, wanted): shop.under_way() >= now, f"{wanted} runs are under way")
        shop.cell.kill()
    gate.unlink()
    shop.run_to_end(ORDERS)
    assert {each["type"] for each in shop.completions().values()} == {"sells.completed"}
    assert shop.reasons() == {}
