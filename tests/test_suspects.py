"""Runs that may be poison: how they begin apart from all others, and what becomes of one that is."""

from typing import Any

import pytest

from onceflow.agents.agent import agent
from onceflow.agents.call import Call
from onceflow.agents.calls import Completed, RunFailed
from onceflow.agents.commands import Command
from onceflow.agents.happenings import Commanded, Lost, Turn
from onceflow.agents.poison import (
    APART,
    APART_S,
    BUSY,
    CONTROL_S,
    HELD,
    UNDONE_TOO,
    Suspicion,
    Watch,
)
from onceflow.agents.run import Run
from onceflow.agents.signals import Signal
from onceflow.agents.tool import tool
from onceflow.event import Event, Reason
from tests.tenant import KEY, Tenant
from tests.watching import A, B, C, D, controlled, watched


@tool(effect="read")
async def look(call: Call) -> int:
    raise AssertionError("nobody carries out calls here")


@tool(effect="keyed", ttl=86_400)
async def pay(call: Call) -> int:
    raise AssertionError("nobody carries out calls here")


@pay.compensate
async def refund(call: Call, result: int | None) -> None:
    raise AssertionError("nobody carries out calls here")


@agent("looks", on="t")
async def looks(run: Run, event: Event) -> int:
    return await run.call(look)


@agent("pays", on="t")
async def pays(run: Run, event: Event) -> int:
    await run.call(pay)
    return await run.call(look)


@tool(effect="keyed", scope="tenant", key_fields=("customer",))
async def welcome(call: Call, customer: str) -> int:
    raise AssertionError("nobody carries out calls here")


@agent("greets", on="t")
async def greets(run: Run, event: Event) -> int:
    return await run.call(welcome, customer="ann")


@agent("waits", on="t")
async def waits(run: Run, event: Event) -> str:
    return str((await run.wait_for("news", event.id)).status)


@agent("at-once", on="t")
async def at_once(run: Run, event: Event) -> str:
    return "done"


@pytest.fixture
def tenant() -> Tenant:
    return Tenant(looks, pays, greets, waits, at_once)


def watching(**known: Any) -> Watch:
    return watched(Suspicion(**known))


def turns(tenant: Tenant) -> None:
    """The lane gets its turn, if it has one."""
    for _ in tenant.capacity.turns():
        tenant.take(Turn())


def test_runs_are_named_while_they_are_under_way(tenant: Tenant) -> None:
    names = tenant.capacity.watch.names
    tenant.event(looks, 1)
    tenant.event(looks, 2)
    tenant.event(at_once, 3)
    assert names.found() == {A, B}
    tenant.answer(1)
    assert names.found() == {B}


def test_the_run_that_computes_is_named(tenant: Tenant) -> None:
    found = []

    @agent("peeps", on="t")
    async def peeps(run: Run, event: Event) -> None:
        found.extend(tenant.capacity.watch.names.found())

    tenant.event(peeps, 4)
    assert found == [D]


def test_a_suspect_waits_while_others_run_until_the_process_has_lived_for_so_long(tenant: Tenant) -> None:
    tenant.begin_anew(watching(suspects=[B]))
    tenant.event(looks, 2)
    tenant.event(looks, 1)
    for now_s in (100.0, 100.0 + CONTROL_S * 0.99):
        assert tenant.capacity.turns(now_s) == []
    tenant.event(looks, 3)
    assert [call.run.token.key for call in tenant.started] == [A, C]
    assert tenant.capacity.watch.names.treated == HELD


def test_then_it_waits_until_nothing_else_is_under_way_and_nothing_begins_before_it_is_done(
    tenant: Tenant,
) -> None:
    tenant.begin_anew(watching(suspects=[B]))
    tenant.event(looks, 1)
    tenant.event(looks, 2)
    controlled(tenant.capacity.watch)
    tenant.event(looks, 3)
    turns(tenant)
    assert [call.run.token.key for call in tenant.started] == [A], "the first is under way"
    tenant.answer(1)
    turns(tenant)
    assert [call.run.token.key for call in tenant.started] == [B], "it runs apart"
    assert tenant.capacity.watch.names.treated == APART
    tenant.answer(1)
    assert tenant.capacity.watch.names.treated == BUSY
    assert tenant.capacity.watch.clears([B]), "it has survived"
    turns(tenant)
    assert [call.run.token.key for call in tenant.started] == [C]


def test_a_suspect_that_ends_at_once_is_cleared_too(tenant: Tenant) -> None:
    tenant.begin_anew(watching(suspects=[A]))
    tenant.event(at_once)
    assert tenant.ended == []
    controlled(tenant.capacity.watch)
    turns(tenant)
    assert tenant.outcome == Completed("done")
    assert not tenant.capacity.watch.waiting


def test_a_run_that_is_woken_waits_for_those_that_run_apart_and_its_signal_is_on_record(
    tenant: Tenant,
) -> None:
    tenant.event(waits, 1)
    tenant.begin_anew(watching(suspects=[B]))
    tenant.resume()
    tenant.event(looks, 2)
    controlled(tenant.capacity.watch)
    turns(tenant)
    assert [call.run.token.key for call in tenant.started] == [B]
    tenant.signalled(Signal("news", "evt-1", "done", {}, "world", "1"))
    assert tenant.capacity.watch.names.found() == {B}
    (entry,) = [entry for entry in tenant.memory.saved(A).journal.values() if entry.wait]
    assert entry.result is not None, "whoever dies now"
    tenant.answer(1)
    turns(tenant)
    assert [type(ended.outcome) for ended in tenant.ended] == [Completed, Completed]


def sent_at(tenant: Tenant, now_s: float) -> set[bytes]:
    """The runs whose calls are out, once the turns of this moment are over."""
    for _ in tenant.capacity.turns(now_s):
        tenant.take(Turn())
    tenant.commit()
    return {call.run.token.key for call in tenant.started}


def test_one_that_runs_apart_and_waits_for_one_that_is_held_makes_way_for_it(tenant: Tenant) -> None:
    """Two calls with one key: the run that makes it is held, the other one waits for it, in the ledger."""
    tenant.event(greets, 1)
    tenant.begin_anew(watching(suspects=[B, A]))
    tenant.resume()
    tenant.event(greets, 2)
    assert [sent_at(tenant, now_s) for now_s in (0.0, CONTROL_S, CONTROL_S)] == [set(), set(), {A}]
    assert tenant.capacity.watch.names.found() == {A}
    tenant.answer(1)
    sent_at(tenant, CONTROL_S)
    assert [ended.outcome for ended in tenant.ended] == [Completed(1)] * 2


def test_a_standstill_ends_though_one_that_runs_apart_does_not(tenant: Tenant) -> None:
    tenant.begin_anew(watching(suspects=[B, A]))
    tenant.event(looks, 1)
    tenant.event(looks, 2)
    assert [sent_at(tenant, now_s) for now_s in (0.0, CONTROL_S, CONTROL_S)] == [set(), {B}, {B}]
    tenant.event(looks, 3)
    assert sent_at(tenant, CONTROL_S + APART_S) == {B}
    assert sent_at(tenant, CONTROL_S + APART_S + 0.1) == {A, B, C}
    assert tenant.capacity.watch.clears([A, B])


def test_a_run_that_is_held_can_be_cancelled(tenant: Tenant) -> None:
    tenant.begin_anew(watching(suspects=[A]))
    tenant.event(looks)
    tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", KEY.hex())))
    assert tenant.outcome.code == "cancelled"
    assert tenant.lane.idle
    controlled(tenant.capacity.watch)
    assert not tenant.capacity.watch.waiting


@pytest.mark.parametrize("apart", [False, True])
def test_a_person_may_decide_about_poison_that_waits_to_be_undone_or_is(tenant: Tenant, apart: bool) -> None:
    tenant.event(pays)
    tenant.answer(1)
    tenant.begin_anew(watching(suspects=[A], poison={A: 1}))
    tenant.resume()
    controlled(tenant.capacity.watch)
    if apart:
        turns(tenant)
    tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", KEY.hex())))
    turns(tenant)
    assert tenant.answer(None).kind == "undo"
    assert tenant.outcome.code == (Reason.POISON if apart else "cancelled")
    assert not tenant.capacity.watch.waiting


def test_the_room_of_a_suspect_whose_slot_is_lost_is_free_and_it_is_still_suspected(tenant: Tenant) -> None:
    tenant.begin_anew(watching(suspects=[A, B]))
    tenant.event(looks, 1)
    controlled(tenant.capacity.watch)
    turns(tenant)
    tenant.event(looks, 2)
    tenant.take(Lost(tenant.source.grant))
    assert tenant.capacity.watch.names.treated == BUSY
    assert not tenant.capacity.watch.waiting
    assert not tenant.capacity.watch.clears([A])


def test_poison_ends_as_failed_with_that_reason_and_is_not_tried_again(tenant: Tenant) -> None:
    tenant.begin_anew(watching(poison={A: 1}))
    tenant.event(looks)
    assert isinstance(tenant.outcome, RunFailed)
    assert tenant.outcome.code == Reason.POISON
    assert tenant.started == []


def test_what_poison_has_done_is_undone_and_its_agent_does_not_go_on(tenant: Tenant) -> None:
    tenant.event(pays)
    tenant.answer(1)
    tenant.begin_anew(watching(suspects=[A], poison={A: 1}))
    tenant.resume()
    assert tenant.started == []
    controlled(tenant.capacity.watch)
    turns(tenant)
    assert tenant.answer(None).kind == "undo"
    assert tenant.outcome.code == Reason.POISON


def test_poison_that_kills_even_when_it_is_undone_is_parked_until_a_person_has_decided(
    tenant: Tenant,
) -> None:
    tenant.event(pays)
    tenant.answer(1)
    tenant.begin_anew(watching(poison={A: 2}))
    tenant.resume()
    assert tenant.started == []
    parked = tenant.parked[-1]
    assert parked is not None
    assert (parked.reason, parked.message) == (Reason.UNKNOWN_OUTCOME, UNDONE_TOO)
    segments = tenant.memory.saved(KEY).segments
    tenant.take(Commanded(tenant.source, 9, 1, Command("again", "acme", KEY.hex(), segments)))
    tenant.answer(2)
    assert tenant.outcome == Completed(2), "its agent has been mended"
