"""The dataflow: inlet → dedup → run_agents → outlet, and how Bytewax is made to run it.

Items are coarse: (tenant, batch). The chain is short and ends in a FixedPartitionedSink, because Bytewax'
recovery doesn't track the progress of other sinks. The source has one constant partition. Bytewax' recovery
is a cache of journals: the inlet starts from Kafka's progress, whatever a snapshot says.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from bytewax import operators as op
from bytewax import run as bytewax_run
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.recovery import (
    InconsistentPartitionsError,
    MissingPartitionsError,
    NoPartitionsError,
    RecoveryConfig,
    init_db_dir,
)

from onceflow.agents.lane import Lane
from onceflow.errors import ConfigError
from onceflow.stream.content import Ends, Work
from onceflow.stream.runtime import Runtime

Item = tuple[str, Work | Ends]
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


def build(name: str, runtime: Runtime) -> Dataflow:
    """Join the operators of a flow."""
    flow = Dataflow(name)
    batches = op.input("inlet", flow, _Inlet(runtime))
    judged = op.flat_map_batch("dedup", batches, runtime.judge)
    ended = op.stateful_batch("run_agents", judged, lambda snapshot: _LaneLogic(runtime, snapshot))
    op.output("outlet", ended, _Outlet(runtime))
    return flow


def run(flow: Dataflow, recovery: Path | None, epoch: timedelta) -> None:
    """Run a flow in this process until it ends; `epoch` is the time between two snapshots."""
    config = None if recovery is None else RecoveryConfig(str(recovery), timedelta(0))  # type: ignore[no-untyped-call]
    bytewax_run.cli_main(flow, epoch_interval=epoch, recovery_config=config)  # type: ignore[no-untyped-call]


def initialise_recovery(directory: Path) -> None:
    """Make a recovery directory, unless it is one already."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the recovery directory {directory} cannot be made ({error.strerror}): name another one"
        ) from error
    if not any(directory.glob("part-*.sqlite3")):
        init_db_dir(directory, 1)  # type: ignore[no-untyped-call]


def recovery_is_unusable(error: BaseException) -> bool:
    """Whether Bytewax failed because of what it found in the recovery directory."""
    return any(
        isinstance(link, (InconsistentPartitionsError, MissingPartitionsError, NoPartitionsError))
        or "sqlite" in str(link).lower()
        or "malformed" in str(link).lower()
        for link in _links(error)
    )


def recovery_has_no_room(error: BaseException) -> bool:
    """Whether Bytewax failed because the recovery directory's disk is full."""
    return any("database or disk is full" in str(link) for link in _links(error))


def _links(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came of; Bytewax' chains may run in a circle."""
    link: BaseException | None = error
    for _ in range(10):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__


def put_recovery_aside(directory: Path) -> None:
    """Rename what Bytewax keeps in a recovery directory, so that it begins anew; the cell's identity stays."""
    for file in directory.glob("part-*.sqlite3*"):
        file.replace(file.with_name(f"{file.name}.aside"))


class Arguments(NamedTuple):
    """What `python -m bytewax.run` was called with, as far as it matters here."""

    recovery_directory: Path | None
    workers_per_process: int | None
    process_id: int | None
    addresses: str | None


def launched_by_bytewax() -> bool:
    """Whether this process is `python -m bytewax.run`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == "bytewax.run"


def before_bytewax_runs(work: Callable[[Dataflow, Arguments], None]) -> None:
    """Have `work` done when `python -m bytewax.run` is about to run a flow; elsewhere nothing.

    A module may define or import several flows: which of them is run is known only then. Uses names that
    Bytewax keeps to itself; its version is pinned, and a test holds them.
    """
    main: Any = sys.modules["__main__"]
    if not launched_by_bytewax() or hasattr(main, "_onceflow_runs"):
        return
    run_it = main._onceflow_runs = main.cli_main
    parsed = bytewax_run._parse_args()  # type: ignore[no-untyped-call]
    directory = parsed.recovery_directory
    arguments = Arguments(
        None if directory is None else Path(directory),
        parsed.workers_per_process,
        parsed.process_id,
        parsed.addresses,
    )

    def cli_main(flow: Dataflow, **options: Any) -> None:
        work(flow, arguments)
        run_it(flow, **options)

    main.cli_main = cli_main


class _Inlet(FixedPartitionedSource[Item, None]):
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def list_parts(self) -> list[str]:
        return ["inlet"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_InletPartition":
        self._runtime.open()
        return _InletPartition(self._runtime)


class _InletPartition(StatefulSourcePartition[Item, None]):
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def next_batch(self) -> Iterable[Item]:
        return self._runtime.next_batch()

    def next_awake(self) -> datetime:
        """At once: `next_batch` waits itself. Bytewax would choose a time of day, and stand still when the clock is set
        back, for as long.
        """
        return _LONG_AGO

    def snapshot(self) -> None:
        return None


class _LaneLogic(StatefulBatchLogic[Work | Ends, Ends, bytes | None]):
    """A lane as Bytewax keeps it: made when one of its tenant's runs needs it, discarded when it is idle.

    What ended before it came to a lane passes through, under a key that is no tenant's.
    """

    def __init__(self, runtime: Runtime, snapshot: bytes | None) -> None:
        self._runtime = runtime
        self._lane: Lane | None = None
        if snapshot is not None:
            runtime.open()
            self._lane = runtime.lanes.restored(snapshot)

    def on_batch(self, values: list[Work | Ends]) -> tuple[Iterable[Ends], bool]:
        if type(values[0]) is Ends:
            return (values, True)  # type: ignore[return-value]  # all of them are
        ends, self._lane = self._runtime.lanes.work(self._lane, values)  # type: ignore[arg-type]
        return ([ends] if ends else [], self._lane is None)

    def on_notify(self) -> tuple[Iterable[Ends], bool]:
        return ([], False)

    def on_eof(self) -> tuple[Iterable[Ends], bool]:
        return ([], False)

    def notify_at(self) -> datetime | None:
        return None

    def snapshot(self) -> bytes | None:
        return None if self._lane is None else self._lane.snapshot()


class _Outlet(FixedPartitionedSink[Ends, None]):
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def list_parts(self) -> list[str]:
        return ["outbox"]

    def part_fn(self, item_key: str) -> int:
        return 0

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_OutletPartition":
        self._runtime.open()
        return _OutletPartition(self._runtime)


class _OutletPartition(StatefulSinkPartition[Ends, None]):
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def write_batch(self, values: list[Ends]) -> None:
        self._runtime.outbox.put(chain.from_iterable(values))

    def snapshot(self) -> None:
        return None

    def close(self) -> None:
        self._runtime.close()
