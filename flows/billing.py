"""Billing: charge each due invoice once; give the money back when the invoice turns out to be disputed.

    onceflow run flows.billing

An event `invoice.due` carries `{"invoice": "INV-7", "customer": "ann", "cents": 1900}`. The completion
`bill.completed` says `{"charge": …, "receipt": …}`; a disputed invoice (`"disputed": true`) ends as failed,
refunded.

What goes wrong otherwise: the charge is made, its answer is lost, a retry charges again. Here each attempt
carries the call's key, which is on record before the first one is sent; the bank does each key once. The
bank is simulated, see `flows/outside.py`.
"""

from datetime import timedelta
from typing import Any

from flows.outside import do
from onceflow import Call, Event, Failed, RetryPolicy, Run, agent, dataflow, tool

RETRY = RetryPolicy(attempts=8, first=0.05, longest=2)


@tool(effect="keyed", ttl=timedelta(days=7), retry=RETRY)
async def charge(call: Call, invoice: str, cents: int) -> str:
    """Charge the customer's card. A real bank takes `call.headers`."""
    return await do("charge", invoice, call.key)


@charge.compensate
async def refund(call: Call, result: str | None) -> None:
    """Give the money back; result None: it may or may not have been charged, which the bank knows by the invoice."""
    await do("refund", call.arguments["invoice"], call.key)


@tool(effect="read", retry=RETRY)
async def is_disputed(invoice: str, disputed: bool) -> bool:
    """What the support desk knows of an invoice; simulated by the event itself."""
    return disputed


@tool(effect="keyed", retry=RETRY)
async def send_receipt(call: Call, invoice: str, charged: str) -> str:
    """Send the receipt."""
    return await do("receipt", invoice, call.key)


@agent("bill", on="invoice.due")
async def bill(run: Run, event: Event) -> dict[str, Any]:
    """Charge, look again, and send a receipt."""
    invoice = event.data["invoice"]
    charged = await run.call(charge, invoice=invoice, cents=event.data["cents"])
    if await run.call(is_disputed, invoice=invoice, disputed=event.data.get("disputed", False)):
        raise Failed("disputed", f"{invoice} is disputed")
    receipt = await run.call(send_receipt, invoice=invoice, charged=charged)
    return {"charge": charged, "receipt": receipt}


flow = dataflow("billing", agents=[bill])
