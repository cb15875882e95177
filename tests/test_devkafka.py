"""devkafka: what it decides, and its broker's life."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from onceflow import devkafka
from onceflow.errors import ConfigError, OnceflowError
from tests.conftest import PrivateKafka
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"ONCEFLOW_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/onceflow"),
        ({}, str(Path.home() / ".cache/onceflow")),
    ],
)
def test_downloads_go_where_the_user_says_or_caches_are_kept(environ: dict[str, str], expected: str) -> None:
    assert devkafka.cache_directory(environ) == Path(expected)


def test_the_heap_is_a_gigabyte_unless_said_and_nonsense_is_refused() -> None:
    assert devkafka.heap_option({}) == "-Xmx1g"
    assert devkafka.heap_option({"ONCEFLOW_KAFKA_HEAP": "512m"}) == "-Xmx512m"
    with pytest.raises(ConfigError, match="such as 512m"):
        devkafka.heap_option({"ONCEFLOW_KAFKA_HEAP": "lots"})


def test_one_node_is_broker_and_controller_and_settings_win() -> None:
    text = devkafka.server_properties(
        9092, 9093, {"offsets.retention.minutes": "1", "auto.create.topics.enable": "true"}
    )
    properties = dict(line.split("=", 1) for line in text.splitlines())
    assert properties["process.roles"] == "broker,controller"
    assert properties["listeners"] == "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"
    assert properties["controller.quorum.voters"] == "1@127.0.0.1:9093"
    assert properties["log.dirs"] == "data"
    assert properties["transaction.state.log.min.isr"] == "1"
    assert properties["offsets.retention.minutes"] == "1"
    assert properties["auto.create.topics.enable"] == "true"


def test_the_digest_is_of_names_and_contents_whatever_the_order(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jar", tmp_path / "two.jar"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    digest = devkafka.jars_digest([one, two])
    assert devkafka.jars_digest([two, one]) == digest
    two.write_bytes(b"3")
    assert devkafka.jars_digest([one, two]) != digest


def test_a_file_cannot_be_its_directory_and_no_kafka_is_found_there(tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file cannot be used as a directory .*--dir"):
        devkafka.start(file)
    assert devkafka.status(file) is None
    assert not devkafka.stop(file)


def test_without_a_network_the_error_says_what_was_tried_and_what_else_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(OnceflowError, match="Maven Central") as failure:
        devkafka.install(tmp_path)
    for remedy in ("HTTPS_PROXY", "ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS", "ONCEFLOW_TEST_KAFKA"):
        assert remedy in str(failure.value)


def test_an_installation_is_used_as_it_is_and_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    home = tmp_path / f"kafka-{devkafka.KAFKA_VERSION}"
    home.mkdir()
    (home / "one.jar").touch()
    (home / "jars.json").write_text(json.dumps(["one.jar"]))
    assert devkafka.install(tmp_path).class_path == (home / "one.jar",)


def test_a_process_id_left_behind_is_nobodys_broker_and_nobody_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:  # has, by chance, the id of a broker that is gone
        (tmp_path / "pid").write_text(str(other.pid))
        (tmp_path / "port").write_text("9092")
        (tmp_path / "running").touch()
        assert devkafka.status(tmp_path) is None
        assert devkafka.stop(tmp_path) is False
        assert other.poll() is None
        other.kill()


def test_a_port_that_another_program_has_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} .* --port"):
            devkafka.start(tmp_path, port)


def test_a_broker_that_cannot_start_shows_the_end_of_its_log(private_kafka: PrivateKafka) -> None:
    with pytest.raises(OnceflowError, match=r"log\.retention\.ms") as failure:
        private_kafka.start({"log.retention.ms": "soon"})
    assert "ONCEFLOW_KAFKA_HEAP" in str(failure.value)
    assert devkafka.status(private_kafka.directory) is None


def test_started_by_three_it_is_one_broker_and_restarted_it_has_its_port_and_topics(
    private_kafka: PrivateKafka,
) -> None:
    directory = private_kafka.directory
    script = "import pathlib, sys; from onceflow import devkafka; devkafka.start(pathlib.Path(sys.argv[1]))"
    starters = [subprocess.Popen((sys.executable, "-c", script, str(directory))) for _ in range(2)]
    assert [starter.wait(100) for starter in starters] == [0, 0]
    first = devkafka.start(directory)
    assert first == devkafka.status(directory)
    assert os.getsid(first.pid) != os.getsid(0), "a Ctrl-C in the starter's terminal must not reach it"
    admin = AdminClient({"bootstrap.servers": first.bootstrap_servers})
    admin.create_topics([NewTopic("kept", 3)])["kept"].result(timeout=10)

    os.kill(first.pid, 9)
    wait_until(lambda: devkafka.status(directory) is None, 10, "the killed broker is seen to be gone")
    second = devkafka.start(directory)
    assert second.bootstrap_servers == first.bootstrap_servers
    assert second.pid != first.pid
    topics = AdminClient({"bootstrap.servers": second.bootstrap_servers}).list_topics(timeout=10).topics
    assert len(topics["kept"].partitions) == 3

    assert devkafka.stop(directory) is True
    assert devkafka.status(directory) is None
    assert devkafka.stop(directory) is False
