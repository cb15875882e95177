"""Carries out calls with I/O: in an asyncio loop, in its own thread.

The worker and the outbox hand calls over and never wait; answers are collected and fetched by the inlet, so they reach
the run the same way as everything else that happens to it. A call that raises, or outlasts its tool's time-out, is an
answer like any other. How a call is carried out: see `loop`.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from threading import Event, Thread

from onceflow.agents.calling import Answered
from onceflow.agents.calls import StartCall
from onceflow.agents.gates import Allowance
from onceflow.agents.loop import Loop, now
from onceflow.agents.machine import Machine
from onceflow.agents.seldom import RateLimited

log = logging.getLogger("onceflow.executor")

LOOPS_MAX = 8
WATCH_EVERY_S = 0.25


class Executor:
    """Runs calls; `wake` is called (from any thread) when an answer is there to fetch.

    A tool that blocks its thread instead of awaiting is named in the log. From then on its calls stay in that thread's
    loop; those of other tools get another one, and so do those that were not sent yet. A call whose time is over while
    its thread is blocked has that for its answer.
    """

    def __init__(self, wake: Callable[[], None], allowance: Allowance = Allowance()) -> None:  # noqa: B008 (a value)
        self._wake = wake
        self._allowance = allowance
        self._answers: deque[Answered] = deque()
        self._loops = [Loop(self._answered, allowance)]
        self._serving = self._loops[0]  # calls of all tools but these:
        self._blocks: dict[str, Loop] = {}  # tools that have blocked a thread, and the loop in it
        self._seldom = RateLimited(log)
        self._refuses = False
        self._closed = Event()
        self._watch = Thread(target=self._watching, name="onceflow-executor-watch", daemon=True)
        self._watch.start()

    def start(self, calls: Iterable[StartCall]) -> None:
        """Take calls over. From any thread."""
        if self._refuses:
            return
        if not self._blocks:
            self._serving.start(calls)
            return
        for call in calls:
            self._blocks.get(call.tool.name, self._serving).start([call])

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
            loop.end()
        since = now()
        for loop in self._loops:
            loop.wait(since)

    def _answered(self, answered: Answered) -> None:
        self._answers.append(answered)
        self._wake()

    def _watching(self) -> None:
        before: list[Loop] = []
        while not self._closed.wait(WATCH_EVERY_S):
            late = [loop for loop in self._loops if loop.is_blocked]
            # Late once are all of a process that stood still.
            blocked = [loop for loop in late if loop in before]
            before = late
            for loop in blocked:
                tool, at = loop.blocker()
                self._name(tool, at)
                loop.answer_overdue()
                if loop is self._serving:
                    self._replace(loop, tool, blocked)
                if loop is not self._serving:
                    its_own = [name for name, blocks in self._blocks.items() if blocks is loop]
                    self._serving.start(loop.take_back(its_own))

    def _name(self, tool: str, at: str) -> None:
        self._seldom.log(
            logging.ERROR,
            "a tool blocks its thread instead of awaiting, and holds up the calls there; make it a plain function, "
            "which gets a thread of its own",
            of=tool or at,
            extra={"tool": tool, "at": at},
        )

    def _replace(self, loop: Loop, tool: str, blocked: list[Loop]) -> None:
        """Have another loop serve from now on, rather one where no tool blocks; if there is none, look again later."""
        if tool:
            self._blocks[tool] = loop
        well = [each for each in self._loops if each not in blocked]
        well.sort(key=lambda each: each in self._blocks.values())
        if len(self._loops) < LOOPS_MAX and (not well or well[0] in self._blocks.values()):
            well = [Loop(self._answered, self._allowance)]
            self._loops += well
        if well:
            self._serving = well[0]
