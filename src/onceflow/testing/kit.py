"""The testing kit's runs of an agent: one, or one for each point at which a process may die."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import msgspec

from onceflow.agents.agent import Agent
from onceflow.agents.calls import Completed, StartCall
from onceflow.agents.signals import Signal
from onceflow.agents.tool import Tool
from onceflow.event import Incoming
from onceflow.testing.simulation import Called, Reply, ScriptError, Simulation
from onceflow.testing.target import Effect, Target, listed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STEPS_MAX = 10_000

Results = Mapping[Tool[Any, Any], Any]
Flags = Mapping[str, bool | Mapping[str, bool]]
NO_FLAGS: Flags = MappingProxyType({})


def event(
    type: str, data: Any = None, *, tenant: str = "acme", id: str = "evt-1", source: str = "tests"
) -> Incoming:
    """An event, as a producer would send it."""
    text = b"" if data is None else msgspec.json.encode(data)
    return Incoming(tenant, source, id, type, None, text)


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
    simulation = _simulation(agent, given, results, signals, now, target or Target(), flags)
    _to_the_end(simulation)
    return _outcome(simulation)


@dataclass
class Report:
    """What `crash_everywhere` has tried: how many scenarios, and how often each outcome came of them."""

    scenarios: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


def crash_everywhere(
    agent: Agent[Any, Any],
    given: Incoming,
    *,
    results: Results | None = None,
    signals: Iterable[Signal] = (),
    target: Target | None = None,
    replies: Iterable[Reply] = tuple(Reply),
    flags: Flags = NO_FLAGS,
) -> Report:
    """Kill the process at every step, with every reply to every request; fail if an effect is done twice or left over.

    The steps: before an intent is committed and after, before a request and after it, before its result is committed
    and after. Each scenario runs to its end in a new process. An effect counts by its operation and subject, in the
    `target`: yours, if your tools call it, or the one that does what the tools in `results` do. A run that fails must
    have undone, once and in reverse order, what it had done and can undo. Parking a run is right where nobody can know.

    Tools that are called for real must reach `target`, or what they do would not be seen: ScriptError. A tool in
    `results` is never called; whether it passes its key on is for `check_tool`.

    Raises AssertionError with the timeline of the run and the effects, the wrong ones marked.
    """
    world = target or Target()
    signals = list(signals)

    def begun() -> Simulation:
        world.forget()
        return _simulation(agent, given, results, signals, NOW, world, flags)

    clean = begun()
    steps = _to_the_end(clean)
    _check_seen(clean)
    requests = len(clean.called)
    waits = _outcome(clean).waiting
    report = Report()
    for reply in replies:
        for request in range(requests) if reply is not Reply.OK else range(1):
            for step in range(steps + 1):
                simulation = begun()
                simulation.reply = _Nth(simulation, request, reply)
                _to_the_end(simulation, step)
                _check_seen(simulation)
                _judge(
                    simulation,
                    f"{reply}, at request {request + 1}; the process dies after step {step}",
                    waits,
                )
                report.scenarios += 1
                report.outcomes[_ending(simulation)] += 1
    return report


class _Nth:
    """Replies so to the nth request, and well to all others."""

    def __init__(self, simulation: Simulation, request: int, reply: Reply) -> None:
        self._simulation, self._request, self._reply = simulation, request, reply

    def __call__(self, started: StartCall) -> Reply:
        return self._reply if len(self._simulation.called) == self._request else Reply.OK


def _simulation(
    agent: Agent[Any, Any],
    given: Incoming,
    results: Results | None,
    signals: Iterable[Signal],
    now: datetime,
    target: Target,
    flags: Flags,
) -> Simulation:
    _check_script(given, results or {})
    now_ms = int(now.timestamp() * 1000)
    simulation = Simulation(
        [agent], [given], results=results or {}, signals=signals, target=target, now_ms=now_ms
    )
    simulation.flags = dict(flags)
    return simulation


def _check_script(given: object, results: Mapping[Any, Any]) -> None:
    if not isinstance(given, Incoming):
        raise ScriptError(f"the event is a {type(given).__name__}: make it with onceflow.testing.event(…)")
    for key in results:
        if isinstance(key, str):
            raise ScriptError(f"results takes tools, not names: write {{{key}: …}} instead of {{{key!r}: …}}")
        if not isinstance(key, Tool):
            name = getattr(key, "__name__", repr(key))
            raise ScriptError(f"results takes tools: decorate {name} with @tool(effect=…)")


def _check_seen(simulation: Simulation) -> None:
    """A tool whose effects nobody sees would pass, whatever it does twice."""
    for name, requests in simulation.real.items():
        if not requests:
            raise ScriptError(
                f"{name} is called for real: pass the service that it calls as target=…, or its result in results"
            )


def _to_the_end(simulation: Simulation, dies_after: int = -1) -> int:
    """Run it; the number of steps taken."""
    for steps in range(STEPS_MAX):
        if steps == dies_after:
            simulation.die()
        if not simulation.step():
            return steps
    raise AssertionError(f"the run has not ended after {STEPS_MAX} steps:\n" + _tail(simulation))


def _outcome(simulation: Simulation) -> Outcome:
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
        return Outcome(parked=simulation.parked[-1], **about)
    return Outcome(waiting=True, **about)


def _ending(simulation: Simulation) -> str:
    found = _outcome(simulation)
    return "parked" if found.parked else "waiting" if found.waiting else found.code or "completed"


def _judge(simulation: Simulation, scenario: str, waits: bool) -> None:
    """Whether the world is as it must be; `waits`: the run waits for a signal that nobody sends."""
    effects = simulation.target.effects
    counts = Counter((effect.operation, effect.subject) for effect in effects)
    wrong = {n for n, effect in enumerate(effects) if counts[effect.operation, effect.subject] > 1}
    complaint = ""
    if wrong:
        operation, subject = next((e.operation, e.subject) for n, e in enumerate(effects) if n in wrong)
        times = counts[operation, subject]
        complaint = (
            f"{operation} was done {times} times for {subject}. What changes something must be a tool with "
            'effect="keyed" (its key passed on to the target), or "blind", and asked for by run.call'
        )
    elif _outcome(simulation).waiting and not waits:
        complaint = "the run did not come to its end"
    elif len(simulation.ends) > 1:
        complaint = f"the run ended {len(simulation.ends)} times"
    elif _outcome(simulation).code and (left := _left_standing(effects, simulation.undoable)):
        complaint = (
            f"the run failed, and these effects are left over, or undone in another order: {', '.join(left)}"
        )
    if complaint:
        raise AssertionError(
            f"{complaint}\n\nScenario: {scenario}\n\n{_tail(simulation)}\n\nEffects:\n{listed(effects, wrong)}"
        )


def _left_standing(effects: Iterable[Effect], undoable: Container[str]) -> list[str]:
    """What these tools did and was not undone, or not in reverse order."""
    done = [effect.subject for effect in effects if effect.operation in undoable]
    undone = [e.subject for e in effects if e.operation.startswith("undo ") and e.subject in done]
    return [] if undone == done[::-1] else [subject for subject in done if subject not in undone] or undone


def _tail(simulation: Simulation) -> str:
    return "\n".join(simulation.timeline[-60:])
