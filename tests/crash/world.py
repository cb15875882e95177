"""The world outside of the flows under test: a directory that survives every process.

CRASH_WORLD: that directory. `done` lists what was done, a line `<operation> <order> <key> <answer>` each; a keyed
operation is done once per key.
"""

import fcntl
import os
import secrets
from pathlib import Path

WORLD = Path(os.environ["CRASH_WORLD"])

_known: dict[str, str] = {}  # answers by key, as far as this process has read
_read = 0


def do(operation: str, order: str, key: str = "") -> str:
    """Do it once per key; without one, each time. One `write` does it, so that it is done or not done at any kill."""
    global _read
    with (WORLD / "done").open("r+b") as done:
        fcntl.flock(done, fcntl.LOCK_EX)  # until it is closed, by the end of the process too
        done.seek(_read)
        for line in done:
            _, _, known, answer = line.decode().split()
            _known[known] = answer
        _read = done.tell()
        if key in _known:
            return _known[key]
        answer = secrets.token_hex(8)
        os.write(done.fileno(), f"{operation} {order} {key or '-'} {answer}\n".encode())
    return answer
