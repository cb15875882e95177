"""A run as a state machine.

    (state, happening) -> (state, effects)

A happening is the run's begin, an answer to a call, the end of a wait, or a cancel; an effect is a call to start, a
segment of the journal to write and the calls that wait for its commit, a wait, or the run's end. There is no I/O and no
clock in it: who drives the machine says what time it is, starts the calls, writes the journal and brings the answers.

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

What a run's state is: `state`. What becomes of keyed and blind calls: `durable`. What its agent asks for: `asking`.
How it goes on, and ends: `advancing`.
"""

from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any

import msgspec

from onceflow.agents.advancing import Advancing, advanced
from onceflow.agents.agent import Agent
from onceflow.agents.calls import (
    Answer,
    Completed,
    Effect,
    Next,
    Raised,
    RunFailed,
    judged,
)
from onceflow.agents.durable import HELD_MS
from onceflow.agents.journal import (
    AGAIN,
    FAILING,
    NIL,
    UNDO,
    Entry,
    Retry,
    Wait,
    first_due_ms,
)
from onceflow.agents.run import Run
from onceflow.agents.state import EMPTY, NONE
from onceflow.errors import as_text
from onceflow.event import Event, Reason


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
    context = Context()  # as a thread has its own: what an agent sets there is not for others
    coroutine = agent.function(run, event)
    found = context.run(advanced, coroutine)
    if isinstance(found, Completed) and run._made is None:
        return found
    machine = run._machine
    machine._context = context
    return machine, machine._stepped(coroutine, found)


class Machine(Advancing, eq=False):
    """One run's state. `begin` once, then what happens to its calls, until it has ended.

    `answer` brings a call's answer. A run that has ended holds nothing that refers back to it, so it is freed at once,
    without a search for cycles.
    """

    def begin(self, event: Event[Any], now_ms: int) -> list[Effect]:
        """Start the agent; return what is to be done."""
        self.now_ms = now_ms
        if not self.root:
            self.root = event.key
        self._effects = []
        if self.segments:
            failing = self.journal.get(FAILING)
            if failing is not None and failing.error is not None:
                self._end, self._fails = RunFailed(*failing.error, ""), True
            again = self.journal.get(AGAIN)
            if again is not None and again.open and self._end is None:
                if self._postponed(AGAIN):
                    return self._settled()
                self.record(AGAIN, msgspec.structs.replace(again, result=NIL))
        return self._step(self.agent.function(Run(event, self), event))

    def answer(self, answer: Answer, now_ms: int) -> list[Effect]:
        """Take a call's answer; one that nobody waits for (an earlier attempt's) changes nothing."""
        waiting = self._waiting.get(answer.place)
        if waiting is None or self.ended or waiting.started.call.attempt != answer.attempt:
            return []
        self.now_ms = now_ms
        self._effects = []
        outcome = judged(waiting, answer)
        waiting.over = outcome is Next.UNKNOWN
        if self._leaves:
            self._outcome_left(waiting, answer, outcome)
            return self._written()
        if outcome is Next.AGAIN:
            self._again(waiting, answer)
        elif outcome is Next.UNKNOWN:
            error = answer.error if isinstance(answer, Raised) else None
            why = f"{type(error).__name__}: {as_text(error)}"
            self._unresolved(waiting, why, waiting.started.tool.timeout_s)
        else:
            self._decided(waiting.started, outcome)
        if self._coroutine is None or answer.place in self._waiting or self._end or self._parking:
            return self._settled() if self._lasting else self._effects
        return self._step(self._coroutine)

    def signalled(self, place: str, result: bytes, now_ms: int) -> list[Effect]:
        """A wait has got its signal; a place that does not wait (any more) changes nothing."""
        if self.ended or place not in self._waits:
            return []
        self.now_ms = now_ms
        self._effects = []
        del self._waits[place]
        self.record(place, msgspec.structs.replace(self.journal[place], result=result))
        return self._go_on()

    def awaits(self, place: str) -> bool:
        """Whether a signal could still end the wait at this place."""
        return self._end is None and place in self._waits

    def next_due_ms(self, now_ms: int) -> int:
        """When a run that is awake has to be told that a wait is over; 0: none ever is, or it is told before."""
        due_ms = 0 if self.ended or not self._waits else first_due_ms(self._waits.values())
        if not due_ms or now_ms < self._told_ms <= due_ms:
            return 0
        self._told_ms = due_ms
        return due_ms

    def due(self, now_ms: int) -> list[Effect]:
        """The time of waits may be over."""
        over = [place for place, wait in self._waits.items() if 0 < wait.due_ms <= now_ms]
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
        self._end, self._fails = RunFailed(code, message, ""), True
        self._waits = EMPTY
        if self._parking is not None and self._parking[0] == Reason.NONDETERMINISTIC:
            self._parking = None  # no call's outcome is in question
        self._ask_no_more()
        if not self._lasting:
            self.close()
            return [self._end]
        self.record(FAILING, Entry(self.agent.name, 0, b"", None, (code, message)))
        for place in [place for place in self._asked if place not in self._waiting]:
            self._give_up(place)  # its next attempt, or one that was taken back
        return self._settled()

    def fail(self, end: RunFailed, now_ms: int) -> list[Effect]:
        """What the agent has returned cannot be its completion: the run that has just ended fails instead."""
        self.now_ms = now_ms
        self._effects = []
        self._end_as_failed(end)
        return self._settled()

    def park(self, reason: str, message: str, now_ms: int) -> list[Effect]:
        """A run of the ledger does not go on: a person must decide about it."""
        self.now_ms = now_ms
        self._effects = []
        self._parking = (reason, message, "")
        return self._settled()

    def take_back(self, now_ms: int) -> list[Effect]:
        """Put on record which calls that nobody may repeat were not sent: the run goes on in another cell."""
        self.now_ms = now_ms
        self._effects = []
        self._take_back()
        return self._written()

    # -- calls of scope `tenant`: what the lane says of their keys --

    def waits_at(self, place: str) -> bool:
        """Whether a call is still waited for."""
        return not self.ended and place in self._waiting

    def works_at(self, place: str) -> bool:
        """Whether a call is under way, or its compensation; not if its next attempt is a wait."""
        return not self.ended and (place in self._waiting or UNDO + place in self._waiting)

    @property
    def digests(self) -> Mapping[str, bytes]:
        """By place, what the calls that the agent has asked for belong to."""
        return self._digests

    def key_rests(self, place: str, now_ms: int) -> list[Effect]:
        """The run that makes the call does not go on with it for a while: wait for that in the ledger."""
        waiting = None if self.ended else self._waiting.pop(place, None)
        if waiting is None:
            return []
        self.now_ms = now_ms
        self._effects = []
        if not self._postponed(place):
            tool, call = waiting.started.tool, waiting.started.call
            wait = Wait(now_ms + HELD_MS)
            self.record(place, Entry(tool.name, tool.version, call.fingerprint, wait=wait, retry=Retry(0)))
            self._postponed(place)
        return self._settled()

    def ask_again(self, place: str, now_ms: int) -> list[Effect]:
        """More is known of a key that is waited for in the ledger."""
        if self.ended or place not in self._waits:
            return []
        self.now_ms = now_ms
        self._effects = []
        del self._waits[place]
        if self._moved is not NONE:
            self._moved.append(place)
        return self._go_on()

    def key_free(self, place: str, key: str, now_ms: int) -> list[Effect]:
        """This run is to make the call."""
        waiting = None if self.ended else self._waiting.get(place)
        if waiting is None:
            return []
        self.now_ms = now_ms
        started = waiting.started
        waiting.started = msgspec.structs.replace(
            started, call=msgspec.structs.replace(started.call, key=key)
        )
        self._intend(waiting)
        return self._settled()

    def key_told(self, place: str, outcome: Entry, now_ms: int, *, named: bool = False) -> list[Effect]:
        """The call has this outcome, of another run's or an earlier one's making. `named`: its record names this run
        for that, which is on record with it: a run that a crash let begin anew might not ask, nor say how it ended.
        """
        waiting = None if self.ended else self._waiting.get(place)
        if waiting is None:
            return []
        self.now_ms = now_ms
        started = waiting.started
        tool, call = started.tool, started.call
        self._decided(
            started, Entry(tool.name, tool.version, call.fingerprint, outcome.result, outcome.error)
        )
        if named:
            self._write(lasting=True)
        return self._settled() if self._end or self._parking else self._go_on()

    def key_unknown(self, place: str, key: str, message: str, now_ms: int) -> list[Effect]:
        """Another run made the call, and nobody knows how it came out."""
        waiting = None if self.ended else self._waiting.get(place)
        if waiting is None:
            return []
        self.now_ms = now_ms
        started = waiting.started
        waiting.started = msgspec.structs.replace(
            started, call=msgspec.structs.replace(started.call, key=key)
        )
        waiting.unknown = True
        self._intend(waiting)
        self._held = NONE  # on record, for a person to decide about; not to be sent
        self._unresolved(waiting, message, 0.0)
        return self._settled() if self._end or self._parking or place in self._waiting else self._go_on()

    def key_left(self, place: str, key: str, now_ms: int) -> list[Effect]:
        """The effect of a run that fails: undo it (`key`: the call's); or, as another run has it too (""), leave it."""
        self.now_ms = now_ms
        del self._waiting[UNDO + place]
        tool, call = self._asked[place]
        if key:
            self._asked[place] = (tool, msgspec.structs.replace(call, key=key))
            self._undo(place)
        else:
            self.record(UNDO + place, Entry(tool.name, tool.version, b"", NIL))
        return self._settled()
