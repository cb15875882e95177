"""What a cell knows of the runs in its ledger without reading it: which are kept as they failed, and what is due."""

from types import SimpleNamespace
from typing import Any

import pytest

from onceflow.agents.agent import agent, routes
from onceflow.agents.happenings import Arrived, Due
from onceflow.agents.journal import (
    FAILED,
    FAILED_KEPT_MS,
    PARKED,
    OpenRun,
    encode_segment,
    failed,
    parked,
    run_prefix,
    segment_key,
)
from onceflow.agents.run import Run
from onceflow.event import Event, home_slot
from onceflow.state.ledger import Records
from onceflow.state.seen import BrokerClock, Judge
from onceflow.stream import open_runs as module
from onceflow.stream.news import Ready
from onceflow.stream.open_runs import OpenRuns, TenantMemory
from tests.tenant import INCOMING, KEY, NOW

SLOTS = 4
SLOT = home_slot("acme", SLOTS)


class Disk:
    """A view that counts how often it is read."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}
        self.reads = 0

    def records(self, slot: int, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        self.reads += 1
        return sorted(each for each in self.held.items() if each[0].startswith(prefix))


@agent("works", on="t", deadline=60)
async def works(run: Run, event: Event) -> None: ...


SOURCE: Any = SimpleNamespace(topic="t", partition=0, is_inbox=True, grant=SimpleNamespace(slot=SLOT))
BEGUN = Arrived(SOURCE, 0, NOW, b"", None, INCOMING, works).begun()


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def open_runs(disk: Disk) -> OpenRuns:
    records: Any = Records(disk)  # type: ignore[arg-type]
    seen: Any = None
    return OpenRuns(
        records, routes([works]), Judge(seen, BrokerClock()), SLOTS, lambda grant: None, with_identity=False
    )


def kept(disk: Disk, open_runs: OpenRuns) -> TenantMemory:
    """The ledger holds a failed run, as the grant has said."""
    end = {FAILED: failed("works", "no", "why", NOW)}
    disk.held = {
        segment_key("acme", KEY, 0): encode_segment(BEGUN, {}),
        segment_key("acme", KEY, 1): encode_segment(None, end),
    }
    open_runs.plan("acme", Due(b"", run_prefix("acme", KEY)), NOW + FAILED_KEPT_MS)
    return open_runs.memory("acme")


def test_the_disk_is_not_asked_for_what_is_kept_of_a_failed_run_unless_there_is_something(
    disk: Disk, open_runs: OpenRuns
) -> None:
    memory = kept(disk, open_runs)
    assert memory.failed(b"x" * 16) is None
    assert disk.reads == 0
    assert memory.failed(KEY) is not None
    for number in (0, 1):
        memory.put((segment_key("acme", KEY, number), None))
    assert (memory.failed(KEY), disk.reads) == (None, 1)


def test_when_its_time_is_over_it_is_still_known_until_it_is_deleted(disk: Disk, open_runs: OpenRuns) -> None:
    memory = kept(disk, open_runs)
    assert open_runs.due(NOW + FAILED_KEPT_MS, lambda tenant: True)
    assert memory.failed(KEY) is not None


def test_with_its_slot_it_is_forgotten(disk: Disk, open_runs: OpenRuns) -> None:
    memory = kept(disk, open_runs)
    open_runs.forget([(SLOT + 1) % SLOTS])
    assert memory.failed(KEY) is not None
    open_runs.forget([SLOT])
    assert open_runs.failed == set()


def test_the_deadline_of_a_parked_run_is_known_to_the_next_owner_of_its_slot(open_runs: OpenRuns) -> None:
    journal = {PARKED: parked("works", "unknown-outcome", "?", "", 1_000)}
    ready = Ready(SOURCE.grant, [SOURCE], [OpenRun("acme", KEY, BEGUN, journal, 1)], [])
    assert [(tenant, resumed.key) for tenant, resumed in open_runs.resume(ready)] == [("acme", KEY)]
    assert open_runs.due(NOW + 59_999, lambda tenant: True) == []
    assert open_runs.due(NOW + 60_000, lambda tenant: True) == [("acme", Due(KEY))]


def test_the_times_of_runs_that_have_ended_are_not_held_until_they_are_over(
    open_runs: OpenRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DUE_MAX", 10)
    journal = {PARKED: parked("works", "unknown-outcome", "?", "", 1_000)}
    ready = Ready(SOURCE.grant, [SOURCE], [OpenRun("acme", KEY, BEGUN, journal, 1)], [])
    open_runs._due_max = module.DUE_MAX
    assert [*open_runs.resume(ready)]
    open_runs.plan("acme", Due(b"", b"acme\0s"), NOW)
    for number in range(100):
        open_runs.plan("acme", Due(number.to_bytes(16, "little")), NOW + 1)
    assert len(open_runs._due) <= 11
    due = open_runs.due(NOW + 60_000, lambda tenant: True)
    assert ("acme", Due(KEY)) in due
    assert ("acme", Due(b"", b"acme\0s")) in due
