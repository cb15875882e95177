"""Deadlines of runs; and runs that are parked: a time that is over changes nothing of them, but for their deadline."""

from datetime import timedelta

import pytest

from onceflow.agents.agent import agent
from onceflow.agents.call import Call, RetryPolicy
from onceflow.agents.calls import Completed
from onceflow.agents.commands import Command
from onceflow.agents.happenings import Commanded, Due
from onceflow.agents.run import Run
from onceflow.agents.signals import Signal
from onceflow.agents.tool import tool
from onceflow.event import Event
from tests.tenant import KEY, NOW, Tenant

MINUTE = 60_000


@tool(effect="read")
async def ask(call: Call, id: str) -> str | None: ...


@agent("hurries", on="t", deadline=timedelta(minutes=5))
async def hurries(run: Run, event: Event) -> str:
    await run.call(reserve)
    return str(await run.wait_for("signed", event.id))


@agent("reads", on="t", deadline=60)
async def reads(run: Run, event: Event) -> str | None:
    return await run.call(ask, id="x")


@tool(effect="keyed")
async def reserve(call: Call) -> str: ...  # type: ignore[empty-body]


@reserve.compensate
async def release(call: Call, result: str | None) -> None: ...


@pytest.mark.parametrize("crash", [False, True])
def test_a_run_whose_deadline_is_over_fails_and_undoes_what_stands(crash: bool) -> None:
    tenant = Tenant(hurries)
    tenant.event(hurries)
    tenant.answer("r-1")
    assert tenant.asleep
    tenant.now = NOW + 5 * MINUTE
    if crash:
        tenant.begin_anew()
        tenant.resume()
    else:
        tenant.take(Due(KEY))
    assert tenant.answer(None).kind == "undo"
    assert tenant.outcome.code == "expired"
    assert tenant.memory.failed(KEY), "kept, to be redriven"


def test_one_that_only_reads_ends_at_once_and_its_call_is_given_up() -> None:
    tenant = Tenant(reads)
    tenant.event(reads)
    tenant.now = NOW + MINUTE - 1
    tenant.take(Due(KEY))
    assert tenant.ended == []
    tenant.now = NOW + MINUTE
    tenant.take(Due(KEY))
    assert tenant.outcome.code == "expired"
    assert (tenant.abandoned, tenant.lane.idle) == (1, True)


def test_nobody_is_told_of_the_deadline_of_a_run_that_ended_at_once() -> None:
    @agent("computes", on="t", deadline=60)
    async def computes(run: Run, event: Event) -> int:
        return 1

    tenant = Tenant(computes, reads)
    tenant.event(computes)
    assert (tenant.outcome, tenant.due_ms) == (Completed(1), 0)
    tenant.event(reads, 2)
    assert tenant.due_ms == NOW + MINUTE


def test_a_deadline_that_nobody_needs_any_more_changes_nothing() -> None:
    tenant = Tenant(reads)
    tenant.event(reads)
    tenant.answer("found")
    tenant.now = NOW + MINUTE
    tenant.take(Due(KEY))
    assert tenant.outcome == Completed("found")


@pytest.mark.parametrize("crash", [False, True])
def test_its_time_is_held_once_however_often_the_run_wakes(crash: bool) -> None:
    @agent("polls", on="t", deadline=timedelta(hours=1))
    async def polls(run: Run, event: Event) -> None:
        await run.wait_for("signed", event.id, poll=ask, every=60)

    tenant = Tenant(polls)
    tenant.event(polls)
    if crash:
        tenant.planned.clear()
        tenant.begin_anew()
        tenant.resume()
    for _ in range(5):
        tenant.now += MINUTE
        tenant.take(Due(KEY))
        tenant.answer(None)
    assert tenant.planned.count((Due(KEY), NOW + 60 * MINUTE)) == 1


# --- Parked runs: a time that is over changes nothing, but for the deadline ---


@tool(effect="keyed", retry=RetryPolicy(attempts=1))
async def pay(call: Call) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed", on_unknown="reconcile", retry=RetryPolicy(attempts=1))
async def seal(call: Call) -> str: ...  # type: ignore[empty-body]


@seal.compensate
async def unseal(call: Call, result: str | None) -> None: ...


@seal.reconcile
async def find_seal(call: Call) -> str: ...  # type: ignore[empty-body]


def test_the_time_of_a_wait_that_has_ended_does_not_wake_a_run_that_is_parked() -> None:
    @agent("pays", on="t")
    async def pays(run: Run, event: Event) -> str:
        await run.wait_for("signed", event.id, timeout=60)
        return await run.call(pay)

    tenant = Tenant(pays)
    tenant.event(pays)
    tenant.signalled(Signal("signed", "evt-1", "done", {}, "vendor", "s-1"))
    tenant.answer(TimeoutError())
    assert len(tenant.parked) == 1
    segments = tenant.memory.saved(KEY).segments
    tenant.now = NOW + MINUTE
    tenant.take(Due(KEY))
    tenant.commit()
    assert (tenant.started, tenant.memory.saved(KEY).segments) == ([], segments)
    tenant.take(Commanded(tenant.source, 11, 3, Command("again", "acme", KEY.hex(), segments)))
    tenant.answer("p-1")
    assert tenant.outcome == Completed("p-1")


def test_a_parked_run_whose_deadline_is_over_goes_on_and_is_parked_no_more() -> None:
    @agent("seals", on="t", deadline=60)
    async def seals(run: Run, event: Event) -> str:
        return await run.call(seal)

    tenant = Tenant(seals)
    tenant.event(seals)
    tenant.answer(TimeoutError())
    tenant.answer(ConnectionError())
    assert tenant.memory.saved(KEY).parked
    tenant.now = NOW + MINUTE
    tenant.take(Due(KEY))
    assert tenant.answer("s-1").kind == "reconcile"
    tenant.begin_anew()
    tenant.resume()
    assert tenant.answer(None).kind == "undo"
    assert tenant.outcome.code == "expired"


def test_the_deadline_of_a_run_that_only_a_person_can_end_is_over_once() -> None:
    @agent("pays", on="t", deadline=60)
    async def pays(run: Run, event: Event) -> str:
        return await run.call(pay)

    tenant = Tenant(pays)
    tenant.event(pays)
    tenant.answer(TimeoutError())
    tenant.now = NOW + MINUTE
    for _ in range(3):
        tenant.take(Due(KEY))
    assert [parked.reason for parked in tenant.parked] == ["unknown-outcome"] * 2
