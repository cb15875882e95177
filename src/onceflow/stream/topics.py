"""The flow's topics: their names, how `prepare` makes them, and which inputs a slot reads.

`F.*` have one partition per slot. A tenant's own topic belongs whole to the tenant's home slot; partition p
of a shared topic to slot p % slots, so the slots must divide its partitions or most events are forwarded
once.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import reduce
from math import gcd
from typing import Literal, NamedTuple

from onceflow.config import Settings
from onceflow.errors import ConfigError
from onceflow.event import home_slot
from onceflow.state.seen import view_span_ms
from onceflow.stream.cluster import Cluster, Partition, Topic
from onceflow.stream.progress import FORMAT, Progress, encode_progress, progress_key
from onceflow.stream.sending import Record, send

SLOTS_DEFAULT = 64
SLOTS_MAX = 256
SLOTS_FEW = 8
RECORD_MAX_BYTES = 2_000_000  # an event at its limit, with our headers, must fit into every topic of the flow
_DAY_MS = 86_400_000
_DEAD_LETTERS_MS = 14 * _DAY_MS


Start = Literal["earliest", "latest"] | int  # or a time, in milliseconds


class Names(NamedTuple):
    """The names of a flow's topics."""

    inbox: str
    completions: str
    dead_letters: str
    ledger: str
    progress: str

    @classmethod
    def of(cls, flow: str) -> "Names":
        """The topics of this flow."""
        return cls(
            *(f"{flow}.{part}" for part in ("inbox", "completions", "dead-letters", "ledger", "progress"))
        )


class Ids(NamedTuple):
    """Kafka's ids of the topics that views are copies of; a topic made anew has another."""

    completions: str
    ledger: str


def slots_for(shared: Iterable[int]) -> int:
    """The number of slots that fits these partition counts of shared topics (0: there are none)."""
    common = reduce(gcd, shared, 0)
    slots = max((n for n in range(1, min(common, SLOTS_MAX) + 1) if common % n == 0), default=0)
    return slots if slots >= SLOTS_FEW else SLOTS_DEFAULT


def tenant_of(topic: str, settings: Settings) -> str:
    """The tenant whose own topic this is; "" for a shared one."""
    if topic in settings.events.shared or topic == settings.events.signals:
        return ""
    return topic[len(settings.events.tenant_prefix) :]


def slot_of_input(topic: str, partition: int, slots: int, settings: Settings) -> int:
    """The slot that reads this partition."""
    tenant = tenant_of(topic, settings)
    return home_slot(tenant, slots) if tenant else partition % slots


def inputs_of(topics: Iterable[Topic], slots: int, settings: Settings) -> dict[int, list[tuple[Topic, int]]]:
    """Which partitions of these topics each slot reads."""
    found: dict[int, list[tuple[Topic, int]]] = {}
    for topic in topics:
        for partition in range(topic.partitions):
            slot = slot_of_input(topic.name, partition, slots, settings)
            found.setdefault(slot, []).append((topic, partition))
    return found


def existing_slots(flow: str, cluster: Cluster, settings: Settings) -> int:
    """The number of slots that the flow's topics were made with; a ConfigError where they are missing or unequal."""
    names = Names.of(flow)
    topics = cluster.topic_names()
    missing = [name for name in names if name not in topics]
    if missing:
        raise ConfigError(
            f"topic {missing[0]} is missing: is the flow's name right? `onceflow prepare MODULE` makes its topics"
        )
    slots = topics[names.inbox]
    odd = [name for name in names if topics[name] != slots]
    if odd:
        raise ConfigError(
            f"{odd[0]} has {topics[odd[0]]} partitions and {names.inbox} {slots}: a flow's topics have one partition "
            "per slot, fixed for its life. Make the topic anew with the right number, or give the flow another name."
        )
    if settings.slots not in (None, slots):
        raise ConfigError(
            f"ONCEFLOW_SLOTS is {settings.slots}, but {names.inbox} has {slots} partitions: the number of slots is "
            "fixed for a flow's life. Leave ONCEFLOW_SLOTS out, or give the flow another name."
        )
    return slots


def prepare(flow: str, cluster: Cluster, settings: Settings) -> list[str]:
    """Make the topics that are missing and mend settings; return what was done and what to beware of, a line each."""
    done: list[str] = []
    names = Names.of(flow)
    topics = cluster.topic_names()
    shared = {name: topics[name] for name in settings.events.shared if name in topics}
    slots = topics.get(names.inbox) or settings.slots or slots_for(shared.values())
    replication = settings.kafka.topics.replication_factor
    durable = settings.kafka.topics.min_insync_replicas
    common = {} if durable is None else {"min.insync.replicas": str(durable)}
    for name in filter(None, (*settings.events.shared, settings.events.signals)):
        if name not in topics:
            cluster.create(name, slots, common, replication)
            done.append(f"made {name} with {slots} partitions")
    # A topic that somebody has just made may not be listed yet, nor have settings; and the slots are for life.
    cluster.await_topics(settings.events.shared)
    if names.inbox not in topics and settings.slots is None:
        listed = cluster.topic_names()
        slots = slots_for(listed[name] for name in settings.events.shared)
    done += _slot_warnings(shared, slots, settings, for_good=names.inbox in topics)
    retention_ms = _inputs_retention_ms(cluster, settings, topics)
    for name, wanted in _flow_settings(names, settings, retention_ms).items():
        if name not in topics:
            cluster.create(name, slots, {**wanted, **common}, replication)
            done.append(f"made {name} with {slots} partitions")
            continue
        found = cluster.settings(name)
        differing = {key: value for key, value in wanted.items() if found.get(key) != value}
        if name in (names.completions, names.dead_letters) and _longer(found, wanted):
            differing.pop("retention.ms", None)  # as good
        if differing:
            cluster.change_settings(name, differing)
            done.append(f"set {', '.join(f'{k}={v}' for k, v in differing.items())} on {name}")
    cluster.await_topics(filter(None, (*names, *settings.events.shared, settings.events.signals)))
    existing_slots(flow, cluster, settings)
    return done


def _slot_warnings(
    shared: Mapping[str, int], slots: int, settings: Settings, *, for_good: bool
) -> Iterator[str]:
    """What a number of slots does not fit: the shared topics that were there, with their partitions."""
    if not shared and not for_good and settings.slots is None:
        yield (
            f"warning: there is no shared topic yet: the flow gets {slots} slots for its life (ONCEFLOW_SLOTS chooses)"
        )
    for name, partitions in shared.items():
        if partitions % slots:
            has, or_else = ("has", "") if for_good else ("gets", ", or set ONCEFLOW_SLOTS")
            yield (
                f"warning: {name} has {partitions} partitions, the flow {has} {slots} slots for its life: most events "
                f"will be forwarded once. Give {name} a multiple of {slots} partitions{or_else}"
            )


def start_from(
    flow: str, cluster: Cluster, settings: Settings, start: Start, known: Mapping[Partition, Progress]
) -> list[str]:
    """Write the progress of inputs that have none yet, so that they start at `start`; `known`: what F.progress says."""
    if members := cluster.members(flow):
        raise ConfigError(
            f"--from is for a flow that isn't running; these cells are: {', '.join(sorted(members))}. Stop them first."
        )
    names = Names.of(flow)
    slots = existing_slots(flow, cluster, settings)
    wanted = [name for name in cluster.topic_names() if settings.events.is_input(name)]
    topics = cluster.topics(wanted)
    ids = {at: progress.topic_id for at, progress in known.items()}  # a topic may have been made anew since
    all_of_them = [(topic, (topic.name, p)) for topic in topics.values() for p in range(topic.partitions)]
    new = [at for topic, at in all_of_them if ids.get(at) != topic.id]
    if start == "earliest":
        offsets = cluster.first_offsets(new)
    elif start == "latest":
        offsets = cluster.end_offsets(new)
    else:
        offsets = cluster.offsets_at(new, start)
    records = []
    for (topic, partition), offset in offsets.items():
        value = encode_progress(Progress(FORMAT, "", topics[topic].id, offset))
        slot = slot_of_input(topic, partition, slots, settings)
        records.append(Record(names.progress, value, progress_key(topic, partition), slot))
    send(settings, records)
    return [
        f"{topic}/{partition} starts at {offset}" for (topic, partition), offset in sorted(offsets.items())
    ]


def read_start(text: str) -> Start:
    """Where inputs are to begin: `earliest`, `latest`, or the milliseconds of a time."""
    if text == "earliest":
        return "earliest"
    if text == "latest":
        return "latest"
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"--from {text!r}: write `earliest`, `latest`, or a time such as 2026-01-31T08:00:00+00:00"
        ) from error
    if time.tzinfo is None:
        raise ConfigError(f"--from {text!r}: say the time zone too, e.g. {text}+00:00")
    return int(time.timestamp() * 1000)


def _longer(found: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a topic keeps its records for longer than is wanted, or for good."""
    return not 0 <= int(found["retention.ms"]) <= int(wanted["retention.ms"])


def _inputs_retention_ms(cluster: Cluster, settings: Settings, topics: Mapping[str, int]) -> int:
    """The longest retention among the flow's inputs; negative for unlimited, which one that nobody tells is too."""
    inputs = [name for name in topics if settings.events.is_input(name)] or list(settings.events.shared)
    known = cluster.settings_known(inputs)
    found = [_retention_ms(known.get(name, {})) for name in inputs]
    return -1 if not found or min(found) < 0 else max(found)


def _retention_ms(settings: Mapping[str, str]) -> int:
    """How long a topic with these settings keeps a record; negative: for good, by its key if by nothing else."""
    by_time = "delete" in settings.get("cleanup.policy", "delete")
    return int(settings.get("retention.ms", "-1")) if by_time else -1


def _flow_settings(names: Names, settings: Settings, retention_ms: int) -> dict[str, dict[str, str]]:
    window_ms = int(settings.dedup.window / timedelta(milliseconds=1))
    # Kafka's times: it refuses a record that is said to be from tomorrow, and deletes one from the last century.
    ours = {"max.message.bytes": str(RECORD_MAX_BYTES), "message.timestamp.type": "LogAppendTime"}
    compacted = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.2", **ours}
    span_ms = view_span_ms(window_ms, retention_ms)
    return {
        names.inbox: {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1", **ours},
        names.completions: {
            "cleanup.policy": "delete",
            "retention.ms": str(span_ms),
            "retention.bytes": "-1",
            **ours,
        },
        names.dead_letters: {"cleanup.policy": "delete", "retention.ms": str(_DEAD_LETTERS_MS), **ours},
        names.ledger: compacted,
        # Read whole at each grant, so kept small: only closed segments are compacted.
        names.progress: {**compacted, "segment.bytes": str(2 << 20)},
    }


class Limits(NamedTuple):
    """What a cell must know of its topics."""

    sizes: dict[str, int]  # the largest record of each that it writes, bytes
    span_ms: int  # how far back F.completions goes
    tombstones_ms: int  # how long F.ledger keeps them
    ids: Ids


def limits_of(cluster: Cluster, names: Names) -> Limits:
    """Ask Kafka for them."""
    written = (names.completions, names.dead_letters, names.inbox, names.ledger)
    settings = {name: cluster.settings(name) for name in written}
    sizes = {name: int(found["max.message.bytes"]) for name, found in settings.items()}
    span_ms = int(settings[names.completions]["retention.ms"])
    if span_ms < 0:
        span_ms = 400 * _DAY_MS
    tombstones_ms = int(settings[names.ledger].get("delete.retention.ms", _DAY_MS))
    topics = cluster.topics([names.completions, names.ledger])
    return Limits(sizes, span_ms, tombstones_ms, Ids(topics[names.completions].id, topics[names.ledger].id))
