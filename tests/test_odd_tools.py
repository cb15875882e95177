"""Tools that do what no tool should: each call still has its answer, and the calls of other tenants theirs."""

import asyncio
import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from onceflow.agents import loop, threads
from onceflow.agents.agent import agent
from onceflow.agents.gates import Allowance
from onceflow.agents.run import Run
from onceflow.agents.seldom import RateLimited
from onceflow.event import Event
from tests.tenant import Tenant
from tests.test_executor import Asked, greet, greet_plainly, raises_plainly, result
from tests.waiting import wait_until


@pytest.fixture
def asked() -> Iterator[Asked]:
    asked = Asked()
    yield asked
    asked.executor.close()


# --- What asyncio itself does to the task of a call ---


async def fails_in_a_group() -> None:
    """CPython before 3.13 leaves the task with a cancel request that nobody takes back."""

    async def breaks() -> None:
        raise ConnectionError("503")

    async with asyncio.TaskGroup() as group:
        group.create_task(breaks())
        group.create_task(asyncio.Event().wait())


def test_a_failed_task_of_a_task_group_is_the_answer(asked: Asked) -> None:
    asked.call(fails_in_a_group)
    error = asked.answer().error
    assert isinstance(error, ExceptionGroup)
    assert isinstance(error.exceptions[0], ConnectionError)


def test_after_a_task_group_that_failed_the_time_out_is_one(asked: Asked) -> None:
    async def goes_on() -> None:
        with suppress(ExceptionGroup):
            await fails_in_a_group()
        await asyncio.Event().wait()

    asked.call(goes_on, timeout_s=0.05)
    assert str(asked.answer().error) == "no answer within 0.05 s"


# --- What would end the loop that all calls run in ---


async def exits() -> None:
    sys.exit("no key")


async def exits_in_a_task() -> None:
    await asyncio.create_task(exits())


async def stops_the_loop() -> None:
    asyncio.get_running_loop().stop()


@pytest.mark.parametrize("tool", [exits_in_a_task, stops_the_loop])
def test_a_tool_that_would_end_the_loop_ends_no_call_of_another(
    asked: Asked, tool: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    let_go = threading.Event()

    async def waits() -> None:
        await asyncio.to_thread(let_go.wait, 30)

    asked.call(waits, tenant="quiet")
    asked.call(tool, tenant="noisy")
    wait_until(asked.fetch, 5, "its own answer")
    wait_until(lambda: "tried to end the loop" in caplog.text, 5, "it is said")
    let_go.set()
    wait_until(lambda: len(asked.fetch()) == 2, 5, "the answer of the call beside it")
    asked.call(greet, tenant="quiet", name="tea")
    wait_until(lambda: len(asked.fetch()) == 3, 5, "the answer of a later call")


def test_a_clean_up_that_exits_ends_no_clean_up_of_another() -> None:
    asked = Asked()
    cleaned = threading.Event()

    async def exits_at_the_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await exits_in_a_task()

    async def cleans_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(10):
                await asyncio.sleep(0)  # sleeps: no time, the other one's clean-up comes first
            cleaned.set()

    asked.call(exits_at_the_end)
    asked.call(cleans_up)
    wait_until(lambda: len(asked.executor._loops[0]._running) == 2, 5, "the calls to begin")
    asked.executor.close()
    assert cleaned.is_set()
    assert asked.executor._loops[0]._loop.is_closed()


# --- What the machine does not have ---


def test_a_thread_that_cannot_start_keeps_its_permit_no_longer(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    loop_ = asked.executor._loops[0]
    with monkeypatch.context() as patch:
        patch.setattr(threads, "Thread", Refused)
        asked.call(greet_plainly, name="tea")
        assert isinstance(asked.answer().error, RuntimeError)
    asked.call(greet_plainly, name="tea")
    wait_until(lambda: len(asked.fetch()) == 2, 5, "the next one's answer")
    wait_until(lambda: loop_._threads._of_all._value == threads.THREADS_MAX, 5, "all permits are there")


# --- What hangs in a thread that asyncio was asked for ---


@pytest.fixture
def release() -> Iterator[threading.Event]:
    release = threading.Event()
    yield release
    release.set()


async def looks_up() -> str:
    found = await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
    return found[0][4][0]


@pytest.mark.parametrize(
    ("hang", "tenants", "other"),
    [
        (threads.TENANT_THREADS_MAX, 1, "another tenant"),
        (threads.THREADS_MAX, 8, "tenant-0"),  # whose tool is another one
    ],
)
def test_what_hangs_in_a_thread_leaves_threads_for_others(
    asked: Asked, release: threading.Event, hang: int, tenants: int, other: str
) -> None:
    begun = []

    async def hangs() -> None:
        begun.append(1)
        await asyncio.to_thread(release.wait, 60)

    for number in range(hang):
        asked.call(hangs, tenant=f"tenant-{number % tenants}", timeout_s=60)
    wait_until(lambda: len(begun) == hang, 10, "all to begin")
    asked.call(looks_up, tenant=other)
    assert result(asked.answer()) == "127.0.0.1"


def test_what_waits_for_a_thread_does_not_run_once_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """And that there is none left is said."""
    monkeypatch.setattr(threads, "THREADS_MAX", 1)
    asked, ran = Asked(), []

    async def hangs() -> None:
        await asyncio.to_thread(release.wait, 60)

    async def adds() -> None:
        await asyncio.to_thread(ran.append, "too late")

    asked.call(hangs)
    wait_until(lambda: asked.executor._loops[0]._threads._of_all.locked(), 5, "it to begin")
    asked.call(adds, timeout_s=0.05)
    assert isinstance(asked.answer().error, TimeoutError)
    assert "all threads for plain functions are taken" in caplog.text
    release.set()
    asked.call(looks_up)
    wait_until(lambda: len(asked.fetch()) == 3, 5, "the others' answers")
    assert ran == []
    asked.executor.close()


def test_what_a_tool_does_in_a_thread_may_raise_anything(asked: Asked) -> None:
    async def raises_there(error: BaseException) -> None:
        await asyncio.to_thread(raises_plainly, error)

    for error in (ValueError("no"), SystemExit(1), StopIteration("no")):
        asked.answers.clear()
        asked.call(raises_there, error=error)
        assert type(asked.answer().error) is (
            RuntimeError if isinstance(error, StopIteration) else type(error)
        )


def test_a_thread_that_hangs_does_not_keep_the_process() -> None:
    code = """
import asyncio, threading
from tests.test_executor import Asked
from tests.waiting import wait_until

async def hangs():
    await asyncio.to_thread(threading.Event().wait)

asked = Asked()
asked.call(hangs)
wait_until(lambda: asked.executor._loops[0]._threads._of_tenants, 5)
asked.executor.close()
"""
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], timeout=30, cwd=root).returncode == 0


# --- What swallows its cancellation ---


def test_a_tool_that_swallows_its_cancellation_has_the_time_out_for_an_answer_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "SWALLOWED_S", 0.05)
    asked = Asked(Allowance(at_once=1))
    let_go = threading.Event()

    async def stubborn() -> str:
        while not let_go.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)  # sleeps: it goes on until it is told to end
        return "late"

    asked.call(stubborn, timeout_s=0.05)
    assert str(asked.answer().error) == "no answer within 0.05 s"
    asked.call(stubborn, timeout_s=0.05)
    wait_until(lambda: len(asked.fetch()) == 2, 5, "its place at the gate goes to the next one")
    let_go.set()
    wait_until(lambda: len(asyncio.all_tasks(asked.executor._loops[0]._loop)) == 0, 5, "both have ended")
    assert len(asked.fetch()) == 2
    assert asked.executor._loops[0]._passing._gates["acme", "stubborn"].running == 0
    asked.executor.close()


def test_a_clean_up_that_comes_to_an_end_in_time_says_what_the_answer_is(asked: Asked) -> None:
    async def cleans_up() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.to_thread(int)
        return "as far as it came"

    asked.call(cleans_up, timeout_s=0.05)
    assert result(asked.answer()) == "as far as it came"


def test_a_clean_up_that_blocks_does_not_hold_up_the_end() -> None:
    asked = Asked()
    let_go = threading.Event()

    async def blocks_at_the_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            let_go.wait(30)

    asked.call(blocks_at_the_end)
    wait_until(lambda: asked.executor._loops[0].busy, 5, "the call to begin")
    asked.executor.close()
    assert asked.executor._loops[0]._thread.is_alive(), "it is left behind"
    let_go.set()
    asked.executor._loops[0]._thread.join(5)


# --- What the log says of it ---


def test_a_repeated_line_appears_once_in_a_while_with_the_number_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = 0.0
    limited = RateLimited(logging.getLogger("onceflow.executor"), every_s=30, clock=lambda: now_s)
    for now_s in (0, 1, 29.9, 30, 31, 90):
        limited.log(logging.WARNING, "it hangs", of="a tool")
        limited.log(logging.WARNING, "it hangs", of="another") if now_s == 1 else None
    assert [getattr(record, "left_out", 0) for record in caplog.records] == [0, 0, 2, 1]


def test_a_tool_that_always_leaves_tasks_behind_is_named_once_in_a_while(
    asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    kept = []

    async def leaves() -> None:
        kept.append(asyncio.create_task(asyncio.Event().wait()))

    for _ in range(100):
        asked.call(leaves)
    wait_until(lambda: len(asked.fetch()) == 100, 5, "all are answered")
    assert caplog.text.count("left tasks behind") == 1


SECRET = "DE89 3704 0044 0532 0130 00"


def in_the_log(caplog: pytest.LogCaptureFixture) -> str:
    """Messages, fields and traces."""
    formatter = logging.Formatter()
    return "\n".join(f"{formatter.format(record)} {record.__dict__}" for record in caplog.records)


async def fails_with_a_value(value: str) -> None:
    raise ValueError(f"cannot book {value}")


def raises_a_value(value: str) -> None:
    raise ValueError(f"cannot book {value}")


async def leaves_a_task() -> None:
    asyncio.create_task(fails_with_a_value(SECRET))  # noqa: RUF006 (that is what it does)
    for _ in range(3):
        await asyncio.sleep(0)  # sleeps: no time, the task fails meanwhile
    gc.collect()


async def leaves_a_callback() -> None:
    asyncio.get_running_loop().call_soon(raises_a_value, SECRET)


@pytest.mark.parametrize("tool", [leaves_a_task, leaves_a_callback])
def test_an_error_that_nobody_awaits_is_named_by_its_type_and_place_only(
    asked: Asked, tool: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    asked.call(tool)
    asked.answer()

    def said() -> list[Any]:
        gc.collect()
        return [record for record in caplog.records if getattr(record, "error", "") == "ValueError"]

    (record,) = wait_until(said, 5, "it is said")
    assert "left behind has failed" in record.message
    assert record.at.startswith(f"{__file__}:")
    assert SECRET not in in_the_log(caplog)


def test_so_is_what_an_agent_raises_when_its_run_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    @agent("raises", on="t")
    async def raises(run: Run, event: Event) -> None:
        try:
            await run.sleep(60)
        finally:
            raise ValueError(SECRET)

    tenant = Tenant(raises)
    tenant.event(raises)
    (record,) = [each for each in caplog.records if "given up" in each.message]
    assert record.error == "ValueError"  # type: ignore[attr-defined]
    assert SECRET not in in_the_log(caplog)
