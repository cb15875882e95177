"""How other threads wake the worker."""

from threading import Event as Signal


class Doorbell:
    """Wakes the worker when something is there to fetch, so that it need not look all the time."""

    def __init__(self) -> None:
        self._signal = Signal()

    def ring(self) -> None:
        """Something is there; from any thread."""
        if not self._signal.is_set():
            self._signal.set()

    def wait(self, timeout_s: float) -> None:
        """Wait until somebody rings, or the time is over."""
        if self._signal.wait(timeout_s):
            self._signal.clear()
