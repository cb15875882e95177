"""Reading partitions of the flow's own topics from where one stands up to an end known beforehand."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from onceflow.stream.cluster import Partition, by_partition

log = logging.getLogger(__name__)

BATCH = 1_000  # `consume` waits until it has so many or its time is over
_POLL_S = 0.05


def read_to_end(
    consumer: Consumer,
    starts: Mapping[Partition, int | None],
    ends: Mapping[Partition, int],
    *,
    stalled: Callable[[float], None],
    wanted: Callable[[], bool],
    remaining: Callable[[int], None] = lambda _: None,
) -> Iterator[list[Message]]:
    """Yield batches of committed records from `starts` (None: the beginning) up to `ends`, both offsets.

    Waits where a transaction is open below an end, and calls `stalled` with the seconds since the last
    progress. Stops early when it is no longer `wanted`. The consumer must have `enable.partition.eof`, and be
    of no group's subscription.
    """
    positions = {at: -1 if starts[at] is None else starts[at] for at in ends}
    waiting = {at for at, end in ends.items() if end > 0 and (positions[at] or 0) < end}
    consumer.assign(
        [
            TopicPartition(*at, OFFSET_BEGINNING if (start := starts[at]) is None else start)
            for at in sorted(waiting)
        ]
    )
    moved_at = time.monotonic()
    try:
        while waiting and wanted():
            messages, ended = _parted(consumer.consume(BATCH, _POLL_S))
            for at, read in by_partition(messages):
                positions[at] = (read[-1].offset() or 0) + 1
            for at, offset in ended:
                positions[at] = max(positions[at] or 0, offset)
            before = len(waiting)
            waiting = {at for at in waiting if (positions[at] or 0) < ends[at]}
            if messages or len(waiting) < before:
                moved_at = time.monotonic()
            elif waiting:
                stalled(time.monotonic() - moved_at)
            remaining(sum(ends[at] - max(positions[at] or 0, 0) for at in waiting))
            if messages:
                yield messages
    finally:
        consumer.unassign()


def _parted(consumed: list[Message]) -> tuple[list[Message], list[tuple[Partition, int]]]:
    """Records, and ends that can be read now: past markers and aborted records, but not past an open transaction."""
    messages = [message for message in consumed if message.error() is None]
    ended = []
    for message in consumed if len(messages) < len(consumed) else ():
        error = message.error()
        if error is None:
            continue
        if error.code() == KafkaError._PARTITION_EOF:
            ended.append(((message.topic() or "", message.partition() or 0), message.offset() or 0))
        elif not error.retriable() and error.code() not in _PASSING:
            raise KafkaException(error)
    return messages, ended


_PASSING = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT)
