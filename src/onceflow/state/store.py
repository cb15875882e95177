"""RocksDB as the views need it: column families made and dropped while running, atomic batches.

A view is a copy of what Kafka holds. So nothing is synced to disk (the write-ahead log is on: a killed
process loses nothing, a machine that loses power loses the tail together with the position that names it),
and a store that can't be opened, or is of another format, is put aside and built anew from Kafka.

Detected: a damaged or missing file that RocksDB reports when it opens or reads. Harmless: a copy from earlier,
whose positions are as old as its keys, so that Kafka brings it up to date. Not detected: a cut MANIFEST that opens
without an error, with keys missing and a later position there; copies of those keys would run again.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
_DAMAGED = "DAMAGED"  # a file that marks a store as not to be opened again


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

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open the store, or put one that is damaged or of another format aside and begin an empty one."""
        if (path / _DAMAGED).exists():
            aside(path, "a damaged block was met while reading")
            return cls._new(path)
        try:
            store = cls(path)
            found = store.get(_FORMAT_KEY)
        except Exception as error:  # noqa: BLE001 (rocksdict raises plain Exception)
            aside(path, f"it cannot be opened: {error}")
            return cls._new(path)
        if found == FORMAT:
            return store
        if found is None and not store.families and next(store.scan(b""), None) is None:
            store.write([(_FORMAT_KEY, FORMAT, "default")])
            return store
        store.close()
        aside(path, f"it is of format {found!r}, this version writes {FORMAT!r}")
        return cls._new(path)

    @classmethod
    def _new(cls, path: Path) -> "Store":
        store = cls(path)
        store.write([(_FORMAT_KEY, FORMAT, "default")])
        return store

    @property
    def families(self) -> tuple[str, ...]:
        """The names of the families, without `default`."""
        return tuple(self._families)

    def add_family(self, name: str) -> None:
        """Make a family; one that is there stays."""
        with self._lock:
            if name not in self._families:
                self._families = self._families | {name: self._db.create_column_family(name, self._options)}

    def drop_family(self, name: str) -> None:
        """Delete a family with all its keys, in one step."""
        with self._lock:
            family = self._families[name]
            self._families = {other: kept for other, kept in self._families.items() if other != name}
            del family
            self._db.drop_column_family(name)

    def get(self, key: bytes) -> bytes | None:
        """Read one key of the default family."""
        with self._heals_by_restart():
            found: bytes | None = self._db.get(key)
        return found

    def get_many(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read many keys of one family; other threads run meanwhile. One dropped just now holds nothing."""
        try:
            with self._heals_by_restart():
                found: Any = self._families[family].get(list(keys))
        except KeyError:
            return [None] * len(keys)
        return list(found)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Go through the default family's keys that begin with `prefix`; a damaged block raises."""
        iterator = self._db.iter(ReadOptions())
        iterator.seek(prefix)
        while iterator.valid() and (key := iterator.key()).startswith(prefix):
            yield key, iterator.value()
            iterator.next()
        iterator.status()

    def write(self, puts: Sequence[tuple[bytes, bytes, str]]) -> None:
        """Write `(key, value, family)` all together or not at all."""
        with self._lock, self._heals_by_restart():
            batch = WriteBatch(raw_mode=True)
            handles = {name: self._db.get_column_family_handle(name) for name in {put[2] for put in puts}}
            for key, value, family in puts:
                batch.put(key, value, handles[family])
            self._db.write(batch, self._write_options)

    def delete_prefix(self, prefix: bytes, keys: Sequence[bytes] = ()) -> None:
        """Delete all keys that begin with `prefix` in every family but the default one, and `keys` in that one."""
        with self._lock, self._heals_by_restart():
            batch = WriteBatch(raw_mode=True)
            for name in self._families:
                handle = self._db.get_column_family_handle(name)
                batch.delete_range(prefix, _after(prefix), handle)
            for key in keys:
                batch.delete(key)
            self._db.write(batch, self._write_options)

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


def _after(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix` (which isn't all 0xff)."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1])


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(32 << 20)
    options.set_max_write_buffer_number(3)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_max_total_wal_size(128 << 20)
    blocks = BlockBasedOptions()
    blocks.set_bloom_filter(10, False)
    # Filters and index blocks stay outside the cache: inside, lookups that miss become 30 times slower.
    blocks.set_block_cache(Cache(64 << 20))
    options.set_block_based_table_factory(blocks)
    return options
