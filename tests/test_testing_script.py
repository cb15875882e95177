"""What a test gives the kit, and where: what does not fit is refused at once, with what to write instead."""

import asyncio
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from onceflow import Call, Event, Failed, GiveUp, RetryLater, Run, agent, tool
from onceflow.testing import Target, check_tool, crash_everywhere, event, run_agent, signal
from onceflow.testing.script import ScriptError

ORDER = event("order.placed", {"order": "A-1"})
bank = Target()


@tool(effect="keyed")
async def charge(call: Call, order: str) -> str:
    await asyncio.sleep(0)
    return str(bank.do("charge", order, call.key))


@agent("buy", on="order.placed")
async def buy(run: Run, event: Event) -> str:
    return await run.call(charge, order="A-1")


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("run_agent", lambda: run_agent(buy, ORDER, target=bank)),
        ("crash_everywhere", lambda: crash_everywhere(buy, ORDER, target=bank)),
        ("check_tool", lambda: check_tool(charge, bank, order="A-1")),
    ],
)
def test_an_async_test_is_told_to_be_a_plain_one_or_to_use_a_thread(
    name: str, use: Callable[[], Any]
) -> None:
    async def in_a_loop() -> None:
        use()

    message = (
        rf"{name} is called where an event loop runs: .* plain `def` test, .*asyncio\.to_thread\({name}, …\)"
    )
    with pytest.raises(ScriptError, match=message):
        asyncio.run(in_a_loop())
    asyncio.run(asyncio.to_thread(use))


# --- Results ---


async def answer(order: str) -> str:
    return "ch_1"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            lambda: "ch_1",
            r"called with the arguments of the call, and got an .* 'order': write `lambda order: …`",
        ),
        (lambda order, cents: "ch_1", r"and missing a required argument: 'cents': write `lambda order: …`"),
        (answer, r"the script of charge is async: write a plain function"),
        (Failed, r"an exception class that needs arguments \(.*'code'\): write Failed\(…\), with them"),
    ],
    ids=["too few parameters", "too many", "async", "a class that needs arguments"],
)
@pytest.mark.parametrize("as_list", [False, True], ids=["by itself", "in a list"])
def test_a_script_that_does_not_fit_does_not_look_like_the_tools_error(
    script: Any, message: str, as_list: bool
) -> None:
    with pytest.raises(ScriptError, match=message):
        run_agent(buy, ORDER, results={charge: [script] if as_list else script})


def test_an_exception_class_is_raised_as_it_is() -> None:
    assert "GiveUp" in run_agent(buy, ORDER, results={charge: GiveUp}).message
    assert (
        run_agent(buy, ORDER, results={charge: [RetryLater, lambda order: TimeoutError, "ch_1"]}).value
        == "ch_1"
    )


def test_a_built_in_function_may_be_a_script() -> None:
    assert run_agent(buy, ORDER, results={charge: dict}).message.startswith("TypeError: tool charge")


def test_a_list_that_a_crash_uses_up_is_to_be_a_value_or_a_function() -> None:
    @tool(effect="read")
    async def ask(question: str) -> str: ...  # type: ignore[empty-body]

    @agent("asks", on="order.placed")
    async def asks(run: Run, event: Event) -> str:
        first = await run.call(ask, question="first")
        return first + await run.call(ask, question="second")

    def crashed(script: Any) -> set[str]:
        return set(crash_everywhere(asks, ORDER, results={ask: script}).outcomes)

    assert run_agent(asks, ORDER, results={ask: ["a", "b"]}).value == "ab"
    message = (
        r"ask has no more results: after a crash, .* is called again: give it one value for all its calls"
    )
    with pytest.raises(ScriptError, match=message):
        crashed(["a", "b"])
    assert crashed("a") == crashed(lambda question: question[0]) == {"completed"}


# --- A forgotten await ---


async def at_once(run: Run) -> Any:
    run.call(charge, order="A-1")  # type: ignore[unused-coroutine]


async def kept(run: Run) -> Any:
    calls = [run.call(charge, order=order) for order in ("A-1", "A-2")]
    return len(calls)


async def waits_later(run: Run) -> Any:
    later = run.call(charge, order="A-1")
    await run.sleep(5)
    return await later


async def fails_before(run: Run) -> Any:
    later = run.call(charge, order="A-1")
    if await run.call(charge, order="A-2"):
        raise Failed("sold-out")
    return await later


@pytest.mark.parametrize("use", [run_agent, crash_everywhere])
@pytest.mark.parametrize("does", [at_once, kept])
def test_a_run_that_completes_without_a_call_that_it_never_awaited_is_an_error(use: Any, does: Any) -> None:
    @agent("forgets", on="order.placed")
    async def forgets(run: Run, event: Event) -> Any:
        return await does(run)

    with pytest.raises(
        AssertionError, match=r"(?s)never awaited: write `await run\.call\(…\)`.*■ the run ends"
    ):
        use(forgets, ORDER, results={charge: "ch_1"})


def test_one_that_awaits_it_later_or_fails_before_is_right() -> None:
    @agent("waits", on="order.placed")
    async def waits(run: Run, event: Event) -> Any:
        return await waits_later(run)

    @agent("fails", on="order.placed")
    async def fails(run: Run, event: Event) -> Any:
        return await fails_before(run)

    assert run_agent(waits, ORDER, results={charge: "ch_1"}).value == "ch_1"
    assert run_agent(fails, ORDER, results={charge: "ch_1"}).code == "sold-out"


def test_other_warnings_go_their_way() -> None:
    @tool(effect="read")
    async def old(order: str) -> str:
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        return order

    @agent("asks-old", on="order.placed")
    async def asks_old(run: Run, event: Event) -> str:
        return await run.call(old, order="A-1")

    with pytest.warns(DeprecationWarning, match="old"):
        assert run_agent(asks_old, ORDER).value == "A-1"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "DeprecationWarning" in run_agent(asks_old, ORDER).message


# --- Signals, flags, an event's time ---


@pytest.mark.parametrize("use", [run_agent, crash_everywhere])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"signals": signal("paid", "A-1")}, r"signals is Signal\(.*: write signals=\[signal\(…\), …\]"),
        ({"signals": ["paid"]}, r"signals is \['paid'\]: write signals=\["),
        ({"flags": ["check-at-once"]}, r"flags is \['check-at-once'\]: write flags=\{'name': True\}"),
        ({"flags": {"at-once": "yes"}}, r"the flag 'at-once' is 'yes': write True, False, or"),
        ({"flags": {"at-once": {"SE": 1}}}, r"the flag 'at-once' is \{'SE': 1\}: write True, False, or"),
        ({"target": "bank"}, r"target=… takes a onceflow\.testing\.Target"),
    ],
    ids=["one signal", "names", "flags", "a flag", "a flag by market", "a target"],
)
def test_what_is_no_list_of_signals_or_no_mapping_of_flags_is_refused(
    use: Any, given: Any, message: str
) -> None:
    with pytest.raises(ScriptError, match=message):
        use(buy, ORDER, results={charge: "ch_1"}, **given)


def test_an_event_may_have_a_time() -> None:
    @agent("reads-time", on="order.placed")
    async def reads_time(run: Run, event: Event) -> Any:
        return event.time

    time = datetime(2026, 8, 1, tzinfo=UTC)
    assert run_agent(reads_time, event("order.placed", time=time)).value == time
    for wrong in (datetime(2026, 8, 1), "2026-08-01"):  # noqa: DTZ001
        with pytest.raises(ScriptError, match="write a datetime with an offset"):
            event("order.placed", time=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attributes", "fault"),
    [
        ({"tenant": "a/b"}, '"tenant" must match'),
        ({"id": ""}, '"id" must be 1 to 512 bytes'),
        ({"source": "x\n"}, '"source" must hold no control characters'),
        ({"type": 7}, '"type" must be a string'),
    ],
)
def test_an_event_that_would_be_a_dead_letter_is_refused(attributes: Any, fault: str) -> None:
    with pytest.raises(ScriptError, match=f"no producer can send such an event: attribute {fault}"):
        event(**{"type": "order.placed", **attributes})
