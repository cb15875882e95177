"""Where the views stand, and when one is of no use and is built anew."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from onceflow.state.ledger import Ledger, LedgerPosition
from onceflow.state.seen import BrokerClock, Position, Seen
from onceflow.state.store import Store
from onceflow.stream.topics import Ids, Names
from onceflow.stream.views import Views

HOUR = 3_600_000
NOW = 1_800_000_000_000
NAMES = Names.of("f")
SLOT = 3
AT, LEDGER_AT = (NAMES.completions, SLOT), (NAMES.ledger, SLOT)
FIRSTS, ENDS = {AT: 2, LEDGER_AT: 0}, {AT: 100, LEDGER_AT: 100}


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    both = Store.open(tmp_path / "seen"), Store.open(tmp_path / "ledger")
    yield both
    for store in both:
        store.close()


def views(stores: tuple[Store, Store], *, broker_ms: int = NOW, rejects: bool = False) -> Views:
    clock = BrokerClock()
    clock.observe(broker_ms)
    seen = Seen(stores[0], window_ms=HOUR, span_ms=HOUR, identities=rejects)
    return Views(NAMES, seen, Ledger(stores[1]), clock, Ids("c", "l"), 24 * HOUR)


def start(views: Views) -> tuple[int | None, int | None]:
    starts = views.starts([SLOT], FIRSTS, ENDS)
    return starts[AT], starts[LEDGER_AT]


def test_a_view_goes_on_where_it_stands(stores: tuple[Store, Store]) -> None:
    found = views(stores)
    assert start(found) == (2, 0)
    found.seen.write([], {SLOT: Position("c", 50)})
    found.ledger.catch_up({}, {SLOT: LedgerPosition("l", 60, NOW - HOUR)})
    assert start(found) == (50, 60)


@pytest.mark.parametrize("other", [Position("another", 50), Position("c", 101)])
def test_a_view_of_other_completions_is_built_anew(stores: tuple[Store, Store], other: Position) -> None:
    found = views(stores)
    found.seen.write([], {SLOT: other})
    assert start(found)[0] == 2


@pytest.mark.parametrize(("behind_h", "begins_at"), [(11, 60), (13, 0)])
def test_whether_tombstones_may_be_gone_says_the_clock_of_kafka(
    stores: tuple[Store, Store], behind_h: int, begins_at: int
) -> None:
    """That of this machine, which here is some years from Kafka's, has no say."""
    found = views(stores, broker_ms=NOW + behind_h * HOUR)
    found.ledger.catch_up({}, {SLOT: LedgerPosition("l", 60, NOW)})
    assert start(found)[1] == begins_at


def test_a_view_without_identities_is_built_anew_when_conflicts_are_rejected(
    stores: tuple[Store, Store],
) -> None:
    """Its events' sources and ids are those of nobody otherwise, and the next event with one of them is taken."""
    views(stores).seen.write([], {SLOT: Position("c", 50)})
    assert start(views(stores, rejects=True))[0] == 2
    views(stores, rejects=True).seen.write([], {SLOT: Position("c", 50)})
    assert start(views(stores, rejects=True))[0] == 50
    assert start(views(stores))[0] == 50
