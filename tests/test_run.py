"""A run: the state machine between an agent, its journal and the calls that it asks for."""

import asyncio
import uuid
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onceflow.agents.agent import Agent, agent
from onceflow.agents.call import FROM_RUN, Call, RetryPolicy
from onceflow.agents.calls import Asleep, Completed, Effect, Raised, Record, Returned, RunFailed, StartCall
from onceflow.agents.journal import Entry
from onceflow.agents.machine import Machine
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.errors import CallFailed, Failed, GiveUp, RetryLater
from onceflow.event import Event, Incoming

NOW = 1_800_000_000_000
EVENT = Event.of(Incoming("acme", "erp", "evt-1", "t", None, b"7"), "ab" * 16, 7)


class Price(msgspec.Struct):
    cents: int


@tool(effect="read", retry=RetryPolicy(attempts=3, first=1, factor=2, longest=60))
async def fetch(call: Call, name: str) -> str:
    raise AssertionError("nobody carries out calls here")


@tool(effect="read", retry=RetryPolicy(attempts=3, first=1))
async def quote(sku: str) -> Price:
    raise AssertionError("nobody carries out calls here")


@tool(effect="pure")
def double(number: int) -> int:
    return number * 2


@tool(effect="pure")
def divide(number: int, by: int) -> float:
    return number / by


@tool(effect="pure")
def leave() -> None:
    raise GeneratorExit


def agent_of(function: Callable[[Run, Event[Any]], Any]) -> Agent[Any, Any]:
    return agent("tested", on="t")(function)


def machine(function: Callable[[Run, Event[Any]], Any], journal: dict[str, Entry] | None = None) -> Machine:
    return Machine(agent_of(function), "token", journal or {})


def value(result: Any) -> bytes:
    return fetch.encode_result(result)


def calls(effects: list[Effect]) -> list[tuple[str, dict[str, Any]]]:
    """The calls among effects, as (place, arguments)."""
    return [(effect.place, effect.call.arguments) for effect in effects if isinstance(effect, StartCall)]


def finish(run: Machine, answers: dict[str, Any] | None = None) -> Completed | RunFailed:
    """Run to the end; each call returns what `answers` has for its place, or its place."""
    effects = run.begin(EVENT, NOW)
    while True:
        effect = effects.pop(0)
        if not isinstance(effect, StartCall):
            return effect
        result = (answers or {}).get(effect.place, effect.place)
        effects += run.answer(Returned(effect.place, effect.call.attempt, value(result)), NOW)


# --- Calls ---


def test_a_run_asks_for_its_calls_one_after_another_and_ends_with_what_its_agent_returns() -> None:
    async def two(run: Run, event: Event) -> list[Any]:
        return [event.data, await run.call(fetch, name="a"), await run.call(quote, "tea")]

    run = machine(two)
    assert calls(run.begin(EVENT, NOW)) == [("0", {"name": "a"})]
    assert calls(run.answer(Returned("0", 1, value("A")), NOW)) == [("1", {"sku": "tea"})]
    assert run.answer(Returned("1", 1, value(Price(5))), NOW) == [Completed([7, "A", Price(5)])]
    assert run.ended


def test_a_call_says_who_asks() -> None:
    async def one(run: Run, event: Event) -> str:
        return await run.call(fetch, name="a")

    (started,) = machine(one).begin(EVENT, NOW)
    assert isinstance(started, StartCall)
    call = started.call
    assert (call.tenant, call.run_id, call.attempt, started.delay_s) == ("acme", EVENT.key, 1, 0.0)


def test_calls_of_other_places_arguments_runs_and_tenants_have_other_keys() -> None:
    async def two(run: Run, event: Event) -> list[str]:
        return await run.gather(
            run.call(fetch, name="a"), run.call(fetch, name="a"), run.call(fetch, name="b")
        )

    def keys(tenant: str, key: str) -> list[str]:
        event = Event.of(Incoming(tenant, "erp", "1", "t", None, b""), key, None)
        return [effect.call.key for effect in machine(two).begin(event, NOW) if isinstance(effect, StartCall)]

    all_keys = keys("acme", "aa") + keys("acme", "bb") + keys("globex", "aa")
    assert len(set(all_keys)) == 9
    assert keys("acme", "aa") == all_keys[:3]


def test_pure_tools_run_at_once_and_what_they_raise_is_a_failed_call() -> None:
    async def pure(run: Run, event: Event) -> list[Any]:
        with pytest.raises(CallFailed, match=r"divide: ZeroDivisionError: division by zero"):
            await run.call(divide, 1, by=0)
        with pytest.raises(CallFailed, match=r"leave: GeneratorExit"):
            await run.call(leave)
        return [await run.call(double, 4)]

    run = machine(pure)
    assert run.begin(EVENT, NOW) == [Completed([8])]
    assert run.journal == {}


def test_a_function_that_is_no_tool_is_refused_with_the_remedy() -> None:
    async def look_up(name: str) -> str:
        return name

    async def forgot(run: Run, event: Event) -> Any:
        return await run.call(look_up, name="a")  # type: ignore[call-overload]

    (ended,) = machine(forgot).begin(EVENT, NOW)
    assert isinstance(ended, RunFailed)
    assert ended.message == "TypeError: run.call takes a tool: decorate look_up with @tool(effect=…)"


def test_the_run_fills_in_its_tenant_and_takes_it_from_nobody() -> None:
    @tool(effect="read", tenant_arg="tenant")
    async def find(text: str, tenant: str = FROM_RUN) -> str:
        return text

    async def right(run: Run, event: Event) -> str:
        return await run.call(find, text="a")

    async def wrong(run: Run, event: Event) -> str:
        return await run.call(find, text="a", tenant="globex")

    assert calls(machine(right).begin(EVENT, NOW)) == [("0", {"text": "a", "tenant": "acme"})]
    (ended,) = machine(wrong).begin(EVENT, NOW)
    assert isinstance(ended, RunFailed)
    assert "leave 'tenant' out of the call" in ended.message


@pytest.mark.parametrize("given", [10**30, {"a": 1, 2: "b"}, Decimal("1.5"), {1, 2}, object])
def test_any_argument_may_be_passed(given: Any) -> None:
    """Integers beyond 64 bits, which events keep exactly, and whatever has no order or no encoding."""

    @tool(effect="read")
    async def take(it: Any) -> str:
        return str(it)

    async def passes(run: Run, event: Event) -> str:
        return await run.call(take, it=given)

    assert calls(machine(passes).begin(EVENT, NOW)) == [("0", {"it": given})]


# --- Failed attempts ---


async def asks_once(run: Run, event: Event) -> str:
    return await run.call(fetch, name="a")


def test_a_failed_attempt_is_retried_with_growing_delays_until_none_is_left() -> None:
    run = machine(asks_once)
    run.begin(EVENT, NOW)
    for attempt, longest_s in ((1, 1.0), (2, 2.0)):
        (again,) = run.answer(Raised("0", attempt, OSError("away")), NOW)
        assert isinstance(again, StartCall)
        assert (again.call.attempt, again.call.key) == (attempt + 1, again.call.key)
        assert 0 <= again.delay_s <= longest_s
    (ended,) = run.answer(Raised("0", 3, OSError("away")), NOW)
    assert isinstance(ended, RunFailed)
    assert (ended.code, ended.message) == (
        "agent-failed",
        "CallFailed: fetch: OSError: away (attempt 3, the last)",
    )
    assert "asks_once" in ended.detail


def test_retry_later_says_how_long_to_wait_at_least() -> None:
    run = machine(asks_once)
    run.begin(EVENT, NOW)
    (again,) = run.answer(Raised("0", 1, RetryLater(after=timedelta(seconds=8))), NOW)
    assert isinstance(again, StartCall)
    assert again.delay_s == 8


def test_later_than_ten_seconds_is_a_wait_in_the_ledger() -> None:
    run = machine(asks_once)
    run.begin(EVENT, NOW)
    written, asleep = run.answer(Raised("0", 1, RetryLater(after=timedelta(minutes=5))), NOW)
    assert isinstance(written, Record)
    assert isinstance(asleep, Asleep)
    assert asleep.due_ms == NOW + 300_000
    later = machine(asks_once)
    later.journal, later.segments = dict(written.entries), 1
    assert isinstance(later.begin(EVENT, NOW + 299_999)[-1], Asleep)
    later = machine(asks_once)
    later.journal, later.segments = dict(written.entries), 1
    (again,) = later.begin(EVENT, NOW + 300_000)
    assert isinstance(again, StartCall)
    assert (again.call.attempt, again.delay_s) == (2, 0)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (GiveUp("no such order"), "agent-failed", "CallFailed: fetch: GiveUp: no such order"),
        (Failed("no-order", "none such"), "no-order", "none such"),
    ],
)
def test_give_up_and_failed_end_a_call_at_once(error: Exception, code: str, message: str) -> None:
    run = machine(asks_once)
    run.begin(EVENT, NOW)
    (ended,) = run.answer(Raised("0", 1, error), NOW)
    assert isinstance(ended, RunFailed)
    assert (ended.code, ended.message) == (code, message)


def test_an_agent_may_catch_a_failed_call_and_go_on() -> None:
    async def catches(run: Run, event: Event) -> str:
        try:
            return await run.call(fetch, name="a")
        except CallFailed:
            return await run.call(fetch, name="b")

    run = machine(catches)
    run.begin(EVENT, NOW)
    assert calls(run.answer(Raised("0", 1, GiveUp()), NOW)) == [("1", {"name": "b"})]
    assert run.answer(Returned("1", 1, value("B")), NOW) == [Completed("B")]


def test_an_answer_that_nobody_waits_for_changes_nothing() -> None:
    run = machine(asks_once)
    run.begin(EVENT, NOW)
    run.answer(Raised("0", 1, OSError()), NOW)
    assert run.answer(Returned("0", 1, value("late")), NOW) == []  # of the attempt before
    assert run.answer(Returned("9", 1, value("never asked")), NOW) == []
    assert run.answer(Returned("0", 2, value("A")), NOW) == [Completed("A")]
    assert run.answer(Returned("0", 2, value("again")), NOW) == []


def test_a_result_that_does_not_fit_the_annotation_fails_the_run_and_not_the_cell() -> None:
    async def one(run: Run, event: Event) -> Any:
        return await run.call(quote, sku="a")

    run = machine(one)
    run.begin(EVENT, NOW)
    (ended,) = run.answer(Returned("0", 1, value("no price")), NOW)
    assert isinstance(ended, RunFailed)
    assert "its result is not the Price of its annotation" in ended.message


# --- Replay ---


async def nested(run: Run, event: Event) -> list[Any]:
    first = await run.call(fetch, name="first")
    inner = await run.gather(run.call(fetch, name="x"), branch(run), run.call(fetch, name="z"))
    return [first, *inner, run.now().isoformat(), run.uuid().hex, run.random().random()]


async def branch(run: Run) -> list[Any]:
    return [
        await run.call(fetch, name="y1"),
        run.uuid().hex,
        await run.call(fetch, name="y2"),
        run.now().isoformat(),
    ]


def test_a_replay_skips_what_its_journal_has_and_sees_the_same_time_numbers_and_ids() -> None:
    """From every prefix of the journal: no finished call is asked for again, and the result is the same."""
    whole = machine(nested)
    result = finish(whole)
    assert isinstance(result, Completed)
    assert next(iter(whole.journal.items()))[1].tool == "fetch"
    entries = list(whole.journal.items())
    for kept in range(len(entries) + 1):
        replay = machine(nested, dict(entries[:kept]))
        asked = calls(replay.begin(EVENT, NOW))
        assert not {place for place, _ in asked} & {place for place, _ in entries[:kept]}
        assert finish(machine(nested, dict(entries[:kept]))) == result


@given(st.randoms())
def test_the_order_of_answers_changes_neither_places_nor_results(random: Any) -> None:
    run = machine(nested)
    waiting = [effect for effect in run.begin(EVENT, NOW) if isinstance(effect, StartCall)]
    while not run.ended:
        started = waiting.pop(random.randrange(len(waiting)))
        effects = run.answer(Returned(started.place, 1, value(started.place)), NOW)
        waiting += [effect for effect in effects if isinstance(effect, StartCall)]
    assert effects == [finish(machine(nested))]


def test_a_journal_entry_of_another_call_is_left_aside() -> None:
    """Made by another version of the tool, another tool or with other arguments: the call is made anew."""
    whole = machine(asks_once)
    finish(whole)
    entry = whole.journal["0"]
    for changed in (
        msgspec.structs.replace(entry, version=2),
        msgspec.structs.replace(entry, tool="other"),
        msgspec.structs.replace(entry, arguments=b"other"),
    ):
        assert calls(machine(asks_once, {"0": changed}).begin(EVENT, NOW)) == [("0", {"name": "a"})]
    assert machine(asks_once, {"0": entry}).begin(EVENT, NOW) == [Completed("0")]


def test_a_failed_call_fails_again_in_a_replay_without_being_made() -> None:
    run = machine(asks_once)
    run.begin(EVENT, NOW)
    ended = run.answer(Raised("0", 1, Failed("no-order", "none such")), NOW)
    (again,) = machine(asks_once, run.journal).begin(EVENT, NOW)
    assert isinstance(again, RunFailed)
    assert isinstance(ended[0], RunFailed)
    assert (again.code, again.message) == (ended[0].code, ended[0].message)


def test_time_goes_on_within_a_run_and_is_kept_per_call() -> None:
    async def twice(run: Run, event: Event) -> list[int]:
        before = run.now()
        await run.call(fetch, name="a")
        return [round(each.timestamp() * 1000) for each in (before, run.now())]

    run = machine(twice)
    run.begin(EVENT, NOW)
    assert run.answer(Returned("1", 1, value("A")), NOW + 250) == [Completed([NOW, NOW + 250])]
    assert machine(twice, run.journal).begin(EVENT, NOW + 9_000) == [Completed([NOW, NOW + 250])]


def test_random_numbers_and_ids_differ_by_place_and_run() -> None:
    async def draws(run: Run, event: Event) -> list[Any]:
        return [run.random().random(), run.random().random(), run.uuid(), run.uuid()]

    other = Event.of(Incoming("acme", "erp", "2", "t", None, b""), "cd" * 16, None)
    drawn = [effect.value for event in (EVENT, other) for effect in machine(draws).begin(event, NOW)]  # type: ignore[union-attr]
    assert len({*drawn[0], *drawn[1]}) == 8
    assert isinstance(drawn[0][2], uuid.UUID)


# --- What an agent must not do ---


async def sleeps(run: Run, event: Event) -> None:
    await asyncio.sleep(1)  # sleeps: never, it is refused


async def yields(run: Run, event: Event) -> None:
    await asyncio.sleep(0)  # sleeps: no time, and it is refused


async def gathers(run: Run, event: Event) -> None:
    await run.gather(run.call(fetch, name="a"), asyncio.sleep(0))  # sleeps: no time, and it is refused


async def raises_while_closed(run: Run, event: Event) -> None:
    try:
        await asyncio.sleep(0)  # sleeps: no time, and it is refused
    finally:
        raise ValueError("while being closed")


@pytest.mark.parametrize("function", [sleeps, yields, gathers, raises_while_closed])
def test_awaiting_anything_else_fails_the_run_with_the_remedy(function: Any) -> None:
    run = machine(function)
    effects = run.begin(EVENT, NOW)
    if isinstance(effects[0], StartCall):
        effects = run.answer(Returned(effects[0].place, 1, value("A")), NOW)
    (ended,) = effects
    assert isinstance(ended, RunFailed)
    assert ended.code == "agent-failed"
    assert "put other I/O into a tool" in ended.message


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (Failed("too-old", "from 1970"), "too-old", "from 1970"),
        (KeyError("total"), "agent-failed", "KeyError: 'total'"),
        (StopIteration(), "agent-failed", "RuntimeError: coroutine raised StopIteration"),
        (SystemExit(3), "agent-failed", "SystemExit: 3"),
        (asyncio.CancelledError(), "agent-failed", "CancelledError: "),
        (GeneratorExit(), "agent-failed", "GeneratorExit: "),
    ],
)
def test_whatever_an_agent_raises_fails_its_own_run_alone(
    error: BaseException, code: str, message: str
) -> None:
    async def raises(run: Run, event: Event) -> None:
        raise error

    async def gathers(run: Run, event: Event) -> None:
        await run.gather(raises(run, event))

    for function in (raises, gathers):
        (ended,) = machine(function).begin(EVENT, NOW)
        assert isinstance(ended, RunFailed)
        assert (ended.code, ended.message) == (code, message)


def test_a_flag_is_as_it_was_when_the_run_first_asked() -> None:
    async def asks(run: Run, event: Event) -> list[bool]:
        return [run.flag("at-once", "DE"), run.flag("at-once")]

    first = machine(asks)
    first.flags = lambda name, market: (name, market) == ("at-once", "DE")
    assert first.begin(EVENT, NOW) == [Completed([True, False])]
    replay = machine(asks)
    replay.journal = first.journal
    assert replay.begin(EVENT, NOW) == [Completed([True, False])]


def test_an_abandoned_run_cleans_up_and_takes_no_more_answers() -> None:
    cleaned = []

    async def cleans(run: Run, event: Event) -> None:
        try:
            await run.call(fetch, name="a")
        finally:
            cleaned.append(True)
            raise ValueError("in a clean-up")

    run = machine(cleans)
    run.begin(EVENT, NOW)
    run.close()
    assert cleaned == [True]
    assert run.answer(Returned("0", 1, value("A")), NOW) == []
