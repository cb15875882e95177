"""Flags of a flow: a TOML file that may be changed while cells run.

[check-at-once]        # the flag
default = false        # for markets that are not named
DE = true
"""

import logging
import time
import tomllib
from pathlib import Path

from onceflow.errors import ConfigError

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_NEVER = (0, 0)
DEFAULT = "default"


class Flags:
    """Whether a flag is set, as the file says now.

    A file that cannot be read any more, or is gone, changes nothing, and is reported. One that never was there sets no
    flags.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._flags: dict[str, dict[str, bool]] = {}
        self._read = _NEVER  # when the file that was read was changed (ns), and its size
        self._looked_at = float("-inf")

    def begin(self) -> None:
        """Read the file for the first time. Raises ConfigError if it cannot be read: nobody knows what is set."""
        try:
            self._read_anew()
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise ConfigError(f"flags: {self._path} cannot be read: {error}; correct or remove it") from error

    def __call__(self, name: str, market: str | None) -> bool:
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            self._look()
        of = self._flags.get(name, {})
        return of.get(market or DEFAULT, of.get(DEFAULT, False))

    def _look(self) -> None:
        try:
            self._read_anew()
        except FileNotFoundError:  # perhaps for a moment: it is being replaced
            if self._read != _NEVER:
                log.warning("the file is gone: flags stay as they were", extra={"file": str(self._path)})
            self._read = _NEVER
        except (OSError, ValueError):
            log.exception("flags stay as they were", extra={"file": str(self._path)})

    def _read_anew(self) -> None:
        """Read the file if it was changed."""
        stat = self._path.stat()
        if (stat.st_mtime_ns, stat.st_size) == self._read:
            return
        self._read = (stat.st_mtime_ns, stat.st_size)
        self._flags = parsed(self._path.read_text())
        log.info("flags read", extra={"file": str(self._path), "flags": len(self._flags)})


def parsed(text: str) -> dict[str, dict[str, bool]]:
    """Flags by name and market; a ValueError says what is no flag."""
    flags = tomllib.loads(text)
    for name, of in flags.items():
        if not isinstance(of, dict) or not all(isinstance(value, bool) for value in of.values()):
            raise ValueError(f"[{name}]: write `default = false`, and a line for each market that differs")
    return flags
