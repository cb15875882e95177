"""A lane: one tenant's share of a cell, with its runs in flight and the events that wait for a turn.

Like a run it is a state machine: happenings in, decisions out; the calls that its runs ask for go to whoever
was given. Runs that only wait are not held in memory, see `sleep`.

A lane's snapshot is the cache of its runs' journals: after a crash a run whose event comes again
from the same record, with the same version of its agent, goes on with it and skips finished steps.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import msgspec

from onceflow.agents import poison
from onceflow.agents.anew import redriven
from onceflow.agents.at_once import Beginning
from onceflow.agents.calls import (
    Asleep,
    Completed,
    Effect,
    KeyEffect,
    Parked,
    Record,
    RunFailed,
    StartCall,
    WaitBegun,
    chunks,
)
from onceflow.agents.capacity import Capacity
from onceflow.agents.commands import CANCELLED, resolution
from onceflow.agents.failures import failure
from onceflow.agents.happenings import (
    Arrivals,
    Arrived,
    Barrier,
    Commanded,
    Decision,
    Due,
    Ended,
    Happening,
    Looked,
    Lost,
    Memory,
    Noted,
    Redrive,
    Resumed,
    Settled,
    Signalled,
    Sleeping,
    Slept,
    Written,
)
from onceflow.agents.journal import (
    FAILED,
    FAILING,
    GONE,
    Entry,
    OpenRun,
    encode_segment,
    failed,
    segment_key,
)
from onceflow.agents.keys import Keys, Told
from onceflow.agents.loop import Answered
from onceflow.agents.machine import Machine, begin, no_flags
from onceflow.agents.order import Follower, Lines
from onceflow.agents.signals import FORMAT as SIGNAL_FORMAT
from onceflow.agents.signals import (
    KEPT_MS,
    Kept,
    Signal,
    encode_kept,
    ends,
    in_burst,
    signal_key,
    signal_prefix,
)
from onceflow.agents.sleep import Awaited, Sleepers
from onceflow.event import Event, InvalidData, Reason

SNAPSHOT_FORMAT = 1
NO_OFFSET = -1
BY_OPERATOR = "cancelled by an operator"
REFUSED = "redrive-refused"
NOT_KEPT = "what is kept of the failed run was redriven or discarded before"
NOTHING: Mapping[str, Entry] = MappingProxyType({})

log = logging.getLogger("onceflow.run")


class Journal(msgspec.Struct, array_like=True):
    """A run's journal in a lane's snapshot."""

    key: bytes
    record: str
    origin: str
    agent: str
    version: int
    entries: dict[str, Entry]


class Snapshot(msgspec.Struct, array_like=True):
    """What a lane leaves for its successor. Begins with a format number, as every stored form."""

    format: int
    tenant: str
    journals: list[Journal]


class Lane:
    """One tenant's runs. `start` takes the calls that runs ask for."""

    def __init__(
        self,
        tenant: str,
        capacity: Capacity,
        start: Callable[[Iterable[StartCall]], None],
        abandon: Callable[[Iterable[Machine]], None],
        memory: Memory,
        snapshot: bytes | None = None,
        flags: Callable[[str, str | None], bool] = no_flags,
    ) -> None:
        self.tenant = tenant
        self._memory = memory
        self._flags = flags
        self._sleepers = Sleepers()
        self._lines = Lines()
        self._keys = Keys(tenant, memory)
        self._capacity = capacity
        self._start = start
        self._abandon = abandon
        self._runs: set[Machine] = set()
        self._queue: deque[Arrived] = deque()
        self._watch = capacity.watch
        self._held: dict[bytes, Arrived] = {}  # until they may run apart, or others have done so
        self._journals = {} if snapshot is None else _restored(snapshot)

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

    def take(self, happenings: Iterable[Happening | Beginning], now_ms: int) -> list[Decision]:
        """Work on what happened; return what was decided: runs that ended, and what is to be written of others."""
        decided: list[Decision] = []
        calls: list[StartCall] = []
        for happening in happenings:
            if type(happening) is Arrivals:
                if happening.source.grant.live:
                    beginning = Beginning(happening, self._watch.names.computing, self._flags)
                    if self._clears(happening.keys):
                        beginning.go_on(now_ms, decided)
                    self._begin_all(beginning, now_ms, calls, decided)
            elif type(happening) is Beginning:
                self._begin_all(happening, now_ms, calls, decided)
            elif type(happening) is Answered:
                run = happening.run
                if run in self._runs and run.token.source.grant.live:
                    self._note(run, run.answer(happening.answer, now_ms), calls, decided)
            elif type(happening) is Barrier:
                run = happening.run
                if run in self._runs and run.token.source.grant.live:
                    self._note(run, run.committed(happening.number, now_ms), calls, decided)
            elif type(happening) is Arrived:
                if happening.source.grant.live:
                    self._arrived(happening, now_ms, calls, decided)
            elif type(happening) is Resumed:
                if (arrived := happening.arrived).source.grant.live:
                    if arrived.line:
                        self._lines.enter(arrived.key, arrived.line, None, arrived.turn)
                    self._queue.append(arrived)
            elif type(happening) is Sleeping:
                if happening.inbox.grant.live:
                    self._sleeping(happening)
            elif type(happening) is Due:
                self._due(happening, now_ms, calls, decided)
            elif type(happening) is Looked:
                self._look(happening, now_ms, calls, decided)
            elif type(happening) is Signalled:
                if happening.source.grant.live:
                    self._signalled(happening, now_ms, calls, decided)
            elif type(happening) is Commanded:
                if happening.source.grant.live:
                    self._commanded(happening, now_ms, calls, decided)
            elif type(happening) is Lost:
                self._drop(happening.grant)
            elif type(happening) is Settled:
                done = happening.finished
                self._journals = {
                    k: journal for k, journal in self._journals.items() if not done(journal.record)
                }
        if self._held:
            self._begin_held(now_ms, calls, decided)
        while self._queue and self._may_begin():
            self._begin(self._queue.popleft(), now_ms, calls, decided)
        self._watch.names.rest()
        self._capacity.give_back_turn(self.tenant)
        if calls:
            self._start(calls)
        return decided

    def snapshot(self) -> bytes:
        """The journals of runs in flight, and of runs whose event did not come again yet."""
        journals = list(self._journals.values())
        for run in self._runs:
            if run.journal and not run.segments:  # what the ledger holds needs no cache
                arrived: Arrived = run.token
                journals.append(
                    Journal(
                        arrived.key,
                        arrived.record,
                        arrived.origin,
                        run.agent.name,
                        run.agent.version,
                        dict(run.journal),
                    )
                )
        return msgspec.msgpack.encode(Snapshot(SNAPSHOT_FORMAT, self.tenant, journals))

    def _may_begin(self) -> bool:
        return self._capacity.may_begin(self.tenant, len(self._runs))

    def _arrived(
        self, arrived: Arrived, now_ms: int, calls: list[StartCall], decided: list[Decision]
    ) -> None:
        if arrived.agent.order_by and not self._in_turn(arrived, decided):
            return
        if self._queue or not self._may_begin():
            self._queue.append(arrived)
        else:
            self._begin(arrived, now_ms, calls, decided)

    def _clears(self, keys: Iterable[bytes]) -> bool:
        """Whether runs may begin, and as long as they end at once, nothing is to be known of them."""
        return not (self._journals or self._queue) and self._watch.clears(keys) and self._may_begin()

    def _begin_all(
        self, beginning: Beginning, now_ms: int, calls: list[StartCall], decided: list[Decision]
    ) -> None:
        """Let the runs of events that came together begin, as far as they have not."""
        while beginning.goes_on is not None:
            run, effects = beginning.goes_on
            self._under_way(run, effects, calls, decided)
            if self._queue or not self._may_begin():
                break
            beginning.go_on(now_ms, decided)
        for arrived in beginning.rest():
            self._arrived(arrived, now_ms, calls, decided)
        decided += beginning.ended()

    def _machine(self, event: Event[Any], arrived: Arrived, now_ms: int) -> Machine:
        return Machine(arrived.agent, arrived, root=event.key, flags=self._flags, now_ms=now_ms)

    def _begin(
        self,
        arrived: Arrived,
        now_ms: int,
        calls: list[StartCall],
        decided: list[Decision],
        news: Mapping[str, Entry] = NOTHING,
    ) -> None:
        """Let a run begin, or go on; `news`: what its journal has got meanwhile."""
        watch = self._watch
        if watch.waiting or not watch.clears((arrived.key,)):
            news = self._on_record(arrived, news, decided)
            if self._stopped(arrived, now_ms, calls, decided):
                return
        watch.names.computing[:] = arrived.key
        agent, saved = arrived.agent, arrived.saved
        try:
            data = agent.decode(arrived.incoming.data)
        except InvalidData as error:
            self._end(arrived, failure(error), 0 if saved is None else saved.segments, now_ms, decided)
            return
        event = Event(arrived.incoming, arrived.key.hex(), data)
        if saved is None and arrived.redrive is None and not self._journals and agent.deadline_s is None:
            begun = begin(agent, event, self._machine, arrived, now_ms)
            if isinstance(begun, Completed):
                self._ended(arrived, begun, decided)
            else:
                self._under_way(*begun, calls, decided)
            return
        run = Machine(agent, arrived, flags=self._flags)
        if arrived.root:
            run.root = arrived.root.hex()
        if saved is not None:
            run.journal, run.segments = saved.journal, saved.segments
            arrived.saved = None
            for place, entry in news.items():
                run.record(place, entry)
        elif arrived.redrive is not None and not self._redriven(run, arrived.redrive, decided):
            self._ended(arrived, RunFailed(REFUSED, NOT_KEPT, ""), decided)
            return
        elif self._journals and not run.segments:
            run.journal = self._journal_of(arrived)
        if run.segments and FAILING not in run.journal and self._watch.deaths_of(arrived.key):
            run.record(FAILING, Entry(agent.name, 0, b"", None, (Reason.POISON, poison.WHY)))
        if agent.deadline_s is not None:
            due_ms = _ends_by(arrived)
            decided.append(Slept(arrived.key, due_ms))
            if run.segments and now_ms >= due_ms and FAILING not in run.journal:
                run.record(FAILING, Entry(agent.name, 0, b"", None, _expired(arrived)))
        self._under_way(run, run.begin(event, now_ms), calls, decided)

    def _on_record(
        self, arrived: Arrived, news: Mapping[str, Entry], decided: list[Decision]
    ) -> Mapping[str, Entry]:
        """What a journal has got is on record before its run goes on, which may be later; what is left to record."""
        saved = arrived.saved
        if saved is None or not news:
            return news
        decided.append(self._written(arrived, Record(None, saved.segments, dict(news), False), None))
        saved.segments += 1
        saved.journal = {p: e for p, e in {**saved.journal, **news}.items() if e is not GONE}
        return NOTHING

    def _stopped(
        self, arrived: Arrived, now_ms: int, calls: list[StartCall], decided: list[Decision]
    ) -> bool:
        """Whether a run does not begin now: it is suspected to kill its process or known to, or waits for such ones."""
        key, saved, deaths = arrived.key, arrived.saved, self._watch.deaths_of(arrived.key)
        if deaths and saved is None:
            self._watch.settle(key)
            self._journals.pop(key, None)
            self._ended(arrived, RunFailed(Reason.POISON, poison.WHY, ""), decided)
        elif self._watch.hold(key, self.tenant):
            self._held[key] = arrived
        elif deaths > 1 and saved is not None:
            run = Machine(arrived.agent, arrived, saved.journal, saved.segments)
            self._under_way(run, run.park(Reason.UNKNOWN_OUTCOME, poison.UNDONE_TOO, now_ms), calls, decided)
        else:
            return False
        return True

    def _begin_held(self, now_ms: int, calls: list[StartCall], decided: list[Decision]) -> None:
        """Let those begin that were held, and need not wait any more."""
        for key in [key for key in self._held if self._watch.may_go(key)]:
            self._begin(self._held.pop(key), now_ms, calls, decided)
            if self._awake(key) is None:
                self._watch.over(key)

    def _under_way(
        self, run: Machine, effects: list[Effect], calls: list[StartCall], decided: list[Decision]
    ) -> None:
        self._capacity.begun(run.token.key)
        self._runs.add(run)
        self._note(run, effects, calls, decided)

    def _redriven(self, run: Machine, redrive: Redrive, decided: list[Decision]) -> bool:
        """Begin with what is kept of the failed run, in the decision that forgets that; whether it is still there."""
        if not redrive.segments:
            return True
        kept = self._memory.failed(redrive.run)
        if kept is None:
            return False
        run.journal = journal = redriven(kept.journal)
        for portion in chunks(journal):
            decided.append(self._written(run.token, Record(run, run.segments, portion, False), None))
            run.segments += 1
        decided.append(self._forgotten(kept))
        return True

    def _forgotten(self, kept: OpenRun, at: tuple[Any, int, int] = (None, NO_OFFSET, 0)) -> Noted:
        """What is kept of a failed run is deleted."""
        keys = [segment_key(self.tenant, kept.key, number) for number in range(kept.segments)]
        for key in keys:
            self._memory.put(key, None)
        return Noted(self.tenant, *at, tuple((key, None) for key in keys))

    def _journal_of(self, arrived: Arrived) -> dict[str, Entry]:
        journal = self._journals.pop(arrived.key, None)
        made_by = (arrived.origin, arrived.agent.name, arrived.agent.version)
        if journal is None or (journal.origin, journal.agent, journal.version) != made_by:
            return {}
        return journal.entries

    def _note(
        self, run: Machine, effects: Iterable[Effect], calls: list[StartCall], decided: list[Decision]
    ) -> None:
        arrived: Arrived = run.token
        about_keys: list[KeyEffect] = []  # last: what they lead to may be this run's end
        for effect in effects:
            if type(effect) is StartCall:
                calls.append(effect)
            elif type(effect) is Record:
                decided.append(self._written(arrived, effect, None))
            elif isinstance(effect, KeyEffect):
                about_keys.append(effect)
            elif type(effect) is WaitBegun:
                awaited = Awaited(arrived.key, effect.place, effect.wait)
                self._sleepers.waits(awaited)
                decided.append(Looked(awaited, arrived.source))
            else:
                self._runs.discard(run)
                self._capacity.ended(arrived.key)
                if type(effect) is Asleep:
                    self._sleepers.sleeps(arrived.key, self._memory.inbox(arrived.source))
                    decided.append(Slept(arrived.key, effect.due_ms))
                    self._put_down(arrived.key, decided)
                    continue
                self._sleepers.forget(arrived.key)
                if type(effect) is Parked:
                    decided.append(self._written(arrived, effect.record, effect))
                    self._sleepers.sleeps(arrived.key, self._memory.inbox(arrived.source))
                    self._put_down(arrived.key, decided)
                else:
                    self._end(arrived, effect, run.segments, run.now_ms, decided)

        for each in about_keys:
            self._told(self._keys.take(each, run.now_ms), calls, decided)

    def _told(self, told: Iterable[Told], calls: list[StartCall], decided: list[Decision]) -> None:
        for each in told:
            if isinstance(each, Noted):
                decided.append(each)
            else:
                self._note(*each, calls, decided)

    def _written(self, arrived: Arrived, record: Record, parked: Parked | None) -> Written:
        key = segment_key(self.tenant, arrived.key, record.number)
        value = encode_segment(arrived.begun() if record.number == 0 else None, dict(record.entries))
        self._memory.put(key, value)
        return Written(arrived, record, key, value, parked)

    def _end(
        self, arrived: Arrived, outcome: Any, segments: int, now_ms: int, decided: list[Decision]
    ) -> None:
        """A run has ended; the one behind it goes on. What the ledger holds of a failed one is kept, to be redriven."""
        kept = None
        if segments and type(outcome) is RunFailed:
            end = failed(arrived.agent.name, outcome.code, outcome.message, now_ms)
            key = segment_key(self.tenant, arrived.key, segments)
            kept = (key, encode_segment(None, {FAILED: end}))
            self._memory.put(*kept)
        else:
            for number in range(segments):
                self._memory.put(segment_key(self.tenant, arrived.key, number), None)
        self._ended(arrived, outcome, decided, segments, kept)

    def _ended(
        self,
        arrived: Arrived,
        outcome: Any,
        decided: list[Decision],
        segments: int = 0,
        kept: tuple[bytes, bytes] | None = None,
    ) -> None:
        decided.append(Ended(arrived, outcome, segments, kept))
        if arrived.line:
            self._next(self._lines.leave(arrived.key), decided)

    # --- runs of which one follows another ---

    def _in_turn(self, arrived: Arrived, decided: list[Decision]) -> bool:
        """Whether an event's run may begin; otherwise it stands behind another one."""
        arrived.line = arrived.agent.line_of(arrived.incoming)
        if not arrived.line or self._lines.enter(arrived.key, arrived.line, arrived):
            return True
        if self._lines.behind_a_sleeper(arrived):
            self._put_aside(arrived, decided)
        return False

    def _put_down(self, key: bytes, decided: list[Decision]) -> None:
        """A run sleeps: those behind it hold no input for so long."""
        for arrived in self._lines.sleeps(key):
            self._put_aside(arrived, decided)

    def _put_aside(self, arrived: Arrived, decided: list[Decision]) -> None:
        """Into the ledger, as a run that has not begun."""
        decided.append(self._written(arrived, Record(None, 0, {}, False), None))
        self._sleepers.sleeps(arrived.key, self._memory.inbox(arrived.source))

    def _sleeping(self, sleeping: Sleeping) -> None:
        """What the ledger holds and does not go on now."""
        self._sleepers.sleeps(sleeping.key, sleeping.inbox)
        if sleeping.line:
            self._lines.enter(sleeping.key, sleeping.line, None, sleeping.turn)
            self._lines.sleeps(sleeping.key)

    def _next(self, follower: Follower | None, decided: list[Decision]) -> None:
        if follower is None:
            return
        arrived = follower.arrived or self._called(follower.key)
        if arrived is None:
            self._put_down(follower.key, decided)
        else:
            self._queue.append(arrived)

    # --- runs that sleep, and what wakes them ---

    def _wake(
        self,
        key: bytes,
        now_ms: int,
        calls: list[StartCall],
        decided: list[Decision],
        news: Mapping[str, Entry] = NOTHING,
    ) -> None:
        """Let a sleeping run go on."""
        arrived = self._called(key)
        if arrived is not None:
            self._begin(arrived, now_ms, calls, decided, news)

    def _called(self, key: bytes) -> Arrived | None:
        """A sleeping run, to go on with."""
        inbox = self._sleepers.wakes(key)
        arrived = self._memory.run(key, inbox)
        if isinstance(arrived, str):
            log.warning("a run cannot go on: %s", arrived, extra={"run": key.hex(), "tenant": self.tenant})
            self._sleepers.sleeps(key, inbox)
            return None
        self._lines.wakes(key)
        return arrived

    def _awake(self, key: bytes) -> Machine | None:
        return next((run for run in self._runs if run.token.key == key), None)

    def _due(self, due: Due, now_ms: int, calls: list[StartCall], decided: list[Decision]) -> None:
        kind = due.record.partition(b"\0")[2][:1]
        if kind == b"k":
            decided.extend(self._keys.due(due.record, now_ms))
        elif kind == b"r":
            if (ended := self._memory.failed(due.record.partition(b"\0r")[2])) is not None:
                decided.append(self._forgotten(ended))
        elif due.record:
            for key, kept in self._memory.signals(due.record):
                self._memory.put(key, None)
                unclaimed = None if kept.taken else kept
                decided.append(Noted(self.tenant, None, NO_OFFSET, 0, ((key, None),), 0, unclaimed))
        elif self._sleepers.asleep(due.key):
            self._wake(due.key, now_ms, calls, decided)
        elif (run := self._awake(due.key)) is not None and run.token.source.grant.live:
            if run.agent.deadline_s is not None and now_ms >= _ends_by(run.token):
                self._cancel(run, *_expired(run.token), now_ms, calls, decided)
            else:
                self._note(run, run.due(now_ms), calls, decided)

    def _look(self, looked: Looked, now_ms: int, calls: list[StartCall], decided: list[Decision]) -> None:
        """A wait has begun: a signal that came early may end it."""
        awaited = looked.awaited
        wait = awaited.wait
        if not looked.source.grant.live or not self._sleepers.awaited(awaited):
            return
        known = self._memory.signals(signal_prefix(self.tenant, wait.type, wait.id))
        early = [
            (kept.time_ms, key, kept) for key, kept in known if not kept.taken and ends(wait, kept.signal)
        ]
        if early:
            _, key, kept = min(early, key=lambda found: found[:2])
            decided.append(self._taken(None, NO_OFFSET, 0, key, kept))
            self._deliver(awaited, kept.signal, now_ms, calls, decided)

    def _signalled(
        self, given: Signalled, now_ms: int, calls: list[StartCall], decided: list[Decision]
    ) -> None:
        signal, at = given.signal, (given.source, given.offset, given.size)
        key = signal_key(self.tenant, signal)
        known = self._memory.signals(signal_prefix(self.tenant, signal.type, signal.id))
        kept = Kept(
            SIGNAL_FORMAT,
            signal,
            given.time_ms,
            False,
            given.origin,
            given.value,
            None if given.headers is None else list(given.headers),
        )
        if any(known_key == key for known_key, _ in known):
            decided.append(Noted(self.tenant, *at))  # a copy
        elif (awaited := self._sleepers.taking(signal)) is not None:
            decided.append(self._taken(*at, key, kept))
            self._deliver(awaited, signal, now_ms, calls, decided)
        elif in_burst((each for _, each in known), signal, given.time_ms):
            decided.append(Noted(self.tenant, *at))
        else:
            value = encode_kept(kept)
            self._memory.put(key, value)
            decided.append(Noted(self.tenant, *at, ((key, value),), given.time_ms + KEPT_MS))

    def _taken(self, source: Any, offset: int, size: int, key: bytes, kept: Kept) -> Noted:
        """A signal ends a wait: it is remembered without its contents."""
        value = encode_kept(msgspec.structs.replace(kept, taken=True, value=None, headers=None))
        self._memory.put(key, value)
        return Noted(self.tenant, source, offset, size, ((key, value),), kept.time_ms + KEPT_MS)

    def _deliver(
        self,
        awaited: Awaited,
        signal: Signal,
        now_ms: int,
        calls: list[StartCall],
        decided: list[Decision],
    ) -> None:
        result = msgspec.msgpack.encode(signal)
        if self._sleepers.asleep(awaited.key):
            entry = Entry("wait_for", 1, b"", result, wait=awaited.wait)
            self._wake(awaited.key, now_ms, calls, decided, {awaited.place: entry})
        elif (run := self._awake(awaited.key)) is not None:
            self._sleepers.over(awaited)
            self._note(run, run.signalled(awaited.place, result, now_ms), calls, decided)

    def _commanded(
        self, given: Commanded, now_ms: int, calls: list[StartCall], decided: list[Decision]
    ) -> None:
        source, offset, size, command = given
        key = bytes.fromhex(command.run)
        refusal = ""
        if command.action == "discard":
            kept = self._memory.failed(key)
            at = (source, offset, size)
            decided.append(Noted(self.tenant, *at) if kept is None else self._forgotten(kept, at))
            return
        decided.append(Noted(self.tenant, source, offset, size))
        if (held := self._held.pop(key, None)) is not None:
            self._watch.over(key, survived=False)
            self._queue.append(held)
        if self._sleepers.asleep(key):
            found = self._memory.run(key, source)
            news = (
                found if isinstance(found, str) or found.saved is None else resolution(command, found.saved)
            )
            if isinstance(news, str):
                refusal = news
            elif not isinstance(news, Arrived):
                self._watch.forgive(key)
                asks = [place for place, entry in news.items() if self._keys.settled_by_others(place, entry)]
                for place, entry in news.items():
                    if entry.intent is not None and entry.intent.shared and place not in asks:
                        resolved = self._keys.resolved(entry.intent.shared, (key, place), entry, now_ms)
                        self._told(resolved, calls, decided)
                self._wake(key, now_ms, calls, decided, {**news, **dict.fromkeys(asks, GONE)})
        elif (run := self._awake(key)) is not None and command.action == "cancel":
            self._cancel(run, CANCELLED, BY_OPERATOR, now_ms, calls, decided)
        elif command.action == "cancel" and (waiting := [a for a in self._queue if a.key == key]):
            self._queue.remove(waiting[0])
            self._watch.forgive(key)
            saved = waiting[0].saved
            if saved is None:
                self._end(waiting[0], RunFailed(CANCELLED, BY_OPERATOR, ""), 0, now_ms, decided)
            else:
                news = resolution(command, saved)
                assert not isinstance(news, str)
                self._begin(waiting[0], now_ms, calls, decided, news)
        elif command.action == "cancel" and (behind := self._lines.take(key)) is not None:
            decided.append(Ended(behind, RunFailed(CANCELLED, BY_OPERATOR, "")))
        else:
            refusal = "there is no such run, or it is under way"
        said = {"run": command.run, "tenant": self.tenant, "action": command.action, "refused": refusal}
        log.info("an operator has decided about a run", extra=said)

    def _cancel(
        self,
        run: Machine,
        code: str,
        message: str,
        now_ms: int,
        calls: list[StartCall],
        decided: list[Decision],
    ) -> None:
        effects = run.cancel(code, message, now_ms)
        if run.ended:
            self._abandon([run])  # it has only read: nobody waits for what is under way
        self._note(run, effects, calls, decided)

    def _drop(self, grant: Any) -> None:
        gone = [run for run in self._runs if run.token.source.grant is grant]
        self._runs.difference_update(gone)
        self._capacity.lost(run.token.key for run in gone)
        self._abandon(gone)
        for run in gone:
            self._sleepers.forget(run.token.key)
            run.close()
        self._sleepers.lost(grant)
        self._keys.lost()
        self._lines = Lines()  # a tenant is at home in one slot: all of it is gone
        self._queue = deque(arrived for arrived in self._queue if arrived.source.grant is not grant)
        for key in [key for key, held in self._held.items() if held.source.grant is grant]:
            del self._held[key]
            self._watch.over(key, survived=False)


def _ends_by(arrived: Arrived) -> int:
    """When a run's deadline is over (ms): counted from when its event was sent."""
    assert arrived.agent.deadline_s is not None
    return arrived.time_ms + int(arrived.agent.deadline_s * 1000)


def _expired(arrived: Arrived) -> tuple[str, str]:
    """How a run ends whose deadline is over: code and message."""
    return Reason.EXPIRED, f"not done within {arrived.agent.deadline_s:g} s after its event was sent"


def snapshot_tenant(snapshot: bytes) -> str | None:
    """The tenant of a snapshot; None if it is of another format, and so left aside."""
    head = msgspec.msgpack.decode(snapshot)
    return str(head[1]) if head[0] == SNAPSHOT_FORMAT else None


def _restored(snapshot: bytes) -> dict[bytes, Journal]:
    journals = msgspec.msgpack.decode(snapshot, type=Snapshot).journals
    return {journal.key: journal for journal in journals}


def utc_text(time_ms: int) -> str:
    """A time as CloudEvents writes it (RFC 3339, UTC, milliseconds)."""
    text = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
