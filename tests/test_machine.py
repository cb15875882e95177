"""Calls that change something: what is on record before they are sent, after a crash, and when a run fails."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from onceflow.agents.agent import agent
from onceflow.agents.call import Call, NotDone, RetryPolicy
from onceflow.agents.calls import (
    SEND_WITHIN_MS,
    Completed,
    Effect,
    FoundNotDone,
    NotSent,
    Parked,
    Raised,
    Record,
    Returned,
    RunFailed,
    StartCall,
)
from onceflow.agents.journal import FAILING, PARKED, Begun, Entry, encode_segment, open_runs, segment_key
from onceflow.agents.machine import Machine
from onceflow.agents.run import Run
from onceflow.agents.tool import tool
from onceflow.errors import CallFailed, Failed, GiveUp, OutcomeUnknown, RetryLater
from onceflow.event import Event, Incoming

NOW = 1_800_000_000_000
INCOMING = Incoming("acme", "erp", "evt-1", "t", None, b"7")
EVENT = Event.of(INCOMING, "ab" * 16, 7)
TWICE = RetryPolicy(attempts=2, first=0)


def effect(name: str, **options: Any) -> Any:
    async def function(call: Call, n: int) -> int:
        raise AssertionError("nobody carries out calls here")

    return tool(**{"effect": "keyed", "name": name, "retry": TWICE, **options})(function)


pay, post = effect("pay"), effect("post")
mail = effect("mail", effect="blind", retry=None)


@pay.compensate
async def refund(call: Call, result: int | None) -> None: ...


@post.compensate
async def take_back(call: Call, result: int | None) -> None: ...


class Ledger:
    """Drives a run: keeps what it records, and answers its calls when told to."""

    def __init__(self, function: Callable[[Run, Event[Any]], Any], version: int = 1) -> None:
        self.function = function
        self.written: dict[str, Entry] = {}
        self.sent: list[StartCall] = []
        self.end: Effect | None = None
        self.held: list[StartCall] = []
        self.now = NOW
        self.start()

    def start(self) -> None:
        """The run begins, or goes on in another process with what is on record."""
        self.sent, self.held, self.end = [], [], None
        self.run = Machine(
            agent("tested", on="t")(self.function), "token", dict(self.written), len(self.written)
        )
        self.take(self.run.begin(EVENT, self.now))

    def take(self, effects: list[Effect]) -> None:
        for each in effects:
            if isinstance(each, StartCall):
                self.sent.append(each)
            elif isinstance(each, Record):
                self.record(each)
            else:
                self.end = each
                if isinstance(each, Parked):
                    self.record(each.record)

    def record(self, record: Record) -> None:
        self.written |= record.entries
        self.held += record.calls

    def commit(self) -> None:
        held, self.held = self.held, []
        self.sent += held

    def answer(self, result: Any) -> StartCall:
        """The oldest call under way is answered: with a result, or an exception."""
        self.commit()
        call = self.sent.pop(0)
        self.now += int(call.delay_s * 1000)
        place, attempt = call.place, call.call.attempt
        if result is NotDone:
            answer: Any = FoundNotDone(place, attempt)
        elif isinstance(result, BaseException):
            answer = Raised(place, attempt, result)
        else:
            answer = Returned(place, attempt, msgspec.msgpack.encode(result))
        self.take(self.run.answer(answer, self.now))
        return call


async def pays(run: Run, event: Event) -> int:
    return await run.call(pay, n=event.data)


async def mails(run: Run, event: Event) -> Any:
    try:
        return await run.call(mail, n=1)
    except OutcomeUnknown:
        return "unknown"


async def pays_posts_and_fails(run: Run, event: Event) -> None:
    await run.call(pay, n=1)
    await run.call(post, n=2)
    raise Failed("sold-out")


# --- Before a call is sent ---


def test_a_call_is_sent_once_its_intent_is_committed() -> None:
    run = Ledger(pays)
    assert run.sent == []
    (intent,) = [entry.intent for entry in run.written.values()]
    run.commit()
    (sent,) = run.sent
    assert intent is not None
    assert (sent.call.key, sent.send_by_ms) == (intent.key, NOW + SEND_WITHIN_MS)
    run.answer(5)
    assert run.end == Completed(5)


def test_what_the_call_is_based_on_is_on_record_with_it() -> None:
    @tool(effect="read")
    async def ask(n: int) -> int: ...  # type: ignore[empty-body]

    async def asks_and_pays(run: Run, event: Event) -> int:
        return await run.call(pay, n=await run.call(ask, n=1))

    run = Ledger(asks_and_pays)
    assert run.written == {}
    run.answer(42)
    assert run.written["0"].result == msgspec.msgpack.encode(42)
    assert run.written["1"].open
    run.start()
    assert run.answer(5).call.arguments == {"n": 42}


# --- After a crash ---


def test_a_keyed_call_without_an_outcome_is_sent_again_with_its_key() -> None:
    run = Ledger(pays)
    run.commit()
    first = run.sent[0]
    run.start()
    assert run.sent == [], "only once the second execution is on record too"
    again = run.answer(5)
    assert (again.call.key, again.call.attempt) == (first.call.key, 2)
    assert run.end == Completed(5)


def test_a_result_on_record_is_returned_without_a_call() -> None:
    async def pays_twice(run: Run, event: Event) -> list[int]:
        return [await run.call(pay, n=1), await run.call(pay, n=2)]

    run = Ledger(pays_twice)
    run.answer(5)
    run.start()
    assert run.answer(6).place == "1"
    assert run.end == Completed([5, 6])


def test_a_blind_call_without_an_outcome_is_never_sent_again() -> None:
    run = Ledger(mails)
    run.commit()
    run.start()
    assert (run.sent, run.held) == ([], [])
    assert isinstance(run.end, Parked)
    assert run.end.reason == "unknown-outcome"
    assert PARKED in run.written


def test_another_call_than_the_one_on_record_parks_the_run_and_says_the_difference() -> None:
    run = Ledger(pays)
    run.answer(RetryLater())

    async def posts(run: Run, event: Event) -> int:
        return await run.call(post, n=7)

    run.function = posts
    run.start()
    assert isinstance(run.end, Parked)
    assert run.end.reason == "nondeterministic"
    assert "on record is pay version 1, replay asks for post version 1" in run.end.message


@pytest.mark.parametrize("what", ["uuid", "random", "now"])
def test_a_replay_whose_call_has_moved_is_parked_before_anything_is_sent(what: str) -> None:
    """A call's key has its place in it; what takes a place and records no call must not have it sent with another."""
    run = Ledger(pays)
    run.commit()

    async def pays_later(run: Run, event: Event) -> int:
        getattr(run, what)()
        return await run.call(pay, n=event.data)

    run.function = pays_later
    run.start()
    run.commit()
    assert run.sent == []
    assert isinstance(run.end, Parked)
    assert run.end.reason == "nondeterministic"


def test_in_a_gather_a_branch_that_is_ahead_is_no_difference() -> None:
    async def both(run: Run, event: Event) -> None:
        async def twice() -> int:
            return await run.call(pay, n=1) + await run.call(post, n=2)

        await run.gather(twice(), twice())

    run = Ledger(both)
    run.commit()
    run.sent.reverse()
    run.answer(5)  # the second branch goes on, and the cell dies
    run.start()
    while run.end is None:
        run.answer(5)
    assert run.end == Completed(None)


def test_a_run_that_no_longer_comes_to_its_call_is_parked() -> None:
    async def nothing(run: Run, event: Event) -> None: ...

    run = Ledger(pays)
    run.function = nothing
    run.start()
    assert isinstance(run.end, Parked)
    assert "did not come to call 0 of pay" in run.end.message


# --- Answers ---


def test_retries_keep_the_key_and_used_up_leave_the_outcome_unknown() -> None:
    run = Ledger(pays)
    first = run.answer(TimeoutError())
    second = run.answer(TimeoutError())
    assert (second.call.key, second.call.attempt) == (first.call.key, 2)
    assert isinstance(run.end, Parked)


@pytest.mark.parametrize("error", [GiveUp("no"), RetryLater("later")])
def test_attempts_that_changed_nothing_end_as_a_failed_call(error: Exception) -> None:
    async def tries(run: Run, event: Event) -> str:
        try:
            return str(await run.call(pay, n=1))
        except CallFailed:
            return "not paid"

    run = Ledger(tries)
    run.answer(error)
    if isinstance(error, RetryLater):
        run.answer(error)
    assert run.end == Completed("not paid")


def test_an_attempt_that_changed_nothing_says_nothing_of_the_one_before() -> None:
    run = Ledger(pays)
    run.answer(TimeoutError())
    run.answer(GiveUp("the order is closed"))
    assert isinstance(run.end, Parked)


def test_the_agent_is_told_where_its_tool_says_so() -> None:
    telling = effect("telling", effect="blind", retry=None, on_unknown="fail")

    async def calls(run: Run, event: Event) -> str:
        try:
            return str(await run.call(telling, n=1))
        except OutcomeUnknown:
            return "unknown"

    run = Ledger(calls)
    run.answer(TimeoutError())
    assert run.end == Completed("unknown")


# --- Reconciliation ---


@pytest.mark.parametrize(("found", "value"), [(5, 5), (NotDone, 6)])
def test_who_reconciles_waits_until_the_call_is_over_and_then_goes_by_what_is_found(
    found: Any, value: int
) -> None:
    sought = effect("sought", on_unknown="reconcile", effect="blind", retry=None, timeout=3)

    @sought.reconcile
    async def find(call: Call) -> int: ...  # type: ignore[empty-body]

    async def calls(run: Run, event: Event) -> int:
        return await run.call(sought, n=1)

    run = Ledger(calls)
    run.commit()
    run.now += 4_000
    run.start()
    (asked,) = run.sent
    assert (asked.kind, asked.delay_s) == ("reconcile", (SEND_WITHIN_MS - 4_000) / 1000 + 3)
    run.answer(found)
    if found is NotDone:
        assert run.sent == [], "made again, once that is on record"
        assert run.answer(6).kind == "call"
    assert run.end == Completed(value)


def test_a_call_that_never_happens_is_made_as_often_as_its_policy_says() -> None:
    sought = effect("sought", on_unknown="reconcile", effect="blind", retry=None)

    @sought.reconcile
    async def find(call: Call) -> int: ...  # type: ignore[empty-body]

    async def calls(run: Run, event: Event) -> int:
        return await run.call(sought, n=1)

    run, made = Ledger(calls), 0
    while run.end is None:
        run.commit()
        made += run.sent[0].kind == "call"
        run.answer(TimeoutError() if run.sent[0].kind == "call" else NotDone)
    assert made == RetryPolicy().attempts
    assert isinstance(run.end, RunFailed)
    assert run.end.message == "CallFailed: sought: it did not happen, in 5 attempts"


# --- Compensation ---


def test_a_run_that_fails_undoes_what_stands_in_reverse_order_and_then_ends() -> None:
    run = Ledger(pays_posts_and_fails)
    paid = run.answer(5)
    run.answer(6)
    assert run.end is None
    undone = [run.answer(None), run.answer(None)]
    assert [(each.kind, each.tool.name, each.undone) for each in undone] == [
        ("undo", "post", 6),
        ("undo", "pay", 5),
    ]
    assert undone[1].call.key != paid.call.key
    assert isinstance(run.end, RunFailed)
    assert run.end.code == "sold-out"


def test_a_result_that_is_not_its_tool_s_is_undone_as_an_unknown_one() -> None:
    """A tool that returns something else than it says fails its own run, and what it did does not stay."""
    run = Ledger(pays_posts_and_fails)
    run.answer("five")
    undone = run.answer(None)
    assert (undone.kind, undone.tool.name, undone.undone, undone.delay_s) == ("undo", "pay", None, 0)
    assert isinstance(run.end, RunFailed)
    assert "its result is not the int of its annotation" in run.end.message


def test_what_returns_nothing_is_undone_at_once() -> None:
    @tool(effect="keyed")
    async def notify(call: Call, n: int) -> None: ...

    @notify.compensate
    async def undo(call: Call, result: None) -> None: ...

    async def notifies_and_fails(run: Run, event: Event) -> None:
        await run.call(notify, n=1)
        raise Failed("sold-out", "none left")

    run = Ledger(notifies_and_fails)
    run.answer(None)
    run.commit()
    assert (run.sent[0].kind, run.sent[0].delay_s) == ("undo", 0)


def test_a_compensation_goes_on_after_a_crash_with_its_key_and_is_not_done_again() -> None:
    run = Ledger(pays_posts_and_fails)
    run.answer(5)
    run.answer(6)
    assert FAILING in run.written
    run.answer(None)  # post is taken back; refund is intended
    run.commit()
    refunding = run.sent[0]
    run.start()
    again = run.answer(None)
    assert (again.tool.name, again.call.key) == ("pay", refunding.call.key)
    assert isinstance(run.end, RunFailed)
    assert (run.end.code, run.sent) == ("sold-out", [])


def test_a_call_with_an_unknown_outcome_is_compensated_where_its_tool_says_so() -> None:
    undoing = effect("undoing", on_unknown="compensate")

    @undoing.compensate
    async def undo(call: Call, result: int | None) -> None: ...

    async def calls(run: Run, event: Event) -> str:
        try:
            return str(await run.call(undoing, n=1))
        except CallFailed:
            return "compensated"

    run = Ledger(calls)
    run.answer(TimeoutError())
    run.answer(TimeoutError())
    undone = run.answer(None)
    assert (undone.kind, undone.undone) == ("undo", None)
    assert run.end == Completed("compensated")


# --- Stored ---


def test_a_run_is_read_back_from_its_segments() -> None:
    begun = Begun("tested", 1, INCOMING.stored(), NOW, "events/3/7")
    first, later = Entry("pay", 1, b"f", b"\x05"), Entry("post", 1, b"g")
    records = [
        (segment_key("acme", b"k" * 16, 0), encode_segment(begun, {"0": first})),
        (segment_key("acme", b"k" * 16, 1), encode_segment(None, {"1": later})),
        (segment_key("acme", b"l" * 16, 0), encode_segment(begun, {})),
    ]
    one, other = open_runs(records)
    assert (one.tenant, one.key, one.begun, one.segments) == ("acme", b"k" * 16, begun, 2)
    assert one.journal == {"0": first, "1": later}
    assert (other.key, other.journal, other.parked) == (b"l" * 16, {}, False)


# --- A run that is cancelled, and its calls ---


def cancelled(run: Ledger) -> None:
    run.take(run.run.cancel("cancelled", "by a test", run.now))


def test_a_call_that_was_never_sent_is_left_when_its_run_is_cancelled() -> None:
    run = Ledger(pays)
    run.commit()
    cancelled(run)
    (call,) = run.sent
    assert not run.run.wants(call)
    run.answer(NotSent())
    assert isinstance(run.end, RunFailed)
    assert run.sent == []


def test_one_that_may_have_happened_is_settled_by_its_key_and_then_undone() -> None:
    """To be told by its target costs nothing; to ask a person, or to believe that nothing will come of it, does."""
    run = Ledger(pays)
    key = run.answer(ConnectionError("reset")).call.key
    cancelled(run)
    (again,) = run.sent
    assert (run.run.wants(again), again.call.key) == (True, key)
    run.answer(42)
    run.commit()
    (undo,) = run.sent
    assert (undo.kind, undo.undone) == ("undo", 42)


def test_one_that_did_not_happen_is_not_made_any_more_once_its_run_is_cancelled() -> None:
    run = Ledger(pays)
    run.commit()
    cancelled(run)
    run.answer(RetryLater("busy"))
    assert (run.sent, run.held) == ([], [])
    assert isinstance(run.end, RunFailed)
