"""Flow under test: runs of one tenant that must have one effect together. See `world`."""

import os

from onceflow import Call, Event, Failed, Run, agent, dataflow, tool
from tests.crash import points
from tests.crash.load import FAILING, TYPE
from tests.crash.world import do

CUSTOMERS = 3


@tool(effect="keyed", scope="tenant", key_fields=("customer",))
async def welcome(call: Call, customer: str) -> str:
    return do("welcome", f"{call.tenant}/{customer}", call.key)


@welcome.compensate
async def apologise(call: Call, result: str | None) -> None:
    do("apologise", f"{call.tenant}/{call.arguments['customer']}", call.key)


@agent("greets", on=TYPE)
async def greets(run: Run, event: Event) -> str:
    """Welcome the customer that the event is about; some fail afterwards."""
    sent = await run.call(welcome, customer=customer_of(event.id))
    if FAILING in bytes(event.raw):
        raise Failed("asked-to", "the event says so")
    return sent


def customer_of(id: str) -> str:
    """The customer that an event is about."""
    return f"customer-{int(id.rpartition('-')[2]) % CUSTOMERS}"


points.install_from_environment()
flow = dataflow(os.environ["CRASH_FLOW"], agents=[greets])
