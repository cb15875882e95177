"""The demo's day: what is sent, what must come of it, and whether that is what came. Pure: no Kafka, no clock.

The checker stands outside the product: it computes idempotency keys and the status of each invoice by itself, from the
published rules, so a fault in the product is not made a second time here. An event counts as lost, completed twice,
foreign (a completion that nothing led to) or wrong (another content than it must have); dead letters likewise.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import xxhash

AGENT = "reconcile"
SHARED_TOPIC = "events"
OWN_TENANT = "northwind"  # one tenant has a topic of its own
OWN_TOPIC = f"events.{OWN_TENANT}"
TENANTS = 340
LARGE_TENANT = "tenant-000"
LARGE_WEIGHT = 14  # as many events as so many other tenants
DUPLICATES = 0.1
COPIES_ASTRAY = 0.05  # of the duplicates: sent to any partition, so read in another slot than their first
BAD_SHARE = 0.005
SOURCE = "erp/clearledger"


class Sent(NamedTuple):
    """A record to send. What must come of it: a run (`run`, its id), or a dead letter (`reason`), or both."""

    topic: str
    key: bytes | None  # Kafka's, which decides the partition
    value: bytes | None
    run: str = ""
    reason: str = ""
    is_copy: bool = False


class MustEnd(NamedTuple):
    """What the completion of a run must say."""

    tenant: str
    event_id: str
    type: str
    status: str  # or the code of a failure
    invoice: str


class Day(NamedTuple):
    """All that is sent, in order, and the completions that must come of it, by run."""

    records: list[Sent]
    runs: dict[str, MustEnd]

    @property
    def copies(self) -> int:
        """How many records are copies of an earlier one."""
        return sum(record.is_copy for record in self.records)

    @property
    def bad(self) -> Counter[str]:
        """How many dead letters of each reason there must be."""
        return Counter(record.reason for record in self.records if record.reason)


class Completion(NamedTuple):
    """A record of the completions as it was read."""

    run: str
    tenant: str
    event_id: str
    type: str
    data: Mapping[str, Any]
    partition: int
    time_ms: int


class Letter(NamedTuple):
    """A record of the dead letters as it was read."""

    origin: str
    run: str
    reason: str
    value: bytes | None


class Faults(NamedTuple):
    """What is wrong, each by its run or origin; all empty: nothing is."""

    lost: list[str]
    twice: list[str]
    foreign: list[str]
    wrong: list[str]

    def __bool__(self) -> bool:
        return any(self)


# --- what is sent ---


def make_day(events: int, seed: int = 1) -> Day:
    """A day of so many records: invoices of 340 tenants, copies of some, and a few that are no events."""
    chance = random.Random(seed)  # noqa: S311 (a load, not a secret)
    bad = bad_records(max(1, round(events * BAD_SHARE / len(_BAD))))
    copies = round(events * DUPLICATES)
    names = [f"tenant-{number:03}" for number in range(TENANTS - 1)] + [OWN_TENANT]
    weights = [LARGE_WEIGHT if name == LARGE_TENANT else 1 for name in names]
    runs: dict[str, MustEnd] = {}
    records: list[Sent] = []
    for number, tenant in enumerate(chance.choices(names, weights, k=events - copies - len(bad))):
        # Data that the agent can't take fails the run: a completion `failed` and a dead letter.
        cents, faulty = chance.randrange(100, 10_000_000), number % 2_000 == 100
        data = (
            f'{{"invoice":"INV-{number:06}","supplier":"Supplier {chance.randrange(40)}",'
            f'"amount":"{"a lot" if faulty else f"{cents / 100:.2f}"}","currency":"EUR"}}'
        )
        event_id = f"{tenant}-{number:06}"
        run = run_id(tenant, SOURCE, event_id, data.encode())
        value = document(event_id, tenant, "invoice.received", data)
        topic = OWN_TOPIC if tenant == OWN_TENANT else SHARED_TOPIC
        records.append(Sent(topic, tenant.encode(), value, run, "agent-failed" if faulty else ""))
        status = "invalid-data" if faulty else status_of(tenant, f"INV-{number:06}")
        end = "failed" if faulty else "completed"
        runs[run] = MustEnd(tenant, event_id, f"{AGENT}.{end}", status, f"INV-{number:06}")
    return Day(_mixed(records, copies, bad, chance), runs)


def _mixed(firsts: list[Sent], copies: int, bad: list[Sent], chance: random.Random) -> list[Sent]:
    """Put copies behind their firsts, near and far, and bad records anywhere."""
    placed = [(float(index), record) for index, record in enumerate(firsts)]
    for index in chance.choices(range(len(firsts)), k=copies):
        first = firsts[index]
        key = None if chance.random() < COPIES_ASTRAY else first.key
        # A failed run's dead letter is of the run, so its copies lead to none.
        copy = first._replace(key=key, reason="", is_copy=True)
        placed.append((index + 0.5 + chance.expovariate(1 / (len(firsts) / 10)), copy))
    placed += [(chance.uniform(0, len(firsts)), record) for record in bad]
    placed.sort(key=lambda each: each[0])
    return [record for _, record in placed]


def document(event_id: str, tenant: str, type_: str, data: str, source: str = SOURCE) -> bytes:
    """An event as producers send it: a CloudEvent in structured mode."""
    return (
        f'{{"specversion":"1.0","id":{json.dumps(event_id)},"source":{json.dumps(source)},"type":"{type_}",'
        f'"tenant":"{tenant}","time":"2026-01-31T08:00:00Z","data":{data}}}'
    ).encode()


_DATA = '{"invoice":"INV-BAD","amount":"1.00"}'
_BAD: tuple[tuple[str, str, bytes | None], ...] = (
    ("undecodable", SHARED_TOPIC, None),
    ("undecodable", SHARED_TOPIC, b"not json"),
    (
        "undecodable",
        SHARED_TOPIC,
        document("b-1", "tenant-001", "invoice.received", '"\xff"').replace(b"\xc3\xbf", b"\xff"),
    ),
    ("undecodable", SHARED_TOPIC, b"\xef\xbb\xbf" + document("b-2", "tenant-001", "invoice.received", _DATA)),
    ("undecodable", SHARED_TOPIC, document("b-3", "tenant-001", "invoice.received", '{"amount":NaN}')),
    ("undecodable", SHARED_TOPIC, document("b-4", "tenant-001", "invoice.received", _DATA) + b" and more"),
    ("undecodable", SHARED_TOPIC, document("b-5", "tenant-001", "invoice.received", "[" * 300 + "]" * 300)),
    (
        "invalid",
        SHARED_TOPIC,
        b'{"specversion":"1.0","id":"b-6","type":"invoice.received","tenant":"t","data":1}',
    ),
    ("invalid", SHARED_TOPIC, document("", "tenant-001", "invoice.received", _DATA)),
    ("invalid", SHARED_TOPIC, document("b\n7", "tenant-001", "invoice.received", _DATA)),
    ("invalid", SHARED_TOPIC, document("b-8", "../etc", "invoice.received", _DATA)),
    (
        "invalid",
        SHARED_TOPIC,
        document("b-9", "tenant-001", "invoice.received", f'{_DATA},"data_base64":"eA=="'),
    ),
    ("wrong-tenant", OWN_TOPIC, document("b-10", "tenant-001", "invoice.received", _DATA)),
    ("unknown-type", SHARED_TOPIC, document("b-11", "tenant-001", "invoice.viewed", _DATA)),
)


def bad_records(of_each: int) -> list[Sent]:
    """Records that must end as dead letters: so many of each kind, and one that is too large."""
    found = [Sent(topic, b"bad", value, "", reason) for reason, topic, value in _BAD for _ in range(of_each)]
    text = json.dumps("x" * 1_000_000)
    large = document("b-12", "tenant-001", "invoice.received", f'{{"invoice":{text}}}')
    return [*found, Sent(SHARED_TOPIC, b"bad", large, "", "too-large")]


# --- what must come of it: the published rules, written down once more ---


def run_id(tenant: str, source: str, event_id: str, data: bytes) -> str:
    """The idempotency key of an event, which is the id of its run."""
    parts = b""
    for text in (tenant, source, event_id):
        parts += len(text.encode()).to_bytes(4, "big") + text.encode()
    return xxhash.xxh3_128_hexdigest(parts + xxhash.xxh3_128_digest(data))


def status_of(tenant: str, invoice: str) -> str:
    """What the simulated accounting service makes of an invoice: its lot, 0 to 255, decides."""
    lot = blake2b(f"{tenant}/{invoice}".encode(), digest_size=16).digest()[0]
    if lot < 200:
        return "matched"
    if lot < 220:
        return "unmatched"
    return "ambiguous" if lot < 238 else "amount-differs"


# --- whether it came ---


def check_completions(runs: Mapping[str, MustEnd], found: Iterable[Completion]) -> Faults:
    """Compare the completions with those that there must be."""
    counts: Counter[str] = Counter()
    wrong = []
    for completion in found:
        counts[completion.run] += 1
        must = runs.get(completion.run)
        if must is not None and must != _as_ended(completion):
            wrong.append(completion.run)
    lost = [run for run in runs if run not in counts]
    twice = [run for run, count in counts.items() if count > 1 and run in runs]
    return Faults(lost, twice, [run for run in counts if run not in runs], wrong)


def _as_ended(completion: Completion) -> MustEnd:
    data = completion.data
    # A failure says its code, and not which invoice it was about; the event's id stands for that.
    invoice = data.get("invoice") or f"INV-{completion.event_id.rpartition('-')[2]}"
    status = str(data.get("status") or data.get("code"))
    return MustEnd(completion.tenant, completion.event_id, completion.type, status, invoice)


def check_letters(must: Mapping[str, Sent], found: Iterable[Letter]) -> Faults:
    """Compare the dead letters with those that there must be, by run or (where there is none) by origin."""
    counts: Counter[str] = Counter()
    wrong = []
    for letter in found:
        name = letter.run or letter.origin
        counts[name] += 1
        sent = must.get(name)
        if sent is not None and not (letter.reason == sent.reason and _kept(letter, sent)):
            wrong.append(name)
    lost = [name for name in must if name not in counts]
    twice = [name for name, count in counts.items() if count > 1 and name in must]
    return Faults(lost, twice, [name for name in counts if name not in must], wrong)


def _kept(letter: Letter, sent: Sent) -> bool:
    """Whether a dead letter holds what was sent; of one that is too large the first 64 KiB."""
    if sent.reason == "too-large" and sent.value is not None:
        return letter.value == sent.value[: 64 << 10]
    return letter.value == sent.value
