"""Seeded bugs: seventeen mistakes that a stream processor like this one could have, put into a cell while it starts.

Each replaces one function of the product by one with a mistake; its docstring says the harm. `test_seeded_bugs` plays
the scene in which the mistake does its harm, and the checker must see it. `MOMENTS` are where a scene has the cell
killed or frozen; they are the same with the bug and without it.

CRASH_BUG and CRASH_MOMENT name one of each, CRASH_NOTE the file in which a moment is noted when it has come. A place
that has moved raises at once, with the name of the bug to mend; so does one whose parameters have changed.
"""

import importlib
import inspect
import os
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from confluent_kafka import KafkaException, Producer

from onceflow.state.seen import Completed, Seen, Verdict
from onceflow.stream.transaction import Delivered, Refused

Function = Callable[..., Any]


class Seeded(NamedTuple):
    """What replaces the function at `place`: made from the original."""

    name: str
    place: str  # module:Class.method, or module:function
    make: Callable[[Function], Function]

    def find(self) -> tuple[Any, str]:
        """The owner and the name of what is replaced."""
        module, _, path = self.place.partition(":")
        owner: Any = importlib.import_module(module)
        *outer, name = path.split(".")
        for each in outer:
            owner = getattr(owner, each, None)
        if name not in vars(owner or object):
            raise LookupError(f"{self.place} is gone; mend {self.name} in {__name__}")
        return owner, name

    def replacement(self) -> Function:
        """What takes its place; a LookupError if the place takes other parameters by now."""
        owner, name = self.find()
        original = vars(owner)[name]
        replacement = self.make(original)
        was, becomes = (list(inspect.signature(each).parameters) for each in (original, replacement))
        if was != becomes:
            raise LookupError(f"{self.place} takes {was}, not {becomes}; mend {self.name} in {__name__}")
        return replacement

    def install(self) -> None:
        """Put it into the product of this process."""
        replacement = self.replacement()
        setattr(*self.find(), replacement)


BUGS: dict[str, Seeded] = {}
MOMENTS: dict[str, Seeded] = {}


def bug(place: str) -> Callable[[Callable[[Function], Function]], Seeded]:
    """Enter a bug into the table, under the name of the function that makes it."""
    return lambda make: BUGS.setdefault(make.__name__, Seeded(make.__name__, place, make))


def moment(place: str) -> Callable[[Callable[[Function], Function]], Seeded]:
    """Enter a moment into the table, under the name of the function that makes it."""
    return lambda make: MOMENTS.setdefault(make.__name__, Seeded(make.__name__, place, make))


def install_from_environment() -> None:
    """Put in what CRASH_MOMENT and CRASH_BUG name; the moment first, so that a bug's steps pass it."""
    for variable, table in (("CRASH_MOMENT", MOMENTS), ("CRASH_BUG", BUGS)):
        if name := os.environ.get(variable):
            table[name].install()


# --- transactions ---


@bug("onceflow.stream.transaction:Transactions.commit")
def commit_before_finish(commit: Function) -> Function:
    """Records count as finished one transaction before what they led to: a crash between the two loses it."""

    def progress_first(self: Any, records: Any, ledger: Any, offsets: Any, metadata: Any) -> Delivered:
        finished, led_to = _parted(records, ".progress")
        commit(self, finished, {}, offsets, metadata)
        return commit(self, led_to, ledger, offsets, metadata)

    return progress_first


@bug("onceflow.stream.progress:InputProgress.read")
def progress_of_the_last_read(read: Function) -> Function:
    """Progress says how far was read, not how far all is finished: a crash loses what was being worked on."""

    def as_if_finished(self: Any, offsets: Any, position: int) -> None:
        read(self, (), position)

    return as_if_finished


@bug("onceflow.stream.transaction:Transactions._send_offsets")
def no_offsets(_send: Function) -> Function:
    """Without offsets the broker doesn't ask whose slots these are: who was frozen and woke up doubles events."""

    def nothing(self: Any, offsets: Any, metadata: Any) -> None:
        pass

    return nothing


@bug("onceflow.stream.transaction:Transactions.commit")
def offsets_before_flush(_commit: Function) -> Function:
    """The fence is passed before the records are sent: a cell frozen in between sends them to another's slots."""

    def in_wrong_order(self: Any, records: Any, ledger: Any, offsets: Any, metadata: Any) -> Delivered:
        delivered = Delivered()
        try:
            self._producer.begin_transaction()
            self._send_offsets(offsets(), metadata)
            self._flush(len(records), self._produce(records, ledger, delivered), delivered)
        except KafkaException as exception:
            self._abort(exception.args[0])
            raise Refused(exception.args[0]) from exception
        self._commit()
        return delivered

    return in_wrong_order


@bug("onceflow.stream.outbox:Outbox.polled")
def content_of_lost_grants(polled: Function) -> Function:
    """What a lost slot left in the outbox goes out under the next membership: its new owner has done it too."""

    def nothing_is_ever_lost(self: Any, pair: Any, reads: Any, passed: Any = ()) -> None:
        polled(self, pair._replace(grants=pair.grants | self._pair.grants), reads, passed)

    return nothing_is_ever_lost


@bug("onceflow.stream.transaction:Transactions._produce")
def completion_outside_the_transaction(produce: Function) -> Function:
    """A completion that no abort takes back: where the transaction is refused, the event completes elsewhere too."""

    def through_another_producer(self: Any, records: Any, ledger: Any, delivered: Delivered) -> int:
        completions, others = _parted(records, ".completions")
        plain = Producer({"bootstrap.servers": os.environ["ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS"]})
        for record in completions:
            for value in record.values:
                plain.produce(
                    record.topic, value, record.key, record.partition, delivered.ordered,
                    headers=record.headers,
                )  # fmt: skip
        plain.flush()
        return sum(len(record.values) for record in completions) + produce(self, others, ledger, delivered)

    return through_another_producer


# --- forwarding ---


@bug("onceflow.stream.outbox:Outbox._settle_progress")
def forward_without_finish(settle: Function) -> Function:
    """The record stays unfinished and is forwarded again after each restart: one without a key is done again."""

    def but_forwarded(self: Any, finished: Any) -> None:
        settle(self, [end for end in finished if end.verdict != "forwarded"])

    return but_forwarded


@bug("onceflow.stream.transaction:Transactions.commit")
def finish_without_forward(commit: Function) -> Function:
    """The record is finished one transaction before its copy goes home: a crash between the two loses it."""

    def forwarded_later(self: Any, records: Any, ledger: Any, offsets: Any, metadata: Any) -> Delivered:
        forwarded, others = _parted(records, ".inbox")
        delivered = commit(self, others, ledger, offsets, metadata)
        if forwarded:
            commit(self, forwarded, {}, offsets, metadata)
        return delivered

    return forwarded_later


@bug("onceflow.stream.letters:Letters.forwarded")
def time_of_forwarding(forwarded: Function) -> Function:
    """A copy is as young as its forwarding: one that lay unread is past the window then, and done again."""

    def now(
        self: Any,
        input: Any,
        offset: int,
        kafka_key: Any,
        value: Any,
        headers: Any,
        *,
        time_ms: int,
        slot: int,
    ) -> Any:
        now_ms = time.time_ns() // 1_000_000
        return forwarded(self, input, offset, kafka_key, value, headers, time_ms=now_ms, slot=slot)

    return now


# --- dedup ---


@bug("onceflow.state.seen:Judge.verdicts")
def view_when_seen(verdicts: Function) -> Function:
    """A key is in the view from the moment it is seen: after a crash its event is a copy of what never was."""

    def remembered_at_once(self: Any, runs: Any, times_ms: Any, identities: Any = ()) -> list[Verdict]:
        found = verdicts(self, runs, times_ms, identities)
        firsts = [i for i, verdict in enumerate(found) if verdict is Verdict.FIRST]
        self._seen.write([Completed(times_ms[i], [runs[i]], []) for i in firsts], {})
        return found

    return remembered_at_once


@bug("onceflow.state.seen:Seen.write")
def position_before_keys(write: Function) -> Function:
    """The position runs ahead of the keys: after a crash between the two they are never caught up with."""

    def in_two(self: Seen, completed: Any, positions: Any) -> None:
        write(self, (), positions)
        write(self, completed, {})

    return in_two


@bug("onceflow.state.seen:Seen.write")
def keys_before_position(write: Function) -> Function:
    """No harm from a crash between the two: the position lags, and what is read once more is known already."""

    def in_two(self: Seen, completed: Any, positions: Any) -> None:
        write(self, completed, {})
        write(self, (), positions)

    return in_two


@bug("onceflow.stream.grants:Grants._catch_up")
def no_catch_up(_catch_up: Function) -> Function:
    """The view is believed as it lies on disk: copies of what it lacks are done again."""

    def nothing(self: Any, slots: Any, ends: Any) -> None:
        pass

    return nothing


@bug("onceflow.state.seen:Seen.drop")
def position_kept(drop: Function) -> Function:
    """Keys of a lost slot go, the position stays: when the slot comes back, none of them is read again."""

    def but_the_position(self: Seen, slot: int) -> None:
        position = self.position(slot)
        drop(self, slot)
        if position is not None:
            self.write((), {slot: position})

    return but_the_position


@bug("onceflow.state.seen:Seen.__init__")
def view_of_the_window_alone(init: Function) -> Function:
    """Keys go when the window has passed: a copy that lay unread for longer finds none, and is done again."""

    def shorter(self: Any, store: Any, *, window_ms: int, span_ms: int, identities: bool = False) -> None:
        init(self, store, window_ms=window_ms, span_ms=window_ms, identities=identities)

    return shorter


@bug("onceflow.stream.dedup:idempotency_keys")
def key_without_lengths(_keys: Function) -> Function:
    """Fields run into each other: "ab" + "c" is "a" + "bc", and the second of two events is taken for a copy."""
    hashed = inspect.getmodule(_keys).xxh3_128_digest  # type: ignore[union-attr]

    def joined(events: Any, content: str) -> list[bytes]:
        return [hashed(f"{e.tenant}{e.source}{e.id}".encode() + hashed(e.data)) for e in events]

    return joined


# --- runs ---


@bug("onceflow.agents.in_flight:InFlight._journal_of")
def stale_journal(_journal_of: Function) -> Function:
    """Any journal of the key will do: a run takes over the answers that another version of its agent was given."""

    def whatever_it_is_of(self: Any, arrived: Any) -> Any:
        journal = self._journals.pop(arrived.key, None)
        return {} if journal is None else journal.entries

    return whatever_it_is_of


# --- moments ---


@moment("onceflow.stream.transaction:Transactions.commit")
def dies_when_finished(commit: Function) -> Function:
    """kill -9 after the first commit by which a record of a producer's is finished."""

    def and_dies(self: Any, records: Any, ledger: Any, offsets: Any, metadata: Any) -> Delivered:
        records = list(records)
        delivered = commit(self, records, ledger, offsets, metadata)
        if any(r.topic.endswith(".progress") and b".inbox/" not in r.key for r in records):
            _now(signal.SIGKILL)
        return delivered

    return and_dies


@moment("onceflow.state.seen:Seen.write")
def dies_when_written(write: Function) -> Function:
    """kill -9 after the first write to the view."""

    def and_dies(self: Any, completed: Any, positions: Any) -> None:
        write(self, completed, positions)
        if completed or positions:
            _now(signal.SIGKILL)

    return and_dies


@moment("onceflow.stream.transaction:Transactions.commit")
def freezes_before_a_transaction(commit: Function) -> Function:
    """SIGSTOP once, with completions that were taken for a transaction, before it is begun."""

    def frozen(self: Any, records: Any, ledger: Any, offsets: Any, metadata: Any) -> Delivered:
        records = list(records)
        if any(record.topic.endswith(".completions") for record in records):
            _now(signal.SIGSTOP)
        return commit(self, records, ledger, offsets, metadata)

    return frozen


@moment("onceflow.stream.transaction:Transactions._send_offsets")
def freezes_after_offsets(send: Function) -> Function:
    """SIGSTOP once, when the offsets of a transaction that finishes records of a producer's were taken."""

    def frozen(self: Any, offsets: Any, metadata: Any) -> None:
        send(self, offsets, metadata)
        if any(not offset.topic.endswith(".inbox") for offset in offsets):
            _now(signal.SIGSTOP)

    return frozen


def _now(number: signal.Signals) -> None:
    """Note that the moment has come, and do it; once."""
    try:
        os.close(os.open(os.environ["CRASH_NOTE"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), number)


def _parted(records: Any, ending: str) -> tuple[list[Any], list[Any]]:
    """The records for the flow's topic of this ending, and all others."""
    records = list(records)
    matching = [record for record in records if record.topic.endswith(ending)]
    return matching, [record for record in records if not record.topic.endswith(ending)]
