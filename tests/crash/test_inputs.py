"""Inputs that come, go and lose records while a cell runs, and a Kafka that goes away."""

import signal
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from typer.testing import CliRunner

from onceflow import cli, devkafka
from onceflow.errors import ConfigError
from tests.conftest import PrivateKafka
from tests.crash.checker import Event
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


def test_a_new_tenants_topic_is_found_and_one_made_anew_is_read_from_its_start(scene: Scene) -> None:
    """Both while the cell runs; and what the old topic of that name held is still known as done."""
    scene.seed(91)
    scene.cell("a").start()
    send(scene, OWN[0], range(5))
    scene.wait(lambda: completed(scene, OWN[0]) == 5, "the cell works")

    scene.topic(scene.own_prefix + "newcomer", 2)
    send(scene, "newcomer", range(10))
    scene.wait(lambda: completed(scene, "newcomer") == 10, "the new tenant's events are done")

    name = scene.own_prefix + "newcomer"
    scene.admin.delete_topics([name])[name].result(20)
    wait_until(lambda: name not in scene.admin.list_topics(timeout=5).topics, 20, "the topic is gone")
    scene.topic(name, 2)
    send(scene, "newcomer", range(5, 13))  # five copies, at the offsets of others, and three that are new
    scene.wait(lambda: completed(scene, "newcomer") == 13, "the events of the topic made anew are done")
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


def test_an_operator_accepts_the_loss_and_the_input_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of it is done, and nothing is asked a second time after a restart."""
    scene.seed(93)
    cell = scene.cell("a").start()
    losing = OWN[0]
    send(scene, losing, range(5))
    scene.wait(lambda: completed(scene, losing) == 5, "the first five are done")
    assert cell.end(signal.SIGTERM) == 0
    send(scene, losing, range(5, 15))
    at = TopicPartition(scene.own_prefix + losing, 0, 12)
    scene.admin.delete_records([at])[at].result(20)
    cell.start()
    scene.wait(lambda: "7 unfinished records" in cell.text(), "the loss is reported")
    monkeypatch.setenv("ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS", scene.bootstrap_servers)
    monkeypatch.setenv("ONCEFLOW_EVENTS__SHARED", scene.shared)
    monkeypatch.setenv("ONCEFLOW_EVENTS__TENANT_PREFIX", scene.own_prefix)
    arguments = ["inputs", "accept-loss", f"{at.topic}/0", "--flow", scene.flow]
    accepted = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert "goes on, without 7 records" in accepted.stdout
    scene.wait(lambda: completed(scene, losing) == 8, "the three that are left are done")
    with pytest.raises(ConfigError, match=r"nothing of .* is lost"):
        CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    cell.kill()
    cell.start()
    send(scene, losing, range(15, 20))
    scene.wait(lambda: completed(scene, losing) == 13, "and what comes later")
    lost = {f"{at.topic}/0/{offset}" for offset in range(5, 12)}
    scene.finish(but=lambda sent: sent.origin in lost)


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
