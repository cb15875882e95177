"""Runs whose agent has changed under its version: they wait for a person, and end when they are cancelled."""

from typing import Any

import msgspec
import pytest

from onceflow.agents.agent import Agent, agent
from onceflow.agents.call import Call
from onceflow.agents.commands import Command
from onceflow.agents.happenings import Commanded
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.event import Event
from tests.tenant import KEY, Tenant


class Order(msgspec.Struct):
    """What the agent takes since."""

    item: str
    count: int


@tool(effect="keyed")
async def mail(call: Call) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed")
async def hold(call: Call) -> str: ...  # type: ignore[empty-body]


@hold.compensate
async def release(call: Call, result: str | None) -> None: ...


@tool(effect="keyed")
async def other(call: Call) -> str: ...  # type: ignore[empty-body]


@agent("sells", on="t")
async def mails(run: Run, event: Event) -> str:
    sent = await run.call(mail)
    await run.sleep(60)
    return sent


@agent("sells", on="t")
async def holds(run: Run, event: Event) -> str:
    held = await run.call(hold)
    await run.call(mail)
    await run.sleep(60)
    return held


@agent("sells", on="t")
async def holds_and_then_another(run: Run, event: Event) -> str:
    await run.call(hold)
    return await run.call(other)


@agent("sells", on="t")
async def another(run: Run, event: Event) -> str:
    return await run.call(other)


@agent("sells", on="t")
async def takes_orders(run: Run, event: Event[Order]) -> None: ...


def changed(was: Agent[Any, Any], now: Agent[Any, Any]) -> Tenant:
    """A run of this agent sleeps, with all its calls made, when the agent becomes another one."""
    tenant = Tenant(was)
    tenant.event(was, data=b'{"item":"pen"}')
    while not tenant.asleep:
        tenant.answer("done")
    become(tenant, now)
    return tenant


def become(tenant: Tenant, now: Agent[Any, Any]) -> None:
    tenant.memory.agents["sells"] = now
    tenant.begin_anew()
    tenant.resume()


def say(tenant: Tenant, action: Any) -> None:
    segments = tenant.memory.saved(KEY).segments
    tenant.take(Commanded(tenant.source, 9, 1, Command(action, "acme", KEY.hex(), segments)))


def test_a_run_whose_event_its_agent_does_not_take_any_more_is_parked_and_goes_on_when_it_does() -> None:
    tenant = changed(holds, takes_orders)
    (parked,) = tenant.parked
    assert parked.reason == "nondeterministic"
    assert "not what agent sells version 1 takes any more" in parked.message
    become(tenant, holds)
    assert tenant.ended == []
    say(tenant, "again")
    assert tenant.asleep
    say(tenant, "cancel")
    assert tenant.answer(None).kind == "undo"
    assert tenant.outcome.code == "cancelled"


@pytest.mark.parametrize(("was", "ends"), [(mails, True), (holds, False)])
def test_such_a_run_can_be_cancelled_unless_something_is_to_be_undone(
    was: Agent[Any, Any], ends: bool
) -> None:
    tenant = changed(was, takes_orders)
    say(tenant, "cancel")
    assert [ended.outcome.code for ended in tenant.ended] == ["cancelled"] * ends  # type: ignore[union-attr]
    assert len(tenant.parked) == (1 if ends else 2)


@pytest.mark.parametrize(("was", "now"), [(mails, another), (holds, holds_and_then_another)])
def test_a_run_whose_replay_differs_can_be_cancelled_and_undoes_what_it_comes_to(
    was: Agent[Any, Any], now: Agent[Any, Any]
) -> None:
    tenant = changed(was, now)
    assert [parked.reason for parked in tenant.parked] == ["nondeterministic"]
    say(tenant, "cancel")
    if was is holds:
        undo = tenant.answer(None)
        assert (undo.kind, undo.tool.name) == ("undo", "hold")
    assert tenant.outcome.code == "cancelled"
    assert len(tenant.parked) == 1


def test_it_is_parked_again_if_it_does_not_come_to_what_is_to_be_undone() -> None:
    tenant = changed(holds, another)
    say(tenant, "cancel")
    assert (tenant.ended, tenant.parked[-1].message) == (
        [],
        "replay did not come to call 0 of hold, which is on record",
    )
    become(tenant, holds)
    say(tenant, "again")
    assert tenant.answer(None).kind == "undo"
    assert tenant.outcome.code == "cancelled"
