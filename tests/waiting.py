"""Waiting in tests: for a condition, with a deadline, never for a length of time."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout_s: float = 30.0, what: str = "the condition") -> T:
    """Poll `condition` until it is true and return what it gave; fail when `timeout_s` have passed."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s (last: {value!r})")
        time.sleep(0.02)
    return value


async def until(condition: Callable[[], object], timeout_s: float = 300.0) -> None:
    """As `wait_until`, in a tool of a flow under test: what other processes do to a file is told by no event."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s:g} s")
        await asyncio.sleep(0.02)
