"""Flow under test: one completion per first event, with the event's own data; an event that asks for it fails.

CRASH_CALLS: if set, the data of one event in four goes through two `read` calls first, which take up to 0.3 s each.
"""

import asyncio
import os

from msgspec import Raw

from onceflow import Call, Event, Failed, Run, agent, dataflow, tool
from tests.crash import points
from tests.crash.load import FAILING, TYPE

CALLS = bool(os.environ.get("CRASH_CALLS"))
CALL_S = 0.3


@tool(effect="read")
async def pass_on(call: Call, text: str) -> str:
    """Return the text, after a time that depends on the run alone."""
    duration_s = CALL_S * int(call.run_id[:2], 16) / 256
    await asyncio.sleep(duration_s)  # sleeps: so that calls are under way when the process dies
    return text


@agent("echo", on=TYPE)
async def echo(run: Run, event: Event) -> Raw | None:
    """Pass the data on as it was sent."""
    if FAILING in bytes(event.raw):
        raise Failed("asked-to", "the event says so")
    if CALLS and bytes(event.raw).startswith(b"["):
        text = await run.call(pass_on, text=bytes(event.raw).decode())
        return Raw((await run.call(pass_on, text=text)).encode())
    return event.raw or None


points.install_from_environment()
flow = dataflow(os.environ["CRASH_FLOW"], agents=[echo])
