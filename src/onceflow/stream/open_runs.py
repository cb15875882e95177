"""The runs that the ledger holds of a cell's slots: how they go on, what they may read there, and when they are due."""

import heapq
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from onceflow.agents.agent import Routes
from onceflow.agents.deciding import ends_by_ms
from onceflow.agents.happenings import Arrived, Due, Happening, Resumed, Sleeping
from onceflow.agents.journal import NUMBER_BYTES, OpenRun, open_runs, run_prefix, runs_of
from onceflow.agents.order import in_turn
from onceflow.agents.shared import Shared, decode_shared
from onceflow.agents.signals import Kept, decode_kept
from onceflow.event import home_slot
from onceflow.state.ledger import Change, Records, group_of
from onceflow.state.seen import Judge, identity_key, seen_key, tenant_prefix
from onceflow.stream.content import Grant, Input
from onceflow.stream.news import Ready

DUE_MAX = 10_000  # times that are held before those of runs that have ended are looked for

log = logging.getLogger(__name__)


class OpenRuns:
    """See above. Worker's thread. `inbox_of`: the inbox of a grant, None if the slot is not served (any more)."""

    def __init__(
        self,
        records: Records,
        routes: Routes,
        judge: Judge,
        slots: int,
        inbox_of: Callable[[Grant], Input | None],
        *,
        with_identity: bool,
    ) -> None:
        self.records = records
        self._routes = routes
        self._judge = judge
        self._slots = slots
        self.inbox_of = inbox_of
        self._with_identity = with_identity
        self._due: list[tuple[int, str, Due]] = []
        self._due_max = DUE_MAX
        self.failed: set[bytes] = set()  # what the Kafka keys of failed runs that are kept begin with

    def memory(self, tenant: str) -> "TenantMemory":
        """What a tenant's lane may read and write."""
        return TenantMemory(self, tenant, home_slot(tenant, self._slots))

    def resume(self, ready: Ready) -> Iterator[tuple[str, Happening]]:
        """Go on with the runs of a slot; their keys are known from before its first event on."""
        inbox = next(input for input in ready.inputs if input.is_inbox)
        without_agent = 0
        for each in ready.unreadable:
            each.report()
            self._judge.hold(seen_key(tenant_prefix(inbox.grant.slot, each.tenant), each.key), None)
        for saved, goes_on in in_turn(ready.runs):
            arrived = self.arrived(saved, inbox)
            without_agent += isinstance(arrived, str)
            if isinstance(arrived, str) or not goes_on:
                yield saved.tenant, Sleeping(saved.key, inbox, saved.begun.line, saved.begun.turn)
                due_ms = 0 if isinstance(arrived, str) else ends_by_ms(arrived, saved.journal)
                if saved.parked and due_ms:
                    self.plan(saved.tenant, Due(saved.key), due_ms)
            else:
                yield saved.tenant, Resumed(arrived)
        for tenant, record, until_ms in ready.kept:
            self.plan(tenant, Due(b"", record), until_ms)
        if without_agent:
            log.warning(
                "runs wait for the version of their agent that they began with: list it in the flow again",
                extra={"slot": ready.grant.slot, "runs": without_agent},
            )

    def arrived(self, saved: OpenRun, inbox: Input) -> Arrived | str:
        """The event of an open run; why it cannot go on here."""
        begun = saved.begun
        prefix = tenant_prefix(inbox.grant.slot, saved.tenant)
        seen, identity = seen_key(prefix, saved.key), None
        if self._with_identity and not begun.root:
            identity = identity_key(prefix, begun.incoming.source, begun.incoming.id)
        self._judge.hold(seen, identity)
        agent = self._routes.pinned(begun.agent, begun.version)
        if agent is None:
            return f"its agent {begun.agent} version {begun.version} is not listed in the flow"
        return Arrived.again(saved, inbox, agent, seen, identity)

    def plan(self, tenant: str, due: Due, due_ms: int) -> None:
        """Tell the tenant's lane at this time."""
        heapq.heappush(self._due, (due_ms, tenant, due))
        if len(self._due) > self._due_max:
            self._tidy()
        if due.record.partition(b"\0")[2][:1] == b"r":
            self.failed.add(due.record)

    def _tidy(self) -> None:
        """Drop the times of runs that have ended: a deadline may be days away."""
        self._due = [each for each in self._due if not each[2].key or self._is_open(each[1], each[2].key)]
        heapq.heapify(self._due)
        self._due_max = max(DUE_MAX, 2 * len(self._due))

    def _is_open(self, tenant: str, key: bytes) -> bool:
        return self._judge.holds(seen_key(tenant_prefix(home_slot(tenant, self._slots), tenant), key))

    def forget(self, slots: Iterable[int]) -> None:
        """Slots are lost: their next owner tells their lanes."""
        lost = set(slots)
        self._due = [due for due in self._due if home_slot(due[1], self._slots) not in lost]
        heapq.heapify(self._due)
        self.failed = {
            prefix
            for prefix in self.failed
            if home_slot(prefix.partition(b"\0")[0].decode(), self._slots) not in lost
        }

    def due(self, now_ms: int, served: Callable[[str], bool]) -> list[tuple[str, Due]]:
        """What is due; of tenants that this cell does not serve any more, nothing."""
        found = []
        while self._due and self._due[0][0] <= now_ms:
            _, tenant, due = heapq.heappop(self._due)
            if served(tenant):
                found.append((tenant, due))
        return found


class TenantMemory:
    """What the ledger holds of one tenant: no other's can be reached through it."""

    def __init__(self, runs: OpenRuns, tenant: str, slot: int) -> None:
        self._runs, self._tenant, self._slot = runs, tenant, slot
        self._group = group_of(slot, tenant.encode())

    def run(self, key: bytes, inbox: Any) -> Arrived | str:
        """An open run, to go on with; or why it cannot."""
        found = open_runs(self._runs.records.scan(self._slot, run_prefix(self._tenant, key)))
        return self._runs.arrived(found[0], inbox) if found else "the ledger does not hold it"

    def inbox(self, source: Any) -> Any:
        """The inbox of the slot that a source belongs to."""
        return self._runs.inbox_of(source.grant)

    def signals(self, prefix: bytes) -> list[tuple[bytes, Kept]]:
        """The signals whose Kafka keys begin with `prefix`."""
        found = self._runs.records.scan(self._slot, prefix)
        return [(key, decode_kept(value)) for key, value in found]

    def shared(self, key: bytes) -> Shared | None:
        """What is known of the call of scope `tenant` with this Kafka key."""
        found = self._runs.records.scan(self._slot, key)
        return decode_shared(found[0][1]) if found else None

    def failed(self, key: bytes) -> OpenRun | None:
        """What is kept of a run that has failed. Asked of each run that begins: the disk isn't, if there is nothing."""
        prefix = run_prefix(self._tenant, key)
        if prefix not in self._runs.failed:
            return None
        found = runs_of(self._runs.records.scan(self._slot, prefix))
        return found[0] if found and found[0].failed else None

    def put(self, change: Change) -> None:
        """Take note of a change that was decided."""
        self._runs.records.put(self._group, change)
        key, value = change
        if value is None and self._runs.failed:
            self._runs.failed.discard(key[:-NUMBER_BYTES])
