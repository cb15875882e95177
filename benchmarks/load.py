"""The events: made by their number alone, so that any of them can be sent again without being remembered.

CloudEvents of some 290 bytes. Event n is the same in every run: its id, its data, and its tenant, which a table drawn
at random (with a fixed seed) gives it. So copies cost nothing to keep, and a window of 16 M keys can be filled with
just the events that are sent again later.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator
from threading import Thread

import msgspec
from confluent_kafka import KafkaError, Producer

SOURCE = "erp/netsuite"
COPIES = 0.1
COPY_WITHIN = 100_000  # events between a copy and its first, at most
SEED = 7
_TABLE = 1 << 20
_DATA = b'{"invoice":%d,"amount":%d,"currency":"EUR","text":"' + b"x" * 70 + b'"}'
_EVENT = (
    b'{"specversion":"1.0","id":"evt-%09d","source":"erp/netsuite","type":"invoice.received","tenant":"%b",'
    b'"time":"2026-01-01T00:00:00Z","data":%b}'
)

Advance = Callable[[int], None]


class Load:
    """All events there are, by number. `zipf`: tenant k has 1/k of the first one's events; else all have as many."""

    def __init__(self, tenants: int, *, zipf: bool = False) -> None:
        names = [b"tenant-%05d" % number for number in range(tenants)]
        weights = [1 / (number + 1) if zipf else 1.0 for number in range(tenants)]
        cumulated = list(itertools.accumulate(weights))
        self.tenants = names
        self._table = random.Random(SEED).choices(names, cum_weights=cumulated, k=_TABLE)

    def tenant(self, number: int) -> bytes:
        """Whose event it is."""
        return self._table[number & (_TABLE - 1)]

    def data(self, number: int) -> bytes:
        """Its data, as sent."""
        return _DATA % (number, number % 9973)

    def value(self, number: int) -> bytes:
        """The event as Kafka gets it."""
        return _EVENT % (number, self.tenant(number), self.data(number))


class Numbers(msgspec.Struct, frozen=True):
    """Which events are sent, in order: `count` records, new events from `first` on, and copies of earlier ones.

    A copy is of one at most `within` events before it, or, if that is 0, of any event from number 0 on. `copies`: the
    share of the records that are copies.
    """

    first: int
    count: int
    within: int = COPY_WITHIN
    copies: float = COPIES

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(SEED + self.first).random
        fresh, lowest = self.first, self.first if self.within else 0
        for _ in range(self.count):
            if fresh > lowest and draw() < self.copies:
                oldest = max(lowest, fresh - self.within) if self.within else 0
                yield oldest + int(draw() * (fresh - oldest))
            else:
                yield fresh
                fresh += 1


def produce(
    servers: str, load: Load, numbers: Iterable[int], topic_of: Callable[[bytes], str], advance: Advance
) -> int:
    """Send these events to `topic_of` their tenants; return the number after the highest.

    There are no callbacks, they would cost more than the rest: whoever calls this looks at the topics' ends.
    """
    producer = Producer({
        "bootstrap.servers": servers,
        "partitioner": "murmur2_random",
        "enable.idempotence": True,
        "linger.ms": 20,
        "batch.size": 1_000_000,
        "compression.type": "lz4",
        "queue.buffering.max.messages": 1_000_000,
        "queue.buffering.max.kbytes": 262_144,
    })  # fmt: skip
    send, value_of, tenant_of = producer.produce, load.value, load.tenant
    topics = {tenant: topic_of(tenant) for tenant in load.tenants}
    highest = -1
    for count, number in enumerate(numbers, 1):
        tenant = tenant_of(number)
        value = value_of(number)
        while True:
            try:
                send(topics[tenant], value, tenant)
                break
            except BufferError:
                producer.poll(0.05)
        highest = max(highest, number)
        if count % 10_000 == 0:
            producer.poll(0)
            advance(10_000)
    flush(producer)
    return highest + 1


def flush(producer: Producer) -> None:
    """Wait until Kafka has taken all."""
    if producer.flush(120):
        raise SystemExit("Kafka did not take the events within 120 s")


class Steady:
    """Sends new events, from number `first` on, at a steady rate. Times are on `time.monotonic`, one per event."""

    def __init__(self, servers: str, load: Load, topic: str, first: int, events_per_s: int) -> None:
        self._load, self._topic, self._rate = load, topic, events_per_s
        self.first = self.next = first
        self.sent_at: dict[int, float] = {}
        self.acknowledged_at: dict[int, float] = {}
        self._failed: KafkaError | None = None
        self._producer = Producer({
            "bootstrap.servers": servers,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "linger.ms": 0,
            "log_level": 0,  # the broker may end first
        })  # fmt: skip
        self._stopping = False
        self._threads = [Thread(target=self._send), Thread(target=self._acknowledge)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; what was sent is acknowledged then."""
        self._stopping = True
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        flush(self._producer)
        if self._failed is not None:
            raise SystemExit(f"Kafka refused an event: {self._failed}")

    def _send(self) -> None:
        started_at = time.monotonic()
        while not self._stopping:
            wait_s = started_at + (self.next - self.first) / self._rate - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            number, tenant = self.next, self._load.tenant(self.next)
            self.sent_at[number] = time.monotonic()
            self._producer.produce(
                self._topic, self._load.value(number), tenant, on_delivery=self._note(number)
            )
            self.next = number + 1

    def _acknowledge(self) -> None:
        while not self._stopping:
            self._producer.poll(0.1)  # calls what `_note` returns, as acknowledgements come

    def _note(self, number: int) -> Callable[[KafkaError | None, object], None]:
        def delivered(error: KafkaError | None, _message: object) -> None:
            self.acknowledged_at[number] = time.monotonic()
            self._failed = self._failed or error

        return delivered
