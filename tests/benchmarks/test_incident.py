"""The incident: the same for both pipelines, whenever it is replayed; and what the naive one does in it."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import naive, outside
from benchmarks.counts import requests, twice, words
from benchmarks.incident import FOURTEEN, TWICE, WITHIN, moments_of, records
from benchmarks.incident_flow import deal_with
from benchmarks.incident_world import Busy, act, ask
from onceflow.testing import event, run_agent

EVENTS = 20_000


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where requests are noted; the model answers at once."""
    file = tmp_path / "outside"
    monkeypatch.setenv(*next(iter(outside.environment(file).items())))
    monkeypatch.setattr("benchmarks.incident_world.ANSWER_S", 0)
    return file


def fault(what: str, number: int) -> str:
    """What the first attempt of a call meets."""
    try:
        asyncio.run(ask(number, 1) if what == "model" else act(number, "plan", "", 1))
    except (TimeoutError, Busy) as error:
        return type(error).__name__
    return ""


def test_some_events_come_twice_and_some_fourteen_times() -> None:
    times = Counter(Counter(records(EVENTS, 1)).values())
    assert set(times) == {1, 2, 14}
    assert times[14] / EVENTS == pytest.approx(FOURTEEN, rel=0.2)
    assert times[2] / EVENTS == pytest.approx(TWICE, rel=0.1)


def test_a_copy_comes_soon_after_its_first_and_never_before() -> None:
    firsts: dict[int, int] = {}
    for place, number in enumerate(records(EVENTS, 1)):
        if number in firsts:
            assert place - firsts[number] <= 2 * WITHIN
        else:
            assert number == len(firsts), "the first ones are in order"
            firsts[number] = place


def test_the_same_seed_is_the_same_day() -> None:
    assert records(EVENTS, 1) == records(EVENTS, 1) != records(EVENTS, 2)
    assert moments_of(5, 1) == moments_of(5, 1) == sorted(moments_of(5, 1))
    assert len(set(moments_of(5, 1) + moments_of(5, 2))) == 10


def test_the_same_calls_meet_the_same_faults_whoever_makes_them(world: Path) -> None:
    for what in ("model", "act"):
        found = [fault(what, number) for number in range(400)]
        assert found == [fault(what, number) for number in range(400)]
        assert set(found) == {"", "TimeoutError", "Busy"}
    assert len({tokens for number, tokens in words(world, "model") if number == "7"}) == 1


def test_an_answer_is_lost_after_the_work_was_done_and_a_refusal_does_nothing(world: Path) -> None:
    faults = {number: fault("act", number) for number in range(400)}
    done = {int(request.run) for request in requests(world)}
    assert done == {number for number, found in faults.items() if found != "Busy"}


def test_the_naive_pipeline_starts_again_and_does_twice_what_lost_its_answer(world: Path) -> None:
    number = next(number for number in range(1000) if fault("act", number) == "TimeoutError")
    world.unlink()
    asyncio.run(naive.deal_with(number))
    assert twice(requests(world)) == 1
    assert len(words(world, "model")) == 2 + (fault("model", number) == "TimeoutError")


def test_the_flow_asks_again_with_the_same_key_and_the_same_plan(world: Path) -> None:
    number = next(number for number in range(1000) if fault("act", number) == "TimeoutError")
    lost = fault("model", number) == "TimeoutError"
    world.unlink()
    run_agent(deal_with, event(deal_with.on[0], {"invoice": number}))
    assert len(requests(world)) == 2
    assert twice(requests(world)) == 0
    assert len(words(world, "model")) == 1 + lost
