"""What a cell holds unfinished, and which inputs are paused for that.

All of it is bounded, per input and per cell. Once half of what a cell may hold is used, an input may have its share of
that half only, so that those of other tenants go on.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from onceflow.config import Limits
from onceflow.stream.cell import Cell
from onceflow.stream.content import Committed, Input

LOOK_EVERY_S = 0.1
_HOLD_S = 0.5  # a cell that is full for longer pauses its inputs; until then it just doesn't poll
_NOTE_S = 1.0


class _Share(NamedTuple):
    """How many events, and bytes of them, an input may hold."""

    events: int
    bytes: int


class Room:
    """The books of what is unfinished. Worker's thread only, but for `committed`."""

    def __init__(self, cell: Cell, limits: Limits, lane_waiting: Callable[[str], int]) -> None:
        self._cell = cell
        self._limits = limits
        self._lane_waiting = lane_waiting
        self._committed: deque[Committed] = deque()
        self._read_at: dict[Input, deque[tuple[int, float]]] = {}  # up to which offset, and when at first
        self._full_since: float | None = None
        self._look_at = 0.0
        self.unfinished = 0
        self.unfinished_bytes = 0

    # --- what is read, and what has ended ---

    def took(self, input: Input, offsets: Sequence[int]) -> None:
        """The records at these offsets of an input were read, in one poll."""
        if not offsets:
            return
        input.unfinished += len(offsets)
        self.unfinished += len(offsets)
        now = time.monotonic()
        read_at = self._read_at.setdefault(input, deque())
        if read_at and now - read_at[-1][1] < _NOTE_S:  # as exactly as anybody asks
            read_at[-1] = (offsets[-1], read_at[-1][1])
        else:
            read_at.append((offsets[-1], now))

    def took_bytes(self, input: Input, size: int) -> None:
        """So many bytes of records of an input were read."""
        input.unfinished_bytes += size
        self.unfinished_bytes += size

    def committed(self, committed: Committed) -> None:
        """Take note of a commit; from any thread."""
        self._committed.append(committed)

    def settle(self) -> list[Committed]:
        """Bring the books up to date; return the commits since the last time."""
        news = []
        while self._committed:
            commit = self._committed.popleft()
            news.append(commit)
            for input, done in commit.finished.items():
                if input.grant.live:
                    input.unfinished -= done.events
                    input.unfinished_bytes -= done.bytes
                    self.unfinished -= done.events
                    self.unfinished_bytes -= done.bytes
                    read_at = self._read_at.get(input)
                    while read_at and read_at[0][0] < done.lowest:
                        read_at.popleft()
        return news

    def forget(self, inputs: Iterable[Input]) -> None:
        """Take the unfinished events of lost inputs off the books."""
        for input in inputs:
            self.unfinished -= input.unfinished
            self.unfinished_bytes -= input.unfinished_bytes
            self._read_at.pop(input, None)

    @property
    def oldest_age_s(self) -> float:
        """How long ago the oldest unfinished event was read, at most."""
        oldest = [read_at[0][1] for read_at in self._read_at.values() if read_at]
        return time.monotonic() - min(oldest) if oldest else 0.0

    # --- whether there is room for more ---

    def left(self) -> bool:
        """Whether the cell may read on."""
        if not self._full():
            if self._full_since is not None:
                self._full_since = None
                self._look_at = 0.0
            return True
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        elif now - self._full_since > _HOLD_S:
            # Callbacks of the group must be served, so go on polling, with everything paused.
            self._cell.pause(self._cell.inputs.values())
            return True
        return False

    def _full(self) -> bool:
        """Whether as much is unfinished as may be. Of an input that is paused only its share counts, until twice the
        limit is reached: so those go on that have less.
        """
        limits = self._limits
        events, size = limits.unfinished_per_cell, limits.unfinished_bytes
        if self.unfinished < events and self.unfinished_bytes < size:
            return False
        share = self._share()
        paused = [input for input in self._cell.inputs.values() if input.paused]
        more_events = sum(max(0, input.unfinished - share.events) for input in paused)
        more_bytes = sum(max(0, input.unfinished_bytes - share.bytes) for input in paused)
        return (
            self.unfinished - min(more_events, events) >= events
            or self.unfinished_bytes - min(more_bytes, size) >= size
        )

    def _share(self) -> _Share:
        """What an input may hold, once half of what the cell may hold is unfinished."""
        holding = sum(1 for input in self._cell.inputs.values() if input.unfinished) or 1
        limits = self._limits
        return _Share(limits.unfinished_per_cell // 2 // holding, limits.unfinished_bytes // 2 // holding)

    # --- who is paused ---

    def pause_heavy(self, inputs: Iterable[Input]) -> None:
        """Of inputs that were read just now, pause at once those that hold more bytes than their share."""
        if self.unfinished_bytes > self._limits.unfinished_bytes // 2:
            most = self._share().bytes
            self._cell.pause([input for input in inputs if input.unfinished_bytes > most])

    def look(self, now: float) -> bool:
        """Now and then: pause inputs that are slow or whose lane is full, resume others; whether it was time for it."""
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_EVERY_S
        if self._full_since is None or now - self._full_since <= _HOLD_S:
            self._pause_and_resume(now)
        return True

    def _pause_and_resume(self, now: float) -> None:
        limits = self._limits
        most, most_bytes = limits.unfinished_per_input, limits.unfinished_bytes
        if self.unfinished > limits.unfinished_per_cell // 2 or self.unfinished_bytes > most_bytes // 2:
            share = self._share()
            most, most_bytes = min(most, share.events), share.bytes
        pause, resume = [], []
        for input in self._cell.inputs.values():
            waiting = self._lane_waiting(input.tenant) if input.tenant else 0
            input.lane_full = waiting > limits.lane_queue // 2
            many = input.unfinished > most
            if not many:
                input.slow_since = None
            elif input.slow_since is None:
                input.slow_since = now
            slow = input.slow_since is not None and now - input.slow_since > 2 * LOOK_EVERY_S
            if not input.paused:
                if waiting >= limits.lane_queue or slow:
                    pause.append(input)
            elif (
                not input.lane_full and input.unfinished <= most // 2 and input.unfinished_bytes <= most_bytes
            ):
                resume.append(input)
        self._cell.pause(pause)
        self._cell.resume(resume)
