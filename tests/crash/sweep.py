"""Kills at every crash point, under load, with all kinds of loss after each: `python -m tests.crash.sweep`.

A `Sweep` is one scene with many kills: the load goes on, the cell is started with the next crash point, dies there, and
then loses what the mode says. Each death is verified: status -9, and the point's name in the file that only the point
writes. When all kills are done the scene is finished as ever: the checker must find nothing lost, doubled or wrong.

Modes: `kept` (nothing is lost), `recovery` (Bytewax' snapshots), `state` (all directories, and with them the cell's
name), `moved` (another cell takes the slots over, then the dead one comes back), `zombie` (it does not die but stands
still; another cell takes over; then it goes on where it stood).

Flows: `echo` passes data on, some of it by calls that only read; `effects` changes a world that survives every process,
in which the effects of each order are counted.
"""

import argparse
import itertools
import random
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from onceflow import devkafka
from tests.crash import points
from tests.crash.effects import World
from tests.crash.points import NEWCOMER, NO_VIEW, POINTS, SIGTERM, Point
from tests.crash.scene import PARTITIONS, Scene

MODES = ("kept", "recovery", "state", "moved", "zombie")
MODES_OF = {"echo": MODES[:4], "effects": ("kept", "state", "moved", "zombie")}
KILLS = 3
EVENTS_PER_S = 500
DEATH_S = 120.0  # for a cell to reach its point: its start, its slots, and so many passes
VIEW_RECORDS = 2_000  # so many outputs make a catch-up of several writes


class Kill(NamedTuple):
    """One death to die."""

    point: Point
    mode: str
    nth: int


def plan(chosen: Sequence[Point], modes: Sequence[str], kills: int, seed: int) -> list[Kill]:
    """So many kills of each point in each mode; the passes are drawn by the seed."""
    draw = random.Random(seed)
    return [
        Kill(point, mode, draw.randint(1, point.passes))
        for mode in modes
        for point in chosen
        for _ in range(kills)
        if applies(point, mode)
    ]


def applies(point: Point, mode: str) -> bool:
    """Whether there is such a thing: a cell that was asked to end does so, however long it stood still."""
    return mode != "zombie" or point.needs != SIGTERM


def rotation(chosen: Sequence[Point], seed: int) -> list[Kill]:
    """Each point once, the modes in turn; which begins, and the passes, are drawn by the seed. `moved` comes last."""
    draw, modes = random.Random(seed), MODES_OF["echo"]
    first = draw.randrange(len(modes))
    kills = [
        Kill(point, modes[(first + number) % len(modes)], draw.randint(1, point.passes))
        for number, point in enumerate(chosen)
    ]
    return sorted(kills, key=lambda kill: MODES.index(kill.mode))


class Sweep:
    """A scene whose cell dies at crash points, one after the other. `killed` is called after each death.

    `world`: of the flow `effects`; without one the flow is `echo`.
    """

    def __init__(
        self, scene: Scene, killed: Callable[[Kill], None] = lambda _: None, world: World | None = None
    ) -> None:
        self._scene, self._world = scene, world
        self._killed = killed
        self._note = scene.directory / "crash-points"
        self._note.touch()
        if world is None:
            self._cell, self._other = (scene.cell(name, CRASH_CALLS="1") for name in "ab")
        else:
            world.gate.touch()
            self._cell, self._other = (world.cell(scene, name) for name in "ab")

    def run(self, kills: Sequence[Kill]) -> None:
        """Die all deaths, then see that all came out right."""
        assert self._scene.load is not None
        self._scene.load.start()
        if any(kill.point.needs == NO_VIEW for kill in kills):
            self._fill_the_view()
        for kill in kills:
            self._die(kill)
            self._killed(kill)
            self._lose(kill.mode)
        self._cell.doom = {}
        self._cell.start()
        self._wait(lambda: self._cell.owned() > 0, "a owns slots")
        if self._world is None:
            self._scene.finish()
            return
        self._scene.finish(agent="orders", contents=self._world.contents)
        self._world.check(self._scene.load.sent)

    def _die(self, kill: Kill) -> None:
        scene, cell, other, point = self._scene, self._cell, self._other, kill.point
        scene.say(f"to die: {point.name}, pass {kill.nth}; then {kill.mode}")
        if point.needs in (NEWCOMER, SIGTERM) and other.running():
            other.kill()  # the cell is to own all slots, and what comes out to be its work
        if point.needs == NO_VIEW:
            shutil.rmtree(cell.state / "seen", ignore_errors=True)
        noted = len(self._noted())
        deaths = cell.statuses.count(-signal.SIGKILL)

        def dead() -> bool:
            if kill.mode == "zombie":
                return len(self._noted()) > noted
            return cell.statuses.count(-signal.SIGKILL) > deaths

        by = signal.SIGSTOP if kill.mode == "zombie" else signal.SIGKILL
        cell.doom = points.environment(point, kill.nth, self._note, by)
        cell.start()
        if point.needs == SIGTERM:
            self._wait(lambda: "slots granted" in cell.text(), "a works")
            scene.wait_for_output(scene.random.randint(1, 1_000))
            cell.send(signal.SIGTERM)
        elif point.needs == NEWCOMER:
            self._wait(lambda: cell.owned() == PARTITIONS or dead(), "a owns all slots, or is dead already")
            other.lose_state()
            other.start()
        self._wait(dead, f"a dies: {point.name}")
        died_at = self._noted()[noted:]
        assert died_at == [point.name], f"a died at {died_at}, not at {point.name}: {cell.log}"

    def _lose(self, mode: str) -> None:
        scene, cell, other = self._scene, self._cell, self._other
        if mode == "recovery":
            cell.lose_recovery()
        elif mode == "state":
            cell.lose_state()
        elif mode in ("moved", "zombie"):
            if not other.running():
                other.start()
            self._wait(lambda: bool(other.identity), "b has an identity")
            scene.wait_for_members({other.identity: True})
            scene.wait_for_output(scene.random.randint(1, 500))
        if mode == "zombie":
            cell.doom = {}
            cell.send(signal.SIGCONT)
            self._wait(lambda: bool(cell.identity), "a has an identity")
            scene.wait_for_members({other.identity: True, cell.identity: True})
            cell.kill()

    def _fill_the_view(self) -> None:
        self._cell.start()
        self._scene.wait_for_output(VIEW_RECORDS)
        self._cell.kill()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait and read on, so that what comes out later is known to be new."""

        def read_and_ask() -> bool:
            self._scene.outputs.more()
            return condition()

        self._scene.wait(read_and_ask, what, DEATH_S)

    def _noted(self) -> list[str]:
        return self._note.read_text().splitlines()


# --- the command ---


class Outcome(NamedTuple):
    """What became of one point's scene: the kills done, and what was wrong."""

    point: Point
    done: Counter[str]  # by mode
    fault: str


def sweep_point(
    flow: str,
    point: Point,
    kills: Sequence[Kill],
    seed: int,
    servers: str,
    directory: Path,
    say: Callable[[str], None],
) -> Outcome:
    """All kills of one point in a scene of its own."""
    done: Counter[str] = Counter()
    name = re.sub(r"[^a-z]+", "-", point.name)

    def killed(kill: Kill) -> None:
        done[kill.mode] += 1
        say(f"{point.name}: {kill.mode}, kill {done[kill.mode]} (pass {kill.nth})")

    directory = directory / name
    directory.mkdir()
    with (directory / "scene.log").open("w") as out:
        scene = Scene(
            f"{name}-{secrets.token_hex(4)}", servers, directory, partial(print, file=out, flush=True)
        )
        try:
            scene.prepare()
            scene.seed(seed, events_per_s=EVENTS_PER_S)
            Sweep(scene, killed, World(directory) if flow == "effects" else None).run(kills)
        except AssertionError as error:
            scene.say(f"FAILED: {error}")
            return Outcome(point, done, f"{error}\nsee {directory}")
        finally:
            scene.close()
        scene.remove_topics()
    shutil.rmtree(directory)
    return Outcome(point, done, "")


def main() -> int:
    arguments = _arguments()
    flow, seed = arguments.flow, arguments.seed
    chosen, modes = points.chosen(arguments.points, flow), arguments.modes or MODES_OF[flow]
    console = Console(highlight=False)
    directory = Path(tempfile.mkdtemp(prefix="onceflow-sweep-", dir=arguments.keep))
    started_at = time.monotonic()
    numbers = itertools.count(1)
    total = len(plan(chosen, modes, arguments.kills, seed))
    console.print(f"seed {seed}, {total} kills, logs in {directory}")

    def say(line: str) -> None:
        console.print(f"{time.monotonic() - started_at:7.1f} s  {next(numbers):4}/{total}  {line}")

    outcomes = []
    broker = devkafka.start(directory / "kafka")
    try:
        with ThreadPoolExecutor(arguments.jobs) as jobs:
            running = [
                jobs.submit(
                    sweep_point,
                    flow,
                    point,
                    plan([point], modes, arguments.kills, seed + number),
                    seed + number,
                    broker.bootstrap_servers,
                    directory,
                    say,
                )
                for number, point in enumerate(chosen)
            ]
            try:
                for finished in as_completed(running):
                    outcome = finished.result()
                    outcomes.append(outcome)
                    console.print(f"[bold]{outcome.point.name}[/bold]: {outcome.fault or 'right'}")
            except KeyboardInterrupt:
                jobs.shutdown(wait=False, cancel_futures=True)
                console.print("interrupted; waiting for the scenes that run")
    finally:
        devkafka.stop(directory / "kafka")
        shutil.rmtree(directory / "kafka", ignore_errors=True)
    outcomes.sort(key=lambda outcome: list(POINTS).index(outcome.point.name))
    report(console, outcomes, modes, arguments.kills, time.monotonic() - started_at)
    complete = sum(sum(outcome.done.values()) for outcome in outcomes) == total
    return 0 if complete and not any(outcome.fault for outcome in outcomes) else 1


def report(
    console: Console, outcomes: Sequence[Outcome], modes: Sequence[str], kills: int, took_s: float
) -> None:
    """Points x modes with the kills done, the coverage, and what was lost or doubled."""
    table = Table("point", *modes, "output")
    for outcome in outcomes:
        table.add_row(
            outcome.point.name,
            *(str(outcome.done[mode]) if applies(outcome.point, mode) else "-" for mode in modes),
            "WRONG" if outcome.fault else "right",
        )
    console.print(table)
    covered = sum(
        all(outcome.done[mode] >= kills for mode in modes if applies(outcome.point, mode))
        for outcome in outcomes
    )
    console.print(
        f"coverage {covered}/{len(outcomes)} points x {kills} kills x {len(modes)} modes, {took_s:.0f} s"
    )
    faults = "\n".join(outcome.fault for outcome in outcomes)
    counts = {
        kind: sum(int(n) for n in re.findall(rf"^(\d+) x {kind}", faults, re.MULTILINE))
        for kind in ("lost", "twice")
    }
    console.print(
        f"lost {counts['lost']}, twice {counts['twice']}; scenes that failed: {sum(bool(o.fault) for o in outcomes)}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash.sweep", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--points", nargs="+", choices=POINTS, default=[], metavar="POINT", help="default: all that it passes"
    )
    parser.add_argument("--flow", choices=MODES_OF, default="echo", help="what runs; default: echo")
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        help=f"default: {', '.join(MODES_OF['echo'])}; of effects {', '.join(MODES_OF['effects'])}",
    )
    parser.add_argument("--kills", type=int, default=KILLS, help="of each point in each mode")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--jobs", type=int, default=2, help="scenes at the same time")
    parser.add_argument("--keep", metavar="DIR", help="where logs go; those of scenes that failed are kept")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
