"""A flow for `benchmarks steps`: each run makes three `keyed` calls, one after another.

What they change answers at once, so that what is measured is the durability: a barrier before each, its result kept.
"""

from onceflow import Call, Event, Run, agent, dataflow, tool


@tool(effect="keyed")
async def reserve(call: Call, invoice: int) -> str:
    """The first effect."""
    return call.key[:8]


@tool(effect="keyed")
async def book(call: Call, reserved: str) -> str:
    """The second, which needs the first."""
    return call.key[:8]


@tool(effect="keyed")
async def tell(call: Call, booked: str) -> str:
    """The third, which needs the second."""
    return call.key[:8]


@agent("bench-effects", on="*")
async def three_effects(run: Run, event: Event) -> dict[str, str]:
    """Three effects."""
    reserved = await run.call(reserve, invoice=event.data["invoice"])
    booked = await run.call(book, reserved=reserved)
    return {"told": await run.call(tell, booked=booked)}


flow = dataflow("bench-effects", agents=[three_effects])
