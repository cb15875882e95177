"""Shared calls whose runs are open for longer than their `ttl`, and how large the record of many runs is."""

from datetime import timedelta

import msgspec
import pytest

from onceflow.agents import shared
from onceflow.agents.agent import agent
from onceflow.agents.call import Call, RetryPolicy
from onceflow.agents.calls import Completed
from onceflow.agents.commands import Command
from onceflow.agents.happenings import Commanded, Due
from onceflow.agents.run import Run
from onceflow.agents.shared import Shared
from onceflow.agents.tool import tool
from onceflow.errors import Failed, RetryLater
from onceflow.event import Event
from tests.tenant import KEY, NOW, Tenant
from tests.test_shared import greets, greets_and_fails, letter, outcomes, resolve, welcome, writes

# --- When a run is open for longer than its ttl ---


@agent("greets-at-length", on="l")
async def greets_at_length(run: Run, event: Event) -> None:
    await run.call(welcome, customer="ann")
    await run.sleep(timedelta(hours=48))
    if event.data != 7:
        raise Failed("sold-out")


def long_runs(*data: bytes) -> tuple[Tenant, bytes]:
    """They have the result of one call; its ttl is over, and they sleep. The key of the record."""
    tenant = Tenant(greets, greets_at_length)
    for number, each in enumerate(data, 1):
        tenant.event(greets_at_length, number, data=each)
    tenant.answer("w-1")
    (key,) = {noted.changes[0][0] for noted in tenant.noted}
    tenant.now += 25 * 3_600_000
    tenant.take(Due(b"", key))
    return tenant, key


def wake(tenant: Tenant, *numbers: int) -> None:
    tenant.now = NOW + 49 * 3_600_000
    for number in numbers:
        tenant.take(Due(tenant.event_key(number)))
    tenant.commit()


def test_after_the_ttl_what_another_run_has_completed_with_is_left_standing() -> None:
    tenant, key = long_runs(b"1", b"7")
    wake(tenant, 2)
    tenant.take(Due(b"", key))
    assert key not in tenant.memory.records
    wake(tenant, 1)
    assert tenant.started == []
    assert tenant.ended[-1].outcome.code == "sold-out"


def test_after_the_ttl_it_is_undone_once_when_all_fail_that_have_it() -> None:
    tenant, _ = long_runs(b"1", b"1")
    wake(tenant, 1, 2)
    assert tenant.answer(None).kind == "undo"
    tenant.commit()
    assert tenant.started == []
    assert [end.code for end in outcomes(tenant)] == ["sold-out"] * 2


def test_what_an_open_run_may_have_to_undo_is_not_made_anew() -> None:
    tenant, _ = long_runs(b"1")
    tenant.event(greets, 2)
    tenant.commit()
    assert (tenant.started, outcomes(tenant)) == ([], [Completed("w-1")])
    wake(tenant, 1)
    assert tenant.started == []


def test_what_was_made_anew_since_is_not_undone_by_a_run_that_had_the_former_result() -> None:
    tenant, key = long_runs(b"1", b"7")
    wake(tenant, 2)
    tenant.take(Due(b"", key))
    tenant.event(greets, 3)
    tenant.answer("w-2")
    wake(tenant, 1)
    assert tenant.started == []


def test_its_time_is_looked_at_again_while_an_open_run_may_have_to_undo_it() -> None:
    """And at once when the last of them has completed."""
    tenant, key = long_runs(b"7", b"7")
    of_the_call = [due_ms for due, due_ms in tenant.planned if due.record == key]
    assert of_the_call == [NOW + 24 * 3_600_000, NOW + 24 * 3_600_000 + shared.OPEN_MS]
    tenant.planned.clear()
    wake(tenant, 1, 2)
    ((due, due_ms),) = tenant.planned
    assert due_ms <= tenant.now
    tenant.take(due)
    assert tenant.memory.records == {}


def test_after_a_restart_its_time_is_known_anew() -> None:
    tenant, key = long_runs(b"7")
    records = sorted(tenant.memory.records.items())
    assert shared.remembered(records) == [("acme", key, NOW + 24 * 3_600_000)]


def test_it_is_forgotten_in_the_end_whatever_became_of_the_open_runs() -> None:
    tenant, key = long_runs(b"1")
    tenant.now = NOW + 24 * 3_600_000 + shared.OPEN_MS
    tenant.take(Due(b"", key))
    assert key not in tenant.memory.records


def test_what_a_person_says_after_the_ttl_is_known_while_that_run_is_open() -> None:
    tenant = Tenant(writes)
    run = tenant.event(writes)
    tenant.answer(TimeoutError())
    (key,) = {noted.changes[0][0] for noted in tenant.noted if noted.changes}
    tenant.now += 25 * 3_600_000
    tenant.take(Due(b"", key))
    resolve(tenant, run, "result")
    tenant.take(Due(b"", key))
    assert tenant.outcome == Completed("seen")
    assert tenant.memory.records == {}


@tool(effect="keyed", scope="tenant", key_fields=("customer",), retry=RetryPolicy(attempts=1))
async def book_seat(call: Call, customer: str) -> str: ...  # type: ignore[empty-body]


@book_seat.compensate
async def free_seat(call: Call, result: str | None) -> None: ...


@agent("seats", on="i")
async def seats(run: Run, event: Event) -> str:
    found = await run.call(book_seat, customer="ann")
    if event.id == "evt-2":
        raise Failed("sold-out")
    return found


@pytest.mark.parametrize("days", [0, 2], ids=["within its ttl", "after it"])
def test_two_runs_are_told_of_a_call_and_what_the_first_completed_with_is_not_undone_by_the_second(
    days: int,
) -> None:
    tenant = Tenant(seats)
    first, second = tenant.event(seats), tenant.event(seats, 2)
    tenant.answer(TimeoutError())
    assert len(tenant.parked) == 2
    tenant.now += days * 24 * 3_600_000
    for key in (first, second):
        tenant.take(*[due for due, due_ms in tenant.planned if due_ms <= tenant.now])
        resolve(tenant, key, "result")
    tenant.commit()
    assert (tenant.started, outcomes(tenant)[0], outcomes(tenant)[1].code) == (
        [],
        Completed("seen"),
        "sold-out",
    )
    tenant.now += shared.OPEN_MS
    tenant.take(*[due for due, due_ms in tenant.planned if due_ms <= tenant.now])
    assert not [key for key in tenant.memory.records if b"\0k" in key], "it is not known for ever"


def test_what_one_of_two_parked_runs_has_completed_with_is_not_undone_by_the_other_told_after_the_ttl() -> (
    None
):
    tenant = Tenant(seats)
    first, second = tenant.event(seats), tenant.event(seats, 2)
    tenant.answer(TimeoutError())
    assert len(tenant.parked) == 2
    resolve(tenant, first, "again")
    tenant.answer("w-1")
    assert tenant.outcome == Completed("w-1")
    tenant.now += 25 * 3_600_000
    tenant.take(*[due for due, due_ms in tenant.planned if due_ms <= tenant.now])
    resolve(tenant, second, "result")
    tenant.commit()
    assert (tenant.started, outcomes(tenant)[1].code) == ([], "sold-out")
    tenant.now += 2 * shared.OPEN_MS
    tenant.take(*[due for due, due_ms in tenant.planned if due_ms <= tenant.now])
    assert not [key for key in tenant.memory.records if b"\0k" in key], "it is not known for ever"


def test_what_a_person_says_after_the_ttl_is_forgotten_where_nothing_can_be_undone() -> None:
    @agent("writes-and-fails", on="w")
    async def writes_and_fails(run: Run, event: Event) -> None:
        await run.call(letter, customer="ann")
        raise Failed("sold-out")

    tenant = Tenant(writes_and_fails)
    run = tenant.event(writes_and_fails)
    tenant.answer(TimeoutError())
    tenant.now += 26 * 3_600_000
    (((_, key), _),) = tenant.planned
    tenant.take(Due(b"", key))
    resolve(tenant, run, "result")
    tenant.take(*[due for due, due_ms in tenant.planned if due_ms <= tenant.now])
    assert (tenant.outcome.code, tenant.memory.shared(key)) == ("sold-out", None)


def test_what_was_long_in_the_making_is_known_for_its_ttl_from_then_on() -> None:
    """Its target was busy for a day. Who has waited for it would make it at once, and the target might do it again."""
    tenant = Tenant(writes)
    for number in (1, 2):
        tenant.event(writes, number)
    tenant.answer(RetryLater(after=timedelta(hours=25)))
    tenant.now += 25 * 3_600_000
    tenant.take(*[due for due, due_ms in tenant.planned if due_ms <= tenant.now])
    tenant.answer(TimeoutError())
    tenant.commit()
    assert (tenant.started, len(tenant.parked)) == ([], 2)


def test_what_a_person_says_was_undone_is_made_anew_with_the_next_key_after_the_ttl() -> None:
    """The target may have seen the key of that undoing a moment ago: it would not undo it again."""
    tenant = Tenant(greets, greets_and_fails)
    run = tenant.event(greets_and_fails)
    former = tenant.answer("w-1")
    tenant.now += 25 * 3_600_000
    tenant.answer(ConnectionError())
    resolve(tenant, run, "result")
    tenant.take(*[due for due, due_ms in tenant.planned if due_ms <= tenant.now])
    tenant.event(greets, 2)
    assert tenant.answer("w-2").call.key != former.call.key


def test_what_a_person_does_not_want_to_be_undone_is_not_made_again_after_the_ttl() -> None:
    tenant = Tenant(greets, greets_and_fails)
    run = tenant.event(greets_and_fails)
    tenant.answer("w-1")
    tenant.now += 25 * 3_600_000
    tenant.answer(ConnectionError())
    resolve(tenant, run, "fail")
    tenant.take(*[due for due, due_ms in tenant.planned if due_ms <= tenant.now])
    tenant.event(greets, 2)
    tenant.commit()
    assert [call.kind for call in tenant.started] == ["undo"], (
        "it may stand, and is not made before that is known"
    )


def test_what_nobody_knows_of_is_undone_once_after_its_ttl() -> None:
    """Both wait for a person, and are cancelled; what is undone has its key on record, for who makes it anew."""

    @tool(effect="blind", scope="tenant", key_fields=("customer",))
    async def seat(call: Call, customer: str) -> str: ...  # type: ignore[empty-body]

    @seat.compensate
    async def free(call: Call, result: str | None) -> None: ...

    @agent("seats", on="s")
    async def seats(run: Run, event: Event) -> str:
        return await run.call(seat, customer="ann")

    tenant = Tenant(seats)
    runs = [tenant.event(seats, number) for number in (1, 2)]
    first = tenant.answer(TimeoutError())
    (key,) = {noted.changes[0][0] for noted in tenant.noted if noted.changes}
    tenant.now += 25 * 3_600_000
    tenant.take(Due(b"", key))
    for run in runs:
        tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", run.hex())))
    assert tenant.answer(None).kind == "undo"
    assert [end.code for end in outcomes(tenant)] == ["cancelled"] * 2
    tenant.event(seats, 3)
    anew = tenant.answer("s-3")
    assert (anew.kind, anew.call.key != first.call.key) == ("call", True)
    assert tenant.started == []


# --- When a run that has it is tried again ---


@tool(effect="read")
async def look(call: Call) -> str: ...  # type: ignore[empty-body]


@agent("may-greet", on="m", retry=RetryPolicy(attempts=2, first=60, longest=60))
async def may_greet(run: Run, event: Event) -> str:
    if await run.call(look) == "greet":
        await run.call(welcome, customer="ann")
    raise ValueError("stumbled")


@pytest.mark.parametrize("first", [1, 2], ids=["the other fails first", "and last"])
def test_what_it_was_given_of_anothers_making_is_kept_when_it_is_tried_again(first: int) -> None:
    """Done anew it might not ask for it, and end as one that still has it: nobody would undo it."""
    tenant = Tenant(greets_at_length, may_greet)
    tenant.event(greets_at_length, 1, data=b"1")
    tenant.answer("w-1")
    tenant.event(may_greet, 2)
    tenant.answer("greet")
    assert tenant.asleep, "until its next attempt"
    for number in (first, 3 - first):
        tenant.now = NOW + 49 * 3_600_000
        tenant.take(Due(tenant.event_key(number)))
    assert tenant.answer(None).kind == "undo"
    assert (tenant.started, sorted(end.code for end in outcomes(tenant))) == (
        [],
        ["agent-failed", "sold-out"],
    )


# --- How large its record is ---


def record_of(tenant: Tenant) -> Shared:
    (value,) = (value for key, value in tenant.memory.records.items() if b"\0k" in key)
    return shared.decode_shared(value)


def test_the_record_names_open_runs_only_and_none_once_one_has_completed() -> None:
    tenant = Tenant(greets, greets_and_fails)
    tenant.event(greets)
    tenant.answer("w-1")
    written = len(tenant.noted)
    for number in range(2, 50):
        tenant.event(greets, number)
    assert record_of(tenant).takers == ()
    assert len(tenant.noted) == written, "it is not written anew for each"
    tenant.event(greets_and_fails, 50)
    tenant.commit()
    assert tenant.started == []


def test_the_record_of_what_cannot_be_undone_names_no_runs() -> None:
    tenant = Tenant(writes)
    tenant.event(writes)
    tenant.answer("l-1")
    assert (record_of(tenant).takers, outcomes(tenant)) == ((), [Completed("l-1")])


def test_what_many_open_runs_have_is_left_standing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "TAKERS_MAX", 2)
    tenant, key = long_runs(b"1", b"1", b"1")
    assert key not in tenant.memory.records, "nobody has to know it any more"
    wake(tenant, 1, 2, 3)
    assert tenant.started == []
    assert [end.code for end in outcomes(tenant)] == ["sold-out"] * 3


def test_a_record_of_the_former_format_is_forgotten_with_its_ttl() -> None:
    """Its takers are all runs that ever had its result."""
    former = Shared(1, "welcome", b"", NOW, result=b"", takers=(KEY,))
    assert shared.forgotten(former, NOW)
    assert not shared.forgotten(msgspec.structs.replace(former, format=2), NOW)


# --- When they fill the lane ---


@tool(effect="keyed")
async def enter(call: Call) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed", scope="tenant", key_fields=("customer",))
async def invite(call: Call, customer: str) -> str: ...  # type: ignore[empty-body]


@agent("enters-and-invites", on="e")
async def enters_and_invites(run: Run, event: Event) -> str:
    await run.call(enter)
    return await run.call(invite, customer="ann")


def test_after_a_crash_a_lane_full_of_runs_that_wait_lets_the_one_go_on_that_they_wait_for() -> None:
    """It slept until its next attempt, while they filled the lane."""
    tenant = Tenant(enters_and_invites)
    tenant.event(enters_and_invites, 50)
    tenant.answer("in")
    tenant.answer(RetryLater(after=3600))
    for number in range(2, 12):
        tenant.event(enters_and_invites, number)
        tenant.answer("in")
    tenant.begin_anew()
    tenant.resume()
    tenant.now += 3_600_000
    tenant.take(Due(tenant.event_key(50)))
    assert tenant.answer("i-50").tool is invite
    assert outcomes(tenant) == [Completed("i-50")] * 11
