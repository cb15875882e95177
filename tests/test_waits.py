"""Waits: how a run falls asleep and goes on, which signal ends which wait, and what a person may decide."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from onceflow.agents.agent import agent
from onceflow.agents.call import Call
from onceflow.agents.calls import Asleep, Completed, Record, RunFailed, StartCall, WaitBegun
from onceflow.agents.commands import Command, resolution
from onceflow.agents.happenings import (
    Commanded,
    Due,
)
from onceflow.agents.journal import NIL, Wait
from onceflow.agents.machine import Machine
from onceflow.agents.run import Run
from onceflow.agents.signals import (
    BURST_MS,
    KEPT_MAX,
    KEPT_MS,
    Signal,
    decode_kept,
    ends,
    kept_signals,
    read_signal,
)
from onceflow.agents.tool import tool
from onceflow.errors import RetryLater, WaitExpired
from onceflow.event import Event, Incoming
from tests.tenant import INCOMING, KEY, NOW, Tenant

MINUTE = 60_000


def signal(status: str = "done", number: int = 1, id: str = "evt-1") -> Signal:
    return Signal("signed", id, status, {"status": status}, "vendor", f"s-{number}")


@agent("waits", on="t")
async def waits(run: Run, event: Event) -> Any:
    found = await run.wait_for("signed", event.id, until=("done", "refused"), timeout=10 * 60)
    return found.status


@agent("sleeps", on="t")
async def sleeps(run: Run, event: Event) -> str:
    await run.sleep(90)
    return "awake"


@pytest.fixture
def tenant() -> Tenant:
    return Tenant(waits, sleeps)


# --- Falling asleep, and going on ---


def test_a_run_that_only_waits_is_in_the_ledger_and_not_in_memory(tenant: Tenant) -> None:
    tenant.event(waits)
    assert tenant.asleep
    saved = tenant.memory.saved(KEY)
    assert [entry.wait for entry in saved.journal.values() if entry.wait] == [
        Wait(NOW + 10 * MINUTE, "signed", "evt-1", ("done", "refused"))
    ]
    assert tenant.due_ms == NOW + 10 * MINUTE


@pytest.mark.parametrize("crash", [False, True])
def test_a_sleep_ends_when_its_time_is_over_and_not_before(tenant: Tenant, crash: bool) -> None:
    tenant.event(sleeps)
    if crash:
        tenant.now += 60_000
        tenant.begin_anew()
        tenant.resume()
    assert tenant.due_ms == NOW + 90_000, "counted from its begin, not from the restart"
    tenant.now = NOW + 89_999
    tenant.take(Due(KEY))
    assert (tenant.ended, tenant.asleep) == ([], True)
    tenant.now = NOW + 90_000
    tenant.take(Due(KEY))
    assert tenant.outcome == Completed("awake")
    assert (tenant.memory.records, tenant.lane.idle) == ({}, True)


CLEAN_UPS: list[Callable[[Run], Any]] = [
    lambda run: run.call(ask, id="x"),
    lambda run: run.call(escalate, id="x"),
    lambda run: run.call(notify, id="x"),
    lambda run: run.gather(run.call(escalate, id="x"), run.call(escalate, id="y")),
    lambda run: run.wait_for("signed", "x", timeout=5),
]


@pytest.mark.parametrize("clean_up", CLEAN_UPS)
def test_a_run_that_falls_asleep_asks_for_nothing_in_its_clean_up(clean_up: Callable[[Run], Any]) -> None:
    @agent("tidies", on="t")
    async def tidies(run: Run, event: Event) -> None:
        try:
            await run.sleep(60)
            run.now()
        finally:
            run.flag("twice")
            await clean_up(run)

    tenant = Tenant(tidies)
    tenant.event(tidies)
    tenant.commit()
    assert (tenant.started, tenant.asleep, len(tenant.memory.records)) == ([], True, 1)
    tenant.signalled(signal(id="x"))
    tenant.now += 60_000
    tenant.take(Due(KEY))
    tenant.commit()
    while tenant.started:
        tenant.answer("done")
    tenant.now += 5_000
    tenant.take(Due(KEY))
    assert (len(tenant.ended), tenant.parked) == (1, [])


@pytest.mark.parametrize("crash", [False, True])
def test_a_signal_ends_the_wait_in_the_decision_that_finishes_its_record(tenant: Tenant, crash: bool) -> None:
    tenant.event(waits)
    if crash:
        tenant.begin_anew()
        tenant.resume()
    noted = tenant.signalled(signal())
    ((key, value),) = noted.changes
    assert decode_kept(value or b"").taken
    assert tenant.outcome == Completed("done")
    assert list(tenant.memory.records) == [key], "that it was taken; the run's own records are gone"


def test_a_wait_whose_time_is_over_raises_or_is_handled_by_its_agent(tenant: Tenant) -> None:
    tenant.event(waits)
    tenant.now += 10 * MINUTE
    tenant.take(Due(KEY))
    assert isinstance(tenant.outcome, RunFailed)
    assert tenant.outcome.code == "expired"
    tenant.signalled(signal())
    assert len(tenant.ended) == 1


def test_a_wait_beside_a_call_under_way_keeps_the_run_in_memory() -> None:
    @tool(effect="read")
    async def fetch(call: Call) -> int: ...  # type: ignore[empty-body]

    @agent("both", on="t")
    async def both(run: Run, event: Event) -> list[Any]:
        return await run.gather(run.call(fetch), run.wait_for("signed", "x"))

    machine = Machine(both, None)
    effects = machine.begin(Event.of(INCOMING, KEY.hex(), 7), NOW)
    assert {type(effect) for effect in effects} == {StartCall, WaitBegun, Record}
    assert not any(isinstance(effect, Asleep) for effect in effects)
    (begun,) = [effect for effect in effects if isinstance(effect, WaitBegun)]
    found = machine.signalled(begun.place, msgspec.msgpack.encode(signal(id="x")), NOW)
    assert {type(effect) for effect in found} == {Record}


# --- Signals: early, late, repeated, not final, of another ---


def test_a_signal_that_comes_early_is_kept_and_taken(tenant: Tenant) -> None:
    tenant.signalled(signal("begun", number=2), offset=8)
    tenant.signalled(signal(), offset=9)
    tenant.event(waits)
    assert tenant.outcome == Completed("done")


def test_of_two_that_came_early_the_older_is_taken(tenant: Tenant) -> None:
    tenant.signalled(signal("refused", number=2), offset=8)
    tenant.now += 1
    tenant.signalled(signal("done", number=1), offset=9)
    tenant.event(waits)
    assert tenant.outcome == Completed("refused")


def test_a_status_that_is_not_final_ends_nothing(tenant: Tenant) -> None:
    tenant.event(waits)
    tenant.signalled(signal("begun"))
    assert (tenant.ended, tenant.asleep) == ([], True)


def test_a_signal_ends_one_wait_only_however_often_it_comes(tenant: Tenant) -> None:
    @agent("waits", on="t")
    async def twice(run: Run, event: Event) -> list[str]:
        first = await run.wait_for("signed", event.id)
        return [first.event_id, (await run.wait_for("signed", event.id)).event_id]

    tenant.memory.agents["waits"] = twice
    tenant.event(twice)
    for offset in (7, 8):
        tenant.signalled(signal(number=1), offset)
    assert tenant.ended == []
    assert tenant.noted[-1].changes == (), "a copy"
    tenant.signalled(signal(number=2), 9)
    assert tenant.outcome == Completed(["s-1", "s-2"])


def test_a_burst_of_what_nobody_waits_for_is_kept_once(tenant: Tenant) -> None:
    assert tenant.signalled(signal(number=1), 1).changes
    tenant.now += BURST_MS - 1
    assert not tenant.signalled(signal(number=2), 2).changes
    assert tenant.signalled(signal("refused", number=3), 3).changes, "another status"
    tenant.now += 1
    assert tenant.signalled(signal(number=4), 4).changes, "later than a burst"


def test_a_signal_that_nobody_took_becomes_a_dead_letter_when_it_was_kept_long_enough(tenant: Tenant) -> None:
    noted = tenant.signalled(signal())
    ((key, _),) = noted.changes
    assert noted.keep_until_ms == NOW + KEPT_MS
    assert kept_signals(tenant.memory.records.items()) == [("acme", key, NOW + KEPT_MS)]
    tenant.take(Due(b"", key))
    (letter,) = [each.unclaimed for each in tenant.noted if each.unclaimed]
    assert letter.value == b"{..}"
    assert tenant.memory.records == {}


def test_of_too_many_for_one_wait_the_oldest_leaves_as_a_dead_letter(tenant: Tenant) -> None:
    """Each that comes is compared with all that are kept: without a bound the cell would stand still for one wait."""
    for number in range(KEPT_MAX + 2):
        tenant.signalled(signal(f"status-{number}", number), number)
        tenant.now += 1
    tenant.signalled(signal("another", 0, id="evt-2"), number + 1)
    left = [each.unclaimed.signal.event_id for each in tenant.noted if each.unclaimed]
    assert left == ["s-0", "s-1"]
    assert len(tenant.memory.records) == KEPT_MAX + 1


def test_those_that_were_taken_do_not_count(tenant: Tenant) -> None:
    """They are remembered for as long as a copy may come."""
    tenant.event(waits)
    tenant.signalled(signal("done", 1_000))
    for number in range(KEPT_MAX):
        tenant.signalled(signal(f"status-{number}", number), number)
        tenant.now += 1
    assert [each.unclaimed for each in tenant.noted if each.unclaimed] == []
    tenant.signalled(signal("done", 1_000))
    assert tenant.noted[-1].changes == (), "a copy"


def test_one_that_was_taken_becomes_none(tenant: Tenant) -> None:
    tenant.event(waits)
    ((key, _),) = tenant.signalled(signal()).changes
    tenant.take(Due(b"", key))
    assert [each.unclaimed for each in tenant.noted if each.unclaimed] == []
    assert tenant.memory.records == {}


@pytest.mark.parametrize(
    ("wait", "so"),
    [
        (Wait(0, "signed", "evt-1"), True),
        (Wait(0, "signed", "evt-1", ("done",)), True),
        (Wait(0, "signed", "evt-1", ("refused",)), False),
        (Wait(0, "signed", "evt-2"), False),
        (Wait(0, "seen", "evt-1"), False),
    ],
)
def test_which_signal_ends_which_wait(wait: Wait, so: bool) -> None:
    assert ends(wait, signal()) is so


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b'{"subject":"x"}', Signal("t", "x", "", None, "erp", "evt-1")),
        (b"{}", "needs the attribute `subject`"),
        (b'{"subject":7}', "needs the attribute `subject`"),
    ],
)
def test_a_signal_is_read_or_says_what_is_missing(document: bytes, says: Any) -> None:
    found = read_signal(Incoming("acme", "erp", "evt-1", "t", None, b"", document))
    assert found == says if isinstance(says, Signal) else says in str(found)


@pytest.mark.parametrize("early", [False, True])
def test_a_wait_whose_time_is_over_takes_no_signal_though_its_run_is_awake(early: bool) -> None:
    @agent("both", on="t")
    async def both(run: Run, event: Event) -> str:
        async def hurried() -> None:
            with suppress(WaitExpired):
                await run.wait_for("signed", "x", timeout=10)

        await run.gather(hurried(), run.call(ask, id="x"))
        return (await run.wait_for("signed", "x")).event_id

    tenant = Tenant(both)
    tenant.event(both)
    tenant.now += 10_000
    tenant.take(Due(KEY))
    if early:
        tenant.signalled(signal(id="x"))
    tenant.answer("asked")
    if not early:
        tenant.signalled(signal(id="x"))
    assert tenant.outcome == Completed("s-1")


def test_a_run_that_was_cancelled_takes_no_signal_while_its_calls_are_waited_for() -> None:
    @agent("both", on="t")
    async def both(run: Run, event: Event) -> None:
        await run.gather(run.call(escalate, id="x"), run.call(ask, id="x"), run.wait_for("signed", "x"))

    tenant = Tenant(both)
    tenant.event(both)
    tenant.commit()
    tenant.take(Commanded(tenant.source, 11, 3, Command("cancel", "acme", KEY.hex())))
    ((_, value),) = tenant.signalled(signal(id="x")).changes
    assert not decode_kept(value or b"").taken, "the next wait may have it"


def test_a_sleep_beside_a_slow_call_is_over_when_its_time_is() -> None:
    @agent("both", on="t")
    async def both(run: Run, event: Event) -> list[Any]:
        async def rested() -> str:
            await run.sleep(1)
            await run.sleep(2)
            return await run.call(escalate, id="x")

        return await run.gather(run.call(ask, id="x"), run.call(ask, id="y"), rested(), run.sleep(90))

    tenant = Tenant(both)
    tenant.event(both)
    assert tenant.due_ms == NOW + 1_000
    tenant.due_ms = 0
    tenant.answer("asked")
    assert tenant.due_ms == 0, "that is known"
    for seconds in (1, 3):
        tenant.now = NOW + seconds * 1_000
        tenant.take(Due(KEY))
    tenant.commit()
    assert [call.tool.name for call in tenant.started] == ["ask", "escalate"]
    assert tenant.due_ms == NOW + 90_000


def test_an_attempt_that_was_put_off_is_made_while_another_call_is_waited_for() -> None:
    @agent("twice", on="t")
    async def twice(run: Run, event: Event) -> list[Any]:
        return await run.gather(*(run.call(notify, id="x") for _ in range(2)))

    tenant = Tenant(twice)
    tenant.event(twice)
    tenant.answer(RetryLater(after=60))
    assert tenant.due_ms >= NOW + 60_000
    tenant.now = tenant.due_ms
    tenant.take(Due(KEY))
    tenant.answer("told")
    assert tenant.outcome == Completed(["told", "told"])


def test_an_attempt_that_was_put_off_is_no_wait_any_more_once_it_is_made() -> None:
    @agent("both", on="t")
    async def both(run: Run, event: Event) -> list[Any]:
        return await run.gather(run.call(escalate, id="x"), run.call(ask, id="x"))

    tenant = Tenant(both)
    tenant.event(both)
    tenant.commit()
    asked = tenant.started.pop(0)
    tenant.answer(RetryLater(after=20))
    tenant.started.append(asked)
    tenant.now += 20_000
    tenant.answer("asked")
    tenant.take(Due(KEY))
    assert tenant.ended == []
    tenant.answer("escalated")
    assert tenant.outcome == Completed(["escalated", "asked"])


# --- Polling, and what follows a time-out ---


@tool(effect="read")
async def ask(call: Call, id: str) -> str | None: ...


@tool(effect="keyed")
async def escalate(call: Call, id: str) -> str: ...  # type: ignore[empty-body]


@tool(effect="keyed", scope="tenant", key_fields=("id",))
async def notify(call: Call, id: str) -> str: ...  # type: ignore[empty-body]


async def _polled(run: Run, event: Event) -> Any:
    options = {"poll": ask, "every": 60, "timeout": 90, "on_timeout": escalate}
    found = await run.wait_for("signed", "x", until="done", **options)
    return found if isinstance(found, str) else [found.source, found.status]


class Polled:
    """A run that polls; its waits end by time alone."""

    def __init__(self) -> None:
        self.journal: dict[str, Any] = {}
        self.segments = 0
        self.now = NOW
        self.polled: list[StartCall] = []
        self.end: Any = None
        self.go_on()

    def go_on(self) -> None:
        machine = Machine(agent("polls", on="t")(_polled), None, dict(self.journal), self.segments)
        self.machine = machine
        self.note(machine.begin(Event.of(INCOMING, KEY.hex(), 7), self.now))

    def note(self, effects: Any) -> None:
        for effect in effects:
            if isinstance(effect, Record):
                self.journal |= effect.entries
                self.segments = effect.number + 1
                self.polled += effect.calls
            elif isinstance(effect, StartCall):
                self.polled.append(effect)
            elif isinstance(effect, Asleep):
                self.due_ms = effect.due_ms
            elif not isinstance(effect, WaitBegun):
                self.end = effect

    def answer(self, result: Any) -> StartCall:
        from onceflow.agents.calls import Returned

        call = self.polled.pop(0)
        self.note(self.machine.answer(Returned(call.place, 1, msgspec.msgpack.encode(result)), self.now))
        return call


def test_a_poll_that_finds_it_ends_the_wait() -> None:
    run = Polled()
    assert run.due_ms == NOW + 60_000
    run.now = run.due_ms
    run.go_on()
    assert run.answer("done").tool is ask
    assert run.end == Completed(["poll/ask", "done"])


def test_polls_go_on_until_the_time_is_over_and_then_the_escalation_is_called() -> None:
    run = Polled()
    run.now = run.due_ms
    run.go_on()
    run.answer("begun")
    assert run.due_ms == NOW + 90_000
    run.now = run.due_ms
    run.go_on()
    run.answer(None)
    assert run.answer("ticket-7").tool is escalate
    assert run.end == Completed("ticket-7")


# --- What a person decides ---


def test_a_waiting_run_is_cancelled(tenant: Tenant) -> None:
    tenant.event(waits)
    tenant.take(Commanded(tenant.source, 11, 3, Command("cancel", "acme", KEY.hex())))
    assert (tenant.outcome.code, tenant.noted[-1].offset) == ("cancelled", 11)
    assert (tenant.lane.idle, tenant.capacity.in_flight) == (True, 0)
    assert tenant.memory.failed(KEY), "kept, to be redriven"


def test_a_command_for_a_run_that_is_not_there_is_finished_and_changes_nothing(tenant: Tenant) -> None:
    tenant.take(Commanded(tenant.source, 11, 3, Command("cancel", "acme", "ab" * 16)))
    assert [(noted.offset, noted.changes) for noted in tenant.noted] == [(11, ())]
    assert tenant.lane.idle


def test_a_run_that_is_not_parked_is_not_resolved(tenant: Tenant) -> None:
    tenant.event(waits)
    refused = resolution(Command("again", "acme", KEY.hex(), 1), tenant.memory.saved(KEY))
    assert refused == "the run is not parked"


def test_nil_is_what_a_sleep_returns() -> None:
    assert msgspec.msgpack.decode(NIL) is None
