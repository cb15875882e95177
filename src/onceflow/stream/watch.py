"""What is under way in this cell, in a file that is mapped into memory: it is there when the process has died."""

import logging
import mmap
import os
from pathlib import Path

import msgspec

from onceflow.agents.poison import BUSY, NAMES_BYTES, SUSPICION_FORMAT, Names, Suspicion, Watch, after_death
from onceflow.errors import Fault

log = logging.getLogger(__name__)

_NAMES = "under-way"
_SUSPICION = "suspicion"


def open_watch(state: Path) -> Watch:
    """Count the death of the process that was here before, if it has left names; begin with none."""
    try:
        names = Names(_mapped(state / _NAMES))
        known = _counted(names, state / _SUSPICION)
    except OSError as error:
        raise Fault(f"{state} cannot be written ({error}); is there room on its disk?") from error
    names.begin(names.life + 1)

    def save(now_known: Suspicion) -> None:
        try:
            _write(state / _SUSPICION, now_known)
        except OSError as error:  # what was cleared is looked at again after the next death
            log.warning("what is known of poison could not be written: %s", error)

    return Watch(names, known, save)


def _counted(names: Names, file: Path) -> Suspicion:
    """What is known after the death that these names tell of."""
    known, found, treated = _read(file), names.found(), names.treated
    nothing = not found and treated == BUSY
    if nothing or names.life == known.life:  # or it was counted, and the process died right after that
        return known
    after = after_death(known, found, treated, computing=names.is_computing)
    known = msgspec.structs.replace(after, life=names.life)
    _write(file, known)
    if known.suspects:
        said = {"suspects": len(known.suspects), "poison": len(known.poison), "under_way": len(found)}
        log.warning(
            "runs were under way at several deaths of this cell: they wait, then run apart", extra=said
        )
    return known


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
