"""Dedup: was this event's run completed within the window, or is it in flight?

Keys in flight are known from memory, completed ones from a view of `F.completions` in RocksDB. The view is
written only from committed completions, keys and positions in atomic batches, positions last; so it is never
ahead of Kafka, and what it lacks is read from there before a slot is served. A key is never remembered
because it was *seen*: a crash between a duplicate and its first would then lose both.

    family      seen/<first ms>/<end ms>      a time bucket of completions; dropped whole when too old
    key         slot (2 bytes, big-endian) · tenant · 00 · "k" · run key (16 bytes)         a run, or
                slot · tenant · 00 · "i" · xxh3_128 of source and id (16 bytes)             an event's identity
    value       time of the completion, ms (8 bytes, big-endian) [· run key, for an identity]
    default     "position/" · slot            where in F.completions the slot's view stands

Times are the broker's: of a completion, the log-append time of its record; of an event, its record's, but no
later than the broker's clock now and no earlier than what the view reaches back to plus the window. An event
is a duplicate if its time is at most the window after the completion. So a wrong clock changes its own event
only.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from threading import Lock
from typing import NamedTuple

import msgspec
import xxhash

from onceflow.state.store import Store

BUCKETS_PER_WINDOW = 3  # so that a current event is looked up in four buckets at most
BUCKETS_MAX = 24
BATCH_KEYS = 1_000  # a write holds the interpreter's lock, so it must be short

_WRONG_MS = 3_600_000  # that the broker's clock is set back; no answer takes so long
_DAY_MS = 86_400_000


class Verdict(StrEnum):
    """What an event is, next to what was seen."""

    FIRST = "first"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"  # same source and id, other content; only where conflicts are rejected


class Position(msgspec.Struct, array_like=True, frozen=True):
    """Where a slot's view stands: the next offset to read of this slot's partition of this topic."""

    topic_id: str
    offset: int
    identities: bool = False  # whether the view has those of all events up to there


class Completed(NamedTuple):
    """Committed completions of one time, as the view remembers them."""

    time_ms: int
    runs: list[bytes]  # as `seen_key` makes them
    identities: list[tuple[bytes, bytes]]  # as `identity_key` makes them, and whose: a run as in `runs`


def tenant_prefix(slot: int, tenant: str) -> bytes:
    """All keys of a tenant begin so."""
    return slot.to_bytes(2, "big") + tenant.encode() + b"\0"


def seen_key(prefix: bytes, run_key: bytes) -> bytes:
    """The view's key of a run."""
    return prefix + b"k" + run_key


def identity_key(prefix: bytes, source: str, id: str) -> bytes:
    """The view's key of an event's source and id, whatever its content."""
    text = source.encode()
    return prefix + b"i" + xxhash.xxh3_128_digest(len(text).to_bytes(4, "big") + text + id.encode())


class BrokerClock:
    """The broker's time, as far as it is known: the last log-append time plus the time passed since."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset_ms: float | None = None

    def observe(self, time_ms: int) -> None:
        """Take note of a log-append time just received."""
        offset = time_ms - self._monotonic() * 1000
        # An answer that took long shows an earlier time; the clock does not go back for that. For one that was wrong it
        # does, or copies would count as beyond the window for as long as this process lives.
        if self._offset_ms is None or offset > self._offset_ms or offset < self._offset_ms - _WRONG_MS:
            self._offset_ms = offset

    def now_ms(self) -> int | None:
        """The broker's time; None before anything was heard of it."""
        return None if self._offset_ms is None else int(self._offset_ms + self._monotonic() * 1000)


class Seen:
    """The view of completions. Reads on the worker's thread, writes on the outbox's and the grants' threads."""

    def __init__(self, store: Store, *, window_ms: int, span_ms: int, identities: bool = False) -> None:
        """`identities`: whether they are asked for, and so written."""
        self._store = store
        self.identities = identities
        self._window_ms = window_ms
        self._span_ms = span_ms
        self._width_ms = max(-(-window_ms // BUCKETS_PER_WINDOW), -(-span_ms // BUCKETS_MAX), 1)
        # The outbox's thread writes and expires, the grants' writes: one at a time, so that each change of the buckets
        # is of the latest ones, and none is dropped while it is written to. The worker never waits for them: it reads
        # the list that was there last, which is replaced as a whole; a family dropped meanwhile holds nothing.
        self._changes = Lock()
        self._buckets = _newest_first(store.families)

    def find(self, keys: list[bytes], times_ms: Sequence[int], now_ms: int | None) -> list[bytes | None]:
        """Return, for each key, the value stored for a completion that makes its event a duplicate.

        `times_ms` are the events' times, of the same length as `keys`.
        """
        found: list[bytes | None] = [None] * len(keys)
        if not keys:
            return found
        floor = self._window_ms + (0 if now_ms is None else now_ms - self._span_ms)
        cap = now_ms if now_ms is not None else 1 << 62
        earliest = min(times_ms)
        oldest = max(min(earliest, cap), floor) - self._window_ms
        open_at: Sequence[int] = range(len(keys))
        for _, end, family in self._buckets:
            if end <= oldest:
                continue  # and not the last one: buckets of another width lie across after a change of the window
            hits = self._store.get_many(
                family, keys if len(open_at) == len(keys) else [keys[i] for i in open_at]
            )
            if hits.count(None) == len(hits):
                continue
            for index, value in zip(open_at, hits, strict=True):
                if value is not None:
                    since = max(min(times_ms[index], cap), floor) - self._window_ms
                    if int.from_bytes(value[:8], "big") >= since:
                        found[index] = value
            open_at = [index for index in open_at if found[index] is None]
            if not open_at:
                break
        return found

    def position(self, slot: int) -> Position | None:
        """Where the slot's view stands; None: nowhere, or it lacks the identities that are asked for now."""
        value = self._store.get(_position_key(slot))
        found = None if value is None else msgspec.msgpack.decode(value, type=Position)
        return None if found is None or (self.identities and not found.identities) else found

    def write(self, completed: Iterable[Completed], positions: Mapping[int, Position]) -> None:
        """Remember committed completions and then where each slot's view stands."""
        for time_ms, runs, identities in completed:
            stamp = time_ms.to_bytes(8, "big")
            keys = sorted(
                runs
            )  # beside each other they are put into RocksDB's skip list in two thirds of the time
            with self._changes:
                family = self._bucket(time_ms)
                for first in range(0, len(keys), BATCH_KEYS):
                    self._store.put_all(keys[first : first + BATCH_KEYS], stamp, family)
                if identities:
                    self._store.write([(identity, stamp + run[-16:], family) for identity, run in identities])
        if positions:
            stand = {
                slot: msgspec.structs.replace(position, identities=self.identities)
                for slot, position in positions.items()
            }
            self._store.write(
                [
                    (_position_key(slot), msgspec.msgpack.encode(position), "default")
                    for slot, position in stand.items()
                ]
            )

    def drop(self, slot: int) -> None:
        """Forget a slot: its keys and its position, together."""
        self._store.delete_prefix(slot.to_bytes(2, "big"), [_position_key(slot)])

    def expire(self, now_ms: int) -> int:
        """Drop the buckets that end before what the view must reach back to; return how many."""
        with self._changes:
            old = [family for _, end, family in self._buckets if end < now_ms - self._span_ms]
            self._buckets = [bucket for bucket in self._buckets if bucket[2] not in old]
            for family in old:
                self._store.drop_family(family)
        return len(old)

    def close(self) -> None:
        """Release the files."""
        self._store.close()

    def _bucket(self, time_ms: int) -> str:
        """The family of a time, made if there is none."""
        for first, end, family in self._buckets:
            if first <= time_ms < end:
                return family
        first = time_ms - time_ms % self._width_ms
        family = f"seen/{first}/{first + self._width_ms}"
        self._store.add_family(family)
        self._buckets = _newest_first([*(bucket[2] for bucket in self._buckets), family])
        return family


class Judge:
    """Gives each event its verdict. Lives on the worker's thread; holds the keys in flight."""

    def __init__(self, seen: Seen, clock: BrokerClock) -> None:
        self._seen = seen
        self._clock = clock
        self._in_flight: set[bytes] = set()  # keys of runs
        self._holders: dict[bytes, bytes] = {}  # key of an identity -> the run that has it, 16 bytes

    def verdicts(
        self, runs: Sequence[bytes], times_ms: Sequence[int], identities: Sequence[bytes | None] = ()
    ) -> list[Verdict]:
        """Judge events in the order given; firsts are in flight from now on.

        `identities`: where conflicts are rejected, as many as `runs`.
        """
        verdicts: list[Verdict] = [Verdict.DUPLICATE] * len(runs)
        in_flight = self._in_flight
        open_at: Sequence[int] = range(len(runs))
        while open_at:
            # Copies in one batch wait for their leader's verdict: if the view knows the leader, a later copy
            # may still lie beyond the window and be a first of its own.
            leaders: dict[bytes, int] = {}
            copies: list[int] = []
            for index in open_at:
                run = runs[index]
                if run not in in_flight:
                    if run in leaders:
                        copies.append(index)
                    else:
                        leaders[run] = index
            now_ms = self._clock.now_ms()
            times = times_ms if len(leaders) == len(runs) else [times_ms[i] for i in leaders.values()]
            known = self._seen.find(list(leaders), times, now_ms)
            new = [run for run, value in zip(leaders, known, strict=True) if value is None]
            if identities:
                new = self._without_conflicts(new, leaders, identities, times_ms, verdicts, now_ms)
            for run in new:
                verdicts[leaders[run]] = Verdict.FIRST
            in_flight.update(new)
            open_at = copies
        return verdicts

    def _without_conflicts(
        self,
        new: list[bytes],
        leaders: Mapping[bytes, int],
        identities: Sequence[bytes | None],
        times_ms: Sequence[int],
        verdicts: list[Verdict],
        now_ms: int | None,
    ) -> list[bytes]:
        """Of runs that nobody has seen, those whose source and id nobody else has; and their identities are taken."""
        asked = [(run, identity) for run in new if (identity := identities[leaders[run]]) is not None]
        known = self._seen.find([i for _, i in asked], [times_ms[leaders[r]] for r, _ in asked], now_ms)
        refused = set()
        for (run, identity), value in zip(asked, known, strict=True):
            holder = self._holders.get(identity) or (value[8:] if value else run[-16:])
            if holder == run[-16:]:
                self._holders[identity] = holder
            else:
                verdicts[leaders[run]] = Verdict.CONFLICT
                refused.add(run)
        return [run for run in new if run not in refused]

    def hold(self, run: bytes, identity: bytes | None) -> None:
        """Take the key of a run that the ledger holds: it is in flight until its completion is committed."""
        self._in_flight.add(run)
        if identity is not None:
            self._holders[identity] = run[-16:]

    def holds(self, run: bytes) -> bool:
        """Whether a run is in flight: until its completion is committed."""
        return run in self._in_flight

    def committed(self, runs: Iterable[bytes], identities: Iterable[bytes]) -> None:
        """Take keys whose completions are committed, and in the view, off the table."""
        self._in_flight.difference_update(runs)
        for identity in identities:
            self._holders.pop(identity, None)

    def forget(self, slots: Iterable[int]) -> None:
        """Take all keys of lost slots off the table."""
        lost = {slot.to_bytes(2, "big") for slot in slots}
        self._in_flight = {run for run in self._in_flight if run[:2] not in lost}
        self._holders = {key: run for key, run in self._holders.items() if key[:2] not in lost}

    def __len__(self) -> int:
        return len(self._in_flight)


def view_span_ms(window_ms: int, retention_ms: int) -> int:
    """How far back the view reaches: the window, the inputs' retention (30 days at most), and a day.

    So a copy is known however long it lay unread.
    """
    retention_ms = 30 * _DAY_MS if retention_ms < 0 else min(retention_ms, 30 * _DAY_MS)
    return window_ms + retention_ms + _DAY_MS


def _position_key(slot: int) -> bytes:
    return b"position/" + slot.to_bytes(2, "big")


def _newest_first(families: Iterable[str]) -> list[tuple[int, int, str]]:
    buckets = []
    for family in families:
        _, first, end = family.split("/")
        buckets.append((int(first), int(end), family))
    return sorted(buckets, reverse=True)
