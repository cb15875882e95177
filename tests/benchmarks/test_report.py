"""What is reported: percentiles, floors, the table; and that the command line takes what `all` gives it."""

import os
import sys
import time
from pathlib import Path

import pytest
import typer

from benchmarks.cli import ALL, QUICK, app
from benchmarks.latency import quantile
from benchmarks.plots import draw
from benchmarks.process import Process, cpu_s
from benchmarks.report import Figure, Report, at_least, at_most, markdown, read, write
from benchmarks.throughput import Result, ratios
from tests.waiting import wait_until

KEEPS_50_MIB = "import signal; kept = b'x' * (50 << 20); print('ready', flush=True); signal.pause()"


def result(what: str, number: int, events_per_s: float) -> Result:
    return Result(what, number, 100, 90, 1.0, events_per_s, 1.0, 1.0, 1.0, 1.0, None)


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1.0), (0.5, 50.0), (0.501, 51.0), (0.9, 90.0), (0.99, 99.0), (1.0, 100.0)]
)
def test_a_quantile_is_a_value_that_was_measured(share: float, value: float) -> None:
    assert quantile([float(number) for number in range(1, 101)], share) == value


def test_rates_are_compared_within_their_round() -> None:
    results = [
        result("raw", 1, 100),
        result("onceflow", 1, 60),
        result("raw", 2, 50),
        result("onceflow", 2, 40),
    ]
    assert ratios(results, "onceflow", "raw") == [0.6, 0.8]


def test_a_floor_is_met_by_a_figure_that_equals_it() -> None:
    assert [at_least("a", value, 0.7).met for value in (0.69, 0.7, 0.71)] == [False, True, True]
    assert [at_most("a", value, 1.1, "").met for value in (1.09, 1.1, 1.11)] == [True, True, False]


def test_the_table_says_of_each_figure_whether_its_floor_is_met_and_which_command_measured_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "core", "--json", "a.json", "--events", "5", "--kafka=host:1"])
    figures = [at_least("rate", 0.5, 0.7), at_most("memory", 900, 1024, "MiB"), Figure("rate too", 5, "5/s")]
    write(Report("core", {"events": 5}, figures, {}).stamped(), tmp_path / "core.json")
    lines = markdown(read(tmp_path)).splitlines()
    command = "`python -m benchmarks core --events 5`"
    assert lines[2:5] == [
        f"| rate | 0.50 | ≥ 0.7 | **no** | {command} |",
        f"| memory | 900 MiB | ≤ 1024 MiB | yes | {command} |",
        f"| rate too | 5/s |  |  | {command} |",
    ]
    assert lines[-1].startswith("Measured ")


def test_a_directory_without_reports_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="python -m benchmarks all --json"):
        read(tmp_path)


def test_plots_say_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        draw([], tmp_path)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_what_all_runs_is_taken_by_the_command_line(name: str, quick: bool) -> None:
    command, *words = [*ALL[name], *(QUICK[name] if quick else [])]
    group = typer.main.get_command(app)
    found = group.commands[command]  # type: ignore[attr-defined]
    assert found.make_context(command, [*words, "--json", "file.json"]).params["json"] == Path("file.json")


def test_a_process_s_peak_is_its_own_memory_and_not_that_of_its_starter(tmp_path: Path) -> None:
    ballast = bytearray(b"x") * (200 << 20)
    process = Process([sys.executable, "-c", KEEPS_50_MIB], tmp_path / "log", {})
    try:
        wait_until(lambda: "ready" in process.log.read_text(), 20, "it has its memory")
        assert 50 < process.rss_mib() < 150
    finally:
        used = process.end()
    assert 50 < used.peak_rss_mib < 150 < len(ballast) >> 20
    assert used.cpu_s > 0
    assert not process.running()


def test_cpu_seconds_of_a_process_are_those_that_it_has_used() -> None:
    assert cpu_s(os.getpid()) == pytest.approx(time.process_time(), abs=0.2)  # they are told in ticks
