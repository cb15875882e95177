"""Step 1 of a grant: what is finished in a slot, once nothing that its former owners had under way can change it.

Their transactions may still be open when the slot is assigned here. A live owner ends its own; a dead one's is ended by
`init_transactions` with its transactional id, which fences whatever still comes of it.
"""

import logging
import time
from collections.abc import Callable

from confluent_kafka import Consumer, Producer

from onceflow.config import Settings
from onceflow.stream.catchup import read_to_end
from onceflow.stream.cluster import RECONNECT, Cluster, Partition, client_log
from onceflow.stream.progress import Progress, decode_progress
from onceflow.stream.topics import Names
from onceflow.stream.transaction import FatalError

log = logging.getLogger(__name__)

DEAD_AFTER_S = 1.0  # how long a transaction may hold a slot back before its owner is asked for
_LINE_EVERY_S = 5.0


class Settling:
    """See above, for slots that were assigned together. `wanted`: whether to go on."""

    def __init__(
        self, flow: str, cell: str, cluster: Cluster, settings: Settings, *, wanted: Callable[[], bool]
    ) -> None:
        self._flow, self._cell, self._cluster, self._settings = flow, cell, cluster, settings
        self._names = Names.of(flow)
        self._wanted = wanted
        self._owners: dict[int, str] = {}  # slot -> the cell that its last progress record names
        self._asked: set[str] = set()
        self._line_at = 0.0

    def read_progress(
        self, slots: list[int], reader: Consumer
    ) -> tuple[dict[int, dict[Partition, Progress]], dict[Partition, int]]:
        """What F.progress says of each slot's inputs; and where that ends which the views copy."""
        viewed = [(name, slot) for name in (self._names.completions, self._names.ledger) for slot in slots]
        progress = [(self._names.progress, slot) for slot in slots]
        ends = self._cluster.end_offsets([*viewed, *progress])
        written: dict[int, dict[Partition, Progress]] = {slot: {} for slot in slots}
        for messages in read_to_end(
            reader,
            dict.fromkeys(progress),
            {at: ends[at] for at in progress},
            stalled=self._stalled,
            wanted=self._wanted,
        ):
            for message in messages:
                slot = message.partition() or 0
                key, value = message.key(), message.value()
                if key is None or value is None:
                    continue
                topic, _, partition = key.decode().rpartition("/")
                read = decode_progress(value)
                written[slot][topic, int(partition)] = read
                self._owners[slot] = read.cell
        unstable = set(viewed)
        waiting_since = time.monotonic()
        while unstable and self._wanted():
            stable = self._cluster.end_offsets(unstable, stable=True)
            unstable = {at for at in unstable if stable[at] < ends[at]}
            if unstable:
                self._stalled(time.monotonic() - waiting_since)
                time.sleep(0.02)
        return written, {at: ends[at] for at in viewed}

    def _stalled(self, seconds: float) -> None:
        """Nothing has moved for so long: end the open transactions of owners that are gone."""
        if seconds < DEAD_AFTER_S:
            return
        if time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + _LINE_EVERY_S
            log.info("waiting for a former owner's open transaction", extra={"waited_s": round(seconds, 1)})
        members = self._cluster.members(self._flow)
        for owner in set(self._owners.values()) - {"", self._cell} - self._asked:
            if owner in members:
                continue
            self._asked.add(owner)
            log.info("ending the open transaction of a cell that is gone", extra={"former_owner": owner})
            fatal = FatalError()
            producer = Producer(
                {
                    "error_cb": fatal,
                    **self._settings.kafka.properties(),
                    "transactional.id": transactional_id(self._flow, owner),
                    "retry.backoff.ms": 10,
                    **RECONNECT,
                },
                logger=client_log,
            )
            producer.init_transactions(self._settings.transaction_timeout.total_seconds())


def transactional_id(flow: str, cell: str) -> str:
    """The transactional id of a cell."""
    return f"{flow}.{cell}"
