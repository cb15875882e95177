"""growth: what becomes of the throughput with more keys in the window, and with more tenants.

Keys: one flow whose window is filled up further and further. Before each step its completions are brought to so many,
the cell builds its view of them, and deals with new events, a tenth of them copies of *any* event in the window.
Tenants: a flow with an empty window and so many tenants, the k-th with 1/k of the first one's events. Beside each run
the raw loop, which starts with an empty memory each time: it shows what else the machine did.
"""

from statistics import median

from benchmarks.bench import Bench, bench
from benchmarks.cell import DEDUP, Cell, make_topics
from benchmarks.fill import fill
from benchmarks.load import Load, Numbers
from benchmarks.report import Figure, Report, at_least
from benchmarks.throughput import Result, measure, measure_raw, rate, ratios
from benchmarks.watch import Watch
from onceflow.config import Events

FLOOR = 0.6


def run(
    servers: str | None, *, events: int, keys: list[int], tenants: list[int], partitions: int, rounds: int
) -> Report:
    """Measure."""
    with bench(servers, [DEDUP.name]) as here:
        by_keys = with_keys(here, events, sorted(keys), partitions, rounds)
        by_tenants = with_tenants(here, events, sorted(tenants), partitions, rounds)
    figures = [*_figures("keys", by_keys), *_figures("tenants", by_tenants)]
    asked = {"events": events, "keys": keys, "tenants": tenants, "partitions": partitions, "rounds": rounds}
    return Report("growth", asked, figures, {"by keys": by_keys, "by tenants": by_tenants})


def with_keys(
    here: Bench, events: int, sizes: list[int], partitions: int, rounds: int
) -> dict[int, list[Result]]:
    """Runs with so many keys in the window when the first round begins."""
    load = Load(340)
    found: dict[int, list[Result]] = {}
    first, cell = 0, None
    for size in sizes:
        found[size] = []
        for number in range(1, rounds + 1):
            topic = here.topic(f"keys-{size}-{number}", partitions)
            read = Events(shared=(topic,), tenant_prefix="")
            if cell is None:
                completions = make_topics(here, DEDUP, read)
                cell = Cell(here, "keys", DEDUP, read)
            if first < size:
                fill(here, load, range(first, size), DEDUP.name, completions)
                first = size
            new = here.produce(load, Numbers(first, events, within=0), [topic])
            found[size].append(measure_raw(here, number, topic, partitions, events, _distinct(first, events)))
            cell.read_other(read)
            watch = Watch(here.kafka, completions)
            here.say(f"  {size:,} keys: the cell builds its view, then begins")
            found[size].append(measure(here, "onceflow", number, cell.start(), watch, events, new))
            first += new
            here.kafka.delete(topic)
    return found


def with_tenants(
    here: Bench, events: int, sizes: list[int], partitions: int, rounds: int
) -> dict[int, list[Result]]:
    """Runs with so many tenants."""
    found: dict[int, list[Result]] = {}
    for size in sizes:
        found[size] = []
        topic = here.topic(f"tenants-{size}", partitions)
        read = Events(shared=(topic,), tenant_prefix="")
        distinct = here.produce(Load(size, zipf=True), Numbers(0, events), [topic])
        for number in range(1, rounds + 1):
            here.say(f"  {size:,} tenants")
            found[size].append(measure_raw(here, number, topic, partitions, events, distinct))
            watch = Watch(here.kafka, make_topics(here, DEDUP, read))
            process = Cell(here, f"tenants-{size}-{number}", DEDUP, read).start()
            found[size].append(measure(here, "onceflow", number, process, watch, events, distinct))
        here.kafka.delete(topic)
    return found


def _figures(what: str, found: dict[int, list[Result]]) -> list[Figure]:
    """The throughput with the most, of that with the least; and the same of shares of raw's in the same rounds."""
    least, most = min(found), max(found)
    name = f"throughput with {most:,} {what}, of that with {least:,}"
    shares = {size: median(ratios(found[size], "onceflow", "raw")) for size in (least, most)}
    share = shares[most] / shares[least]
    return [
        at_least(name, rate(found[most], "onceflow") / rate(found[least], "onceflow"), FLOOR),
        Figure(f"{name}, both as shares of raw's", share, f"{share:.2f}"),
    ]


def _distinct(first: int, events: int) -> int:
    """How many different events a topic holds: those that the raw loop, which knows no window, completes."""
    return len(set(Numbers(first, events, within=0)))
