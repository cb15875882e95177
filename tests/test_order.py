"""`order_by`: runs with one value follow one another, and what stands behind a sleeping one holds no input."""

from typing import Any

import pytest

from onceflow.agents.agent import agent
from onceflow.agents.call import Call
from onceflow.agents.calls import Completed, RunFailed
from onceflow.agents.commands import Command
from onceflow.agents.happenings import Commanded, Due, Redrive, Turn
from onceflow.agents.poison import CONTROL_S, NAMES_BYTES, Names, Suspicion, Watch
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.errors import Failed
from onceflow.event import Event
from tests.tenant import NOW, Tenant


@tool(effect="read")
async def look(call: Call, n: int) -> str: ...  # type: ignore[empty-body]


@agent("looks", on="t", order_by="data")
async def looks(run: Run, event: Event) -> str:
    return await run.call(look, int(event.id.removeprefix("evt-")))


@agent("sleeps", on="t", order_by="data")
async def sleeps(run: Run, event: Event) -> str:
    await run.sleep(60)
    return event.id


async def let_go(call: Call, result: str | None) -> None: ...


def ends(tenant: Tenant) -> list[Any]:
    return [ended.outcome for ended in tenant.ended]


def test_runs_with_one_value_follow_one_another_in_the_order_of_the_log() -> None:
    tenant = Tenant(looks)
    for number in (2, 3, 4):
        tenant.event(looks, number)
    answered = []
    while tenant.started:
        assert len(tenant.started) == 1, "one at a time"
        answered.append(tenant.answer("ok").call.arguments["n"])
    assert answered == [2, 3, 4]
    assert tenant.lane.idle


def test_runs_with_another_value_go_on_beside_them() -> None:
    tenant = Tenant(looks)
    tenant.event(looks, 2)
    tenant.event(looks, 3)
    tenant.event(looks, 4, data=b"8")
    assert [call.call.arguments["n"] for call in tenant.started] == [2, 4]
    assert tenant.lane.waiting == 1


def test_what_stands_behind_a_sleeping_run_is_in_the_ledger_as_a_run_not_begun() -> None:
    tenant = Tenant(sleeps)
    tenant.event(sleeps, 2)
    behind = [tenant.event(sleeps, number) for number in (3, 4)]
    assert [tenant.memory.saved(key).begun_at_all for key in behind] == [False, False]
    assert [tenant.memory.saved(key).begun.turn for key in behind] == [1, 2]
    assert (tenant.capacity.in_flight, tenant.lane.waiting) == (0, 0)


def test_what_came_while_the_run_before_was_awake_goes_there_when_it_falls_asleep() -> None:
    @agent("both", on="t", order_by="data")
    async def both(run: Run, event: Event) -> str:
        await run.call(look, 1)
        await run.sleep(60)
        return event.id

    tenant = Tenant(both)
    tenant.event(both, 2)
    key = tenant.event(both, 3)
    assert tenant.lane.waiting == 1
    assert not tenant.begun
    tenant.answer("ok")
    assert not tenant.memory.saved(key).begun_at_all
    assert tenant.lane.waiting == 0


@pytest.mark.parametrize("crash_after", [None, 0, 1, 2])
def test_each_begins_when_the_one_before_it_has_ended_whenever_the_process_dies(
    crash_after: int | None,
) -> None:
    tenant = Tenant(sleeps)
    keys = [tenant.event(sleeps, number) for number in (4, 2, 3)]
    for n, key in enumerate(keys):
        if crash_after == n:
            tenant.begin_anew()
            tenant.resume()
        tenant.now += 60_000
        tenant.take(Due(key))
    assert ends(tenant) == [Completed("evt-4"), Completed("evt-2"), Completed("evt-3")]
    assert (tenant.memory.records, tenant.lane.idle) == ({}, True)


def test_one_that_is_parked_holds_those_behind_it_after_a_crash_too() -> None:
    @tool(effect="blind", on_unknown="park")
    async def send(call: Call) -> str: ...  # type: ignore[empty-body]

    @agent("sends", on="t", order_by="data")
    async def sends(run: Run, event: Event) -> str:
        return await run.call(send)

    tenant = Tenant(sends)
    first = tenant.event(sends, 2)
    tenant.event(sends, 3)
    tenant.answer(TimeoutError())
    tenant.begin_anew()
    tenant.resume()
    assert (tenant.started, tenant.ended) == ([], [])
    segments = tenant.memory.saved(first).segments
    tenant.take(Commanded(tenant.source, 9, 1, Command("fail", "acme", first.hex(), segments)))
    assert [type(end) for end in ends(tenant)] == [RunFailed]
    tenant.commit()
    assert len(tenant.started) == 1, "the next one goes on"


@pytest.mark.parametrize("asleep", [False, True])
def test_one_that_stands_behind_another_can_be_cancelled(asleep: bool) -> None:
    of = sleeps if asleep else looks
    tenant = Tenant(of)
    tenant.event(of, 2)
    second = tenant.event(of, 3)
    third = tenant.event(of, 4)
    tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", second.hex())))
    assert [(end.arrived.key, end.outcome.code) for end in tenant.ended] == [(second, "cancelled")]
    if asleep:
        tenant.now = NOW + 60_000
        tenant.take(Due(tenant.event_key(2)))
        tenant.now += 60_000
        tenant.take(Due(third))
    else:
        tenant.answer("ok")
        tenant.answer("ok")
    assert [type(end) for end in ends(tenant)] == [RunFailed, Completed, Completed]


@pytest.mark.parametrize("suspected", [False, True])
def test_one_that_undoes_after_a_cancel_has_its_turn_meanwhile(suspected: bool) -> None:
    @tool(effect="keyed")
    async def hold(call: Call) -> str: ...  # type: ignore[empty-body]

    @agent("holds", on="t", order_by="type")
    async def holds(run: Run, event: Event) -> str:
        if event.id != "evt-1":
            await run.sleep(60)
            return event.id
        await run.call(hold)
        raise Failed("broken")

    tenant = Tenant(holds)
    failed = tenant.event(holds)
    tenant.answer("h-1")
    letter = Redrive(failed, failed, "f.dead-letters/3/17", tenant.ended.pop().segments)
    hold.compensate(let_go)  # declared since
    first = tenant.event(holds, 2)
    again = tenant.event(holds, redrive=letter)
    last = tenant.event(holds, 3)
    if suspected:
        suspicion = Suspicion(suspects=[again])
        tenant.begin_anew(Watch(Names(memoryview(bytearray(NAMES_BYTES))), suspicion, lambda _: None))
        tenant.resume()
    tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", again.hex())))
    tenant.now += 60_000
    tenant.take(Due(first))
    assert ends(tenant) == [Completed("evt-2")]
    for now_s in (0.0, CONTROL_S):
        tenant.capacity.turns(now_s)
        tenant.take(Turn())
    assert tenant.answer(None).kind == "undo"
    assert ends(tenant)[1].code == "cancelled"
    tenant.now += 60_000
    tenant.take(Due(last))
    assert (ends(tenant)[2:], tenant.lane.idle) == ([Completed("evt-3")], True)


def test_one_that_is_cancelled_behind_another_and_waits_for_room_goes_on_once_when_its_turn_comes_too() -> (
    None
):
    @agent("rests", on="t", order_by="data")
    async def rests(run: Run, event: Event) -> str:
        await run.sleep(60)
        return await run.call(look, 2)

    tenant = Tenant(rests)
    tenant.capacity.runs_per_lane = 1
    first, second = tenant.event(rests, 2), tenant.event(rests, 3)
    tenant.now += 60_000
    tenant.take(Due(first))
    tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", second.hex())))
    assert ends(tenant) == [], "the first one has the room"
    tenant.answer("ok")
    assert ends(tenant)[0] == Completed("ok")
    assert [(end.arrived.key, end.outcome.code) for end in tenant.ended[1:]] == [(second, "cancelled")]
    assert tenant.lane.idle


def test_what_comes_after_a_cancel_behind_a_sleeping_run_holds_no_input() -> None:
    tenant = Tenant(sleeps)
    for number in (2, 3, 4):
        tenant.event(sleeps, number)
    tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", tenant.event_key(3).hex())))
    key = tenant.event(sleeps, 5)
    assert tenant.lane.waiting == 0
    assert not tenant.memory.saved(key).begun_at_all


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("awake", [False, True])
def test_a_redrive_behind_another_run_knows_what_its_failed_run_has_done(crash: bool, awake: bool) -> None:
    @tool(effect="blind")
    async def transfer(call: Call) -> str: ...  # type: ignore[empty-body]

    fails = [True]

    @agent("pays", on="t", order_by="source")
    async def pays(run: Run, event: Event) -> str:
        if event.id == "evt-2":
            if awake:
                await run.call(look, 2)
            await run.sleep(60)
            return "slept"
        done = await run.call(transfer)
        if fails:
            raise Failed("broken")
        return done

    tenant = Tenant(pays)
    failed = tenant.event(pays)
    tenant.answer("t-1")
    letter = Redrive(failed, failed, "f.dead-letters/3/17", tenant.ended.pop().segments)
    fails.clear()
    sleeper = tenant.event(pays, 2)
    again = tenant.event(pays, redrive=letter)
    if awake:
        tenant.answer("ok")
    assert tenant.memory.failed(failed) is None
    if crash:
        tenant.begin_anew()
        tenant.resume()
    assert not tenant.started, "it is not its turn"
    tenant.now += 60_000
    tenant.take(Due(sleeper))
    assert [(ended.arrived.key, ended.outcome) for ended in tenant.ended] == [
        (sleeper, Completed("slept")),
        (again, Completed("t-1")),
    ]
    assert tenant.memory.records == {}


def test_one_whose_failed_run_is_forgotten_is_refused_behind_a_sleeping_run_too() -> None:
    tenant = Tenant(sleeps)
    first = tenant.event(sleeps, 2)
    tenant.event(sleeps, redrive=Redrive(b"f" * 16, b"f" * 16, "f.dead-letters/3/17", 2))
    last = tenant.event(sleeps, 3)
    assert [end.code for end in ends(tenant)] == ["redrive-refused"]
    for key in (first, last):
        tenant.now += 60_000
        tenant.take(Due(key))
    assert ends(tenant)[1:] == [Completed("evt-2"), Completed("evt-3")]
