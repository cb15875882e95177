"""`run.gather`: several calls at the same time, and which of its branches goes on when."""

from typing import Any

import pytest

from onceflow.agents.call import Call
from onceflow.agents.calls import Completed, Raised, Returned
from onceflow.agents.machine import Machine
from onceflow.agents.run import Run
from onceflow.errors import Failed
from onceflow.event import Event
from tests.test_run import EVENT, NOW, calls, fetch, machine, value


def test_gather_asks_for_all_at_once_and_returns_in_the_order_given() -> None:
    async def three(run: Run, event: Event) -> list[str]:
        return await run.gather(*(run.call(fetch, name=name) for name in "abc"))

    run = machine(three)
    assert [place for place, _ in calls(run.begin(EVENT, NOW))] == ["0.0.0", "0.1.0", "0.2.0"]
    for place in ("0.2.0", "0.0.0"):
        assert run.answer(Returned(place, 1, value(place)), NOW) == []
    assert run.answer(Returned("0.1.0", 1, value("0.1.0")), NOW) == [Completed(["0.0.0", "0.1.0", "0.2.0"])]


def test_when_one_of_a_gather_fails_the_others_are_waited_for_and_the_first_error_counts() -> None:
    async def three(run: Run, event: Event) -> Any:
        try:
            return await run.gather(*(run.call(fetch, name=name) for name in "abc"))
        except Failed as error:
            return error.code

    run = machine(three)
    run.begin(EVENT, NOW)
    assert run.answer(Raised("0.2.0", 1, Failed("last", "")), NOW) == []
    assert run.answer(Raised("0.1.0", 1, Failed("middle", "")), NOW) == []
    assert run.answer(Returned("0.0.0", 1, value("A")), NOW) == [Completed("middle")]


def test_an_answer_lets_only_that_branch_of_a_gather_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, outcome = [], Machine.outcome

    def noted(self: Machine, tool: Any, place: str, call: Call) -> Any:
        asked.append(place)
        return outcome(self, tool, place, call)

    async def within(run: Run) -> list[str]:
        return await run.gather(run.call(fetch, name="b"), run.call(fetch, name="c"))

    async def gathers(run: Run, event: Event) -> list[Any]:
        return await run.gather(run.call(fetch, name="a"), within(run))

    run = machine(gathers)
    run.begin(EVENT, NOW)
    monkeypatch.setattr(Machine, "outcome", noted)
    for place in ("0.1.0.1.0", "0.0.0", "0.1.0.0.0"):
        ended = run.answer(Returned(place, 1, value(place)), NOW)
    assert asked == ["0.1.0.1.0", "0.0.0", "0.1.0.0.0"]
    assert ended == [Completed(["0.0.0", ["0.1.0.0.0", "0.1.0.1.0"]])]


def test_a_gather_of_nothing_is_an_empty_list() -> None:
    async def none(run: Run, event: Event) -> list[Any]:
        return await run.gather()

    assert machine(none).begin(EVENT, NOW) == [Completed([])]
