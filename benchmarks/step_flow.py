"""A flow for `benchmarks steps` and `latency --agent step`: each run makes one `keyed` call, answered at once."""

from onceflow import Call, Event, Run, agent, dataflow, tool


@tool(effect="keyed")
async def book(call: Call, invoice: int) -> str:
    """One effect."""
    return call.key[:8]


@agent("bench-step", on="*")
async def one_effect(run: Run, event: Event) -> dict[str, str]:
    """One effect."""
    return {"booked": await run.call(book, invoice=event.data["invoice"])}


flow = dataflow("bench-step", agents=[one_effect])
