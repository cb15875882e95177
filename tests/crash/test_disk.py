"""Disks that damage, lose, bring back or refuse what a cell has written: at worst the view is built anew from Kafka."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewTopic, OffsetSpec

from tests.crash.cells import Cell
from tests.crash.checker import Event, home
from tests.crash.lag import lag
from tests.crash.scene import PARTITIONS, Scene
from tests.waiting import wait_until

pytestmark = pytest.mark.crash

FILES = {
    "table": "*.sst",
    "log": "*.log",
    "manifest": "MANIFEST-*",
    "current": "CURRENT",
    "options": "OPTIONS-*",
}


def damage(choose: random.Random, view: Path, pattern: str) -> str:
    """Cut one of these files, flip a few of its bits, or delete it; return what was done."""
    file = choose.choice([path for path in sorted(view.glob(pattern)) if path.stat().st_size])
    content = bytearray(file.read_bytes())
    at = choose.randrange(len(content))
    kind = choose.choice(("cut", "cut", "flipped", "flipped", "deleted"))
    if kind == "cut":
        file.write_bytes(content[:at])
    elif kind == "flipped":
        for place in (at, *(choose.randrange(len(content)) for _ in range(2))):
            content[place] ^= 1 << choose.randrange(8)
        file.write_bytes(content)
    else:
        file.unlink()
    return f"{file.name} ({len(content)} bytes) {kind} at {at}"


def send_again(scene: Scene, tenants_in: int = 0, of: int = 1) -> None:
    """Send a copy of every event so far whose home is one of these partitions, and wait until all are judged."""
    events = {sent.event for sent in scene.load.sent if sent.event is not None}
    copies = [event for event in sorted(events) if home(event.tenant, PARTITIONS) % of == tenants_in]
    for event in copies:
        scene.send(event)
    scene.load.flush()
    scene.say(f"{len(copies)} copies sent")
    scene.wait(lambda: lag(scene) == 0, "nothing is unfinished")


@pytest.mark.parametrize(
    "seed", [110, 111, *(pytest.param(n, marks=pytest.mark.soak) for n in range(112, 120))]
)
def test_a_damaged_view_is_built_anew_or_does_no_harm(scene: Scene, seed: int) -> None:
    """Each kind of file once, the cell killed or ended before; copies of all that was done stay duplicates."""
    scene.seed(seed, events_per_s=500)
    scene.load.start()
    cell = scene.cell("a").start()
    for files in scene.random.sample(list(FILES), len(FILES)):
        scene.wait(lambda: "slots granted" in cell.text(), "the cell works")
        scene.wait_for_output(scene.random.randint(200, 1_000))
        # Of a view that was closed, all is in tables; of one whose cell was killed, the newest is in the log.
        if files == "log" or scene.random.random() < 0.5:
            cell.kill()
        else:
            assert cell.end(signal.SIGTERM) == 0, f"{cell.log}\n{cell.text()[-2_000:]}"
        view = cell.state / "seen"
        # No table is written before the first end, and no log after it.
        if any(path.stat().st_size for path in view.glob(FILES[files])):
            scene.say(damage(scene.random, view, FILES[files]))
        cell.start()
    scene.wait_for_output(100)
    scene.settle()
    send_again(scene)
    reasons = [line["reason"] for line in logged(cell) if "kept_as" in line]
    scene.say(f"put aside: {reasons}; statuses {cell.statuses}")
    scene.finish()


def logged(cell: Cell) -> list[dict[str, str]]:
    """The log of all its processes."""
    lines = []
    for log in sorted(cell.directory.glob("*.log"), key=lambda path: int(path.stem)):
        cell.log = log
        lines += cell.lines()
    return lines


def test_last_month_s_view_goes_on_where_the_completions_begin_by_now(scene: Scene) -> None:
    """What lies between is beyond the window by then; here it is told apart by its partition."""
    scene.seed(121)
    tenants = [f"tenant-{n}" for n in range(100)]

    def send(numbers: range) -> None:
        for number in numbers:
            scene.send(Event(tenants[number % 100], "erp", f"old-{number}", b"%d" % number))
        scene.load.flush()

    cell = scene.cell("a").start()
    send(range(1_000))
    scene.wait(lambda: scene.outputs.more() == 1_000, "the first thousand are done")
    assert cell.end(signal.SIGTERM) == 0
    shutil.copytree(cell.state, scene.directory / "old")
    cell.start()
    send(range(1_000, 3_000))
    scene.wait(lambda: scene.outputs.more() == 3_000, "and two thousand more")
    assert cell.end(signal.SIGTERM) == 0

    topic = f"{scene.flow}.completions"
    even = {TopicPartition(topic, p): OffsetSpec.latest() for p in range(0, PARTITIONS, 2)}
    ends = {at: end.result(20).offset for at, end in scene.admin.list_offsets(even).items()}
    gone = [TopicPartition(at.topic, at.partition, end) for at, end in ends.items()]
    for deleted in scene.admin.delete_records(gone).values():
        deleted.result(20)
    shutil.rmtree(cell.state)
    shutil.copytree(scene.directory / "old", cell.state)
    scene.say("the completions of every other slot are gone; the state of before is back")
    cell.start()
    send(range(3_000, 4_000))
    send_again(scene, 1, of=2)
    scene.finish()


def test_a_view_of_completions_that_were_made_anew_is_not_believed(scene: Scene) -> None:
    """Its keys name completions that nobody can read any more, at offsets that are others' by now."""
    scene.seed(122)
    for n in range(1_000):
        scene.send(Event(f"tenant-{n % 50}", "erp", f"again-{n}", b"%d" % n))
    scene.load.flush()
    cell = scene.cell("a").start()
    scene.wait(lambda: lag(scene) == 0, "a thousand are done")
    assert cell.end(signal.SIGTERM) == 0

    topic = f"{scene.flow}.completions"
    scene.admin.delete_topics([topic])[topic].result(20)
    wait_until(lambda: topic not in scene.admin.list_topics(timeout=5).topics, 20, "the topic is gone")
    anew = NewTopic(topic, PARTITIONS, config={"message.timestamp.type": "LogAppendTime"})
    scene.admin.create_topics([anew])[topic].result(20)
    cell.start()
    send_again(scene)
    assert "belongs to another topic of the same name" in cell.text(), cell.log
    scene.finish()


# --- full ---


class SmallDisk:
    """A file system of 24 MB in memory, at /mnt in a mount namespace that ends with its holder.

    Who isn't root needs a user namespace too. `python` is an interpreter within; from without the files are `outside`.
    """

    inside = Path("/mnt")

    def __init__(self, directory: Path) -> None:
        spaces = ["--mount"] if os.geteuid() == 0 else ["--mount", "--user"]
        mapped = ["--map-root-user"] if "--user" in spaces else []
        hold = "mount -t tmpfs -o size=24m none /mnt && echo mounted && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", *spaces, *mapped, "sh", "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        said = self._holder.stdout.readline()
        assert said, "this system lets nobody but root mount (unshare --user), so a full disk cannot be tried"
        pid = self._holder.pid
        self.outside = Path(f"/proc/{pid}/root/mnt")
        self.python = directory / "python"
        kept = " --preserve-credentials" if mapped else ""
        enter = f'nsenter --target {pid} {" ".join(spaces)}{kept} --wd="$PWD"'
        self.python.write_text(f'#!/bin/sh\nexec {enter} "{sys.executable}" "$@"\n')
        self.python.chmod(0o755)

    def fill(self) -> Path:
        """Write a file that leaves nothing."""
        filler = self.outside / "filler"
        with filler.open("wb", buffering=0) as file:
            while (room := os.statvfs(self.outside)).f_bavail:
                file.write(bytes(room.f_bavail * room.f_bsize))
        return filler

    def close(self) -> None:
        self._holder.communicate()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path)
    yield disk
    disk.close()


@pytest.mark.parametrize("which", ["state", "recovery"])
def test_a_cell_whose_disk_is_full_stops_and_goes_on_when_there_is_room(
    scene: Scene, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """It ends with 3 and a line that names the disk, each time it is started; nothing is lost or done twice."""
    monkeypatch.setattr(sys, "executable", str(small_disk.python))  # which the cell is started with
    scene.seed(131, events_per_s=500)
    scene.load.start()
    cell = scene.cell("a")
    directory = small_disk.inside / which
    setattr(cell, which, directory)
    cell.start()
    scene.wait_for_output(1_000)
    filler = small_disk.fill()
    scene.say("the disk is full")
    scene.wait(lambda: len(cell.statuses) == 3, "it has ended, and could not start twice")
    silent = [log for log in cell.directory.glob("[12].log") if not tells(log, directory)]
    filler.unlink()
    scene.say("there is room again")
    if not cell.running():
        cell.start()
    scene.wait_for_output(100)
    scene.finish()
    assert set(cell.statuses[:-1]) == {3}, cell.statuses
    assert not silent, f"the reason is not in {silent}"


def tells(log: Path, directory: Path) -> bool:
    """Whether a line of the log says that this directory's disk is full."""
    lines = log.read_text(errors="replace").splitlines()
    return any(str(directory) in line and "is there room on its disk?" in line for line in lines)
