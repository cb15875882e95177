"""The outbox's steps: what is finished is committed, one transaction at a time.

    take a pair and its grants' content · flush · send offsets · commit · its answer · write the view · tell

The order is the protocol. Flushed before the offsets: what passed the fence lies in the logs, where the next owner
of a slot waits for it. The view after the answer: it is never ahead of Kafka. Told after the view: until the view
knows a key, the table in flight does.
"""

from typing import Any

from tests.model.cell import Cell, Completion, Grant, Stage, Tracker, looked_up
from tests.model.kafka import Fenced, Refused


def commit_step(cell: Cell) -> bool:
    """The next step of the outbox."""
    if cell.write_rest():
        return True
    try:
        return STEPS[cell.rules.view_before_told][cell.step](cell)
    except Refused:
        cell.broker.abort(cell.identity, cell.epoch)
        begin_anew(cell)
        return True


def begin_anew(cell: Cell) -> None:
    """After an abort: nothing of the transaction is left; all content is still there."""
    cell.queue.clear()
    cell.completed.clear()
    cell.taken.clear()
    cell.step = 0


def take(cell: Cell) -> bool:
    """Content of the pair's grants alone. Progress says what this very transaction finishes, no more."""
    pair = cell.pair
    if pair is None:
        return False
    grants = (*pair.grants, *cell.leftovers)
    cell.taken = [(grant, len(grant.content)) for grant in grants if grant.content]
    if not cell.taken:
        return False
    cell.taken_with = pair
    for grant, _ in cell.taken:
        finished: dict[Tracker, set[int]] = {}
        for item in grant.content:
            for partition, value in item.records:
                cell.queue.append((partition, value, grant))
            if item.tracker is not None:
                finished.setdefault(item.tracker, set()).add(item.offset)
        for tracker, offsets in finished.items():
            low, above = tracker.after(offsets)
            if not cell.rules.finished_is_committed:
                low, above = tracker.position, frozenset()
            value = (tracker.partition.name, tracker.topic_id, low, above)
            cell.queue.append((cell.topics.progress[grant.slot], value, grant))
    cell.step += 1
    return True


def send_one(cell: Cell) -> bool:
    """The client sends of its own accord, now or later."""
    if not cell.queue:
        return False
    partition, value, grant = cell.queue.pop(0)
    offset, time = cell.broker.append(cell.identity, cell.epoch, partition, value)
    if type(value) is Completion:
        cell.completed.append((grant, looked_up(cell.rules, value.key), offset, time))
    return True


def flush(cell: Cell) -> bool:
    """Every record is in its log, below the high watermark that a next owner waits for."""
    fail_if_told(cell)
    if cell.rules.flush_before_offsets:
        while send_one(cell):
            pass
    cell.step += 1
    return True


def send_offsets(cell: Cell) -> bool:
    """The fence: from here on the transaction may commit, whatever happens to the membership."""
    fail_if_told(cell)
    if cell.rules.fence:
        pair = cell.taken_with if cell.rules.pair_together else cell.pair
        assert pair is not None
        cell.broker.send_offsets(cell.identity, cell.epoch, pair.metadata)
    cell.step += 1
    return True


def commit(cell: Cell) -> bool:
    while send_one(cell):
        pass
    cell.transaction = cell.broker.request_commit(cell.identity, cell.epoch)
    cell.step += 1
    return True


def answer(cell: Cell) -> bool:
    """Decided, and told so. Readers see it when the markers are written."""
    for index, request in enumerate(cell.broker.requests):
        if request[2] is cell.transaction:
            cell.broker.handle(index)
            break
    if cell.transaction is None or not cell.transaction.committed:
        raise Fenced("INVALID_PRODUCER_EPOCH")
    cell.step += 1
    return True


def commit_times_out(cell: Cell) -> bool:
    """No answer: it may be committed, or be so yet. Only the successor's `init_transactions` can know."""
    if cell.step != ANSWER:
        return False
    if cell.rules.ambiguous_is_fatal:
        raise Fenced("TIMED_OUT")
    cell.epoch = cell.broker.init(cell.identity)
    begin_anew(cell)
    return True


def write(cell: Cell) -> bool:
    """Into the view, keys and position in one batch. Not of a lost grant: its view may be dropped by now."""
    written: dict[Grant, tuple[dict[Any, int], int]] = {}
    for grant, key, offset, time in cell.completed:
        keys, _ = written.get(grant, ({}, 0))
        keys[key] = time
        written[grant] = (keys, offset + 1)
    for grant, (keys, position) in written.items():
        if not grant.gone or not cell.rules.view_names_grant:
            cell.put(grant.slot, keys, position)
    cell.completed.clear()
    cell.step += 1
    return True


def tell(cell: Cell) -> bool:
    """The worker learns what is committed: records finished, runs no longer in flight, slots claimed."""
    assert cell.transaction is not None
    cell.transaction.told = cell.broker.clock
    for grant, count in cell.taken:
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
    cell.taken.clear()
    cell.step += 1
    return True


def rest(cell: Cell) -> bool:
    cell.step = 0
    cell.leftovers = [grant for grant in cell.leftovers if grant.content]
    return True


def fail_if_told(cell: Cell) -> None:
    if cell.fault:
        cell.fault = False
        raise Refused("abortable error")


_BEGIN = (take, flush, send_offsets, commit, answer)
STEPS = {True: (*_BEGIN, write, tell, rest), False: (*_BEGIN, tell, write, rest)}  # by `view_before_told`
ANSWER = _BEGIN.index(answer)  # at this step the commit is on its way and not answered
