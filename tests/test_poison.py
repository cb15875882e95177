"""Poison: who is blamed for the deaths of a process."""

import random
from pathlib import Path

import pytest

from onceflow.agents.poison import (
    APART,
    BUSY,
    CONTROL_S,
    HELD,
    NAMES_BYTES,
    PLACES,
    Names,
    Suspicion,
    after_death,
)
from onceflow.errors import Fault
from onceflow.stream.watch import open_watch
from tests.watching import A, B, C, D, controlled, name, watched

# --- Whom a death tells of ---


def test_one_death_blames_nobody() -> None:
    known = after_death(Suspicion(), [A, B], BUSY)
    assert (known.suspects, known.poison) == ([], {})


def test_a_death_with_nothing_under_way_tells_nothing() -> None:
    known = after_death(Suspicion(), [A], BUSY)
    assert after_death(known, [], BUSY).suspects == []


def test_what_was_under_way_at_two_deaths_is_suspected_though_others_came_between() -> None:
    known = Suspicion()
    for found in ([A, B], [C], [B, D]):
        known = after_death(known, found, BUSY)
    assert (known.suspects, known.poison) == ([B], {})


def test_a_suspect_that_was_alone_at_a_death_is_poison() -> None:
    known = after_death(Suspicion(suspects=[A]), [A], APART)
    assert known.poison == {A: 1}
    assert known.suspects == [A], "what it has done must be undone, and that may kill as well"


def test_of_several_suspects_one_that_happened_to_be_first_is_not_blamed_yet() -> None:
    known = after_death(Suspicion(suspects=[A, B, C], together=3), [B], APART)
    assert (known.poison, known.together, known.suspects[0]) == ({}, 1, B)
    assert after_death(known, [B], APART).poison == {B: 1}


def test_of_several_suspects_that_were_under_way_half_run_together_next_and_nobody_is_blamed() -> None:
    known = after_death(Suspicion(suspects=[A, B, C, D], together=4), [A, B, C], APART)
    assert (set(known.suspects[:3]), known.suspects[3:]) == ({A, B, C}, [D])
    assert (known.together, known.poison) == (2, {})


def test_suspects_are_acquitted_when_the_process_dies_while_they_wait() -> None:
    known = after_death(Suspicion(deaths=[[A, C], [A, C]], suspects=[A]), [B, C], HELD)
    assert (known.suspects, known.deaths) == ([C], [[C], [C], [B, C]]), "and others are suspected as ever"
    assert after_death(known, [A], BUSY).suspects == [C], "what was before does not count any more"


def test_suspects_are_not_acquitted_by_a_death_at_which_another_one_was_computing() -> None:
    known = after_death(Suspicion(deaths=[[A], [A]], suspects=[A]), [B], HELD, computing=True)
    assert known.suspects == [A]


def test_one_that_was_never_suspected_is_not_blamed_for_being_alone() -> None:
    assert after_death(Suspicion(suspects=[A]), [B], APART).poison == {}


def test_poison_stays_poison_when_the_process_dies_while_its_compensation_waits() -> None:
    known = after_death(Suspicion(suspects=[A], poison={A: 1}), [B], HELD)
    assert (known.suspects, known.poison) == ([A], {A: 1})


@pytest.mark.parametrize("seed", range(20))
def test_of_many_under_way_the_one_that_kills_is_found_in_few_deaths_and_no_other_is_blamed(
    seed: int,
) -> None:
    draw = random.Random(seed)
    names = [name(number) for number in range(1, 101)]
    killer = draw.choice(names)
    known, deaths = Suspicion(), 0
    while killer not in known.poison:
        deaths += 1
        assert deaths <= 3 + 7, "two make it a suspect; then log2(100), and one of it alone"
        watch = watched(known)
        suspected = [each for each in names if watch.hold(each, "acme")]
        controlled(watch)
        while suspected and killer not in watch.group:
            for each in list(watch.group):
                watch.over(each)
            watch.next_group()
        known = after_death(known, watch.group or names, watch.names.treated)
    assert set(known.poison) == {killer}


@pytest.mark.parametrize("killers", range(1, 7))
def test_several_that_kill_at_once_are_all_found(killers: int) -> None:
    """They are read again in the same order each time, before anything else, and kill while they compute."""
    events = [name(number) for number in range(1, killers + 3)]
    known, deaths, done = Suspicion(), 0, set[bytes]()
    while len(known.poison) < killers:
        deaths += 1
        assert deaths <= 8 * killers
        watch = watched(known)
        to_do = [each for each in events if each not in done and each not in known.poison]
        computing = next((e for e in to_do if not watch.hold(e, "acme") and events.index(e) < killers), None)
        controlled(watch)
        while computing is None:
            watch.next_group()
            computing = next((each for each in watch.group if events.index(each) < killers), None)
            for each in [] if computing else list(watch.group):
                done.add(each)
                watch.over(each)
        known = after_death(known, [computing], watch.names.treated, computing=True)
    assert set(known.poison) == set(events[:killers])


@pytest.mark.parametrize("seed", range(20))
def test_a_process_that_is_killed_from_outside_again_and_again_blames_nobody(seed: int) -> None:
    """Each life is too short for the control to end; some hundred runs are under way, some of them for long."""
    draw = random.Random(seed)
    known, runs = Suspicion(), [name(number) for number in range(1, 101)]
    for number in range(200):
        watch = watched(known)
        under_way = [run for run in runs if not watch.hold(run, "acme")]
        watch.look_at(0.0)
        watch.look_at(draw.uniform(0.0, CONTROL_S * 0.99))
        assert not watch.waiting
        runs = [*draw.sample(runs, 95), *(name(1000 + 5 * number + new) for new in range(5))]
        computing = draw.random() < 0.3
        known = after_death(known, under_way, watch.names.treated, computing=computing)
    assert known.poison == {}


# --- The names, and the file in which they outlive the process ---


def test_a_name_is_there_from_its_begin_to_its_end() -> None:
    names = Names(memoryview(bytearray(NAMES_BYTES)))
    names.enter(A)
    names.enter(B)
    names.computing[:] = C
    assert names.found() == {A, B, C}
    names.leave(A)
    names.rest()
    assert names.found() == {B}


def test_more_runs_than_there_are_places_go_without_a_name() -> None:
    names = Names(memoryview(bytearray(NAMES_BYTES)))
    for number in range(1, PLACES + 3):
        names.enter(name(number))
    assert len(names.found()) == PLACES
    for number in range(1, PLACES + 3):
        names.leave(name(number))
    assert names.found() == set()


def test_a_process_finds_what_was_under_way_when_the_one_before_died(tmp_path: Path) -> None:
    for _ in range(2):
        watch = open_watch(tmp_path)
        assert watch.clears([A])
        watch.names.enter(A)
    assert open_watch(tmp_path).hold(A, "acme")


def test_a_process_that_ends_well_blames_nobody(tmp_path: Path) -> None:
    for _ in range(4):
        watch = open_watch(tmp_path)
        assert watch.clears([A])
        watch.names.enter(A)
        watch.names.clear()


def test_once_a_process_ends_nothing_that_is_still_under_way_is_to_blame(tmp_path: Path) -> None:
    for _ in range(3):
        watch = open_watch(tmp_path)
        watch.names.enter(A)
        watch.names.close()
        watch.names.enter(B)
        watch.names.computing[:] = C
        assert open_watch(tmp_path).clears([A, B, C])


def test_a_full_disk_is_a_fault_that_names_the_directory(tmp_path: Path) -> None:
    (tmp_path / "under-way").mkdir()  # in its way, as good as a full disk
    with pytest.raises(Fault, match=f"{tmp_path} cannot be written"):
        open_watch(tmp_path)


def test_a_death_counts_once_though_the_next_process_dies_while_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_watch(tmp_path).names.enter(A)
    with monkeypatch.context() as patched:
        patched.setattr(Names, "begin", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            open_watch(tmp_path)
    assert open_watch(tmp_path).clears([A])


def test_a_suspect_that_survives_is_cleared_for_the_next_process_too(tmp_path: Path) -> None:
    for _ in range(2):
        open_watch(tmp_path).names.enter(A)
    watch = open_watch(tmp_path)
    watch.hold(A, "acme")
    assert watch.next_group() == {"acme"}
    watch.over(A)
    assert watch.clears([A])
    assert open_watch(tmp_path).clears([A])


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x91\x63"])
def test_what_an_unknown_version_has_left_is_told_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "suspicion").write_bytes(content)
    (tmp_path / "under-way").write_bytes(content)
    assert open_watch(tmp_path).clears([A])
