"""What a run may keep that is done anew: a retry of the whole run, or the redrive of one that has failed.

It keeps its journal up to the last effect that stands, so that what the effect was based on comes out as it did; what
came after is done anew. The effect of a call that was undone is made again, with the next key: the target remembers the
one before.
"""

import random
from collections.abc import Collection, Iterable, Mapping

import msgspec

from onceflow.agents.agent import Agent
from onceflow.agents.call import RetryPolicy
from onceflow.agents.failures import needs_a_loop
from onceflow.agents.journal import (
    AGAIN,
    NIL,
    OUTCOME_UNKNOWN,
    SPECIAL,
    UNDO,
    UNDONE,
    UNUSABLE_RESULT,
    Entry,
)
from onceflow.agents.suspension import ForeignAwait
from onceflow.errors import ConfigError, Failed, GiveUp, KeyReused, OutcomeUnknown, RetryLater, WaitExpired
from onceflow.event import InvalidData

MAY_STAND = (OUTCOME_UNKNOWN, UNUSABLE_RESULT)
_FOR_GOOD = (
    Failed,
    GiveUp,
    KeyReused,
    OutcomeUnknown,
    WaitExpired,
    InvalidData,
    ForeignAwait,
    ConfigError,
)


def stands(journal: Mapping[str, Entry], place: str) -> bool:
    """Whether the call at this place has, or may have, an effect that was not undone."""
    entry, undone = journal[place], journal.get(UNDO + place)
    if entry.intent is None or (undone is not None and undone.result is not None):
        return False
    if undone is not None and not undone.open and entry.intent.shared:
        return False  # its compensation was given up, and whether it stands is on record for all: it is asked for again
    return entry.result is not None or entry.open or (entry.error is not None and entry.error[0] in MAY_STAND)


def cannot_be_left(journal: Mapping[str, Entry], place: str) -> bool:
    """Whether a run that fails must come to this call: to undo it, or to say how it came out, for which others wait."""
    if place.startswith(SPECIAL):
        return False
    if UNDO + place in journal:
        return being_undone(journal, place)  # or that was given up, or is done
    intent = journal[place].intent
    if intent is None or not stands(journal, place):
        return False
    return intent.undoable or (bool(intent.shared) and journal[place].open)


def being_undone(journal: Mapping[str, Entry], place: str) -> bool:
    """Whether the compensation of a call is on record and has yet to come out; even of what another run has made, whose
    record waits for that.
    """
    undone = journal.get(UNDO + place)
    return undone is not None and undone.open


def retried(journal: Mapping[str, Entry], shared: Collection[str] = ()) -> dict[str, Entry]:
    """The journal with which a run is tried again: as it was, up to the last effect that stands. What it was given of
    another's making, at the places of its `shared` calls, counts: as long as it is open, it may have to undo that.
    """
    calls = _upto_the_last_effect(journal, [place for place in shared if _happened(journal.get(place))])
    found = {place: journal[place] for place in calls} | _undone_so_far(journal)
    found |= {UNDO + place: journal[UNDO + place] for place in calls if UNDO + place in journal}
    return found | _next_keys(journal, [place for place in _calls(journal) if place not in found])


def redriven(journal: Mapping[str, Entry]) -> dict[str, Entry]:
    """The journal with which a failed run is redriven: what was undone is made again, and what may have happened asks
    for a person.
    """
    calls = _upto_the_last_effect(journal)
    undone = [place for place in _calls(journal) if UNDO + place in journal and not stands(journal, place)]
    found = {place: _kept(journal, place) for place in calls if place not in undone}
    return found | _undone_so_far(journal) | _next_keys(journal, undone)


def _calls(journal: Mapping[str, Entry]) -> list[str]:
    return [place for place in journal if not place.startswith(SPECIAL)]


def _happened(entry: Entry | None) -> bool:
    if entry is None:
        return False
    return entry.result is not None or (entry.error is not None and entry.error[0] == UNUSABLE_RESULT)


def _upto_the_last_effect(journal: Mapping[str, Entry], also: Collection[str] = ()) -> list[str]:
    calls = _calls(journal)
    last = max((order(place) for place in calls if place in also or stands(journal, place)), default=())
    return [place for place in calls if order(place) <= last]


def _undone_so_far(journal: Mapping[str, Entry]) -> dict[str, Entry]:
    return {place: entry for place, entry in journal.items() if place.startswith(UNDONE)}


def _next_keys(journal: Mapping[str, Entry], places: Iterable[str]) -> dict[str, Entry]:
    """Those of these calls that were undone need another key. (Of a call of scope `tenant`, its record counts that.)"""
    found = {}
    for place in places:
        intent, known = journal[place].intent, journal.get(UNDONE + place)
        if UNDO + place in journal and intent is not None and not intent.shared:
            times = 1 + (0 if known is None else known.version)
            found[UNDONE + place] = Entry(journal[place].tool, times, b"", NIL)
    return found


def _kept(journal: Mapping[str, Entry], place: str) -> Entry:
    entry = journal[place]
    if entry.intent is None:
        return entry
    unknown = entry.open or (entry.error is not None and entry.error[0] == OUTCOME_UNKNOWN)
    if not unknown or not stands(journal, place):
        return msgspec.structs.replace(entry, intent=msgspec.structs.replace(entry.intent, kept=True))
    intent = msgspec.structs.replace(entry.intent, asks=True, kept=True)
    return msgspec.structs.replace(entry, error=None, intent=intent, wait=None, retry=None)


def retry_in_s(
    agent: Agent[object, object], run: str, journal: Mapping[str, Entry], error: BaseException
) -> float:
    """Seconds until a run is tried again whose agent raised `error`; negative: it has failed for good.

    An agent that raises RetryLater is always tried again; for other errors its `retry` must say so. Full jitter, which
    a replay would draw again.
    """
    later = isinstance(error, RetryLater)
    policy = agent.retry or (RetryPolicy() if later else None)
    known = journal.get(AGAIN)
    attempts = 1 + (0 if known is None or known.retry is None else known.retry.attempts)
    if policy is None or isinstance(error, _FOR_GOOD) or needs_a_loop(error) or attempts >= policy.attempts:
        return -1.0
    delay_s = policy.delay_s(attempts, random.Random(f"{run}/again/{attempts}").random())  # noqa: S311
    if isinstance(error, RetryLater) and error.after_s is not None:
        delay_s = max(delay_s, error.after_s)
    return delay_s


def order(place: str) -> tuple[int, ...]:
    """Places in the order in which an agent asks; the calls of a gather, branch by branch."""
    return tuple(int(part) for part in place.split("."))
