"""How the runs of a lane begin, or go on; and which do not, for they may kill the process."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from onceflow.agents import poison
from onceflow.agents.anew import cannot_be_left
from onceflow.agents.calls import (
    Completed,
    Effect,
    Record,
    RunFailed,
)
from onceflow.agents.deciding import Deciding, ends_by_ms, out_of_time
from onceflow.agents.failures import failure
from onceflow.agents.happenings import (
    NO_OFFSET,
    Arrived,
    Due,
    Noted,
)
from onceflow.agents.journal import (
    FAILING,
    GONE,
    PARKED,
    Entry,
    OpenRun,
    Wait,
    settled,
)
from onceflow.agents.machine import Machine, begin
from onceflow.agents.signals import KEPT_MS, Kept, encode_kept, ends, signal_prefix
from onceflow.event import Event, InvalidData, Reason

NOTHING: Mapping[str, Entry] = MappingProxyType({})


class InFlight(Deciding):
    """The runs of a lane, as far as they begin."""

    def _may_begin(self) -> bool:
        return self._capacity.may_begin(self.tenant, len(self._runs)) and not self._leaves

    def _machine(self, event: Event[Any], arrived: Arrived) -> Machine:
        return Machine(arrived.agent, arrived, root=event.key, flags=self._flags, now_ms=self._now_ms)

    def _begin(self, arrived: Arrived, news: Mapping[str, Entry] = NOTHING) -> None:
        """Let a run begin, or go on; `news`: what its journal has got meanwhile."""
        if not arrived.source.grant.live:
            return  # the slot's next owner lets it begin; this lane is about to be told
        watch = self._watch
        if watch.waiting or not watch.clears((arrived.key,)):
            news = self._on_record(arrived, news)
            if self._stopped(arrived):
                return
        watch.names.computing[:] = arrived.key
        agent, saved = arrived.agent, arrived.saved
        try:
            data = agent.decode(arrived.incoming.data)
        except InvalidData as error:
            if saved is None:
                self._end(arrived, failure(error), 0)
            else:
                self._unreadable(arrived, saved, news, error)
            return
        event = Event(arrived.incoming, arrived.key.hex(), data)
        if saved is None and arrived.redrive is None and not self._journals and agent.deadline_s is None:
            begun = begin(agent, event, self._machine, arrived)
            if isinstance(begun, Completed):
                self._ended(arrived, begun)
            else:
                self._under_way(*begun)
            return
        run = Machine(agent, arrived, flags=self._flags)
        if arrived.root:
            run.root = arrived.root.hex()
        if saved is not None:
            run.journal, run.segments = saved.journal, saved.segments
            arrived.saved = None
            if saved.parked:
                run.record(PARKED, settled(agent.name))
            for place, entry in news.items():
                run.record(place, entry)
            for place, entry in self._missed(run.journal).items():
                run.record(place, entry)
        elif arrived.redrive is not None and arrived.redrive.segments:
            found = self._redriven(arrived, arrived.redrive)
            if found is None:
                return
            run.journal, run.segments = found
        elif self._journals:
            run.journal = self._journal_of(arrived)
        if run.segments and FAILING not in run.journal and self._watch.deaths_of(arrived.key):
            run.record(FAILING, Entry(agent.name, 0, b"", None, (Reason.POISON, poison.WHY)))
        due_ms = ends_by_ms(arrived, run.journal)
        if run.segments and 0 < due_ms <= self._now_ms:
            run.record(FAILING, Entry(agent.name, 0, b"", None, out_of_time(arrived)))
            due_ms = 0
        self._under_way(run, run.begin(event, self._now_ms))
        if due_ms and not arrived.woken and (run in self._runs or self._sleepers.asleep(arrived.key)):
            self._decided.due.append((Due(arrived.key), due_ms))

    def _missed(self, journal: Mapping[str, Entry]) -> Mapping[str, Entry]:
        """Of waits whose time is over, those with a signal that was there before it was: they do not expire.

        The process before may have ended between the commit of a wait and the look for its signal; and while a run
        waits for room, nobody knows what it waits for.
        """
        found: dict[str, Entry] = {}
        if FAILING in journal:
            return found
        for place, entry in journal.items():
            wait = entry.wait
            if wait is None or not (entry.open and wait.type and 0 < wait.due_ms <= self._now_ms):
                continue
            if (one := self._kept_for(wait)) is not None and one[1].time_ms <= wait.due_ms:
                self._decided.note(self._taken(None, NO_OFFSET, 0, *one))
                found[place] = msgspec.structs.replace(entry, result=msgspec.msgpack.encode(one[1].signal))
        return found

    def _kept_for(self, wait: Wait) -> tuple[bytes, Kept] | None:
        """The oldest signal that was kept and ends a wait, with its Kafka key."""
        known = self._memory.signals(signal_prefix(self.tenant, wait.type, wait.id))
        fitting = [
            (kept.time_ms, key, kept) for key, kept in known if not kept.taken and ends(wait, kept.signal)
        ]
        return min(fitting, key=lambda found: found[:2])[1:] if fitting else None

    def _taken(self, source: Any, offset: int, size: int, key: bytes, kept: Kept) -> Noted:
        """A signal ends a wait: it is remembered without its contents."""
        change = (key, encode_kept(msgspec.structs.replace(kept, taken=True, value=None, headers=None)))
        self._memory.put(change)
        return Noted(source, offset, size, (change,), kept.time_ms + KEPT_MS)

    def _unreadable(
        self, arrived: Arrived, saved: OpenRun, news: Mapping[str, Entry], error: InvalidData
    ) -> None:
        """A run of the ledger whose agent does not take the event any more: what it has done waits for a person."""
        self._on_record(arrived, news)
        failing = saved.journal.get(FAILING)
        if not saved.journal:
            self._end(arrived, failure(error), saved.segments)
        elif (
            failing is not None
            and failing.error
            and not any(cannot_be_left(saved.journal, place) for place in saved.journal)
        ):
            self._end(arrived, RunFailed(*failing.error, ""), saved.segments)
        else:
            agent, run = arrived.agent, Machine(arrived.agent, arrived, saved.journal, saved.segments)
            taken_by = f"agent {agent.name} version {agent.version}"
            message = f"the event's data are not what {taken_by} takes any more: {error}"
            self._under_way(run, run.park(Reason.NONDETERMINISTIC, message, self._now_ms))

    def _on_record(self, arrived: Arrived, news: Mapping[str, Entry]) -> Mapping[str, Entry]:
        """What a journal has got is on record before its run goes on, which may be later; what is left to record."""
        saved = arrived.saved
        if saved is None or not news:
            return news
        self._write(arrived, Record(saved.segments, dict(news)))
        saved.segments += 1
        saved.journal = {p: e for p, e in {**saved.journal, **news}.items() if e is not GONE}
        return NOTHING

    def _journal_of(self, arrived: Arrived) -> dict[str, Entry]:
        journal = self._journals.pop(arrived.key, None)
        made_by = (arrived.origin, arrived.agent.name, arrived.agent.version)
        if journal is None or (journal.origin, journal.agent, journal.version) != made_by:
            return {}
        return journal.entries

    def _under_way(self, run: Machine, effects: list[Effect]) -> None:
        self._capacity.begun(run.token.key)
        self._runs.add(run)
        self._note(run, effects)

    # --- runs that may be poison ---

    def _stopped(self, arrived: Arrived) -> bool:
        """Whether a run does not begin now: it is suspected to kill its process or known to, or waits for such ones."""
        key, saved, deaths = arrived.key, arrived.saved, self._watch.deaths_of(arrived.key)
        if deaths and saved is None:
            self._watch.settle(key)
            self._journals.pop(key, None)
            self._ended(arrived, RunFailed(Reason.POISON, poison.WHY, ""))
        elif self._watch.hold(key, self.tenant):
            self._held[key] = arrived
        elif deaths > 1 and saved is not None:
            run = Machine(arrived.agent, arrived, saved.journal, saved.segments)
            self._under_way(run, run.park(Reason.UNKNOWN_OUTCOME, poison.UNDONE_TOO, self._now_ms))
        else:
            return False
        return True

    def _begin_held(self) -> None:
        """Let those begin that were held, and need not wait any more."""
        for key in [
            key for key, held in self._held.items() if held.source.grant.live and self._watch.may_go(key)
        ]:
            self._begin(self._held.pop(key))
            if self._awake(key) is None:
                self._watch.over(key)
