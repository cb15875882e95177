"""What a lane's decisions lead to, put together: what of one tenant is to be committed, after one look at it.

A run that the ledger holds has no record of its own any more. What such runs lead to is one Finished of their slot's
inbox, however many they are: changes of the ledger in the order in which they were decided, completions, dead letters,
and the barriers that wait for all that.
"""

from onceflow.agents.happenings import NO_OFFSET, Arrived, Ended, Noted, Written
from onceflow.stream.content import (
    NO_EVENT,
    NO_RECORD,
    RUN_BEGUN,
    Change,
    Ends,
    Finished,
    Input,
    Outgoing,
)
from onceflow.stream.letters import CLOUDEVENTS_JSON, Letters


class Gathered:
    """Of one tenant, whose slot's inbox is `inbox`."""

    def __init__(self, letters: Letters, inbox: Input, now_ms: int) -> None:
        self.inbox, self._letters, self._now_ms = inbox, letters, now_ms
        self._tenant = ""
        self._begun: dict[Input, list[Arrived]] = {}
        self._noted: list[Noted] = []
        self._completions: list[bytes] = []
        self._dead: list[Outgoing] = []
        self._seen: list[bytes] = []
        self._identities: list[tuple[bytes, bytes]] = []
        self._ledger: list[Change] = []
        self._barriers: list[tuple[str, object, int]] = []

    def written(self, written: Written) -> None:
        """A segment of a run's journal. The first ends the event's record."""
        arrived, record = written.arrived, written.record
        self._ledger.append((written.key, written.value))
        if record.number == 0:
            self._begun.setdefault(arrived.source, []).append(arrived)
        if record.barrier:
            self._barriers.append((arrived.incoming.tenant, record.run, record.number))
        if written.parked is not None:
            self._dead.append(self._letters.parked(written, written.parked))

    def ended(self, ended: Ended) -> None:
        """The end of a run that the ledger holds."""
        arrived = ended.arrived
        value, letter = self._letters.outcome(ended, self._now_ms)
        self._tenant = arrived.incoming.tenant
        self._completions.append(value)
        if letter is not None:
            self._dead.append(letter)
        self._seen.append(arrived.seen)
        if arrived.identity is not None:
            self._identities.append((arrived.identity, arrived.seen))
        self._ledger += ended.changes

    def noted(self, noted: Noted) -> None:
        """A signal or a command, or nothing but a change of the ledger."""
        self._ledger += noted.records
        if noted.offset != NO_OFFSET:
            self._noted.append(noted)
        if noted.unclaimed is not None:
            self._dead.append(self._letters.unclaimed(noted.unclaimed, self.inbox, noted.tenant))

    def ends(self) -> Ends:
        """All of it."""
        ends = Ends()
        for source, begun in self._begun.items():
            size = sum([len(arrived.value or b"") for arrived in begun])
            ends.append(Finished(source, [arrived.offset for arrived in begun], RUN_BEGUN, size))
        ends.extend(Finished(n.source, (n.offset,), NO_EVENT, n.size) for n in self._noted)
        outgoing = self._dead
        if self._completions:
            slot, topic = self.inbox.grant.slot, self._letters.completions_topic
            outgoing.append(Outgoing(topic, slot, self._tenant, self._completions, CLOUDEVENTS_JSON))
        if self._ledger or outgoing:
            ends.append(
                Finished(
                    self.inbox,
                    (),
                    NO_RECORD,
                    0,
                    outgoing,
                    self._seen,
                    self._identities,
                    self._ledger,
                    self._barriers,
                )
            )
        return ends
