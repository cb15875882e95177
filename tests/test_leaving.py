"""A slot that is about to go: what becomes of calls that nobody may repeat."""

from typing import Any

import pytest

from onceflow.agents.call import Call
from onceflow.agents.calls import Completed, NotSent, Parked
from onceflow.agents.happenings import Decided
from onceflow.agents.run import Run
from onceflow.errors import GiveUp, RetryLater
from onceflow.event import Event
from onceflow.stream.leaving import leave
from tests.test_machine import Ledger, effect, pays

mail = effect("mail", effect="blind", retry=None)


book = effect("book", effect="blind", retry=None, on_unknown="compensate")


@book.compensate
async def cancel(call: Call, result: int | None) -> None: ...


async def books(run: Run, event: Event) -> int:
    return await run.call(book, n=1)  # type: ignore[no-any-return]


async def mails_twice(run: Run, event: Event) -> list[Any]:
    return [await run.call(mail, n=1), await run.call(mail, n=2)]


def moved(run: Ledger, after_ms: int = 0) -> None:
    """The slot goes, with what is on record; the run goes on in another cell."""
    run.take(run.run.take_back(run.now))
    run.now += after_ms
    run.start()


def sent(run: Ledger) -> None:
    """The calls that were asked for are sent, as the executor does it."""
    run.commit()
    for started in run.sent:
        started.call.sent(run.now, 1.0)


# --- a run ---


def test_a_call_that_was_not_sent_is_made_by_the_next_cell() -> None:
    run = Ledger(mails_twice)
    run.commit()
    run.run.leave()
    assert not run.run.in_doubt
    assert not run.run.wants(run.sent[0]), "it is in the executor's queue"
    moved(run)
    run.answer(1)
    run.answer(2)
    assert run.end == Completed([1, 2])


def test_a_call_that_was_sent_counts_as_unknown() -> None:
    run = Ledger(mails_twice)
    sent(run)
    run.run.leave()
    assert run.run.in_doubt
    moved(run)
    assert isinstance(run.end, Parked)


def test_an_answer_that_comes_meanwhile_is_on_record_and_nothing_comes_of_it_here() -> None:
    run = Ledger(mails_twice)
    sent(run)
    run.run.leave()
    run.answer(1)
    assert (run.sent, run.held, run.run.in_doubt) == ([], [], False)
    moved(run)
    run.answer(2)
    assert run.end == Completed([1, 2])


@pytest.mark.parametrize("error", [RetryLater("busy", after=5), NotSent()])
def test_an_attempt_that_changed_nothing_is_not_in_doubt(error: Exception) -> None:
    run = Ledger(mails_twice)
    sent(run)
    run.run.leave()
    run.answer(error)
    moved(run, after_ms=5_000)
    run.answer(1)
    run.answer(2)
    assert run.end == Completed([1, 2])


def test_a_call_that_failed_for_good_is_not_in_doubt() -> None:
    run = Ledger(mails_twice)
    sent(run)
    run.run.leave()
    run.answer(GiveUp("no such address"))
    moved(run)
    assert "no such address" in str(run.end)


def test_an_attempt_whose_outcome_nobody_knows_stays_so() -> None:
    run = Ledger(mails_twice)
    sent(run)
    run.run.leave()
    run.answer(TimeoutError())
    assert not run.run.in_doubt, "no answer will come"
    moved(run)
    assert isinstance(run.end, Parked)


def test_a_call_that_is_to_be_undone_as_nobody_knows_is_not_waited_for() -> None:
    """Its time is over; what undoes it waits until the call can no longer arrive."""
    run = Ledger(books)
    sent(run)
    run.answer(TimeoutError())
    run.commit()
    assert [call.kind for call in run.sent] == ["undo"]
    run.run.leave()
    assert not run.run.in_doubt
    moved(run)
    run.answer(None)
    assert "was compensated" in str(run.end)


def test_what_undoes_a_call_is_waited_for() -> None:
    run = Ledger(books)
    run.answer(TimeoutError())
    sent(run)
    run.run.leave()
    assert run.run.in_doubt


def test_of_calls_with_keys_nothing_need_be_on_record() -> None:
    """They are sent again."""
    run = Ledger(pays)
    run.commit()
    run.run.leave()
    assert run.run.take_back(run.now) == []
    run.start()
    run.answer(5)
    assert run.end == Completed(5)


# --- the lanes of a slot ---


class Lane:
    """One whose calls come home after so many waits; and what is done with it."""

    tenant = "acme"

    def __init__(self, waits: int) -> None:
        self.waits = waits
        self.steps: list[str] = []

    def leave(self) -> None:
        self.steps.append("leave")

    @property
    def in_doubt(self) -> bool:
        return self.waits > 0

    def wait(self) -> None:
        self.steps.append("wait")
        self.waits -= 1

    def take_back(self, now_ms: int) -> Decided:
        self.steps.append("take back")
        return Decided()


def left(waits: int, patience_s: float) -> list[str]:
    """What is done with such a lane."""
    lane: Any = Lane(waits)
    done = lane.steps.append
    leave([lane], patience_s, lambda: done("answers"), lane.wait, lambda tenant, decided: done("decided"))
    return lane.steps  # type: ignore[no-any-return]


def test_calls_that_are_out_are_waited_for() -> None:
    assert left(2, 60) == ["leave", "answers", "wait", "answers", "wait", "answers", "take back", "decided"]


def test_not_for_longer_than_the_group_waits() -> None:
    assert left(2, 0) == ["leave", "answers", "take back", "decided"]
