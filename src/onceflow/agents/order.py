"""Lines: the runs of a tenant that have one value of `order_by`, one after another in the order of the log.

The first of a line is under way, or asleep; the others wait behind it, the event in memory, or, where the first one
sleeps, in the ledger as a run that has not begun: no input may hang on a wait.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from onceflow.agents.happenings import Arrived
from onceflow.agents.journal import OpenRun


class Follower(NamedTuple):
    """A run behind another one."""

    key: bytes
    arrived: Arrived | None  # None: it is in the ledger


def in_turn(runs: Iterable[OpenRun]) -> list[tuple[OpenRun, bool]]:
    """What the ledger holds of a slot, those of one line as they stood in it; and whether each goes on now.

    First those that make a call which others may wait for: so these need not be put down, and woken once it is over.
    """
    return sorted(_by_line(runs), key=lambda found: not (found[1] and found[0].makes_shared))


def _by_line(runs: Iterable[OpenRun]) -> Iterator[tuple[OpenRun, bool]]:
    first: set[tuple[str, bytes]] = set()
    for run in sorted(runs, key=lambda run: run.begun.turn):  # the first has none, or the lowest
        line = (run.tenant, run.begun.line)
        behind = bool(run.begun.line) and line in first
        first.add(line)
        yield run, not (run.parked or behind)


class Lines:
    """See above. A run without a line stands in none."""

    def __init__(self) -> None:
        self._first: dict[bytes, bytes] = {}  # line -> key of the run whose turn it is
        self._behind: dict[bytes, deque[Follower]] = {}
        self._line: dict[bytes, bytes] = {}  # key -> line, of all that stand in one
        self._asleep: set[bytes] = set()  # lines whose first one sleeps
        self._turns: dict[bytes, int] = {}  # line -> the last number given out

    @property
    def held(self) -> int:
        """Events that are in memory because of a run before them."""
        if not self._behind:  # as in most lanes, and all of them are asked
            return 0
        return sum(follower.arrived is not None for line in self._behind.values() for follower in line)

    def enter(self, key: bytes, line: bytes, arrived: Arrived | None, turn: int = 0) -> bool:
        """Stand in a line; whether it is this run's turn at once. `turn`: its number, where it had one before."""
        self._line[key] = line
        self._turns[line] = max(turn, self._turns.get(line, 0))
        if self._first.setdefault(line, key) == key:
            return True
        self._behind.setdefault(line, deque()).append(Follower(key, arrived))
        return False

    def sleeps(self, key: bytes) -> list[Arrived]:
        """The first of a line, or one without a line, sleeps: those behind it, to be put into the ledger."""
        line = self._line.get(key)
        if line is None or self._first.get(line) != key:
            return []
        self._asleep.add(line)
        behind = self._behind.get(line, deque())
        events = [follower.arrived for follower in behind if follower.arrived is not None]
        self._behind[line] = deque(Follower(follower.key, None) for follower in behind)
        for event in events:
            self._number(event)
        return events

    def wakes(self, key: bytes) -> None:
        """A run goes on. One that is not the first of its line, and was cancelled, wakes only itself."""
        line = self._line.get(key, b"")
        if self._first.get(line) == key:
            self._asleep.discard(line)

    def behind_a_sleeper(self, arrived: Arrived) -> bool:
        """Whether an event that has just entered must go to the ledger."""
        if arrived.line not in self._asleep:
            return False
        self._behind[arrived.line][-1] = Follower(arrived.key, None)
        self._number(arrived)
        return True

    def leave(self, key: bytes) -> Follower | None:
        """A run has ended; whose turn it is now, if that is another's."""
        line = self._line.pop(key, None)
        if line is None:
            return None
        behind = self._behind.get(line, deque())
        if self._first[line] != key:
            self._behind[line] = deque(follower for follower in behind if follower.key != key)
            return None
        self._asleep.discard(line)
        if behind:
            follower = behind.popleft()
            self._first[line] = follower.key
            return follower
        for book in (self._first, self._behind, self._turns):
            book.pop(line, None)
        return None

    def take(self, key: bytes) -> Arrived | None:
        """Take an event out that waits in memory behind another one."""
        line = self._line.get(key, b"")
        found = next((f.arrived for f in self._behind.get(line, ()) if f.key == key), None)
        if found is not None:
            self.leave(key)
        return found

    def _number(self, arrived: Arrived) -> None:
        arrived.turn = self._turns[arrived.line] = self._turns[arrived.line] + 1
