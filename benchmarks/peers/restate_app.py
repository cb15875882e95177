"""Restate under measurement, served by the peers' Python: `python -m hypercorn benchmarks.peers.restate_app:app`."""

import restate

from benchmarks import outside

bench = restate.Service("bench")


async def count(number: int) -> int:
    """One step, done at once."""
    return number + 1


async def book(run: int, effect: int) -> int:
    """An effect outside."""
    outside.note("effect", run, effect, "-")
    return effect


async def wait(service: int) -> int:
    """A step that takes long."""
    await outside.answer_of(service)
    return service


@bench.handler()
async def one(context: restate.Context, number: int) -> int:
    """One step."""
    return await context.run_typed("count", count, number=number)


@bench.handler()
async def three(context: restate.Context, number: int) -> int:
    """Three steps, each of which needs the one before."""
    for _ in range(3):
        number = await context.run_typed("count", count, number=number)
    return number


@bench.handler()
async def effects(context: restate.Context, run: int) -> None:
    """The job of `benchmarks.crash_flow`."""
    for effect in range(outside.EFFECTS):
        await context.run_typed("book", book, run=run, effect=effect)
        if effect < outside.EFFECTS - 1:
            await context.run_typed("wait", wait, service=effect)


app = restate.app([bench])
