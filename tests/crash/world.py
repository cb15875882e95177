"""The world outside of the flows under test: a directory that survives every process.

CRASH_WORLD: that directory. `done` lists what was done, a line `<operation> <order> <key> <answer>` each; a keyed
operation is done once per key.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

WORLD = Path(os.environ["CRASH_WORLD"])

_keys: dict[str, str] = {}  # answers by key, as far as this process has read
_orders: dict[tuple[str, str], str] = {}  # … by operation and order, the last
_read = 0


def do(operation: str, order: str, key: str = "", by_ms: int = 0) -> str:
    """Do it once per key; without one, each time. One `write` does it, so that it is done or not done at any kill.

    `by_ms`: refuse what comes later, such as the call of a process that stood still.
    """
    with _looked_at() as done:
        if key in _keys:
            return _keys[key]
        if by_ms and time.time() * 1000 > by_ms:
            raise TimeoutError("too late")
        answer = secrets.token_hex(8)
        os.write(done.fileno(), f"{operation} {order} {key or '-'} {answer}\n".encode())
    return answer


def found(operation: str, order: str) -> str | None:
    """The answer of what was done, as who looks there says."""
    with _looked_at():
        return _orders.get((operation, order))


@contextmanager
def _looked_at() -> Iterator[BufferedRandom]:
    """The file, while nobody else has it, after what is new there was read."""
    global _read
    with (WORLD / "done").open("r+b") as done:
        fcntl.flock(done, fcntl.LOCK_EX)  # until it is closed, by the end of the process too
        done.seek(_read)
        for line in done:
            operation, order, key, answer = line.decode().split()
            _keys[key] = _orders[operation, order] = answer
        _read = done.tell()
        yield done
