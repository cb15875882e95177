"""How a run ends whose agent raised something, or awaited what isn't its run's."""

import logging
import traceback
from collections.abc import Coroutine
from typing import Any

from onceflow.agents.calls import RunFailed
from onceflow.agents.seldom import named
from onceflow.agents.suspension import ForeignAwait
from onceflow.errors import Failed, WaitExpired, as_text
from onceflow.event import InvalidData, Reason

DETAIL_MAX = 8_000  # characters of a traceback that go into a dead letter

FOREIGN_AWAIT = "the agent awaited something"  # so the message begins

_NO_LOOP = ("no running event loop", "There is no current event loop in thread")  # as asyncio says it

log = logging.getLogger("onceflow.run")


def failure(error: BaseException) -> RunFailed:
    """How a run ends whose agent raised `error`."""
    detail, text = _traceback_of(error), as_text(error)
    if isinstance(error, Failed):
        return RunFailed(as_text(error.code), as_text(error.message), detail)
    if isinstance(error, InvalidData):
        return RunFailed("invalid-data", text, "")
    if isinstance(error, WaitExpired):
        return RunFailed(Reason.EXPIRED, text, detail)
    if isinstance(error, ForeignAwait):
        return foreign_await(error)
    if needs_a_loop(error):
        return foreign_await(error)
    return RunFailed("agent-failed", as_text(f"{type(error).__name__}: {text}", 1_000), detail)


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))[-DETAIL_MAX:]
    except Exception:  # noqa: BLE001 (it asks the error for more than its text, and that may be anything)
        return "".join(traceback.format_tb(error.__traceback__))[-DETAIL_MAX:]


def needs_a_loop(error: BaseException) -> bool:
    """Whether an agent has awaited asyncio.sleep, asyncio.gather or their like."""
    return isinstance(error, RuntimeError) and as_text(error).startswith(_NO_LOOP)


def foreign_await(error: BaseException) -> RunFailed:
    """The end of a run whose agent awaited something else than its run."""
    awaited = type(error.args[0]).__name__ if isinstance(error, ForeignAwait) else "part of asyncio"
    return RunFailed(
        "agent-failed",
        f"{FOREIGN_AWAIT} ({awaited}) that isn't its run's: await only run.call, "
        "run.gather and the run's waits, and put other I/O into a tool (a replay must be able to repeat every await)",
        "",
    )


def close(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Give an agent up; its clean-up must not take others with it, whatever it raises."""
    try:
        coroutine.close()
    except BaseException as error:  # noqa: BLE001
        log.warning("an agent raised while its run was given up", extra=named(error))
