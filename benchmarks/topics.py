"""topics: a topic per tenant beside one shared topic, with the same events.

In turn, round by round: the raw loop and a cell on the shared topic, then a cell on the tenants' own topics. There the
flow has as many slots as `onceflow prepare` gives it without a shared topic.
"""

from statistics import median

from benchmarks.bench import bench
from benchmarks.cell import DEDUP, Cell, make_topics
from benchmarks.load import Load, Numbers
from benchmarks.report import Figure, Report, at_least
from benchmarks.throughput import Result, measure, measure_raw, rate, ratios
from benchmarks.watch import Watch
from onceflow.config import Events

FLOOR = 0.6


def run(servers: str | None, *, events: int, tenants: int, partitions: int, rounds: int) -> Report:
    """Measure."""
    load, numbers = Load(tenants), Numbers(0, events)
    results: list[Result] = []
    with bench(servers, [DEDUP.name]) as here:
        shared = here.topic("events", partitions)
        prefix = f"{here.kafka.prefix}own."
        own = [prefix + tenant.decode() for tenant in load.tenants]
        here.kafka.create(own, 1)
        distinct = here.produce(load, numbers, [shared])
        here.produce(load, numbers, own, lambda tenant: prefix + tenant.decode())
        read = {
            "shared topic": Events(shared=(shared,), tenant_prefix=""),
            "own topics": Events(shared=(), tenant_prefix=prefix),
        }
        for number in range(1, rounds + 1):
            results.append(measure_raw(here, number, shared, partitions, events, distinct))
            for what, inputs in read.items():
                watch = Watch(here.kafka, make_topics(here, DEDUP, inputs))
                name = f"{what.replace(' ', '-')}-{number}"
                process = Cell(here, name, DEDUP, inputs).start()
                results.append(measure(here, what, number, process, watch, events, distinct))
    found = ratios(results, "own topics", "shared topic")
    shown = f"{median(found):.2f} ({', '.join(f'{ratio:.2f}' for ratio in found)})"
    figures = [
        Figure(
            f"throughput, {tenants} topics, events/s",
            rate(results, "own topics"),
            f"{rate(results, 'own topics'):,.0f}",
        ),
        at_least(f"throughput, {tenants} topics, of the shared topic's", median(found), FLOOR, shown),
    ]
    asked = {"events": events, "tenants": tenants, "partitions": partitions, "rounds": rounds}
    return Report("topics", asked, figures, {"runs": results})
