"""A process under measurement: started, looked at in /proc while it runs, killed or ended."""

import contextlib
import os
import pwd
import random
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TAIL = 2_000  # bytes of a log that are shown
_PORTS = range(20_000, 30_000)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Used(NamedTuple):
    """What a process has used in its life."""

    cpu_s: float
    peak_rss_mib: float


class Process:
    """One process and its log."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], account: str | None = None
    ) -> None:
        """`account`: whom it runs as, if not as whoever starts it."""
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                user=account,
                group=None if account is None else pwd.getpwnam(account).pw_gid,
                extra_groups=None if account is None else [],
            )
        self._peak_mib = 0.0

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def running(self) -> bool:
        """Whether it runs; it isn't reaped, so that what it used can be asked for at its end."""
        if self._process.returncode is not None:
            return False
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def must_run(self) -> None:
        """SystemExit, with the end of its log, if it has ended."""
        if not self.running():
            raise SystemExit(f"it ended by itself: {self.tail()}")

    def rss_mib(self) -> float:
        """Resident memory now; notes the peak too.

        The kernel's account at a process's end (`ru_maxrss`) would not do: it includes the parent's memory, which a
        child shares until it executes its program.
        """
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        sizes = {
            name: int(rest.split()[0]) / 1024
            for name, _, rest in (line.partition(":") for line in status.splitlines())
            if name in ("VmRSS", "VmHWM")
        }
        self._peak_mib = max(self._peak_mib, sizes.get("VmHWM", 0.0))  # a process that has ended has none
        return sizes.get("VmRSS", 0.0)

    def end(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 60.0) -> Used:
        """Send a signal, wait for the end, return what it used."""
        if self._process.returncode is not None:
            return Used(0.0, self._peak_mib)
        self.rss_mib()
        os.kill(self._process.pid, number)  # it may have ended; it isn't reaped, so its id is its own
        deadline = time.monotonic() + timeout_s
        while self.running():
            if time.monotonic() > deadline:
                os.kill(self._process.pid, signal.SIGKILL)
                raise SystemExit(f"it did not end within {timeout_s:g} s of {number.name}: {self.tail()}")
            time.sleep(0.02)
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return Used(used.ru_utime + used.ru_stime, self._peak_mib)

    def tail(self) -> str:
        """The end of its log."""
        return f"{self.log}\n{self.log.read_text(errors='replace')[-TAIL:]}"


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, that a running process has used."""
    fields = _fields(Path(f"/proc/{pid}/stat"))
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def family_cpu_s(pid: int) -> float:
    """The same of a process, its children and their children, those included that have ended."""
    found: dict[int, tuple[int, float]] = {}  # process -> its parent, and its seconds
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            fields = _fields(file)
            found[int(file.parent.name)] = (int(fields[1]), sum(map(int, fields[11:15])) / _TICKS_PER_S)
    family = {pid}
    while more := {child for child, (parent, _) in found.items() if parent in family} - family:
        family |= more
    return sum(found[member][1] for member in family if member in found)


def free_port() -> int:
    """A port that nobody listens on now, below the range of outgoing connections, so that none takes it meanwhile."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _fields(file: Path) -> list[str]:
    """What the kernel says of a process, from its state on; its name before that may hold anything."""
    return file.read_text().rpartition(")")[2].split()
