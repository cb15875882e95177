"""steps: runs whose steps change something, each on record before it is taken.

How many runs of one `keyed` call and of three a cell does in a second, and two cells; how long one step takes when
nothing else goes on; and how soon all go on when a cell is killed with many runs open. What is changed answers at once.

Beside each rate the raw loop's, of the same round: the least that durable calls take.

A first round is shown and does not count: Kafka's broker was just started, and its compiler takes up to a third of the
machine meanwhile.
"""

import time
from collections.abc import Iterable
from itertools import pairwise
from statistics import median

import msgspec

from benchmarks import outside
from benchmarks.bench import Bench, bench
from benchmarks.cell import FLOWS, Cell, Flow, make_topics
from benchmarks.latency import quantile, rest
from benchmarks.load import Load, Numbers, Steady
from benchmarks.peers.crash import Crashed, crash
from benchmarks.report import Figure, Report, at_least, at_most
from benchmarks.throughput import Result, measure, measure_raw_steps, ratios
from benchmarks.watch import Watch, wait_until
from onceflow.config import Events, Settings
from onceflow.config import Kafka as KafkaSettings
from onceflow.observe.open_runs import read_open_runs, steps_of

FLOW_OF = {1: FLOWS["step"], 3: FLOWS["effects"]}  # by the calls of a run
CHAIN = Flow("bench-chain", "benchmarks.chain_flow")
CRASH = Flow("bench-crash", "benchmarks.crash_flow")
MEASURED = ((1, 1), (3, 1), (3, 2))  # calls of a run, and cells
TENANTS, PARTITIONS = 340, 16
RUNS_PER_S, CALLS_PER_S = 20_000, 36_000
STEP_MS = {0.5: 8, 0.99: 30}
GO_ON_S = 5
CHAINS_PER_S = 2  # runs of 20 steps
WARM_UP_S = 10


def run(servers: str | None, *, runs: int, rounds: int, seconds: int, open_runs: int) -> Report:
    """Measure."""
    results: dict[tuple[int, int], list[Result]] = {of: [] for of in MEASURED}
    raw: list[Result] = []
    with bench(servers, [flow.name for flow in (*FLOW_OF.values(), CHAIN)]) as here:
        topic = here.topic("events", PARTITIONS)
        read = Events(shared=(topic,), tenant_prefix="")
        distinct = here.produce(Load(TENANTS), Numbers(0, runs, copies=0), [topic])
        for number in range(rounds + 1):
            for (calls, cells), found in results.items():
                found.append(runs_of(here, calls, number, read, distinct, cells=cells))
                if cells == 1:
                    raw.append(measure_raw_steps(here, number, topic, PARTITIONS, calls, distinct))
        alone = sorted(_alone(here, seconds))
    crash_ = crashed("keyed", open_runs)
    calls_per_s = {of: [of[0] * each.events_per_s for each in found] for of, found in results.items()}
    rates = {of: median(warm) for of, (_, *warm) in calls_per_s.items()}
    shown = {
        of: f"{rates[of]:,.0f} ({', '.join(f'{each:,.0f}' for each in warm)}; before, with a cold broker: {cold:,.0f})"
        for of, (cold, *warm) in calls_per_s.items()
    }
    every = [result for found in (*results.values(), raw) for result in found]
    shares = {of: ratios(every, f"onceflow, runs of {of}", f"raw, runs of {of}")[1:] for of in FLOW_OF}
    figures = [
        at_least("runs of one keyed call, per second", rates[1, 1], RUNS_PER_S, shown[1, 1]),
        at_least("calls of runs of three, per second", rates[3, 1], CALLS_PER_S, shown[3, 1]),
        *(
            Figure(
                f"runs of {calls}, of raw's",
                median(found),
                f"{median(found):.2f} ({', '.join(f'{each:.2f}' for each in found)})",
            )
            for calls, found in shares.items()
        ),
        Figure("calls of runs of three, two cells, per second", rates[3, 2], shown[3, 2]),
        *(
            at_most(f"one step alone, p{share * 100:g}", quantile(alone, share), floor, "ms")
            for share, floor in STEP_MS.items()
        ),
        at_most(f"kill -9 with {open_runs:,} runs open, until all are done", crash_.took_s, GO_ON_S, "s"),
        at_most("… steps on record executed again", crash_.again_on_record or 0, 0, ""),
        Figure("… steps executed again, with the same key", crash_.again, f"{crash_.again:,}"),
        at_most("… effects done twice", crash_.twice, 0, ""),
    ]
    asked = {"runs": runs, "rounds": rounds, "seconds": seconds, "open_runs": open_runs}
    details = {"runs": every, "steps_alone": len(alone), "crash": crash_}
    return Report("steps", asked, figures, details)


def runs_of(
    here: Bench, calls: int, number: int, read: Events, distinct: int, what: str = "onceflow", cells: int = 1
) -> Result:
    """All events are in Kafka, and cells with default settings have a run of so many calls for each."""
    flow = FLOW_OF[calls]
    watch = Watch(here.kafka, make_topics(here, flow, read))
    first, *others = [
        Cell(here, f"cell-{calls}-{number}-{cell + 1}-of-{cells}", flow, read).start()
        for cell in range(cells)
    ]
    what = f"{what}, runs of {calls}" if cells == 1 else f"{what}, {cells} cells, runs of {calls}"
    return measure(here, what, number, first, watch, distinct, distinct, others)


def _alone(here: Bench, seconds: int) -> list[float]:
    """Milliseconds from one call of a run to its next one, nothing else going on, once the cell is warm."""
    topic = here.topic("alone", PARTITIONS)
    read = Events(shared=(topic,), tenant_prefix="")
    completions = make_topics(here, CHAIN, read)
    process = Cell(here, "cell-alone", CHAIN, read).start()
    watch = Watch(here.kafka, completions)
    steady = Steady(here.kafka.servers, Load(TENANTS), topic, 0, CHAINS_PER_S)
    try:
        steady.start()
        rest(here, "warming up", WARM_UP_S, process)
        warm_ns = time.time_ns()
        rest(here, "one step alone", seconds, process)
        steady.stop()
        wait_until(lambda: watch.end() >= len(steady.sent_at), "all runs are done", 30, process)
    finally:
        steady.stop()
        process.end()
    return [took for value in watch.values() for took in _between(value, warm_ns)]


class _Done(msgspec.Struct):
    data: list[int]


def _between(completion: bytes, from_ns: int) -> Iterable[float]:
    at = msgspec.json.decode(completion, type=_Done).data
    return [(after - before) / 1e6 for before, after in pairwise(at) if before >= from_ns]


def crashed(effect: str, runs: int) -> Crashed:
    """The scene of `crash`, with a cell, and a target that is given keys or knows none."""
    with bench(None, []) as here:
        topic, file = here.topic("events", PARTITIONS), here.directory / "outside"
        read = Events(shared=(topic,), tenant_prefix="")
        settings = Settings(kafka=KafkaSettings(bootstrap_servers=here.kafka.servers), events=read)
        make_topics(here, CRASH, read)
        here.produce(Load(TENANTS), Numbers(0, runs, copies=0), [topic])
        told = {**outside.environment(file), "BENCH_EFFECT": effect}
        cell = Cell(here, "cell", CRASH, read, told)

        def on_record() -> set[tuple[str, str]]:
            return {
                (run_of(run.begun.incoming.id), str(effect))
                for run in read_open_runs(CRASH.name, settings)
                for effect, step in enumerate(s for s in steps_of(run) if s.key)
                if step.state == "done"
            }

        here.say(f"  onceflow, {effect}: kill -9 …")
        return crash(f"onceflow, {effect}", runs, file, cell.start, cell.start, on_record=on_record)


def run_of(event_id: str) -> str:
    """The number of an event of the load, as its data have it."""
    return str(int(event_id.removeprefix("evt-")))
