"""How a command writes to Kafka: what it sends counts as sent once Kafka has confirmed each record of it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from onceflow.config import Settings
from onceflow.errors import ConfigError
from onceflow.stream.cluster import RECONNECT, KafkaAway, client_log, client_made, is_away, no_answer

CONFIRMED_S = 30.0


class Record(NamedTuple):
    """A record to be sent; without a partition its key decides, as Java's clients do it."""

    topic: str
    value: str | bytes | None
    key: str | bytes | None
    partition: int = -1
    headers: Sequence[tuple[str, str | bytes | None]] = ()


def send(settings: Settings, records: Iterable[Record]) -> None:
    """Write these records and wait until all are confirmed.

    Raises KafkaAway where Kafka does not answer in time, some of them may be there then; ConfigError where it
    refuses one.
    """
    refused: list[KafkaError] = []

    def confirmed(error: KafkaError | None, record: Message) -> None:
        if error is not None:
            refused.append(error)

    ours = {"partitioner": "murmur2_random", "enable.idempotence": True}
    with client_made(settings.kafka.client):
        producer = Producer({**RECONNECT, **settings.kafka.properties(), **ours}, logger=client_log)
    topics: set[str] = set()
    for record in records:
        topics.add(record.topic)
        topic, value, key, partition, headers = record
        try:
            while True:
                try:
                    producer.produce(
                        topic, value, key, partition, on_delivery=confirmed, headers=list(headers)
                    )
                    break
                except BufferError:  # its queue is full
                    producer.poll(1)
        except KafkaException as exception:  # one that is too large, say
            refused.append(exception.args[0])
    left = producer.flush(CONFIRMED_S)
    servers = settings.kafka.bootstrap_servers
    if left:
        raise KafkaAway(no_answer(servers, f"{left} records are not confirmed after {CONFIRMED_S:g} s"))
    if not refused:
        return
    if is_away(refused[0]):
        raise KafkaAway(no_answer(servers, refused[0].str()))
    raise ConfigError(
        f"Kafka did not take {len(refused):,} records for {', '.join(sorted(topics))}: {refused[0].str()}. See to the "
        "topic's settings and to what this user may do (kafka.client), then try again"
    )
