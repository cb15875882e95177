"""Flow under test: runs that change the world outside, see `world`.

CRASH_GATE: a file; while it is missing, no ship answers.
"""

import os
import secrets
from pathlib import Path

from onceflow import Call, Event, Failed, OutcomeUnknown, Run, agent, dataflow, tool
from tests.crash import points
from tests.crash.load import FAILING, TYPE
from tests.crash.world import do
from tests.waiting import until

UNKNOWN = "unknown"
GATE = Path(os.environ.get("CRASH_GATE", "/"))


@tool(effect="read")
async def plan(order: str) -> str:
    """A model's answer: another one each time."""
    return secrets.token_hex(4)


@tool(effect="keyed")
async def reserve(call: Call, order: str, how: str) -> str:
    return do("reserve", order, call.key)


@reserve.compensate
async def release(call: Call, result: str | None) -> None:
    do("release", call.arguments["order"], call.key)


@tool(effect="keyed")
async def charge(call: Call, order: str, reserved: str) -> str:
    return do("charge", order, call.key)


@charge.compensate
async def refund(call: Call, result: str | None) -> None:
    do("refund", call.arguments["order"], call.key)


@tool(effect="blind", on_unknown="fail")
async def ship(call: Call, order: str) -> str:
    answer = do("ship", order)
    await until(GATE.exists)
    return answer


@agent("orders", on=TYPE)
async def orders(run: Run, event: Event) -> dict[str, str]:
    """Reserve by a plan, charge, and ship; some orders are refused after the charge."""
    how = await run.call(plan, order=event.key)
    reserved = await run.call(reserve, order=event.key, how=how)
    charged = await run.call(charge, order=event.key, reserved=reserved)
    if FAILING in bytes(event.raw):
        raise Failed("asked-to", "the event says so")
    try:
        shipped = await run.call(ship, order=event.key)
    except OutcomeUnknown:
        shipped = UNKNOWN
    return {"reserve": reserved, "charge": charged, "ship": shipped}


points.install_from_environment()
flow = dataflow(os.environ["CRASH_FLOW"], agents=[orders])
