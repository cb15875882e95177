"""A lane's snapshot: the cache of its runs' journals.

After a crash a run whose event comes again from the same record, with the same version of its agent, goes on with it
and skips finished steps.
"""

from collections.abc import Iterable

import msgspec

from onceflow.agents.happenings import Arrived
from onceflow.agents.journal import Entry
from onceflow.agents.machine import Machine

SNAPSHOT_FORMAT = 1


class Journal(msgspec.Struct, array_like=True):
    """A run's journal in a lane's snapshot."""

    key: bytes
    record: str
    origin: str
    agent: str
    version: int
    entries: dict[str, Entry]


class Snapshot(msgspec.Struct, array_like=True):
    """What a lane leaves for its successor. Begins with a format number, as every stored form."""

    format: int
    tenant: str
    journals: list[Journal]


def encode_snapshot(tenant: str, journals: Iterable[Journal], runs: Iterable[Machine]) -> bytes:
    """Of runs in flight, and of runs whose event did not come again yet."""
    kept = list(journals)
    for run in runs:
        if run.journal and not run.segments:  # what the ledger holds needs no cache
            arrived: Arrived = run.token
            made_by = (run.agent.name, run.agent.version)
            kept.append(Journal(arrived.key, arrived.record, arrived.origin, *made_by, dict(run.journal)))
    return msgspec.msgpack.encode(Snapshot(SNAPSHOT_FORMAT, tenant, kept))


def snapshot_tenant(snapshot: bytes) -> str | None:
    """The tenant of a snapshot; None if it is of another format, and so left aside."""
    head = msgspec.msgpack.decode(snapshot)
    return str(head[1]) if head[0] == SNAPSHOT_FORMAT else None


def restored(snapshot: bytes) -> dict[bytes, Journal]:
    """The journals in it, by run."""
    journals = msgspec.msgpack.decode(snapshot, type=Snapshot).journals
    return {journal.key: journal for journal in journals}
