"""A PostgreSQL of the benchmark's own: made, started, and gone at the end. A cluster of the machine is never touched.

Its settings are PostgreSQL's: each commit is on the disk before it is acknowledged (`fsync`, `synchronous_commit`).
"""

import contextlib
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers.install import Peers
from benchmarks.process import Process, free_port
from benchmarks.watch import wait_until

USER = "bench"
START_S = 60
READY = "database system is ready to accept connections"  # as its log says


class Postgres(NamedTuple):
    """One that runs."""

    url: str
    pid: int


@contextlib.contextmanager
def postgres(peers: Peers, directory: Path) -> Iterator[Postgres]:
    """Make one below this directory, and run it."""
    home, port = directory / "postgres", free_port()
    home.mkdir()
    group = None if peers.account is None else pwd.getpwnam(peers.account).pw_gid
    if peers.account is not None:
        shutil.chown(home, peers.account, group)
        directory.chmod(0o711)  # so that it reaches its own
    data = str(home / "data")
    made_as = [f"--pgdata={data}", f"--username={USER}", "--auth=trust", "--encoding=UTF8", "--no-locale"]
    made = subprocess.run(
        [str(peers.postgres / "initdb"), *made_as],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        user=peers.account,
        group=group,
        extra_groups=None if peers.account is None else [],
    )
    if made.returncode != 0:
        raise SystemExit(f"PostgreSQL can't be made in {home}: {made.stderr}")
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    server = Process(
        [str(peers.postgres / "postgres"), "-D", data, *options],
        directory / "postgres.log",
        {},
        peers.account,
    )
    try:
        wait_until(lambda: READY in server.log.read_text(), "PostgreSQL answers", START_S, server)
        yield Postgres(f"postgresql+psycopg://{USER}@127.0.0.1:{port}/postgres", server.pid)
    finally:
        server.end(signal.SIGINT)  # it ends its clients' sessions, and then itself
