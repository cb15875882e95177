"""Fills a dedup window quickly: completions of events that no cell has seen, as a cell would have written them.

The records have the form, the key and the place that the product gives them, and tests/benchmarks compares them byte by
byte. They are not written by a cell, since that would take minutes; the cell then reads them as it reads any completion
and builds its view by itself, so the view is the real one.
"""

import time

from confluent_kafka import Producer

from benchmarks.bench import Bench
from benchmarks.load import SOURCE, Load, flush
from onceflow.event import home_slot, idempotency_key
from onceflow.stream.completion_values import utc_text
from onceflow.stream.letters import CLOUDEVENTS_JSON

_COMPLETION = (
    b'{"specversion":"1.0","id":"%b","source":"/onceflow/%b","type":"%b.completed","tenant":"%b",'
    b'"causesource":"erp/netsuite","causeid":"evt-%09d","time":"%b","data":%b}'
)


def completion(load: Load, number: int, flow: str, time_text: bytes) -> bytes:
    """The completion of event `number` by a flow whose agent has its name and returns the data."""
    tenant, data, name = load.tenant(number), load.data(number), flow.encode()
    key = idempotency_key(tenant.decode(), SOURCE, f"evt-{number:09d}", data)
    return _COMPLETION % (key.hex().encode(), name, name, tenant, number, time_text, data)


def fill(bench: Bench, load: Load, numbers: range, flow: str, topic: str) -> None:
    """Write the completions of these events into F.completions."""
    producer = Producer({
        "bootstrap.servers": bench.kafka.servers,
        "enable.idempotence": True,
        "linger.ms": 20,
        "batch.size": 1_000_000,
        "compression.type": "lz4",
        "queue.buffering.max.messages": 1_000_000,
        "queue.buffering.max.kbytes": 262_144,
    })  # fmt: skip
    before = bench.kafka.ends(topic)
    homes = {tenant: home_slot(tenant.decode(), len(before)) for tenant in load.tenants}
    now = utc_text(int(time.time() * 1000)).encode()
    with bench.advancing(f"filling the window with {len(numbers):,} keys", len(numbers)) as advance:
        for count, number in enumerate(numbers, 1):
            tenant = load.tenant(number)
            value = completion(load, number, flow, now)
            while True:
                try:
                    producer.produce(topic, value, tenant, homes[tenant], headers=CLOUDEVENTS_JSON)
                    break
                except BufferError:
                    producer.poll(0.05)
            if count % 10_000 == 0:
                producer.poll(0)
                advance(10_000)
        flush(producer)
    if (found := sum(bench.kafka.ends(topic).values()) - sum(before.values())) != len(numbers):
        raise SystemExit(f"Kafka holds {found} of the {len(numbers)} completions that were sent")
