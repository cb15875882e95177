"""What a person does about dead letters: have their events done anew, or let go of what is kept for that.

What has no run (an event that no agent took, say) is read again as it was sent. A failed run is done anew as a run of
its own, with what it has done and what still stands; asked for twice, it is one run.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from onceflow.agents.commands import HEADER, Command, encode_command
from onceflow.agents.happenings import Redrive
from onceflow.agents.journal import runs_of
from onceflow.config import Settings
from onceflow.errors import ConfigError
from onceflow.event import Reason, home_slot
from onceflow.observe.open_runs import ANSWER_S, Unanswered, ledger_records
from onceflow.observe.status import DeadLetter, read_dead_letters
from onceflow.stream.cluster import Cluster
from onceflow.stream.headers import key_of, redrive_headers, without_ours
from onceflow.stream.sending import Record, send
from onceflow.stream.topics import Names, existing_slots

_LOOK_EVERY_S = 0.3
_OPEN = (Reason.NONDETERMINISTIC, Reason.UNKNOWN_OUTCOME)


class Done(NamedTuple):
    """What became of a dead letter: the id of the new run ("": its event is read again), or why there is none."""

    at: str
    run: str
    refused: str
    before: bool = False  # it was redriven or discarded before: nothing of it is left to do


def find_letters(
    flow: str, settings: Settings, at: Sequence[str], wanted: Callable[[DeadLetter], bool]
) -> list[DeadLetter]:
    """The dead letters at these positions; where none is named, all that are wanted."""
    cluster = Cluster(settings.kafka.properties())
    slots = existing_slots(flow, cluster, settings)
    letters = read_dead_letters(flow, cluster, settings, slots)
    found = [letter for letter in letters if (letter.at in at if at else wanted(letter))]
    found.sort(key=lambda letter: (letter.time_ms, letter.at))
    if missing := sorted(set(at) - {letter.at for letter in found}):
        raise ConfigError(
            f"{', '.join(missing)}: no such dead letter; write TOPIC/PARTITION/OFFSET, as `onceflow dead-letters list "
            f"--flow {flow}` shows it"
        )
    return found


def redrive(flow: str, settings: Settings, letters: Iterable[DeadLetter]) -> list[Done]:
    """Have these dead letters' events done anew; what became of each."""
    cluster = Cluster(settings.kafka.properties())
    slots = existing_slots(flow, cluster, settings)
    wanted = list(letters)
    inbox = Names.of(flow).inbox
    held = _kept(flow, settings, {letter.tenant for letter in wanted if letter.kept})
    done, records = [], []
    for letter in wanted:
        if refusal := _refusal(letter):
            done.append(Done(letter.at, "", refusal))
            continue
        if letter.kept and (letter.tenant, letter.run) not in held:
            done.append(Done(letter.at, "", "", before=True))
            continue
        ours: list[tuple[str, str | bytes | None]] = [
            ("onceflow-origin", letter.origin.encode()),
            ("onceflow-time", str(int(time.time() * 1000)).encode()),
            ("onceflow-tenant", letter.tenant.encode()),
        ]
        run = b""
        if letter.run:
            failed = bytes.fromhex(letter.run)
            again = Redrive(failed, bytes.fromhex(letter.root) or failed, letter.at, letter.kept)
            ours += redrive_headers(again)
            run = again.key
        slot = home_slot(letter.tenant, slots) if letter.tenant else int(letter.at.split("/")[-2])
        (key,) = key_of(letter.headers) or (letter.tenant or None,)
        records.append(Record(inbox, letter.value, key, slot, [*without_ours(letter.headers), *ours]))
        done.append(Done(letter.at, run.hex(), ""))
    send(settings, records)
    return done


def discard(flow: str, settings: Settings, letters: Iterable[DeadLetter]) -> int:
    """Let go of what is kept for these dead letters, and wait until it is gone; of how many there was something."""
    cluster = Cluster(settings.kafka.properties())
    slots = existing_slots(flow, cluster, settings)
    wanted = [letter for letter in letters if letter.kept]
    tenants = {letter.tenant for letter in wanted}
    held = _kept(flow, settings, tenants)
    runs = {letter.run: letter.tenant for letter in wanted if (letter.tenant, letter.run) in held}
    inbox, mark = Names.of(flow).inbox, [(HEADER, b"1")]
    commands = [(tenant, encode_command(Command("discard", tenant, run))) for run, tenant in runs.items()]
    send(settings, [Record(inbox, each, tenant, home_slot(tenant, slots), mark) for tenant, each in commands])
    deadline = time.monotonic() + ANSWER_S
    while runs and _kept(flow, settings, tenants) & {(tenant, run) for run, tenant in runs.items()}:
        if time.monotonic() > deadline:
            raise Unanswered(
                f"nothing has changed within {ANSWER_S:g} s. Does a cell run that serves these tenants (`onceflow "
                "status`)? What you have decided waits in the inbox"
            )
        time.sleep(_LOOK_EVERY_S)
    return len(runs)


def _refusal(letter: DeadLetter) -> str:
    if letter.reason in _OPEN:
        return f"its run is still open: onceflow runs resolve {letter.run[:8]}"
    if letter.truncated:
        return "only its first part was kept; send the event again"
    return ""


def _kept(flow: str, settings: Settings, tenants: Iterable[str]) -> set[tuple[str, str]]:
    """Tenant and id of the failed runs that are kept."""
    found: set[tuple[str, str]] = set()
    for tenant in tenants:
        runs = runs_of(sorted(ledger_records(flow, settings, tenant).items()))
        found |= {(tenant, run.key.hex()) for run in runs if run.failed and run.tenant == tenant}
    return found
