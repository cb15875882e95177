"""Dedup: when an event is a duplicate, what the view remembers and forgets, and what becomes of a damaged one."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onceflow.errors import OnceflowError
from onceflow.state.seen import (
    BrokerClock,
    Completed,
    Judge,
    Position,
    Seen,
    Verdict,
    identity_key,
    seen_key,
    tenant_prefix,
    view_span_ms,
)
from onceflow.state.store import FORMAT, Store

HOUR = 3_600_000
WINDOW = 72 * HOUR
SPAN = view_span_ms(WINDOW, 7 * 24 * HOUR)
NOW = 1_800_000_000_000
DEADLINE_S = 10.0
FIRST, DUPLICATE, CONFLICT = Verdict.FIRST, Verdict.DUPLICATE, Verdict.CONFLICT


class Monotonic:
    """A monotonic clock that stands still unless moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def key(name: str, *, slot: int = 0, tenant: str = "acme") -> bytes:
    """A run's key as dedup makes it."""
    return seen_key(tenant_prefix(slot, tenant), name.encode().rjust(16, b"."))


def identity(name: str, *, tenant: str = "acme") -> bytes:
    """The key of an event's source and id, as dedup makes it where conflicts are rejected."""
    return identity_key(tenant_prefix(0, tenant), "erp", name)


def test_a_views_keys_are_those_that_earlier_versions_have_written() -> None:
    prefix = tenant_prefix(3, "acme")
    assert seen_key(prefix, b"k" * 16) == b"\x00\x03acme\x00k" + b"k" * 16
    digest = bytes.fromhex("c05c81f09ee1b45f237852e01c474050")
    assert identity_key(prefix, "erp", "evt-1") == b"\x00\x03acme\x00i" + digest


def completed(*runs: bytes, at: int = NOW) -> Completed:
    """Completions of one time."""
    return Completed(at, list(runs), [])


def opened(path: Path, window_ms: int = WINDOW, span_ms: int = SPAN) -> Seen:
    return Seen(Store.open(path), window_ms=window_ms, span_ms=span_ms)


def knows(seen: Seen, name: str, time_ms: int, now_ms: int | None = NOW) -> bool:
    """Whether an event of this key and time is a duplicate of something in the view."""
    return seen.find([key(name)], [time_ms], now_ms) != [None]


def clock_at(now_ms: int) -> BrokerClock:
    clock = BrokerClock(Monotonic())
    clock.observe(now_ms)
    return clock


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[Seen]:
    seen = opened(tmp_path / "seen")
    yield seen
    seen.close()


# --- The window ---


@pytest.mark.parametrize(
    ("event_ms", "now_ms", "duplicate"),
    [
        (NOW - SPAN // 2, NOW, True),  # long before its completion: the copy lay unread
        (NOW, NOW, True),
        (NOW + WINDOW, NOW + WINDOW, True),  # at the window's edge
        (NOW + WINDOW + 1, NOW + WINDOW + 1, False),  # a millisecond beyond it
        (NOW + 10 * WINDOW, NOW + WINDOW, True),  # its producer's clock is ahead: the broker's counts
        (NOW + 10 * WINDOW, NOW + WINDOW + 1, False),
        (0, NOW + SPAN, True),  # a wrong clock far behind: compared with all that is known …
        (0, NOW + SPAN + 1, False),  # … which reaches back so far and no farther
        (NOW + WINDOW + 1, None, False),  # nothing heard of the broker's clock: the event's own counts
    ],
)
def test_an_event_is_a_duplicate_if_it_is_at_most_a_window_later_than_the_completion(
    seen: Seen, event_ms: int, now_ms: int | None, duplicate: bool
) -> None:
    seen.write([completed(key("a"))], {})
    assert knows(seen, "a", event_ms, now_ms) is duplicate
    assert not knows(seen, "b", event_ms, now_ms)


def test_the_last_of_several_completions_counts(seen: Seen) -> None:
    """A key completes again where its copy came after the window; each completion opens a window."""
    for time_ms in (NOW, NOW + WINDOW + 1):
        seen.write([completed(key("a"), at=time_ms)], {})
    later = NOW + 2 * WINDOW
    assert knows(seen, "a", later, later)
    assert not knows(seen, "a", later + 2, later + 2)


def test_tenants_and_slots_are_apart(seen: Seen) -> None:
    seen.write([completed(key("a"))], {})
    others = [key("a", tenant="acm"), key("a", tenant="globex"), key("a", slot=1)]
    assert seen.find(others, [NOW] * 3, NOW) == [None] * 3


@pytest.mark.parametrize(("before", "after"), [(10, 100), (100, 10), (30, 70)])
def test_changing_the_window_forgets_nothing(tmp_path: Path, before: int, after: int) -> None:
    """Buckets made for another window may overlap the new ones; all are looked into."""
    times = {before: [12, 105], after: list(range(6, 300, 7))}
    for width, times_ms in times.items():
        seen = opened(tmp_path / "seen", window_ms=3 * width, span_ms=24 * width)
        seen.write([completed(key(f"{width}-{at}"), at=at) for at in times_ms], {})
        seen.close()
    seen = opened(tmp_path / "seen", window_ms=3 * after, span_ms=24 * after)
    names = {f"{width}-{at}": at for width, times_ms in times.items() for at in times_ms}
    forgotten = [name for name, at in names.items() if not knows(seen, name, at + 3 * after, None)]
    seen.close()
    assert forgotten == []


# --- The view's life ---


def test_keys_and_position_survive_a_restart(tmp_path: Path) -> None:
    seen = opened(tmp_path / "seen")
    seen.write([completed(key("a"))], {0: Position("topic-id", 7)})
    seen.close()
    again = opened(tmp_path / "seen")
    assert knows(again, "a", NOW)
    assert (again.position(0), again.position(1)) == (Position("topic-id", 7), None)
    again.close()


def test_dropping_a_slot_takes_its_keys_and_its_position_and_no_others(seen: Seen) -> None:
    slots = (0, 1, 255, 256, 511)
    names = [key("a", slot=slot) for slot in slots]
    seen.write(
        [completed(*names)],
        {slot: Position("id", 1) for slot in slots},
    )
    for slot in (1, 255, 511):
        seen.drop(slot)
    found = seen.find(names, [NOW] * len(names), NOW)
    assert [value is not None for value in found] == [True, False, False, True, False]
    assert [seen.position(slot) is not None for slot in slots] == [True, False, False, True, False]


def test_buckets_are_dropped_once_they_are_older_than_the_view_must_reach(seen: Seen) -> None:
    seen.write(
        [completed(key("old"), at=NOW - SPAN - 4 * 24 * HOUR), completed(key("new"))], {0: Position("i", 1)}
    )
    assert (seen.expire(NOW - 8 * 24 * HOUR), seen.expire(NOW), seen.expire(NOW)) == (0, 1, 0)
    assert knows(seen, "new", NOW)
    assert not knows(seen, "old", NOW - SPAN, NOW - 4 * 24 * HOUR)
    assert seen.position(0) == Position("i", 1)


def test_the_view_reaches_back_the_window_the_retention_and_a_day() -> None:
    day = 24 * HOUR
    assert view_span_ms(WINDOW, 7 * day) == 3 * day + 7 * day + day
    assert view_span_ms(WINDOW, 90 * day) == view_span_ms(WINDOW, -1) == 3 * day + 30 * day + day


@st.composite
def actions(draw: st.DrawFn) -> list[tuple[str, str, int]]:
    """Completions, look-ups and expiries of few keys at few times, the time going on."""
    names, step = st.sampled_from("abc"), st.integers(0, 400)
    kinds = st.sampled_from(["complete", "find", "find", "drop", "expire", "reopen"])
    return draw(st.lists(st.tuples(kinds, names, step), max_size=25))


@settings(max_examples=40, deadline=None)
@given(actions())
def test_the_view_says_what_a_dictionary_says(history: list[tuple[str, str, int]]) -> None:
    """Any order of completions, look-ups, dropped slots, expiries and restarts; window 300, reach 1,000 ms."""
    with TemporaryDirectory() as directory:
        seen = opened(Path(directory), window_ms=300, span_ms=1_000)
        model: dict[str, list[int]] = {"a": [], "b": [], "c": []}
        slots = {"a": 0, "b": 0, "c": 1}
        now = 5_000
        for kind, name, step in history:
            now += step
            if kind == "complete":
                seen.write(
                    [completed(key(name, slot=slots[name]), at=now)], {slots[name]: Position("id", now)}
                )
                model[name].append(now)
            elif kind == "drop":
                seen.drop(slots[name])
                model.update({other: [] for other, slot in slots.items() if slot == slots[name]})
            elif kind == "expire":
                seen.expire(now)
            elif kind == "reopen":
                seen.close()
                seen = opened(Path(directory), window_ms=300, span_ms=1_000)
            at = now - (step * 7) % 1_500
            since = max(min(at, now), now - 1_000 + 300) - 300
            expected = {other: any(time >= since for time in times) for other, times in model.items()}
            runs = [key(other, slot=slots[other]) for other in model]
            found = seen.find(runs, [at] * 3, now)
            assert {other: value is not None for other, value in zip(model, found, strict=True)} == expected
        seen.close()


def test_a_bucket_that_two_threads_need_at_once_is_made_once(tmp_path: Path) -> None:
    """For what a transaction has completed, and for what a grant reads: all is known, and expires once."""
    buckets, meet = 30, Barrier(2)
    seen = opened(tmp_path / "seen", WINDOW, 40 * WINDOW)  # they are as wide as the window's third and a bit

    def write(thread: str) -> None:
        for n in range(buckets):
            meet.wait(DEADLINE_S)
            seen.write([completed(key(f"{thread}{n}"), at=NOW + 2 * n * WINDOW)], {})

    with ThreadPoolExecutor(2) as threads:
        for written in [threads.submit(write, thread) for thread in "ab"]:
            written.result(DEADLINE_S)
    keys = [key(f"{thread}{n}") for n in range(buckets) for thread in "ab"]
    assert None not in seen.find(keys, [NOW] * len(keys), None)
    assert seen.expire(NOW + 1_000 * WINDOW) == buckets
    seen.close()


# --- The broker's clock ---


def test_the_broker_s_clock_goes_on_with_ours_and_never_back() -> None:
    monotonic = Monotonic()
    clock = BrokerClock(monotonic)
    assert clock.now_ms() is None
    clock.observe(NOW)
    monotonic.seconds += 2
    assert clock.now_ms() == NOW + 2_000
    clock.observe(NOW + 500)  # an answer that took 1.5 s to come
    assert clock.now_ms() == NOW + 2_000
    clock.observe(NOW + 9_000)
    assert clock.now_ms() == NOW + 9_000


def test_the_broker_s_clock_that_was_wrong_and_is_set_back_is_believed(seen: Seen) -> None:
    """While it is weeks ahead no completion seems to be within the window; once it is right, all are again."""
    clock = clock_at(NOW)
    judge = Judge(seen, clock)
    seen.write([completed(key("a"))], {})
    clock.observe(NOW + 2 * SPAN)
    clock.observe(NOW)
    assert judge.verdicts([key("a")], [NOW]) == [DUPLICATE]


# --- Verdicts ---


def test_a_key_is_known_from_its_first_on_and_after_its_commit_by_the_view(seen: Seen) -> None:
    judge = Judge(seen, clock_at(NOW))
    a, b = key("a"), key("b")
    assert judge.verdicts([a, a, b, a], [NOW] * 4) == [FIRST, DUPLICATE, FIRST, DUPLICATE]
    assert judge.verdicts([b, a], [NOW] * 2) == [DUPLICATE, DUPLICATE]
    seen.write([completed(a)], {})
    judge.committed([a], [])
    assert len(judge) == 1
    assert judge.verdicts([a, b], [NOW] * 2) == [DUPLICATE, DUPLICATE]


def test_keys_of_a_lost_slot_are_no_longer_in_flight(seen: Seen) -> None:
    """Its new owner runs them; if the slot comes back with nothing completed, they run here again."""
    judge = Judge(seen, clock_at(NOW))
    keys = [key("a", slot=1), key("b", slot=256)]
    judge.verdicts(keys, [NOW] * 2)
    judge.forget([1])
    assert judge.verdicts(keys, [NOW] * 2) == [FIRST, DUPLICATE]


def test_each_copy_in_a_batch_is_judged_by_its_own_time(seen: Seen) -> None:
    """The view knows the key; of two copies, one lies within the window, one beyond it and so is a first."""
    seen.write([completed(key("a"))], {})
    late = NOW + WINDOW + 1
    judge = Judge(seen, clock_at(late))
    times = [NOW, late, NOW + 1, late]
    assert judge.verdicts([key("a")] * 4, times) == [DUPLICATE, FIRST, DUPLICATE, DUPLICATE]


def test_the_same_id_with_other_content_is_a_conflict_where_those_are_rejected(seen: Seen) -> None:
    judge = Judge(seen, clock_at(NOW))
    a, other, elsewhere = key("a"), key("b"), key("c", tenant="globex")
    one, globex_one = identity("1"), identity("1", tenant="globex")
    verdicts = judge.verdicts([a, other, elsewhere, a], [NOW] * 4, [one, one, globex_one, one])
    assert verdicts == [FIRST, CONFLICT, FIRST, DUPLICATE]
    seen.write([Completed(NOW, [a], [(one, a)])], {})
    judge.committed([a], [one])
    assert judge.verdicts([other, a, other], [NOW] * 3, [one] * 3) == [CONFLICT, DUPLICATE, CONFLICT]
    beyond = NOW + WINDOW + 1
    later = Judge(seen, clock_at(beyond))
    assert later.verdicts([other], [beyond], [one]) == [FIRST]


def test_a_redrive_is_in_conflict_with_nothing(seen: Seen) -> None:
    """Its source and id are those of the run that failed; it has a key of its own."""
    judge = Judge(seen, clock_at(NOW))
    assert judge.verdicts([key("a"), key("redrive")], [NOW] * 2, [identity("1"), None]) == [FIRST, FIRST]


# --- Damage ---


def written(path: Path, keys: int = 3_000) -> Store:
    """A store with keys of little in common, so that their blocks are as large as in real life."""
    store = Store.open(path)
    seen = Seen(store, window_ms=WINDOW, span_ms=SPAN)
    names = random.Random(7)
    others = [key(names.randbytes(8).hex()) for _ in range(keys)]
    seen.write([completed(key("a"), *others)], {0: Position("id", keys)})
    return store


def delete_current(path: Path) -> None:
    (path / "CURRENT").unlink()


def cut_tables(path: Path) -> None:
    for table in path.glob("*.sst"):
        table.write_bytes(table.read_bytes()[: table.stat().st_size // 2])


def delete_tables(path: Path) -> None:
    for table in path.glob("*.sst"):
        table.unlink()


def fill_manifest(path: Path) -> None:
    for manifest in path.glob("MANIFEST-*"):
        manifest.write_bytes(b"\xff" * manifest.stat().st_size)


@pytest.mark.parametrize("damage", [delete_current, cut_tables, delete_tables, fill_manifest])
def test_a_view_that_cannot_be_opened_is_put_aside_and_begun_anew(tmp_path: Path, damage: object) -> None:
    """Without keys, and without a position: so Kafka fills it from the start."""
    path = tmp_path / "seen"
    written(path).close()
    damage(path)  # type: ignore[operator]
    seen = opened(path)
    assert (knows(seen, "a", NOW), seen.position(0)) == (False, None)
    seen.write([completed(key("a"))], {0: Position("id", 1)})
    assert knows(seen, "a", NOW)
    seen.close()
    assert (tmp_path / "seen.aside").is_dir()


def test_a_view_of_another_format_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "seen"
    store = written(path)
    store.write([(b"format", b"another", "default")])
    store.close()
    store = Store.open(path)
    assert (store.get(b"format"), store.families) == (FORMAT, ())
    store.close()
    assert (tmp_path / "seen.aside").is_dir()


def test_the_latest_view_put_aside_is_kept(tmp_path: Path) -> None:
    """So damage that comes back does not fill the disk."""
    path = tmp_path / "seen"
    for _ in range(3):
        written(path).close()
        delete_current(path)
        Store.open(path).close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["seen", "seen.aside"]


def test_a_damaged_block_that_is_met_while_reading_heals_with_a_restart(tmp_path: Path) -> None:
    """It is a fault that a restart heals: at the next start the view is put aside, not met again."""
    path = tmp_path / "seen"
    written(path).close()
    flip_blocks(path)
    seen = opened(path)
    with pytest.raises(OnceflowError) as raised:
        knows(seen, "a", NOW)
    assert raised.value.exit_status == 3
    seen.close()
    again = opened(path)
    assert (knows(again, "a", NOW), again.position(0)) == (False, None)
    again.close()


def flip_blocks(path: Path) -> None:
    """Flip bytes in data blocks; filter, index and footer, which are read when a table is opened, stay."""
    for table in path.glob("*.sst"):
        content = bytearray(table.read_bytes())
        if len(content) > 16_384:
            for at in range(0, len(content) // 2, 40):
                content[at] ^= 0xFF
            table.write_bytes(content)
