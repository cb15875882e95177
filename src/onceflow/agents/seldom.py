"""Lines of the log that tools and agents cause: as often as they like, and with errors whose text is theirs."""

import logging
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any


def named(error: BaseException) -> dict[str, str]:
    """What the log may say of an error that a tool or an agent has raised: its text may hold an event's values."""
    at = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        at = f"{frame.f_code.co_filename}:{line}"
    return {"error": type(error).__name__, "at": at}


class RateLimited:
    """Logs a line that may repeat at most once in `every_s`, then with the number of those left out.

    Lines are the same if their messages and `of` are: a tool or a place, so their number is bounded by the code's.
    """

    def __init__(
        self, logger: logging.Logger, every_s: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._every_s = every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[
            tuple[str, str], tuple[float, int]
        ] = {}  # when it was logged, how many left out since

    def log(self, level: int, message: str, *, of: str = "", extra: dict[str, Any] | None = None) -> None:
        now, line = self._clock(), (message, of)
        with self._lock:
            logged_at, left_out = self._last.get(line, (-float("inf"), 0))
            if now - logged_at < self._every_s:
                self._last[line] = (logged_at, left_out + 1)
                return
            self._last[line] = (now, 0)
        fields = (extra or {}) | ({"left_out": left_out} if left_out else {})
        self._logger.log(level, message, extra=fields, stacklevel=2)
