"""Calls of scope `tenant`: the same call by two runs, or twice by one, is one effect."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from onceflow.agents import keys, shared
from onceflow.agents.agent import agent
from onceflow.agents.call import Call, RetryPolicy
from onceflow.agents.calls import Completed, UnusableResult
from onceflow.agents.commands import Command
from onceflow.agents.happenings import Commanded, Due, Redrive
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.errors import CallFailed, ConfigError, Failed, GiveUp, KeyReused, OutcomeUnknown
from onceflow.event import Event
from tests.left_out import replace
from tests.tenant import KEY, NOW, Tenant

ONCE = RetryPolicy(attempts=1)


@tool(
    effect="keyed",
    scope="tenant",
    key_fields=("customer",),
    free_fields=("text",),
    retry=ONCE,
    on_unknown="fail",
)
async def welcome(call: Call, customer: str, text: str = "", kind: str = "") -> str: ...  # type: ignore[empty-body]


@welcome.compensate
async def apologise(call: Call, result: str | None) -> None: ...


@tool(effect="blind", scope="tenant", key_fields=("customer",))
async def letter(call: Call, customer: str) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed", scope="tenant", key_fields=("customer",), retry=ONCE, on_unknown="compensate")
async def notify(call: Call, customer: str) -> str: ...  # type: ignore[empty-body]


@notify.compensate
async def withdraw(call: Call, result: str | None) -> None: ...


@tool(effect="read")
async def model(about: str) -> bool: ...  # type: ignore[empty-body]


@agent("notifies", on="x")
async def notifies(run: Run, event: Event) -> str:
    return await run.call(notify, customer="ann")


@agent("greets", on="t")
async def greets(run: Run, event: Event) -> str:
    return await run.call(welcome, customer="ann", text=f"Hi, for {event.id}")


@agent("greets-and-fails", on="u")
async def greets_and_fails(run: Run, event: Event) -> None:
    await run.call(welcome, customer="ann")
    raise Failed("sold-out")


@agent("tells", on="v")
async def tells(run: Run, event: Event) -> str:
    try:
        return await run.call(welcome, customer="ann")
    except OutcomeUnknown:
        return "unknown"
    except CallFailed:
        return "failed"


@agent("writes", on="w")
async def writes(run: Run, event: Event) -> str:
    return await run.call(letter, customer="ann")


@pytest.fixture
def tenant() -> Tenant:
    return Tenant(greets, greets_and_fails, tells, writes, notifies)


def outcomes(tenant: Tenant) -> list[Any]:
    return [ended.outcome for ended in tenant.ended]


def resolve(tenant: Tenant, key: bytes, action: Any) -> None:
    """A person says how a call came out."""
    segments = tenant.memory.saved(key).segments
    command = Command(action, "acme", key.hex(), segments, result=msgspec.Raw(b'"seen"'))
    tenant.take(Commanded(tenant.source, 9, 1, command))


def test_of_many_runs_that_ask_one_makes_the_call_and_all_have_its_result(tenant: Tenant) -> None:
    for number in range(1, 11):
        tenant.event(greets, number)
    sent = tenant.answer("mail-1")
    assert tenant.started == []
    assert outcomes(tenant) == [Completed("mail-1")] * 10
    assert sent.call.arguments["customer"] == "ann"


def test_a_run_that_asks_later_gets_the_result_that_is_there(tenant: Tenant) -> None:
    tenant.event(greets)
    tenant.answer("mail-1")
    tenant.begin_anew()
    tenant.event(greets, 2)
    assert (tenant.started, outcomes(tenant)) == ([], [Completed("mail-1")] * 2)


def test_a_run_may_ask_for_thousands_whose_results_are_there() -> None:
    @tool(effect="keyed", scope="tenant", key_fields=("number",))
    async def count(call: Call, number: int) -> int: ...  # type: ignore[empty-body]

    @agent("many", on="t")
    async def many(run: Run, event: Event) -> int:
        return sum([await run.call(count, number) for number in range(1_000)])

    tenant = Tenant(many)
    tenant.event(many, 1)
    for _ in range(1_000):
        tenant.answer(1)
    tenant.event(many, 2)
    assert [ended.outcome for ended in tenant.ended] == [Completed(1_000)] * 2


def test_the_same_call_twice_in_one_run_is_made_once(tenant: Tenant) -> None:
    @agent("greets", on="t")
    async def twice(run: Run, event: Event) -> list[str]:
        return await run.gather(*(run.call(welcome, customer="ann") for _ in range(2)))

    tenant.event(twice)
    tenant.answer("mail-1")
    assert outcomes(tenant) == [Completed(["mail-1", "mail-1"])]


def test_other_arguments_under_the_same_key_are_refused_and_nothing_is_called(tenant: Tenant) -> None:
    @agent("greets", on="t")
    async def otherwise(run: Run, event: Event) -> str:
        with pytest.raises(KeyReused, match="free_fields"):
            await run.call(welcome, customer="ann", kind="formal")
        return "refused"

    tenant.event(greets)
    tenant.event(otherwise, 2)
    tenant.answer("mail-1")
    assert outcomes(tenant) == [Completed("refused"), Completed("mail-1")]


def test_a_call_that_did_not_happen_is_made_by_the_next_that_asked(tenant: Tenant) -> None:
    tenant.event(tells)
    tenant.event(tells, 2)
    first = tenant.answer(GiveUp("no such address"))
    second = tenant.answer("mail-2")
    assert first.call.key == second.call.key
    assert outcomes(tenant) == [Completed("failed"), Completed("mail-2")]


def test_an_unknown_call_is_unknown_for_each_run_that_asks(tenant: Tenant) -> None:
    tenant.event(tells)
    tenant.event(tells, 2)
    tenant.answer(TimeoutError())
    tenant.event(tells, 3)
    assert tenant.started == []
    assert outcomes(tenant) == [Completed("unknown")] * 3


def test_after_a_crash_the_run_that_made_the_call_makes_it_again_and_others_wait_for_it(
    tenant: Tenant,
) -> None:
    tenant.event(greets)
    tenant.commit()
    (sent,) = tenant.started
    tenant.begin_anew()
    tenant.resume()
    tenant.event(greets, 2)
    again = tenant.answer("mail-1")
    assert (again.call.key, again.call.attempt) == (sent.call.key, 2)
    assert outcomes(tenant) == [Completed("mail-1")] * 2


def test_a_result_that_cannot_be_kept_is_the_same_error_for_each_run_that_asks() -> None:
    """Its effect stands: nobody makes the call again."""

    @agent("tells", on="v")
    async def said(run: Run, event: Event) -> str:
        try:
            return await run.call(letter, customer="ann")
        except CallFailed as error:
            return str(error)

    tenant = Tenant(said)
    tenant.event(said)
    tenant.event(said, 2)
    tenant.answer(UnusableResult("too large"))
    tenant.event(said, 3)
    tenant.commit()
    assert (tenant.started, outcomes(tenant)) == ([], [Completed("letter: too large")] * 3)


# --- When a run fails ---


def test_what_another_run_has_taken_too_is_left_standing(tenant: Tenant) -> None:
    tenant.event(greets)
    tenant.answer("mail-1")
    tenant.event(greets_and_fails, 2)
    assert tenant.started == []
    assert outcomes(tenant)[1].code == "sold-out"
    tenant.event(greets, 3)
    assert outcomes(tenant)[2] == Completed("mail-1")


def test_a_run_that_has_its_result_is_in_the_ledger_and_undoes_it_after_a_crash() -> None:
    """Begun anew, it might not ask again; then nobody could undo what it is still named for."""

    @agent("asks-a-model", on="t")
    async def asks_a_model(run: Run, event: Event) -> None:
        if await run.call(model, event.id):
            await run.call(welcome, customer="ann")
        await run.call(model, "whether it is sold out")
        raise Failed("sold-out")

    tenant = Tenant(asks_a_model)
    tenant.event(asks_a_model)
    tenant.answer(True)
    tenant.answer("mail-1")
    tenant.event(asks_a_model, 2)
    tenant.answer(True, by=2)
    tenant.begin_anew()
    tenant.resume()
    tenant.answer(True)
    tenant.answer(True)
    assert tenant.answer(None).kind == "undo"
    assert [end.code for end in outcomes(tenant)] == ["sold-out"] * 2


def test_what_nobody_else_has_is_undone_and_made_anew_with_the_next_key(tenant: Tenant) -> None:
    tenant.event(greets_and_fails)
    made = tenant.answer("mail-1")
    tenant.commit()
    tenant.event(greets, 2)
    assert [call.kind for call in tenant.started] == ["undo"], "who asks waits until it is undone"
    undone = tenant.answer(None)
    anew = tenant.answer("mail-2")
    assert [each.kind for each in (made, undone, anew)] == ["call", "undo", "call"]
    assert len({each.call.key for each in (made, undone, anew)}) == 3
    assert outcomes(tenant)[1] == Completed("mail-2")


def test_what_a_redrive_made_anew_and_nobody_knows_of_is_undone_with_a_key_of_its_own(tenant: Tenant) -> None:
    """With the key of the first undoing the target would do nothing, and the effect would stand."""
    keys_used = []
    tenant.event(notifies)
    for letter in ("f.dead-letters/3/17", ""):
        made = tenant.answer(TimeoutError())
        undone = tenant.answer(None)
        keys_used += [made.call.key, undone.call.key]
        ended = tenant.ended[-1]
        assert ended.outcome.code == "agent-failed"
        if letter:
            tenant.event(notifies, redrive=Redrive(KEY, KEY, letter, ended.segments))
    assert len(set(keys_used)) == 4


# --- How long it is known, and what a person decides ---


def test_it_is_known_for_its_ttl(tenant: Tenant) -> None:
    tenant.event(greets)
    tenant.answer("mail-1")
    tenant.event(greets, 2)
    (((_, key), until_ms),) = tenant.planned
    assert until_ms == NOW + timedelta(hours=24) / timedelta(milliseconds=1)
    tenant.now = until_ms - 1
    tenant.take(Due(b"", key))
    assert key in tenant.memory.records
    tenant.now = until_ms
    tenant.take(Due(b"", key))
    assert tenant.memory.records == {}


def asked_again_after_its_ttl(tenant: Tenant) -> int:
    """A run makes a call for longer than its `ttl`, and another one asks for it: how many calls are made."""
    tenant.event(greets, 1)
    tenant.commit()
    (key,) = (noted.changes[0][0] for noted in tenant.noted)
    tenant.now += 25 * 3_600_000
    tenant.take(Due(b"", key))
    tenant.event(greets, 2)
    tenant.commit()
    return len(tenant.started)


def test_it_is_known_for_longer_while_a_run_makes_it(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_again_after_its_ttl(tenant) == 1
    for module in (shared, keys):
        replace(monkeypatch, module, "forgotten", lambda known, now_ms: known.until_ms <= now_ms)
    assert asked_again_after_its_ttl(Tenant(greets)) == 2, "with that rule left out"


@pytest.mark.parametrize(("action", "end"), [("result", "seen"), ("again", "letter-2")])
def test_a_person_decides_for_all_that_ask_later(tenant: Tenant, action: Any, end: str) -> None:
    key = tenant.event(writes)
    tenant.answer(TimeoutError())
    assert tenant.asleep, "parked"
    segments = tenant.memory.saved(key).segments
    command = Command(action, "acme", key.hex(), segments, result=b'"seen"')  # type: ignore[arg-type]
    tenant.take(Commanded(tenant.source, 11, 3, command))
    tenant.event(writes, 2)
    if action == "again":
        tenant.answer("letter-2")
    assert (tenant.started, outcomes(tenant)) == ([], [Completed(end)] * 2)


# --- What its key is made of ---


@tool(effect="blind", scope="tenant", key_fields=("about",))
async def report(call: Call, about: Any) -> str: ...  # type: ignore[empty-body]


@agent("reports", on="r")
async def reports(run: Run, event: Event) -> str:
    return await run.call(report, about=event.data)


def test_a_tool_that_changes_its_arguments_belongs_to_what_it_was_asked_with() -> None:
    tenant = Tenant(reports)
    tenant.event(reports, data=b'{"customer": "ann"}')
    tenant.commit()
    tenant.started[0].call.arguments["about"].clear()
    tenant.answer("r-1")
    tenant.event(reports, 2, data=b'{"customer": "ann"}')
    assert (tenant.started, outcomes(tenant)) == ([], [Completed("r-1")] * 2)


@pytest.mark.parametrize("data", [b"123456789012345678901234", b'{"n": 123456789012345678901234, "m": 1}'])
def test_a_key_field_of_more_than_64_bits_counts_by_its_text(data: bytes) -> None:
    tenant = Tenant(reports)
    tenant.event(reports, data=data)
    tenant.event(reports, 2, data=data)
    tenant.answer("r-1")
    assert (tenant.started, outcomes(tenant)) == ([], [Completed("r-1")] * 2)


def test_the_same_key_fields_in_another_order_are_the_same_call() -> None:
    tenant = Tenant(reports)
    tenant.event(reports, data=b'{"x": 1, "y": {"a": 2, "b": 3}}')
    tenant.event(reports, 2, data=b'{"y": {"b": 3, "a": 2}, "x": 1}')
    tenant.answer("r-1")
    assert (tenant.started, outcomes(tenant)) == ([], [Completed("r-1")] * 2)


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({"x": 1, "y": 2}, {"y": 2, "x": 1}),
        ({1: "x", "y": 2}, {"y": 2, 1: "x"}),
        ({8, 16}, {16, 8}),
        ([{8, "a", 2**70}], [{2**70, "a", 8}]),
        ({"x": 2**70, "y": {16, 8}}, {"y": {8, 16}, "x": 2**70}),
    ],
)
def test_what_has_no_order_has_none_in_a_key(one: Any, same: Any) -> None:
    digest = report.shared_digest("acme", {"about": one})
    assert report.shared_digest("acme", {"about": same}) == digest
    assert report.shared_digest("zeta", {"about": one}) != digest


@pytest.mark.parametrize(
    ("about", "digest"),
    [
        ("ann", "154622c83d3c73f5ff681e679e849783"),
        (7, "9b8a6642c6bf1d49436856280737bb36"),
        (["ann", 7], "ab70000eaf19b806813df57c93a17617"),
    ],
)
def test_the_key_of_what_is_on_record_stays_as_it_is(about: Any, digest: str) -> None:
    assert report.shared_digest("acme", {"about": about}).hex() == digest


def test_scope_and_key_fields_go_together() -> None:
    with pytest.raises(ConfigError, match="go together"):
        tool(effect="keyed", scope="tenant")(welcome.function)
    with pytest.raises(ConfigError, match="go together"):
        tool(effect="keyed", key_fields=("customer",))(welcome.function)
    with pytest.raises(ConfigError, match="leave out scope"):
        tool(effect="read", scope="tenant")(welcome.function)


# --- What random schedules have found ---


def test_a_call_that_was_not_sent_as_its_slot_goes_is_free_once_its_run_is_cancelled(tenant: Tenant) -> None:
    """The run ends here, in the last moment: nobody else would ever say that it does not hold the call any more."""
    run = tenant.event(greets)
    tenant.lane.leave()
    tenant.commit()
    tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", run.hex())))
    assert [end.code for end in outcomes(tenant)] == ["cancelled"]
    tenant.begin_anew()
    tenant.event(greets, 2)
    tenant.commit()
    assert len(tenant.started) == 1, "the call of the second run"


def test_a_run_that_was_cancelled_while_it_waited_is_not_given_the_call(tenant: Tenant) -> None:
    tenant.event(greets, 1)
    second, third = tenant.event(greets, 2), tenant.event(greets, 3)
    tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", second.hex())))
    assert [end.code for end in outcomes(tenant)] == ["cancelled"]
    tenant.answer(GiveUp("no"))
    tenant.answer("w-3")
    assert tenant.ended[-1].arrived.key == third
    assert tenant.ended[-1].outcome == Completed("w-3")


@agent("greets-twice", on="x")
async def greets_twice(run: Run, event: Event) -> None:
    await run.call(welcome, customer="ann")
    await run.call(welcome, customer="ann")
    raise Failed("sold-out")


def test_what_one_run_has_asked_for_twice_is_undone_once() -> None:
    tenant = Tenant(greets_twice)
    tenant.event(greets_twice)
    tenant.answer("w-1")
    assert tenant.answer(None).kind == "undo"
    assert tenant.started == []
    assert tenant.outcome.code == "sold-out"


def test_its_compensation_keeps_its_key_when_the_process_dies_in_it(tenant: Tenant) -> None:
    tenant.event(greets_and_fails)
    tenant.answer("w-1")
    tenant.commit()
    before = tenant.started[0].call.key
    tenant.begin_anew()
    tenant.resume()
    again = tenant.answer(None)
    assert (again.kind, again.call.key) == ("undo", before)


def test_a_persons_word_counts_while_nothing_else_is_known() -> None:
    """Both wait for a person; what the first is told frees the call, the second is told that it happened."""
    tenant = Tenant(writes)
    first, second = (tenant.event(writes, number) for number in (1, 2))
    tenant.answer(TimeoutError())
    resolve(tenant, first, "fail")
    resolve(tenant, second, "result")
    tenant.commit()
    assert tenant.started == []
    assert tenant.ended[-1].outcome == Completed("seen")


def test_where_more_is_known_meanwhile_the_run_asks_anew() -> None:
    tenant = Tenant(writes)
    first, second = (tenant.event(writes, number) for number in (1, 2))
    tenant.answer(TimeoutError())
    resolve(tenant, first, "again")
    resolve(tenant, second, "again")
    assert tenant.answer("l-1").tool.name == "letter"
    assert (tenant.started, outcomes(tenant)) == ([], [Completed("l-1")] * 2)


@pytest.mark.parametrize("told", [True, False], ids=["forgotten", "about to be"])
@pytest.mark.parametrize(("action", "sent"), [("result", 0), ("fail", 0), ("again", 1)])
def test_a_persons_word_counts_when_the_ttl_is_over(told: bool, action: str, sent: int) -> None:
    tenant = Tenant(writes)
    run = tenant.event(writes)
    tenant.answer(TimeoutError())
    (key,) = {noted.changes[0][0] for noted in tenant.noted if noted.changes}
    tenant.now += 26 * 3_600_000
    if told:
        tenant.take(Due(b"", key))
    resolve(tenant, run, action)
    tenant.commit()
    assert len(tenant.started) == sent
    if action == "result":
        assert tenant.outcome == Completed("seen")


def test_a_run_parked_over_anothers_call_is_in_the_ledger_with_that_call(tenant: Tenant) -> None:
    tenant.event(writes, 1)
    second = tenant.event(writes, 2)
    tenant.answer(TimeoutError())
    saved = tenant.memory.saved(second)
    assert saved.parked
    assert saved.journal["0"].intent is not None
