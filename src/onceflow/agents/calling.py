"""A call that is carried out: what is called, and what its answer is.

A call belongs to whoever takes it out of the books of its loop: the loop itself, or the thread that watches it.
"""

import asyncio
import inspect
from contextvars import ContextVar
from functools import partial
from typing import Any

import msgspec

from onceflow.agents.call import is_not_done
from onceflow.agents.calls import (
    RESULT_MAX_BYTES,
    Answer,
    FoundNotDone,
    Raised,
    Returned,
    StartCall,
    UnusableResult,
)
from onceflow.agents.gates import Gate
from onceflow.agents.machine import Machine

Whose = tuple[str, str]  # tenant and tool of a call


class Answered(msgspec.Struct, frozen=True):
    """A run's call has an answer."""

    run: Machine
    answer: Answer


class Calling(msgspec.Struct, eq=False):
    """A call under way."""

    started: StartCall
    task: "asyncio.Task[None] | None" = None
    due: float = 0.0
    too_late: bool = False  # its time is over: it was cancelled for that
    gate: Gate | None = None  # that it went through, until its answer
    queues: bool = False  # for a thread: it was not sent yet
    left: "set[asyncio.Task[Any]] | None" = None  # the tasks that its tool has begun


current: ContextVar[Calling | None] = ContextVar("the call under way", default=None)


def whose_is_current() -> Whose:
    """Of the call under way."""
    calling = current.get()
    return ("", "") if calling is None else whose(calling.started)


def whose(started: StartCall) -> Whose:
    """Tenant and tool of a call."""
    return started.call.tenant, started.tool.name


def remembered(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    """Make a task for a tool, and note it with its call."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    if (calling := current.get()) is not None:
        if calling.left is None:
            calling.left = set()
        calling.left.add(task)
    return task


def taken_out(calling: Calling, calls: set[Calling]) -> bool:
    """Take a call out, unless another thread did: a set gives each away once."""
    try:
        calls.remove(calling)
    except KeyError:
        return False
    return True


def too_late_error(started: StartCall) -> TimeoutError:
    """The answer of a call whose time is over."""
    return TimeoutError(f"no answer within {started.tool.timeout_s:g} s")


def function_of(started: StartCall) -> "partial[Any]":
    """What is called, with its arguments."""
    tool, call = started.tool, started.call
    if started.kind == "undo":
        assert tool.compensation is not None
        return partial(tool.compensation, call, started.undone)
    if started.kind == "reconcile":
        assert tool.reconciliation is not None
        return partial(tool.reconciliation, call)
    return partial(tool.function, *((call,) if tool.takes_call else ()), **call.arguments)


def is_async(function: "partial[Any]") -> bool:
    """Whether it is awaited, and not run in a thread."""
    return inspect.iscoroutinefunction(function.func)


def answer_of(started: StartCall, result: Any) -> Answer:
    """The answer of a call that returned; a result that can't be stored is not asked for again."""
    place, attempt = started.place, started.call.attempt
    if started.kind == "reconcile" and is_not_done(result):
        return FoundNotDone(place, attempt)
    try:
        stored = started.tool.encode_result(None if started.kind == "undo" else result)
    except TypeError as error:
        return Raised(place, attempt, UnusableResult(str(error)))
    if len(stored) > RESULT_MAX_BYTES:
        text = f"its result takes {len(stored)} bytes, at most {RESULT_MAX_BYTES} can be stored; return less"
        return Raised(place, attempt, UnusableResult(text))
    return Returned(place, attempt, stored)
