"""The pipeline that had the incident: `python -m benchmarks.naive SERVERS TOPIC GROUP`, until it is killed.

A plain loop, as it is written first: take a batch, deal with its events side by side, try each again from its start if
anything goes wrong, commit the offsets. No event is lost. But nothing remembers what was done: not which events came
before, not what the model said, not whether the effect has happened; and the target is given no key.
"""

import asyncio
import sys

import msgspec
from confluent_kafka import Consumer, TopicPartition

from benchmarks.incident_world import Busy, act, ask

BATCH = 100
ATTEMPTS = 5


class _Data(msgspec.Struct):
    invoice: int


class _Event(msgspec.Struct):
    data: _Data


async def deal_with(number: int) -> None:
    """Plan, and act; all of it again if anything goes wrong."""
    asked = acted = 0
    for _ in range(ATTEMPTS):
        try:
            asked += 1
            planned = await ask(number, asked)
            acted += 1
            await act(number, planned, "", acted)
            return
        except (TimeoutError, Busy):
            continue
    raise SystemExit(f"event {number} fails again and again")


async def loop(servers: str, topic: str, group: str) -> None:
    """See above."""
    consumer = Consumer({
        "bootstrap.servers": servers,
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
    })  # fmt: skip
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign(
        [TopicPartition(topic, partition) for partition in partitions]
    )  # from where it has committed
    decode = msgspec.json.Decoder(_Event).decode
    while True:
        messages = [message for message in consumer.consume(BATCH, 0.1) if message.error() is None]
        if messages:
            events = [decode(message.value() or b"") for message in messages]
            await asyncio.gather(*(deal_with(event.data.invoice) for event in events))
            consumer.commit(asynchronous=False)


if __name__ == "__main__":
    asyncio.run(loop(*sys.argv[1:]))
