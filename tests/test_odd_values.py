"""What tools, agents and people give may be odd: it concerns its own run, and the ledger can always be read back."""

import uuid
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import pytest

from onceflow.agents.agent import Agent, agent
from onceflow.agents.call import LINEAGE_MAX, Call, RetryPolicy
from onceflow.agents.calls import Completed, RunFailed, StartCall, UnusableResult
from onceflow.agents.journal import Entry, runs_of
from onceflow.agents.run import Run
from onceflow.agents.signals import Signal
from onceflow.agents.tool import tool
from onceflow.errors import TEXT_MAX, Failed, GiveUp, RunError, as_text
from onceflow.event import Event
from tests.tenant import Tenant

ONCE = RetryPolicy(attempts=1)


@tool(effect="read", retry=ONCE)
async def read(call: Call) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed", retry=ONCE)
async def pay(call: Call) -> str: ...  # type: ignore[empty-body]


class Rude(Exception):  # noqa: N818
    """An exception without a text."""

    def __str__(self) -> str:
        raise ValueError("no text")


class Bare(Failed):
    """One whose author has forgotten `super().__init__`."""

    def __init__(self) -> None: ...


class Kind(StrEnum):
    PAID = "paid"


def agent_of(function: Callable[[Run, Event[Any]], Any], **options: Any) -> Agent[Any, Any]:
    return agent("odd", on="t", **options)(function)


def begun(by: Agent[Any, Any], data: bytes = b"7") -> Tenant:
    tenant = Tenant(by)
    tenant.event(by, data=data)
    return tenant


def journal(tenant: Tenant) -> dict[str, Entry]:
    """What the ledger holds of the run, as a grant reads it."""
    (run,) = runs_of(sorted(tenant.memory.records.items()))
    return run.journal


# --- Texts ---


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("busy", "busy"),
        (404, "404"),
        (Kind.PAID, "paid"),
        ("file \udc80", "file ?"),
        (Rude(), "(Rude, whose text cannot be had)"),
        ("x" * TEXT_MAX, "x" * TEXT_MAX),
        ("x" * (TEXT_MAX + 1), "x" * (TEXT_MAX - 1) + "…"),
    ],
)
def test_whatever_is_said_is_a_text_that_can_be_stored(said: object, text: str) -> None:
    assert as_text(said) == text
    assert type(as_text(said)) is str


ODD: list[tuple[BaseException, str]] = [
    (GiveUp("file \udc80"), "file ?"),
    (Rude(), "whose text cannot be had"),
    (GiveUp("422: " + "<html>" * 400_000), "422: <html>"),
    (UnusableResult("name \udc80"), "name ?"),
    (Failed(404, "no"), "no"),  # type: ignore[arg-type]
    (Failed("x", None), ""),  # type: ignore[arg-type]
    (Bare(), ""),
]


@pytest.mark.parametrize("effect", [read, pay])
@pytest.mark.parametrize(("error", "text"), ODD)
def test_a_tool_may_raise_whatever_it_likes(effect: Any, error: BaseException, text: str) -> None:
    async def catches(run: Run, event: Event) -> None:
        try:
            await run.call(effect)
        except RunError:
            await run.sleep(5)

    tenant = begun(agent_of(catches))
    tenant.answer(error)
    told = [entry.error for entry in journal(tenant).values() if entry.error is not None]
    assert [text in message for _, message in told] == [True]
    assert max(map(len, tenant.memory.records.values())) < 5 * TEXT_MAX


@pytest.mark.parametrize(("error", "text"), ODD)
def test_so_may_an_agent(error: BaseException, text: str) -> None:
    async def raises(run: Run, event: Event) -> None:
        await run.call(pay)
        raise error

    tenant = begun(agent_of(raises))
    tenant.answer("p")
    assert isinstance(tenant.outcome, RunFailed)
    assert text in tenant.outcome.message
    assert journal(tenant), "it is kept to be redriven"


@pytest.mark.parametrize(
    ("error", "code"), [(Failed(404, "no"), "404"), (Bare(), "failed"), (Failed(Kind.PAID), "paid")]
)
def test_a_code_that_is_no_text_becomes_one(error: Failed, code: str) -> None:
    async def fails(run: Run, event: Event) -> None:
        raise error

    assert begun(agent_of(fails)).outcome.code == code


def test_what_a_call_has_found_is_kept_as_text_and_not_too_much_of_it() -> None:
    async def looks(run: Run, event: Event) -> None:
        await run.call(read)
        await run.sleep(5)

    tenant = begun(agent_of(looks))
    (started,) = tenant.started
    assert isinstance(started, StartCall)
    started.call.retrieved([1, "\udc80", "x" * 1_000_000])  # type: ignore[list-item]
    for _ in range(400):
        started.call.retrieved(map(str, range(10)), tenant="globex")
    tenant.answer("found")
    lineage = journal(tenant)["0"].lineage
    (mine, ids), *_ = lineage
    assert (mine, ids[:2], len(ids[2])) == ("acme", ["1", "?"], 200)
    assert sum(len(ids) for _, ids in lineage) == LINEAGE_MAX


# --- Waits ---


@pytest.mark.parametrize("order", [42, "42", uuid.UUID(int=42), Kind.PAID])
def test_a_wait_takes_a_number_of_the_event_for_the_text_that_its_signal_carries(order: Any) -> None:
    async def waits(run: Run, event: Event) -> Any:
        return (await run.wait_for(Kind.PAID, order, until=[200, "done"])).status  # type: ignore[list-item]

    tenant = begun(agent_of(waits))
    assert journal(tenant)
    tenant.signalled(Signal("paid", str(order), "200", {}, "psp", "s-1"))
    assert tenant.outcome == Completed("200")


@pytest.mark.parametrize("order", [None, True, 1.5, ["a"], "half \udc80", "x" * 100_000])
def test_a_wait_for_what_no_signal_can_name_fails_its_run(order: Any) -> None:
    async def waits(run: Run, event: Event) -> Any:
        await run.wait_for("paid", order)

    assert begun(agent_of(waits)).outcome.code == "agent-failed"
