"""One real Kafka for all tests of a run, and names that keep the tests apart on it.

ONCEFLOW_TEST_KAFKA says which Kafka: unset, one that this run starts (`onceflow.devkafka`); `docker`, one in
a container per worker of the run; `host:port`, one that is there.

A broker that the run starts is shared by all its workers and ends with the last of them, however they end:
each holds a lock on a file, and a process of its own, the keeper, waits for that lock and then stops the
broker. The system frees the locks of the killed, so no crash of a test run leaves a broker behind.
"""

import contextlib
import fcntl
import gc
import os
import re
import secrets
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from onceflow import devkafka

CHOICE = os.environ.get("ONCEFLOW_TEST_KAFKA", "")

KEEPER = """
import fcntl, pathlib, shutil, sys
from onceflow import devkafka
directory = pathlib.Path(sys.argv[1])
with open(directory / "users") as users:
    fcntl.flock(users, fcntl.LOCK_EX)  # got when nobody uses the broker any more
    devkafka.stop(directory)
    shutil.rmtree(directory / "data", ignore_errors=True)
"""


@dataclass(frozen=True)
class Kafka:
    """The broker that the tests of this run share."""

    bootstrap_servers: str


class PrivateKafka:
    """A broker of one test's own, which the test starts (again), stops, kills and freezes as it likes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bootstrap_servers = ""

    def start(self, settings: Mapping[str, str] = devkafka.NO_SETTINGS) -> str:
        """Start it, on the same port and storage as before; return its bootstrap servers."""
        self.bootstrap_servers = devkafka.start(self.directory, settings=settings).bootstrap_servers
        return self.bootstrap_servers

    def stop(self) -> None:
        devkafka.stop(self.directory)

    def send(self, number: signal.Signals) -> None:
        """SIGKILL, SIGSTOP, SIGCONT."""
        broker = devkafka.status(self.directory)
        assert broker is not None, "start it first"
        os.kill(broker.pid, number)


@contextlib.contextmanager
def used(directory: Path) -> Iterator[None]:
    """While this lasts, the broker of `directory` is in use; after its last user it is stopped."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "users").open("a") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        keep = (sys.executable, "-c", KEEPER, str(directory))
        # Through a shell that ends at once: the keeper outlives this process and is no child of it.
        subprocess.run(
            ("sh", "-c", '"$@" >/dev/null 2>&1 </dev/null &', "sh", *keep), start_new_session=True, check=True
        )
        yield


@contextlib.contextmanager
def in_container() -> Iterator[Kafka]:
    from testcontainers.community.kafka import KafkaContainer  # imported where asked for: it takes 0.5 s

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # the client of an absent engine leaves its socket open
        try:
            container = (
                KafkaContainer("confluentinc/cp-kafka:8.1.0")
                .with_kraft()
                .with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
                .with_env("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
                .with_env("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
                .with_env("KAFKA_TRANSACTION_ABORT_TIMED_OUT_TRANSACTION_CLEANUP_INTERVAL_MS", "1000")
            )
        except Exception as error:  # noqa: BLE001 (the client's own class, which is no dependency of ours)
            container, reason = None, str(error)
        gc.collect()  # here, so that its sockets are found while the warning is off
    if container is None:
        pytest.skip(f"ONCEFLOW_TEST_KAFKA=docker, but no container engine answers: {reason}")
    with container:
        yield Kafka(container.get_bootstrap_server())


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """The broker of this run."""
    if CHOICE == "docker":
        with in_container() as container:
            yield container
    elif CHOICE:
        AdminClient({"bootstrap.servers": CHOICE}).list_topics(timeout=10)  # raises if nothing answers there
        yield Kafka(CHOICE)
    else:
        base = tmp_path_factory.getbasetemp()
        of_run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        with used(of_run / "kafka"):
            yield Kafka(devkafka.start(of_run / "kafka").bootstrap_servers)


@pytest.fixture
def private_kafka(tmp_path: Path) -> Iterator[PrivateKafka]:
    """A broker for this test alone, not started yet."""
    if CHOICE:
        pytest.skip("starts and stops a broker of its own: runs where ONCEFLOW_TEST_KAFKA is unset")
    with used(tmp_path / "kafka"):
        yield PrivateKafka(tmp_path / "kafka")


@pytest.fixture
def flow_name(request: pytest.FixtureRequest) -> str:
    """A name for a flow (or group, or topic) that no other test has."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return f"{words[:30].strip('-')}-{secrets.token_hex(4)}"


@pytest.fixture
def topic_prefix(flow_name: str) -> str:
    """What the names of this test's topics begin with; no topic of the flow itself does."""
    return f"{flow_name}-in."


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever uses a broker has the marker `kafka`."""
    for item in items:
        if {"kafka", "private_kafka"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("kafka")
