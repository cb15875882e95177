"""A flow for `benchmarks waits`: each run waits for a signal whose id is the event's."""

from onceflow import Event, Run, agent, dataflow


@agent("bench-waits", on="*")
async def waits(run: Run, event: Event) -> str:
    """Wait, and say how it ended."""
    found = await run.wait_for("bench.done", event.id)
    return str(found.status)


flow = dataflow("bench-waits", agents=[waits])
