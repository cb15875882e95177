"""memory: what a cell needs while millions of events wait for it.

They are all in Kafka before the cell starts. Its resident memory is read from /proc every second from its first
completion on, until all are done or the time is over. It must be flat: the mean of the last third of the samples next
to that of the first third, after a warm-up.
"""

import time
from statistics import mean

from benchmarks.bench import bench
from benchmarks.cell import DEDUP, Cell, make_topics
from benchmarks.load import Load, Numbers
from benchmarks.report import Figure, Report, at_most
from benchmarks.watch import Watch, wait_until
from onceflow.config import Events

FLOOR = 1.1
START_S = 60


def run(
    servers: str | None, *, events: int, seconds: int, warm_up: int, tenants: int, partitions: int
) -> Report:
    """Measure."""
    samples: list[tuple[float, float, int]] = []
    with bench(servers, [DEDUP.name]) as here:
        topic = here.topic("events", partitions)
        distinct = here.produce(Load(tenants), Numbers(0, events), [topic])
        read = Events(shared=(topic,), tenant_prefix="")
        watch = Watch(here.kafka, make_topics(here, DEDUP, read))
        process = Cell(here, "cell", DEDUP, read).start()
        try:
            wait_until(watch.end, "the cell's first completion", START_S, process)
            began_at = time.monotonic()
            with here.advancing(f"the cell works, for {seconds} s at most", seconds) as advance:
                for second in range(seconds):
                    time.sleep(max(0.0, began_at + second - time.monotonic()))
                    process.must_run()
                    done = min(watch.end(), distinct)
                    samples.append((time.monotonic() - began_at, process.rss_mib(), done))
                    advance(1)
                    if done == distinct:
                        break
        finally:
            used = process.end()
            watch.close()
    after = [rss for at, rss, _ in samples if at >= warm_up]
    if len(after) < 3:
        raise SystemExit(
            f"all was done {warm_up} s after the start: use more --events, or a shorter --warm-up"
        )
    third = len(after) // 3
    growth = mean(after[-third:]) / mean(after[:third])
    figures = [
        at_most(f"memory with {events:,} events waiting, last third of first", growth, FLOOR, ""),
        Figure("memory with events waiting, peak", used.peak_rss_mib, f"{used.peak_rss_mib:.0f} MiB"),
    ]
    asked = {
        "events": events,
        "seconds": seconds,
        "warm_up": warm_up,
        "tenants": tenants,
        "partitions": partitions,
    }
    return Report("memory", asked, figures, {"samples": samples})
