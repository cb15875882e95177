"""A cell in memory: the real lane and the real runs, with a ledger in a dictionary and a clock that one sets.

Deterministic, and nothing waits: a delay moves the clock. What was decided is committed as one step, so a simulated
process can die between any two steps; what was not committed is then gone, as on a real Kafka.
"""

import asyncio
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec

from onceflow.agents.agent import Agent, routes
from onceflow.agents.call import NotDone
from onceflow.agents.calling import Answered, answer_of, function_of
from onceflow.agents.calls import Answer, Completed, NotSent, Parked, Raised, RunFailed, StartCall
from onceflow.agents.capacity import Capacity
from onceflow.agents.happenings import (
    Arrived,
    Decided,
    Due,
    Happening,
    Lost,
    Resumed,
    Signalled,
    Sleeping,
)
from onceflow.agents.journal import Entry, entries_of, open_runs
from onceflow.agents.lane import Lane
from onceflow.agents.order import in_turn
from onceflow.agents.signals import Signal
from onceflow.config import Limits
from onceflow.errors import RetryLater
from onceflow.event import Incoming, idempotency_key
from onceflow.stream.completion_values import CompletionValues
from onceflow.testing.memory_ledger import MemoryLedger
from onceflow.testing.script import SAYS_NOTHING_DONE, ScriptError, Scripts, no_such_raise
from onceflow.testing.target import Effect, Target


class Reply(StrEnum):
    """How the world answers a request."""

    OK = "ok"
    LOST = "time-out after the effect"
    LATE = "time-out, the effect comes later"
    REFUSED = "503, nothing done"
    GARBAGE = "an answer that cannot be read, after the effect"


class Called(NamedTuple):
    """A request that a run has sent."""

    tool: str
    kind: str  # call, undo or reconcile
    place: str
    arguments: Mapping[str, Any]
    key: str
    attempt: int


class Simulation:
    """One tenant's share of a cell. `step` does the next thing; False: there is nothing left to do."""

    def __init__(
        self,
        agents: Sequence[Agent[Any, Any]],
        events: Iterable[Incoming],
        *,
        results: Mapping[Any, Any],
        signals: Iterable[Signal],
        target: Target,
        now_ms: int,
    ) -> None:
        self.now_ms = now_ms
        self.target = target
        self.timeline: list[str] = []
        self.called: list[Called] = []
        self.ends: list[tuple[str, Completed | RunFailed]] = []  # run, how
        self.parked: list[Parked] = []
        self.flags: dict[str, bool | Mapping[str, bool]] = {}
        self.reply: Callable[[StartCall], Reply] = lambda started: Reply.OK
        self.real: Counter[tuple[str, str]] = (
            Counter()
        )  # what changes something and is called for real: its requests
        self.changing = 0  # requests of tools that change something
        self.beside: list[
            Effect
        ] = []  # done by the agent itself, a pure or a read tool: nothing is on record of it
        self.undoable = {tool.name for tool in results if tool.compensation is not None}
        self.once = {
            each for tool in results for each in (tool.name, f"undo {tool.name}")
        }  # for each of its subjects
        self._scripts = Scripts(results)
        self._values = CompletionValues("tests", Limits().value_bytes)
        self._agents, self._routes = agents, routes(agents)
        self._source = SimpleNamespace(topic="events", partition=0, grant=SimpleNamespace(live=True))
        self._ledger = MemoryLedger(agents, self._source)
        self._unfinished = dict(enumerate(events))
        self._signals = list(signals)
        self._signals_done = 0
        self._late: list[StartCall] = []
        self._started_ms = now_ms
        self._tenant = next(iter(self._unfinished.values())).tenant
        self._happenings: list[Happening] = []
        self._decided = Decided()
        self._calls: list[StartCall] = []
        self._due: list[tuple[int, bytes]] = []
        self._start()

    def say(self, line: str) -> None:
        """Add a line to the timeline."""
        self.timeline.append(f"{(self.now_ms - self._started_ms) / 1000:8.2f} s  {line}")

    def die(self) -> None:
        """kill -9, and a new process: what was not committed is gone, and events that were not finished come again."""
        self.say("✗ the process dies; another one goes on")
        self._scripts.disturbed = True
        self._lane.take([Lost(self._source.grant)], self.now_ms)  # its agents are given up, and not by Python
        self._ledger.newer = {}
        self._start()
        self._arrive_late()

    def step(self) -> str:
        """Do the next thing: what was done, in words; "" if there is nothing left to do."""
        if self._happenings:
            given, self._happenings = self._happenings, []
            before = len(self.target.effects)
            self._decided = self._lane.take(given, self.now_ms, self._decided)
            self.beside += self.target.effects[before:]
            return "decided"
        if self._decided != Decided():
            self._commit()
            return "committed"
        if self._calls:
            self._call(self._calls.pop(0))
            return "called"
        if self._signals_done < len(self._signals):
            self._signal(self._signals_done)
            return "a signal came"
        if self._due:
            due_ms, key = min(self._due)
            self._due.remove((due_ms, key))
            self.now_ms = max(self.now_ms, due_ms)
            self._happenings.append(Due(key))
            return "time passed"
        self._arrive_late()
        return ""

    # --- within ---

    def _arrive_late(self) -> None:
        """Requests that were on their way reach the world."""
        late, self._late = self._late, []
        for started in late:
            said = "happens after all"
            try:
                self._perform(started)
            except ScriptError:
                raise
            except Exception as error:  # noqa: BLE001 (nobody waits for its answer any more)
                said = f"raises {type(error).__name__} after all"
            self.say(f"  … {self._named(started)} {said}")

    def _start(self) -> None:
        self._happenings, self._decided, self._calls, self._due = [], Decided(), [], []
        capacity = Capacity(runs_per_lane=1_000, runs_per_cell=1_000)
        calls = (self._calls.extend, lambda runs: None)
        more: Any = {"flags": self._flag, "write_end": self._values.written}
        self._lane = Lane(self._tenant, capacity, *calls, self._ledger, **more)
        for saved, goes_on in in_turn(open_runs(self._ledger.scan(b""))):
            if not goes_on:
                self._happenings.append(Sleeping(saved.key, self._source, saved.begun.line, saved.begun.turn))
            else:
                self._happenings.append(Resumed(self._ledger.again(saved, self._source)))
        for offset, incoming in self._unfinished.items():
            key = idempotency_key(incoming.tenant, incoming.source, incoming.id, incoming.data)
            agent = self._routes.find(incoming.type)
            if agent is None:
                taken = "; ".join(f"{each.name} takes {', '.join(each.on)}" for each in self._agents)
                raise ScriptError(f"no agent takes {incoming.type!r}; {taken}")
            arrived = Arrived(self._source, offset, self.now_ms, b"", None, incoming, agent, key=key)
            self._happenings.append(arrived)

    def _flag(self, name: str, market: str | None) -> bool:
        flag = self.flags.get(name, False)
        if isinstance(flag, bool):
            return flag
        return flag.get(market or "default", flag.get("default", False))

    def _commit(self) -> None:
        decided, self._decided = self._decided, Decided()
        self._ledger.commit()
        self._happenings += decided.looked
        self._due += [(due_ms, due.key) for due, due_ms in decided.due if due.key and due_ms]
        for noted in decided.noted:
            self._signals_done = max(self._signals_done, noted.offset + 1)
        for arrived in (*decided.begun, *(ended.arrived for ended in decided.ended)):
            self._unfinished.pop(arrived.offset, None)
        for entries in map(entries_of, decided.ledger):
            self._say_committed(entries)
        for _, parked in decided.parked:
            self.parked.append(parked)
            self.say(f"■ the run is parked: {parked.message}")
        for ended in decided.ended:
            _, failed = self._values.of(ended, self.now_ms)
            outcome = ended.outcome if failed is None else failed
            self.ends.append((ended.arrived.key.hex(), outcome))
            self.say(f"■ the run ends: {_worded(outcome)}")
        self._calls += decided.calls

    def _say_committed(self, entries: Mapping[str, Entry]) -> None:
        for place, entry in entries.items():
            if entry.open and entry.intent is not None:
                self.say(f"● committed: {entry.tool} (place {place}) is about to be called")
            elif not entry.open and entry.intent is not None:
                self.say(f"● committed: how {entry.tool} (place {place}) came out")

    def _signal(self, number: int) -> None:
        signal = self._signals[number]
        self.say(f"→ signal {signal.type} of {signal.id}: {signal.status}")
        self._happenings.append(
            Signalled(self._source, number, 0, self.now_ms, signal, f"signals/0/{number}", b"", None)
        )

    def _call(self, started: StartCall) -> None:
        self._arrive_late()
        self.now_ms += round(started.delay_s * 1000)
        reply = self.reply(started)
        self._scripts.disturbed |= reply is not Reply.OK
        attempt = started.call.attempt
        self.changing += started.kind == "call" and started.tool.effect in ("keyed", "blind")
        self.called.append(
            Called(
                started.tool.name,
                started.kind,
                started.place,
                started.call.arguments,
                started.call.key,
                attempt,
            )
        )
        before = len(self.target.effects)
        try:
            answer = self._answer(started, reply)
            said = "answered" if not isinstance(answer, Raised) else f"raised {type(answer.error).__name__}"
        except ScriptError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a tool raises is its answer)
            answer = Raised(started.place, attempt, error)
            said = f"raised {type(error).__name__}: {error}"
        effects = "".join(f"  ★ effect {n + 1}" for n in range(before, len(self.target.effects)))
        self.say(f"→ {self._named(started)}, attempt {attempt}: {said}{effects}")
        self._happenings.append(Answered(started.run, answer))

    def _answer(self, started: StartCall, reply: Reply) -> Answer:
        late = started.send_by_ms and self.now_ms > started.send_by_ms
        if late or not started.run.wants(started):
            raise NotSent
        started.call.sent(self.now_ms, started.tool.timeout_s)
        if reply is Reply.REFUSED:
            raise RetryLater("503: try again")
        if reply is Reply.LATE:
            self._late.append(started)
            raise TimeoutError("no answer in time")
        result = self._perform(started)
        if reply is Reply.LOST:
            raise TimeoutError("no answer in time")
        if reply is Reply.GARBAGE:
            raise ValueError("the answer cannot be read")
        return answer_of(started, result)

    def _perform(self, started: StartCall) -> Any:
        """Do what a request asks for, in the world: by script, or by the tool's own function."""
        tool = started.tool
        if tool not in self._scripts:
            return self._really(started)
        operation = f"{started.kind} {tool.name}" if started.kind == "undo" else tool.name
        subject = f"{started.call.run_id[:8]}/{started.place.lstrip('~')}"
        if tool.scope == "tenant":
            subject = "/".join(str(started.call.arguments[name]) for name in tool.key_fields)
        if started.kind == "reconcile":
            known = self.target.find(operation, subject)
            return NotDone if known is None else known.answer
        if tool.effect == "read":
            return self._scripts.next(tool, started.call.arguments)
        key = started.call.key if tool.effect == "keyed" else ""
        made = partial(self._scripts.next, tool, started.call.arguments)
        return self.target.do(operation, subject, key, (lambda: None) if started.kind == "undo" else made)

    def _really(self, started: StartCall) -> Any:
        """Call a tool's own function, and note whether the target sees what it does."""
        before, should_reach_it = self.target.reached, started.kind != "reconcile"
        effects = len(self.target.effects)
        try:
            return finished(function_of(started)())
        except Exception as error:
            says_nothing_done = isinstance(error, SAYS_NOTHING_DONE)
            if says_nothing_done and len(self.target.effects) > effects:
                raise ScriptError(
                    no_such_raise(started.tool, error, "though it has changed something")
                ) from error
            should_reach_it = should_reach_it and not (says_nothing_done or started.kind == "undo")
            raise
        finally:
            requests = self.target.reached - before
            if started.tool.effect in ("keyed", "blind") and (requests or should_reach_it):
                self.real[started.tool.name, started.kind] += requests
            if started.tool.effect == "read":
                self.beside += self.target.effects[effects:]

    def _named(self, started: StartCall) -> str:
        what = started.tool.name if started.kind == "call" else f"{started.kind} {started.tool.name}"
        arguments = ", ".join(f"{name}={value!r}" for name, value in started.call.arguments.items())
        key = f" key {started.call.key[:6]}" if started.tool.effect == "keyed" else ""
        return f"{what}({arguments}) place {started.place}{key}"


def _worded(outcome: Completed | RunFailed) -> str:
    if isinstance(outcome, Completed):
        return f"completed with {msgspec.json.encode(outcome.value, enc_hook=repr).decode()}"
    return f"failed, {outcome.code}: {outcome.message}"


def finished(result: Any) -> Any:
    """What a tool's function has returned, awaited if it is async."""
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result
