"""Flow under test: one completion per first event, with the event's own data; an event that asks for it fails."""

import os

from msgspec import Raw

from onceflow import Event, Failed, Run, agent, dataflow
from tests.crash.load import FAILING, TYPE


@agent("echo", on=TYPE)
async def echo(run: Run, event: Event) -> Raw | None:
    """Pass the data on as it was sent."""
    if FAILING in bytes(event.raw):
        raise Failed("asked-to", "the event says so")
    return event.raw or None


flow = dataflow(os.environ["CRASH_FLOW"], agents=[echo])
