"""Cells under random faults for as long as wanted: `python -m tests.crash.soak` (an hour).

Two cells, three at times, a load that goes on, and a Kafka of their own. The flow `echo` only reads; `effects` and
`mixed` change something outside, and what was done there is counted. A seed decides which fault comes next, whom it
hits and at which moment; now and then one comes on the heels of another. After every CHECK_EVERY faults the load
pauses, everything must come out, and all output is checked from the beginning, so that a failure is near its cause; at
the end once more. Each fault is a line with its time. A failure keeps logs, state and schedule, and names the place.
"""

import argparse
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from confluent_kafka import KafkaException

from onceflow import devkafka
from tests.conftest import PrivateKafka
from tests.crash import points
from tests.crash.cells import Cell
from tests.crash.checker import Event
from tests.crash.effects import World
from tests.crash.mixed import MixedWorld
from tests.crash.scene import Scene
from tests.waiting import wait_until

MINUTES = 60.0
EVENTS_PER_S = {"echo": 600, "effects": 200, "mixed": 100}  # by flow
WORLDS = {"effects": World, "mixed": MixedWorld}
PASSED = {
    "echo": points.ALL,
    "effects": (*points.ALL, *points.EFFECTS),
    "mixed": (*points.ALL, *points.EFFECTS, *points.WAITS),
}
CHECK_EVERY = 50  # faults
PATIENCE_S = 180.0  # for what must happen after several faults at once, Kafka's return among them
END_S = 90.0  # for the end that a cell was asked for: its grace, its last commit, a Kafka just started
TOPICS = 40  # new ones, at most
ENDS = {0, 3, -signal.SIGKILL}


class Soak:
    """A scene, its broker, and the faults; `counts` says how often each was done."""

    def __init__(
        self, scene: Scene, kafka: PrivateKafka, flow: str, seed: int, events_per_s: int | None = None
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._scene, self._kafka = scene, kafka
        self._world = world = WORLDS[flow](scene.directory) if flow in WORLDS else None
        self._rate = events_per_s or EVENTS_PER_S[flow]
        self._points = [point for point in PASSED[flow] if not point.needs]
        scene.seed(seed, self._rate)
        self._random = scene.random
        if world is None:
            self._cells = [scene.cell(name, CRASH_CALLS="1") for name in "abc"]
        else:
            world.gate.touch()
            scene.expect("orders", world.contents)
            self._cells = [world.cell(scene, name) for name in "abc"]
        self._copies = scene.directory / "copies"  # of state and recovery directories, from earlier
        self._note = scene.directory / "crash-points"
        self._note.touch()
        self._topics = 0

    def run(self, goes_on: Callable[[int], bool]) -> None:
        """Do faults while `goes_on` (told how many were done) says so; then see that all came out right."""
        scene = self._scene
        assert scene.load is not None
        scene.load.start()
        for cell in self._cells[:2]:
            cell.start()
        scene.wait_for_output(1)
        checked = 0
        while goes_on(self.counts.total()):
            self._one()
            if self.counts.total() >= checked + CHECK_EVERY:
                checked = self.counts.total()
                scene.check(PATIENCE_S)
                self._check_effects()
                scene.load_again(self._random.randrange(1 << 30), self._rate)
        scene.settle(PATIENCE_S)
        for cell in filter(Cell.running, self._cells):
            self._wait(lambda cell=cell: cell.owned() > 0, f"{cell.name} owns slots")
        scene.finish()
        self._check_effects()

    def _check_effects(self) -> None:
        if self._world is not None:
            assert self._scene.load is not None
            self._world.check(self._scene.load.sent)

    def _one(self) -> None:
        """One fault; then, mostly, a moment of peace."""
        name = self._random.choices(list(FAULTS), [weight for weight, _ in FAULTS.values()])[0]
        if not FAULTS[name][1](self):
            return
        self.counts[name] += 1
        self._scene.say(f"fault {self.counts.total()}: {name}")
        peace = self._random.random()
        if peace < 0.5:
            goal = self._scene.outputs.more() + self._random.randint(1, 1_500)
            self._wait(lambda: self._scene.outputs.more() >= goal, "more came out")
        elif peace < 0.8:
            self._scene.wait_for_sent(self._random.randint(1, 1_500))

    # --- the faults; False: there was no occasion ---

    def _kill(self) -> bool:
        cell = self._running()
        self._kill_it(cell)
        cell.start()
        return True

    def _kill_at_a_point(self) -> bool:
        cell = self._running()
        self._kill_it(cell)
        point = self._random.choice(self._points)
        cell.doom = points.environment(point, self._random.randint(1, point.passes), self._note)
        deaths = cell.statuses.count(-signal.SIGKILL)
        cell.start()
        self._wait(
            lambda: cell.statuses.count(-signal.SIGKILL) > deaths,
            f"{cell.name} dies: {cell.doom['CRASH_AT']}",
        )
        cell.doom = {}
        cell.start()
        return True

    def _terminate(self) -> bool:
        cell = self._running()
        self._terminate_it(cell)
        cell.start()
        return True

    def _freeze_shortly(self) -> bool:
        cell = self._running()
        cell.send(signal.SIGSTOP)
        self._scene.wait_for_sent(self._random.randint(1, 2 * self._rate))
        cell.send(signal.SIGCONT)
        return True

    def _freeze_for_long(self) -> bool:
        """Past its session: the group lists it no more."""
        cell = self._running()
        self._wait(lambda: bool(cell.identity), f"{cell.name} has an identity")
        cell.send(signal.SIGSTOP)
        self._wait(lambda: not self._is_member(cell), f"{cell.name} is no member any more")
        self._scene.wait_for_sent(self._random.randint(1, self._rate))
        cell.send(signal.SIGCONT)
        return True

    def _lose_recovery(self) -> bool:
        cell = self._running()
        self._kill_it(cell)
        cell.lose_recovery()
        cell.start()
        return True

    def _lose_state(self) -> bool:
        cell = self._running()
        self._kill_it(cell)
        cell.lose_state()
        cell.start()
        return True

    def _bring_back_stale_state(self) -> bool:
        """Both directories as they were some faults ago; the first time, and now and then, copy them for later."""
        cell = self._running()
        self._kill_it(cell)
        copy, now = self._copies / cell.name, self._copies / "now"
        shutil.rmtree(now, ignore_errors=True)
        for directory in (cell.state, cell.recovery):
            if directory.exists():
                shutil.copytree(directory, now / directory.name)
        is_there = copy.exists()
        if is_there:
            cell.lose_state()
            shutil.copytree(copy, cell.directory, dirs_exist_ok=True)
        if now.exists() and (not is_there or self._random.random() < 0.5):
            shutil.rmtree(copy, ignore_errors=True)
            now.rename(copy)
        cell.start()
        return is_there

    def _flip_a_bit(self) -> bool:
        """In a table of a view, while its cell is down."""
        cell = self._running()
        self._kill_it(cell)
        tables = sorted([*(cell.state / "seen").glob("*.sst"), *(cell.state / "ledger").glob("*.sst")])
        if tables:
            table = self._random.choice(tables)
            contents = bytearray(table.read_bytes())
            bit = self._random.randrange(8 * len(contents))
            contents[bit // 8] ^= 1 << bit % 8
            table.write_bytes(contents)
            self._scene.say(f"bit {bit} of {table}, {len(contents)} bytes, is flipped")
        cell.start()
        return bool(tables)

    def _join_or_leave(self) -> bool:
        """The third cell comes, or goes for a while: asked to or killed."""
        third = self._cells[2]
        if not third.running():
            third.start()
        elif self._random.random() < 0.5:
            self._terminate_it(third)
        else:
            self._kill_it(third)
        return True

    def _stop_kafka(self) -> bool:
        self._kafka.stop()
        self._kafka.start()
        return True

    def _kill_kafka(self) -> bool:
        self._kafka.send(signal.SIGKILL)
        wait_until(lambda: devkafka.status(self._kafka.directory) is None, 20, "Kafka is gone")
        self._kafka.start()
        return True

    def _add_a_topic(self) -> bool:
        """A tenant that has a topic of its own from now on, with events in it and copies of them."""
        if self._topics == TOPICS:
            return False
        self._topics += 1
        tenant = f"new-{self._topics}"
        self._scene.topic(self._scene.own_prefix + tenant, 1)
        for number in [*range(20), *range(10)]:
            event = Event(tenant, "erp", f"own-{number}", b'{"own":%d}' % number)
            self._scene.send(event, topic=self._scene.own_prefix + tenant)
        return True

    # --- within ---

    def _running(self) -> Cell:
        return self._random.choice([cell for cell in self._cells if cell.running()])

    def _is_member(self, cell: Cell) -> bool:
        try:
            return cell.identity in self._scene.members()
        except KafkaException:
            return True  # a Kafka that was just started does not know its groups yet: asked again

    def _kill_it(self, cell: Cell) -> None:
        status = cell.end(signal.SIGKILL)
        assert status in ENDS - {0}, f"{cell.name} had ended with {status}: {cell.log}"
        self._scene.say(f"{cell.name}: kill -9, status {status} ({cell.log.name})")

    def _terminate_it(self, cell: Cell) -> None:
        self._wait(lambda: "cell started" in cell.text(), f"{cell.name} has started")
        status = cell.end(signal.SIGTERM, END_S)
        assert status in {0, 3}, f"{cell.name} ended with {status} when asked to: {cell.log}"
        self._scene.say(f"{cell.name}: SIGTERM, status {status} ({cell.log.name})")

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        self._scene.wait(condition, what, PATIENCE_S)


FAULTS: dict[str, tuple[int, Callable[[Soak], bool]]] = {  # how often, relative to the others
    "kill -9": (6, Soak._kill),
    "kill at a crash point": (6, Soak._kill_at_a_point),
    "SIGTERM": (4, Soak._terminate),
    "SIGSTOP, short": (3, Soak._freeze_shortly),
    "SIGSTOP, past the session": (2, Soak._freeze_for_long),
    "recovery lost": (3, Soak._lose_recovery),
    "state lost": (3, Soak._lose_state),
    "stale state": (3, Soak._bring_back_stale_state),
    "bit flipped": (3, Soak._flip_a_bit),
    "third cell joins or leaves": (4, Soak._join_or_leave),
    "Kafka stopped": (1, Soak._stop_kafka),
    "Kafka killed": (1, Soak._kill_kafka),
    "new topic": (2, Soak._add_a_topic),
}


def main() -> int:
    arguments = _arguments()
    directory = Path(tempfile.mkdtemp(prefix="onceflow-soak-", dir=arguments.keep))
    kafka = PrivateKafka(directory / "kafka")
    until = time.monotonic() + 60 * arguments.minutes
    with (directory / "schedule").open("w") as schedule:

        def write(line: str) -> None:
            print(line, flush=True)
            print(line, file=schedule, flush=True)

        what = f"flow {arguments.flow}, seed {arguments.seed}"
        write(f"{what}, {arguments.minutes:g} minutes, {directory}")
        scene = Scene(f"soak-{secrets.token_hex(4)}", kafka.start(), directory, write)
        soak = None
        try:
            scene.prepare()
            soak = Soak(scene, kafka, arguments.flow, arguments.seed, arguments.events_per_s)
            soak.run(
                lambda done: (
                    time.monotonic() < until and (arguments.faults is None or done < arguments.faults)
                )
            )
        except AssertionError as error:
            write(
                f"FAILED: {error}\nflow {arguments.flow}, seed {arguments.seed}; schedule, logs and state: {directory}"
            )
            return 1
        finally:
            if soak is not None:
                for name in FAULTS:
                    write(f"{soak.counts[name]:5} x {name}")
                write(
                    f"{soak.counts.total():5} faults, and {scene.client_aborts} cells that librdkafka aborted"
                )
            scene.close()
            kafka.stop()
        write("lost 0, twice 0, wrong 0")
    if arguments.keep is None:
        shutil.rmtree(directory)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash.soak", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--flow", choices=EVENTS_PER_S, default="echo", help="what runs; default: echo")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--faults", type=int, help="end after so many")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--events-per-s", type=int, help=f"default: {EVENTS_PER_S}")
    parser.add_argument("--keep", metavar="DIR", help="keep logs and state there, whatever comes out")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
