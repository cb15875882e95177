"""What the parts of a cell hand to each other: grants, inputs, and what a transaction is made of."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from onceflow.agents.calls import StartCall
from onceflow.agents.happenings import Happening
from onceflow.state.ledger import Change, Changes
from onceflow.stream.progress import Skip


class Grant:
    """A slot owned by this cell, from one assignment on until it is revoked or lost. Compared by identity."""

    __slots__ = ("leaving", "live", "slot")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.live = True  # set to False by the worker's thread when the grant ends; never back
        self.leaving = False  # it is about to end: no more calls are sent

    def __repr__(self) -> str:
        return f"Grant({self.slot})"


class Input:
    """A partition that a granted slot reads. Compared by identity; counters belong to the worker's thread."""

    __slots__ = (
        "assigned",
        "blocked",
        "gone",
        "grant",
        "is_inbox",
        "lane_full",
        "next_offset",
        "partition",
        "paused",
        "skip",
        "slow_since",
        "tenant",
        "topic",
        "topic_id",
        "unfinished",
        "unfinished_bytes",
        "unreadable",
    )

    def __init__(
        self,
        topic: str,
        partition: int,
        grant: Grant,
        *,
        topic_id: str,
        tenant: str = "",
        is_inbox: bool = False,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.grant = grant
        self.topic_id = topic_id
        self.tenant = tenant  # the tenant whose own topic it is; "" for a shared one
        self.is_inbox = is_inbox
        self.next_offset = 0
        self.skip: Skip | None = None
        self.unfinished = 0  # events read whose end isn't committed
        self.unfinished_bytes = 0  # of their values
        self.assigned = False  # the consumer has it, paused or not
        self.paused = False
        self.lane_full = (
            False  # its tenant's lane holds so many events that it is not read on when it is paused
        )
        self.slow_since: float | None = None
        self.gone = False  # its topic is not listed (any more), or is another one of the same name
        self.blocked = ""  # why it isn't read until an operator acts; "" = it is
        self.unreadable = -1  # where records begin that the client cannot read, the last that were found

    def __repr__(self) -> str:
        return f"{self.topic}/{self.partition}"


class Pair(NamedTuple):
    """Group metadata, and the grants owned when it was taken."""

    metadata: Any
    grants: frozenset[Grant]


Header = tuple[str, str | bytes | None]


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """Records for one of the flow's topics: one value each, and all with the same partition, key and headers."""

    topic: str
    partition: int
    key: bytes | str | None
    values: Sequence[bytes | None]
    headers: list[Header] | None


RUN_BEGUN = "run begun"
NO_RECORD = "no record"
NO_EVENT = "no event"  # a signal, or what an operator asks for


class Finished(msgspec.Struct, gc=False):
    """The end of records that end alike, with what they led to; or what runs led to whose records have ended before.

    All of it is in one transaction, or none; and so is what is given to the outbox together.
    """

    input: Any  # an Input
    offsets: Sequence[int]  # empty: of runs that the ledger holds; then `input` is their slot's inbox
    verdict: str  # a field of Tally; RUN_BEGUN: a first whose run goes on; NO_RECORD: offsets are empty
    size: int  # bytes of the records
    outgoing: Sequence[Outgoing] = ()
    seen: Sequence[bytes] = ()  # of runs that ended: what dedup knows them by
    identities: Sequence[
        tuple[bytes, bytes]
    ] = ()  # where conflicts are rejected: of an event, and whose: as in `seen`
    ledger: Sequence[Change] = ()  # what changes there, in this order, in the partition of the input's slot
    calls: Sequence[StartCall] = ()  # to be sent once this is committed

    @property
    def weight(self) -> int:
        """How much of a transaction it is: records that end, or that the ledger gets."""
        return len(self.offsets) + len(self.ledger) or 1


class Ends(list[Finished]):
    """What is to be committed of what happened to events."""


class Work(NamedTuple):
    """What happened to a tenant, for its runs."""

    tenant: str
    happenings: list[Happening]


Contents = list[Finished]  # what a transaction finishes, in the order in which it was decided


class Reads(NamedTuple):
    """Records read from an input in one poll: those whose end is open, and the position after all of them."""

    input: Input
    offsets: list[int]
    position: int
    unreadable: int = -1  # the offset from which the client cannot read on


class Done(NamedTuple):
    """What a transaction has finished of an input."""

    events: int
    bytes: int  # of their records
    lowest: int  # offset that is not finished


class Committed(NamedTuple):
    """What a transaction has finished, for the worker's books."""

    seen: list[bytes]  # keys of runs
    identities: list[bytes]
    finished: dict[Input, Done]
    ledger: Changes  # which the worker need not remember any more


def finished_by(inputs: Iterable[Input]) -> Callable[[str], bool]:
    """Whether a record is finished, by the progress that a grant began with."""
    starts: dict[str, tuple[int, Skip | None]] = {
        f"{i.topic}/{i.partition}": (i.next_offset, i.skip) for i in inputs
    }

    def finished(record: str) -> bool:
        input, _, offset = record.rpartition("/")
        known = starts.get(input)
        if known is None:
            return True
        start, skip = known
        return int(offset) < start or (skip is not None and int(offset) in skip)

    return finished
