"""Restate's server and its worker: started, asked for invocations by clients, killed.

The worker is served as Restate's documentation says for production: hypercorn with its limits lifted, and several
processes, here one per core. The server has its defaults: it writes each batch of its log through to the disk.
"""

import asyncio
import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

from benchmarks import outside
from benchmarks.peers.crash import Crashed, crash
from benchmarks.peers.install import Peers
from benchmarks.peers.rates import Rate
from benchmarks.process import Process, family_cpu_s, free_port
from benchmarks.watch import wait_until

CLIENTS = (64, 256, 512)
HANDLERS = {1: "one", 3: "three"}
START_S = 60
WARM_UP_S = 2
UNLIMITED = 2**31 - 1


class Restate(NamedTuple):
    """A server that runs."""

    ingress: int  # port
    admin: int
    process: Process


@contextlib.contextmanager
def restate(peers: Peers, directory: Path) -> Iterator[Restate]:
    """Run a server whose data are below this directory."""
    ingress, admin, node = free_port(), free_port(), free_port()
    settings = {
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{node}",
        "RESTATE_LOG_FILTER": "warn",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "TMPDIR": str(directory),
    }
    words = ["--no-logo", "--listen-mode", "tcp", "--base-dir", str(directory / "restate")]
    server = Process([str(peers.restate), *words], directory / "restate.log", settings)
    try:
        wait_until(lambda: _answers(admin), "Restate's server answers", START_S, server)
        yield Restate(ingress, admin, server)
    finally:
        server.end()


def rates(peers: Peers, directory: Path, calls: int, number: int, seconds: float) -> list[Rate]:
    """Invocations of so many steps, by ever more clients, each with an idempotency key of its own."""
    found, port = [], free_port()
    with restate(peers, directory) as server:
        process = _worker(peers, directory, port, os.cpu_count() or 1)
        try:
            _introduce(server, process, port)
            for clients in CLIENTS:
                load = _Load(server.ingress, HANDLERS[calls], clients)
                runs, took_s, cpu_s = asyncio.run(load.run(seconds, server.process.pid, process.pid))
                found.append(Rate.of("Restate", calls, number, f"{clients} clients", runs, took_s, cpu_s))
        finally:
            process.end()
    return found


def crashed(peers: Peers, directory: Path, runs: int) -> Crashed:
    """The scene of `crash`: one process serves all invocations."""
    port = free_port()
    with restate(peers, directory) as server:

        def begin(process: Process) -> None:
            _introduce(server, process, port)
            for run in range(runs):
                _ask(server.ingress, "POST", "/bench/effects/send", run, {"idempotency-key": f"run-{run}"})

        def start() -> Process:
            return _worker(peers, directory, port, 0)

        return crash("Restate", runs, directory / "restate-outside", start, start, begin=begin)


def _worker(peers: Peers, directory: Path, port: int, processes: int) -> Process:
    """Serve `restate_app`; with 0 processes besides, by the one that is started."""
    settings = directory / "hypercorn.toml"
    limits = ("h2_max_concurrent_streams", "keep_alive_max_requests", "keep_alive_timeout")
    settings.write_text("".join(f"{limit} = {UNLIMITED}\n" for limit in limits))
    words = ["-m", "hypercorn", "--config", str(settings), "-b", f"127.0.0.1:{port}", "-w", str(processes)]
    return Process(
        [str(peers.python), *words, "benchmarks.peers.restate_app:app"],
        directory / f"worker-{time.monotonic_ns()}.log",
        outside.environment(directory / "restate-outside"),
    )


def _introduce(server: Restate, worker: Process, port: int) -> None:
    """Tell the server of its worker, once that listens."""
    where = {"uri": f"http://127.0.0.1:{port}"}
    wait_until(
        lambda: _answers(server.admin, "POST", "/deployments", where),
        "Restate's server knows its worker",
        START_S,
        worker,
    )


class _Load:
    """Clients that send one request after another, each on a connection of its own."""

    def __init__(self, port: int, handler: str, clients: int) -> None:
        self._port, self._handler, self._clients = port, handler, clients
        self._answered = 0
        self._stopping = False

    async def run(self, seconds: float, *pids: int) -> tuple[int, float, float]:
        """For so long; how many were answered, in how many seconds, and the CPU that these processes used."""

        def used_s() -> float:
            return sum(map(family_cpu_s, pids))

        clients = [asyncio.create_task(self._client()) for _ in range(self._clients)]
        await asyncio.sleep(WARM_UP_S)
        answered, began_at, cpu_s = self._answered, time.monotonic(), used_s()
        await asyncio.sleep(seconds)
        answered, took_s, cpu_s = (
            self._answered - answered,
            time.monotonic() - began_at,
            used_s() - cpu_s,
        )
        self._stopping = True
        await asyncio.gather(*clients)
        return answered, took_s, cpu_s

    async def _client(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        while not self._stopping:
            head = (
                f"POST /bench/{self._handler} HTTP/1.1\r\nhost: restate\r\ncontent-type: application/json\r\n"
                f"idempotency-key: {uuid.uuid4().hex}\r\ncontent-length: 1\r\n\r\n0"
            )
            writer.write(head.encode())
            status, _, fields = (await reader.readuntil(b"\r\n\r\n")).lower().partition(b"\r\n")
            length = next(line for line in fields.splitlines() if line.startswith(b"content-length:"))
            answer = await reader.readexactly(int(length.partition(b":")[2]))
            if b" 200 " not in status + b" ":
                raise SystemExit(f"Restate answers {status.decode()}: {answer.decode()}")
            self._answered += 1
        writer.close()


def _answers(port: int, method: str = "GET", path: str = "/health", body: object = None) -> bool:
    try:
        _ask(port, method, path, body)
    except (OSError, HTTPException):  # it does not listen yet, or is not ready
        return False
    return True


def _ask(port: int, method: str, path: str, body: object, headers: dict[str, str] | None = None) -> None:
    """One request; an HTTPException if it is refused."""
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"content-type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        if answer.status >= 300:
            raise HTTPException(f"{path}: {answer.status} {answer.read().decode(errors='replace')}")
