"""A rate, measured from outside, on the broker's clock.

Completions carry the time at which the broker appended them. A run's seconds are from the first to the last, as a
reader of committed records finds them; start-up, the building of a view, the first commit's wait and the end are left
out. The rate is all input records, copies too, over these seconds. Every run's completions are counted: one per
distinct event.
"""

import sys
from collections.abc import Sequence
from statistics import median

import msgspec

from benchmarks.bench import Bench
from benchmarks.process import Process
from benchmarks.watch import Watch


class Result(msgspec.Struct, frozen=True):
    """One run. CPU and memory are those of its processes' whole lives; the broker's CPU is that during the run."""

    what: str
    round: int
    events: int
    completions: int
    seconds: float
    events_per_s: float
    cpu_s: float
    cpu_us_per_event: float
    events_per_cpu_s: float
    peak_rss_mib: float
    broker_cpu_s: float | None


HEAD = (
    "what",
    "round",
    "events/s",
    "seconds",
    "CPU µs/event",
    "events/CPU s",
    "peak RSS MiB",
    "broker CPU s",
)


def measure(
    bench: Bench,
    what: str,
    number: int,
    process: Process,
    watch: Watch,
    events: int,
    distinct: int,
    beside: Sequence[Process] = (),
) -> Result:
    """Let a process that was just started run until its output is complete; end it, and those `beside` it."""
    before = bench.kafka.cpu_s()
    try:
        with bench.advancing(f"round {number}: {what}", distinct) as advance:
            watch.until(distinct, process, advance)
        after = bench.kafka.cpu_s()
    finally:
        used = [each.end() for each in (process, *beside)]
    cpu_s = sum(each.cpu_s for each in used)
    watch.read()
    watch.close()
    if watch.count != distinct:
        raise SystemExit(
            f"{what}: {watch.count} completions for {distinct} distinct events: {process.tail()}"
        )
    seconds = (watch.last_ms - watch.first_ms) / 1000
    result = Result(
        what=what,
        round=number,
        events=events,
        completions=watch.count,
        seconds=seconds,
        events_per_s=events / seconds,
        cpu_s=cpu_s,
        cpu_us_per_event=cpu_s / events * 1e6,
        events_per_cpu_s=events / cpu_s,
        peak_rss_mib=max(each.peak_rss_mib for each in used),
        broker_cpu_s=None if before is None or after is None else after - before,
    )
    bench.say(f"  round {number}: {what}: {result.events_per_s:,.0f} events/s")
    return result


def measure_raw(bench: Bench, number: int, topic: str, partitions: int, events: int, distinct: int) -> Result:
    """One run of the raw loop, its output topic new."""
    output = bench.topic(f"raw-{topic.removeprefix(bench.kafka.prefix)}-{number}", partitions)
    words = ["benchmarks.raw", bench.kafka.servers, topic, output, output, str(events)]
    return _measure_raw(bench, "raw", number, words, output, events, distinct)


def measure_raw_steps(
    bench: Bench, number: int, topic: str, partitions: int, calls: int, runs: int
) -> Result:
    """One run of the raw loop of durable calls, so many for each event; its topics new."""
    output, ledger = (
        bench.topic(f"raw-{calls}-{what}-{number}", partitions) for what in ("completions", "ledger")
    )
    words = [
        "benchmarks.raw_steps",
        bench.kafka.servers,
        topic,
        output,
        ledger,
        output,
        str(calls),
        str(runs),
    ]
    result = _measure_raw(bench, f"raw, runs of {calls}", number, words, output, runs, runs)
    bench.kafka.delete(ledger)
    return result


def _measure_raw(
    bench: Bench, what: str, number: int, words: Sequence[str], output: str, events: int, distinct: int
) -> Result:
    watch = Watch(bench.kafka, output)
    process = Process([sys.executable, "-m", *words], bench.directory / f"{output}.log", {})
    result = measure(bench, what, number, process, watch, events, distinct)
    bench.kafka.delete(output)
    return result


def rate(results: Sequence[Result], what: str) -> float:
    """The median rate of these runs."""
    return median(result.events_per_s for result in results if result.what == what)


def ratios(results: Sequence[Result], what: str, to: str) -> list[float]:
    """One rate over the other, round by round: what else the machine did in a round falls on both."""
    rates = {(result.what, result.round): result.events_per_s for result in results}
    return [rates[what, number] / below for (name, number), below in rates.items() if name == to]


def rows(results: Sequence[Result]) -> list[Sequence[str]]:
    """The results as a table's rows, under HEAD."""
    return [
        (
            result.what,
            str(result.round),
            f"{result.events_per_s:,.0f}",
            f"{result.seconds:.1f}",
            f"{result.cpu_us_per_event:.1f}",
            f"{result.events_per_cpu_s:,.0f}",
            f"{result.peak_rss_mib:.0f}",
            "" if result.broker_cpu_s is None else f"{result.broker_cpu_s:.1f}",
        )
        for result in results
    ]
