"""Poison: runs that kill their process each time. Told from what was under way when it died.

The names of the runs under way stand in memory that outlives the process (`Names`). What was among them at two deaths
is a suspect. The next process is an experiment with a control: at first suspects wait while all others run (*held*). If
it dies now, they are acquitted. If it lives for CONTROL_S, they run *apart*: when nothing else is under way, and
nothing else begins before they are done, for APART_S at most. If it dies then, half of those that were under way run
together next time; one that ran alone on purpose is poison. So a process that is killed from outside, again and again
and soon after its start, blames nobody, and of n suspects one is found in log2(n) deaths.
"""

import logging
from collections.abc import Callable, Iterable

import msgspec

log = logging.getLogger(__name__)

SUSPICION_FORMAT = 1
NAME_BYTES = 16  # an event's key
PLACES = 16_384  # runs under way beyond that have no name here, and can't be blamed
DEATHS_KEPT = 8
POISON_KEPT = 1_000
CONTROL_S = 10.0  # a process that is killed from outside again and again hardly lives longer
APART_S = 60.0  # so long all others wait at most; then suspects run like any other
BUSY, HELD, APART = 0, 1, 2  # how a process treats suspects: it has none under way; they wait; they run apart
WHY = "its process died when nothing else was under way, and at two times before"
UNDONE_TOO = "its process died when nothing else was under way, and again when it was to be undone"

_NOBODY = bytes(NAME_BYTES)
_HEAD_BYTES = 16  # 8: the number of this life; 1: how suspects are treated
NAMES_BYTES = _HEAD_BYTES + NAME_BYTES * (1 + PLACES)


class Suspicion(msgspec.Struct, frozen=True, array_like=True):
    """What the deaths so far have told. `together`: how many suspects run apart at the same time."""

    format: int = SUSPICION_FORMAT
    life: int = 0  # whose end was counted last
    deaths: list[list[bytes]] = []  # what was under way at the last ones
    suspects: list[bytes] = []
    together: int = 1
    poison: dict[bytes, int] = {}  # how often each was alone at a death


def after_death(
    known: Suspicion, found: Iterable[bytes], treated: int, *, computing: bool = False
) -> Suspicion:
    """What is known once a process has died with these under way.

    `treated`: how suspects were. `computing`: whether one of those under way was computing just then. If so, it may
    have been that one, and says nothing of suspects that waited.
    """
    names = sorted(set(found))
    suspects, together, poison, deaths = known.suspects, known.together, known.poison, known.deaths
    if treated == HELD and not computing:
        deaths = [[name for name in death if name not in suspects] for death in deaths]
        suspects = [name for name in suspects if name in poison]
    if treated == APART and together == 1 and len(names) == 1 and names[0] in suspects:
        others = [name for name in suspects if name not in names]
        suspects, together = others + names, max(1, len(others))
        poison = dict([*poison.items(), (names[0], poison.get(names[0], 0) + 1)][-POISON_KEPT:])
    elif treated == APART and names:  # perhaps the first of several that was read again
        suspects = names + [name for name in suspects if name not in names]
        together = (len(names) + 1) // 2
    elif names:
        before = {name for death in deaths for name in death}.difference(suspects)
        suspects = suspects + [name for name in names if name in before]
        together = max(1, len(suspects))
    deaths = [*deaths, names][-DEATHS_KEPT:]
    return Suspicion(SUSPICION_FORMAT, known.life, deaths, suspects, together, poison)


class Names:
    """Names in a piece of memory: of the run that is computing, and of those that have begun and wait for something."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self.computing = memory[_HEAD_BYTES : _HEAD_BYTES + NAME_BYTES]
        self._free = list(range(NAMES_BYTES - NAME_BYTES, _HEAD_BYTES, -NAME_BYTES))
        self._places: dict[bytes, int] = {}

    @property
    def life(self) -> int:
        """The number of the process that has written this."""
        return int.from_bytes(self._memory[:8], "little")

    @property
    def treated(self) -> int:
        """How suspects are treated: BUSY, HELD or APART."""
        return self._memory[8]

    @treated.setter
    def treated(self, treated: int) -> None:
        self._memory[8] = treated

    def found(self) -> set[bytes]:
        """The names there."""
        text = bytes(self._memory[_HEAD_BYTES:])
        return {text[at : at + NAME_BYTES] for at in range(0, len(text), NAME_BYTES)} - {_NOBODY}

    @property
    def is_computing(self) -> bool:
        """Whether a run is computing."""
        return bytes(self.computing) != _NOBODY

    def begin(self, life: int) -> None:
        """A process begins."""
        self.clear()
        self._memory[:8] = life.to_bytes(8, "little")

    def clear(self) -> None:
        """Nothing is under way."""
        self._memory[_HEAD_BYTES:] = bytes(NAMES_BYTES - _HEAD_BYTES)
        self.treated = BUSY

    def close(self) -> None:
        """Write no more: however the process ends now, no run is to blame."""
        self.clear()
        self._memory = memoryview(bytearray(NAMES_BYTES))
        self.computing = self._memory[_HEAD_BYTES : _HEAD_BYTES + NAME_BYTES]

    def rest(self) -> None:
        """Nothing is being computed."""
        self.computing[:] = _NOBODY

    def enter(self, name: bytes) -> None:
        """A run is under way."""
        if self._free and name not in self._places:
            at = self._places[name] = self._free.pop()
            self._memory[at : at + NAME_BYTES] = name

    def leave(self, name: bytes) -> None:
        """It is no longer."""
        at = self._places.pop(name, None)
        if at is not None:
            self._memory[at : at + NAME_BYTES] = _NOBODY
            self._free.append(at)


class Watch:
    """Who waits, who runs apart, and when. `save` keeps what is known."""

    def __init__(self, names: Names, known: Suspicion, save: Callable[[Suspicion], None]) -> None:
        self.names = names
        self._known = known
        self._save = save
        self._suspects = dict.fromkeys(known.suspects)
        self._marked = {*known.suspects, *known.poison}
        self._held: dict[bytes, str] = {}  # suspects that wait to run apart, and their tenants
        self._others: dict[bytes, str] = {}  # that wait for them to be done
        self._held_at: float | None = None
        self._apart_at: float | None = None
        self._controlled = False
        self.group: set[bytes] = set()  # suspects that run apart now

    @staticmethod
    def forgetful() -> "Watch":
        """One whose memory ends with the process, as in a test."""
        return Watch(Names(memoryview(bytearray(NAMES_BYTES))), Suspicion(), lambda _: None)

    def clears(self, keys: Iterable[bytes]) -> bool:
        """Whether nobody is suspected, or known, to be poison among these."""
        return self._marked.isdisjoint(keys)

    @property
    def waiting(self) -> bool:
        """Whether suspects run apart, or wait for nothing but that: nothing else may begin."""
        return bool(self.group or (self._held and self._controlled))

    def deaths_of(self, key: bytes) -> int:
        """How often this run was alone under way when its process died."""
        return self._known.poison.get(key, 0)

    def settle(self, key: bytes) -> None:
        """It will not run any more."""
        if key in self._suspects:
            self._acquit([key], self._known.poison)

    def forgive(self, key: bytes) -> None:
        """A person has decided about it: it is tried again."""
        if key in self._known.poison:
            poison = {name: deaths for name, deaths in self._known.poison.items() if name != key}
            self._acquit([key], poison)

    def hold(self, key: bytes, tenant: str) -> bool:
        """Whether a run must wait: until it may run apart, or until those that do so are done."""
        if key in self.group:
            return False
        if key in self._suspects:
            self._held[key] = tenant
            self._tell()
        elif self.waiting:
            self._others[key] = tenant
        else:
            return False
        return True

    def may_go(self, key: bytes) -> bool:
        """Whether a run that was held may begin now."""
        return key in self.group or not (key in self._suspects or self.waiting)

    def look_at(self, now_s: float) -> None:
        """Have the times end that are over: of the control, and of a standstill."""
        if not (self._held or self.group):
            self._apart_at = None
        elif not self._controlled:
            if self._held_at is None:
                self._held_at = now_s
            self._controlled = now_s - self._held_at >= CONTROL_S
        elif self._apart_at is None:
            self._apart_at = now_s
        elif now_s - self._apart_at > APART_S:
            log.warning("runs that may be poison were apart for too long: they run like any other now")
            self._others |= self._held
            self._acquit([*self._held, *self.group], self._known.poison)
            self.group = set()
            self._tell()

    def next_group(self) -> set[str]:
        """Let the next suspects run, when nothing else is under way; their tenants."""
        held = [key for key in self._suspects if key in self._held]
        self.group = set(held[: self._known.together])
        self._tell()
        if self.group:
            log.warning("runs that may be poison run apart", extra={"runs": len(self.group)})
        return {self._held.pop(key) for key in self.group}

    def released(self) -> set[str]:
        """The tenants of runs that need not wait any more."""
        tenants = set(self._others.values())
        self._others = {}
        return tenants

    def over(self, key: bytes, survived: bool = True) -> None:
        """A run has ended, or waits for long; or it was lost to another cell, which says nothing of it."""
        if not (self._held or self._others or self.group):
            return
        self._others.pop(key, None)
        if self._held.pop(key, None) is not None:
            self._tell()
        if key in self.group:
            self.group.remove(key)
            if survived:
                self._suspects.pop(key, None)
            if not self.group:
                self._acquit([], self._known.poison)
                self._tell()

    def _acquit(self, keys: Iterable[bytes], poison: dict[bytes, int]) -> None:
        """Suspect these no more, and keep what is known."""
        for key in keys:
            self._suspects.pop(key, None)
            self._held.pop(key, None)
        suspects = list(self._suspects)
        self._known = msgspec.structs.replace(self._known, suspects=suspects, poison=poison)
        self._marked = {*suspects, *poison}
        self._save(self._known)

    def _tell(self) -> None:
        """Have the next process know how suspects are treated."""
        self.names.treated = APART if self.group else HELD if self._held else BUSY
