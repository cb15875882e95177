"""What a tenant may ask of a tool is never exceeded, through kills and slots that move: on a real Kafka (T25)."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.crash.cells import Cell
from tests.crash.checker import Event
from tests.crash.scene import Scene

pytestmark = pytest.mark.crash

TENANTS = 4
RATE_S = 1.0  # the time over which a rate is taken


class Calls(NamedTuple):
    """A tenant's calls: when each began and ended, seconds; one whose process was killed ended then at the latest."""

    begun: list[float]
    ended: list[float]

    @property
    def most_at_once(self) -> int:
        steps = sorted([(at, 1) for at in self.begun] + [(at, -1) for at in self.ended])
        at_once = most = 0
        for _, step in steps:
            at_once += step
            most = max(most, at_once)
        return most

    @property
    def most_in_a_second(self) -> int:
        begun = sorted(self.begun)
        return max(sum(first <= at < first + RATE_S for at in begun) for first in begun)


class Asked:
    """The flow `limits_flow` and what its calls have noted."""

    def __init__(self, scene: Scene, directory: Path, runs: int, takes_s: float, **limits: str) -> None:
        scene.seed(81)
        self.scene, self.notes = scene, directory / "notes"
        self.notes.touch()
        self._environment = {"CRASH_NOTES": str(self.notes), "CRASH_TAKES": str(takes_s), **limits}
        for number in range(runs):
            scene.send(Event(f"tenant-{number % TENANTS}", "shop", f"order-{number}", b"{}"))
        assert scene.load is not None
        scene.load.flush()

    def cell(self, name: str) -> Cell:
        return self.scene.cell(name, "tests.crash.limits_flow", **self._environment)

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.notes.read_text().splitlines()]

    def finished(self) -> int:
        return sum(what == "end" for what, *_ in self.lines())

    def calls(self) -> dict[str, Calls]:
        """By tenant."""
        lines = sorted(self.lines(), key=lambda line: int(line[-1]))
        last = {process: int(at) for _, _, process, _, at in lines}  # what a killed process noted last
        found: dict[str, Calls] = defaultdict(lambda: Calls([], []))
        under_way: dict[tuple[str, str, str], int] = {}
        for what, tenant, process, run, at in lines:
            if what == "begin":
                under_way[tenant, process, run] = int(at)
            else:
                begun = under_way.pop((tenant, process, run))
                found[tenant].begun.append(begun / 1e9)
                found[tenant].ended.append(int(at) / 1e9)
        for (tenant, process, _), begun in under_way.items():
            found[tenant].begun.append(begun / 1e9)
            found[tenant].ended.append(last[process] / 1e9)
        return found


def through_kills_and_moves(asked: Asked, runs: int) -> None:
    """One cell is killed half-way, twice; then another one joins, and the first is killed for good."""
    scene, first = asked.scene, asked.cell("a").start()
    for share in (0.2, 0.4):
        scene.wait(lambda share=share: asked.finished() >= share * runs, f"{share:.0%} are done")
        first.kill()
        first.start()
    second = asked.cell("b").start()
    scene.wait(lambda: second.owned() > 0, "the other one serves slots")
    scene.wait(lambda: asked.finished() >= 0.7 * runs, "70 % are done")
    first.kill()
    completions = f"{scene.flow}.completions"

    def done() -> bool:
        scene.outputs.more()
        return len(scene.outputs.found[completions]) >= runs

    scene.wait(done, "all are done")
    found: list[Any] = [json.loads(output.value or b"") for output in scene.outputs.found[completions]]
    assert {each["type"] for each in found} == {"asks.completed"}


def test_a_tenant_has_no_more_calls_of_a_tool_at_a_time_than_it_may(scene: Scene, tmp_path: Path) -> None:
    runs = 600
    asked = Asked(scene, tmp_path, runs, 0.1, ONCEFLOW_LIMITS__CALLS_AT_ONCE="3")
    through_kills_and_moves(asked, runs)
    assert {tenant: calls.most_at_once for tenant, calls in asked.calls().items()} == {
        f"tenant-{number}": 3 for number in range(TENANTS)
    }


def test_a_tenants_calls_of_a_tool_follow_one_another_no_faster_than_they_may(
    scene: Scene, tmp_path: Path
) -> None:
    runs, rate = 1_000, 20
    asked = Asked(scene, tmp_path, runs, 0.0, ONCEFLOW_LIMITS__CALLS_PER_SECOND=str(rate))
    through_kills_and_moves(asked, runs)
    for tenant, calls in asked.calls().items():
        assert 0.5 * rate < calls.most_in_a_second <= rate * 1.05, tenant
