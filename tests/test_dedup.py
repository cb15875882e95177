"""Dedup, the operator: firsts go on, copies and conflicts end there, whatever else happened passes by."""

from types import SimpleNamespace
from typing import Any

import pytest

from onceflow.agents.agent import Agent, agent
from onceflow.agents.happenings import Arrivals, Arrived, Redrive, Turn
from onceflow.agents.run import Run
from onceflow.config import Dedup as Settings
from onceflow.event import Event, Incoming, home_slot, idempotency_key
from onceflow.state.seen import Verdict, seen_key, tenant_prefix
from onceflow.stream.content import Ends, Finished, Grant, Input, Work
from onceflow.stream.dedup import Dedup
from onceflow.stream.letters import Letters
from onceflow.stream.topics import Names

FIRST, DUPLICATE, CONFLICT = Verdict.FIRST, Verdict.DUPLICATE, Verdict.CONFLICT
NAMES = Names.of("flow")
SOURCE = Input("events", 3, Grant(home_slot("acme", 16)), topic_id="id")


@agent("takes", on="t")
async def takes(run: Run, event: Event) -> None: ...


class Judge:
    """Gives the verdicts it was given, in their order, and notes what it was asked."""

    def __init__(self, *verdicts: Verdict) -> None:
        self._verdicts = list(verdicts)
        self.runs: list[bytes] = []
        self.times_ms: list[int] = []
        self.identities: list[bytes | None] = []

    def verdicts(self, runs: Any, times_ms: Any, identities: Any) -> list[Verdict]:
        self.runs, self.times_ms, self.identities = [*runs], [*times_ms], [*identities]
        assert len(runs) == len(self._verdicts)
        return self._verdicts


class Counter:
    """A metric."""

    def __init__(self) -> None:
        self.count = 0

    def inc(self, by: int) -> None:
        self.count += by


def dedup(judge: Judge, *, conflict: str = "distinct") -> tuple[Dedup, dict[Verdict, Counter]]:
    counters = {verdict: Counter() for verdict in Verdict}
    metrics: Any = SimpleNamespace(events=counters)
    letters = Letters("flow", NAMES, dict.fromkeys(NAMES, 1_000_000), 100_000)
    settings = Settings(conflict=conflict)  # type: ignore[arg-type]
    return Dedup(judge, letters, metrics, settings), counters  # type: ignore[arg-type]


def incoming(number: int, tenant: str = "acme") -> Incoming:
    return Incoming(tenant, "erp", f"evt-{number}", "t", None, b"1", b'{"document":%d}' % number)


def together(*numbers: int, by: Agent[Any, Any] = takes) -> Arrivals:
    return Arrivals(SOURCE, by, [*numbers], [1_000 + n for n in numbers], [incoming(n) for n in numbers])


def alone(number: int, **more: Any) -> Arrived:
    return Arrived(SOURCE, number, 1_000 + number, b"value", None, incoming(number), takes, **more)


def key_of(number: int) -> bytes:
    return idempotency_key("acme", "erp", f"evt-{number}", b"1")


def ends_in(judged: list[tuple[str, Work | Ends]]) -> list[Finished]:
    return [end for _, batch in judged if isinstance(batch, Ends) for end in batch]


def work_in(judged: list[tuple[str, Work | Ends]]) -> list[Any]:
    return [happening for _, batch in judged if isinstance(batch, Work) for happening in batch.happenings]


def test_firsts_go_on_with_their_keys() -> None:
    judge = Judge(FIRST, FIRST, FIRST)
    operator, counters = dedup(judge)
    judged = operator.judge([("acme", Work("acme", [together(1, 2), alone(3)]))])
    arrivals, arrived = work_in(judged)
    assert arrivals.keys == [key_of(1), key_of(2)]
    assert arrived.key == key_of(3)
    prefix = tenant_prefix(home_slot("acme", 16), "acme")
    assert judge.runs == [seen_key(prefix, key_of(number)) for number in (1, 2, 3)]
    assert judge.runs == [*arrivals.seen, arrived.seen]
    assert judge.times_ms == [1_001, 1_002, 1_003]
    assert ends_in(judged) == []
    assert counters[FIRST].count == 3


def test_copies_end_where_they_were_read_and_the_others_go_on() -> None:
    operator, counters = dedup(Judge(DUPLICATE, FIRST, DUPLICATE, FIRST, DUPLICATE))
    judged = operator.judge([("acme", Work("acme", [together(1, 2, 3, 4), alone(5)]))])
    (arrivals,) = work_in(judged)
    assert (arrivals.offsets, arrivals.times_ms) == ([2, 4], [1_002, 1_004])
    assert arrivals.keys == [key_of(2), key_of(4)]
    first, second = ends_in(judged)
    assert (first.verdict, [*first.offsets], first.size) == (
        "duplicate",
        [1, 3],
        2 * len(incoming(1).document),
    )
    assert (second.verdict, [*second.offsets], second.size) == ("duplicate", [5], len(b"value"))
    assert (counters[FIRST].count, counters[DUPLICATE].count) == (2, 3)


def test_where_all_are_copies_nothing_goes_on() -> None:
    operator, _ = dedup(Judge(DUPLICATE, DUPLICATE))
    judged = operator.judge([("acme", Work("acme", [together(1, 2)]))])
    assert work_in(judged) == []
    assert [tenant for tenant, _ in judged] == [""]


def test_conflicts_are_dead_letters_of_their_own() -> None:
    judge = Judge(FIRST, CONFLICT, DUPLICATE, CONFLICT)
    operator, _ = dedup(judge, conflict="reject")
    judged = operator.judge([("acme", Work("acme", [together(1, 2, 3), alone(4)]))])
    assert len(judge.identities) == 4
    (arrivals,) = work_in(judged)
    assert arrivals.offsets == [1]
    conflicts = [end for end in ends_in(judged) if end.verdict == "conflict"]
    assert [[*end.offsets] for end in conflicts] == [[2], [4]]
    assert [end.outgoing[0].topic for end in conflicts] == [NAMES.dead_letters] * 2


def test_a_redrive_is_compared_with_all_that_is_known_by_a_key_of_its_own() -> None:
    redrive = Redrive(b"r" * 16, b"r" * 16, "flow.dead-letters/3/7", 0)
    judge = Judge(FIRST)
    operator, _ = dedup(judge, conflict="reject")
    (arrived,) = work_in(operator.judge([("acme", Work("acme", [alone(1, redrive=redrive)]))]))
    assert (arrived.key, judge.times_ms, judge.identities) == (redrive.key, [0], [None])


@pytest.mark.parametrize("event", [together(1, 2), alone(1)])
def test_events_of_a_slot_that_is_lost_are_dropped_and_what_is_no_event_passes(event: Any) -> None:
    operator, _ = dedup(Judge())
    lost = Grant(3)
    lost.live = False
    event.source = Input("events", 3, lost, topic_id="id")
    turn = Turn()
    judged = operator.judge([("acme", Work("acme", [event, turn])), ("", Ends())])
    assert work_in(judged) == [turn]
