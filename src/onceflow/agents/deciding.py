"""What the runs of a lane decide, and what that leads to: records, ends, sleep, and whose turn is next."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from onceflow.agents.anew import redriven
from onceflow.agents.calls import (
    Asleep,
    Completed,
    Effect,
    KeyEffect,
    KeyKept,
    Parked,
    Record,
    RunFailed,
    StartCall,
    WaitBegun,
    chunks,
)
from onceflow.agents.capacity import Capacity
from onceflow.agents.happenings import (
    NO_OFFSET,
    Arrived,
    Decided,
    Due,
    Ended,
    Looked,
    Memory,
    Noted,
    Redrive,
    WriteEnd,
    unwritten,
)
from onceflow.agents.journal import (
    FAILED,
    FAILED_KEPT_MS,
    FAILING,
    Entry,
    OpenRun,
    encode_segment,
    failed,
    run_prefix,
    segment_key,
    segment_keys,
)
from onceflow.agents.keys import AskAgain, Keys, Rests, Told
from onceflow.agents.machine import Machine
from onceflow.agents.order import Follower, Lines
from onceflow.agents.sleep import Awaited, Sleepers
from onceflow.agents.snapshot import restored
from onceflow.agents.state import AskFlag, no_flags
from onceflow.event import Reason
from onceflow.state.ledger import Change

REFUSED = "redrive-refused"
NOT_KEPT = "what is kept of the failed run was redriven or discarded before"

log = logging.getLogger("onceflow.run")


class Deciding:
    """One tenant's runs. `start` takes the calls that they ask for; `memory` is what the ledger holds of them."""

    def __init__(
        self,
        tenant: str,
        capacity: Capacity,
        start: Callable[[Iterable[StartCall]], None],
        abandon: Callable[[Iterable[Machine]], None],
        memory: Memory,
        snapshot: bytes | None = None,
        flags: AskFlag = no_flags,
        write_end: WriteEnd = unwritten,
    ) -> None:
        self.tenant = tenant
        self._memory = memory
        self._flags = flags
        self._write_end = write_end
        self._sleepers = Sleepers()
        self._lines = Lines()
        self._keys = Keys(tenant, memory, self._awake)
        self._capacity = capacity
        self._start = start
        self._abandon = abandon
        self._runs: set[Machine] = set()
        self._queue: deque[Arrived | bytes] = deque()  # what waits for room; of runs that sleep, the keys
        self._woken: set[bytes] = set()  # those
        self._watch = capacity.watch
        self._held: dict[bytes, Arrived] = {}  # until they may run apart, or others have done so
        self._journals = {} if snapshot is None else restored(snapshot)
        self._leaves = False  # its slot goes to another cell in a moment
        self._now_ms = 0  # of what is worked on now, which leads to these:
        self._calls: list[StartCall] = []
        self._about_keys: deque[KeyEffect | Rests] = deque()
        self._decided = Decided()

    @property
    def waiting(self) -> int:
        """Events that wait for a turn."""
        return len(self._queue) + len(self._held) + self._lines.held

    @property
    def has_journals(self) -> bool:
        """Whether it holds journals of runs whose event did not come again yet."""
        return bool(self._journals)

    @property
    def idle(self) -> bool:
        """Whether nothing is lost when this lane is discarded."""
        waiting = self._queue or self._held or self._lines.held
        return not (self._runs or waiting or self._journals or self._sleepers)

    def _note(self, run: Machine, effects: Sequence[Effect]) -> None:
        """What a run has decided, and all that this leads to."""
        self._note_effects(run, effects)
        if self._about_keys:
            self._told(())

    def _told(self, told: Iterable[Told]) -> None:
        """See `_note`. What is told of keys leads to more of that, thousands of times: not one within another."""
        self._note_each(told)
        while self._about_keys:
            self._note_each(self._keys.take(self._about_keys.popleft(), self._now_ms))

    def _note_each(self, told: Iterable[Told]) -> None:
        for each in told:
            if isinstance(each, Noted):
                self._decided.note(each)
            elif isinstance(each, AskAgain):
                if self._sleepers.asleep(each.run):
                    self._decided.due.append((Due(each.run), self._now_ms))
                elif (run := self._awake(each.run)) is not None:
                    self._note_effects(run, run.ask_again(each.place, self._now_ms))
            else:
                self._note_effects(*each)

    def _note_effects(self, run: Machine, effects: Sequence[Effect]) -> None:
        arrived: Arrived = run.token
        if effects and type(effects[-1]) is Completed:
            effects = self._written(run, effects[:-1], effects[-1])
        for effect in effects:
            if type(effect) is StartCall:
                self._calls.append(effect)
            elif type(effect) is Record:
                self._write(arrived, effect)
            elif isinstance(effect, KeyEffect):
                self._about_keys.append(effect)  # last: what they lead to may be this run's end
            elif type(effect) is WaitBegun:
                awaited = Awaited(arrived.key, effect.place, effect.wait)
                self._sleepers.waits(awaited)
                self._decided.looked.append(Looked(awaited, arrived.source))
            else:
                self._runs.discard(run)
                self._capacity.ended(arrived.key)
                if type(effect) is Asleep:
                    self._sleepers.keep(arrived.key, run.awaits)
                    self._sleepers.sleeps(arrived.key, self._memory.inbox(arrived.source))
                    self._decided.due.append((Due(arrived.key), effect.due_ms))
                    self._put_down(arrived.key)
                    continue
                self._sleepers.forget(arrived.key)
                if type(effect) is Parked:
                    self._write(arrived, effect.record)
                    self._decided.parked.append((arrived, effect))
                    self._sleepers.sleeps(arrived.key, self._memory.inbox(arrived.source))
                    self._put_down(arrived.key)
                else:
                    self._end(arrived, effect, run.segments)
        if self._keys.waiting:
            self._about_keys += self._keys.rests(run)
        if due_ms := run.next_due_ms(self._now_ms):
            self._decided.due.append((Due(arrived.key), due_ms))

    def _written(self, run: Machine, before: Sequence[Effect], end: Completed) -> Sequence[Effect]:
        """The end with its completion; a value that makes none fails the run, while what it did can still be undone."""
        found = self._write_end(run.token, end, self._now_ms)
        if type(found) is not RunFailed:
            return [*before, found]
        return [effect for effect in before if type(effect) is not KeyKept] + run.fail(found, self._now_ms)

    def _write(self, arrived: Arrived, record: Record) -> None:
        """A segment of a run's journal. With the first the ledger holds the run, and its event's record is finished."""
        number, decided = record.number, self._decided
        key = segment_key(self.tenant, arrived.key, number)
        if number:
            value = encode_segment(None, record.entries)
        else:
            if (kept := self._memory.failed(arrived.key)) is not None:
                decided.note(self._forgotten(kept))  # it has failed before, longer ago than dedup remembers
            value = encode_segment(arrived.begun(), record.entries)
            decided.begun.append(arrived)
        change = (key, value)
        self._memory.put(change)
        decided.ledger.append(change)
        decided.calls += record.calls

    def _end(self, arrived: Arrived, outcome: Any, segments: int) -> None:
        """A run has ended; the one behind it goes on. What the ledger holds of a failed one is kept, to be redriven."""
        changes: list[Change]
        kept = segments > 0 and type(outcome) is RunFailed
        if kept:
            end = failed(arrived.agent.name, outcome.code, outcome.message, self._now_ms)
            key = segment_key(self.tenant, arrived.key, segments)
            changes = [(key, encode_segment(None, {FAILED: end}))]
            kept_until_ms = self._now_ms + FAILED_KEPT_MS
            self._decided.due.append((Due(b"", run_prefix(self.tenant, arrived.key)), kept_until_ms))
        else:
            changes = [(key, None) for key in segment_keys(self.tenant, arrived.key, segments)]
        self._put(changes)
        self._ended(arrived, outcome, segments, changes, kept)

    def _ended(
        self,
        arrived: Arrived,
        outcome: Any,
        segments: int = 0,
        changes: Sequence[Change] = (),
        kept: bool = False,
    ) -> None:
        self._decided.end(Ended(arrived, outcome, segments, changes, kept))
        if arrived.line:
            self._next(self._lines.leave(arrived.key))

    def _forgotten(self, kept: OpenRun, at: tuple[Any, int, int] = (None, NO_OFFSET, 0)) -> Noted:
        """What is kept of a failed run is deleted."""
        keys = segment_keys(self.tenant, kept.key, kept.segments)
        changes = tuple([(key, None) for key in keys])
        self._put(changes)
        return Noted(*at, changes)

    def _put(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self._memory.put(change)

    # --- runs of which one follows another ---

    def _in_turn(self, arrived: Arrived) -> bool:
        """Whether an event's run may begin; otherwise it stands behind another one."""
        arrived.line = arrived.agent.line_of(arrived.incoming)
        if not arrived.line or self._lines.enter(arrived.key, arrived.line, arrived):
            return True
        if self._lines.behind_a_sleeper(arrived):
            self._put_aside(arrived)
        return False

    def _put_down(self, key: bytes) -> None:
        """A run sleeps: those behind it hold no input for so long."""
        for arrived in self._lines.sleeps(key):
            self._put_aside(arrived)

    def _put_aside(self, arrived: Arrived) -> None:
        """Into the ledger, as a run that has not begun."""
        if arrived.redrive is None or not arrived.redrive.segments:
            self._write(arrived, Record(0, {}))
        elif self._redriven(arrived, arrived.redrive) is None:
            return
        self._sleepers.sleeps(arrived.key, self._memory.inbox(arrived.source))

    def _next(self, follower: Follower | None) -> None:
        if follower is None:
            return
        asleep = self._sleepers.asleep(follower.key) and follower.key not in self._woken
        if follower.arrived is None and not asleep:
            return  # it was cancelled, and goes on already or is about to
        arrived = follower.arrived or self._called(follower.key, by_itself=True)
        if arrived is None:
            self._put_down(follower.key)
        else:
            self._queue.append(arrived)

    # --- runs that sleep ---

    def _called(self, key: bytes, *, by_itself: bool = False) -> Arrived | None:
        """A sleeping run, to go on with. By itself one that is parked does so only when its deadline is over."""
        inbox = self._sleepers.wakes(key)
        arrived = self._memory.run(key, inbox)
        if isinstance(arrived, str):
            log.warning("a run cannot go on: %s", arrived, extra={"run": key.hex(), "tenant": self.tenant})
            self._sleepers.sleeps(key, inbox)
            return None
        if by_itself and arrived.saved is not None and arrived.saved.parked:
            due_ms = ends_by_ms(arrived, arrived.saved.journal)
            if not 0 < due_ms <= self._now_ms:
                self._sleepers.sleeps(key, inbox)
                return None
        self._lines.wakes(key)
        return arrived

    def _awake(self, key: bytes) -> Machine | None:
        return next((run for run in self._runs if run.token.key == key), None)

    # --- runs that are done anew ---

    def _redriven(self, arrived: Arrived, redrive: Redrive) -> tuple[dict[str, Entry], int] | None:
        """The journal that a redrive has from its failed run, and its segments: on record in the decision that forgets
        what was kept. None: that is gone, and the redrive has ended.
        """
        kept = self._memory.failed(redrive.run)
        if kept is None:
            self._ended(arrived, RunFailed(REFUSED, NOT_KEPT, ""))
            return None
        journal = redriven(kept.journal)
        portions = chunks(journal, beside_event=True)
        for number, portion in enumerate(portions):
            self._write(arrived, Record(number, portion))
        self._decided.note(self._forgotten(kept))
        return journal, len(portions)


def ends_by_ms(arrived: Arrived, journal: Mapping[str, Entry]) -> int:
    """When a run's deadline is over: counted from when its event was sent; 0: it has none, or fails already."""
    deadline_s = arrived.agent.deadline_s
    if deadline_s is None or FAILING in journal:
        return 0
    return arrived.time_ms + int(deadline_s * 1000)


def out_of_time(arrived: Arrived) -> tuple[str, str]:
    """How a run ends whose deadline is over: code and message."""
    return Reason.EXPIRED, f"not done within {arrived.agent.deadline_s:g} s after its event was sent"
