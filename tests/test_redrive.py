"""Runs that are done anew: tried again as a whole, or redriven after they failed. What stands is not done again."""

from typing import Any

import msgspec
import pytest

from onceflow.agents.agent import agent
from onceflow.agents.anew import redriven
from onceflow.agents.call import Call, RetryPolicy
from onceflow.agents.calls import Completed, RunFailed
from onceflow.agents.commands import Command
from onceflow.agents.happenings import Commanded, Due, Redrive
from onceflow.agents.journal import FAILED_KEPT_MS, Entry, Intent, failed_runs, run_prefix, runs_of
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.errors import CallFailed, Failed, GiveUp, OutcomeUnknown, RetryLater
from onceflow.event import Event
from onceflow.observe.open_runs import steps_of
from tests.tenant import KEY, NOW, Tenant


@tool(effect="read")
async def price(call: Call) -> int: ...  # type: ignore[empty-body]


@tool(effect="keyed")
async def mail(call: Call, text: str) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed")
async def charge(call: Call, cents: int) -> str: ...  # type: ignore[empty-body]


@charge.compensate
async def refund(call: Call, result: str | None) -> None: ...


@tool(effect="blind", on_unknown="fail")
async def post(call: Call) -> str: ...  # type: ignore[empty-body]


@tool(effect="read", retry=RetryPolicy(attempts=1))
async def check(call: Call) -> str: ...  # type: ignore[empty-body]


@agent("sells", on="t")
async def sells(run: Run, event: Event) -> list[Any]:
    cents = await run.call(price)
    sent = await run.call(mail, "hello")
    charged = await run.call(charge, cents)
    if await run.call(check) != "ok":
        raise Failed("refused", "not today")
    return [cents, sent, charged, run.root]


LETTER = Redrive(KEY, KEY, "f.dead-letters/3/17", 5)


def failed_sale(tenant: Tenant) -> Any:
    """One that has sent mail, and whose charge was refunded."""
    tenant.event(sells)
    calls = [tenant.answer(result) for result in (7, "mail-1", "charge-1", "no", None)]
    assert calls[-1].kind == "undo"
    assert tenant.outcome.code == "refused"
    return calls


def names(tenant: Tenant) -> list[str]:
    tenant.commit()
    return [call.tool.name for call in tenant.started]


# --- Redrive ---


@pytest.mark.parametrize("crash", [False, True])
def test_what_stands_is_kept_what_was_undone_is_made_again_with_the_next_key(crash: bool) -> None:
    tenant = Tenant(sells)
    before = failed_sale(tenant)
    tenant.ended.clear()
    key = tenant.event(sells, redrive=LETTER)
    if crash:
        tenant.begin_anew()
        tenant.resume()
    charged = tenant.answer("charge-2") if not crash else None
    if crash:  # what was not committed is asked for again
        assert names(tenant)[0] in ("price", "charge")
        while names(tenant)[0] == "price":
            tenant.answer(7)
        charged = tenant.answer("charge-2")
    assert charged is not None
    assert (charged.tool.name, charged.call.arguments) == ("charge", {"cents": 7})
    assert charged.call.key != before[2].call.key, "the target would remember what was refunded"
    tenant.answer("ok")
    assert tenant.outcome == Completed([7, "mail-1", "charge-2", KEY.hex()])
    assert tenant.ended[0].arrived.key == key != KEY
    assert tenant.memory.records == {}, "of both runs"


def test_what_is_kept_of_the_failed_run_goes_in_the_decision_that_begins_the_new_one() -> None:
    tenant = Tenant(sells)
    failed_sale(tenant)
    tenant.event(sells, redrive=LETTER)
    assert tenant.memory.failed(KEY) is None
    assert tenant.memory.saved(LETTER.key).begun.root == KEY


def test_asked_for_twice_it_is_one_run() -> None:
    again = Redrive(KEY, KEY, LETTER.letter, 5)
    assert again.key == LETTER.key
    assert Redrive(KEY, KEY, "f.dead-letters/3/18", 5).key != LETTER.key


def test_without_what_was_kept_a_redrive_is_refused() -> None:
    tenant = Tenant(sells)
    tenant.event(sells, redrive=LETTER)
    assert tenant.outcome.code == "redrive-refused"
    assert tenant.started == []


def test_one_that_had_changed_nothing_begins_from_its_event() -> None:
    tenant = Tenant(sells)
    tenant.event(sells, redrive=LETTER._replace(segments=0))
    assert names(tenant) == ["price"]


def test_a_replay_that_differs_before_an_effect_that_stands_is_parked() -> None:
    @agent("sells", on="t")
    async def other(run: Run, event: Event) -> str:
        await run.call(price)
        return await run.call(mail, "another text")

    tenant = Tenant(sells)
    failed_sale(tenant)
    tenant.event(other, redrive=LETTER)
    parked = tenant.parked[-1]
    assert parked is not None
    assert parked.reason == "nondeterministic"
    assert names(tenant) == []


@pytest.mark.parametrize("action", ["result", "again", "fail"])
def test_a_call_that_may_have_happened_asks_for_a_person_and_is_never_made_again_by_itself(
    action: Any,
) -> None:
    @agent("posts", on="t")
    async def posts(run: Run, event: Event) -> str:
        try:
            return await run.call(post)
        except OutcomeUnknown as error:
            raise Failed("unknown") from error

    tenant = Tenant(posts)
    tenant.event(posts)
    tenant.answer(TimeoutError())
    assert tenant.outcome.code == "unknown"
    key = tenant.event(posts, redrive=LETTER)
    assert names(tenant) == []
    assert tenant.parked
    segments = tenant.memory.saved(key).segments
    command = Command(action, "acme", key.hex(), segments, result=msgspec.Raw(b'"p-1"'))
    tenant.take(Commanded(tenant.source, 9, 1, command))
    if action == "again":
        tenant.answer("p-2")
    ended = tenant.ended[-1].outcome
    wanted = {"result": Completed("p-1"), "again": Completed("p-2")}.get(action)
    assert ended == wanted if wanted else isinstance(ended, RunFailed)


@pytest.mark.parametrize("how", ["discarded", "out of retention"])
def test_what_is_kept_goes_when_it_is(how: str) -> None:
    tenant = Tenant(sells)
    failed_sale(tenant)
    assert failed_runs(runs_of(sorted(tenant.memory.records.items()))) == [
        ("acme", run_prefix("acme", KEY), NOW + FAILED_KEPT_MS)
    ]
    if how == "discarded":
        tenant.take(Commanded(tenant.source, 9, 1, Command("discard", "acme", KEY.hex())))
        assert tenant.noted[-1].offset == 9
    else:
        tenant.now += FAILED_KEPT_MS
        tenant.take(Due(b"", run_prefix("acme", KEY)))
    assert tenant.memory.records == {}


def never_begun(tenant: Tenant, how: str) -> None:
    """The sale is redriven, and that ends before it begins."""

    @agent("sells", on="t")
    async def choosy(run: Run, event: Event[dict[str, str]]) -> None: ...

    if how == "cancelled":
        tenant.capacity.closed = True
    tenant.event(choosy if how == "invalid-data" else sells, redrive=LETTER)
    if how == "cancelled":
        tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", LETTER.key.hex())))
        tenant.capacity.closed = False


@pytest.mark.parametrize("how", ["invalid-data", "cancelled"])
def test_one_that_ended_before_it_began_leaves_to_redrive_what_it_was_to_go_on_from(how: str) -> None:
    tenant = Tenant(sells)
    failed_sale(tenant)
    never_begun(tenant, how)
    ended = tenant.ended[-1]
    assert ended.outcome.code == how  # type: ignore[union-attr]
    run, kept = ended.to_redrive
    assert (run, kept) == (KEY, LETTER.segments)
    tenant.event(sells, redrive=Redrive(run, KEY, "f.dead-letters/3/18", kept))
    assert names(tenant) == ["charge"], "neither is the mail sent again, nor the price asked for"


def test_what_was_refused_is_refused_again() -> None:
    tenant = Tenant(sells)
    tenant.event(sells, redrive=LETTER)
    run, kept = tenant.ended[-1].to_redrive
    tenant.event(sells, redrive=Redrive(run, KEY, "f.dead-letters/3/18", kept))
    assert [ended.outcome.code for ended in tenant.ended] == ["redrive-refused"] * 2  # type: ignore[union-attr]


# --- The same event again, later than dedup remembers: a run with the key of one that is kept ---


def sold_again(tenant: Tenant) -> None:
    """It has failed, and is under way anew, with fewer segments than are kept."""
    failed_sale(tenant)
    tenant.ended.clear()
    tenant.now += FAILED_KEPT_MS - 1
    tenant.event(sells)
    tenant.answer(7)
    tenant.commit()


def test_what_is_kept_goes_in_the_decision_that_begins_a_run_with_its_key() -> None:
    tenant = Tenant(sells)
    sold_again(tenant)
    assert tenant.memory.failed(KEY) is None
    tenant.begin_anew()
    tenant.resume()
    for result in ("mail-2", "charge-2", "ok"):
        tenant.answer(result)
    assert tenant.outcome == Completed([7, "mail-2", "charge-2", KEY.hex()])
    assert tenant.memory.records == {}, "nothing is left without its first segment"


def test_the_time_of_what_was_kept_ends_neither_the_new_run_nor_what_is_kept_of_that() -> None:
    tenant = Tenant(sells)
    sold_again(tenant)
    tenant.now += 1
    kept_until = Due(b"", run_prefix("acme", KEY))
    tenant.take(kept_until)
    assert tenant.memory.saved(KEY).segments == 1
    for result in ("mail-2", "charge-2", "no", None):
        tenant.answer(result)
    tenant.take(kept_until)
    assert tenant.memory.failed(KEY), "for another two weeks"


# --- Tried again as a whole ---


def trying(policy: RetryPolicy | None, *errors: BaseException) -> Any:
    left = list(errors)

    @agent("tries", on="t", retry=policy)
    async def tries(run: Run, event: Event) -> list[Any]:
        first = await run.call(mail, "hello")
        found = await run.call(check)
        if left:
            raise left.pop(0)
        return [first, found]

    return tries


@pytest.mark.parametrize("crash", [False, True])
def test_a_run_whose_agent_raised_is_tried_again_with_what_it_has_done(crash: bool) -> None:
    tries = trying(RetryPolicy(attempts=2, first=60, longest=60), ValueError("odd"))
    tenant = Tenant(tries)
    tenant.event(tries)
    tenant.answer("mail-1")
    tenant.answer("check-1")
    assert tenant.asleep, "the delay is a wait"
    if crash:
        tenant.begin_anew()
        tenant.resume()
        assert tenant.asleep
    tenant.now += 60_000
    tenant.take(Due(KEY))
    assert names(tenant) == ["check"], "what came after the last effect is done anew"
    tenant.answer("check-2")
    assert tenant.outcome == Completed(["mail-1", "check-2"])


def test_after_its_last_attempt_it_has_failed() -> None:
    tries = trying(RetryPolicy(attempts=2, first=1), ValueError("odd"), ValueError("odder"))
    tenant = Tenant(tries)
    tenant.event(tries)
    tenant.answer("mail-1")
    tenant.answer("check-1")
    tenant.now += 60_000
    tenant.take(Due(KEY))
    tenant.answer("check-2")
    assert (tenant.outcome.code, "odder" in tenant.outcome.message) == ("agent-failed", True)


@pytest.mark.parametrize(
    ("policy", "error", "again"),
    [
        (None, ValueError("odd"), False),
        (None, RetryLater(), True),
        (None, RetryLater(after=3600), True),
        (RetryPolicy(), CallFailed("x"), True),
        (RetryPolicy(), Failed("x"), False),
        (RetryPolicy(), GiveUp("x"), False),
        (RetryPolicy(), OutcomeUnknown("x"), False),
        (RetryPolicy(attempts=1), ValueError("odd"), False),
    ],
)
def test_what_a_run_is_tried_again_for(policy: RetryPolicy | None, error: Exception, again: bool) -> None:
    tries = trying(policy, error)
    tenant = Tenant(tries)
    tenant.event(tries)
    tenant.answer("mail-1")
    tenant.answer("check-1")
    assert tenant.asleep is again
    assert bool(tenant.ended) is not again
    if isinstance(error, RetryLater) and error.after_s:
        assert tenant.due_ms >= NOW + 3_600_000


def test_a_run_that_waits_to_be_tried_again_can_be_cancelled() -> None:
    tries = trying(RetryPolicy(first=60), ValueError("odd"))
    tenant = Tenant(tries)
    tenant.event(tries)
    tenant.answer("mail-1")
    tenant.answer("check-1")
    tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", KEY.hex())))
    assert tenant.outcome.code == "cancelled"


# --- A call whose next attempt is a wait ---


@pytest.mark.parametrize("crash", [False, True])
def test_attempts_and_what_may_have_happened_outlast_a_long_wait(crash: bool) -> None:
    @tool(effect="keyed", retry=RetryPolicy(attempts=2, first=0))
    async def pay(call: Call) -> str: ...  # type: ignore[empty-body]

    @agent("pays", on="t")
    async def pays(run: Run, event: Event) -> str:
        return await run.call(pay)

    tenant = Tenant(pays)
    tenant.event(pays)
    first = tenant.answer(RetryLater(after=3600))
    assert tenant.asleep
    if crash:
        tenant.begin_anew()
        tenant.resume()
    tenant.now += 3_600_000
    tenant.take(Due(KEY))
    second = tenant.answer(RetryLater())
    assert (second.call.attempt, second.call.key) == (2, first.call.key)
    assert tenant.outcome.code == "agent-failed", "nothing has happened, and it was tried twice"


def test_an_undo_that_waits_is_gone_on_with() -> None:
    tenant = Tenant(sells)
    tenant.event(sells)
    for result in (7, "mail-1", "charge-1", "no"):
        tenant.answer(result)
    assert tenant.answer(RetryLater(after=600)).kind == "undo"
    assert tenant.asleep
    tenant.begin_anew()
    tenant.resume()
    assert tenant.ended == []
    tenant.now += 600_000
    tenant.take(Due(KEY))
    again = tenant.answer(None)
    assert (again.kind, again.call.attempt) == ("undo", 2)
    assert tenant.outcome.code == "refused"


def test_a_run_that_fails_while_a_call_is_on_its_way_and_then_dies_does_not_forget_the_call() -> None:
    @agent("charges", on="t")
    async def charges(run: Run, event: Event) -> str:
        return await run.call(charge, 5)

    tenant = Tenant(charges)
    tenant.event(charges)
    tenant.commit()
    assert len(tenant.started) == 1
    tenant.take(Commanded(tenant.source, 9, 1, Command("cancel", "acme", KEY.hex())))
    tenant.begin_anew()
    tenant.resume()
    assert tenant.ended == []
    assert tenant.parked, "it may have happened: its on_unknown is park"


def test_an_entry_of_a_run_that_is_redriven_says_that_only_a_person_knows() -> None:
    unknown = Entry("post", 1, b"", None, ("outcome-unknown", "?"), Intent("k", 1, NOW, NOW))
    (entry,) = redriven({"0": unknown}).values()
    assert entry.open
    assert entry.intent is not None
    assert entry.intent.asks


def test_a_blind_compensation_that_the_process_died_in_waits_for_a_person() -> None:
    @tool(effect="blind")
    async def ship(call: Call) -> str: ...  # type: ignore[empty-body]

    @ship.compensate
    async def call_back(call: Call, result: str | None) -> None: ...

    @agent("ships", on="t")
    async def ships(run: Run, event: Event) -> None:
        await run.call(ship)
        raise Failed("sold-out")

    tenant = Tenant(ships)
    tenant.event(ships)
    tenant.answer("s-1")
    tenant.commit()
    assert tenant.started[0].kind == "undo"
    tenant.begin_anew()
    tenant.resume()
    assert (tenant.started, tenant.ended) == ([], [])
    assert tenant.memory.saved(KEY).parked
    segments = tenant.memory.saved(KEY).segments
    tenant.take(Commanded(tenant.source, 9, 1, Command("result", "acme", KEY.hex(), segments)))
    assert tenant.outcome.code == "sold-out"


def test_a_call_that_is_being_undone_is_not_sent_again_by_a_replay() -> None:
    @tool(effect="keyed", on_unknown="compensate", retry=RetryPolicy(attempts=1))
    async def hold(call: Call) -> str: ...  # type: ignore[empty-body]

    @hold.compensate
    async def release(call: Call, result: str | None) -> None: ...

    @agent("holds", on="t")
    async def holds(run: Run, event: Event) -> str:
        try:
            return await run.call(hold)
        except CallFailed:
            return "undone"

    tenant = Tenant(holds)
    tenant.event(holds)
    tenant.answer(TimeoutError())
    tenant.begin_anew()
    tenant.resume()
    again = tenant.answer(None)
    assert again.kind == "undo"
    assert tenant.outcome == Completed("undone")


# --- What is on record of a call, for those who look ---


def test_how_long_a_call_took_and_what_it_found_is_on_record() -> None:
    tenant = Tenant(sells)
    tenant.event(sells)
    tenant.started[0].call.retrieved(["doc-1", "doc-2"])
    tenant.started[0].call.retrieved(["doc-3"], tenant="globex")
    tenant.now += 1_500
    tenant.answer(7)
    tenant.commit()
    tenant.now += 250
    tenant.answer("mail-1")
    found, sent, *_ = steps_of(tenant.memory.saved(KEY))
    assert (found.what, found.seconds) == ("price", 1.5)
    assert found.retrieved == {"acme": ["doc-1", "doc-2"], "globex": ["doc-3"]}
    assert (sent.what, sent.seconds, sent.retrieved) == ("mail", 0.25, {})
