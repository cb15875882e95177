"""The public testing kit: it passes what is right, and catches what is not, with a message that shows it."""

import asyncio
import itertools
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from onceflow import (
    Call,
    Event,
    Failed,
    GiveUp,
    NotDone,
    OutcomeUnknown,
    RetryPolicy,
    Run,
    Signal,
    agent,
    tool,
)
from onceflow.agents.calls import Completed
from onceflow.agents.happenings import Arrived, Ended
from onceflow.config import Limits
from onceflow.stream.content import Grant, Input
from onceflow.stream.letters import Letters
from onceflow.stream.topics import RECORD_MAX_BYTES, Names
from onceflow.testing import Reply, Target, crash_everywhere, event, run_agent, signal
from onceflow.testing.script import ScriptError

FEW = RetryPolicy(attempts=3, first=0.1)
ORDER = event("order.placed", {"order": "A-1"})


@tool(effect="read", retry=FEW)
async def ask_model(order: str) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed", retry=FEW)
async def charge(call: Call, order: str, plan: str) -> str: ...  # type: ignore[empty-body]


@charge.compensate
async def refund(call: Call, result: str | None) -> None: ...


@tool(effect="keyed", retry=FEW)
async def ship(call: Call, order: str) -> str: ...  # type: ignore[empty-body]


@ship.compensate
async def recall(call: Call, result: str | None) -> None: ...


@tool(effect="blind", on_unknown="fail")
async def mail(call: Call, order: str) -> str: ...  # type: ignore[empty-body]


@agent("buy", on="order.placed")
async def buy(run: Run, event: Event) -> dict[str, str]:
    """Right: each effect by a tool that says so."""
    order = event.data["order"]
    plan = await run.call(ask_model, order=order)
    charged = await run.call(charge, order=order, plan=plan)
    shipped = await run.call(ship, order=order)
    try:
        mailed = await run.call(mail, order=order)
    except OutcomeUnknown:
        mailed = "perhaps"
    return {"charge": charged, "ship": shipped, "mail": mailed}


@agent("buy-and-fail", on="order.placed")
async def buy_and_fail(run: Run, event: Event) -> None:
    await run.call(charge, order="A-1", plan="p")
    await run.call(ship, order="A-1")
    raise Failed("sold-out")


def scripts() -> dict[Any, Any]:
    """A model that answers otherwise each time."""
    plans = itertools.count(1)
    return {ask_model: lambda order: f"plan {next(plans)}", charge: "ch_1", ship: "sh_1", mail: "m_1"}


# --- One run ---


def test_a_run_is_told_from_its_event_to_its_value() -> None:
    outcome = run_agent(buy, ORDER, results=scripts())
    assert outcome.value == {"charge": "ch_1", "ship": "sh_1", "mail": "m_1"}
    assert [(call.tool, call.attempt) for call in outcome.calls] == [
        ("ask_model", 1),
        ("charge", 1),
        ("ship", 1),
        ("mail", 1),
    ]
    assert [effect.operation for effect in outcome.effects] == ["charge", "ship", "mail"]
    assert "charge(order='A-1', plan='plan 1')" in outcome.timeline


def test_scripts_may_be_lists_with_exceptions_and_delays_move_the_clock() -> None:
    outcome = run_agent(
        buy, ORDER, results={**scripts(), ask_model: [TimeoutError(), "second"], charge: GiveUp("no card")}
    )
    assert (outcome.code, len(outcome.calls)) == ("agent-failed", 3)
    assert "CallFailed" in outcome.message


def test_a_run_that_fails_has_undone_what_stood() -> None:
    outcome = run_agent(buy_and_fail, ORDER, results=scripts())
    assert outcome.code == "sold-out"
    assert [effect.operation for effect in outcome.effects] == ["charge", "ship", "undo ship", "undo charge"]


def test_waits_end_by_signals_or_by_time_and_nothing_sleeps() -> None:
    @agent("waits", on="order.placed")
    async def waits(run: Run, event: Event) -> str:
        await run.sleep(timedelta(days=7))
        found = await run.wait_for("paid", "A-1", until="yes", timeout=60)
        return found.status if isinstance(found, Signal) else "never"

    given = [signal("paid", "A-1", "no", number=1), signal("paid", "A-1", "yes", number=2)]
    assert run_agent(waits, ORDER, signals=given).value == "yes"
    assert run_agent(waits, ORDER, signals=given[:1]).code == "expired"


def test_a_run_that_nobody_can_decide_is_parked() -> None:
    @tool(effect="blind")
    async def post(call: Call) -> str: ...  # type: ignore[empty-body]

    @agent("posts", on="order.placed")
    async def posts(run: Run, event: Event) -> str:
        return await run.call(post)

    assert "may or may not have happened" in run_agent(posts, ORDER, results={post: TimeoutError()}).parked


def test_tools_that_are_not_scripted_are_called_for_real() -> None:
    @tool(effect="read")
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        return 2 * n

    @agent("doubles", on="order.placed")
    async def doubles(run: Run, event: Event) -> int:
        return await run.call(double, n=21)

    assert run_agent(doubles, ORDER).value == 42


def test_an_agent_for_all_types_takes_any_event() -> None:
    @agent("takes-all", on="*")
    async def takes_all(run: Run, event: Event) -> str:
        return event.type

    assert run_agent(takes_all, event("whatever")).value == "whatever"


def test_an_event_that_the_agent_does_not_take_is_named_with_those_that_it_takes() -> None:
    with pytest.raises(ScriptError, match=r"no agent takes 'order\.lost'; buy takes order\.placed"):
        run_agent(buy, event("order.lost"))


def code_in_a_cell(value: Any) -> str:
    """The code of the failed completion that a cell writes of a run that returned this; "": it completed."""
    names = Names.of("flow")
    letters = Letters("flow", names, dict.fromkeys(names, RECORD_MAX_BYTES), Limits().value_bytes)
    source = Input("events", 0, Grant(0), topic_id="id")
    arrived = Arrived(source, 0, 0, b"", None, ORDER, buy, key=bytes(16))
    written, _ = letters.outcome(Ended(arrived, Completed(value)), 0)
    data = msgspec.json.decode(written)["data"]
    return str(data["code"]) if "code" in data else ""


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({"fine": 1}, ""),
        (object(), "agent-failed"),
        ({(1, 2): "no key of JSON"}, "agent-failed"),
        ("x" * 2_000_000, "too-large"),
        ("x" * Limits().value_bytes, "too-large"),
    ],
    ids=["JSON", "an object", "a key", "2 MB", "too large with its frame"],
)
def test_a_value_that_a_cell_cannot_write_fails_the_run_as_it_does_there(value: Any, code: str) -> None:
    @agent("returns", on="order.placed")
    async def returns(run: Run, event: Event) -> Any:
        await run.call(ship, order="A-1")
        return value

    assert run_agent(returns, ORDER, results=scripts()).code == code == code_in_a_cell(value)
    assert set(crash_everywhere(returns, ORDER, results=scripts()).outcomes) == {code or "completed"}


@pytest.mark.parametrize(
    "returned",
    [
        lambda event: event,
        lambda event: {"event": [event]},
        lambda event: (event.attributes["type"], event),
        lambda event: event.attributes,
    ],
    ids=["itself", "within another value", "after its attributes were read", "its attributes"],
)
def test_an_event_is_not_returned_as_a_whole(returned: Any) -> None:
    """It would publish how an event is held: another one's attributes, its bytes."""

    @agent("returns", on="order.placed")
    async def returns(run: Run, event: Event) -> Any:
        return returned(event)

    outcome = run_agent(returns, ORDER)
    assert outcome.code == "agent-failed"
    assert "return event.data" in outcome.message


def test_a_forgotten_await_fails_the_run() -> None:
    calls = []

    @agent("forgets", on="order.placed")
    async def forgets(run: Run, event: Event) -> Any:
        calls.append(run.call(ask_model, order="A-1"))
        return calls[0]

    outcome = run_agent(forgets, ORDER)
    assert outcome.code == "agent-failed"
    assert outcome.message == "what the agent returned has no JSON: TypeError: coroutine has no JSON form"
    calls[0].close()


@tool(effect="read")
async def find(order: str) -> list[int]: ...  # type: ignore[empty-body]


@agent("finds", on="order.placed")
async def finds(run: Run, event: Event) -> list[int]:
    return await run.call(find, order="A-1")


def test_one_result_that_is_a_list_is_written_as_a_list_of_it() -> None:
    assert run_agent(finds, ORDER, results={find: [[1, 2]]}).value == [1, 2]
    assert run_agent(finds, ORDER, results={find: [[]]}).value == []
    with pytest.raises(ScriptError, match=r"find has no more results.*is a list itself is written as \[\["):
        run_agent(finds, ORDER, results={find: []})


def not_decorated() -> None: ...


@pytest.mark.parametrize(
    ("given", "results", "message"),
    [
        ({"order": "A-1"}, {}, r"the event is a dict: make it with onceflow\.testing\.event\(…\)"),
        (ORDER, {"find": [[1]]}, r"results takes tools, not names: write \{find: …\}"),
        (ORDER, {not_decorated: 1}, r"decorate not_decorated with @tool\(effect=…\)"),
    ],
    ids=["a dict for the event", "a name for the tool", "a function for the tool"],
)
def test_a_script_that_does_not_fit_is_refused_with_the_remedy(
    given: Any, results: Any, message: str
) -> None:
    for run in (run_agent, crash_everywhere):
        with pytest.raises(ScriptError, match=message):
            run(finds, given, results=results)


# --- A crash at every step ---


def test_an_agent_that_is_right_passes_everywhere() -> None:
    report = crash_everywhere(buy, ORDER, results=scripts())
    assert report.scenarios > 100
    assert set(report.outcomes) <= {"completed", "agent-failed"}, report.outcomes


def test_so_does_one_that_fails_and_undoes() -> None:
    report = crash_everywhere(buy_and_fail, ORDER, results=scripts())
    assert set(report.outcomes) == {"sold-out"}


def test_and_one_that_finds_out_what_happened() -> None:
    @tool(effect="blind", on_unknown="reconcile")
    async def post(call: Call, order: str) -> str: ...  # type: ignore[empty-body]

    @post.reconcile
    async def look(call: Call) -> Any:
        return NotDone

    @agent("posts", on="order.placed")
    async def posts(run: Run, event: Event) -> str:
        return await run.call(post, order="A-1")

    report = crash_everywhere(posts, ORDER, results={post: "p_1"})
    assert report.outcomes["completed"] > 0


def test_a_refusal_that_comes_after_the_time_out_is_heard_by_nobody() -> None:
    report = crash_everywhere(
        buy, ORDER, results={**scripts(), charge: GiveUp("no card")}, replies=[Reply.OK, Reply.LATE]
    )
    assert set(report.outcomes) == {"agent-failed", "parked"}, "after a time-out nobody can know"


def test_an_effect_inside_a_read_tool_is_caught_and_shown() -> None:
    target = Target()

    @tool(effect="read")
    async def naive_charge(order: str) -> str:
        return str(target.do("charge", order))

    @agent("naive", on="order.placed")
    async def naive(run: Run, event: Event) -> str:
        return await run.call(naive_charge, order="A-1")

    with pytest.raises(AssertionError) as caught:
        crash_everywhere(naive, ORDER, target=target)
    text = str(caught.value)
    assert "charge was done 2 times for A-1" in text
    assert 'effect="keyed"' in text
    assert "the process dies" in text
    assert text.count("→ 1. charge A-1") == 1
    assert text.count("→ 2. charge A-1") == 1


def test_a_key_of_ones_own_making_is_caught() -> None:
    target, keys = Target(), itertools.count(1)

    @tool(effect="keyed", retry=FEW)
    async def own_key(call: Call, order: str) -> str:
        return str(target.do("charge", order, f"mine-{next(keys)}"))

    @agent("naive", on="order.placed")
    async def naive(run: Run, event: Event) -> str:
        return await run.call(own_key, order="A-1")

    with pytest.raises(AssertionError, match="charge was done 2 times"):
        crash_everywhere(naive, ORDER, target=target, replies=[Reply.LOST])


def test_a_tool_called_for_real_whose_effects_nobody_sees_is_refused() -> None:
    """Without a target, or with one that it does not reach, any number of charges would pass."""
    elsewhere, scripted = Target(), {ship: "sh_1"}

    @tool(effect="keyed", retry=FEW)
    async def keyless(call: Call, order: str) -> str:
        return str(elsewhere.do("charge", order))

    @agent("naive", on="order.placed")
    async def naive(run: Run, event: Event) -> list[str]:
        return [await run.call(ship, order="A-1"), await run.call(keyless, order="A-1")]

    refused = (
        r"keyless is called for real: pass the service that it calls as target=…, or its result in results"
    )
    for given in (None, Target()):
        with pytest.raises(ScriptError, match=refused):
            crash_everywhere(naive, ORDER, results=scripted, target=given)
    with pytest.raises(AssertionError, match="charge was done 2 times for A-1"):
        crash_everywhere(naive, ORDER, results=scripted, target=elsewhere)
    crash_everywhere(naive, ORDER, results={**scripted, keyless: "ch_1"})


def test_a_tool_called_for_real_need_not_reach_the_target_when_it_changes_nothing() -> None:
    @tool(effect="keyed", retry=FEW)
    async def charge_something(call: Call, cents: int) -> str:
        raise GiveUp("nothing to charge")

    @agent("free", on="order.placed")
    async def free(run: Run, event: Event) -> str:
        return await run.call(charge_something, cents=0)

    assert set(crash_everywhere(free, ORDER).outcomes) == {"agent-failed", "parked"}


def test_a_tool_that_is_only_called_after_a_fault_must_be_seen_too() -> None:
    @tool(effect="blind")
    async def apologize(call: Call) -> None: ...

    @agent("sorry", on="order.placed")
    async def sorry(run: Run, event: Event) -> None:
        try:
            await run.call(mail, order="A-1")
        except OutcomeUnknown:
            await run.call(apologize)

    with pytest.raises(ScriptError, match="apologize is called for real"):
        crash_everywhere(sorry, ORDER, results=scripts())
