"""What an operator of the dataflow makes of what it is given: a lane exists only while something of it is open."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from onceflow.agents.agent import Agent, agent, routes
from onceflow.agents.calling import Answered
from onceflow.agents.calls import Returned, StartCall
from onceflow.agents.happenings import Arrivals, Turn
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.config import Settings
from onceflow.event import Event, Incoming
from onceflow.stream.content import Ends, Finished, Grant, Input, Work
from onceflow.stream.dataflow import _InletPartition, _LaneLogic
from onceflow.stream.lanes import Lanes
from onceflow.stream.letters import Letters
from onceflow.stream.runtime import Runtime
from onceflow.stream.topics import Names

NAMES = Names.of("flow")
SOURCE = Input("events", 3, Grant(3), topic_id="id")


@tool(effect="read")
async def fetch() -> str:
    raise AssertionError("nobody carries out calls here")


@agent("asks-if-odd", on="t")
async def asks_if_odd(run: Run, event: Event[int]) -> str:
    return await run.call(fetch) if event.data % 2 else "even"


@pytest.fixture
def started() -> list[StartCall]:
    return []


@pytest.fixture
def runtime(started: list[StartCall]) -> Runtime:
    """A cell's, as far as its operators go: it serves nothing."""
    metrics: Any = SimpleNamespace()
    runtime = Runtime("flow", Settings(), routes([asks_if_odd]), metrics, None)
    letters = Letters("flow", NAMES, dict.fromkeys(NAMES, 1_000_000), 100_000)
    open_runs: Any = SimpleNamespace(memory=lambda tenant: None)
    executor: Any = SimpleNamespace(start=started.extend, abandon=lambda runs: None)
    parts = (executor, open_runs, letters, runtime._flags, runtime._standing, 1)
    runtime.lanes = Lanes(runtime.capacity, *parts, inbox=lambda tenant: None, put=lambda ends: None)
    return runtime


def read(*numbers: int, by: Agent[Any, Any] = asks_if_odd) -> Arrivals:
    """Events of one poll, with their keys."""
    incomings = [Incoming("acme", "erp", f"evt-{n}", "t", None, b"%d" % n) for n in numbers]
    keys = [n.to_bytes(16, "big") for n in numbers]
    return Arrivals(SOURCE, by, [*numbers], [1_000] * len(numbers), incomings, keys, [*keys])


def offsets(ends: Any) -> list[int]:
    return [offset for batch in ends for end in batch for offset in end.offsets]


def test_runs_that_end_at_once_make_no_lane(runtime: Runtime) -> None:
    ends, discard = _LaneLogic(runtime, None).on_batch([Work("acme", [read(0, 2)]), Work("acme", [read(4)])])
    assert (offsets(ends), discard, runtime.lanes.by_tenant) == ([0, 2, 4], True, {})


def test_a_run_that_goes_on_makes_one_which_is_kept_until_it_has_ended(
    runtime: Runtime, started: list[StartCall]
) -> None:
    logic = _LaneLogic(runtime, None)
    ends, discard = logic.on_batch([Work("acme", [read(0, 1, 2)])])
    assert (offsets(ends), discard, [*runtime.lanes.by_tenant]) == ([0, 2], False, ["acme"])
    assert logic.snapshot() is not None
    (call,) = started
    answer = Returned(call.place, call.call.attempt, fetch.encode_result("odd"))
    ends, discard = logic.on_batch([Work("acme", [Answered(call.run, answer)])])
    assert (offsets(ends), discard, runtime.lanes.by_tenant) == ([1], True, {})


def test_a_turn_that_a_tenant_without_a_lane_gets_is_given_back(runtime: Runtime) -> None:
    capacity = runtime.capacity
    capacity._waiting["acme"] = None
    assert capacity.turns() == ["acme"]
    ends, discard = _LaneLogic(runtime, None).on_batch([Work("acme", [Turn(), read(0)])])
    assert (offsets(ends), discard, runtime.lanes.by_tenant) == ([0], True, {})
    assert capacity.in_flight == 0


def test_what_has_ended_before_passes_through(runtime: Runtime) -> None:
    ended = Ends([Finished(SOURCE, (7,), "duplicate", 100)])
    ends, discard = _LaneLogic(runtime, None).on_batch([ended])
    assert (offsets(ends), discard) == ([7], True)


def test_the_inlet_is_asked_for_more_whatever_the_clock_says(runtime: Runtime) -> None:
    """With a time of day ahead of it, Bytewax stood still for as long as the clock was set back."""
    assert _InletPartition(runtime).next_awake() < datetime(2000, 1, 1, tzinfo=UTC)
