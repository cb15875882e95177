"""A lane: bounds and turns, what a lost grant takes with it, and journals over a restart."""

from collections.abc import Callable
from contextvars import ContextVar
from decimal import getcontext
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from onceflow.agents.agent import Agent, agent
from onceflow.agents.at_once import begin_without_lane
from onceflow.agents.calling import Answered
from onceflow.agents.calls import Completed, Returned, RunFailed, StartCall
from onceflow.agents.capacity import Capacity
from onceflow.agents.happenings import Arrivals, Arrived, Decided, Ended, Happening, Lost, Settled, Turn
from onceflow.agents.lane import Lane
from onceflow.agents.machine import Machine
from onceflow.agents.poison import NAMES_BYTES, Names, Suspicion, Watch
from onceflow.agents.run import Run
from onceflow.agents.snapshot import SNAPSHOT_FORMAT, snapshot_tenant
from onceflow.agents.state import no_flags
from onceflow.agents.tool import tool
from onceflow.event import Event, Incoming
from onceflow.stream.completion_values import utc_text

NOW = 1_800_000_000_000


@tool(effect="read")
async def fetch(name: str) -> str:
    raise AssertionError("nobody carries out calls here")


@agent("two-steps", on="t")
async def two_steps(run: Run, event: Event[int]) -> list[str]:
    return [await run.call(fetch, name="first"), await run.call(fetch, name="second")]


@agent("two-steps", on="t", version=2)
async def two_steps_changed(run: Run, event: Event[int]) -> list[str]:
    return [await run.call(fetch, name="first"), await run.call(fetch, name="second")]


class Memory:
    """The ledger of a tenant whose runs are in none: nothing may be asked of it or put there."""


class World:
    """What surrounds a lane: a grant, a capacity, and the calls that were started."""

    def __init__(self, runs_per_lane: int = 10, runs_per_cell: int = 10) -> None:
        self.grant = SimpleNamespace(live=True)
        self.source = SimpleNamespace(topic="events", partition=3, grant=self.grant)
        self.capacity = Capacity(runs_per_lane=runs_per_lane, runs_per_cell=runs_per_cell)
        self.started: list[StartCall] = []
        self.abandoned: list[Machine] = []

    def lane(self, tenant: str = "acme", snapshot: bytes | None = None) -> Lane:
        return Lane(tenant, self.capacity, self.started.extend, self.abandoned.extend, Memory(), snapshot)

    def event(
        self,
        offset: int,
        tenant: str = "acme",
        by: Agent[Any, Any] = two_steps,
        data: bytes = b"1",
        **more: Any,
    ) -> Arrived:
        """An event read from this offset; its key follows from the offset."""
        incoming = Incoming(tenant, "erp", f"evt-{offset}", "t", None, data)
        key = offset.to_bytes(16, "big")
        return Arrived(self.source, offset, NOW, b"{}", None, incoming, by, key=key, **more)

    def events(self, *offsets: int, by: Agent[Any, Any] = two_steps, data: bytes = b"1") -> Arrivals:
        """Events that were read together."""
        each = [self.event(offset, by=by, data=data) for offset in offsets]
        columns = ([e.offset for e in each], [e.time_ms for e in each], [e.incoming for e in each])
        return Arrivals(self.source, by, *columns, [e.key for e in each], [e.key for e in each])

    def answer(self) -> Answered:
        """The oldest call that was started returns its place."""
        started = self.started.pop(0)
        result = fetch.encode_result(started.place)
        return Answered(started.run, Returned(started.place, started.call.attempt, result))

    def offsets_begun(self) -> list[int]:
        """The events whose runs are waiting for a call, in the order they began."""
        return [started.run.token.offset for started in self.started]


def ended_at(ended: list[Ended]) -> list[int]:
    return [end.arrived.offset for end in ended]


def ends(decided: Decided) -> list[Any]:
    return [*decided.ended, *decided.ended_at_once]


def take(lane: Lane, *happenings: Happening) -> list[Any]:
    return ends(lane.take(happenings, NOW))


def test_an_event_becomes_a_run_and_the_run_an_end() -> None:
    world = World()
    lane = world.lane()
    assert take(lane, world.event(5)) == []
    assert (lane.idle, world.capacity.in_flight) == (False, 1)
    assert take(lane, world.answer()) == []
    (ended,) = take(lane, world.answer())
    assert (ended.arrived.offset, ended.outcome) == (5, Completed(["0", "1"]))
    assert (lane.idle, world.capacity.in_flight) == (True, 0)


def test_data_that_the_agent_cannot_take_ends_as_failed_and_gives_its_room_back() -> None:
    world = World()
    lane = world.lane()

    @agent("strict", on="t")
    async def strict(run: Run, event: Event[int]) -> None: ...

    (ended,) = take(lane, world.event(1, by=strict, data=b'"text"'))
    assert isinstance(ended.outcome, RunFailed)
    assert ended.outcome.code == "invalid-data"
    assert (lane.idle, world.capacity.in_flight) == (True, 0)


# --- Events that were read together ---


@agent("odd-asks", on="t")
async def odd_asks(run: Run, event: Event[int]) -> str:
    """Its run ends at once unless its number is odd; the number is the last digit of the event's id."""
    number = int(event.id[-1])
    return await run.call(fetch, name="odd") if number % 2 else f"even {number}"


WHO: ContextVar[str] = ContextVar("who", default="nobody")


@agent("whose", on="t")
async def whose(run: Run, event: Event[int]) -> list[str]:
    """What it has set itself, over a call; and what it found."""
    found = WHO.get()
    WHO.set(event.id)
    assert getcontext().prec == 28
    getcontext().prec = 3
    if event.id[-1] == "1":
        await run.call(fetch, name="odd")
    return [found, WHO.get()]


Give = Callable[..., list[Any]]


def first_without_a_lane(lane: Lane, *happenings: Happening) -> list[Any]:
    """As `take`, but runs begin without a lane as far as they can; the lane gets what is left."""
    decided = Decided()
    left = begin_without_lane(lane.tenant, happenings, lane._capacity, no_flags, NOW, decided)
    return ends(lane.take(left, NOW, decided) if left else decided)


@pytest.fixture(params=[take, first_without_a_lane], ids=["in a lane", "first without one"])
def give(request: pytest.FixtureRequest) -> Give:
    """How a lane that is idle gets events: what comes of them is the same."""
    found: Give = request.param
    return found


def test_runs_that_end_at_once_are_one_decision_and_take_no_room(give: Give) -> None:
    world = World(runs_per_cell=1)
    lane = world.lane()
    (ended,) = give(lane, world.events(0, 2, 4, by=odd_asks))
    assert (ended.arrivals.offsets, ended.values) == ([0, 2, 4], ["even 0", "even 2", "even 4"])
    assert (lane.idle, world.capacity.in_flight) == (True, 0)


def test_what_an_agent_sets_in_its_context_is_its_own(give: Give) -> None:
    world = World()
    lane = world.lane()
    (at_once,) = give(lane, world.events(0, 1, 2, by=whose))
    assert at_once.values == [["nobody", "evt-0"], ["nobody", "evt-2"]]
    (later,) = take(lane, world.answer())
    assert later.outcome == Completed(["nobody", "evt-1"])
    assert WHO.get() == "nobody"
    assert getcontext().prec == 28


def test_those_that_do_not_end_at_once_go_on_like_any_other(give: Give) -> None:
    world = World()
    lane = world.lane()
    (ended,) = give(lane, world.events(0, 1, 2, 3, by=odd_asks))
    assert (ended.arrivals.offsets, ended.values) == ([0, 2], ["even 0", "even 2"])
    assert (world.offsets_begun(), world.capacity.in_flight) == ([1, 3], 2)
    assert ended_at(take(lane, world.answer(), world.answer())) == [1, 3]
    assert (lane.idle, world.capacity.in_flight) == (True, 0)


def test_of_events_read_together_no_more_begin_than_may_and_the_others_wait_in_their_order(
    give: Give,
) -> None:
    world = World(runs_per_lane=2)
    lane = world.lane()
    (ended,) = give(lane, world.events(1, 2, 3, 4, 5, 6, by=odd_asks))
    assert (ended.values, world.offsets_begun(), lane.waiting) == (["even 2"], [1, 3], 3)
    first, second = take(lane, world.answer())
    assert ended_at([first, second]) == [1, 4]
    assert (world.offsets_begun(), lane.waiting) == ([3, 5], 1)


def test_of_events_read_together_one_with_data_that_the_agent_cannot_take_fails_alone(give: Give) -> None:
    world = World()
    lane = world.lane()
    together = world.events(0, 2, 4, by=odd_asks)
    together.incomings[1] = world.event(2, data=b'"text"').incoming
    failed, ended = give(lane, together)
    assert (failed.arrived.offset, failed.outcome.code) == (2, "invalid-data")
    assert ended.arrivals.offsets == [0, 4]


def test_an_event_read_together_with_others_goes_on_with_the_journal_that_is_remembered() -> None:
    world = World()
    lane = world.lane()
    take(lane, world.events(7, 8))
    take(lane, world.answer())
    later = World()
    again = later.lane(snapshot=lane.snapshot())
    take(again, later.events(7, 8))
    assert [(call.run.token.offset, call.place) for call in later.started] == [(7, "1"), (8, "0")]


def test_events_of_a_slot_that_is_lost_do_not_begin(give: Give) -> None:
    world = World()
    together = world.events(0, 1, by=odd_asks)
    world.grant.live = False
    assert give(world.lane(), together) == []
    assert world.started == []


def test_runs_that_end_at_once_leave_nothing_for_a_lane() -> None:
    world = World(runs_per_cell=1)
    decided = Decided()
    both = [world.events(0, 2, by=odd_asks), world.events(4, by=odd_asks)]
    assert not begin_without_lane("acme", both, world.capacity, no_flags, NOW, decided)
    assert [ended.arrivals.offsets for ended in decided.ended_at_once] == [[0, 2], [4]]
    assert not world.capacity.watch.names.is_computing


def test_what_comes_after_a_run_that_goes_on_is_for_the_lane() -> None:
    world = World()
    decided = Decided()
    three = [world.events(0, by=odd_asks), world.events(2, 3, 4, by=odd_asks), world.event(6)]
    beginning, event = begin_without_lane("acme", three, world.capacity, no_flags, NOW, decided)
    assert [ended.arrivals.offsets for ended in decided.ended_at_once] == [[0]]
    (ended,) = world.lane().take([beginning, event], NOW).ended_at_once
    assert ended.arrivals.offsets == [2, 4]
    assert world.offsets_begun() == [3, 6]


def test_no_run_begins_without_a_lane_that_is_suspected_to_be_poison() -> None:
    world = World()
    together = world.events(0, 2, by=odd_asks)
    known = Suspicion(suspects=[together.keys[1]])
    world.capacity.watch = Watch(Names(memoryview(bytearray(NAMES_BYTES))), known, lambda _: None)
    decided = Decided()
    assert begin_without_lane("acme", [together], world.capacity, no_flags, NOW, decided) == [together]
    assert decided == Decided()


# --- Bounds and turns ---


def test_a_lane_runs_as_many_as_it_may_and_begins_the_next_in_order_when_one_ends() -> None:
    world = World(runs_per_lane=2)
    lane = world.lane()
    take(lane, *(world.event(offset) for offset in range(5)))
    assert (world.offsets_begun(), lane.waiting) == ([0, 1], 3)
    take(lane, world.answer(), world.answer())
    assert ended_at(take(lane, world.answer())) == [0]
    assert (world.offsets_begun(), lane.waiting) == ([1, 2], 2)


def test_an_event_does_not_overtake_those_that_wait() -> None:
    world = World(runs_per_lane=1)
    lane = world.lane()
    take(lane, world.event(0), world.event(1))
    take(lane, world.answer())
    assert ended_at(take(lane, world.answer(), world.event(2))) == [0]
    assert (world.offsets_begun(), lane.waiting) == ([1], 1)


def test_a_lane_that_found_the_cell_full_gets_its_turn_when_there_is_room() -> None:
    world = World(runs_per_cell=1)
    one, other = world.lane("acme"), world.lane("globex")
    take(one, world.event(0))
    take(other, world.event(1, "globex"))
    assert (other.waiting, world.capacity.turns()) == (1, [])
    take(one, world.answer())
    take(one, world.answer())
    assert world.capacity.turns() == ["globex"]
    take(other, Turn())
    assert (other.waiting, world.offsets_begun(), world.capacity.in_flight) == (0, [1], 1)


def test_a_tenant_with_much_work_does_not_keep_another_from_its_turn() -> None:
    """Room that becomes free goes to the lane that has waited longest, not to the lane whose run has ended."""
    world = World(runs_per_lane=2, runs_per_cell=2)
    greedy, modest = world.lane("greedy"), world.lane("modest")
    take(greedy, *(world.event(offset, "greedy") for offset in range(20)))
    take(modest, world.event(100, "modest"))
    rounds = 0
    while modest.waiting and rounds < 10:
        rounds += 1
        take(greedy, *(world.answer() for _ in range(len(world.started))))
        for tenant in world.capacity.turns():
            take({"greedy": greedy, "modest": modest}[tenant], Turn())
    assert modest.waiting == 0, f"still waiting after {rounds} rounds"


def test_a_cell_that_stops_begins_no_more_runs() -> None:
    world = World()
    lane = world.lane()
    take(lane, world.event(0))
    world.capacity.closed = True
    take(lane, world.event(1))
    take(lane, world.answer())
    assert ended_at(take(lane, world.answer())) == [0]
    assert (lane.waiting, world.capacity.in_flight) == (1, 0)


# --- Grants ---


def test_a_lost_grant_takes_its_runs_and_its_waiting_events_and_no_others() -> None:
    world = World(runs_per_lane=2)
    lane = world.lane()
    before = world.grant
    take(lane, *(world.event(offset) for offset in range(4)))
    late = world.answer()
    before.live = False
    take(lane, Lost(before))
    assert (lane.idle, world.capacity.in_flight, len(world.abandoned)) == (True, 0, 2)
    assert take(lane, late) == []  # an answer of an earlier grant
    assert take(lane, world.event(9)) == []  # read under it
    assert lane.idle

    world.started.clear()
    world.source = SimpleNamespace(topic="events", partition=3, grant=SimpleNamespace(live=True))
    take(lane, world.event(0))
    take(lane, Lost(before))  # told again: the new grant's runs stay
    assert (world.offsets_begun(), world.capacity.in_flight) == ([0], 1)


# --- Journals over a restart ---


def half_done(world: World, **more: Any) -> bytes:
    """The snapshot of a lane with one run, of offset 7, whose first step is finished."""
    lane = world.lane()
    take(lane, world.event(7, **more))
    take(lane, world.answer())
    world.started.clear()
    return lane.snapshot()


def test_a_run_whose_event_comes_again_from_the_same_record_skips_finished_steps() -> None:
    world = World()
    lane = world.lane(snapshot=half_done(world))
    assert (lane.has_journals, lane.idle) == (True, False)
    take(lane, world.event(7))
    assert [started.place for started in world.started] == ["1"]
    assert take(lane, world.answer())[0].outcome == Completed(["0", "1"])
    assert lane.idle


@pytest.mark.parametrize(
    ("came", "comes"),
    [
        ({}, {"by": two_steps_changed}),  # another version of the agent
        ({}, {"forwarded_from": "events/9/1"}),  # a copy of the event, sent in another record
        ({"forwarded_from": "events/9/1"}, {"forwarded_from": "events/9/2"}),
    ],
)
def test_a_journal_made_by_another_record_or_version_is_not_used(
    came: dict[str, Any], comes: dict[str, Any]
) -> None:
    world = World()
    lane = world.lane(snapshot=half_done(world, **came))
    take(lane, world.event(7, **comes))
    assert [started.place for started in world.started] == ["0"]
    assert not lane.has_journals


def test_a_forwarded_event_goes_on_with_its_journal_wherever_its_copy_lies_now() -> None:
    """Forwarding may be repeated by a crash: the journal belongs to the record in which the producer sent it."""
    world = World()
    snapshot = half_done(world, forwarded_from="events/9/1")
    lane = world.lane(snapshot=snapshot)
    world.source.partition = 4
    take(lane, world.event(7, forwarded_from="events/9/1"))
    assert [started.place for started in world.started] == ["1"]


def test_journals_of_finished_records_are_dropped_once_the_slot_is_settled() -> None:
    world = World()
    lane = world.lane(snapshot=half_done(world))
    take(lane, Settled(lambda record: record != "events/3/7"))
    assert lane.has_journals
    take(lane, Settled(lambda record: record == "events/3/7"))
    assert lane.idle


def test_journals_not_asked_for_yet_are_in_the_next_snapshot_too() -> None:
    world = World()
    first = half_done(world)
    lane = world.lane(snapshot=first)
    assert lane.snapshot() == first
    take(lane, world.event(7))
    assert lane.snapshot() == first


def test_a_snapshot_of_another_format_is_left_aside() -> None:
    world = World()
    assert snapshot_tenant(half_done(world)) == "acme"
    assert snapshot_tenant(msgspec.msgpack.encode([SNAPSHOT_FORMAT + 1, {"quite": "different"}])) is None


def test_times_are_written_as_cloudevents_wants_them() -> None:
    assert utc_text(NOW) == "2027-01-15T08:00:00.000Z"
    assert utc_text(NOW + 5) == "2027-01-15T08:00:00.005Z"
