"""How a flow's topics are made, and what is left as somebody has set it."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import ConfigResource

from onceflow.config import Settings
from onceflow.stream.cluster import Cluster, Partition, Topic
from onceflow.stream.progress import FORMAT, Progress
from onceflow.stream.topics import Names, prepare, start_from

DAY_MS = 86_400_000
NAMES = Names.of("f")


class Topics(Cluster):
    """Topics in memory, with their settings; None: this client may not see them."""

    def __init__(self, **retention_days: int) -> None:
        self.found: dict[str, dict[str, str] | None] = {
            topic.replace("_", "."): {"retention.ms": str(days * DAY_MS)}
            for topic, days in {"events": 1, "signals": 1, **retention_days}.items()
        }
        self._admin: Any = SimpleNamespace(describe_configs=self._describe_configs)

    def topic_names(self) -> dict[str, int]:
        return dict.fromkeys(self.found, 8)

    def create(self, topic: str, _partitions: int, settings: Mapping[str, str], _: int | None) -> None:
        self.found[topic] = dict(settings)

    def change_settings(self, topic: str, settings: Mapping[str, str]) -> None:
        self.found[topic] = {**(self.found[topic] or {}), **settings}

    def _describe_configs(self, resources: list[ConfigResource], **_: Any) -> Any:
        return {
            each: SimpleNamespace(result=lambda _, of=each.name: self._described(of)) for each in resources
        }

    def _described(self, topic: str) -> Any:
        settings = self.found[topic]
        if settings is None:
            raise KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
        return {name: SimpleNamespace(value=value) for name, value in settings.items()}

    def members(self, _group: str) -> dict[str, set[int]]:
        return {}

    def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        return {name: Topic(name, f"{name}, made anew", 8) for name in names}

    def end_offsets(self, partitions: Iterable[Partition], *, stable: bool = False) -> dict[Partition, int]:
        return dict.fromkeys(partitions, 7)

    def retention_days(self, topic: str) -> float:
        return int((self.found[topic] or {})["retention.ms"]) / DAY_MS


def test_completions_are_kept_as_long_as_a_copy_may_lie_unread_in_any_input() -> None:
    topics = Topics(**{f"events_tenant{n}": 2 for n in range(1_100)}, events_last=20)
    prepare("f", topics, Settings())
    assert topics.retention_days(NAMES.completions) == 3 + 20 + 1


@pytest.mark.parametrize(
    "settings", [None, {"retention.ms": "-1"}, {"cleanup.policy": "compact", "retention.ms": "60000"}]
)
def test_an_input_that_keeps_records_for_good_or_does_not_say_counts_for_thirty_days(
    settings: dict[str, str] | None,
) -> None:
    topics = Topics()
    topics.found["events.acme"] = settings
    prepare("f", topics, Settings())
    assert topics.retention_days(NAMES.completions) == 3 + 30 + 1


def test_from_latest_is_for_topics_that_were_made_anew_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What F.progress says is of the topic that had the name before."""
    monkeypatch.setattr("onceflow.stream.topics.send", lambda *_: None)
    topics = Topics()
    prepare("f", topics, Settings())
    ids = {0: "events, made anew", 1: "events"}
    known = {("events", p): Progress(FORMAT, "cell", id, 3) for p, id in ids.items()}
    done = start_from("f", topics, Settings(), "latest", known)
    assert [line for line in done if line.startswith("events/")] == [
        f"events/{partition} starts at 7" for partition in range(1, 8)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_times_in_a_flow_s_topics_are_kafka_s(name: str) -> None:
    """Kafka refuses what a machine whose clock is an hour ahead says of its records, and with it the transaction."""
    topics = Topics()
    prepare("f", topics, Settings())
    topics.change_settings(name, {"message.timestamp.type": "CreateTime"})
    assert prepare("f", topics, Settings()) == [f"set message.timestamp.type=LogAppendTime on {name}"]


@pytest.mark.parametrize("topic", [NAMES.completions, NAMES.dead_letters])
@pytest.mark.parametrize("retention_ms", ["-1", str(100 * DAY_MS)], ids=["for good", "100 days"])
def test_a_longer_retention_that_somebody_has_set_is_left(topic: str, retention_ms: str) -> None:
    topics = Topics()
    prepare("f", topics, Settings())
    topics.change_settings(topic, {"retention.ms": retention_ms})
    assert prepare("f", topics, Settings()) == []
    topics.change_settings(topic, {"retention.ms": "1000"})
    (done,) = prepare("f", topics, Settings())
    assert done.startswith("set retention.ms=")
