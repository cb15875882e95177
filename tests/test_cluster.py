"""What is asked of Kafka: what is said when it is away, and when it refuses how it is asked."""

import logging

import pytest
from confluent_kafka import Consumer

from onceflow.config import Settings
from onceflow.errors import ConfigError
from onceflow.stream import cluster
from onceflow.stream.cluster import Cluster, KafkaAway, client_made
from onceflow.stream.topics import prepare
from tests.conftest import Kafka

NOBODY = {"bootstrap.servers": "127.0.0.1:1"}


def test_while_kafka_is_away_the_log_says_where_it_was_asked_for_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 0.1)
    asked = Cluster(NOBODY)
    tries = iter([False, True])
    with caplog.at_level(logging.WARNING), pytest.raises(KafkaAway):
        asked.patiently(asked.topic_names, stop=lambda: next(tries))
    (line,) = caplog.messages
    assert line.startswith("Kafka at 127.0.0.1:1 does not answer")
    assert "ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS" in line
    assert line.endswith("; still trying")


@pytest.mark.parametrize(
    ("name", "value", "setting"),
    [
        ("foo.bar", "1", "kafka.client.foo.bar"),
        ("socket.timeout.ms", "soon", "kafka.client.socket.timeout.ms"),
        ("stats_cb", "x", "kafka.client.stats_cb"),
        ("plugin.library.paths", "nope", "kafka.client"),
    ],
)
def test_a_property_that_librdkafka_does_not_take_is_a_wrong_setting(
    name: str, value: str, setting: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        Cluster({**NOBODY, name: value})
    assert str(refused.value).startswith(f"{setting}: librdkafka refuses it (")


def test_so_is_one_that_only_some_clients_refuse() -> None:
    client = {"max.poll.interval.ms": "10"}
    Cluster({**NOBODY, **client})
    with pytest.raises(ConfigError, match=r"^kafka\.client\.max\.poll\.interval\.ms"), client_made(client):
        Consumer({**NOBODY, **client, "group.id": "g"})


def test_more_replicas_than_brokers_are_a_wrong_setting(kafka: Kafka, flow_name: str) -> None:
    topics = {"replication_factor": 99}
    settings = Settings(kafka={"bootstrap_servers": kafka.bootstrap_servers, "topics": topics})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^kafka\.topics\.replication_factor is 99, .*number of brokers"):
        prepare(flow_name, Cluster(settings.kafka.properties()), settings)
