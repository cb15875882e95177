"""When the time of calls is over: one timer for all that have the same, for thousands end in a second.

Calls with the same time-out end in the order in which they began, so only the first of them need be looked at.
"""

import asyncio
import time
from collections.abc import Callable

from onceflow.agents.calling import Calling


class Timeouts:
    """Those of one loop's calls; for its thread only. `over` is called with each call whose time is over, once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, over: Callable[[Calling], None]) -> None:
        self._loop = loop
        self._over = over
        self._due: dict[float, dict[Calling, None]] = {}  # by their time-out, as they began

    def begin(self, calling: Calling, at_s: float, timeout_s: float) -> dict[Calling, None]:
        """A call's time begins. It is over, unless the call is taken out of what is returned before."""
        calling.due = at_s + timeout_s
        due = self._due.get(timeout_s)
        if due is None:
            due = self._due[timeout_s] = {}
            self._loop.call_at(calling.due, self._look, timeout_s)
        due[calling] = None
        return due

    def _look(self, timeout_s: float) -> None:
        """See whose time is over; look again when the next one's may be."""
        due = self._due[timeout_s]
        again_at = time.monotonic() + timeout_s
        for calling in due:
            if calling.due > time.monotonic():
                again_at = calling.due
                break
            if not calling.too_late:
                calling.too_late = True
                self._over(calling)
        if due:
            self._loop.call_at(again_at, self._look, timeout_s)
        else:
            del self._due[timeout_s]
