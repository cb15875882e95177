"""Flow under test: accounts that are opened once a check outside has answered, with a pause before and after.

See `world`; a check that is refused undoes the request.
"""

import os

from onceflow import Call, Event, Failed, Run, agent, dataflow, tool
from tests.crash import points
from tests.crash.load import TYPE
from tests.crash.world import do

CHECKED, PAUSE_S = "check.finished", 0.05


@tool(effect="keyed")
async def request(call: Call, order: str) -> str:
    return do("request", order, call.key)


@request.compensate
async def withdraw(call: Call, result: str | None) -> None:
    do("withdraw", call.arguments["order"], call.key)


@tool(effect="keyed")
async def open_account(call: Call, order: str) -> str:
    return do("open", order, call.key)


@agent("accounts", on=TYPE)
async def accounts(run: Run, event: Event) -> dict[str, str]:
    """Ask for the check, wait for its answer, and open the account."""
    requested = await run.call(request, order=event.id)
    await run.sleep(PAUSE_S)
    checked = await run.wait_for(CHECKED, event.id, until=("passed", "refused"))
    if checked.status == "refused":
        raise Failed("asked-to", checked.data["why"])
    await run.sleep(PAUSE_S)
    return {"request": requested, "open": await run.call(open_account, order=event.id)}


points.install_from_environment()
flow = dataflow(os.environ["CRASH_FLOW"], agents=[accounts])
