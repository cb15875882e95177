"""What an agent returns: a value that makes no completion fails its run, and what that did is undone, or kept."""

from typing import Any

import pytest
from pydantic import BaseModel, model_serializer

from onceflow.agents.anew import stands
from onceflow.agents.call import Call
from onceflow.agents.calls import RunFailed
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.event import Event, Reason
from onceflow.stream.completion_values import CompletionValues
from tests.tenant import Tenant
from tests.test_odd_values import agent_of, journal, pay

VALUES = CompletionValues("flow", 1_000_000)


@tool(effect="keyed")
async def hold(call: Call) -> str: ...  # type: ignore[empty-body]


@hold.compensate
async def let_go(call: Call, result: str) -> None: ...


@pytest.mark.parametrize(
    ("value", "code"), [(object(), Reason.AGENT_FAILED), ("x" * 1_100_000, Reason.TOO_LARGE)]
)
def test_a_run_whose_value_makes_no_completion_is_undone_and_kept(value: Any, code: str) -> None:
    async def returns(run: Run, event: Event) -> Any:
        await run.call(pay)
        await run.call(hold)
        return value

    tenant = Tenant(agent_of(returns), write_end=VALUES.written)
    tenant.event(tenant.memory.agents["odd"])
    tenant.answer("p")
    tenant.answer("h")
    assert tenant.ended == []
    tenant.begin_anew()  # it has failed, whatever happens now
    tenant.resume()
    undo = tenant.answer(None)
    assert (undo.kind, undo.tool.name, undo.undone) == ("undo", "hold", "h")
    (ended,) = tenant.ended
    assert isinstance(ended.outcome, RunFailed)
    assert (ended.outcome.code, ended.kept) == (code, True)
    written, failed = VALUES.of(ended, tenant.now)
    assert (b'"odd.failed"' in written, failed) == (True, ended.outcome)
    assert stands(journal(tenant), "0"), "what a redrive keeps"


def test_a_shared_call_of_a_run_whose_value_makes_no_completion_is_undone() -> None:
    @tool(effect="keyed", scope="tenant", key_fields=("customer",))
    async def open_account(call: Call, customer: str) -> str: ...  # type: ignore[empty-body]

    @open_account.compensate
    async def close_account(call: Call, result: str) -> None: ...

    async def returns(run: Run, event: Event) -> Any:
        await run.call(open_account, customer="ann")
        return object()

    tenant = Tenant(agent_of(returns), write_end=VALUES.written)
    tenant.event(tenant.memory.agents["odd"])
    tenant.answer("a-1")
    undo = tenant.answer(None)
    assert (undo.kind, undo.undone) == ("undo", "a-1")
    assert tenant.ended[-1].outcome.code == Reason.AGENT_FAILED


def test_what_a_run_has_returned_is_encoded_once() -> None:
    encoded = []

    class Told(BaseModel):
        @model_serializer
        def plain(self) -> str:
            encoded.append(self)
            return "told"

    async def returns(run: Run, event: Event) -> Any:
        await run.call(pay)
        return Told()

    tenant = Tenant(agent_of(returns), write_end=VALUES.written)
    tenant.event(tenant.memory.agents["odd"])
    tenant.answer("p")
    written, failed = VALUES.of(tenant.ended[0], tenant.now)
    assert (b'"data":"told"' in written, failed, len(encoded)) == (True, None, 1)
    assert tenant.memory.records == {}
