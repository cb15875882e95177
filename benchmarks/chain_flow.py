"""A flow for `benchmarks steps`: each run makes twenty `keyed` calls, one after another; it says when each was made."""

import time

from onceflow import Call, Event, Run, agent, dataflow, tool

STEPS = 20


@tool(effect="keyed")
async def step(call: Call, number: int) -> int:
    """An effect; when it happened (ns)."""
    return time.time_ns()


@agent("bench-chain", on="*")
async def chain(run: Run, event: Event) -> list[int]:
    """Effects, one after another."""
    return [await run.call(step, number=number) for number in range(STEPS)]


flow = dataflow("bench-chain", agents=[chain])
