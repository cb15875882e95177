"""How a grant becomes a slot that runs, in the background, while its inputs are paused and other slots run.

    watermarks · wait until all below them is settled · read progress · claim (a commit) · catch the view up · run

Nothing is read before everything that former owners got past the fence is settled; nothing is judged before the
view knows all of it.
"""

from typing import Any

from tests.model.cell import Cell, Grant, Item, Stage, Tracker, from_any, looked_up


def grant_step(cell: Cell) -> bool:
    """The next step of one of the grants that don't run yet."""
    if cell.write_rest():
        return True
    starting = [grant for grant in cell.grants.values() if grant.stage != Stage.RUNNING]
    return any(STEPS[grant.stage](cell, grant) for grant in from_any(starting, cell.choose))


def watermarks(cell: Cell, grant: Grant) -> bool:
    """Whatever passed the fence before this grant lies below these: it was flushed before."""
    slot = grant.slot
    grant.watermarks = (len(cell.topics.progress[slot].log), len(cell.topics.completions[slot].log))
    grant.stage = Stage.WAIT
    return True


def wait(cell: Cell, grant: Grant) -> bool:
    """Until the former owners' transactions are settled; the id in the last claim ends that of a dead one."""
    progress, completions = cell.topics.progress[grant.slot], cell.topics.completions[grant.slot]
    stable = progress.stable() >= grant.watermarks[0] and completions.stable() >= grant.watermarks[1]
    if stable or not cell.rules.wait_for_stable:
        grant.stage = Stage.READ
        return True
    claims = [record.value[1] for _, record in progress.committed() if record.value[0] == "claim"]
    former = claims[-1] if claims else cell.identity
    if grant.asked_former or former == cell.identity or former in cell.broker.group.members:
        return False
    grant.asked_former = True
    cell.broker.init(former)
    return True


def read_progress(cell: Cell, grant: Grant) -> bool:
    cell.last_ready.pop(grant.slot, None)
    known: dict[str, tuple[int, int, frozenset[int]]] = {}
    for _, record in cell.topics.progress[grant.slot].committed():
        if record.value[0] != "claim":
            known[record.value[0]] = record.value[1:]
    for partition in cell.topics.inputs(grant.slot):
        topic_id, low, above = known.get(partition.name, (partition.topic_id, 0, frozenset()))
        if topic_id != partition.topic_id and cell.rules.topic_id:
            low, above = 0, frozenset()
        done = set(above) if cell.rules.skip_finished else set()
        grant.trackers.append(Tracker(partition, partition.topic_id, low, low, done))
    if cell.rules.claim:
        grant.content.append(Item(((cell.topics.progress[grant.slot], ("claim", cell.identity)),)))
        grant.stage = Stage.CLAIM
    else:
        grant.stage = Stage.CATCH_UP
    return True


def await_claim(cell: Cell, grant: Grant) -> bool:
    return False  # `tell` moves it on


def catch_up(cell: Cell, grant: Grant) -> bool:
    """Two completions at a time, up to the watermark."""
    completions = cell.topics.completions[grant.slot]
    view = cell.disk.views.get(grant.slot)
    position = 0 if view is None else view.position
    keys: dict[Any, int] = {}
    while cell.rules.catch_up and position < grant.watermarks[1] and len(keys) < 2:
        position, record = completions.read(position)
        if record is None:
            break
        keys[looked_up(cell.rules, record.value.key)] = record.time
        position += 1
    if keys:
        cell.put(grant.slot, keys, position)
    else:
        grant.stage = Stage.RUNNING
        if cell.broker.group.owner[grant.slot] == cell.identity:  # not a zombie, of whom no claim can tell
            cell.last_ready[grant.slot] = cell.identity
    return True


STEPS = (watermarks, wait, read_progress, await_claim, catch_up)  # by stage
