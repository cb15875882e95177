"""latency: from "Kafka has acknowledged the event" to "a reader of committed records has its completion".

One process sends new events at a steady rate and reads the completions, each on a thread of its own and all on one
clock. The time from the call of `produce` is reported too: it includes the way into Kafka.
"""

import time

from benchmarks.bench import Bench, bench
from benchmarks.cell import FLOWS, Cell, make_topics
from benchmarks.load import Load, Steady
from benchmarks.process import Process
from benchmarks.report import Figure, Report, at_most, brief
from benchmarks.watch import Arrivals, wait_until
from onceflow.config import Events

SHARES = (0.5, 0.9, 0.99, 0.999, 1.0)
FLOORS_MS = {0.5: 30, 0.99: 120}
START_S = 60
SETTLED_S = 30


def run(
    servers: str | None,
    *,
    events_per_s: int,
    seconds: int,
    warm_up: int,
    tenants: int,
    partitions: int,
    agent: str = "dedup",
) -> Report:
    """Measure."""
    load, flow = Load(tenants), FLOWS[agent]
    with bench(servers, [flow.name]) as here:
        topic = here.topic("events", partitions)
        read = Events(shared=(topic,), tenant_prefix="")
        completions = make_topics(here, flow, read)
        process = Cell(here, "cell", flow, read).start()
        steady = Steady(here.kafka.servers, load, topic, 0, events_per_s)
        arrivals = Arrivals(here.kafka, completions)
        try:
            arrivals.start()
            steady.start()
            wait_until(lambda: arrivals.found, "the cell's first completion", START_S, process)
            rest(here, "warming up", warm_up, process)
            first = steady.next
            rest(here, f"{events_per_s} events/s", seconds, process)
            after = steady.next
            steady.stop()
            wait_until(
                lambda: len(arrivals.found) >= len(steady.sent_at), "all completions", SETTLED_S, process
            )
        finally:
            steady.stop()
            arrivals.stop()
            used = process.end()
    numbers = range(first, after)
    arrived_at = {arrival.number: arrival.at for arrival in arrivals.found}
    acknowledged = sorted((arrived_at[n] - steady.acknowledged_at[n]) * 1000 for n in numbers)
    sent = sorted((arrived_at[n] - steady.sent_at[n]) * 1000 for n in numbers)
    figures = []
    for share in SHARES:
        name = "latency" if agent == "dedup" else f"latency, agent {agent}"
        what = f"{name}, largest" if share == 1 else f"{name}, p{share * 100:g}"
        value = quantile(acknowledged, share)
        if share in FLOORS_MS and agent == "dedup":
            figures.append(at_most(what, value, FLOORS_MS[share], "ms"))
        else:
            figures.append(Figure(what, value, brief(value, "ms")))
    details = {
        "events": len(numbers),
        "events_per_s": len(numbers) / (steady.sent_at[after - 1] - steady.sent_at[first]),
        "from_acknowledged_ms": {str(share): quantile(acknowledged, share) for share in SHARES},
        "from_sent_ms": {str(share): quantile(sent, share) for share in SHARES},
        "cell_cpu_s": used.cpu_s,
        "cell_peak_rss_mib": used.peak_rss_mib,
    }
    asked = {
        "events_per_s": events_per_s,
        "seconds": seconds,
        "warm_up": warm_up,
        "tenants": tenants,
        "partitions": partitions,
        "agent": agent,
    }
    return Report("latency" if agent == "dedup" else f"latency-{agent}", asked, figures, details)


def quantile(ordered: list[float], share: float) -> float:
    """The smallest value that this share of the values doesn't exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def rest(here: Bench, what: str, seconds: int, process: Process) -> None:
    """Let so many seconds pass, while the process runs."""
    with here.advancing(what, seconds) as advance:
        for _ in range(seconds):
            time.sleep(1)
            process.must_run()
            process.rss_mib()
            advance(1)
