"""How long a call may be sent again with its key: for its `ttl`, as long as its target remembers it."""

from datetime import timedelta
from typing import Any

import pytest

from onceflow.agents.agent import agent
from onceflow.agents.call import Call, RetryPolicy
from onceflow.agents.calls import Completed, NotSent, Parked
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.errors import Failed, OutcomeUnknown, RetryLater
from onceflow.event import Event
from tests.tenant import Tenant
from tests.test_machine import Ledger, effect
from tests.test_shared import resolve


def of_forgetful(**options: Any) -> Ledger:
    """A run that calls a tool whose target forgets keys."""
    forgetful = effect("forgetful", **options)

    async def calls(run: Run, event: Event) -> int:
        return await run.call(forgetful, n=1)

    return Ledger(calls)


def test_a_key_that_the_target_has_forgotten_is_not_sent_again() -> None:
    run = of_forgetful(ttl=timedelta(minutes=1))
    run.now += 61_000
    run.start()
    assert isinstance(run.end, Parked)


def test_nor_is_one_that_waits_to_be_sent_until_then() -> None:
    run = of_forgetful(ttl=timedelta(minutes=1))
    run.now += 58_000
    run.start()
    run.commit()
    assert run.sent[0].send_by_ms == run.now + 2_000
    run.now += 2_001
    run.answer(NotSent())
    assert isinstance(run.end, Parked)


def test_nor_is_an_attempt_whose_key_is_remembered_for_seconds_only() -> None:
    run = of_forgetful(ttl=5, retry=RetryPolicy(attempts=2, first=0))
    began_ms = run.now
    run.now += 1_000
    run.answer(TimeoutError())
    run.commit()
    assert run.sent[0].send_by_ms == began_ms + 5_000


@pytest.mark.parametrize("policy", ["park", "reconcile", "fail"])
def test_nor_by_its_retry_policy(policy: str) -> None:
    """It takes 25 seconds for an attempt, and the fourth would be sent when the key's minute is over."""
    forgetful = effect(
        "forgetful", ttl=60, on_unknown=policy, timeout=25, retry=RetryPolicy(attempts=9, first=0)
    )

    @forgetful.reconcile
    async def find(call: Call) -> None: ...

    async def calls(run: Run, event: Event) -> Any:
        try:
            return await run.call(forgetful, n=1)
        except OutcomeUnknown:
            return "unknown"

    run = Ledger(calls)
    for _ in range(3):
        run.now += 25_000
        assert run.answer(TimeoutError()).kind == "call"
    run.commit()
    assert [(each.kind, each.delay_s) for each in run.sent] == [("reconcile", 25.0)] * (policy == "reconcile")
    if policy != "reconcile":
        assert run.end == Completed("unknown") if policy == "fail" else isinstance(run.end, Parked)


@tool(effect="keyed", ttl=60, timeout=25, retry=RetryPolicy(attempts=9, first=0))
async def order(call: Call) -> str: ...  # type: ignore[empty-body]


@order.compensate
async def revoke(call: Call, result: str | None) -> None: ...


@agent("orders", on="t")
async def orders(run: Run, event: Event) -> None:
    await run.call(order)
    raise Failed("sold-out")


def test_nor_is_a_compensation_whose_key_the_target_has_forgotten() -> None:
    """It would be undone twice. A person says whether it was."""
    tenant = Tenant(orders)
    key = tenant.event(orders)
    tenant.answer("o-1")
    tenant.commit()
    assert [call.kind for call in tenant.started] == ["undo"]
    tenant.now += 61_000
    tenant.begin_anew()
    tenant.resume()
    tenant.commit()
    assert (tenant.started, len(tenant.parked)) == ([], 1)
    resolve(tenant, key, "again")
    assert tenant.answer(None).kind == "undo"
    assert tenant.outcome.code == "sold-out"


def test_nor_is_it_by_its_retry_policy() -> None:
    tenant = Tenant(orders)
    tenant.event(orders)
    tenant.answer("o-1")
    for _ in range(3):
        tenant.commit()
        tenant.now += 25_000
        tenant.answer(TimeoutError())
    tenant.commit()
    assert (tenant.started, len(tenant.parked)) == ([], 1)


def test_a_key_that_a_person_has_sent_again_is_remembered_from_then_on() -> None:
    @tool(effect="keyed", ttl=60, retry=RetryPolicy(attempts=2, first=0))
    async def pay(call: Call) -> str: ...  # type: ignore[empty-body]

    @agent("pays", on="t")
    async def pays(run: Run, event: Event) -> str:
        return await run.call(pay)

    tenant = Tenant(pays)
    key = tenant.event(pays)
    for _ in range(2):
        tenant.answer(TimeoutError())
    tenant.now += 61_000
    resolve(tenant, key, "again")
    tenant.answer(RetryLater())
    tenant.answer("paid")
    assert tenant.outcome == Completed("paid")


def test_a_blind_call_that_a_person_has_sent_again_is_sent_however_late() -> None:
    """Its target knows no key that it could forget."""

    @tool(effect="blind", scope="tenant", key_fields=("n",), ttl=60)
    async def cast(call: Call, n: int) -> str: ...  # type: ignore[empty-body]

    @agent("casts", on="t")
    async def casts(run: Run, event: Event) -> str:
        return await run.call(cast, 1)

    tenant = Tenant(casts)
    key = tenant.event(casts)
    tenant.answer(TimeoutError())
    tenant.commit()
    resolve(tenant, key, "again")
    for _ in range(2):
        tenant.now += 61_000
        tenant.answer(NotSent())
        tenant.commit()
        assert tenant.started[0].send_by_ms > tenant.now
    tenant.answer("cast")
    assert tenant.outcome == Completed("cast")
