"""The Kafka that is measured on: its topics, what they hold, and what its process uses."""

import os
import time
from collections.abc import Iterable, Sequence

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public there, but not re-exported for checkers
    AdminClient,
    NewTopic,
)

from benchmarks.process import cpu_s
from onceflow.stream.cluster import Cluster, KafkaAway, Partition

ANSWER_S = 60
RETENTION = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1", "retention.bytes": "-1"}


class Kafka:
    """One broker. `pid` is its process, if this benchmark has started it."""

    def __init__(self, servers: str, pid: int | None) -> None:
        self.servers = servers
        self._pid = pid
        # Silent, since the broker ends before its clients do; what goes wrong is raised.
        self._admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
        self.cluster = Cluster({"bootstrap.servers": servers, "log_level": "0"})
        self.prefix = f"bench-{os.getpid()}-"

    def refuse_flow(self, flow: str) -> None:
        """End rather than delete topics that somebody else made."""
        if found := self._starting_with(f"{flow}."):
            raise SystemExit(
                f"this Kafka holds {found[0]}: the benchmark would delete the topics of the flow {flow!r}; use a "
                "Kafka that has none, or leave --kafka out"
            )

    def create(self, names: Sequence[str], partitions: int) -> None:
        """Make topics; return once each partition has a leader."""
        new = [NewTopic(name, partitions, config=RETENTION) for name in names]
        for made in self._admin.create_topics(new, request_timeout=ANSWER_S).values():
            made.result(ANSWER_S)
        wanted = [(name, partition) for name in names for partition in range(partitions)]
        deadline = time.monotonic() + ANSWER_S
        while True:
            try:
                self.cluster.end_offsets(wanted)
                return
            except (KafkaAway, KafkaException):  # one of them has no leader yet
                if time.monotonic() > deadline:
                    raise
                self.cluster.renew()  # the client may go on with what it knew of the topics before
                time.sleep(0.1)

    def delete(self, prefix: str) -> None:
        """Delete all topics of this prefix; return once they are gone."""
        left = self._starting_with(prefix)
        if left:
            for deleted in self._admin.delete_topics(left, request_timeout=ANSWER_S).values():
                deleted.result(ANSWER_S)
            while set(left) & set(self._starting_with(prefix)):
                time.sleep(0.1)

    def ends(self, topic: str, *, stable: bool = False) -> dict[Partition, int]:
        """Each partition's end; `stable`: as a reader of committed records sees it."""
        partitions = range(self.cluster.topic_names()[topic])
        return self.cluster.end_offsets([(topic, partition) for partition in partitions], stable=stable)

    def must_hold(self, names: Iterable[str], count: int) -> None:
        """End if these topics don't hold so many records: the producer had no callbacks to tell."""
        partitions = self.cluster.topic_names()
        found = sum(
            self.cluster.end_offsets((name, p) for name in names for p in range(partitions[name])).values()
        )
        if found != count:
            raise SystemExit(f"Kafka holds {found} of the {count} events that were sent")

    def cpu_s(self) -> float | None:
        """CPU seconds that its process has used; None where it isn't known."""
        return None if self._pid is None else cpu_s(self._pid)

    def _starting_with(self, prefix: str) -> list[str]:
        return [name for name in self._admin.list_topics(timeout=ANSWER_S).topics if name.startswith(prefix)]
