"""The lanes of a cell: made when a tenant's run needs one, given what happens to it, dropped when it is idle.

Bytewax asks for a tenant's work in its operator. While the dataflow stands still (slots go, or the cell ends) the lanes
are given their answers here, and what they decide goes straight to the outbox.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from onceflow.agents.at_once import Beginning, begin_without_lane
from onceflow.agents.calling import Answered
from onceflow.agents.capacity import Capacity
from onceflow.agents.executor import Executor
from onceflow.agents.happenings import Decided, Happening, Lost
from onceflow.agents.lane import Lane
from onceflow.agents.snapshot import snapshot_tenant
from onceflow.event import home_slot
from onceflow.stream.content import Ends, Grant, Input, Work
from onceflow.stream.ends import ends_of
from onceflow.stream.flags import Flags
from onceflow.stream.leaving import leave
from onceflow.stream.letters import Letters
from onceflow.stream.open_runs import OpenRuns
from onceflow.stream.standing import Standing


class Lanes:
    """See above. Worker's thread only. `inbox`: of a tenant's slot, None if it is not served (any more)."""

    def __init__(
        self,
        capacity: Capacity,
        executor: Executor,
        open_runs: OpenRuns,
        letters: Letters,
        flags: Flags,
        standing: Standing,
        slots: int,
        *,
        inbox: Callable[[str], Input | None],
        put: Callable[[Ends], None],
    ) -> None:
        self.by_tenant: dict[str, Lane] = {}
        self._capacity = capacity
        self._executor = executor
        self._open_runs = open_runs
        self._letters = letters
        self._flags = flags
        self._standing = standing
        self._slots = slots
        self._inbox = inbox
        self._put = put
        self._to_tell: dict[str, list[Happening]] = {}
        self._answered: list[Answered] = []  # fetched, and not yet given to their runs

    # --- what the operator of the dataflow does ---

    def of(self, tenant: str, snapshot: bytes | None = None) -> Lane:
        """The tenant's lane, made when it is asked for."""
        lane = self.by_tenant.get(tenant)
        if lane is None:
            memory = self._open_runs.memory(tenant)
            calls = (self._executor.start, self._executor.abandon)
            lane = Lane(
                tenant, self._capacity, *calls, memory, snapshot, self._flags, self._letters.values.written
            )
            self.by_tenant[tenant] = lane
        return lane

    def restored(self, snapshot: bytes) -> Lane | None:
        """The lane that left this snapshot; None if it is of another format."""
        tenant = snapshot_tenant(snapshot)
        return None if tenant is None else self.of(tenant, snapshot)

    def work(self, lane: Lane | None, batches: Sequence[Work]) -> tuple[Ends, Lane | None]:
        """Let a lane work on what happened; the ends of its tenant's runs, and the lane, if there is (still) one."""
        tenant, now_ms = batches[0].tenant, int(time.time() * 1000)
        self._standing.at(tenant)
        happenings = [happening for batch in batches for happening in batch.happenings]
        decided, inbox = Decided(), None
        left: Sequence[Happening | Beginning] = happenings
        if lane is None:
            left = begin_without_lane(tenant, happenings, self._capacity, self._flags, now_ms, decided)
        if left:
            lane = lane or self.of(tenant)
            inbox = self._inbox(tenant)
            decided = lane.take(left, now_ms, decided)
            self._plan(tenant, decided)
        ends = ends_of(decided, self._letters, tenant, inbox, now_ms)
        if lane is not None and lane.idle:
            del self.by_tenant[tenant]
            lane = None
        self._standing.at("")
        return ends, lane

    # --- what they are told ---

    def to_tell(self) -> dict[str, list[Happening]]:
        """What lanes are to be told beside answers and events, by tenant, since this was last asked."""
        told, self._to_tell = self._to_tell, {}
        return told

    def fetch_answers(self) -> bool:
        """Fetch what the executor has answered; whether anything has to be given to its run."""
        self._answered += self._executor.answers()
        return bool(self._answered)

    def answers(self) -> dict[str, list[Happening]]:
        """What was fetched, by tenant."""
        found: dict[str, list[Happening]] = {}
        answered, self._answered = self._answered, []
        for each in answered:
            found.setdefault(each.run.token.incoming.tenant, []).append(each)
        return found

    def lost(self, grants: Iterable[Grant]) -> None:
        """Slots are lost, and their lanes are to be told."""
        by_slot = {grant.slot: grant for grant in grants}
        for tenant in self.by_tenant:
            grant = by_slot.get(home_slot(tenant, self._slots))
            if grant is not None:
                self._to_tell.setdefault(tenant, []).append(Lost(grant))

    def waiting(self, tenant: str) -> int:
        """How many of a tenant's events wait for a turn."""
        return 0 if (lane := self.by_tenant.get(tenant)) is None else lane.waiting

    # --- while the dataflow stands still: what was emitted before has reached the outbox ---

    def leave(self, slots: Iterable[int], patience_s: float, wait: Callable[[], None]) -> None:
        """See `leaving`: of these slots. From within a poll, or at the end."""
        going = set(slots)
        lanes = [lane for tenant, lane in self.by_tenant.items() if home_slot(tenant, self._slots) in going]
        leave(lanes, patience_s, self._take_answers, wait, self._decided)

    def _take_answers(self) -> None:
        """Give the runs of all tenants their answers."""
        self.fetch_answers()
        for tenant, answered in self.answers().items():
            if (lane := self.by_tenant.get(tenant)) is not None:
                self._standing.at(tenant)
                self._decided(tenant, lane.take(answered, int(time.time() * 1000)))
                self._standing.at("")
                self._to_tell.setdefault(tenant, [])  # it may be idle now, and is asked so

    def _decided(self, tenant: str, decided: Decided) -> None:
        self._plan(tenant, decided)
        if ends := ends_of(decided, self._letters, tenant, self._inbox(tenant), int(time.time() * 1000)):
            self._put(ends)

    def _plan(self, tenant: str, decided: Decided) -> None:
        """What the lane is to be told, and when."""
        if decided.looked:  # by then the ledger's records of this batch are known
            self._to_tell.setdefault(tenant, []).extend(decided.looked)
        for due, due_ms in decided.due:
            if due_ms:
                self._open_runs.plan(tenant, due, due_ms)
