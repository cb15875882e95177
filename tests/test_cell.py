"""A cell's inputs: what the consumer has of them. What it does in a group is shown in tests/crash."""

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from onceflow.config import Settings
from onceflow.errors import Fault
from onceflow.stream import cell as module
from onceflow.stream.cell import Cell, record_error
from onceflow.stream.content import Grant, Input, Reads

SLOT = 3
AT = ("events.acme", 0)


class FakeConsumer:
    """Refuses what librdkafka refuses: to assign what is assigned, to take off what is not."""

    def __init__(self, _properties: Any, logger: Any) -> None:
        self.assigned: dict[tuple[str, int], int] = {}
        self.paused: set[tuple[str, int]] = set()
        self.hooks: dict[str, Callable[..., None]] = {}

    def subscribe(self, _topics: list[str], **hooks: Callable[..., None]) -> None:
        self.hooks = hooks

    def memberid(self) -> str:
        return "member"

    def consumer_group_metadata(self) -> str:
        return "metadata"

    def seek(self, _partition: TopicPartition) -> None: ...

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            if (each.topic, each.partition) in self.assigned:
                raise KafkaException(KafkaError(KafkaError._CONFLICT))
            self.assigned[each.topic, each.partition] = each.offset

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            if self.assigned.pop((each.topic, each.partition), None) is None:
                raise KafkaException(KafkaError(KafkaError._INVALID_ARG))

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.paused |= {(each.topic, each.partition) for each in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self.paused -= {(each.topic, each.partition) for each in partitions}


class World:
    """A cell with one slot, whose consumer is a fake."""

    def __init__(self) -> None:
        self.lost: list[Input] = []
        self.cell = Cell(
            "flow",
            "cell",
            Settings(),
            granted=lambda _: None,
            revoking=lambda _pair, _leaving: None,
            lost=lambda _grants, inputs: self.lost.extend(inputs),
        )
        self.consumer: Any = self.cell._consumer
        self._group = [TopicPartition("flow.inbox", SLOT)]
        self.consumer.hooks["on_assign"](self.consumer, self._group)
        self.grant = self.cell.grants[SLOT]
        self.inbox = Input("flow.inbox", SLOT, self.grant, topic_id="inbox", is_inbox=True)
        assert self.cell.read([self.inbox])

    def input(self, *, blocked: str = "", topic_id: str = "old") -> Input:
        input = Input(*AT, self.grant, topic_id=topic_id, tenant="acme")
        input.next_offset, input.blocked = 5, blocked
        assert self.cell.read([input])
        return input

    def revoke(self) -> None:
        self.consumer.hooks["on_revoke"](self.consumer, self._group)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(module, "Consumer", FakeConsumer)
    return World()


def test_an_input_is_read_from_its_next_offset(world: World) -> None:
    world.input()
    assert world.consumer.assigned[AT] == 5
    assert not world.consumer.paused


def test_an_input_with_lost_records_is_reported_and_not_read(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Whenever it is found: at the grant or later."""
    input = world.input(blocked="records are lost")
    assert AT not in world.consumer.assigned
    assert world.cell.inputs[AT] is input
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert (line.__dict__["topic"], line.__dict__["cause"]) == ("events.acme", "records are lost")


def test_a_blocked_topic_that_is_made_anew_is_read(world: World) -> None:
    """It ended the cell: what was blocked while it was read was never taken from the consumer."""
    old = world.input()
    world.cell.block(old, "its offset is no longer there")
    world.cell.drop(old)
    new = world.input(topic_id="new")
    assert world.cell.inputs[AT] is new
    assert (world.consumer.assigned[AT], world.consumer.paused) == (5, set())


@pytest.mark.parametrize("read_before", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_a_blocked_input_goes_on(world: World, read_before: bool, full: bool) -> None:
    """Also when the cell was full meanwhile, and paused all it had: an input that it never had is not taken off."""
    input = world.input(blocked="" if read_before else "records are lost")
    if read_before:
        world.cell.block(input, "records are lost")
    if full:
        world.cell.pause(world.cell.inputs.values())
    world.cell.unblock(input, 9)
    assert world.consumer.assigned[AT] == 9
    assert AT not in world.consumer.paused


@pytest.mark.parametrize("blocked", ["", "when granted", "while read"])
def test_of_a_slot_that_goes_nothing_is_left(world: World, blocked: str) -> None:
    input = world.input(blocked="records are lost" if blocked == "when granted" else "")
    if blocked == "while read":
        world.cell.block(input, "records are lost")
    world.revoke()
    assert not world.consumer.assigned
    assert {*world.lost} == {world.inbox, input}


def test_of_a_slot_that_goes_an_input_that_is_gone_is_told_with_the_others(world: World) -> None:
    """Its events under way are on the books."""
    input = world.input()
    world.cell.drop(input)
    world.revoke()
    assert {*world.lost} == {world.inbox, input}


def test_an_input_that_is_back_goes_on_where_it_was(world: World) -> None:
    input = world.input()
    world.cell.pause([input])
    input.next_offset, input.unfinished = 8, 1
    world.cell.drop(input)
    assert AT not in world.consumer.assigned
    assert not world.cell.outlived(input)
    assert world.cell.outlived(Input(*AT, world.grant, topic_id="new"))
    assert world.cell.read([input])
    assert (world.consumer.assigned[AT], world.consumer.paused) == (8, set())
    assert not input.gone


def test_what_the_consumer_refuses_is_settled_by_a_restart(world: World) -> None:
    world.input()
    with pytest.raises(Fault, match="an input cannot be read"):
        world.cell.read([Input(*AT, Grant(SLOT), topic_id="another")])


def unreadable(offset: int) -> Any:
    """What the client says of records compressed together, of which the first has this offset."""
    error = KafkaError(KafkaError._BAD_COMPRESSION, "no", False)
    return Message(topic=AT[0], partition=AT[1], offset=offset, error=error)


def test_records_that_the_client_cannot_read_block_their_input_and_are_reported(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    input = world.input()
    assert record_error(world.cell, unreadable(7)) == Reads(input, [], 5, 7)
    assert "the record at offset 7 cannot be read (no)" in input.blocked
    assert AT in world.consumer.paused
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert record_error(world.cell, unreadable(7)) is None
    assert len(caplog.records) == 1


def test_those_that_were_compressed_with_a_record_whose_loss_was_accepted_are_passed_one_by_one(
    world: World,
) -> None:
    """Nobody says where they end. Others behind them block the input again."""
    input = world.input()
    record_error(world.cell, unreadable(7))
    world.cell.unblock(input, 8)
    for passed in (9, 10):
        assert record_error(world.cell, unreadable(7)) == Reads(input, [], passed)
        assert (input.blocked, world.consumer.assigned[AT]) == ("", passed)
    input.next_offset = 12
    assert record_error(world.cell, unreadable(13)) == Reads(input, [], 12, 13)
    assert input.blocked


def test_records_among_which_reading_begins_are_not_passed_before_their_loss_is_accepted(
    world: World,
) -> None:
    """An owner of the slot before this one may have been able to read those below."""
    input = world.input()
    assert record_error(world.cell, unreadable(3)) == Reads(input, [], 5, 5)
    assert "offset 5" in input.blocked


def refused(code: int, topic: str = AT[0], partition: int = AT[1]) -> Any:
    return Message(topic=topic, partition=partition, error=KafkaError(code, "no", False))


def test_a_topic_that_may_not_be_read_is_reported_and_asked_for_again_and_ends_nobody(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    input = world.input()
    assert record_error(world.cell, refused(KafkaError.TOPIC_AUTHORIZATION_FAILED)) is None
    assert [(line.levelname, line.topic) for line in caplog.records] == [("ERROR", AT[0])]  # type: ignore[attr-defined]
    assert not input.blocked
    assert AT not in world.consumer.paused


@pytest.mark.parametrize(
    "said",
    [
        refused(KafkaError.GROUP_AUTHORIZATION_FAILED),
        refused(KafkaError.TOPIC_AUTHORIZATION_FAILED, "flow.inbox", SLOT),
        refused(KafkaError.TOPIC_AUTHORIZATION_FAILED, "another"),
    ],
)
def test_without_its_group_or_its_inbox_a_cell_ends(world: World, said: Any) -> None:
    world.input()
    with pytest.raises(Fault, match="Kafka refuses access"):
        record_error(world.cell, said)
