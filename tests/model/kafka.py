"""Kafka, as far as the protocol leans on it; as unhelpful as it was measured to be (4.1.1, librdkafka 2.16).

Logs: records of a transaction lie in the log from `append` on; readers (`read_committed`) see none past the last
stable offset, i.e. past the first record of a transaction without its marker *in that partition*. A transaction
is decided first; the markers follow one by one, and whoever commits is told before they are written.

Fencing is narrower than one thinks:
- `send_offsets` looks at the group metadata only: is this the member that the instance id stands for, is its
  generation the present one. Not at whose partition it is. Without an instance id, non-members pass;
- nothing else looks at the group: a transaction without offsets, and all that follows `send_offsets`, pass;
- a transactional id fences by its epoch: `init` and the transaction time-out end what is open and raise it.

A group gives a slot to its next member only when the one before has given it back (cooperative) or is expired.
Members learn of a generation when they poll; until then, for ever if they don't, they believe the old one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Choose = Callable[[int], int]  # choose(n) -> 0..n-1: all chance in the model, and the schedule itself


class Fenced(Exception):  # noqa: N818 (what librdkafka calls it)
    """Fatal: another one has this identity, or the answer to a commit is not known. The process ends."""


class Refused(Exception):  # noqa: N818
    """Abortable: abort, take a new pair, send again."""


@dataclass(slots=True, eq=False)
class Transaction:
    """`committed`: None while undecided. `unmarked`: partitions with its records and without its marker.

    `told`: when the worker whose commit it was took note of it.
    """

    producer: str
    committed: bool | None = None
    told: int = -1
    unmarked: list["Partition"] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Record:
    """`value` None: a marker. `time`: the producer's in input topics, else the broker's (LogAppendTime)."""

    value: Any
    time: int
    transaction: Transaction | None = None


@dataclass(slots=True, eq=False)
class Partition:
    name: str
    topic_id: int = 0
    start: int = 0
    log: list[Record] = field(default_factory=list)
    unsettled: dict[Transaction, int] = field(default_factory=dict)

    def stable(self) -> int:
        """The last stable offset."""
        return min(self.unsettled.values()) if self.unsettled else len(self.log)

    def read(self, position: int) -> tuple[int, Record | None]:
        """The first readable record from `position` on and its offset; if none, the last stable offset."""
        end = self.stable()
        position = max(position, self.start)
        while position < end:
            record = self.log[position]
            if record.value is not None and (record.transaction is None or record.transaction.committed):
                return position, record
            position += 1
        return position, None

    def committed(self) -> list[tuple[int, Record]]:
        """All that `read_committed` ever showed here, what retention has deleted included."""
        return [
            (offset, record)
            for offset, record in enumerate(self.log[: self.stable()])
            if record.value is not None and (record.transaction is None or record.transaction.committed)
        ]

    def delete_before(self, time: int) -> None:
        """Retention: the beginning of the log goes, as far as it is older than `time`."""
        end = self.stable()
        while self.start < end and self.log[self.start].time < time:
            self.start += 1

    def make_anew(self) -> None:
        """The topic is deleted, and made again under the same name."""
        self.topic_id += 1
        self.start = 0
        self.log.clear()


class Metadata(NamedTuple):
    """What a member shows with its offsets; `instance` None: not a static member."""

    identity: str
    instance: str | None
    member: int
    generation: int


@dataclass(slots=True)
class Group:
    """`owner`: who holds a slot and hasn't given it back. `target`: who shall have it."""

    slots: int
    generation: int = 0
    joined: int = 0
    unbalanced: bool = False
    members: dict[str, int] = field(default_factory=dict)
    owner: list[str | None] = field(default_factory=list)
    target: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owner = [None] * self.slots
        self.target = [None] * self.slots

    def join(self, identity: str) -> int:
        """A new member id. A static member that comes back takes its slots over, in the same generation."""
        self.joined += 1
        if identity not in self.members:
            self.unbalanced = True
        self.members[identity] = self.joined
        return self.joined

    def expire(self, identity: str) -> None:
        """The session is over; the member isn't asked and isn't told."""
        del self.members[identity]
        self.owner = [None if owner == identity else owner for owner in self.owner]
        self.unbalanced = True

    def give_back(self, identity: str, slot: int) -> None:
        if self.owner[slot] == identity:
            self.owner[slot] = None
            self.unbalanced = True

    def rebalance(self, choose: Choose, *, move: bool) -> None:
        """A new generation: free slots find an owner; perhaps one slot is asked back for another member."""
        members = list(self.members)
        self.unbalanced = False
        self.generation += 1
        if not members:
            return
        moved = choose(self.slots) if move else None
        for slot in range(self.slots):
            if slot == moved or self.target[slot] not in self.members:
                self.target[slot] = members[choose(len(members))]
            if self.owner[slot] is None:
                self.owner[slot] = self.target[slot]
            elif self.owner[slot] != self.target[slot]:
                self.unbalanced = True

    def check(self, metadata: Metadata) -> None:
        """What a coordinator checks of offsets in a transaction."""
        member = self.members.get(metadata.identity)
        if member != metadata.member:
            if metadata.instance is None:
                return
            if member is not None:
                raise Fenced("FENCED_INSTANCE_ID")
            raise Refused("UNKNOWN_MEMBER_ID")
        if metadata.generation != self.generation:
            raise Refused("ILLEGAL_GENERATION")


@dataclass(slots=True)
class Broker:
    group: Group
    clock: int = 0
    epochs: dict[str, int] = field(default_factory=dict)
    transactions: dict[str, Transaction] = field(
        default_factory=dict
    )  # the unsettled ones, by transactional id
    requests: list[tuple[str, int, Transaction]] = field(default_factory=list)  # commits still on their way

    def init(self, producer: str) -> int:
        """`init_transactions`: settles what this transactional id has open. The epoch that counts from now on."""
        transaction = self.transactions.get(producer)
        if transaction is not None:
            if transaction.committed is None:
                transaction.committed = False
            self.mark(transaction)
        self.epochs[producer] = epoch = self.epochs.get(producer, 0) + 1
        return epoch

    def append(self, producer: str, epoch: int, partition: Partition, value: Any) -> tuple[int, int]:
        """A record arrives, in the producer's open transaction (or begins it). Its offset and time."""
        if self.epochs[producer] != epoch:
            raise Fenced("INVALID_PRODUCER_EPOCH")
        transaction = self.transactions.get(producer)
        if transaction is not None and transaction.committed is not None:
            self.mark(transaction)  # a client's next transaction waits until its last one is settled
            transaction = None
        if transaction is None:
            transaction = self.transactions[producer] = Transaction(producer)
        offset = len(partition.log)
        if transaction not in partition.unsettled:
            partition.unsettled[transaction] = offset
            transaction.unmarked.append(partition)
        partition.log.append(Record(value, self.clock, transaction))
        return offset, self.clock

    def send_offsets(self, producer: str, epoch: int, metadata: Metadata) -> None:
        if self.epochs[producer] != epoch:
            raise Fenced("INVALID_PRODUCER_EPOCH")
        self.group.check(metadata)

    def request_commit(self, producer: str, epoch: int) -> Transaction:
        """The client has asked. `handle`: the coordinator acts on it, perhaps after the client's death."""
        if self.epochs[producer] != epoch:
            raise Fenced("INVALID_PRODUCER_EPOCH")
        transaction = self.transactions[producer]
        self.requests.append((producer, epoch, transaction))
        return transaction

    def handle(self, index: int) -> None:
        producer, epoch, transaction = self.requests.pop(index)
        if self.epochs[producer] == epoch and transaction.committed is None:
            transaction.committed = True

    def abort(self, producer: str, epoch: int) -> None:
        if self.epochs[producer] != epoch:
            raise Fenced("INVALID_PRODUCER_EPOCH")
        transaction = self.transactions.get(producer)
        if transaction is not None and transaction.committed is None:
            transaction.committed = False
            self.mark(transaction)

    def time_out(self, producer: str) -> None:
        """An open transaction has lasted too long: aborted, its producer fenced."""
        transaction = self.transactions[producer]
        if transaction.committed is None:
            self.epochs[producer] += 1
            transaction.committed = False
            self.mark(transaction)

    def mark_one(self, transaction: Transaction, index: int) -> None:
        """One of a decided transaction's markers is written."""
        partition = transaction.unmarked.pop(index)
        partition.log.append(Record(None, self.clock))
        partition.unsettled.pop(transaction, None)
        if not transaction.unmarked:
            del self.transactions[transaction.producer]

    def mark(self, transaction: Transaction) -> None:
        while transaction.unmarked:
            self.mark_one(transaction, 0)
        self.transactions.pop(transaction.producer, None)
