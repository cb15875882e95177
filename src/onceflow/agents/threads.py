"""Plain functions run in threads: one that hangs keeps its thread until it returns, and nobody waits for it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any
from weakref import WeakValueDictionary

THREADS_MAX = 256  # functions that run at the same time
TENANT_THREADS_MAX = 64  # … of one tenant: what hangs there leaves threads for the others

Permits = tuple[asyncio.Semaphore, asyncio.Semaphore]


class Threads:
    """Starts a thread for each function, for one loop's calls."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._of_all = asyncio.Semaphore(THREADS_MAX)
        self._of_tenants: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def permits(self, tenant: str) -> Permits:
        """Wait until one more function may run, for this tenant too."""
        of_tenant = self._of_tenants.get(tenant)
        if of_tenant is None:
            of_tenant = self._of_tenants[tenant] = asyncio.Semaphore(TENANT_THREADS_MAX)
        await of_tenant.acquire()
        try:
            await self._of_all.acquire()
        except BaseException:
            of_tenant.release()
            raise
        return of_tenant, self._of_all

    async def run(self, function: Callable[[], Any], permits: Permits) -> Any:
        """Run a function, and give its permits back when it returns.

        Not when its caller stops waiting: functions that hang can't use up the machine's threads.
        """
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
            _release(permits)
            if future.cancelled():
                return
            if error is None:
                future.set_result(outcome)
            else:
                future.set_exception(error)

        try:
            Thread(target=work, name="onceflow-tool", daemon=True).start()
        except BaseException:  # the machine has none left
            _release(permits)
            raise
        return await future


def _release(permits: Permits) -> None:
    for permit in permits:
        permit.release()
