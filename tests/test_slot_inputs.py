"""What slots read: a partition that is not there now keeps no other from being read."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from onceflow.config import Settings
from onceflow.stream.cluster import Cluster, KafkaAway, Topic
from onceflow.stream.content import Grant
from onceflow.stream.news import Added
from onceflow.stream.slot_inputs import SlotInputs

SLOTS = 4
GRANTS = [Grant(slot) for slot in range(SLOTS)]
NOTHING: dict[int, dict[Any, Any]] = {slot: {} for slot in range(SLOTS)}


class Partitions(Cluster):
    """Topics of one partition each, and the flow's inbox; those in `bad` answer with an error, by topic."""

    def __init__(self, *topics: str) -> None:
        self.servers = "kafka"
        self.names = ["f.inbox", *topics]
        self.bad: dict[str, int] = {}
        self._admin: Any = SimpleNamespace(list_offsets=self._list_offsets)

    def renew(self) -> None: ...

    def topic_names(self) -> dict[str, int]:
        return dict.fromkeys(self.names, 1)

    def topics(self, names: Any) -> dict[str, Topic]:
        return {name: Topic(name, f"id-{name}", SLOTS if name == "f.inbox" else 1) for name in names}

    def _list_offsets(self, wanted: Any, **_: Any) -> Any:
        return {at: SimpleNamespace(result=lambda _, at=at: self._offset(at.topic)) for at in wanted}

    def _offset(self, topic: str) -> Any:
        if (code := self.bad.get(topic)) is not None:
            raise KafkaException(KafkaError(code))
        return SimpleNamespace(offset=0)


def granted(cluster: Cluster) -> tuple[SlotInputs, set[str]]:
    """The inputs of all slots, and the topics that they read."""
    inputs = SlotInputs("f", SLOTS, cluster, Settings(), lambda _: None)
    inputs.inboxes(GRANTS, NOTHING)
    found = inputs.others(GRANTS, NOTHING)
    return inputs, {input.topic for each in found.values() for input in each}


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    ],
)
def test_a_partition_without_a_leader_is_left_out_of_a_grant_and_read_when_it_has_one(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Partitions("events.good", "events.bad")
    cluster.bad = {"events.bad": code}
    with caplog.at_level(logging.WARNING):
        inputs, read = granted(cluster)
        assert read == {"events.good"}
        cluster.names.append("events.new")
        assert [news.input.topic for news in inputs.look()] == ["events.new"]
        assert inputs.look() == []
    assert len(caplog.messages) == 1
    cluster.bad = {}
    (news,) = inputs.look()
    assert isinstance(news, Added)
    assert news.input.topic == "events.bad"
    assert inputs.look() == []


def test_an_inbox_without_a_leader_and_a_kafka_that_is_away_are_waited_for() -> None:
    cluster = Partitions("events.good")
    cluster.bad = {"f.inbox": KafkaError.LEADER_NOT_AVAILABLE}
    with pytest.raises(KafkaAway):
        granted(cluster)
    cluster.bad = {"events.good": KafkaError._NOENT}
    with pytest.raises(KafkaAway):
        granted(cluster)
