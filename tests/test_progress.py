"""Progress: which records of an input are finished, as it is kept, stored and skipped by."""

from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onceflow.errors import ConfigError
from onceflow.stream.progress import (
    FORMAT,
    InputProgress,
    Progress,
    Ranges,
    Skip,
    Tally,
    decode_progress,
    encode_progress,
    progress_key,
)

END = 60  # offsets that the random tests play with


def finished_offsets(progress: Progress, end: int = END) -> set[int]:
    """All offsets below `end` that a record of progress calls finished."""
    below = set(range(progress.lowest))
    return below | {
        offset for first, last in progress.finished for offset in range(first, last) if offset < end
    }


def ranges_of(offsets: Iterable[int]) -> Ranges:
    """Ascending ranges that do not touch, of a set of offsets."""
    ranges: list[tuple[int, int]] = []
    for offset in sorted(offsets):
        if ranges and ranges[-1][1] == offset:
            ranges[-1] = (ranges[-1][0], offset + 1)
        else:
            ranges.append((offset, offset + 1))
    return tuple(ranges)


@pytest.mark.parametrize(
    ("read", "finish", "position", "lowest", "ranges"),
    [
        ([], [], 0, 0, ()),  # nothing read
        ([], [], 7, 7, ()),  # nothing readable there
        ([0, 1, 2], [], 3, 0, ()),  # all unfinished
        ([0, 1, 2], [0, 1, 2], 3, 3, ()),  # all finished
        ([0, 1, 2], [0], 3, 1, ()),  # finished from below
        ([0, 1, 2], [1, 2], 3, 0, ((1, 3),)),  # the first is late
        ([0, 1, 2, 3, 4], [1, 3], 5, 0, ((1, 2), (3, 4))),
        ([0, 4], [4], 9, 0, ((1, 9),)),  # gaps are markers: finished once passed
    ],
)
def test_a_record_is_finished_when_it_was_said_to_be_and_a_gap_once_it_is_passed(
    read: list[int], finish: list[int], position: int, lowest: int, ranges: Ranges
) -> None:
    tracker = InputProgress("topic-id", 0)
    tracker.read(read, position)
    tracker.finish(finish)
    progress = tracker.progress("cell-1")
    assert (progress.lowest, progress.finished, progress.cell, progress.topic_id) == (
        lowest,
        ranges,
        "cell-1",
        "topic-id",
    )


def test_what_an_earlier_owner_finished_ahead_stays_finished() -> None:
    tracker = InputProgress("topic-id", 3, ((5, 8), (10, 12)))
    assert tracker.progress("c").finished == ((5, 8), (10, 12))
    tracker.read([3, 4], 5)
    tracker.finish([4])
    assert tracker.progress("c").finished == ((4, 8), (10, 12))
    tracker.read([8], 9)
    tracker.finish([3, 8])
    assert (tracker.lowest, tracker.progress("c").finished) == (9, ((10, 12),))


def test_a_stored_record_can_not_be_changed_by_what_is_counted_later() -> None:
    tracker = InputProgress("topic-id", 0, tally=Tally(first=1))
    stored = tracker.progress("c")
    tracker.tally.first += 1
    assert (stored.tally.first, tracker.progress("c").tally.first) == (1, 2)


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, set[int], list[set[int]]]:
    """An earlier owner's state (start, finished ahead), and which offsets finish after each poll."""
    start = draw(st.integers(0, 20))
    ahead = draw(st.sets(st.integers(start + 1, END - 1)))
    finishing = draw(st.lists(st.sets(st.integers(0, END - 1)), min_size=1, max_size=8))
    return start, ahead, finishing


@given(histories(), st.sets(st.integers(0, END - 1)), st.randoms())
def test_progress_says_what_a_set_of_offsets_says(
    history: tuple[int, set[int], list[set[int]]], markers: set[int], random: object
) -> None:
    """Whatever is read and finished in whatever order, the finished offsets are those of a plain set."""
    start, ahead, finishing = history
    skip = Skip(ranges_of(ahead))
    tracker = InputProgress("id", start, ranges_of(ahead))
    position, unfinished, model = start, set[int](), set(range(start)) | ahead
    for finish in finishing:
        reach = min(END, position + random.randint(0, 15))  # type: ignore[attr-defined]
        read = [o for o in range(position, reach) if o not in skip and o not in markers]
        position = reach
        tracker.read(read, position)
        unfinished |= set(read)
        model |= set(range(position)) - unfinished
        done = unfinished & finish
        tracker.finish(done)
        unfinished -= done
        model |= done

        progress = decode_progress(encode_progress(tracker.progress("cell-1")))
        assert finished_offsets(progress) == model
        assert tracker.lowest == min(unfinished, default=position)
        assert progress.lowest not in unfinished or progress.lowest == min(unfinished)
        successor = InputProgress("id", progress.lowest, progress.finished).progress("cell-2")
        assert finished_offsets(successor) == model  # handed over without a record read between


@given(st.sets(st.integers(0, END - 1)))
def test_skip_holds_exactly_the_offsets_of_its_ranges(offsets: set[int]) -> None:
    skip = Skip(ranges_of(offsets))
    assert {offset for offset in range(-1, END + 5) if offset in skip} == offsets
    assert skip.end == max(offsets, default=-1) + 1


def test_a_record_of_a_newer_format_is_refused_with_the_remedy() -> None:
    newer = msgspec.msgpack.encode([FORMAT + 1, {"anything": "else"}])
    with pytest.raises(
        ConfigError, match=f"format {FORMAT + 1}.*Run the version of onceflow that wrote them"
    ):
        decode_progress(newer)


def test_the_stored_form_is_fixed() -> None:
    """Records of earlier versions lie in Kafka for ever: this changes with the format number only.

    But for what is added at its end: an older version leaves that aside.
    """
    stored = encode_progress(Progress(FORMAT, "cell-1", "topic-id", 7, (1, 2), Tally(1, 2, 3, 4, 5)))
    assert msgspec.msgpack.decode(stored) == [1, "cell-1", "topic-id", 7, [1, 2], [1, 2, 3, 4, 5], -1]
    assert progress_key("events.acme", 3) == b"events.acme/3"


def test_progress_says_where_the_client_cannot_read_on_until_that_is_passed() -> None:
    tracker = InputProgress("topic-id", 3)
    tracker.unreadable = 5
    tracker.passed(5)
    assert decode_progress(encode_progress(tracker.progress("cell"))).unreadable == 5
    tracker.passed(6)
    assert tracker.progress("cell").unreadable == -1


def test_progress_without_that_is_read_as_it_was_written() -> None:
    older = msgspec.msgpack.encode([FORMAT, "cell-1", "topic-id", 7, [1, 2], [1, 2, 3, 4, 5]])
    assert decode_progress(older) == Progress(FORMAT, "cell-1", "topic-id", 7, (1, 2), Tally(1, 2, 3, 4, 5))
