"""What must be true at the end. It knows what was sent and what was committed; nothing of the protocol."""

from collections import defaultdict
from itertools import pairwise

from tests.model.cell import KEPT, WINDOW, Completion, Event, Key, Topics
from tests.model.kafka import Partition


def check(sent: list[Event], topics: Topics) -> list[str]:
    """The faults, each beginning with `lost`, `twice` or `stuck`."""
    return [*check_completions(sent, topics), *check_dead_letters(sent, topics), *check_progress(topics)]


def check_completions(sent: list[Event], topics: Topics) -> list[str]:
    """Exactly one completion of a key, and one more for each copy that came later than the window after it.

    A copy's own time is its producer's; a clock that ran ahead counts only as far as the broker's had come.
    The window is counted from the completion's time in the log; but until its cell has been told that it is
    committed, the run is in flight, and a copy is a duplicate however late it came.
    """
    faults = []
    completed: dict[Key, list[tuple[int, Event]]] = defaultdict(list)
    in_flight_until: dict[Key, int] = defaultdict(lambda: -1)
    for partition in topics.completions:
        for _, record in partition.committed():
            completion: Completion = record.value
            completed[completion.key].append((record.time, completion.event))
            told = -1 if record.transaction is None else record.transaction.told
            in_flight_until[completion.key] = max(in_flight_until[completion.key], record.time, told)
    for key, completions in completed.items():
        completions.sort(key=lambda each: each[0])
        for (before, _), (time, cause) in pairwise(completions):
            justified = min(cause.time, time) > before + WINDOW or before < time - KEPT
            if not justified:
                faults.append(f"twice: {key} completed at {before}, and at {time} for {cause}")
    for event in sent:
        if event.key is not None:
            last = in_flight_until[event.tenant, event.key]
            if last < 0 or last + WINDOW < min(event.time, event.sent):
                faults.append(f"lost: {event}, last in flight at {last}")
    return faults


def check_dead_letters(sent: list[Event], topics: Topics) -> list[str]:
    letters = [record.value for partition in topics.dead_letters for _, record in partition.committed()]
    undecodable = [event for event in sent if event.key is None]
    return [
        f"{'lost' if letters.count(event) == 0 else 'twice'}: dead letter of {event}"
        for event in undecodable
        if letters.count(event) != 1
    ]


def check_progress(topics: Topics) -> list[str]:
    """Committed progress calls every readable record of every input finished."""
    return [
        f"stuck: {partition.name}/{offset} is unfinished"
        for slot in range(topics.slots)
        for partition, offset in unfinished(topics, slot)
    ]


def unfinished(topics: Topics, slot: int) -> list[tuple[Partition, int]]:
    known = {}
    for _, record in topics.progress[slot].committed():
        if record.value[0] != "claim":
            known[record.value[0]] = record.value[1:]
    found: list[tuple[Partition, int]] = []
    for partition in topics.inputs(slot):
        topic_id, low, above = known.get(partition.name, (partition.topic_id, 0, frozenset()))
        if topic_id != partition.topic_id:
            low, above = 0, frozenset()
        found += [
            (partition, offset)
            for offset, _ in partition.committed()
            if offset >= low and offset not in above
        ]
    return found
