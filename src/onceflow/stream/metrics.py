"""What a cell counts. The metrics themselves are made by whoever runs the cell; here is what is asked of them."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

from onceflow.event import Reason
from onceflow.stream.content import Contents, Input, Outgoing

_OF_FAILED_RUNS = (Reason.AGENT_FAILED, Reason.EXPIRED, Reason.POISON)


class Metrics(Protocol):
    """The attributes are metrics with inc, set or observe, or tables of them by label."""

    events: Any
    completions: Any
    dead_letters: Any
    forwarded: Any
    runs_in_flight: Any
    unfinished_events: Any
    oldest_unfinished_seconds: Any
    commit_seconds: Any
    commit_records: Any
    catchup_remaining: Any
    slots_granted: Any
    inputs_paused: Any


def count_commit(metrics: Metrics, finished: Contents, took_s: float) -> None:
    """Count what a transaction has committed."""
    records = runs = failed = forwarded = 0
    reasons: Counter[str] = Counter()
    for end in finished:
        records += sum([len(outgoing.values) for outgoing in end.outgoing]) + len(end.ledger)
        runs += len(end.seen)
        if end.verdict == "forwarded":
            forwarded += len(end.offsets)
        for outgoing in end.outgoing:
            if reason := reason_of(outgoing):
                reasons[reason] += 1
                failed += reason in _OF_FAILED_RUNS
    metrics.completions["completed"].inc(runs - failed)
    metrics.completions["failed"].inc(failed)
    metrics.forwarded.inc(forwarded)
    for reason, count in reasons.items():
        metrics.dead_letters[reason].inc(count)
    metrics.commit_seconds.observe(took_s)
    metrics.commit_records.observe(records)


def count_paused(metrics: Metrics, inputs: Iterable[Input]) -> None:
    """Count the inputs that are not read now, by what holds them."""
    paused = Counter(
        "records-lost" if input.blocked else "lane-full" if input.lane_full else "unfinished"
        for input in inputs
        if input.paused or input.blocked
    )
    for cause, gauge in metrics.inputs_paused.items():
        gauge.set(paused[cause])


def reason_of(outgoing: Outgoing) -> str:
    """The reason of a dead letter; "" if it is none."""
    for name, content in outgoing.headers or ():
        if name == "onceflow-reason" and isinstance(content, bytes):
            return content.decode()
    return ""
