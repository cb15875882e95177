"""Plain functions run in threads: one that hangs keeps its thread until it returns, and nobody waits for it.

So does what async tools have asyncio do in a thread. Its own executor has a handful of threads for all tenants, six
where there are two cores: as many look-ups of hosts that hang would hold up all others, and the end of the process too.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from functools import partial
from threading import Thread
from typing import Any
from weakref import WeakValueDictionary

from onceflow.agents.calling import Whose
from onceflow.agents.seldom import RateLimited

log = logging.getLogger("onceflow.executor")

THREADS_MAX = 256  # functions that run at the same time
TENANT_THREADS_MAX = 64  # … of one tenant: what hangs there leaves threads for the others
TOOL_THREADS_MAX = 128  # … of one tool: so does what hangs there

Permits = list[asyncio.Semaphore]
Ended = Callable[[Any, BaseException | None], None]  # what a function has returned, or raised


class Threads:
    """Starts a thread for each function, for one loop's calls."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._of_all = asyncio.Semaphore(THREADS_MAX)
        self._of_tenants: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._of_tools: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._seldom = RateLimited(log)

    async def permits(self, whose: Whose) -> Permits:
        """Wait until one more function may run, for this tenant and this tool too.

        First for the tenant: who waits there keeps nothing from others.
        """
        tenant, tool = whose
        permits: Permits = []
        try:
            for semaphore in (
                self._of_tenants.setdefault(tenant, asyncio.Semaphore(TENANT_THREADS_MAX)),
                self._of_tools.setdefault(tool, asyncio.Semaphore(TOOL_THREADS_MAX)),
                self._of_all,
            ):
                if semaphore is self._of_all and semaphore.locked():
                    message = "all threads for plain functions are taken; others wait until some return"
                    self._seldom.log(logging.WARNING, message, extra={"threads": THREADS_MAX})
                await semaphore.acquire()
                permits.append(semaphore)
        except BaseException:
            release(permits)
            raise
        return permits

    async def run(self, function: Callable[[], Any], permits: Permits) -> Any:
        """Run a function, and return what it returns."""
        future: asyncio.Future[Any] = self._loop.create_future()

        def ended(outcome: Any, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(outcome)
            else:
                future.set_exception(error)

        self.begin(function, permits, ended)
        return await future

    def begin(self, function: Callable[[], Any], permits: Permits, ended: Ended) -> None:
        """Have a function run, and give its permits back when it returns; `ended` is called in the loop.

        Not when its caller stops waiting: functions that hang can't use up the machine's threads.
        """

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
            release(permits)
            ended(outcome, error)

        try:
            Thread(target=work, name="onceflow-tool", daemon=True).start()
        except BaseException:  # the machine has none left
            release(permits)
            raise


class Aside(ThreadPoolExecutor):
    """Does what asyncio has to do in a thread (`asyncio.to_thread`, the look-up of a host) as `Threads` does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: Threads, whose: Callable[[], Whose]) -> None:
        """`whose`: for whom something is to be done now."""
        super().__init__(1)  # asyncio takes no other kind; none of its threads ever starts
        self._loop = loop
        self._by = threads
        self._whose = whose

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have it done. In the loop's thread."""
        done: Future[Any] = Future()
        begins = self._begin(partial(function, *args, **kwargs), done, self._whose())
        task = asyncio.Task(begins, loop=self._loop, context=Context())
        done.add_done_callback(lambda _: task.cancel())  # nobody waits any more: nor does it, for a thread
        return done

    async def _begin(self, function: Callable[[], Any], done: Future[Any], whose: Whose) -> None:
        def ended(outcome: Any, error: BaseException | None) -> None:
            if error is None:
                done.set_result(outcome)
            else:
                done.set_exception(error)

        permits = await self._by.permits(whose)
        if not done.set_running_or_notify_cancel():
            release(permits)
            return
        try:
            self._by.begin(function, permits, ended)
        except RuntimeError as error:
            done.set_exception(error)


def release(permits: Permits) -> None:
    """Give permits back."""
    for permit in permits:
        permit.release()
