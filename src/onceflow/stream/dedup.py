"""Dedup, the second operator: events get their keys and verdicts; only firsts go on to their lanes."""

from collections.abc import Iterable, Iterator

from onceflow.agents.happenings import Arrived, Happening
from onceflow.config import Dedup as Settings
from onceflow.event import home_slot
from onceflow.state.seen import Judge, Verdict, tenant_prefix
from onceflow.stream.content import Ends, Finished, Work
from onceflow.stream.letters import Letters, name_events
from onceflow.stream.metrics import Metrics


class Dedup:
    """See above. Worker's thread only."""

    def __init__(
        self, judge: Judge, letters: Letters, metrics: Metrics, slots: int, settings: Settings
    ) -> None:
        self._judge, self._letters, self._counters = judge, letters, metrics.events
        self._slots = slots
        self._content = settings.content
        self._rejects = settings.conflict == "reject"

    def judge(self, batches: Iterable[tuple[str, Work | Ends]]) -> list[tuple[str, Work | Ends]]:
        """Let firsts through, and all that is no event; end here what is a duplicate or a conflict."""
        ends = Ends()
        judged: list[tuple[str, Work | Ends]] = []
        arrived: list[tuple[str, list[Arrived]]] = []
        runs: list[bytes] = []
        for tenant, batch in batches:
            if type(batch) is Ends:
                ends += batch
                continue
            assert type(batch) is Work
            events = [each for each in batch.happenings if type(each) is Arrived and each.source.grant.live]
            if len(events) < len(batch.happenings):
                rest = [each for each in batch.happenings if type(each) is not Arrived]
                judged.append((tenant, Work(tenant, rest)))
            if events:
                prefix = tenant_prefix(home_slot(tenant, self._slots), tenant)
                runs += name_events(events, prefix, self._content, self._rejects)
                arrived.append((tenant, events))
        if arrived:
            verdicts = self._verdicts_of([event for _, events in arrived for event in events], runs)
            for tenant, events in arrived:
                firsts = self._firsts(events, [next(verdicts) for _ in events], ends)
                if firsts:
                    judged.append((tenant, Work(tenant, firsts)))
        if ends:
            judged.append(("", ends))
        return judged

    def _verdicts_of(self, events: list[Arrived], runs: list[bytes]) -> Iterator[Verdict]:
        # A redrive is compared with all that the view knows: asked for twice, it is done once.
        times_ms = [0 if event.redrive else event.time_ms for event in events]
        identities = [event.identity for event in events] if self._rejects else ()
        verdicts = self._judge.verdicts(runs, times_ms, identities)
        for verdict in Verdict:
            self._counters[verdict].inc(verdicts.count(verdict))
        return iter(verdicts)

    def _firsts(self, events: list[Arrived], verdicts: list[Verdict], ends: Ends) -> list[Happening]:
        """The firsts of one tenant's events; the others' ends go to `ends`."""
        if verdicts.count(Verdict.FIRST) == len(events):
            return [*events]
        firsts: list[Happening] = []
        for event, verdict in zip(events, verdicts, strict=True):
            if verdict is Verdict.FIRST:
                firsts.append(event)
            elif verdict is Verdict.DUPLICATE:
                ends.append(Finished(event.source, event.offset, "duplicate", len(event.value or b"")))
            else:
                ends.append(self._letters.conflict(event))
        return firsts
