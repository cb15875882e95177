"""Flow under test: orders that do between their effects all that runs can do: side by side, with a pause, with a call
that belongs to a customer, and with a check outside that answers by a signal. See `world`.
"""

import json
import os
from typing import Any

from confluent_kafka import Producer

from onceflow import Call, Event, Failed, NotDone, Run, agent, dataflow, tool
from tests.crash import points
from tests.crash.load import FAILING, TYPE
from tests.crash.mixed import customer_of
from tests.crash.world import do, found

CHECKED, POLL_S, PAUSE_S = "check.finished", 2, 0.3

_signals = Producer(
    {
        "bootstrap.servers": os.environ["ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS"],
        "partitioner": "murmur2_random",
        "log_level": 0,
    }
)


@tool(effect="keyed")
async def reserve(call: Call, order: str) -> str:
    return do("reserve", order, call.key)


@reserve.compensate
async def release(call: Call, result: str | None) -> None:
    do("release", call.arguments["order"], call.key)


@tool(effect="keyed", scope="tenant", key_fields=("customer",))
async def welcome(call: Call, customer: str) -> str:
    return do("welcome", customer, call.key)


@tool(effect="keyed")
async def check(call: Call, order: str) -> None:
    """Have the order checked. The answer comes by a signal; it is lost if the process dies now, or comes twice."""
    answer = do("check", order, call.key)
    signal = {
        "specversion": "1.0",
        "id": order,
        "source": "checks",
        "type": CHECKED,
        "tenant": call.tenant,
        "subject": order,
        "data": {"status": answer},
    }
    _signals.produce(os.environ["ONCEFLOW_EVENTS__SIGNALS"], json.dumps(signal), call.tenant)
    _signals.poll(0)


@tool(effect="read")
def checked(order: str) -> str | None:
    return found("check", order)


@tool(effect="blind", timeout=2, on_unknown="reconcile")
async def ship(call: Call, order: str) -> str:
    return do("ship", order, by_ms=call.deadline_ms)


@ship.reconcile
def shipped(call: Call) -> Any:
    return found("ship", call.arguments["order"]) or NotDone


@agent("orders", on=TYPE)
async def orders(run: Run, event: Event) -> dict[str, str]:
    number = int(event.key[:4], 16)
    customer = customer_of(event.tenant, event.key)
    reserved, welcomed = await run.gather(
        run.call(reserve, order=event.key), run.call(welcome, customer=customer)
    )
    if number % 5 == 0:
        await run.sleep(PAUSE_S)
    await run.call(check, order=event.key)
    answer = await run.wait_for(CHECKED, event.key, poll=checked, every=POLL_S)
    if FAILING in bytes(event.raw):
        raise Failed("asked-to", "the event says so")
    sent = await run.call(ship, order=event.key)
    return {"reserve": reserved, "welcome": welcomed, "check": answer.status, "ship": sent}


points.install_from_environment()
flow = dataflow(os.environ["CRASH_FLOW"], agents=[orders])
