"""A cell as users start it: `python -m bytewax.run FLOW -r … -s 1 -b 0`, with default settings."""

import json
import shutil
import sys
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.bench import Bench
from benchmarks.process import Process
from onceflow.config import Events, Settings
from onceflow.config import Kafka as KafkaSettings
from onceflow.stream.topics import Names, prepare


class Flow(NamedTuple):
    """A flow that is measured."""

    name: str
    module: str


FLOWS = {
    "dedup": Flow("dedup", "flows.dedup"),
    "pure": Flow("bench-pure", "benchmarks.pure_flow"),
    "read": Flow("bench-read", "benchmarks.read_flow"),
    "effects": Flow("bench-effects", "benchmarks.effect_flow"),
    "step": Flow("bench-step", "benchmarks.step_flow"),
    "waits": Flow("bench-waits", "benchmarks.wait_flow"),
}
DEDUP = FLOWS["dedup"]


def make_topics(bench: Bench, flow: Flow, events: Events) -> str:
    """Make the flow's topics anew, as `onceflow prepare` does: they are its memory. Returns F.completions."""
    kafka = bench.kafka
    kafka.delete(f"{flow.name}.")
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=kafka.servers), events=events)
    kafka.cluster.patiently(lambda: prepare(flow.name, kafka.cluster, settings))
    return Names.of(flow.name).completions


class Cell:
    """A cell with directories of its own; `start` may be called again when its process has ended."""

    def __init__(
        self,
        bench: Bench,
        name: str,
        flow: Flow,
        events: Events,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`environment`: what its flow is told besides."""
        self.name = name
        self._flow = flow
        self._directory = bench.directory / name
        self._directory.mkdir()
        self._starts = 0
        self._environment = {
            "ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS": bench.kafka.servers,
            "ONCEFLOW_EVENTS__SHARED": json.dumps(events.shared),
            "ONCEFLOW_EVENTS__TENANT_PREFIX": events.tenant_prefix,
            "ONCEFLOW_EVENTS__SIGNALS": events.signals,
            "ONCEFLOW_STATE_DIR": str(self._directory / "state"),
            "ONCEFLOW_LOG": "json",
            **environment,
        }

    def start(self) -> Process:
        """Start it."""
        self._starts += 1
        recovery = str(self._directory / "recovery")
        command = ["-m", "bytewax.run", self._flow.module, "-r", recovery, "-s", "1", "-b", "0"]
        self._log = self._directory / f"{self._starts}.log"
        return Process([sys.executable, *command], self._log, self._environment)

    @property
    def identity(self) -> str:
        """Its name in the consumer group."""
        return (self._directory / "state" / "cell").read_text().strip()

    def read_other(self, events: Events) -> None:
        """Read from other topics, from the next start on."""
        self._environment["ONCEFLOW_EVENTS__SHARED"] = json.dumps(events.shared)

    def lose_directories(self) -> None:
        """Delete all that it keeps on disk."""
        shutil.rmtree(self._directory / "state")
        shutil.rmtree(self._directory / "recovery")

    def lines(self) -> list[dict[str, Any]]:
        """The log of its last process, as far as it is whole lines of JSON; `at`: the time in seconds since 1970."""
        found = []
        for line in self._log.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            found.append({**entry, "at": datetime.fromisoformat(entry["time"]).timestamp()})
        return found
