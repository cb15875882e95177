"""A process under measurement: started, looked at in /proc while it runs, killed or ended."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TAIL = 2_000  # bytes of a log that are shown
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Used(NamedTuple):
    """What a process has used in its life."""

    cpu_s: float
    peak_rss_mib: float


class Process:
    """One process and its log."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )
        self._peak_mib = 0.0

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
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
