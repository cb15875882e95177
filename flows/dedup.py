"""Every first event, once: one completion per event, `dedup.completed`, with the event's own data.

onceflow run flows.dedup
"""

from msgspec import Raw

from onceflow import Event, Run, agent, dataflow


@agent("dedup", on="*")
async def dedup(run: Run, event: Event) -> Raw:
    """Pass the data on as it was sent."""
    return event.raw


flow = dataflow("dedup", agents=[dedup])
