"""The ledger's view: what it holds of committed records, what it spares the disk, and what the worker sees."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from onceflow.agents.journal import segment_key
from onceflow.agents.shared import shared_key
from onceflow.state import ledger as module
from onceflow.state.ledger import Change, Changes, Ledger, LedgerPosition, Records, group_of
from onceflow.state.store import Store

RUN = segment_key("acme", b"r" * 16, 0)
NEXT = segment_key("acme", b"r" * 16, 1)
SHARED = shared_key("acme", b"\0r" + b"d" * 14)  # its digest looks like the kind of a segment
AT = LedgerPosition("topic-id", 7, 1_000)
LATER = LedgerPosition("topic-id", 9, 2_000)
SLOT = 3


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(Store.open(tmp_path / "ledger"))
    yield ledger
    ledger.close()


def put(*changes: tuple[bytes, bytes | None], slot: int = SLOT) -> Changes:
    return {slot: [*changes]}


def held(ledger: Ledger, slot: int = SLOT) -> list[tuple[bytes, bytes]]:
    return [*ledger.records(slot)]


def test_records_are_gathered_and_written_with_their_positions(ledger: Ledger) -> None:
    assert ledger.write(put((RUN, b"a"), (SHARED, b"b")), {SLOT: AT}) == put()
    assert (held(ledger), ledger.position(SLOT)) == ([], None)
    assert ledger.flush() == put((RUN, b"a"), (SHARED, b"b"))
    assert (held(ledger), ledger.position(SLOT)) == (sorted([(RUN, b"a"), (SHARED, b"b")]), AT)


def test_a_segment_that_is_deleted_soon_never_reaches_the_disk(ledger: Ledger) -> None:
    ledger.write(put((RUN, b"a"), (NEXT, b"b")), {SLOT: AT})
    assert ledger.write(put((RUN, None)), {SLOT: LATER}) == put((RUN, None))
    assert ledger.flush() == put((NEXT, b"b"))
    assert (held(ledger), ledger.position(SLOT)) == ([(NEXT, b"b")], LATER)


def test_one_that_is_on_disk_is_deleted_there(ledger: Ledger) -> None:
    ledger.write(put((RUN, b"a")), {SLOT: AT})
    ledger.flush()
    ledger.write(put((RUN, None)), {SLOT: LATER})
    assert held(ledger) == [(RUN, b"a")]
    ledger.flush()
    assert held(ledger) == []


def test_what_may_have_been_written_before_is_deleted_on_disk_too(ledger: Ledger) -> None:
    """The record of a shared call is written again and again: an older one may be there."""
    ledger.write(put((SHARED, b"older")), {})
    ledger.flush()
    ledger.write(put((SHARED, b"newer")), {})
    assert ledger.write(put((SHARED, None)), {SLOT: AT}) == put()
    ledger.flush()
    assert held(ledger) == []


def test_what_a_write_that_was_cut_short_has_left_is_deleted(ledger: Ledger) -> None:
    """Its position was not written, so the segment is read again, with the deletion that came meanwhile."""
    ledger._store.write([(SLOT.to_bytes(2, "big") + RUN, b"a", "records")])
    ledger.catch_up(put((RUN, b"a"), (RUN, None), (NEXT, b"b")), {SLOT: AT})
    assert (held(ledger), ledger.position(SLOT)) == ([(NEXT, b"b")], AT)


def test_a_deletion_that_is_gathered_outlives_another_run_with_the_same_key(ledger: Ledger) -> None:
    ledger.write(put((RUN, b"older")), {})
    ledger.flush()
    ledger.write(put((RUN, None), (RUN, b"newer"), (RUN, None)), {SLOT: AT})
    ledger.flush()
    assert held(ledger) == []


def test_what_a_catch_up_writes_of_other_slots_is_told_later(ledger: Ledger) -> None:
    ledger.write(put((RUN, b"a")), {SLOT: AT})
    ledger.catch_up(put((NEXT, b"b"), slot=4), {4: AT})
    assert ledger.write({}, {}) == put((RUN, b"a"))
    assert ledger.write({}, {}) == {}


def test_it_is_written_when_much_is_gathered(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted are all records, also those that never reach the disk: a restart reads them again."""
    monkeypatch.setattr(module, "GATHERED_MAX", 4)
    monkeypatch.setattr(module, "GATHERED_S", 1e9)
    ledger.write(put((RUN, b"a"), (RUN, None), (NEXT, b"b")), {SLOT: AT})
    assert ledger.position(SLOT) is None
    ledger.write(put((NEXT, None)), {SLOT: LATER})
    assert (held(ledger), ledger.position(SLOT)) == ([], LATER)


def test_it_is_written_after_a_while(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHERED_S", -1.0)
    assert ledger.write(put((RUN, b"a")), {SLOT: AT}) == put((RUN, b"a"))
    assert ledger.position(SLOT) == AT


def test_a_slot_that_is_dropped_is_gone_with_what_is_gathered_of_it(ledger: Ledger) -> None:
    ledger.write(put((RUN, b"a")) | put((RUN, b"b"), slot=4), {SLOT: AT, 4: AT})
    ledger.flush()
    ledger.write(put((NEXT, b"a")) | put((NEXT, b"b"), slot=4), {SLOT: LATER, 4: LATER})
    ledger.drop(SLOT)
    ledger.flush()
    assert (held(ledger), ledger.position(SLOT)) == ([], None)
    assert (held(ledger, 4), ledger.position(4)) == ([(RUN, b"b"), (NEXT, b"b")], LATER)


def test_what_is_gathered_is_written_at_a_clean_end(tmp_path: Path) -> None:
    ledger = Ledger(Store.open(tmp_path / "ledger"))
    ledger.write(put((RUN, b"a")), {SLOT: AT})
    ledger.close()
    again = Ledger(Store.open(tmp_path / "ledger"))
    assert (held(again), again.position(SLOT)) == ([(RUN, b"a")], AT)
    again.close()


def test_the_worker_sees_what_was_decided_from_then_on(ledger: Ledger) -> None:
    """Decided, committed and gathered, on disk: at no time is a record missing, nor one that is deleted there."""
    records, group = Records(ledger), group_of(SLOT, b"acme")

    def seen() -> list[bytes]:
        return [value for _, value in records.scan(SLOT, RUN[:-4])]

    first, second, deleted = (RUN, b"a"), (NEXT, b"b"), (RUN, None)
    for change in (first, second):
        records.put(group, change)
    assert seen() == [b"a", b"b"]
    records.committed(ledger.write(put(first, second), {SLOT: AT}))
    assert seen() == [b"a", b"b"]
    records.put(group, deleted)
    assert seen() == [b"b"]
    records.committed(ledger.write(put(deleted), {SLOT: LATER}))
    assert (seen(), len(records)) == ([b"b"], 1)
    records.committed(ledger.flush())
    assert (seen(), len(records)) == ([b"b"], 0)


def test_a_later_deletion_is_known_until_that_very_one_is_on_disk(ledger: Ledger) -> None:
    """The worker is told of the first when the second is decided already, and the record between them is on disk."""
    records, group = Records(ledger), group_of(SLOT, b"acme")

    def decided(value: bytes | None) -> Change:
        change = (SHARED, value)
        records.put(group, change)
        return change

    for value in (b"held by a", None):
        records.committed(ledger.write(put(decided(value)), {SLOT: AT}))
    told = ledger.write(put(decided(b"held by b")), {SLOT: AT})
    second = decided(None)
    records.committed(told)
    records.committed(ledger.flush())
    assert held(ledger) == [(SHARED, b"held by b")]
    assert records.scan(SLOT, SHARED) == []
    records.committed(ledger.write(put(second), {SLOT: LATER}))
    records.committed(ledger.flush())
    assert (records.scan(SLOT, SHARED), held(ledger), len(records)) == ([], [], 0)


def test_what_was_not_told_of_a_slot_that_is_dropped_never_is(ledger: Ledger) -> None:
    """Its next grant has decided otherwise meanwhile."""
    ledger.write(put((SHARED, None)), {SLOT: AT})
    ledger.catch_up({}, {})
    ledger.drop(SLOT)
    assert ledger.flush() == {}
