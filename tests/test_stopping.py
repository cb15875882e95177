"""The runtime: what a cell that was asked to end still does with its slots. The rest is shown in tests/crash."""

from types import SimpleNamespace
from typing import Any

import pytest

from onceflow.agents.agent import routes
from onceflow.config import Settings
from onceflow.stream.content import Grant, Input, Pair
from onceflow.stream.runtime import REVOKE_S, Runtime

GRANT = Grant(3)
INPUT = Input("events", 3, GRANT, topic_id="id")
PAIR = Pair("metadata", frozenset([GRANT]))


@pytest.fixture
def asked() -> list[Any]:
    """What the runtime asks of its parts."""
    return []


@pytest.fixture
def ending(asked: list[Any]) -> Any:
    """A runtime that was asked to end, with as much of its parts as its slots need."""
    nothing: Any = SimpleNamespace()
    runtime: Any = Runtime("flow", Settings(), routes([]), nothing, None)
    runtime.outbox = SimpleNamespace(
        flush=lambda timeout_s, pair: not asked.append(("flush", timeout_s, pair)),
        polled=lambda pair, reads: asked.append(("polled", pair)),
    )
    runtime.lanes = SimpleNamespace(leave=lambda slots, patience_s, wait: asked.append(("leave", slots)))
    runtime._grants = SimpleNamespace(assigned=lambda grants: asked.append(("assigned", grants)))
    runtime._room = SimpleNamespace(forget=lambda inputs: asked.append(("forget", inputs)))
    runtime._cell = SimpleNamespace(
        inputs={(INPUT.topic, INPUT.partition): INPUT},
        pair=lambda: PAIR,
    )
    runtime.stop()
    return runtime


def test_what_is_pending_of_a_slot_that_goes_is_committed_first(ending: Any, asked: list[Any]) -> None:
    """As ever: a result that came within the grace is not given up because slots move."""
    leaving = Grant(4)
    ending._revoking(PAIR, [leaving])
    assert asked == [("leave", [leaving.slot]), ("flush", REVOKE_S, PAIR)]
    assert leaving.leaving


def test_a_slot_that_comes_is_not_settled(ending: Any, asked: list[Any]) -> None:
    """The outbox knows of it, or it would commit under a pair of the past."""
    ending._granted([GRANT])
    assert asked == [("polled", PAIR)]
