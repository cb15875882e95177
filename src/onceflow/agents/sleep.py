"""A lane's runs that are not in memory: asleep until a wait ends, or parked until a person decides.

Of each, only its key is held here, and what it waits for; the rest is in the ledger, and read when it goes on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from onceflow.agents.journal import Wait
from onceflow.agents.signals import Signal, ends


class Awaited(NamedTuple):
    """A wait for a signal, of the run with this key."""

    key: bytes
    place: str
    wait: Wait


class Sleepers:
    """See above; the waits of runs that are awake too."""

    def __init__(self) -> None:
        self._asleep: dict[bytes, Any] = {}  # run key -> the inbox of its slot
        self._waits: dict[bytes, list[Awaited]] = {}  # by run
        self._awaited: dict[tuple[str, str], list[Awaited]] = {}  # by type and id

    def __len__(self) -> int:
        return len(self._asleep)

    def sleeps(self, key: bytes, inbox: Any) -> None:
        """A run is only in the ledger from now on."""
        self._asleep[key] = inbox

    def wakes(self, key: bytes) -> Any | None:
        """A run goes on, and will say anew what it waits for. Its slot's inbox; None: it does not sleep here."""
        inbox = self._asleep.pop(key, None)
        if inbox is not None:
            self.forget(key)
        return inbox

    def asleep(self, key: bytes) -> bool:
        """Whether a run sleeps here."""
        return key in self._asleep

    def awaited(self, awaited: Awaited) -> bool:
        """Whether this wait is still open."""
        return awaited in self._waits.get(awaited.key, ())

    def waits(self, awaited: Awaited) -> None:
        """A run waits for a signal."""
        self._waits.setdefault(awaited.key, []).append(awaited)
        self._awaited.setdefault((awaited.wait.type, awaited.wait.id), []).append(awaited)

    def taking(self, signal: Signal) -> Awaited | None:
        """The oldest wait that a signal ends."""
        known = self._awaited.get((signal.type, signal.id), ())
        return next((awaited for awaited in known if ends(awaited.wait, signal)), None)

    def keep(self, key: bytes, is_open: Callable[[str], bool]) -> None:
        """Of the waits of a run, only those that are open at their place go on."""
        for awaited in [each for each in self._waits.get(key, ()) if not is_open(each.place)]:
            self.over(awaited)

    def over(self, ended: Awaited) -> None:
        """A wait has ended."""
        self._waits[ended.key].remove(ended)
        self._unlisted(ended)

    def forget(self, key: bytes) -> None:
        """A run waits for nothing any more."""
        for awaited in self._waits.pop(key, ()):
            self._unlisted(awaited)

    def lost(self, grant: Any) -> None:
        """Forget the runs of a grant that is gone."""
        for key in [key for key, inbox in self._asleep.items() if inbox.grant is grant]:
            self.wakes(key)

    def _unlisted(self, awaited: Awaited) -> None:
        at = (awaited.wait.type, awaited.wait.id)
        self._awaited[at].remove(awaited)
        if not self._awaited[at]:
            del self._awaited[at]
