"""Inputs that come, go and lose records while a cell runs, and a Kafka that goes away."""

import signal
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public there, but not re-exported for checkers
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from typer.testing import CliRunner

from onceflow import cli, devkafka
from onceflow.errors import ConfigError
from tests.conftest import PrivateKafka
from tests.crash.cells import Cell
from tests.crash.checker import Event
from tests.crash.load import Record, encode
from tests.crash.scene import OWN, Scene
from tests.waiting import wait_until

pytestmark = pytest.mark.crash


def send(scene: Scene, tenant: str, numbers: range) -> None:
    """Send events to a tenant's own topic, and wait until they are there."""
    for number in numbers:
        event = Event(tenant, "erp", f"own-{number}", b'{"own":%d}' % number)
        scene.send(event, topic=scene.own_prefix + tenant)
    scene.load.flush()


def completed(scene: Scene, tenant: str) -> int:
    """How many completions this tenant has."""
    scene.outputs.more()
    found = scene.outputs.found[f"{scene.flow}.completions"]
    return sum(1 for output in found if output.key == tenant.encode())


def make_anew(scene: Scene, topic: str, partitions: int) -> None:
    scene.admin.delete_topics([topic])[topic].result(20)
    wait_until(lambda: topic not in scene.admin.list_topics(timeout=5).topics, 20, "the topic is gone")
    scene.topic(topic, partitions)


def finish_one(scene: Scene, topic: str) -> None:
    """A record that is no event, and wait until its dead letter is committed: so is what was decided before."""
    assert scene.load is not None
    scene.load.send(Record(topic, 0, "", b"{", [], None, "undecodable"))
    scene.load.flush()
    letters = scene.outputs.found[f"{scene.flow}.dead-letters"]
    scene.wait(lambda: scene.outputs.more() and letters, "a dead letter")


def anything(_event: Event, _data: Any) -> str:
    """Any completion's data is right."""
    return ""


def test_a_new_tenants_topic_is_found_and_one_made_anew_is_read_from_its_start(scene: Scene) -> None:
    """Both while the cell runs; and what the old topic of that name held is still known as done."""
    scene.seed(91)
    scene.cell("a").start()
    send(scene, OWN[0], range(5))
    scene.wait(lambda: completed(scene, OWN[0]) == 5, "the cell works")

    scene.topic(scene.own_prefix + "newcomer", 2)
    send(scene, "newcomer", range(10))
    scene.wait(lambda: completed(scene, "newcomer") == 10, "the new tenant's events are done")

    make_anew(scene, scene.own_prefix + "newcomer", 2)
    send(scene, "newcomer", range(5, 13))  # five copies, at the offsets of others, and three that are new
    scene.wait(lambda: completed(scene, "newcomer") == 13, "the events of the topic made anew are done")
    scene.finish()


def gated(scene: Scene, tmp_path: Path) -> tuple[Cell, Path, Path]:
    """A cell whose runs wait in their last call, the file that notes their calls, and the one that lets them end."""
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    notes.touch()
    files = {"CRASH_NOTES": str(notes), "CRASH_GATE": str(gate), "CRASH_HIDDEN": str(tmp_path / "hidden")}
    return scene.cell("a", "tests.crash.hiding_flow", **files), notes, gate


def log_says(cell: Cell, what: str, topic: str) -> bool:
    return any(line.get("message") == what and line.get("topic") == topic for line in cell.lines())


def test_an_input_that_is_not_listed_for_a_moment_loses_nothing(scene: Scene, tmp_path: Path) -> None:
    """Its record under way was read again, as a duplicate of itself, and so was finished before its run ended."""
    scene.seed(94)
    cell, notes, gate = gated(scene, tmp_path)
    topic, hidden = scene.own_prefix + OWN[0], tmp_path / "hidden"
    send(scene, OWN[0], range(1))
    cell.start()
    scene.wait(lambda: "check" in notes.read_text(), "a run is under way")
    hidden.write_text(topic)
    scene.wait(lambda: log_says(cell, "an input is gone", topic), "its input is not listed")
    hidden.unlink()
    send(scene, OWN[0], range(1, 3))
    scene.wait(lambda: notes.read_text().count("check") == 3, "it is listed again, and read on")
    finish_one(scene, topic)
    cell.kill()
    gate.touch()
    cell.start()
    scene.wait(lambda: completed(scene, OWN[0]) == 3, "all are done")
    scene.finish(agent="steps", contents=anything)


def test_a_topic_made_anew_waits_for_what_is_under_way_of_the_old_one(scene: Scene, tmp_path: Path) -> None:
    """A copy of it would be its duplicate otherwise, and lost with it if the cell dies; nobody else waits."""
    scene.seed(95)
    cell, notes, gate = gated(scene, tmp_path)
    name = scene.own_prefix + "newcomer"
    scene.topic(name, 2)
    send(scene, "newcomer", range(1))
    cell.start()
    scene.wait(lambda: "check" in notes.read_text(), "a run is under way")
    make_anew(scene, name, 2)
    send(scene, "newcomer", range(3))
    scene.wait(lambda: log_says(cell, "an input is new", name), "the new topic is found")
    send(scene, OWN[0], range(1))
    scene.wait(lambda: notes.read_text().count("check") == 2, "others' events are taken up")
    finish_one(scene, scene.own_prefix + OWN[0])
    cell.kill()
    cell.start()
    scene.wait(
        lambda: notes.read_text().count("check") == 6, "the new topic's events are under way, and the other's"
    )
    gate.touch()
    scene.wait(lambda: completed(scene, "newcomer") == 3, "each is done")
    make_anew(scene, name, 2)
    send(scene, "newcomer", range(2, 5))
    scene.wait(
        lambda: completed(scene, "newcomer") == 5, "what comes when nothing is under way is done at once"
    )
    assert cell.statuses == [-signal.SIGKILL]


def test_a_topic_made_anew_before_the_cell_has_looked_ends_nobody(scene: Scene) -> None:
    """Its old offset is out of range then: the input is paused for that, until it is seen to be another one."""
    scene.seed(96)
    cell = scene.cell("a", ONCEFLOW_TOPICS_REFRESH="5")
    name = scene.own_prefix + "newcomer"
    scene.topic(name, 1)
    send(scene, "newcomer", range(5))
    cell.start()
    scene.wait(lambda: completed(scene, "newcomer") == 5, "the first five are done")
    make_anew(scene, name, 1)
    scene.wait(lambda: log_says(cell, "an input is new", name), "it is found")
    send(scene, "newcomer", range(5, 8))
    scene.wait(lambda: completed(scene, "newcomer") == 8, "the events of the topic made anew are done")
    assert not cell.statuses
    scene.finish()


def test_a_partition_with_lost_records_is_paused_and_reported_and_the_others_go_on(scene: Scene) -> None:
    """Never a silent jump over events that retention has deleted before they were done."""
    scene.seed(92)
    cell = scene.cell("a").start()
    losing, other = OWN[0], OWN[1]
    send(scene, losing, range(5))
    scene.wait(lambda: completed(scene, losing) == 5, "the first five are done")
    assert cell.end(signal.SIGTERM) == 0

    send(scene, losing, range(5, 15))
    at = TopicPartition(scene.own_prefix + losing, 0, 12)
    scene.admin.delete_records([at])[at].result(20)
    cell.start()
    send(scene, other, range(5))
    scene.wait(lambda: completed(scene, other) == 5, "the other tenant's are done")
    scene.wait(
        lambda: f"{at.topic}" in cell.text() and "7 unfinished records" in cell.text(), "the loss is reported"
    )
    send(scene, other, range(5, 10))
    scene.wait(lambda: completed(scene, other) == 10, "and still are")
    lost = {f"{at.topic}/0/{offset}" for offset in range(5, 15)}
    scene.finish(but=lambda sent: sent.origin in lost)


@pytest.mark.parametrize("left", [3, 0])
def test_an_operator_accepts_the_loss_and_the_input_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """What is left of it is done, and nothing is asked a second time after a restart."""
    scene.seed(93)
    lost = 10 - left
    cell = scene.cell("a").start()
    losing = OWN[0]
    send(scene, losing, range(5))
    scene.wait(lambda: completed(scene, losing) == 5, "the first five are done")
    assert cell.end(signal.SIGTERM) == 0
    send(scene, losing, range(5, 15))
    at = TopicPartition(scene.own_prefix + losing, 0, 5 + lost)
    scene.admin.delete_records([at])[at].result(20)
    cell.start()
    scene.wait(lambda: f"{lost} unfinished records" in cell.text(), "the loss is reported")
    monkeypatch.setenv("ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS", scene.bootstrap_servers)
    monkeypatch.setenv("ONCEFLOW_EVENTS__SHARED", scene.shared)
    monkeypatch.setenv("ONCEFLOW_EVENTS__TENANT_PREFIX", scene.own_prefix)
    arguments = ["inputs", "accept-loss", f"{at.topic}/0", "--flow", scene.flow]
    accepted = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert f"goes on, without {lost} records" in accepted.stdout
    scene.wait(lambda: completed(scene, losing) == 5 + left, "what is left is done")
    with pytest.raises(ConfigError, match=r"nothing of .* is lost"):
        CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    cell.kill()
    cell.start()
    send(scene, losing, range(15, 20))
    scene.wait(lambda: completed(scene, losing) == 10 + left, "and what comes later")
    gone = {f"{at.topic}/0/{offset}" for offset in range(5, 5 + lost)}
    scene.finish(but=lambda sent: sent.origin in gone)


def test_a_record_that_cannot_be_decompressed_blocks_its_input_until_its_loss_is_accepted(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has three others compressed with it: all four are let go, and what lies around them is done."""
    scene.seed(97)
    cell = scene.cell("a").start()
    bad, other = OWN[0], OWN[1]
    topic = scene.own_prefix + bad
    send(scene, bad, range(3))
    together = {"compression.type": "zstd", "linger.ms": 2_000, "batch.size": 200_000_000}
    with_large = Producer(
        {"bootstrap.servers": scene.bootstrap_servers, "message.max.bytes": 200_000_000, **together}
    )
    for value in (b"{", b"{", bytes(110_000_000), b"{"):  # above receive.message.max.bytes
        with_large.produce(topic, value, partition=0)
    assert with_large.flush(30) == 0
    send(scene, bad, range(3, 6))
    send(scene, other, range(3))
    scene.wait(lambda: "offset 3 cannot be read" in cell.text(), "it is reported")
    scene.wait(lambda: completed(scene, other) == 3, "the other tenant's are done")
    assert completed(scene, bad) == 3
    monkeypatch.setenv("ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS", scene.bootstrap_servers)
    monkeypatch.setenv("ONCEFLOW_EVENTS__SHARED", scene.shared)
    monkeypatch.setenv("ONCEFLOW_EVENTS__TENANT_PREFIX", scene.own_prefix)

    def said(*arguments: str) -> str:
        all_arguments = ["inputs", *arguments, "--flow", scene.flow]
        return CliRunner().invoke(cli.app, all_arguments, catch_exceptions=False).stdout

    scene.wait(lambda: '"unreadable": 3' in said("list", "--json"), "operators see it")
    assert "goes on behind offset 3" in said("accept-loss", f"{topic}/0")
    scene.wait(lambda: completed(scene, bad) == 6, "what lies behind is done")
    passed = [line["offset"] for line in cell.lines() if "is let go" in str(line.get("message"))]
    assert passed == [4, 5, 6]
    assert '"unreadable": 3' not in said("list", "--json")
    scene.finish()


def test_a_topic_that_may_not_be_read_ends_nobody_and_goes_on_once_it_may(
    private_kafka: PrivateKafka, flow_name: str, tmp_path: Path
) -> None:
    """It may be described: so its slot is granted, with the other inputs."""
    authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
    settings = {"authorizer.class.name": authorizer, "allow.everyone.if.no.acl.found": "true"}
    scene = Scene(flow_name, private_kafka.start(settings), tmp_path)
    try:
        scene.prepare()
        scene.seed(98)
        topic = scene.own_prefix + OWN[0]
        of_topic = (ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*")
        allowed = AclBinding(*of_topic, AclOperation.ALL, AclPermissionType.ALLOW)
        denied = AclBinding(*of_topic, AclOperation.READ, AclPermissionType.DENY)
        for made in scene.admin.create_acls([allowed, denied]).values():
            made.result(20)
        cell = scene.cell("a").start()
        for tenant in OWN[:2]:
            send(scene, tenant, range(3))
        scene.wait(lambda: completed(scene, OWN[1]) == 3, "the other tenant's are done")
        scene.wait(lambda: "as Kafka refuses access" in cell.text(), "it is reported")
        not_denied = AclBindingFilter(*of_topic, AclOperation.READ, AclPermissionType.DENY)
        for deleted in scene.admin.delete_acls([not_denied]).values():
            deleted.result(20)
        scene.wait(lambda: completed(scene, OWN[0]) == 3, "it goes on by itself")
        assert not cell.statuses
        scene.finish()
    finally:
        scene.close()


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_kafka_goes_away_and_comes_back_under_load(
    private_kafka: PrivateKafka, flow_name: str, tmp_path: Path, how: str
) -> None:
    """The cell waits and goes on, or ends with 3 and is started again."""
    scene = Scene(flow_name, private_kafka.start(), tmp_path)
    try:
        scene.prepare()
        scene.seed(93, events_per_s=500)
        scene.load.start()
        scene.cell("a").start()
        for _ in range(2):
            scene.wait_for_output(scene.random.randint(1, 1_500))
            if how == "stopped":
                private_kafka.stop()
            else:
                private_kafka.send(signal.SIGKILL)
            wait_until(lambda: devkafka.status(private_kafka.directory) is None, 20, "Kafka is gone")
            scene.say(f"Kafka is {how}")
            private_kafka.start()
            scene.say("Kafka is back")
        scene.wait_for_output(100)
        scene.finish()
    finally:
        scene.close()


def test_a_time_that_has_no_utc_ends_no_cell(scene: Scene) -> None:
    """The run would go to the ledger, which has its times in UTC."""
    scene.seed(98)
    cell = scene.cell("a", "tests.crash.naps_flow").start()
    event = encode(Event("own-a", "erp", "edge", b'{"own":1}'))
    edge = event.replace(b'"id"', b'"time":"9999-12-31T23:59:59-23:59","id"', 1)
    scene.load.send(Record(scene.own_prefix + "own-a", 0, "", edge, [], None, "invalid"))
    send(scene, "own-a", range(3))
    scene.finish(agent="naps", contents=anything)
    assert cell.statuses == [0]


def test_large_events_of_a_slow_tenant_hold_up_no_other(scene: Scene, tmp_path: Path) -> None:
    """They are more than the cell may hold; the tenant has a topic of its own."""
    scene.seed(99)
    gate = tmp_path / "gate"
    cell = scene.cell("a", "tests.crash.slow_flow", CRASH_GATE=str(gate))
    cell.start(ONCEFLOW_LIMITS__UNFINISHED_BYTES=str(8 << 20), ONCEFLOW_LIMITS__PREFETCH_BYTES=str(2 << 20))
    for number in range(40):
        data = b'{"own":%d,"padding":"%b"}' % (number, b"x" * 500_000)
        scene.send(Event("own-a", "erp", f"large-{number}", data), topic=scene.own_prefix + "own-a")
    scene.load.flush()
    for number in range(3):
        send(scene, "own-b", range(10 * number, 10 * number + 10))
        scene.wait(
            lambda n=number: completed(scene, "own-b") == 10 * n + 10, "another tenant's events are done"
        )
    assert completed(scene, "own-a") == 0
    gate.touch()
    scene.finish(agent="asks", contents=anything)
    assert cell.statuses == [0]
