"""RocksDB as the views need it: column families made and dropped while running, atomic batches.

A view is a copy of what Kafka holds. So nothing is synced to disk (the write-ahead log is on: a killed
process loses nothing, a machine that loses power loses the tail together with the position that names it),
and a store that can't be opened, or is of another format, is put aside and built anew from Kafka.

Damage to its files, by what is done about it:

- RocksDB reports it, when it opens or reads: put aside.
- A cut MANIFEST, or a log that is gone, can make it open as if nothing were missing. All families are flushed together,
  so they never differ in how far they reach; what can be missing is a stretch between older and newer batches. It shows
  in the marks, which say which batches there are: each batch, numbered through, writes itself into the newest mark as
  its last one. A mark ends after some 10,000 puts, less than a flush holds, and with the process; so a stretch that is
  missing takes a mark, or the end of one, with it. A family is named too, before its first key. Marks that don't
  follow each other, or a family that is named and not there: put aside.
- The end is missing, or it is a copy from earlier: harmless, for its positions are as old as its keys, and Kafka
  brings it up to date.
- The disk is full, or must not be written to: nothing is wrong with the view. A fault that names the disk.

    default     "format"                    FORMAT
                "mark/" · first             number of the mark's last batch (both 8 bytes, big-endian)
                "family/" · name            a family that was made
"""

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import RLock
from typing import Any

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from onceflow.errors import Fault

log = logging.getLogger(__name__)

FORMAT = b"1"
_FORMAT_KEY = b"format"
_MARK = b"mark/"
_FAMILY = b"family/"
PUTS_PER_MARK = 10_000
_DAMAGED = "DAMAGED"  # a file that marks a store as not to be opened again
_DISK_S_FAULTS = tuple(
    map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE))
)


class Store:
    """A RocksDB of raw bytes with named families. Reads from any thread; writes are serialised here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._options = _options()
        self._db = Rdict(str(path), self._options)
        self._write_options = WriteOptions()
        self._write_options.ignore_missing_column_families = True
        self._lock = RLock()
        names = [name for name in Rdict.list_cf(str(path)) if name != "default"]
        self._families: dict[str, Rdict] = {name: self._db.get_column_family(name) for name in names}
        self._marks = [
            (_number(key[len(_MARK) :]), _number(value)) for key, value in self.scan(_MARK)
        ]  # first and last batch of each
        self._batch = self._mark = (
            self._marks[-1][1] + 1 if self._marks else 0
        )  # the next batch, and its mark
        self._marked_puts = 0

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open the store, or put one that is damaged or of another format aside and begin an empty one."""
        with _disk_s_faults(path):
            found = cls._usable(path)
            if isinstance(found, Store):
                return found
            aside(path, found)
            return cls._new(path)

    @classmethod
    def _usable(cls, path: Path) -> "Store | str":
        """The store, or why it is of no use; then nothing refers to it any more, and its lock is free."""
        if (path / _DAMAGED).exists():
            return "a damaged block was met while reading"
        store: Store | None = None
        try:
            store = cls(path)
            found, missing = store.get(_FORMAT_KEY), store._missing()
            is_new = found is None and not store.families and next(store.scan(b""), None) is None
        except Exception as error:
            if _is_disk_s_fault(error):
                raise
            if store is not None:
                store.close()
            return f"it cannot be opened: {error}"
        if is_new:
            store.write([(_FORMAT_KEY, FORMAT, "default")])
            return store
        if found == FORMAT and not missing:
            store._forget_marks()
            return store
        store.close()
        return missing or f"it is of format {found!r}, this version writes {FORMAT!r}"

    @classmethod
    def _new(cls, path: Path) -> "Store":
        store = cls(path)
        store.write([(_FORMAT_KEY, FORMAT, "default")])
        return store

    def _missing(self) -> str:
        """What RocksDB opened without saying that it is missing; "" = nothing."""
        for (_, last), (first, _) in pairwise(self._marks):
            if first != last + 1:
                return f"the batches {last + 1} to {first - 1} are missing"
        named = {key[len(_FAMILY) :].decode() for key, _ in self.scan(_FAMILY)}
        if gone := sorted(named - self._families.keys()):
            return f"families are missing: {', '.join(gone)}"
        return ""

    def _forget_marks(self) -> None:
        """All marks but the last have said what they had to."""
        if len(self._marks) > 1:
            batch = WriteBatch(raw_mode=True)
            batch.delete_range(_MARK, _MARK + _bytes(self._marks[-1][0]))
            self._apply(batch, 1)
        self._marks = []

    @property
    def families(self) -> tuple[str, ...]:
        """The names of the families, without `default`."""
        return tuple(self._families)

    def add_family(self, name: str) -> None:
        """Make a family; one that is there stays."""
        with self._lock:
            if name not in self._families:
                self._families = self._families | {name: self._db.create_column_family(name, self._options)}
                self.write([(_FAMILY + name.encode(), b"", "default")])

    def drop_family(self, name: str) -> None:
        """Delete a family with all its keys, in one step."""
        with self._lock:
            family = self._families[name]
            with self._heals_by_restart():
                batch = WriteBatch(raw_mode=True)
                batch.delete(_FAMILY + name.encode())
                self._apply(batch, 1)
            self._families = {other: kept for other, kept in self._families.items() if other != name}
            del family
            self._db.drop_column_family(name)

    def get(self, key: bytes) -> bytes | None:
        """Read one key of the default family."""
        with self._heals_by_restart():
            found: bytes | None = self._db.get(key)
        return found

    def get_many(self, family: str, keys: list[bytes]) -> list[bytes | None]:
        """Read many keys of one family; other threads run meanwhile. One dropped just now holds nothing."""
        try:
            with self._heals_by_restart():
                found: Any = self._families[family].get(keys)  # type: ignore[arg-type]  # bytes are taken
        except KeyError:
            return [None] * len(keys)
        return found  # type: ignore[no-any-return]

    def scan(self, prefix: bytes, family: str = "") -> Iterator[tuple[bytes, bytes]]:
        """Go through a family's keys that begin with `prefix` ("": the default family)."""
        with self._heals_by_restart():
            iterator = (self._families[family] if family else self._db).iter(ReadOptions())
            iterator.seek(prefix)
            while iterator.valid() and (key := iterator.key()).startswith(prefix):
                yield key, iterator.value()
                iterator.next()
            iterator.status()  # raises where a block is damaged

    def write(
        self, puts: Sequence[tuple[bytes, bytes, str]], deletes: Sequence[tuple[bytes, str]] = ()
    ) -> None:
        """Write `(key, value, family)` and delete `(key, family)`, all together or not at all."""
        with self._lock, self._heals_by_restart():
            batch = WriteBatch(raw_mode=True)
            families = {put[2] for put in puts} | {delete[1] for delete in deletes}
            handles = {name: self._db.get_column_family_handle(name) for name in families}
            for key, value, family in puts:
                batch.put(key, value, handles[family])
            for key, family in deletes:
                batch.delete(key, handles[family])
            self._apply(batch, len(puts) + len(deletes))

    def put_all(self, keys: Sequence[bytes], value: bytes, family: str) -> None:
        """Write many keys of one family, all with the same value; together or not at all."""
        with self._lock, self._heals_by_restart():
            batch = WriteBatch(raw_mode=True)
            put, handle = batch.put, self._db.get_column_family_handle(family)
            for key in keys:
                put(key, value, handle)
            self._apply(batch, len(keys))

    def delete_prefix(self, prefix: bytes, keys: Sequence[bytes] = ()) -> None:
        """Delete all keys that begin with `prefix` in every family but the default one, and `keys` in that one."""
        with self._lock, self._heals_by_restart():
            batch = WriteBatch(raw_mode=True)
            for name in self._families:
                handle = self._db.get_column_family_handle(name)
                batch.delete_range(prefix, _after(prefix), handle)
            for key in keys:
                batch.delete(key)
            self._apply(batch, 1)

    def _apply(self, batch: WriteBatch, puts: int) -> None:
        """Write a batch with its mark."""
        batch.put(_MARK + _bytes(self._mark), _bytes(self._batch))
        self._db.write(batch, self._write_options)
        self._batch += 1
        self._marked_puts += puts
        if self._marked_puts >= PUTS_PER_MARK:
            self._mark = self._batch
            self._marked_puts = 0

    @contextmanager
    def _heals_by_restart(self) -> Iterator[None]:
        """Turn what RocksDB raises into a fault; after damage the next start builds the view anew."""
        try:
            yield
        except KeyError:
            raise  # a family that is gone
        except Exception as error:
            if str(error).startswith("Corruption"):
                (self.path / _DAMAGED).touch()
                raise Fault(
                    f"the view in {self.path} is damaged ({error}); a restart builds it anew"
                ) from error
            raise Fault(
                f"the view in {self.path} cannot be used ({error}); is there room on its disk?"
            ) from error

    def close(self) -> None:
        """Flush and release the files."""
        with self._lock:
            self._families = {}
            self._db.close()


def aside(path: Path, reason: str) -> None:
    """Rename a store out of the way, keeping the latest such one only."""
    kept = path.with_name(path.name + ".aside")
    log.warning(
        "put a view aside; it is built anew from Kafka",
        extra={"view": str(path), "kept_as": str(kept), "reason": reason, "at": int(time.time())},
    )
    shutil.rmtree(kept, ignore_errors=True)
    path.rename(kept)


@contextmanager
def _disk_s_faults(path: Path) -> Iterator[None]:
    """Say of which disk it is, where the disk is why a view cannot be opened."""
    try:
        yield
    except Exception as error:
        if isinstance(error, Fault) or not _is_disk_s_fault(error):
            raise
        raise Fault(f"the view in {path} cannot be opened ({error}); is there room on its disk?") from error


def _is_disk_s_fault(error: Exception) -> bool:
    return any(text in str(error) for text in _DISK_S_FAULTS)


def _bytes(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _number(content: bytes) -> int:
    return int.from_bytes(content, "big")


def _after(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix` (which isn't all 0xff)."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1])


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(8 << 20)  # a restart replays what it holds: 32 MiB took a second and more
    options.set_max_write_buffer_number(3)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_max_total_wal_size(128 << 20)
    options.set_atomic_flush(True)
    # A filter over what is not on disk yet: most keys that are asked for are new, and a skip list is slow to say so.
    options.set_memtable_whole_key_filtering(True)
    options.set_memtable_prefix_bloom_ratio(0.03)
    blocks = BlockBasedOptions()
    blocks.set_bloom_filter(10, False)
    # Filters and index blocks stay outside the cache: inside, lookups that miss become 30 times slower.
    blocks.set_block_cache(Cache(64 << 20))
    options.set_block_based_table_factory(blocks)
    return options
