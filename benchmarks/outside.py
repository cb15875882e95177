"""The world outside of what is measured: a file that survives every process, with a line for each request.

BENCH_OUTSIDE: that file. A line is written in one `write` before the request is answered, so it is there or not,
whenever the process that asks is killed. Nothing is refused: who reads the file afterwards (`counts`) says what was
done twice. The first word says what kind of request it is:

    effect RUN NAME KEY     something is changed; `-`: the target was given no key
    asked RUN NAME          whether it was changed
    model RUN TOKENS        a model has answered

Imports nothing but the standard library: the peers' Python imports this module too.
"""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "BENCH_OUTSIDE"
EFFECTS = 3  # of a run of the crash comparison, which waits for a service after each but the last
_LOOK_EVERY_S = 0.2


def note(*words: object) -> None:
    """One request."""
    file = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, " ".join(map(str, words)).encode() + b"\n")
    finally:
        os.close(file)


def noted(file: Path | None = None) -> list[list[str]]:
    """The words of every request so far."""
    file = file or Path(os.environ[VARIABLE])
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


async def answer_of(service: int) -> None:
    """Wait for a service, which is slow: it answers all that wait once it is `let_answer`."""
    file = _service(Path(os.environ[VARIABLE]), service)
    while not file.exists():  # noqa: ASYNC110 (another process makes it: no event tells)
        await asyncio.sleep(_LOOK_EVERY_S)


def let_answer(file: Path, service: int) -> None:
    """Have this service answer from now on; `file`: where the requests are noted."""
    _service(file, service).touch()


def environment(file: Path) -> Mapping[str, str]:
    """What a process is given so that it notes its requests there."""
    return {VARIABLE: str(file)}


def _service(file: Path, service: int) -> Path:
    return file.with_name(f"{file.name}-{service}")
