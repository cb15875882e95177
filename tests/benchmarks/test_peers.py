"""The comparison with other systems: which measurement counts, and what is said where something is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.peers import install
from benchmarks.peers.rates import Rate, best, middle, times_as_fast
from benchmarks.process import cpu_s, family_cpu_s
from benchmarks.steps import run_of


def rate(side: str, number: int, setting: str, runs_per_s: float, calls: int = 1) -> Rate:
    return Rate(side, calls, number, setting, runs_per_s, 1.0)


RATES = [
    rate("onceflow", 1, "one cell", 900),
    rate("onceflow", 2, "one cell", 600),
    rate("peer", 1, "8 threads", 20),
    rate("peer", 1, "16 threads", 30),
    rate("peer", 2, "8 threads", 15),
    rate("peer", 2, "16 threads", 10),
    rate("peer", 2, "16 threads", 1_000, calls=3),
]


def test_a_system_counts_with_the_setting_that_was_its_fastest_in_each_round() -> None:
    assert [each.setting for each in best(RATES, "peer", 1).values()] == ["16 threads", "8 threads"]
    assert middle(RATES, "peer", 1) == (30 + 15) / 2


def test_systems_are_compared_within_their_round() -> None:
    assert times_as_fast(RATES, "onceflow", "peer", 1) == [30, 40]


def test_a_rate_is_that_of_the_seconds_that_were_measured() -> None:
    found = Rate.of("peer", 3, 1, "8 threads", runs=500, took_s=2.0, cpu_s=1.5)
    assert (found.runs_per_s, found.cpu_ms_per_run) == (250, 3.0)


def test_a_run_has_the_number_of_its_event() -> None:
    assert [run_of(event) for event in ("evt-000000000", "evt-000000999")] == ["0", "999"]


def test_postgres_is_found_in_the_path_and_else_where_debian_keeps_its_newest(tmp_path: Path) -> None:
    def programs(directory: Path) -> Path:
        directory.mkdir(parents=True)
        for name in ("initdb", "postgres"):
            (directory / name).touch()
        return directory

    path = os.pathsep.join(str(tmp_path / name) for name in ("none", "own"))
    assert install.postgres_programs(path, tmp_path / "debian") is None
    programs(tmp_path / "debian/9.6/bin")
    newest = programs(tmp_path / "debian/15/bin")
    assert install.postgres_programs(path, tmp_path / "debian") == newest
    own = programs(tmp_path / "own")
    assert install.postgres_programs(path, tmp_path / "debian") == own


def test_what_is_missing_is_said_with_the_way_to_get_it_and_the_status_is_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "DEBIAN", tmp_path)
    assert shutil.which("npm") is None
    outcome = CliRunner().invoke(app, ["peers"])
    assert outcome.exit_code == 2
    assert "apt-get install postgresql" in outcome.stderr
    assert "apt-get install npm" in outcome.stderr


def test_the_cpu_of_a_family_is_that_of_all_its_members_and_of_those_that_have_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    before, own = family_cpu_s(os.getpid()), cpu_s(os.getpid())
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert family_cpu_s(os.getpid()) - before > 0.25  # it is told in ticks
    assert cpu_s(os.getpid()) - own < 0.25
