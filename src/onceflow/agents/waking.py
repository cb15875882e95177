"""Runs of a lane that sleep, and what wakes them: a time that is over, or a signal.

Of such a run only its key is in memory, and what it waits for. A signal that finds no wait is kept in the ledger.
"""

from collections.abc import Mapping

import msgspec

from onceflow.agents.deciding import ends_by_ms, out_of_time
from onceflow.agents.happenings import (
    NO_OFFSET,
    Arrived,
    Due,
    Looked,
    Noted,
    Signalled,
    Sleeping,
)
from onceflow.agents.in_flight import NOTHING, InFlight
from onceflow.agents.journal import Entry, kept_until_ms
from onceflow.agents.machine import Machine
from onceflow.agents.signals import FORMAT as SIGNAL_FORMAT
from onceflow.agents.signals import (
    KEPT_MAX,
    KEPT_MS,
    Kept,
    Signal,
    encode_kept,
    in_burst,
    signal_key,
    signal_prefix,
)
from onceflow.agents.sleep import Awaited


class Waking(InFlight):
    """The runs of a lane, as far as they sleep."""

    def _sleeping(self, sleeping: Sleeping) -> None:
        """What the ledger holds and does not go on now."""
        self._sleepers.sleeps(sleeping.key, sleeping.inbox)
        if sleeping.line:
            self._lines.enter(sleeping.key, sleeping.line, None, sleeping.turn)
            self._lines.sleeps(sleeping.key)

    def _wake(self, key: bytes, news: Mapping[str, Entry] = NOTHING, *, by_itself: bool = False) -> None:
        """Let a sleeping run go on. Without room it sleeps on: thousands may wake together, each with its event."""
        if key in self._woken and not news:
            return
        arrived = self._called(key, by_itself=by_itself)
        if arrived is None:
            return
        arrived.woken = True
        if not self._queue and self._may_begin():
            self._woken.discard(key)
            self._begin(arrived, news)
            return
        self._on_record(arrived, news)
        self._sleepers.sleeps(key, self._memory.inbox(arrived.source))
        if key not in self._woken:
            self._woken.add(key)
            self._queue.append(key)

    def _roused(self, key: bytes) -> Arrived | None:
        """A run that was woken, and has slept on until now; None: it goes on already, or is gone."""
        if key not in self._woken:
            return None
        self._woken.discard(key)
        arrived = self._called(key)
        if arrived is not None:
            arrived.woken = True
        return arrived

    def _due(self, due: Due) -> None:
        kind = due.record.partition(b"\0")[2][:1]
        if kind == b"k":
            found = self._keys.due(due.record, self._now_ms)
            if isinstance(found, Noted):
                self._decided.note(found)
            elif found:
                self._decided.due.append((due, found))
        elif kind == b"r":
            kept = self._memory.failed(due.record.partition(b"\0r")[2])
            if kept is not None and kept_until_ms(kept) <= self._now_ms:  # it may have failed anew since
                self._decided.note(self._forgotten(kept))
        elif due.record:
            for key, signal in self._memory.signals(due.record):
                self._let_go(key, signal)
        elif self._sleepers.asleep(due.key):
            self._wake(due.key, by_itself=True)
        elif (run := self._awake(due.key)) is not None and run.token.source.grant.live:
            if 0 < ends_by_ms(run.token, run.journal) <= self._now_ms:
                self._cancel(run, *out_of_time(run.token))
            else:
                self._note(run, run.due(self._now_ms))

    def _look(self, looked: Looked) -> None:
        """A wait has begun: a signal that came early may end it."""
        awaited = looked.awaited
        wait = awaited.wait
        if not looked.source.grant.live or not self._sleepers.awaited(awaited) or self._is_over(awaited):
            return
        if (found := self._kept_for(wait)) is not None:
            self._decided.note(self._taken(None, NO_OFFSET, 0, *found))
            self._deliver(awaited, found[1].signal)

    def _signalled(self, given: Signalled) -> None:
        signal, at = given.signal, (given.source, given.offset, given.size)
        key = signal_key(self.tenant, signal)
        if self._memory.signals(key):
            self._decided.note(Noted(*at))  # a copy
            return
        kept = Kept(
            SIGNAL_FORMAT,
            signal,
            given.time_ms,
            False,
            given.origin,
            given.value,
            None if given.headers is None else list(given.headers),
        )
        if (awaited := self._taking(signal)) is not None:
            self._decided.note(self._taken(*at, key, kept))
            self._deliver(awaited, signal)
            return
        known = self._memory.signals(signal_prefix(self.tenant, signal.type, signal.id))
        if in_burst((each for _, each in known), signal, given.time_ms):
            self._decided.note(Noted(*at))
            return
        free = [(each.time_ms, known_key, each) for known_key, each in known if not each.taken]
        free.sort(key=lambda one: one[:2])
        for _, known_key, each in free[: max(0, len(free) + 1 - KEPT_MAX)]:
            self._let_go(known_key, each)
        change = (key, encode_kept(kept))
        self._memory.put(change)
        self._decided.note(Noted(*at, (change,), given.time_ms + KEPT_MS))

    def _let_go(self, key: bytes, kept: Kept) -> None:
        """A signal is kept no longer; if it ended no wait, it becomes a dead letter."""
        forgotten = (key, None)
        self._memory.put(forgotten)
        self._decided.note(Noted(None, NO_OFFSET, 0, (forgotten,), 0, None if kept.taken else kept))

    def _taking(self, signal: Signal) -> Awaited | None:
        """The oldest wait that a signal ends."""
        while (awaited := self._sleepers.taking(signal)) is not None and self._is_over(awaited):
            self._sleepers.over(awaited)
        return awaited

    def _is_over(self, awaited: Awaited) -> bool:
        """Whether the run goes on with something else meanwhile: its time was over, or the run fails."""
        run = None if self._sleepers.asleep(awaited.key) else self._awake(awaited.key)
        return run is not None and not run.awaits(awaited.place)

    def _deliver(self, awaited: Awaited, signal: Signal) -> None:
        result = msgspec.msgpack.encode(signal)
        if self._sleepers.asleep(awaited.key):
            entry = Entry("wait_for", 1, b"", result, wait=awaited.wait)
            self._wake(awaited.key, {awaited.place: entry})
        elif (run := self._awake(awaited.key)) is not None:
            self._sleepers.over(awaited)
            self._note(run, run.signalled(awaited.place, result, self._now_ms))

    def _cancel(self, run: Machine, code: str, message: str) -> None:
        effects = run.cancel(code, message, self._now_ms)
        if run.ended:
            self._abandon([run])  # it has only read: nobody waits for what is under way
        self._note(run, effects)
