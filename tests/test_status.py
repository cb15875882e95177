"""What a status is made of: an input's figures, sums, and the forms for programs."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from onceflow.config import Settings
from onceflow.errors import ConfigError
from onceflow.observe.open_runs import accept_loss
from onceflow.observe.status import (
    DeadLetter,
    InputStatus,
    SlotStatus,
    Status,
    input_status,
    inputs_as_json,
    letter_as_json,
    read_status,
    status_as_json,
    time_text,
)
from onceflow.stream.cluster import Cluster, KafkaAway, Topic
from onceflow.stream.progress import FORMAT, Progress, Tally
from onceflow.stream.topics import Names

EVENTS = Topic("events", "id-1", 16)


def written(lowest: int, run_lengths: tuple[int, ...] = (), topic_id: str = "id-1") -> Progress:
    return Progress(FORMAT, "cell-1", topic_id, lowest, run_lengths, Tally(first=lowest))


@pytest.mark.parametrize(
    ("progress", "first", "end", "expected"),
    [
        (None, 0, 0, (0, 0, 0)),
        (None, 10, 100, (10, 90, 0)),  # never read: all that Kafka still has
        (written(100), 0, 100, (100, 0, 0)),
        (written(90), 0, 100, (90, 10, 0)),
        (written(50, (1, 9, 2, 38)), 0, 100, (50, 3, 0)),  # finished ahead: 51-59 and 62-99
        (written(50, (1, 9, 2, 88)), 0, 100, (50, 3, 0)),  # finished beyond the end that is seen: markers
        (written(101), 0, 100, (101, 0, 0)),
        (written(50, (1, 9, 2, 38)), 61, 100, (50, 3, 2)),  # retention has deleted 50 and 60
        (written(50, (1, 9, 2, 38)), 50, 100, (50, 3, 0)),
        (written(50, topic_id="id-0"), 0, 7, (0, 7, 0)),  # of a topic deleted since: it counts for nothing
    ],
)
def test_an_input_says_what_is_not_finished_and_what_is_lost(
    progress: Progress | None, first: int, end: int, expected: tuple[int, int, int]
) -> None:
    found = input_status(EVENTS, 3, 3, first, end, progress)
    assert (found.lowest, found.unfinished, found.lost) == expected
    assert found.lag == max(0, end - found.lowest)


def test_an_input_that_cannot_be_read_on_waits_for_an_operator() -> None:
    found = input_status(EVENTS, 3, 3, 0, 100, Progress(FORMAT, "cell-1", "id-1", 40, unreadable=41))
    assert found.blocked == "the record at offset 41 cannot be read"
    assert inputs_as_json([found])[0]["unreadable"] == 41
    assert inputs_as_json([found._replace(unreadable=-1)])[0]["unreadable"] is None


def test_of_an_input_that_is_away_what_its_progress_says_is_known() -> None:
    found = input_status(EVENTS, 3, 3, None, None, written(50, (1, 9)))
    assert found.away
    assert (found.lowest, found.lag, found.unfinished, found.lost, found.tally.first) == (50, 0, 0, 0, 50)
    assert inputs_as_json([found])[0]["away"] is True
    assert input_status(EVENTS, 3, 3, None, None, written(50, topic_id="id-0")).lowest == 0
    assert not input_status(EVENTS, 3, 3, 0, 0, None).away


class PartlyAway(Cluster):
    """The flow `f` with two slots, and its events; partition 1 of these has no leader."""

    def __init__(self, _properties: Mapping[str, str]) -> None:
        self.servers = "kafka"
        self._admin: Any = SimpleNamespace(list_offsets=self._list_offsets)

    def topic_names(self) -> dict[str, int]:
        return dict.fromkeys((*Names.of("f"), "events"), 2)

    def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        return {name: Topic(name, f"id-{name}", 2) for name in names}

    def members(self, _group: str) -> dict[str, set[int]]:
        return {"cell-1": {0, 1}}

    def _list_offsets(self, wanted: Any, **_: Any) -> Any:
        return {at: SimpleNamespace(result=lambda _, at=at: self._offset(at)) for at in wanted}

    def _offset(self, at: TopicPartition) -> Any:
        if (at.topic, at.partition) == ("events", 1):
            raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))
        return SimpleNamespace(offset=7)


def test_an_input_without_a_leader_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onceflow.observe.status.Cluster", PartlyAway)
    monkeypatch.setattr("onceflow.observe.status.committed", lambda *_: iter(()))
    found = read_status("f", Settings())
    assert [(i.topic, i.partition, i.away) for i in found.inputs if i.topic == "events"] == [
        ("events", 0, False),
        ("events", 1, True),
    ]


def test_the_loss_of_an_input_that_is_away_is_not_accepted_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can say what is lost of it."""
    for module in ("status", "open_runs"):
        monkeypatch.setattr(f"onceflow.observe.{module}.Cluster", PartlyAway)
    monkeypatch.setattr("onceflow.observe.status.committed", lambda *_: iter(()))
    with pytest.raises(KafkaAway):
        accept_loss("f", Settings(), "events", 1)
    with pytest.raises(ConfigError, match="nothing to accept"):
        accept_loss("f", Settings(), "events", 0)


@pytest.fixture
def status() -> Status:
    return Status(
        "f",
        [
            SlotStatus(0, "cell-b", "cell-b", 2, 3),
            SlotStatus(1, "cell-b", "cell-a", 1, 0),
            SlotStatus(2, "", "", 0, 4),
        ],
        [
            InputStatus("events", 0, 0, 10, 7, 3, 0, Tally(4, 2, 0, 1, 0)),
            InputStatus("events", 2, 2, 9, 0, 4, 2, Tally(1, 0, 1, 0, 5)),
        ],
        {"invalid": 1, "conflict": 1},
    )


def test_a_status_sums_up_its_slots_and_inputs(status: Status) -> None:
    assert status.cells == {"cell-b": 2}
    assert status.unfinished == 7
    assert status.tally == Tally(5, 2, 1, 1, 5)
    assert [each.topic for each in status.blocked] == ["events"]


def test_the_form_for_programs_has_the_same_figures(status: Status) -> None:
    found = status_as_json(status)
    assert found["unfinished"] == 7
    assert found["lag"] == 12
    assert found["events"] == {"first": 5, "duplicate": 2, "conflict": 1, "unusable": 1, "forwarded": 5}
    assert found["dead_letters"] == {"total": 2, "by_reason": {"invalid": 1, "conflict": 1}}
    assert found["blocked_inputs"] == ["events/2"]
    assert found["slots"][2] == {"slot": 2, "cell": "", "last_cell": "", "inputs": 0, "unfinished": 4}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b'{"a":1}', {"value": '{"a":1}'}),
        (b"\xff\x00", {"value_base64": "/wA="}),
        (b"", {"value": ""}),
        (None, {"value": None}),
    ],
)
def test_values_of_dead_letters_are_given_whatever_they_are_but_only_when_asked_for(
    value: bytes | None, shown: dict[str, str | None]
) -> None:
    letter = DeadLetter("f.dead-letters/0/1", 0, "invalid", "acme", "events/0/1", "", "why", 7, value)
    without = letter_as_json(letter, values=False)
    assert not {"value", "value_base64"} & without.keys()
    assert letter_as_json(letter, values=True) == without | shown


def test_times_are_in_utc_to_the_millisecond() -> None:
    assert time_text(1_769_846_400_005) == "2026-01-31T08:00:00.005Z"
