"""A flow for `benchmarks peers`: runs that are open for long and change something outside, now and then.

BENCH_EFFECT: what the target is like. `keyed`: it is given a key, and does each key once; so a call that has no answer
is sent again. `blind`: it knows no keys; so such a call is never sent again by itself, and the target is asked first.
"""

import os
from datetime import timedelta
from typing import Any

from benchmarks import outside
from onceflow import Call, Event, NotDone, Run, agent, dataflow, tool


@tool(effect="keyed")
async def book(call: Call, invoice: int, effect: int) -> int:
    """An effect, with its key."""
    outside.note("effect", invoice, effect, call.key)
    return effect


@tool(effect="blind", timeout=timedelta(seconds=2), on_unknown="reconcile")
async def post(call: Call, invoice: int, effect: int) -> int:
    """An effect, without a key."""
    outside.note("effect", invoice, effect, "-")
    return effect


@post.reconcile
async def was_posted(call: Call) -> Any:
    """Look whether it was done."""
    about = [str(call.arguments["invoice"]), str(call.arguments["effect"])]
    outside.note("asked", *about)
    return call.arguments["effect"] if ["effect", *about, "-"] in outside.noted() else NotDone


@tool(effect="read")
async def wait(service: int) -> int:
    """A step that takes long."""
    await outside.answer_of(service)
    return service


change = {"keyed": book, "blind": post}[os.environ["BENCH_EFFECT"]]


@agent("bench-crash", on="*")
async def effects(run: Run, event: Event) -> int:
    """Effects, and a long wait after each but the last."""
    for effect in range(outside.EFFECTS):
        await run.call(change, invoice=event.data["invoice"], effect=effect)
        if effect < outside.EFFECTS - 1:
            await run.call(wait, service=effect)
    return outside.EFFECTS


flow = dataflow("bench-crash", agents=[effects])
