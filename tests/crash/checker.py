"""What must come out of a flow, given what was sent: a model of its own that imports nothing of the product.

Promise checked: every distinct (tenant, key) of the well-formed events has exactly one completion, with the right
contents, in its tenant's home partition; every record that is no event has exactly one dead letter, with its origin,
reason and bytes; a failed run has one too; and there is nothing else. The key, the home partition and the form of a
completion are written here anew from their public description, so that a mistake in the product is not repeated.

`faults` is pure. `Reader` is the reader whose view counts: `isolation.level=read_committed`, from the beginning.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import xxhash
from confluent_kafka import Consumer, IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

SHOWN = 5  # faults of one kind that are spelled out


class Event(NamedTuple):
    """A well-formed event."""

    tenant: str
    source: str
    id: str
    data: bytes  # as sent; b"" = absent

    @property
    def key(self) -> str:
        """The idempotency key: xxh3_128 over length-prefixed tenant, source and id, and the digest of the data."""
        fields = b"".join(
            len(text.encode()).to_bytes(4, "big") + text.encode()
            for text in (self.tenant, self.source, self.id)
        )
        return xxhash.xxh3_128_hexdigest(fields + xxhash.xxh3_128_digest(self.data))


class Sent(NamedTuple):
    """A record that was sent: an event, or else the reason for which it can only be a dead letter."""

    origin: str  # topic/partition/offset
    value: bytes | None
    event: Event | None
    reason: str = ""


class Output(NamedTuple):
    """A record of the flow's, as a reader of committed records finds it."""

    partition: int
    key: bytes
    value: bytes | None
    headers: Mapping[str, bytes]


class Outcome(NamedTuple):
    """How a run must end: completed, or failed with this code."""

    failed: str = ""


Contents = Callable[[Event, Any], str]  # an event and its completion's data -> what is wrong with them, or ""


def echoes(event: Event, data: Any) -> str:
    """The completion's data is the event's."""
    wanted = json.loads(event.data) if event.data else None
    return "" if data == wanted else f"data is {data!r}, not {wanted!r}"


def always_completed(_event: Event) -> Outcome:
    """Every run ends well."""
    return Outcome()


def faults(
    sent: Iterable[Sent],
    completions: Sequence[Output],
    letters: Sequence[Output],
    *,
    flow: str,
    agent: str,
    slots: int,
    contents: Contents = echoes,
    outcome: Callable[[Event], Outcome] = always_completed,
) -> list[str]:
    """All that is wrong with what came out, in words; empty if it is exactly what had to."""
    records = list(sent)
    runs = {(s.event.tenant, s.event.key): s.event for s in records if s.event is not None}
    unusable = {s.origin: s for s in records if s.event is None}
    wrong = _Wrong()

    ended: Counter[tuple[str, str]] = Counter()
    for output in completions:
        found = json.loads(output.value or b"null")
        run = (found["tenant"], found["id"])
        ended[run] += 1
        event = runs.get(run)
        if event is None:
            wrong.add("foreign completion", f"{run}, of {found.get('causesource')} {found.get('causeid')}")
        elif fault := _completion_fault(output, found, event, outcome(event), flow, agent, slots, contents):
            wrong.add("wrong completion", f"{run}: {fault}")
    for run in runs:
        if ended[run] != 1:
            kind = "lost: no completion" if ended[run] == 0 else "twice: completions"
            wrong.add(kind, f"{run}, event {runs[run].id}: {ended[run]}")

    _letters_faults(letters, records, unusable, runs, outcome, wrong)
    return wrong.lines()


def _completion_fault(
    output: Output,
    found: dict[str, Any],
    event: Event,
    wanted: Outcome,
    flow: str,
    agent: str,
    slots: int,
    contents: Contents,
) -> str:
    kind = "failed" if wanted.failed else "completed"
    attributes = {
        "specversion": "1.0",
        "type": f"{agent}.{kind}",
        "source": f"/onceflow/{flow}",
        "causesource": event.source,
        "causeid": event.id,
    }
    for name, value in attributes.items():
        if found.get(name) != value:
            return f"{name} is {found.get(name)!r}, not {value!r}"
    if output.headers.get("content-type") != b"application/cloudevents+json":
        return f"headers are {dict(output.headers)}"
    if output.key != event.tenant.encode() or output.partition != home(event.tenant, slots):
        return f"it has key {output.key!r} in partition {output.partition}, not {home(event.tenant, slots)}"
    if wanted.failed:
        code = found["data"].get("code")
        return "" if code == wanted.failed else f"code is {code!r}, not {wanted.failed!r}"
    return contents(event, found.get("data"))


def _letters_faults(
    letters: Sequence[Output],
    records: Sequence[Sent],
    unusable: Mapping[str, Sent],
    runs: Mapping[tuple[str, str], Event],
    outcome: Callable[[Event], Outcome],
    wrong: "_Wrong",
) -> None:
    copies: dict[tuple[str, str], set[str]] = {}
    for record in records:
        if record.event is not None:
            copies.setdefault((record.event.tenant, record.event.key), set()).add(record.origin)
    by_origin: Counter[str] = Counter()
    by_run: Counter[tuple[str, str]] = Counter()
    for letter in letters:
        headers = {
            name: value.decode() for name, value in letter.headers.items() if name.startswith("onceflow-")
        }
        origin, reason = headers.get("onceflow-origin", ""), headers.get("onceflow-reason", "")
        if (key := headers.get("onceflow-run")) is not None:
            run = (headers.get("onceflow-tenant", ""), key)
            by_run[run] += 1
            if run not in runs or not outcome(runs[run]).failed:
                wrong.add("foreign dead letter", f"of run {run}, {reason}")
            elif origin not in copies[run] or reason != "agent-failed":
                wrong.add("wrong dead letter", f"of run {run}: origin {origin}, reason {reason}")
            continue
        by_origin[origin] += 1
        bad = unusable.get(origin)
        if bad is None:
            wrong.add(
                "foreign dead letter", f"origin {origin!r}, reason {reason}: {headers.get('onceflow-detail')}"
            )
        elif reason != bad.reason:
            wrong.add("wrong dead letter", f"{origin}: reason {reason!r}, not {bad.reason!r}")
        elif letter.value != bad.value and "onceflow-truncated" not in headers:
            wrong.add("wrong dead letter", f"{origin}: its value is not the one sent")
    for origin in unusable:
        if by_origin[origin] != 1:
            kind = "lost: no dead letter" if by_origin[origin] == 0 else "twice: dead letters"
            wrong.add(kind, f"{origin} ({unusable[origin].reason}): {by_origin[origin]}")
    for run, event in runs.items():
        if outcome(event).failed and by_run[run] != 1:
            wrong.add("dead letters of a failed run", f"{run}: {by_run[run]}")


class _Wrong:
    """Faults by kind, of which a few are spelled out."""

    def __init__(self) -> None:
        self._by_kind: dict[str, list[str]] = {}

    def add(self, kind: str, what: str) -> None:
        self._by_kind.setdefault(kind, []).append(what)

    def lines(self) -> list[str]:
        lines = []
        for kind, found in sorted(self._by_kind.items()):
            more = f" … and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            lines.append(f"{len(found)} x {kind}: {'; '.join(found[:SHOWN])}{more}")
        return lines


def home(tenant: str, slots: int) -> int:
    """The partition in which Java's clients put this key: murmur2, without its sign."""
    return (murmur2(tenant.encode()) & 0x7FFFFFFF) % slots


def murmur2(data: bytes) -> int:
    """MurmurHash2 with Kafka's seed."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)


class Reader:
    """Reads topics from their beginning as `read_committed` shows them; `more` goes on where it stopped."""

    def __init__(self, bootstrap_servers: str, topics: Sequence[str]) -> None:
        self._common = common = {"bootstrap.servers": bootstrap_servers, "log_level": 0}
        self._consumer = Consumer({
            **common,
            "group.id": "checker",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 50,
        })  # fmt: skip
        listed = AdminClient(common).list_topics(timeout=20).topics
        self._partitions = [TopicPartition(topic, p, 0) for topic in topics for p in listed[topic].partitions]
        self._consumer.assign(self._partitions)
        self.found: dict[str, list[Output]] = {topic: [] for topic in topics}

    def more(self, wait_s: float = 0.05) -> int:
        """Take what has arrived; return how many records there are by now."""
        for message in self._consumer.consume(10_000, wait_s):
            if message.error() is None:
                headers = dict(message.headers() or [])
                self.found[message.topic()].append(
                    Output(message.partition(), message.key() or b"", message.value(), headers)
                )
        return sum(map(len, self.found.values()))

    def at_end(self) -> bool:
        """Whether all is read and no transaction is open."""
        before = self.more()
        admin = AdminClient(self._common)  # anew: an old one believes in the leaders of before a restart
        ends = self._ends(admin, IsolationLevel.READ_UNCOMMITTED)
        stable = self._ends(admin, IsolationLevel.READ_COMMITTED)
        positions = {(p.topic, p.partition): p.offset for p in self._consumer.position(self._partitions)}
        settled = all(stable[at] >= ends[at] and positions[at] >= ends[at] for at in ends if ends[at])
        return settled and self.more() == before

    def close(self) -> None:
        self._consumer.close()

    def _ends(self, admin: AdminClient, level: IsolationLevel) -> dict[tuple[str, int], int]:
        wanted = {TopicPartition(p.topic, p.partition): OffsetSpec.latest() for p in self._partitions}
        answers = admin.list_offsets(wanted, isolation_level=level, request_timeout=10)
        return {(at.topic, at.partition): answer.result(15).offset for at, answer in answers.items()}
