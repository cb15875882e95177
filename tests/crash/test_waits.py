"""Runs that wait, on a real Kafka: signals early and late, repeated and out of order, and a crash at any point."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.crash import points
from tests.crash.checker import Event
from tests.crash.effects import World
from tests.crash.scene import MODES, Scene

pytestmark = pytest.mark.crash

ACCOUNTS = 60
CHECKED = "check.finished"


class Checks:
    """The check outside: sends its answers as careless vendors do."""

    def __init__(self, scene: Scene) -> None:
        self._topic = f"{scene.flow}-signals"
        self._producer = Producer(
            {"bootstrap.servers": scene.bootstrap_servers, "partitioner": "murmur2_random"}
        )

    def send(
        self, tenant: str, account: str, status: str, number: str = "1", *, misplaced: bool = False
    ) -> None:
        """One signal; `misplaced`: into a partition of another tenant."""
        signal = {
            "specversion": "1.0",
            "id": f"{account}-{status}-{number}",
            "source": "checks",
            "type": CHECKED,
            "tenant": tenant,
            "subject": account,
            "data": {"status": status, "why": "asked-to"},
        }
        place = {"partition": 0} if misplaced else {}
        self._producer.produce(self._topic, json.dumps(signal), tenant, **place)

    def answer(self, account: Event, chance: random.Random) -> None:
        """All that is sent about an account: not final, for another tenant, final, and final again."""
        status = verdict(account)
        self.send(account.tenant, account.id, "begun")
        self.send("tenant-nobody", account.id, status)
        self.send(account.tenant, account.id, status, misplaced=chance.random() < 0.2)
        self.send(account.tenant, account.id, status)
        self.send(account.tenant, account.id, status, number="2")

    def flush(self) -> None:
        assert self._producer.flush(20) == 0


def verdict(account: Event) -> str:
    """What the check finds: it refuses those whose data says so."""
    return "refused" if b'"fails":true' in account.data else "passed"


class Bank(World):
    """What the flow `waits_flow` has done to the world."""

    def cell(self, scene: Scene, name: str) -> Any:
        return scene.cell(name, "tests.crash.waits_flow", CRASH_WORLD=str(self.directory))

    def contents(self, event: Event, data: Any) -> str:
        answers = {operation: answer for operation, order, _, answer in self.done() if order == event.id}
        return "" if data == answers else f"the completion says {data}, the world {answers}"

    def wrong(self, events: list[Event]) -> list[str]:
        wrong = []
        for event in events:
            wanted = ["request", "withdraw" if verdict(event) == "refused" else "open"]
            if (found := self.operations(event.id)) != wanted:
                wrong.append(f"{event.id}: {found}")
        return wrong


def accounts(scene: Scene, label: str, count: int) -> list[Event]:
    events = []
    for number in range(count):
        data = b'{"fails":true}' if number % 5 == 4 else b"{}"
        events.append(Event(f"tenant-{number % 7}", "bank", f"{label}-{number}", data))
        scene.send(events[-1])
    scene.load.flush()
    return events


@pytest.mark.parametrize("point", points.WAITS, ids=lambda point: point.name)
def test_each_wait_ends_once_wherever_the_process_dies(
    scene: Scene, tmp_path: Path, point: points.Point
) -> None:
    scene.seed(42)
    bank, checks, chance = Bank(tmp_path), Checks(scene), random.Random(point.name)
    note = tmp_path / "note"
    note.touch()
    opened = accounts(scene, "account", ACCOUNTS)
    for account in opened[::3]:  # before anybody waits
        checks.answer(account, chance)
    checks.flush()
    late = [account for account in opened if account not in opened[::3]]
    for mode in MODES:
        cell = bank.cell(scene, f"cell, {mode}")
        cell.doom = points.environment(point, chance.randint(1, point.passes // 3), note)
        more = accounts(scene, mode[:3], ACCOUNTS // 3)
        opened += more
        for account in (*more, *late[: ACCOUNTS // 5]):
            checks.answer(account, chance)
        del late[: ACCOUNTS // 5]
        checks.flush()
        scene.let_die(cell, mode)
    last = bank.cell(scene, "last").start()
    scene.wait(lambda: "slots granted" in last.text(), "the last cell serves")
    for account in late:
        checks.answer(account, chance)
    checks.flush()
    scene.finish(agent="accounts", contents=bank.contents)
    assert bank.wrong(opened) == []
    keys = Counter(key for _, _, key, _ in bank.done())
    assert max(keys.values()) == 1


def test_runs_that_wait_for_a_moment_end_once_and_leave_nothing_open(scene: Scene) -> None:
    """They begin and end in one transaction, whose records come of two inputs: the event's, and the slot's inbox."""
    scene.seed(44)
    for number in range(15_000):
        scene.send(Event(f"tenant-{number % 50}", "bank", f"nap-{number}", b"{}"))
    scene.load.flush()
    cell = scene.cell("cell", "tests.crash.naps_flow").start()
    scene.wait_for_output(1_000)
    cell.kill()
    cell.start()
    scene.finish(agent="naps", contents=lambda event, data: "" if data == event.id else f"it says {data}")
