"""Carries out calls with I/O: in an asyncio loop, in its own thread.

The worker and the outbox hand calls over and never wait; answers are collected and fetched by the inlet, so they reach
the run the same way as everything else that happens to it. A call that raises, or outlasts its tool's time-out, is an
answer like any other. How a call is carried out: see `loop`.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from threading import Event, Thread

from onceflow.agents.calls import StartCall
from onceflow.agents.gates import Allowance
from onceflow.agents.loop import Answered, Loop
from onceflow.agents.machine import Machine

log = logging.getLogger(__name__)

LOOPS_MAX = 8  # the last one gets no successor, whatever blocks it
WATCH_EVERY_S = 0.25


class Executor:
    """Runs calls; `wake` is called (from any thread) when an answer is there to fetch.

    A tool that blocks its thread instead of awaiting is named in the log; calls begun after that get another thread.
    """

    def __init__(self, wake: Callable[[], None], allowance: Allowance = Allowance()) -> None:  # noqa: B008 (a value)
        self._wake = wake
        self._allowance = allowance
        self._answers: deque[Answered] = deque()
        self._loops = [Loop(self._answered, allowance)]
        self._refuses = False
        self._closed = Event()
        self._watch = Thread(target=self._watching, name="onceflow-executor-watch", daemon=True)
        self._watch.start()

    def start(self, calls: Iterable[StartCall]) -> None:
        """Take calls over. From any thread."""
        if not self._refuses:
            self._loops[-1].start(calls)

    def refuse(self) -> None:
        """Take no more calls: nobody will wait for them. Their intents stay on record."""
        self._refuses = True

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
                    self._loops.append(Loop(self._answered, self._allowance))
