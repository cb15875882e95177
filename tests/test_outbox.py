"""The outbox: what is decided is sent, and remembered, in the order in which it was decided."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError

from onceflow.agents.journal import segment_key
from onceflow.state.ledger import Ledger
from onceflow.state.seen import BrokerClock, Seen
from onceflow.state.store import Store
from onceflow.stream.content import (
    RUN_BEGUN,
    RUN_ENDED,
    RUN_GOES_ON,
    Committed,
    Finished,
    Grant,
    Input,
    Outgoing,
    Pair,
    Reads,
)
from onceflow.stream.outbox import Outbox
from onceflow.stream.progress import InputProgress
from onceflow.stream.topics import Ids, Names
from onceflow.stream.transaction import Delivered, Refused, Transactions

NAMES = Names.of("flow")
GRANT = Grant(3)
SOURCE = Input("events", 3, GRANT, topic_id="id")
INBOX = Input(NAMES.inbox, 3, GRANT, topic_id="id", is_inbox=True)
PAIR = Pair("metadata", frozenset([GRANT]))
DEADLINE_S = 10.0


class Log(Transactions):
    """Takes transactions, and keeps the records of those that it does not refuse."""

    def __init__(self) -> None:
        self.committed: list[Outgoing] = []
        self.refuses = 0

    def commit(self, records: Sequence[Outgoing], offsets: Callable[[], Any], metadata: Any) -> Delivered:
        if self.refuses:
            self.refuses -= 1
            raise Refused(KafkaError(KafkaError._TIMED_OUT))
        self.committed += records
        return _Delivered(records)


class _Delivered(Delivered):
    def __init__(self, records: Sequence[Outgoing]) -> None:
        super().__init__()
        self._at = {(each.topic, each.partition): (7, 1_000) for each in records}

    def last(self, topic: str) -> dict[int, tuple[int, int]]:
        return {partition: at for (of, partition), at in self._at.items() if of == topic}


class World:
    """An outbox with its views, and what its worker is told."""

    def __init__(self, directory: Path) -> None:
        self.log = Log()
        self.ledger = Ledger(Store.open(directory / "ledger"))
        self._seen = Seen(Store.open(directory / "seen"), window_ms=1_000_000, span_ms=1_000_000)
        self.told: list[Committed] = []
        self.outbox = Outbox(
            self.log,
            NAMES,
            "cell",
            self._seen,
            self.ledger,
            BrokerClock(),
            ids=Ids("completions", "ledger"),
            commit_interval_s=60.0,
            committed=self.told.append,
            observe=lambda contents, took_s: None,
        )
        self.outbox.track([(SOURCE, InputProgress("id", 0)), (INBOX, InputProgress("id", 0))])

    def read(self, *offsets: int) -> None:
        self.outbox.polled(PAIR, [Reads(SOURCE, [*offsets], max(offsets) + 1)])

    def close(self) -> None:
        self.outbox.close(DEADLINE_S)
        self.ledger.close()
        self._seen.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def change(run: bytes, value: bytes | None) -> Outgoing:
    """Of the ledger: the first segment of a run, or its deletion."""
    return Outgoing(NAMES.ledger, 3, segment_key("acme", run, 0), (value,), None)


def begun(offset: int, run: bytes) -> Finished:
    return Finished(SOURCE, (offset,), RUN_BEGUN, 1, (change(run, b"segment"),))


def ended(run: bytes) -> Finished:
    return Finished(INBOX, (), RUN_ENDED, 0, (change(run, None),))


@pytest.mark.parametrize("refused", [0, 1])
def test_a_run_that_begins_and_ends_in_one_transaction_leaves_nothing(world: World, refused: int) -> None:
    """Its event's record and its slot's inbox are two inputs; one sorted before the other would leave it open."""
    early, short, late = b"e" * 16, b"s" * 16, b"l" * 16
    world.log.refuses = refused
    world.read(0, 1, 2)
    world.outbox.put([Finished(INBOX, (), RUN_GOES_ON, 0, (change(early, b"a wait is over"),))])
    world.outbox.put([begun(0, short), begun(1, late)])
    world.outbox.put([ended(short), ended(early)])
    world.outbox.put([begun(2, early)])
    assert world.outbox.flush(DEADLINE_S)
    sent = [(r.key, r.values[0]) for r in world.log.committed if r.topic == NAMES.ledger]
    assert {key for key, value in dict(sent).items() if value is not None} == {
        segment_key("acme", run, 0) for run in (late, early)
    }
    world.ledger.flush()
    assert [key for key, _ in world.ledger.records(3)] == [segment_key("acme", r, 0) for r in (early, late)]
