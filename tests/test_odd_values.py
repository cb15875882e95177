"""What tools, agents and people give may be odd: it concerns its own run, and the ledger can always be read back."""

import asyncio
import math
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from onceflow.agents.agent import Agent, agent
from onceflow.agents.call import LINEAGE_MAX, Call, RetryPolicy
from onceflow.agents.calls import RESULT_MAX_BYTES, Completed, RunFailed, StartCall, UnusableResult, chunks
from onceflow.agents.commands import Command
from onceflow.agents.gates import Allowance, Gate
from onceflow.agents.happenings import Arrived, Commanded
from onceflow.agents.journal import (
    Entry,
    Intent,
    Unreadable,
    Wait,
    encode_segment,
    read_runs,
    runs_of,
    segment_key,
)
from onceflow.agents.run import Run
from onceflow.agents.signals import SIGNAL_MAX_BYTES, Signal, read_signal
from onceflow.agents.tool import tool
from onceflow.cli import app
from onceflow.errors import AFTER_MAX_S, TEXT_MAX, ConfigError, Failed, GiveUp, RetryLater, RunError, as_text
from onceflow.event import Event, Incoming, home_slot
from onceflow.state.seen import seen_key, tenant_prefix
from onceflow.stream.content import Grant, Input
from onceflow.stream.news import Ready
from onceflow.stream.open_runs import OpenRuns
from onceflow.stream.topics import RECORD_MAX_BYTES
from tests.tenant import KEY, NOW, Tenant

ONCE = RetryPolicy(attempts=1)
SLOT = home_slot("acme", 16)


@tool(effect="read", retry=ONCE)
async def read(call: Call) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed", retry=ONCE)
async def pay(call: Call) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed", retry=ONCE)
async def hold(call: Call) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed")
async def later(call: Call) -> str: ...  # type: ignore[empty-body]


class Rude(Exception):  # noqa: N818
    """An exception without a text."""

    def __str__(self) -> str:
        raise ValueError("no text")


class Bare(Failed):
    """One whose author has forgotten `super().__init__`."""

    def __init__(self) -> None: ...


class Unprintable(Exception):  # noqa: N818
    """An exception that has a text, but raises when it is asked for more, as one with a `__getattr__` may."""

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise KeyError("no notes")


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
    (Unprintable("api"), "api"),
    (SyntaxError("bad", ("f.py", 1, "x", "text")), "bad"),
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
    assert tenant.outcome.detail
    assert journal(tenant), "it is kept to be redriven"


def test_what_a_run_that_fails_asks_for_in_its_clean_up_is_not_begun() -> None:
    async def awaits_something_else(run: Run, event: Event) -> None:
        await run.call(pay)
        try:
            await asyncio.sleep(0)  # sleeps: no time, and it is refused
        finally:
            await run.call(hold)

    tenant = begun(agent_of(awaits_something_else))
    tenant.answer("p")
    assert isinstance(tenant.outcome, RunFailed)
    assert [entry.tool for entry in journal(tenant).values() if entry.intent] == ["pay"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(Failed(404, "no"), "404"), (Bare(), "failed"), (Failed(Kind.PAID), "paid"), (Failed(""), "failed")],
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


# --- Times ---


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        (None, None),
        (30, 30),
        ("30", 30),
        (" 1.5 ", 1.5),
        (timedelta(minutes=1), 60),
        (-3, 0),
        (1e17, AFTER_MAX_S),
        (math.inf, AFTER_MAX_S),
        (math.nan, None),
        (10**400, None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        (["30"], None),
    ],
)
def test_a_delay_is_a_number_of_seconds_whatever_a_header_said(after: Any, seconds: float | None) -> None:
    assert RetryLater("busy", after=after).after_s == seconds


class BareLater(RetryLater):
    """One whose author has forgotten `super().__init__`."""

    def __init__(self) -> None: ...


LATERS = [RetryLater(after="30"), RetryLater(after=math.inf), RetryLater(after=10**30), BareLater()]


@pytest.mark.parametrize("error", LATERS)
def test_a_tool_that_is_to_be_called_later_is(error: RetryLater) -> None:
    gate = Gate(running=1)
    assert gate.ended(Allowance(), 1.0, error) is (error.after_s is not None)

    async def calls(run: Run, event: Event) -> str:
        return await run.call(later)

    tenant = begun(agent_of(calls))
    tenant.answer(error)
    assert tenant.asleep or tenant.started
    assert journal(tenant)["0"].open


@pytest.mark.parametrize("error", LATERS)
def test_so_is_an_agent(error: RetryLater) -> None:
    async def raises(run: Run, event: Event) -> None:
        raise error

    tenant = begun(agent_of(raises))
    assert (tenant.ended, tenant.asleep) == ([], True)
    assert journal(tenant)


@pytest.mark.parametrize("seconds", [1e17, 1e300])
def test_a_wait_may_be_as_long_as_it_likes(seconds: float) -> None:
    async def waits(run: Run, event: Event) -> None:
        await run.sleep(seconds)

    tenant = begun(agent_of(waits))
    assert datetime.fromtimestamp(tenant.due_ms / 1000, UTC).year > 2100
    assert journal(tenant)


# --- What the ledger holds and cannot be read ---


async def sleeps(run: Run, event: Event) -> None:
    await run.sleep(5)


def numbers_for_texts(value: bytes) -> bytes:
    """A segment as another version might have written it."""
    number, begun, entries = msgspec.msgpack.decode(value)
    return msgspec.msgpack.encode(
        (number, begun, {place: [7, *entry[1:]] for place, entry in entries.items()})
    )


@pytest.mark.parametrize(
    ("spoiled", "why"),
    [
        (numbers_for_texts, "Expected `str`, got `int`"),
        (lambda value: encode_segment(None, {}), "its first segment is not there"),
        (lambda value: value[:20], "truncated"),
        (lambda value: b"\xc0", "no format"),
        (lambda value: b"", "truncated"),
    ],
)
def test_a_run_that_cannot_be_read_does_not_go_on_and_all_others_do(
    spoiled: Callable[[bytes], bytes], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    by = agent_of(sleeps)
    tenant = Tenant(by)
    keys = [tenant.event(by, number) for number in (1, 2, 3)]
    records = tenant.memory.records
    (at,) = [each for each in records if keys[0] in each]
    records[at] = spoiled(records[at])
    records[segment_key("acme", keys[0], 1)] = encode_segment(None, {})
    runs, (unreadable,) = read_runs(sorted(records.items()))
    assert {run.key for run in runs} == {*keys[1:]}
    assert (unreadable.tenant, unreadable.key) == ("acme", keys[0])
    assert why in unreadable.why

    assert {run.key for run in runs_of(sorted(records.items()))} == {*keys[1:]}
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert (line.tenant, line.run) == ("acme", keys[0].hex())  # type: ignore[attr-defined]
    assert "its records stay in F.ledger; start the version of onceflow that wrote them" in line.message


def test_a_record_of_a_newer_format_is_no_single_run_s_fault() -> None:
    tenant = begun(agent_of(sleeps))
    (at,) = tenant.memory.records
    tenant.memory.records[at] = msgspec.msgpack.encode((99, None, {}))
    with pytest.raises(ConfigError, match="format 99"):
        runs_of(tenant.memory.records.items())


def test_the_event_of_a_run_that_cannot_be_read_is_not_done_as_a_new_one() -> None:
    held: list[bytes] = []
    judge: Any = SimpleNamespace(hold=lambda seen, identity: held.append(seen))
    grant = Grant(SLOT)
    inbox = Input("F.inbox", SLOT, grant, topic_id="id", is_inbox=True)
    none: Any = None
    runs = OpenRuns(none, none, judge, 16, lambda _: inbox, with_identity=True)
    ready = Ready(grant, [inbox], [], [], [Unreadable("acme", KEY, "truncated")])
    assert [*runs.resume(ready)] == []
    assert held == [seen_key(tenant_prefix(SLOT, "acme"), KEY)]


# --- Sizes ---

EVENT_BYTES = 1_000_000  # value and headers, at most
DOCUMENT = b'{"data":"%s"}' % (b"x" * EVENT_BYTES)
LARGEST = Incoming("acme", "s" * 512, "i" * 512, "t", None, DOCUMENT[8:-1], DOCUMENT)
INTENT = Intent("k" * 32, 1, NOW, NOW, True, b"s" * 32, True, True)
WORDY = Entry("名" * 128, 1, b"a" * 16, None, ("c", "名" * TEXT_MAX), INTENT, None, None, NOW, NOW)
FOUND = ("acme", ["名" * 200] * LINEAGE_MAX)


def entry(**members: Any) -> Entry:
    return Entry("read", 1, b"a" * 16, **members)


@pytest.mark.parametrize(
    ("entries", "portions"),
    [
        ([entry(result=b"r")], 1),
        ([entry(result=b"r" * RESULT_MAX_BYTES), WORDY], 1),
        ([entry(result=b"r" * RESULT_MAX_BYTES)] * 3, 3),
        ([entry(result=b"r")] * 30_000, 41),
        ([WORDY] * 1_000, 30),
        ([entry(result=b"r", lineage=(FOUND,))] * 400, 58),
        ([Entry("wait_for", 1, b"", b"s" * SIGNAL_MAX_BYTES, wait=Wait(NOW, "t", "i", ("u",) * 999))], 2),
    ],
)
def test_a_segment_fits_into_a_record_with_the_largest_event(entries: list[Entry], portions: int) -> None:
    journal = {f"{number}.{number}": entry for number, entry in enumerate(entries)}
    found = chunks(journal, beside_event=True)
    assert {place: each for portion in found for place, each in portion.items()} == journal
    assert len(found) == pytest.approx(portions, rel=0.2)
    event = Arrived(
        SimpleNamespace(topic="t", partition=3), 7, NOW, DOCUMENT, None, LARGEST, agent_of(sleeps)
    )
    begun = [event.begun(), *[None] * len(found)]
    sizes = [len(encode_segment(*each)) for each in zip(begun, found, strict=False)]
    assert max(sizes) < RECORD_MAX_BYTES - 10_000


def test_a_signal_that_no_record_could_hold_is_none() -> None:
    for data, why in (
        (b"[%s1.5]" % (b"1.5," * 240_000), "at most 900000 fit"),
        (b"123456789012345678901234", "write such a number as a text"),
    ):
        document = b'{"subject":"x","data":%s}' % data
        refused = read_signal(Incoming("acme", "psp", "1", "paid", None, data, document))
        assert isinstance(refused, str)
        assert why in refused


def test_a_line_may_be_named_by_any_value() -> None:
    by = agent_of(sleeps, order_by="data")
    values = [b"7", b"123456789012345678901234", b'"%s"' % (b"x" * 900_000), b'{"a":[1]}']
    lines = [by.line_of(Incoming("acme", "erp", "1", "t", None, value)) for value in values]
    assert len(set(lines)) == len(values)
    assert max(map(len, lines)) <= 1_000


# --- What a person says ---

NOT_STORED = [
    (b"123456789012345678901234", "write such a number as a text"),
    (b'{"cents": [123456789012345678901234]}', "write such a number as a text"),
    (b"[" * 100_000 + b"]" * 100_000, "it nests too deep"),
    (b'"%s"' % (b"x" * 600_000), "at most 500000 fit"),
]


@pytest.mark.parametrize(("result", "why"), NOT_STORED)
def test_a_result_that_cannot_be_stored_is_refused(
    result: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def pays(run: Run, event: Event) -> str:
        return await run.call(pay)

    tenant = begun(agent_of(pays))
    tenant.answer(TimeoutError())
    parked = dict(tenant.memory.records)
    command = Command("result", "acme", KEY.hex(), 2, result=msgspec.Raw(result))
    tenant.take(Commanded(tenant.source, 9, 1, command))
    assert why in caplog.records[-1].refused  # type: ignore[attr-defined]
    assert tenant.memory.records == parked
    assert tenant.noted[-1].offset == 9, "it is not read again"


def test_the_command_line_refuses_it_before_it_is_sent() -> None:
    command = ["runs", "resolve", "ab", "--flow", "f", "--result", NOT_STORED[0][0].decode()]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, ConfigError) or refused.exit_code == 2
    assert "cannot be stored" in f"{refused.exception} {refused.output}"


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


@pytest.mark.parametrize("until", [None, 7, [None]])
def test_so_does_one_until_what_is_no_status(until: Any) -> None:
    async def waits(run: Run, event: Event) -> Any:
        await run.wait_for("paid", "A-1", until=until)

    assert begun(agent_of(waits)).outcome.code == "agent-failed"
