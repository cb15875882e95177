"""A cell as a process: started as users start it, killed, frozen, ended; its log kept."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STACKS = 8_000  # characters of a log that hold them
END_S = 30.0  # a cell that was asked to end has done so: grace, last commit, and a busy machine


class Cell:
    """One cell: its directories, and the processes that it has been so far, one at a time."""

    def __init__(self, name: str, directory: Path, module: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.directory = directory
        self.state = directory / "state"
        self.recovery = directory / "recovery"
        self.statuses: list[int] = []
        self.doom: Mapping[
            str, str
        ] = {}  # as `points.environment` makes it: where its next processes kill themselves
        self._module = module
        self._environment = environment
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self.log = directory / "1.log"
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def identity(self) -> str:
        """Its name in the consumer group; "" before it has one."""
        file = self.state / "cell"
        return file.read_text().strip() if file.exists() else ""

    def start(self, arguments: Sequence[str] = (), **environment: str) -> "Cell":
        """Start a process of it; `arguments` and `environment` on top of the usual ones."""
        assert not self.running(), f"{self.name} runs already"
        self.log = self.directory / f"{next(self._numbers)}.log"
        command = [sys.executable, "-m", "bytewax.run", self._module, "-s", "1", "-b", "0"]
        if "-r" not in arguments:
            command += ["-r", str(self.recovery)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *arguments],
                cwd=ROOT,
                env={
                    **os.environ,
                    "ONCEFLOW_STATE_DIR": str(self.state),
                    "ONCEFLOW_LOG": "json",
                    **self._environment,
                    **self.doom,
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C of the test run is not the cell's
            )
        return self

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def ended(self) -> int | None:
        """The status of its process, once it has ended."""
        if self._process is None or (status := self._process.poll()) is None:
            return None
        self._process = None
        self.statuses.append(status)
        return status

    def end(self, number: signal.Signals | None = None, timeout_s: float = END_S) -> int:
        """Send a signal, wait for the end, return the status."""
        if number is not None:
            self.send(number)
        assert self._process is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            stood = self.stands()
            raise AssertionError(
                f"cell {self.name} did not end within {timeout_s:g} s: {self.log}\n{stood}"
            ) from None
        status = self.ended()
        assert status is not None
        return status

    def stands(self) -> str:
        """The end of its log, with where its threads stand if it runs."""
        if not self.log.exists():
            return "(it was not started)"
        if self._process is not None and self.running():
            self.send(signal.SIGUSR2)  # the flows under test answer with the stacks of their threads
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
        return self.text()[-STACKS:]

    def kill(self) -> None:
        """kill -9."""
        assert self.end(signal.SIGKILL) == -signal.SIGKILL, f"{self.name} had ended by itself: {self.log}"

    def lose_recovery(self) -> None:
        shutil.rmtree(self.recovery, ignore_errors=True)

    def lose_state(self) -> None:
        self.lose_recovery()
        shutil.rmtree(self.state, ignore_errors=True)

    def lines(self) -> list[dict[str, Any]]:
        """The log of its last process, as far as it is whole lines of JSON."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def owned(self) -> int:
        """How many slots its last process owns, by its own log."""
        owned = [line["owned"] for line in self.lines() if "owned" in line]
        return owned[-1] if owned else 0

    def text(self) -> str:
        return self.log.read_text(errors="replace")
