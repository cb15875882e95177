"""The demo's own way to Kafka: it sends the day, and reads what came, as any program outside would."""

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import Event as Flag
from typing import NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from onceflow.demo.day import Completion, Letter, Sent
from onceflow.errors import Fault

_BATCH = 50
_QUIET = {"log_level": 2}  # what matters is raised; connections that end with the demo do not matter


def await_groups(servers: str, topic: str) -> None:
    """Wait until the broker, just started, can answer for consumer groups.

    An admin client that asks about a group earlier can never be freed again: librdkafka waits for a request.
    """
    deadline = time.monotonic() + 30
    asking = Consumer({"bootstrap.servers": servers, **_QUIET, "group.id": "onceflow-demo"})
    with closing(asking):
        while True:
            try:
                asking.committed([TopicPartition(topic, 0)], timeout=5)
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise Fault("Kafka does not answer for consumer groups: try again") from error
                time.sleep(0.05)
            else:
                return


class Sending:
    """Sends records at a steady rate in a thread of its own; knows afterwards where each one lies.

    The last quarter waits for `release`, so that however slow the machine is, there is work left by then.
    """

    def __init__(self, servers: str, records: list[Sent], rate: float) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": servers,
                **_QUIET,
                "partitioner": "murmur2_random",  # as Java clients do, so tenants are read where they belong
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.max.bytes": 1_100_000,  # one record is too large on purpose
            }
        )
        self._records, self._rate = records, rate
        self._stopped, self._released = Flag(), Flag()
        self._pool = ThreadPoolExecutor(1, "demo-sending")
        self.sent = 0
        self.began_at = time.time()
        self.origins: dict[str, Sent] = {}  # of the records that must end as dead letters without a run
        self._ended: Future[None] = self._pool.submit(self._send)

    @property
    def done(self) -> bool:
        """Whether Kafka has all of it. Raises what kept it from that."""
        if self._ended.done():
            self._ended.result()
            return True
        return False

    def release(self) -> None:
        """Let the last quarter be sent too."""
        self._released.set()

    def stop(self) -> None:
        """End the thread, whatever is sent by then."""
        self._stopped.set()
        self._released.set()
        self._pool.shutdown()

    def _send(self) -> None:
        began = time.monotonic()
        for index, record in enumerate(self._records):
            if index % _BATCH == 0:
                self._producer.poll(0)
                if index >= len(self._records) * 3 // 4:
                    self._released.wait()
                if self._stopped.wait(max(0.0, began + index / self._rate - time.monotonic())):
                    self._producer.purge()
                    return
            self._producer.produce(
                record.topic,
                record.value,
                record.key,
                on_delivery=self._delivered(record) if record.reason else None,
            )
            self.sent = index + 1
        if self._producer.flush(60) > 0:
            raise Fault("Kafka did not take all events within 60 s")

    def _delivered(self, record: Sent) -> Callable[[KafkaError | None, Message], None]:
        def note(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                raise KafkaException(error)
            if not record.run:
                self.origins[f"{message.topic()}/{message.partition()}/{message.offset()}"] = record

        return note


class Found(NamedTuple):
    """What was read, in the order of each partition."""

    completions: list[Completion]
    letters: list[Letter]


class Reading:
    """A reader of committed completions and dead letters, from the beginning on, that joins no group."""

    def __init__(self, servers: str, completions: str, letters: str, partitions: int) -> None:
        self._letters = letters
        self._ends: set[tuple[str, int]] = set()
        self._all = {
            (topic, partition) for topic in (completions, letters) for partition in range(partitions)
        }
        self.found = Found([], [])
        self._consumer = Consumer(
            {
                "bootstrap.servers": servers,
                **_QUIET,
                "group.id": "onceflow-demo",  # never joined
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 20,
            }
        )
        self._consumer.assign([TopicPartition(*at, OFFSET_BEGINNING) for at in sorted(self._all)])

    def read(self, timeout_s: float = 0.05) -> int:
        """Take what has come; how many records that was."""
        count = 0
        for message in self._consumer.consume(2_000, timeout_s):
            at = (message.topic() or "", message.partition() or 0)
            error = message.error()
            if error is None:
                count += 1
                self._ends.discard(at)
                if at[0] == self._letters:
                    self.found.letters.append(_letter(message))
                else:
                    self.found.completions.append(_completion(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                self._ends.add(at)
            elif not error.retriable():
                raise KafkaException(error)
        return count

    @property
    def at_end(self) -> bool:
        """Whether every partition was read to its end."""
        return self._ends == self._all

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


def read_all(servers: str, completions: str, letters: str, partitions: int) -> Found:
    """Everything that is committed now, read anew by a reader that has seen nothing before."""
    reading = Reading(servers, completions, letters, partitions)
    with closing(reading):
        deadline = time.monotonic() + 60
        while not reading.at_end:
            reading.read()
            if time.monotonic() > deadline:
                raise Fault("Kafka has not sent all completions within 60 s")
    return reading.found


def recovered_ms(completions: Iterable[Completion], slots: set[int], killed_ms: int) -> int | None:
    """When the first run completed after the kill in a slot of the killed cell: the broker's time.

    What the killed cell had in its open transaction then is never committed, so no completion after the kill is its.
    """
    times = (each.time_ms for each in completions if each.partition in slots and each.time_ms > killed_ms)
    return min(times, default=None)


def _completion(message: Message) -> Completion:
    value = json.loads(message.value() or b"null")
    data = value["data"] if isinstance(value["data"], dict) else {}
    return Completion(
        value["id"],
        value["tenant"],
        value["causeid"],
        value["type"],
        data,
        message.partition() or 0,
        message.timestamp()[1],
    )


def _letter(message: Message) -> Letter:
    headers: dict[str, bytes] = dict(message.headers() or ())  # type: ignore[arg-type]  # as librdkafka gives them
    names = ("onceflow-origin", "onceflow-run", "onceflow-reason")
    origin, run, reason = (headers.get(name, b"").decode(errors="replace") for name in names)
    return Letter(origin, run, reason, message.value())
