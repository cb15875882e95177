"""What `crash_everywhere` refuses: agents that only seem to pass, and checks that check nothing."""

import asyncio
import gc
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from onceflow import Call, Event, Failed, RetryLater, RetryPolicy, Run, agent, tool
from onceflow.testing import Target, crash_everywhere, event
from onceflow.testing.script import ScriptError

ORDER = event("order.placed", {"order": "A-1"})
bank = Target()
flips = itertools.count()


@tool(effect="read")
async def look(order: str) -> str:
    return order


@tool(effect="keyed")
async def charge(call: Call, order: Any) -> str:
    return str(bank.do("charge", "A-1", call.key))


@tool(effect="keyed")
async def ship(call: Call, order: Any = "A-1") -> str:
    return str(bank.do("ship", "A-1", call.key))


@tool(effect="keyed")
async def change_its_list(call: Call, items: list[str]) -> str:
    items.append("changed")
    return str(bank.do("change", "A-1", call.key))


@tool(effect="blind")
async def post(call: Call) -> str: ...  # type: ignore[empty-body]


def agent_of(does: Callable[[Run], Awaitable[Any]]) -> Any:
    @agent("does", on="order.placed")
    async def agent_that_does(run: Run, event: Event) -> Any:
        return await does(run)

    return agent_that_does


# --- What a replay asks for ---


async def an_id(run: Run) -> str:
    await run.call(charge, order=str(uuid.uuid4()))
    return await run.call(ship)


async def the_time(run: Run) -> str:
    await run.call(charge, order=time.perf_counter())
    return await run.call(ship)


async def a_branch(run: Run) -> str:
    if next(flips) % 2:
        await run.call(charge, order="A-1")
    return await run.call(ship)


async def a_changed_argument(run: Run) -> str:
    items = ["A-1"]
    await run.call(change_its_list, items)
    return await run.call(ship, order=items)


@pytest.mark.parametrize("does", [an_id, the_time, a_branch, a_changed_argument])
def test_an_agent_whose_replay_asks_for_something_else_is_caught_with_the_remedy(
    does: Callable[[Run], Awaitable[Any]],
) -> None:
    message = r"(?s)A replay asked for something else: take time, .* from `run`.*the process dies.*■ the run is parked"
    with pytest.raises(AssertionError, match=message):
        crash_everywhere(agent_of(does), ORDER, target=bank)


def test_a_run_that_is_parked_though_nothing_has_happened_to_it_is_caught() -> None:
    async def does(run: Run) -> str:
        return await run.call(post)

    message = (
        r"(?s)parked though nothing has happened to it: post: it may or may not.*Scenario: nothing happens"
    )
    with pytest.raises(AssertionError, match=message):
        crash_everywhere(agent_of(does), ORDER, results={post: TimeoutError()})


# --- A check that checks nothing ---


class Order(msgspec.Struct):
    order: str


@agent("sends", on="order.placed")
async def sends(run: Run, event: Event) -> str:
    await run.call(look, order="A-1")
    return await run.call(charge, order=event.data["order"])


@agent("sends-typed", on="order.placed")
async def sends_typed(run: Run, event: Event[Order]) -> str:
    return await run.call(charge, order=event.data.order)


@pytest.mark.parametrize(
    ("sender", "cause"),
    [(sends, "agent-failed, KeyError: 'order'"), (sends_typed, "invalid-data, Object missing .*`order`")],
    ids=["any data", "typed data"],
)
def test_a_run_that_fails_before_it_changes_anything_is_refused_with_the_cause(
    sender: Any, cause: str
) -> None:
    message = rf"(?s)fails before it changes anything.*: {cause}.*Correct the event.*■ the run ends: failed"
    with pytest.raises(ScriptError, match=message):
        crash_everywhere(sender, event("order.placed", {"oder": "A-1"}), target=bank)
    assert crash_everywhere(sender, ORDER, target=bank).outcomes["completed"]


def test_a_run_that_is_meant_to_fail_before_it_changes_anything_is_not() -> None:
    async def does(run: Run) -> None:
        raise Failed("no-such-order")

    assert set(crash_everywhere(agent_of(does), ORDER).outcomes) == {"no-such-order"}


def test_a_run_that_awaits_what_no_agent_may_is_refused_though_it_is_undone() -> None:
    async def does(run: Run) -> None:
        await run.call(charge, order="A-1")
        await asyncio.sleep(0.1)  # sleeps: what the agent may not do

    with pytest.raises(
        ScriptError, match=r"the run fails, whatever happens to it: the agent awaited something"
    ):
        crash_everywhere(agent_of(does), ORDER, target=bank)


# --- What is not undone ---


def test_a_compensation_called_for_real_that_asks_the_target_for_nothing_is_caught() -> None:
    @tool(effect="keyed")
    async def pay(call: Call) -> str:
        return str(bank.do("pay", "A-1", call.key))

    @pay.compensate
    async def refund(call: Call, result: str | None) -> None: ...

    async def does(run: Run) -> None:
        await run.call(pay)
        raise Failed("sold-out")

    message = (
        r"(?s)the compensation of pay .* nothing is undone: have it ask the service.*undo pay\(\).*sold-out"
    )
    with pytest.raises(ScriptError, match=message):
        crash_everywhere(agent_of(does), ORDER, target=bank)
    assert set(crash_everywhere(agent_of(does), ORDER, results={pay: "p_1"}).outcomes) == {"sold-out"}


def test_a_compensation_that_looks_first_and_finds_nothing_to_undo_is_right() -> None:
    @tool(effect="keyed", retry=RetryPolicy(attempts=1), on_unknown="compensate")
    async def pay(call: Call) -> str:
        assert bank.find("pay", "A-1") is None
        raise ConnectionError("no route")

    @pay.compensate
    async def refund(call: Call, result: str | None) -> None:
        if bank.find("pay", "A-1") is not None:
            bank.do("refund", "A-1", call.key)

    async def does(run: Run) -> str:
        return await run.call(pay)

    assert set(crash_everywhere(agent_of(does), ORDER, target=bank).outcomes) == {"agent-failed", "parked"}


def test_a_compensation_that_raises_is_shown_as_what_parks_the_run() -> None:
    @tool(effect="keyed", retry=RetryPolicy(attempts=1))
    async def pay(call: Call) -> str:
        return str(bank.do("pay", "A-1", call.key))

    @pay.compensate
    async def refund(call: Call, result: str | None) -> None:
        raise ConnectionError("no route")

    async def does(run: Run) -> None:
        await run.call(pay)
        raise Failed("sold-out")

    with pytest.raises(AssertionError, match=r"nothing has happened to it: pay: .*no route"):
        crash_everywhere(agent_of(does), ORDER, target=bank)


# --- What is done more than once ---


@tool(effect="keyed", retry=RetryPolicy(attempts=3, first=0.1))
async def mail(call: Call, to: str, text: str) -> str:
    return str(bank.do("mail", to, call.key))


async def two_mails(run: Run) -> None:
    await run.call(mail, to="ann", text="welcome")
    await run.call(mail, to="ann", text="your invoice")


def test_an_agent_may_mean_to_do_a_thing_twice_for_one_subject() -> None:
    report = crash_everywhere(agent_of(two_mails), ORDER, target=bank)
    assert report.outcomes["completed"] == report.scenarios


def test_what_is_done_more_often_than_the_agent_means_is_caught() -> None:
    @tool(effect="keyed", retry=RetryPolicy(attempts=3, first=0.1))
    async def mail_without_a_key(call: Call, to: str, text: str) -> str:
        return str(bank.do("mail", to))

    async def does(run: Run) -> None:
        await run.call(mail_without_a_key, to="ann", text="welcome")
        await run.call(mail_without_a_key, to="ann", text="your invoice")

    message = r"(?s)mail was done 3 times for ann, and 2 times if nothing happens to the run.*→ 3\. mail ann"
    with pytest.raises(AssertionError, match=message):
        crash_everywhere(agent_of(does), ORDER, target=bank)


@tool(effect="read")
async def read_that_charges(call: Call) -> str:
    return str(bank.do("charge", "A-1", call.key))


@tool(effect="pure")
def pure_that_charges() -> str:
    return str(bank.do("charge", "A-1", "a key"))


async def by_a_read(run: Run) -> str:
    return await run.call(read_that_charges)


async def by_a_pure_tool(run: Run) -> str:
    return await run.call(pure_that_charges)


async def by_itself(run: Run) -> str:
    await run.call(look, order="A-1")
    return str(bank.do("charge", "A-1", run.id))


@pytest.mark.parametrize("does", [by_a_read, by_a_pure_tool, by_itself], ids=lambda does: does.__name__)
def test_what_is_done_with_a_key_but_not_by_a_tool_that_changes_something_is_caught(does: Any) -> None:
    message = r'(?s)charge was done for A-1 by the agent itself, or by a pure or read tool.*effect="keyed".*run ends'
    with pytest.raises(AssertionError, match=message):
        crash_everywhere(agent_of(does), ORDER, target=bank)


def test_a_tool_that_says_it_has_done_nothing_after_it_has_is_caught() -> None:
    @tool(effect="blind")
    async def post_twice(call: Call) -> None:
        bank.do("post", "A-1")
        raise RetryLater("something went wrong")

    async def does(run: Run) -> None:
        await run.call(post_twice)

    message = (
        "post_twice raises RetryLater, which says that this attempt changed nothing, though it has changed"
    )
    with pytest.raises(ScriptError, match=message):
        crash_everywhere(agent_of(does), ORDER, target=bank)


def test_an_agent_that_calls_a_tool_in_its_clean_up_is_right() -> None:
    """As in a cell it is not Python that gives it up when its process dies, and complains of the call."""

    async def does(run: Run) -> None:
        try:
            await run.call(charge, order="A-1")
        finally:
            await run.call(ship)

    report = crash_everywhere(agent_of(does), ORDER, target=bank)
    gc.collect()
    assert report.outcomes["completed"] == report.scenarios
