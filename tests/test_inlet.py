"""The inlet: records become events, and what is plain is read like everything else, only faster."""

import random
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Message

from onceflow.agents.agent import agent, routes
from onceflow.agents.happenings import Arrivals, Arrived, Happening
from onceflow.agents.run import Run
from onceflow.config import Settings
from onceflow.event import Event, home_slot
from onceflow.observe.redrive import redrive
from onceflow.observe.status import dead_letter
from onceflow.stream.content import Ends, Finished, Grant, Input
from onceflow.stream.inlet import Reading
from onceflow.stream.letters import Letters
from onceflow.stream.room import Room
from onceflow.stream.sending import Record
from onceflow.stream.topics import Names

SLOTS = 16
NAMES = Names.of("flow")
HERE = home_slot("acme", SLOTS)
NEIGHBOUR = next(name for name in map("tenant-{}".format, range(500)) if home_slot(name, SLOTS) == HERE)
ELSEWHERE = next(name for name in map("tenant-{}".format, range(500)) if home_slot(name, SLOTS) != HERE)


@agent("takes", on="t")
async def takes(run: Run, event: Event) -> None: ...


@agent("also-takes", on="u")
async def also_takes(run: Run, event: Event) -> None: ...


@agent("in-order", on="ordered", order_by="data")
async def in_order(run: Run, event: Event) -> None: ...


def event(tenant: str = "acme", kind: str = "t", *, id: str = "1") -> bytes:
    return (
        b'{"specversion":"1.0","id":"%b","source":"erp","type":"%b","tenant":"%b","data":7}'
        % (id.encode(), kind.encode(), tenant.encode())
    )  # fmt: skip


VALUES = [
    event(),
    event(NEIGHBOUR),
    event(kind="u"),
    event(kind="ordered"),
    event(kind="nobody-takes-it"),
    event(ELSEWHERE),
    event(id="\\u0001"),
    event(id="ü"),
    event("not a tenant"),
    event() + b"x",
    event() + b" " * 1024,
    b"",
    b"[]",
    None,
]
HEADERS = [None, [], [("ce_specversion", b"1.0")], [("traceparent", b"00-1")]]


class World:
    """An input and who reads it."""

    def __init__(self, tenant: str = "", topic: str = "events", **events: Any) -> None:
        limits = {"value_bytes": 1024, "prefetch_bytes": 1 << 20}
        settings = Settings(limits=limits, events=events)  # type: ignore[arg-type]
        keeps_keys = settings.events.needs_key
        letters = Letters("flow", NAMES, dict.fromkeys(NAMES, 1_000_000), 300, keeps_keys=keeps_keys)
        self.input = Input(topic, 3, Grant(HERE), topic_id="id", tenant=tenant)
        self.cell: Any = SimpleNamespace(
            inputs={(topic, 3): self.input}, poll=self._polled, pause=self._pause, positions=lambda _: {}
        )
        self.cell.resume = lambda inputs: [setattr(input, "paused", False) for input in inputs]
        self.messages: list[Message] = []
        taken = routes([takes, also_takes, in_order])
        self.room = Room(self.cell, settings.limits, lambda _tenant: 0)
        self.reading = Reading(self.cell, settings, SLOTS, taken, letters, self.room)
        self.arrived: dict[str, list[Happening]] = {}
        self.ends = Ends()

    def _pause(self, inputs: Iterable[Input]) -> None:
        for input in inputs:
            input.paused = True

    def _polled(self) -> list[Message]:
        messages, self.messages = self.messages, []
        return messages

    @property
    def events(self) -> list[tuple[Any, ...]]:
        """What goes on, in the order of offsets: tenant, offset, time, agent, event."""
        each = [(t, one) for t, happenings in self.arrived.items() for one in singly(happenings)]
        found = [(t, one.offset, one.time_ms, one.agent.name, one.incoming, one.value) for t, one in each]
        return sorted(found, key=lambda one: one[1])

    @property
    def others(self) -> list[tuple[Any, ...]]:
        """What ends here, in the order of offsets."""
        return sorted((end.offsets[0], end.verdict, end.size, end.outgoing) for end in self.ends)

    @property
    def books(self) -> tuple[int, ...]:
        return (self.input.next_offset, self.input.unfinished_bytes, self.room.unfinished_bytes)


def singly(happenings: Iterable[Happening]) -> list[Arrived]:
    found: list[Arrived] = []
    for happening in happenings:
        if isinstance(happening, Arrivals):
            happening.keys = happening.seen = [b""] * len(happening)
            found += [happening.one(index) for index in range(len(happening))]
        else:
            assert isinstance(happening, Arrived)
            found.append(happening)
    return found


def message(offset: int, value: bytes | None, headers: Any = None, topic: str = "events") -> Message:
    return Message(topic=topic, partition=3, offset=offset, key=b"k", value=value, headers=headers,
                   timestamp=(1, 1_000 + offset))  # fmt: skip


@pytest.mark.parametrize("tenant", ["", "acme"])
@pytest.mark.parametrize("seed", range(30))
def test_what_is_read_together_is_what_is_read_one_by_one(seed: int, tenant: str) -> None:
    choose = random.Random(seed)
    together, each = World(tenant), World(tenant)
    offset = 0
    for _ in range(choose.randint(1, 5)):
        plain = choose.random() < 0.7
        messages = []
        for _ in range(choose.randint(1, 12)):
            offset += choose.choice((1, 1, 1, 3))  # a transaction's marker, an aborted record
            headers = None if plain else choose.choice(HEADERS)
            messages.append(
                message(offset, choose.choice(VALUES[: choose.choice((2, len(VALUES)))]), headers)
            )
        offsets = together.reading._read(together.input, messages, together.arrived, together.ends)
        assert offsets == each.reading._read_each(each.input, messages, each.arrived, each.ends)
    assert together.events == each.events
    assert together.others == each.others
    assert together.books == each.books


def test_plain_events_of_a_tenant_come_together() -> None:
    world = World()
    values = [event(id="1"), event(NEIGHBOUR), event(id="2"), event(kind="u", id="3"), event(id="4")]
    world.messages = [message(offset, value) for offset, value in enumerate(values)]
    poll = world.reading.poll()
    assert [arrivals.offsets for arrivals in poll.arrived["acme"]] == [[0, 2], [3], [4]]  # type: ignore[union-attr]
    assert [arrivals.agent.name for arrivals in poll.arrived["acme"]] == ["takes", "also-takes", "takes"]  # type: ignore[union-attr]
    assert [arrivals.offsets for arrivals in poll.arrived[NEIGHBOUR]] == [[1]]  # type: ignore[union-attr]
    assert [(read.offsets, read.position) for read in poll.reads] == [([0, 1, 2, 3, 4], 5)]
    assert world.input.unfinished == 5


def test_events_that_must_follow_one_another_come_one_by_one() -> None:
    world = World()
    world.messages = [message(offset, event(kind="ordered")) for offset in range(3)]
    assert [type(each) for each in world.reading.poll().arrived["acme"]] == [Arrived] * 3


def test_records_of_several_partitions_are_told_apart() -> None:
    world = World()
    other = Input("others", 3, Grant(HERE), topic_id="other")
    world.cell.inputs["others", 3] = other
    world.messages = [message(0, event()), message(7, event(), topic="others"), message(1, event())]
    reads = {str(read.input): (read.offsets, read.position) for read in world.reading.poll().reads}
    assert reads == {"events/3": ([0, 1], 2), "others/3": ([7], 8)}


def test_what_was_read_before_a_restart_is_not_read_again() -> None:
    world = World()
    world.input.next_offset = 2
    world.messages = [message(offset, event()) for offset in range(4)]
    (read,) = world.reading.poll().reads
    assert (read.offsets, read.position) == ([2, 3], 4)


def ends_of(world: World) -> list[Finished]:
    return world.reading.poll().ends


def test_a_record_that_is_no_event_takes_no_other_with_it() -> None:
    world = World()
    world.messages = [message(0, event()), message(1, b"{"), message(2, event())]
    poll = world.reading.poll()
    assert [one.offset for one in singly(poll.arrived["acme"])] == [0, 2]
    (end,) = poll.ends
    assert ([*end.offsets], end.verdict) == ([1], "unusable")


def test_an_event_at_its_limit_is_taken_when_it_was_forwarded_too() -> None:
    """What a cell writes to its headers on the way home does not count."""
    world = World(topic=NAMES.inbox)
    world.input.is_inbox = True
    value = event().ljust(1024 - len("traceparent"))
    way = [("traceparent", b""), ("onceflow-origin", b"events/5/12"), ("onceflow-time", b"1000")]
    world.messages = [message(0, value, way, topic=NAMES.inbox)]
    poll = world.reading.poll()
    assert [one.origin for one in singly(poll.arrived["acme"])] == ["events/5/12"]
    assert not poll.ends


KEYED = {"tenant": "/who", "id": "key", "source": "=shop", "type": "/kind"}


@pytest.mark.parametrize("key", [b"order-7", None])
def test_an_event_that_is_made_of_its_kafka_key_is_redriven_with_it(
    key: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key of its dead letter is its tenant. A header of the key's name that a producer has sent is not believed."""
    world = World(plain=KEYED)
    sent = message(0, b'{"who":"acme","kind":"nobody-takes-it"}', [("onceflow-key", b"of-another")])
    sent.set_key(key)
    world.messages = [sent]
    (letter,) = (outgoing for end in ends_of(world) for outgoing in end.outgoing)
    record = message(0, letter.values[0], letter.headers, topic=NAMES.dead_letters)

    asked: list[Record] = []
    monkeypatch.setattr("onceflow.observe.redrive.existing_slots", lambda *_: SLOTS)
    monkeypatch.setattr("onceflow.observe.redrive.send", lambda _, records: asked.extend(records))
    redrive("flow", Settings(), [dead_letter(record)])
    (again,) = asked
    assert (again.key, again.partition) == (key, HERE)

    home = World(topic=NAMES.inbox, plain=KEYED | {"type": "=t"})  # an agent takes it by now
    home.input.is_inbox = True
    read = message(0, again.value, again.headers, topic=NAMES.inbox)  # type: ignore[arg-type]
    read.set_key(again.key)
    home.messages = [read]
    poll = home.reading.poll()
    assert [one.incoming.id for one in singly(poll.arrived.get("acme", []))] == (
        [] if key is None else ["order-7"]
    )
    assert len(poll.ends) == (key is None)  # without its key it is no event, as before


class Odd:
    """A record with a header whose name is no text: the client raises when it is asked for them."""

    def __init__(self, offset: int) -> None:
        self._plain, self._asked = message(offset, event()), False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def headers(self) -> Any:
        assert not self._asked, "the second time the process ends"
        self._asked = True
        raise SystemError from UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


def test_a_record_whose_headers_cannot_be_read_takes_no_other_with_it() -> None:
    world = World()
    world.messages = [message(0, event()), Odd(1), message(2, event())]  # type: ignore[list-item]
    poll = world.reading.poll()
    assert [one.offset for one in singly(poll.arrived["acme"])] == [0, 2]
    (end,) = poll.ends
    (letter,) = end.outgoing
    assert dict(letter.headers or ())["onceflow-reason"] == b"undecodable"
    assert "unreadable" not in dict(letter.headers or ())


def test_what_is_read_counts_with_its_headers_and_is_given_back_so() -> None:
    world = World()
    messages = [message(n, v, h) for n, (v, h) in enumerate((v, h) for v in VALUES for h in HEADERS)]
    world.reading._read(world.input, messages, world.arrived, world.ends)
    arrived = [one for happenings in world.arrived.values() for one in singly(happenings)]
    given_back = sum(end.size for end in world.ends) + sum(one.size for one in arrived)
    assert given_back == world.room.unfinished_bytes
    assert given_back > sum(len(value or b"") for value in VALUES) * len(HEADERS)
