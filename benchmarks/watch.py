"""What comes out of a flow, as a reader of committed records finds it."""

import time
from collections.abc import Callable
from threading import Thread
from typing import NamedTuple

import msgspec
from confluent_kafka import Consumer, TopicPartition

from benchmarks.kafka import Kafka
from benchmarks.load import Advance
from benchmarks.process import Process

STALLED_S = 120.0  # no completion for so long ends a benchmark as failed
START_S = 1200.0  # but the first one may take longer: a view of 16 M keys is built before
SETTLING_S = 5.0  # a commit returns before its records are below the last stable offset
_LOOK_EVERY_S = 0.25


class Watch:
    """Counts what a topic gets from now on, and notes the broker's time of the first and the last record.

    To leave the machine to what is measured, it only asks for the topic's end until nearly all must be there.
    """

    def __init__(self, kafka: Kafka, topic: str) -> None:
        self._kafka, self._topic = kafka, topic
        starts = kafka.ends(topic)
        self._before = sum(starts.values())
        self._consumer = Consumer({
            "bootstrap.servers": kafka.servers,
            "group.id": "bench-watch",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 500,
            "queued.max.messages.kbytes": 16_384,
        })  # fmt: skip
        self._consumer.assign([TopicPartition(*at, offset) for at, offset in starts.items()])
        self.count, self.first_ms, self.last_ms = 0, 0, 0

    def until(self, wanted: int, process: Process, advance: Advance) -> None:
        """Wait until so many records are there, and count them; SystemExit where they don't come."""
        moved_at, shown = time.monotonic(), 0
        while self.count < wanted:
            process.rss_mib()
            end = self.end()
            if end >= wanted:
                self.read()
            else:
                time.sleep(_LOOK_EVERY_S)
            if end > shown:
                advance(min(end, wanted) - min(shown, wanted))
                shown, moved_at = end, time.monotonic()
            elif time.monotonic() - moved_at > _patience_s(process, begun=shown > 0):
                raise SystemExit(
                    f"only {max(end, self.count)} of {wanted} completions came: {process.tail()}"
                )

    def end(self) -> int:
        """How many offsets are stable since the beginning: records, and a few markers of transactions."""
        return sum(self._kafka.ends(self._topic, stable=True).values()) - self._before

    def read(self) -> None:
        """Count all that is there."""
        while messages := [m for m in self._consumer.consume(20_000, 1.0) if m.error() is None]:
            times = [message.timestamp()[1] for message in messages]
            self.first_ms = min(self.first_ms or times[0], *times)
            self.last_ms = max(self.last_ms, *times)
            self.count += len(messages)

    def values(self) -> list[bytes]:
        """All that is there, from where it was not read yet."""
        found: list[bytes] = []
        while messages := [m for m in self._consumer.consume(20_000, 1.0) if m.error() is None]:
            found += [message.value() or b"" for message in messages]
        return found

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()


class _Cause(msgspec.Struct):
    causeid: str


def _patience_s(process: Process, *, begun: bool) -> float:
    if not process.running():
        return SETTLING_S
    return STALLED_S if begun else START_S


class Arrival(NamedTuple):
    """A completion that could be read: its event's number, when (on `time.monotonic`), and in which slot."""

    number: int
    at: float
    slot: int


class Arrivals:
    """Notes each completion as it comes, on a thread of its own."""

    def __init__(self, kafka: Kafka, topic: str) -> None:
        self._consumer = Consumer({
            "bootstrap.servers": kafka.servers,
            "group.id": "bench-arrivals",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            # What is measured is the cell, so the reader must not wait for more to come. A fetch that waits is answered
            # as soon as there is anything; shorter waits show nothing earlier, and cost the broker a quarter of a core.
            "fetch.min.bytes": 1,
            "fetch.wait.max.ms": 100,
            "fetch.queue.backoff.ms": 1,
        })  # fmt: skip
        ends = kafka.ends(topic)
        self._consumer.assign([TopicPartition(*at, offset) for at, offset in ends.items()])
        self.found: list[Arrival] = []
        self._stopping = False
        self._thread = Thread(target=self._run)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping = True
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        decode = msgspec.json.Decoder(_Cause).decode
        while not self._stopping:
            message = self._consumer.poll(0.1)
            if message is not None and message.error() is None:
                number = int(decode(message.value() or b"").causeid.removeprefix("evt-"))
                self.found.append(Arrival(number, time.monotonic(), message.partition() or 0))
        self._consumer.close()


def wait_until(
    condition: Callable[[], object], what: str, timeout_s: float, *processes: Process, every_s: float = 0.05
) -> None:
    """Wait for a condition; SystemExit after the deadline, or if one of the processes ends meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        for process in processes:
            process.must_run()
        if time.monotonic() > deadline:
            logs = "\n".join(process.tail() for process in processes)
            raise SystemExit(f"not within {timeout_s:g} s: {what}\n{logs}")
        time.sleep(every_s)
