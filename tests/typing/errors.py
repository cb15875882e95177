"""Wrong uses of tools and agents: mypy must refuse the marked lines, for the marked reason, and no others.

Only read by mypy, never imported.
"""

import re
from typing import Any

import msgspec

from onceflow.agents.agent import agent
from onceflow.agents.call import FROM_RUN, Call
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.event import Event


class Invoice(msgspec.Struct):
    number: str


@tool(effect="pure")
def vat(cents: int, percent: int = 20) -> int:
    return cents * percent // 100


@tool(effect="pure")
def shown(value: Any) -> str:
    return repr(value)


@tool(effect="read")
async def match_ledger(call: Call, invoice: str) -> dict[str, Any]:
    return {"invoice": invoice, "run": call.run_id}


@tool(effect="read", tenant_arg="tenant")
def balance(account: str, tenant: str = FROM_RUN) -> int:
    return len(account) + len(tenant)


# --- Declaring ---


@tool()  # error: call-overload, untyped-decorator
def without_effect(cents: int) -> int:
    return cents


@tool(effect="write")  # error: call-overload, untyped-decorator
def unknown_effect(cents: int) -> int:
    return cents


@tool(effect="read", timeout="5 s")  # error: call-overload, untyped-decorator
async def timeout_as_text(invoice: str) -> str:
    return invoice


@tool(effect="read")  # error: arg-type
def not_storable(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@tool(effect="keyed")  # error: arg-type
async def keyed_without_call(order_id: str) -> str:
    return order_id


@agent("no-types")  # error: call-arg
async def without_types(run: Run, event: Event) -> None: ...


@agent("plain", on="a")  # error: arg-type
def plain_agent(run: Run, event: Event) -> None: ...


@agent("one-parameter", on="a")  # error: arg-type
async def without_event(run: Run) -> None: ...


# --- Calling ---


@agent("reconcile", on="invoice.received")
async def reconcile(run: Run, event: Event[Invoice]) -> None:
    await run.call(vat)  # error: call-overload
    await run.call(vat, "1")  # error: call-overload
    await run.call(vat, cent=1)  # error: call-overload
    await run.call(vat, 1, 2, 3)  # error: call-overload
    await run.call(shown, valu=1)  # error: call-overload
    await run.call(match_ledger)  # error: call-overload
    await run.call(match_ledger, invoice=1)  # error: call-overload
    await run.call(match_ledger, invoice="i", other=1)  # error: call-overload
    await run.call(balance, account=1)  # error: call-overload
    await run.call(len, [])  # error: call-overload
    number: str = await run.call(vat, 1)  # error: call-overload
    status: int = await run.call(match_ledger, invoice=number)  # error: call-overload
    found = await run.call(match_ledger, invoice=number)
    found.append(status)  # error: attr-defined
    event.data.amount = 1  # error: attr-defined
    event.tenant = "other"  # error: misc
