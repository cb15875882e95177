"""The events that are sent, and the completions with which a window is filled, are the product's own."""

from collections import Counter

import msgspec
import pytest

from benchmarks.fill import completion
from benchmarks.load import COPIES, Load, Numbers
from benchmarks.pure_flow import three_steps
from benchmarks.read_flow import one_step
from flows.dedup import dedup
from onceflow.agents.calls import Completed
from onceflow.agents.happenings import Arrived, Ended
from onceflow.event import Event, Incoming, home_slot, idempotency_key, read_event
from onceflow.stream.completion_values import utc_text
from onceflow.stream.content import Grant, Input
from onceflow.stream.letters import Letters
from onceflow.stream.topics import Names
from tests.flows.driver import drive

NOW_MS = 1_790_000_000_123
SLOTS = 16


def read(load: Load, number: int) -> Incoming:
    incoming = read_event(load.value(number), None)
    assert isinstance(incoming, Incoming), incoming
    return incoming


def test_every_event_is_well_formed_and_its_tenants() -> None:
    load = Load(340)
    for number in (0, 1, 9_972, 4_199_999, 999_999_999):
        incoming = read(load, number)
        assert incoming.tenant.encode() == load.tenant(number)
        assert incoming.data == load.data(number)
        assert 270 <= len(load.value(number)) <= 310


def test_the_same_number_is_the_same_event_in_every_run() -> None:
    one, other = Load(7), Load(7)
    assert [one.value(number) for number in range(1000)] == [other.value(number) for number in range(1000)]


def test_a_filled_completion_is_byte_by_byte_what_a_cell_writes() -> None:
    """Else the view that is built of it would not be the real one."""
    load = Load(340)
    names = Names.of("dedup")
    letters = Letters("dedup", names, dict.fromkeys(names, 2_000_000), 1_000_000)
    for number in (0, 12_345, 15_999_999):
        incoming = read(load, number)
        key = idempotency_key(incoming.tenant, incoming.source, incoming.id, incoming.data)
        slot = home_slot(incoming.tenant, SLOTS)
        source = Input("events", slot, Grant(slot), topic_id="id")
        arrived = Arrived(source, 7, NOW_MS, load.value(number), None, incoming, dedup, key=key)
        data = Event.of(incoming, key.hex(), None).raw
        (written,) = letters.completion(Ended(arrived, Completed(data)), NOW_MS).outgoing
        assert [*written.values] == [completion(load, number, "dedup", utc_text(NOW_MS).encode())]
        assert (written.partition, written.key) == (slot, load.tenant(number).decode())


@pytest.mark.parametrize("first", [0, 50_000])
@pytest.mark.parametrize("within", [0, 1_000])
def test_a_tenth_are_copies_of_events_that_were_there_before(first: int, within: int) -> None:
    numbers = Numbers(first, 100_000, within=within)
    sent = list(numbers)
    assert sent == list(numbers), "they are the same each time"
    fresh, copies = first, 0
    for number in sent:
        if number == fresh:
            fresh += 1
        else:
            copies += 1
            assert (max(first, fresh - within) if within else 0) <= number < fresh
    assert len(sent) == 100_000
    assert copies / len(sent) == pytest.approx(COPIES, rel=0.1)
    if not within and first:
        assert sum(number < first for number in sent) > copies / 4, "none are copies of what is in the window"


def test_tenants_have_as_many_events_each_or_follow_zipf() -> None:
    even = Counter(map(Load(10).tenant, range(100_000)))
    assert min(even.values()) > 0.9 * max(even.values())
    skewed = Counter(map(Load(10, zipf=True).tenant, range(100_000)))
    first, tenth = skewed[b"tenant-00000"], skewed[b"tenant-00009"]
    assert first / tenth == pytest.approx(10, rel=0.1)


def test_the_agent_with_three_pure_steps_passes_their_results_on() -> None:
    data = msgspec.json.decode(Load(1).data(119))
    assert drive(three_steps, data).value == {"account": 4400 + 119 % 97, "cents": 100}


def test_the_agent_with_a_read_step_makes_one_call() -> None:
    driven = drive(one_step, msgspec.json.decode(Load(1).data(100)))
    assert (driven.value, [name for name, _, _ in driven.attempts]) == ({"account": 3}, ["look_up"])
