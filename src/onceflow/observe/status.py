"""What a flow's topics say of it: status, lag, owners, and its dead letters.

All of it is read from Kafka, from any machine, whether cells run or not, and without disturbing them: a reader
of its own that joins no group. `F.progress` says which records of an input are finished, the group who owns a
slot now. Only what is committed counts, so the figures are exact as of the last commit.
"""

import base64
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, NamedTuple

from confluent_kafka import Consumer, Message

from onceflow.config import Settings
from onceflow.stream.catchup import read_to_end
from onceflow.stream.cluster import Cluster, KafkaAway, Partition, Topic, client_made
from onceflow.stream.progress import Progress, Tally, decode_progress, unfinished_below
from onceflow.stream.topics import Names, existing_slots, inputs_of

log = logging.getLogger(__name__)

_ENDINGS = ("first", "duplicate", "conflict", "unusable", "forwarded")


class InputStatus(NamedTuple):
    """One input. `lag` = `end` - `lowest`; of it `unfinished` records are not finished."""

    topic: str
    partition: int
    slot: int
    end: int
    lowest: int
    unfinished: int
    lost: int  # unfinished records that retention has deleted: the input waits for an operator
    tally: Tally
    unreadable: int = -1  # the offset of a record that its cell cannot read: the input waits for an operator
    away: bool = False  # it has no leader now, or may not be asked for: `end` is as far as F.progress says

    @property
    def lag(self) -> int:
        """The distance from the lowest unfinished record to the end."""
        return max(0, self.end - self.lowest)

    @property
    def blocked(self) -> str:
        """Why it waits for an operator; "" if it does not."""
        if self.lost:
            return f"retention has deleted {self.lost:,} unfinished records"
        return "" if self.unreadable < 0 else f"the record at offset {self.unreadable} cannot be read"


class SlotStatus(NamedTuple):
    """A slot, the cell that the group says owns it ("": none), and the cell that wrote in it last."""

    slot: int
    cell: str
    last_cell: str
    inputs: int
    unfinished: int


class Status(NamedTuple):
    """A flow at one moment."""

    flow: str
    slots: list[SlotStatus]
    inputs: list[InputStatus]
    dead_letters: dict[str, int]  # by reason

    @property
    def cells(self) -> dict[str, int]:
        """The cells that run, with how many slots each owns."""
        return dict(sorted(Counter(slot.cell for slot in self.slots if slot.cell).items()))

    @property
    def unfinished(self) -> int:
        """Records that are read or still to be read, and not finished."""
        return sum(each.unfinished for each in self.inputs)

    @property
    def tally(self) -> Tally:
        """How many records came to which end, over all inputs."""
        return Tally(*(sum(getattr(each.tally, name) for each in self.inputs) for name in _ENDINGS))

    @property
    def blocked(self) -> list[InputStatus]:
        """Inputs that wait for an operator."""
        return [each for each in self.inputs if each.blocked]


class DeadLetter(NamedTuple):
    """A record of `F.dead-letters`; `at` is where it lies, `origin` where the event was sent."""

    at: str
    time_ms: int
    reason: str
    tenant: str
    origin: str
    run: str
    detail: str
    size_bytes: int
    value: bytes | None
    root: str = ""  # of a redriven run: the one that failed first
    kept: int = 0  # segments that the ledger keeps for a redrive
    truncated: bool = False
    headers: tuple[tuple[str, bytes | None], ...] = ()


# --- what is decided without Kafka ---


def input_status(
    topic: Topic, partition: int, slot: int, first: int | None, end: int | None, written: Progress | None
) -> InputStatus:
    """An input's status from what it holds (`first` to `end`; None: it is away) and what F.progress says of it."""
    if written is not None and written.topic_id != topic.id:  # of a topic that was deleted and made anew
        written = None
    if first is None or end is None:
        lowest = 0 if written is None else written.lowest
        known = input_status(topic, partition, slot, lowest, lowest, written)
        return known._replace(away=True)
    if written is None:
        return InputStatus(topic.name, partition, slot, end, first, end - first, 0, Tally())
    finished_ahead = sum(max(0, min(last, end) - start) for start, last in written.finished)
    unfinished = max(0, end - written.lowest - finished_ahead)
    lost = unfinished_below(written, first) if first > written.lowest else 0
    at = (topic.name, partition, slot)
    return InputStatus(*at, end, written.lowest, unfinished, lost, written.tally, written.unreadable)


def dead_letter(message: Message) -> DeadLetter:
    """A dead letter from its record."""
    headers: dict[str, bytes] = dict(message.headers() or ())  # type: ignore[arg-type]  # as librdkafka gives them

    def header(name: str) -> str:
        return headers.get(f"onceflow-{name}", b"").decode(errors="replace")

    value = message.value()
    size = header("truncated")
    return DeadLetter(
        at=f"{message.topic()}/{message.partition()}/{message.offset()}",
        time_ms=message.timestamp()[1],
        reason=header("reason"),
        tenant=header("tenant"),
        origin=header("origin"),
        run=header("run"),
        detail=header("detail"),
        size_bytes=int(size) if size.isdecimal() else len(value or b""),
        value=value,
        root=header("root"),
        kept=int(header("kept") or 0),
        truncated=bool(size),
        headers=tuple(message.headers() or ()),  # type: ignore[arg-type]
    )


def time_text(time_ms: int) -> str:
    """A Kafka time stamp for people and programs."""
    return (
        datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def status_as_json(status: Status) -> dict[str, Any]:
    """A status as JSON values; every number is a count of records or an offset."""
    return {
        "flow": status.flow,
        "cells": status.cells,
        "unfinished": status.unfinished,
        "lag": sum(each.lag for each in status.inputs),
        "events": {name: getattr(status.tally, name) for name in _ENDINGS},
        "dead_letters": {"total": sum(status.dead_letters.values()), "by_reason": status.dead_letters},
        "blocked_inputs": [f"{each.topic}/{each.partition}" for each in status.blocked],
        "slots": [slot._asdict() for slot in status.slots],
        "inputs": inputs_as_json(status.inputs),
    }


def inputs_as_json(inputs: Iterable[InputStatus]) -> list[dict[str, Any]]:
    """Inputs as JSON values."""
    return [
        {
            "topic": each.topic,
            "partition": each.partition,
            "slot": each.slot,
            "end": each.end,
            "lowest_unfinished": each.lowest,
            "lag": each.lag,
            "unfinished": each.unfinished,
            "lost": each.lost,
            "unreadable": None if each.unreadable < 0 else each.unreadable,
            "away": each.away,
            "events": {name: getattr(each.tally, name) for name in _ENDINGS},
        }
        for each in inputs
    ]


def letter_as_json(letter: DeadLetter, *, values: bool) -> dict[str, Any]:
    """A dead letter as JSON values; `value` (or `value_base64`, where it is no text) only if asked for."""
    found: dict[str, Any] = {
        "at": letter.at,
        "time": time_text(letter.time_ms),
        "reason": letter.reason,
        "tenant": letter.tenant,
        "origin": letter.origin,
        "run": letter.run,
        "detail": letter.detail,
        "size": letter.size_bytes,
    }
    if values and letter.value is None:
        found["value"] = None
    elif values and letter.value is not None:
        try:
            found["value"] = letter.value.decode()
        except UnicodeDecodeError:
            found["value_base64"] = base64.b64encode(letter.value).decode()
    return found


# --- the reader ---


def read_status(flow: str, settings: Settings) -> Status:
    """Ask Kafka how the flow stands. Raises ConfigError where its topics are missing."""
    cluster = Cluster(settings.kafka.properties())
    slots = existing_slots(flow, cluster, settings)
    names = Names.of(flow)
    written = read_progress(flow, cluster, settings, slots)
    wanted = [name for name in cluster.topic_names() if settings.events.is_input(name)]
    topics = cluster.topics([*wanted, names.inbox])
    inbox = topics.pop(names.inbox)
    found = inputs_of(topics.values(), slots, settings)
    placed = [(topic, partition, slot) for slot in found for topic, partition in found[slot]]
    partitions = [(topic.name, partition) for topic, partition, _ in placed]
    inboxes = [(inbox.name, slot) for slot in range(slots)]
    # The committed ends: what lies above them is in nobody's status yet. Without an inbox no slot can be served.
    firsts = cluster.first_offsets(inboxes) | cluster.first_offsets_known(partitions)
    ends = cluster.end_offsets(inboxes, stable=True) | cluster.stable_offsets_known(partitions)
    placed += [(inbox, slot, slot) for slot in range(slots)]
    inputs = sorted(
        input_status(topic, partition, slot, firsts.get(at), ends.get(at), written.get(at))
        for topic, partition, slot in placed
        for at in [(topic.name, partition)]
    )
    owner = {slot: cell for cell, owned in cluster.members(flow).items() for slot in owned}
    last = {slot: progress.cell for (topic, slot), progress in written.items() if topic == names.inbox}
    counts, unfinished = Counter[int](), Counter[int]()
    for each in inputs:
        counts[each.slot] += 1
        unfinished[each.slot] += each.unfinished
    shares = [
        SlotStatus(slot, owner.get(slot, ""), last.get(slot, ""), counts[slot], unfinished[slot])
        for slot in range(slots)
    ]
    reasons = Counter(letter.reason for letter in read_dead_letters(flow, cluster, settings, slots))
    return Status(flow, shares, inputs, dict(sorted(reasons.items())))


def read_progress(
    flow: str, cluster: Cluster, settings: Settings, slots: int
) -> Mapping[Partition, Progress]:
    """What F.progress says of each input that was ever read."""
    found: dict[Partition, Progress] = {}
    for message in committed(flow, Names.of(flow).progress, cluster, settings, range(slots)):
        key, value = message.key(), message.value()
        if key is not None:
            topic, _, partition = key.decode().rpartition("/")
            if value is None:
                found.pop((topic, int(partition)), None)
            else:
                found[topic, int(partition)] = decode_progress(value)
    return found


def read_dead_letters(flow: str, cluster: Cluster, settings: Settings, slots: int) -> Iterator[DeadLetter]:
    """All dead letters that Kafka still has, in the order of each partition."""
    for message in committed(flow, Names.of(flow).dead_letters, cluster, settings, range(slots)):
        yield dead_letter(message)


def newest_dead_letters(
    flow: str, settings: Settings, limit: int, wanted: Callable[[DeadLetter], bool]
) -> tuple[list[DeadLetter], int]:
    """The newest of the wanted dead letters, oldest first, and how many are wanted in all."""
    cluster = Cluster(settings.kafka.properties())
    slots = existing_slots(flow, cluster, settings)
    total = 0

    def counted() -> Iterator[DeadLetter]:
        nonlocal total
        for letter in filter(wanted, read_dead_letters(flow, cluster, settings, slots)):
            total += 1
            yield letter

    newest = heapq.nlargest(limit, counted(), key=lambda letter: (letter.time_ms, letter.at))
    return newest[::-1], total


def committed(
    flow: str, topic: str, cluster: Cluster, settings: Settings, slots: Iterable[int]
) -> Iterator[Message]:
    """The committed records of one of the flow's topics up to now, of these slots."""
    partitions = [(topic, slot) for slot in slots]
    properties = {
        "fetch.wait.max.ms": 10,
        "retry.backoff.ms": 10,
        **settings.kafka.properties(),
        "group.id": f"{flow}-status",  # never joined: it only reads
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
    }
    with client_made(settings.kafka.client):
        consumer = Consumer(properties, logger=log)
    with closing(consumer):
        for messages in read_to_end(
            consumer,
            dict.fromkeys(partitions),
            cluster.end_offsets(partitions, stable=True),
            stalled=_slow,
            wanted=lambda: True,
        ):
            yield from messages


def _slow(seconds: float) -> None:
    if seconds > 30:
        raise KafkaAway("Kafka has sent nothing for 30 s: see whether it is there and well, then try again")
