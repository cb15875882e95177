"""Grants: what happens between "this slot is assigned to us" and the first event read from it.

In this order, in the background, the slot's inputs paused meanwhile, other slots running:
1. write nothing yet; read F.progress of the slot up to the high watermark seen now, and wait until that of
   F.completions is stable: until the former owners' transactions are settled. A dead cell's is ended
   by `init_transactions` with its transactional id, unless the group still lists that cell (a live one is
   never fenced so);
2. commit a progress record that names this cell;
3. bring the views up to date from where they stand;
4. start each input at its lowest unfinished record.

The same thread looks now and then how what the slots read has changed (`slot_inputs`).
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from queue import Empty, SimpleQueue
from threading import Thread

from confluent_kafka import Consumer, KafkaException

from onceflow.agents.journal import OpenRun, Unreadable, failed_runs, read_runs, run_by_run
from onceflow.agents.shared import remembered
from onceflow.agents.signals import kept_signals
from onceflow.config import Settings
from onceflow.stream.catchup import read_to_end
from onceflow.stream.cluster import RECONNECT, Cluster, KafkaAway, Partition, client_log
from onceflow.stream.content import Grant
from onceflow.stream.news import KeptUntil, News, Ready
from onceflow.stream.outbox import Claim, Outbox
from onceflow.stream.progress import Progress
from onceflow.stream.settling import Settling
from onceflow.stream.slot_inputs import SlotInputs
from onceflow.stream.topics import Names
from onceflow.stream.transaction import fault
from onceflow.stream.views import Views

log = logging.getLogger(__name__)

CLEAN_RECORDS = 10_000  # finished records of an inbox that make deleting them worth a request
_LINE_EVERY_S = 5.0
_CLAIM_S = 0.1  # between two looks at whether a claim is still wanted


class Grants:
    """The background thread. `assigned`, `lost` and `news` are called by the worker."""

    def __init__(
        self,
        flow: str,
        cell: str,
        slots: int,
        cluster: Cluster,
        settings: Settings,
        views: Views,
        outbox: Outbox,
        *,
        wake: Callable[[], None],
        remaining: Callable[[float], None],
    ) -> None:
        self._flow = flow
        self._names = Names.of(flow)
        self._cell = cell
        self._cluster = cluster
        self._settings = settings
        self._views = views
        self._outbox = outbox
        self._wake = wake
        self._remaining = remaining
        self._tasks: SimpleQueue[tuple[str, list[Grant]]] = SimpleQueue()
        self._news: SimpleQueue[News] = SimpleQueue()
        self._inputs = SlotInputs(flow, slots, cluster, settings, outbox.track)
        self._cleaned: dict[int, int] = {}
        self._reader: Consumer | None = None
        self._closing = False
        self.failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="onceflow-grants", daemon=True)
        self._thread.start()

    # --- the worker's side ---

    def assigned(self, grants: list[Grant]) -> None:
        """Slots were assigned: settle their grants."""
        self._tasks.put(("assigned", grants))

    def lost(self, grants: list[Grant]) -> None:
        """Slots were revoked or lost; their grants are no longer `live`."""
        self._tasks.put(("lost", grants))

    def news(self) -> list[News]:
        """What has happened since the last call."""
        found = []
        while not self._news.empty():
            found.append(self._news.get())
        return found

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._tasks.put(("close", []))
        self._thread.join(30)

    # --- the thread ---

    def _run(self) -> None:
        try:
            refresh_s = self._settings.topics_refresh.total_seconds()
            look_at = time.monotonic() + refresh_s
            while not self._closing:
                self._work(self._next_tasks(max(0.0, look_at - time.monotonic())))
                if time.monotonic() >= look_at and not self._closing:
                    for news in self._inputs.look():
                        self._news.put(news)
                    self._wake()
                    self._clean_inboxes()
                    look_at = time.monotonic() + refresh_s
        except KafkaAway as away:
            if not self._closing:
                self.failure = away
        except KafkaException as exception:
            self.failure = fault("slots cannot be settled", exception.args[0])
        except BaseException as failure:
            self.failure = failure
            if not isinstance(failure, Exception):
                raise
        finally:
            self._wake()

    def _next_tasks(self, timeout_s: float) -> list[tuple[str, list[Grant]]]:
        try:
            tasks = [self._tasks.get(timeout=timeout_s)]
        except Empty:
            return []
        while not self._tasks.empty():
            tasks.append(self._tasks.get())
        return tasks

    def _work(self, tasks: Iterable[tuple[str, list[Grant]]]) -> None:
        assigned: list[Grant] = []
        for task, grants in tasks:
            if task == "assigned":
                assigned += grants
            elif task == "lost":
                self._drop(grants)
        live = [grant for grant in assigned if grant.live]
        if live:
            self._patiently(lambda: self._settle(live))

    def _patiently(self, work: Callable[[], None]) -> None:
        self._cluster.patiently(work, stop=lambda: self._closing)

    def _drop(self, grants: Iterable[Grant]) -> None:
        """Forget lost slots, keys and position together, after the last write of their grants to the view."""
        grants = list(grants)
        self._outbox.retire(grants)
        for grant in grants:
            self._inputs.drop(grant)
            self._views.drop(grant.slot)

    def _settle(self, grants: list[Grant]) -> None:
        started_at = time.monotonic()
        grants = [grant for grant in grants if grant.live]
        if not grants:
            return
        slots = [grant.slot for grant in grants]
        settling = Settling(
            self._flow, self._cell, self._cluster, self._settings, wanted=lambda: not self._closing
        )
        written, ends = settling.read_progress(slots, self._consumer())
        owned = self._claim(grants, written)
        if not owned:
            return
        claimed_at = time.monotonic()
        self._catch_up([grant.slot for grant in owned], ends)
        caught_up_at = time.monotonic()
        self._start(owned, written)
        self._remaining(0)
        log.info(
            "slots granted",
            extra={
                "slots": len(owned),
                "claimed_s": round(claimed_at - started_at, 2),
                "caught_up_s": round(caught_up_at - claimed_at, 2),
                "inputs_s": round(time.monotonic() - caught_up_at, 2),
            },
        )

    def _claim(self, grants: list[Grant], written: Mapping[int, Mapping[Partition, Progress]]) -> list[Grant]:
        """Step 2: commit a progress record that names this cell; return the grants that hold."""
        inboxes = self._inputs.inboxes(grants, written)
        claims = [Claim(grant, inbox) for grant, inbox in inboxes.items()]
        self._outbox.claim(claims)
        for claim in claims:
            # A closed or failed outbox settles no claim: then not one of them may be waited for.
            while not (self._closing or not claim.grant.live or self._outbox.failure is not None):
                if claim.settled.wait(_CLAIM_S):
                    break
        held = [claim for claim in claims if claim.committed and claim.grant.live]
        self._inboxes = {claim.grant: claim.inbox for claim in held}
        return [claim.grant for claim in held]

    def _catch_up(self, slots: list[int], ends: Mapping[Partition, int]) -> None:
        """Step 3: bring the views up to date from where they stand."""
        firsts = self._cluster.first_offsets(ends)
        starts = self._views.starts(slots, firsts, ends)
        total = sum(max(0, ends[at] - (starts[at] or 0)) for at in starts)
        progress = _Lines(total, self._remaining)
        for messages in read_to_end(
            self._consumer(),
            starts,
            {at: ends[at] for at in starts},
            stalled=lambda _: None,
            wanted=lambda: not self._closing,
            remaining=progress.remaining,
        ):
            self._views.write(messages)

    def _start(self, grants: list[Grant], written: Mapping[int, Mapping[Partition, Progress]]) -> None:
        """Step 4: start each input at its lowest unfinished record."""
        others = self._inputs.others(grants, written)
        for grant in grants:
            inputs = [self._inboxes[grant], *others[grant]]
            self._news.put(Ready(grant, inputs, *held(self._views.ledger.records(grant.slot))))
        self._wake()

    def _clean_inboxes(self) -> None:
        """Delete the finished records of the inboxes, which have no retention of their own."""
        done = {
            (self._names.inbox, slot): offset
            for slot, offset in dict(self._outbox.inboxes_done).items()
            if offset >= self._cleaned.get(slot, 0) + CLEAN_RECORDS
        }
        if done:
            try:
                self._cluster.delete_records(done)
            except (KafkaAway, KafkaException) as error:
                log.debug("inboxes could not be cleaned; tried again soon", extra={"cause": str(error)})
            else:
                self._cleaned |= {slot: offset for (_, slot), offset in done.items()}

    def _consumer(self) -> Consumer:
        if self._reader is None:
            self._reader = Consumer(
                {
                    "fetch.wait.max.ms": 10,
                    "fetch.queue.backoff.ms": 5,  # the default of a second halves the rate of long reads
                    "queued.min.messages": 50_000,
                    "queued.max.messages.kbytes": 16_384,
                    "retry.backoff.ms": 10,
                    **RECONNECT,
                    **self._settings.kafka.properties(),
                    "group.id": f"{self._flow}-views",  # never joined: it only reads
                    "isolation.level": "read_committed",
                    "enable.auto.commit": False,
                    "enable.partition.eof": True,
                    "auto.offset.reset": "earliest",
                },
                logger=client_log,
            )
        return self._reader


def held(records: Iterable[tuple[bytes, bytes]]) -> tuple[list[OpenRun], list[KeptUntil], list[Unreadable]]:
    """What the ledger holds of a slot, as in `Ready`; `records`: (Kafka key, value), sorted.

    Only the open runs stay in memory: failed ones, signals and shared calls are kept for days, and may be many.
    """
    runs: list[OpenRun] = []
    kept: list[KeptUntil] = []
    unreadable: list[Unreadable] = []
    for together in run_by_run(records):
        found, not_read = read_runs(together)
        runs += [run for run in found if not run.failed]
        kept += [*kept_signals(together), *remembered(together), *failed_runs(found)]
        unreadable += not_read
    return runs, kept, unreadable


class _Lines:
    """Says in the log, now and then, how far a long catch-up is."""

    def __init__(self, total: int, gauge: Callable[[float], None]) -> None:
        self._total, self._gauge = total, gauge
        self._line_at = time.monotonic() + _LINE_EVERY_S

    def remaining(self, records: int) -> None:
        """So many records are still to be read."""
        self._gauge(records)
        if time.monotonic() >= self._line_at:
            self._line_at += _LINE_EVERY_S
            log.info("catching up with completions", extra={"remaining": records, "of": self._total})
