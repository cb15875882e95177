"""Grants: what happens between "this slot is assigned to us" and the first event read from it.

In this order, in the background, the slot's inputs paused meanwhile, other slots running:
1. write nothing yet; read F.progress of the slot up to the high watermark seen now, and wait until that of
   F.completions is stable: until the former owners' transactions are settled. A dead cell's is ended
   by `init_transactions` with its transactional id, unless the group still lists that cell (a live one is
   never fenced so);
2. commit a progress record that names this cell;
3. bring the views up to date from where they stand;
4. start each input at its lowest unfinished record.

The same thread looks for topics that are new, gone, or deleted and made anew.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException

from onceflow.agents.journal import OpenRun, Unreadable, failed_runs, read_runs
from onceflow.agents.shared import remembered
from onceflow.agents.signals import kept_signals
from onceflow.config import Settings
from onceflow.stream.catchup import read_to_end
from onceflow.stream.cluster import RECONNECT, Cluster, KafkaAway, Partition, Topic, client_log
from onceflow.stream.content import Grant, Input
from onceflow.stream.outbox import Claim, Outbox
from onceflow.stream.progress import InputProgress, Progress, Skip
from onceflow.stream.settling import Settling
from onceflow.stream.topics import Names, inputs_of, slot_of_input, tenant_of
from onceflow.stream.transaction import fault
from onceflow.stream.views import Views

log = logging.getLogger(__name__)

CLEAN_RECORDS = 10_000  # finished records of an inbox that make deleting them worth a request
_LINE_EVERY_S = 5.0
_CLAIM_S = 0.1  # between two looks at whether a claim is still wanted


class Ready(NamedTuple):
    """News for the worker: a grant is settled; go on with these runs, and read these inputs (the inbox is assigned)."""

    grant: Grant
    inputs: list[Input]
    runs: list[OpenRun]
    kept: list[
        tuple[str, bytes, int]
    ]  # signals, and calls of scope `tenant`: tenant, Kafka key, until when (ms)
    unreadable: Sequence[Unreadable] = ()


class Added(NamedTuple):
    """News for the worker: an input of a grant that is settled already. One that was removed may be back."""

    input: Input

    @property
    def grant(self) -> Grant:
        return self.input.grant


class Removed(NamedTuple):
    """News for the worker: this input's topic is not listed, or is another one of the same name now."""

    input: Input

    @property
    def grant(self) -> Grant:
        return self.input.grant


News = Ready | Added | Removed


def news_follow(earlier: News, later: News) -> bool:
    """Whether `later` must wait for `earlier`: nothing is read of a grant before its runs go on."""
    if earlier.grant is not later.grant:
        return False
    if isinstance(earlier, Ready) or isinstance(later, Ready):
        return True
    return (earlier.input.topic, earlier.input.partition) == (later.input.topic, later.input.partition)


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
        self._slots = slots
        self._cluster = cluster
        self._settings = settings
        self._views = views
        self._outbox = outbox
        self._wake = wake
        self._remaining = remaining
        self._tasks: SimpleQueue[tuple[str, list[Grant]]] = SimpleQueue()
        self._news: SimpleQueue[News] = SimpleQueue()
        self._settled: dict[Grant, dict[Partition, Input]] = {}  # its inputs
        self._missing: dict[Grant, dict[Partition, Input]] = {}  # those whose topic is not listed any more
        self._replaced: set[str] = set()  # ids of topics that were made anew
        self._written: dict[Grant, dict[Partition, Progress]] = {}  # what F.progress held at the grant
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
                    self._look_for_topics()
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
            self._settled.pop(grant, None)
            self._missing.pop(grant, None)
            self._written.pop(grant, None)
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
        inbox = self._cluster.topics([self._names.inbox])[self._names.inbox]
        firsts = self._cluster.first_offsets((inbox.name, grant.slot) for grant in grants)
        claims = []
        for grant in grants:
            at = (inbox.name, grant.slot)
            input, progress = self._input(inbox, grant.slot, grant, written[grant.slot].get(at), firsts[at])
            self._outbox.track([(input, progress)])
            claims.append(Claim(grant, input))
            self._inputs_of(grant)[at] = input
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
        found = inputs_of(self._topics().values(), self._slots, self._settings)
        wanted = [(t.name, p) for grant in grants for t, p in found.get(grant.slot, [])]
        firsts = self._cluster.first_offsets(wanted)
        for grant in grants:
            inputs = [self._inboxes[grant]]
            tracked = []
            for topic, partition in found.get(grant.slot, []):
                at = (topic.name, partition)
                progress = written[grant.slot].get(at)
                input, tracker = self._input(topic, partition, grant, progress, firsts[at])
                tracked.append((input, tracker))
                inputs.append(input)
                self._inputs_of(grant)[at] = input
            self._outbox.track(tracked)
            self._written[grant] = dict(written[grant.slot])
            held = list(self._views.ledger.records(grant.slot))
            runs, unreadable = read_runs(held)
            self._news.put(
                Ready(
                    grant,
                    inputs,
                    [run for run in runs if not run.failed],
                    [*kept_signals(held), *remembered(held), *failed_runs(runs)],
                    unreadable,
                )
            )
        self._wake()

    def _input(
        self, topic: Topic, partition: int, grant: Grant, written: Progress | None, first: int
    ) -> tuple[Input, InputProgress]:
        """An input and its progress, from what F.progress says and what the partition still holds."""
        is_inbox = topic.name == self._names.inbox
        tenant = "" if is_inbox else tenant_of(topic.name, self._settings)
        input = Input(topic.name, partition, grant, topic_id=topic.id, tenant=tenant, is_inbox=is_inbox)
        if written is None or written.topic_id != topic.id:
            input.next_offset = first
            return input, InputProgress(topic.id, first)
        progress = InputProgress(topic.id, written.lowest, written.finished, written.tally)
        input.next_offset = written.lowest
        input.skip = Skip(written.finished) if written.finished else None
        if first > written.lowest:
            lost = unfinished_below(written, first)
            if lost:
                gap = f"offsets {written.lowest} to {first - 1}"
                input.blocked = f"retention has deleted {lost} unfinished records ({gap})"
            else:
                input.next_offset = first
                progress.passed(first)
        return input, progress

    def _inputs_of(self, grant: Grant) -> dict[Partition, Input]:
        return self._settled.setdefault(grant, {})

    def _topics(self) -> dict[str, Topic]:
        names = [name for name in self._cluster.topic_names() if self._settings.events.is_input(name)]
        return self._cluster.topics(names)

    def _look_for_topics(self) -> None:
        """Find topics that are new, gone, back, or another one of the same name.

        One listing proves nothing: a broker may lag behind, or a right be taken away for a moment. So an input that is
        gone is kept with its progress, and is the same one when its topic is back: what is under way of it is known.
        """
        try:
            listed = self._topics().items()
            topics = {name: topic for name, topic in listed if topic.id not in self._replaced}
            grants = {grant.slot: grant for grant in self._settled if grant.live}
            new: list[tuple[Topic, int, Grant]] = []
            for topic in topics.values():
                for partition in range(topic.partitions):
                    slot = slot_of_input(topic.name, partition, self._slots, self._settings)
                    grant = grants.get(slot)
                    if grant is not None:
                        known = self._settled[grant].get((topic.name, partition))
                        if known is None or known.topic_id != topic.id:
                            new.append((topic, partition, grant))
            firsts = self._cluster.first_offsets((topic.name, partition) for topic, partition, _ in new)
        except (KafkaAway, KafkaException) as error:
            log.debug("topics could not be looked up; asked again soon", extra={"cause": str(error)})
            self._cluster.renew()
            return
        for grant in grants.values():
            for at, input in list(self._settled[grant].items()):
                now = topics.get(at[0])
                if not input.is_inbox and (now is None or now.id != input.topic_id):
                    log.info("an input is gone", extra={"topic": at[0], "partition": at[1]})
                    self._missing.setdefault(grant, {})[at] = self._settled[grant].pop(at)
                    self._news.put(Removed(input))
        for topic, partition, grant in new:
            input = self._added(topic, partition, grant, firsts[topic.name, partition])
            self._settled[grant][topic.name, partition] = input
            self._news.put(Added(input))
        self._wake()

    def _added(self, topic: Topic, partition: int, grant: Grant, first: int) -> Input:
        """The input of a partition that is listed now."""
        at = (topic.name, partition)
        about = {"topic": topic.name, "partition": partition}
        missing = self._missing.get(grant, {}).pop(at, None)
        if missing is not None and missing.topic_id == topic.id:
            log.info("an input is back", extra=about)
            return missing
        if missing is not None:
            self._replaced.add(missing.topic_id)
        input, progress = self._input(topic, partition, grant, self._written.get(grant, {}).get(at), first)
        self._outbox.track([(input, progress)])
        log.info("an input is new", extra=about)
        return input

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


def unfinished_below(progress: Progress, first: int) -> int:
    """How many unfinished records lie below an offset."""
    finished = sum(max(0, min(end, first) - start) for start, end in progress.finished if start < first)
    return max(0, first - progress.lowest - finished)
