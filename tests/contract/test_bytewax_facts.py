"""What the design takes for granted about Bytewax: each test is one fact, on a flow under `bytewax.run`.

The version is pinned, since some of this is how it happens to behave, not what it promises.
"""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from itertools import islice
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FROM_PYTHON = (sys.executable, "-m")


def command(recovery: Path | None = None, epoch_s: int = 10) -> tuple[str, ...]:
    run = (*FROM_PYTHON, "bytewax.run", "probe_flow")
    return run if recovery is None else (*run, "-r", str(recovery), "-s", str(epoch_s), "-b", "0")


def environment(asked: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE), **asked}


def run(recovery: Path | None = None, epoch_s: int = 10, **asked: str) -> tuple[int, list[str], str]:
    """Exit status, what the flow said, standard error."""
    done = subprocess.run(
        command(recovery, epoch_s),
        env=environment(asked),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.fixture
def recovery(tmp_path: Path) -> Path:
    subprocess.run((*FROM_PYTHON, "bytewax.recovery", str(tmp_path), "1"), check=True, timeout=60)
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({}, 0),
        ({"SOURCE": "raise"}, 1),
        ({"SOURCE": "exit"}, 1),  # SystemExit(3), that is: the status is not carried
        ({"SOURCE": "raise", "HOOK": "3"}, 3),
        ({"SOURCE": "exit", "HOOK": "3"}, 3),
        ({"WRITE": "raise", "HOOK": "3"}, 3),
        ({"CLOSE": "raise"}, 1),
        ({"CLOSE": "raise", "HOOK": "3"}, 3),
        ({"CLOSE": "die", "HOOK": "3"}, 7),
    ],
)
def test_only_a_hook_set_at_import_or_os_exit_gives_the_process_a_status(
    asked: dict[str, str], status: int
) -> None:
    assert run(**asked)[0] == status


def test_the_hook_also_catches_a_recovery_directory_that_was_not_initialised(tmp_path: Path) -> None:
    assert run(tmp_path, HOOK="2")[0] == 2


def test_an_error_in_close_while_another_error_is_under_way_aborts_the_process_without_the_hook() -> None:
    """Hence close() raises nothing."""
    status, said, _ = run(WRITE="raise", CLOSE="raise", HOOK="3")
    assert status == -signal.SIGABRT
    assert said[-1] == "sink close"


def test_the_end_of_the_source_closes_the_source_first_and_the_sink_last(recovery: Path) -> None:
    """The source is closed before the last items are written: what the sink needs must outlive it."""
    status, said, _ = run(recovery)
    assert status == 0
    assert said[said.index("write 5") :] == [
        "write 5",
        "source snapshot 5",
        "source close",
        "logic end",
        "logic snapshot",
        "write 0",
        "sink snapshot",
        "sink close",
    ]  # fmt: skip
    assert "source resumes at 5" in run(recovery)[1], "and the snapshots are kept"


def test_after_an_error_source_and_sink_are_closed_too_and_nothing_is_snapshot() -> None:
    """So close() alone doesn't say that the flow ended well."""
    status, said, _ = run(SOURCE="raise")
    assert status == 1
    assert said[-3:] == ["write 5", "source close", "sink close"]


def test_the_sink_is_closed_before_the_last_snapshots_are_on_disk(recovery: Path) -> None:
    """Dying there repeats the last epoch: recovery is behind what was written, never ahead."""
    assert run(recovery, CLOSE="die")[0] == 7
    [resumed] = [line for line in run(recovery)[1] if line.startswith("source resumes")]
    assert resumed == "source resumes at None"


@pytest.mark.parametrize(("sink", "loses"), [("dynamic", True), ("fixed", False)])
def test_items_on_their_way_to_a_dynamic_sink_are_lost_by_a_crash_and_to_a_fixed_one_are_not(
    recovery: Path, sink: str, loses: bool
) -> None:
    """Recovery does not follow the progress of dynamic sinks. (It takes a chain of some twenty operators.)"""
    asked = {"SINK": sink, "CHAIN": "40", "COUNT": "60"}
    status, before, _ = run(recovery, 0, WRITE="die at 30", **asked)
    assert status == 9
    status, after, _ = run(recovery, 0, **asked)
    assert status == 0
    written = {line for line in before + after if line.startswith("write")}
    missing = {f"write {number}" for number in range(1, 61)} - written
    assert bool(missing) == loses
    assert ("write 30" in missing) == loses


def test_a_source_whose_list_of_partitions_shrank_panics(recovery: Path) -> None:
    assert run(recovery, PARTS="one,two")[0] == 0
    status, _, errors = run(recovery, PARTS="one")
    assert status != 0
    assert "panicked" in errors
    assert "routing map" in errors


@pytest.mark.parametrize(("awake_s", "delayed"), [("0.1", False), ("2", True)])
def test_a_far_next_awake_delays_the_end(awake_s: str, delayed: bool) -> None:
    asked = environment({"SOURCE": "idle", "AWAKE_S": awake_s})
    with subprocess.Popen(command(), env=asked, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "idle\n" for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        asked_at = time.monotonic()
        assert process.wait(30) == 0
    assert (time.monotonic() - asked_at > 1.5) == delayed


def test_a_source_that_is_due_since_long_ago_is_asked_again_at_once() -> None:
    """Whatever the clock says: a time that lies ahead is that of the day, and comes late when the clock is set back."""
    asked = environment({"SOURCE": "idle", "AWAKE_S": "-1000000000"})
    with subprocess.Popen(command(), env=asked, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        idle = (line for line in process.stdout if line == "idle\n")
        assert len([*islice(idle, 1_000)]) == 1_000
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_the_private_argument_parser_tells_how_a_flow_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """What refuses clusters and finds the recovery directory reads these, while the flow is imported."""
    from bytewax.run import _parse_args

    monkeypatch.setattr(
        sys, "argv", ["bytewax.run", "flows.x:flow", "-r", "d", "-s", "1", "-b", "0", "-w", "2"]
    )
    assert vars(_parse_args()) == {
        "import_str": "flows.x:flow",
        "recovery_directory": Path("d"),
        "snapshot_interval": timedelta(seconds=1),
        "backup_interval": timedelta(0),
        "workers_per_process": 2,
        "process_id": None,
        "addresses": None,
    }
    monkeypatch.setattr(sys, "argv", ["bytewax.run", "flows.x"])
    monkeypatch.setenv("BYTEWAX_RECOVERY_DIRECTORY", "e")
    monkeypatch.setenv("BYTEWAX_SNAPSHOT_INTERVAL", "2")
    monkeypatch.setenv("BYTEWAX_RECOVERY_BACKUP_INTERVAL", "3")
    monkeypatch.setenv("BYTEWAX_PROCESS_ID", "0")
    monkeypatch.setenv("BYTEWAX_ADDRESSES", "one:1;two:2")
    found = _parse_args()
    assert (found.recovery_directory, found.snapshot_interval) == (Path("e"), timedelta(seconds=2))
    assert (found.process_id, found.addresses) == (0, "one:1;two:2")


def test_a_flow_can_tell_at_import_that_bytewax_runs_it() -> None:
    assert "imported by bytewax.run" in run()[1]
