"""A wait whose time is over when it is asked for: it looks once, and waits for nothing."""

import pytest

from onceflow.agents.agent import agent
from onceflow.agents.calls import Completed
from onceflow.agents.happenings import Due
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


def test_a_wait_without_time_takes_a_signal_that_is_there() -> None:
    tenant = Tenant(looks)
    tenant.signalled(Signal("signed", "evt-1", "done", None, "vendor", "s-1"))
    tenant.event(looks)
    assert tenant.outcome == Completed("with")


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
