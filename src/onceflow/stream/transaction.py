"""One Kafka transaction, always in this order: produce, flush with every delivery confirmed, send offsets, commit.

Three ends: committed; refused, and aborted, so that the same content can be sent again; or a Fault, after
which nobody in this process knows whether the transaction was committed: librdkafka (without KIP-890) may
then apply an old answer to a new transaction, so the process must end, and its successor's
`init_transactions` settles it.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import (
    TIMESTAMP_LOG_APPEND_TIME,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from onceflow.config import Settings
from onceflow.errors import Fault
from onceflow.state.ledger import Change
from onceflow.stream.cluster import RECONNECT, client_log, client_made
from onceflow.stream.content import Header, Outgoing
from onceflow.stream.topics import RECORD_MAX_BYTES, Names

log = logging.getLogger(__name__)

Report = Callable[[KafkaError | None, Message], None]

_SERVE_EVERY = 1_000  # records between two looks at delivery reports
_RETRY_S = 0.01
_BATCH_BYTES = 1_000_000
_ABORT_STEP_S = 5.0
_OFFSETS_S = 2.0  # the client asks so long about a topic that is gone, and all others wait
_STUCK_S = 10.0  # so long unconfirmed by a Kafka that answers: the client won't recover
_LATE_S = 5.0  # a flush that takes longer is worth a line in the log


class Refused(Exception):  # noqa: N818
    """The transaction was refused and aborted; its content may be sent again under a newer pair."""

    def __init__(self, error: KafkaError, topic: str = "") -> None:
        super().__init__(f"{error.name()}: {error.str()}")
        self.too_large = error.code() == KafkaError.MSG_SIZE_TOO_LARGE
        self.unknown_topic = error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
        self.topic = topic


class Delivered:
    """Delivery reports of one transaction: the last of each partition of F.completions and F.ledger, and the rest's."""

    __slots__ = ("_last", "_other", "confirmed", "error", "error_topic")

    def __init__(self) -> None:
        self.confirmed = 0
        self.error: KafkaError | None = None
        self.error_topic = ""
        self._last: dict[tuple[str | None, int | None], Message] = {}
        self._other: Message | None = None

    def ordered(self, error: KafkaError | None, message: Message) -> None:
        """Take the report of a record of a topic whose view is written; they come in the order of their partition."""
        self.confirmed += 1
        if error is None:
            self._last[message.topic(), message.partition()] = message
        else:
            self._failed(error, message)

    def other(self, error: KafkaError | None, message: Message) -> None:
        """Take the report of any other record."""
        self.confirmed += 1
        if error is None:
            self._other = message
        else:
            self._failed(error, message)

    def last(self, topic: str) -> dict[int, tuple[int, int]]:
        """For each partition of F.completions or F.ledger: the last offset, and its log-append time in ms."""
        return {
            partition: (message.offset() or 0, message.timestamp()[1])
            for (of, partition), message in self._last.items()
            if of == topic and partition is not None
        }

    def time_ms(self) -> int:
        """The latest time in the reports of topics with log-append time; 0 if there is none."""
        messages = [*self._last.values(), *([] if self._other is None else [self._other])]
        times = [message.timestamp() for message in messages]
        return max((time_ms for kind, time_ms in times if kind == TIMESTAMP_LOG_APPEND_TIME), default=0)

    def _failed(self, error: KafkaError, message: Message) -> None:
        if self.error is None:
            self.error, self.error_topic = error, message.topic() or ""


class FatalError:
    """The `error_cb` of a producer: keeps its fatal error.

    Without one, confluent-kafka raises it out of whatever serves callbacks, into the delivery reports.
    """

    def __init__(self) -> None:
        self.error: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        """Take an error; those that aren't fatal heal by themselves."""
        if error.fatal():
            self.error = error


class Transactions:
    """Makes a cell's transactions with its producer. One thread at a time."""

    def __init__(
        self,
        producer: Producer,
        fatal: FatalError,
        names: Names,
        timeout_s: float,
        kafka_answers: Callable[[], bool],
    ) -> None:
        self._producer = producer
        self._kafka_answers = kafka_answers
        self._fatal = fatal
        self._names = names
        self._timeout_s = timeout_s
        self._unserved = 0  # records that were handed over since the last look at delivery reports

    def commit(
        self,
        records: Sequence[Outgoing],
        ledger: Mapping[int, Sequence[Change]],
        offsets: Callable[[], Sequence[TopicPartition]],
        metadata: Any,
    ) -> Delivered:
        """Commit records, changes of the ledger (by slot) and offsets together; raise Refused or Fault."""
        delivered = Delivered()
        try:
            self._producer.begin_transaction()
            reported = self._produce(records, ledger, delivered)
            sent = sum([len(outgoing.values) for outgoing in records]) + sum(map(len, ledger.values()))
            self._flush(sent, reported, delivered)
            if delivered.error is not None:
                if delivered.error.code() == KafkaError._PURGE_QUEUE:
                    # Thrown away because of another record, whose own report wasn't asked for: the client names it.
                    self._send_offsets(offsets(), metadata)
                raise KafkaException(delivered.error)
            self._send_offsets(offsets(), metadata)
        except (KafkaException, SystemError) as exception:
            error = _kafka_error(exception)
            self._abort(error)
            raise Refused(error, delivered.error_topic) from exception
        self._commit()
        return delivered

    def _produce(
        self, records: Sequence[Outgoing], ledger: Mapping[int, Sequence[Change]], delivered: Delivered
    ) -> int:
        """Hand records to the client; return how many of them it reports.

        Reports cost as much as sending. So of completions and of the ledger only each partition's last is asked for:
        the others lie before it. One that fails is no secret: the transaction can't be committed then.
        """
        last = {each.partition: each for each in records if each.topic == self._names.completions}
        reported = len(last) + len(ledger)
        for outgoing in records:
            topic, slot, headers = outgoing.topic, outgoing.partition, outgoing.headers
            pairs = [(outgoing.key, value) for value in outgoing.values]
            if topic != self._names.completions:
                reported += len(pairs)
                self._produce_all(topic, slot, pairs, headers, delivered.other)
            elif last[slot] is outgoing:
                self._produce_all(topic, slot, pairs[:-1], headers)
                self._produce_all(topic, slot, pairs[-1:], headers, delivered.ordered)
            else:
                self._produce_all(topic, slot, pairs, headers)
        for slot, changes in ledger.items():
            self._produce_all(self._names.ledger, slot, changes[:-1])
            self._produce_all(self._names.ledger, slot, changes[-1:], None, delivered.ordered)
        return reported

    def _produce_all(
        self,
        topic: str,
        partition: int,
        pairs: Sequence[tuple[bytes | str | None, bytes | None]],
        headers: list[Header] | None = None,
        report: Report | None = None,
    ) -> None:
        """Hand over records with these keys and values."""
        produce = self._producer.produce
        for key, value in pairs:
            while True:
                try:
                    produce(topic, value, key, partition, report, None, 0, headers)
                    break
                except BufferError:  # the client's queue is full: let it send some
                    self._producer.poll(0.05)
        self._unserved += len(pairs)
        if self._unserved >= _SERVE_EVERY:
            self._unserved = 0
            self._producer.poll(0)

    def _flush(self, sent: int, reported: int, delivered: Delivered) -> None:
        started_at = time.monotonic()
        late_s = _LATE_S
        answering_since: float | None = None
        while (left := self._producer.flush(1.0)) > 0 or delivered.confirmed < reported:
            if self._fatal.error is not None:
                raise fault("the transaction cannot go on", self._fatal.error)
            waited_s = time.monotonic() - started_at
            missing = f"{left} of {sent} records are unconfirmed after {waited_s:.0f} s"
            if waited_s > self._timeout_s:
                raise Fault(f"{missing}, longer than a transaction may last; a restart settles it")
            if waited_s > late_s:
                late_s *= 2
                log.warning(
                    "Kafka has not confirmed all records of a transaction yet: %s; still trying", missing
                )
            if waited_s > _LATE_S:
                answering_since = self._answering(answering_since)
                if answering_since is not None and time.monotonic() - answering_since > _STUCK_S:
                    raise Fault(f"Kafka answers again, but {missing}; a restart settles the transaction")

    def _answering(self, since: float | None) -> float | None:
        """Since when Kafka has been answering; None if it doesn't now. Asking also renews the client's leaders."""
        with suppress(KafkaException):
            self._producer.list_topics(timeout=1.0)
        if not self._kafka_answers():
            return None
        return time.monotonic() if since is None else since

    def _send_offsets(self, offsets: Sequence[TopicPartition], metadata: Any) -> None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._producer.send_offsets_to_transaction(
                    list(offsets), metadata, min(self._timeout_s, _OFFSETS_S)
                )
                return
            except KafkaException as exception:
                error = exception.args[0]
                again = error.retriable() and not (error.fatal() or error.txn_requires_abort())
                if not again or time.monotonic() > deadline:
                    raise
                self._producer.poll(_RETRY_S)

    def _commit(self) -> None:
        try:
            self._producer.commit_transaction(self._timeout_s)
        except KafkaException as exception:
            error = exception.args[0]
            if error.txn_requires_abort() and not error.fatal():
                self._abort(error)
                raise Refused(error) from exception
            raise fault("the commit has no certain answer", error) from exception

    def _abort(self, cause: KafkaError) -> None:
        """Abort; a fault where that is impossible."""
        if cause.fatal():
            raise fault("the transaction cannot go on", cause)
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._producer.abort_transaction(_ABORT_STEP_S)
                return
            except KafkaException as exception:
                error = exception.args[0]
                if error.fatal() or not error.retriable() or time.monotonic() > deadline:
                    raise fault("the transaction cannot be aborted", error) from exception


def begin_producer(
    settings: Settings, transactional_id: str, record_max: int, fatal: FatalError, stop: Callable[[], bool]
) -> Producer:
    """A cell's transactional producer; taking it ends the open transaction of a predecessor."""
    timeout_s = settings.transaction_timeout.total_seconds()
    properties = {
        "linger.ms": 3,
        **RECONNECT,
        "compression.type": "lz4",
        "queue.buffering.max.messages": 2_000_000,
        "queue.buffering.max.kbytes": 1 << 20,
        **settings.kafka.properties(),
        "error_cb": fatal,
        "batch.size": min(_BATCH_BYTES, int(record_max * 0.9)),
        "message.max.bytes": RECORD_MAX_BYTES,
        "transactional.id": transactional_id,
        "transaction.timeout.ms": int(timeout_s * 1000),
        "retry.backoff.ms": 3,  # at the default of 100, each transaction with offsets takes 100 ms
    }
    with client_made(settings.kafka.client):
        producer = Producer(properties, logger=client_log)
    while True:
        try:
            producer.init_transactions(10)
        except KafkaException as exception:
            error = exception.args[0]
            if not error.retriable() or stop():
                raise fault("the producer cannot begin", error) from exception
            log.warning("Kafka's transaction coordinator does not answer; still trying")
        else:
            return producer


def _kafka_error(exception: BaseException) -> KafkaError:
    """The error of an exception. One that is fatal may come wrapped: confluent-kafka raises it into callbacks."""
    link: BaseException | None = exception
    while link is not None:
        if isinstance(link, KafkaException):
            error: KafkaError = link.args[0]
            return error
        link = link.__cause__ or link.__context__
    raise exception


def fault(what: str, error: KafkaError) -> Fault:
    """The fault to end with, its cause named in words."""
    if error.code() in _FENCED or "fenced" in error.str().lower():
        return Fault(
            f"{what}: fenced ({error.name()}). Another process uses this cell's identity (its state directory was "
            "copied, or a second cell was started on it), or this one was away for longer than its session or its "
            "transaction may last. A restart heals the latter; for the former give each cell a state directory of "
            "its own (ONCEFLOW_STATE_DIR)."
        )
    return Fault(f"{what} ({error.name()}: {error.str()}); a restart settles it")


_FENCED: Mapping[int, None] = dict.fromkeys(
    (
        KafkaError._FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.PRODUCER_FENCED,
        KafkaError.FENCED_INSTANCE_ID,
    )
)
