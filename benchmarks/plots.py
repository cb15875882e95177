"""The figures of the README, drawn from reports. Only this needs matplotlib, which nothing else here does."""

import importlib
from pathlib import Path
from typing import Any

from benchmarks.report import Report

FIGURES = Path(__file__).parent / "figures"
SIZE = (6.4, 3.2)


def draw(reports: list[Report], directory: Path) -> list[Path]:
    """Draw what these reports have to show; the files."""
    try:
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        raise SystemExit("plots need matplotlib: .venv/bin/pip install matplotlib") from error
    # The same reports give the same file.
    pyplot.rcParams.update({"svg.hashsalt": "onceflow", "svg.fonttype": "none", "font.size": 9})
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for report in reports:
        if report.benchmark == "growth":
            for what in ("keys", "tenants"):
                figure = _growth(pyplot, report, what)
                drawn.append(_save(pyplot, figure, directory / f"growth-{what}.svg"))
        elif report.benchmark == "memory":
            drawn.append(_save(pyplot, _memory(pyplot, report), directory / "memory.svg"))
    return drawn


def _growth(pyplot: Any, report: Report, what: str) -> Any:
    figure, axes = pyplot.subplots(figsize=SIZE)
    by_size = {int(size): runs for size, runs in report.details[f"by {what}"].items()}
    for name, marker in (("raw", "x"), ("onceflow", "o")):
        points = [
            (size, run["events_per_s"] / 1000)
            for size, runs in by_size.items()
            for run in runs
            if run["what"] == name
        ]
        axes.plot(*zip(*points, strict=True), marker, label=name)
    axes.set_xscale("log")
    axes.set_xticks(list(by_size), [f"{size:,}" for size in by_size])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("keys in the window" if what == "keys" else "tenants")
    axes.set_ylabel("thousand events/s")
    axes.legend()
    return figure


def _memory(pyplot: Any, report: Report) -> Any:
    figure, axes = pyplot.subplots(figsize=SIZE)
    times, sizes, _ = zip(*report.details["samples"], strict=True)
    axes.plot(times, sizes)
    axes.axvline(report.asked["warm_up"], linestyle=":", color="grey")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds since the first completion (dotted: end of the warm-up)")
    axes.set_ylabel("resident memory, MiB")
    return figure


def _save(pyplot: Any, figure: Any, file: Path) -> Path:
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return file
