"""A tenant's ledger in a dictionary, for one simulated process after another."""

from collections.abc import Sequence
from typing import Any

from onceflow.agents.agent import Agent
from onceflow.agents.happenings import Arrived
from onceflow.agents.journal import OpenRun, open_runs, run_prefix, runs_of
from onceflow.agents.shared import Shared, decode_shared
from onceflow.agents.signals import Kept, decode_kept
from onceflow.state.ledger import Change


class MemoryLedger:
    """A tenant's ledger: what is committed, and what was decided since."""

    def __init__(self, agents: Sequence[Agent[Any, Any]], inbox: Any) -> None:
        self.committed: dict[bytes, bytes] = {}
        self.newer: dict[bytes, bytes | None] = {}
        self._agents = {(agent.name, agent.version): agent for agent in agents}
        self._inbox = inbox

    def put(self, change: Change) -> None:
        key, value = change
        self.newer[key] = value

    def commit(self) -> None:
        for key, value in self.newer.items():
            if value is None:
                self.committed.pop(key, None)
            else:
                self.committed[key] = value
        self.newer = {}

    def scan(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        found: dict[bytes, bytes | None] = {**self.committed, **self.newer}
        return [(k, v) for k, v in sorted(found.items()) if v is not None and k.startswith(prefix)]

    def again(self, saved: Any, inbox: Any) -> Arrived:
        agent = self._agents[saved.begun.agent, saved.begun.version]
        return Arrived.again(saved, inbox, agent)

    def run(self, key: bytes, inbox: Any) -> Arrived | str:
        tenant = next(iter(self.scan(b"")))[0].partition(b"\0")[0].decode()
        found = open_runs(self.scan(run_prefix(tenant, key)))
        return self.again(found[0], inbox) if found else "the ledger does not hold it"

    def inbox(self, source: Any) -> Any:
        return self._inbox

    def signals(self, prefix: bytes) -> list[tuple[bytes, Kept]]:
        return [(key, decode_kept(value)) for key, value in self.scan(prefix)]

    def failed(self, key: bytes) -> OpenRun | None:
        return next((run for run in runs_of(self.scan(b"")) if run.failed and run.key == key), None)

    def shared(self, key: bytes) -> Shared | None:
        found = self.scan(key)
        return decode_shared(found[0][1]) if found else None
