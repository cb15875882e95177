"""A flow, from the agents that it is made of to the process that runs it.

`dataflow` is what users write at the end of a module. Under `python -m bytewax.run` that module is imported
and then run by Bytewax, which knows nothing of exit statuses and graceful ends; so, between the two, the
signal handlers and an exception hook are set here, the cell is opened, and what Bytewax would do wrong is
refused.
"""

import atexit
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from onceflow.agents.agent import Agent, routes
from onceflow.agents.tool_checks import check_arguments
from onceflow.agents.tool_names import check_names
from onceflow.config import Settings, flow_name, load
from onceflow.errors import ConfigError, Fault, OnceflowError
from onceflow.observe.health import serve
from onceflow.observe.telemetry import Metrics, setup_logging
from onceflow.stream.cluster import KafkaAway
from onceflow.stream.dataflow import (
    Arguments,
    before_bytewax_runs,
    build,
    initialise_recovery,
    launched_by_bytewax,
    put_recovery_aside,
    recovery_has_no_room,
    recovery_is_unusable,
    run,
)
from onceflow.stream.runtime import Runtime

if TYPE_CHECKING:
    from bytewax.dataflow import Dataflow

log = logging.getLogger(__name__)

EPOCH = timedelta(milliseconds=500)  # of `onceflow run`; how much of a run's journal a crash can cost


class Flow(NamedTuple):
    """A flow as a module defines it."""

    name: str
    settings: Settings
    runtime: Runtime
    metrics: Metrics
    dataflow: "Dataflow"


_defined: dict[int, Flow] = {}  # by the id of the Dataflow; flows live as long as their process


@check_arguments('write dataflow("my-flow", agents=[my_agent])')
def dataflow(name: str, *, agents: Iterable[Agent[Any, Any]], settings: Settings | None = None) -> "Dataflow":
    """Make a flow of agents: a Dataflow for `python -m bytewax.run` or `onceflow run`.

    `name`: `[a-z][a-z0-9-]{0,62}`; its topics, consumer group and state are named after it. `settings`: those
    of `onceflow.toml` and the environment unless given. Raises ConfigError; under `bytewax.run` the process
    ends with status 2 instead.
    """
    try:
        if isinstance(agents, Agent):
            raise ConfigError(f"flow {name}: agents=… is one agent: write a list, agents=[…]")
        if not isinstance(agents, Iterable):
            raise ConfigError(f"flow {name}: agents={agents!r}; write a list, agents=[…]")
        agents = list(agents)
        if not agents:
            raise ConfigError(f"flow {name}: agents=[]: a flow needs at least one agent")
        settings = load(name) if settings is None else settings
        flow_name(name, settings)
        metrics = Metrics()
        runtime = Runtime(name, settings, routes(agents), metrics, None)
        flow = Flow(name, settings, runtime, metrics, build(name, runtime))
    except OnceflowError as error:
        if not launched_by_bytewax():
            raise
        _end_with_line(error)
    _defined[id(flow.dataflow)] = flow
    before_bytewax_runs(_take_over_bytewax)
    return flow.dataflow


def _take_over_bytewax(dataflow: "Dataflow", arguments: Arguments) -> None:
    """What must be done between the import of a flow by `bytewax.run` and its run."""
    flow = _defined.get(id(dataflow))
    if flow is None:
        return  # another Dataflow of the same module
    try:
        _refuse_clusters(arguments)
        flow.runtime.recovery = arguments.recovery_directory
        take_over_process(flow)
    except OnceflowError as error:
        _end_with_line(error)


def _end_imports_with_a_line() -> None:
    """Have an error of ours that comes while `bytewax.run` imports a flow, as of @agent, end the process as it should.

    `take_over_process` replaces the hook by one that knows the flow.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if (ours := _ours(error)) is not None:
            _end_with_line(ours)
        before(kind, error, trace)

    sys.excepthook = hook


def _end_with_line(error: OnceflowError) -> NoReturn:
    print(f"onceflow: {error}", file=sys.stderr, flush=True)  # noqa: T201 (the one line that says why it ends)
    os._exit(error.exit_status)


def find_flow(reference: str) -> Flow:
    """Import a flow: `module`, optionally `:name` (default `flow`); the working directory is importable."""
    module_name, _, attribute = reference.partition(":")
    module_name = module_name.removesuffix(".py").replace("/", ".")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    missing = ConfigError(
        f"there is no module {module_name!r} here: give FLOW as module or module:name, as seen from the "
        "working directory"
    )
    if "" in module_name.split("."):  # no name of a module, as of ../flow
        raise missing
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise ConfigError(f"{module_name} cannot be imported: {_in_a_line(error)}") from error
        raise missing from error
    except OnceflowError:
        raise
    except Exception as error:
        raise ConfigError(f"{module_name} cannot be imported: {_in_a_line(error)}") from error
    found = getattr(module, attribute or "flow", None)
    flow = _defined.get(id(found))
    if flow is None:
        raise ConfigError(
            f"{module_name} has no flow named {attribute or 'flow'!r}: write "
            f"`{attribute or 'flow'} = dataflow(…)` at its end"
        )
    return flow


def _in_a_line(error: Exception) -> str:
    """What went wrong in an import, and in which line: the last one in the working directory, where users write."""
    if isinstance(error, SyntaxError):  # it is where it says, in no frame
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    text = " ".join(str(error).split())
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    here = [
        f for f in frames if Path(f.filename).is_relative_to(Path.cwd()) and "site-packages" not in f.filename
    ]
    place = (here or frames)[-1]
    return f"{type(error).__name__}: {text} ({place.filename}:{place.lineno})"


def run_flow(flow: Flow, recovery: Path | None) -> None:
    """Run a flow in this process until it is asked to end. A fault ends the process with its status."""
    flow.runtime.recovery = recovery
    take_over_process(flow)
    run(flow.dataflow, recovery, EPOCH)


def take_over_process(flow: Flow) -> None:
    """Set up logs, metrics, signals and exit statuses for a process that will run this flow, and open the cell."""
    settings, recovery = flow.settings, flow.runtime.recovery
    setup_logging(settings.log, settings.log_level, flow=flow.name)
    check_names()
    sys.excepthook = partial(_end_with_status, flow.runtime)
    flow.runtime.identify()
    if recovery is not None:
        initialise_recovery(recovery)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _Stop(flow.runtime))
    atexit.register(_leave, flow.runtime)
    # Events make many short-lived containers and hardly a cycle, so the search for cycles may come less often.
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    if settings.http_port:
        serve(
            settings.http_port,
            settings.http_host,
            flow.metrics.registry,
            flow.runtime.ready,
            flow.runtime.alive,
        )
    try:
        flow.runtime.open()  # before Bytewax runs: it would put a page of its own above what is wrong
    except KafkaAway:
        if flow.runtime.stopping:
            os._exit(0)
        raise


def _leave(runtime: Runtime) -> None:
    """End at once after a clean end: freeing a client that has met an absent coordinator can hang for ever."""
    if runtime.ended:
        runtime.close()  # Bytewax has closed its outlet only if it came to build one
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class _Stop:
    """The signal handler: the first signal asks for the end, the second one is the end."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._runtime.stopping:
            self._runtime.blame_nobody()
            # Asked twice: nothing is lost, what was not committed is done again at the next start.
            os._exit(0)
        self._runtime.stop()


def _end_with_status(
    runtime: Runtime, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """End with the status of the error that Bytewax wraps; without this it would always be 1."""
    cause = _ours(error)
    if cause is None and runtime.recovery is not None and recovery_has_no_room(error):
        cause = Fault(f"Bytewax cannot write to {runtime.recovery} ({error}); is there room on its disk?")
    if cause is None and runtime.recovery is not None and recovery_is_unusable(error):
        put_recovery_aside(runtime.recovery)
        cause = Fault(
            f"Bytewax cannot resume from {runtime.recovery} ({error}); it was put aside, and a restart goes on "
            "without it: steps of runs in flight are repeated"
        )
    if isinstance(cause, KafkaAway) and runtime.stopping:
        log.info("ended before Kafka answered")
        os._exit(0)
    if isinstance(cause, (ConfigError, Fault, KafkaAway)):
        runtime.blame_nobody()
    if cause is not None:
        log.error("%s", cause, extra={"exit_status": cause.exit_status})
        if not isinstance(cause, (ConfigError, Fault, KafkaAway)):
            traceback.print_exception(cause)
    else:
        traceback.print_exception(kind, error, trace)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if cause is None else cause.exit_status)


def _ours(error: BaseException) -> OnceflowError | None:
    """The error of ours that another one wraps; chains that Bytewax makes may run in a circle."""
    met: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in met:
        if isinstance(link, OnceflowError):
            return link
        met.add(id(link))
        link = link.__cause__ or link.__context__
    return None


def _refuse_clusters(arguments: Arguments) -> None:
    """Before Bytewax connects to the cluster, where it would hang."""
    alone = (arguments.workers_per_process or 1) == 1 and arguments.process_id is None
    if not alone or arguments.addresses is not None:
        raise ConfigError(
            "a Bytewax cluster (-w above 1, -i, -a) is not used by onceflow: start one process per cell instead, "
            "each with its own state directory (ONCEFLOW_STATE_DIR) and recovery directory (-r)"
        )


if launched_by_bytewax():
    _end_imports_with_a_line()
