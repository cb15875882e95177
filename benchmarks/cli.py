"""The command line. Its --help says what each benchmark measures, and how long it takes."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import (
    core,
    growth,
    incident,
    latency,
    memory,
    plots,
    recovery,
    report,
    steps,
    throughput,
    topics,
)
from benchmarks import waits as module_waits
from benchmarks.cell import FLOWS
from benchmarks.peers import compare, crash, rates
from benchmarks.process import ROOT
from benchmarks.report import Report
from onceflow.errors import ConfigError

app = typer.Typer(
    help="What onceflow can do, measured from outside on a real Kafka that is started for it. Times are those of two "
    "cores. Leave the machine alone meanwhile; disk for up to 10 GB is needed below TMPDIR.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = report.screen()

Events = Annotated[int, typer.Option(help="Records, copies too.", min=1000)]
Tenants = Annotated[int, typer.Option(help="Tenants, all with as many events.", min=1)]
Partitions = Annotated[int, typer.Option(help="Of the shared topic, and so the flow's slots.", min=8)]
Rounds = Annotated[int, typer.Option(help="How often all is measured, in turn.", min=1)]
Rate = Annotated[int, typer.Option(help="Events sent per second.", min=1)]
WarmUp = Annotated[int, typer.Option(help="Seconds that don't count, from the first completion on.", min=0)]
Servers = Annotated[
    str | None, typer.Option("--kafka", metavar="HOST:PORT", help="A Kafka that runs; else one is started.")
]
Output = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where the report goes, too.")]

KEYS = [1_000_000, 4_000_000, 16_000_000]
TENANTS = [10, 340, 10_000]
ALL = {
    "core": ["core"],
    "core-pure": ["core", "--agent", "pure"],
    "steps": ["steps"],
    "latency-step": ["latency", "--agent", "step"],
    "waits": ["waits"],
    "topics": ["topics"],
    "latency": ["latency"],
    "recovery": ["recovery"],
    "growth": ["growth"],
    "memory": ["memory"],
    "incident": ["incident"],
}
QUICK = {
    "core": ["--events", "200000"],
    "core-pure": ["--events", "200000"],
    "steps": ["--runs", "50000", "--rounds", "1", "--seconds", "10", "--open", "200"],
    "latency-step": ["--seconds", "10", "--warm-up", "5"],
    "waits": ["--waits", "10000"],
    "topics": ["--events", "200000"],
    "latency": ["--seconds", "10", "--warm-up", "5"],
    "recovery": ["--keys", "200000"],
    "growth": ["--events", "100000", "--rounds", "1", "--keys", "100000", "--keys", "400000"],
    "memory": ["--events", "600000", "--seconds", "30", "--warm-up", "1"],
    "incident": ["--events", "1000", "--kills", "2"],
}


@app.command("core")
def measure_core(
    events: Events = 4_200_000,
    tenants: Tenants = 340,
    partitions: Partitions = 16,
    rounds: Rounds = 2,
    agent: Annotated[
        str,
        typer.Option(help="dedup: passes the data on. pure: three pure calls. read: one read call."),
    ] = "dedup",
    kafka: Servers = None,
    json: Output = None,
) -> None:
    """Throughput of one cell, as a share of a raw loop's, with CPU and memory (some 12 min).

    The floors are 0.7 of raw for `dedup`, 0.5 for `pure`, and 1 GiB of memory.
    """
    if agent not in FLOWS:
        raise typer.BadParameter(f"{agent!r} is none of {', '.join(FLOWS)}", param_hint="--agent")
    found = core.run(kafka, events=events, tenants=tenants, partitions=partitions, rounds=rounds, agent=agent)
    report.show(console, throughput.HEAD, throughput.rows(found.details["runs"]))
    finish(found, json)


@app.command("topics")
def measure_topics(
    events: Events = 4_200_000,
    tenants: Tenants = 340,
    partitions: Partitions = 16,
    rounds: Rounds = 2,
    kafka: Servers = None,
    json: Output = None,
) -> None:
    """Throughput with a topic per tenant, as a share of that with one shared topic (some 18 min). The floor is 0.6."""
    found = topics.run(kafka, events=events, tenants=tenants, partitions=partitions, rounds=rounds)
    report.show(console, throughput.HEAD, throughput.rows(found.details["runs"]))
    finish(found, json)


@app.command("latency")
def measure_latency(
    events_per_s: Rate = 500,
    seconds: Annotated[int, typer.Option(help="For how long it is measured.", min=1)] = 60,
    warm_up: WarmUp = 15,
    tenants: Tenants = 340,
    partitions: Partitions = 16,
    agent: Annotated[str, typer.Option(help="dedup: passes the data on. step: one keyed call.")] = "dedup",
    kafka: Servers = None,
    json: Output = None,
) -> None:
    """From an acknowledged event to its readable completion, at a steady rate (some 2 min).

    The floors are 30 ms for p50 and 120 ms for p99.
    """
    found = latency.run(
        kafka,
        events_per_s=events_per_s,
        seconds=seconds,
        warm_up=warm_up,
        tenants=tenants,
        partitions=partitions,
        agent=agent,
    )
    finish(found, json)


@app.command("steps")
def measure_steps(
    runs: Annotated[int, typer.Option(help="Runs, each time.", min=1000)] = 200_000,
    rounds: Rounds = 2,
    seconds: Annotated[int, typer.Option(help="How long one step alone is measured.", min=2)] = 40,
    open_runs: Annotated[int, typer.Option("--open", help="Runs open at the kill.", min=2)] = 1_000,
    kafka: Servers = None,
    json: Output = None,
) -> None:
    """Runs that change something: how many a second, how long a step takes alone, and after a kill (some 6 min).

    The aims: 20,000 runs of one keyed call a second, 36,000 calls of runs of three, 8 ms (p50) and 30 ms (p99) for a
    step alone; killed with 1,000 runs open, all are done within 5 s, and nothing twice.
    """
    found = steps.run(kafka, runs=runs, rounds=rounds, seconds=seconds, open_runs=open_runs)
    report.show(console, throughput.HEAD, throughput.rows(found.details["runs"]))
    finish(found, json)


@app.command("waits")
def measure_waits(
    waits: Annotated[int, typer.Option(help="Events whose runs wait, copies too.", min=1000)] = 111_000,
    tenants: Tenants = 340,
    partitions: Partitions = 16,
    kafka: Servers = None,
    json: Output = None,
) -> None:
    """Many open waits: memory, a restart with all of them open, and signals that end them (some 2 min).

    The floors: 200 MiB more, 10 s, and 5,000 signals a second.
    """
    finish(module_waits.run(kafka, waits=waits, tenants=tenants, partitions=partitions), json)


@app.command("recovery")
def measure_recovery(
    keys: Annotated[int, typer.Option(help="Keys in the window at the start.", min=1)] = 4_200_000,
    events_per_s: Rate = 1000,
    tenants: Tenants = 340,
    partitions: Partitions = 16,
    kafka: Servers = None,
    json: Output = None,
) -> None:
    """Time until all slots are served again after kill -9, in three ways (some 6 min).

    The floors are 5 s for a restart, 20 s for a takeover, and 90 s for a restart without the cell's directories.
    """
    found = recovery.run(kafka, keys=keys, events_per_s=events_per_s, tenants=tenants, partitions=partitions)
    report.show(console, recovery.HEAD, recovery.rows(found))
    finish(found, json)


@app.command("growth")
def measure_growth(
    events: Events = 1_000_000,
    keys: Annotated[list[int], typer.Option(help="Keys in the window; may be given again.", min=0)] = KEYS,
    tenants: Annotated[list[int], typer.Option(help="Tenants; may be given again.", min=1)] = TENANTS,
    partitions: Partitions = 16,
    rounds: Rounds = 2,
    kafka: Servers = None,
    json: Output = None,
) -> None:
    """Throughput with ever more keys in the window, and ever more tenants (some 20 min).

    The floor: with the most it is 0.6 of that with the least.
    """
    found = growth.run(kafka, events=events, keys=keys, tenants=tenants, partitions=partitions, rounds=rounds)
    for what in ("keys", "tenants"):
        rows = [
            (f"{size:,}", *row)
            for size, results in found.details[f"by {what}"].items()
            for row in throughput.rows(results)
        ]
        report.show(console, (what, *throughput.HEAD), rows)
    finish(found, json)


@app.command("memory")
def measure_memory(
    events: Events = 10_000_000,
    seconds: Annotated[int, typer.Option(help="For how long it is looked at, at most.", min=3)] = 90,
    warm_up: WarmUp = 15,
    tenants: Tenants = 340,
    partitions: Partitions = 16,
    kafka: Servers = None,
    json: Output = None,
) -> None:
    """Memory while millions of events wait (some 4 min). The floor: the last third is at most 1.1 of the first."""
    found = memory.run(
        kafka,
        events=events,
        seconds=seconds,
        warm_up=warm_up,
        tenants=tenants,
        partitions=partitions,
    )
    finish(found, json)


@app.command("incident")
def measure_incident(
    events: Annotated[int, typer.Option(help="Distinct events; copies come on top.", min=1000)] = 4_000,
    kills: Annotated[int, typer.Option(help="How often each pipeline is killed.", min=0)] = 5,
    seed: Annotated[int, typer.Option(help="Draws the copies and the moments of the kills.")] = 1,
    kafka: Servers = None,
    json: Output = None,
) -> None:
    """A bad day replayed, beside a pipeline that remembers nothing: tokens, and effects done twice (some 2 min).

    Copies of events, lost answers, refusals, kill -9. The aim is that no effect is done twice. How many tokens are
    saved depends on how bad the day is; another seed draws another one.
    """
    found = incident.run(kafka, events=events, kills=kills, seed=seed)
    report.show(console, incident.HEAD, incident.rows(found.details["outcomes"]))
    finish(found, json)


@app.command("peers")
def measure_peers(
    runs: Annotated[int, typer.Option(help="Runs that onceflow does, each time.", min=1000)] = 200_000,
    seconds: Annotated[
        float, typer.Option(help="For how long each peer is measured, each time.", min=1)
    ] = 15,
    rounds: Rounds = 2,
    open_runs: Annotated[int, typer.Option("--open", help="Runs open at the kill.", min=2)] = 1_000,
    json: Output = None,
) -> None:
    """Durable runs beside DBOS on PostgreSQL, and Restate; and a worker of each killed (some 15 min).

    The aims are 20,000 runs of one keyed call a second, 30 times what each peer does, and no effect twice. The peers go
    into ~/.cache/onceflow/peers at the first use (400 MB); PostgreSQL's programs and npm must be there.
    """
    try:
        found = compare.run(runs=runs, seconds=seconds, rounds=rounds, open_runs=open_runs)
    except ConfigError as error:
        typer.echo(error, err=True)
        raise typer.Exit(error.exit_status) from error
    report.show(console, rates.HEAD, rates.rows(found.details["rates"]))
    report.show(console, crash.HEAD, crash.rows(found.details["crashes"]))
    finish(found, json)


@app.command("all")
def measure_all(
    quick: Annotated[
        bool, typer.Option("--quick", help="Small numbers: whether all works, no figures to quote.")
    ] = False,
    kafka: Servers = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="DIR", help="Where the reports go.")] = None,
) -> None:
    """All benchmarks, one after another, each in a process of its own (some 80 min; --quick: some 9 min)."""
    failed = []
    for name, usual in ALL.items():
        words = [*usual, *(QUICK[name] if quick else [])]
        console.rule(" ".join(words))
        on = ["--kafka", kafka] if kafka else []
        into = ["--json", str(json.absolute() / f"{name}.json")] if json else []
        command = [sys.executable, "-m", "benchmarks", *words, *on, *into]
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


@app.command("table")
def show_table(directory: Annotated[Path, typer.Argument(help="Where the reports are.")]) -> None:
    """Print the table of the README from the reports of a directory."""
    typer.echo(report.markdown(report.read(directory)))


@app.command("plots")
def draw_plots(
    directory: Annotated[Path, typer.Argument(help="Where the reports are.")],
    into: Annotated[Path, typer.Option(help="Where the figures go.")] = plots.FIGURES,
) -> None:
    """Draw the figures of the README from the reports of a directory (needs matplotlib)."""
    for file in plots.draw(report.read(directory), into):
        console.print(f"drawn: {file}")


def finish(found: Report, json: Path | None) -> None:
    """Show the figures, and write the report where it was asked for."""
    report.show(console, report.HEAD, [report.cells(figure) for figure in found.figures])
    if json is not None:
        report.write(found.stamped(), json)
