"""The keys of a lane's calls of scope `tenant`: who makes a call, who waits for it, and what each is told."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import msgspec

from onceflow.agents.calls import AskKey, Effect, KeyDecided, KeyEffect, KeyKept, LeaveKey
from onceflow.agents.happenings import NO_OFFSET, Memory, Noted
from onceflow.agents.journal import KEY_REUSED, OUTCOME_UNKNOWN, UNDO, UNUSABLE_RESULT, Entry, OpenRun
from onceflow.agents.machine import Machine
from onceflow.agents.shared import (
    FORMAT,
    NOBODY,
    OPEN_MS,
    Free,
    Held,
    Reused,
    Shared,
    Taken,
    asked,
    call_key,
    completed,
    counts,
    decided,
    encode_shared,
    forgotten,
    held,
    left,
    shared_key,
    taken,
    undo_told,
    undone,
)


class Rests(NamedTuple):
    """A run may not go on with a call of this key for a while, which others wait for."""

    run: Machine
    digest: bytes


class AskAgain(NamedTuple):
    """More is known of a key that the run waits for in the ledger."""

    run: bytes
    place: str


Told = Noted | AskAgain | tuple[Machine, Sequence[Effect]]


class Keys:
    """See above. `take` yields what the ledger gets, and runs with the effects of what they were told."""

    def __init__(self, tenant: str, memory: Memory, awake: Callable[[bytes], Machine | None]) -> None:
        """`awake`: the run of this key, if it is in memory."""
        self._tenant, self._memory, self._awake = tenant, memory, awake
        self.waiting: dict[bytes, list[AskKey]] = {}  # who waits in memory
        self._at_rest: dict[bytes, dict[AskAgain, None]] = {}  # who waits in the ledger

    def rests(self, run: Machine) -> list[Rests]:
        """What a run may have left for a while, and others in memory wait for."""
        return [Rests(run, digest) for digest in run.digests.values() if digest in self.waiting]

    def take(self, effect: KeyEffect | Rests, now_ms: int) -> Iterator[Told]:
        """Deal with what a run asks or says of a key."""
        known = self._memory.shared(shared_key(self._tenant, effect.digest))
        run = effect.run.token.key
        if isinstance(effect, AskKey):
            if effect.run.waits_at(effect.place):
                yield from self._asked(effect, known, now_ms)
        elif isinstance(effect, Rests):
            if known is not None and not self._is_worked_at(known):
                for ask in self.waiting.pop(effect.digest, ()):
                    yield self._put_down(ask, now_ms)
        elif isinstance(effect, LeaveKey):
            yield from self._left(effect, known, run, now_ms)
        elif known is not None:
            if isinstance(effect, KeyKept):
                if known.made and run in known.takers:
                    yield self._note(effect.digest, completed(known), known, now_ms)
                return
            until_ms = now_ms + int(effect.ttl_s * 1000)
            record: Shared | None
            if isinstance(effect, KeyDecided):
                by = (run, effect.place)
                if not counts(known, by, effect.outcome):
                    return
                record = decided(known, by, effect.outcome, now_ms, until_ms)
            else:
                record = undone(known, until_ms)
            yield self._note(effect.digest, record, known, now_ms)
            yield from self._tell(effect.digest, now_ms)

    def settled_by_others(self, place: str, entry: Entry, parked_ms: int, now_ms: int) -> bool:
        """Whether a person speaks of a shared call of which, meanwhile, more is known: its run asks anew.

        Of one that is forgotten the word counts; only to make it again the run asks anew, for all that do so. That it
        did not happen, or is to be made again, is no word on an attempt that was made since the run was parked.
        """
        if entry.intent is None or not entry.intent.shared or place.startswith(UNDO):
            return False
        known = self._memory.shared(shared_key(self._tenant, entry.intent.shared))
        if known is None or forgotten(known, now_ms):
            return entry.open
        return not known.unknown or (entry.result is None and 0 < parked_ms < known.unknown_ms)

    def lost_hold(self, run: OpenRun, place: str, told: Collection[bytes], now_ms: int) -> bool:
        """Whether others have gone on with a shared call that a parked run has open beside what a person speaks of: its
        key may be another's by now, or one whose effect was undone. So the run asks anew.

        `told`: the digests of the calls that the person speaks of.
        """
        entry = run.journal[place]
        intent = entry.intent
        if not entry.open or intent is None or not intent.shared:
            return False
        if place.startswith(UNDO) or UNDO + place in run.journal:
            return False  # it is being undone, by this run alone
        known = self._memory.shared(shared_key(self._tenant, intent.shared))
        if known is None or forgotten(known, now_ms):
            return intent.shared in told
        still_unknown = known.unknown and intent.key == call_key(intent.shared, known.undone)
        return known.holder != (run.key, place) and not still_unknown

    def resolved(self, digest: bytes, by: tuple[bytes, str], outcome: Entry, now_ms: int) -> Iterator[Told]:
        """A person has said how a call, or its compensation, came out; open: that it is to be made again."""
        was = known = self._memory.shared(shared_key(self._tenant, digest))
        if outcome.result is not None and not by[1].startswith(UNDO):
            undoable = outcome.intent is None or outcome.intent.undoable
            known = known or Shared(FORMAT, outcome.tool, outcome.arguments, now_ms, kept=not undoable)
            if (
                undoable
            ):  # others may be parked over it: told later, they must not undo what this run completes with
                until_ms = max(known.until_ms, now_ms + OPEN_MS)
                known = msgspec.structs.replace(known, until_ms=until_ms, unknown_ms=0)
        if known is not None and not (outcome.open and by[1].startswith(UNDO)):
            undo = by[1].startswith(UNDO)
            told = undo_told(known, outcome, now_ms) if undo else decided(known, by, outcome, now_ms)
            yield self._note(digest, told, was, now_ms)
            yield from self._tell(digest, now_ms)

    def due(self, key: bytes, now_ms: int) -> Noted | int:
        """The time of a record may be over: then it is forgotten. Otherwise when to look again (ms); 0: it is gone, or
        held by a run, and `_note` will say.
        """
        known = self._memory.shared(key)
        if known is None or known.holder != NOBODY:
            return 0
        if now_ms < known.deleted_ms:
            return known.deleted_ms
        change = (key, None)
        self._memory.put(change)
        return Noted(None, NO_OFFSET, 0, (change,))

    def lost(self) -> None:
        """The tenant's slot is gone."""
        self.waiting, self._at_rest = {}, {}

    def _asked(self, ask: AskKey, known: Shared | None, now_ms: int) -> Iterator[Told]:
        run = ask.run.token.key
        answer = asked(known, (run, ask.place), ask.arguments, now_ms)
        if isinstance(answer, Free):
            until_ms = now_ms + int(ask.tool.ttl_s * 1000)
            by = (run, ask.place)
            kept = ask.tool.compensation is None
            record = Shared(FORMAT, ask.tool.name, ask.arguments, until_ms, answer.undone, by, kept=kept)
            yield self._note(ask.digest, record, known, now_ms)
            yield ask.run, ask.run.key_free(ask.place, call_key(ask.digest, answer.undone), now_ms)
        elif isinstance(answer, Held):
            assert known is not None
            if self._is_worked_at(known):
                self.waiting.setdefault(ask.digest, []).append(ask)
            else:
                yield self._put_down(ask, now_ms)
        elif isinstance(answer, Taken):
            assert known is not None
            record = taken(known, run)
            if record is not known:
                yield self._note(ask.digest, record, known, now_ms)
            error = (UNUSABLE_RESULT, answer.unusable) if answer.unusable else None
            outcome = Entry("", 0, b"", answer.result, error)
            yield ask.run, ask.run.key_told(ask.place, outcome, now_ms, named=run in record.takers)
        elif isinstance(answer, Reused):
            refused = Entry("", 0, b"", None, (KEY_REUSED, answer.message))
            yield ask.run, ask.run.key_told(ask.place, refused, now_ms)
        else:
            assert known is not None
            if ask.tool.on_unknown in ("reconcile", "compensate"):  # by one at a time: it may end in a call
                yield self._note(ask.digest, held(known, (run, ask.place)), known, now_ms)
            key = call_key(ask.digest, answer.undone)
            yield ask.run, ask.run.key_unknown(ask.place, key, answer.message, now_ms)

    def _is_worked_at(self, known: Shared) -> bool:
        """Whether the run that holds a key is awake, and at that call."""
        run = self._awake(known.holder[0])
        return run is not None and run.works_at(known.holder[1])

    def _put_down(self, ask: AskKey, now_ms: int) -> Told:
        """Who waits for what rests does so in the ledger: no input hangs on it."""
        if ask.run.waits_at(ask.place):
            self._at_rest.setdefault(ask.digest, {})[AskAgain(ask.run.token.key, ask.place)] = None
        return ask.run, ask.run.key_rests(ask.place, now_ms)

    def _left(self, leave: LeaveKey, known: Shared | None, run: bytes, now_ms: int) -> Iterator[Told]:
        entry = leave.entry
        if known is None and entry.error is not None and entry.error[0] == OUTCOME_UNKNOWN:
            # forgotten: nobody can have its result; on record again, so that it is undone once
            known = Shared(FORMAT, entry.tool, entry.arguments, now_ms, unknown=entry.error[1])
        key = ""
        if known is not None:  # otherwise it was kept, and forgotten since
            record, undo = left(known, (run, leave.place))
            yield self._note(leave.digest, record, known, now_ms)
            key = call_key(leave.digest, record.undone) if undo else ""
        yield leave.run, leave.run.key_left(leave.place, key, now_ms)

    def _tell(self, digest: bytes, now_ms: int) -> Iterator[Told]:
        """Who waits asks again, in the order of first asking."""
        for ask in self.waiting.pop(digest, ()):
            if not ask.run.waits_at(ask.place):
                continue  # it was cancelled meanwhile
            yield from self._asked(ask, self._memory.shared(shared_key(self._tenant, digest)), now_ms)
        yield from self._at_rest.pop(digest, ())

    def _note(self, digest: bytes, record: Shared | None, was: Shared | None, now_ms: int) -> Noted:
        change = (shared_key(self._tenant, digest), None if record is None else encode_shared(record))
        self._memory.put(change)
        until_ms = 0
        if record is not None and record.holder == NOBODY:
            # Once, not with each run that takes it; or its time was over before, and has been looked at.
            first = was is None or was.holder != NOBODY
            until_ms = record.until_ms if first or forgotten(record, now_ms) else 0
        return Noted(None, NO_OFFSET, 0, (change,), until_ms)
