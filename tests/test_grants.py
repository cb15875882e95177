"""Grants: when the cell ends while slots are being taken, and what they keep. The rest is shown in tests/crash."""

import tracemalloc
from collections.abc import Iterable, Iterator
from threading import Event
from typing import Any

from onceflow import config
from onceflow.agents.journal import (
    FAILED,
    FAILED_KEPT_MS,
    Begun,
    Entry,
    encode_segment,
    failed,
    run_prefix,
    segment_key,
)
from onceflow.agents.shared import Shared, encode_shared, shared_key
from onceflow.agents.signals import KEPT_MS, Kept, Signal, encode_kept, signal_key
from onceflow.config import Events, Settings
from onceflow.event import Incoming, read_event
from onceflow.stream.cluster import Cluster
from onceflow.stream.content import Grant
from onceflow.stream.grants import Grants, held
from onceflow.stream.outbox import Claim
from onceflow.stream.topics import prepare
from tests.conftest import Kafka
from tests.waiting import wait_until

SLOTS = 8


class ClosedOutbox:
    """Settles no claim, as an outbox that was closed; notes which slots' claims are waited for."""

    failure = None

    def __init__(self) -> None:
        self.waited_for: set[int] = set()
        self.inboxes_done: dict[int, int] = {}

    def track(self, inputs: Iterable[Any]) -> None:
        """Nothing is committed any more."""

    def claim(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            claim.settled = Noting(claim.grant.slot, self.waited_for)


class Noting(Event):
    """Never set; notes that somebody waits for it."""

    def __init__(self, slot: int, waited_for: set[int]) -> None:
        super().__init__()
        self._slot, self._waited_for = slot, waited_for

    def wait(self, timeout: float | None = None) -> bool:
        self._waited_for.add(self._slot)
        return super().wait(timeout)


def test_a_cell_that_ends_while_it_claims_slots_waits_for_one_claim_at_most(
    kafka: Kafka, flow_name: str
) -> None:
    """However many there are: a supervisor's patience must not depend on the number of slots."""
    settings = Settings(
        slots=SLOTS,
        kafka=config.Kafka(bootstrap_servers=kafka.bootstrap_servers),
        events=Events(shared=(f"{flow_name}-shared",)),
    )
    cluster = Cluster(settings.kafka.properties())
    cluster.patiently(lambda: prepare(flow_name, cluster, settings))
    outbox: Any = ClosedOutbox()
    views: Any = None  # not reached before a claim is committed
    grants = Grants(
        flow_name,
        "cell-000000000000",
        SLOTS,
        cluster,
        settings,
        views,
        outbox,
        wake=lambda: None,
        remaining=lambda _: None,
    )
    grants.assigned([Grant(slot) for slot in range(SLOTS)])
    wait_until(lambda: outbox.waited_for or grants.failure, what="a claim is waited for")
    grants.close()
    assert grants.failure is None
    assert len(outbox.waited_for) == 1, outbox.waited_for


LARGE = b'{"specversion":"1.0","id":"1","source":"s","type":"t","data":"%b"}' % (b"x" * 100_000)


def segments(tenant: str, number: int, last: dict[str, Entry]) -> list[tuple[bytes, bytes]]:
    """A run's records: its event and a call, and what came last."""
    event = read_event(LARGE, None, None, tenant)
    assert isinstance(event, Incoming)
    key = number.to_bytes(16, "big")
    first = encode_segment(Begun("agent", 1, event, 1, "events/0/1"), {"1": Entry("tool", 1, b"")})
    return [(segment_key(tenant, key, 0), first), (segment_key(tenant, key, 1), encode_segment(None, last))]


def test_of_all_that_the_ledger_holds_of_a_slot_open_runs_alone_stay_in_memory() -> None:
    """Failed runs and signals are kept for days: all at once they were more than a machine has."""
    many = 100

    def records() -> Iterator[tuple[bytes, bytes]]:
        yield shared_key("a", b"call"), encode_shared(Shared(2, "tool", b"", 7))
        for number in range(many):
            ended = (
                {FAILED: failed("agent", "code", "why", number)} if number else {"2": Entry("tool", 1, b"")}
            )
            yield from segments("a", number, ended)
        yield from segments("b", 0, {"2": Entry("tool", 1, b"")})[1:]  # its first one is lost
        for number in range(many):
            signal = Signal("paid", "w-1", "ok", None, "bank", str(number))
            yield signal_key("b", signal), encode_kept(Kept(1, signal, number, False, "", LARGE))

    tracemalloc.start()
    try:
        runs, kept, unreadable = held(records())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [(run.tenant, [*run.journal], run.segments) for run in runs] == [("a", ["1", "2"], 2)]
    assert ("a", shared_key("a", b"call"), 7) in kept
    assert ("a", run_prefix("a", (1).to_bytes(16, "big")), 1 + FAILED_KEPT_MS) in kept
    assert sorted(until for tenant, _, until in kept if tenant == "b") == [n + KEPT_MS for n in range(many)]
    assert len(kept) == 2 * many
    assert [(each.tenant, each.key) for each in unreadable] == [("b", bytes(16))]
    assert peak < 20 * len(LARGE)
