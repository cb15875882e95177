"""What an agent's code gets wrong: its run fails, and says what to write instead."""

import asyncio
import gc
import warnings
from typing import Any

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


def begun(function: Any) -> Any:
    """How the run of an agent goes that could be tried again, as far as it comes by itself."""
    tried = agent("tested", on="t", retry=RetryPolicy())(function)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a run.call that is not awaited
        effects = Machine(tried, "token").begin(EVENT, NOW)
        gc.collect()
    return effects


def complaint(function: Any) -> str:
    """How the run of a wrong agent fails, for good."""
    (ended,) = begun(function)
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
        assert "tool ask: called directly it is not on record" in complaint(wrong)
        assert "call it with run.call(ask, …)" in complaint(wrong)
    assert begun(right) == [Completed(8)]
    assert asyncio.run(ask("why?")) == "why?"
