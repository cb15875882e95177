"""A shared call whose run is asleep or parked: who waits for it does so in the ledger, and holds no input."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from onceflow.agents.agent import agent
from onceflow.agents.call import Call, RetryPolicy
from onceflow.agents.calls import Completed
from onceflow.agents.commands import Command
from onceflow.agents.durable import HELD_MS
from onceflow.agents.happenings import Commanded, Due
from onceflow.agents.journal import Entry
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.errors import Failed, GiveUp, RetryLater
from onceflow.event import Event
from tests.tenant import Tenant

HOUR_MS = 3_600_000


@tool(effect="keyed", scope="tenant", key_fields=("customer",))
async def welcome(call: Call, customer: str) -> str: ...  # type: ignore[empty-body]


@welcome.compensate
async def apologise(call: Call, result: str | None) -> None: ...


@tool(effect="read", timeout=timedelta(hours=2))
async def look(call: Call) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed", retry=RetryPolicy(attempts=1))
async def charge(call: Call) -> str: ...  # type: ignore[empty-body]


@agent("greets", on="t")
async def greets(run: Run, event: Event) -> str:
    return await run.call(welcome, customer="ann")


@agent("greets-beside", on="u")
async def greets_beside(run: Run, event: Event) -> list[str]:
    return await run.gather(run.call(look), run.call(welcome, customer="ann"))


@agent("greets-twice", on="v")
async def greets_twice(run: Run, event: Event) -> list[str]:
    return await run.gather(*(run.call(welcome, customer="ann") for _ in range(2)))


@agent("greets-and-charges", on="w")
async def greets_and_charges(run: Run, event: Event) -> str:
    """Parked while its shared call waits for its next attempt."""
    await run.gather(run.call(welcome, customer="ann"), run.call(charge))
    return "done"


@agent("greets-and-fails", on="x")
async def greets_and_fails(run: Run, event: Event) -> None:
    await run.call(welcome, customer="ann")
    raise Failed("sold-out")


@pytest.fixture
def tenant() -> Tenant:
    return Tenant(greets, greets_beside, greets_twice, greets_and_charges, greets_and_fails)


def outcomes(tenant: Tenant) -> list[Any]:
    return [ended.outcome for ended in tenant.ended]


def held_inputs(tenant: Tenant, *numbers: int) -> set[int]:
    """Of these events, those whose records are not finished."""
    finished = {arrived.offset for arrived in tenant.begun} | {end.arrived.offset for end in tenant.ended}
    return set(numbers) - finished


def entry(tenant: Tenant, number: int, place: str = "0") -> Entry:
    return tenant.memory.saved(tenant.event_key(number)).journal[place]


def test_who_waits_is_put_down_when_the_attempt_is_put_off_and_goes_on_once_it_is_answered(
    tenant: Tenant,
) -> None:
    for number in (1, 2, 3):
        tenant.event(greets, number)
    assert held_inputs(tenant, 2, 3) == {2, 3}, "only as long as the call is under way"
    tenant.answer(RetryLater(after=3600))
    assert (tenant.asleep, held_inputs(tenant, 1, 2, 3)) == (True, set())
    tenant.now += HOUR_MS
    tenant.take(Due(tenant.event_key(1)))
    tenant.answer("mail-1")
    assert outcomes(tenant) == [Completed("mail-1")] * 3
    assert tenant.started == []
    assert not [key for key in tenant.memory.records if b"\0r" in key]


def test_who_asks_while_the_run_sleeps_that_makes_the_call_sleeps_too(tenant: Tenant) -> None:
    tenant.event(greets, 1)
    tenant.answer(RetryLater(after=3600))
    tenant.event(greets, 2)
    assert (tenant.asleep, held_inputs(tenant, 2)) == (True, set())
    assert entry(tenant, 2).intent is None
    assert tenant.started == []


def test_a_call_that_did_not_happen_is_made_by_one_of_those_that_were_put_down(tenant: Tenant) -> None:
    for number in (1, 2, 3):
        tenant.event(greets, number)
    first = tenant.answer(RetryLater(after=3600))
    tenant.now += HOUR_MS
    tenant.take(Due(tenant.event_key(1)))
    tenant.answer(GiveUp("no such address"))
    second = tenant.answer("mail-2")
    assert (second.call.key, tenant.started) == (first.call.key, [])
    assert sorted(type(outcome).__name__ for outcome in outcomes(tenant)) == [
        "Completed",
        "Completed",
        "RunFailed",
    ]


def test_after_a_restart_who_waits_asks_again_and_is_woken_by_the_outcome(tenant: Tenant) -> None:
    tenant.event(greets, 1)
    tenant.answer(RetryLater(after=3600))
    tenant.event(greets, 2)
    tenant.begin_anew()
    tenant.resume()
    segments = tenant.memory.saved(tenant.event_key(2)).segments
    assert (tenant.asleep, segments) == (True, 1), "nothing new is to be put on record"
    tenant.now += HOUR_MS
    tenant.take(Due(tenant.event_key(1)))
    tenant.answer("mail-1")
    assert outcomes(tenant) == [Completed("mail-1")] * 2


def test_who_is_told_nothing_asks_again_after_ten_minutes(tenant: Tenant) -> None:
    tenant.event(greets, 1)
    tenant.answer(RetryLater(after=3600))
    tenant.event(greets, 2)
    for times in (1, 2):
        assert tenant.due_ms == tenant.now + HELD_MS
        tenant.now += HELD_MS
        tenant.take(Due(tenant.event_key(2)))
        assert (tenant.asleep, tenant.memory.saved(tenant.event_key(2)).segments) == (True, 1 + times)
    assert tenant.started == []


def test_a_run_that_does_something_else_meanwhile_waits_no_longer_than_for_that(tenant: Tenant) -> None:
    tenant.event(greets, 1)
    tenant.event(greets_beside, 2)
    tenant.answer(RetryLater(after=3600), by=1)
    assert not tenant.asleep
    tenant.now += HOUR_MS
    tenant.take(Due(tenant.event_key(1)))
    tenant.answer("mail-1", by=1)
    assert outcomes(tenant) == [Completed("mail-1")], "the other one still looks"
    tenant.answer("seen", by=2)
    assert outcomes(tenant) == [Completed("mail-1"), Completed(["seen", "mail-1"])]


def test_a_run_that_asks_twice_sleeps_while_its_own_call_does(tenant: Tenant) -> None:
    tenant.event(greets_twice, 1)
    tenant.answer(RetryLater(after=3600))
    assert tenant.asleep
    tenant.now += HOUR_MS
    tenant.take(Due(tenant.event_key(1)))
    tenant.answer("mail-1")
    assert outcomes(tenant) == [Completed(["mail-1"] * 2)]


def test_who_waits_for_a_parked_run_holds_no_input_until_a_person_has_decided(tenant: Tenant) -> None:
    tenant.event(greets_and_charges, 1)
    tenant.event(greets, 2)
    assert tenant.answer(TimeoutError()).tool is charge
    assert tenant.answer(RetryLater(after=3600)).tool is welcome
    assert [parked.reason for parked in tenant.parked] == ["unknown-outcome"]
    assert (tenant.asleep, held_inputs(tenant, 1, 2)) == (True, set())
    segments = tenant.memory.saved(tenant.event_key(1)).segments
    told = Command("result", "acme", tenant.event_key(1).hex(), segments, result=msgspec.Raw(b'"ok"'))
    tenant.take(Commanded(tenant.source, 9, 1, told))
    tenant.now += HOUR_MS
    tenant.take(Due(tenant.event_key(1)))
    tenant.answer("mail-1")
    assert outcomes(tenant) == [Completed("done"), Completed("mail-1")]


def test_who_waits_for_an_effect_that_is_undone_later_makes_it_anew(tenant: Tenant) -> None:
    tenant.event(greets_and_fails, 1)
    first = tenant.answer("mail-1")
    assert tenant.answer(RetryLater(after=3600)).kind == "undo"
    tenant.event(greets, 2)
    assert (tenant.asleep, held_inputs(tenant, 2)) == (True, set())
    tenant.now += HOUR_MS
    tenant.take(Due(tenant.event_key(1)))
    assert tenant.answer(None).kind == "undo"
    anew = tenant.answer("mail-2")
    assert anew.call.key != first.call.key
    assert outcomes(tenant)[-1] == Completed("mail-2")


def test_one_that_was_put_down_can_be_cancelled_and_calls_nothing(tenant: Tenant) -> None:
    tenant.event(greets, 1)
    tenant.answer(RetryLater(after=3600))
    tenant.event(greets, 2)
    segments = tenant.memory.saved(tenant.event_key(2)).segments
    tenant.take(
        Commanded(tenant.source, 9, 1, Command("cancel", "acme", tenant.event_key(2).hex(), segments))
    )
    (ended,) = tenant.ended
    assert (ended.arrived.key, ended.outcome.code) == (tenant.event_key(2), "cancelled")
    tenant.now += HOUR_MS
    tenant.take(Due(tenant.event_key(1)))
    tenant.answer("mail-1")
    assert outcomes(tenant)[1:] == [Completed("mail-1")]


def test_a_new_version_of_the_tool_parks_nobody_that_has_only_waited(tenant: Tenant) -> None:
    tenant.event(greets, 1)
    tenant.answer(RetryLater(after=3600))
    tenant.event(greets, 2)

    @tool(effect="keyed", scope="tenant", key_fields=("customer",), version=2, name="welcome")
    async def second(call: Call, customer: str) -> str: ...  # type: ignore[empty-body]

    @agent("greets", on="t")
    async def greets_anew(run: Run, event: Event) -> str:
        return await run.call(second, customer="ann")

    tenant.memory.agents["greets"] = greets_anew
    tenant.now += HELD_MS
    tenant.take(Due(tenant.event_key(2)))
    assert (tenant.parked, tenant.asleep) == ([], True)


def test_a_run_that_is_cancelled_after_its_call_was_taken_back_leaves_the_key_to_others(
    tenant: Tenant,
) -> None:
    tenant.event(greets, 1)
    tenant.lane.leave()
    tenant.commit()
    segments = tenant.memory.saved(tenant.event_key(1)).segments
    tenant.take(
        Commanded(tenant.source, 9, 1, Command("cancel", "acme", tenant.event_key(1).hex(), segments))
    )
    assert tenant.outcome.code == "cancelled"
    tenant.begin_anew()
    tenant.event(greets, 2)
    tenant.answer("mail-1")
    assert outcomes(tenant)[1:] == [Completed("mail-1")]
