"""A flow for `benchmarks incident`: each run asks a model, and acts on its answer."""

from datetime import timedelta

from benchmarks.incident_world import Busy, act, ask
from onceflow import Call, Event, RetryLater, RetryPolicy, Run, agent, dataflow, tool

RETRY = RetryPolicy(attempts=5, first=0.05, longest=1)


@tool(effect="read", retry=RETRY, timeout=timedelta(minutes=10))  # the model takes few at once, others wait
async def plan(call: Call, invoice: int) -> str:
    """A model's answer."""
    try:
        return await ask(invoice, call.attempt)
    except Busy as error:
        raise RetryLater(str(error)) from error


@tool(effect="keyed", retry=RETRY)
async def carry_out(call: Call, invoice: int, planned: str) -> str:
    """What it says is done."""
    try:
        return await act(invoice, planned, call.key, call.attempt)
    except Busy as error:
        raise RetryLater(str(error)) from error


@agent("bench-incident", on="*")
async def deal_with(run: Run, event: Event) -> str:
    """Plan, and act."""
    invoice = event.data["invoice"]
    planned = await run.call(plan, invoice=invoice)
    return await run.call(carry_out, invoice=invoice, planned=planned)


flow = dataflow("bench-incident", agents=[deal_with])
