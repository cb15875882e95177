"""The view of `F.ledger`: its records by slot and key, and where each slot's view stands.

It is written only from committed records, those of one commit and the positions in one atomic batch; so it is
never ahead of Kafka, and what it lacks is read from there before a slot is served. A tombstone deletes.

    family      "records"
    key         slot (2 bytes, big-endian) · the record's Kafka key, which begins with tenant · 00
    value       as in Kafka
    default     "position/" · slot            where in F.ledger the slot's view stands
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from onceflow.state.store import Store

_FAMILY = "records"


class LedgerPosition(msgspec.Struct, array_like=True, frozen=True):
    """Where a slot's view stands: the next offset to read, and when that was (ms): old tombstones may be gone."""

    topic_id: str
    offset: int
    time_ms: int


class LedgerRecord(NamedTuple):
    """A committed record; `value` None: a tombstone."""

    slot: int
    key: bytes
    value: bytes | None


class Ledger:
    """The view. Reads on the grants' thread, writes on the outbox's and the grants' threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.add_family(_FAMILY)

    def position(self, slot: int) -> LedgerPosition | None:
        """Where the slot's view stands; None: nowhere."""
        value = self._store.get(_position_key(slot))
        return None if value is None else msgspec.msgpack.decode(value, type=LedgerPosition)

    def write(self, records: Iterable[LedgerRecord], positions: Mapping[int, LedgerPosition]) -> None:
        """Apply committed records, of which the last of a key counts, and then where each slot's view stands."""
        last = {record.slot.to_bytes(2, "big") + record.key: record.value for record in records}
        puts = [(key, value, _FAMILY) for key, value in last.items() if value is not None]
        puts += [
            (_position_key(slot), msgspec.msgpack.encode(position), "default")
            for slot, position in positions.items()
        ]
        deletes = [(key, _FAMILY) for key, value in last.items() if value is None]
        if puts or deletes:
            self._store.write(puts, deletes)

    def records(self, slot: int, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The slot's records whose Kafka keys begin with `prefix`, as (Kafka key, value), in the order of keys."""
        for key, value in self._store.scan(slot.to_bytes(2, "big") + prefix, _FAMILY):
            yield key[2:], value

    def drop(self, slot: int) -> None:
        """Forget a slot: its records and its position, together."""
        self._store.delete_prefix(slot.to_bytes(2, "big"), [_position_key(slot)])

    def close(self) -> None:
        """Release the files."""
        self._store.close()


class Records:
    """The ledger as the worker sees it: the view, and above it what was decided since and isn't in the view yet.

    One thread. `put` what goes to the outbox; `committed` takes it off again once the view has it.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._newer: dict[
            bytes, dict[bytes, bytes | None]
        ] = {}  # slot and tenant -> key -> value; None: deleted

    def put(self, slot: int, key: bytes, value: bytes | None) -> None:
        """Take note of a record that was decided."""
        self._newer.setdefault(_group(slot, key), {})[key] = value

    def scan(self, slot: int, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """The slot's records whose Kafka keys begin with `prefix` (tenant, 00, …), as (Kafka key, value), by key."""
        found: dict[bytes, bytes | None] = dict(self._ledger.records(slot, prefix))
        newer = self._newer.get(_group(slot, prefix), {})
        newer = {key: value for key, value in newer.items() if key.startswith(prefix)}
        if newer:
            found = dict(sorted((found | newer).items()))
        return [(key, value) for key, value in found.items() if value is not None]

    def committed(self, records: Iterable[LedgerRecord]) -> None:
        """The view has these records."""
        for record in records:
            group = _group(record.slot, record.key)
            newer = self._newer.get(group, {})
            if newer.get(record.key, b"") is record.value:
                del newer[record.key]
                if not newer:
                    del self._newer[group]

    def forget(self, slots: Iterable[int]) -> None:
        """Forget lost slots."""
        lost = {slot.to_bytes(2, "big") for slot in slots}
        self._newer = {group: newer for group, newer in self._newer.items() if group[:2] not in lost}

    def __len__(self) -> int:
        return sum(len(newer) for newer in self._newer.values())


def _group(slot: int, key: bytes) -> bytes:
    return slot.to_bytes(2, "big") + key.partition(b"\0")[0]


def _position_key(slot: int) -> bytes:
    return b"position/" + slot.to_bytes(2, "big")
