"""One run of an agent for each point at which a process may die, with each reply to each request; and their judge."""

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Any

from onceflow.agents.agent import Agent
from onceflow.agents.calls import StartCall
from onceflow.agents.failures import FOREIGN_AWAIT
from onceflow.agents.signals import Signal
from onceflow.event import Incoming, Reason
from onceflow.testing.kit import (
    NO_FLAGS,
    NOW,
    Flags,
    Outcome,
    Results,
    outcome_of,
    simulated,
    tail,
    to_its_own_end,
    to_the_end,
)
from onceflow.testing.script import ScriptError, check_no_loop, listed_signals
from onceflow.testing.simulation import Reply, Simulation
from onceflow.testing.target import Effect, Target, listed


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
    `target`: yours, if your tools call it, or the one that does what the tools in `results` do; there may be as many
    as when nothing happens to the run. A run that fails must have undone, once and in reverse order, what it had done
    and can undo. Parking a run is right where nobody can know.

    Tools that are called for real must reach `target`, or what they do would not be seen: ScriptError. A tool in
    `results` is never called; whether it passes its key on is for `check_tool`.

    Raises AssertionError with the timeline of the run and the effects, the wrong ones marked.
    """
    check_no_loop("crash_everywhere")
    world = target or Target()
    signals_again = listed_signals(signals)

    def begun() -> Simulation:
        simulation = simulated(agent, given, results, signals_again, NOW, world, flags)
        world.forget()
        return simulation

    clean = begun()
    steps = to_its_own_end(clean)
    _check_seen(clean)
    _judge(clean, "nothing happens to the run", None)
    _check_that_it_does_something(clean)
    requests, undisturbed = len(clean.called), outcome_of(clean)
    report = Report()
    for reply in replies:
        for request in range(requests) if reply is not Reply.OK else range(1):
            for step in range(steps + 1):
                simulation = begun()
                simulation.reply = _Nth(simulation, request, reply)
                to_the_end(simulation, step)
                _check_seen(simulation)
                _judge(
                    simulation,
                    f"{reply}, at request {request + 1}; the process dies after step {step}",
                    undisturbed,
                )
                report.scenarios += 1
                report.outcomes[_ending(simulation)] += 1
    _check_nothing_beside(clean)
    return report


_REMEDY = (
    'What changes something must be a tool with effect="keyed" (its key passed on to the target), or "blind", and '
    "asked for by run.call"
)


class _Nth:
    """Replies so to the nth request, and well to all others."""

    def __init__(self, simulation: Simulation, request: int, reply: Reply) -> None:
        self._simulation, self._request, self._reply = simulation, request, reply

    def __call__(self, started: StartCall) -> Reply:
        return self._reply if len(self._simulation.called) == self._request else Reply.OK


def _check_seen(simulation: Simulation) -> None:
    """A tool whose effects nobody sees would pass, whatever it does twice or does not undo."""
    for (name, kind), requests in simulation.real.items():
        if requests:
            continue
        if kind == "undo":
            raise ScriptError(
                f"the compensation of {name} is called for real, and nothing is undone: have it ask the service that "
                f"is passed as target=…, with call.key, or pass {name}'s result in results\n\n{tail(simulation)}"
            )
        raise ScriptError(
            f"{name} is called for real: pass the service that it calls as target=…, or its result in results"
            f"\n\n{tail(simulation)}"
        )


def _check_that_it_does_something(clean: Simulation) -> None:
    """A run that fails before it changes anything has nothing that a crash could double; one that awaits what isn't
    its run's always fails.
    """
    outcome = outcome_of(clean)
    if outcome.code in ("agent-failed", "invalid-data") and not clean.changing:
        raise ScriptError(
            "the run fails before it changes anything, and a crash of it shows nothing: "
            f"{outcome.code}, {outcome.message}. Correct the event, the results or the agent; "
            f"one that is meant to fail raises Failed with a code of its own\n\n{tail(clean)}"
        )
    if outcome.message.startswith(FOREIGN_AWAIT):
        raise ScriptError(f"the run fails, whatever happens to it: {outcome.message}\n\n{tail(clean)}")


def _check_nothing_beside(clean: Simulation) -> None:
    """What is done with a key outside of keyed calls may be done once here; but nothing was on record before it."""
    for operation, subject, *_ in clean.beside[:1]:
        raise AssertionError(
            f"{operation} was done for {subject} by the agent itself, or by a pure or read tool: nothing is on record "
            f"before it is done, and nothing undoes it. {_REMEDY}\n\n{tail(clean)}"
        )


def _ending(simulation: Simulation) -> str:
    found = outcome_of(simulation)
    return "parked" if found.parked else "waiting" if found.waiting else found.code or "completed"


def _judge(simulation: Simulation, scenario: str, undisturbed: Outcome | None) -> None:
    """Whether the world is as it must be; `undisturbed`: how the run goes if nothing happens to it; None: so it is."""
    effects = simulation.target.effects
    outcome = outcome_of(simulation)
    counts = _counts(effects)
    meant = _counts(e for e in (undisturbed or outcome).effects if e.operation not in simulation.once)
    wrong = {n for n, e in enumerate(effects) if counts[e[:2]] > max(1, meant[e[:2]])}
    complaint = ""
    if wrong:
        done = effects[min(wrong)][:2]
        instead = f", and {meant[done]} times if nothing happens to the run" if meant[done] > 1 else ""
        complaint = f"{done[0]} was done {counts[done]} times for {done[1]}{instead}. {_REMEDY}"
    elif other := [each.message for each in simulation.parked if each.reason == Reason.NONDETERMINISTIC]:
        complaint = (
            f"{other[0]}. A replay asked for something else: take time, random numbers and ids from `run`, pass values "
            "as arguments, not objects, and do not change them afterwards, in the agent or in a tool"
        )
    elif outcome.parked and undisturbed is None:
        complaint = f"the run is parked though nothing has happened to it: {outcome.parked}"
    elif outcome.waiting and undisturbed is not None and not undisturbed.waiting:
        complaint = "the run did not come to its end"
    elif len(simulation.ends) > 1:
        complaint = f"the run ended {len(simulation.ends)} times"
    elif outcome.code and (left := _left_standing(effects, simulation.undoable)):
        complaint = (
            f"the run failed, and these effects are left over, or undone in another order: {', '.join(left)}"
        )
    if complaint:
        raise AssertionError(
            f"{complaint}\n\nScenario: {scenario}\n\n{tail(simulation)}\n\nEffects:\n{listed(effects, wrong)}"
        )


def _counts(effects: Iterable[Effect]) -> Counter[tuple[str, str]]:
    """How often each operation was done for each subject."""
    return Counter(effect[:2] for effect in effects)


def _left_standing(effects: Iterable[Effect], undoable: Container[str]) -> list[str]:
    """What these tools did and was not undone, or not in reverse order."""
    done = [effect.subject for effect in effects if effect.operation in undoable]
    undone = [e.subject for e in effects if e.operation.startswith("undo ") and e.subject in done]
    return [] if undone == done[::-1] else [subject for subject in done if subject not in undone] or undone
