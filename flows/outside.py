"""The world outside, simulated: services that these flows change, kept in a file that survives every process.

Each line of `effects` in OUTSIDE_DIR (default `state/outside`) is one effect, as JSON: operation,
subject, key, answer. A service that is given an idempotency key does each key once and answers the same
again; without one it does what it is asked, each time. It can be as unreliable as real ones, on demand:

    OUTSIDE_LOST      the share of requests that are done, but whose answer is lost (default 0)
    OUTSIDE_BUSY      the share of requests that are refused: nothing is done, try again (default 0)
    OUTSIDE_GARBAGE   the share of requests that are done, but whose answer cannot be read (default 0)
    OUTSIDE_DELAY_S   how long a request takes (default 0)
"""

import asyncio
import fcntl
import json
import os
import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onceflow import RetryLater


def directory() -> Path:
    """Where the services keep what was done."""
    return Path(os.environ.get("OUTSIDE_DIR", "state/outside"))


async def do(operation: str, subject: str, key: str = "") -> str:
    """Have something done; return the answer, an id. Raises as unreliable services do."""
    await asyncio.sleep(_setting("OUTSIDE_DELAY_S"))
    if random.random() < _setting("OUTSIDE_BUSY"):  # noqa: S311 (no secret)
        raise RetryLater("503: busy")
    answer = _done(operation, subject, key)
    if random.random() < _setting("OUTSIDE_LOST"):  # noqa: S311
        raise TimeoutError("no answer")
    if random.random() < _setting("OUTSIDE_GARBAGE"):  # noqa: S311
        raise ValueError(f"not JSON: '<html>{answer[:4]}…'")
    return answer


def effects() -> Iterator[dict[str, Any]]:
    """All that was done, in order."""
    path = directory() / "effects"
    if not path.exists():
        return
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # a line that is being written may show in part
        lines = file.read().splitlines()
    for line in lines:
        yield json.loads(line)


def find(operation: str, subject: str) -> str | None:
    """The answer of what was done to a subject; None if it was not."""
    return next(
        (e["answer"] for e in effects() if (e["operation"], e["subject"]) == (operation, subject)), None
    )


def _done(operation: str, subject: str, key: str) -> str:
    """Do it, once per key: in one write, so that it is done or not done when the process is killed."""
    directory().mkdir(parents=True, exist_ok=True)
    with (directory() / "effects").open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        file.seek(0)
        for line in file if key else ():
            known = json.loads(line)
            if known["key"] == key:
                return str(known["answer"])
        answer = secrets.token_hex(4)
        effect = {"operation": operation, "subject": subject, "key": key, "answer": answer}
        os.write(file.fileno(), json.dumps(effect).encode() + b"\n")
    return answer


def _setting(name: str) -> float:
    return float(os.environ.get(name, "0"))
