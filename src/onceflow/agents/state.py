"""A run's state, and how it is put on record."""

from collections.abc import Callable, Coroutine
from contextvars import Context
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import msgspec

from onceflow.agents.agent import Agent
from onceflow.agents.call import Call
from onceflow.agents.calls import Completed, Effect, Record, RunFailed, StartCall, Waiting, chunks
from onceflow.agents.journal import GONE, Entry, Wait
from onceflow.agents.tool import Tool

if TYPE_CHECKING:
    from onceflow.agents.machine import Machine


# Of what most runs have none, they share one empty value, which can't be written to: thousands of runs are in flight,
# and each dict more is memory that is cold when it is needed.
EMPTY: dict[str, Any] = cast("dict[str, Any]", MappingProxyType({}))
NONE: list[Any] = cast("list[Any]", ())

AskFlag = Callable[[str, str | None], bool]  # whether the flag of this name is set, for this market


def no_flags(name: str, market: str | None) -> bool:
    """Where nobody has set any."""
    return False


class RunState(msgspec.Struct, eq=False):
    """What is known of one run: its journal, what it waits for, and what is to be done."""

    agent: Agent[Any, Any]
    token: Any  # whatever the driver needs to know the run by
    journal: dict[str, Entry] = {}
    segments: int = 0  # of the journal in the ledger; 0: the ledger doesn't know the run
    root: str = ""  # the run's id; of a redrive, that of the run that failed first
    flags: AskFlag = no_flags
    ended: bool = False  # or parked
    now_ms: int = 0
    _waiting: dict[str, Waiting] = {}
    _coroutine: Coroutine[Any, Any, Any] | None = None
    _context: Context | None = None  # that the agent has for itself
    _effects: list[Effect] = []
    _news: dict[str, Entry] = EMPTY  # entries that a ledger which knows the run doesn't have yet
    _held: list[StartCall] = NONE  # calls whose intent is among them
    _asked: dict[str, tuple[Tool[Any, Any], Call]] = {}  # effects, in the order of asking
    _digests: dict[str, bytes] = EMPTY  # of calls of scope `tenant`: what they belong to
    _end: Completed | RunFailed | None = None  # once no call is under way, and what stands is undone
    _fails: bool = False  # whatever its agent does: it was cancelled, or has failed before
    _parking: tuple[str, str, str] | None = None  # reason, message and place, once no call is under way
    _waits: dict[str, Wait] = EMPTY  # that the agent waits for
    _told_ms: int = 0  # when it is told that one of them may be over
    _moved: list[str] = (
        NONE  # the places with news since the agent last went on; NONE: it has not gathered yet
    )
    _leaves: bool = False  # it goes on in another cell, soon
    _given_up: bool = False  # its agent is: what it still asks for, in a `finally`, is not the run's

    @property
    def _whole(self) -> "Machine":
        """This, with what is built upon it: as whoever drives it knows a run."""
        return self  # type: ignore[return-value]  # it is always one

    @property
    def _lasting(self) -> bool:
        """Whether the run is in the ledger, or about to be."""
        return bool(self._asked or self.segments or self._waits)

    def record(self, place: str, entry: Entry) -> None:
        """Write into the journal."""
        if self._moved is not NONE:
            self._moved.append(place)
        if entry is GONE:
            self.journal.pop(place, None)
        else:
            self.journal[place] = entry
        if self.segments:
            if self._news:
                self._news[place] = entry
            else:
                self._news = {place: entry}

    def _postponed(self, place: str) -> bool:
        """Whether the next attempt at this place is due later; then that is waited for."""
        known = self.journal.get(place)
        if known is None or not known.open or known.retry is None or known.wait is None:
            return False
        if known.wait.due_ms <= self.now_ms:
            if place in self._waits:  # it is made now, whatever has come first
                del self._waits[place]
            return False
        self._waits = {**self._waits, place: known.wait}
        return True

    def _write(self, *, lasting: bool = False) -> None:
        """Put the news into the ledger, if it knows the run or has to (`lasting`); calls that are held wait for it."""
        news, held, number = self._news, self._held, self.segments
        if not (news or held or (number == 0 and (lasting or self._waits or self._parking))):
            return
        *others, last = chunks(news if number else dict(self.journal), beside_event=not number)
        for portion in others:
            self._effects.append(Record(number, portion))
            number += 1
        self._effects.append(Record(number, last, held))
        self._news, self._held = EMPTY, NONE
        self.segments = number + 1
