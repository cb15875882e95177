"""`onceflow demo`: the main job on a real Kafka, one of two cells killed half-way, everything counted from outside.

It asks nothing, writes below one directory only, and leaves nothing running, however it ends: not after a
Ctrl-C, an error, or a closed terminal. Its result is right only if the count is: then True.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from onceflow import devkafka
from onceflow.config import Settings, load
from onceflow.demo.cells import STEP_S, CellProcess, environment, stop_all, where_flows_are
from onceflow.demo.day import OWN_TOPIC, SHARED_TOPIC, Day, make_day
from onceflow.demo.report import Outcome, show
from onceflow.demo.wire import Reading, Sending, await_groups, read_all, recovered_ms
from onceflow.errors import ConfigError, Fault
from onceflow.observe.status import Status, read_status
from onceflow.stream.cluster import Cluster, KafkaAway
from onceflow.stream.topics import Names, prepare

FLOW = "clearledger"
SLOTS = 16
DAY_S = 5.0  # how long the day's events take to be sent
PATIENCE_S = 90.0  # without anything new for so long, the demo gives up
SETTLE_S = 30.0  # after the last completion, copies on their way are judged within so long
MARKER = "made-by-onceflow-demo"


class Place(NamedTuple):
    """Where the demo runs."""

    directory: Path
    config: Path
    servers: str
    settings: Settings
    cluster: Cluster


def run_demo(events: int, directory: Path, *, keep: bool = False, console: Console | None = None) -> bool:
    """Run the demo; whether all events came out once, and nothing else. `keep`: Kafka runs on afterwards."""
    console = console or Console(highlight=False)
    directory = directory.absolute()
    working = where_flows_are()
    console.print(
        f"[bold]A day of ClearLedger, in small.[/] {events:,} records come in: invoices of 340 tenants, some sent "
        "twice, some broken. An agent reconciles each invoice in three steps. Half-way, one of the two processes "
        "that do so is killed. Afterwards everything is counted from outside.\n"
    )
    with _Signals() as signals, ExitStack() as cleanup:
        place = _kafka(console, directory, cleanup, keep=keep)
        cells = [
            CellProcess(f"cell {number}", directory / f"cell-{number}", environment(place.config), working)
            for number in (1, 2)
        ]
        cleanup.callback(stop_all, cells)
        cleanup.callback(signals.hold)  # runs first: a second Ctrl-C must not leave anything running
        shares = _start_cells(console, place, cells)
        outcome = _day(console, place, cells, shares, make_day(events))
        correct = show(console, outcome)
    console.print(f"\nThe cells' logs: {_short(directory)}/cell-1/log and cell-2/log.")
    if keep:
        console.print(
            "Kafka still runs. To look at what there is:\n"
            f"  export ONCEFLOW_CONFIG={_short(place.config)}\n"
            f"  onceflow status flows.clearledger\n  onceflow dead-letters list --flow {FLOW}\n"
            f"and to stop it: onceflow kafka stop --dir {_short(directory)}/kafka"
        )
    else:
        console.print(
            "Nothing is left running. `onceflow demo --keep` leaves Kafka, so that you can look into it."
        )
    console.print("Next: [bold]flows/clearledger.py[/], the agent; README.md, how to run your own.")
    return correct


# --- what it needs ---


def _kafka(console: Console, directory: Path, cleanup: ExitStack, *, keep: bool) -> Place:
    """Step 1: an empty directory, Kafka, the topics."""
    _empty(directory)
    began = time.monotonic()
    console.print("[bold]1  Kafka[/]  a real one, of this demo's own")
    os.environ.setdefault("ONCEFLOW_KAFKA_HEAP", "512m")  # it is a small day
    cleanup.push(_KafkaStop(directory / "kafka", keep=keep))
    broker = devkafka.start(
        directory / "kafka", progress=lambda line: console.print(f"   {line}", style="dim")
    )
    config = directory / "onceflow.toml"
    config.write_text(f'[kafka]\nbootstrap_servers = "{broker.bootstrap_servers}"\n')
    settings = load(FLOW, environ={}, path=config)
    cluster = Cluster(settings.kafka.properties())
    cluster.create(SHARED_TOPIC, SLOTS, {}, None)
    cluster.create(OWN_TOPIC, 1, {}, None)
    cluster.await_topics([SHARED_TOPIC, OWN_TOPIC])
    made = prepare(FLOW, cluster, settings)
    await_groups(broker.bootstrap_servers, SHARED_TOPIC)
    console.print(f"   ready after {time.monotonic() - began:.1f} s; {len(made)} topics made for the flow\n")
    return Place(directory, config, broker.bootstrap_servers, settings, cluster)


def _empty(directory: Path) -> None:
    """Clear away what the last demo left; nobody else's files."""
    try:
        if directory.exists() and any(directory.iterdir()) and not (directory / MARKER).exists():
            raise ConfigError(f"{directory} holds other files than a demo's: name another place with --dir")
        devkafka.stop(directory / "kafka")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (directory / MARKER).write_text("The next `onceflow demo` empties this directory.\n")
    except OSError as error:
        raise ConfigError(
            f"{directory} cannot be used as a directory ({error.strerror}): name another place with --dir"
        ) from error


def _start_cells(console: Console, place: Place, cells: list[CellProcess]) -> dict[str, set[int]]:
    """Step 2: two cells, which share the slots; who has which."""
    began = time.monotonic()
    console.print("[bold]2  Two cells[/]  processes `onceflow run flows.clearledger`")
    for cell in cells:
        cell.start()
    while not _shared(owned := _owned(place.cluster), cells):
        for cell in cells:
            cell.watch()
        if time.monotonic() - began > PATIENCE_S:
            raise Fault(f"the cells do not share the slots ({owned}): see {place.directory}/cell-1/log")
        time.sleep(0.05)
    shares = " and ".join(str(len(owned[cell.identity])) for cell in cells)
    console.print(
        f"   share the tenants, {shares} of {SLOTS} slots, after {time.monotonic() - began:.1f} s\n"
    )
    return owned


def _owned(cluster: Cluster) -> dict[str, set[int]]:
    """Who owns which slots. A broker that has just started knows nothing of groups for a moment."""
    try:
        return cluster.members(FLOW)
    except KafkaAway:
        return {}


def _shared(owned: Mapping[str, set[int]], cells: list[CellProcess]) -> bool:
    return sum(map(len, owned.values())) == SLOTS and all(owned.get(cell.identity) for cell in cells)


# --- the day ---


def _day(
    console: Console,
    place: Place,
    cells: list[CellProcess],
    shares: Mapping[str, set[int]],
    day: Day,
) -> Outcome:
    """Steps 3 and 4: the events, the kill, the end of the work; then the count."""
    names = Names.of(FLOW)
    rate = len(day.records) / DAY_S
    console.print(
        f"[bold]3  The day[/]  {rate:,.0f} records a second, {day.copies:,} of them copies; each step takes "
        f"{STEP_S * 1000:.0f} ms"
    )
    with ExitStack() as cleanup:
        reading = cleanup.enter_context(
            closing(Reading(place.servers, names.completions, names.dead_letters, SLOTS))
        )
        sending = Sending(place.servers, day.records, rate)
        cleanup.callback(sending.stop)
        view = cleanup.enter_context(_View(console, len(day.records), len(day.runs)).shown())
        watch = _Watch(sending, reading, view, cells, len(day.runs))
        watch.until(lambda: len(reading.found.completions) >= len(day.runs) // 2)
        victim = cells[1]
        slots = shares[victim.identity]
        victim.kill()
        killed_at = time.time()
        view.say(
            f"   half-way: {victim.name}, with {len(slots)} slots, is killed (SIGKILL) and started again"
        )
        victim.start()
        sending.release()
        watch.until(lambda: recovered_ms(reading.found.completions, slots, int(killed_at * 1000)) is not None)
        watch.until(lambda: sending.done and len(reading.found.completions) >= len(day.runs))
        status = watch.settled(place)
    console.print("\n[bold]4  The count[/]  the cells are asked to end; then all is read anew, from outside")
    statuses = stop_all(cells)
    found = read_all(place.servers, names.completions, names.dead_letters, SLOTS)
    return Outcome(
        day=day,
        origins=sending.origins,
        found=found,
        began_ms=int(sending.began_at * 1000),
        killed_ms=int(killed_at * 1000),
        recovered_ms=recovered_ms(found.completions, slots, int(killed_at * 1000)),
        duplicates=status.tally.duplicate,
        exit_statuses=statuses,
    )


class _View:
    """How far it is: bars in a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, records: int, runs: int) -> None:
        self._console = console
        self._line_at = 0.0
        self._bars = Progress(
            TextColumn("   {task.description:<10}"),
            BarColumn(40),
            MofNCompleteColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: list[TaskID] = [
            self._bars.add_task("sent", total=records),
            self._bars.add_task("completed", total=runs),
        ]
        self._totals = (records, runs)
        self._shown = (-1, -1)

    @contextmanager
    def shown(self) -> Iterator["_View"]:
        """Show it while this lasts."""
        with self._bars:
            yield self

    def update(self, sent: int, completed: int) -> None:
        """Show how far sending and completing are."""
        for task, done in zip(self._tasks, (sent, completed), strict=True):
            self._bars.update(task, completed=done)
        now = (sent, completed)
        due = time.monotonic() >= self._line_at or now == self._totals
        if due and now != self._shown and not self._console.is_terminal:
            self._line_at, self._shown = time.monotonic() + 1.0, now
            self._console.print(f"   {sent:>8,} sent {completed:>8,} completed")

    def say(self, line: str) -> None:
        """A line among the bars."""
        self._bars.console.print(line)


class _Watch:
    """Reads what comes until something holds; starts cells again that ask for it; gives up when nothing moves."""

    def __init__(
        self, sending: Sending, reading: Reading, view: _View, cells: list[CellProcess], runs: int
    ) -> None:
        self._sending, self._reading, self._view, self._cells = sending, reading, view, cells
        self._runs = runs

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition."""
        moved_at, seen = time.monotonic(), (0, 0)
        while not holds():
            self._reading.read()
            for cell in self._cells:
                cell.watch()
            now = (self._sending.sent, len(self._reading.found.completions))
            if now != seen:
                moved_at, seen = time.monotonic(), now
            self._view.update(*now)
            if time.monotonic() - moved_at > PATIENCE_S:
                raise Fault(
                    f"nothing has moved for {PATIENCE_S:.0f} s ({now[0]:,} sent, {now[1]:,} of {self._runs:,} runs "
                    f"completed): see {self._cells[0].log} and {self._cells[1].log}"
                )
        self._view.update(self._sending.sent, len(self._reading.found.completions))

    def settled(self, place: Place) -> Status:
        """Wait until no input has an unfinished record: copies still on their way have been judged too."""
        deadline = time.monotonic() + SETTLE_S
        while (status := read_status(FLOW, place.settings)).unfinished > 0:
            if time.monotonic() > deadline:
                behind = [f"{each.topic}/{each.partition}" for each in status.inputs if each.unfinished]
                raise Fault(
                    f"all runs have completed, but {status.unfinished} records of {', '.join(behind)} are not "
                    f"finished after {SETTLE_S:.0f} s: see {self._cells[0].log} and {self._cells[1].log}"
                )
            for cell in self._cells:
                cell.watch()
        return status


# --- leaving nothing behind ---


class _KafkaStop:
    """Stops Kafka at the end, unless it was asked to stay and all went well."""

    def __init__(self, directory: Path, *, keep: bool) -> None:
        self._directory, self._keep = directory, keep

    def __enter__(self) -> None:
        """Nothing: it is there for its end."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._keep or kind is not None:
            devkafka.stop(self._directory)


class _Signals:
    """Lets SIGTERM and a closed terminal end the demo as Ctrl-C does: cells and Kafka are stopped."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __enter__(self) -> "_Signals":
        self._before = {number: signal.signal(number, self._end) for number in self.NUMBERS}
        self._held = False
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """From now on nothing interrupts: what was started is being stopped."""
        self._held = True

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        if not self._held:
            self._held = True
            raise KeyboardInterrupt


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
