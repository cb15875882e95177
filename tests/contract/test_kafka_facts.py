"""What the design takes for granted about Kafka's transactions, tried on a real broker.

Each test is one such fact. When one fails, an upgrade of the broker or of librdkafka has changed the ground:
look for what relies on the fact before changing the test.
"""

import time
from typing import Any

import pytest
from confluent_kafka import (
    TIMESTAMP_LOG_APPEND_TIME,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
    murmur2,
)

from tests.contract.clients import Clients, poll_until, refusal
from tests.waiting import wait_until


def send_offsets_and_commit(producer: Producer, at: list[TopicPartition], metadata: Any) -> None:
    producer.send_offsets_to_transaction(at, metadata, 20)
    producer.commit_transaction(20)


def test_aborted_records_are_hidden_from_readers_of_committed_ones(clients: Clients, flow_name: str) -> None:
    topic = clients.topic(flow_name)
    producer = clients.transactional(flow_name)
    for value, end in ((b"kept", producer.commit_transaction), (b"dropped", producer.abort_transaction)):
        producer.begin_transaction()
        producer.produce(topic, value)
        assert producer.flush(20) == 0
        end(20)
    assert clients.read_all(topic) == [b"kept"]
    assert clients.read_all(topic, "read_uncommitted") == [b"kept", b"dropped"]


def test_a_second_producer_with_the_same_transactional_id_fences_the_first_for_good(
    clients: Clients, flow_name: str
) -> None:
    topic = clients.topic(flow_name)
    first = clients.transactional(flow_name)
    first.begin_transaction()
    first.produce(topic, b"of the first")
    assert first.flush(20) == 0
    second = clients.transactional(flow_name)
    with pytest.raises(KafkaException) as fenced:
        first.commit_transaction(20)
    assert fenced.value.args[0].name() == "_FENCED"
    assert fenced.value.args[0].fatal()
    second.begin_transaction()
    second.produce(topic, b"of the second")
    second.commit_transaction(20)
    assert clients.read_all(topic) == [b"of the second"]


@pytest.mark.parametrize(("instance", "outcome"), [(None, ""), ("stale", "UNKNOWN_MEMBER_ID")])
def test_metadata_of_a_non_member_is_refused_only_with_an_instance_id(
    clients: Clients, flow_name: str, instance: str | None, outcome: str
) -> None:
    """Hence static membership: without it an outsider moves the group's offsets."""
    topic = clients.topic(flow_name)
    member = clients.member(flow_name, topic, "member" if instance else None)
    poll_until(lambda: member.owned, member, what="the group has a member")
    outsider = clients.consumer(flow_name, **({"group_instance_id": instance} if instance else {}))
    producer = clients.transactional(flow_name)
    producer.begin_transaction()
    metadata = outsider.consumer_group_metadata()
    at = [TopicPartition(topic, 0, 7)]
    assert refusal(lambda: send_offsets_and_commit(producer, at, metadata)) == outcome
    if outcome:
        producer.abort_transaction(20)
    [committed] = member.consumer.committed([TopicPartition(topic, 0)], 20)
    assert committed.offset == (-1001 if outcome else 7)


def test_who_gave_a_partition_away_is_refused_only_with_metadata_from_before(
    clients: Clients, flow_name: str
) -> None:
    """Hence grants and metadata are taken at one moment, as a pair: metadata alone vouches for nothing."""
    topic = clients.topic(flow_name, 2)
    first = clients.member(flow_name, topic, "first")
    poll_until(lambda: len(first.owned) == 2, first, what="the first member owns both")
    before = first.metadata()
    second = clients.member(flow_name, topic, "second")
    poll_until(lambda: len(first.owned) == len(second.owned) == 1, first, second, what="each has one")
    [(_, given_away)] = second.owned
    at = [TopicPartition(topic, given_away, 7)]
    producer = clients.transactional(flow_name)

    producer.begin_transaction()
    assert refusal(lambda: send_offsets_and_commit(producer, at, before)) == "ILLEGAL_GENERATION"
    producer.abort_transaction(20)

    producer.begin_transaction()
    send_offsets_and_commit(producer, at, first.metadata())
    assert second.consumer.committed([TopicPartition(topic, given_away)], 20)[0].offset == 7


def test_offsets_of_partitions_that_the_group_does_not_assign_are_taken_under_its_generation(
    clients: Clients, flow_name: str
) -> None:
    topic, other = clients.topic(flow_name), clients.topic(f"{flow_name}-other")
    member = clients.member(flow_name, topic, "member")
    poll_until(lambda: member.owned, member, what="the group has a member")
    producer = clients.transactional(flow_name)
    producer.begin_transaction()
    send_offsets_and_commit(producer, [TopicPartition(other, 0, 3)], member.metadata())
    assert member.consumer.committed([TopicPartition(other, 0)], 20)[0].offset == 3


@pytest.mark.parametrize("flushed", [True, False])
def test_a_commit_sends_what_was_queued_after_the_fence_was_passed_unless_flushed_before(
    clients: Clients, flow_name: str, flushed: bool
) -> None:
    """Hence produce, flush, offsets, commit: a new owner that reads to the high watermark misses nothing."""
    topic, output = clients.topic(flow_name, 2), clients.topic(f"{flow_name}-output")
    first = clients.member(flow_name, topic, "first")
    poll_until(lambda: len(first.owned) == 2, first, what="the first member owns both")
    producer = clients.transactional(flow_name, linger_ms=20_000)  # stands for a slow leader
    producer.begin_transaction()
    producer.produce(output, b"late")
    if flushed:
        assert producer.flush(20) == 0
    producer.send_offsets_to_transaction([TopicPartition(topic, 1, 7)], first.metadata(), 20)

    second = clients.member(flow_name, topic, "second")
    poll_until(lambda: len(first.owned) == len(second.owned) == 1, first, second, what="each has one")
    assert clients.end(output) == (1 if flushed else 0), "what the new owner takes for the end"
    producer.commit_transaction(20)
    assert clients.read_all(output) == [b"late"]


def test_an_open_transaction_holds_the_last_stable_offset_until_its_id_is_taken_over(
    clients: Clients, flow_name: str
) -> None:
    topic = clients.topic(flow_name)
    dead = clients.transactional(flow_name, transaction_timeout_ms=120_000)
    dead.begin_transaction()
    dead.produce(topic, b"of the dead")
    assert dead.flush(20) == 0
    clients.send(topic, [b"of the living"])
    assert (clients.end(topic), clients.end(topic, committed=True)) == (2, 0)

    clients.transactional(flow_name)  # the same id
    wait_until(lambda: clients.end(topic, committed=True) == clients.end(topic) == 3, 10, "it is settled")
    assert clients.read_all(topic) == [b"of the living"]


def test_an_open_transaction_holds_the_last_stable_offset_until_it_times_out(
    clients: Clients, flow_name: str
) -> None:
    topic = clients.topic(flow_name)
    dead = clients.transactional(flow_name, transaction_timeout_ms=2_000)
    dead.begin_transaction()
    dead.produce(topic, b"of the dead")
    assert dead.flush(20) == 0
    assert clients.end(topic, committed=True) == 0
    wait_until(lambda: clients.end(topic, committed=True) == 2, 30, "the broker has aborted it")


def test_the_default_retry_backoff_makes_transactions_that_follow_each_other_many_times_slower(
    clients: Clients, flow_name: str
) -> None:
    """While the broker still settles the last one, adding offsets is refused, and retried after the backoff.

    (A flush before the offsets hides most of it: adding the output's partitions is retried sooner.)
    """
    topic = clients.topic(flow_name)
    member = clients.member(flow_name, topic, "member")
    poll_until(lambda: member.owned, member, what="the group has a member")

    def took_s(backoff_ms: int) -> float:
        name = f"{flow_name}-{backoff_ms}"
        producer = clients.producer(transactional_id=name, retry_backoff_ms=backoff_ms)
        producer.init_transactions(30)
        start = time.perf_counter()
        for offset in range(20):
            producer.begin_transaction()
            send_offsets_and_commit(producer, [TopicPartition(topic, 0, offset)], member.metadata())
        return time.perf_counter() - start

    assert took_s(100) > 2 * took_s(3)


def test_delivery_reports_carry_offset_and_the_brokers_time(clients: Clients, flow_name: str) -> None:
    topic = clients.topic(flow_name, message_timestamp_type="LogAppendTime")
    reports: list[Message] = []
    producer = clients.transactional(flow_name)
    producer.begin_transaction()
    for value in (b"a", b"b"):
        producer.produce(topic, value, timestamp=1, on_delivery=lambda _, report: reports.append(report))
    assert producer.flush(20) == 0
    producer.commit_transaction(20)
    assert [report.offset() for report in reports] == [0, 1]
    for report in reports:
        kind, at_ms = report.timestamp()
        assert kind == TIMESTAMP_LOG_APPEND_TIME
        assert abs(at_ms / 1000 - time.time()) < 3600, "the broker's clock, not the producer's word"


def test_a_topic_deleted_and_made_anew_has_another_id_and_starts_at_0(
    clients: Clients, flow_name: str
) -> None:
    def topic_id() -> str:
        described = clients.admin.describe_topics(TopicCollection([flow_name]))
        return str(described[flow_name].result(10).topic_id)

    clients.topic(flow_name)
    clients.send(flow_name, [b"old"] * 3)
    first = topic_id()
    assert topic_id() == first
    clients.admin.delete_topics([flow_name])[flow_name].result(20)
    wait_until(lambda: flow_name not in clients.admin.list_topics(timeout=10).topics, 20, "the topic is gone")
    clients.topic(flow_name)
    clients.send(flow_name, [b"new"])
    assert topic_id() != first
    assert clients.end(flow_name) == 1


# From the tests of Kafka's own org.apache.kafka.common.utils.Utils.murmur2.
JAVA_MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "hashed"), JAVA_MURMUR2.items())
def test_murmur2_gives_the_partition_that_java_clients_choose(key: bytes, hashed: int) -> None:
    for partitions in (1, 3, 16, 64, 1000):
        assert murmur2(key, partitions) == (hashed & 0x7FFFFFFF) % partitions


def test_librdkafka_with_murmur2_random_chooses_the_same_partition(clients: Clients, flow_name: str) -> None:
    topic = clients.topic(flow_name, 16)
    chosen: dict[bytes, int] = {}

    def note(_error: object, message: Message) -> None:
        chosen[message.key() or b""] = message.partition() or 0

    producer = clients.producer(partitioner="murmur2_random")
    for key in JAVA_MURMUR2:
        producer.produce(topic, b"x", key=key, on_delivery=note)
    assert producer.flush(20) == 0
    assert chosen == {key: murmur2(key, 16) for key in JAVA_MURMUR2}
