"""What a cell holds unfinished is bounded, and an input whose events end late leaves room for the others."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from onceflow.config import Limits
from onceflow.observe.telemetry import Metrics
from onceflow.stream.content import Committed, Done, Grant, Input
from onceflow.stream.metrics import count_paused
from onceflow.stream.room import Room

KIB = 1024


class World:
    """A cell's inputs, and what it may hold of them."""

    def __init__(self, *names: str, tenant: str = "", **limits: int) -> None:
        self.inputs = [Input(name, 3, Grant(3), topic_id=name, tenant=tenant) for name in names]
        self.waiting = 0  # events in their lane, of a tenant with a topic of its own
        by_partition = {(input.topic, input.partition): input for input in self.inputs}
        cell: Any = SimpleNamespace(inputs=by_partition, pause=self.pause, resume=self.resume)
        self.room = Room(cell, Limits(**limits), lambda _tenant: self.waiting)
        self.now = 0.0

    def pause(self, inputs: Iterable[Input]) -> None:
        for input in inputs:
            input.paused = True

    def resume(self, inputs: Iterable[Input]) -> None:
        for input in inputs:
            input.paused = False

    def read(self, input: Input, events: int, size: int = 100) -> None:
        """So many events of this size are read in one poll, from where the last one ended."""
        input.next_offset += events
        self.room.took(input, range(input.next_offset - events, input.next_offset))
        self.room.took_bytes(input, events * size)
        self.room.pause_heavy([input])

    def ended(self, input: Input, events: int, size: int = 100, lowest: int = 0) -> None:
        self.room.committed(Committed([], [], {input: Done(events, events * size, lowest)}, {}))
        self.room.settle()

    def look(self) -> None:
        """Some time later."""
        self.now += 1.0
        assert self.room.look(self.now)


# --- bytes ---


@pytest.fixture
def world() -> World:
    """A cell that holds 64 KiB of events, and has two inputs."""
    return World("large", "other", value_bytes=KIB, unfinished_bytes=64 * KIB, prefetch_bytes=1 << 20)


def test_an_input_with_more_than_its_share_is_paused_and_the_others_go_on(world: World) -> None:
    large, other = world.inputs
    world.read(large, 80, KIB)
    assert (large.paused, other.paused) == (True, False)
    assert world.room.left()
    world.read(other, 1)
    assert not other.paused


def test_a_few_bytes_pause_nobody(world: World) -> None:
    world.read(world.inputs[0], 30, KIB)
    world.look()
    assert not world.inputs[0].paused


def test_what_is_unfinished_stays_below_twice_the_limit(world: World) -> None:
    world.read(world.inputs[0], 130, KIB)
    assert not world.room.left()


def test_a_paused_input_goes_on_once_it_has_no_more_than_its_share(world: World) -> None:
    large, _ = world.inputs
    world.read(large, 80, KIB)
    world.look()
    assert large.paused
    world.ended(large, 75, KIB)
    world.look()
    assert not large.paused


# --- events ---


def test_many_inputs_whose_events_end_late_leave_room_for_one_more() -> None:
    """Each has as many as may wait in its lane; together they would fill the cell."""
    names = [f"late-{number}" for number in range(30)]
    world = World(*names, unfinished_per_cell=1_000, unfinished_per_input=100)
    for _ in range(9):
        for input in world.inputs:
            if not input.paused and world.room.left():
                world.read(input, 10)
        world.look()
        world.look()
    assert world.room.unfinished < 1_300
    assert world.room.left()


def test_an_input_that_is_not_read_is_counted_by_what_holds_it() -> None:
    world, metrics = World("own", tenant="acme"), Metrics()
    (own,) = world.inputs

    def counted() -> list[str]:
        world.look()
        count_paused(metrics, world.inputs)
        return [cause for cause, gauge in metrics.inputs_paused.items() if gauge._value.get()]

    assert counted() == []
    world.waiting = 10_000
    assert counted() == ["lane-full"]
    world.waiting = 0
    assert counted() == []
    own.unfinished = 10_000
    world.pause([own])
    assert counted() == ["unfinished"]
    own.blocked = "records were lost"
    assert counted() == ["records-lost"]


def test_an_event_that_ends_late_is_the_oldest_whatever_ends_beside_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, _ = world.inputs
    now = [100.0]
    monkeypatch.setattr("onceflow.stream.room.time.monotonic", lambda: now[0])
    for offset in range(50):
        world.read(large, 1)
        if offset:
            world.ended(large, 1, lowest=0)
        now[0] += 10
    assert world.room.oldest_age_s == 500
    world.ended(large, 1, lowest=50)
    assert world.room.oldest_age_s == 0
