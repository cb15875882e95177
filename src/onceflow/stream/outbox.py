"""The outbox: everything that a cell decides leaves in one Kafka transaction at a time, on a thread of its own.

A transaction holds only content of the grants in its pair, under that pair's group metadata, and is always
made in this order: produce, flush with every delivery confirmed, send offsets (at least the inbox offset of
each slot that it touches), commit. The order matters: the coordinator checks the group's generation when it
takes the offsets, and a new owner of a slot reads up to the high watermark it finds after the rebalance; so a
record still in the client's queue when the offsets are accepted could be sent, and committed, unseen by the
new owner.

Content is kept until it is committed. An abortable error: abort, wait for a new pair, send again what belongs
to grants still held. A fatal or ambiguous one (fenced; commit or abort without an answer): the process ends
with status 3 and its successor settles the transaction. What comes of a commit: see `after_commit`.
"""

import logging
import time
from collections.abc import Iterable
from threading import Condition, Event, Lock, Thread
from typing import NamedTuple

from confluent_kafka import TopicPartition

from onceflow.errors import Fault
from onceflow.stream.after_commit import AfterCommit, changes_of
from onceflow.stream.content import (
    NO_EVENT,
    RUN_BEGUN,
    Contents,
    Finished,
    Grant,
    Input,
    Outgoing,
    Pair,
    Reads,
)
from onceflow.stream.progress import InputProgress, encode_progress, progress_key
from onceflow.stream.topics import Names
from onceflow.stream.transaction import Refused, Transactions

log = logging.getLogger(__name__)

BATCH_FULL = 10_000  # so much weight makes waiting for more worth the whole commit interval
_NEW_PAIR_WITHIN_S = 1.0
_PASSED_WAIT_S = 1.0
_TOPIC_GONE_S = 30.0  # until the next look at the topics has found it
_TALLIED = {RUN_BEGUN: "first", NO_EVENT: None}  # the verdicts that are not counted by their own name
_NO_PAIR = Pair(None, frozenset())


class Claim:
    """A grant's first progress record, which names this cell. `settled` is set once it is committed or in vain."""

    def __init__(self, grant: Grant, inbox: Input) -> None:
        self.grant = grant
        self.inbox = inbox
        self.settled = Event()
        self.committed = False


class Transaction(NamedTuple):
    """What one transaction is made of."""

    pair: Pair
    pair_number: int
    finished: Contents
    claims: list[Claim]
    passed: set[Input]  # whose position has passed markers, and nothing else happened
    sequence: int  # of the last `put` in it


class Outbox:
    """The committer. The worker calls `polled`, `put`, `flush` and `close`, the grants `track`, `claim`, `retire`."""

    def __init__(
        self,
        transactions: Transactions,
        names: Names,
        cell: str,
        after_commit: AfterCommit,
        *,
        commit_interval_s: float,
    ) -> None:
        self._transactions = transactions
        self._names = names
        self._cell = cell
        self._after_commit = after_commit
        self._interval_s = commit_interval_s

        self._changed = Condition(Lock())  # guards all up to the blank line
        self._pair = _NO_PAIR
        self._pair_number = 0
        self._pending: list[Finished] = []
        self._pending_weight = 0
        self._reads: list[Reads] = []
        self._passed: set[Input] = set()
        self._passed_at = 0.0
        self._claims: list[Claim] = []
        self._tracked: list[tuple[Input, InputProgress]] = []
        self._put_sequence = 0
        self._done_sequence = 0
        self._first_pending_at = 0.0
        self._urgent = False
        self._stopping = False
        self.failure: BaseException | None = None
        self.inboxes_done: dict[int, int] = {}  # slot -> every inbox record below this offset is finished

        self._progress: dict[Input, InputProgress] = {}  # the committer's thread alone
        self._inboxes: dict[Grant, Input] = {}
        self._kept: Contents = []  # of a transaction that was refused
        self._last_weight = 0
        self._inboxes_only_until = 0.0
        self._thread = Thread(target=self._run, name="onceflow-outbox", daemon=True)
        self._thread.start()

    # --- the worker's side ---

    def polled(self, pair: Pair, reads: Iterable[Reads], passed: Iterable[Reads] = ()) -> None:
        """Take note of a poll: what is owned, and what was read. Before `put` of anything that came of it.

        `passed`: inputs whose position has passed offsets without a record, or cannot go on; committed soon, so that
        lag reaches 0.
        """
        with self._changed:
            if pair.grants != self._pair.grants or pair.metadata is not self._pair.metadata:
                self._pair = pair
                self._pair_number += 1
            self._reads.extend(reads)
            for read in passed:
                if not self._passed:
                    self._passed_at = time.monotonic()
                    self._changed.notify_all()
                self._passed.add(read.input)
                self._reads.append(read)
            if self._urgent:
                self._changed.notify_all()

    def put(self, finished: Iterable[Finished]) -> None:
        """Take what was decided, to be committed: all of it in one transaction."""
        ends = list(finished)
        weight = sum([end.weight for end in ends])
        with self._changed:
            if not self._pending:
                self._first_pending_at = time.monotonic()
                self._changed.notify_all()
            self._pending += ends
            self._pending_weight += weight
            self._put_sequence += 1
            if self._pending_weight >= BATCH_FULL:
                self._changed.notify_all()

    def flush(self, timeout_s: float, pair: Pair | None = None) -> bool:
        """Commit what is pending now; return whether it was in time."""
        with self._changed:
            if pair is not None:
                self._pair = pair
                self._pair_number += 1
            wanted = self._put_sequence
            self._urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: self._done_sequence >= wanted or self.failure is not None, timeout_s
            ) and (self.failure is None)

    def close(self, timeout_s: float) -> None:
        """End the thread; call `flush` before."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    # --- the grants' side ---

    def track(self, inputs: Iterable[tuple[Input, InputProgress]]) -> None:
        """Take over the progress of inputs that are about to be read."""
        with self._changed:
            self._tracked.extend(inputs)

    def claim(self, claims: Iterable[Claim]) -> None:
        """Commit a progress record for each grant's inbox (tracked before), naming this cell."""
        with self._changed:
            self._claims.extend(claims)
            self._urgent = True
            self._changed.notify_all()

    def retire(self, grants: Iterable[Grant]) -> None:
        """See to it that nothing more of these grants is written to the view."""
        self._after_commit.retire(grants)

    # --- the committer's thread ---

    def _run(self) -> None:
        try:
            while (transaction := self._take()) is not None:
                self._carry_out(transaction)
        except BaseException as failure:
            log.debug(
                "the outbox failed", exc_info=failure
            )  # the inlet raises it, and so it is reported once
            with self._changed:
                self.failure = failure
                self._changed.notify_all()
            if not isinstance(failure, Exception):
                raise

    def _take(self) -> Transaction | None:
        """Wait until a transaction is due, and take all that belongs into it."""
        with self._changed:
            while True:
                if self._stopping:
                    return (
                        None  # `close` has flushed all content, or could not; a claim or a position can wait
                    )
                due_s = self._due_in_s()
                if due_s is not None and due_s <= 0:
                    break
                self._changed.wait(due_s)
            pair, number, reads, tracked = self._pair, self._pair_number, self._reads, self._tracked
            new, self._pending = self._pending, []
            self._last_weight, self._pending_weight = self._pending_weight, 0
            claims, self._claims = self._claims, []
            passed, self._passed = self._passed, set()
            self._reads, self._tracked, self._urgent = [], [], False
            sequence = self._put_sequence
        self._track(pair, tracked)
        for input, offsets, position, unreadable in reads:
            if (progress := self._progress.get(input)) is not None:
                progress.read(offsets, position)
                progress.unreadable = max(progress.unreadable, unreadable)
        new = [end for end in new if end.input.grant in pair.grants]
        self._settle_progress(new)
        finished = [end for end in self._kept if end.input.grant in pair.grants] + new
        moved = {input for input in passed if input in self._progress and not input.gone}
        return Transaction(pair, number, finished, claims, moved, sequence)

    def _due_in_s(self) -> float | None:
        """Seconds until a transaction is due, None if none is.

        The more the last transaction held, the longer it pays to wait for more: at once when little is
        pending.
        """
        if self._claims or self._urgent or self._kept or self._pending_weight >= BATCH_FULL:
            return 0.0
        if not self._pending:
            return self._passed_at + _PASSED_WAIT_S - time.monotonic() if self._passed else None
        wait_s = self._interval_s * min(1.0, self._last_weight / BATCH_FULL)
        return self._first_pending_at + wait_s - time.monotonic()

    def _track(self, pair: Pair, tracked: list[tuple[Input, InputProgress]]) -> None:
        for input, progress in tracked:
            self._progress[input] = progress
            if input.is_inbox:
                self._inboxes[input.grant] = input
        if any(grant not in pair.grants for grant in self._inboxes):
            self._progress = {i: p for i, p in self._progress.items() if i.grant in pair.grants}
            self._inboxes = {g: i for g, i in self._inboxes.items() if g in pair.grants}

    def _settle_progress(self, finished: Contents) -> None:
        """Count ends that are taken for the first time; what an abort sends again was counted."""
        for end in finished:
            if not end.offsets:
                continue
            progress = self._progress[end.input]
            progress.finish(end.offsets)
            if (name := _TALLIED.get(end.verdict, end.verdict)) is not None:
                setattr(progress.tally, name, getattr(progress.tally, name) + len(end.offsets))

    def _carry_out(self, transaction: Transaction) -> None:
        pair, number, finished, claims, passed, sequence = transaction
        owned = [claim for claim in claims if claim.grant in pair.grants]
        if finished or owned or passed:
            started_at = time.monotonic()
            inputs = {end.input for end in finished}
            written = {*inputs, *(claim.inbox for claim in owned), *passed}
            touched = written | {self._inboxes[input.grant] for input in (*inputs, *written)}
            try:
                delivered = self._transactions.commit(
                    self._records(finished, written),
                    changes_of(finished),
                    lambda: self._offsets(touched),
                    pair.metadata,
                )
            except Refused as refusal:
                if refusal.too_large:
                    topic = refusal.topic or self._names.completions  # whose records are not all reported
                    raise Fault(
                        f"{topic} takes smaller records than when this cell started; a restart heeds its "
                        "max.message.bytes"
                    ) from refusal
                log.info(
                    "a transaction was refused; its content is sent again", extra={"cause": str(refusal)}
                )
                if refusal.unknown_topic:
                    self._inboxes_only_until = time.monotonic() + _TOPIC_GONE_S
                self._keep(finished, claims, passed, number)
                return
            self._after_commit.take(finished, delivered, self._progress, time.monotonic() - started_at)
            for grant in {input.grant for input in touched}:
                self.inboxes_done[grant.slot] = self._progress[self._inboxes[grant]].lowest
        self._kept = []
        for claim in claims:
            claim.committed = claim.grant in pair.grants
            claim.settled.set()
        with self._changed:
            self._done_sequence = sequence
            self._changed.notify_all()

    def _keep(self, finished: Contents, claims: list[Claim], passed: set[Input], number: int) -> None:
        """After an abort: keep the content, and wait for a pair later than the one refused."""
        self._kept = finished
        with self._changed:
            self._claims = claims + self._claims
            self._passed |= passed
            self._changed.wait_for(lambda: self._pair_number > number, _NEW_PAIR_WITHIN_S)

    def _records(self, finished: Contents, written: Iterable[Input]) -> list[Outgoing]:
        records = [outgoing for end in finished for outgoing in end.outgoing]
        for input in written:
            progress = encode_progress(self._progress[input].progress(self._cell))
            key = progress_key(input.topic, input.partition)
            records.append(Outgoing(self._names.progress, input.grant.slot, key, (progress,), None))
        return records

    def _offsets(self, inputs: Iterable[Input]) -> list[TopicPartition]:
        # A topic that was deleted has no offsets; its name may be another topic's by now. Those of inboxes are the
        # fence, the others are for tools: they can wait until it is known which topic is gone.
        only_inboxes = time.monotonic() < self._inboxes_only_until
        wanted = [input for input in inputs if input.is_inbox or not (input.gone or only_inboxes)]
        return [TopicPartition(i.topic, i.partition, self._progress[i].lowest) for i in wanted]
