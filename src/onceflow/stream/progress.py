"""Which records of an input are finished.

A record is finished when what it led to is in a committed transaction: a completion, a dead letter,
a copy forwarded to the tenant's home slot; a duplicate at once. Offsets that hold no readable record
(transaction markers, aborted or compacted records) count as finished once the position has passed them.

`F.progress` is compacted by input (key `topic/partition`, in the partition of the slot that reads it). A
record in it says: everything below `lowest` is finished, and so are the ranges above it; all else is not. It
is written in the transaction that carries what the finished records led to, so what is finished is what a
committed transaction says, never what was read.

              lowest                    position
    offsets      |                          |
    ▓▓▓▓▓▓▓▓▓▓▓▓▓·▓▓▓▓▓▓▓▓··▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓·················▓▓▓▓▓▓▓············
    finished     └ unfinished, being run     not read yet    └ finished by an earlier owner
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from onceflow.errors import ConfigError

FORMAT = 1

Ranges = tuple[tuple[int, int], ...]  # [first, end) of finished offsets, ascending, not touching


class Tally(msgspec.Struct, array_like=True):
    """How many records of an input came to which end, since the input was first read."""

    first: int = 0
    duplicate: int = 0
    conflict: int = 0
    unusable: int = 0
    forwarded: int = 0


class Progress(msgspec.Struct, array_like=True, frozen=True):
    """What `F.progress` says of one input; `cell` is the cell that wrote it, i.e. owned the slot then."""

    format: int
    cell: str
    topic_id: str
    lowest: int
    run_lengths: tuple[int, ...] = ()  # from `lowest` on: unfinished, finished, unfinished, finished, …
    tally: Tally = msgspec.field(default_factory=Tally)
    unreadable: int = -1  # the offset from which the client cannot read on: the input waits for an operator

    @property
    def finished(self) -> Ranges:
        """The finished ranges above `lowest`."""
        ranges, offset = [], self.lowest
        for unfinished, finished in zip(self.run_lengths[::2], self.run_lengths[1::2], strict=True):
            offset += unfinished
            ranges.append((offset, offset + finished))
            offset += finished
        return tuple(ranges)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Progress)


def encode_progress(progress: Progress) -> bytes:
    """Return the value of a record of `F.progress`."""
    return _encoder.encode(progress)


def decode_progress(value: bytes) -> Progress:
    """Read a record of `F.progress`; one of a newer format ends the cell with status 2."""
    if (number := format_of(value)) > FORMAT:
        raise ConfigError(
            f"F.progress holds records of format {number}; this version knows {FORMAT}. "
            "Run the version of onceflow that wrote them, or a newer one."
        )
    return _decoder.decode(value)


def format_of(value: bytes) -> int:
    """The format number that every stored form begins with."""
    head = msgspec.msgpack.decode(value)
    return int(head[0])


def progress_key(topic: str, partition: int) -> bytes:
    """The Kafka key of an input's progress."""
    return f"{topic}/{partition}".encode()


class InputProgress:
    """The progress of one input while a cell owns its slot. Used by the outbox's thread alone."""

    __slots__ = ("_ahead", "_lowest", "position", "tally", "topic_id", "unfinished", "unreadable")

    def __init__(self, topic_id: str, start: int, finished: Ranges = (), tally: Tally | None = None) -> None:
        self.topic_id = topic_id
        self.position = start  # every offset below was read, or holds no record
        self.unfinished: set[int] = set()  # read, and not finished
        self._lowest: int | None = None  # of these, once it was looked for
        self.tally = tally or Tally()
        self.unreadable = -1  # as in `Progress`, or an offset that has been passed since
        self._ahead = finished  # finished by an earlier owner; the inlet skips them when it comes there

    @property
    def lowest(self) -> int:
        """The lowest unfinished offset; the position when there is none."""
        if not self.unfinished:
            return self.position
        if self._lowest is None:
            self._lowest = min(self.unfinished)
        return self._lowest

    def read(self, offsets: Sequence[int], position: int) -> None:
        """Note records read whose end is open, and the position after them."""
        self.unfinished.update(offsets)
        self._lowest = None
        self.passed(position)

    def passed(self, position: int) -> None:
        """Note that the position has passed offsets that hold no record to work on."""
        self.position = max(self.position, position)

    def finish(self, offsets: Iterable[int]) -> None:
        """Note finished records, each read before."""
        self.unfinished.difference_update(offsets)
        self._lowest = None

    def progress(self, cell: str) -> Progress:
        """The record to commit."""
        lowest = self.lowest
        ahead = [(max(first, self.position), end) for first, end in self._ahead if end > self.position]
        ranges = [*_gaps(sorted(self.unfinished), self.position), *ahead]
        return Progress(
            FORMAT,
            cell,
            self.topic_id,
            lowest,
            _run_lengths(lowest, ranges),
            msgspec.structs.replace(self.tally),
            self.unreadable if self.unreadable >= self.position else -1,
        )


def _gaps(unfinished: Sequence[int], end: int) -> list[tuple[int, int]]:
    """The ranges between ascending unfinished offsets, the last one up to `end`."""
    with_gaps = unfinished[: _last_run(unfinished) + 1]
    ranges = [(before + 1, offset) for before, offset in pairwise(with_gaps) if offset > before + 1]
    if unfinished and end > unfinished[-1] + 1:
        ranges.append((unfinished[-1] + 1, end))
    return ranges


def _last_run(ascending: Sequence[int]) -> int:
    """Where the offsets that follow one another without a gap begin, up to the last: most are events that wait.

    An offset less its index never falls, and is the same in a run.
    """
    if not ascending:
        return 0
    last = ascending[-1] - len(ascending) + 1
    return bisect_left(range(len(ascending)), last, key=lambda index: ascending[index] - index)


def _run_lengths(lowest: int, ranges: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    lengths: list[int] = []
    offset = lowest
    for first, end in ranges:
        if first == offset and lengths:
            lengths[-1] += end - first
        elif end > first:
            lengths += (first - offset, end - first)
        offset = end
    return tuple(lengths)


class Skip:
    """The finished ranges above an input's start, as the inlet asks for them while it reads past them."""

    __slots__ = ("_ends", "_firsts", "end")

    def __init__(self, ranges: Ranges) -> None:
        self._firsts = [first for first, _ in ranges]
        self._ends = [end for _, end in ranges]
        self.end = self._ends[-1] if self._ends else 0

    def __contains__(self, offset: int) -> bool:
        index = bisect_right(self._firsts, offset) - 1
        return index >= 0 and offset < self._ends[index]


def unfinished_below(progress: Progress, first: int) -> int:
    """How many unfinished records lie below an offset."""
    finished = sum(max(0, min(end, first) - start) for start, end in progress.finished if start < first)
    return max(0, first - progress.lowest - finished)
