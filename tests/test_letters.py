"""What a cell writes: one completion per run, whatever its agent returned, whether it ended with others or alone."""

from typing import Any

import msgspec
import pytest

from onceflow.agents.agent import agent
from onceflow.agents.calls import Completed, RunFailed
from onceflow.agents.happenings import Arrivals, Ended, EndedAtOnce, Redrive
from onceflow.agents.run import Run
from onceflow.event import Event, Incoming, Reason, home_slot, idempotency_key
from onceflow.event.reading import SIZE_MAX_BYTES
from onceflow.state.seen import seen_key, tenant_prefix
from onceflow.stream.completions import keys_of_completion, run_of_completion
from onceflow.stream.content import Finished, Grant, Input
from onceflow.stream.letters import DETAIL_BYTES, Letters
from onceflow.stream.topics import RECORD_MAX_BYTES, Names

NAMES = Names.of("flow")
SLOT = home_slot("acme", 16)
NOW = 1_800_000_000_000
VALUE_MAX = 2_000
LETTERS = Letters("flow", NAMES, dict.fromkeys(NAMES, 1_000_000), VALUE_MAX)


@agent("asks", on="t")
async def asks(run: Run, event: Event) -> None: ...


def arrivals(count: int, *, rejects: bool = False) -> Arrivals:
    source = Input("events", SLOT, Grant(SLOT), topic_id="id")
    incomings = [
        Incoming("acme", "erp", f"evt-{n}", "t", None, b"7", b'{"document":%d}' % n) for n in range(count)
    ]
    keys = [idempotency_key(i.tenant, i.source, i.id, i.data) for i in incomings]
    seen = [seen_key(tenant_prefix(SLOT, "acme"), key) for key in keys]
    identities = [b"identity-%d" % n for n in range(count)] if rejects else []
    offsets, times_ms = [*range(10, 10 + count)], [NOW] * count
    return Arrivals(source, asks, offsets, times_ms, incomings, keys, seen, identities)


def completions(ends: list[Finished]) -> list[dict[str, Any]]:
    written = [o for end in ends for o in end.outgoing if o.topic == NAMES.completions]
    assert {(o.partition, o.key) for o in written} == {(SLOT, "acme")}
    return [msgspec.json.decode(value or b"") for outgoing in written for value in outgoing.values]


@pytest.mark.parametrize("rejects", [False, True])
def test_runs_that_ended_together_write_what_each_would_write_alone(rejects: bool) -> None:
    values = [{"n": 1}, None, "text"]
    (end,) = LETTERS.completions(EndedAtOnce(arrivals(3, rejects=rejects), values), NOW)
    events = arrivals(3, rejects=rejects)
    alone = [
        LETTERS.completion(Ended(events.one(n), Completed(value)), NOW) for n, value in enumerate(values)
    ]
    assert completions([end]) == completions(alone)
    assert [each["data"] for each in completions([end])] == values
    assert [*end.offsets] == [offset for each in alone for offset in each.offsets] == [10, 11, 12]
    assert [*end.seen] == [seen for each in alone for seen in each.seen]
    assert [*end.identities] == [one for each in alone for one in each.identities]
    assert end.size == sum(each.size for each in alone)
    assert len(end.identities) == (3 if rejects else 0)


@pytest.mark.parametrize(
    ("bad", "code"), [(object(), Reason.AGENT_FAILED), ("x" * VALUE_MAX, Reason.TOO_LARGE)]
)
def test_a_value_that_cannot_be_written_fails_its_own_run_alone(bad: Any, code: str) -> None:
    ends = [*LETTERS.completions(EndedAtOnce(arrivals(3), ["good", bad, "good too"]), NOW)]
    written = completions(ends)
    assert [each["type"] for each in written] == ["asks.completed", "asks.failed", "asks.completed"]
    assert written[1]["data"]["code"] == code
    letters = [o for end in ends for o in end.outgoing if o.topic == NAMES.dead_letters]
    assert len(letters) == 1
    assert sorted(offset for end in ends for offset in end.offsets) == [10, 11, 12]


def test_a_completion_is_read_at_a_glance_as_it_is_read_in_full() -> None:
    (end,) = LETTERS.completions(EndedAtOnce(arrivals(3), [1, "two", None]), NOW)
    (outgoing,) = end.outgoing
    for value, seen in zip(outgoing.values, end.seen, strict=True):
        assert value is not None
        assert run_of_completion(value, b"acme", SLOT) == keys_of_completion(value, SLOT)[0] == seen
        other = msgspec.json.encode(dict(reversed(msgspec.json.decode(value).items())))
        assert run_of_completion(other, b"acme", SLOT) == seen, "another writer's order of members"
    for broken in (b"", b"{}", value[:20], value[:59], value[:27] + b"x" * 32 + value[59:]):
        with pytest.raises(ValueError, match=r"."):
            run_of_completion(broken, b"acme", SLOT)


def test_the_dead_letter_of_a_redrive_that_never_began_names_the_run_that_failed() -> None:
    arrived = arrivals(1).one(0)
    arrived.redrive, arrived.root = Redrive(b"f" * 16, b"r" * 16, "letters/3/17", 4), b"r" * 16
    _, letter = LETTERS.outcome(Ended(arrived, RunFailed("invalid-data", "no", "")), NOW)
    assert letter is not None
    headers = dict(letter.headers)
    names = ("onceflow-run", "onceflow-root", "onceflow-kept")
    assert [headers[name] for name in names] == [(b"f" * 16).hex().encode(), (b"r" * 16).hex().encode(), b"4"]


def test_the_dead_letter_of_the_largest_event_that_is_taken_holds_it_whole() -> None:
    letters = Letters("flow", NAMES, dict.fromkeys(NAMES, RECORD_MAX_BYTES), SIZE_MAX_BYTES)
    arrived = arrivals(1).one(0)
    arrived.value = b" " * SIZE_MAX_BYTES
    _, letter = letters.outcome(Ended(arrived, RunFailed("no-luck", "no", "x" * DETAIL_BYTES)), NOW)
    assert letter is not None
    assert letter.values == (arrived.value,)
    assert "onceflow-truncated" not in dict(letter.headers)
