"""The load: many tenants' events at a steady rate, with all that producers do wrong; and a record of what was sent.

About one record in ten is a copy of an earlier one: near or far, to the same place, to another partition (a wrong home,
as another client's partitioner would do) or, of a tenant with a topic of its own, to the shared one. One in fifty can
only be a dead letter. What is sent is decided by the seed alone; how much of it, by when the test says stop.
"""

import itertools
import json
import random
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tests.crash.checker import Event, Outcome, Sent, home

TYPE = "thing.happened"
FAILING = b'"fails":true'
DATA = ('{"n":%d,"text":"Zürich 🏔"}', '{ "n" : %d }', "[%d]", '{"n":%d,"big":123456789012345678901234567890}')
TOO_LARGE = 1_000_001  # bytes of value and headers


def outcome(event: Event) -> Outcome:
    """What the agents of these tests make of an event."""
    return Outcome("asked-to" if FAILING in event.data else "")


class Record(NamedTuple):
    """What is sent, and where to; partition -1 = the tenant's home there."""

    topic: str
    partition: int
    key: str
    value: bytes | None
    headers: list[tuple[str, bytes]]
    event: Event | None
    reason: str


def encode(event: Event, kind: str = TYPE) -> bytes:
    """An event in structured mode, its data byte for byte."""
    attributes = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": kind,
        "tenant": event.tenant,
    }
    text = json.dumps(attributes, separators=(",", ":")).encode()
    return text[:-1] + b',"data":' + event.data + b"}" if event.data else text


class Mix:
    """Decides, by its seed, what is sent next."""

    def __init__(
        self, seed: int, shared: str, partitions: int, own: Sequence[str], own_prefix: str, tenants: int
    ) -> None:
        self._random = random.Random(seed)
        self._shared, self._partitions = shared, partitions
        self._own_prefix = own_prefix
        self._own = set(own)
        self._tenants = [*own, *(f"tenant-{n}.{n % 7}" for n in range(tenants))]
        self._events: list[Record] = []
        self._numbers = itertools.count(1)

    def next(self) -> Record:
        dice = self._random.random()
        if dice < 0.02:
            return self._bad()
        if dice < 0.12 and self._events:
            return self._copy()
        record = self._new()
        self._events.append(record)
        return record

    def _new(self) -> Record:
        choose = self._random
        number = next(self._numbers)
        tenant = choose.choice(self._tenants)
        data = (choose.choice(DATA) % number).encode()
        same_id = choose.random() < 0.01 and number > 10  # other data: an event of its own
        event = Event(tenant, "erp/netsuite", f"evt-{number - 1 if same_id else number}", data)
        if choose.random() < 0.01:
            event = event._replace(data=b'{"n":%d,%s}' % (number, FAILING))
        elif choose.random() < 0.01:
            event = event._replace(data=b"")
        if tenant in self._own:
            return Record(self._own_prefix + tenant, 0, "", encode(event), [], event, "")
        if choose.random() < 0.1:
            attributes = {
                "specversion": "1.0",
                "id": event.id,
                "source": event.source,
                "type": TYPE,
                "tenant": tenant,
            }
            headers = [(f"ce_{name}", value.encode()) for name, value in attributes.items()]
            headers.append(("onceflow-origin", b"made-up/0/0"))
            return Record(self._shared, -1, tenant, event.data or None, headers, event, "")
        return Record(self._shared, -1, tenant, encode(event), [], event, "")

    def _copy(self) -> Record:
        choose = self._random
        far = choose.random() < 0.5
        record = choose.choice(self._events if far else self._events[-200:])
        where = choose.random()
        if where < 0.5:
            return record
        event = record.event
        assert event is not None
        if where < 0.8:
            elsewhere = choose.randrange(self._partitions)
            return record._replace(topic=self._shared, partition=elsewhere, key=event.tenant)
        return record._replace(topic=self._shared, partition=-1, key=event.tenant)

    def _bad(self) -> Record:
        choose = self._random
        number = next(self._numbers)
        tenant = choose.choice(self._tenants)
        event = Event(tenant, "erp/netsuite", f"bad-{number}", b'{"n":%d}' % number)
        record = Record(self._shared, choose.randrange(self._partitions), tenant, b"", [], None, "")
        kind = choose.randrange(8)
        if kind == 0:
            return record._replace(value=None, reason="undecodable")
        if kind == 1:
            return record._replace(value=encode(event) + b"}", reason="undecodable")
        if kind == 2:
            return record._replace(value=b'{"text":"\xff\xfe"}', reason="undecodable")
        if kind == 3:
            return record._replace(value=encode(event._replace(id="")), reason="invalid")
        if kind == 4:
            return record._replace(value=b"[1,2,3]", reason="invalid")
        if kind == 5:
            return record._replace(value=encode(event, "nobody.asked"), reason="unknown-type")
        if kind == 6 and number % 20 == 0:
            return record._replace(value=encode(event) + b" " * TOO_LARGE, reason="too-large")
        if self._own:
            topic = self._own_prefix + min(self._own)
            wrong = encode(event._replace(tenant="somebody-else"))
            return record._replace(topic=topic, partition=0, value=wrong, reason="wrong-tenant")
        return record._replace(value=b"{}", reason="invalid")


class Load:
    """Sends a mix on a thread of its own until `stop`; `sent` is what Kafka has acknowledged."""

    def __init__(self, bootstrap_servers: str, mix: Mix, partitions: int, *, events_per_s: int) -> None:
        self._mix, self._partitions = mix, partitions
        self._rate = events_per_s
        self._producer = Producer({
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            "linger.ms": 5,
            "message.timeout.ms": 120_000,
            "message.max.bytes": 2_000_000,
            "log_level": 0,
        })  # fmt: skip
        self.sent: list[Sent] = []
        self.errors: list[KafkaError] = []
        self._listed_by = time.monotonic() + 30  # s; by when every partition must be known
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> list[Sent]:
        """End the load; return all that was sent, once every record has been acknowledged."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(150)
            assert not self._thread.is_alive(), "the producer still waits for Kafka"
        self.flush()
        assert not self.errors, f"Kafka refused input: {self.errors[:3]}"
        return self.sent

    def abandon(self) -> None:
        """End the load whatever it still waits for."""
        self._stopping.set()
        self._producer.purge()
        if self._thread.is_alive():
            self._thread.join(150)

    def send(self, record: Record) -> None:
        """Send one record more."""

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self.errors.append(error)
                return
            origin = f"{message.topic()}/{message.partition()}/{message.offset()}"
            self.sent.append(Sent(origin, record.value, record.event, record.reason))

        partition = home(record.key, self._partitions) if record.partition < 0 else record.partition
        key, headers = record.key or None, list(record.headers)
        while True:
            try:
                self._producer.produce(
                    record.topic, record.value, key, partition, on_delivery=delivered, headers=headers
                )
                return
            except KafkaException as error:
                # A broker may not list partitions yet that were added a moment ago.
                if (
                    error.args[0].code() != KafkaError._UNKNOWN_PARTITION
                    or time.monotonic() > self._listed_by
                ):
                    raise
            self._producer.list_topics(record.topic, timeout=5)
            self._producer.poll(0.05)

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged."""
        assert self._producer.flush(120) == 0, "the producer still waits for Kafka"

    def _run(self) -> None:
        started_at, count = time.monotonic(), 0
        while not self._stopping.wait(0.01):
            due = (time.monotonic() - started_at) * self._rate
            while count < due:
                self.send(self._mix.next())
                count += 1
            self._producer.poll(0)
        self.flush()
