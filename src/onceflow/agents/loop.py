"""An asyncio loop in a thread of its own, and the calls that it carries out.

Each call is a task. What a call costs beside its tool is kept small: thousands end in a second. So there is one timer
for all time-outs of the same length, and no wrapper around a call that its tool does not need. Plain functions run in
threads: one that hangs keeps its thread until it returns, its run gets the time-out.

A tool that blocks instead of awaiting keeps the thread from all other calls. Then another thread, which watches, takes
back those that were not sent, and answers for those whose time is over: of each call, whoever takes it out of the books
has the say. What the loop still does with it, once it goes on, is for nobody.
"""

import asyncio
import inspect
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from contextvars import Context, ContextVar
from functools import partial
from threading import Thread
from typing import Any

import msgspec

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
from onceflow.agents.machine import Machine
from onceflow.agents.passing import Passing
from onceflow.agents.seldom import RateLimited, named
from onceflow.agents.threads import Aside, Threads

log = logging.getLogger("onceflow.executor")

BLOCKED_S = 1.0
CLEAN_UP_S = 1.0  # how long the clean-ups of cancelled calls go on at the end
CLOSE_S = 1.0  # how long a blocked thread is waited for at the end
SWALLOWED_S = 1.0  # how long a call whose time is over has for its clean-up
BEAT_S = 0.25
FORGET_EVERY_S = 5.0

_LOOP_S_OWN = (__file__, asyncio.__path__[0])  # what is beneath the code of a tool

now = time.monotonic  # an asyncio loop's clock too


class Answered(msgspec.Struct, frozen=True):
    """A run's call has an answer."""

    run: Machine
    answer: Answer


class _Calling(msgspec.Struct, eq=False):
    """A call under way."""

    started: StartCall
    task: "asyncio.Task[None] | None" = None
    due: float = 0.0
    too_late: bool = False  # its time is over: it was cancelled for that
    gate: Gate | None = None  # that it went through, until its answer
    queues: bool = False  # for a thread: it was not sent yet
    left: "set[asyncio.Task[Any]] | None" = None  # the tasks that its tool has begun


class Loop:
    """See above. `answered` is called in the loop's thread, with each answer."""

    def __init__(self, answered: Callable[[Answered], None], allowance: Allowance) -> None:
        self._answered = answered
        self._seldom = RateLimited(log)
        self._handed_over: deque[StartCall] = deque()
        self._told = False  # that something was handed over
        self._closing = False
        self._unsent: set[_Calling] = set()  # they wait for their time, or at a gate
        self._running: set[_Calling] = set()  # sent, and not yet answered
        self._due: dict[
            float, dict[_Calling, None]
        ] = {}  # by their time-out; those that began first come first
        self._beat_at = self._forgot_at = now()
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(_remembered)
        self._loop.set_exception_handler(self._complained)
        self._passing = Passing(self._loop, allowance)
        self._threads = Threads(self._loop)
        self._loop.set_default_executor(Aside(self._loop, self._threads, _tenant))
        self._thread = Thread(target=self._run, name="onceflow-executor", daemon=True)
        self._thread.start()

    # --- from other threads ---

    def start(self, calls: Iterable[StartCall]) -> None:
        """Take calls over."""
        self._handed_over.extend(calls)
        if not self._told:  # whoever takes them first says that nobody was told, and then looks
            self._told = True
            self._loop.call_soon_threadsafe(self._take)

    def cancel(self, runs: list[Machine]) -> None:
        """Cancel the calls of these runs: nobody waits for them."""
        self._loop.call_soon_threadsafe(self._cancel, runs)

    def end(self) -> None:
        """Cancel all calls and have the thread end."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end)

    def wait(self, since: float) -> None:
        """Wait until it has ended, but not for long after it was told (`since`): one that is blocked is left behind."""
        patience_s = CLOSE_S if self.is_blocked else CLEAN_UP_S + CLOSE_S
        self._thread.join(max(0.0, since + patience_s - now()))

    @property
    def is_blocked(self) -> bool:
        """Whether something keeps the thread for too long."""
        return now() - self._beat_at >= BLOCKED_S

    def blocker(self) -> tuple[str, str]:
        """What keeps the thread: a tool, or "" if it is a callback; and where in its code it is."""
        task, at = asyncio.current_task(self._loop), ""
        frame = sys._current_frames().get(self._thread.ident or 0)
        while frame is not None and not frame.f_code.co_filename.startswith(_LOOP_S_OWN):
            at, frame = f"{frame.f_code.co_filename}:{frame.f_lineno}", frame.f_back
        if task is None:
            return "", at
        its = [calling.started.tool.name for calling in list(self._running) if task in (calling.left or ())]
        return its[0] if its else task.get_name(), at

    def take_back(self, but: Collection[str]) -> list[StartCall]:
        """The calls that were not sent yet, for another loop; those of some tools stay."""
        found = []
        with suppress(IndexError):  # until there are no more
            while True:
                found.append(self._handed_over.popleft())
        others = [calling for calling in list(self._unsent) if calling.started.tool.name not in but]
        found += [calling.started for calling in others if _taken_out(calling, self._unsent)]
        if stay := [started for started in found if started.tool.name in but]:
            self.start(stay)
        return [started for started in found if started.tool.name not in but]

    def answer_overdue(self) -> None:
        """Answer for the calls whose time is over, as the thread, which would, is blocked."""
        for calling in list(self._running):
            if 0 < calling.due < now() - SWALLOWED_S and _taken_out(calling, self._running):
                self._raised(calling.started, _too_late(calling.started))

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return bool(self._running)

    # --- the thread ---

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._beat()
        while not self._closing:
            said: dict[str, str] = {}
            try:
                self._loop.run_forever()
            except BaseException as raised:  # noqa: BLE001 (as asyncio does with SystemExit in a task that a tool made)
                said = named(raised)
            if not self._closing:  # the calls of others go on
                log.error("a tool has tried to end the loop that all calls run in", extra=said)
        ends_at = now() + CLEAN_UP_S
        while (pending := asyncio.all_tasks(self._loop)) and (left_s := ends_at - now()) > 0:  # cancelled
            with suppress(BaseException):  # as above
                self._loop.run_until_complete(asyncio.wait(pending, timeout=left_s))
        self._loop.close()

    def _complained(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """asyncio has met an error that nobody awaits; by itself it would log its text, and with what it was called."""
        error, task = context.get("exception"), context.get("task") or context.get("future")
        said = {} if error is None else named(error)
        if isinstance(task, asyncio.Task):
            said["task"] = getattr(task.get_coro(), "__qualname__", "")
        message = "what a tool has left behind has failed, or never came to its end"
        self._seldom.log(logging.WARNING, message, of=str(said), extra=said)

    def _end(self) -> None:
        self._closing = True
        self._cancel(None)
        self._loop.stop()

    def _beat(self) -> None:
        self._beat_at = at = now()
        self._loop.call_later(BEAT_S, self._beat)
        if at - self._forgot_at > FORGET_EVERY_S:
            self._forgot_at = at
            self._passing.forget_idle(at)
            for calling in [each for each in self._unsent if each.task is not None and each.task.done()]:
                self._answer_unsent(calling)  # it was cancelled before its first step

    def _take(self) -> None:
        self._told = False
        while True:
            try:
                started = self._handed_over.popleft()
            except IndexError:  # not asked before: another thread may take them back
                return
            calling = _Calling(started)
            # Not by the loop's factory, which is for the tasks of tools; with a context as a new thread has it.
            calling.task = asyncio.Task(
                self._call(calling), loop=self._loop, name=started.tool.name, context=Context()
            )
            self._unsent.add(calling)

    def _cancel(self, runs: list[Machine] | None) -> None:
        for calls in (self._unsent, self._running):
            for calling in list(calls):
                if calling.task is not None and (runs is None or calling.started.run in runs):
                    calling.task.cancel()
                    calls.discard(calling)

    async def _call(self, calling: _Calling) -> None:
        """From a call's start to its answer; none if it was abandoned, or if another thread has had the say."""
        started = calling.started
        answer: Answer
        try:
            if started.delay_s > 0:
                await asyncio.sleep(started.delay_s)
            at = (started.call.tenant, started.tool.name)
            at_s = now()
            calling.gate = self._passing.at_once(at, at_s)
            if calling.gate is None:
                calling.gate = await self._passing.in_turn(at)
                at_s = now()
            try:
                answer = await self._sent(calling, at_s)
            except BaseException as error:
                self._ended(calling, error)
                raise
            self._ended(calling, None)
        except BaseException as error:  # noqa: BLE001 (what a tool raises is its answer, SystemExit and the like too)
            answer = Raised(started.place, started.call.attempt, error)
        calling.task = None  # which refers to its context, and that to the call
        if _taken_out(calling, self._running):
            self._answered(Answered(started.run, answer))
        else:
            self._answer_unsent(calling, answer.error if isinstance(answer, Raised) else None)

    async def _sent(self, calling: _Calling, at_s: float) -> Answer:
        """Carry a call out, now."""
        started = calling.started
        tool, call = started.tool, started.call
        if not _taken_out(calling, self._unsent):
            raise NotSent
        self._running.add(calling)
        now_ms = int(time.time() * 1000)
        call.sent(
            now_ms, tool.timeout_s
        )  # before the run is asked: whoever takes calls back looks at this last
        if (started.send_by_ms and now_ms > started.send_by_ms) or not started.run.wants(started):
            call.not_sent()
            raise NotSent
        due = self._limit(calling, at_s, tool.timeout_s)
        _current.set(calling)  # after that: the timer would keep it
        try:
            if tool.is_async and started.kind == "call":
                given = call.arguments
                result = await (tool.function(call, **given) if tool.takes_call else tool.function(**given))
            else:
                function = function_of(started)
                result = await (function() if _is_async(function) else self._in_thread(calling, function))
                if inspect.isawaitable(result):  # a decorator around it is a plain function
                    result = await result
        except BaseException as error:
            if calling.too_late and isinstance(error, asyncio.CancelledError):
                if calling.queues:
                    raise NotSent from error
                raise _too_late(started) from error
            raise
        finally:
            del due[calling]
            if calling.left:
                self._report(started, calling.left)
        return answer_of(started, result)

    def _report(self, started: StartCall, left: "set[asyncio.Task[Any]]") -> None:
        name = started.tool.name
        if count := sum(not task.done() for task in left):
            self._seldom.log(
                logging.WARNING,
                "a tool has left tasks behind that nobody awaits",
                of=name,
                extra={"tool": name, "tasks": count},
            )

    # --- time-outs ---

    def _limit(self, calling: _Calling, at_s: float, timeout_s: float) -> dict[_Calling, None]:
        """Have a call cancelled when its time is over, unless it leaves these before."""
        calling.due = at_s + timeout_s
        due = self._due.get(timeout_s)
        if due is None:
            due = self._due[timeout_s] = {}
            self._loop.call_at(calling.due, self._end_late, timeout_s)
        due[calling] = None
        return due

    def _end_late(self, timeout_s: float) -> None:
        """Cancel the calls whose time is over; ask again when the next one's may be."""
        due = self._due[timeout_s]
        again_at = now() + timeout_s
        for calling in due:
            if calling.due > now():
                again_at = calling.due
                break
            if not calling.too_late:
                calling.too_late = True
                assert calling.task is not None
                calling.task.cancel()
                self._loop.call_later(SWALLOWED_S, self._answer_for, calling)
        if due:
            self._loop.call_at(again_at, self._end_late, timeout_s)
        else:
            del self._due[timeout_s]

    def _answer_for(self, calling: _Calling) -> None:
        """Nobody waits longer for a tool that has swallowed its cancellation."""
        started = calling.started
        if calling.gate is None:
            return  # it has its answer
        name = started.tool.name
        self._seldom.log(
            logging.WARNING, "a tool goes on after its time was over", of=name, extra={"tool": name}
        )
        error = _too_late(started)
        self._ended(calling, error)
        if _taken_out(calling, self._running):
            self._raised(started, error)

    def _answer_unsent(self, calling: _Calling, error: BaseException | None = None) -> None:
        """A call has ended before it was sent: by its gate, or by a tool that cancels whatever tasks there are."""
        if _taken_out(calling, self._unsent):
            self._raised(calling.started, error if isinstance(error, NotSent) else NotSent())

    def _raised(self, started: StartCall, error: BaseException) -> None:
        self._answered(Answered(started.run, Raised(started.place, started.call.attempt, error)))

    # --- what a call passes, and where a plain function runs ---

    def _ended(self, calling: _Calling, error: BaseException | None) -> None:
        """A call has gone through its gate; unless it went on after its time was over."""
        gate, calling.gate = calling.gate, None
        if gate is not None:
            call, tool = calling.started.call, calling.started.tool
            self._passing.ended((call.tenant, tool.name), gate, error)

    async def _in_thread(self, calling: _Calling, function: Callable[[], Any]) -> Any:
        calling.queues = True
        permits = await self._threads.permits(calling.started.call.tenant)
        calling.queues = False
        return await self._threads.run(function, permits)


_current: ContextVar[_Calling | None] = ContextVar("the call under way", default=None)


def _tenant() -> str:
    """Of the call under way."""
    calling = _current.get()
    return "" if calling is None else calling.started.call.tenant


def _remembered(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    """Make a task for a tool, and note it with its call."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    if (calling := _current.get()) is not None:
        if calling.left is None:
            calling.left = set()
        calling.left.add(task)
    return task


def _taken_out(calling: _Calling, calls: set[_Calling]) -> bool:
    """Take a call out, unless another thread did: a set gives each away once."""
    try:
        calls.remove(calling)
    except KeyError:
        return False
    return True


def _too_late(started: StartCall) -> TimeoutError:
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
