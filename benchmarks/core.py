"""How fast a cell deduplicates and completes events, beside a raw loop that does the least the same job can take.

Both read the same events from the same Kafka, in turn, round by round, each with a consumer group and output topics of
its own:
- `raw`: one process, confluent-kafka alone: batches consumed, decoded, deduplicated in a dict, completions produced,
  offsets sent and a transaction committed every 10,000 events. What it knows dies with it; nothing fences it.
- `onceflow`: one cell as users start it, `python -m bytewax.run flows.dedup`, with default settings.

A run's figure is measured from outside, on the broker's clock: the completions' LogAppendTime, the first to the last
as a `read_committed` reader sees them; start-up and end are left out for both. The rate is the input records (copies
too) that were dealt with between the two, per second. Every run's output is counted: one completion per distinct event.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public there, but not re-exported for checkers
    AdminClient,
    NewTopic,
)
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from onceflow import devkafka
from onceflow.config import Events, Settings
from onceflow.config import Kafka as KafkaSettings
from onceflow.stream.cluster import Cluster, KafkaAway
from onceflow.stream.topics import prepare

ROOT = Path(__file__).parents[1]
COPIES = 0.1
COPY_WITHIN = 100_000  # events between a copy and its first, at most
COMMIT_EVERY = 10_000
STALLED_S = 60.0  # no completion for so long ends a run as failed
FLOWS = {"dedup": "dedup", "steps": "bench-steps"}
MODULES = {"dedup": "flows.dedup", "steps": "benchmarks.steps"}
RETENTION = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1", "retention.bytes": "-1"}

SETTLING_S = 5.0  # a commit returns before its records are below the last stable offset

Advance = Callable[[int], None]


class Asked(NamedTuple):
    """What to measure."""

    events: int
    tenants: int
    partitions: int
    rounds: int
    agent: str


class Result(NamedTuple):
    """One run. Seconds are between the first and the last completion; CPU and memory are the process's whole life."""

    name: str
    round: int
    events: int
    completions: int
    seconds: float
    events_per_s: float
    cpu_s: float
    cpu_us_per_event: float
    peak_rss_mib: float


# --- the events ------------------------------------------------------------------------------------------


def events(asked: Asked, seed: int = 7) -> Iterator[tuple[str, bytes]]:
    """Tenant and CloudEvent, some 290 bytes each; every tenth is a copy of one at most COPY_WITHIN before it."""
    choose = random.Random(seed)
    recent: list[tuple[str, bytes]] = []
    filler = "x" * 70
    for number in range(asked.events):
        if recent and choose.random() < COPIES:
            yield recent[choose.randrange(max(0, len(recent) - COPY_WITHIN), len(recent))]
            continue
        tenant = f"tenant-{choose.randrange(asked.tenants):04d}"
        event = {
            "specversion": "1.0",
            "id": f"evt-{number:09d}",
            "source": "erp/netsuite",
            "type": "invoice.received",
            "tenant": tenant,
            "time": "2026-01-01T00:00:00Z",
            "data": {"invoice": number, "amount": number % 9973, "currency": "EUR", "text": filler},
        }
        recent.append((tenant, msgspec.json.encode(event)))
        if len(recent) > 2 * COPY_WITHIN:
            del recent[:COPY_WITHIN]
        yield recent[-1]


def produce(servers: str, topic: str, asked: Asked, advance: Advance) -> int:
    """Fill the input topic; return how many distinct events it holds."""
    producer = Producer({
        "bootstrap.servers": servers,
        "partitioner": "murmur2_random",
        "linger.ms": 20,
        "batch.size": 1_000_000,
        "compression.type": "lz4",
        "queue.buffering.max.messages": 1_000_000,
    })  # fmt: skip
    distinct = set()
    for number, (tenant, value) in enumerate(events(asked)):
        distinct.add(value)
        while True:
            try:
                producer.produce(topic, value, tenant)
                break
            except BufferError:
                producer.poll(0.1)
        if number % 5_000 == 0:
            producer.poll(0)
            advance(5_000)
    if producer.flush(60):
        raise SystemExit("Kafka did not take the events within 60 s")
    return len(distinct)


# --- the raw loop ----------------------------------------------------------------------------------------


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


def raw(servers: str, topic: str, output: str, group: str, total: int) -> None:
    """The raw loop, until it has read `total` events."""
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


# --- measuring -------------------------------------------------------------------------------------------


class Watch:
    """Reads a topic as `read_committed` shows it: how many records, and the broker's time of the first and last.

    To leave the machine to what is measured, it only asks for the topic's end until nearly all must be there.
    """

    def __init__(self, servers: str, topic: str, partitions: int) -> None:
        self._cluster = Cluster({"bootstrap.servers": servers})
        self._partitions = [(topic, partition) for partition in range(partitions)]
        self._consumer = Consumer({
            "bootstrap.servers": servers,
            "group.id": "watch",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 500,
            "queued.max.messages.kbytes": 16_384,
        })  # fmt: skip
        self._consumer.assign([TopicPartition(topic, partition, 0) for partition in range(partitions)])
        self.count, self.first_ms, self.last_ms = 0, 0, 0

    def until(self, wanted: int, running: Callable[[], bool], advance: Advance) -> None:
        """Wait until so many records are there, and count them; SystemExit where they don't come."""
        moved_at, shown = time.monotonic(), 0
        while self.count < wanted:
            end = self._end()
            if end >= wanted:
                self._read()
            elif end < wanted:
                time.sleep(0.25)
            if end > shown:
                advance(min(end, wanted) - shown)
                shown, moved_at = end, time.monotonic()
            elif time.monotonic() - moved_at > (STALLED_S if running() else SETTLING_S):
                raise SystemExit(f"only {max(end, self.count)} of {wanted} completions came; see the log")

    def _end(self) -> int:
        """The sum of the last stable offsets: records, and a few markers of transactions."""
        return sum(self._cluster.end_offsets(self._partitions, stable=True).values())

    def _read(self) -> None:
        while messages := [m for m in self._consumer.consume(20_000, 1.0) if m.error() is None]:
            times = [message.timestamp()[1] for message in messages]
            self.first_ms = min(self.first_ms or times[0], *times)
            self.last_ms = max(self.last_ms, *times)
            self.count += len(messages)

    def close(self) -> None:
        self._consumer.close()


def measure(
    name: str,
    number: int,
    command: list[str],
    environment: dict[str, str],
    log: Path,
    watch: Watch,
    asked: Asked,
    distinct: int,
    advance: Advance,
) -> Result:
    """Run a process until its output is complete; what it did and what it took."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
        )

    def running() -> bool:  # without reaping it: what it used is asked for at its end
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    try:
        watch.until(distinct, running, advance)
    except SystemExit as error:
        raise SystemExit(f"{name}: {error}\n{log.read_text()[-2_000:]}") from None
    finally:
        os.kill(
            process.pid, signal.SIGTERM
        )  # the raw loop may have ended by itself; it isn't reaped, so its id is
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.close()
    if watch.count != distinct:
        raise SystemExit(f"{name}: {watch.count} completions for {distinct} distinct events")
    seconds = (watch.last_ms - watch.first_ms) / 1000
    cpu_s = used.ru_utime + used.ru_stime
    return Result(
        name,
        number,
        asked.events,
        watch.count,
        seconds,
        asked.events / seconds,
        cpu_s,
        cpu_s / asked.events * 1e6,
        used.ru_maxrss / 1024,
    )


# --- the runs --------------------------------------------------------------------------------------------


class Kafka:
    """The topics of the runs on one Kafka."""

    def __init__(self, servers: str, asked: Asked) -> None:
        self.servers, self._asked = servers, asked
        self._admin = AdminClient({"bootstrap.servers": servers})
        self.input = f"bench-{os.getpid()}-events"

    def topic(self, name: str) -> None:
        """Make a topic."""
        new = NewTopic(name, self._asked.partitions, config=RETENTION)
        self._admin.create_topics([new])[name].result(30)
        cluster = Cluster({"bootstrap.servers": self.servers})
        partitions = [(name, partition) for partition in range(self._asked.partitions)]
        deadline = time.monotonic() + 30
        while True:
            try:
                cluster.end_offsets(partitions)
                return
            except (KafkaAway, KafkaException):  # it has no leader yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def without(self, flow: str) -> None:
        """Delete what earlier runs of a flow left: its topics are its memory."""
        left = [name for name in self._topics() if name.startswith(f"{flow}.")]
        if left:
            for deleted in self._admin.delete_topics(left).values():
                deleted.result(30)
            while set(left) & set(self._topics()):
                time.sleep(0.1)

    def clean(self) -> None:
        """Delete what the runs made."""
        ours = [name for name in self._topics() if name.startswith(f"bench-{os.getpid()}-")]
        for deleted in self._admin.delete_topics(ours).values():
            deleted.result(30)

    def _topics(self) -> list[str]:
        return list(self._admin.list_topics(timeout=30).topics)


def run_raw(
    kafka: Kafka, number: int, directory: Path, asked: Asked, distinct: int, advance: Advance
) -> Result:
    """One run of the raw loop, in a process of its own."""
    output = f"bench-{os.getpid()}-raw-{number}"
    kafka.topic(output)
    arguments = ["raw", kafka.servers, kafka.input, output, output, str(asked.events)]
    command = [sys.executable, "-m", "benchmarks", *arguments]
    watch = Watch(kafka.servers, output, asked.partitions)
    return measure(
        "raw", number, command, {}, directory / f"raw-{number}.log", watch, asked, distinct, advance
    )


def run_onceflow(
    kafka: Kafka, number: int, directory: Path, asked: Asked, distinct: int, advance: Advance
) -> Result:
    """One run of a cell, its state and its flow's topics new."""
    flow = FLOWS[asked.agent]
    kafka.without(flow)
    settings = Settings(
        kafka=KafkaSettings(bootstrap_servers=kafka.servers), events=Events(shared=(kafka.input,))
    )
    prepare(flow, Cluster(settings.kafka.properties()), settings)
    environment = {
        "ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS": kafka.servers,
        "ONCEFLOW_EVENTS__SHARED": kafka.input,
        "ONCEFLOW_STATE_DIR": str(directory / f"state-{number}"),
    }
    recovery = directory / f"recovery-{number}"
    command = [
        sys.executable,
        "-m",
        "bytewax.run",
        MODULES[asked.agent],
        "-r",
        str(recovery),
        "-s",
        "1",
        "-b",
        "0",
    ]
    watch = Watch(kafka.servers, f"{flow}.completions", asked.partitions)
    log = directory / f"onceflow-{number}.log"
    return measure("onceflow", number, command, environment, log, watch, asked, distinct, advance)


def compare(servers: str, directory: Path, asked: Asked, console: Console) -> list[Result]:
    """All runs, in turn."""
    kafka = Kafka(servers, asked)
    kafka.topic(kafka.input)
    results = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:

        def advancing(what: str, total: int) -> Advance:
            task = progress.add_task(what, total=total)
            return lambda count: progress.advance(task, count)

        distinct = produce(servers, kafka.input, asked, advancing("producing events", asked.events))
        for number in range(1, asked.rounds + 1):
            for name, run in (("raw", run_raw), ("onceflow", run_onceflow)):
                advance = advancing(f"round {number}: {name}", distinct)
                results.append(run(kafka, number, directory, asked, distinct, advance))
                progress.console.print(f"round {number}: {name} {results[-1].events_per_s:,.0f} events/s")
    kafka.clean()
    return results


def ratios(results: list[Result]) -> list[float]:
    """onceflow's rate over the raw loop's, round by round."""
    rates = {(result.name, result.round): result.events_per_s for result in results}
    return [rates["onceflow", number] / rate for (name, number), rate in rates.items() if name == "raw"]


def table(results: list[Result]) -> Table:
    """The results as a table."""
    shown = Table("round", "what", "events/s", "seconds", "CPU s", "CPU µs/event", "peak RSS MiB", box=None)
    for result in results:
        shown.add_row(
            str(result.round),
            result.name,
            f"{result.events_per_s:,.0f}",
            f"{result.seconds:.1f}",
            f"{result.cpu_s:.1f}",
            f"{result.cpu_us_per_event:.1f}",
            f"{result.peak_rss_mib:.0f}",
        )
    return shown


def main() -> None:
    """`python -m benchmarks core …`."""
    if sys.argv[1:2] == ["raw"]:  # what a run of the raw loop starts
        servers, topic, output, group, total = sys.argv[2:]
        raw(servers, topic, output, group, int(total))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    core = parser.add_subparsers(required=True).add_parser("core", help="a cell beside a raw loop, in turn")
    core.add_argument("--events", type=int, default=400_000)
    core.add_argument("--tenants", type=int, default=340)
    core.add_argument("--partitions", type=int, default=16, help="of the input, and so the flow's slots")
    core.add_argument("--rounds", type=int, default=2)
    core.add_argument("--agent", choices=sorted(FLOWS), default="dedup")
    core.add_argument("--kafka", metavar="HOST:PORT", help="a Kafka that runs; unset: one is started")
    core.add_argument("--json", type=Path, metavar="FILE", help="where the figures go, too")
    given = parser.parse_args()
    asked = Asked(given.events, given.tenants, given.partitions, given.rounds, given.agent)
    console = Console()
    directory = Path(tempfile.mkdtemp(prefix="onceflow-bench-"))
    servers = given.kafka
    try:
        if servers is None:
            servers = devkafka.start(directory / "kafka", progress=console.print).bootstrap_servers
        results = compare(servers, directory, asked, console)
    except SystemExit:
        console.print(f"logs are in {directory}")
        raise
    finally:
        if given.kafka is None:
            devkafka.stop(directory / "kafka")
            shutil.rmtree(directory / "kafka", ignore_errors=True)
    shutil.rmtree(directory)
    found = ratios(results)
    console.print(table(results))
    console.print(
        f"onceflow : raw = {', '.join(f'{ratio:.2f}' for ratio in found)}; median {statistics.median(found):.2f}"
    )
    if given.json is not None:
        report: dict[str, Any] = {
            "asked": asked._asdict(),
            "cores": os.cpu_count(),
            "python": sys.version.split()[0],
            "runs": [result._asdict() for result in results],
            "ratios": found,
            "ratio_median": statistics.median(found),
        }
        given.json.write_text(json.dumps(report, indent=2) + "\n")
