"""core: how fast a cell deduplicates and completes a day of events, beside the raw loop.

Both read the same events from the same topic, in turn, round by round, each with a group and output topics of its own.
"""

from statistics import median

from benchmarks.bench import bench
from benchmarks.cell import FLOWS, Cell, make_topics
from benchmarks.load import Load, Numbers
from benchmarks.report import Figure, Report, at_least, at_most
from benchmarks.throughput import Result, measure, measure_raw, rate, ratios
from benchmarks.watch import Watch
from onceflow.config import Events

FLOORS = {"dedup": 0.7, "pure": 0.5}
RSS_MIB = 1024


def run(
    servers: str | None, *, events: int, tenants: int, partitions: int, rounds: int, agent: str
) -> Report:
    """Measure."""
    flow = FLOWS[agent]
    results: list[Result] = []
    with bench(servers, [flow.name]) as here:
        topic = here.topic("events", partitions)
        distinct = here.produce(Load(tenants), Numbers(0, events), [topic])
        read = Events(shared=(topic,), tenant_prefix="")
        for number in range(1, rounds + 1):
            results.append(measure_raw(here, number, topic, partitions, events, distinct))
            watch = Watch(here.kafka, make_topics(here, flow, read))
            process = Cell(here, f"cell-{number}", flow, read).start()
            results.append(measure(here, "onceflow", number, process, watch, events, distinct))
    found = ratios(results, "onceflow", "raw")
    name = f"throughput, agent {agent}"
    shown = f"{median(found):.2f} ({', '.join(f'{ratio:.2f}' for ratio in found)})"
    figures = [Figure(f"{name}, events/s", rate(results, "onceflow"), f"{rate(results, 'onceflow'):,.0f}")]
    if agent in FLOORS:
        figures.append(at_least(f"{name}, of raw's", median(found), FLOORS[agent], shown))
    peak = max(result.peak_rss_mib for result in results if result.what == "onceflow")
    figures.append(at_most(f"peak memory, agent {agent}", peak, RSS_MIB, "MiB"))
    asked = {"events": events, "tenants": tenants, "partitions": partitions, "rounds": rounds, "agent": agent}
    return Report("core" if agent == "dedup" else f"core-{agent}", asked, figures, {"runs": results})
