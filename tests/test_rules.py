"""Each rule of calls that change something is needed: left out, the kit sees an effect twice, left over, or stuck."""

import itertools
import re
import secrets
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from onceflow import Call, Event, Failed, OutcomeUnknown, RetryPolicy, Run, agent, tool
from onceflow.agents import anew, calls, durable, keys, machine, shared, state
from onceflow.agents.calls import Next
from onceflow.agents.journal import CALL_FAILED, Entry
from onceflow.agents.machine import Machine
from onceflow.testing import Reply, crash_everywhere, event
from tests.left_out import forget_segments, replace

ORDER = event("order.placed", {"order": "A-1"})
Patch = Callable[[pytest.MonkeyPatch], None]


@tool(effect="read")
async def ask_model(order: str) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed", retry=RetryPolicy(attempts=2, first=0))
async def charge(call: Call, order: str, plan: str) -> str: ...  # type: ignore[empty-body]


@charge.compensate
async def refund(call: Call, result: str | None) -> None: ...


@tool(effect="keyed", retry=RetryPolicy(attempts=1), on_unknown="fail")
async def ship(call: Call, order: str) -> str: ...  # type: ignore[empty-body]


@ship.compensate
async def recall(call: Call, result: str | None) -> None: ...


@tool(effect="blind", on_unknown="fail")
async def mail(call: Call, order: str) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed", scope="tenant", key_fields=("order",))
async def welcome(call: Call, order: str) -> str: ...  # type: ignore[empty-body]


@agent("buys", on="order.placed")
async def buys(run: Run, event: Event) -> str:
    plan = await run.call(ask_model, order="A-1")
    await run.call(charge, order="A-1", plan=plan)
    await run.gather(run.call(welcome, order="A-1"), run.call(welcome, order="A-1"))
    try:
        return await run.call(mail, order="A-1")
    except OutcomeUnknown:
        return "perhaps"


@agent("fails", on="order.placed")
async def fails(run: Run, event: Event) -> None:
    await run.call(charge, order="A-1", plan="p")
    await run.call(ship, order="A-1")
    raise Failed("sold-out")


def tried() -> None:
    """Both agents, killed at every step with every reply."""
    plans = itertools.count(1)
    results: dict[Any, Any] = {
        ask_model: lambda order: f"plan {next(plans)}",
        charge: "ch_1",
        ship: "sh_1",
        mail: "m_1",
        welcome: "w_1",
    }
    for each in (buys, fails):
        report = crash_everywhere(each, ORDER, results=results, replies=list(Reply))
        assert each is fails or "parked" not in report.outcomes, "no person is needed here"


def sent_before_its_intent_is_committed(patch: pytest.MonkeyPatch) -> None:
    intend = Machine._intend

    def at_once(self: Any, waiting: Any) -> None:
        intend(self, waiting)
        self._effects.append(self._held.pop())

    replace(patch, Machine, "_intend", at_once)


def another_key_after_a_crash(patch: pytest.MonkeyPatch) -> None:
    resume = Machine._resume

    def with_another(self: Any, waiting: Any, intent: Any, retry: Any) -> bool:
        return resume(self, waiting, msgspec.structs.replace(intent, key=secrets.token_hex(16)), retry)

    replace(patch, Machine, "_resume", with_another)


def a_blind_call_is_sent_again(patch: pytest.MonkeyPatch) -> None:
    resume = Machine._resume

    def as_if_told_to(self: Any, waiting: Any, intent: Any, retry: Any) -> bool:
        return resume(self, waiting, msgspec.structs.replace(intent, again=True), retry)

    replace(patch, Machine, "_resume", as_if_told_to)


def an_effect_without_what_it_is_based_on(patch: pytest.MonkeyPatch) -> None:
    chunks = state.chunks
    replace(
        patch,
        state,
        "chunks",
        lambda entries, *, beside_event=False: chunks(
            {place: e for place, e in entries.items() if e.intent is not None}, beside_event=beside_event
        ),
    )


def undone_in_the_order_done(patch: pytest.MonkeyPatch) -> None:
    stands = Machine._stands
    replace(patch, Machine, "_stands", lambda self: stands(self)[::-1])


def undone_with_the_key_of_the_call(patch: pytest.MonkeyPatch) -> None:
    replace(patch, durable, "undo_key", lambda key: key)


def what_may_have_happened_is_not_undone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(anew, "MAY_STAND", ())


def a_time_out_means_that_it_did_not_happen(patch: pytest.MonkeyPatch) -> None:
    judged = calls.judged

    def hopeful(waiting: Any, answer: Any) -> Any:
        outcome = judged(waiting, answer)
        if outcome is Next.UNKNOWN:
            started = waiting.started
            known = started.run.journal[started.place]
            return msgspec.structs.replace(known, error=(CALL_FAILED, "no answer"))
        return outcome

    replace(patch, machine, "judged", hopeful)


def a_run_that_ended_stays_in_the_ledger(patch: pytest.MonkeyPatch) -> None:
    forget_segments(patch)


def a_key_that_is_held_is_free(patch: pytest.MonkeyPatch) -> None:
    asked = shared.asked

    def impatient(known: Any, by: Any, fingerprint: bytes, now_ms: int) -> Any:
        answer = asked(known, by, fingerprint, now_ms)
        return shared.Free(secrets.randbelow(1 << 30)) if isinstance(answer, shared.Held) else answer

    replace(patch, keys, "asked", impatient)


def a_shared_result_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def forgetful(known: Any, by: Any, outcome: Entry, now_ms: int, until_ms: int = 0) -> Any:
        return shared.undone(known)

    replace(patch, keys, "decided", forgetful)


RULES: list[Patch] = [
    sent_before_its_intent_is_committed,
    another_key_after_a_crash,
    a_blind_call_is_sent_again,
    an_effect_without_what_it_is_based_on,
    undone_in_the_order_done,
    undone_with_the_key_of_the_call,
    what_may_have_happened_is_not_undone,
    a_time_out_means_that_it_did_not_happen,
    a_run_that_ended_stays_in_the_ledger,
    a_key_that_is_held_is_free,
    a_shared_result_is_forgotten,
]


def test_with_all_rules_nothing_is_wrong() -> None:
    tried()


@pytest.mark.parametrize("without", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_left_out_is_seen(monkeypatch: pytest.MonkeyPatch, without: Patch) -> None:
    without(monkeypatch)
    with pytest.raises((AssertionError, ValueError)) as seen:
        tried()
    assert not re.search("AttributeError|TypeError", str(seen.value)), "it does not fit the product any more"
