"""A cell's membership in its flow's consumer group: which slots it is granted, and which inputs it reads.

The group subscribes to F.inbox alone; partition s assigned = slot s granted. All other inputs of a slot are
added by `incremental_assign` once its grant is settled. Only the worker's thread touches the consumer.
Nothing that can wait for Kafka or fail is done in the callbacks, but for one: on revoke, calls that nobody may
repeat are waited for and what is pending is committed (both bounded), while the slot is still ours.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from onceflow.config import Settings
from onceflow.errors import Fault
from onceflow.stream.cluster import RECONNECT, Partition, client_log, client_made
from onceflow.stream.content import Grant, Input, Pair, Reads
from onceflow.stream.topics import Names
from onceflow.stream.transaction import fault

log = logging.getLogger(__name__)

POLL_RECORDS = 1_000
_PAIR_S = 0.1
# How long the group waits for a member that does not come to a rebalance. Kafka 4.1 may, after it was killed, never
# notice that members died meanwhile: all slots then wait so long. The worker polls every few milliseconds.
_REBALANCE_S = 30.0
# Records that are there and cannot be read, today or tomorrow: above all, what is larger than receive.message.max.bytes
# once it is decompressed.
_UNREADABLE = (
    KafkaError._BAD_COMPRESSION,
    KafkaError._BAD_MSG,
    KafkaError._NOT_IMPLEMENTED,  # a compression, or a format of records
    KafkaError.INVALID_MSG,
    KafkaError.INVALID_RECORD,
    KafkaError.MSG_SIZE_TOO_LARGE,
)


class Cell:
    """Owns the consumer, the grants and the inputs. The hooks are called inside `poll`.

    It is not closed: a static member keeps its slots until its session ends, so that a quick restart finds them,
    and there is nothing to say to the group; closing the client would only wait for a rebalance under way, which
    takes as long as the slowest member.

    `granted`: slots were assigned. `revoking`: they go in a moment; what is pending can still be committed
    under the pair given. `lost`: they are gone (`live` is False), whether revoked or lost, with these inputs.
    """

    def __init__(
        self,
        flow: str,
        name: str,
        settings: Settings,
        *,
        granted: Callable[[list[Grant]], None],
        revoking: Callable[[Pair, list[Grant]], None],
        lost: Callable[[list[Grant], list[Input]], None],
    ) -> None:
        self.name = name
        self.inputs: dict[Partition, Input] = {}
        self._gone: set[Input] = set()  # with events under way
        self._inbox = Names.of(flow).inbox
        self._grants: dict[int, Grant] = {}
        self._members: dict[Grant, str | None] = {}  # which member of the group each was given to
        self._granted, self._revoking, self._lost = granted, revoking, lost
        self._away = _AwayLines(settings.kafka.bootstrap_servers)
        self.lost_at: float | None = None  # since when the group's session is lost; None: it isn't
        self._pair: Pair | None = None  # None: the grants have changed since
        self._pair_until = 0.0
        self._fatal: KafkaError | None = None
        with client_made(settings.kafka.client):
            self._consumer = Consumer(_properties(flow, name, settings, self._on_error), logger=client_log)
        self._consumer.subscribe(
            [self._inbox], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    @property
    def grants(self) -> Mapping[int, Grant]:
        """The slots owned, settled or not."""
        return self._grants

    def poll(self) -> list[Message]:
        """Take what was fetched, without waiting; serve the group's changes."""
        messages = self._consumer.consume(POLL_RECORDS, 0)
        if self._fatal is not None:
            raise fault("the consumer cannot go on", self._fatal)
        return messages

    def pair(self) -> Pair:
        """Group metadata, and the grants owned when it was taken: now, or a moment ago.

        An older pair is never wrong, only refused; and the client is slow to answer.
        """
        now = time.monotonic()
        if self._pair is None or now >= self._pair_until:
            self._pair_until = now + _PAIR_S
            self._pair = self._taken_now()
        return self._pair

    def _taken_now(self) -> Pair:
        """Group metadata, and the grants that were given to the member that it names.

        A member that stood still for longer than its session is another one once it has joined again, and the client
        speaks for that before it says that the old one's grants are gone: others have worked on them meanwhile.
        """
        member = self._consumer.memberid()
        metadata = self._consumer.consumer_group_metadata()
        if self._consumer.memberid() != member:
            return Pair(metadata, frozenset())
        return Pair(metadata, frozenset(g for g in self._grants.values() if self._members[g] == member))

    def read(self, inputs: Iterable[Input]) -> bool:
        """Begin to read inputs of a settled grant, each at its `next_offset`; False: try again after a poll.

        Those that are blocked are reported, and wait.
        """
        wanted = list(inputs)
        try:
            for input in wanted:
                if input.is_inbox:
                    self._consumer.seek(self._at(input))
        except KafkaException as exception:
            if exception.args[0].code() == KafkaError._STATE:
                return (
                    False  # the client has not begun with the partition, or is about to say that it is fenced
                )
            raise fault("an input cannot be read", exception.args[0]) from exception
        for input in wanted:
            self.inputs[input.topic, input.partition] = input
            input.gone = False
            self._gone.discard(input)
            input.assigned = input.is_inbox  # by the group
            if input.blocked:
                self.block(input, input.blocked)
        open_ = [input for input in wanted if not input.blocked]
        self._assign(input for input in open_ if not input.is_inbox)
        with _as_fault("an input cannot be read"):
            self._consumer.resume([self._at(input) for input in open_ if input.is_inbox])
        return True

    def outlived(self, input: Input) -> bool:
        """Whether events are under way of another topic that had this one's name before."""
        return any(gone.topic == input.topic and gone is not input and gone.unfinished for gone in self._gone)

    def drop(self, input: Input) -> None:
        """Stop reading an input that is gone; what is under way of it goes on."""
        input.gone = True
        if self.inputs.get((input.topic, input.partition)) is not input:
            return  # it was never read: that had to wait
        self._gone = {gone for gone in self._gone if gone.unfinished} | {input}
        del self.inputs[input.topic, input.partition]
        self._unassign(input)

    def block(self, input: Input, reason: str) -> None:
        """Pause an input until an operator acts."""
        log.error(
            "an input is paused until an operator accepts the loss; the others go on",
            extra={"topic": input.topic, "partition": input.partition, "cause": reason},
        )
        input.blocked = reason
        self.pause([input])

    def unreadable(self, input: Input, begin: int, cause: str) -> bool:
        """Deal with records that the client cannot read; whether the input is blocked for them, or has passed one.

        `begin`: where they begin, as they were compressed together: the input may be among them. Where they end nobody
        says; so those whose loss was accepted are passed one by one, until the client reads on.
        """
        if input.blocked:
            return False
        if input.unreadable == begin:  # it was blocked for them, and goes on
            log.warning(
                "a record that cannot be read is let go, as the one before it",
                extra={"topic": input.topic, "partition": input.partition, "offset": input.next_offset},
            )
            self._go_on(input, input.next_offset + 1)
            return True
        input.unreadable = begin
        self.block(
            input,
            f"the record at offset {max(begin, input.next_offset)} cannot be read ({cause}). Either a larger "
            "kafka.client receive.message.max.bytes lets it be read, after a restart, or it is lost, with those that "
            "were compressed together with it",
        )
        return True

    def unblock(self, input: Input, offset: int) -> None:
        """Go on with a blocked input from this offset: an operator has accepted that what lay before is lost."""
        input.blocked = ""
        self._go_on(input, offset)
        log.info(
            "an input goes on, its loss accepted",
            extra={"topic": input.topic, "partition": input.partition, "offset": offset},
        )

    def _go_on(self, input: Input, offset: int) -> None:
        """Read an input from another offset on."""
        self._unassign(input)
        input.next_offset = offset
        self._assign([input])

    def pause(self, inputs: Iterable[Input]) -> None:
        """Stop fetching these inputs (what was fetched is thrown away: pause rarely and for long)."""
        wanted = [input for input in inputs if input.assigned and not input.paused]
        for input in wanted:
            input.paused = True
        if wanted:
            self._consumer.pause([TopicPartition(i.topic, i.partition) for i in wanted])

    def resume(self, inputs: Iterable[Input]) -> None:
        """Fetch these inputs again."""
        wanted = [input for input in inputs if input.paused and not input.blocked]
        for input in wanted:
            input.paused = False
        if wanted:
            self._consumer.resume([TopicPartition(i.topic, i.partition) for i in wanted])

    def positions(self, inputs: Iterable[Input]) -> dict[Input, int]:
        """Where reading stands, past markers and aborted records too."""
        wanted = {(i.topic, i.partition): i for i in inputs}
        found = self._consumer.position([TopicPartition(*at) for at in wanted])
        return {wanted[at.topic, at.partition]: at.offset for at in found if at.offset >= 0}

    def _assign(self, inputs: Iterable[Input]) -> None:
        """Let the consumer have these inputs, each at its `next_offset`."""
        wanted = [input for input in inputs if not input.assigned]
        if wanted:
            with _as_fault("an input cannot be read"):
                self._consumer.incremental_assign([self._at(input) for input in wanted])
        for input in wanted:
            input.assigned = True

    def _unassign(self, input: Input) -> None:
        """Take an input from the consumer, if it has it; the next time it is not paused."""
        if input.assigned:
            with _as_fault("an input cannot be left"):
                if input.paused:
                    self._consumer.resume([self._at(input)])
                self._consumer.incremental_unassign([self._at(input)])
        input.assigned = input.paused = False

    def _at(self, input: Input) -> TopicPartition:
        return TopicPartition(input.topic, input.partition, input.next_offset)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.lost_at = None
        self._pair = None  # of another generation of the group
        if not partitions:
            return
        consumer.incremental_assign(
            [TopicPartition(p.topic, p.partition, OFFSET_BEGINNING) for p in partitions]
        )
        consumer.pause([TopicPartition(p.topic, p.partition) for p in partitions])
        grants = [Grant(p.partition) for p in partitions]
        self._grants |= {grant.slot: grant for grant in grants}
        self._members |= dict.fromkeys(grants, consumer.memberid())
        self._pair = None
        log.info("slots assigned", extra={"slots": len(grants), "owned": len(self._grants)})
        self._granted(grants)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        leaving = [grant for p in partitions if (grant := self._grants.get(p.partition)) is not None]
        self._revoking(self._taken_now(), leaving)
        self._give_up(consumer, partitions, "revoked")

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.lost_at = time.monotonic()
        self._give_up(consumer, partitions, "lost")

    def _give_up(self, consumer: Consumer, partitions: list[TopicPartition], how: str) -> None:
        gone = [grant for p in partitions if (grant := self._grants.pop(p.partition, None)) is not None]
        self._pair = None
        for grant in gone:
            grant.live = False
            del self._members[grant]
        ended = [input for input in self.inputs.values() if not input.grant.live]
        for input in ended:
            del self.inputs[input.topic, input.partition]
        no_more = {input for input in self._gone if not input.grant.live}
        self._gone -= no_more
        others = [TopicPartition(i.topic, i.partition) for i in ended if i.assigned and not i.is_inbox]
        with _as_fault("slots cannot be given up"):
            consumer.incremental_unassign([TopicPartition(p.topic, p.partition) for p in partitions] + others)
        for input in ended:
            input.assigned = False
        log.info("slots %s", how, extra={"slots": len(gone), "owned": len(self._grants)})
        self._lost(gone, [*ended, *no_more])

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = error
        else:
            self._away.note(error)


@contextmanager
def _as_fault(what: str) -> Iterator[None]:
    """A refusal of the consumer ends the cell as what a restart settles."""
    try:
        yield
    except KafkaException as exception:
        raise fault(what, exception.args[0]) from exception


class _AwayLines:
    """Says now and then that Kafka is away, instead of at each of librdkafka's tries."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._line_at = 0.0

    def note(self, error: KafkaError) -> None:
        if time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + 10
            log.warning(
                "Kafka is away; still trying",
                extra={"bootstrap_servers": self._servers, "cause": error.str()},
            )


def record_error(cell: Cell, message: Message) -> Reads | None:
    """Deal with what a poll returns instead of a record; what is to be committed of it."""
    error = message.error()
    assert error is not None
    input = cell.inputs.get((message.topic() or "", message.partition() or 0))
    if error.fatal() or error.code() == KafkaError._FATAL:
        raise fault("the consumer cannot go on", error)
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE) and input is not None:
        if not input.blocked:
            cell.block(input, f"offset {input.next_offset} is no longer there: {error.str()}")
    elif error.code() in _UNREADABLE and input is not None:
        at = message.offset()
        begin = input.next_offset if at is None or at < 0 else at
        if cell.unreadable(input, begin, error.str()):
            return Reads(input, [], input.next_offset, max(begin, input.next_offset) if input.blocked else -1)
    elif error.code() == KafkaError.FENCED_INSTANCE_ID:
        raise fault("the consumer cannot go on", error)
    elif error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED and input is not None and not input.is_inbox:
        log.error(  # once: the client asks again and again, and speaks again only after a pause
            "an input is not read, as Kafka refuses access; the others go on, and so does it once this client may read "
            "its topic",
            extra={"topic": input.topic, "partition": input.partition, "cause": error.str()},
        )
    elif error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
        raise Fault(f"Kafka refuses access: {error.str()}; grant it to this client (kafka.client settings)")
    else:
        log.debug("Kafka says", extra={"cause": error.str(), "topic": message.topic()})
    return None


def _properties(
    flow: str, name: str, settings: Settings, on_error: Callable[[KafkaError], None]
) -> dict[str, Any]:
    session_ms = int(settings.session_timeout.total_seconds() * 1000)
    return {
        "fetch.wait.max.ms": 100,
        "fetch.queue.backoff.ms": 5,
        "queued.min.messages": 20_000,
        "queued.max.messages.kbytes": settings.limits.prefetch_bytes >> 10,
        "retry.backoff.ms": 10,
        **RECONNECT,
        **settings.kafka.properties(),
        "group.id": flow,
        "group.instance.id": name,
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": session_ms,
        "heartbeat.interval.ms": max(100, session_ms // 6),
        "max.poll.interval.ms": max(int(_REBALANCE_S * 1000), session_ms),
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "error_cb": on_error,
    }
