"""Carries out calls with I/O: an asyncio loop in its own thread.

The worker hands calls over and never waits; answers are collected and fetched by the inlet, so they reach the
run the same way as everything else that happens to it. A call that raises, or outlasts its tool's time-out,
is an answer like any other. Plain functions run in threads of their own: one that hangs keeps its thread
until it returns, its run gets the time-out.
"""

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any, NamedTuple

from onceflow.agents.call import is_not_done
from onceflow.agents.calls import (
    RESULT_MAX_BYTES,
    Answer,
    FoundNotDone,
    NotSent,
    Raised,
    Returned,
    StartCall,
    UnusableResult,
)
from onceflow.agents.machine import Machine

log = logging.getLogger(__name__)

THREADS_MAX = 64  # plain (not async) tools that run at the same time


class Answered(NamedTuple):
    """A run's call has an answer."""

    run: Machine
    answer: Answer


class Executor:
    """Runs calls; `wake` is called (from any thread) when an answer is there to fetch."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._answers: deque[Answered] = deque()
        self._handed_over: deque[StartCall] = deque()
        self._running: dict[Machine, set[asyncio.Task[None]]] = {}
        self._loop = asyncio.new_event_loop()
        self._permits = asyncio.Semaphore(THREADS_MAX)
        self._thread = Thread(target=self._run, name="onceflow-executor", daemon=True)
        self._thread.start()

    def start(self, calls: Iterable[StartCall]) -> None:
        """Take calls over. From the worker's thread."""
        idle = not self._handed_over
        self._handed_over.extend(calls)
        if idle and self._handed_over:
            self._loop.call_soon_threadsafe(self._take)

    def answers(self) -> list[Answered]:
        """Fetch the answers that came since the last time. From the worker's thread."""
        fetched = []
        while self._answers:
            fetched.append(self._answers.popleft())
        return fetched

    def abandon(self, runs: Iterable[Machine]) -> None:
        """Cancel the calls of these runs; their answers no longer matter."""
        given_up = list(runs)
        self._loop.call_soon_threadsafe(self._cancel, given_up)

    def close(self) -> None:
        """Cancel what still runs and end the thread. Threads of hanging plain functions are left behind."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._cancel, None)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            pending = asyncio.all_tasks(self._loop)
            if pending:  # cancelled: let their clean-up run, but not for ever
                self._loop.run_until_complete(asyncio.wait(pending, timeout=1.0))
            self._loop.close()

    def _take(self) -> None:
        while self._handed_over:
            started = self._handed_over.popleft()
            task = self._loop.create_task(self._call(started))
            self._running.setdefault(started.run, set()).add(task)
            task.add_done_callback(partial(self._done, started.run))

    async def _call(self, started: StartCall) -> None:
        run, place, tool, call, delay_s = started[:5]
        answer: Answer
        try:
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            if started.send_by_ms and time.time() * 1000 > started.send_by_ms:
                raise NotSent
            async with asyncio.timeout(tool.timeout_s) as limit:
                function = function_of(started)
                result = await (function() if _is_async(function) else self._in_thread(function))
            answer = answer_of(started, result)
        except TimeoutError as error:
            late = limit.expired()
            answer = Raised(
                place,
                call.attempt,
                TimeoutError(f"no answer within {tool.timeout_s:g} s") if late else error,
            )
        except BaseException as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the run was abandoned: nobody waits for the answer
            # Whatever a tool raises is its answer, SystemExit and the like too.
            answer = Raised(place, call.attempt, error)
        self._answers.append(Answered(run, answer))
        self._wake()

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        """Run a plain function in a thread that nobody waits for when the process ends.

        The permit is given back when the function returns, not when its caller stops waiting: functions that
        hang can't use up the machine's threads.
        """
        await self._permits.acquire()
        future: asyncio.Future[Any] = self._loop.create_future()

        def work() -> None:
            outcome: Any
            error: BaseException | None
            try:
                outcome, error = function(), None
            except StopIteration as stop:  # a future refuses it
                outcome, error = None, RuntimeError(f"the tool raised StopIteration({stop.value!r})")
            except BaseException as raised:  # noqa: BLE001 (handed to the caller)
                outcome, error = None, raised
            with suppress(RuntimeError):  # the executor was closed meanwhile: nobody waits
                self._loop.call_soon_threadsafe(finish, outcome, error)

        def finish(outcome: Any, error: BaseException | None) -> None:
            self._permits.release()
            if future.cancelled():
                return
            if error is None:
                future.set_result(outcome)
            else:
                future.set_exception(error)

        Thread(target=work, name="onceflow-tool", daemon=True).start()
        return await future

    def _done(self, run: Machine, task: asyncio.Task[None]) -> None:
        tasks = self._running.get(run)
        if tasks is not None:
            tasks.discard(task)
            if not tasks:
                del self._running[run]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a call ended without an answer", exc_info=error)

    def _cancel(self, runs: list[Machine] | None) -> None:
        for run in list(self._running) if runs is None else runs:
            for task in self._running.get(run, ()):
                task.cancel()


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


def _is_async(function: "partial[Any]") -> bool:
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
