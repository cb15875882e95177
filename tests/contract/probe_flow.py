"""A small Bytewax flow that says what happens to it, for test_bytewax_facts: a source, one logic, one sink.

Steered by the environment: COUNT (of numbers), HOOK (exit status of `sys.excepthook`), SOURCE (`raise`,
`exit`: instead of stopping; `idle`: until SIGTERM), AWAKE_S, PARTS, CHAIN (operators before the sink), SINK
(`fixed`, `dynamic`), WRITE and CLOSE (what these do).
"""

import os
import signal
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, FixedPartitionedSink, StatefulSinkPartition, StatelessSinkPartition

ASKED = {name: os.environ.get(name, "") for name in ("HOOK", "SOURCE", "SINK", "WRITE", "CLOSE")}
COUNT = int(os.environ.get("COUNT", "5"))
AWAKE_S = float(os.environ.get("AWAKE_S", "0"))
stopping = False


def say(*words: object) -> None:
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


def hook(kind: type[BaseException], _error: BaseException, _traceback: object) -> None:
    say("hook", kind.__name__)
    os._exit(int(ASKED["HOOK"]))


def stop(_number: int, _frame: object) -> None:
    global stopping
    stopping = True


class Numbers(StatefulSourcePartition[tuple[str, int], int]):
    def __init__(self, resume: int | None) -> None:
        say("source resumes at", resume)
        self.last = resume or 0

    def next_batch(self) -> list[tuple[str, int]]:
        if ASKED["SOURCE"] == "idle":
            if stopping:
                raise StopIteration
            say("idle")
            return []
        if self.last == COUNT:
            if ASKED["SOURCE"] == "raise":
                raise RuntimeError("asked to")
            if ASKED["SOURCE"] == "exit":
                raise SystemExit(3)
            raise StopIteration
        self.last += 1
        return [("key", self.last)]

    def next_awake(self) -> datetime | None:
        return datetime.now(UTC) + timedelta(seconds=AWAKE_S) if AWAKE_S else None

    def snapshot(self) -> int:
        say("source snapshot", self.last)
        return self.last

    def close(self) -> None:
        say("source close")


class Source(FixedPartitionedSource[tuple[str, int], int]):
    def list_parts(self) -> list[str]:
        return os.environ.get("PARTS", "one").split(",")

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Numbers:
        return Numbers(resume_state)


class Logic(StatefulBatchLogic[int, int, int]):
    def on_batch(self, values: list[int]) -> tuple[Iterable[int], bool]:
        return values, False

    def on_eof(self) -> tuple[Iterable[int], bool]:
        say("logic end")
        return [0], False

    def snapshot(self) -> int:
        say("logic snapshot")
        return 1


def write(items: list[Any]) -> None:
    for item in items:
        number = item[1] if isinstance(item, tuple) else item
        if ASKED["WRITE"] == f"die at {number}":
            os._exit(9)
        say("write", number)
        if ASKED["WRITE"] == "raise":
            raise RuntimeError("in write")


class Part(StatefulSinkPartition[int, int]):
    def write_batch(self, values: list[int]) -> None:
        write(values)

    def snapshot(self) -> int:
        say("sink snapshot")
        return 1

    def close(self) -> None:
        say("sink close")
        if ASKED["CLOSE"] == "raise":
            raise RuntimeError("in close")
        if ASKED["CLOSE"] == "die":
            os._exit(7)


class Fixed(FixedPartitionedSink[int, int]):
    def list_parts(self) -> list[str]:
        return ["one"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Part:
        return Part()


class Unpartitioned(StatelessSinkPartition[Any]):
    def write_batch(self, items: list[Any]) -> None:
        write(items)


class Dynamic(DynamicSink[Any]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> Unpartitioned:
        return Unpartitioned()


say("imported by", sys.modules["__main__"].__spec__.name)
if ASKED["HOOK"]:
    sys.excepthook = hook
if ASKED["SOURCE"] == "idle":
    signal.signal(signal.SIGTERM, stop)
flow = Dataflow("probe")
stream: Any = op.stateful_batch("logic", op.input("source", flow, Source()), lambda _resume: Logic())
for number in range(int(os.environ.get("CHAIN", "0"))):
    stream = op.flat_map_batch(f"link{number}", stream, lambda batch: batch)
op.output("sink", stream, Dynamic() if ASKED["SINK"] == "dynamic" else Fixed())
