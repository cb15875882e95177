"""The outbox: what is decided is sent, and remembered, in the order in which it was decided."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError

from onceflow.agents.journal import segment_key
from onceflow.state.ledger import Change, Ledger
from onceflow.state.seen import BrokerClock, Completed, Seen
from onceflow.state.store import Store
from onceflow.stream.after_commit import AfterCommit
from onceflow.stream.content import (
    NO_RECORD,
    RUN_BEGUN,
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
    """Takes transactions, and keeps what they say of the ledger, but for those that it refuses."""

    def __init__(self) -> None:
        self.ledger: list[Change] = []
        self.refuses = 0
        self.refusal = KafkaError._TIMED_OUT
        self.offsets: list[str] = []  # of which topics, with the last transaction
        self.before: Callable[[], None] = lambda: None

    def commit(
        self,
        records: Sequence[Outgoing],
        ledger: Mapping[int, Sequence[Change]],
        offsets: Callable[[], Any],
        metadata: Any,
    ) -> Delivered:
        self.before()
        self.offsets = sorted(each.topic for each in offsets())
        if self.refuses:
            self.refuses -= 1
            raise Refused(KafkaError(self.refusal))
        self.ledger += ledger[GRANT.slot]
        return _Delivered()


class _Delivered(Delivered):
    def last(self, topic: str) -> dict[int, tuple[int, int]]:
        return {GRANT.slot: (7, 1_000)}


class World:
    """An outbox with its views, and what its worker is told."""

    def __init__(self, directory: Path) -> None:
        self.log = Log()
        self.ledger = Ledger(Store.open(directory / "ledger"))
        self.clock = BrokerClock()
        self.seen = Seen(Store.open(directory / "seen"), window_ms=1_000_000, span_ms=1_000_000)
        self.told: list[Committed] = []
        self.sent: list[Any] = []
        self.outbox = Outbox(
            self.log,
            NAMES,
            "cell",
            AfterCommit(
                NAMES,
                Ids("completions", "ledger"),
                self.seen,
                self.ledger,
                self.clock,
                send=self.sent.extend,
                observe=lambda contents, took_s: None,
                committed=self.told.append,
            ),
            commit_interval_s=60.0,
        )
        self.outbox.track([(SOURCE, InputProgress("id", 0)), (INBOX, InputProgress("id", 0))])

    def read(self, *offsets: int) -> None:
        self.outbox.polled(PAIR, [Reads(SOURCE, [*offsets], max(offsets) + 1)])

    def close(self) -> None:
        self.outbox.close(DEADLINE_S)
        self.ledger.close()
        self.seen.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def key(run: bytes) -> bytes:
    return segment_key("acme", run, 0)


def begun(offset: int, run: bytes) -> list[Finished]:
    """A run's first segment ends its event's record."""
    return [Finished(SOURCE, (offset,), RUN_BEGUN, 1, ledger=[(key(run), b"segment")])]


def ended(run: bytes) -> Finished:
    return Finished(INBOX, (), NO_RECORD, 0, ledger=[(key(run), None)])


@pytest.mark.parametrize("refused", [0, 1])
def test_a_run_that_begins_and_ends_in_one_transaction_leaves_nothing(world: World, refused: int) -> None:
    """It was left open when contents were sent input by input: its event's record is of one, its end of another."""
    early, short, late = b"e" * 16, b"s" * 16, b"l" * 16
    world.log.refuses = refused
    world.read(0, 1, 2)
    world.outbox.put([Finished(INBOX, (), NO_RECORD, 0, ledger=[(key(early), b"a wait is over")])])
    world.outbox.put([*begun(0, short), *begun(1, late)])
    world.outbox.put([ended(short), ended(early)])
    world.outbox.put(begun(2, early))
    assert world.outbox.flush(DEADLINE_S)
    held = {key for key, value in dict(world.log.ledger).items() if value is not None}
    assert held == {key(late), key(early)}
    world.ledger.flush()
    assert {key for key, _ in world.ledger.records(GRANT.slot)} == held


def called(grant: Grant = GRANT) -> tuple[Finished, Any]:
    """What puts a call on record, and the call."""
    call: Any = object()
    inbox = INBOX if grant is GRANT else Input(NAMES.inbox, 3, grant, topic_id="id", is_inbox=True)
    return Finished(inbox, (), NO_RECORD, 0, ledger=[(key(b"r" * 16), b"segment")], calls=[call]), call


@pytest.mark.parametrize("refused", [0, 1])
def test_calls_are_sent_once_and_when_they_are_on_record(world: World, refused: int) -> None:
    content, call = called()
    world.log.refuses = refused
    world.log.before = lambda: world.sent.append("transaction")
    world.read(0)
    world.outbox.put([content])
    assert world.outbox.flush(DEADLINE_S)
    assert world.sent == ["transaction"] * (refused + 1) + [call]


@pytest.mark.parametrize("gone", ["leaving", "lost"])
def test_calls_of_a_slot_that_goes_are_not_sent(world: World, gone: str) -> None:
    grant = Grant(3)
    content, _ = called(grant)
    world.outbox.track([(content.input, InputProgress("id", 0))])
    world.outbox.polled(Pair("metadata", frozenset([grant])), [])
    grant.leaving, grant.live = gone == "leaving", gone != "lost"
    world.outbox.put([content])
    assert world.outbox.flush(DEADLINE_S)
    assert (world.log.ledger, world.sent) == ([*content.ledger], [])


def test_a_topic_that_is_gone_and_not_known_to_be_keeps_nobody_waiting(world: World) -> None:
    """Its offsets are refused with all that is in the transaction; those of the inboxes are what it needs."""
    content, _ = called()
    world.log.refuses, world.log.refusal = 1, KafkaError.UNKNOWN_TOPIC_OR_PART
    world.read(0)
    world.outbox.put([content, *begun(0, b"s" * 16)])
    assert world.outbox.flush(DEADLINE_S)
    assert world.log.offsets == [NAMES.inbox]


def test_otherwise_the_offsets_of_what_was_read_go_with_it(world: World) -> None:
    world.log.refuses = 1
    world.read(0)
    world.outbox.put(begun(0, b"s" * 16))
    assert world.outbox.flush(DEADLINE_S)
    assert world.log.offsets == sorted([SOURCE.topic, NAMES.inbox])


def test_a_clock_that_is_ahead_of_the_other_drops_nothing_of_the_view(world: World) -> None:
    """Kafka's ran weeks ahead for a moment: what was dropped then would be done again ever after."""
    now_ms = int(time.time() * 1000)
    world.seen.write([Completed(now_ms, [b"run"], [])], {})
    world.clock.observe(now_ms + 30 * 86_400_000)
    world.read(0)
    world.outbox.put(begun(0, b"s" * 16))
    assert world.outbox.flush(DEADLINE_S)
    assert world.seen.find([b"run"], [now_ms], now_ms) != [None]
