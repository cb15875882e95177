"""Planner: a model plans what to order, and answers otherwise each time it is asked.

    onceflow run flows.planner

An event `stock.low` carries `{"item": "bolts"}`. The completion `plan.completed` says what was ordered:
`{"supplier": …, "order": …, "confirmation": …}`.

What goes wrong otherwise: the process dies after the order, plans anew, and orders from another supplier: a
ghost order that nobody knows of. Here the plan is on record, in the same commit, before the order that is
based on it is sent. Model and suppliers are simulated, see `flows/outside.py`.
"""

import random
from typing import Any

from flows.outside import do
from onceflow import Call, Event, RetryPolicy, Run, agent, dataflow, tool

SUPPLIERS = ("north", "south", "east", "west")
RETRY = RetryPolicy(attempts=8, first=0.05, longest=2)


@tool(effect="read", retry=RETRY)
async def ask_model(item: str) -> str:
    """Which supplier to order from: a model's answer, another one each time."""
    return random.choice(SUPPLIERS)  # noqa: S311 (no secret)


@tool(effect="keyed", retry=RETRY)
async def place_order(call: Call, item: str, supplier: str) -> str:
    """Order it."""
    return await do("order", f"{item} from {supplier}", call.key)


@tool(effect="keyed", retry=RETRY)
async def confirm(call: Call, item: str, order: str) -> str:
    """Tell the stock keeper."""
    return await do("confirm", item, call.key)


@agent("plan", on="stock.low")
async def plan(run: Run, event: Event) -> dict[str, Any]:
    """Plan, order as planned, and tell."""
    item = event.data["item"]
    supplier = await run.call(ask_model, item=item)
    order = await run.call(place_order, item=item, supplier=supplier)
    confirmation = await run.call(confirm, item=item, order=order)
    return {"supplier": supplier, "order": order, "confirmation": confirmation}


flow = dataflow("planner", agents=[plan])
