"""Flow under test that may have a seeded bug: the data of an event is its completion's; some events call tools.

`"held":true`: the run waits in a call until the file CRASH_GATE is there. `"asks":true`: it first asks a tool, which
answers with the version of the agent (CRASH_VERSION); the completion's data is that answer.
"""

import os
from pathlib import Path

from msgspec import Raw

from onceflow import Event, Run, agent, dataflow, tool
from tests.crash import bugs
from tests.crash.load import TYPE
from tests.waiting import until

bugs.install_from_environment()

VERSION = int(os.environ["CRASH_VERSION"])
ASKS, HELD = b'"asks":true', b'"held":true'


@tool(effect="read")
async def ask() -> int:
    return VERSION


@tool(effect="read")
async def wait_for_gate() -> None:
    await until(Path(os.environ["CRASH_GATE"]).exists)


@agent("echo", on=TYPE, version=VERSION)
async def echo(run: Run, event: Event) -> Raw | dict[str, int] | None:
    told = await run.call(ask) if ASKS in bytes(event.raw) else None
    if HELD in bytes(event.raw):
        await run.call(wait_for_gate)
    return event.raw or None if told is None else {"told": told}


flow = dataflow(os.environ["CRASH_FLOW"], agents=[echo])
