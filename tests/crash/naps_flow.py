"""Flow under test: runs that wait for a moment, and change nothing: they begin and end within one transaction."""

import os

from onceflow import Event, Run, agent, dataflow
from tests.crash.load import TYPE

MOMENT_S = 0.01


@agent("naps", on=TYPE)
async def naps(run: Run, event: Event) -> str:
    """Wait."""
    await run.sleep(MOMENT_S)
    return event.id


flow = dataflow(os.environ["CRASH_FLOW"], agents=[naps])
