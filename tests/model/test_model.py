"""The protocol as a specification: whatever happens between any two steps, every event completes once.

The long run, `python -m tests.model --schedules 100000 --jobs 2`, says the same of five times as many.
"""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model.rules import ALL, COSTS_ONLY, NEEDED
from tests.model.schedule import run_bytes, run_schedule

pytestmark = pytest.mark.schedules

BLOCK = 2_500


def steps(seed: int, *without: str) -> str:
    return run_schedule(seed, ALL.without(*without), tracing=True).report(f"of seed {seed}")


@pytest.mark.parametrize("block", range(8))
def test_whatever_happens_every_event_completes_once(block: int) -> None:
    """None lost, none twice, no input stuck, no slot held by a dead cell that could be asked to let go.

    Four blocks of seeds are always the same, four are others each day; a failure names its seed.
    """
    today = int(time.time() // 86_400)
    first = BLOCK * (block if block < 4 else 4 * today + block)
    for seed in range(first, first + BLOCK):
        assert not run_schedule(seed).faults, steps(seed)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(min_size=500, max_size=3_000))
def test_no_schedule_that_hypothesis_finds_loses_or_doubles_an_event(schedule: bytes) -> None:
    """The same, with schedules that shrink: zeros are the most ordinary choice everywhere."""
    outcome = run_bytes(schedule)
    assert not outcome.faults, run_bytes(schedule, tracing=True).report(schedule.hex())


@pytest.mark.parametrize("rule", NEEDED)
def test_without_this_rule_some_schedule_goes_wrong(rule: str) -> None:
    """The checker is worth something, and the rule is needed."""
    rules = ALL.without(rule)
    assert any(run_schedule(seed, rules).faults for seed in range(8_000)), f"{rule} can be left out unnoticed"


@pytest.mark.parametrize("rule", COSTS_ONLY)
def test_without_this_rule_only_work_is_wasted(rule: str) -> None:
    """Written down so that nobody takes these for what keeps events safe."""
    for seed in range(1_000):
        assert not run_schedule(seed, ALL.without(rule)).faults, steps(seed, rule)


def test_a_schedule_can_be_repeated() -> None:
    """A seed and a rule left out give the same steps and the same faults each time."""
    seed = next(seed for seed in range(100) if run_schedule(seed, ALL.without("in_flight")).faults)
    assert steps(seed, "in_flight") == steps(seed, "in_flight")
    assert "twice" in steps(seed, "in_flight")


def test_a_rule_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no such rule: luck; there are: finished_is_committed"):
        ALL.without("luck")
