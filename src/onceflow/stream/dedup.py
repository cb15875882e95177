"""Dedup, the second operator: events get their keys and verdicts; only firsts go on to become runs."""

from collections.abc import Iterable
from typing import NamedTuple

from onceflow.agents.happenings import Arrivals, Arrived, Happening
from onceflow.config import Dedup as Settings
from onceflow.event import idempotency_key, idempotency_keys
from onceflow.state.seen import Judge, Verdict, identity_key, seen_key, tenant_prefix
from onceflow.stream.content import Ends, Finished, Work
from onceflow.stream.letters import Letters
from onceflow.stream.metrics import Metrics


class _Named(NamedTuple):
    """Events with their keys, whose verdicts come next."""

    tenant: str
    events: Arrivals | Arrived
    number: int  # of them


class Dedup:
    """See above. Worker's thread only."""

    def __init__(self, judge: Judge, letters: Letters, metrics: Metrics, settings: Settings) -> None:
        self._judge, self._letters, self._counters = judge, letters, metrics.events
        self._content = settings.content
        self._rejects = settings.conflict == "reject"

    def judge(self, batches: Iterable[tuple[str, Work | Ends]]) -> list[tuple[str, Work | Ends]]:
        """Let firsts through, and all that is no event; end here what is a duplicate or a conflict."""
        ends = Ends()
        work: dict[str, list[Happening]] = {}
        named: list[_Named] = []
        runs: list[bytes] = []
        times_ms: list[int] = []
        identities: list[bytes | None] = []
        for tenant, batch in batches:
            if type(batch) is Ends:
                ends += batch
                continue
            assert type(batch) is Work
            if not batch.happenings:  # its lane is asked whether it is idle
                work.setdefault(tenant, [])
            for happening in batch.happenings:
                if type(happening) is Arrivals:
                    if happening.source.grant.live:
                        self._name_all(happening, tenant_prefix(happening.source.grant.slot, tenant))
                        named.append(_Named(tenant, happening, len(happening)))
                        runs += happening.seen
                        times_ms += happening.times_ms
                        identities += happening.identities
                elif type(happening) is Arrived:
                    if happening.source.grant.live:
                        self._name(happening, tenant_prefix(happening.source.grant.slot, tenant))
                        named.append(_Named(tenant, happening, 1))
                        runs.append(happening.seen)
                        # A redrive is compared with all that the view knows: asked for twice, it is done once.
                        times_ms.append(0 if happening.redrive else happening.time_ms)
                        if self._rejects:
                            identities.append(happening.identity)
                else:
                    work.setdefault(tenant, []).append(happening)
        if named:
            self._let_through(named, self._judge.verdicts(runs, times_ms, identities), work, ends)
        judged: list[tuple[str, Work | Ends]] = [(t, Work(t, happenings)) for t, happenings in work.items()]
        if ends:
            judged.append(("", ends))
        return judged

    def _name_all(self, arrivals: Arrivals, prefix: bytes) -> None:
        incomings = arrivals.incomings
        arrivals.keys = idempotency_keys(incomings, self._content)
        begin = seen_key(prefix, b"")
        arrivals.seen = [begin + key for key in arrivals.keys]
        if self._rejects:
            arrivals.identities = [identity_key(prefix, i.source, i.id) for i in incomings]

    def _name(self, event: Arrived, prefix: bytes) -> None:
        incoming = event.incoming
        if event.redrive is not None:  # source and id are those of the run that failed
            event.key = event.redrive.key
        else:
            event.key = idempotency_key(
                incoming.tenant, incoming.source, incoming.id, incoming.data, self._content
            )
            if self._rejects:
                event.identity = identity_key(prefix, incoming.source, incoming.id)
        event.seen = seen_key(prefix, event.key)

    def _let_through(
        self, named: list[_Named], verdicts: list[Verdict], work: dict[str, list[Happening]], ends: Ends
    ) -> None:
        """Firsts go to `work`, in the order of their tenants' events; the others' ends to `ends`."""
        for verdict in Verdict:
            self._counters[verdict].inc(verdicts.count(verdict))
        start = 0
        for tenant, events, number in named:
            judged, start = verdicts[start : start + number], start + number
            firsts = events if judged.count(Verdict.FIRST) == number else self._firsts(events, judged, ends)
            if firsts is not None:
                if (known := work.get(tenant)) is None:
                    work[tenant] = [firsts]
                else:
                    known.append(firsts)

    def _firsts(
        self, events: Arrivals | Arrived, verdicts: list[Verdict], ends: Ends
    ) -> Arrivals | Arrived | None:
        """Those that are left; the others' ends go to `ends`."""
        if type(events) is Arrived:
            if verdicts[0] is Verdict.DUPLICATE:
                ends.append(Finished(events.source, (events.offset,), "duplicate", events.size))
            else:
                ends.append(self._letters.conflict(events))
            return None
        assert type(events) is Arrivals
        if Verdict.CONFLICT in verdicts:
            at = [index for index, verdict in enumerate(verdicts) if verdict is Verdict.CONFLICT]
            ends.extend(self._letters.conflict(events.one(index)) for index in at)
            events.take_out(at)
            verdicts = [verdict for verdict in verdicts if verdict is not Verdict.CONFLICT]
        at = [index for index, verdict in enumerate(verdicts) if verdict is Verdict.DUPLICATE]
        if at:
            copies = events.take_out(at)
            ends.append(Finished(copies.source, copies.offsets, "duplicate", copies.size))
        return events if len(events) else None
