"""What comes of a commit: calls are sent, the view is written, and the inlet is told; in this order.

The calls first, for their barrier is behind them, and they take longest. The view before the inlet: a key leaves the
table in flight only once a copy would find it in the view.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from threading import Lock

from onceflow.agents.calls import StartCall
from onceflow.state.ledger import Change, Changes, Ledger, LedgerPosition
from onceflow.state.seen import BrokerClock, Completed, Position, Seen
from onceflow.stream.content import Committed, Contents, Done, Finished, Grant, Input
from onceflow.stream.progress import InputProgress
from onceflow.stream.topics import Ids, Names
from onceflow.stream.transaction import Delivered

_EXPIRE_EVERY_S = 60.0

Observe = Callable[[Contents, float], None]  # what was committed, and how many seconds it took


class AfterCommit:
    """Carries that out. `take` in the committer's thread; `retire` from any."""

    def __init__(
        self,
        names: Names,
        ids: Ids,
        seen: Seen,
        ledger: Ledger,
        clock: BrokerClock,
        *,
        send: Callable[[Iterable[StartCall]], None],
        observe: Observe,
        committed: Callable[[Committed], None],
    ) -> None:
        """`send`: is given the calls that a commit has put on record. `committed`: told of each, at last."""
        self._names = names
        self._ids = ids
        self._seen = seen
        self._ledger = ledger
        self._clock = clock
        self._send = send
        self._observe = observe
        self._committed = committed
        self._expired_at = 0.0
        self._view_lock = Lock()
        self._retired: set[Grant] = set()

    def retire(self, grants: Iterable[Grant]) -> None:
        """See to it that nothing more of these grants is written to the view."""
        with self._view_lock:
            self._retired.update(grants)

    def take(
        self, finished: Contents, delivered: Delivered, progress: Mapping[Input, InputProgress], took_s: float
    ) -> None:
        """All this was committed. `progress`: of the inputs, this included."""
        for end in finished:
            if end.calls and end.input.grant.live and not end.input.grant.leaving:
                self._send(end.calls)
        if time_ms := delivered.time_ms():
            self._clock.observe(time_ms)
        last = delivered.last(self._names.completions)
        completed: dict[Grant, Completed] = {}
        books: dict[Input, tuple[int, int]] = {}
        for end in finished:
            if end.seen:
                grant = end.input.grant
                if (told := completed.get(grant)) is None:
                    told = completed[grant] = Completed(last[grant.slot][1], [], [])
                told.runs.extend(end.seen)
                told.identities.extend(end.identities)
            if end.offsets:
                count, size = books.get(end.input, (0, 0))
                books[end.input] = (count + len(end.offsets), size + end.size)
        with self._view_lock:
            held = {grant: told for grant, told in completed.items() if grant not in self._retired}
            self._seen.write(
                held.values(),
                {grant.slot: Position(self._ids.completions, last[grant.slot][0] + 1) for grant in held},
            )
            ledger = self._write_ledger(finished, delivered)
        if time.monotonic() - self._expired_at > _EXPIRE_EVERY_S:
            self._expired_at = time.monotonic()
            # What is dropped is never read again: so not because one clock, the broker's or ours, jumps ahead.
            self._seen.expire(min(self._clock.now_ms() or 0, int(time.time() * 1000)))
        self._observe(finished, took_s)
        seen = [run for told in completed.values() for run in told.runs]
        identities = [identity for told in completed.values() for identity, _ in told.identities]
        done = {
            input: Done(*book, progress[input].lowest) for input, book in books.items() if input in progress
        }
        self._committed(Committed(seen, identities, done, ledger))

    def _write_ledger(self, finished: Contents, delivered: Delivered) -> Changes:
        """Write the ledger's view; what the worker need not remember any more."""
        last = delivered.last(self._names.ledger)
        if not last:
            return {}
        changes = changes_of(end for end in finished if end.input.grant not in self._retired)
        positions = {
            slot: LedgerPosition(self._ids.ledger, last[slot][0] + 1, last[slot][1]) for slot in changes
        }
        return self._ledger.write(changes, positions)


def changes_of(finished: Iterable[Finished]) -> dict[int, list[Change]]:
    """What changes in the ledger, by slot."""
    changes: dict[int, list[Change]] = {}
    for end in finished:
        if end.ledger:
            changes.setdefault(end.input.grant.slot, []).extend(end.ledger)
    return changes
