"""The view of `F.ledger`: its records by slot and key, and where each slot's view stands.

It is written only from committed records, and then the positions; so it is never ahead of Kafka, and what it lacks is
read from there before a slot is served. A tombstone deletes. Most runs end soon, so committed records
are gathered for a while: a segment of a run that is deleted meanwhile never reaches the disk.

    family      "records"
    key         slot (2 bytes, big-endian) · the record's Kafka key, which begins with tenant · 00
    value       as in Kafka
    default     "position/" · slot            where in F.ledger the slot's view stands
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from threading import RLock

import msgspec

from onceflow.state.store import Store

GATHERED_MAX = 50_000  # records: what a restart reads again at most
GATHERED_S = 1.0
BATCH_RECORDS = 1_000  # a write holds the interpreter's lock, so it must be short
_FAMILY = "records"


class LedgerPosition(msgspec.Struct, array_like=True, frozen=True):
    """Where a slot's view stands: the next offset to read, and when that was (ms): old tombstones may be gone."""

    topic_id: str
    offset: int
    time_ms: int


Change = tuple[bytes, bytes | None]  # Kafka key and value; None: it is deleted
Changes = Mapping[int, list[Change]]  # by slot, in order


class Ledger:
    """The view. Read on the grants' thread and the worker's, written on the outbox's and the grants'."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = RLock()  # guards what is gathered
        self._gathered: dict[int, dict[bytes, Change]] = {}  # slot -> Kafka key -> the last change
        self._positions: dict[int, LedgerPosition] = {}
        self._written: dict[int, list[Change]] = {}  # and nobody was told yet
        self._since = 0  # records that were gathered since the last write
        self._written_at = time.monotonic()
        store.add_family(_FAMILY)

    def position(self, slot: int) -> LedgerPosition | None:
        """Where the slot's view stands; None: nowhere."""
        value = self._store.get(_position_key(slot))
        return None if value is None else msgspec.msgpack.decode(value, type=LedgerPosition)

    def write(self, changes: Changes, positions: Mapping[int, LedgerPosition]) -> Changes:
        """Take records that were just committed, and where each slot's view stands after them.

        Returns those that need not be remembered elsewhere any more: the view has them, or never will.
        """
        spared: dict[int, list[Change]] = {}
        with self._lock:
            for slot, records in changes.items():
                self._since += len(records)
                gathered, of_slot = self._gathered.setdefault(slot, {}), spared.setdefault(slot, [])
                for change in records:
                    key, value = change
                    if (before := gathered.get(key)) is not None:
                        if value is None and before[1] is not None and _is_segment(key):
                            del gathered[key]
                            of_slot.append(change)
                            continue
                        if value is not None and before[1] is None:
                            self._flush()  # its deletion may be of an older one, on disk: that is not to be forgotten
                            gathered = self._gathered.setdefault(slot, {})
                    gathered[key] = change
            self._positions.update(positions)
            if self._since >= GATHERED_MAX or time.monotonic() - self._written_at > GATHERED_S:
                self._flush()
            return self._taken(spared)

    def catch_up(self, changes: Changes, positions: Mapping[int, LedgerPosition]) -> None:
        """Take records that are read again. None is spared: a write that was cut short may have left it on disk."""
        with self._lock:
            self._flush()
            last = {slot: {change[0]: change for change in records} for slot, records in changes.items()}
            self._write(last, positions)

    def flush(self) -> Changes:
        """Write what was gathered; return it, with what was written since the last `write`."""
        with self._lock:
            self._flush()
            return self._taken({})

    def _flush(self) -> None:
        self._write(self._gathered, self._positions)
        for slot, gathered in self._gathered.items():
            self._written.setdefault(slot, []).extend(gathered.values())
        self._gathered, self._positions, self._since = {}, {}, 0
        self._written_at = time.monotonic()

    def _write(
        self, changes: Mapping[int, dict[bytes, Change]], positions: Mapping[int, LedgerPosition]
    ) -> None:
        """Records first, then the positions: the view is never ahead of where it says it stands."""
        for slot, records in changes.items():
            begin, all_of_them = slot.to_bytes(2, "big"), [*records.values()]
            for first in range(0, len(all_of_them), BATCH_RECORDS):
                batch = all_of_them[first : first + BATCH_RECORDS]
                self._store.write(
                    [(begin + key, value, _FAMILY) for key, value in batch if value is not None],
                    [(begin + key, _FAMILY) for key, value in batch if value is None],
                )
        if positions:
            self._store.write(
                [
                    (_position_key(slot), msgspec.msgpack.encode(position), "default")
                    for slot, position in positions.items()
                ]
            )

    def _taken(self, spared: dict[int, list[Change]]) -> Changes:
        for slot, written in self._written.items():
            spared.setdefault(slot, []).extend(written)
        self._written = {}
        return spared

    def records(self, slot: int, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The slot's records on disk whose Kafka keys begin with `prefix`, as (Kafka key, value), by key."""
        for key, value in self._store.scan(slot.to_bytes(2, "big") + prefix, _FAMILY):
            yield key[2:], value

    def drop(self, slot: int) -> None:
        """Forget a slot: its records and its position, together, and what nobody was told of it yet."""
        begin = slot.to_bytes(2, "big")
        with self._lock:
            self._gathered.pop(slot, None)
            self._written.pop(slot, None)
            self._positions.pop(slot, None)
            self._store.delete_prefix(begin, [_position_key(slot)])

    def close(self) -> None:
        """Write what was gathered, and release the files."""
        self.flush()
        self._store.close()


class Records:
    """The ledger as the worker sees it: the view, and above it what was decided since and isn't in the view yet.

    One thread. `put` the change that goes to the outbox; `committed` takes it off again once the view has it: that very
    one, for a later deletion is equal to an earlier one.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._newer: dict[bytes, dict[bytes, Change]] = {}  # slot and tenant -> key -> the last change

    def put(self, group: bytes, change: Change) -> None:
        """Take note of what was decided of a record; `group`: as `group_of` makes it."""
        newer = self._newer.get(group)
        if newer is None:
            newer = self._newer[group] = {}
        newer[change[0]] = change

    def scan(self, slot: int, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """The slot's records whose Kafka keys begin with `prefix` (tenant, 00, …), as (Kafka key, value), by key."""
        found: dict[bytes, bytes | None] = dict(self._ledger.records(slot, prefix))
        newer = self._newer.get(group_of(slot, prefix.partition(b"\0")[0]), {})
        changed = dict([change for key, change in newer.items() if key.startswith(prefix)])
        if changed:
            found = dict(sorted((found | changed).items()))
        return [(key, value) for key, value in found.items() if value is not None]

    def committed(self, changes: Changes) -> None:
        """The view has these records."""
        for slot, records in changes.items():
            begin, tenant, group = slot.to_bytes(2, "big"), b"\0", b""
            newer: dict[bytes, Change] = {}
            for change in records:
                key = change[0]
                if not key.startswith(tenant):
                    tenant = key[: key.find(b"\0") + 1]
                    group = begin + tenant[:-1]
                    newer = self._newer.get(group, {})
                if newer.get(key) is change:
                    del newer[key]
                    if not newer:
                        del self._newer[group]
                        tenant = b"\0"

    def forget(self, slots: Iterable[int]) -> None:
        """Forget lost slots."""
        lost = {slot.to_bytes(2, "big") for slot in slots}
        self._newer = {group: newer for group, newer in self._newer.items() if group[:2] not in lost}

    def __len__(self) -> int:
        return sum(len(newer) for newer in self._newer.values())


def group_of(slot: int, tenant: bytes) -> bytes:
    """What a tenant's records have in common."""
    return slot.to_bytes(2, "big") + tenant


def _is_segment(key: bytes) -> bool:
    """Whether it is a run's segment: each is written once, and then deleted."""
    return key.startswith(b"\0r", key.find(b"\0"))


def _position_key(slot: int) -> bytes:
    return b"position/" + slot.to_bytes(2, "big")
