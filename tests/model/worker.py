"""The worker's steps: poll the group, read, judge, let runs end. It alone touches the consumer.

What is decided here is content of a grant, and waits there until it is committed. What a revoked or lost grant still
has is dropped: its records are unfinished in progress, so the next owner reads them again.
"""

from typing import Any

from tests.model.cell import (
    WINDOW,
    Cell,
    Completion,
    Grant,
    Item,
    Pair,
    Run,
    Stage,
    Tracker,
    View,
    from_any,
    kept,
    looked_up,
)
from tests.model.kafka import Fenced, Metadata, Partition, Record


def poll(cell: Cell) -> bool:
    """Learn what the group has decided since, and hand the outbox a new pair."""
    group = cell.broker.group
    changed = False
    if not cell.joined or group.members.get(cell.identity) != cell.member:
        if cell.joined and cell.identity in group.members:
            raise Fenced("FENCED_INSTANCE_ID")
        for grant in list(cell.grants.values()):
            drop(cell, grant)
        cell.member = group.join(cell.identity)
        cell.joined = changed = True
        cell.generation = -1
    if cell.generation != group.generation:
        cell.generation = group.generation
        changed = True
        for slot in range(group.slots):
            learn(cell, slot, group.owner[slot], group.target[slot])
    instance = cell.identity if cell.rules.static_membership else None
    metadata = Metadata(cell.identity, instance, cell.member, cell.generation)
    cell.pair = Pair(metadata, tuple(cell.grants.values()))
    return changed


def learn(cell: Cell, slot: int, owner: str | None, target: str | None) -> None:
    grant = cell.grants.get(slot)
    if owner != cell.identity:
        if grant is not None:
            drop(cell, grant)
    elif target != cell.identity:
        if grant is not None:
            grant.revoked = True
        else:
            cell.broker.group.give_back(cell.identity, slot)
    elif grant is None:
        cell.grants[slot] = Grant(slot)


def release(cell: Cell) -> bool:
    """Give back what was asked back. What is not committed by now is dropped: the next owner reads it again.

    The pair that the outbox holds still names these grants, until the next poll.
    """
    revoked = [grant for grant in cell.grants.values() if grant.revoked]
    for grant in revoked:
        drop(cell, grant)
        if cell.broker.group.members.get(cell.identity) == cell.member:
            cell.broker.group.give_back(cell.identity, grant.slot)
    return bool(revoked)


def drop(cell: Cell, grant: Grant) -> None:
    grant.gone = True
    del cell.grants[grant.slot]
    if not cell.rules.answers_name_grant:
        cell.strays += grant.runs
    if not cell.rules.pair_grants:
        cell.leftovers.append(grant)
    else:
        grant.content.clear()
    grant.runs.clear()
    if cell.choose(2):
        cell.disk.views.pop(grant.slot, None)  # keys and position in one range delete


def read(cell: Cell) -> bool:
    """The next record of any input of a slot that runs."""
    inputs = [
        (grant, index)
        for grant in cell.grants.values()
        if grant.stage == Stage.RUNNING and not grant.revoked
        for index in range(len(grant.trackers))
    ]
    return any(read_input(cell, grant, index) for grant, index in from_any(inputs, cell.choose))


def read_input(cell: Cell, grant: Grant, index: int) -> bool:
    tracker = grant.trackers[index]
    partition = tracker.partition
    if cell.rules.topic_id and tracker.topic_id != partition.topic_id:
        tracker = grant.trackers[index] = Tracker(partition, partition.topic_id)
    offset, record = partition.read(tracker.position)
    if offset > tracker.position:  # markers, aborted records: nothing can be read there, ever
        tracker.done.update(range(tracker.position, offset))
        tracker.position = offset
    if record is None:
        return False
    tracker.position += 1
    if offset not in tracker.done:
        judge(cell, grant, tracker, offset, record)
    return True


def judge(cell: Cell, grant: Grant, tracker: Tracker, offset: int, record: Record) -> None:
    """A dead letter, a forwarded copy, a duplicate (finished at once), or a run begins."""
    rules, topics = cell.rules, cell.topics
    event, origin_time = record.value
    if event.key is None:
        grant.content.append(Item(((topics.dead_letters[grant.slot], event),), tracker, offset))
        return
    time = record.time if origin_time is None or not rules.origin_time else origin_time
    home = topics.home(event.tenant)
    if home != grant.slot and rules.forward_home:
        grant.content.append(forward(cell, tracker, offset, (topics.inbox[home], (event, time))))
        return
    key = looked_up(rules, (event.tenant, event.key))
    if known(cell, grant, key, time):
        grant.content.append(Item((), tracker, offset))
        return
    run = Run(grant, tracker, offset, key, event)
    grant.runs.append(run)
    grant.in_flight[key] = run
    if not rules.view_after_commit:
        cell.disk.views.setdefault(grant.slot, View()).keys[key] = cell.broker.clock


def forward(cell: Cell, tracker: Tracker, offset: int, record: tuple[Partition, Any]) -> Item:
    if not cell.rules.forward_before_finish:
        return Item((), tracker, offset, then=Item((record,)))
    if not cell.rules.finish_with_forward:
        return Item((record,), then=Item((), tracker, offset))
    return Item((record,), tracker, offset)


def known(cell: Cell, grant: Grant, key: Any, time: int) -> bool:
    """Is it in flight, or was it completed at most the window before `time`?"""
    if cell.rules.in_flight and key in grant.in_flight:
        return True
    view = cell.disk.views.get(grant.slot)
    completed = None if view is None else view.keys.get(key)
    if completed is None:
        return False
    now = cell.broker.clock
    if cell.rules.no_later_than_broker:
        time = min(time, now)
    if cell.rules.no_earlier_than_view:
        time = max(time, now - kept(cell.rules) + WINDOW)
    return time <= completed + WINDOW


def end_run(cell: Cell) -> bool:
    """A run ends. That of an earlier grant ends into nothing: its record is somebody else's by now."""
    if cell.strays:
        end_stray(cell, cell.strays.pop())
        return True
    grants = [grant for grant in cell.grants.values() if grant.runs]
    if not grants:
        return False
    grant = grants[cell.choose(len(grants))]
    run = grant.runs.pop(cell.choose(len(grant.runs)))
    grant.content.append(Item((completion(cell, run),), run.tracker, run.offset, run.key))
    return True


def completion(cell: Cell, run: Run) -> tuple[Partition, Completion]:
    key = (run.event.tenant, run.event.key)
    return cell.topics.completions[run.grant.slot], Completion(key, run.event)


def end_stray(cell: Cell, run: Run) -> None:
    grant = cell.grants.get(run.grant.slot)
    if grant is None:
        return
    for tracker in grant.trackers:
        if tracker.partition is run.tracker.partition:
            grant.content.append(Item((completion(cell, run),), tracker, run.offset, run.key))
