"""Calls at a gate: in the order in which they came, one woken by the other, and none held up by who gave up."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from onceflow.agents import passing
from onceflow.agents.calls import NotSent
from onceflow.agents.gates import Allowance, Gate
from onceflow.agents.passing import Passing
from onceflow.errors import RetryLater

AT = ("acme", "charge")


class Crowd:
    """Calls that stand at one gate, and in which order they passed."""

    def __init__(self, allowance: Allowance) -> None:
        self.gates = Passing(asyncio.get_running_loop(), allowance)
        self.passed: list[int] = []
        self.refused: list[int] = []
        self.refused_s: list[float] = []  # for how long
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, count: int) -> None:
        """So many come, one after another."""
        first = len(self.tasks)
        self.tasks += [asyncio.create_task(self._pass(number)) for number in range(first, first + count)]
        await self.settled()

    async def settled(self) -> None:
        """Until nobody can go on by itself."""
        for _ in range(3 * len(self.tasks) + 3):
            await asyncio.sleep(0)  # sleeps: no time, all tasks take a step

    async def end(self, count: int = 1, error: BaseException | None = None) -> None:
        """So many that have passed come to their end."""
        gate = self.gates._gates[AT]
        for _ in range(count):
            self.gates.ended(AT, gate, error)
        await self.settled()

    async def _pass(self, number: int) -> None:
        gate: Gate | None = self.gates.at_once(AT, passing.now())
        try:
            gate = gate or await self.gates.in_turn(AT)
        except NotSent as error:
            self.refused.append(number)
            self.refused_s.append(error.after_s)
        else:
            self.passed.append(number)


def crowd(allowance: Allowance, story: Callable[[Crowd], Coroutine[Any, Any, None]]) -> None:
    async def told() -> None:
        here = Crowd(allowance)
        await story(here)
        for task in here.tasks:
            task.cancel()
        await asyncio.gather(*here.tasks, return_exceptions=True)
        assert here.gates._queues == {}, "nobody is left behind"

    asyncio.run(told())


def test_they_pass_in_the_order_in_which_they_came() -> None:
    async def story(here: Crowd) -> None:
        await here.come(6)
        assert here.passed == [0, 1]
        await here.end()
        assert here.passed == [0, 1, 2]
        await here.come(1)
        await here.end(2)
        assert here.passed == [0, 1, 2, 3, 4]
        await here.end(2)
        assert here.passed == [0, 1, 2, 3, 4, 5, 6]

    crowd(Allowance(at_once=2), story)


def test_who_comes_later_does_not_pass_those_that_wait() -> None:
    async def story(here: Crowd) -> None:
        await here.come(3)
        here.gates.ended(AT, here.gates._gates[AT], None)  # and before anybody who waits has gone on
        assert here.gates.at_once(AT, passing.now()) is None

    crowd(Allowance(at_once=1), story)


@pytest.mark.parametrize("gives_up", [1, 2, 4])
def test_one_that_gives_up_holds_up_nobody(gives_up: int) -> None:
    async def story(here: Crowd) -> None:
        await here.come(5)
        here.tasks[gives_up].cancel()
        await here.settled()
        for _ in range(4):
            await here.end()
        assert here.passed == [number for number in range(5) if number != gives_up]

    crowd(Allowance(at_once=1), story)


def test_one_that_gives_up_in_the_moment_in_which_it_is_woken_wakes_the_next() -> None:
    async def story(here: Crowd) -> None:
        await here.come(3)
        here.gates.ended(AT, here.gates._gates[AT], None)
        here.tasks[1].cancel()
        await here.settled()
        assert here.passed == [0, 2]

    crowd(Allowance(at_once=1), story)


def test_when_the_tool_rests_for_long_none_of_them_is_sent() -> None:
    async def story(here: Crowd) -> None:
        await here.come(5)
        await here.end(error=RetryLater(after=60))
        assert (here.passed, here.refused) == ([0], [1, 2, 3, 4])

    crowd(Allowance(at_once=1), story)


def test_at_a_rate_only_the_first_looks_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that wait would wake at the same time, and all but one for nothing."""
    asked: list[float] = []
    wait_s = Gate.wait_s

    def counted(self: Gate, allowance: Allowance, now: float) -> float:
        asked.append(now)
        return wait_s(self, allowance, now)

    monkeypatch.setattr(Gate, "wait_s", counted)

    async def story(here: Crowd) -> None:
        await here.come(100)
        assert here.passed == [0]
        assert len(asked) <= 3

    crowd(Allowance(at_once=1_000, per_second=20), story)


def test_at_a_rate_those_whose_turn_is_far_off_are_not_sent() -> None:
    async def story(here: Crowd) -> None:
        await here.come(10)
        assert (here.passed, here.refused) == ([0], [7, 8, 9])
        assert [round(wait_s) for wait_s in here.refused_s] == [12, 14, 16], (
            "each in its turn, not all together"
        )

    crowd(Allowance(at_once=1_000, per_second=0.5), story)
