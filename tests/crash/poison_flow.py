"""Flow under test: what an event's data says kills the process, in one of several places. See `world`.

`{"kills": "at once"}` in the agent; `"never ends"` there too, as it computes for ever; `"in a call"` in a plain
function; `"after an effect"` in a call when an order has been charged; `"undone"` in the compensation of that as well.
Other events take a call of some 0.2 s, or for as long as the world has a file `closed`.
"""

import asyncio
import os
import signal

from onceflow import Call, Event, Run, agent, dataflow, tool
from onceflow.agents import poison
from onceflow.stream import standing
from tests.crash.load import TYPE
from tests.crash.world import WORLD, do
from tests.waiting import until

CALL_S = 0.2


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@tool(effect="read")
async def take_time() -> None:
    await asyncio.sleep(CALL_S)  # sleeps: so that calls are under way when the process dies
    await until(lambda: not (WORLD / "closed").exists())


@tool(effect="read")
def kill() -> None:
    if not (WORLD / "mended").exists():
        die()


@tool(effect="keyed")
async def charge(call: Call, order: str, kills: str) -> str:
    return do("charge", order, call.key)


@charge.compensate
async def refund(call: Call, result: str | None) -> None:
    if call.arguments["kills"] == "undone":
        kill.function()
    do("refund", call.arguments["order"], call.key)


@agent("sells", on=TYPE)
async def sells(run: Run, event: Event[dict[str, str]]) -> str:
    """Charge and take time; or die."""
    kills = event.data.get("kills", "")
    if kills == "at once":
        die()
    while kills == "never ends":
        pass
    await run.call(take_time)
    if kills == "in a call":
        await run.call(kill)
    charged = await run.call(charge, event.id, kills)
    if kills:
        await run.call(take_time)  # meanwhile it is on record that it was charged
        await run.call(kill)
    return charged


poison.CONTROL_S = standing.END_S = 1.0  # the tests count deaths, not seconds
flow = dataflow(os.environ["CRASH_FLOW"], agents=[sells])
