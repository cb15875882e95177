"""Clients that know nothing of onceflow: the CloudEvents SDK for Python, and the Java tools that come with Kafka."""

import hashlib
import json
import os
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cloudevents.core.bindings.kafka import (
    KafkaMessage,
    from_kafka_event,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import Producer

from onceflow import devkafka
from tests.crash.checker import Event
from tests.crash.lag import lag
from tests.crash.load import TYPE, encode
from tests.crash.scene import OWN, PARTITIONS, Scene

pytestmark = pytest.mark.crash

EVENTS = 500
TOOLS = ("org.apache.kafka", "kafka-tools", devkafka.KAFKA_VERSION)
GROUPS = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
TOOLS_SHA256 = "8a6939f310a61119cedaffc144119e9b2a374e32a7ec18f78e49ce5aeb71d6b0"


# --- the CloudEvents SDK ---


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_events_of_the_cloudevents_sdk_are_run_and_it_reads_their_completions(
    scene: Scene, mode: str
) -> None:
    """Written by the SDK, with what it adds by itself (time, content type), and read back by it."""
    scene.seed(141)
    cell = scene.cell("a").start()
    to_message = to_structured_event if mode == "structured" else to_binary_event
    producer = Producer({"bootstrap.servers": scene.bootstrap_servers, "partitioner": "murmur2_random"})
    sent: list[CloudEvent] = []
    for number in range(EVENTS):
        attributes = {
            "id": f"sdk-{number}",
            "source": "/sdk/Zürich",
            "type": TYPE,
            "specversion": "1.0",
            "time": datetime.now(UTC),
            "datacontenttype": "application/json",
            "subject": f"number {number}",
            "tenant": f"tenant-{number % 40}",
        }
        event = CloudEvent(attributes=attributes, data={"n": number, "text": "Zürich 🏔"})
        message = to_message(event, key_mapper=lambda event: event.get_extension("tenant"))
        producer.produce(scene.shared, message.value, message.key, headers=dict(message.headers))
        sent.append(event)
    assert producer.flush(20) == 0
    scene.wait(lambda: scene.outputs.more() >= EVENTS and lag(scene) == 0, "all are done")

    completions = {}
    for output in scene.outputs.found[f"{scene.flow}.completions"]:
        read = from_kafka_event(KafkaMessage(dict(output.headers), output.key, output.value))
        assert read.get_type() == "echo.completed"
        assert read.get_time() is not None
        completions[read.get_extension("causeid")] = read
    assert len(scene.outputs.found[f"{scene.flow}.completions"]) == len(completions) == EVENTS
    assert not scene.outputs.found[f"{scene.flow}.dead-letters"]
    for event in sent:
        completion = completions[event.get_id()]
        assert completion.get_data() == event.get_data()
        assert completion.get_extension("causesource") == event.get_source()
        assert completion.get_extension("tenant") == event.get_extension("tenant")
    assert cell.end(signal.SIGTERM) == 0, cell.log


# --- the tools of the Kafka distribution ---


@pytest.fixture(scope="module")
def tools() -> devkafka.Installation:
    """Kafka's own jars, and beside them the one with its command-line tools (0.6 MB, fetched once)."""
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    kafka = devkafka.install()
    cache = devkafka.cache_directory(os.environ) / f"kafka-{devkafka.KAFKA_VERSION}" / "maven"
    repositories = {**GlobalSettings.load().repositories, "central": MAVEN_CENTRAL_URL}
    maven = MavenContext(repo_cache=cache, remote_repos=repositories, timeout=30)
    group, artifact, version = TOOLS
    jar = Path(maven.project(group, artifact).at_version(version).artifact().resolve())
    assert hashlib.sha256(jar.read_bytes()).hexdigest() == TOOLS_SHA256, f"delete {jar} and try again"
    return devkafka.Installation(kafka.java, (*kafka.class_path, jar))


def java(tools: devkafka.Installation, *arguments: str, given: str = "") -> str:
    """Run a main class of Kafka's; return what it printed."""
    path = os.pathsep.join(map(str, tools.class_path))
    command = [str(tools.java), "-Xmx256m", "-XX:-UsePerfData", "-cp", path, *arguments]
    ended = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, (
        f"{arguments[0]} ended with {ended.returncode}: {ended.stdout}{ended.stderr}"
    )
    return ended.stdout


def test_java_s_producer_lands_at_home_and_java_s_tool_shows_no_lag(
    scene: Scene, tools: devkafka.Installation
) -> None:
    """Events keyed by tenant: nothing is forwarded. At the end the group has no lag in any input partition."""
    scene.seed(142)
    cell = scene.cell("a").start()
    events = [Event(f"tenant-{n % 250}", "java", f"java-{n}", b'{"n":%d}' % n) for n in range(EVENTS)]
    lines = "".join(f"{event.tenant}\t{encode(event).decode()}\n" for event in events)
    servers = ("--bootstrap-server", scene.bootstrap_servers)
    keyed = ("--topic", scene.shared, "--property", "parse.key=true")
    java(tools, "org.apache.kafka.tools.ConsoleProducer", *servers, *keyed, given=lines)
    for tenant in OWN:
        scene.send(Event(tenant, "java", "own", b"1"), topic=scene.own_prefix + tenant)
    scene.load.flush()
    completions = scene.outputs.found[f"{scene.flow}.completions"]
    scene.wait(lambda: scene.outputs.more() >= EVENTS + len(OWN) and lag(scene) == 0, "all are done")

    described = java(tools, GROUPS, *servers, "--describe", "--group", scene.flow)
    print(described)
    rows = [line.split() for line in described.splitlines() if line.startswith(scene.flow)]
    end_and_lag = {(row[1], int(row[2])): (row[4], row[5]) for row in rows}
    inputs = {scene.shared: PARTITIONS} | {scene.own_prefix + tenant: 1 for tenant in OWN}
    for topic, partitions in inputs.items():
        for partition in range(partitions):
            assert end_and_lag[topic, partition][1] == "0", f"{topic}/{partition} has lag:\n{described}"
    inboxes = {end_and_lag[f"{scene.flow}.inbox", partition][0] for partition in range(PARTITIONS)}
    assert inboxes == {"0"}, f"some were forwarded:\n{described}"
    ended = {json.loads(output.value)["id"] for output in completions}
    assert ended == {event.key for event in events} | {Event(t, "java", "own", b"1").key for t in OWN}
    assert len(completions) == len(ended)
    assert cell.end(signal.SIGTERM) == 0, cell.log
