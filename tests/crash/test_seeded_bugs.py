"""The checker is tested: each seeded bug, put into a real cell, does its harm, and the checker says so.

Each scene is also played without a bug, and then nothing is wrong: so it is the bug that is seen, not the scene. In a
scene "done" is said by a marker, an event sent last: what came before it in its partition has come out, or never will.
"""

import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from confluent_kafka import Message, Producer

from tests.crash.bugs import BUGS, MOMENTS, Seeded
from tests.crash.cells import Cell
from tests.crash.checker import Event, Sent, echoes, faults, home
from tests.crash.load import TYPE, encode
from tests.crash.scene import PARTITIONS, Scene
from tests.crash.test_steps import epoch

TENANT = "tenant-1"
HOME = home(TENANT, PARTITIONS)
AWAY = (HOME + 1) % PARTITIONS
SHORT_WINDOW = {"ONCEFLOW_DEDUP__WINDOW": "0.001"}  # over when its completion can be read


class Stage:
    """A scene in which every record counts: what is sent is sent one by one, by hand."""

    def __init__(self, scene: Scene, bug: str) -> None:
        self.scene, self.bug = scene, bug
        self.note, self.gate = scene.directory / "note", scene.directory / "gate"
        self.sent: list[Sent] = []
        # What is sent without waiting travels with the next one, and so is read in one poll.
        self._producer = Producer({
            "bootstrap.servers": scene.bootstrap_servers, "linger.ms": 100, "log_level": 0,
        })  # fmt: skip
        self._markers = 0
        scene.say(f"bug {bug or 'none'}; logs in {scene.directory}")

    def cell(self, name: str = "a", moment: str = "", **environment: str) -> Cell:
        """A cell with the bug, started."""
        cell = self.scene.cell(
            name,
            "tests.crash.buggy_flow",
            CRASH_BUG=self.bug,
            CRASH_MOMENT=moment,
            CRASH_NOTE=str(self.note),
            CRASH_GATE=str(self.gate),
            CRASH_VERSION="1",
            **environment,
        )
        return cell.start()

    def send(
        self, event: Event, partition: int = HOME, *, kind: str = TYPE, time_ms: int = 0, wait: bool = True
    ) -> Event:
        """Send an event; one of another `kind` than the agent's can only be a dead letter."""
        value = encode(event, kind)

        def delivered(error: object, message: Message) -> None:
            assert error is None, error
            origin = f"{message.topic()}/{message.partition()}/{message.offset()}"
            usable = kind == TYPE
            self.sent.append(Sent(origin, value, event if usable else None, "" if usable else "unknown-type"))

        self._producer.produce(
            self.scene.shared, value, event.tenant, partition, on_delivery=delivered, timestamp=time_ms
        )
        if wait:
            assert self._producer.flush(20) == 0
        return event

    def event(self, id: str, data: bytes = b"{}") -> Event:
        return Event(TENANT, "erp", id, data)

    def wait_for(self, event: Event) -> None:
        """Wait until it has come out."""
        self.scene.wait(lambda: self._has_come_out(event), f"{event.id} has come out")

    def settle(self, partition: int = HOME) -> None:
        """Wait until all that was sent to this partition has come out, as far as it ever will."""
        self._markers += 1
        self.wait_for(self.send(self.event(f"marker-{self._markers}"), partition))

    def wait_for_moment(self) -> None:
        self.scene.wait(self.note.exists, "the moment has come")

    def wrong(self, contents: Callable[[Event, Any], str] = echoes) -> list[str]:
        """End the cells, read all that came out: what the checker says of it."""
        for cell in self.scene.cells:
            if cell.running():
                self.scene.say(f"{cell.name}: SIGTERM, status {cell.end(signal.SIGTERM)}")
        self.scene.wait(self.scene.outputs.at_end, "all output is read, no transaction is open")
        flow, found = self.scene.flow, self.scene.outputs.found
        wrong = faults(
            self.sent,
            found[f"{flow}.completions"],
            found[f"{flow}.dead-letters"],
            flow=flow,
            agent="echo",
            slots=PARTITIONS,
            contents=contents,
        )
        self.scene.say(f"faults: {wrong}")
        return wrong

    def _has_come_out(self, event: Event) -> bool:
        self.scene.outputs.more()
        cause = f'"causeid":"{event.id}"'.encode()
        return any(
            cause in (o.value or b"") for o in self.scene.outputs.found[f"{self.scene.flow}.completions"]
        )


# --- scenes ---


def killed_when_finished(stage: Stage) -> list[str]:
    """An event is committed, and the cell killed before it knows."""
    stage.send(stage.event("first"))
    cell = stage.cell(moment="dies_when_finished")
    assert cell.end() == -signal.SIGKILL, cell.text()
    cell.start()
    stage.settle()
    return stage.wrong()


def killed_when_forwarded(stage: Stage) -> list[str]:
    """The same with two records that a wrong partitioner has sent elsewhere; one of them nobody can use."""
    stage.send(stage.event("unknown"), AWAY, kind="nobody.asked", wait=False)
    stage.send(stage.event("first"), AWAY)
    cell = stage.cell(moment="dies_when_finished")
    assert cell.end() == -signal.SIGKILL, cell.text()
    cell.start()
    stage.settle(AWAY)
    return stage.wrong()


def killed_in_a_call(stage: Stage) -> list[str]:
    """One event waits in a call, a later one completes; then kill -9."""
    cell = stage.cell()
    stage.send(stage.event("held", b'{"held":true}'))
    stage.settle()
    cell.kill()
    stage.gate.touch()
    cell.start()
    stage.settle()
    return stage.wrong()


def killed_when_written(stage: Stage) -> list[str]:
    """The cell is killed after its first write to the view; the event is sent again."""
    first = stage.send(stage.event("first"))
    cell = stage.cell(moment="dies_when_written")
    assert cell.end() == -signal.SIGKILL, cell.text()
    stage.send(first)
    cell.start()
    stage.settle()
    return stage.wrong()


def view_behind(stage: Stage) -> list[str]:
    """The cell is killed after a commit, before the view knows of it; the event is sent again."""
    first = stage.send(stage.event("first"))
    cell = stage.cell(moment="dies_when_finished")
    assert cell.end() == -signal.SIGKILL, cell.text()
    stage.send(first)
    cell.start()
    stage.settle()
    return stage.wrong()


def frozen_before_a_transaction(stage: Stage) -> list[str]:
    """A cell with a decision in hand is frozen; another takes its slots and does the event; the first wakes up."""
    return _frozen(stage, "freezes_before_a_transaction")


def frozen_after_offsets(stage: Stage) -> list[str]:
    """The same, in the middle of a transaction."""
    return _frozen(stage, "freezes_after_offsets")


def _frozen(stage: Stage, moment: str) -> list[str]:
    scene = stage.scene
    first = stage.send(stage.event("first"))
    zombie = stage.cell("a", moment)
    stage.wait_for_moment()
    other = stage.cell("b", moment)
    scene.wait(lambda: other.identity, "b has an identity")
    scene.wait_for_members({other.identity: True})
    stage.wait_for(first)
    zombie.send(signal.SIGCONT)
    scene.say("a: SIGCONT")
    scene.wait_for_members({zombie.identity: True, other.identity: True})
    stage.settle()
    return stage.wrong()


def session_lost(stage: Stage) -> list[str]:
    """A cell frozen for longer than its session loses its slots, wakes up and gets them back; a copy comes."""
    scene = stage.scene
    cell = stage.cell()
    first = stage.send(stage.event("first"))
    stage.settle()
    cell.send(signal.SIGSTOP)
    scene.wait(lambda: not scene.members(), "its session is over")
    cell.send(signal.SIGCONT)
    scene.wait_for_members({cell.identity: True})
    stage.send(first)
    stage.settle()
    return stage.wrong()


def copies_that_lay_unread(stage: Stage) -> list[str]:
    """Copies sent before the completion are read when the window has passed, one at home and one elsewhere."""
    stage.cell(**SHORT_WINDOW)
    sent_ms = time.time_ns() // 1_000_000
    first = stage.send(stage.event("first"), time_ms=sent_ms)
    stage.settle()
    stage.send(first, time_ms=sent_ms)
    stage.send(first, AWAY, time_ms=sent_ms)
    stage.settle()
    stage.settle(AWAY)
    return stage.wrong()


def another_version(stage: Stage) -> list[str]:
    """A run's first call is in its journal when the cell is killed; the next start has a newer agent."""
    scene = stage.scene
    cell = stage.cell()
    asks = stage.send(stage.event("asks", b'{"asks":true,"held":true}'))
    stage.settle()
    reached = epoch(cell)
    scene.wait(lambda: epoch(cell) >= reached + 2, "the journal is on disk")
    cell.kill()
    stage.gate.touch()
    cell.start(CRASH_VERSION="2")
    stage.wait_for(asks)

    def contents(event: Event, data: object) -> str:
        if event != asks:
            return echoes(event, data)
        return "" if data == {"told": 2} else f"{data} is not what version 2 was told"

    return stage.wrong(contents)


def alike_when_joined(stage: Stage) -> list[str]:
    """Two events whose source and id, written one after the other, are the same."""
    stage.cell()
    stage.send(Event(TENANT, "erp/a", "b-1", b"{}"))
    stage.send(Event(TENANT, "erp/ab", "-1", b"{}"))
    stage.settle()
    return stage.wrong()


# --- which bug does which harm in which scene ---


class Case(NamedTuple):
    """The scene in which a bug does its harm, and what the checker must say of it, and nothing else."""

    play: Callable[[Stage], list[str]]
    kinds: tuple[str, ...]


CASES = {
    "commit_before_finish": Case(killed_when_finished, ("lost: no completion",)),
    "progress_of_the_last_read": Case(killed_in_a_call, ("lost: no completion",)),
    "view_when_seen": Case(killed_in_a_call, ("lost: no completion",)),
    "position_before_keys": Case(killed_when_written, ("twice: completions",)),
    "no_catch_up": Case(view_behind, ("twice: completions",)),
    "forward_without_finish": Case(killed_when_forwarded, ("twice: dead letters",)),
    "finish_without_forward": Case(killed_when_forwarded, ("lost: no completion", "lost: no dead letter")),
    "no_offsets": Case(frozen_before_a_transaction, ("twice: completions",)),
    "offsets_before_flush": Case(frozen_after_offsets, ("twice: completions",)),
    "content_of_lost_grants": Case(frozen_before_a_transaction, ("twice: completions",)),
    "position_kept": Case(session_lost, ("twice: completions",)),
    "time_of_forwarding": Case(copies_that_lay_unread, ("twice: completions",)),
    "view_of_the_window_alone": Case(copies_that_lay_unread, ("twice: completions",)),
    "stale_journal": Case(another_version, ("wrong completion",)),
    "completion_outside_the_transaction": Case(frozen_before_a_transaction, ("twice: completions",)),
    "key_without_lengths": Case(alike_when_joined, ("foreign completion", "lost: no completion")),
}
HARMLESS = {"keys_before_position": killed_when_written}
SCENES = {case.play.__name__: case.play for case in CASES.values()}


@pytest.mark.crash
@pytest.mark.parametrize("bug", CASES)
def test_the_checker_sees_what_the_bug_does(scene: Scene, bug: str) -> None:
    play, kinds = CASES[bug]
    wrong = play(Stage(scene, bug))
    seen = {kind for kind in kinds if any(f" x {kind}: " in line for line in wrong)}
    assert seen == set(kinds), f"{kinds} expected, not {wrong}: {scene.directory}"
    assert len(wrong) == len(kinds), f"{kinds} expected alone, not {wrong}: {scene.directory}"


@pytest.mark.crash
@pytest.mark.parametrize("play", SCENES.values(), ids=SCENES)
def test_the_same_scene_without_a_bug_is_right(scene: Scene, play: Callable[[Stage], list[str]]) -> None:
    assert play(Stage(scene, "")) == [], scene.directory


@pytest.mark.crash
@pytest.mark.parametrize("bug", HARMLESS)
def test_this_mistake_does_no_harm(scene: Scene, bug: str) -> None:
    """Its docstring says why; it is here because its mirror image does harm."""
    assert HARMLESS[bug](Stage(scene, bug)) == [], scene.directory


@pytest.mark.parametrize("seeded", [*BUGS.values(), *MOMENTS.values()], ids=lambda seeded: seeded.name)
def test_every_bug_fits_the_product(seeded: Seeded) -> None:
    """Its place is there and takes these parameters; found here in no time, without a cell."""
    seeded.replacement()


def test_every_bug_has_its_scene() -> None:
    assert BUGS.keys() == CASES.keys() | HARMLESS.keys()


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("onceflow.stream.outbox:Outbox.poled", "is gone"),
        ("onceflow.stream.outbox:Outbux.polled", "is gone"),
        ("onceflow.stream.outbox:Outbox.put", "takes"),
    ],
)
def test_a_bug_whose_place_has_changed_says_so(place: str, what: str) -> None:
    with pytest.raises(
        LookupError, match=f"Outb.x.p.*{what}.*mend content_of_lost_grants in tests.crash.bugs"
    ):
        BUGS["content_of_lost_grants"]._replace(place=place).replacement()
