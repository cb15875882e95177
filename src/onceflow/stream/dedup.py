"""Dedup, the second operator: events get their keys and verdicts; only firsts go on to their lanes."""

from collections.abc import Iterable

from onceflow.agents.happenings import Arrived, Happening
from onceflow.config import Dedup as Settings
from onceflow.event import home_slot
from onceflow.state.seen import Judge, Verdict, tenant_prefix
from onceflow.stream.content import Ends, Finished, Work
from onceflow.stream.letters import Letters, name_event
from onceflow.stream.metrics import Metrics


class Dedup:
    """See above. Worker's thread only."""

    def __init__(
        self, judge: Judge, letters: Letters, metrics: Metrics, slots: int, settings: Settings
    ) -> None:
        self._judge, self._letters, self._verdicts = judge, letters, metrics.events
        self._slots = slots
        self._content = settings.content
        self._rejects = settings.conflict == "reject"

    def judge(self, batches: Iterable[tuple[str, Work | Ends]]) -> list[tuple[str, Work | Ends]]:
        """Let firsts through, and all that is no event; end here what is a duplicate or a conflict."""
        ends = Ends()
        work: dict[str, list[Happening]] = {}
        arrived: list[Arrived] = []
        runs: list[bytes] = []
        for tenant, batch in batches:
            if type(batch) is Ends:
                ends += batch
                continue
            assert type(batch) is Work
            prefix = tenant_prefix(home_slot(tenant, self._slots), tenant)
            for happening in batch.happenings:
                if type(happening) is not Arrived:
                    work.setdefault(tenant, []).append(happening)
                elif happening.source.grant.live:
                    arrived.append(happening)
                    runs.append(name_event(happening, prefix, self._content, self._rejects))
        if arrived:
            self._let_through(arrived, runs, work, ends)
        judged: list[tuple[str, Work | Ends]] = [(t, Work(t, happenings)) for t, happenings in work.items()]
        if ends:
            judged.append(("", ends))
        return judged

    def _let_through(
        self, arrived: list[Arrived], runs: list[bytes], work: dict[str, list[Happening]], ends: Ends
    ) -> None:
        # A redrive is compared with all that the view knows: asked for twice, it is done once.
        times_ms = [0 if event.redrive else event.time_ms for event in arrived]
        identities = [event.identity for event in arrived] if self._rejects else ()
        verdicts = self._judge.verdicts(runs, times_ms, identities)
        for event, verdict in zip(arrived, verdicts, strict=True):
            if verdict is Verdict.FIRST:
                tenant = event.incoming.tenant
                if (known := work.get(tenant)) is None:
                    work[tenant] = [event]
                else:
                    known.append(event)
            elif verdict is Verdict.DUPLICATE:
                ends.append(Finished(event.source, event.offset, "duplicate", len(event.value or b"")))
            else:
                ends.append(self._letters.conflict(event))
        for verdict in Verdict:
            self._verdicts[verdict].inc(verdicts.count(verdict))
