"""Everything that lives while a cell runs, put together; and what the operators of the dataflow do with it.

Threads: the worker (Bytewax's; it alone touches the consumer, the lanes and dedup's table), the outbox, the
grants, and the executor of calls. They hand values to each other through queues, and ring the worker's
doorbell.
"""

import logging
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from onceflow.agents.agent import Routes
from onceflow.agents.capacity import Capacity
from onceflow.agents.executor import Executor
from onceflow.agents.gates import allowance_of
from onceflow.agents.happenings import Happening, Turn
from onceflow.config import Settings
from onceflow.errors import Fault
from onceflow.event import home_slot
from onceflow.state.ledger import Ledger, Records
from onceflow.state.seen import BrokerClock, Judge, Seen
from onceflow.state.store import Store
from onceflow.stream.after_commit import AfterCommit
from onceflow.stream.cell import Cell, record_error
from onceflow.stream.cluster import Cluster, answers
from onceflow.stream.content import Committed, Ends, Grant, Input, Pair, Reads, Work
from onceflow.stream.dedup import Dedup
from onceflow.stream.doorbell import Doorbell
from onceflow.stream.flags import Flags
from onceflow.stream.grants import Grants
from onceflow.stream.hearing import Hearing
from onceflow.stream.identity import Identity, take_identity
from onceflow.stream.inlet import Reading
from onceflow.stream.lanes import Lanes
from onceflow.stream.letters import Letters
from onceflow.stream.metrics import Metrics, count_commit, count_paused
from onceflow.stream.open_runs import OpenRuns
from onceflow.stream.outbox import Outbox
from onceflow.stream.rejoining import Rejoining
from onceflow.stream.room import Room
from onceflow.stream.settling import transactional_id
from onceflow.stream.standing import Standing
from onceflow.stream.topics import Limits, Names, existing_slots, limits_of
from onceflow.stream.transaction import FatalError, Transactions, begin_producer
from onceflow.stream.views import Views
from onceflow.stream.watch import open_watch

log = logging.getLogger(__name__)

CALLS_S = 3.0  # how long a revoke may wait for calls that nobody may repeat; nothing is read meanwhile
REVOKE_S = 4.0  # how long a revoke may wait for what is pending to be committed; less than a session
_IDLE_WAIT_S = 0.004
_FLUSH_STEP_S = 0.5


class Runtime:
    """One run of a cell: `open`, `next_batch` and the operators' work until `stopping` has led to its end, `close`."""

    def __init__(
        self, flow: str, settings: Settings, routes: Routes, metrics: Metrics, recovery: Path | None
    ) -> None:
        self.flow = flow
        # Wherever a tool has the process work, these stay where they are.
        places = {"state_dir": settings.state_dir.absolute(), "flags": settings.flags.absolute()}
        self._settings = settings = settings.model_copy(update=places)
        self._routes = routes
        self._metrics = metrics
        self.recovery = recovery  # set before `open`; Bytewax' recovery directory, if there is one
        self._identity: Identity | None = None
        self._is_open = False
        self._closed = False
        self.ended = False  # by StopIteration, not by an error
        self._stop_by: float | None = None
        self.stopping = False
        self.capacity = Capacity(
            runs_per_lane=settings.limits.runs_per_lane, runs_per_cell=settings.limits.runs_per_cell
        )
        self._flags = Flags(settings.flags)
        self._doorbell = Doorbell()
        self._standing = Standing(lambda: bytes(self.capacity.watch.names.computing))
        self._passed: list[Reads] = []
        self._gauges_at = 0.0
        self._rejoining = Rejoining(self._kafka_answers)

    # --- life ---

    def open(self) -> None:
        """Take the cell's identity and start its parts; waits for Kafka. Later calls change nothing."""
        if self._is_open:
            return
        settings = self._settings
        self._flags.begin()
        name = self.identify()
        cluster = Cluster(settings.kafka.properties())
        slots = cluster.patiently(
            lambda: existing_slots(self.flow, cluster, settings), stop=lambda: self.stopping
        )
        self._slots = slots
        names = self._names = Names.of(self.flow)
        limits = cluster.patiently(lambda: limits_of(cluster, names), stop=lambda: self.stopping)
        self.executor = Executor(self._doorbell.ring, allowance_of(settings.limits))
        clock = BrokerClock()
        limit, keeps_keys = settings.limits.value_bytes, settings.events.needs_key
        self._letters = Letters(self.flow, names, limits.sizes, limit, keeps_keys=keeps_keys)
        self._open_views(clock, limits.span_ms)
        self._open_outbox(name, limits, clock)
        self._grants = Grants(
            self.flow,
            name,
            slots,
            cluster,
            settings,
            Views(names, self._seen, self._ledger, clock, limits.ids, limits.tombstones_ms),
            self.outbox,
            wake=self._doorbell.ring,
            remaining=self._metrics.catchup_remaining.set,
        )
        self._cell = Cell(
            self.flow, name, settings, granted=self._granted, revoking=self._revoking, lost=self._lost
        )
        self.lanes = Lanes(
            self.capacity,
            self.executor,
            self._open_runs,
            self._letters,
            self._flags,
            self._standing,
            slots,
            inbox=self._inbox,
            put=self.outbox.put,
        )
        self._hearing = Hearing(self._cell, self._open_runs, self.lanes.by_tenant, slots)
        self._room = Room(self._cell, settings.limits, self.lanes.waiting)
        self._reading = Reading(self._cell, settings, slots, self._routes, self._letters, self._room)
        self.capacity.watch = open_watch(settings.state_dir)  # last: nothing is under way before
        self._standing.start()
        self._is_open = True
        log.info("cell started", extra={"flow": self.flow, "cell_name": name, "slots": slots})

    def _open_views(self, clock: BrokerClock, span_ms: int) -> None:
        """What is known of finished and of open runs, and who asks."""
        directory, dedup = self._settings.state_dir, self._settings.dedup
        window_ms = int(dedup.window.total_seconds() * 1000)
        self._rejects = dedup.conflict == "reject"
        self._seen = Seen(
            Store.open(directory / "seen"), window_ms=window_ms, span_ms=span_ms, identities=self._rejects
        )
        self._ledger = Ledger(Store.open(directory / "ledger"))
        self._judge = Judge(self._seen, clock)
        self._records = Records(self._ledger)
        self._open_runs = OpenRuns(
            self._records, self._routes, self._judge, self._slots, self._inbox_of, with_identity=self._rejects
        )
        self._dedup = Dedup(self._judge, self._letters, self._metrics, dedup)

    def _open_outbox(self, name: str, limits: Limits, clock: BrokerClock) -> None:
        """What commits, as this cell; the views are open."""
        settings, names = self._settings, self._names
        timeout_s = settings.transaction_timeout.total_seconds()
        fatal = FatalError()
        of = transactional_id(self.flow, name)
        producer = begin_producer(settings, of, min(limits.sizes.values()), fatal, stop=lambda: self.stopping)
        after_commit = AfterCommit(
            names,
            limits.ids,
            self._seen,
            self._ledger,
            clock,
            send=self.executor.start,
            observe=partial(count_commit, self._metrics),
            committed=self._on_commit,
        )
        self.outbox = Outbox(
            Transactions(producer, fatal, names, timeout_s, self._kafka_answers),
            names,
            name,
            after_commit,
            commit_interval_s=settings.commit_interval.total_seconds(),
        )

    def identify(self) -> str:
        """Take the cell's identity and lock its directories; before Bytewax opens the recovery directory."""
        if self._identity is None:
            self._identity = take_identity(self._settings.state_dir, self.recovery)
        return self._identity.name

    def stop(self) -> None:
        """Ask for the end: no more events; running calls get the grace period. Safe in a signal handler."""
        self.stopping = True

    def close(self) -> None:
        """Commit what is pending and release everything. Called once all that was emitted has reached the outbox."""
        if self._closed or not self._is_open:
            return
        self._closed = True
        if not self.ended:
            return  # an error is under way
        timeout_s = self._settings.transaction_timeout.total_seconds()
        if (failure := self._flush(timeout_s)) is not None:
            # Bytewax aborts the process when something is raised here, past the hook that gives the status.
            sys.excepthook(type(failure), failure, failure.__traceback__)
        self.outbox.close(timeout_s)
        self.executor.close()
        self._standing.close()
        self._grants.close()
        self._seen.close()
        self._ledger.close()
        log.info("cell stopped")  # the directories stay locked: Bytewax has yet to write its last snapshots

    def blame_nobody(self) -> None:
        """The process ends for a reason that is no run's."""
        self.capacity.watch.names.close()

    def ready(self) -> str | None:
        """Why this cell does not serve events now; None if it does."""
        if not self._is_open:
            return "starting"
        if self.stopping:
            return "stopping"
        if not self._cell.grants:
            return "no slots granted"
        settled = {input.grant for input in list(self._cell.inputs.values())}
        missing = len(self._cell.grants) - len(settled)
        return f"{missing} slots are being settled" if missing > 0 else None

    def alive(self) -> str | None:
        """What is broken beyond this cell's own repair; None if nothing is."""
        if not self._is_open:
            return None
        failure = self.outbox.failure or self._grants.failure
        return self._standing.reason if failure is None else str(failure)

    # --- the operators' work ---

    def next_batch(self) -> list[tuple[str, Work | Ends]]:
        """What happened since the last call; raises StopIteration at the end, or the fault that ends the cell."""
        if (failure := self.outbox.failure or self._grants.failure) is not None:
            raise failure
        happenings = self.lanes.to_tell()
        answered = self.lanes.fetch_answers()
        for commit in self._room.settle():
            self._judge.committed(commit.seen, commit.identities)
            self._records.committed(commit.ledger)
        self._hearing.hear(self._grants.news(), happenings, stopping=self.stopping)
        ends = Ends()
        if self.stopping:
            self._end_soon(answered or bool(happenings))
            self._stand_by()
        else:
            for tenant in self.capacity.turns(time.monotonic()):
                happenings.setdefault(tenant, []).append(Turn())
            ends = self._poll(happenings)
            for tenant, due in self._open_runs.due(
                int(time.time() * 1000), self._serves
            ):  # after a poll: slots go in it
                happenings.setdefault(tenant, []).append(due)
        self._set_gauges()
        first = self.lanes.answers()  # those that a revoke has not given to their runs meanwhile
        for tenant, others in happenings.items():
            first.setdefault(tenant, []).extend(others)
        batch: list[tuple[str, Work | Ends]] = [(t, Work(t, list_)) for t, list_ in first.items()]
        if ends:
            batch.append(("", ends))
        if not batch:
            self._doorbell.wait(_IDLE_WAIT_S)
        return batch

    def judge(self, batches: Iterable[tuple[str, Work | Ends]]) -> list[tuple[str, Work | Ends]]:
        """Dedup."""
        return self._dedup.judge(batches)

    # --- within ---

    def _leave(self, slots: Iterable[int], patience_s: float) -> None:
        self.lanes.leave(slots, patience_s, partial(self._doorbell.wait, _IDLE_WAIT_S))

    def _flush(self, timeout_s: float) -> BaseException | None:
        """Commit what is pending; what kept it from that. Meanwhile the group is served, or it would refuse us."""
        deadline = time.monotonic() + timeout_s
        try:
            while not self.outbox.flush(_FLUSH_STEP_S):
                if self.outbox.failure is not None:
                    return self.outbox.failure
                if time.monotonic() > deadline:
                    return Fault("the last commit took too long; a restart settles it")
                self._stand_by()
        except Fault as fault:
            return fault
        return None

    def _stand_by(self) -> None:
        """Serve the group and read nothing: what is still fetched counts as unread, for nobody is told of it."""
        self._cell.pause(self._cell.inputs.values())
        for message in self._cell.poll():
            if message.error() is not None:
                record_error(self._cell, message)
        self.outbox.polled(self._cell.pair(), ())

    def _poll(self, happenings: dict[str, list[Happening]]) -> Ends:
        self._passed += self._reading.look()
        if not self._room.left():
            return Ends()
        poll = self._reading.poll()
        self.outbox.polled(self._cell.pair(), poll.reads, [*self._passed, *poll.passed])
        self._passed = []
        for tenant, arrived in poll.arrived.items():
            happenings.setdefault(tenant, []).extend(arrived)
        for tenant, lost in self.lanes.to_tell().items():  # slots that the poll took away
            happenings.setdefault(tenant, []).extend(lost)
        return poll.ends

    def _inbox_of(self, grant: Grant) -> Input | None:
        inbox = self._cell.inputs.get((self._names.inbox, grant.slot))
        return inbox if inbox is not None and inbox.grant is grant else None

    def _inbox(self, tenant: str) -> Input | None:
        return self._cell.inputs.get((self._names.inbox, home_slot(tenant, self._slots)))

    def _serves(self, tenant: str) -> bool:
        return self._inbox(tenant) is not None

    def _end_soon(self, busy: bool) -> None:
        """While stopping: raise StopIteration once no run is in flight, or the grace period is over."""
        self.capacity.closed = True
        now = time.monotonic()
        if self._stop_by is None:
            self.blame_nobody()
            grace_s = self._settings.grace.total_seconds()
            self._stop_by = now + grace_s
            log.info("stopping", extra={"runs_in_flight": self.capacity.in_flight, "grace_s": grace_s})
        if busy:
            return
        if self.capacity.in_flight > 0:
            if now < self._stop_by:
                return
            log.info(
                "grace period over; runs in flight are abandoned and begin again at the next start",
                extra={"runs_in_flight": self.capacity.in_flight},
            )
        self.ended = True
        self.executor.refuse()  # what the last commit would let them send
        self._leave(range(self._slots), 0.0)
        raise StopIteration

    def _granted(self, grants: list[Grant]) -> None:
        # The outbox must know of the grants before the background thread may claim them.
        self.outbox.polled(self._cell.pair(), ())
        if not self.stopping:  # else nobody would read what they bring
            self._grants.assigned(grants)

    def _revoking(self, pair: Pair, leaving: list[Grant]) -> None:
        for grant in leaving:
            grant.leaving = True
        self._leave([grant.slot for grant in leaving], CALLS_S)
        if not self.outbox.flush(REVOKE_S, pair):
            log.warning(
                "slots are revoked before all that was pending could be committed; it is done again elsewhere"
            )

    def _lost(self, grants: list[Grant], inputs: list[Input]) -> None:
        self._judge.forget(grant.slot for grant in grants)
        self._records.forget(grant.slot for grant in grants)
        self._open_runs.forget(grant.slot for grant in grants)
        self._room.forget(inputs)
        self.lanes.lost(grants)
        self._grants.lost(grants)

    def _on_commit(self, committed: Committed) -> None:
        self._room.committed(committed)
        self._doorbell.ring()

    def _set_gauges(self) -> None:
        now = time.monotonic()
        if now < self._gauges_at:
            return
        self._gauges_at = now + 1
        self._rejoining.check(self._cell.lost_at, now)
        metrics = self._metrics
        metrics.runs_in_flight.set(self.capacity.in_flight)
        metrics.unfinished_events.set(self._room.unfinished)
        metrics.oldest_unfinished_seconds.set(self._room.oldest_age_s)
        metrics.slots_granted.set(len(self._cell.grants))
        count_paused(metrics, self._cell.inputs.values())

    def _kafka_answers(self) -> bool:
        return answers(self._settings.kafka.properties())
