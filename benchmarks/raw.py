"""The baseline: `python -m benchmarks.raw SERVERS TOPIC OUTPUT GROUP TOTAL`.

One process, confluent-kafka and msgspec alone: batches consumed, decoded, deduplicated in a dict, completions produced,
offsets sent and a transaction committed every 10,000 events, all on one thread. What it knows dies with it, nothing
fences it, it forwards nothing and checks nothing of what it reads: the least that the job can take, no alternative.
"""

import sys

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition

COMMIT_EVERY = 10_000


class _Envelope(msgspec.Struct, gc=False):
    id: str
    source: str
    type: str
    tenant: str
    data: msgspec.Raw


class _Completion(msgspec.Struct, gc=False):
    specversion: str
    id: str
    source: str
    type: str
    tenant: str
    causesource: str
    causeid: str
    time: str
    data: msgspec.Raw


def run(servers: str, topic: str, output: str, group: str, total: int) -> None:
    """The loop, until it has read `total` events."""
    consumer, producer = clients(servers, group)
    partitions = range(len(consumer.list_topics(topic, timeout=10).topics[topic].partitions))
    consumer.subscribe([topic])
    decode, encode = msgspec.json.Decoder(_Envelope).decode, msgspec.json.Encoder().encode
    seen: dict[tuple[str, str], None] = {}
    headers: list[tuple[str, str | bytes | None]] = [("content-type", b"application/cloudevents+json")]
    count = pending = 0
    producer.begin_transaction()
    while count < total:
        for message in consumer.consume(4_000, 0.02):
            event = decode(message.value() or b"")
            count += 1
            pending += 1
            key = (event.tenant, event.id)
            if key in seen:
                continue
            seen[key] = None
            completion = _Completion(
                "1.0",
                f"{count:032x}",
                "/raw",
                "raw.completed",
                event.tenant,
                event.source,
                event.id,
                "2026-01-01T00:00:00Z",
                event.data,
            )
            producer.produce(
                output, encode(completion), event.tenant, message.partition() or 0, headers=headers
            )
        producer.poll(0)
        if pending >= COMMIT_EVERY or count >= total:
            offsets = consumer.position([TopicPartition(topic, partition) for partition in partitions])
            producer.send_offsets_to_transaction(
                [at for at in offsets if at.offset >= 0], consumer.consumer_group_metadata()
            )
            producer.commit_transaction()
            pending = 0
            if count < total:
                producer.begin_transaction()
    consumer.close()


def clients(servers: str, group: str) -> tuple[Consumer, Producer]:
    """Clients with the settings that a cell gives its own."""
    consumer = Consumer({
        "bootstrap.servers": servers,
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "queued.min.messages": 20_000,
        "queued.max.messages.kbytes": 32_768,
        "fetch.wait.max.ms": 100,
    })  # fmt: skip
    producer = Producer({
        "bootstrap.servers": servers,
        "transactional.id": group,
        "linger.ms": 3,
        "batch.size": 1_000_000,
        "compression.type": "lz4",
        "retry.backoff.ms": 3,
        "queue.buffering.max.messages": 2_000_000,
    })  # fmt: skip
    producer.init_transactions(30)
    return consumer, producer


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
