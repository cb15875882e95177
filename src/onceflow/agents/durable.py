"""Calls of `keyed` and `blind` tools: on record before they are sent, and undone if their run fails.

An intent without an outcome says that the call may have happened. Then a keyed call is sent again with its key, as long
as its target remembers keys; of a blind one, or of a key that is forgotten, `on_unknown` decides.
"""

from typing import Any

import msgspec

from onceflow.agents import anew
from onceflow.agents.calls import (
    SEND_WITHIN_MS,
    Answer,
    FoundNotDone,
    KeyDecided,
    KeyUndone,
    LeaveKey,
    Next,
    NotSent,
    Raised,
    StartCall,
    Waiting,
    retry_delay_s,
    undo_key,
)
from onceflow.agents.journal import (
    CALL_FAILED,
    OUTCOME_UNKNOWN,
    UNDO,
    Entry,
    Intent,
    Retry,
    Wait,
)
from onceflow.agents.state import RunState
from onceflow.agents.tool import Tool
from onceflow.event import Reason

LONGEST_IN_MEMORY_S = 10.0  # an attempt that is due later is a wait in the ledger
HELD_MS = 600_000  # who waits for a key asks again so much later, if it is told nothing before


class DurableCalls(RunState, eq=False):
    """A run's state, as far as such calls go. Each leads to effects; what becomes of the run is `advancing`'s."""

    def _intend(self, waiting: Waiting) -> None:
        """Have an execution put on record; the call is sent once that is committed."""
        started, made_ms = waiting.started, self.now_ms
        place, tool, call = started.place, started.tool, started.call
        known = self.journal.get(place)
        if (
            known is not None
            and known.intent is not None
            and not known.intent.again
            and (waiting.unknown or known.retry is None)
        ):
            made_ms = known.intent.made_ms
        send_by_ms = self.now_ms + int(started.delay_s * 1000) + SEND_WITHIN_MS
        if waiting.unknown and tool.effect == "keyed":  # later, its target may have forgotten the key
            send_by_ms = min(send_by_ms, _forgotten_ms(tool, made_ms))
        shared = self._digest(place.removeprefix(UNDO)) if tool.scope == "tenant" else b""
        undoable = tool.compensation is not None
        intent = Intent(call.key, call.attempt, made_ms, send_by_ms, False, shared, undoable=undoable)
        self.record(place, Entry(tool.name, tool.version, call.fingerprint, None, None, intent))
        if started.send_by_ms != send_by_ms:
            started = waiting.started = msgspec.structs.replace(started, send_by_ms=send_by_ms)
        self._held = [*self._held, started]

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
        if intent.again or (tool.effect == "keyed" and not self._is_forgotten(waiting.started)):
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

    def _postpone(self, waiting: Waiting, delay_s: float) -> None:
        """The next attempt of a call is a wait."""
        place, tool, call = waiting.started.place, waiting.started.tool, waiting.started.call
        del self._waiting[place]
        self._waiting.pop(place.removeprefix(UNDO), None)  # what was to be undone by `on_unknown`
        known = self.journal.get(place)
        entry = Entry(
            tool.name,
            tool.version,
            call.fingerprint,
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
        if not self.wants(started):
            self._leave(started)
            return
        may_have_happened = waiting.unknown and started.kind != "reconcile" and tool.effect == "keyed"
        if may_have_happened and self._is_forgotten(started, delay_s):
            self._unresolved(waiting, "its target may have forgotten the key", tool.timeout_s)
            return
        if delay_s > LONGEST_IN_MEMORY_S and started.kind != "reconcile":
            if self._end is None or started.kind == "undo":
                self._postpone(waiting, delay_s)
            else:
                self._leave(started)
            return
        call = msgspec.structs.replace(call, attempt=call.attempt + 1, deadline_ms=0, lineage=())
        waiting.started = started = msgspec.structs.replace(started, call=call, delay_s=delay_s)
        if tool.effect == "read" or started.kind == "reconcile":
            self._effects.append(started)
            return
        intent = self.journal[started.place].intent
        if (
            intent is None
            or isinstance(answer, FoundNotDone)
            or intent.send_by_ms < self.now_ms + delay_s * 1000
            or (may_have_happened and intent.send_by_ms > _forgotten_ms(tool, intent.made_ms))
        ):
            self._intend(waiting)
        else:
            self._effects.append(started)

    def _is_forgotten(self, started: StartCall, delay_s: float = 0.0) -> bool:
        """Whether its target may have forgotten the key of a call that is sent again so much later."""
        intent = self.journal[started.place].intent
        assert intent is not None
        return self.now_ms + delay_s * 1000 >= _forgotten_ms(started.tool, intent.made_ms)

    def wants(self, started: StartCall) -> bool:
        """Whether a call that was asked for is still to be sent. From any thread.

        A run that fails makes no more calls; but a keyed one that may have happened is settled best by its key.
        """
        if self._leaves:
            return False
        if self._end is None or self.ended or started.kind != "call":
            return not self.ended
        waiting = self._waiting.get(started.place)
        return started.tool.effect == "keyed" and waiting is not None and waiting.unknown

    def _leave(self, started: StartCall) -> None:
        """The run fails: nobody waits for this call any more."""
        if started.tool.effect == "read":
            del self._waiting[started.place]
        else:
            self._not_sent(started)

    def _not_sent(self, started: StartCall) -> None:
        """A call on record is not sent any more: the run has failed meanwhile."""
        waiting = self._waiting[started.place]
        if waiting.unknown:  # an earlier attempt may still be at work
            why = "its run failed before it was sent again"
            self._unresolved(waiting, why, started.tool.timeout_s)
        else:
            message = f"{started.tool.name}: not sent, its run failed before"
            known = self.journal[started.place]
            self._decided(started, msgspec.structs.replace(known, error=(CALL_FAILED, message)))

    def _give_up(self, place: str) -> bool:
        """The run fails: a call on record is not sent any more; whether that decided it."""
        known, asked = self.journal.get(place), self._asked.get(place)
        if known is None or not known.open or known.intent is None or asked is None:
            return False
        tool, call = asked
        call = msgspec.structs.replace(call, key=known.intent.key, attempt=known.intent.executions)
        waiting = self._waiting[place] = Waiting(
            StartCall(self._whole, place, tool, call),
            unknown=known.retry is None or known.retry.unknown,
        )
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
        del self._waiting[started.place]
        self._waiting.pop(started.place.removeprefix(UNDO), None)  # what was to be undone by `on_unknown`
        self._parking = (Reason.UNKNOWN_OUTCOME, message, started.place)
        if tool.scope == "tenant" and started.kind != "undo":
            unknown = Entry(tool.name, tool.version, b"", None, (OUTCOME_UNKNOWN, message))
            digest = self._digest(started.place)
            self._effects.append(KeyDecided(self._whole, started.place, digest, unknown, tool.ttl_s))

    def _unresolved(self, waiting: Waiting, why: str, over_s: float) -> bool:
        """Nobody knows whether a call happened; it is over in `over_s`. As its tool says; whether that decided it."""
        started = waiting.started
        tool = started.tool
        policy = "park" if started.kind != "call" else tool.on_unknown
        if policy == "reconcile":
            call = msgspec.structs.replace(started.call, attempt=started.call.attempt + 1, deadline_ms=0)
            waiting.made, waiting.attempts = waiting.attempts, 1
            waiting.started = msgspec.structs.replace(
                started, call=call, kind="reconcile", delay_s=over_s, send_by_ms=0
            )
            if self.segments:
                self._effects.append(waiting.started)
            else:  # of another run's call; that this one finds out about it is on record first
                self._held = [*self._held, waiting.started]
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
            del self._waiting[started.place]
        else:
            self._undo(started.place, over_s)
        return False

    def _decided(self, started: StartCall, outcome: Entry) -> None:
        """A call has its outcome."""
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
        if started.kind != "undo" and started.tool.scope == "run":
            return
        place = started.place.removeprefix(UNDO)
        if started.tool.scope == "tenant":
            digest, ttl_s = self._digest(place), started.tool.ttl_s
            if started.kind == "undo":
                self._effects.append(KeyUndone(self._whole, place, digest, ttl_s))
            elif outcome.intent is not None:
                self._effects.append(KeyDecided(self._whole, place, digest, outcome, ttl_s))
        if started.kind == "undo" and place in self._waiting:  # by `on_unknown`
            call = self._waiting[place].started
            self._decided(call, self._undone(call))

    def _undone(self, started: StartCall) -> Entry:
        """The outcome of a call that was undone because nobody knew; or was not, as a person has said."""
        name = started.tool.name
        error = (CALL_FAILED, f"{name}: it may have happened, and was compensated")
        if self.journal[UNDO + started.place].result is None:
            error = (OUTCOME_UNKNOWN, f"{name}: it may have happened, and its compensation was given up")
        return msgspec.structs.replace(self.journal[started.place], error=error)

    # -- the run goes on in another cell, soon --

    def leave(self) -> None:
        """From now on send nothing. Answers are put on record, and nothing comes of them here."""
        self._leaves = True

    @property
    def in_doubt(self) -> bool:
        """Whether a call is out that nobody may repeat: without its answer, nobody would know about it."""
        return any(
            _only_once(w.started) and w.started.call.deadline_ms and not w.over
            for w in self._waiting.values()
        )

    def _outcome_left(self, waiting: Waiting, answer: Answer, outcome: Entry | Next) -> None:
        """A call's answer, for whoever goes on with the run."""
        if isinstance(outcome, Entry):
            self._decided(waiting.started, outcome)
        elif outcome is Next.AGAIN and not waiting.unknown and self._is_intended(waiting.started):
            delay_s = retry_delay_s(waiting, answer)
            if not (isinstance(answer, Raised) and isinstance(answer.error, NotSent)):
                waiting.attempts += 1
            self._postpone(waiting, delay_s)

    def _take_back(self) -> None:
        """Note of the calls that nobody may repeat which were not sent: they were not."""
        for waiting in [*self._waiting.values()]:
            started = waiting.started
            if _only_once(started) and self._is_intended(started) and not started.call.deadline_ms:
                self._postpone(waiting, 0.0)

    def _is_intended(self, started: StartCall) -> bool:
        known = self.journal.get(started.place)
        return known is not None and known.open and known.intent is not None

    # -- compensation --

    def _stands(self) -> list[str]:
        """The places of calls that must be undone if the run fails, in the order they were asked for."""
        standing = []
        for place, (tool, _) in self._asked.items():
            entry, undone = self.journal.get(place), self.journal.get(UNDO + place)
            if tool.compensation is None or entry is None or (undone is not None and not undone.open):
                continue
            unknown = entry.error is not None and entry.error[0] in anew.MAY_STAND
            if entry.result is not None or unknown or undone is not None:
                standing.append(place)
        return standing

    def _undo(self, place: str, delay_s: float = 0.0) -> None:
        """Ask for the compensation of a call, with a key of its own."""
        tool, call = self._asked[place]
        entry, known = self.journal[place], self.journal.get(UNDO + place)
        retry = None if known is None else known.retry
        attempt = 1 if known is None or known.intent is None else known.intent.executions + 1
        attempt = attempt if retry is None else retry.executions + 1
        of = (
            call.key if entry.intent is None else entry.intent.key
        )  # of a shared call: as it was made this time
        key = undo_key(of) if known is None or known.intent is None else known.intent.key
        call = msgspec.structs.replace(call, key=key, attempt=attempt, deadline_ms=0)
        if entry.result is None and entry.intent is not None:  # it may still be on its way, or at work
            over_s = (entry.intent.send_by_ms - self.now_ms) / 1000 + tool.timeout_s
            delay_s = max(delay_s, over_s)
        started = StartCall(self._whole, UNDO + place, tool, call, delay_s, "undo", _result_of(tool, entry))
        waiting = self._waiting[UNDO + place] = Waiting(started, unknown=attempt > 1)
        if retry is not None:
            waiting.attempts, waiting.unknown = retry.attempts, retry.unknown
        again = known is not None and known.intent is not None and known.intent.again
        if waiting.unknown and not again and (tool.effect == "blind" or self._is_forgotten(waiting.started)):
            self._unresolved(waiting, "the cell ended in its compensation", 0.0)
        else:
            self._intend(waiting)

    def _digest(self, place: str) -> bytes:
        """Of a shared call: what it belongs to, as it was when the agent asked. A tool may change its arguments."""
        return self._digests[place]

    def _leave_key(self, place: str) -> None:
        tool, call = self._asked[place]
        started = StartCall(self._whole, UNDO + place, tool, call, 0.0, "undo")
        self._waiting[UNDO + place] = Waiting(started)
        self._effects.append(LeaveKey(self._whole, place, self._digest(place), self.journal[place]))


def _forgotten_ms(tool: Tool[Any, Any], made_ms: int) -> int:
    """From when on a target may have forgotten the key of a call."""
    return made_ms + int(tool.ttl_s * 1000)


def _only_once(started: StartCall) -> bool:
    return started.tool.effect == "blind" and started.kind != "reconcile"


def _result_of(tool: Tool[Any, Any], entry: Entry) -> Any:
    """What a call returned, for its compensation; if that is not what its tool returns, None, as if nobody knew."""
    if entry.result is None:
        return None
    try:
        return tool.decode_result(entry.result)
    except TypeError:  # the agent was told so, and the run fails for it
        return None
