"""DBOS on PostgreSQL: its program started, killed, started again."""

import json
import subprocess
from pathlib import Path

from benchmarks import outside
from benchmarks.peers.crash import Crashed, crash
from benchmarks.peers.install import Peers
from benchmarks.peers.postgres import postgres
from benchmarks.peers.rates import Rate
from benchmarks.process import ROOT, Process

THREADS = (8, 16)
PATIENCE_S = 120


def rates(peers: Peers, directory: Path, calls: int, number: int, seconds: float) -> list[Rate]:
    """Workflows of so many steps, called by ever more threads, each with an id of its own."""
    found = []
    with postgres(peers, directory) as server:
        for threads in THREADS:
            words = ["rate", server.url, str(server.pid), str(calls), str(threads), str(seconds)]
            done = subprocess.run(
                [str(peers.python), "-m", "benchmarks.peers.dbos_app", *words],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds + PATIENCE_S,
            )
            if done.returncode != 0:
                raise SystemExit(f"DBOS did not run: {done.stderr}")
            counted = json.loads(done.stdout)
            setting = f"{threads} threads"
            found.append(
                Rate.of("DBOS", calls, number, setting, counted["runs"], counted["seconds"], counted["cpu_s"])
            )
    return found


def crashed(peers: Peers, directory: Path, runs: int) -> Crashed:
    """The scene of `crash`."""
    file = directory / "dbos-outside"
    with postgres(peers, directory) as server:

        def start(*words: str) -> Process:
            command = [str(peers.python), "-m", "benchmarks.peers.dbos_app", words[0], server.url, *words[1:]]
            return Process(command, directory / f"dbos-{words[0]}.log", outside.environment(file))

        return crash("DBOS", runs, file, lambda: start("crash", str(runs)), lambda: start("recover"))
