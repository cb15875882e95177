"""A worker killed with many runs open: what is done again by whoever goes on, and what is done twice.

All runs have had their first effect, and wait for a slow service; it answers all of them at once, and when half of them
have had their second effect the worker is killed. What runs beside it (Kafka, PostgreSQL, Restate's server) stays up.
What the world outside has noted by then had happened. A request for the same effect of the same run after that is a
step executed again. It is an effect done twice too, unless the target knows its key: a target that is given keys does
each key once.
"""

import signal
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import msgspec

from benchmarks import outside
from benchmarks.counts import again, requests, twice, words
from benchmarks.process import Process
from benchmarks.watch import wait_until

OPENED_S = 120  # until the kill
DONE_S = 300  # from the restart until all effects are there
LOOK_EVERY_S = 0.005


class Crashed(msgspec.Struct, frozen=True):
    """What came of it."""

    what: str
    open: int  # runs, at the kill
    happened: int  # effects, at the kill
    on_record: int | None  # results that the system had by then; None: not looked at
    again: int  # steps whose effect had happened, and that were executed again
    again_on_record: int | None  # those of them whose result was on record
    asked: int  # times that a target was asked whether it had done something
    twice: int  # effects
    took_s: float  # from the kill until all effects were there


HEAD = (
    "kill -9",
    "runs open",
    "effects so far",
    "on record",
    "executed again",
    "… on record",
    "asked",
    "done twice",
    "all done after s",
)


def crash(
    what: str,
    runs: int,
    file: Path,
    first: Callable[[], Process],
    then: Callable[[], Process],
    *,
    begin: Callable[[Process], None] = lambda _: None,
    on_record: Callable[[], Collection[tuple[str, str]]] | None = None,
) -> Crashed:
    """Start a worker by `first`, kill it, start it by `then`.

    `begin`: has the runs begin, where nothing else does. `on_record`: asked after the kill, the steps whose results the
    system has.
    """

    def happened() -> int:
        return len({request.step for request in requests(file)})

    process, wanted = first(), runs * outside.EFFECTS
    try:
        begin(process)
        wait_until(lambda: happened() == runs, f"{what}: all runs are open", OPENED_S, process)
        outside.let_answer(file, 0)
        half = runs * 3 // 2
        wait_until(
            lambda: happened() >= half, f"{what}: half have gone on", DONE_S, process, every_s=LOOK_EVERY_S
        )
        process.end(signal.SIGKILL)
        killed_at = time.monotonic()
        before = requests(file)
        known = None if on_record is None else on_record()
        looked_s = time.monotonic() - killed_at
        process = then()
        outside.let_answer(file, 1)
        wait_until(lambda: happened() == wanted, f"{what}: all effects", DONE_S, process)
        took_s = time.monotonic() - killed_at - looked_s
    finally:
        process.end(signal.SIGKILL)  # what is open is of no use any more
    everything = requests(file)
    repeated = again(before, everything[len(before) :])
    return Crashed(
        what=what,
        open=len({request.run for request in before}),
        happened=len({request.step for request in before}),
        on_record=None if known is None else len(known),
        again=len(repeated),
        again_on_record=None if known is None else sum(request.step in known for request in repeated),
        asked=len(words(file, "asked")),
        twice=twice(everything),
        took_s=took_s,
    )


def rows(crashes: Iterable[Crashed]) -> list[list[str]]:
    """As a table's rows, under HEAD."""
    return [[_cell(value) for value in msgspec.structs.astuple(each)] for each in crashes]


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else value or ""
