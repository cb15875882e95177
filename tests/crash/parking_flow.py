"""Flow under test: orders whose shipping is parked when nobody knows whether it happened. See `world`.

CRASH_GATE: a file; while it is missing, no ship answers.
"""

import os
from pathlib import Path

from onceflow import Call, CallFailed, Event, Run, agent, dataflow, tool
from tests.crash import points
from tests.crash.load import TYPE
from tests.crash.world import do
from tests.waiting import until

GATE = Path(os.environ["CRASH_GATE"])


@tool(effect="keyed")
async def reserve(call: Call, order: str) -> str:
    return do("reserve", order, call.key)


@reserve.compensate
async def release(call: Call, result: str | None) -> None:
    do("release", call.arguments["order"], call.key)


@tool(effect="blind")
async def ship(call: Call, order: str) -> str:
    answer = do("ship", order)
    await until(GATE.exists)
    return answer


@agent("parks", on=TYPE)
async def parks(run: Run, event: Event) -> dict[str, str]:
    """Reserve and ship."""
    await run.call(reserve, order=event.id)
    try:
        return {"ship": await run.call(ship, order=event.id)}
    except CallFailed:
        return {"ship": "not"}


points.install_from_environment()
flow = dataflow(os.environ["CRASH_FLOW"], agents=[parks])
