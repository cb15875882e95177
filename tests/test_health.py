"""What a cell answers over HTTP."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry, Counter

from onceflow.errors import ConfigError
from onceflow.observe.health import Server, serve

ANSWERS: dict[str, str | None] = {}


def ready() -> str | None:
    return ANSWERS["ready"]


def alive() -> str | None:
    return ANSWERS["alive"]


@pytest.fixture
def server() -> Iterator[Server]:
    ANSWERS.update(ready=None, alive=None)
    registry = CollectorRegistry()
    Counter("seen", "Seen", registry=registry).inc(3)
    with closing(serve(0, "127.0.0.1", registry, ready, alive)) as server:
        yield server


def ask(server: Server, path: str, method: str = "GET") -> tuple[int, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_each_probe_says_ok_or_the_reason_why_not(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(server, "/readyz") == ask(server, "/healthz?x=1") == (200, "ok\n")
    ANSWERS.update(ready="slot 3 is catching up: 120 records left")
    assert ask(server, "/readyz") == (503, "slot 3 is catching up: 120 records left\n")
    assert ask(server, "/readyz", "HEAD") == (503, "")
    assert ask(server, "/healthz") == (200, "ok\n")
    ANSWERS.update(alive="the committer has ended")
    assert ask(server, "/healthz") == (503, "the committer has ended\n")
    assert capfd.readouterr() == ("", ""), "a probe every few seconds must not fill the log"


def test_a_check_that_raises_is_not_well_and_says_why(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    del ANSWERS["ready"]
    assert ask(server, "/readyz") == (503, "the check failed: KeyError('ready')\n")
    assert "the check behind /readyz failed" in caplog.text


def test_metrics_are_those_of_the_given_registry(server: Server) -> None:
    status, text = ask(server, "/metrics")
    assert status == 200
    assert "seen_total 3.0" in text


def test_other_paths_and_methods_are_refused(server: Server) -> None:
    assert ask(server, "/")[0] == 404
    assert ask(server, "/metrics/x")[0] == 404
    assert ask(server, "/readyz", "POST")[0] == 405


def test_a_closed_server_gives_its_port_back(server: Server) -> None:
    port = server.port
    server.close()
    with closing(serve(port, "127.0.0.1", CollectorRegistry(), ready, alive)) as successor:
        assert successor.port == port
        assert ask(successor, "/healthz") == (200, "ok\n")


def test_a_port_in_use_is_a_configuration_error_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"127\.0\.0\.1:{port} .*in use: give each cell .* its own port"
        ):
            serve(port, "127.0.0.1", CollectorRegistry(), ready, alive)
