"""The demo: its day, its checker (which must see every kind of fault), and one real run."""

import fcntl
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from onceflow import devkafka
from onceflow.demo import run_demo
from onceflow.demo.day import (
    LARGE_TENANT,
    Completion,
    Day,
    Faults,
    Letter,
    MustEnd,
    Sent,
    check_completions,
    check_letters,
    make_day,
    run_id,
    status_of,
)
from onceflow.demo.report import Outcome, judge
from onceflow.demo.wire import Found, recovered_ms
from onceflow.errors import ConfigError
from tests.waiting import wait_until

RUNS = {
    "r1": MustEnd("acme", "acme-000001", "reconcile.completed", "matched", "INV-000001"),
    "r2": MustEnd("acme", "acme-000002", "reconcile.completed", "unmatched", "INV-000002"),
    "r3": MustEnd("umbra", "umbra-000003", "reconcile.failed", "invalid-data", "INV-000003"),
}
RIGHT = [
    Completion(
        "r1", "acme", "acme-000001", RUNS["r1"].type, {"status": "matched", "invoice": "INV-000001"}, 0, 10
    ),
    Completion(
        "r2", "acme", "acme-000002", RUNS["r2"].type, {"status": "unmatched", "invoice": "INV-000002"}, 0, 20
    ),
    Completion("r3", "umbra", "umbra-000003", "reconcile.failed", {"code": "invalid-data"}, 1, 30),
]
BAD = {
    "events/0/7": Sent("events", b"k", b"junk", reason="undecodable"),
    "events/0/8": Sent("events", b"k", None, reason="undecodable"),
    "r3": Sent("events", b"umbra", b"{}", "r3", "agent-failed"),
    "events/1/9": Sent("events", b"k", b"x" * 70_000, reason="too-large"),
}
RIGHT_LETTERS = [
    Letter("events/0/7", "", "undecodable", b"junk"),
    Letter("events/0/8", "", "undecodable", None),
    Letter("events/1/3", "r3", "agent-failed", b"{}"),
    Letter("events/1/9", "", "too-large", b"x" * (64 << 10)),
]


def test_the_key_is_that_of_the_published_example() -> None:
    assert run_id("acme", "erp/netsuite", "evt-1", b'{"x":1}') == "a78c26d09a35e4cb73d0255993ab7bce"


def test_a_day_has_what_it_promises() -> None:
    day = make_day(20_000)
    assert day == make_day(20_000)
    assert len(day.records) == 20_000
    assert day.copies == 2_000
    assert set(day.bad) == {
        *("undecodable", "invalid", "wrong-tenant", "too-large", "unknown-type", "agent-failed"),
    }
    sent = [record.run for record in day.records if record.run and not record.is_copy]
    assert len(sent) == len(set(sent)) == len(day.runs)
    tenants = [must.tenant for must in day.runs.values()]
    assert len(set(tenants)) == 340
    assert 0.7 < tenants.count(LARGE_TENANT) / (14 * len(tenants) / 353) < 1.3
    assert {must.status for must in day.runs.values()} == {
        *("matched", "unmatched", "ambiguous", "amount-differs", "invalid-data"),
    }


def test_copies_come_after_their_firsts_and_are_the_same_bytes() -> None:
    first: dict[str, Sent] = {}
    for record in make_day(3_000).records:
        if record.is_copy:
            assert first[record.run].value == record.value
        elif record.run:
            first[record.run] = record


def test_the_rule_of_the_simulated_service_is_the_one_that_the_flow_follows() -> None:
    """The checker has its own copy of the rule; here the two are compared."""
    service = pytest.importorskip("flows.ledger_service")
    for number in range(300):
        lot = service.digest("acme", f"INV-{number}")[0]
        expected = next(
            name
            for name, end in (
                ("matched", 200),
                ("unmatched", 220),
                ("ambiguous", 238),
                ("amount-differs", 256),
            )
            if lot < end
        )
        assert status_of("acme", f"INV-{number}") == expected


@pytest.mark.parametrize(
    ("seeded", "expected"),
    [
        (lambda all_: all_, Faults([], [], [], [])),
        (lambda all_: all_[1:], Faults(["r1"], [], [], [])),
        (lambda all_: [*all_, all_[1]], Faults([], ["r2"], [], [])),
        (lambda all_: [*all_, all_[0]._replace(run="r9")], Faults([], [], ["r9"], [])),
        (lambda all_: [all_[0]._replace(tenant="umbra"), *all_[1:]], Faults([], [], [], ["r1"])),
        (lambda all_: [all_[0]._replace(event_id="acme-7"), *all_[1:]], Faults([], [], [], ["r1"])),
        (
            lambda all_: [all_[0]._replace(data={"status": "ambiguous"}), *all_[1:]],
            Faults([], [], [], ["r1"]),
        ),
        (lambda all_: [*all_[:2], all_[2]._replace(type="reconcile.completed")], Faults([], [], [], ["r3"])),
    ],
)
def test_the_checker_sees_completions_lost_twice_foreign_and_wrong(
    seeded: Callable[[list[Any]], list[Any]], expected: Faults
) -> None:
    assert check_completions(RUNS, seeded(RIGHT)) == expected


@pytest.mark.parametrize(
    ("seeded", "expected"),
    [
        (lambda all_: all_, Faults([], [], [], [])),
        (lambda all_: all_[:2] + all_[3:], Faults(["r3"], [], [], [])),
        (lambda all_: [*all_, all_[0]], Faults([], ["events/0/7"], [], [])),
        (lambda all_: [*all_, all_[0]._replace(origin="events/5/5")], Faults([], [], ["events/5/5"], [])),
        (lambda all_: [all_[0]._replace(reason="invalid"), *all_[1:]], Faults([], [], [], ["events/0/7"])),
        (lambda all_: [all_[0]._replace(value=b"other"), *all_[1:]], Faults([], [], [], ["events/0/7"])),
    ],
)
def test_the_checker_sees_dead_letters_lost_twice_foreign_and_wrong(
    seeded: Callable[[list[Any]], list[Any]], expected: Faults
) -> None:
    assert check_letters(BAD, seeded(RIGHT_LETTERS)) == expected


def outcome(completions: list[Completion], letters: list[Letter], duplicates: int) -> Outcome:
    records = [
        *(Sent("events", b"k", b"{}", run) for run in ("r1", "r2")),
        Sent("events", b"k", b"{}", "r1", is_copy=True),
        *BAD.values(),
    ]
    origins = {name: sent for name, sent in BAD.items() if not sent.run}
    return Outcome(
        Day(records, RUNS), origins, Found(completions, letters), 0, 15, 20, duplicates, {"cell 1": 0}
    )


def test_the_table_is_right_only_if_every_count_is() -> None:
    def wrong(*given: Any) -> set[str]:
        return {line.what for line in judge(outcome(*given))[0] if line.must != line.found}

    assert wrong(RIGHT, RIGHT_LETTERS, 1) == set()
    assert wrong(RIGHT, RIGHT_LETTERS, 0) == {"duplicates stopped"}
    assert wrong(RIGHT[1:], RIGHT_LETTERS, 1) == {"runs completed", "lost"}
    # One lost and one twice: the sum is right, and yet it shows.
    assert wrong([*RIGHT[1:], RIGHT[1]], RIGHT_LETTERS, 1) == {"lost", "twice"}
    stray = Letter("events/5/5", "", "poison", b"")
    assert wrong(RIGHT, [*RIGHT_LETTERS, stray], 1) == {"dead letters: poison", "from nowhere"}


def test_a_cell_has_recovered_when_a_run_completes_in_its_slots_after_the_kill() -> None:
    assert recovered_ms(RIGHT, {0}, 5) == 10
    assert recovered_ms(RIGHT, {0}, 10) == 20
    assert recovered_ms(RIGHT, {0}, 20) is None
    assert recovered_ms(RIGHT, {1}, 5) == 30


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")
    with pytest.raises(ConfigError, match="--dir"):
        run_demo(200, tmp_path, console=Console(file=io.StringIO()))
    assert (tmp_path / "thesis.txt").read_text() == "the only copy"


def test_a_directory_that_cannot_be_made_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file cannot be used as a directory .*--dir"):
        run_demo(200, tmp_path / "file", console=Console(file=io.StringIO()))


@pytest.mark.crash
def test_the_demo_counts_right_though_a_cell_is_killed_and_leaves_nothing_running(tmp_path: Path) -> None:
    screen = io.StringIO()
    directory = tmp_path / "demo"
    assert run_demo(2_000, directory, console=Console(file=screen, width=120)), screen.getvalue()
    text = screen.getvalue()
    assert "is killed (SIGKILL)" in text
    assert re.search(r"lost +0 +0 +ok", text)
    assert re.search(r"twice +0 +0 +ok", text)
    assert "WRONG" not in text
    assert devkafka.status(directory / "kafka") is None
    wait_until(lambda: not _locked(directory / "cell-1") and not _locked(directory / "cell-2"))


def _locked(state: Path) -> bool:
    """Whether a cell lives: it holds its state directory's lock while it does."""
    with (state / "cell.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
