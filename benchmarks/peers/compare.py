"""peers: durable runs of onceflow beside DBOS and Restate, on the same machine, one after another.

In turn, round by round, each with the machine to itself: a cell on a Kafka with its defaults, a cell on a Kafka that
writes each batch through to the disk, as PostgreSQL and Restate do; DBOS; Restate. Each does runs of one step and of
three, whose steps are done at once, so that what is measured is the durability. Then a worker of each is killed.
"""

from collections.abc import Mapping
from statistics import median

from benchmarks.bench import bench, scratch
from benchmarks.load import Load, Numbers
from benchmarks.peers import dbos, restate
from benchmarks.peers.crash import Crashed
from benchmarks.peers.install import peers
from benchmarks.peers.rates import Rate, middle, times_as_fast
from benchmarks.report import Figure, Report, at_least, at_most, brief, screen
from benchmarks.steps import FLOW_OF, PARTITIONS, RUNS_PER_S, TENANTS, crashed, runs_of
from onceflow.config import Events
from onceflow.devkafka import NO_SETTINGS

ONCEFLOW, FSYNC = "onceflow", "onceflow, Kafka with fsync"
BROKERS: dict[str, Mapping[str, str]] = {ONCEFLOW: NO_SETTINGS, FSYNC: {"log.flush.interval.messages": "1"}}
TIMES = 30


def run(*, runs: int, seconds: float, rounds: int, open_runs: int) -> Report:
    """Measure."""
    console = screen()
    found: list[Rate] = []
    others = {"DBOS": dbos, "Restate": restate}
    installed = peers(console.print)
    for number in range(1, rounds + 1):
        for side in BROKERS:
            found += _rates(side, number, runs)
        for side, other in others.items():
            for calls in FLOW_OF:
                console.print(f"  round {number}: {side}, runs of {calls} …")
                with scratch(console) as directory:
                    found += other.rates(installed, directory, calls, number, seconds)
    crashes = [crashed(effect, open_runs) for effect in ("keyed", "blind")]
    for side, other in others.items():
        console.print(f"  {side}: kill -9 …")
        with scratch(console) as directory:
            crashes.append(other.crashed(installed, directory, open_runs))
    figures = [*_figures(found, list(others)), *_figures_of_crashes(crashes)]
    console.print(f"  {', '.join(installed.versions)}", soft_wrap=True)
    asked = {"runs": runs, "seconds": seconds, "rounds": rounds, "open_runs": open_runs}
    return Report(
        "peers", asked, figures, {"rates": found, "crashes": crashes, "versions": installed.versions}
    )


def _rates(side: str, number: int, runs: int) -> list[Rate]:
    """onceflow: all events are in Kafka, and a cell with default settings has a run for each. Once more to warm up."""
    found = []
    with bench(None, [], BROKERS[side]) as here:
        topic = here.topic("events", PARTITIONS)
        read = Events(shared=(topic,), tenant_prefix="")
        distinct = here.produce(Load(TENANTS), Numbers(0, runs, copies=0), [topic])
        runs_of(here, 1, 0, read, distinct, f"{side}, to warm Kafka up")
        for calls in FLOW_OF:
            result = runs_of(here, calls, number, read, distinct, side)
            cpu_s = result.cpu_s + (result.broker_cpu_s or 0)
            found.append(Rate.of(side, calls, number, "one cell", distinct, result.seconds, cpu_s))
    return found


def _figures(found: list[Rate], others: list[str]) -> list[Figure]:
    figures = []
    for calls in FLOW_OF:
        for side in (*BROKERS, *others):
            what, value = f"{side}, runs of {_steps(calls)}, per second", middle(found, side, calls)
            aimed = calls == 1 and side == ONCEFLOW
            shown = brief(value)
            figures.append(at_least(what, value, RUNS_PER_S, shown) if aimed else Figure(what, value, shown))
        for side in BROKERS:
            for other in others:
                times = times_as_fast(found, side, other, calls)
                what, value = f"{side}, runs of {_steps(calls)}, times {other}'s", median(times)
                shown = f"{value:.1f} ({', '.join(f'{each:.1f}' for each in times)})"
                aimed = calls == 1 and side == ONCEFLOW
                figures.append(at_least(what, value, TIMES, shown) if aimed else Figure(what, value, shown))
    return figures


def _steps(calls: int) -> str:
    return "1 step" if calls == 1 else f"{calls} steps"


def _figures_of_crashes(crashes: list[Crashed]) -> list[Figure]:
    figures = []
    for each in crashes:
        what = f"{each.what}, kill -9 with {each.open:,} runs open"
        ours = each.again_on_record is not None
        if each.again_on_record is not None:
            figures.append(at_most(f"{what}, steps on record executed again", each.again_on_record, 0, ""))
        figures.append(Figure(f"{what}, steps executed again", each.again, brief(each.again)))
        twice = f"{what}, effects done twice"
        figures.append(
            at_most(twice, each.twice, 0, "") if ours else Figure(twice, each.twice, brief(each.twice))
        )
    return figures
