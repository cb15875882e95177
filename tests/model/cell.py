"""What a cell remembers, and what lies on its disk. The steps that change it are in `worker`, `outbox`, `grants`.

Everything of a grant hangs on the `Grant`: whoever still holds an object of an earlier grant of the same slot (a
run, a transaction) can't mistake it for one of the present grant.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from tests.model.kafka import Broker, Choose, Metadata, Partition, Transaction
from tests.model.rules import Rules

WINDOW = 20
KEPT = 2 * WINDOW + 5  # the window, as long again for what lies unread, and a little more

Key = tuple[int, int | None]  # tenant and idempotency key


class Event(NamedTuple):
    """What a producer sent. `key` None: undecodable, so a dead letter. `time`: by the producer's clock."""

    number: int
    tenant: int
    key: int | None
    time: int
    sent: int


class Completion(NamedTuple):
    key: Key
    event: Event


@dataclass(slots=True)
class Topics:
    """Partition = slot, but in `events` (shared: partition % slots) and `own` (the first tenant's own topic)."""

    slots: int
    events: list[Partition]
    own: Partition
    inbox: list[Partition]
    completions: list[Partition]
    dead_letters: list[Partition]
    progress: list[Partition]

    def home(self, tenant: int) -> int:
        return tenant % self.slots

    def inputs(self, slot: int) -> list[Partition]:
        shared = [partition for p, partition in enumerate(self.events) if p % self.slots == slot]
        return [*shared, self.inbox[slot], *([self.own] if slot == 0 else [])]


@dataclass(slots=True)
class View:
    """Completions of one slot: when each key was completed last, and up to which offset that is all."""

    keys: dict[Any, int] = field(default_factory=dict)
    position: int = 0

    def copy(self) -> "View":
        return View(dict(self.keys), self.position)


@dataclass(slots=True)
class Disk:
    """A state directory: who the cell is, and its view of each slot."""

    identity: str
    views: dict[int, View] = field(default_factory=dict)

    def copy(self) -> "Disk":
        return Disk(self.identity, {slot: view.copy() for slot, view in self.views.items()})


@dataclass(slots=True, eq=False)
class Tracker:
    """Progress of one input. `done`: finished in committed transactions; `low`: the lowest unfinished offset."""

    partition: Partition
    topic_id: int
    low: int = 0
    position: int = 0
    done: set[int] = field(default_factory=set)

    def after(self, finished: set[int]) -> tuple[int, frozenset[int]]:
        """Lowest unfinished and the finished ones above it, once `finished` are finished too."""
        done = self.done | finished
        low = self.low
        while low in done:
            low += 1
        return low, frozenset(offset for offset in done if offset > low)


@dataclass(slots=True, eq=False)
class Item:
    """Something decided, to be committed: records, and the record read that is finished by them.

    `key`: of the run that ends with it. `then`: what a mistaken implementation commits only after this.
    """

    records: tuple[tuple[Partition, Any], ...]
    tracker: Tracker | None = None
    offset: int = 0
    key: Any = None
    then: "Item | None" = None


class Stage(IntEnum):
    """How far a grant is."""

    WATERMARKS = 0
    WAIT = 1
    READ = 2
    CLAIM = 3
    CATCH_UP = 4
    RUNNING = 5


@dataclass(slots=True, eq=False)
class Grant:
    slot: int
    stage: Stage = Stage.WATERMARKS
    revoked: bool = False  # asked back; still held
    gone: bool = False
    asked_former: bool = False
    watermarks: tuple[int, int] = (0, 0)  # of progress, of completions
    trackers: list[Tracker] = field(default_factory=list)
    in_flight: dict[Any, "Run"] = field(default_factory=dict)
    runs: list["Run"] = field(default_factory=list)
    content: list[Item] = field(default_factory=list)  # until it is committed


@dataclass(slots=True, eq=False)
class Run:
    grant: Grant
    tracker: Tracker
    offset: int
    key: Any
    event: Event


class Pair(NamedTuple):
    """What the worker hands the outbox after each poll: metadata and grants of one moment."""

    metadata: Metadata
    grants: tuple[Grant, ...]


@dataclass(slots=True, eq=False)
class Cell:
    """One process. What it remembers is lost when it ends; `disk` isn't."""

    broker: Broker
    topics: Topics
    rules: Rules
    disk: Disk
    choose: Choose
    last_ready: dict[int, str]  # for the checker: by slot, the owner whose inputs run or ran last
    identity: str = ""
    epoch: int = 0
    joined: bool = False
    member: int = 0
    generation: int = -1
    grants: dict[int, Grant] = field(default_factory=dict)
    pair: Pair | None = None
    step: int = 0  # of the outbox: which is next
    taken: list[tuple[Grant, int]] = field(default_factory=list)
    taken_with: Pair | None = None
    queue: list[tuple[Partition, Any, Grant]] = field(default_factory=list)
    completed: list[tuple[Grant, Any, int, int]] = field(default_factory=list)  # grant, key, offset, time
    transaction: Transaction | None = None
    fault: bool = False  # the next request to the broker fails, abortable
    leftovers: list[Grant] = field(default_factory=list)  # mistakes: what should have been dropped
    strays: list[Run] = field(default_factory=list)
    unwritten: list[tuple[int, dict[Any, int], int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.identity = self.disk.identity
        self.epoch = self.broker.init(self.identity)  # ends what a predecessor left open

    def put(self, slot: int, keys: dict[Any, int], position: int) -> None:
        view = self.disk.views.setdefault(slot, View())
        if not self.rules.position_with_keys:
            view.position = position
            self.unwritten.append((slot, keys, position))
        elif not self.rules.keys_with_position:
            view.keys.update(keys)
            self.unwritten.append((slot, {}, position))
        else:
            view.keys.update(keys)
            view.position = position

    def write_rest(self) -> bool:
        """The second batch, of an implementation that writes in two."""
        if not self.unwritten:
            return False
        slot, keys, position = self.unwritten.pop(0)
        view = self.disk.views.setdefault(slot, View())
        view.keys.update(keys)
        view.position = position
        return True


def kept(rules: Rules) -> int:
    """How long a completion is known."""
    return KEPT if rules.view_outlives_inputs else WINDOW


def looked_up(rules: Rules, key: Key) -> Any:
    """What a key is looked up by."""
    return key if rules.tenant_in_key else key[1]


def from_any(things: list[Any], choose: Choose) -> list[Any]:
    """All of them, beginning anywhere."""
    if len(things) < 2:
        return things
    first = choose(len(things))
    return things[first:] + things[:first]
