"""The store's marks: what RocksDB opens as if nothing were missing is noticed, and a full disk is no damage."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rocksdict import Options

from onceflow.errors import Fault
from onceflow.state import store as store_module
from onceflow.state.store import Store

BATCHES = 400
PER_FAMILY = 100  # batches
SMALL = 64 << 10  # bytes of a flush, so that there are many

WRITER = """
import os, random, signal, sys
from pathlib import Path
from tests.test_store import BATCHES, small_flushes, write
path, seed, batches, end = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
small_flushes(setattr)
store = write(path, seed, 0, batches // 3)
store.close()
store = write(path, seed, batches // 3, batches)
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
store.close()
"""


def small_flushes(put: Callable[[object, str, object], None]) -> None:
    """As in production, on a smaller scale: a flush holds more puts than a mark."""
    normal = store_module._options

    def options() -> Options:
        small = normal()
        small.set_write_buffer_size(SMALL)
        small.set_max_total_wal_size(4 * SMALL)
        return small

    put(store_module, "_options", options)
    put(store_module, "PUTS_PER_MARK", 100)


def write(path: Path, seed: int, first: int, end: int) -> Store:
    """Write batches of random keys into families that come one after the other, and their number to `default`."""
    choose = random.Random(seed + first)
    store = Store.open(path)
    for number in range(first, end):
        family = f"family-{number // PER_FAMILY}"
        store.add_family(family)
        puts = [(choose.randbytes(20), choose.randbytes(8), family) for _ in range(choose.randint(0, 100))]
        store.write([*puts, (b"%d" % number, b"", family), (b"position", b"%d" % number, "default")])
    return store


def missing(store: Store) -> list[int]:
    """The batches that are not there, up to the store's position."""
    position = int(store.get(b"position") or -1)
    found = []
    for number in range(position + 1):
        family = f"family-{number // PER_FAMILY}"
        if family not in store.families or store.get_many(family, [b"%d" % number]) == [None]:
            found.append(number)
    return found


def written(path: Path, seed: int, end: str) -> Path:
    """A store that a process of its own has left, closed or killed."""
    arguments = [str(path / "written"), str(seed), str(BATCHES), end]
    ended = subprocess.run([sys.executable, "-c", WRITER, *arguments], check=False)
    assert ended.returncode == (-signal.SIGKILL if end == "killed" else 0)
    return path / "written"


def damages(written: Path, choose: random.Random) -> Iterator[Path]:
    """Copies of the store: one MANIFEST cut at each of many places, and one log after the other gone."""
    copy = written.with_name("seen")
    manifest = max(written.glob("MANIFEST-*"))
    size = manifest.stat().st_size
    # The last edits matter most: what was flushed last has nothing that was compacted since to betray it.
    cuts = [choose.randrange(size) for _ in range(15)] + [
        choose.randrange(size - size // 6, size) for _ in range(15)
    ]
    for cut in cuts:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(written, copy)
        os.truncate(copy / manifest.name, cut)
        yield copy
    for log in sorted(written.glob("*.log")):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(written, copy)
        (copy / log.name).unlink()
        yield copy


@pytest.mark.parametrize(("end", "seed"), [("closed", 7), ("killed", 8)])
def test_no_batch_is_missing_below_the_position_whatever_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, end: str, seed: int
) -> None:
    """RocksDB finds what is wrong, or the marks do, or it is as it was at some time before."""
    small_flushes(monkeypatch.setattr)
    came_to: Counter[str] = Counter()
    for damaged in damages(written(tmp_path, seed, end), random.Random(seed)):
        caplog.clear()
        store = Store.open(damaged)
        gone = missing(store)
        store.close()
        assert not gone, f"{len(gone)} batches are missing, from {gone[0]} on"
        reason = caplog.records[0].reason if caplog.records else ""
        by_marks = reason.startswith(("the batches", "families"))
        came_to["marks" if by_marks else "RocksDB" if caplog.records else "nothing"] += 1
    print(f"seed {seed}, noticed by: {came_to}")
    assert came_to["RocksDB"]
    if end == "killed":  # of a store that was closed, all is in one piece
        assert came_to["marks"]


def test_a_store_that_was_killed_or_closed_is_not_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is opened, and whatever is added and dropped."""
    small_flushes(monkeypatch.setattr)
    path = written(tmp_path, 9, "killed")
    for end in range(BATCHES + 1, BATCHES + 15):
        store = write(path, 9, end - 1, end)
        assert missing(store) == []
        if end % 4 == 0:
            store.delete_prefix(b"\x01")
            store.add_family("one-more")
            store.drop_family("one-more")
        store.close()
    assert not path.with_name("written.aside").exists()


def test_a_family_whose_making_was_lost_is_missed(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "seen")
    store.add_family("a")
    store._db.drop_column_family("a")
    store.close()
    again = Store.open(tmp_path / "seen")
    assert again.families == ()
    again.close()
    assert (tmp_path / "seen.aside").is_dir()


def test_a_store_with_a_damaged_block_is_put_aside_whichever_it_is(tmp_path: Path) -> None:
    written = tmp_path / "written"
    write(written, 1, 0, 50).close()
    store = Store.open(written)
    store.write([(b"position", b"50", "default")])
    store.close()
    put_aside = 0
    for number, file in enumerate(sorted(written.glob("*.sst"))):
        path = tmp_path / f"{number}" / "store"
        shutil.copytree(written, path)
        damaged = bytearray(file.read_bytes())
        damaged[5] ^= 1  # in the first block of keys
        (path / file.name).write_bytes(damaged)
        store = Store.open(path)
        store.write([(b"key", b"value", "default")])
        assert store.get(b"key") == b"value"
        put_aside += path.with_name("store.aside").exists()
        store.close()
    assert put_aside > 0


def test_a_damaged_block_that_a_scan_meets_heals_with_a_restart(tmp_path: Path) -> None:
    """The store opens: what it reads then is undamaged. A scan does not end early, and the next start is another."""
    path = tmp_path / "store"
    keys = [(b"%04d" % number, random.randbytes(64), "runs") for number in range(1_000)]
    store = Store.open(path)
    store.add_family("runs")
    store.write(keys)
    store.close()
    (table,) = [file for file in path.glob("*.sst") if file.stat().st_size > 10_000]
    content = bytearray(table.read_bytes())
    content[9_000] ^= 1
    table.write_bytes(content)
    store = Store.open(path)
    with pytest.raises(Fault, match=r"is damaged .* a restart builds it anew"):
        list(store.scan(b"", "runs"))
    store.close()
    again = Store.open(path)
    assert (again.families, path.with_name("store.aside").exists()) == ((), True)
    again.close()
