"""ClearLedger: reconcile each tenant's invoices with the books, once per invoice.

    onceflow run flows.clearledger

An event `invoice.received` carries

    {"invoice": "INV-7", "supplier": "Aalto Oy", "amount": "119.00", "currency": "EUR"}

The agent finds the supplier's open items, picks the one that the invoice is for, and has a posting drawn up.
The completion `reconcile.completed` carries the proposal:

    status            when                                            besides
    matched           one open item has the invoice's amount          posting
    unmatched         the supplier has no open item near the amount
    ambiguous         several have the amount; a person must choose   documents
    amount-differs    none near it has the same amount                documents, difference

All three steps only read, so they may be repeated: one that failed is retried, and after a crash one whose
result was lost is done again. The accounting service is simulated in this process, and can be slow or fail on
demand: `flows/ledger_service.py` says how.
"""

import os
from collections.abc import Awaitable
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from flows.ledger_service import LedgerService, OpenItem, Posting, Refused, Unavailable
from onceflow import Call, Event, GiveUp, RetryLater, RetryPolicy, Run, agent, dataflow, tool

T = TypeVar("T")

service = LedgerService.from_environment(os.environ)
AMOUNT_END = Decimal(10) ** 12
RETRY = RetryPolicy(attempts=5, first=0.2, longest=5)


class Invoice(msgspec.Struct):
    """The data of `invoice.received`; what a scan may lack has a default.

    The amount is exact, whether sent as 119.00 or "119.00".
    """

    invoice: str
    supplier: str = ""
    amount: Decimal = Decimal(0)
    currency: str = "EUR"

    def __post_init__(self) -> None:
        if not self.amount.is_finite() or abs(self.amount) >= AMOUNT_END:
            raise ValueError("the amount must be a number of at most 12 digits before the point")


# --- Tools: what the agent may ask the accounting service ---


@tool(effect="read", timeout=timedelta(seconds=10), retry=RETRY)
async def find_candidates(call: Call, invoice: str, amount: Decimal, currency: str) -> list[OpenItem]:
    """The open items that an invoice could be for."""
    return await ask(service.open_items(call.tenant, invoice, amount, currency, attempt=call.attempt))


@tool(effect="read", timeout=timedelta(seconds=10), retry=RETRY)
async def match(call: Call, invoice: str, amount: Decimal, candidates: list[OpenItem]) -> list[OpenItem]:
    """Those of the candidates that fit."""
    return await ask(service.matching(call.tenant, invoice, amount, candidates, attempt=call.attempt))


@tool(effect="read", timeout=timedelta(seconds=10), retry=RETRY)
async def propose_posting(call: Call, invoice: str, supplier: str, item: OpenItem) -> Posting:
    """The posting that would close an item. Nothing is booked."""
    return await ask(service.draft(call.tenant, invoice, supplier, item, attempt=call.attempt))


async def ask(request: Awaitable[T]) -> T:
    """Say what the service's answer means for the call: try again, or not."""
    try:
        return await request
    except Unavailable as error:
        raise RetryLater(str(error)) from error
    except Refused as error:
        raise GiveUp(str(error)) from error


# --- The agent ---


@agent("reconcile", on="invoice.received", version=1)
async def reconcile(run: Run, event: Event[Invoice]) -> dict[str, Any]:
    """Reconcile one invoice in three steps, and propose what to book."""
    given = event.data
    about = {"invoice": given.invoice, "supplier": given.supplier}

    candidates = await run.call(
        find_candidates, invoice=given.invoice, amount=given.amount, currency=given.currency
    )
    if not candidates:
        return {"status": "unmatched", **about}

    fitting = await run.call(match, invoice=given.invoice, amount=given.amount, candidates=candidates)
    if not fitting:
        return {
            "status": "amount-differs",
            **about,
            "documents": [item.document for item in candidates],
            "difference": candidates[0].amount - given.amount,
        }
    if len(fitting) > 1:
        return {"status": "ambiguous", **about, "documents": [item.document for item in fitting]}

    posting = await run.call(propose_posting, invoice=given.invoice, supplier=given.supplier, item=fitting[0])
    return {"status": "matched", **about, "posting": posting}


flow = dataflow("clearledger", agents=[reconcile])
