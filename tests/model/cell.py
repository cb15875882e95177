"""What a cell does: the protocol. Each method is one step; a crash may fall between any two of them.

The worker polls, reads, judges and lets runs end; the outbox commits what is finished, one transaction at a time:

    take a pair and its grants' content · flush · send offsets · commit · its answer · write the view · tell the worker

and a grant, in the background, becomes a slot that runs:

    watermarks · wait until all below them is settled · read progress · claim (a commit) · catch the view up · run

The order is the protocol. `rules` says what happens where a part of it is left out; those branches are
mistakes, kept here because they are what an implementation would get wrong.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

from tests.model.kafka import Broker, Choose, Fenced, Metadata, Partition, Refused, Transaction
from tests.model.rules import Rules

T = TypeVar("T")

WINDOW = 20
KEPT = 2 * WINDOW + 5  # the window, as long again for what lies unread, and a little more


class Event(NamedTuple):
    """What a producer sent. `key` None: undecodable, so a dead letter. `time`: by the producer's clock."""

    number: int
    tenant: int
    key: int | None
    time: int
    sent: int


class Completion(NamedTuple):
    key: tuple[int, int | None]
    event: Event


@dataclass(slots=True)
class Topics:
    """Partition = slot in all but `events` (shared: partition % slots) and `own` (the first tenant's own topic)."""

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
    """Progress of one input: `done` is finished in committed transactions, `low` the lowest unfinished offset."""

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
    last_ready: dict[int, str]  # the checker's: who was the last to have a slot run
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

    # The worker: membership

    def poll(self, choose: Choose) -> bool:
        """Learn what the group has decided since, and hand the outbox a new pair."""
        group = self.broker.group
        changed = False
        if not self.joined or group.members.get(self.identity) != self.member:
            if self.joined and self.identity in group.members:
                raise Fenced("FENCED_INSTANCE_ID")
            for grant in list(self.grants.values()):
                self.drop(grant, choose)
            self.member = group.join(self.identity)
            self.joined = changed = True
            self.generation = -1
        if self.generation != group.generation:
            self.generation = group.generation
            changed = True
            for slot in range(group.slots):
                self.learn(slot, group.owner[slot], group.target[slot], choose)
        instance = self.identity if self.rules.static_membership else None
        metadata = Metadata(self.identity, instance, self.member, self.generation)
        self.pair = Pair(metadata, tuple(self.grants.values()))
        return changed

    def learn(self, slot: int, owner: str | None, target: str | None, choose: Choose) -> None:
        grant = self.grants.get(slot)
        if owner != self.identity:
            if grant is not None:
                self.drop(grant, choose)
        elif target != self.identity:
            if grant is not None:
                grant.revoked = True
            else:
                self.broker.group.give_back(self.identity, slot)
        elif grant is None:
            self.grants[slot] = Grant(slot)

    def release(self, choose: Choose) -> bool:
        """Give back what was asked back. What is not committed by now is dropped: the next owner reads it again.

        The pair that the outbox holds still names these grants, until the next poll.
        """
        revoked = [grant for grant in self.grants.values() if grant.revoked]
        for grant in revoked:
            self.drop(grant, choose)
            if self.broker.group.members.get(self.identity) == self.member:
                self.broker.group.give_back(self.identity, grant.slot)
        return bool(revoked)

    def drop(self, grant: Grant, choose: Choose) -> None:
        grant.gone = True
        del self.grants[grant.slot]
        if not self.rules.answers_name_grant:
            self.strays += grant.runs
        if not self.rules.pair_grants:
            self.leftovers.append(grant)
        else:
            grant.content.clear()
        grant.runs.clear()
        if choose(2):
            self.disk.views.pop(grant.slot, None)  # keys and position in one range delete

    # The worker: reading and judging

    def read(self, choose: Choose) -> bool:
        """The next record of any input of a slot that runs."""
        inputs = [
            (grant, index)
            for grant in self.grants.values()
            if grant.stage == Stage.RUNNING and not grant.revoked
            for index in range(len(grant.trackers))
        ]
        return any(self.read_input(grant, index) for grant, index in from_any(inputs, choose))

    def read_input(self, grant: Grant, index: int) -> bool:
        tracker = grant.trackers[index]
        partition = tracker.partition
        if self.rules.topic_id and tracker.topic_id != partition.topic_id:
            tracker = grant.trackers[index] = Tracker(partition, partition.topic_id)
        offset, record = partition.read(tracker.position)
        if offset > tracker.position:  # markers, aborted records: nothing can be read there, ever
            tracker.done.update(range(tracker.position, offset))
            tracker.position = offset
        if record is None:
            return False
        tracker.position += 1
        if offset not in tracker.done:
            self.judge(grant, tracker, offset, *record.value, record.time)
        return True

    def judge(
        self, grant: Grant, tracker: Tracker, offset: int, event: Event, origin_time: int | None, time: int
    ) -> None:
        rules, topics = self.rules, self.topics
        if event.key is None:
            grant.content.append(Item(((topics.dead_letters[grant.slot], event),), tracker, offset))
            return
        if origin_time is not None and rules.origin_time:
            time = origin_time
        home = topics.home(event.tenant)
        if home != grant.slot and rules.forward_home:
            grant.content.append(self.forward(tracker, offset, (topics.inbox[home], (event, time))))
            return
        key = (event.tenant, event.key) if rules.tenant_in_key else event.key
        if self.known(grant, key, time):
            grant.content.append(Item((), tracker, offset))
            return
        run = Run(grant, tracker, offset, key, event)
        grant.runs.append(run)
        grant.in_flight[key] = run
        if not rules.view_after_commit:
            self.disk.views.setdefault(grant.slot, View()).keys[key] = self.broker.clock

    def forward(self, tracker: Tracker, offset: int, record: tuple[Partition, Any]) -> Item:
        if not self.rules.forward_before_finish:
            return Item((), tracker, offset, then=Item((record,)))
        if not self.rules.finish_with_forward:
            return Item((record,), then=Item((), tracker, offset))
        return Item((record,), tracker, offset)

    def known(self, grant: Grant, key: Any, time: int) -> bool:
        """Is it in flight, or was it completed at most the window before `time`?"""
        if self.rules.in_flight and key in grant.in_flight:
            return True
        view = self.disk.views.get(grant.slot)
        completed = None if view is None else view.keys.get(key)
        if completed is None:
            return False
        now = self.broker.clock
        if self.rules.no_later_than_broker:
            time = min(time, now)
        if self.rules.no_earlier_than_view:
            time = max(time, now - kept(self.rules) + WINDOW)
        return time <= completed + WINDOW

    def end_run(self, choose: Choose) -> bool:
        """A run ends. That of an earlier grant ends into nothing: its record is somebody else's by now."""
        if self.strays:
            self.end_stray(self.strays.pop())
            return True
        grants = [grant for grant in self.grants.values() if grant.runs]
        if not grants:
            return False
        grant = grants[choose(len(grants))]
        run = grant.runs.pop(choose(len(grant.runs)))
        grant.content.append(Item((self.completion(run),), run.tracker, run.offset, run.key))
        return True

    def completion(self, run: Run) -> tuple[Partition, Completion]:
        key = (run.event.tenant, run.event.key)
        return self.topics.completions[run.grant.slot], Completion(key, run.event)

    def end_stray(self, run: Run) -> None:
        grant = self.grants.get(run.grant.slot)
        for tracker in [] if grant is None else grant.trackers:
            if tracker.partition is run.tracker.partition:
                grant.content.append(Item((self.completion(run),), tracker, run.offset, run.key))  # type: ignore[union-attr]

    # The outbox

    def commit_step(self) -> bool:
        """The next step of the outbox."""
        if self.write_rest():
            return True
        try:
            return OUTBOX[self.rules.view_before_told][self.step](self)
        except Refused:
            self.broker.abort(self.identity, self.epoch)
            self.begin_anew()
            return True

    def begin_anew(self) -> None:
        """After an abort: nothing of the transaction is left; all content is still there."""
        self.queue.clear()
        self.completed.clear()
        self.taken.clear()
        self.step = 0

    def take(self) -> bool:
        """Content of the pair's grants alone. Progress says what this very transaction finishes, no more."""
        pair = self.pair
        if pair is None:
            return False
        grants = (*pair.grants, *self.leftovers)
        self.taken = [(grant, len(grant.content)) for grant in grants if grant.content]
        if not self.taken:
            return False
        self.taken_with = pair
        for grant, _ in self.taken:
            finished: dict[Tracker, set[int]] = {}
            for item in grant.content:
                for partition, value in item.records:
                    self.queue.append((partition, value, grant))
                if item.tracker is not None:
                    finished.setdefault(item.tracker, set()).add(item.offset)
            for tracker, offsets in finished.items():
                low, above = tracker.after(offsets)
                if not self.rules.finished_is_committed:
                    low, above = tracker.position, frozenset()
                value = (tracker.partition.name, tracker.topic_id, low, above)
                self.queue.append((self.topics.progress[grant.slot], value, grant))
        self.step = 1
        return True

    def send_one(self) -> bool:
        """The client sends of its own accord, now or later."""
        if not self.queue:
            return False
        partition, value, grant = self.queue.pop(0)
        offset, time = self.broker.append(self.identity, self.epoch, partition, value)
        if type(value) is Completion:
            key = value.key if self.rules.tenant_in_key else value.key[1]
            self.completed.append((grant, key, offset, time))
        return True

    def flush(self) -> bool:
        """Every record is in its log, below the high watermark that a next owner waits for."""
        self.fail_if_told()
        if self.rules.flush_before_offsets:
            while self.send_one():
                pass
        self.step = 2
        return True

    def send_offsets(self) -> bool:
        """The fence: from here on the transaction may commit, whatever happens to the membership."""
        self.fail_if_told()
        if self.rules.fence:
            pair = self.taken_with if self.rules.pair_together else self.pair
            assert pair is not None
            self.broker.send_offsets(self.identity, self.epoch, pair.metadata)
        self.step = 3
        return True

    def commit(self) -> bool:
        while self.send_one():
            pass
        self.transaction = self.broker.request_commit(self.identity, self.epoch)
        self.step = 4
        return True

    def answer(self) -> bool:
        """Decided, and told so. Readers see it when the markers are written."""
        for index, request in enumerate(self.broker.requests):
            if request[2] is self.transaction:
                self.broker.handle(index)
                break
        if self.transaction is None or not self.transaction.committed:
            raise Fenced("INVALID_PRODUCER_EPOCH")
        self.step = 5
        return True

    def commit_times_out(self) -> bool:
        """No answer: it may be committed, or be so yet. Only the successor's `init_transactions` can know."""
        if self.step != 4:
            return False
        if self.rules.ambiguous_is_fatal:
            raise Fenced("TIMED_OUT")
        self.epoch = self.broker.init(self.identity)
        self.begin_anew()
        return True

    def write(self) -> bool:
        """Into the view: keys and position, in one batch. Not of a lost grant: its view may be dropped by now."""
        written: dict[Grant, tuple[dict[Any, int], int]] = {}
        for grant, key, offset, time in self.completed:
            keys, _ = written.get(grant, ({}, 0))
            keys[key] = time
            written[grant] = (keys, offset + 1)
        for grant, (keys, position) in written.items():
            if not grant.gone or not self.rules.view_names_grant:
                self.put(grant.slot, keys, position)
        self.completed.clear()
        self.step += 1
        return True

    def tell(self) -> bool:
        """The worker learns what is committed: records finished, runs no longer in flight, slots claimed."""
        assert self.transaction is not None
        self.transaction.told = self.broker.clock
        for grant, count in self.taken:
            for item in grant.content[:count]:
                if item.tracker is not None:
                    item.tracker.done.add(item.offset)
                    item.tracker.low = item.tracker.after(set())[0]
                grant.in_flight.pop(item.key, None)
                if item.then is not None:
                    grant.content.append(item.then)
            del grant.content[:count]
            if grant.stage == Stage.CLAIM:
                grant.stage = Stage.CATCH_UP
        self.taken.clear()
        self.step += 1
        return True

    def rest(self) -> bool:
        self.step = 0
        self.leftovers = [grant for grant in self.leftovers if grant.content]
        return True

    def fail_if_told(self) -> None:
        if self.fault:
            self.fault = False
            raise Refused("abortable error")

    # The view

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

    # Grants

    def grant_step(self, choose: Choose) -> bool:
        """The next step of one of the grants that don't run yet."""
        if self.write_rest():
            return True
        starting = [grant for grant in self.grants.values() if grant.stage != Stage.RUNNING]
        return any(GRANT[grant.stage](self, grant) for grant in from_any(starting, choose))

    def watermarks(self, grant: Grant) -> bool:
        """Whatever passed the fence before this grant lies below these: it was flushed before."""
        slot = grant.slot
        grant.watermarks = (len(self.topics.progress[slot].log), len(self.topics.completions[slot].log))
        grant.stage = Stage.WAIT
        return True

    def wait(self, grant: Grant) -> bool:
        """Until the former owners' transactions are settled; a dead one's is settled with the id in his claim."""
        progress, completions = self.topics.progress[grant.slot], self.topics.completions[grant.slot]
        stable = progress.stable() >= grant.watermarks[0] and completions.stable() >= grant.watermarks[1]
        if stable or not self.rules.wait_for_stable:
            grant.stage = Stage.READ
            return True
        claims = [record.value[1] for _, record in progress.committed() if record.value[0] == "claim"]
        former = claims[-1] if claims else self.identity
        if grant.asked_former or former == self.identity or former in self.broker.group.members:
            return False
        grant.asked_former = True
        self.broker.init(former)
        return True

    def read_progress(self, grant: Grant) -> bool:
        known: dict[str, tuple[int, int, frozenset[int]]] = {}
        for _, record in self.topics.progress[grant.slot].committed():
            if record.value[0] != "claim":
                known[record.value[0]] = record.value[1:]
        for partition in self.topics.inputs(grant.slot):
            topic_id, low, above = known.get(partition.name, (partition.topic_id, 0, frozenset()))
            if topic_id != partition.topic_id and self.rules.topic_id:
                low, above = 0, frozenset()
            done = set(above) if self.rules.skip_finished else set()
            grant.trackers.append(Tracker(partition, partition.topic_id, low, low, done))
        if self.rules.claim:
            grant.content.append(Item(((self.topics.progress[grant.slot], ("claim", self.identity)),)))
            grant.stage = Stage.CLAIM
        else:
            grant.stage = Stage.CATCH_UP
        return True

    def await_claim(self, grant: Grant) -> bool:
        return False  # `tell` moves it on

    def catch_up(self, grant: Grant) -> bool:
        """Two completions at a time, up to the watermark."""
        completions = self.topics.completions[grant.slot]
        view = self.disk.views.get(grant.slot)
        position = 0 if view is None else view.position
        keys: dict[Any, int] = {}
        while self.rules.catch_up and position < grant.watermarks[1] and len(keys) < 2:
            position, record = completions.read(position)
            if record is None:
                break
            keys[record.value.key if self.rules.tenant_in_key else record.value.key[1]] = record.time
            position += 1
        if keys:
            self.put(grant.slot, keys, position)
        else:
            grant.stage = Stage.RUNNING
            self.last_ready[grant.slot] = self.identity
        return True


def from_any(things: list[T], choose: Choose) -> list[T]:
    """All of them, beginning anywhere."""
    if len(things) < 2:
        return things
    first = choose(len(things))
    return things[first:] + things[:first]


def kept(rules: Rules) -> int:
    """How long a completion is known."""
    return KEPT if rules.view_outlives_inputs else WINDOW


_BEGIN = (Cell.take, Cell.flush, Cell.send_offsets, Cell.commit, Cell.answer)
OUTBOX = {True: (*_BEGIN, Cell.write, Cell.tell, Cell.rest), False: (*_BEGIN, Cell.tell, Cell.write, Cell.rest)}
GRANT = (Cell.watermarks, Cell.wait, Cell.read_progress, Cell.await_claim, Cell.catch_up)
