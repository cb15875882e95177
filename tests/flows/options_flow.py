"""Flow under test: flows/dedup under a name of the test's own, and an agent that wants data of a type."""

import os

import msgspec

from flows.dedup import dedup
from onceflow import Event, Run, agent, dataflow


class Order(msgspec.Struct):
    """What `typed` takes."""

    quantity: int


@agent("typed", on="order.placed")
async def typed(run: Run, event: Event[Order]) -> dict[str, int]:
    """Return what was ordered."""
    return {"quantity": event.data.quantity}


flow = dataflow(os.environ["OPTIONS_FLOW"], agents=[dedup, typed])
