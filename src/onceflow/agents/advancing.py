"""A run's agent goes on, to its next call or its end; and what that leads to: an end, an undo, a park, or sleep."""

from collections.abc import Coroutine
from contextvars import Context
from typing import Any, NamedTuple

from onceflow.agents import anew
from onceflow.agents.asking import Asking
from onceflow.agents.calls import (
    Asleep,
    Completed,
    Effect,
    KeyKept,
    Parked,
    Record,
    RunFailed,
)
from onceflow.agents.failures import close, failure, foreign_await
from onceflow.agents.journal import (
    AGAIN,
    FAILING,
    GONE,
    PARKED,
    SPECIAL,
    UNDO,
    Entry,
    Retry,
    Wait,
    first_due_ms,
    parked,
)
from onceflow.agents.suspension import SUSPENDED, ForeignAwait
from onceflow.agents.tool import AGENT_BENEATH
from onceflow.event import Reason


class _RaisedByAgent(NamedTuple):
    error: BaseException


def advanced(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Let an agent go on: a Completed with what it returned, a _RaisedByAgent, or what it awaits."""
    try:
        return coroutine.send(None)
    except StopIteration as stop:
        return Completed(stop.value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (an agent may raise anything; only its own run fails)
        return _RaisedByAgent(error)


AGENT_BENEATH[advanced.__code__] = True


class Advancing(Asking, eq=False):
    """A run's state, as far as its agent goes on."""

    def close(self) -> None:
        """Abandon the run; its agent sees GeneratorExit."""
        self.ended = True
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            self._give_up_agent(coroutine)

    def _give_up_agent(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._given_up = True
        (self._context or Context()).run(close, coroutine)

    def _go_on(self) -> list[Effect]:
        return self._settled() if self._coroutine is None else self._step(self._coroutine)

    def _step(self, coroutine: Coroutine[Any, Any, Any]) -> list[Effect]:
        """Let the agent go on to its next call, or to its end."""
        self._coroutine = None
        if self._context is None:
            self._context = Context()
        return self._stepped(coroutine, self._context.run(advanced, coroutine))

    def _stepped(self, coroutine: Coroutine[Any, Any, Any], found: Any) -> list[Effect]:
        """The agent has gone on; `found`: as `advanced` returns it."""
        end: Completed | RunFailed
        if found is SUSPENDED:
            self._coroutine = coroutine
            if self._moved:
                self._moved = []
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
            self._give_up_agent(coroutine)
            end = foreign_await(ForeignAwait(found))
        if not (self._asked or self.segments or self._waits):  # it has changed nothing outside
            self.ended = True
            return [end]
        if self._end is None:
            if type(end) is RunFailed:
                self._end_as_failed(end)
            else:
                self._end = end
        return self._settled()

    def _end_as_failed(self, end: RunFailed) -> None:
        self._end = end
        if self._stands():
            self.record(FAILING, Entry(self.agent.name, 0, b"", None, (end.code, end.message)))

    def _begin_again(self, delay_s: float) -> list[Effect]:
        """The run waits, to be done anew; what it has done and what that was based on stays as it is."""
        known, found = self.journal.get(AGAIN), anew.retried(self.journal, self._digests)
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
        if self._parking is not None:
            self._ask_no_more()
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
                self._effects.append(Asleep(self._whole, first_due_ms(self._waits.values())))
        effects, self._effects = self._effects, []
        return effects

    def _written(self) -> list[Effect]:
        """What has come of a happening is on record, and that is all."""
        self._write()
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
            if self._digests and type(self._end) is Completed:
                self._effects += [
                    KeyKept(self._whole, place, digest) for place, digest in self._digests.items()
                ]
            self._effects.append(self._end)
        elif not self._postponed(UNDO + standing[-1]):
            tool, _ = self._asked[standing[-1]]
            if tool.scope == "tenant" and UNDO + standing[-1] not in self.journal:
                self._leave_key(standing[-1])
            else:
                self._undo(standing[-1])

    def _park(self, reason: str, message: str, place: str) -> None:
        self._write()
        self.ended = True
        entry = parked(self.agent.name, reason, message, place, self.now_ms)
        self._effects.append(Parked(Record(self.segments, {PARKED: entry}), reason, message))
        self.segments += 1

    def _unasked(self) -> str:
        """An effect on record that the agent has not asked for; "" if there is none.

        A redriven run that fails again need not come to what it has kept; one that fails whatever its agent does, only
        to what is to be undone.
        """
        asked = self._asked
        if asked.keys() == self.journal.keys():
            return ""
        for place, entry in self.journal.items():
            if not (place[0] in SPECIAL or place in asked or self._may_be_left(place, entry)):
                return f"call {place} of {entry.tool}"
        return ""

    def _may_be_left(self, place: str, entry: Entry) -> bool:
        if anew.being_undone(self.journal, place):
            return False
        if entry.intent is None:
            return True
        if type(self._end) is not RunFailed:
            return False
        return entry.intent.kept or (self._fails and not anew.cannot_be_left(self.journal, place))
