"""Clients for the tests of Kafka's behaviour: with the settings that matter, closed when the test ends."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from confluent_kafka import Consumer, IsolationLevel, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from tests.waiting import wait_until

V = TypeVar("V")
SESSION_S = 6.0  # the shortest that brokers allow by default


@dataclass
class Member:
    """A consumer in a group with the cooperative protocol, and what it owns."""

    consumer: Consumer
    owned: set[tuple[str, int]] = field(default_factory=set)
    lost: set[tuple[str, int]] = field(default_factory=set)

    def poll(self) -> list[Message]:
        """Serve the group; what arrived."""
        return [message for message in self.consumer.consume(100, 0.05) if message.error() is None]

    def metadata(self) -> Any:
        return self.consumer.consumer_group_metadata()


def dotted(config: dict[str, V]) -> dict[str, V]:
    """Keyword arguments as Kafka's property names; callbacks keep their underscore."""
    return {key if key.endswith("_cb") else key.replace("_", "."): value for key, value in config.items()}


class Clients:
    """Topics and clients of one test on one broker."""

    def __init__(self, bootstrap_servers: str, closing: contextlib.ExitStack) -> None:
        self.common = {"bootstrap.servers": bootstrap_servers, "log_level": 0}
        self.admin = AdminClient(self.common)
        self.closing = closing

    def topic(self, name: str, partitions: int = 1, **config: str) -> str:
        """A topic that is there: its partitions have leaders and any client may use it at once."""
        settings = dotted(config)
        self.admin.create_topics([NewTopic(name, partitions, config=settings)])[name].result(timeout=20)

        def has_leaders() -> bool:
            found = self.admin.list_topics(name, timeout=5).topics[name].partitions
            return len(found) == partitions and all(p.leader >= 0 for p in found.values())

        wait_until(has_leaders, 20, f"topic {name} has leaders")
        return name

    def producer(self, **config: object) -> Producer:
        settings = dotted(config)
        return Producer({**self.common, "linger.ms": 0, **settings})

    def transactional(self, name: str, **config: object) -> Producer:
        """A producer whose transactions may begin."""
        producer = self.producer(transactional_id=name, retry_backoff_ms=3, **config)
        producer.init_transactions(30)
        return producer

    def consumer(self, group: str, **config: object) -> Consumer:
        settings = dotted(config)
        consumer = Consumer({
            **self.common,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            **settings,
        })  # fmt: skip
        self.closing.callback(consumer.close)
        return consumer

    def member(self, group: str, topic: str, instance: str | None = None, **config: object) -> Member:
        """A member of `group` subscribed to `topic`; poll it until it owns something."""
        static = {"group_instance_id": instance} if instance else {}
        member = Member(
            self.consumer(
                group,
                partition_assignment_strategy="cooperative-sticky",
                session_timeout_ms=int(SESSION_S * 1000),
                heartbeat_interval_ms=500,
                **static,
                **config,
            )
        )

        def on_assign(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            member.owned |= {(p.topic, p.partition) for p in partitions}
            consumer.incremental_assign(partitions)

        def on_revoke(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            member.owned -= {(p.topic, p.partition) for p in partitions}
            consumer.incremental_unassign(partitions)

        def on_lost(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            member.lost |= {(p.topic, p.partition) for p in partitions}
            on_revoke(consumer, partitions)

        member.consumer.subscribe([topic], on_assign=on_assign, on_revoke=on_revoke, on_lost=on_lost)
        return member

    def send(self, topic: str, values: list[bytes], partition: int = 0) -> None:
        producer = self.producer()
        for value in values:
            producer.produce(topic, value, partition=partition)
        assert producer.flush(20) == 0

    def end(self, topic: str, partition: int = 0, *, committed: bool = False) -> int:
        """The high watermark, or with `committed` the last stable offset."""
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        at = TopicPartition(topic, partition)
        return self.admin.list_offsets({at: OffsetSpec.latest()}, isolation_level=level)[at].result(10).offset

    def read_all(self, topic: str, isolation: str = "read_committed") -> list[bytes]:
        """All that a reader sees once the transactions are settled: a commit returns a moment before that."""
        end = self.end(topic)
        wait_until(lambda: self.end(topic, committed=True) >= end, 20, f"{topic} has no open transaction")
        consumer = self.consumer("reader", isolation_level=isolation)
        consumer.assign([TopicPartition(topic, 0, 0)])
        values: list[bytes] = []

        def at_end() -> bool:
            values.extend(m.value() or b"" for m in consumer.consume(100, 0.05) if m.error() is None)
            return consumer.position([TopicPartition(topic, 0)])[0].offset >= end

        wait_until(at_end, 20, f"{topic} read to {end}")
        return values


@contextlib.contextmanager
def clients_of(bootstrap_servers: str) -> Iterator[Clients]:
    with contextlib.ExitStack() as closing:
        yield Clients(bootstrap_servers, closing)


def refusal(act: Callable[[], object]) -> str:
    """The name of the error with which the broker or client refuses; empty if it doesn't."""
    try:
        act()
    except KafkaException as error:
        return str(error.args[0].name())
    return ""


def poll_until(condition: Callable[[], object], *members: Member, timeout_s: float = 30.0, what: str) -> None:
    """Serve the members in turn until the condition holds."""

    def served() -> bool:
        for member in members:
            member.poll()
        return bool(condition())

    wait_until(served, timeout_s, what)
