"""Shared calls of which nobody knows: one run finds out, or undoes it, and it is not made again before."""

from typing import Any

import pytest

from onceflow.agents.agent import agent
from onceflow.agents.call import Call, NotDone
from onceflow.agents.calling import Answered
from onceflow.agents.calls import Completed, FoundNotDone, NotSent
from onceflow.agents.happenings import Due, Redrive
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.errors import Failed, GiveUp, RetryLater
from onceflow.event import Event
from tests.tenant import KEY, Tenant
from tests.test_shared import greets_and_fails, notifies, outcomes, resolve, welcome


@tool(effect="blind", scope="tenant", key_fields=("customer",), on_unknown="reconcile")
async def parcel(call: Call, customer: str) -> str: ...  # type: ignore[empty-body]


@parcel.reconcile
async def find(call: Call) -> str: ...  # type: ignore[empty-body]


@agent("sends", on="p")
async def sends(run: Run, event: Event) -> str:
    return await run.call(parcel, customer="ann")


@agent("greets-and-sends", on="q")
async def greets_and_sends(run: Run, event: Event) -> str:
    await run.call(welcome, customer="ann")
    return await run.call(parcel, customer="ann")


def unknown_parcel(tenant: Tenant, waiting: int = 0, by: Any = sends) -> None:
    """One was sent, and its run is parked: nobody knows of it. So many others wait for it."""
    for number in range(1, 2 + waiting):
        tenant.event(by, number)
    tenant.answer(TimeoutError())
    for _ in range(parcel.retry.attempts):
        tenant.answer(ConnectionError())
    assert len(tenant.parked) == 1


def test_what_nobody_knows_of_is_looked_for_by_one_run_at_a_time() -> None:
    """Each that finds that it did not happen would make it."""
    tenant = Tenant(sends)
    unknown_parcel(tenant, waiting=2)
    tenant.commit()
    (looks,) = tenant.started
    assert looks.kind == "reconcile"
    tenant.started.clear()
    tenant.take(Answered(looks.run, FoundNotDone(looks.place, looks.call.attempt)))
    assert tenant.answer("p-1").kind == "call"
    assert (tenant.started, outcomes(tenant)) == ([], [Completed("p-1")] * 2)


@pytest.mark.parametrize(
    "answers",
    [[GiveUp("cannot say")], [Failed("cannot-say")], [RetryLater("busy")] * parcel.retry.attempts],
    ids=["gives up", "fails", "stays busy"],
)
def test_what_a_run_could_not_find_out_stays_unknown(answers: list[Exception]) -> None:
    """It has sent nothing itself; but that is not what was asked."""
    tenant = Tenant(sends)
    unknown_parcel(tenant)
    tenant.event(sends, 2)
    for answer in answers:
        assert tenant.answer(answer).kind == "reconcile"
    assert (len(tenant.parked), outcomes(tenant)) == (2, [])
    tenant.event(sends, 3)
    tenant.commit()
    assert [call.kind for call in tenant.started] == ["reconcile"]


def test_that_a_run_finds_out_about_a_call_is_on_record_before_it_does() -> None:
    tenant = Tenant(sends)
    unknown_parcel(tenant)
    tenant.event(sends, 2)
    assert tenant.started == []
    tenant.commit()
    assert [call.kind for call in tenant.started] == ["reconcile"]
    tenant.begin_anew()
    tenant.resume()
    assert [call.kind for call in tenant.started] == ["reconcile"], "it is not sent"


@pytest.mark.parametrize("by", [sends, greets_and_sends])
def test_what_a_run_was_finding_out_about_when_its_slot_moved_stays_unknown(by: Any) -> None:
    tenant = Tenant(sends, greets_and_sends)
    unknown_parcel(tenant)
    tenant.event(by, 2)
    if by is greets_and_sends:
        tenant.answer("w-2")
    tenant.commit()
    tenant.lane.leave()
    assert tenant.answer(NotSent()).kind == "reconcile"
    tenant.lane.take_back(tenant.now)
    tenant.begin_anew()
    tenant.resume()
    assert [call.kind for call in tenant.started] == ["reconcile"]


@agent("hurries-and-sends", on="h", deadline=1_000)
async def hurries_and_sends(run: Run, event: Event) -> str:
    return await run.call(parcel, customer="ann")


@pytest.mark.parametrize("sent", [False, True], ids=["under way", "made"])
@pytest.mark.parametrize("says", [NotDone, GiveUp("cannot say")], ids=["not done", "cannot say"])
def test_what_a_run_says_that_was_parked_is_no_news_of_what_another_has_made_since(
    says: Any, sent: bool
) -> None:
    """Its deadline is over, and it finds out for itself."""
    tenant = Tenant(sends, hurries_and_sends)
    unknown_parcel(tenant, by=hurries_and_sends)
    tenant.event(sends, 2)
    tenant.answer(NotDone, by=2)
    if sent:
        tenant.answer("p-2", by=2)
    tenant.now += 1_000_000
    tenant.take(Due(KEY))
    tenant.answer(says, by=1)
    tenant.event(sends, 3)
    tenant.commit()
    if not sent:
        tenant.answer("p-2", by=2)
    assert (tenant.started, outcomes(tenant).count(Completed("p-2"))) == ([], 2)


@tool(effect="blind", scope="tenant", key_fields=("customer",))
async def letter(call: Call, customer: str) -> str: ...  # type: ignore[empty-body]


@agent("writes", on="w")
async def writes(run: Run, event: Event) -> str:
    return await run.call(letter, customer="ann")


@pytest.mark.parametrize("word", ["again", "fail"])
def test_what_a_person_says_is_no_word_on_an_attempt_that_was_made_since(word: Any) -> None:
    """Two runs are parked over one call, and a person who has seen that it did not happen says so of both at once."""
    tenant = Tenant(writes)
    tenant.event(writes, 1)
    tenant.event(writes, 2)
    tenant.answer(TimeoutError())
    assert len(tenant.parked) == 2
    tenant.now += 1_000
    resolve(tenant, tenant.event_key(1), "again")
    assert tenant.answer(TimeoutError()).call.attempt == 2, "it may have happened now"
    tenant.now += 1_000
    resolve(tenant, tenant.event_key(2), word)
    tenant.commit()
    assert tenant.started == []
    assert len(tenant.parked) == 4, "and the person is asked about it"
    resolve(tenant, tenant.event_key(2), "result")
    resolve(tenant, tenant.event_key(1), "again")
    tenant.commit()
    assert (tenant.started, outcomes(tenant)) == ([], [Completed("seen")] * 2)


@tool(effect="blind", scope="tenant", key_fields=("customer",), on_unknown="compensate")
async def flyer(call: Call, customer: str) -> str: ...  # type: ignore[empty-body]


@flyer.compensate
async def recall(call: Call, result: str | None) -> None: ...


@agent("hands-out", on="f")
async def hands_out(run: Run, event: Event) -> str:
    return await run.call(flyer, customer="ann")


@pytest.mark.parametrize("by", [notifies, hands_out])
def test_what_was_undone_as_nobody_knew_is_made_anew_by_one_of_those_that_wait(by: Any) -> None:
    tenant = Tenant(by)
    for number in (1, 2, 3):
        tenant.event(by, number)
    tenant.answer(TimeoutError())
    assert tenant.answer(None).kind == "undo"
    assert tenant.answer("x-2").kind == "call"
    assert (tenant.started, outcomes(tenant)[1:]) == ([], [Completed("x-2")] * 2)


def test_what_a_person_gave_up_to_undo_is_unknown_for_who_asks_next() -> None:
    """And for its redrive: what stands is on record for all, and may have been undone meanwhile."""
    tenant = Tenant(notifies)
    key = tenant.event(notifies)
    made = tenant.answer(TimeoutError())
    undo = tenant.answer(GiveUp("too late"))
    resolve(tenant, key, "fail")
    assert (tenant.outcome.code, tenant.started) == ("agent-failed", [])
    tenant.event(notifies, 2)
    undone = tenant.answer(None)
    assert (undone.kind, undone.call.key) == ("undo", undo.call.key)
    tenant.event(notifies, redrive=Redrive(KEY, KEY, "f.dead-letters/3/17", tenant.ended[0].segments))
    anew = tenant.answer("n-1")
    assert (anew.kind, anew.call.key != made.call.key) == ("call", True)
    assert (tenant.started, outcomes(tenant)[-1]) == ([], Completed("n-1"))


def test_a_run_that_undoes_what_another_has_made_is_parked_when_its_replay_does_not_come_to_that() -> None:
    """Ended, it would hold the key for good, and who asks next would wait for ever."""

    @agent(greets_and_fails.name, on="u")
    async def mended_wrongly(run: Run, event: Event) -> None:
        raise Failed("sold-out")

    tenant = Tenant(greets_and_fails)
    tenant.event(greets_and_fails, 1)
    tenant.event(greets_and_fails, 2)
    tenant.answer("w-1")
    tenant.commit()
    (undo,) = tenant.started
    assert (undo.kind, undo.run.token.key) == ("undo", tenant.event_key(2)), "the other one has made it"
    tenant.begin_anew()
    tenant.memory.agents = {mended_wrongly.name: mended_wrongly}
    tenant.resume()
    assert (len(tenant.parked), len(tenant.ended)) == (1, 1)
    tenant.begin_anew()
    tenant.memory.agents = {greets_and_fails.name: greets_and_fails}
    tenant.resume()
    resolve(tenant, tenant.event_key(2), "again")
    assert tenant.answer(None).kind == "undo"
    tenant.event(greets_and_fails, 3)
    assert tenant.answer("w-3").kind == "call"
