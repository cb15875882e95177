"""The checker catches what it is there for: one seeded error at a time, in output that is otherwise right."""

import json
from collections.abc import Callable

import pytest

from tests.crash.checker import Event, Outcome, Output, Sent, faults, home

FLOW, SLOTS = "checked", 16
EVENTS = [Event(f"t{n % 7}", "erp", f"evt-{n}", b'{"n": %d}' % n) for n in range(20)]
FAILING = EVENTS[3]

Found = tuple[list[Output], list[Output]]


def outcome(event: Event) -> Outcome:
    return Outcome("no-stock" if event == FAILING else "")


def completion(event: Event, **changed: object) -> Output:
    failed = outcome(event).failed
    attributes = {
        "specversion": "1.0",
        "id": event.key,
        "source": f"/onceflow/{FLOW}",
        "type": "echo.failed" if failed else "echo.completed",
        "tenant": event.tenant,
        "causesource": event.source,
        "causeid": event.id,
        "time": "2026-01-01T00:00:00Z",
        "data": {"code": failed, "message": ""} if failed else json.loads(event.data),
    }
    value = json.dumps(attributes | changed).encode()
    headers = {"content-type": b"application/cloudevents+json"}
    return Output(home(event.tenant, SLOTS), event.tenant.encode(), value, headers)


def letter(origin: str, reason: str, value: bytes | None, **more: str) -> Output:
    headers = {"onceflow-origin": origin, "onceflow-reason": reason} | {
        f"onceflow-{name}": text for name, text in more.items()
    }
    return Output(0, b"", value, {name: text.encode() for name, text in headers.items()})


def sent() -> list[Sent]:
    records = [Sent(f"events/0/{at}", b"", event) for at, event in enumerate(EVENTS)]
    records += [Sent(f"events/1/{at}", b"", event) for at, event in enumerate(EVENTS[:5])]  # duplicates
    return [*records, Sent("events/2/0", b"{", None, "undecodable")]


def right() -> Found:
    failed = letter("events/1/3", "agent-failed", b"", tenant=FAILING.tenant, run=FAILING.key)
    return [completion(event) for event in EVENTS], [failed, letter("events/2/0", "undecodable", b"{")]


def check(found: Found) -> list[str]:
    return faults(sent(), *found, flow=FLOW, agent="echo", slots=SLOTS, outcome=outcome)


def test_right_output_has_no_fault() -> None:
    assert check(right()) == []


def put(index: int, output: Output) -> Callable[[Found], None]:
    def act(found: Found) -> None:
        found[0][index] = output

    return act


STRANGER = Event("t1", "erp", "evt-of-nobody", b"{}")
SEEDED: dict[str, tuple[Callable[[Found], object], str]] = {
    "a completion lost": (lambda found: found[0].pop(5), "lost: no completion"),
    "a completion twice": (lambda found: found[0].append(found[0][7]), "twice: completions"),
    "a completion of no event": (lambda found: found[0].append(completion(STRANGER)), "foreign completion"),
    "another tenant's": (put(1, completion(EVENTS[1], tenant="t6")), "foreign completion"),
    "another event's data": (put(1, completion(EVENTS[1], data={"n": 2})), "wrong completion"),
    "another cause": (put(1, completion(EVENTS[1], causeid="evt-2")), "causeid"),
    "completed though failed": (put(3, completion(EVENTS[3], type="echo.completed")), "wrong completion"),
    "not at home": (put(1, completion(EVENTS[1])._replace(partition=15)), "wrong completion"),
    "without content type": (put(1, completion(EVENTS[1])._replace(headers={})), "wrong completion"),
    "a dead letter lost": (lambda found: found[1].pop(), "lost: no dead letter"),
    "a dead letter twice": (lambda found: found[1].append(found[1][-1]), "twice: dead letters"),
    "a failed run's lost": (lambda found: found[1].pop(0), "dead letters of a failed run"),
    "an event's dead letter": (
        lambda found: found[1].append(letter("events/0/4", "invalid", b"")),
        "foreign dead letter",
    ),
    "another reason": (
        lambda found: found[1].__setitem__(-1, letter("events/2/0", "invalid", b"{")),
        "reason 'invalid'",
    ),
    "another value": (
        lambda found: found[1].__setitem__(-1, letter("events/2/0", "undecodable", b"}")),
        "not the one sent",
    ),
}


@pytest.mark.parametrize("name", SEEDED)
def test_a_seeded_error_is_found(name: str) -> None:
    seed, words = SEEDED[name]
    found = right()
    seed(found)
    lines = check(found)
    assert any(words in line for line in lines), lines


def test_the_key_and_the_home_partition_are_the_public_ones() -> None:
    event = Event("acme", "erp/netsuite", "evt-1", b'{"x":1}')
    assert event.key == "a78c26d09a35e4cb73d0255993ab7bce"
    assert [home(tenant, 1000) for tenant in ("21", "foobar", "a-little-bit-long-string")] == [
        (number & 0x7FFFFFFF) % 1000 for number in (-973932308, -790332482, -985981536)
    ]
