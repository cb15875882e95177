"""Flow under test: sales that fail until the world is mended, and moves of accounts in their order. See `world`.

CRASH_TYPES: the types that sales take, by default all but moves. While `mended` is missing in CRASH_WORLD, sales fail.
"""

import os

from onceflow import Call, Event, Failed, Run, agent, dataflow, tool
from tests.crash import points
from tests.crash.load import TYPE
from tests.crash.world import WORLD, do


@tool(effect="keyed")
async def mail(call: Call, order: str) -> str:
    return do("mail", order, call.key)


@tool(effect="keyed")
async def charge(call: Call, order: str) -> str:
    return do("charge", order, call.key)


@charge.compensate
async def refund(call: Call, result: str | None) -> None:
    do("refund", call.arguments["order"], call.key)


@tool(effect="keyed")
async def move(call: Call, account: str, number: int) -> str:
    return do("move", f"{account}/{number}", call.key)


@tool(effect="read")
async def mended() -> bool:
    return (WORLD / "mended").exists()


@agent("sells", on=os.environ.get("CRASH_TYPES", TYPE).split(","))
async def sells(run: Run, event: Event) -> list[str]:
    """Mail, charge, and fail for as long as something is broken."""
    done = [await run.call(mail, event.id), await run.call(charge, event.id)]
    if not await run.call(mended):
        raise Failed("broken", "mend it first")
    return done


@agent("moves", on="account.moved", order_by="data.account")
async def moves(run: Run, event: Event) -> None:
    """Move twice, with a wait in between."""
    await run.call(move, event.data["account"], 2 * event.data["number"])
    await run.sleep(1.5)
    await run.call(move, event.data["account"], 2 * event.data["number"] + 1)


points.install_from_environment()
flow = dataflow(os.environ["CRASH_FLOW"], agents=[sells, moves])
