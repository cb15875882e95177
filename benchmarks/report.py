"""What a benchmark found: its figures with their floors, as JSON, and as the table of the README."""

import os
import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import confluent_kafka
import msgspec
from rich.console import Console
from rich.table import Table

from onceflow.devkafka import KAFKA_VERSION

HEAD = ("figure", "measured", "floor", "met")


def screen() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


class Figure(msgspec.Struct, frozen=True):
    """One measured figure beside its floor; without a floor it is for information."""

    what: str
    value: float
    shown: str
    floor: str = ""
    met: bool | None = None


def at_least(what: str, value: float, floor: float, shown: str = "") -> Figure:
    """A figure that must not be smaller."""
    return Figure(what, value, shown or f"{value:.2f}", f"≥ {floor:g}", value >= floor)


def at_most(what: str, value: float, floor: float, unit: str) -> Figure:
    """A figure that must not be larger."""
    return Figure(what, value, brief(value, unit), f"≤ {floor:g} {unit}".strip(), value <= floor)


def brief(value: float, unit: str = "") -> str:
    """Three digits, or all of a large number, and the unit."""
    return f"{value:,.0f} {unit}".strip() if value >= 100 else f"{value:.3g} {unit}".strip()


class Report(msgspec.Struct):
    """One benchmark's outcome. `asked`: its options; `details`: all that was measured, for tables and plots."""

    benchmark: str
    asked: dict[str, Any]
    figures: list[Figure]
    details: dict[str, Any]
    command: str = ""
    when: str = ""
    machine: dict[str, str] = {}

    def stamped(self) -> "Report":
        """The report with the command that made it, the time, and the machine."""
        words = [word for word in sys.argv[1:] if word]
        self.command = " ".join(["python -m benchmarks", *_without_places(words)])
        self.when = datetime.now(UTC).isoformat(timespec="seconds")
        self.machine = {
            "processor": _processor(),
            "cores": str(os.cpu_count()),
            "python": platform.python_version(),
            "kafka": KAFKA_VERSION if "--kafka" not in words else "",
            "librdkafka": confluent_kafka.libversion()[0],
        }
        return self


def write(report: Report, file: Path) -> None:
    """The report as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def read(directory: Path) -> list[Report]:
    """All reports of a directory, by the benchmarks' names."""
    found = [msgspec.json.decode(file.read_bytes(), type=Report) for file in sorted(directory.glob("*.json"))]
    if not found:
        raise SystemExit(f"{directory} holds no reports: python -m benchmarks all --json {directory}")
    return found


def show(console: Console, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on the screen, numbers to the right."""
    table = Table(box=None)
    for number, column in enumerate(head):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def markdown(reports: Sequence[Report]) -> str:
    """The table of the README."""
    lines = ["| figure | measured | floor | met | command |", "|---|---|---|---|---|"]
    for report in reports:
        lines += [f"| {' | '.join([*cells(figure), f'`{report.command}`'])} |" for figure in report.figures]
    machines = sorted({", ".join(f"{k} {v}" for k, v in each.machine.items() if v) for each in reports})
    days = sorted({report.when[:10] for report in reports})
    return "\n".join([*lines, "", f"Measured {' to '.join({days[0], days[-1]})}: {'; '.join(machines)}.", ""])


def cells(figure: Figure) -> list[str]:
    """A figure as a table's row, under HEAD."""
    met = {True: "yes", False: "**no**", None: ""}[figure.met]
    return [figure.what, figure.shown, figure.floor, met]


def _without_places(words: Sequence[str]) -> list[str]:
    """The words of a command less where its output goes and which Kafka it used."""
    kept, skip = [], False
    for word in words:
        if skip or word.split("=")[0] in ("--json", "--kafka"):
            skip = not skip and "=" not in word
            continue
        kept.append(word)
    return kept


def _processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
