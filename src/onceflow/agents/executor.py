"""Carries out calls with I/O: an asyncio loop in its own thread.

The worker hands calls over and never waits; answers are collected and fetched by the inlet, so they reach the
run the same way as everything else that happens to it. A call that raises, or outlasts its tool's time-out,
is an answer like any other. Plain functions run in threads of their own: one that hangs keeps its thread
until it returns, its run gets the time-out. Each tenant's calls of a tool pass a gate, see `gates`.
"""

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial
from threading import Event, Thread
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
from onceflow.agents.gates import Allowance, Gate
from onceflow.agents.machine import LONGEST_IN_MEMORY_S, Machine

log = logging.getLogger(__name__)

THREADS_MAX = 64  # plain (not async) tools that run at the same time
LOOPS_MAX = 8  # the last one gets no successor, whatever blocks it
BLOCKED_S = 1.0
CLOSE_S = 1.0  # how long a blocked thread is waited for at the end
WATCH_EVERY_S = 0.25


class Answered(NamedTuple):
    """A run's call has an answer."""

    run: Machine
    answer: Answer


class Executor:
    """Runs calls; `wake` is called (from any thread) when an answer is there to fetch.

    A tool that blocks its thread instead of awaiting is named in the log; calls begun after that get another thread.
    """

    def __init__(self, wake: Callable[[], None], allowance: Allowance = Allowance()) -> None:  # noqa: B008 (a value)
        self._wake = wake
        self._allowance = allowance
        self._answers: deque[Answered] = deque()
        self._loops = [_Loop(self._answered, allowance)]
        self._closed = Event()
        self._watch = Thread(target=self._watching, name="onceflow-executor-watch", daemon=True)
        self._watch.start()

    def start(self, calls: Iterable[StartCall]) -> None:
        """Take calls over. From the worker's thread."""
        self._loops[-1].start(calls)

    def answers(self) -> list[Answered]:
        """Fetch the answers that came since the last time. From the worker's thread."""
        fetched = []
        while self._answers:
            fetched.append(self._answers.popleft())
        return fetched

    def abandon(self, runs: Iterable[Machine]) -> None:
        """Cancel the calls of these runs; their answers no longer matter."""
        given_up = list(runs)
        for loop in self._loops:
            loop.cancel(given_up)

    def close(self) -> None:
        """Cancel what still runs and end the threads. Those of hanging functions are left behind."""
        self._closed.set()
        self._watch.join()
        for loop in self._loops:
            loop.close()

    def _answered(self, answered: Answered) -> None:
        self._answers.append(answered)
        self._wake()

    def _watching(self) -> None:
        named: object = None
        while not self._closed.wait(WATCH_EVERY_S):
            loop = self._loops[-1]
            blocker = loop.blocked_by()
            if blocker is None:
                named = None
            elif blocker is not named:
                named = blocker
                log.error(
                    "a tool blocks its thread instead of awaiting, and holds up all calls there; make it a plain "
                    "function, which gets a thread of its own",
                    extra={"tool": blocker.get_name()},
                )
                if len(self._loops) < LOOPS_MAX:
                    self._loops.append(_Loop(self._answered, self._allowance))


class _Loop:
    """An asyncio loop in its own thread, and the calls that it carries out."""

    def __init__(self, answered: Callable[[Answered], None], allowance: Allowance) -> None:
        self._answered = answered
        self._allowance = allowance
        self._gates: dict[tuple[str, str], Gate] = {}
        self._ended: dict[tuple[str, str], list[asyncio.Future[None]]] = {}  # who waits at a gate
        self._handed_over: deque[StartCall] = deque()
        self._running: dict[Machine, set[asyncio.Task[None]]] = {}
        self._beat_at = time.monotonic()
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(_remembered)
        self._permits = asyncio.Semaphore(THREADS_MAX)
        self._thread = Thread(target=self._run, name="onceflow-executor", daemon=True)
        self._thread.start()

    def start(self, calls: Iterable[StartCall]) -> None:
        idle = not self._handed_over
        self._handed_over.extend(calls)
        if idle and self._handed_over:
            self._loop.call_soon_threadsafe(self._take)

    def cancel(self, runs: list[Machine]) -> None:
        self._loop.call_soon_threadsafe(self._cancel, runs)

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._cancel, None)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S if self.blocked_by() else None)

    def blocked_by(self) -> "asyncio.Task[Any] | None":
        """The task that has kept the thread for too long; None: none has."""
        if time.monotonic() - self._beat_at < BLOCKED_S:
            return None
        return asyncio.current_task(self._loop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._beat()
        try:
            self._loop.run_forever()
        finally:
            pending = asyncio.all_tasks(self._loop)
            if pending:  # cancelled: let their clean-up run, but not for ever
                self._loop.run_until_complete(asyncio.wait(pending, timeout=1.0))
            self._loop.close()

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        self._loop.call_later(WATCH_EVERY_S, self._beat)

    def _take(self) -> None:
        while self._handed_over:
            started = self._handed_over.popleft()
            task = self._loop.create_task(self._call(started), name=started.tool.name)
            self._running.setdefault(started.run, set()).add(task)
            task.add_done_callback(partial(self._done, started.run))

    async def _call(self, started: StartCall) -> None:
        run, place, call, delay_s = started.run, started.place, started.call, started.delay_s
        answer: Answer
        try:
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            async with self._gate(started):
                answer = await self._sent(started)
        except BaseException as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the run was abandoned: nobody waits for the answer
            # Whatever a tool raises is its answer, SystemExit and the like too.
            answer = Raised(place, call.attempt, error)
        self._answered(Answered(run, answer))

    async def _sent(self, started: StartCall) -> Answer:
        """Carry a call out, now."""
        if started.send_by_ms and time.time() * 1000 > started.send_by_ms:
            raise NotSent
        tool = started.tool
        left: set[asyncio.Task[Any]] = set()
        _left.set(left)
        try:
            async with asyncio.timeout(tool.timeout_s) as limit:
                function = function_of(started)
                result = await (function() if _is_async(function) else self._in_thread(function))
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"no answer within {tool.timeout_s:g} s") from error
        finally:
            if count := sum(not task.done() for task in left):
                log.warning(
                    "a tool has left tasks behind that nobody awaits",
                    extra={"tool": tool.name, "tasks": count},
                )
        return answer_of(started, result)

    @asynccontextmanager
    async def _gate(self, started: StartCall) -> AsyncIterator[None]:
        """Wait until the call may be sent, and see how it went; a long rest is no time to wait in memory."""
        at, now = (started.call.tenant, started.tool.name), time.monotonic
        while (wait_s := (gate := self._gates.setdefault(at, Gate())).wait_s(self._allowance, now())) != 0:
            if wait_s > LONGEST_IN_MEMORY_S:
                raise NotSent(wait_s)
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            else:
                future: asyncio.Future[None] = self._loop.create_future()
                self._ended.setdefault(at, []).append(future)
                await future
        gate.sent(self._allowance, now())
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            if isinstance(error, (NotSent, asyncio.CancelledError)):
                gate.given_up()
            elif gate.ended(self._allowance, now(), error):
                said = {
                    "tool": started.tool.name,
                    "tenant": started.call.tenant,
                    "cause": type(error).__name__,
                }
                log.warning("a tool is left in peace for a while", extra=said)
            self._let_through(at)

    def _let_through(self, at: tuple[str, str]) -> None:
        """Have all that wait at a gate ask again, in their order: it may be wide open now."""
        waiting = self._ended.pop(at, [])
        for future in waiting:
            if not future.done():  # otherwise its run was abandoned
                future.set_result(None)
        if not waiting and self._gates[at].idle(time.monotonic()):
            del self._gates[at]

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


_left: ContextVar["set[asyncio.Task[Any]] | None"] = ContextVar("tasks that a call has begun", default=None)


def _remembered(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    """Make a task; one that a tool begins is noted with its call."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    if (left := _left.get()) is not None:
        left.add(task)
    return task


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
