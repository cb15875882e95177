"""What a command sends counts as sent once Kafka has confirmed all of it."""

import pytest

from onceflow.config import Settings
from onceflow.errors import ConfigError
from onceflow.stream import sending
from onceflow.stream.cluster import Cluster, KafkaAway
from onceflow.stream.sending import Record, send
from tests.conftest import Kafka


def settings_for(servers: str, **client: str) -> Settings:
    return Settings(kafka={"bootstrap_servers": servers, "client": client})  # type: ignore[arg-type]


@pytest.fixture
def topic(kafka: Kafka, flow_name: str) -> str:
    """A topic that takes records of up to a kilobyte."""
    cluster = Cluster({"bootstrap.servers": kafka.bootstrap_servers})
    cluster.create(flow_name, 1, {"max.message.bytes": "1024"}, None)
    cluster.await_topics([flow_name])
    return flow_name


def ends(kafka: Kafka, topic: str) -> int:
    return Cluster({"bootstrap.servers": kafka.bootstrap_servers}).end_offsets([(topic, 0)])[topic, 0]


def test_all_is_sent_even_if_there_is_more_than_the_client_holds(kafka: Kafka, topic: str) -> None:
    settings = settings_for(kafka.bootstrap_servers, **{"queue.buffering.max.messages": "2"})
    send(settings, [Record(topic, str(number), "key", 0) for number in range(7)])
    assert ends(kafka, topic) == 7


@pytest.mark.parametrize("size", [2_000, 2_000_000], ids=["by Kafka", "by its client"])
def test_a_record_that_is_refused_is_an_error_that_names_the_topic_and_why(
    kafka: Kafka, topic: str, size: int
) -> None:
    with pytest.raises(ConfigError, match=rf"did not take 1 records for {topic}: .*size.*topic's settings"):
        send(settings_for(kafka.bootstrap_servers), [Record(topic, "x" * size, "key", 0)])
    assert ends(kafka, topic) == 0


def test_what_is_not_confirmed_in_time_is_an_error_that_says_where_kafka_was_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sending, "CONFIRMED_S", 0.1)
    with pytest.raises(KafkaAway, match=r"127\.0\.0\.1:1 does not answer \(1 records are not confirmed"):
        send(settings_for("127.0.0.1:1"), [Record("topic", "x", "key")])
