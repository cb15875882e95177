"""Inventory: a shop's webhook fans out to the warehouse, the books and the customer.

    onceflow run flows.inventory

An event `order.paid` carries `{"order": "A-1", "sku": "tea", "quantity": 2}`. The completion
`fan-out.completed` says `{"stock": …, "booking": …, "notice": …}`.

What goes wrong otherwise: the shop sends its webhook five times, with a new id each time, because the
answer was slow; the stock is taken five times. Here taking the stock for an order belongs to the tenant and
the order: whichever event comes first takes it. The services are simulated, see `flows/outside.py`.
"""

from typing import Any

from flows.outside import do
from onceflow import Call, Event, RetryPolicy, Run, agent, dataflow, tool

RETRY = RetryPolicy(attempts=8, first=0.05, longest=2)


@tool(effect="keyed", scope="tenant", key_fields=("order", "sku"), retry=RETRY)
async def take_stock(call: Call, order: str, sku: str, quantity: int) -> str:
    """Take goods from the shelf."""
    return await do("stock", f"{call.tenant}/{order}", call.key)


@tool(effect="keyed", scope="tenant", key_fields=("order",), retry=RETRY)
async def book(call: Call, order: str) -> str:
    """Book the sale."""
    return await do("book", f"{call.tenant}/{order}", call.key)


@tool(effect="keyed", scope="tenant", key_fields=("order",), retry=RETRY)
async def notify(call: Call, order: str) -> str:
    """Tell the customer."""
    return await do("notice", f"{call.tenant}/{order}", call.key)


@agent("fan-out", on="order.paid")
async def fan_out(run: Run, event: Event) -> dict[str, Any]:
    """All three at the same time."""
    order, sku, quantity = (event.data[name] for name in ("order", "sku", "quantity"))
    stock, booking, notice = await run.gather(
        run.call(take_stock, order=order, sku=sku, quantity=quantity),
        run.call(book, order=order),
        run.call(notify, order=order),
    )
    return {"stock": stock, "booking": booking, "notice": notice}


flow = dataflow("inventory", agents=[fan_out])
