"""What was decided about a tenant's runs, as the outbox takes it.

A run that the ledger holds has no record of its own any more. What such runs lead to is one Finished of their slot's
inbox, however many they are: changes of the ledger in the order in which they were decided, completions, dead letters,
and the calls that wait for all that to be committed.
"""

from onceflow.agents.happenings import NO_OFFSET, Arrived, Decided
from onceflow.stream.content import NO_EVENT, NO_RECORD, RUN_BEGUN, Ends, Finished, Input, Outgoing
from onceflow.stream.letters import CLOUDEVENTS_JSON, Letters


def ends_of(decided: Decided, letters: Letters, tenant: str, inbox: Input | None, now_ms: int) -> Ends:
    """All that is to be committed. `inbox`: of the tenant's slot; None: it is lost, with what its runs led to."""
    ends = Ends()
    for together in decided.ended_at_once:
        ends.extend(letters.completions(together, now_ms))
    ends.extend(letters.completion(ended, now_ms) for ended in decided.ended if not ended.segments)
    if inbox is None:
        return ends
    begun: dict[Input, list[Arrived]] = {}
    for arrived in decided.begun:
        begun.setdefault(arrived.source, []).append(arrived)
    for source, events in begun.items():
        assert source.grant is inbox.grant  # a lane decides nothing for a slot that was lost
        size = sum([event.size for event in events])
        ends.append(Finished(source, [event.offset for event in events], RUN_BEGUN, size))
    outgoing = [letters.parked(arrived, parked) for arrived, parked in decided.parked]
    for noted in decided.noted:
        if noted.offset != NO_OFFSET:
            ends.append(Finished(noted.source, (noted.offset,), NO_EVENT, noted.size))
        if noted.unclaimed is not None:
            outgoing.append(letters.unclaimed(noted.unclaimed, inbox, tenant))
    if decided.ledger or outgoing:
        ends.append(_of_runs(decided, letters, tenant, inbox, outgoing, now_ms))
    return ends


def _of_runs(
    decided: Decided, letters: Letters, tenant: str, inbox: Input, outgoing: list[Outgoing], now_ms: int
) -> Finished:
    """What runs led to that the ledger holds, with dead letters (`outgoing`) that are written already."""
    completions: list[bytes] = []
    seen: list[bytes] = []
    identities: list[tuple[bytes, bytes]] = []
    for ended in decided.ended:
        if not ended.segments:
            continue
        arrived = ended.arrived
        value, letter = letters.outcome(ended, now_ms)
        completions.append(value)
        seen.append(arrived.seen)
        if arrived.identity is not None:
            identities.append((arrived.identity, arrived.seen))
        if letter is not None:
            outgoing.append(letter)
    if completions:
        topic, slot = letters.completions_topic, inbox.grant.slot
        outgoing.append(Outgoing(topic, slot, tenant, completions, CLOUDEVENTS_JSON))
    return Finished(inbox, (), NO_RECORD, 0, outgoing, seen, identities, decided.ledger, decided.calls)
