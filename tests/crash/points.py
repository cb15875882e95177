"""Crash points: named places in the product at which a process kills itself. Off, they do not exist.

The product knows nothing of them. A flow under test calls `install_from_environment` before it makes its dataflow;
unless CRASH_AT="<point>:<nth>" is set that wraps nothing. Otherwise the one method that the point names is wrapped, and
at its nth pass the point's name is written to the file CRASH_NOTE and the process gets SIGKILL: no clean-up, no flush,
no `finally`; or the signal that CRASH_SIGNAL names: SIGSTOP, to go on later, when others have taken it for dead. A
point whose method is gone or renamed raises at once.
"""

import faulthandler
import functools
import importlib
import itertools
import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

BEFORE, DURING, AFTER = "before", "during", "after"
DURING_MS = 5.0  # within this time after the method was entered; the number of the pass decides when

Which = Callable[..., bool]  # whether a pass counts, by the method's arguments


def every(*_arguments: Any) -> bool:
    """Every pass counts."""
    return True


def in_thread(name: str) -> Which:
    """Passes of one thread count."""
    return lambda *_arguments: threading.current_thread().name == name


def with_forwarded(_owner: Any, work: Any, *_more: Any) -> bool:
    """Passes count whose transaction, or whose contents, hold a forwarded event."""
    contents = getattr(work, "finished", work)
    return any(end.verdict == "forwarded" for end in contents)


def with_calls(_owner: Any, contents: Any, *_more: Any) -> bool:
    """Passes count whose contents put calls on record."""
    return any(end.calls for end in contents)


class Point(NamedTuple):
    """A place to die at: `when` it passes `place` (module:Class.method, in onceflow) for the nth time.

    `passes`: the largest nth that a load reaches within seconds. `needs`: what must happen to the cell first.
    """

    name: str
    place: str
    when: str
    passes: int = 1
    needs: str = ""
    which: Which = every


NEWCOMER, SIGTERM, NO_VIEW = "a newcomer joins", "it is asked to end", "its view is lost"

ALL = (
    # At its start, and when it is granted slots.
    Point("identity taken", "stream.runtime:Runtime.identify", AFTER),
    Point("producer taken", "stream.transaction:Transactions.__init__", BEFORE),
    Point("grant assigned", "stream.runtime:Runtime._granted", AFTER),
    Point("grant settled", "stream.grants:Grants._claim", BEFORE),
    Point("grant claimed", "stream.grants:Grants._catch_up", BEFORE),
    Point("catch-up half-way", "state.store:Store.write", AFTER, 2, NO_VIEW, in_thread("onceflow-grants")),
    Point("grant caught up", "stream.grants:Grants._start", BEFORE),
    Point("inputs begun", "stream.cell:Cell.read", AFTER),
    # On an event's way.
    Point("records read", "stream.inlet:Reading._read", AFTER, 200),
    Point("judged", "stream.runtime:Runtime.judge", AFTER, 100),
    Point("runs begun", "agents.at_once:Beginning.go_on", AFTER, 200),
    Point("run under way", "agents.in_flight:InFlight._under_way", AFTER, 100),
    Point("step sent", "agents.executor:Executor.start", AFTER, 100),
    Point("result in", "agents.machine:Machine.answer", AFTER, 200),
    Point("snapshot", "agents.lane:Lane.snapshot", AFTER, 60),
    Point("content queued", "stream.outbox:Outbox.put", AFTER, 100),
    # In a transaction, and after it.
    Point("transaction begun", "stream.transaction:Transactions._produce", BEFORE, 30),
    Point("records produced", "stream.transaction:Transactions._flush", BEFORE, 30),
    Point("records flushed", "stream.transaction:Transactions._flush", AFTER, 30),
    Point("offsets sent", "stream.transaction:Transactions._send_offsets", AFTER, 30),
    Point("commit sent", "stream.transaction:Transactions._commit", DURING, 30),
    Point("commit acknowledged", "stream.transaction:Transactions._commit", AFTER, 30),
    Point("view written", "state.seen:Seen.write", AFTER, 30, which=in_thread("onceflow-outbox")),
    Point("inlet told", "stream.runtime:Runtime._on_commit", AFTER, 30),
    Point("forwarded, to commit", "stream.outbox:Outbox._carry_out", BEFORE, 10, which=with_forwarded),
    Point("forwarded, committed", "stream.after_commit:AfterCommit.take", BEFORE, 10, which=with_forwarded),
    # When it gives slots away, and at its end.
    Point("slot revoked", "stream.runtime:Runtime._revoking", BEFORE, needs=NEWCOMER),
    Point("slot revoked, flushed", "stream.runtime:Runtime._revoking", AFTER, needs=NEWCOMER),
    Point("stop requested", "stream.runtime:Runtime.stop", AFTER, needs=SIGTERM),
    Point("stop, before the last commit", "stream.runtime:Runtime.close", BEFORE, needs=SIGTERM),
    Point("stop, after the last commit", "agents.executor:Executor.close", BEFORE, needs=SIGTERM),
)
EFFECTS = (  # of a run that changes something; the flow `effects_flow` comes by them
    Point("intent queued", "agents.deciding:Deciding._write", AFTER, 60),
    Point("intent committed", "stream.after_commit:AfterCommit.take", BEFORE, 15, which=with_calls),
    Point("call sent", "agents.executor:Executor.start", AFTER, 60),
    Point("effect done", "agents.tool:Tool.encode_result", BEFORE, 60),
    Point("answer in", "agents.machine:Machine.answer", AFTER, 60),
    Point("ledger written", "state.ledger:Ledger.write", AFTER, 8, which=in_thread("onceflow-outbox")),
    Point("compensation begun", "agents.durable:DurableCalls._undo", AFTER, 10),
)
WAITS = (  # of a run that waits; the flow `waits_flow` comes by them
    Point("wait recorded", "agents.sleep:Sleepers.sleeps", AFTER, 60),
    Point("run asleep", "stream.open_runs:OpenRuns.plan", AFTER, 60),
    Point("timer due", "agents.waking:Waking._due", AFTER, 30),
    Point("signal matched", "agents.waking:Waking._deliver", AFTER, 30),
    Point("signal kept", "agents.waking:Waking._signalled", AFTER, 60),
)
POINTS = {point.name: point for point in (*ALL, *EFFECTS, *WAITS)}


def environment(point: Point, nth: int, note: Path, by: signal.Signals = signal.SIGKILL) -> dict[str, str]:
    """What makes a flow under test die there, or get another signal."""
    return {"CRASH_AT": f"{point.name}:{nth}", "CRASH_NOTE": str(note), "CRASH_SIGNAL": by.name}


def install_from_environment() -> None:
    """Wrap the place that CRASH_AT names; without it only have the process say where it stands at SIGUSR2."""
    faulthandler.register(signal.SIGUSR2)
    if chosen := os.environ.get("CRASH_AT", ""):
        name, _, nth = chosen.rpartition(":")
        by = signal.Signals[os.environ.get("CRASH_SIGNAL", "SIGKILL")]
        install(POINTS[name], int(nth), os.environ["CRASH_NOTE"], by)


def install(point: Point, nth: int, note: str, by: signal.Signals = signal.SIGKILL) -> None:
    """Have this process die at the point's nth pass, leaving the point's name in the file `note`."""
    owner, method = find(point)
    original = getattr(owner, method)
    passes = itertools.count(1)

    def die() -> None:
        file = os.open(note, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{point.name}\n".encode())
        os.kill(os.getpid(), by)

    @functools.wraps(original)
    def passed(*arguments: Any, **named: Any) -> Any:
        last = point.which(*arguments) and next(passes) == nth
        if last and point.when == BEFORE:
            die()
        if last and point.when == DURING:
            threading.Timer(random.Random(nth).uniform(0, DURING_MS) / 1000, die).start()
        result = original(*arguments, **named)
        if last and point.when == AFTER:
            die()
        return result

    setattr(owner, method, passed)


def find(point: Point) -> tuple[type, str]:
    """The class and the method of the point; LookupError says which line of the table to mend."""
    module, _, path = point.place.partition(":")
    class_name, _, method = path.partition(".")
    try:
        owner = getattr(importlib.import_module(f"onceflow.{module}"), class_name)
        owner.__dict__[method]
    except (ImportError, AttributeError, KeyError):
        raise LookupError(
            f"crash point {point.name!r}: onceflow.{point.place} is not there any more; mend the point's line in "
            "tests/crash/points.py"
        ) from None
    return owner, method


def chosen(names: Sequence[str], flow: str) -> list[Point]:
    """The points of these names; without any, all that a cell of the flow passes."""
    passed = (*ALL, *EFFECTS) if flow == "effects" else ALL
    return [POINTS[name] for name in names] or list(passed)
