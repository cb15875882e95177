"""Carries out calls with I/O: in an asyncio loop, in its own thread.

The worker and the outbox hand calls over and never wait; answers are collected and fetched by the inlet, so they reach
the run the same way as everything else that happens to it. A call that raises, or outlasts its tool's time-out, is an
answer like any other. How a call is carried out: see `loop`.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from threading import Event, Thread

from onceflow.agents.calling import Answered, Whose, whose
from onceflow.agents.calls import StartCall
from onceflow.agents.gates import Allowance
from onceflow.agents.loop import Loop, now
from onceflow.agents.machine import Machine
from onceflow.agents.seldom import RateLimited

log = logging.getLogger("onceflow.executor")

LOOPS_MAX = 8
WATCH_EVERY_S = 0.25
LONG_S = 5.0  # a call that has kept a thread for so long may do so for ever
ALL = ""  # instead of a tenant


class Executor:
    """Runs calls; `wake` is called (from any thread) when an answer is there to fetch.

    A tool that blocks its thread instead of awaiting is named in the log. From then on its calls stay in that thread's
    loop; those of other tools get another one, and so do those that were not sent yet. If it blocks for long, only its
    calls for that tenant stay, and those for others get another loop too, unless half of the threads are taken so. A
    call whose time is over while its thread is blocked has that for its answer.
    """

    def __init__(self, wake: Callable[[], None], allowance: Allowance = Allowance()) -> None:  # noqa: B008 (a value)
        self._wake = wake
        self._allowance = allowance
        self._answers: deque[Answered] = deque()
        self._loops = [Loop(self._answered, allowance)]
        self._serving = self._loops[0]
        # Where what has blocked a thread is at home; all other calls go to the loop that serves.
        self._homes: dict[Whose, Loop] = {}
        self._seldom = RateLimited(log)
        self._refuses = False
        self._closed = Event()
        self._watch = Thread(target=self._watching, name="onceflow-executor-watch", daemon=True)
        self._watch.start()

    def start(self, calls: Iterable[StartCall]) -> None:
        """Take calls over. From any thread."""
        if self._refuses:
            return
        if not self._homes:
            self._serving.start(calls)
        else:
            self._distribute(calls)

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

    def _distribute(self, calls: Iterable[StartCall]) -> None:
        for call in calls:
            self._loop_of(call).start([call])

    def _loop_of(self, call: StartCall) -> Loop:
        homes, its = self._homes, whose(call)
        return homes.get(its) or homes.get((ALL, its[1])) or self._serving

    def _watching(self) -> None:
        before: list[Loop] = []
        blockers: dict[Loop, Whose | None] = {}
        while not self._closed.wait(WATCH_EVERY_S):
            late = [loop for loop in self._loops if loop.is_blocked]
            # Late once are all of a process that stood still.
            blocked = [loop for loop in late if loop in before]
            before = late
            blockers = {loop: self._blocker(loop, blockers.get(loop)) for loop in blocked}
            for loop, blocker in blockers.items():
                loop.answer_overdue()
                if loop is self._serving:
                    self._replace(loop, blocker, blocked)
                elif loop.held_up_s >= LONG_S:
                    self._free(loop, blocker, blocked)
                if loop is not self._serving:
                    self._distribute(loop.take_back(partial(self._stays, loop)))

    def _stays(self, loop: Loop, call: StartCall) -> bool:
        return self._loop_of(call) is loop

    def _blocker(self, loop: Loop, known: Whose | None) -> Whose | None:
        """What blocks a loop's thread; as is `known` from before, if it is what a call has left that was answered."""
        call, at = loop.blocker()
        blocker = known if call is None else whose(call)
        self._name("" if blocker is None else blocker[1], at)
        return blocker

    def _name(self, tool: str, at: str) -> None:
        self._seldom.log(
            logging.ERROR,
            "a tool blocks its thread instead of awaiting, and holds up the calls there; make it a plain function, "
            "which gets a thread of its own",
            of=tool or at,
            extra={"tool": tool, "at": at},
        )

    def _replace(self, loop: Loop, blocker: Whose | None, blocked: list[Loop]) -> None:
        """Have another loop serve from now on, rather one where no tool blocks; if there is none, look again later."""
        if blocker is not None:
            self._homes[ALL, blocker[1]] = loop
        well = [each for each in self._loops if each not in blocked]
        well.sort(key=lambda each: each in self._homes.values())
        if len(self._loops) < LOOPS_MAX and (not well or well[0] in self._homes.values()):
            well = [self._another()]
        if well:
            self._serving = well[0]

    def _free(self, loop: Loop, blocker: Whose | None, blocked: list[Loop]) -> None:
        """Have no calls stay in a loop but those of the tool and tenant that block it."""
        stays: dict[Whose, Loop] = {}
        if blocker is not None:
            stays[blocker], of_all = loop, (ALL, blocker[1])
            if self._homes.get(of_all) is loop:
                stays[of_all] = self._home_of(blocker[1], blocked) or loop
        others = {its: home for its, home in self._homes.items() if home is not loop}
        self._homes = others | stays

    def _home_of(self, tool: str, blocked: list[Loop]) -> Loop | None:
        """A loop for a tool that blocks threads, where no other one is at home; half are left to those that don't."""
        taken = [home for its, home in self._homes.items() if its[1] != tool]
        for loop in self._loops:
            if loop is not self._serving and loop not in blocked and loop not in taken:
                return loop
        return self._another() if len(self._loops) <= LOOPS_MAX // 2 else None

    def _another(self) -> Loop:
        loop = Loop(self._answered, self._allowance)
        self._loops = [*self._loops, loop]
        return loop
