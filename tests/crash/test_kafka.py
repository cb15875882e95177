"""Kafka at its worst: commits whose answer is late or lost, a broker that is away or forgets, topics that change.

`test_inputs` has inputs that come, go and lose records, and a broker that is stopped or killed under load.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, ResourceType

from onceflow import config
from onceflow.config import Events, Settings
from onceflow.stream.cluster import Cluster
from onceflow.stream.topics import existing_slots, prepare
from tests.conftest import Kafka, PrivateKafka
from tests.crash.cells import Cell
from tests.crash.checker import Event, Outcome
from tests.crash.load import FAILING, Load, Mix, outcome
from tests.crash.proxy import Api, Hold, Proxy
from tests.crash.scene import OWN, PARTITIONS, TENANTS, Scene
from tests.waiting import wait_until

pytestmark = pytest.mark.crash

SHORT = {"ONCEFLOW_TRANSACTION_TIMEOUT": "5"}  # seconds; for tests that wait for longer
Decision = Callable[[Scene, Cell, Hold], None]


@contextmanager
def scene_on(servers: str, flow_name: str, directory: Path) -> Iterator[Scene]:
    """A scene on a broker of the test's own."""
    scene = Scene(flow_name, servers, directory)
    try:
        scene.prepare()
        yield scene
    finally:
        scene.close()


@pytest.fixture
def proxy(private_kafka: PrivateKafka) -> Iterator[Proxy]:
    proxy = Proxy(private_kafka.directory / "port")
    yield proxy
    proxy.close()


@pytest.fixture
def far_scene(private_kafka: PrivateKafka, proxy: Proxy, flow_name: str, tmp_path: Path) -> Iterator[Scene]:
    """A scene whose clients reach Kafka through the proxy."""
    private_kafka.start(proxy.settings)
    with scene_on(proxy.address, flow_name, tmp_path) as scene:
        yield scene


def far_cell(scene: Scene, name: str, **environment: str) -> Cell:
    """A cell that the proxy knows by name."""
    return scene.cell(name, ONCEFLOW_KAFKA__CLIENT__CLIENT_ID=name, **environment)


def ends_in_time(scene: Scene, cell: Cell, hold: Hold) -> None:
    """The answer is late, and that is all."""
    ends = len(cell.statuses)
    hold.pass_on()
    scene.wait_for_output(100)
    assert len(cell.statuses) == ends, cell.text()


def is_lost(scene: Scene, cell: Cell, hold: Hold) -> None:
    """The connection breaks. Whether the client asks again or the cell ends is its own affair."""
    hold.lose()
    scene.wait_for_output(100)


def outlasts_the_cell(scene: Scene, cell: Cell, hold: Hold) -> None:
    """The cell gives up, not knowing; the request comes through when its successor is at work."""
    ends = len(cell.statuses)
    scene.wait(lambda: len(cell.statuses) > ends, "the cell has given up")
    assert cell.statuses[ends] == 3, cell.statuses
    log = cell.directory / f"{ends + 1}.log"
    assert "the commit has no certain answer" in log.read_text(), log
    scene.wait_for_output(100)
    hold.pass_on()
    scene.wait_for_output(100)


@pytest.mark.parametrize("answer", [False, True], ids=["the request", "the answer"])
def test_a_commit_whose_end_is_unknown_is_settled_by_the_next_process(
    far_scene: Scene, proxy: Proxy, answer: bool
) -> None:
    """EndTxn, or the answer to it, is late, lost, or later than the cell lives."""
    scene = far_scene
    scene.seed(101 + answer, events_per_s=400)
    scene.load.start()
    cell = far_cell(scene, "a", **SHORT).start()
    decisions: list[Decision] = [ends_in_time, is_lost, outlasts_the_cell, outlasts_the_cell]
    scene.random.shuffle(decisions)
    for decide in decisions:
        scene.wait_for_output(scene.random.randint(1, 500))
        hold = proxy.hold("a", Api.END_TXN, answer=answer)
        scene.wait(hold.caught, f"{hold} is held: {decide.__name__}")
        decide(scene, cell, hold)
    scene.finish()


@pytest.mark.parametrize("answer", [False, True], ids=["requests", "answers"])
def test_what_a_frozen_cell_had_under_way_does_not_count_once_its_slots_are_anothers(
    far_scene: Scene, proxy: Proxy, answer: bool
) -> None:
    """Each request of a transaction in turn is so late that the other cell has the slots when it comes through."""
    scene = far_scene
    scene.seed(111 + answer, events_per_s=400)
    scene.load.start()
    cells = [far_cell(scene, name).start() for name in "ab"]
    scene.wait(lambda: all(cell.identity for cell in cells), "both have an identity")
    for api in Api:
        scene.wait_for_members(dict.fromkeys((cell.identity for cell in cells), True))
        scene.wait_for_output(scene.random.randint(1, 500))
        frozen, other = scene.random.sample(cells, 2)
        hold = proxy.hold(frozen.name, api, answer=answer)
        scene.wait(hold.caught, f"{hold} is held")
        frozen.send(signal.SIGSTOP)
        scene.wait_for_members({other.identity: True})
        scene.wait_for_output(100)
        hold.pass_on()
        scene.say("and passed on")
        scene.wait_for_output(100)
        frozen.send(signal.SIGCONT)
    scene.finish()


@pytest.mark.parametrize("how", ["frozen", pytest.param("stopped", marks=pytest.mark.soak)])
def test_kafka_is_away_for_longer_than_a_transaction_may_last(
    private_kafka: PrivateKafka, flow_name: str, tmp_path: Path, how: str
) -> None:
    """The cell ends with 3 because of its open transaction; the next process waits for Kafka, however long."""
    with scene_on(private_kafka.start(), flow_name, tmp_path) as scene:
        scene.seed(121, events_per_s=500)
        scene.load.start()
        cell = scene.cell("a", **SHORT).start()
        scene.wait_for_output(scene.random.randint(1, 1_000))
        if how == "frozen":
            private_kafka.send(signal.SIGSTOP)
        else:
            private_kafka.stop()
        scene.say(f"Kafka is {how}")
        scene.wait(lambda: cell.statuses == [3], "the cell has ended with 3")
        scene.wait(lambda: "Kafka at " in cell.text(), "the next process waits")
        if how == "frozen":
            private_kafka.send(signal.SIGCONT)
        else:
            private_kafka.start()
        scene.say("Kafka is back")
        scene.wait_for_output(100)
        scene.finish()
        assert cell.statuses == [3, 0], cell.log


def test_offsets_that_the_group_forgot_are_not_missed(scene: Scene) -> None:
    """The group is deleted while no cell runs: the next one starts from F.progress, and does nothing twice."""
    scene.seed(131)
    scene.load.start()
    cell = scene.cell("a").start()
    scene.wait_for_output(2_000)
    assert cell.end(signal.SIGTERM) == 0, cell.text()
    wait_until(lambda: not scene.members(), 30, "the session is over")
    scene.admin.delete_consumer_groups([scene.flow])[scene.flow].result(20)
    scene.say("the group is deleted")
    cell.start()
    scene.wait_for_output(100)
    scene.finish()


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_offsets_that_have_expired_are_not_missed(
    private_kafka: PrivateKafka, flow_name: str, tmp_path: Path
) -> None:
    """As above, by Kafka's own retention of offsets: a minute at least."""
    forgetful = {"offsets.retention.minutes": "1", "offsets.retention.check.interval.ms": "500"}
    with scene_on(private_kafka.start(forgetful), flow_name, tmp_path) as scene:
        scene.seed(132, events_per_s=200)
        scene.load.start()
        cell = scene.cell("a").start()
        scene.wait_for_output(1_000)
        assert cell.end(signal.SIGTERM) == 0, cell.text()
        wait_until(lambda: flow_name not in groups(scene), 150, "the group's offsets have expired")
        cell.start()
        scene.wait_for_output(100)
        scene.finish()


def groups(scene: Scene) -> list[str]:
    """The groups that Kafka knows."""
    return [group.group_id for group in scene.admin.list_consumer_groups().result(10).valid]


def test_partitions_added_to_a_shared_topic_are_read(scene: Scene) -> None:
    """Twice as many, while the cell runs. The second load repeats events of the first, some in new partitions."""
    scene.seed(141, events_per_s=500)
    scene.load.start()
    scene.cell("a").start()
    scene.wait_for_output(500)
    more = NewPartitions(scene.shared, 2 * PARTITIONS)
    scene.admin.create_partitions([more])[scene.shared].result(20)
    scene.say(f"{scene.shared} has {2 * PARTITIONS} partitions")
    mix = Mix(141, scene.shared, 2 * PARTITIONS, OWN, scene.own_prefix, TENANTS)
    later = Load(scene.bootstrap_servers, mix, 2 * PARTITIONS, events_per_s=500)
    later.start()
    scene.wait(lambda: len(later.sent) > 2_000, "2000 records more sent, to all partitions")
    scene.load.sent.extend(later.stop())
    scene.finish()
    assert any(int(sent.origin.split("/")[1]) >= PARTITIONS for sent in scene.load.sent)


def test_a_shared_topic_that_is_listed_late_decides_the_number_of_slots(kafka: Kafka, flow_name: str) -> None:
    """A topic that was made a moment ago may be missing in the first list; the slots are for life."""
    shared = f"{flow_name}-shared"
    settings = Settings(
        kafka=config.Kafka(bootstrap_servers=kafka.bootstrap_servers), events=Events(shared=(shared,))
    )

    class LateList(Cluster):
        asked = 0

        def topic_names(self) -> dict[str, int]:
            self.asked += 1
            names = super().topic_names()
            return {name: names[name] for name in names if name != shared} if self.asked == 1 else names

    cluster = LateList(settings.kafka.properties())
    cluster.create(shared, PARTITIONS, {}, None)
    cluster.patiently(lambda: prepare(flow_name, cluster, settings))
    assert existing_slots(flow_name, cluster, settings) == PARTITIONS


def test_a_topic_that_takes_smaller_records_than_before_is_heeded(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """max.message.bytes lowered while the cell runs: it ends with 3, and from then on makes what fits.

    A completion that is too large becomes a failed run; a dead letter that is, loses the end of its value.
    """
    scene.seed(151, events_per_s=500)
    scene.load.start()
    cell = scene.cell("a").start()
    scene.wait_for_output(500)
    parts = ("completions", "dead-letters", "inbox")
    limit = 50_000
    for name in (f"{scene.flow}.{part}" for part in parts):
        lower = ConfigEntry("max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[lower])
        scene.admin.incremental_alter_configs([resource])[resource].result(20)
    scene.say("smaller records")
    for number in range(20):
        failing = b"," + FAILING if number % 2 else b""
        noise = scene.random.randbytes(limit).hex().encode()  # compression does not make it fit
        data = b'{"n":%d,"noise":"%s"%s}' % (number, noise, failing)
        scene.send(Event(f"tenant-{number}", "erp", f"large-{number}", data))

    def expected(event: Event) -> Outcome:
        return (
            Outcome("too-large") if not outcome(event).failed and len(event.data) > limit else outcome(event)
        )

    monkeypatch.setattr("tests.crash.scene.outcome", expected)
    scene.finish()
    assert 3 in cell.statuses, cell.log
    assert set(cell.statuses) == {0, 3}, cell.statuses
