"""An asyncio loop in a thread of its own, and the calls that it carries out.

Each call is a task. What a call costs beside its tool is kept small, for thousands end in a second. Plain functions run
in threads: one that hangs keeps its thread until it returns, its run gets the time-out.

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
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import Context
from threading import Thread
from typing import Any

from onceflow.agents.calling import (
    Answered,
    Calling,
    answer_of,
    current,
    function_of,
    is_async,
    remembered,
    taken_out,
    too_late_error,
    whose,
    whose_is_current,
)
from onceflow.agents.calls import Answer, NotSent, Raised, StartCall
from onceflow.agents.gates import Allowance
from onceflow.agents.machine import Machine
from onceflow.agents.passing import Passing
from onceflow.agents.seldom import RateLimited, named
from onceflow.agents.threads import Aside, Threads, release
from onceflow.agents.timeouts import Timeouts

log = logging.getLogger("onceflow.executor")

BLOCKED_S = 1.0
CLEAN_UP_S = 1.0  # how long the clean-ups of cancelled calls go on at the end
CLOSE_S = 1.0  # how long a blocked thread is waited for at the end
SWALLOWED_S = 1.0  # how long a call whose time is over has for its clean-up
BEAT_S = 0.25
FORGET_EVERY_S = 5.0

_LOOP_S_OWN = (__file__, asyncio.__path__[0])  # what is beneath the code of a tool

now = time.monotonic  # an asyncio loop's clock too


class Loop:
    """See above. `answered` is called in the loop's thread, with each answer."""

    def __init__(self, answered: Callable[[Answered], None], allowance: Allowance) -> None:
        self._answered = answered
        self._seldom = RateLimited(log)
        self._handed_over: deque[StartCall] = deque()
        self._told = False  # that something was handed over
        self._closing = False
        self._unsent: set[Calling] = set()  # they wait for their time, or at a gate
        self._running: set[Calling] = set()  # sent, and not yet answered
        self._beat_at = self._forgot_at = now()
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(remembered)
        self._loop.set_exception_handler(self._complained)
        self._passing = Passing(self._loop, allowance)
        self._timeouts = Timeouts(self._loop, self._end_late)
        self._threads = Threads(self._loop)
        self._loop.set_default_executor(Aside(self._loop, self._threads, whose_is_current))
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
    def held_up_s(self) -> float:
        """For how long something has kept the thread, so far; if nothing does, hardly more than BEAT_S."""
        return now() - self._beat_at

    @property
    def is_blocked(self) -> bool:
        """Whether that is too long."""
        return self.held_up_s >= BLOCKED_S

    def blocker(self) -> tuple[StartCall | None, str]:
        """What keeps the thread: a call, None if it is a callback or no call of now; and where in its code it is."""
        at, frame = "", sys._current_frames().get(self._thread.ident or 0)
        while frame is not None and not frame.f_code.co_filename.startswith(_LOOP_S_OWN):
            at, frame = f"{frame.f_code.co_filename}:{frame.f_lineno}", frame.f_back
        while frame is not None and frame.f_code is not Loop._call.__code__:
            frame = frame.f_back
        if frame is not None:  # whether or not it was answered
            return frame.f_locals["started"], at
        task = asyncio.current_task(self._loop)  # that a tool has made
        its = (calling.started for calling in list(self._running) if task in (calling.left or ()))
        return next(its, None), at

    def take_back(self, stays: Callable[[StartCall], bool]) -> list[StartCall]:
        """The calls that were not sent yet, for another loop; but for those that stay."""
        found = []
        with suppress(IndexError):  # until there are no more
            while True:
                found.append(self._handed_over.popleft())
        others = [calling for calling in list(self._unsent) if not stays(calling.started)]
        found += [calling.started for calling in others if taken_out(calling, self._unsent)]
        if stay := [started for started in found if stays(started)]:
            self.start(stay)
        return [started for started in found if not stays(started)]

    def answer_overdue(self) -> None:
        """Answer for the calls whose time is over, as the thread, which would, is blocked."""
        for calling in list(self._running):
            if 0 < calling.due < now() - SWALLOWED_S and taken_out(calling, self._running):
                self._raised(calling.started, too_late_error(calling.started))

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
            calling = Calling(started)
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

    async def _call(self, calling: Calling) -> None:
        """From a call's start to its answer; none if it was abandoned, or if another thread has had the say."""
        started = calling.started
        answer: Answer
        try:
            if started.delay_s > 0:
                await asyncio.sleep(started.delay_s)
            at = whose(started)
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
        if taken_out(calling, self._running):
            self._answered(Answered(started.run, answer))
        else:
            self._answer_unsent(calling, answer.error if isinstance(answer, Raised) else None)

    async def _sent(self, calling: Calling, at_s: float) -> Answer:
        """Carry a call out, now."""
        started = calling.started
        tool, call = started.tool, started.call
        if not taken_out(calling, self._unsent):
            raise NotSent
        self._running.add(calling)
        now_ms = int(time.time() * 1000)
        call.sent(
            now_ms, tool.timeout_s
        )  # before the run is asked: whoever takes calls back looks at this last
        _check_is_wanted(started, now_ms)
        due = self._timeouts.begin(calling, at_s, tool.timeout_s)
        current.set(calling)  # after that: the timer would keep it
        try:
            if tool.is_async and started.kind == "call":
                given = call.arguments
                result = await (tool.function(call, **given) if tool.takes_call else tool.function(**given))
            else:
                function = function_of(started)
                result = await (function() if is_async(function) else self._in_thread(calling, function))
                if inspect.isawaitable(result):  # a decorator around it is a plain function
                    result = await result
        except BaseException as error:
            if calling.too_late and isinstance(error, asyncio.CancelledError):
                if calling.queues:
                    raise NotSent from error
                raise too_late_error(started) from error
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

    # --- calls that end otherwise ---

    def _end_late(self, calling: Calling) -> None:
        """A call's time is over."""
        assert calling.task is not None
        calling.task.cancel()
        self._loop.call_later(SWALLOWED_S, self._answer_for, calling)

    def _answer_for(self, calling: Calling) -> None:
        """Nobody waits longer for a tool that has swallowed its cancellation."""
        started = calling.started
        if calling.gate is None:
            return  # it has its answer
        name = started.tool.name
        self._seldom.log(
            logging.WARNING, "a tool goes on after its time was over", of=name, extra={"tool": name}
        )
        error = too_late_error(started)
        self._ended(calling, error)
        if taken_out(calling, self._running):
            self._raised(started, error)

    def _answer_unsent(self, calling: Calling, error: BaseException | None = None) -> None:
        """A call has ended before it was sent: by its gate, or by a tool that cancels whatever tasks there are."""
        if taken_out(calling, self._unsent):
            self._raised(calling.started, error if isinstance(error, NotSent) else NotSent())

    def _raised(self, started: StartCall, error: BaseException) -> None:
        self._answered(Answered(started.run, Raised(started.place, started.call.attempt, error)))

    # --- what a call passes, and where a plain function runs ---

    def _ended(self, calling: Calling, error: BaseException | None) -> None:
        """A call has gone through its gate; unless it went on after its time was over."""
        gate, calling.gate = calling.gate, None
        if gate is not None:
            self._passing.ended(whose(calling.started), gate, error)

    async def _in_thread(self, calling: Calling, function: Callable[[], Any]) -> Any:
        calling.queues = True
        permits = await self._threads.permits(whose(calling.started))
        calling.queues = False
        try:
            _check_is_wanted(calling.started, int(time.time() * 1000))
        except NotSent:
            release(permits)
            raise
        return await self._threads.run(function, permits)


def _check_is_wanted(started: StartCall, now_ms: int) -> None:
    """Raise NotSent if a call is not to be sent any more."""
    if (started.send_by_ms and now_ms > started.send_by_ms) or not started.run.wants(started):
        started.call.not_sent()
        raise NotSent
