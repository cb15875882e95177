"""Watches the worker: a run that computes without end, or blocks, in its agent or a pure tool holds up all tenants.

Nothing can interrupt it. So it is named in the log, and in the end the process ends as if the run had killed it: a
supervisor starts it again, and a run that does so each time is found as poison.
"""

import logging
import os
from collections.abc import Callable
from threading import Event, Thread

log = logging.getLogger(__name__)

BEAT_S = 0.5
NAMED_S = 5.0
END_S = 20.0  # less than the group waits for a cell that does not poll
EXIT_STATUS = 3


def _end() -> None:
    os._exit(EXIT_STATUS)


class Standing:
    """The worker notes at whose runs it is, a thread looks. It counts its own beats: a frozen process stands too."""

    def __init__(self, computing: Callable[[], bytes], end: Callable[[], None] = _end) -> None:
        """`computing`: the key of the run that has the thread, zeros if that is not known."""
        self._computing = computing
        self._end = end
        self._tenant = ""
        self._turns = 0
        self._seen = self._beats = 0
        self._closed = Event()
        self.reason: str | None = None  # why the worker does not go on; None: it does

    def start(self) -> None:
        """Begin to look."""
        Thread(target=self._watch, name="onceflow-standing", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def at(self, tenant: str) -> None:
        """The worker begins with a tenant's runs; "": it is done."""
        self._tenant = tenant
        self._turns += 1

    def look(self) -> None:
        """See whether the worker has gone on since the last look."""
        tenant = self._tenant
        if not tenant or self._turns != self._seen:
            self._seen, self._beats, self.reason = self._turns, 0, None
            return
        self._beats += 1
        stood_s = self._beats * BEAT_S
        if stood_s < NAMED_S:
            return
        about = {"tenant": tenant, "run": self._computing().hex(), "stands_s": stood_s}
        if self.reason is None:
            log.error(
                "a run holds up all tenants of this cell: its agent, or a pure tool, computes without end or blocks; "
                "what takes long belongs into a tool",
                extra=about,
            )
        self.reason = f"the worker has stood in a run of tenant {tenant} for {stood_s:.0f} s"
        if stood_s >= END_S:
            log.error("the process ends, for its worker does not go on; a restart does", extra=about)
            self._end()

    def _watch(self) -> None:
        while not self._closed.wait(BEAT_S):
            self.look()
