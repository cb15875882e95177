"""The executor: every call gets exactly one answer, whatever its tool does."""

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from decimal import getcontext
from typing import Any

import pytest

from onceflow.agents import threads
from onceflow.agents.call import Call
from onceflow.agents.calling import Answered
from onceflow.agents.calls import NotSent, Raised, Returned, RunFailed, StartCall, UnusableResult
from onceflow.agents.executor import Executor
from onceflow.agents.gates import Allowance
from onceflow.agents.machine import Machine
from onceflow.agents.threads import TENANT_THREADS_MAX
from onceflow.agents.tool import tool
from onceflow.errors import GiveUp, RetryLater
from tests.waiting import wait_until


class Asked:
    """An executor whose answers are gathered as they come."""

    def __init__(self, allowance: Allowance = Allowance()) -> None:  # noqa: B008 (a value)
        self.woken = threading.Event()
        self.executor = Executor(self.woken.set, allowance)
        self.answers: list[Answered] = []

    def call(
        self,
        function: Callable[..., Any],
        *,
        timeout_s: float = 10,
        delay_s: float = 0.0,
        tenant: str = "acme",
        send_by_ms: int = 0,
        **arguments: Any,
    ) -> Machine:
        """Start a call of this function as a `read` tool; return the run that asked."""
        decorator: Any = tool(effect="read", timeout=timeout_s)
        run: Any = Machine(None, None)  # type: ignore[arg-type]  # the executor only hands it back
        call = Call(tenant, "run", "key", 1, arguments)
        started = StartCall(run, "0", decorator(function), call, delay_s, send_by_ms=send_by_ms)
        self.executor.start([started])
        return run  # type: ignore[no-any-return]

    def fetch(self) -> list[Answered]:
        self.answers += self.executor.answers()
        return self.answers

    def answer(self) -> Any:
        """The answer of the only call."""
        (answered,) = wait_until(self.fetch, 5, "an answer")
        assert self.woken.is_set()
        return answered.answer


@pytest.fixture
def asked() -> Iterator[Asked]:
    asked = Asked()
    yield asked
    asked.executor.close()


def result(answer: Any) -> Any:
    """What a call returned; it must have."""
    assert isinstance(answer, Returned), answer
    return tool(effect="read")(untyped).decode_result(answer.result)


def untyped() -> Any: ...


async def greet(call: Call, name: str) -> str:
    return f"{call.tenant} {name} {call.attempt}"


def greet_plainly(name: str) -> str:
    return f"{name} in {threading.current_thread().name}"


async def raises(error: BaseException) -> None:
    raise error


def raises_plainly(error: BaseException) -> None:
    raise error


async def never() -> None:
    await asyncio.Event().wait()


def cancel_this_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def returns_an_object() -> Any:
    return object()


def test_async_tools_run_in_the_loop_and_plain_ones_in_threads(asked: Asked) -> None:
    asked.call(greet, name="tea")
    assert result(asked.answer()) == "acme tea 1"
    plain = Asked()
    plain.call(greet_plainly, name="tea")
    assert result(plain.answer()) == "tea in onceflow-tool"
    plain.executor.close()


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as most are: it hides that a function is async."""

    @functools.wraps(function)
    def wrapped(*given: Any, **more: Any) -> Any:
        return function(*given, **more)

    return wrapped


def test_an_async_tool_behind_a_plain_decorator_is_awaited(asked: Asked) -> None:
    asked.call(traced(greet), name="tea")
    assert result(asked.answer()) == "acme tea 1"


@pytest.mark.parametrize("error", [GiveUp("no"), asyncio.CancelledError()], ids=lambda e: type(e).__name__)
def test_so_is_what_it_raises(asked: Asked, error: BaseException) -> None:
    asked.call(traced(raises), error=error)
    assert asked.answer().error is error


def test_so_is_its_time_out(asked: Asked) -> None:
    asked.call(traced(never), timeout_s=0.05)
    assert isinstance(asked.answer().error, TimeoutError)


def test_so_is_a_compensation(asked: Asked) -> None:
    undone: list[Any] = []

    @tool(effect="keyed", name="charge")
    async def charge(call: Call) -> str: ...  # type: ignore[empty-body]

    @charge.compensate
    @traced
    async def refund(call: Call, result: str | None) -> None:
        undone.append(result)

    run: Any = Machine(None, None)  # type: ignore[arg-type]
    call = Call("acme", "run", "key", 1, {})
    asked.executor.start([StartCall(run, "~0", charge, call, 0.0, "undo", "paid")])
    assert isinstance(asked.answer(), Returned)
    assert undone == ["paid"]


@pytest.mark.parametrize("function", [raises, raises_plainly])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        GiveUp("no"),
        TimeoutError("its own"),
        StopIteration("no"),
        asyncio.CancelledError(),
        SystemExit(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_tool_raises_is_an_answer(
    asked: Asked, function: Callable[..., Any], error: BaseException
) -> None:
    """Also what asyncio uses for itself, and what would end the thread that all other calls run in."""
    asked.call(function, error=error)
    answer = asked.answer()
    assert isinstance(answer, Raised)
    assert (answer.place, answer.attempt) == ("0", 1)
    asked.answers.clear()
    asked.call(greet, name="next")
    assert result(asked.answer()) == "acme next 1"


def test_a_call_that_outlasts_its_time_out_is_a_failed_attempt(asked: Asked) -> None:
    asked.call(never, timeout_s=0.05)
    answer = asked.answer()
    assert isinstance(answer, Raised)
    assert str(answer.error) == "no answer within 0.05 s"


def test_a_tool_whose_library_cancels_its_task_is_answered(asked: Asked) -> None:
    async def cancels_itself() -> None:
        cancel_this_task()
        await asyncio.Event().wait()

    asked.call(cancels_itself)
    assert isinstance(asked.answer().error, asyncio.CancelledError)


def test_its_time_out_is_one_whatever_was_cancelled_before(asked: Asked) -> None:
    async def cancels_itself_and_goes_on() -> None:
        cancel_this_task()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    asked.call(cancels_itself_and_goes_on, timeout_s=0.05)
    assert isinstance(asked.answer().error, TimeoutError)


def test_a_plain_function_that_hangs_gets_the_time_out_and_delays_nobody(asked: Asked) -> None:
    release = threading.Event()

    def hangs() -> None:
        release.wait(30)

    asked.call(hangs, timeout_s=0.05)
    assert isinstance(asked.answer(), Raised)
    asked.answers.clear()
    asked.call(greet_plainly, name="other")
    assert result(asked.answer()).startswith("other")
    release.set()


def test_a_plain_function_that_gets_its_thread_too_late_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "THREADS_MAX", 1)
    asked, release, ran = Asked(), threading.Event(), []

    def hangs() -> None:
        release.wait(30)

    def changes() -> None:
        ran.append(1)

    asked.call(hangs)
    busy = asked.executor._loops[0]._threads._of_all
    wait_until(busy.locked, 5, "it to begin")
    send_by_ms = int(time.time() * 1000) + 100
    asked.call(changes, send_by_ms=send_by_ms)
    wait_until(lambda: busy._waiters, 5, "the other one waits for a thread")
    wait_until(lambda: time.time() * 1000 > send_by_ms + 1, 5, "its time is over")
    release.set()
    wait_until(lambda: len(asked.fetch()) == 2, 5, "both answers")
    errors = [each.answer.error for each in asked.answers if isinstance(each.answer, Raised)]
    assert ([type(error) for error in errors], ran) == ([NotSent], [])
    wait_until(lambda: not busy.locked(), 5, "its permit is there again")
    asked.executor.close()


def test_one_tenant_s_functions_that_hang_leave_threads_for_the_others() -> None:
    """What has got no thread in its time was not sent: nobody need ask whether it happened."""
    asked = Asked(Allowance(at_once=1_000, failures=0))
    release = threading.Event()

    def hangs() -> None:
        release.wait(30)

    for _ in range(TENANT_THREADS_MAX + 1):
        asked.call(hangs, timeout_s=0.2)
    wait_until(lambda: len(asked.fetch()) > TENANT_THREADS_MAX, 10, "all have had their time")
    errors = [type(each.answer.error) for each in asked.answers if isinstance(each.answer, Raised)]
    assert (errors.count(TimeoutError), errors.count(NotSent)) == (TENANT_THREADS_MAX, 1)
    asked.answers.clear()
    asked.call(greet_plainly, name="other", tenant="another")
    assert result(asked.answer()).startswith("other")
    release.set()
    asked.executor.close()


def test_a_function_that_returns_after_the_executor_was_closed_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No exception in a thread, which would be printed while the process ends in peace."""
    complaints: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", complaints.append)
    begun, release = threading.Event(), threading.Event()

    def hangs() -> None:
        begun.set()
        release.wait(30)

    asked = Asked()
    asked.call(hangs)
    assert begun.wait(5)
    asked.executor.close()
    release.set()
    for thread in threading.enumerate():
        if thread.name == "onceflow-tool":
            thread.join(5)
    assert complaints == []


def test_a_result_that_cannot_be_stored_is_not_asked_for_again(asked: Asked) -> None:
    asked.call(returns_an_object)
    answer = asked.answer()
    assert isinstance(answer, Raised)
    assert isinstance(answer.error, UnusableResult)
    assert "cannot be stored" in str(answer.error)


def test_a_call_s_deadline_counts_from_when_it_is_sent(asked: Asked) -> None:
    async def has_left(call: Call) -> float:
        return (call.deadline - datetime.now(UTC)).total_seconds()

    asked.call(has_left, delay_s=0.2, timeout_s=5)
    assert 4.5 < result(asked.answer()) <= 5


def test_a_delayed_call_waits_and_its_time_out_counts_from_its_start(asked: Asked) -> None:
    asked.call(greet, delay_s=0.1, timeout_s=0.05, name="late")
    assert result(asked.answer()) == "acme late 1"


def test_the_calls_of_an_abandoned_run_are_cancelled_and_give_no_answer(asked: Asked) -> None:
    cancelled = threading.Event()

    async def notes_its_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    run = asked.call(notes_its_end)
    wait_until(lambda: asked.executor._loops[0].busy, 5, "the call to begin")
    asked.executor.abandon([run])
    assert cancelled.wait(5)
    asked.call(greet, name="other")
    assert result(asked.answer()) == "acme other 1"


def test_many_calls_at_once_are_all_answered(asked: Asked) -> None:
    """More plain calls than there are permits for threads, and as many async ones."""
    runs = [asked.call(function, name=str(n)) for n in range(150) for function in (greet, greet_plainly)]
    wait_until(lambda: len(asked.fetch()) == len(runs), 20, "all answers")
    assert {id(answered.run) for answered in asked.answers} == {id(run) for run in runs}


def test_closing_waits_for_clean_ups_and_may_be_repeated() -> None:
    asked = Asked()
    cleaned = threading.Event()

    async def cleans_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # sleeps: no time, clean-up that awaits is let go on
            cleaned.set()

    asked.call(cleans_up)
    wait_until(lambda: asked.executor._loops[0].busy, 5, "the call to begin")
    asked.executor.close()
    asked.executor.close()
    assert cleaned.is_set()


# --- One tenant's tool, and the others ---


def test_tasks_that_a_tool_leaves_behind_are_reported(asked: Asked, caplog: pytest.LogCaptureFixture) -> None:
    kept = []

    async def leaves() -> None:
        kept.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))

    asked.call(leaves)
    asked.answer()
    (record,) = [each for each in caplog.records if "left tasks behind" in each.message]
    assert (record.tool, record.tasks) == ("leaves", 1)  # type: ignore[attr-defined]


def test_no_more_calls_of_a_tool_than_allowed_run_at_once() -> None:
    asked = Asked(Allowance(at_once=3))
    running, most, gate = 0, 0, threading.Event()

    async def counts() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.to_thread(gate.wait, 30)
        running -= 1

    for _ in range(10):
        asked.call(counts)
    wait_until(lambda: most == 3, 5, "three run")
    gate.set()
    wait_until(lambda: len(asked.fetch()) == 10, 5, "all are answered")
    assert most == 3
    asked.executor.close()


def test_a_long_rest_is_answered_with_nothing_sent_and_of_that_tenant_only() -> None:
    asked = Asked()
    times = []

    async def busy() -> None:
        times.append(1)
        raise RetryLater(after=60)

    asked.call(busy)
    asked.answer()
    asked.call(busy)
    wait_until(lambda: len(asked.fetch()) == 2, 5, "the second answer")
    error = asked.answers[1].answer.error  # type: ignore[union-attr]
    assert isinstance(error, NotSent)
    assert 50 < error.after_s <= 60
    asked.call(busy, tenant="globex")
    wait_until(lambda: len(asked.fetch()) == 3, 5, "another tenant's")
    assert len(times) == 2
    asked.executor.close()


def test_once_a_tool_is_well_again_its_calls_run_beside_each_other() -> None:
    """Eight calls wait for the one that tries; when that is well, all of them go on at once."""
    asked = Asked(Allowance(at_once=8, failures=1))
    together, well, all_there = 0, threading.Event(), threading.Event()

    async def ails() -> None:
        nonlocal together
        if not well.is_set():
            well.set()
            raise ConnectionError
        together += 1
        await asyncio.to_thread(int)  # so that the others come to the gate while one tries
        if together == 9:  # the one that tried, and eight
            all_there.set()
        if together > 1:
            await asyncio.to_thread(all_there.wait, 10)

    asked.call(ails)
    asked.answer()
    for _ in range(9):
        asked.call(ails)
    wait_until(lambda: len(asked.fetch()) == 10, 10, "all are answered")
    assert all_there.is_set()
    asked.executor.close()


def test_a_call_that_its_run_wants_no_more_is_not_sent(asked: Asked) -> None:
    """It was cancelled while the call waited for the commit, for its time, or at a gate."""

    async def effect() -> None:
        raise AssertionError("it is sent")

    run = asked.call(effect, delay_s=0.05)
    run._end = RunFailed("cancelled", "", "")
    answer = asked.answer()
    assert isinstance(answer, Raised)
    assert isinstance(answer.error, NotSent)


def test_an_executor_that_refuses_takes_no_more_calls_and_ends_those_it_has(asked: Asked) -> None:
    sent = []

    async def note(name: str) -> None:
        sent.append(name)

    asked.call(note, name="before", delay_s=0.05)
    asked.executor.refuse()
    asked.call(note, name="after")
    asked.answer()
    assert sent == ["before"]


def test_what_a_tool_sets_in_its_context_is_its_own(asked: Asked) -> None:
    async def rounds() -> int:
        found = getcontext().prec
        getcontext().prec = 3
        return found

    getcontext()  # this thread has one, too
    for _ in range(3):
        asked.call(rounds)
    answers = wait_until(lambda: len(asked.fetch()) == 3 and asked.answers, 5, "three answers")
    assert [result(each.answer) for each in answers] == [28] * 3
