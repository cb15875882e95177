"""A lane: one tenant's share of a cell, with its runs in flight and the events that wait for a turn.

Like a run it is a state machine: happenings in, decisions out; the calls that its runs ask for go to whoever
was given. Runs that only wait are not held in memory, see `sleep`.

Here is what happens to it; how its runs begin is in `in_flight`, what wakes those that sleep in `waking`, what they
decide in `deciding`.
"""

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

from onceflow.agents.at_once import Beginning
from onceflow.agents.calling import Answered
from onceflow.agents.calls import RunFailed
from onceflow.agents.commands import CANCELLED, Command, resolution
from onceflow.agents.happenings import (
    Arrivals,
    Arrived,
    Commanded,
    Decided,
    Due,
    Ended,
    Happening,
    Looked,
    Lost,
    Noted,
    Resumed,
    Settled,
    Signalled,
    Sleeping,
)
from onceflow.agents.journal import GONE, PARKED
from onceflow.agents.order import Lines
from onceflow.agents.snapshot import encode_snapshot
from onceflow.agents.waking import Waking

BY_OPERATOR = "cancelled by an operator"

log = logging.getLogger("onceflow.run")


class Lane(Waking):
    """See above. `take` what happens to it, `snapshot` now and then, until it is `idle`."""

    def take(
        self, happenings: Iterable[Happening | Beginning], now_ms: int, decided: Decided | None = None
    ) -> Decided:
        """Work on what happened; return what was decided, with what was `decided` before."""
        self._now_ms = now_ms
        if decided is not None:
            self._decided = decided
        for happening in happenings:
            if type(happening) is Arrivals:
                if happening.source.grant.live:
                    beginning = Beginning(happening, self._watch.names.computing, self._flags)
                    if self._clears(happening.keys):
                        beginning.go_on(now_ms, self._decided)
                    self._begin_all(beginning)
            elif type(happening) is Beginning:
                self._begin_all(happening)
            elif type(happening) is Answered:
                run = happening.run
                if run in self._runs and run.token.source.grant.live:
                    self._watch.names.computing[:] = run.token.key
                    self._note(run, run.answer(happening.answer, now_ms))
            elif type(happening) is Arrived:
                if happening.source.grant.live:
                    self._arrived(happening)
            elif type(happening) is Resumed:
                if (arrived := happening.arrived).source.grant.live:
                    if arrived.line:
                        self._lines.enter(arrived.key, arrived.line, None, arrived.turn)
                    self._queue.append(arrived)
            elif type(happening) is Sleeping:
                if happening.inbox.grant.live:
                    self._sleeping(happening)
            elif type(happening) is Due:
                self._due(happening)
            elif type(happening) is Looked:
                self._look(happening)
            elif type(happening) is Signalled:
                if happening.source.grant.live:
                    self._signalled(happening)
            elif type(happening) is Commanded:
                if happening.source.grant.live:
                    self._commanded(happening)
            elif type(happening) is Lost:
                self._drop(happening.grant)
            elif type(happening) is Settled:
                done = happening.finished
                self._journals = {
                    k: journal for k, journal in self._journals.items() if not done(journal.record)
                }
        if self._held:
            self._begin_held()
        while self._queue and self._may_begin():
            self._begin_next()
        self._watch.names.rest()
        self._capacity.give_back_turn(self.tenant)
        if self._calls:
            self._start(self._calls)
            self._calls = []
        decided, self._decided = self._decided, Decided()
        return decided

    def leave(self) -> None:
        """The slot goes to another cell in a moment: begin and send nothing more; answers are put on record."""
        self._leaves = True
        for run in self._runs:
            run.leave()

    @property
    def in_doubt(self) -> bool:
        """Whether calls are out that nobody may repeat."""
        return any(run.in_doubt for run in self._runs)

    def take_back(self, now_ms: int) -> Decided:
        """After `leave`, at last: put on record which calls that nobody may repeat were not sent."""
        self._now_ms = now_ms
        for run in [*self._runs]:
            self._note(run, run.take_back(now_ms))
        decided, self._decided = self._decided, Decided()
        return decided

    def snapshot(self) -> bytes:
        """The journals of runs in flight, and of runs whose event did not come again yet."""
        return encode_snapshot(self.tenant, self._journals.values(), self._runs)

    def _arrived(self, arrived: Arrived) -> None:
        if arrived.agent.order_by and not self._in_turn(arrived):
            return
        if self._queue or not self._may_begin():
            self._queue.append(arrived)
        else:
            self._begin(arrived)

    def _begin_next(self) -> None:
        """There is room: for the one that has waited for it longest."""
        waiting = self._queue.popleft()
        if not isinstance(waiting, bytes):
            self._begin(waiting)
        elif (arrived := self._roused(waiting)) is not None:
            self._begin(arrived)

    def _clears(self, keys: Iterable[bytes]) -> bool:
        """Whether runs may begin, and as long as they end at once, nothing is to be known of them."""
        return not (self._journals or self._queue) and self._watch.clears(keys) and self._may_begin()

    def _begin_all(self, beginning: Beginning) -> None:
        """Let the runs of events that came together begin, as far as they have not."""
        while beginning.goes_on is not None:
            run, effects = beginning.goes_on
            self._under_way(run, effects)
            if self._queue or not self._may_begin():
                break
            beginning.go_on(self._now_ms, self._decided)
        for arrived in beginning.rest():
            self._arrived(arrived)
        self._decided.ended_at_once += beginning.ended()

    def _commanded(self, given: Commanded) -> None:
        source, offset, size, command = given
        key = bytes.fromhex(command.run)
        if command.action == "discard":
            kept = self._memory.failed(key)
            at = (source, offset, size)
            self._decided.note(Noted(*at) if kept is None else self._forgotten(kept, at))
            return
        self._decided.note(Noted(source, offset, size))
        if (held := self._held.pop(key, None)) is not None:
            self._watch.over(key, survived=False)
            self._queue.append(held)
        refusal = ""
        if command.action == "cancel" and (waiting := self._out_of_queue(key)) is not None:
            self._watch.forgive(key)
            if waiting.saved is None:
                self._end(waiting, RunFailed(CANCELLED, BY_OPERATOR, ""), 0)
            else:
                news = resolution(command, waiting.saved)
                assert not isinstance(news, str)
                self._begin(waiting, news)
        elif self._sleepers.asleep(key):
            refusal = self._resolve(key, source, command)
        elif (run := self._awake(key)) is not None and command.action == "cancel":
            self._cancel(run, CANCELLED, BY_OPERATOR)
        elif command.action == "cancel" and (behind := self._lines.take(key)) is not None:
            self._decided.end(Ended(behind, RunFailed(CANCELLED, BY_OPERATOR, "")))
        else:
            refusal = "there is no such run, or it is under way"
        said = {"run": command.run, "tenant": self.tenant, "action": command.action, "refused": refusal}
        log.info("an operator has decided about a run", extra=said)

    def _out_of_queue(self, key: bytes) -> Arrived | None:
        """What waits for room under this key, taken out."""
        if key in self._woken:
            return self._roused(key)
        found = next((each for each in self._queue if not isinstance(each, bytes) and each.key == key), None)
        if found is not None:
            self._queue.remove(found)
        return found

    def _resolve(self, key: bytes, source: Any, command: Command) -> str:
        """What a person says of a run that sleeps wakes it; or why it cannot."""
        found = self._memory.run(key, source)
        if isinstance(found, str):
            return found
        saved = found.saved
        assert saved is not None
        news = resolution(command, saved)
        if isinstance(news, str):
            return news
        self._watch.forgive(key)
        keys, now_ms = self._keys, self._now_ms
        parked_ms = saved.journal[PARKED].asked_ms if saved.parked else 0
        asks = [p for p, entry in news.items() if keys.settled_by_others(p, entry, parked_ms, now_ms)]
        told = set()  # of which shared calls
        for place, entry in news.items():
            if entry.intent is not None and entry.intent.shared and place not in asks:
                told.add(entry.intent.shared)
                self._told(keys.resolved(entry.intent.shared, (key, place), entry, now_ms))
        asks += [p for p in saved.journal if p not in news and keys.lost_hold(saved, p, told, now_ms)]
        self._wake(key, {**news, **dict.fromkeys(asks, GONE)})
        return ""

    def _drop(self, grant: Any) -> None:
        gone = [run for run in self._runs if run.token.source.grant is grant]
        self._runs.difference_update(gone)
        self._leaves = False
        self._capacity.lost(run.token.key for run in gone)
        for run in gone:
            self._sleepers.forget(run.token.key)
            run.close()  # first: what is handed over meanwhile is not wanted any more
        self._abandon(gone)
        self._sleepers.lost(grant)
        self._keys.lost()
        self._lines = Lines()  # a tenant is at home in one slot: all of it is gone
        self._queue = deque(each for each in self._queue if self._stays(each, grant))
        self._woken.intersection_update(self._queue)
        for key in [key for key, held in self._held.items() if held.source.grant is grant]:
            del self._held[key]
            self._watch.over(key, survived=False)

    def _stays(self, waiting: Arrived | bytes, grant: Any) -> bool:
        """Whether what waits for room is of another grant than this one, which is gone."""
        if isinstance(waiting, bytes):
            return self._sleepers.asleep(waiting)
        return waiting.source.grant is not grant
