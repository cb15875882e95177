"""A run as a state machine.

    (state, happening) -> (state, effects)

A happening is the run's begin, an answer to a call, the commit that a call waits for, the end of a wait, or a cancel;
an effect is a call to start, a segment of the journal to write, a wait, or the run's end. There is no I/O and no clock
in it: who drives the machine says what time it is, starts the calls, writes the journal and brings the answers.

A run that only reads keeps its journal here; after a crash its event is read again. The first call of a keyed or blind
tool puts the run into the ledger, event and journal so far, together with that call's intent: a *barrier*. The call is
sent once this is committed. A wait puts the run there too; a run that only waits falls *asleep*: it is given up here,
and replayed when its wait ends. Once a run is in the ledger, that alone says what it has done:

    a result on record            is returned, the call is never made again
    an intent without an outcome  the call may have happened: keyed, the same key is sent again; blind, or when
                                  the target has forgotten the key, `on_unknown` decides
    FAILING                       the run has failed: what stands is undone in reverse order, each compensation
                                  intended and recorded like a call
    PARKED                        a person must resolve it
"""

from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from onceflow.agents import anew
from onceflow.agents.agent import Agent
from onceflow.agents.call import Call
from onceflow.agents.calls import (
    SEND_WITHIN_MS,
    Answer,
    Asked,
    AskKey,
    Asleep,
    Completed,
    Effect,
    FoundNotDone,
    KeyDecided,
    KeyUndone,
    LeaveKey,
    Next,
    NotSent,
    Parked,
    Raised,
    Record,
    RunFailed,
    StartCall,
    WaitBegun,
    Waiting,
    chunks,
    judged,
    later_key,
    retry_delay_s,
    undo_key,
)
from onceflow.agents.failures import close, failure, foreign_await
from onceflow.agents.journal import (
    AGAIN,
    CALL_FAILED,
    FAILING,
    GONE,
    NIL,
    OUTCOME_UNKNOWN,
    PARKED,
    SPECIAL,
    UNDO,
    UNDONE,
    Entry,
    Intent,
    Retry,
    Wait,
    expired,
    first_due_ms,
    parked,
)
from onceflow.agents.run import SUSPENDED, ForeignAwait, Run
from onceflow.agents.tool import Tool
from onceflow.event import Event, Reason

LONGEST_IN_MEMORY_S = 10.0  # an attempt that is due later is a wait in the ledger


def no_flags(name: str, market: str | None) -> bool:
    """Where nobody has set any."""
    return False


class _RaisedByAgent(NamedTuple):
    error: BaseException


def _advanced(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Let an agent go on: a Completed with what it returned, a _RaisedByAgent, or what it awaits."""
    try:
        return coroutine.send(None)
    except StopIteration as stop:
        return Completed(stop.value)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 (an agent may raise anything; only its own run fails)
        return _RaisedByAgent(error)


def begin(
    agent: Agent[Any, Any],
    event: Event[Any],
    make: Callable[..., "Machine"],
    *of: Any,
) -> "Completed | tuple[Machine, list[Effect]]":
    """Let the agent of a new event begin. One that only computes ends at once, and needs no Machine.

    `make(event, *of)` makes it.
    """
    run = Run(event, None, make, of)
    coroutine = agent.function(run, event)
    found = _advanced(coroutine)
    if isinstance(found, Completed) and run._made is None:
        return found
    machine = run._machine
    return machine, machine._stepped(coroutine, found)


class Machine(msgspec.Struct, eq=False):
    """One run's state. `begin` once, then what happens to its calls, until it has ended.

    `answer` brings a call's answer; `committed` says that a segment with a barrier is in Kafka, so that its calls
    may be sent. A run that has ended holds nothing that refers back to it, so it is freed at once, without a search
    for cycles.
    """

    agent: Agent[Any, Any]
    token: Any  # whatever the driver needs to know the run by
    journal: Mapping[str, Entry] = MappingProxyType({})
    segments: int = 0  # of the journal in the ledger; 0: the ledger doesn't know the run
    root: str = ""  # the run's id; of a redrive, that of the run that failed first
    flags: Callable[[str, str | None], bool] = no_flags
    ended: bool = False  # or parked
    now_ms: int = 0
    _waiting: dict[str, Waiting] | None = None
    _coroutine: Coroutine[Any, Any, Any] | None = None
    _effects: list[Effect] = []
    _news: dict[str, Entry] | None = None  # entries that a ledger which knows the run doesn't have yet
    _held: list[StartCall] | None = None  # calls whose intent is among them
    _barriers: dict[int, list[StartCall]] | None = None  # by the segment that must be committed first
    _asked: dict[str, tuple[Tool[Any, Any], Call]] | None = None  # effects, in the order of asking
    _end: Completed | RunFailed | None = None  # once no call is under way, and what stands is undone
    _parking: tuple[str, str, str] | None = None  # reason, message and place, once no call is under way
    _waits: dict[str, Wait] | None = None  # that the agent waits for

    def begin(self, event: Event[Any], now_ms: int) -> list[Effect]:
        """Start the agent; return what is to be done."""
        self.now_ms = now_ms
        if not self.root:
            self.root = event.key
        self._effects = []
        if self.segments:
            failing = self.journal.get(FAILING)
            if failing is not None and failing.error is not None:
                self._end = RunFailed(*failing.error, "")
            again = self.journal.get(AGAIN)
            if again is not None and again.open and self._end is None:
                if self._postponed(AGAIN):
                    return self._settled()
                self.record(AGAIN, msgspec.structs.replace(again, result=NIL))
        return self._step(self.agent.function(Run(event, self), event))

    def answer(self, answer: Answer, now_ms: int) -> list[Effect]:
        """Take a call's answer; one that nobody waits for (an earlier attempt's) changes nothing."""
        if self.ended or self._waiting is None:
            return []
        waiting = self._waiting.get(answer.place)
        if waiting is None or waiting.started.call.attempt != answer.attempt:
            return []
        self.now_ms = now_ms
        self._effects = []
        outcome = judged(waiting, answer)
        if outcome is Next.AGAIN:
            self._again(waiting, answer)
        elif outcome is Next.UNKNOWN:
            error = answer.error if isinstance(answer, Raised) else None
            self._unresolved(waiting, f"{type(error).__name__}: {error}", waiting.started.tool.timeout_s)
        else:
            self._decided(waiting.started, outcome)
        if self._coroutine is None or answer.place in self._waiting or self._end or self._parking:
            return self._settled() if self._lasting else self._effects
        return self._step(self._coroutine)

    def committed(self, number: int, now_ms: int) -> list[Effect]:
        """A segment with a barrier is committed: its calls may be sent."""
        started = [] if self.ended or self._barriers is None else self._barriers.pop(number, [])
        self.now_ms = now_ms
        if self._end is None or not any(call.kind == "call" for call in started):
            return [*started]
        self._effects = []
        for call in started:  # the run was cancelled meanwhile
            self._not_sent(call)
        return self._settled()

    def signalled(self, place: str, result: bytes, now_ms: int) -> list[Effect]:
        """A wait has got its signal; a place that does not wait (any more) changes nothing."""
        if self.ended or not self._waits or place not in self._waits:
            return []
        self.now_ms = now_ms
        self._effects = []
        del self._waits[place]
        self.record(place, msgspec.structs.replace(self.journal[place], result=result))
        return self._go_on()

    def due(self, now_ms: int) -> list[Effect]:
        """The time of waits may be over."""
        over = [place for place, wait in (self._waits or {}).items() if 0 < wait.due_ms <= now_ms]
        if self.ended or not over:
            return []
        self.now_ms = now_ms
        self._effects = []
        for place in over:
            self._expire(place)
        return self._go_on()

    def cancel(self, code: str, message: str, now_ms: int) -> list[Effect]:
        """End as failed: nothing more is started, calls under way are waited for, what stands is undone."""
        if self.ended or self._end is not None:
            return []
        self.now_ms = now_ms
        self._effects = []
        self._end = RunFailed(code, message, "")
        postponed = [place for place in (self._waits or {}) if self.journal[place].retry is not None]
        self._waits = None
        if self._parking is not None and self._parking[0] == Reason.NONDETERMINISTIC:
            self._parking = None  # no call's outcome is in question
        for place, waiting in list((self._waiting or {}).items()):
            if waiting.started.tool.scope == "tenant" and place not in self.journal:  # it asked for the key
                del self._waiting[place]  # type: ignore[union-attr]
        if not self._lasting:
            self.close()
            return [self._end]
        self.record(FAILING, Entry(self.agent.name, 0, b"", None, (code, message)))
        for place in postponed:
            if self.journal[place].intent is not None:
                self._give_up(place)
        return self._settled()

    def park(self, reason: str, message: str, now_ms: int) -> list[Effect]:
        """A run of the ledger does not go on: a person must decide about it."""
        self.now_ms = now_ms
        self._effects = []
        self._parking = (reason, message, "")
        return self._settled()

    def close(self) -> None:
        """Abandon the run; its agent sees GeneratorExit."""
        self.ended = True
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            close(coroutine)

    # -- the agent's progress --

    @property
    def _lasting(self) -> bool:
        """Whether the run is in the ledger, or about to be."""
        return bool(self._asked or self.segments or self._waits)

    def _go_on(self) -> list[Effect]:
        return self._settled() if self._coroutine is None else self._step(self._coroutine)

    def _step(self, coroutine: Coroutine[Any, Any, Any]) -> list[Effect]:
        """Let the agent go on to its next call, or to its end."""
        self._coroutine = None
        return self._stepped(coroutine, _advanced(coroutine))

    def _stepped(self, coroutine: Coroutine[Any, Any, Any], found: Any) -> list[Effect]:
        """The agent has gone on; `found`: as `_advanced` returns it."""
        end: Completed | RunFailed
        if found is SUSPENDED:
            self._coroutine = coroutine
            return self._settled() if self._lasting else self._effects
        if type(found) is Completed:
            end = found
        elif type(found) is _RaisedByAgent:
            if not (self._end or self._parking or self._waiting or self._waits):
                delay_s = anew.retry_in_s(self.agent, self.root, self.journal, found.error)
                if delay_s >= 0:
                    return self._begin_again(delay_s)
            end = failure(found.error)
        else:
            close(coroutine)
            end = foreign_await(ForeignAwait(found))
        if not (self._asked or self.segments or self._waits):  # it has changed nothing outside
            self.ended = True
            return [end]
        if self._end is None:
            self._end = end
            if type(end) is RunFailed and self._stands():
                self.record(FAILING, Entry(self.agent.name, 0, b"", None, (end.code, end.message)))
        return self._settled()

    def _begin_again(self, delay_s: float) -> list[Effect]:
        """The run waits, to be done anew; what it has done and what that was based on stays as it is."""
        known, found = self.journal.get(AGAIN), anew.retried(self.journal)
        attempts = 1 + (0 if known is None or known.retry is None else known.retry.attempts)
        for place in [place for place in self.journal if place not in found]:
            self.record(place, GONE)
        for place, entry in found.items():
            if self.journal.get(place) is not entry:
                self.record(place, entry)
        wait = Wait(self.now_ms + int(delay_s * 1000))
        self.record(AGAIN, Entry(self.agent.name, 0, b"", wait=wait, retry=Retry(attempts)))
        self._waits = {AGAIN: wait}
        return self._settled()

    def _settled(self) -> list[Effect]:
        """What is to be done after a happening; ends, undoes or parks once no call is under way."""
        if not self._waiting and (self._end is not None or self._parking is not None):
            self.close()
            self.ended = False  # not yet
            if self._parking is None and (missing := self._unasked()):
                message = f"replay did not come to {missing}, which is on record"
                self._parking = (Reason.NONDETERMINISTIC, message, "")
            if self._parking is None:
                self._end_or_undo()
            if self._parking is not None:
                self._park(*self._parking)
        if not self.ended:
            self._write()
            if self._waits and not self._waiting:
                self.close()
                self._effects.append(Asleep(self, first_due_ms(self._waits.values())))
        effects, self._effects = self._effects, []
        return effects

    def _end_or_undo(self) -> None:
        """The agent is done: the run ends, or, if it fails, what stands is undone first, the last of it now."""
        assert self._end is not None
        standing = self._stands() if type(self._end) is RunFailed else []
        if not standing:
            if type(self._end) is RunFailed and self.segments:
                self._write()  # it is kept, to be redriven
            self.ended = True
            self._effects.append(self._end)
        elif not self._postponed(UNDO + standing[-1]):
            tool, _ = (self._asked or {})[standing[-1]]
            if tool.scope == "tenant" and UNDO + standing[-1] not in self.journal:
                self._leave_key(standing[-1])
            else:
                self._undo(standing[-1])

    def _write(self) -> None:
        """Put the news into the ledger, if it knows the run or has to; calls that are held wait for it."""
        first = not self.segments and (self._waits or self._parking)
        if not (self._news or self._held or first):
            return
        entries = (self._news or {}) if self.segments else dict(self.journal)
        portions = list(chunks(entries))
        last = self.segments + len(portions) - 1
        for number, portion in enumerate(portions, self.segments):
            self._effects.append(Record(self, number, portion, bool(self._held) and number == last))
        if self._held:
            if self._barriers is None:
                self._barriers = {}
            self._barriers[last] = self._held
        self.segments = last + 1
        self._news, self._held = None, None

    def _park(self, reason: str, message: str, place: str) -> None:
        self._write()
        self.ended = True
        entry = parked(self.agent.name, reason, message, place)
        self._effects.append(Parked(Record(self, self.segments, {PARKED: entry}, False), reason, message))
        self.segments += 1

    def _unasked(self) -> str:
        """An effect on record that the agent has not asked for; "" if there is none.

        A redriven run that fails again need not come to what it has kept.
        """
        asked = self._asked or {}
        fails = type(self._end) is RunFailed
        for place, entry in self.journal.items():
            if entry.intent is None or place[0] in SPECIAL or place in asked:
                continue
            if not (fails and entry.intent.kept):
                return f"call {place} of {entry.tool}"
        return ""

    # -- what Run asks for --

    def record(self, place: str, entry: Entry) -> None:
        """Write into the journal."""
        if not isinstance(self.journal, dict):
            self.journal = {}
        if entry is GONE:
            self.journal.pop(place, None)
        else:
            self.journal[place] = entry
        if self.segments:
            if self._news is None:
                self._news = {}
            self._news[place] = entry

    def entry(self, place: str, tool: Tool[Any, Any], fingerprint: bytes) -> Entry | None:
        """The outcome on record of this call; None: it has none. Another call on record parks a run of the ledger."""
        entry = self.journal.get(place)
        if entry is None:
            return None
        same = (entry.tool, entry.arguments) == (tool.name, fingerprint)
        if same and (entry.version == tool.version or (self.segments and not entry.open)):
            return None if entry.open else entry
        if self.segments:
            was = f"{entry.tool} version {entry.version}"
            asked = f"{tool.name} version {tool.version}" + (" with other arguments" if not same else "")
            self._differs(f"call {place} on record is {was}, replay asks for {asked}")
        return None

    def _differs(self, message: str) -> None:
        if self._parking is None:
            self._parking = (Reason.NONDETERMINISTIC, message, "")

    def wait(self, place: str, name: str, wait: Wait) -> Entry | None:
        """Wait at this place; the outcome, if there is one by now."""
        known = self.journal.get(place)
        if known is not None:
            was = known.wait or Wait(0)
            if (known.tool, was.type, was.id, was.until) != (name, wait.type, wait.id, wait.until):
                self._differs(
                    f"{place} on record is {known.tool} {was.type} {was.id}, replay asks for {name}"
                )
                return None
            if not known.open:
                return known
            wait = was
        if self._end is not None or self._parking is not None:
            return None
        if place not in (self._waits or {}):
            self._waits = {**(self._waits or {}), place: wait}
            if known is None:
                self.record(place, Entry(name, 1, b"", wait=wait))
            if 0 < wait.due_ms <= self.now_ms:
                return self._expire(place)
            if wait.type:
                self._effects.append(WaitBegun(self, place, wait))
        return None

    def _expire(self, place: str) -> Entry:
        """The time of a wait is over."""
        assert self._waits is not None
        del self._waits[place]
        if self.journal[place].retry is None:  # otherwise an attempt is due, and will be asked for
            self.record(place, expired(self.journal[place]))
        return self.journal[place]

    def ask(self, event: Event[Any], asked: Asked) -> None:
        """Note that the agent asks for a call of a keyed or blind tool, whether or not it is on record."""
        asked.tool.check()
        if self._asked is None:
            self._asked = {}
        self._asked[asked.place] = (asked.tool, self._call(event, asked))

    def start(self, event: Event[Any], asked: Asked) -> bool:
        """Ask for a call, unless it is under way or the run is over; whether it was decided at once."""
        tool, place = asked.tool, asked.place
        if self._waiting is None:
            self._waiting = {}
        if place in self._waiting or self._parking is not None:
            return False
        if self._end is not None:
            return self._give_up(place)
        if self._postponed(place):
            return False
        known = self.journal.get(place)
        if tool.effect == "read":
            call = self._call(event, asked)
            started = StartCall(self, place, tool, call, 0.0)
            waiting = Waiting(started, asked.fingerprint, asked_ms=self.now_ms)
            self._waiting[place] = waiting
            if known is not None and known.retry is not None:
                self._taken_up(waiting, known.retry, call.key)
            self._effects.append(waiting.started)
            return False
        assert self._asked is not None
        started = StartCall(self, place, tool, self._asked[place][1], 0.0)
        waiting = self._waiting[place] = Waiting(started, asked.fingerprint)
        if known is None or known.intent is None:
            if tool.scope == "tenant":
                self._effects.append(AskKey(self, place, tool, self._digest(place), asked.fingerprint))
            else:
                self._intend(waiting)
            return False
        if UNDO + place in self.journal:  # its `on_unknown` has decided
            self._taken_up(waiting, Retry(1, known.intent.executions, unknown=True), known.intent.key)
            return self._undo_unknown(waiting.started, 0.0)
        return self._resume(waiting, known.intent, known.retry)

    def _call(self, event: Event[Any], asked: Asked) -> Call:
        tenant = event.tenant
        key = asked.tool.key(tenant, self.root, asked.fingerprint, asked.place)
        if (undone := self.journal.get(UNDONE + asked.place)) is not None:
            key = later_key(key, undone.version)
        return Call(tenant, event.key, key, 1, asked.arguments)

    # -- calls of keyed and blind tools --

    def _intend(self, waiting: Waiting) -> None:
        """Have an execution put on record; the call is sent once that is committed."""
        started = waiting.started
        known, tool, call = self.journal.get(started.place), started.tool, started.call
        used = known is not None and known.intent is not None and (waiting.unknown or known.retry is None)
        made_ms = known.intent.made_ms if used else self.now_ms  # type: ignore[union-attr]
        send_by_ms = self.now_ms + int(started.delay_s * 1000) + SEND_WITHIN_MS
        shared = self._digest(started.place.removeprefix(UNDO)) if tool.scope == "tenant" else b""
        intent = Intent(call.key, call.attempt, made_ms, send_by_ms, shared=shared)
        self.record(started.place, Entry(tool.name, tool.version, waiting.fingerprint, intent=intent))
        if self._held is None:
            self._held = []
        self._held.append(msgspec.structs.replace(started, send_by_ms=send_by_ms))

    def _resume(self, waiting: Waiting, intent: Intent, retry: Retry | None) -> bool:
        """Go on with a call that an earlier process may have sent; whether that decided it."""
        tool = waiting.started.tool
        self._taken_up(waiting, retry or Retry(1, intent.executions, unknown=True), intent.key)
        if intent.asks and not intent.again:
            self._park_call(waiting.started, "its run failed while nobody knew")
            return False
        if not waiting.unknown:
            self._intend(waiting)
            return False
        if intent.again or (tool.effect == "keyed" and self.now_ms < intent.made_ms + tool.ttl_s * 1000):
            self._intend(waiting)
            return False
        # It may be on its way until then, and at work for as long as it may take.
        over_s = max(0.0, (intent.send_by_ms - self.now_ms) / 1000) + tool.timeout_s
        return self._unresolved(waiting, "the cell ended in it", over_s)

    def _taken_up(self, waiting: Waiting, retry: Retry, key: str) -> None:
        """Count on from what is on record of a call's attempts."""
        waiting.attempts, waiting.unknown = retry.attempts, retry.unknown
        call = msgspec.structs.replace(waiting.started.call, key=key, attempt=retry.executions + 1)
        waiting.started = msgspec.structs.replace(waiting.started, call=call)

    def _postponed(self, place: str) -> bool:
        """Whether the next attempt at this place is due later; then that is waited for."""
        known = self.journal.get(place)
        if known is None or not known.open or known.retry is None or known.wait is None:
            return False
        if known.wait.due_ms <= self.now_ms:
            return False
        self._waits = {**(self._waits or {}), place: known.wait}
        return True

    def _postpone(self, waiting: Waiting, delay_s: float) -> None:
        """The next attempt of a call is a wait."""
        place, tool, call = waiting.started.place, waiting.started.tool, waiting.started.call
        assert self._waiting is not None
        del self._waiting[place]
        self._waiting.pop(place.removeprefix(UNDO), None)  # what was to be undone by `on_unknown`
        known = self.journal.get(place)
        entry = Entry(
            tool.name,
            tool.version,
            waiting.fingerprint,
            intent=None if known is None else known.intent,
            wait=Wait(self.now_ms + int(delay_s * 1000)),
            retry=Retry(waiting.attempts, call.attempt, waiting.unknown),
        )
        self.record(place, entry)
        self._postponed(place)

    def _again(self, waiting: Waiting, answer: Answer) -> None:
        """The next attempt of a call, after a delay with full jitter that a replay would draw again."""
        started = waiting.started
        call, tool = started.call, started.tool
        delay_s = retry_delay_s(waiting, answer)
        if not (isinstance(answer, Raised) and isinstance(answer.error, NotSent)):
            waiting.attempts += 1
        if isinstance(answer, FoundNotDone):
            started = waiting.started = msgspec.structs.replace(started, kind="call")
        if delay_s > LONGEST_IN_MEMORY_S and started.kind != "reconcile":
            if self._end is None or started.kind == "undo":
                self._postpone(waiting, delay_s)
            elif tool.effect == "read":
                del self._waiting[started.place]  # type: ignore[union-attr]
            else:
                self._not_sent(started)
            return
        call = msgspec.structs.replace(call, attempt=call.attempt + 1, lineage=[])
        waiting.started = started = msgspec.structs.replace(started, call=call, delay_s=delay_s)
        if tool.effect == "read" or started.kind == "reconcile":
            self._effects.append(started)
            return
        intent = self.journal[started.place].intent
        if (
            intent is None
            or isinstance(answer, FoundNotDone)
            or intent.send_by_ms < self.now_ms + delay_s * 1000
        ):
            self._intend(waiting)
        else:
            self._effects.append(msgspec.structs.replace(started, send_by_ms=intent.send_by_ms))

    def _not_sent(self, started: StartCall) -> None:
        """A call on record is not sent any more: the run has failed meanwhile."""
        waiting = (self._waiting or {})[started.place]
        if waiting.unknown:
            self._unresolved(waiting, "the run was cancelled before it was sent again", 0.0)
        else:
            message = f"{started.tool.name}: not sent, the run was cancelled before"
            known = self.journal[started.place]
            self._decided(started, msgspec.structs.replace(known, error=(CALL_FAILED, message)))

    def _give_up(self, place: str) -> bool:
        """The run fails: a call on record is not sent any more; whether that decided it."""
        known, asked = self.journal.get(place), (self._asked or {}).get(place)
        if known is None or not known.open or known.intent is None or asked is None:
            return False
        tool, call = asked
        call = msgspec.structs.replace(call, key=known.intent.key, attempt=known.intent.executions)
        waiting = Waiting(
            StartCall(self, place, tool, call, 0.0),
            tool.fingerprint(call.arguments),
            unknown=known.retry is None or known.retry.unknown,
        )
        self._waiting = {**(self._waiting or {}), place: waiting}
        if UNDO + place in self.journal:  # its `on_unknown` has decided
            return self._undo_unknown(waiting.started, 0.0)
        if known.intent.asks:
            self._park_call(waiting.started, "its run failed while nobody knew")
        elif known.retry is None:  # it may be on its way, or at work
            over_s = max(0.0, (known.intent.send_by_ms - self.now_ms) / 1000) + tool.timeout_s
            return self._unresolved(waiting, "the cell ended in it, and the run has failed", over_s)
        else:
            self._not_sent(waiting.started)
        return not self.journal[place].open

    def _park_call(self, started: StartCall, why: str) -> None:
        """Only a person can say how a call came out."""
        tool = started.tool
        message = f"{tool.name}: it may or may not have happened ({why}); key {started.call.key}"
        assert self._waiting is not None
        del self._waiting[started.place]
        self._waiting.pop(started.place.removeprefix(UNDO), None)  # what was to be undone by `on_unknown`
        self._parking = (Reason.UNKNOWN_OUTCOME, message, started.place)
        if tool.scope == "tenant" and started.kind != "undo":
            unknown = Entry(tool.name, tool.version, b"", None, (OUTCOME_UNKNOWN, message))
            self._effects.append(KeyDecided(self, started.place, self._digest(started.place), unknown))

    def _unresolved(self, waiting: Waiting, why: str, over_s: float) -> bool:
        """Nobody knows whether a call happened; it is over in `over_s`. As its tool says; whether that decided it."""
        started = waiting.started
        tool = started.tool
        policy = "park" if started.kind != "call" else tool.on_unknown
        if policy == "reconcile":
            call = msgspec.structs.replace(started.call, attempt=started.call.attempt + 1)
            waiting.attempts = 1
            waiting.started = msgspec.structs.replace(started, call=call, kind="reconcile", delay_s=over_s)
            self._effects.append(waiting.started)
            return False
        if policy == "park":
            self._park_call(started, why)
            return False
        if policy == "compensate":
            return self._undo_unknown(started, over_s)
        message = f"{tool.name}: it may or may not have happened ({why}); key {started.call.key}"
        entry = self.journal[started.place]
        self._decided(started, msgspec.structs.replace(entry, error=(OUTCOME_UNKNOWN, message)))
        return True

    def _undo_unknown(self, started: StartCall, over_s: float) -> bool:
        """Undo a call that may have happened, or go on with that; whether that decided it."""
        undone = self.journal.get(UNDO + started.place)
        if undone is not None and not undone.open:  # a person has said how that came out
            self._decided(started, self._undone(started))
            return True
        if self._postponed(UNDO + started.place):
            del self._waiting[started.place]  # type: ignore[union-attr]
        else:
            self._undo(started.place, over_s)
        return False

    def _decided(self, started: StartCall, outcome: Entry) -> None:
        """A call has its outcome."""
        assert self._waiting is not None
        asked_ms = self._waiting.pop(started.place).asked_ms
        if started.kind == "undo" and outcome.error is not None:
            self._waiting.pop(started.place.removeprefix(UNDO), None)
            message = f"its compensation failed: {outcome.error[1]}"
            self._parking = (Reason.UNKNOWN_OUTCOME, message, started.place)
            return
        if outcome.done_ms != self.now_ms:
            asked_ms = asked_ms if outcome.intent is None else outcome.intent.made_ms
            outcome = msgspec.structs.replace(outcome, asked_ms=asked_ms, done_ms=self.now_ms)
        self.record(started.place, outcome)
        place = started.place.removeprefix(UNDO)
        if started.tool.scope == "tenant":
            if started.kind == "undo":
                self._effects.append(KeyUndone(self, place, self._digest(place)))
            elif outcome.intent is not None:
                self._effects.append(KeyDecided(self, place, self._digest(place), outcome))
        if started.kind == "undo" and self._waiting and place in self._waiting:  # by `on_unknown`
            call = self._waiting[place].started
            self._decided(call, self._undone(call))

    def _undone(self, started: StartCall) -> Entry:
        """The outcome of a call that was undone because nobody knew."""
        message = f"{started.tool.name}: it may have happened, and was compensated"
        return msgspec.structs.replace(self.journal[started.place], error=(CALL_FAILED, message))

    # -- calls of scope `tenant`: what the lane says of their keys --

    def _digest(self, place: str) -> bytes:
        tool, call = (self._asked or {})[place]
        return tool.shared_digest(call.tenant, call.arguments)

    def waits_at(self, place: str) -> bool:
        """Whether a call is still waited for."""
        return not self.ended and place in (self._waiting or {})

    def key_free(self, place: str, key: str, now_ms: int) -> list[Effect]:
        """This run is to make the call."""
        waiting = None if self.ended else (self._waiting or {}).get(place)
        if waiting is None:
            return []
        self.now_ms = now_ms
        started = waiting.started
        waiting.started = msgspec.structs.replace(
            started, call=msgspec.structs.replace(started.call, key=key)
        )
        self._intend(waiting)
        return self._settled()

    def key_told(self, place: str, outcome: Entry, now_ms: int) -> list[Effect]:
        """The call has this outcome, of another run's or an earlier one's making."""
        waiting = None if self.ended else (self._waiting or {}).get(place)
        if waiting is None:
            return []
        self.now_ms = now_ms
        tool = waiting.started.tool
        self._decided(
            waiting.started,
            Entry(tool.name, tool.version, waiting.fingerprint, outcome.result, outcome.error),
        )
        return self._settled() if self._end or self._parking else self._go_on()

    def key_unknown(self, place: str, key: str, message: str, now_ms: int) -> list[Effect]:
        """Another run made the call, and nobody knows how it came out."""
        waiting = None if self.ended else (self._waiting or {}).get(place)
        if waiting is None:
            return []
        self.now_ms = now_ms
        started = waiting.started
        waiting.started = msgspec.structs.replace(
            started, call=msgspec.structs.replace(started.call, key=key)
        )
        self._intend(waiting)
        self._held = None  # on record, for a person to decide about; not to be sent
        self._unresolved(waiting, message, 0.0)
        return (
            self._settled() if self._end or self._parking or place in (self._waiting or {}) else self._go_on()
        )

    def key_left(self, place: str, key: str, now_ms: int) -> list[Effect]:
        """The effect of a run that fails: undo it (`key`: the call's); or, as another run has it too (""), leave it."""
        self.now_ms = now_ms
        assert self._waiting is not None
        assert self._asked is not None
        del self._waiting[UNDO + place]
        tool, call = self._asked[place]
        if key:
            self._asked[place] = (tool, msgspec.structs.replace(call, key=key))
            self._undo(place)
        else:
            self.record(UNDO + place, Entry(tool.name, tool.version, b"", NIL))
        return self._settled()

    def _leave_key(self, place: str) -> None:
        tool, call = (self._asked or {})[place]
        started = StartCall(self, UNDO + place, tool, call, 0.0, "undo")
        self._waiting = {**(self._waiting or {}), UNDO + place: Waiting(started, b"")}
        self._effects.append(LeaveKey(self, place, self._digest(place)))

    # -- compensation --

    def _stands(self) -> list[str]:
        """The places of calls that must be undone if the run fails, in the order they were asked for."""
        standing = []
        for place, (tool, _) in (self._asked or {}).items():
            entry, undone = self.journal.get(place), self.journal.get(UNDO + place)
            if tool.compensation is None or entry is None or (undone is not None and not undone.open):
                continue
            unknown = entry.error is not None and entry.error[0] in anew.MAY_STAND
            if entry.result is not None or unknown or undone is not None:
                standing.append(place)
        return standing

    def _undo(self, place: str, delay_s: float = 0.0) -> None:
        """Ask for the compensation of a call, with a key of its own."""
        if self._waiting is None:
            self._waiting = {}
        tool, call = (self._asked or {})[place]
        entry, known = self.journal[place], self.journal.get(UNDO + place)
        retry = None if known is None else known.retry
        attempt = 1 if known is None or known.intent is None else known.intent.executions + 1
        attempt = attempt if retry is None else retry.executions + 1
        of = (
            call.key if entry.intent is None else entry.intent.key
        )  # of a shared call: as it was made this time
        key = undo_key(of) if known is None or known.intent is None else known.intent.key
        call = msgspec.structs.replace(call, key=key, attempt=attempt)
        result = None if entry.result is None else tool.decode_result(entry.result)
        if result is None and entry.intent is not None:  # it may still be on its way, or at work
            over_s = (entry.intent.send_by_ms - self.now_ms) / 1000 + tool.timeout_s
            delay_s = max(delay_s, over_s)
        started = StartCall(self, UNDO + place, tool, call, delay_s, "undo", result)
        fingerprint = tool.fingerprint(call.arguments)
        waiting = self._waiting[UNDO + place] = Waiting(started, fingerprint, unknown=attempt > 1)
        if retry is not None:
            waiting.attempts, waiting.unknown = retry.attempts, retry.unknown
        again = known is not None and known.intent is not None and known.intent.again
        if waiting.unknown and tool.effect == "blind" and not again:
            self._unresolved(waiting, "the cell ended in its compensation", 0.0)
        else:
            self._intend(waiting)
