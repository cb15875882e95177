"""Gates: a tool that suffers is left in peace, by the tenant that it suffers for."""

import pytest

from onceflow.agents.gates import REST_LONGEST_S, Allowance, Gate
from onceflow.errors import Failed, GiveUp, RetryLater

ALLOWED = Allowance(at_once=2, per_second=0, failures=3)


def failed(gate: Gate, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        gate.sent(ALLOWED, now)
        gate.ended(ALLOWED, now, TimeoutError())


def test_as_many_as_allowed_at_once() -> None:
    gate = Gate()
    for _ in range(2):
        assert gate.wait_s(ALLOWED, 0) == 0
        gate.sent(ALLOWED, 0)
    assert gate.wait_s(ALLOWED, 0) < 0
    gate.answered()
    assert gate.wait_s(ALLOWED, 0) == 0


def test_as_fast_as_allowed() -> None:
    gate, allowed = Gate(), Allowance(per_second=4)
    gate.sent(allowed, 10)
    assert gate.wait_s(allowed, 10) == 0.25
    assert gate.wait_s(allowed, 10.25) == 0


def test_one_that_is_told_to_come_later_has_a_turn_that_the_gate_remembers() -> None:
    gate, allowed = Gate(), Allowance(per_second=4)
    assert [gate.later_s(allowed, 100, 20) for _ in range(3)] == [20, 20.25, 20.5]
    assert gate.later_s(allowed, 110, 20) == 20, "that one would be too early"
    assert not gate.idle(129)
    assert gate.idle(130)


def test_failures_in_a_row_close_it_and_then_one_call_tries() -> None:
    gate = Gate()
    failed(gate, 2)
    assert gate.wait_s(ALLOWED, 0) == 0
    failed(gate, 1)
    assert gate.wait_s(ALLOWED, 0) == 1
    assert gate.wait_s(ALLOWED, 1) == 0
    gate.sent(ALLOWED, 1)
    assert gate.wait_s(ALLOWED, 1) < 0, "one tries, the others wait for it"
    gate.answered()
    assert (gate.wait_s(ALLOWED, 1), gate.probing) == (0, False)


def test_each_try_in_vain_has_it_rest_longer_up_to_a_bound() -> None:
    gate, now, rests = Gate(), 0.0, []
    failed(gate, 3)
    for _ in range(8):
        rests.append(gate.wait_s(ALLOWED, now))
        now += rests[-1]
        failed(gate, 1, now)
    assert rests == [1, 2, 4, 8, 16, 32, REST_LONGEST_S, REST_LONGEST_S]


def test_calls_that_were_under_way_together_when_it_closed_are_no_tries() -> None:
    gate, allowed = Gate(), Allowance(failures=3)
    for _ in range(64):
        gate.sent(allowed, 0)
    closes = [gate.ended(allowed, 0.5, ConnectionError()) for _ in range(64)]
    assert gate.wait_s(allowed, 0.5) == 1, "as after any third failure"
    assert closes.count(True) == 1, "and it is said once"


def test_failures_without_end_are_counted_no_further_than_they_matter() -> None:
    gate, now = Gate(), 0.0
    for _ in range(2_000):
        gate.sent(ALLOWED, now)
        gate.ended(ALLOWED, now, RetryLater(after=1))
        now += 1
    failed(gate, 1, now)
    assert gate.wait_s(ALLOWED, now) == REST_LONGEST_S


def test_it_rests_for_as_long_as_the_target_has_said() -> None:
    gate = Gate()
    gate.sent(ALLOWED, 0)
    assert gate.ended(ALLOWED, 0, RetryLater(after=30))
    assert gate.wait_s(ALLOWED, 0) == 30


@pytest.mark.parametrize("error", [None, Failed("no"), GiveUp("no")])
def test_an_answer_of_any_kind_begins_the_count_anew(error: Exception | None) -> None:
    gate = Gate()
    failed(gate, 2)
    gate.sent(ALLOWED, 0)
    gate.answered() if error is None else gate.ended(ALLOWED, 0, error)
    failed(gate, 2)
    assert gate.wait_s(ALLOWED, 0) == 0


def test_a_try_that_was_given_up_says_nothing_about_the_tool() -> None:
    gate = Gate()
    failed(gate, 3)
    gate.sent(ALLOWED, 1)
    gate.given_up()
    assert (gate.probing, gate.failed, gate.running) == (True, 3, 0)
    assert gate.wait_s(ALLOWED, 1) == 0, "another one tries"


def test_only_a_gate_that_remembers_nothing_is_forgotten() -> None:
    gate = Gate()
    assert gate.idle(0)
    failed(gate, 1)
    assert not gate.idle(0)


def test_a_failure_is_remembered_for_as_long_as_the_longest_rest() -> None:
    gate = Gate()
    failed(gate, 4, now=10)
    rested_until = 10 + gate.wait_s(ALLOWED, 10)
    assert not gate.idle(rested_until + REST_LONGEST_S)
    assert gate.idle(rested_until + REST_LONGEST_S + 1)
