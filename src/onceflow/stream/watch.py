"""What is under way in this cell, in a file that is mapped into memory: it is there when the process has died."""

import logging
import mmap
import os
from pathlib import Path

import msgspec

from onceflow.agents.poison import BUSY, NAMES_BYTES, SUSPICION_FORMAT, Names, Suspicion, Watch, after_death

log = logging.getLogger(__name__)

_NAMES = "under-way"
_SUSPICION = "suspicion"


def open_watch(state: Path) -> Watch:
    """Count the death of the process that was here before, if it has left names; begin with none."""
    names = Names(_mapped(state / _NAMES))
    known = _read(state / _SUSPICION)
    life, found, treated = names.life, names.found(), names.treated
    if (
        found or treated != BUSY
    ) and life != known.life:  # otherwise it was counted, and the process died right after that
        known = msgspec.structs.replace(after_death(known, found, treated), life=life)
        _write(state / _SUSPICION, known)
        if known.suspects:
            said = {"suspects": len(known.suspects), "poison": len(known.poison), "under_way": len(found)}
            log.warning(
                "runs were under way at several deaths of this cell: they wait, and then run apart",
                extra=said,
            )
    names.begin(life + 1)

    def save(now_known: Suspicion) -> None:
        try:
            _write(state / _SUSPICION, now_known)
        except OSError as error:  # a full disk: what was cleared is looked at again after the next death
            log.warning("what is known of poison could not be written: %s", error)

    return Watch(names, known, save)


def _mapped(path: Path) -> memoryview:
    with path.open("a+b") as file:
        if file.tell() != NAMES_BYTES:
            file.truncate(0)
            file.write(bytes(NAMES_BYTES))  # not a hole: a full disk would kill the process at the first name
            file.flush()
        return memoryview(mmap.mmap(file.fileno(), NAMES_BYTES))


def _read(path: Path) -> Suspicion:
    try:
        known = msgspec.msgpack.decode(path.read_bytes(), type=Suspicion)
    except (FileNotFoundError, msgspec.DecodeError):  # of another version: it is told anew
        return Suspicion()
    return known if known.format == SUSPICION_FORMAT else Suspicion()


def _write(path: Path, known: Suspicion) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(msgspec.msgpack.encode(known))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
