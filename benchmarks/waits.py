"""waits: what many open waits cost, how soon a cell that is killed serves them again, and how fast signals end them.

Every run waits for a signal of its own. Memory is read before the first event and once all wait; then the cell is
killed and started again, while a signal for one wait of each slot lies there: all slots are served when these runs are
complete. Then all other signals are sent at once.
"""

import json
import time
from collections.abc import Iterable
from signal import SIGKILL

from confluent_kafka import Producer

from benchmarks.bench import Bench, bench
from benchmarks.cell import FLOWS, Cell, make_topics
from benchmarks.load import Load, Numbers, flush
from benchmarks.process import Process
from benchmarks.report import Figure, Report, at_least, at_most
from benchmarks.watch import Arrivals, Watch, wait_until
from onceflow.config import Events, Settings
from onceflow.config import Kafka as KafkaSettings
from onceflow.event import home_slot
from onceflow.observe.status import read_status

FLOW = FLOWS["waits"]
MEMORY_MIB, RESTART_S, SIGNALS_PER_S = 200, 10, 5_000
PATIENCE_S = 600


def run(servers: str | None, *, waits: int, tenants: int, partitions: int) -> Report:
    """Measure."""
    load = Load(tenants)
    with bench(servers, [FLOW.name]) as here:
        topic, signals = here.topic("events", partitions), here.topic("signals", partitions)
        read = Events(shared=(topic,), tenant_prefix="", signals=signals)
        completions = make_topics(here, FLOW, read)
        cell = Cell(here, "cell", FLOW, read)
        process = cell.start()
        try:
            _granted(cell, process)
            before = process.rss_mib()
            started_at = time.monotonic()
            distinct = here.produce(load, Numbers(0, waits), [topic])
            _all_finished(
                Settings(kafka=KafkaSettings(bootstrap_servers=here.kafka.servers), events=read), process
            )
            begun_s = time.monotonic() - started_at
            time.sleep(3)  # for what is freed after the load
            grown = process.rss_mib() - before
            process.end(SIGKILL)
            first = {home_slot(load.tenant(n).decode(), partitions): n for n in range(distinct)}.values()
            arrivals = Arrivals(here.kafka, completions)
            arrivals.start()
            try:
                killed_at = time.monotonic()
                process = cell.start()
                _send(here, load, signals, first)
                wait_until(
                    lambda: len(arrivals.found) >= len(first), "all slots are served", PATIENCE_S, process
                )
            finally:
                arrivals.stop()
            restart_s = max(each.at for each in arrivals.found) - killed_at
            watch, others = Watch(here.kafka, completions), {*range(distinct)}.difference(first)
            _send(here, load, signals, others)
            with here.advancing("signals", len(others)) as advance:
                watch.until(len(others), process, advance)
        finally:
            used = process.end()
        watch.close()
    rate = len(others) / ((watch.last_ms - watch.first_ms) / 1000)
    figures = [
        at_most(f"{distinct:,} waits open, memory more", grown, MEMORY_MIB, "MiB"),
        at_most(
            f"{distinct:,} waits open, restart until a wait of every slot is served",
            restart_s,
            RESTART_S,
            "s",
        ),
        at_least("signals that end waits, per second", rate, SIGNALS_PER_S, f"{rate:,.0f}"),
        Figure("waits, peak memory", used.peak_rss_mib, f"{used.peak_rss_mib:.0f} MiB"),
        Figure("waits begun per second", distinct / begun_s, f"{distinct / begun_s:,.0f}"),
    ]
    asked = {"waits": waits, "tenants": tenants, "partitions": partitions}
    return Report("waits", asked, figures, {})


def _granted(cell: Cell, process: Process) -> None:
    wait_until(
        lambda: any(line.get("message") == "slots granted" for line in cell.lines()),
        "slots are granted",
        PATIENCE_S,
        process,
    )


def _all_finished(settings: Settings, process: Process) -> None:
    """Wait until no record is unfinished: then all runs are in the ledger, and wait."""

    def so() -> bool:
        now = read_status(FLOW.name, settings)
        return now.unfinished == 0 and now.tally.first > 0

    wait_until(so, "all runs wait", PATIENCE_S, process, every_s=0.2)


def _send(here: Bench, load: Load, topic: str, numbers: Iterable[int]) -> None:
    settings = {"bootstrap.servers": here.kafka.servers, "partitioner": "murmur2_random", "linger.ms": 20}
    producer = Producer(settings)
    for number in numbers:
        tenant, event_id = load.tenant(number), f"evt-{number:09d}"
        signal = {"specversion": "1.0", "id": event_id, "source": "bench", "type": "bench.done"}
        signal |= {"tenant": tenant.decode(), "subject": event_id, "data": {"status": "done"}}  # type: ignore[dict-item]
        producer.produce(topic, json.dumps(signal), tenant)
        producer.poll(0)
    flush(producer)
