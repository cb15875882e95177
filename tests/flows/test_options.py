"""What the settings of dedup and of events do, seen from outside: events in, completions and dead letters out."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from onceflow.config import Dedup, Events, Kafka, Settings
from onceflow.stream.cluster import Cluster
from onceflow.stream.topics import prepare
from tests.crash.cells import Cell
from tests.crash.checker import Output, Reader
from tests.waiting import wait_until

Record = tuple[bytes | None, list[tuple[str, bytes]]]


class World:
    """One cell of a flow with settings from the environment, and what came out of it."""

    def __init__(self, flow: str, servers: str, directory: Path, **environment: str) -> None:
        self.flow, self.topic = flow, f"{flow}-in"
        shared = Events(shared=(self.topic,), tenant_prefix=f"{flow}-own.")
        dedup = Dedup(window=timedelta(hours=1))
        cluster = Cluster({"bootstrap.servers": servers})
        settings = Settings(kafka=Kafka(bootstrap_servers=servers), events=shared, dedup=dedup, slots=2)
        cluster.patiently(lambda: prepare(flow, cluster, settings))
        self._producer = Producer({
            "bootstrap.servers": servers,
            "partitioner": "murmur2_random",
            "message.max.bytes": 1_040_000,
        })  # fmt: skip
        self._reader = Reader(servers, [f"{flow}.completions", f"{flow}.dead-letters"])
        self.cell = Cell("a", directory, "tests.flows.options_flow", {
            "OPTIONS_FLOW": flow,
            "ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS": servers,
            "ONCEFLOW_EVENTS__SHARED": self.topic,
            "ONCEFLOW_EVENTS__TENANT_PREFIX": f"{flow}-own.",
            **environment,
        }).start()  # fmt: skip

    def send(self, *records: Record) -> None:
        for value, headers in records:
            self._producer.produce(self.topic, value, b"acme", headers=headers)
        self._producer.flush(20)

    def out(self, count: int) -> tuple[list[dict[str, Any]], list[Output]]:
        """Wait until exactly so many records came out, and the last was read; completions and dead letters."""
        wait_until(lambda: self._reader.more() >= count, 40, f"{count} records came out")
        found = self._reader.found
        completions = [json.loads(o.value or b"") for o in found[f"{self.flow}.completions"]]
        return completions, found[f"{self.flow}.dead-letters"]

    def close(self) -> None:
        self._reader.close()
        if self.cell.running():
            assert self.cell.end(signal.SIGTERM) == 0


@pytest.fixture
def worlds() -> Iterator[list[World]]:
    made: list[World] = []
    yield made
    for world in made:
        world.close()


def event(id: str, data: str | None = '{"x":1}', type: str = "any", **more: Any) -> Record:
    attributes = {"specversion": "1.0", "id": id, "source": "s", "type": type, "tenant": "acme", **more}
    text = json.dumps(attributes)
    return ((text if data is None else f'{text[:-1]},"data":{data}}}').encode(), [])


def reasons(letters: list[Output]) -> Counter[str]:
    return Counter(letter.headers["onceflow-reason"].decode() for letter in letters)


LAST = event("last", type="last")  # sent after all else to one partition: when it is out, so is all before it


@pytest.mark.parametrize(
    ("content", "runs"),
    [("bytes", 4), ("canonical", 3), ("ignore", 2)],
)
def test_dedup_content_says_what_makes_two_events_the_same(
    content: str, runs: int, worlds: list[World], kafka: Any, flow_name: str, tmp_path: Path
) -> None:
    """One id with data that is equal, equal but for blanks, and other; and one event more."""
    worlds.append(World(flow_name, kafka.bootstrap_servers, tmp_path, ONCEFLOW_DEDUP__CONTENT=content))
    same = [event("1", '{"x":1}'), event("1", '{ "x": 1 }'), event("1", '{"x":2}'), event("1", '{"x":1}')]
    worlds[0].send(*same, LAST)
    completions, letters = worlds[0].out(runs)
    assert (len(completions), letters) == (runs, [])


def test_a_conflict_is_rejected_where_that_is_asked_for(
    worlds: list[World], kafka: Any, flow_name: str, tmp_path: Path
) -> None:
    """The first of the two wins, in flight and completed alike; the other is a dead letter."""
    worlds.append(World(flow_name, kafka.bootstrap_servers, tmp_path, ONCEFLOW_DEDUP__CONFLICT="reject"))
    worlds[0].send(event("1", "1"), event("1", "2"))
    worlds[0].out(2)
    worlds[0].send(event("1", "3"), event("1", "1"), LAST)
    completions, letters = worlds[0].out(4)
    assert sorted(str(c["data"]) for c in completions) == ["1", "{'x': 1}"]
    assert reasons(letters) == {"conflict": 2}


def test_a_copy_after_the_window_runs_again(
    worlds: list[World], kafka: Any, flow_name: str, tmp_path: Path
) -> None:
    """The window counts from the completion, in the broker's time."""
    worlds.append(World(flow_name, kafka.bootstrap_servers, tmp_path, ONCEFLOW_DEDUP__WINDOW="1"))
    worlds[0].send(event("1"), event("1"))
    first = worlds[0].out(1)[0][0]["id"]

    def again() -> bool:
        worlds[0].send(event("1"))
        return worlds[0]._reader.more() >= 2

    wait_until(again, 20, "a copy runs again")
    assert {completion["id"] for completion in worlds[0].out(2)[0]} == {first}


def test_all_that_is_no_event_becomes_one_dead_letter_each_and_stops_nothing(
    worlds: list[World], kafka: Any, flow_name: str, tmp_path: Path
) -> None:
    """A line of the contract's table each, between good events."""
    world = World(flow_name, kafka.bootstrap_servers, tmp_path)
    worlds.append(world)
    binary = [(f"ce_{k}", v.encode()) for k, v in {
        "specversion": "1.0", "id": "b", "source": "s", "type": "any", "tenant": "acme"}.items()]  # fmt: skip
    deep = "[" * 250 + "]" * 250
    world.send(
        event("good-1"),
        (None, []),
        (b"not json", []),
        (b"\xef\xbb\xbf{}", []),
        event("nan", "NaN"),
        event("deep", deep),
        (b"[1]", []),
        event("", "1"),
        event("tab\t", "1"),
        event("b64", None, data_base64="AA=="),
        event("huge", '"' + "x" * 1_000_001 + '"'),
        (b'{"x":1}', binary),
        (None, [*binary[:1], ("ce_id", b"b2"), *binary[2:]]),
        event("big", "123456789012345678901234567890"),
        event("infinite", "1e400"),
        event("typed", '{"quantity":"many"}', type="order.placed"),
        event("typed-2", '{"quantity":2}', type="order.placed"),
        LAST,
    )
    completions, letters = world.out(8 + 12)
    ends = Counter(completion["type"] for completion in completions)
    assert ends == {"dedup.completed": 5, "dedup.failed": 1, "typed.failed": 1, "typed.completed": 1}
    codes = {c["causeid"]: c["data"]["code"] for c in completions if c["type"].endswith(".failed")}
    assert codes == {"infinite": "invalid-data", "typed": "invalid-data"}
    assert reasons(letters) == {"undecodable": 5, "invalid": 4, "too-large": 1, "agent-failed": 2}
    big = next(c for c in completions if c["causeid"] == "big")
    assert big["data"] == 123456789012345678901234567890


def test_plain_json_is_mapped_where_that_is_configured(
    worlds: list[World], kafka: Any, flow_name: str, tmp_path: Path
) -> None:
    """Tenant from a header, id and type from the value, a constant source; CloudEvents are still taken."""
    world = World(
        flow_name,
        kafka.bootstrap_servers,
        tmp_path,
        ONCEFLOW_EVENTS__PLAIN__TENANT="header:x-tenant",
        ONCEFLOW_EVENTS__PLAIN__ID="/order/id",
        ONCEFLOW_EVENTS__PLAIN__SOURCE="=erp",
        ONCEFLOW_EVENTS__PLAIN__TYPE="/kind",
    )
    worlds.append(world)
    plain = (b'{"kind":"sold","order":{"id":"o-1"}}', [("x-tenant", b"acme")])
    world.send(plain, plain, event("1"))
    completions, letters = world.out(2)
    assert {(c["causesource"], c["causeid"]) for c in completions} == {("erp", "o-1"), ("s", "1")}
    assert letters == []
