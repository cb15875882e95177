"""The testing kit's run of an agent: what it is given, and how it went."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import msgspec

from onceflow.agents.agent import Agent
from onceflow.agents.calls import Completed
from onceflow.agents.signals import Signal
from onceflow.agents.tool import Tool
from onceflow.event import Incoming, attribute_fault
from onceflow.testing.forgotten import forgotten_awaits
from onceflow.testing.script import ScriptError, check_no_loop, check_script, listed_signals
from onceflow.testing.simulation import Called, Simulation
from onceflow.testing.target import Effect, Target

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STEPS_MAX = 10_000

Results = Mapping[Tool[Any, Any], Any]
Flags = Mapping[str, bool | Mapping[str, bool]]
NO_FLAGS: Flags = MappingProxyType({})


def event(
    type: str,
    data: Any = None,
    *,
    tenant: str = "acme",
    id: str = "evt-1",
    source: str = "tests",
    time: datetime | None = None,
) -> Incoming:
    """An event, as a producer would send it; `time` is what the agent finds in `event.time`."""
    if time is not None and (not isinstance(time, datetime) or time.utcoffset() is None):
        raise ScriptError(
            f"time is {time!r}: write a datetime with an offset, as datetime(2026, 8, 1, tzinfo=UTC)"
        )
    for name, content in {"type": type, "tenant": tenant, "id": id, "source": source}.items():
        if fault := attribute_fault(name, content):
            raise ScriptError(f"no producer can send such an event: {fault}")
    text = b"" if data is None else msgspec.json.encode(data)
    return Incoming(tenant, source, id, type, time, text)


def signal(type: str, id: str, status: str = "", *, number: int = 1, **data: Any) -> Signal:
    """A signal for a wait; `number` tells signals apart: the same number again is a copy."""
    return Signal(type, id, status, {"status": status, **data}, "tests", f"{type}-{id}-{number}")


@dataclass(frozen=True)
class Outcome:
    """How a run went. `code` is that of a failed run, `parked` why a person would have to decide."""

    value: Any = None
    code: str = ""
    message: str = ""
    parked: str = ""
    waiting: bool = False  # for a signal that nobody sends
    calls: Sequence[Called] = ()
    effects: Sequence[Effect] = ()
    timeline: str = ""


def run_agent(
    agent: Agent[Any, Any],
    given: Incoming,
    *,
    results: Results | None = None,
    signals: Iterable[Signal] = (),
    now: datetime = NOW,
    target: Target | None = None,
    flags: Flags = NO_FLAGS,
) -> Outcome:
    """Run an agent on an event to its end, or until it is parked or waits for a signal that does not come.

    flags: what `run.flag` answers, by name: True, False, or that by market (and `default`).
    signals: come one after another, when there is nothing else to do; before a time-out is waited for.
    """
    check_no_loop("run_agent")
    simulation = simulated(agent, given, results, listed_signals(signals), now, target or Target(), flags)
    to_its_own_end(simulation)
    return outcome_of(simulation)


def simulated(
    agent: Agent[Any, Any],
    given: Incoming,
    results: Results | None,
    signals: list[Signal],
    now: datetime,
    target: Target,
    flags: Flags,
) -> Simulation:
    check_script(given, results or {}, flags)
    if not isinstance(target, Target) or not isinstance(now, datetime):
        raise ScriptError("target=… takes a onceflow.testing.Target, and now=… a datetime")
    now_ms = int(now.timestamp() * 1000)
    simulation = Simulation(
        [agent], [given], results=results or {}, signals=signals, target=target, now_ms=now_ms
    )
    simulation.flags = dict(flags)
    return simulation


def to_the_end(simulation: Simulation, dies_after: int = -1) -> int:
    """Run it; the number of steps taken."""
    for steps in range(STEPS_MAX):
        if steps == dies_after:
            simulation.die()
        if not simulation.step():
            return steps
    raise AssertionError(f"the run has not ended after {STEPS_MAX} steps:\n" + tail(simulation))


def to_its_own_end(simulation: Simulation) -> int:
    """The same, if no process dies: the agent must have awaited all that it has asked for, unless it failed before."""
    with forgotten_awaits() as forgotten:
        steps = to_the_end(simulation)
    if forgotten and simulation.ends and isinstance(simulation.ends[-1][1], Completed):
        raise AssertionError(
            f"the run has completed, and nothing was done for a call that was never awaited: "
            f"write `{forgotten[0]}`\n\n{tail(simulation)}"
        )
    return steps


def outcome_of(simulation: Simulation) -> Outcome:
    about: dict[str, Any] = {
        "calls": tuple(simulation.called),
        "effects": tuple(simulation.target.effects),
        "timeline": "\n".join(simulation.timeline),
    }
    if simulation.ends:
        _, end = simulation.ends[-1]
        if isinstance(end, Completed):
            return Outcome(end.value, **about)
        return Outcome(code=end.code, message=end.message, **about)
    if simulation.parked:
        return Outcome(parked=simulation.parked[-1].message, **about)
    return Outcome(waiting=True, **about)


def tail(simulation: Simulation) -> str:
    return "\n".join(simulation.timeline[-60:])
