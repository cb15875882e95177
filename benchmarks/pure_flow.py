"""A flow for `benchmarks core --agent pure`: each run makes three `pure` calls, one after another."""

from onceflow import Event, Run, agent, dataflow, tool


@tool(effect="pure")
def net(amount: int) -> int:
    """The amount without its tax."""
    return amount * 100 // 119


@tool(effect="pure")
def account(invoice: int) -> int:
    """Where it is booked."""
    return 4400 + invoice % 97


@tool(effect="pure")
def posting(account: int, cents: int) -> dict[str, int]:
    """What would be booked."""
    return {"account": account, "cents": cents}


@agent("bench-pure", on="*")
async def three_steps(run: Run, event: Event) -> dict[str, int]:
    """Three steps, of which the last needs the others."""
    cents = await run.call(net, amount=event.data["amount"])
    number = await run.call(account, invoice=event.data["invoice"])
    return await run.call(posting, account=number, cents=cents)


flow = dataflow("bench-pure", agents=[three_steps])
