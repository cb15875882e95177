"""Tools that block the thread of a loop instead of awaiting: calls of other tools have their answers all the same."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from onceflow.agents import executor, loop
from onceflow.agents.call import Call
from onceflow.agents.calls import NotSent, Raised
from onceflow.agents.executor import ALL
from tests.test_executor import Asked, greet, result
from tests.waiting import wait_until


class Blocked(Asked):
    """An executor of which `blocks` keeps a thread until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self.blocking = 0

        async def blocks() -> None:
            self.blocking += 1
            self.let_go.wait(60)

        self.blocks = blocks

    def block(self) -> None:
        """Begin such a call, and wait until other tools are served by another loop."""
        serving = self.executor._serving
        self.call(self.blocks, timeout_s=60)
        wait_until(lambda: self.executor._serving is not serving, 10, "another loop serves")


@pytest.fixture
def asked() -> Iterator[Blocked]:
    asked = Blocked()
    yield asked
    asked.let_go.set()
    asked.executor.close()


def test_it_is_named_and_holds_up_no_call_that_begins_later(
    asked: Blocked, caplog: pytest.LogCaptureFixture
) -> None:
    asked.block()
    (record,) = [each for each in caplog.records if getattr(each, "tool", "") == "blocks"]
    assert "blocks its thread" in record.message
    assert record.at.startswith(f"{__file__}:")  # type: ignore[attr-defined]
    asked.call(greet, name="tea")
    assert result(asked.answer()) == "acme tea 1"
    asked.let_go.set()
    wait_until(lambda: len(asked.fetch()) == 2, 5, "its own answer")


def test_a_call_beside_it_that_was_not_sent_yet_is_sent_by_another_loop_once(asked: Blocked) -> None:
    sent = []

    async def note(name: str) -> None:
        sent.append(name)

    asked.call(note, tenant="quiet", delay_s=0.3, name="later")
    asked.block()
    asked.answer()
    asked.let_go.set()
    wait_until(lambda: len(asked.fetch()) == 2, 5, "its own answer")
    old = asked.executor._loops[0]
    wait_until(lambda: not asyncio.all_tasks(old._loop), 5, "the loop comes to the end of all that it had")
    assert (sent, len(asked.fetch())) == (["later"], 2)
    assert old._passing._gates["quiet", "note"].running == 0, "its place at the gate there is free"


def test_a_call_beside_it_whose_time_is_over_is_answered_once(asked: Blocked) -> None:
    async def waits() -> str:
        await asyncio.Event().wait()
        return ""

    asked.call(waits, tenant="quiet", timeout_s=0.3)
    wait_until(lambda: asked.executor._loops[0].busy, 5, "the call to begin")
    asked.block()
    assert str(asked.answer().error) == "no answer within 0.3 s"
    asked.let_go.set()
    wait_until(lambda: len(asked.fetch()) == 2, 5, "its own answer")
    wait_until(lambda: not asyncio.all_tasks(asked.executor._loops[0]._loop), 5, "both have ended")
    assert len(asked.fetch()) == 2


def test_its_later_calls_stay_there_and_take_no_other_thread(asked: Blocked) -> None:
    asked.block()
    for _ in range(10):
        asked.call(asked.blocks)
    asked.call(greet, name="tea")
    assert result(asked.answer()) == "acme tea 1"
    assert asked.blocking == 1
    assert asked.executor._homes[ALL, "blocks"] is asked.executor._loops[0]
    asked.let_go.set()
    wait_until(lambda: len(asked.fetch()) == 12, 5, "all are answered")


def test_what_it_keeps_for_long_is_one_tenants(asked: Blocked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of the same tool for other tenants go to another thread, also once its own was answered as too late."""
    monkeypatch.setattr(executor, "LONG_S", 2.5)

    async def posts(call: Call) -> str:
        if call.tenant == "slow":
            asked.let_go.wait(60)
        return call.tenant

    asked.call(posts, tenant="slow", timeout_s=0.1)
    wait_until(lambda: (ALL, "posts") in asked.executor._homes, 10, "it has a thread of its own")
    for tenant in ("slow", "quiet", "slow", "other"):
        asked.call(posts, tenant=tenant)
    wait_until(lambda: len(asked.fetch()) == 3, 10, "the time-out, and the answers of others")
    assert str(asked.answers[0].answer.error) == "no answer within 0.1 s"  # type: ignore[union-attr]
    assert [result(each.answer) for each in asked.answers[1:]] == ["quiet", "other"]
    asked.let_go.set()
    wait_until(lambda: len(asked.fetch()) == 5, 5, "its own answers")


def test_tools_that_block_for_long_leave_half_of_the_threads_to_others(
    asked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "LONG_S", 1.5)
    monkeypatch.setattr(executor, "LOOPS_MAX", 4)
    for tenant in ("one", "two", "three", "four"):
        asked.call(asked.blocks, tenant=tenant, timeout_s=60)
    wait_until(lambda: asked.blocking == 2, 10, "the next one has another thread")
    wait_until(lambda: asked.executor._loops[-1].held_up_s > 3, 10, "it keeps that for long too")
    asked.call(greet, name="tea")
    assert result(asked.answer()) == "acme tea 1"
    assert (asked.blocking, len(asked.executor._loops)) == (2, 3)
    asked.let_go.set()
    wait_until(lambda: len(asked.fetch()) == 5, 5, "all are answered")


def test_it_does_not_take_the_thread_where_another_tool_is_at_home(
    asked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one blocks now and then, and must not wait for one that never returns."""
    monkeypatch.setattr(executor, "LONG_S", 1.5)
    short = threading.Event()

    async def stalls() -> str:
        short.wait(60)
        return "done"

    asked.call(stalls, timeout_s=60)
    wait_until(lambda: (ALL, "stalls") in asked.executor._homes, 10, "it has a thread of its own")
    short.set()
    asked.answer()
    home = asked.executor._homes[ALL, "stalls"]
    for tenant in ("one", "two"):
        asked.call(asked.blocks, tenant=tenant, timeout_s=60)
    wait_until(lambda: asked.blocking == 2, 10, "the second one has another thread")
    assert home not in [its for (_, name), its in asked.executor._homes.items() if name == "blocks"]
    asked.call(stalls)
    wait_until(lambda: len(asked.fetch()) == 2, 5, "its answer")
    asked.let_go.set()
    wait_until(lambda: len(asked.fetch()) == 4, 5, "all are answered")


def test_it_is_named_though_it_was_answered_before_it_blocks(
    asked: Blocked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has swallowed its cancellation, and then blocks."""
    monkeypatch.setattr(loop, "SWALLOWED_S", 0.05)
    answered = threading.Event()

    async def swallows() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.to_thread(answered.wait, 60)
        asked.let_go.wait(60)

    asked.call(swallows, timeout_s=0.05)
    asked.answer()
    answered.set()
    wait_until(lambda: (ALL, "swallows") in asked.executor._homes, 10, "it has a thread of its own")
    assert "swallows" in [getattr(each, "tool", "") for each in caplog.records if "blocks" in each.message]


def test_a_callback_that_blocks_is_named_by_its_place_and_holds_up_no_call_that_begins_later(
    asked: Blocked, caplog: pytest.LogCaptureFixture
) -> None:
    async def leaves_a_callback() -> None:
        asyncio.get_running_loop().call_later(0.01, asked.let_go.wait, 60)

    asked.call(leaves_a_callback)
    asked.answer()
    asked.answers.clear()

    def named() -> list[Any]:
        return [each for each in caplog.records if "threading.py:" in getattr(each, "at", "")]

    (record,) = wait_until(named, 10, "it is named")
    assert "blocks its thread" in record.message
    asked.call(greet, name="tea")
    assert result(asked.answer()) == "acme tea 1"


def test_when_all_threads_were_blocked_one_that_goes_on_serves_again(
    asked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "LOOPS_MAX", 2)
    other = Blocked()

    async def blocks_too() -> None:
        other.let_go.wait(60)

    asked.block()
    asked.call(blocks_too)
    last = asked.executor._loops[1]
    wait_until(lambda: (ALL, "blocks_too") in asked.executor._homes, 10, "the last one is blocked")
    asked.call(greet, name="tea")
    asked.let_go.set()
    wait_until(lambda: len(asked.fetch()) == 2, 10, "the answers of the first, and of the call that waited")
    assert last.is_blocked
    other.let_go.set()
    wait_until(lambda: len(asked.fetch()) == 3, 5, "its own answer")
    other.executor.close()


def test_at_the_end_all_threads_are_told_before_one_is_waited_for(
    asked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the blocked one goes on once another has cleaned up."""
    monkeypatch.setattr(loop, "CLOSE_S", 60)

    async def cleans_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            asked.let_go.set()

    asked.block()
    asked.call(cleans_up)
    wait_until(lambda: asked.executor._serving.busy, 5, "the call to begin")
    closing = threading.Thread(target=asked.executor.close, daemon=True)
    closing.start()
    wait_until(lambda: not closing.is_alive(), 10, "the end")


# --- A tool that cancels what is not its own ---


def test_calls_that_a_tool_cancels_before_they_are_sent_were_not_sent(
    asked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they wait for their time, or have not taken a step yet."""
    monkeypatch.setattr(loop, "FORGET_EVERY_S", 0.1)

    async def cancels_all() -> None:
        asked.call(greet, tenant="quiet", name="new")
        await asyncio.sleep(0)  # sleeps: no time, the call becomes a task
        for task in asyncio.all_tasks():
            task.cancel()

    asked.call(greet, tenant="quiet", delay_s=60, name="later")
    asked.call(cancels_all)
    wait_until(lambda: len(asked.fetch()) == 3, 15, "all are answered")
    errors = [each.answer.error for each in asked.answers if isinstance(each.answer, Raised)]
    assert [type(error) for error in errors] == [NotSent, NotSent]
