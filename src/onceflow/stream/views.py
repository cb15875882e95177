"""What a cell keeps in RocksDB of F.completions and F.ledger, and how it is brought up to date."""

import logging
from collections.abc import Iterable, Mapping

from confluent_kafka import Message

from onceflow.state.ledger import Change, Ledger, LedgerPosition
from onceflow.state.seen import BrokerClock, Completed, Position, Seen
from onceflow.stream.cluster import Partition, by_partition
from onceflow.stream.completions import keys_of_completion, run_of_completion
from onceflow.stream.topics import Ids, Names

log = logging.getLogger(__name__)


class Views:
    """Both views. `tombstones_ms`: how long F.ledger keeps them, by the broker's clock."""

    def __init__(
        self, names: Names, seen: Seen, ledger: Ledger, clock: BrokerClock, ids: Ids, tombstones_ms: int
    ) -> None:
        self.seen, self.ledger, self._clock = seen, ledger, clock
        self._names, self._ids, self._tombstones_ms = names, ids, tombstones_ms

    def drop(self, slot: int) -> None:
        """Forget a slot: of each view its records and its position, together."""
        self.seen.drop(slot)
        self.ledger.drop(slot)

    def starts(
        self, slots: Iterable[int], firsts: Mapping[Partition, int], ends: Mapping[Partition, int]
    ) -> dict[Partition, int | None]:
        """Where each view stands; one that is of no use is dropped, and built anew."""
        completions, ledger = self._names.completions, self._names.ledger
        starts: dict[Partition, int | None] = {}
        now_ms = (
            self._clock.now_ms() or 1 << 62
        )  # the broker's, which deletes tombstones; the claims have told it
        for slot in slots:
            at = (completions, slot)
            seen = self.seen.position(slot)
            if seen is not None and (seen.topic_id != self._ids.completions or seen.offset > ends[at]):
                self._built_anew(completions, slot)
                self.seen.drop(slot)
                seen = None
            starts[at] = max(firsts[at], seen.offset if seen else 0)
            at = (ledger, slot)
            held = self.ledger.position(slot)
            if held is not None and (held.topic_id != self._ids.ledger or held.offset > ends[at]):
                self._built_anew(ledger, slot)
                self.ledger.drop(slot)
                held = None
            elif (
                held is not None
                and held.offset < ends[at]
                and now_ms - held.time_ms > self._tombstones_ms / 2
            ):
                self.ledger.drop(slot)  # tombstones that it has not read may be gone by now
                held = None
            starts[at] = max(firsts[at], held.offset if held else 0)
        return starts

    def _built_anew(self, topic: str, slot: int) -> None:
        log.warning(
            "the view of a slot belongs to another topic of the same name; it is built anew",
            extra={"topic": topic, "slot": slot},
        )

    def write(self, messages: list[Message]) -> None:
        """Take records of both topics, in the order of their partitions."""
        completed: dict[int, Completed] = {}  # by time
        changes: dict[int, list[Change]] = {}
        seen_at: dict[int, Position] = {}
        ledger_at: dict[int, LedgerPosition] = {}
        for (topic, slot), read in by_partition(messages):
            last = read[-1]
            next_offset = (last.offset() or 0) + 1
            if topic == self._names.ledger:
                changes.setdefault(slot, []).extend((each.key() or b"", each.value()) for each in read)
                ledger_at[slot] = LedgerPosition(self._ids.ledger, next_offset, last.timestamp()[1])
            else:
                self._completed(read, slot, completed)
                seen_at[slot] = Position(self._ids.completions, next_offset)
        self.seen.write([completed[time_ms] for time_ms in sorted(completed)], seen_at)
        self.ledger.catch_up(changes, ledger_at)

    def _completed(self, messages: list[Message], slot: int, completed: dict[int, Completed]) -> None:
        """Add what completions say, by their time."""
        at = Completed(-1, [], [])
        for message in messages:
            value, time_ms = message.value(), message.timestamp()[1]
            if value is None:
                continue
            if time_ms != at.time_ms:
                at = completed.setdefault(time_ms, Completed(time_ms, [], []))
            try:
                if self.seen.identities:
                    run, identity = keys_of_completion(value, slot)
                    if identity is not None:
                        at.identities.append((identity, run))
                else:
                    run = run_of_completion(value, message.key(), slot)
            except ValueError as error:
                about = {"slot": slot, "cause": str(error)}
                log.warning("a record in F.completions is no completion", extra=about)
                continue
            at.runs.append(run)
