"""Flow under test: one call per run, whose begin and end are noted outside the process.

CRASH_NOTES: a file to which each call appends `<begin or end> <tenant> <process> <run> <ns>`, on a clock that all
processes of the machine share. CRASH_TAKES: seconds that a call takes.
"""

import asyncio
import os
import time

from onceflow import Call, Event, Run, agent, dataflow, tool
from tests.crash.load import TYPE


def note(what: str, call: Call) -> None:
    line = f"{what} {call.tenant} {os.getpid()} {call.run_id} {time.monotonic_ns()}\n"
    notes = os.open(os.environ["CRASH_NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(notes, line.encode())
    os.close(notes)


@tool(effect="keyed")
async def ask(call: Call) -> None:
    note("begin", call)
    try:
        await asyncio.sleep(float(os.environ["CRASH_TAKES"]))  # sleeps: so that calls are under way together
    finally:
        note("end", call)


@agent("asks", on=TYPE)
async def asks(run: Run, event: Event) -> None:
    """One call."""
    await run.call(ask)


flow = dataflow(os.environ["CRASH_FLOW"], agents=[asks])
