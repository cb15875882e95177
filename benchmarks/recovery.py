"""recovery: how long slots are not served after kill -9, with many keys in the window and load running.

A slot serves again when a reader of committed records has, in that slot, the completion of an event that was sent after
the kill. Three ways back, one after another, each from a cell or cells that serve all slots:
- restart: the same cell is started again at once, as a supervisor would;
- restart without its directories: its view and its identity are deleted first, so the old one's session must end;
- takeover: another cell runs already, with half of the slots, and gets those of the killed one. What counts is these.
What the time consists of is told from the log of the cell that takes over, in seconds since the kill.
"""

import signal
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from benchmarks.bench import Bench, bench
from benchmarks.cell import DEDUP, Cell, make_topics
from benchmarks.fill import fill
from benchmarks.load import Load, Steady
from benchmarks.process import Process
from benchmarks.report import Figure, Report, at_most, brief
from benchmarks.watch import Arrivals, wait_until
from onceflow.config import Events

FLOORS_S = {"restart": 5, "takeover": 20, "restart without directories": 90}
HEAD = (
    "way back",
    "first slot",
    "last slot",
    "cell started",
    "slots assigned",
    "claimed",
    "caught up",
    "inputs",
)
SERVED_S = 600  # for a view of millions of keys to be built on a busy machine


class Back(NamedTuple):
    """One way back. Seconds since the kill; but `claimed_s` and so on are how long that took."""

    name: str
    first_s: float
    last_s: float
    slots: int
    parts: dict[str, float]
    log: list[str]


def run(servers: str | None, *, keys: int, events_per_s: int, tenants: int, partitions: int) -> Report:
    """Measure."""
    load = Load(tenants)
    with bench(servers, [DEDUP.name]) as here:
        topic = here.topic("events", partitions)
        read = Events(shared=(topic,), tenant_prefix="")
        completions = make_topics(here, DEDUP, read)
        fill(here, load, range(keys), DEDUP.name, completions)
        steady = Steady(here.kafka.servers, load, topic, keys, events_per_s)
        scene = _Scene(here, steady, Arrivals(here.kafka, completions), read, partitions)
        try:
            scene.begin()
            backs = [scene.restart(), scene.restart_without_directories(), scene.takeover()]
        finally:
            scene.end()
    figures = []
    for back in backs:
        what = f"recovery with {keys:,} keys, {back.name}"
        figures.append(at_most(f"{what}, last slot", back.last_s, FLOORS_S[back.name], "s"))
        figures.append(Figure(f"{what}, first slot", back.first_s, brief(back.first_s, "s")))
    asked = {"keys": keys, "events_per_s": events_per_s, "tenants": tenants, "partitions": partitions}
    details = {"first_start_s": scene.first_start_s, "backs": [back._asdict() for back in backs]}
    return Report("recovery", asked, figures, details)


class _Scene:
    """The cells and the load."""

    def __init__(
        self, here: Bench, steady: Steady, arrivals: Arrivals, read: Events, partitions: int
    ) -> None:
        self._here, self._steady, self._arrivals = here, steady, arrivals
        self._cells = [Cell(here, name, DEDUP, read) for name in ("first", "second")]
        self._processes: list[Process] = []
        self._all = frozenset(range(partitions))
        self.first_start_s = 0.0

    def begin(self) -> None:
        """Start the load and the first cell; wait until all slots are served."""
        self._arrivals.start()
        self._steady.start()
        started_at = time.monotonic()
        self._processes.append(self._cells[0].start())
        with self._here.advancing("the first start: the view is built", 1):
            self.first_start_s = max(self._served(started_at, self._all).values())
        self._here.say(f"  first start: all slots serve after {self.first_start_s:.1f} s")

    def restart(self) -> Back:
        """The same cell again."""
        return self._back("restart", self._all, self._cells[0], self._start_first)

    def restart_without_directories(self) -> Back:
        """The same command again, all that the cell kept on disk deleted."""

        def start() -> None:
            self._cells[0].lose_directories()
            self._start_first()

        return self._back("restart without directories", self._all, self._cells[0], start)

    def takeover(self) -> Back:
        """A second cell gets the slots of the first one."""
        first, second = self._cells
        self._processes.append(second.start())
        slots: dict[str, set[int]] = {}

        def shared() -> bool:
            slots.clear()
            slots.update(self._here.kafka.cluster.members(DEDUP.name))
            sizes = [len(owned) for owned in slots.values()]
            return sum(sizes) == len(self._all) and len(sizes) == 2 and max(sizes) - min(sizes) <= 1

        with self._here.advancing("a second cell joins", 1):
            wait_until(shared, "both cells have half of the slots", SERVED_S, *self._processes, every_s=0.5)
            self._served(time.monotonic(), self._all)
        return self._back("takeover", slots[first.identity], second, lambda: None)

    def end(self) -> None:
        """End all."""
        self._steady.stop()
        self._arrivals.stop()
        for process in self._processes:
            process.end()

    def _start_first(self) -> None:
        self._processes.append(self._cells[0].start())

    def _back(self, name: str, slots: Collection[int], successor: Cell, start: Callable[[], None]) -> Back:
        """Kill the first cell's process, do `start`, and wait until these slots are served."""
        killed_at, killed_wall = time.monotonic(), time.time()
        self._processes.pop(0).end(signal.SIGKILL)
        start()
        with self._here.advancing(name, 1):
            served = self._served(killed_at, slots).values()
        lines = [line for line in successor.lines() if line["at"] >= killed_wall]
        back = Back(
            name, min(served), max(served), len(slots), _parts(lines, killed_wall), _told(lines, killed_wall)
        )
        self._here.say(
            f"  {name}: {len(slots)} slots, served after {back.first_s:.1f} to {back.last_s:.1f} s"
        )
        for line in back.log:
            self._here.say(f"    {line}")
        return back

    def _served(self, after: float, slots: Collection[int]) -> dict[int, float]:
        """Wait until each slot has a completion of an event sent after this time; seconds from it until then."""
        found = self._arrivals.found
        firsts: dict[int, float] = {}
        looked = len(found)

        def so() -> bool:
            nonlocal looked
            while looked < len(found):
                number, at, slot = found[looked]
                looked += 1
                if slot in slots and self._steady.sent_at[number] > after:
                    firsts.setdefault(slot, at - after)
            return len(firsts) == len(slots)

        wait_until(so, "all slots are served", SERVED_S, *self._processes)
        return firsts


def _parts(lines: list[dict[str, Any]], since: float) -> dict[str, float]:
    """What the time consists of, by the successor's log."""
    parts = {}
    for message, name in (("cell started", "cell_started_s"), ("slots assigned", "slots_assigned_s")):
        if times := [line["at"] - since for line in lines if line["message"] == message]:
            parts[name] = max(times)
    granted = [line for line in lines if line["message"] == "slots granted"]
    for name in ("claimed_s", "caught_up_s", "inputs_s"):
        parts[name] = sum(line[name] for line in granted)  # one grant after another, on one thread
    return parts


def _told(lines: list[dict[str, Any]], since: float) -> list[str]:
    """The successor's log in short."""
    usual = {"time", "at", "level", "logger", "message", "flow", "cell", "cell_name"}
    return [
        f"{line['at'] - since:6.2f} s  {line['message']}"
        + "".join(f" {name}={value}" for name, value in line.items() if name not in usual)
        for line in lines
        if line["level"] != "debug"
    ]


def rows(report: Report) -> list[Sequence[str]]:
    """The report as a table's rows, under HEAD."""
    names = ("cell_started_s", "slots_assigned_s", "claimed_s", "caught_up_s", "inputs_s")
    return [
        (
            back["name"],
            *(f"{seconds:.1f}" for seconds in (back["first_s"], back["last_s"])),
            *(f"{back['parts'][name]:.1f}" if name in back["parts"] else "" for name in names),
        )
        for back in report.details["backs"]
    ]
