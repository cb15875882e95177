"""What an agent's code gets wrong: its run fails, and says what to write instead."""

import asyncio
import gc
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from onceflow.agents.agent import agent
from onceflow.agents.call import RetryPolicy
from onceflow.agents.calls import Completed, RunFailed
from onceflow.agents.machine import Machine
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.event import Event, Incoming

NOW = 1_800_000_000_000
EVENT = Event.of(Incoming("acme", "erp", "evt-1", "t", None, b"7"), "ab" * 16, 7)


@tool(effect="read")
async def fetch(name: str) -> str:
    raise AssertionError("nobody carries out calls here")


@tool(effect="pure")
def double(number: int) -> int:
    return number * 2


@tool(effect="read")
async def take(it: Any) -> str:
    raise AssertionError("nobody carries out calls here")


def print_later() -> None: ...


def begun(function: Any, retry: RetryPolicy | None = None) -> Any:
    """How the run of an agent goes, as far as it comes by itself."""
    tried = agent("tested", on="t", retry=retry)(function)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a run.call that is not awaited
        effects = Machine(tried, "token").begin(EVENT, NOW)
        gc.collect()
    return effects


def complaint(function: Any, retry: RetryPolicy | None = None) -> str:
    """How the run of a wrong agent fails."""
    (ended,) = begun(function, retry)
    assert isinstance(ended, RunFailed)
    assert ended.code == "agent-failed"
    return ended.message


def test_an_agent_that_calls_a_read_tool_directly_fails_with_the_remedy() -> None:
    """It would not be on record, and asked again in each replay. A tool may call another one, an agent a pure one."""

    @tool(effect="read")
    async def ask(question: str) -> str:
        return question

    @tool(effect="pure")
    def words(question: str) -> int:
        return len(asks_another(question).split())

    @tool(effect="read")
    def asks_another(question: str) -> str:
        return question

    async def directly(run: Run, event: Event) -> str:
        return await ask("why?")

    async def among_others(run: Run, event: Event) -> Any:
        return await run.gather(run.call(fetch, name="a"), ask("why?"))

    async def right(run: Run, event: Event) -> int:
        return double(await run.call(words, "why is it so?"))

    for wrong in (directly, among_others):
        said = complaint(wrong, RetryPolicy())  # and is not tried again
        assert "tool ask: called directly it is not on record" in said
        assert "call it with run.call(ask, …)" in said
    assert begun(right) == [Completed(8)]
    assert asyncio.run(ask("why?")) == "why?"


class Opaque: ...


@dataclass
class Holder:
    held: Any


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (Opaque, "Opaque"),
        (lambda: [{"a": Opaque()}], "list"),
        (lambda: Holder(Opaque()), "Holder"),
        (lambda: [10**30, Opaque()], "list"),
        (lambda: print_later, "function"),
        (lambda: lambda: 1, "function"),
        (threading.Lock, "lock"),
    ],
)
def test_an_argument_that_looks_different_in_each_process_is_refused(made: Any, name: str) -> None:
    async def passes(run: Run, event: Event) -> Any:
        return await run.call(take, it=made())

    said = complaint(passes)
    assert said.startswith(f"TypeError: tool take: its argument it, a {name}, has no stable form")
    assert "Pass what the tool needs of it, as texts, numbers" in said


def test_so_is_the_run_itself() -> None:
    async def passes(run: Run, event: Event) -> Any:
        return await run.call(take, it=run)

    assert "its argument it, a Run, has no stable form" in complaint(passes)


@pytest.mark.parametrize(
    "given", ["<a at 0x1f>", ["<a at 0x1f>", 10**30], {"<a at 0x1f>": {1}}, EVENT, Opaque]
)
def test_a_text_about_an_address_is_a_text(given: Any) -> None:
    async def passes(run: Run, event: Event) -> Any:
        return await run.call(take, it=given)

    (started,) = begun(passes)
    assert started.call.arguments == {"it": given}


def test_a_gather_of_asyncio_is_told_where_a_thread_has_no_loop_and_not_tried_again() -> None:
    """As in a cell, whose runs go on in a thread of Bytewax's."""

    async def gathers(run: Run, event: Event) -> Any:
        return await asyncio.gather(run.call(fetch, name="a"), run.call(fetch, name="b"))

    with ThreadPoolExecutor(1) as thread:
        said = thread.submit(complaint, gathers, RetryPolicy()).result()
    assert "await only run.call, run.gather and the run's waits" in said


async def other_steps(run: Run, event: Event) -> Any: ...


other = agent("other", on="u")(other_steps)


@pytest.mark.parametrize(
    ("called", "remedy"),
    [
        (lambda run: run.call(other), "other is an agent: `await` an async function that takes the run"),
        (
            lambda run: run.call(double(1)),
            "write run.call(charge, 1) for a tool charge, not run.call(charge(1))",
        ),
        (lambda run: run.call(other_steps), "decorate other_steps with @tool(effect=…)"),
        (lambda run: run.gather([run.call(fetch, name="a")]), "write run.gather(*calls)"),
        (lambda run: run.gather(run.call(fetch, name=n) for n in "ab"), "write run.gather(*calls)"),
        (lambda run: run.gather(fetch, fetch), "write run.call(fetch, …) instead of fetch"),
        (lambda run: run.gather(run.call(fetch, name="a"), 5), "run.gather takes calls, as run.call(…)"),
        (lambda run: run.gather(*[run.call(fetch, name="a")] * 2), "make each with a run.call(…) of its own"),
        (lambda run: run.wait_for("paid", "A-1", poll=other_steps), "poll=<function other_steps"),
        (
            lambda run: run.wait_for("paid", "A-1", timeout=60, on_timeout="fetch"),
            "on_timeout='fetch'; write a tool",
        ),
        (lambda run: run.wait_for("paid", ""), "id=''; a signal has both and would never end this wait"),
    ],
)
def test_what_a_run_cannot_call_is_told_with_what_to_write(called: Any, remedy: str) -> None:
    async def calls(run: Run, event: Event) -> Any:
        return await called(run)

    assert remedy in complaint(calls)
