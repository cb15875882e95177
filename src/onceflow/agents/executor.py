"""Carries out calls with I/O: an asyncio loop in its own thread.

The worker hands calls over and never waits; answers are collected and fetched by the inlet, so they reach the
run the same way as everything else that happens to it. A call that raises, or outlasts its tool's time-out,
is an answer like any other. Plain functions run in threads of their own: one that hangs keeps its thread
until it returns, its run gets the time-out.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any, NamedTuple

from onceflow.agents.run import Answer, Machine, Raised, Returned, StartCall
from onceflow.errors import GiveUp

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
        run, place, tool, call, delay_s = started
        answer: Answer
        try:
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            async with asyncio.timeout(tool.timeout_s) as limit:
                positional = (call,) if tool.takes_call else ()
                if tool.is_async:
                    result = await tool.function(*positional, **call.arguments)
                else:
                    result = await self._in_thread(partial(tool.function, *positional, **call.arguments))
            answer = _returned(started, result)
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


def _returned(started: StartCall, result: Any) -> Answer:
    """The answer of a call that returned; a result that can't be stored is not asked for again."""
    place, attempt = started.place, started.call.attempt
    try:
        return Returned(place, attempt, started.tool.encode_result(result))
    except TypeError as error:
        return Raised(place, attempt, GiveUp(str(error)))
