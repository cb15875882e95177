"""Right uses of tools and agents: mypy must accept them, with the types that `assert_type` says.

What mypy must refuse is in `errors.py`.
"""

from datetime import timedelta
from typing import Any, Literal, assert_type

import msgspec
import pydantic

from onceflow.agents.agent import agent
from onceflow.agents.call import FROM_RUN, Call, RetryPolicy
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.event import Event


class Invoice(msgspec.Struct):
    number: str
    cents: int


class Match(pydantic.BaseModel):
    entry: str
    score: float


@tool(effect="pure")
def vat(cents: int, *, percent: int = 20) -> int:
    return cents * percent // 100


@tool(effect="pure")
def shown(value: Any) -> str:
    return repr(value)


@tool(effect="pure")
def half_way(call: Call, value: object) -> str:
    return f"{call.attempt}: {value}"


@tool(effect="read", timeout=timedelta(seconds=5), retry=RetryPolicy(attempts=3, first=0.1))
async def match_ledger(call: Call, invoice: str) -> dict[str, Any]:
    return {"invoice": invoice, "run": call.run_id}


@tool(effect="read", name="best-match", version=2)
async def best_match(invoice: str, among: list[Any], limit: int = 1) -> Match | None:
    return Match(entry=invoice, score=len(among[:limit])) if among else None


@tool(effect="read", tenant_arg="tenant")
def balance(account: str, tenant: str = FROM_RUN) -> int:
    return len(account) + len(tenant)


@tool(effect="read", tenant_arg="tenant")
def page(call: Call, *, url: str, tenant: str = FROM_RUN) -> dict[str, Any]:
    return {"url": url, "tenant": tenant, "run": call.run_id}


@tool(effect="read")
async def anything(value: Any) -> Any:
    return value


def keyed_tools_type_as_well() -> None:
    @tool(effect="keyed", key_fields=("order_id",), scope="tenant", timeout=timedelta(seconds=8))
    async def create_order(call: Call, order_id: str, qty: int) -> dict[str, Any]:
        return {"id": order_id, "qty": qty, "key": call.key}

    async def order(run: Run) -> None:
        assert_type(await run.call(create_order, order_id="o-1", qty=1), dict[str, Any])


@agent("reconcile", on="invoice.received")
async def reconcile(run: Run, event: Event[Invoice]) -> dict[str, Any]:
    assert_type(event.data, Invoice)
    assert_type(await run.call(vat, event.data.cents), int)
    assert_type(await run.call(vat, cents=1, percent=7), int)
    wider: float | None = await run.call(vat, 1)
    assert_type(await run.call(shown, wider), str)
    assert_type(await run.call(shown, event.data), str)
    assert_type(await run.call(shown, value=event.data), str)
    assert_type(await run.call(half_way, value=1), str)
    assert_type(await run.call(best_match, event.data.number, among=[1]), Match | None)
    assert_type(await run.call(balance, account="a"), int)
    assert_type(await run.call(page, url="/"), dict[str, Any])
    assert_type(await run.call(anything, value=1), Any)
    match = await run.call(match_ledger, invoice=event.data.number)
    assert_type(match, dict[str, Any])
    return {"status": "matched", **match}


@agent("greet", on=["greeting.sent", "*"], version=2)
async def greet(run: Run, event: Event) -> Literal["done"]:
    assert_type(event.data, Any)
    await run.gather(run.call(vat, 1), run.call(match_ledger, invoice=event.id))
    return "done"


async def called_directly(run: Run, invoice: Event[Invoice], greeting: Event) -> None:
    assert_type(await reconcile(run, invoice), dict[str, Any])
    assert_type(await greet(run, greeting), Literal["done"])
    assert_type(match_ledger.decode_result(b""), dict[str, Any])
