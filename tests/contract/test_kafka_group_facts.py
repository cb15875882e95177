"""What the design takes for granted about consumer groups (classic protocol, cooperative, static members).

Each test is one fact, tried on a real broker; what relies on it has to change when it does.
"""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from tests.conftest import PrivateKafka
from tests.contract.clients import SESSION_S, Clients, clients_of, poll_until
from tests.waiting import wait_until

ZOMBIE = Path(__file__).with_name("zombie.py")


def test_a_new_member_gets_its_share_in_seconds_and_the_others_keep_the_rest(
    clients: Clients, flow_name: str
) -> None:
    topic = clients.topic(flow_name, 8)
    first = clients.member(flow_name, topic, "first")
    poll_until(lambda: len(first.owned) == 8, first, what="the first member owns all")
    joined = time.monotonic()
    second = clients.member(flow_name, topic, "second")
    poll_until(lambda: len(first.owned) == len(second.owned) == 4, first, second, what="each owns half")
    assert time.monotonic() - joined < 10
    assert not first.owned & second.owned
    assert not first.lost, "revoked in order, not lost"


def test_a_restarted_member_has_its_partitions_again_within_the_session(
    clients: Clients, flow_name: str
) -> None:
    """To the broker a static member that closes looks like a killed one: neither takes leave."""
    topic = clients.topic(flow_name, 8)
    first, second = (clients.member(flow_name, topic, instance) for instance in ("first", "second"))
    poll_until(lambda: len(first.owned) == len(second.owned) == 4, first, second, what="each owns half")
    owned = set(first.owned)
    first.consumer.close()
    closed = time.monotonic()
    again = clients.member(flow_name, topic, "first")
    poll_until(lambda: again.owned, again, second, what="the restarted member owns partitions")
    assert time.monotonic() - closed < SESSION_S
    assert again.owned == owned
    assert len(second.owned) == 4, "the other member noticed nothing"


def test_a_static_member_that_closes_keeps_its_partitions_until_its_session_ends(
    clients: Clients, flow_name: str
) -> None:
    topic = clients.topic(flow_name, 2)
    first, second = (clients.member(flow_name, topic, instance) for instance in ("first", "second"))
    poll_until(lambda: len(first.owned) == len(second.owned) == 1, first, second, what="each owns one")
    first.consumer.close()
    closed = time.monotonic()
    poll_until(lambda: len(second.owned) == 2, second, what="the session of the first has ended")
    assert time.monotonic() - closed > SESSION_S - 2  # its last heartbeat was at most half a second before


@pytest.mark.parametrize(("carries", "accepted"), [("offsets", False), ("nothing", True)])
def test_a_zombie_is_fenced_by_the_offsets_in_its_transaction_and_by_nothing_else(
    clients: Clients, flow_name: str, carries: str, accepted: bool
) -> None:
    """Hence at least one offset in every transaction."""
    topic, output = clients.topic(flow_name), clients.topic(f"{flow_name}-output")
    servers = str(clients.common["bootstrap.servers"])
    command = (sys.executable, str(ZOMBIE), servers, flow_name, topic, output, carries)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as zombie:
        assert zombie.stdin is not None
        assert zombie.stdout is not None
        try:
            assert zombie.stdout.readline() == "ready\n"
            zombie.send_signal(signal.SIGSTOP)
            successor = clients.member(flow_name, topic, "successor")
            poll_until(lambda: successor.owned, successor, what="another member has taken over")
            zombie.stdin.write("go\n")
            zombie.stdin.flush()
            zombie.send_signal(signal.SIGCONT)
            outcome = zombie.stdout.readline().strip()
        finally:
            zombie.kill()
    if accepted:
        assert outcome == "accepted"
        assert clients.read_all(output) == [b"of the zombie"]
    else:
        assert outcome in {"FENCED_INSTANCE_ID", "ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID"}
        clients.transactional(f"{flow_name}-zombie")  # ends its transaction
        assert clients.read_all(output) == []


def test_foreign_partitions_assigned_at_the_beginning_and_paused_leak_nothing_until_sought_and_resumed(
    clients: Clients, flow_name: str
) -> None:
    """How a granted slot's inputs are added: their positions are known only later."""
    group_topic, topic = clients.topic(flow_name), clients.topic(f"{flow_name}-input")
    clients.send(topic, [b"%d" % number for number in range(100)])
    consumer = clients.consumer(flow_name, partition_assignment_strategy="cooperative-sticky")
    granted: list[int] = []

    def on_assign(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        extra = [TopicPartition(topic, 0, OFFSET_BEGINNING)]
        consumer.incremental_assign(extra)
        consumer.pause(extra)
        granted.append(len(partitions))

    consumer.subscribe([group_topic], on_assign=on_assign)
    leaked: list[bytes] = []
    polls_after = 0

    def served_a_while() -> bool:
        nonlocal polls_after
        leaked.extend(m.value() or b"" for m in consumer.consume(10, 0.05))
        polls_after += bool(granted)
        return polls_after >= 20

    wait_until(served_a_while, 30, "polled twenty times after the assignment")
    assert leaked == []
    consumer.seek(TopicPartition(topic, 0, 40))
    consumer.resume([TopicPartition(topic, 0)])
    arrived: list[int] = []
    wait_until(
        lambda: arrived.extend(m.offset() or 0 for m in consumer.consume(100, 0.05)) or len(arrived) == 60,
        20,
        "the rest has arrived",
    )
    assert arrived == list(range(40, 100))


def test_a_rebalance_callback_that_waits_for_another_user_of_the_consumer_waits_for_ever(
    clients: Clients, flow_name: str
) -> None:
    """Hence one thread touches the consumer, and its callbacks wait for nothing that needs it."""
    topic = clients.topic(flow_name)
    consumer = clients.consumer(flow_name, partition_assignment_strategy="cooperative-sticky")
    answered = threading.Event()
    in_time: list[bool] = []

    def ask() -> None:
        consumer.consumer_group_metadata()
        answered.set()

    def on_revoke(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        asking.start()
        in_time.append(answered.wait(2))
        consumer.incremental_unassign(partitions)

    asking = threading.Thread(target=ask, daemon=True)
    consumer.subscribe([topic], on_revoke=on_revoke)
    wait_until(lambda: consumer.consume(1, 0.05) or consumer.assignment(), 20, "assigned")
    consumer.unsubscribe()
    wait_until(lambda: consumer.consume(1, 0.05) or in_time, 20, "revoked")
    asking.join(20)
    assert in_time == [False]


@pytest.mark.crash
def test_offsets_of_topics_that_the_group_is_not_subscribed_to_expire_while_the_group_lives(
    private_kafka: PrivateKafka, flow_name: str
) -> None:
    """Hence progress is kept in a topic of its own, and group offsets are for tools only."""
    servers = private_kafka.start({
        "offsets.retention.minutes": "1",
        "offsets.retention.check.interval.ms": "1000",
    })  # fmt: skip
    with clients_of(servers) as clients:
        topic, other = clients.topic(flow_name), clients.topic(f"{flow_name}-other")
        member = clients.member(flow_name, topic, "member")
        poll_until(lambda: member.owned, member, what="the group has a member")
        producer = clients.transactional(flow_name)
        producer.begin_transaction()
        both = [TopicPartition(topic, 0, 1), TopicPartition(other, 0, 2)]
        producer.send_offsets_to_transaction(both, member.metadata(), 20)
        producer.commit_transaction(20)

        def offsets() -> list[int]:
            return [at.offset for at in member.consumer.committed(both, 20)]

        assert offsets() == [1, 2]
        poll_until(lambda: offsets() == [1, -1001], member, timeout_s=120, what="the other's has expired")
