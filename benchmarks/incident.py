"""incident: a bad day, replayed, once by a naive pipeline (`naive`) and once by a cell of `incident_flow`.

What made the day bad: some events come twice and some fourteen times, answers of the model and of the target are lost
after the work was done, both refuse now and then, and the process is killed at moments drawn at random. Events, faults
and moments are drawn with a fixed seed, and are the same for both. What is counted is noted outside of both: what the
model was asked and cost, and the effects.
"""

import random
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
from confluent_kafka import Consumer, TopicPartition

from benchmarks import outside
from benchmarks.bench import Bench, bench
from benchmarks.cell import Cell, Flow, make_topics
from benchmarks.counts import requests, twice, words
from benchmarks.load import Load, produce
from benchmarks.process import Process
from benchmarks.report import Figure, Report, at_most, brief
from benchmarks.watch import Watch, wait_until
from onceflow.config import Events

FLOW = Flow("bench-incident", "benchmarks.incident_flow")
TENANTS, PARTITIONS = 340, 16
FOURTEEN, TWICE = 0.01, 0.05  # the shares of the events that come so often
WITHIN = 1_000  # events between a first copy and its last
PATIENCE_S = 300


class Outcome(msgspec.Struct, frozen=True):
    """What a pipeline has cost and done."""

    what: str
    model_calls: int
    tokens: int
    requests: int  # to the target
    twice: int  # effects
    missing: int


HEAD = ("pipeline", "model calls", "tokens", "requests to act", "effects twice", "missing")


def run(servers: str | None, *, events: int, kills: int, seed: int) -> Report:
    """Measure."""
    numbers, moments = records(events, seed), moments_of(kills, seed)
    with bench(servers, [FLOW.name]) as here:
        topic = here.topic("events", PARTITIONS)
        produce(here.kafka.servers, Load(TENANTS), numbers, lambda _: topic, lambda _: None)
        here.kafka.must_hold([topic], len(numbers))
        here.say(
            f"  {len(numbers):,} records of {events:,} events; kills at {', '.join(f'{m:.0%}' for m in moments)}"
        )
        outcomes = [_naive(here, topic, events, moments), _onceflow(here, topic, events, moments)]
    naive, ours = outcomes
    saved = 1 - ours.tokens / naive.tokens
    figures = [
        Figure("incident, the naive pipeline's model calls", naive.model_calls, brief(naive.model_calls)),
        Figure("incident, onceflow's model calls", ours.model_calls, brief(ours.model_calls)),
        Figure("incident, share of the tokens saved", saved, f"{saved:.2f}"),
        Figure("incident, effects done twice by the naive pipeline", naive.twice, brief(naive.twice)),
        at_most("incident, effects done twice by onceflow", ours.twice, 0, ""),
        at_most("incident, effects missing with onceflow", ours.missing, 0, ""),
    ]
    asked = {"events": events, "kills": kills, "seed": seed}
    return Report("incident", asked, figures, {"records": len(numbers), "outcomes": outcomes})


def records(events: int, seed: int) -> list[int]:
    """The numbers of the events in the order in which they come, copies too."""
    draw, placed = random.Random(seed), []
    for number in range(events):
        found = draw.random()
        copies = 13 if found < FOURTEEN else 1 if found < FOURTEEN + TWICE else 0
        places = [number, *(number + draw.randint(1, WITHIN) for _ in range(copies))]
        placed += [(place, number) for place in places]
    return [number for _, number in sorted(placed)]


def moments_of(kills: int, seed: int) -> list[float]:
    """When the process is killed: the shares of the events whose effect has happened by then."""
    draw = random.Random(f"{seed} kills")
    return sorted(draw.uniform(0.05, 0.95) for _ in range(kills))


def rows(outcomes: list[Outcome]) -> list[list[str]]:
    """As a table's rows, under HEAD."""
    return [
        [str(value) if isinstance(value, str) else f"{value:,}" for value in msgspec.structs.astuple(each)]
        for each in outcomes
    ]


def _naive(here: Bench, topic: str, events: int, moments: list[float]) -> Outcome:
    file, group = here.directory / "naive-outside", f"{here.kafka.prefix}naive"
    command = [sys.executable, "-m", "benchmarks.naive", here.kafka.servers, topic, group]
    process = _killed(
        "naive",
        file,
        lambda: Process(command, here.directory / "naive.log", outside.environment(file)),
        events,
        moments,
    )
    asker = Consumer({"bootstrap.servers": here.kafka.servers, "group.id": group})
    ends = here.kafka.ends(topic)

    def all_committed() -> bool:
        found = asker.committed([TopicPartition(*at) for at in ends], timeout=10)
        return all(
            each.offset >= ends[each.topic, each.partition]
            for each in found
            if ends[each.topic, each.partition]
        )

    try:
        wait_until(all_committed, "the naive pipeline has dealt with all", PATIENCE_S, process)
    finally:
        asker.close()
        process.end(signal.SIGKILL)
    return _outcome("naive", file, events)


def _onceflow(here: Bench, topic: str, events: int, moments: list[float]) -> Outcome:
    file, read = here.directory / "onceflow-outside", Events(shared=(topic,), tenant_prefix="")
    watch = Watch(here.kafka, make_topics(here, FLOW, read))
    cell = Cell(here, "cell", FLOW, read, outside.environment(file))
    process = _killed("onceflow", file, cell.start, events, moments)
    try:
        watch.until(events, process, lambda _: None)
    finally:
        process.end()
    watch.close()
    return _outcome("onceflow", file, events)


def _killed(
    what: str, file: Path, start: Callable[[], Process], events: int, moments: list[float]
) -> Process:
    """Start it, and kill and start it at each moment; the process that is left to finish."""
    process = start()
    for moment in moments:
        come = partial(_come_to, file, moment * events)
        wait_until(come, f"{what}: {moment:.0%} are done", PATIENCE_S, process, every_s=0.02)
        process.end(signal.SIGKILL)
        process = start()
    return process


def _come_to(file: Path, enough: float) -> bool:
    return len({request.run for request in requests(file)}) >= enough


def _outcome(what: str, file: Path, events: int) -> Outcome:
    tokens = [int(tokens) for _, tokens in words(file, "model")]
    done = requests(file)
    missing = events - len({request.run for request in done})
    return Outcome(what, len(tokens), sum(tokens), len(done), twice(done), missing)
