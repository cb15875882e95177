"""Flow under test: runs of one tenant that must have one effect together. See `world`.

CRASH_GATE: a file; while it is missing, nobody is welcomed, and the call is put off.
"""

import os
from pathlib import Path

from onceflow import Call, Event, Failed, RetryLater, RetryPolicy, Run, agent, dataflow, tool
from tests.crash import points
from tests.crash.load import FAILING, TYPE
from tests.crash.world import do

CUSTOMERS = 3
GATE = Path(os.environ.get("CRASH_GATE", "/"))
PUT_OFF_S = 11  # longer than an attempt waits in memory


@tool(effect="keyed", scope="tenant", key_fields=("customer",), retry=RetryPolicy(attempts=100))
async def welcome(call: Call, customer: str) -> str:
    if not GATE.exists():  # noqa: ASYNC240 (a file of this machine)
        raise RetryLater(after=PUT_OFF_S)
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
