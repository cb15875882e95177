"""The runs that a flow's ledger holds, read from Kafka; and what a person decides about them, sent through F.inbox."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from confluent_kafka import Message

from onceflow.agents import journal
from onceflow.agents.commands import HEADER, Command, encode_command
from onceflow.agents.journal import AGAIN, FAILED, FAILING, PARKED, UNDO, UNDONE, Entry, OpenRun, Unreadable
from onceflow.agents.signals import read_signal
from onceflow.config import Settings
from onceflow.errors import ConfigError, OnceflowError
from onceflow.event import Unusable, home_slot, read_event
from onceflow.observe.status import InputStatus, committed, read_status, time_text
from onceflow.stream.cluster import Cluster
from onceflow.stream.sending import Record, send
from onceflow.stream.topics import Names, existing_slots, slot_of_input

ANSWER_S = 30.0
_LOOK_EVERY_S = 0.3


class Unanswered(OnceflowError):  # noqa: N818 (reads as what it says)
    """No cell has acted on a command yet."""

    exit_status = 3


class Step(NamedTuple):
    """One call or wait of a run's journal."""

    place: str
    what: str  # the tool, or the wait
    state: str  # done, failed, open, …
    detail: str
    key: str
    executions: int
    seconds: float | None = None  # from asking to the outcome
    retrieved: Mapping[str, list[str]] = {}  # ids of what it has found, by tenant


def state_of(run: OpenRun) -> str:
    """What an open run is about."""
    if run.failed:
        return "failed"
    if run.parked:
        return "parked"
    if not run.begun_at_all:
        return "queued"
    if FAILING in run.journal:
        return "undoing"
    entries = run.journal.values()
    if any(entry.open and entry.intent is not None for entry in entries):
        return "calling"
    return "waiting" if any(entry.open and entry.wait is not None for entry in entries) else "running"


def _of_run(place: str, entry: Entry) -> tuple[str, str, str] | None:
    """What an entry says of the run as a whole: what, state, detail."""
    said = f"{entry.error[0]}: {entry.error[1]}" if entry.error else ""
    if place == PARKED:
        since = f", since {time_text(entry.asked_ms)}" if entry.asked_ms else ""
        return ("parked", "open", f"{said}{since}") if said else ("parked", "decided", "a person has decided")
    if place == FAILING:
        return "failing", "open", said
    if place == FAILED:
        return "failed", "done", said
    if place == AGAIN:
        until = f"at {time_text(entry.wait.due_ms)}" if entry.wait else ""
        return "begin again", "open" if entry.open else "done", until
    if place.startswith(UNDONE):
        return f"{entry.tool}, its effect undone {entry.version} times", "done", ""
    return None


def steps_of(run: OpenRun) -> list[Step]:
    """A run's journal, in the order in which it was written."""
    return [_step(place, entry) for place, entry in run.journal.items()]


def run_as_json(run: OpenRun) -> dict[str, Any]:
    """An open run as JSON values; no results, which may be confidential."""
    begun = run.begun
    return {
        "run": run.key.hex(),
        "tenant": run.tenant,
        "state": state_of(run),
        "agent": begun.agent,
        "version": begun.version,
        "since": time_text(begun.time_ms),
        "event": {"source": begun.incoming.source, "id": begun.incoming.id, "type": begun.incoming.type},
        "origin": begun.origin,
        "steps": [step._asdict() for step in steps_of(run)],
    }


def unreadable_as_json(run: Unreadable) -> dict[str, Any]:
    """The same of one that cannot be read: no more is known of it than whose it is, and why."""
    unknown = dict.fromkeys(("agent", "version", "since", "event", "origin"))
    return {
        "run": run.key.hex(),
        "tenant": run.tenant,
        "state": "unreadable",
        **unknown,
        "steps": [],
        "cause": run.why,
    }


def read_open_runs(flow: str, settings: Settings, tenant: str = "") -> list[OpenRun]:
    """The open runs of a flow, or of one of its tenants, by slot and key."""
    return [run for run in read_runs(flow, settings, tenant) if not run.failed]


def read_runs(flow: str, settings: Settings, tenant: str = "") -> list[OpenRun]:
    """The runs that the ledger holds: the open ones, and those that failed and are kept."""
    return read_all_runs(flow, settings, tenant)[0]


def read_all_runs(flow: str, settings: Settings, tenant: str = "") -> tuple[list[OpenRun], list[Unreadable]]:
    """The same, and those that cannot be read."""
    slots: dict[int, dict[bytes, bytes]] = {}
    for message in _records(flow, settings, tenant):
        _take(slots.setdefault(message.partition() or 0, {}), message)
    runs: list[OpenRun] = []
    unreadable: list[Unreadable] = []
    for slot in sorted(slots):
        found, not_read = journal.read_runs(sorted(slots[slot].items()))
        runs += [run for run in found if run.tenant == (tenant or run.tenant)]
        unreadable += [run for run in not_read if run.tenant == (tenant or run.tenant)]
    return runs, unreadable


def ledger_records(flow: str, settings: Settings, tenant: str) -> dict[bytes, bytes]:
    """What the ledger holds of a tenant's slot, by Kafka key."""
    records: dict[bytes, bytes] = {}
    for message in _records(flow, settings, tenant):
        _take(records, message)
    return records


def _records(flow: str, settings: Settings, tenant: str) -> Iterator[Message]:
    cluster = Cluster(settings.kafka.properties())
    slots = existing_slots(flow, cluster, settings)
    wanted = range(slots) if not tenant else [home_slot(tenant, slots)]
    return committed(flow, Names.of(flow).ledger, cluster, settings, wanted)


def _take(records: dict[bytes, bytes], message: Message) -> None:
    key, value = message.key() or b"", message.value()
    if value is None:
        records.pop(key, None)
    else:
        records[key] = value


def find_run(flow: str, settings: Settings, run: str) -> OpenRun:
    """The open run with this id, or with the only id that begins so; a ConfigError if there is none."""
    runs, unreadable = read_all_runs(flow, settings)
    found = [each for each in runs if each.key.hex().startswith(run.lower())]
    not_read = [each for each in unreadable if each.key.hex().startswith(run.lower())]
    if len(not_read) == 1 and not found and run:
        tenant, key, why = not_read[0]
        raise ConfigError(
            f"run {key.hex()} of tenant {tenant} cannot be read from the ledger ({why}): start the version of onceflow "
            "that wrote its records; until then it does not go on"
        )
    if len(found) != 1 or not run or not_read:
        which = "several runs begin so" if found or not_read else "no run in the ledger has this id"
        raise ConfigError(
            f"{run!r}: {which}; `onceflow runs list --flow {flow}` shows the open ones, and {flow}.completions "
            "has those that ended"
        )
    return found[0]


def send_command(flow: str, settings: Settings, command: Command) -> None:
    """Send what a person has decided to the cell that serves the tenant."""
    cluster = Cluster(settings.kafka.properties())
    slots = existing_slots(flow, cluster, settings)
    if command.action == "accept-loss":
        slot = slot_of_input(command.topic, command.partition, slots, settings)
    else:
        slot = home_slot(command.tenant, slots)
    inbox = Names.of(flow).inbox
    send(settings, [Record(inbox, encode_command(command), command.tenant, slot, [(HEADER, b"1")])])


def await_change(flow: str, settings: Settings, run: OpenRun) -> OpenRun | None:
    """Wait until something about a run has changed; the run as it is then, None if it has ended."""
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        now = [each for each in read_open_runs(flow, settings, run.tenant) if each.key == run.key]
        if not now or now[0].segments != run.segments:
            return now[0] if now else None
        time.sleep(_LOOK_EVERY_S)
    raise Unanswered(
        f"nothing has changed within {ANSWER_S:g} s. Does a cell run that serves this tenant (`onceflow status`)? The "
        "command waits in the inbox; if a cell has refused it, its log says why"
    )


def accept_loss(flow: str, settings: Settings, topic: str, partition: int) -> InputStatus:
    """Let the lost or unreadable records of an input go, and wait until its cell reads on; how it stood before."""
    found = [
        each
        for each in read_status(flow, settings).inputs
        if (each.topic, each.partition) == (topic, partition)
    ]
    if not found:
        raise ConfigError(
            f"{topic}/{partition} is no input of {flow}: see `onceflow inputs list --flow {flow}`"
        )
    at = (topic, partition)
    first = Cluster(settings.kafka.properties()).first_offsets([at])[
        at
    ]  # if it is away, nobody knows what is lost
    if not found[0].blocked:
        raise ConfigError(f"nothing of {topic}/{partition} is lost: there is nothing to accept")
    offset = max(first, found[0].unreadable + 1)
    send_command(flow, settings, Command("accept-loss", topic=topic, partition=partition, offset=offset))
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        now = [each for each in read_status(flow, settings).inputs if (each.topic, each.partition) == at]
        if now and not now[0].lost and now[0].unreadable < offset:
            return found[0]
        time.sleep(_LOOK_EVERY_S)
    raise Unanswered(
        f"no cell has gone on with it within {ANSWER_S:g} s. Does one run that owns its slot (`onceflow status`)? What "
        "you have decided waits in the inbox"
    )


def send_signal(settings: Settings, type: str, id: str, tenant: str, fields: Mapping[str, Any]) -> None:
    """Send a signal as a producer does; `fields`: source, id and data of the CloudEvent.

    Raises ConfigError for what would be a dead letter in every flow.
    """
    topic = settings.events.signals
    if not topic:
        raise ConfigError(
            "events.signals is empty: this flow reads no signals. Set it to the topic of those it waits for"
        )
    signal = {"specversion": "1.0", "type": type, "subject": id, "tenant": tenant, **fields}
    value = json.dumps(signal).encode()
    read = read_event(value, None, size_max=settings.limits.value_bytes)
    fault = read.detail if isinstance(read, Unusable) else read_signal(read)
    if isinstance(fault, str):
        raise ConfigError(f"that is no signal: {fault}")
    # Asked first: to a topic that is missing a producer sends for half a minute, and may even make it.
    if topic not in Cluster(settings.kafka.properties()).topic_names():
        raise ConfigError(
            f"topic {topic} (events.signals) is missing: is it the flow's? `onceflow prepare MODULE` makes it"
        )
    send(settings, [Record(topic, value, tenant)])


def _step(place: str, entry: Entry) -> Step:
    state = "open" if entry.open else "done" if entry.error is None else "failed"
    what, detail = entry.tool, "" if entry.error is None else entry.error[1]
    if (of_run := _of_run(place, entry)) is not None:
        what, state, detail = of_run
    elif entry.retry is not None and entry.open:
        what = f"undo {entry.tool}" if place.startswith(UNDO) else entry.tool
        detail = (
            f"attempt {entry.retry.executions + 1} at {time_text(entry.wait.due_ms)}" if entry.wait else ""
        )
        if not entry.retry.attempts:
            detail = "another run is at this call, or is parked with it"
    elif place.startswith(UNDO):
        what = f"undo {entry.tool}"
    elif entry.wait is not None:
        wait = entry.wait
        what = f"wait for {wait.type} {wait.id}" if wait.type else "sleep"
        detail = detail or (f"until {time_text(wait.due_ms)}" if entry.open and wait.due_ms else "")
    intent = entry.intent
    return Step(
        place,
        what,
        state,
        detail,
        "" if intent is None else intent.key,
        0 if intent is None else intent.executions,
        (entry.done_ms - entry.asked_ms) / 1000 if entry.asked_ms and entry.done_ms else None,
        dict(entry.lineage),
    )


def by_state(runs: Iterable[OpenRun], state: str) -> list[OpenRun]:
    """Those in this state; all if it is ""."""
    return [run for run in runs if state_of(run) == (state or state_of(run))]
