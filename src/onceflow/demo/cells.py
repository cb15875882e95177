"""The demo's cells: processes of `onceflow run`, each with a state directory, a log, and no way to outlive the demo."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from onceflow.errors import ConfigError, Fault

FLOW_MODULE = "flows.clearledger"
RESTARTS_ON = Fault.exit_status
RESTARTS_MAX = 5
END_S = 15.0  # a cell gives running calls 10 s to end
STEP_S = 0.05  # how long each request to the simulated accounting service takes


class CellProcess:
    """One cell: started, killed, started again; watched in between."""

    def __init__(self, name: str, directory: Path, environ: Mapping[str, str], working: Path) -> None:
        self.name = name
        self.directory = directory
        self.log = directory / "log"
        self._environ = {**environ, "ONCEFLOW_STATE_DIR": str(directory)}
        self._working = working
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = 0

    @property
    def identity(self) -> str:
        """The name that the consumer group knows the cell by; "" before its first start has written it."""
        file = self.directory / "cell"
        return file.read_text().strip() if file.exists() else ""

    def start(self) -> None:
        """Start the process, in a process group of its own: a Ctrl-C in the terminal is for the demo alone."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "onceflow.cli", "run", FLOW_MODULE),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._working,
                env=self._environ,
                start_new_session=True,
            )

    def watch(self) -> None:
        """Start it again if it ended with the status that asks for it; raise if it ended otherwise."""
        status = None if self._process is None else self._process.poll()
        if status is None:
            return
        if status != RESTARTS_ON or self._restarts == RESTARTS_MAX:
            raise Fault(f"{self.name} ended with status {status}. The end of {self.log}:\n{self._tail()}")
        self._restarts += 1
        self.start()

    def kill(self) -> None:
        """SIGKILL: no goodbye, nothing flushed."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def ask_to_end(self) -> None:
        """SIGTERM: end what runs, commit, and exit."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> int | None:
        """Wait for its end, and kill it if that does not come; its exit status (None: it never ran)."""
        if self._process is None:
            return None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        return self._process.returncode

    def _tail(self) -> str:
        return "\n".join(f"  {line}" for line in self.log.read_text(errors="replace").splitlines()[-15:])


def environment(config: Path) -> dict[str, str]:
    """The environment of the cells: the user's, but with the demo's settings instead of any others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ONCEFLOW_")}
    return {**kept, "ONCEFLOW_CONFIG": str(config), "CLEARLEDGER_DELAY_S": str(STEP_S)}


def where_flows_are() -> Path:
    """The directory from which the example flows can be imported: this one, or the clone that is installed."""
    clone = Path(__file__).resolve().parents[3]
    for directory in (Path.cwd(), clone):
        if (directory / "flows" / "clearledger.py").exists():
            return directory
    raise ConfigError(
        f"the demo runs flows/clearledger.py, which is neither here nor in {clone}: run it in a clone"
    )


def stop_all(cells: list[CellProcess]) -> dict[str, int | None]:
    """Ask all cells to end, at the same time, and wait; their exit statuses."""
    deadline = time.monotonic() + END_S
    for cell in cells:
        cell.ask_to_end()
    return {cell.name: cell.wait(max(0.1, deadline - time.monotonic())) for cell in cells}
