"""What the design takes for granted about librdkafka's consumer: each test is one fact, on a real broker."""

import json
import time

from confluent_kafka import Consumer, KafkaError, TopicPartition

from tests.contract.clients import Clients
from tests.waiting import wait_until


def test_out_of_range_with_reset_error_is_an_error_and_not_a_jump(clients: Clients, flow_name: str) -> None:
    topic = clients.topic(flow_name)
    clients.send(topic, [b"x"] * 10)
    clients.admin.delete_records([TopicPartition(topic, 0, 5)])[TopicPartition(topic, 0)].result(20)
    consumer = clients.consumer(flow_name, auto_offset_reset="error")
    consumer.assign([TopicPartition(topic, 0, 2)])
    arrived = wait_until(lambda: consumer.consume(10, 0.1), 20, "something arrives")
    errors = [message.error() for message in arrived]
    assert [error.code() for error in errors if error] == [KafkaError._AUTO_OFFSET_RESET]
    assert len(arrived) == 1
    assert (arrived[0].topic(), arrived[0].partition()) == (topic, 0), "it says whose"
    assert consumer.consume(10, 0.5) == [], "and nothing more arrives"


def test_the_position_passes_markers_and_aborted_records(clients: Clients, flow_name: str) -> None:
    """Hence offsets without a readable record count as finished once the position has passed them."""
    topic = clients.topic(flow_name)
    producer = clients.transactional(flow_name)
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        producer.produce(topic, b"a")
        producer.produce(topic, b"b")
        assert producer.flush(20) == 0
        end(20)
    wait_until(lambda: clients.end(topic, committed=True) == 6, 20, "two pairs, two markers")
    consumer = clients.consumer(flow_name)
    consumer.assign([TopicPartition(topic, 0, 0)])
    read: list[int] = []

    def position() -> int:
        read.extend(message.offset() or 0 for message in consumer.consume(10, 0.05))
        return int(consumer.position([TopicPartition(topic, 0)])[0].offset)

    wait_until(lambda: position() == 6, 20, "the position is at the end")
    assert read == [0, 1]


def test_consume_returns_at_once_with_all_it_was_asked_for_and_else_waits_its_whole_time(
    clients: Clients, flow_name: str
) -> None:
    topic = clients.topic(flow_name)
    clients.send(topic, [b"x"] * 10)
    consumer = clients.consumer(flow_name)
    consumer.assign([TopicPartition(topic, 0, 0)])
    assert len(consumer.consume(1, 20)) == 1  # from here on the rest lies fetched

    start = time.monotonic()
    assert len(consumer.consume(4, 20)) == 4
    assert time.monotonic() - start < 5

    start = time.monotonic()
    assert len(consumer.consume(100, 0.7)) == 5
    assert time.monotonic() - start >= 0.65, "five were there at once, yet it waited for more"


def test_consume_without_time_returns_what_was_fetched_and_serves_the_group(
    clients: Clients, flow_name: str
) -> None:
    topic = clients.topic(flow_name)
    clients.send(topic, [b"x"] * 10)
    assigned: list[int] = []

    def on_assign(_consumer: Consumer, partitions: list[TopicPartition]) -> None:
        assigned.append(len(partitions))

    consumer = clients.consumer(flow_name)
    consumer.subscribe([topic], on_assign=on_assign)
    arrived: list[int] = []
    longest_s = 0.0

    def all_arrived() -> bool:
        nonlocal longest_s
        start = time.monotonic()
        arrived.extend(message.offset() or 0 for message in consumer.consume(4, 0.0))
        longest_s = max(longest_s, time.monotonic() - start)
        return len(arrived) == 10

    wait_until(all_arrived, 30, "all have arrived through consume(4, 0)")
    assert assigned == [1]
    assert arrived == list(range(10))
    assert longest_s < 0.5


def test_pause_throws_away_what_was_fetched_and_loses_nothing(clients: Clients, flow_name: str) -> None:
    """Hence inputs are paused rarely and for long: each pause fetches the same records again."""
    topic = clients.topic(flow_name)
    clients.send(topic, [b"x" * 100] * 20_000)
    fetched = 0

    def note(statistics: str) -> None:
        nonlocal fetched
        topics = json.loads(statistics)["topics"]
        fetched = topics[topic]["partitions"]["0"]["rxmsgs"] if topic in topics else 0

    consumer = clients.consumer(flow_name, statistics_interval_ms=50, stats_cb=note)
    at = [TopicPartition(topic, 0, 0)]
    consumer.assign(at)
    read: list[int] = []

    def fetched_more_than_all() -> bool:
        consumer.pause(at)
        consumer.resume(at)
        read.extend(message.offset() or 0 for message in consumer.consume(100, 0.2))
        return len(read) >= 5_000 or fetched > 40_000

    wait_until(fetched_more_than_all, 60, "paused and resumed often")
    assert fetched > 3 * len(read)
    assert read == list(range(len(read)))
