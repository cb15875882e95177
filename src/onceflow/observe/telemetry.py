"""What a cell says about itself: its log and its metrics.

The log goes to standard error, as readable lines or as one JSON object a line. Fields given as `extra={…}`
are shown in both. Values of events must never be logged, so a field is a number, a short text or a few whole
numbers; anything else is shown as its type. A control character in a text cannot begin a line of its own.

Metrics belong to a registry of their own, so that two cells in one process (in tests) stay apart. Every
series exists from the start, at zero: an alert on `rate(…)` sees the first failure too, and counting a batch
is one `metrics.events["first"].inc(n)`, without a look-up of labels.
"""

import json
import logging
import math
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from onceflow.event import Reason

TEXT_MAX = 2000
ITEMS_MAX = 300

VERDICTS = ("first", "duplicate", "conflict")
OUTCOMES = ("completed", "failed")
PAUSE_CAUSES = ("unfinished", "lane-full", "records-lost")

COMMIT_SECONDS = (0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 5, 10, 30, 60)
COMMIT_RECORDS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[^\s\"'=]+")


def setup_logging(kind: Literal["text", "json"], level: str, **always: str | int) -> None:
    """Log to standard error in this form, from this level on; `always` are fields of every line (the cell).

    Calling it again replaces what the last call set up, and nothing else.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Handler):
            root.removeHandler(handler)
            handler.close()
    handler = _Handler(sys.stderr)
    handler.setFormatter((_Json if kind == "json" else _Text)(always))
    root.addHandler(handler)
    root.setLevel(level.upper())


class _Handler(logging.StreamHandler[Any]):
    """Known by its type, so that it can be replaced."""


class _Formatter(logging.Formatter):
    def __init__(self, always: dict[str, str | int]) -> None:
        super().__init__()
        self.always = always

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        extra = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        return {name: _shown(value) for name, value in (self.always | extra).items()}

    def trace(self, record: logging.LogRecord) -> str:
        parts = [self.formatException(record.exc_info)] if record.exc_info else []
        return "\n".join(parts + ([self.formatStack(record.stack_info)] if record.stack_info else []))


class _Text(_Formatter):
    """`2026-05-01T12:00:00.123Z INFO    onceflow.stream.cell: slot granted cell=c1 slot=3`, then a trace."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {_one_line(record.getMessage())}"
        for name, value in self.fields(record).items():
            text = value if isinstance(value, str) else json.dumps(value)
            line += f" {name}={text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)}"
        return "\n".join(filter(None, (line, self.trace(record))))


class _Json(_Formatter):
    """`{"time": …, "level": "info", "logger": …, "message": …, "cell": "c1", "slot": 3}`."""

    def format(self, record: logging.LogRecord) -> str:
        standard = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        trace = self.trace(record)
        return json.dumps(self.fields(record) | standard | ({"trace": trace} if trace else {}))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _one_line(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _shown(value: object) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has no NaN
    if isinstance(value, (str, Path, BaseException)):
        text = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else str(value)
        return _one_line(text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}… ({len(text)} characters)")
    if isinstance(value, (list, tuple, set, frozenset)) and all(isinstance(each, int) for each in value):
        return list(value)[:ITEMS_MAX]
    return f"<{type(value).__name__}>"


Metric = TypeVar("Metric", bound=Counter | Gauge)


class ByLabel(dict[str, Metric]):
    """The series of one metric by the value of its label; all known ones are made at once.

    One that comes later is made when asked for: a new reason should not end the cell that counts it.
    """

    def __init__(self, make: Callable[[str], Metric], values: tuple[str, ...]) -> None:
        super().__init__((value, make(value)) for value in values)
        self._make = make

    def __missing__(self, value: str) -> Metric:
        return self.setdefault(value, self._make(value))


class Metrics:
    """The metrics of one cell, and of its process, in one registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = to = registry or CollectorRegistry()
        self.events = ByLabel(
            Counter("onceflow_events", "Events judged", ["verdict"], registry=to).labels, VERDICTS
        )
        self.completions = ByLabel(
            Counter("onceflow_completions", "Runs that ended", ["outcome"], registry=to).labels, OUTCOMES
        )
        self.dead_letters = ByLabel(
            Counter("onceflow_dead_letters", "Dead letters written", ["reason"], registry=to).labels,
            tuple(Reason),
        )
        self.forwarded = Counter(
            "onceflow_forwarded", "Events and signals sent to their home slot", registry=to
        )
        self.runs_in_flight = Gauge("onceflow_runs_in_flight", "Runs begun and not ended", registry=to)
        self.unfinished_events = Gauge(
            "onceflow_unfinished_events", "Events read whose outcome is not committed", registry=to
        )
        self.oldest_unfinished_seconds = Gauge(
            "onceflow_oldest_unfinished_seconds",
            "How long ago the oldest unfinished event was read",
            registry=to,
        )
        self.commit_seconds = Histogram(
            "onceflow_commit_seconds", "Time that a commit took", buckets=COMMIT_SECONDS, registry=to
        )
        self.commit_records = Histogram(
            "onceflow_commit_records", "Records that a commit held", buckets=COMMIT_RECORDS, registry=to
        )
        self.catchup_remaining = Gauge(
            "onceflow_catchup_remaining",
            "Records that granted slots have yet to read before they start",
            registry=to,
        )
        self.slots_granted = Gauge("onceflow_slots_granted", "Slots that this cell owns", registry=to)
        self.inputs_paused = ByLabel(
            Gauge("onceflow_inputs_paused", "Inputs that are not read now", ["cause"], registry=to).labels,
            PAUSE_CAUSES,
        )
        ProcessCollector(registry=to)
        PlatformCollector(registry=to)
