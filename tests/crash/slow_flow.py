"""Flow under test: the runs of tenant own-a wait for a gate, those of others end at once.

CRASH_GATE: a file; while it is missing, no run of own-a ends.
"""

import os
from datetime import timedelta
from pathlib import Path

from onceflow import Event, Run, agent, dataflow, tool
from tests.crash.load import TYPE
from tests.waiting import until

GATE = Path(os.environ["CRASH_GATE"])


@tool(effect="read", timeout=timedelta(minutes=10))
async def ask() -> None:
    await until(GATE.exists)


@agent("asks", on=TYPE)
async def asks(run: Run, event: Event) -> None:
    """Ask, for one tenant."""
    if event.tenant == "own-a":
        await run.call(ask)


flow = dataflow(os.environ["CRASH_FLOW"], agents=[asks])
