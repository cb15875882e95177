"""What a test gives the kit, and where: what does not fit is refused at once, with what to write instead."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from onceflow import Call, Event, Run, agent, tool
from onceflow.testing import Target, check_tool, crash_everywhere, event, run_agent
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
