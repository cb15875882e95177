"""A wait whose time is over: when it is asked for, or when a cell that has died before the look is followed by another.

It looks once, and waits for nothing.
"""

from typing import Any

import pytest

from onceflow.agents.agent import agent
from onceflow.agents.calls import Completed
from onceflow.agents.happenings import Arrived, Due, Turn
from onceflow.agents.machine import Machine
from onceflow.agents.run import Run
from onceflow.agents.signals import Signal
from onceflow.errors import WaitExpired
from onceflow.event import Event
from tests.tenant import INCOMING, KEY, NOW, Tenant


@agent("looks", on="t")
async def looks(run: Run, event: Event) -> str:
    try:
        await run.wait_for("signed", "evt-1", timeout=0)
    except WaitExpired:
        return "without"
    return "with"


SIGNAL = Signal("signed", "evt-1", "done", None, "vendor", "s-1")


@agent("waits", on="t")
async def waits(run: Run, event: Event) -> str:
    await run.wait_for("signed", "evt-1", timeout=600)
    return "with"


def test_a_wait_without_time_takes_a_signal_that_is_there() -> None:
    tenant = Tenant(looks)
    tenant.signalled(SIGNAL)
    tenant.event(looks)
    assert tenant.outcome == Completed("with")


@pytest.mark.parametrize(("by", "away_s"), [(looks, 0), (waits, 500), (waits, 700)])
def test_a_signal_that_was_there_ends_the_wait_though_the_cell_dies_before_the_look(
    by: Any, away_s: int
) -> None:
    tenant = Tenant(looks, waits)
    tenant.signalled(SIGNAL)
    arrived = Arrived(tenant.source, 1, NOW, b"{}", None, INCOMING, by, key=KEY)
    assert tenant.lane.take([arrived], NOW).looked, "which nobody does now"
    tenant.begin_anew()
    tenant.now += away_s * 1000
    tenant.resume()
    assert tenant.outcome == Completed("with")
    assert [kept.taken for _, kept in tenant.memory.signals(b"acme\0s")] == [True], "no other wait has it"


@pytest.mark.parametrize(("came_s", "so"), [(500, [Completed("with")]), (650, ["expired"])])
def test_a_signal_that_comes_while_the_run_waits_for_room_counts_if_it_was_in_time(
    came_s: int, so: Any
) -> None:
    tenant = Tenant(waits)
    tenant.event(waits)
    tenant.begin_anew()
    tenant.capacity.runs_per_lane = 0
    tenant.resume()
    tenant.now += came_s * 1000
    tenant.signalled(SIGNAL)
    tenant.now += 200_000
    tenant.capacity.runs_per_lane = 1
    tenant.take(Turn())
    assert [getattr(ended.outcome, "code", ended.outcome) for ended in tenant.ended] == so
    assert [kept.taken for _, kept in tenant.memory.signals(b"acme\0s")] == [so != ["expired"]]


def test_a_signal_that_comes_when_the_time_is_over_is_kept_for_another_wait() -> None:
    tenant = Tenant(waits)
    tenant.event(waits)
    tenant.now += 600_000
    tenant.take(Due(KEY))
    tenant.signalled(SIGNAL)
    assert tenant.outcome.code == "expired"
    assert [kept.taken for _, kept in tenant.memory.signals(b"acme\0s")] == [False]


@pytest.mark.parametrize("crash", [False, True])
def test_a_wait_without_time_waits_for_no_signal_and_its_agent_may_go_on(crash: bool) -> None:
    tenant = Tenant(looks)
    tenant.event(looks)
    assert tenant.due_ms == NOW, "it is told of its time-out at once"
    if crash:
        tenant.begin_anew()
        tenant.resume()
    else:
        tenant.take(Due(KEY))
    assert tenant.outcome == Completed("without")


def test_a_sleep_of_no_time_does_not_put_the_run_into_the_ledger() -> None:
    @agent("sleeps-not", on="t")
    async def sleeps_not(run: Run, event: Event) -> str:
        await run.sleep(0)
        return "awake"

    effects = Machine(sleeps_not, None).begin(Event.of(INCOMING, KEY.hex(), 7), NOW)
    assert effects == [Completed("awake")]
