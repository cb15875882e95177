"""The flows that change something, with an unreliable world and a cell that is killed; and what naive code does there.

Each flow's test reads the world's own record, not the product's: every effect once, or undone once.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from flows import outside
from flows.planner import ask_model
from onceflow import RetryLater
from tests.conftest import Kafka
from tests.crash.checker import Event
from tests.crash.load import Record, encode
from tests.crash.scene import Scene
from tests.crash.test_commands import ended

pytestmark = pytest.mark.crash

UNRELIABLE = {"OUTSIDE_LOST": "0.15", "OUTSIDE_BUSY": "0.15", "OUTSIDE_DELAY_S": "0.02"}
TENANT = "acme"
SEED = 0


class Case(NamedTuple):
    """A flow, its events as (type, data), and the effects that each subject must have, in order."""

    name: str
    events: list[tuple[str, dict[str, Any]]]
    wanted: dict[str, list[str]]
    world: Mapping[str, str] = MappingProxyType({})


def event_of(number: int, kind: str, data: dict[str, Any]) -> Event:
    """The event that is sent as the nth of a case."""
    return Event(TENANT, "tests", f"{kind}-{number}", json.dumps(data).encode())


def bills() -> Case:
    events, wanted = [], {}
    for number in range(40):
        invoice, disputed = f"INV-{number}", number % 5 == 0
        events.append(("invoice.due", {"invoice": invoice, "cents": 1900, "disputed": disputed}))
        wanted[invoice] = ["charge", "refund"] if disputed else ["charge", "receipt"]
    return Case("billing", events, wanted)


def customers() -> Case:
    kinds = ("customer.created", "customer.verified", "customer.invited")
    events = [(kinds[number % 3], {"customer": f"c{number % 4}"}) for number in range(56)]
    return Case("onboarding", events, {f"{TENANT}/c{number}": ["welcome"] for number in range(4)})


def webhooks() -> Case:
    paid = [{"order": f"A-{number % 10}", "sku": "tea", "quantity": 2} for number in range(50)]
    wanted = {f"{TENANT}/A-{number}": ["book", "notice", "stock"] for number in range(10)}
    return Case("inventory", [("order.paid", data) for data in paid], wanted)


def alarms() -> Case:
    events = [
        ("alarm.raised", {"alarm": f"disk-{number % 20}"}) for number in range(40)
    ]  # each is raised twice
    runs = [event_of(number, kind, data).key for number, (kind, data) in enumerate(events)]
    wanted = {f"disk-{number % 20} ({run})": ["ticket"] for number, run in enumerate(runs)}
    return Case("tickets", events, wanted, {"OUTSIDE_GARBAGE": "0.3"})


@pytest.fixture
def scene(kafka: Kafka, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """The topics of the flow that a test is about, which has a name of its own."""
    scene = Scene(request.param, kafka.bootstrap_servers, tmp_path)
    try:
        scene.prepare()
        scene.seed(71)
        yield scene
    finally:
        scene.close()


def send(scene: Scene, events: list[tuple[str, dict[str, Any]]], first: int = 0) -> None:
    assert scene.load is not None
    for number, (kind, data) in enumerate(events, first):
        event = event_of(number, kind, data)
        scene.load.send(Record(scene.shared, -1, TENANT, encode(event, kind), [], event, ""))
    scene.load.flush()


def by_subject(directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    monkeypatch.setenv("OUTSIDE_DIR", str(directory))
    found: dict[str, list[str]] = {}
    for effect in outside.effects():
        found.setdefault(effect["subject"], []).append(effect["operation"])
    return found


CASES = {case().name: case() for case in (bills, customers, webhooks, alarms)}


@pytest.mark.parametrize(("scene", "case"), list(CASES.items()), indirect=["scene"], ids=CASES)
def test_every_effect_is_done_once_through_a_crash(
    scene: Scene, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = tmp_path / "outside"
    settings = {**UNRELIABLE, **case.world, "OUTSIDE_DIR": str(world)}
    cell = scene.cell("a", f"flows.{case.name}", **settings).start()
    send(scene, case.events)
    scene.wait(lambda: (world / "effects").exists(), "something was done")
    cell.kill()
    cell.start()
    scene.wait(lambda: len(ended(scene)) == len(case.events), "all have ended")
    found = by_subject(world, monkeypatch)
    order: Callable[[list[str]], list[str]] = sorted if case.name == "inventory" else list  # at the same time
    assert {subject: order(operations) for subject, operations in found.items()} == case.wanted


@pytest.mark.parametrize("scene", ["planner"], indirect=True)
def test_what_was_ordered_is_what_the_completion_says(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model would answer otherwise after the crash: there is no order that nobody knows of."""
    world = tmp_path / "outside"
    cell = scene.cell("a", "flows.planner", **UNRELIABLE, OUTSIDE_DIR=str(world)).start()
    send(scene, [("stock.low", {"item": f"item-{number}"}) for number in range(40)])
    scene.wait(lambda: (world / "effects").exists(), "something was ordered")
    cell.kill()
    cell.start()
    scene.wait(lambda: len(ended(scene)) == 40, "all have ended")
    monkeypatch.setenv("OUTSIDE_DIR", str(world))
    orders = {
        e["answer"]: e["subject"].partition(" from ")[2]
        for e in outside.effects()
        if e["operation"] == "order"
    }
    said = {each["data"]["order"]: each["data"]["supplier"] for each in ended(scene).values()}
    assert orders == said


@pytest.mark.parametrize("scene", ["account-opening"], indirect=True)
def test_accounts_are_opened_refused_or_escalated(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three kinds of answers of the check: passed, refused, none in time; the cell is killed while all wait."""
    world = tmp_path / "outside"
    times = {"ACCOUNT_POLL_S": "1", "ACCOUNT_WAIT_S": "12"}
    flags = tmp_path / "flags.toml"
    times["ONCEFLOW_FLAGS"] = str(flags)
    cell = scene.cell("a", "flows.account_opening", OUTSIDE_DIR=str(world), **times).start()
    accounts = [f"account-{number}" for number in range(30)]
    send(scene, [("account.requested", {"account": account}) for account in accounts])
    monkeypatch.setenv("OUTSIDE_DIR", str(world))
    scene.wait(lambda: len(list(outside.effects())) == 30, "all checks are asked for")
    cell.kill()
    cell.start()
    assert scene.load is not None
    for number, account in enumerate(accounts[:20]):
        status = "passed" if number % 2 else "refused"
        signal = {"specversion": "1.0", "id": account, "source": "checks", "type": "identity.checked"}
        signal |= {"tenant": TENANT, "subject": account, "data": {"status": status}}
        value = json.dumps(signal).encode()
        scene.load.send(Record(f"{scene.flow}-signals", -1, TENANT, value, [], None, ""))
    scene.load.flush()
    scene.wait(lambda: len(ended(scene)) == 30, "all have ended")
    statuses = Counter(each["data"].get("status", each["data"].get("code")) for each in ended(scene).values())
    assert statuses == {"open": 10, "refused": 10, "escalated": 10}
    ends = {"open": ["check", "open"], "refused": ["check", "withdraw"], "escalated": ["check", "ticket"]}
    found = Counter(tuple(operations) for operations in by_subject(world, monkeypatch).values())
    assert found == {tuple(operations): 10 for operations in ends.values()}

    flags.write_text("[check-at-once]\nSE = true\n")
    send(scene, [("account.requested", {"account": "swede", "market": "SE"})], first=30)
    scene.wait(lambda: len(ended(scene)) == 31, "it has ended")
    assert by_subject(world, monkeypatch)["swede"] == ["open"]


# --- What naive code does in the same world ---


@pytest.fixture
def unreliable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each first answer is lost."""
    monkeypatch.setenv("OUTSIDE_DIR", str(tmp_path / "outside"))
    monkeypatch.setenv("OUTSIDE_LOST", "1")


async def naively(operation: str, subject: str, attempts: int = 3) -> None:
    """Try again when there is no answer, as most clients do."""
    for _ in range(attempts):
        try:
            await outside.do(operation, subject)
        except (TimeoutError, ValueError, RetryLater):
            continue
        return


@pytest.mark.usefixtures("unreliable")
def test_a_naive_retry_charges_again() -> None:
    asyncio.run(naively("charge", "INV-1"))
    assert Counter(effect["operation"] for effect in outside.effects()) == {"charge": 3}


@pytest.mark.usefixtures("unreliable")
def test_naive_handlers_of_several_events_send_several_e_mails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIDE_LOST", "0")
    for _ in range(14):
        asyncio.run(naively("welcome", "acme/ann"))
    assert len(list(outside.effects())) == 14


@pytest.mark.usefixtures("unreliable")
def test_a_naive_planner_orders_what_nobody_knows_of() -> None:
    """It dies after the order and before it has noted it, and plans again: the model answers otherwise."""

    async def plan_and_order() -> str:
        supplier: str = await ask_model.function("bolts")
        await naively("order", f"bolts from {supplier}", attempts=1)
        return supplier

    random.seed(SEED)  # of which the model's first two answers differ
    asyncio.run(plan_and_order())  # and dies
    noted = asyncio.run(plan_and_order())
    ghosts = [effect["subject"] for effect in outside.effects() if effect["subject"] != f"bolts from {noted}"]
    assert len(ghosts) == 1


@pytest.mark.usefixtures("unreliable")
def test_a_naive_caller_makes_a_second_ticket_when_it_cannot_read_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OUTSIDE_LOST", "0")
    monkeypatch.setenv("OUTSIDE_GARBAGE", "1")
    asyncio.run(naively("ticket", "acme/disk-7", attempts=2))
    assert len(list(outside.effects())) == 2
