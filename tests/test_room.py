"""Room for runs: those that wake wait for it as those that arrive do."""

import gc

import pytest

from onceflow.agents.agent import agent
from onceflow.agents.calls import Completed, RunFailed
from onceflow.agents.commands import Command
from onceflow.agents.happenings import Arrived, Commanded, Due
from onceflow.agents.run import Run
from onceflow.agents.signals import Signal
from onceflow.agents.tool import tool
from onceflow.event import Event
from tests.tenant import KEY, NOW, Tenant


@tool(effect="read")
async def ask(id: str) -> str: ...  # type: ignore[empty-body]


@agent("asks", on="t")
async def asks(run: Run, event: Event) -> str:
    return await run.call(ask, id=event.id)


@agent("waits", on="t", deadline=300)
async def waits(run: Run, event: Event) -> str:
    found = await run.wait_for("signed", event.id, timeout=600)
    return await run.call(ask, id=found.status)


@agent("asks-later", on="t")
async def asks_later(run: Run, event: Event) -> str:
    await run.sleep(90)
    return await run.call(ask, id=event.id)


def asleep(tenant: Tenant, count: int) -> list[Due]:
    """So many runs sleep; what wakes them all, now."""
    numbers = range(2, 2 + count)
    for number in numbers:
        tenant.event(asks_later, number)
    tenant.now += 90_000
    return [Due(tenant.event_key(number)) for number in numbers]


@pytest.fixture
def full() -> Tenant:
    """A run sleeps, and then there is no room for it."""
    tenant = Tenant(waits, asks)
    tenant.event(waits)
    for number in range(2, 2 + tenant.capacity.runs_per_lane):
        tenant.event(asks, number)
    tenant.signalled(Signal("signed", "evt-1", "done", {}, "vendor", "s-1"))
    assert len(tenant.started) == tenant.capacity.runs_per_lane, "it waits for room"
    return tenant


def test_runs_that_wake_together_go_on_no_more_at_a_time_than_there_is_room_for() -> None:
    tenant = Tenant(asks_later)
    tenant.take(*asleep(tenant, 30))
    while tenant.started:
        assert tenant.capacity.in_flight <= tenant.capacity.runs_per_lane
        tenant.answer("done")
    assert len(tenant.ended) == 30
    assert (tenant.memory.records, tenant.lane.idle) == ({}, True)


def test_of_runs_that_wake_together_those_without_room_are_not_in_memory() -> None:
    """Each has its event with it, which may be large."""
    tenant = Tenant(asks_later)
    due = asleep(tenant, 100)
    for _ in range(2):  # to be told twice changes nothing
        tenant.take(*due)
    assert (len(tenant.started), tenant.lane.waiting) == (10, 90)
    gc.collect()
    held = [each for each in gc.get_objects() if isinstance(each, Arrived) and each.saved is not None]
    assert held == []
    while tenant.started:
        tenant.answer("done")
    assert len(tenant.ended) == 100


@pytest.mark.parametrize("crash", [False, True])
def test_what_woke_a_run_that_finds_no_room_is_on_record(full: Tenant, crash: bool) -> None:
    if crash:
        full.begin_anew()
        full.resume()
    else:
        full.answer("done")
    assert full.started[-1].call.arguments == {"id": "done"}
    full.answer("seen", by=1)
    assert [ended.outcome for ended in full.ended if ended.arrived.key == KEY] == [Completed("seen")]


def test_a_run_that_waits_for_room_after_it_slept_can_be_cancelled(full: Tenant) -> None:
    full.take(Commanded(full.source, 20, 3, Command("cancel", run=KEY.hex())))
    (ended,) = full.ended
    assert isinstance(ended.outcome, RunFailed)
    assert (ended.arrived.key, ended.outcome.code) == (KEY, "cancelled")


def test_its_deadline_is_over_when_it_goes_on_too_late_and_is_held_once(full: Tenant) -> None:
    full.now = NOW + 300_000
    full.take(Due(KEY))
    full.answer("done")
    (outcome,) = [ended.outcome for ended in full.ended if ended.arrived.key == KEY]
    assert isinstance(outcome, RunFailed)
    assert outcome.code == "expired"
    assert [ms for due, ms in full.planned if due == Due(KEY)].count(NOW + 300_000) == 1
