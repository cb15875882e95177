"""What is outside of a cell: Kafka, the targets of calls, and cells that die or are replaced while they still run."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec

from onceflow.agents.agent import Agent
from onceflow.agents.at_once import Beginning, begin_without_lane
from onceflow.agents.calling import Answered
from onceflow.agents.calls import Completed, RunFailed, StartCall
from onceflow.agents.capacity import Capacity
from onceflow.agents.commands import Command
from onceflow.agents.deciding import REFUSED, ends_by_ms
from onceflow.agents.happenings import (
    Arrivals,
    Arrived,
    Commanded,
    Decided,
    Due,
    Ended,
    Happening,
    Lost,
    Noted,
    Redrive,
    Resumed,
    Settled,
    Signalled,
    Sleeping,
    Turn,
)
from onceflow.agents.journal import (
    WAIT_EXPIRED,
    OpenRun,
    Wait,
    entries_of,
    failed_runs,
    open_runs,
    run_prefix,
    runs_of,
)
from onceflow.agents.lane import Lane
from onceflow.agents.machine import Machine
from onceflow.agents.order import in_turn
from onceflow.agents.shared import Shared, decode_shared, remembered
from onceflow.agents.signals import Kept, Signal, decode_kept, ends, kept_signals, signal_prefix
from onceflow.event import Incoming, idempotency_key
from onceflow.state.ledger import Change
from tests.runs.work import AGENTS, TTL_S, UNFIT

START_MS = 1_800_000_000_000
TENANT = "acme"


class Wrong(AssertionError):  # noqa: N818 (reads as what it says)
    """Something was lost, or done twice."""


class Sent(NamedTuple):
    """A record of the log that a cell reads: an event, a signal, or what a person has decided."""

    event: Incoming | None = None
    redrive: Redrive | None = None
    signal: Signal | None = None
    command: Command | None = None

    @property
    def key(self) -> bytes:
        """Of an event: its run's."""
        assert self.event is not None
        event = self.event
        return (
            self.redrive.key if self.redrive else idempotency_key(TENANT, event.source, event.id, event.data)
        )


class Log:
    """Kafka: what was sent, which of it is finished, what is in the ledger, and what came out. Committed, all of it."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.finished: set[int] = set()
        self.ledger: dict[bytes, bytes] = {}
        self.completions: dict[bytes, Completed | RunFailed] = {}
        self.letters: list[Ended] = []  # of failed runs

    def commit(self, decided: Decided) -> None:
        """A transaction."""
        self.write(decided.ledger)
        self.finished.update(noted.offset for noted in decided.noted)
        self.finished.update(arrived.offset for arrived in decided.begun)
        for ended in decided.ended:
            self._end(ended)
        for together in decided.ended_at_once:
            for index, value in enumerate(together.values):
                self._end(Ended(together.arrivals.one(index), Completed(value)))

    def _end(self, ended: Ended) -> None:
        key = ended.arrived.key
        if key in self.completions:
            raise Wrong(f"run {key.hex()} has ended twice")
        self.completions[key] = ended.outcome
        if ended.segments == 0:
            self.finished.add(ended.arrived.offset)
        if isinstance(ended.outcome, RunFailed):
            self.letters.append(ended)

    def write(self, records: Iterable[Change]) -> None:
        for key, value in records:
            if value is None:
                self.ledger.pop(key, None)
            else:
                self.ledger[key] = value
        for change in records:
            for entry in entries_of(change).values():
                if entry.wait is not None and (entry.error or ("",))[0] == WAIT_EXPIRED:
                    self._expired(entry.wait)

    def _expired(self, wait: Wait) -> None:
        """No wait does, while a signal for it is there that came in time."""
        for _, kept in self._signals(signal_prefix(TENANT, wait.type, wait.id)):
            if not kept.taken and ends(wait, kept.signal) and kept.time_ms <= wait.due_ms:
                raise Wrong(f"a wait for {wait.id} has expired, and a signal for it was there in time")

    def _signals(self, prefix: bytes) -> list[tuple[bytes, Kept]]:
        return [(key, decode_kept(value)) for key, value in self.ledger.items() if key.startswith(prefix)]


class Cell:
    """A process: a lane, with what it has read, decided and not committed, and calls that it has yet to send.

    `snapshot`: what an earlier one has left of its lane, at some time.
    """

    def __init__(self, log: Log, now_ms: int, snapshot: bytes | None = None, room: int = 50) -> None:
        self.log = log
        self.calls: list[tuple[int, StartCall]] = []  # when each is due
        self.leaving = False  # its slot goes to another cell in a moment
        self._now_ms = now_ms
        self._capacity = Capacity(runs_per_lane=room, runs_per_cell=room)
        self.lane = self._new_lane(snapshot)
        self._granted([])

    def _new_lane(self, snapshot: bytes | None = None) -> Lane:
        return Lane(TENANT, self._capacity, self._start, self._abandon, self, snapshot, self._flag, _written)

    def _flag(self, name: str, market: str | None) -> bool:
        """It is changed all the time."""
        return self._now_ms % 2 == 0

    def _granted(self, happenings: list[Happening]) -> None:
        """The slot is granted, and all that the log says of it is known."""
        self.source = SimpleNamespace(topic="log", partition=0, grant=SimpleNamespace(live=True))
        self.records = dict(self.log.ledger)
        self.happenings = happenings
        self.batches: deque[Decided] = deque()
        self.due: list[tuple[int, Due]] = []
        self.read = 0
        self._known = set(self.log.completions)
        for saved, goes_on in in_turn(open_runs(sorted(self.records.items()))):
            self.know(saved.key)
            arrived = Arrived.again(saved, self.source, _agent(saved.begun.incoming))
            begun, due_ms = saved.begun, ends_by_ms(arrived, saved.journal)
            sleeping = Sleeping(saved.key, self.source, begun.line, begun.turn)
            self.happenings.append(Resumed(arrived) if goes_on else sleeping)
            if saved.parked and due_ms:
                self.due.append((due_ms, Due(saved.key)))
        records = sorted(self.records.items())
        for _, record, until_ms in (
            kept_signals(records) + remembered(records) + failed_runs(runs_of(records))
        ):
            self.due.append((until_ms, Due(b"", record)))
        finished = {f"log/0/{offset}" for offset in self.log.finished}
        self.happenings.append(Settled(finished.__contains__))

    def know(self, key: bytes) -> None:
        """A run is in the ledger: a copy of its event is one."""
        self._known.add(key)

    def settle(self, draw: Random) -> None:
        """It is gone; a transaction that it has sent was committed all the same, or was not."""
        if self.batches and draw.random() < 0.3:
            self.commit(1)

    def lose_slot(self, draw: Random) -> None:
        """The slot goes to another cell, and comes back before that has done anything."""
        grant = self.source.grant
        grant.live = False
        self.settle(draw)
        self._granted([*(each for each in self.happenings if isinstance(each, Lost)), Lost(grant)])

    def _start(self, calls: Iterable[StartCall]) -> None:
        self.calls += [(self._now_ms + int(call.delay_s * 1000), call) for call in calls]

    def _abandon(self, runs: Iterable[Machine]) -> None:
        gone = set(runs)
        self.calls = [(due_ms, call) for due_ms, call in self.calls if call.run not in gone]

    def take(self, now_ms: int) -> None:
        """Work on what has happened; a lane that is idle is discarded, and runs begin without one first."""
        self._now_ms = now_ms
        if self.leaving:
            self.batches.append(self.lane.take(self.happenings, now_ms))
            self.happenings = []
            return
        given, self.happenings = [*self.happenings, *(Turn() for _ in self._capacity.turns())], []
        decided = Decided()
        left: Sequence[Happening | Beginning] = given
        if self.lane.idle:
            self.lane = self._new_lane()
            left = begin_without_lane(TENANT, given, self._capacity, self._flag, now_ms, decided)
        decided = self.lane.take(left, now_ms, decided)
        self.due += [(due_ms or 1 << 62, due) for due, due_ms in decided.due]
        self.happenings += decided.looked
        if decided != Decided():
            self.batches.append(decided)

    def commit(self, batches: int) -> None:
        """Commit the oldest of what was decided."""
        for _ in range(batches):
            batch = self.batches.popleft()
            self.log.commit(batch)
            if self.source.grant.live and not self.leaving:
                self._start(batch.calls)

    def leave(self) -> None:
        """The slot is about to go: what is decided is committed, and nothing is sent any more, nor told but answers."""
        self.leaving = True
        self.happenings = [each for each in self.happenings if isinstance(each, (Answered, Lost))]
        self.lane.leave()

    def give_up(self, now_ms: int, *, in_time: bool) -> None:
        """The slot goes, and what was decided is committed before, if there is time for that."""
        self.take(now_ms)
        self.batches.append(self.lane.take_back(now_ms))
        if in_time:
            self.commit(len(self.batches))

    def close(self) -> None:
        """Its agents are not waited for."""
        for run in self.lane._runs:
            run.close()

    def read_next(self, now_ms: int) -> None:
        """Read a record of the log, if it is not finished."""
        offset, sent = self.read, self.log.sent[self.read]
        self.read += 1
        if offset in self.log.finished:
            return
        if sent.signal is not None:
            at = f"signals/0/{offset}"
            self.happenings.append(Signalled(self.source, offset, 1, now_ms, sent.signal, at, b"", None))
        elif sent.command is not None:
            self.happenings.append(Commanded(self.source, offset, 1, sent.command))
        elif sent.event is not None:
            incoming = sent.event
            key = sent.key
            if key in self._known:  # dedup: its end is a decision too
                self.batches.append(Decided(noted=[Noted(self.source, offset, 1)]))
                return
            self._known.add(key)
            agent = _agent(incoming)
            if sent.redrive is None and agent.plain and offset % 2:  # half of them, as most come
                self._read_together(offset, now_ms, incoming, key)
                return
            root = sent.redrive.root if sent.redrive else b""
            arrived = Arrived(self.source, offset, now_ms, b"", None, incoming, agent, key=key)
            arrived.redrive, arrived.root = sent.redrive, root
            self.happenings.append(arrived)

    def _read_together(self, offset: int, now_ms: int, incoming: Incoming, key: bytes) -> None:
        """With those before it that came so, if nothing else has come since."""
        last = self.happenings[-1] if self.happenings else None
        if not isinstance(last, Arrivals):
            last = Arrivals(self.source, _agent(incoming), [], [], [])
            self.happenings.append(last)
        for column, value in (
            (last.offsets, offset),
            (last.times_ms, now_ms),
            (last.incomings, incoming),
            (last.keys, key),
            (last.seen, key),
        ):
            column.append(value)  # type: ignore[attr-defined]

    # -- what a lane may read: agents.happenings.Memory --

    def run(self, key: bytes, inbox: Any) -> Arrived | str:
        found = open_runs(self._scan(run_prefix(TENANT, key)))
        if not found:
            return "the ledger does not hold it"
        return Arrived.again(found[0], inbox, _agent(found[0].begun.incoming))

    def inbox(self, source: Any) -> Any:
        return self.source

    def signals(self, prefix: bytes) -> list[tuple[bytes, Kept]]:
        return [(key, decode_kept(value)) for key, value in self._scan(prefix)]

    def shared(self, key: bytes) -> Shared | None:
        value = self.records.get(key)
        return None if value is None else decode_shared(value)

    def failed(self, key: bytes) -> OpenRun | None:
        found = runs_of(self._scan(run_prefix(TENANT, key)))
        return found[0] if found and found[0].failed else None

    def put(self, change: Change) -> None:
        key, value = change
        if value is None:
            self.records.pop(key, None)
        else:
            self.records[key] = value

    def _scan(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        return sorted((key, value) for key, value in self.records.items() if key.startswith(prefix))


def _agent(incoming: Incoming) -> Agent[Any, Any]:
    return AGENTS[incoming.type]


def _written(arrived: Arrived, end: Completed, now_ms: int) -> Completed | RunFailed:
    """Of some values no completion can be made."""
    return RunFailed("too-large", "", "") if UNFIT in end.value else end


class Request:
    """A call on its way: it may reach its target until its time-out is over, whoever still waits for it."""

    def __init__(self, cell: Cell, started: StartCall, sent_ms: int) -> None:
        self.cell: Cell | None = cell  # that waits for the answer
        self.started = started
        self.until_ms = sent_ms + int(started.tool.timeout_s * 1000)
        self.landed = False
        self.result: Any = None

    @property
    def subject(self) -> tuple[str, ...]:
        """What there may be one effect of."""
        started = self.started
        if started.tool.scope == "tenant":
            return (started.tool.name, str(started.call.arguments["what"]))
        return (started.tool.name, started.run.root, started.place.removeprefix("~"))


class Targets:
    """What calls have changed. A keyed operation is done once per key."""

    def __init__(self) -> None:
        self._by_key: dict[str, tuple[str, int]] = {}  # what was answered, and until when it is remembered
        self._asked: dict[
            tuple[str, ...], int
        ] = {}  # since when a shared call is known, as long as it stands
        self._number = 0
        self.standing: dict[tuple[str, ...], str] = {}
        self.earlier: set[str] = (
            set()
        )  # what stands of shared calls that were made anew, as nobody knew of them
        self.done: Counter[str] = Counter()

    def sent(self, request: Request, now_ms: int) -> None:
        """A request is on its way."""
        started, subject = request.started, request.subject
        since_ms = self._asked.setdefault(subject, now_ms)
        known = started.run.journal.get(started.place)
        intent = None if known is None or started.kind != "call" else known.intent
        if intent is not None and intent.shared and intent.made_ms >= since_ms + TTL_S * 1000:
            self._asked[subject] = now_ms  # what was made before is forgotten
            self.earlier.update(filter(None, [self.standing.pop(subject, None)]))

    def do(self, request: Request, now_ms: int) -> str | None:
        """The effect of a request that reaches its target."""
        started, subject = request.started, request.subject
        keyed = started.tool.effect == "keyed"
        answer, until_ms = self._by_key.get(started.call.key, ("", 0))
        if keyed and now_ms < until_ms:
            return answer
        self.done[f"{started.kind} {started.tool.name}"] += 1
        if started.kind == "undo":
            if subject not in self.standing and started.undone is not None:
                raise Wrong(f"{subject} was undone twice")
            self.standing.pop(subject, None)
            self._asked.pop(subject, None)
            answer = ""
        else:
            self._number += 1
            answer = f"{started.tool.name}#{self._number}"
            if subject in self.standing:
                raise Wrong(f"{subject} was done twice: {self.standing[subject]} and {answer}")
            self.standing[subject] = answer
        if keyed:
            self._by_key[started.call.key] = (answer, now_ms + int(TTL_S * 1000))
        return answer


def answered(request: Request, answer: Any) -> Answered:
    """The answer that a run gets."""
    return Answered(request.started.run, answer)


def ended_runs(log: Log) -> Mapping[bytes, Completed | RunFailed]:
    """How the last run of each event ended; by the key of its first."""
    found: dict[bytes, Completed | RunFailed] = {}
    roots = {sent.redrive.key: sent.redrive.root for sent in log.sent if sent.redrive}
    for key, outcome in log.completions.items():  # in the order of the commits
        if isinstance(outcome, RunFailed) and outcome.code == REFUSED:
            continue
        found[roots.get(key, key)] = outcome
    return found


def event(number: int, type: str, steps: list[str]) -> Incoming:
    """An event that lists what its run is to do."""
    return Incoming(TENANT, "tests", f"evt-{number}", type, None, msgspec.json.encode(steps))
