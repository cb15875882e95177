"""A cell's identity: a name in its state directory, the same for its whole life.

It is the member's name in the consumer group and part of the transactional id, so a restart takes its slots
back at once and ends its predecessor's open transaction. The recovery directory carries it too, so that
journals are never read by another cell. Both directories are locked while the cell runs; the kernel frees the
locks when it dies.
"""

import fcntl
import os
import re
import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from onceflow.errors import ConfigError

_NAME = re.compile(r"cell-[0-9a-f]{12}")
_FILE = "cell"
_LOCK = "cell.lock"


class Identity:
    """A cell's name, and the locks on its directories: until `release`, or the end of the process."""

    def __init__(self, name: str, locks: ExitStack) -> None:
        self.name = name
        self._locks = locks

    def release(self) -> None:
        """Free the directories for a successor in the same process."""
        self._locks.close()


def take_identity(state: Path, recovery: Path | None) -> Identity:
    """Lock the directories and return the cell's identity, new where neither has one.

    Raises ConfigError where another cell holds a directory or the two carry different identities.
    """
    with ExitStack() as locks:
        name = _lock_and_name(state, recovery, locks)
        return Identity(name, locks.pop_all())


def _lock_and_name(state: Path, recovery: Path | None, locks: ExitStack) -> str:
    directories = [state] if recovery is None else [state, recovery]
    for directory in directories:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            file = locks.enter_context((directory / _LOCK).open("a"))
        except OSError as error:
            raise ConfigError(
                f"{directory} cannot be used as a directory ({error.strerror}). Give the cell a state directory "
                "(ONCEFLOW_STATE_DIR) and a recovery directory (-r) that it can make and write to."
            ) from error
        _lock(file, directory)
    found = {directory: name for directory in directories if (name := _read(directory)) is not None}
    names = set(found.values())
    if len(names) > 1:
        raise ConfigError(
            f"the state directory {state} belongs to {found[state]} and the recovery directory {recovery} to "
            f"{found[directories[1]]}: two cells. Give each cell both directories of its own, or delete the recovery "
            "directory (steps of runs in flight are then repeated)."
        )
    name = names.pop() if names else f"cell-{secrets.token_hex(6)}"
    for directory in directories:
        if directory not in found:
            _write(directory, name)
    return name


def _lock(file: IO[str], directory: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"{directory} is in use by another cell. Give each cell a state directory (ONCEFLOW_STATE_DIR) and a "
            "recovery directory (-r) of its own."
        ) from error


def _read(directory: Path) -> str | None:
    try:
        name = (directory / _FILE).read_text().strip()
    except FileNotFoundError:
        return None
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{directory / _FILE} holds no cell's name. Delete the file; the cell then takes a new name, and waits for "
            "the old one's session to end before it gets its slots."
        )
    return name


def _write(directory: Path, name: str) -> None:
    temporary = directory / f"{_FILE}.new"
    with temporary.open("w") as file:
        file.write(name + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / _FILE)
