"""A flow for `benchmarks core --agent read`: each run makes one `read` call, which answers at once."""

from onceflow import Event, Run, agent, dataflow, tool


@tool(effect="read")
async def look_up(invoice: int) -> int:
    """Stands for I/O that costs nothing, so that what is measured is the step's own cost."""
    return invoice % 97


@agent("bench-read", on="*")
async def one_step(run: Run, event: Event) -> dict[str, int]:
    """One step."""
    return {"account": await run.call(look_up, invoice=event.data["invoice"])}


flow = dataflow("bench-read", agents=[one_step])
