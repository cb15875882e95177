"""Grants: what they do when the cell ends while slots are being taken. The rest is shown in tests/crash."""

from collections.abc import Iterable
from threading import Event
from typing import Any

from onceflow import config
from onceflow.config import Events, Settings
from onceflow.stream.cluster import Cluster
from onceflow.stream.content import Grant
from onceflow.stream.grants import Grants
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
