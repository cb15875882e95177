"""Poison: who is blamed for the deaths of a process, and how those run that are suspected."""

import random
from pathlib import Path
from typing import Any

import pytest

from onceflow.agents.agent import agent
from onceflow.agents.call import Call
from onceflow.agents.calls import Completed, RunFailed
from onceflow.agents.commands import Command
from onceflow.agents.happenings import Commanded, Lost, Turn
from onceflow.agents.poison import (
    APART,
    APART_S,
    BUSY,
    CONTROL_S,
    HELD,
    NAMES_BYTES,
    PLACES,
    UNDONE_TOO,
    Names,
    Suspicion,
    Watch,
    after_death,
)
from onceflow.agents.run import Run
from onceflow.agents.signals import Signal
from onceflow.agents.tool import tool
from onceflow.errors import Fault
from onceflow.event import Event, Reason
from onceflow.stream.watch import open_watch
from tests.tenant import KEY, Tenant


def name(number: int) -> bytes:
    return Tenant.event_key(number)


A, B, C, D = name(1), name(2), name(3), name(4)

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


def watched(known: Suspicion) -> Watch:
    return Watch(Names(memoryview(bytearray(NAMES_BYTES))), known, lambda _: None)


def controlled(watch: Watch) -> None:
    """The time of the control is over."""
    for now_s in (5.0, 5.0 + CONTROL_S):
        watch.look_at(now_s)


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


# --- How runs begin that are suspected ---


@tool(effect="read")
async def look(call: Call) -> int:
    raise AssertionError("nobody carries out calls here")


@tool(effect="keyed", ttl=86_400)
async def pay(call: Call) -> int:
    raise AssertionError("nobody carries out calls here")


@pay.compensate
async def refund(call: Call, result: int | None) -> None:
    raise AssertionError("nobody carries out calls here")


@agent("looks", on="t")
async def looks(run: Run, event: Event) -> int:
    return await run.call(look)


@agent("pays", on="t")
async def pays(run: Run, event: Event) -> int:
    await run.call(pay)
    return await run.call(look)


@tool(effect="keyed", scope="tenant", key_fields=("customer",))
async def welcome(call: Call, customer: str) -> int:
    raise AssertionError("nobody carries out calls here")


@agent("greets", on="t")
async def greets(run: Run, event: Event) -> int:
    return await run.call(welcome, customer="ann")


@agent("waits", on="t")
async def waits(run: Run, event: Event) -> str:
    return str((await run.wait_for("news", event.id)).status)


@agent("at-once", on="t")
async def at_once(run: Run, event: Event) -> str:
    return "done"


@pytest.fixture
def tenant() -> Tenant:
    return Tenant(looks, pays, greets, waits, at_once)


def watching(**known: Any) -> Watch:
    return watched(Suspicion(**known))


def turns(tenant: Tenant) -> None:
    """The lane gets its turn, if it has one."""
    for _ in tenant.capacity.turns():
        tenant.take(Turn())


def test_runs_are_named_while_they_are_under_way(tenant: Tenant) -> None:
    names = tenant.capacity.watch.names
    tenant.event(looks, 1)
    tenant.event(looks, 2)
    tenant.event(at_once, 3)
    assert names.found() == {A, B}
    tenant.answer(1)
    assert names.found() == {B}


def test_the_run_that_computes_is_named(tenant: Tenant) -> None:
    found = []

    @agent("peeps", on="t")
    async def peeps(run: Run, event: Event) -> None:
        found.extend(tenant.capacity.watch.names.found())

    tenant.event(peeps, 4)
    assert found == [D]


def test_a_suspect_waits_while_others_run_until_the_process_has_lived_for_so_long(tenant: Tenant) -> None:
    tenant.begin_anew(watching(suspects=[B]))
    tenant.event(looks, 2)
    tenant.event(looks, 1)
    for now_s in (100.0, 100.0 + CONTROL_S * 0.99):
        assert tenant.capacity.turns(now_s) == []
    tenant.event(looks, 3)
    assert [call.run.token.key for call in tenant.started] == [A, C]
    assert tenant.capacity.watch.names.treated == HELD


def test_then_it_waits_until_nothing_else_is_under_way_and_nothing_begins_before_it_is_done(
    tenant: Tenant,
) -> None:
    tenant.begin_anew(watching(suspects=[B]))
    tenant.event(looks, 1)
    tenant.event(looks, 2)
    controlled(tenant.capacity.watch)
    tenant.event(looks, 3)
    turns(tenant)
    assert [call.run.token.key for call in tenant.started] == [A], "the first is under way"
    tenant.answer(1)
    turns(tenant)
    assert [call.run.token.key for call in tenant.started] == [B], "it runs apart"
    assert tenant.capacity.watch.names.treated == APART
    tenant.answer(1)
    assert tenant.capacity.watch.names.treated == BUSY
    assert tenant.capacity.watch.clears([B]), "it has survived"
    turns(tenant)
    assert [call.run.token.key for call in tenant.started] == [C]


def test_a_suspect_that_ends_at_once_is_cleared_too(tenant: Tenant) -> None:
    tenant.begin_anew(watching(suspects=[A]))
    tenant.event(at_once)
    assert tenant.ended == []
    controlled(tenant.capacity.watch)
    turns(tenant)
    assert tenant.outcome == Completed("done")
    assert not tenant.capacity.watch.waiting


def test_a_run_that_is_woken_waits_for_those_that_run_apart_and_its_signal_is_on_record(
    tenant: Tenant,
) -> None:
    tenant.event(waits, 1)
    tenant.begin_anew(watching(suspects=[B]))
    tenant.resume()
    tenant.event(looks, 2)
    controlled(tenant.capacity.watch)
    turns(tenant)
    assert [call.run.token.key for call in tenant.started] == [B]
    tenant.signalled(Signal("news", "evt-1", "done", {}, "world", "1"))
    assert tenant.capacity.watch.names.found() == {B}
    (entry,) = [entry for entry in tenant.memory.saved(A).journal.values() if entry.wait]
    assert entry.result is not None, "whoever dies now"
    tenant.answer(1)
    turns(tenant)
    assert [type(ended.outcome) for ended in tenant.ended] == [Completed, Completed]


def test_a_standstill_ends_though_one_that_runs_apart_waits_for_one_that_waits(tenant: Tenant) -> None:
    """Two calls with one key: the run that makes it is held, the other one waits for it, apart."""
    tenant.event(greets, 1)
    tenant.begin_anew(watching(suspects=[B, A]))
    tenant.resume()
    tenant.event(greets, 2)

    def at(now_s: float) -> set[bytes]:
        for _ in tenant.capacity.turns(now_s):
            tenant.take(Turn())
        tenant.commit()
        return {call.run.token.key for call in tenant.started}

    assert [at(now_s) for now_s in (0.0, CONTROL_S, CONTROL_S)] == [set()] * 3
    tenant.event(looks, 3)
    assert at(CONTROL_S + APART_S) == set()
    assert at(CONTROL_S + APART_S + 0.1) == {A, C}
    assert tenant.capacity.watch.clears([A, B])


def test_a_run_that_is_held_can_be_cancelled(tenant: Tenant) -> None:
    tenant.begin_anew(watching(suspects=[A]))
    tenant.event(looks)
    tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", KEY.hex())))
    assert tenant.outcome.code == "cancelled"
    assert tenant.lane.idle
    controlled(tenant.capacity.watch)
    assert not tenant.capacity.watch.waiting


@pytest.mark.parametrize("apart", [False, True])
def test_a_person_may_decide_about_poison_that_waits_to_be_undone_or_is(tenant: Tenant, apart: bool) -> None:
    tenant.event(pays)
    tenant.answer(1)
    tenant.begin_anew(watching(suspects=[A], poison={A: 1}))
    tenant.resume()
    controlled(tenant.capacity.watch)
    if apart:
        turns(tenant)
    tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", KEY.hex())))
    turns(tenant)
    assert tenant.answer(None).kind == "undo"
    assert tenant.outcome.code == (Reason.POISON if apart else "cancelled")
    assert not tenant.capacity.watch.waiting


def test_the_room_of_a_suspect_whose_slot_is_lost_is_free_and_it_is_still_suspected(tenant: Tenant) -> None:
    tenant.begin_anew(watching(suspects=[A, B]))
    tenant.event(looks, 1)
    controlled(tenant.capacity.watch)
    turns(tenant)
    tenant.event(looks, 2)
    tenant.take(Lost(tenant.source.grant))
    assert tenant.capacity.watch.names.treated == BUSY
    assert not tenant.capacity.watch.waiting
    assert not tenant.capacity.watch.clears([A])


def test_poison_ends_as_failed_with_that_reason_and_is_not_tried_again(tenant: Tenant) -> None:
    tenant.begin_anew(watching(poison={A: 1}))
    tenant.event(looks)
    assert isinstance(tenant.outcome, RunFailed)
    assert tenant.outcome.code == Reason.POISON
    assert tenant.started == []


def test_what_poison_has_done_is_undone_and_its_agent_does_not_go_on(tenant: Tenant) -> None:
    tenant.event(pays)
    tenant.answer(1)
    tenant.begin_anew(watching(suspects=[A], poison={A: 1}))
    tenant.resume()
    assert tenant.started == []
    controlled(tenant.capacity.watch)
    turns(tenant)
    assert tenant.answer(None).kind == "undo"
    assert tenant.outcome.code == Reason.POISON


def test_poison_that_kills_even_when_it_is_undone_is_parked_until_a_person_has_decided(
    tenant: Tenant,
) -> None:
    tenant.event(pays)
    tenant.answer(1)
    tenant.begin_anew(watching(poison={A: 2}))
    tenant.resume()
    assert tenant.started == []
    parked = tenant.parked[-1]
    assert parked is not None
    assert (parked.reason, parked.message) == (Reason.UNKNOWN_OUTCOME, UNDONE_TOO)
    segments = tenant.memory.saved(KEY).segments
    tenant.take(Commanded(tenant.source, 9, 1, Command("again", "acme", KEY.hex(), segments)))
    tenant.answer(2)
    assert tenant.outcome == Completed(2), "its agent has been mended"
