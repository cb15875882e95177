"""One random schedule: cells that read, decide, commit, call and die in any order; then calm, and a look at the end."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from onceflow.agents.calling import answer_of
from onceflow.agents.calls import Completed, FoundNotDone, NotSent, Raised, RunFailed, UnusableResult
from onceflow.agents.commands import CANCELLED, Command
from onceflow.agents.deciding import REFUSED
from onceflow.agents.happenings import Looked, Redrive
from onceflow.agents.journal import PARKED, UNDO, OpenRun, open_runs
from onceflow.agents.shared import OPEN_MS
from onceflow.agents.signals import KEPT_MS, Signal
from onceflow.errors import Failed, GiveUp, RetryLater
from tests.runs import work
from tests.runs.world import (
    START_MS,
    TENANT,
    Cell,
    Log,
    Request,
    Sent,
    Targets,
    Wrong,
    answered,
    ended_runs,
    event,
)

WILD_STEPS = 220
CALM_STEPS = 4_000
AWAY_MS = [0, 0, 0, 5_000, 60_000]  # how long it takes until another cell goes on after a death
ENDS = ["check", "stumble", "expire", "later", "unfit"]
TYPES = {"work": 6, "work.in-order": 2, "work.soon": 2, "work.soon.in-order": 1}
ROOMS = [1, 2, 50]  # runs that may be in flight
EFFECTS = [*(step for step in work.STEPS if step not in ENDS), "planned", "hold", "both"]


class Schedule:
    """See above. `play` raises Wrong, with the steps that led to it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.now_ms = START_MS
        self.log, self.targets = Log(), Targets()
        self.room = self.random.choice(ROOMS)
        self.cell = Cell(self.log, self.now_ms, None, self.room)
        self.ghosts: list[Cell] = []  # that were replaced and still run
        self.snapshot: bytes | None = None  # the last that is on disk
        self.requests: list[Request] = []
        self.calm = False
        self.crashes = 0
        self.history: list[str] = []
        self._unusable: set[str] = set()  # results that could not be kept
        self._mended_before: set[bytes] = set()
        self._deployed = False  # other agents under the same version, at some time
        self._given_up: set[str | None] = set()  # what a person did not want to be undone
        self._events = [event(n, self._type(), self._steps()) for n in range(self.random.randint(1, 4))]
        self._signals: list[tuple[Signal, int]] = []  # and when each was sent
        self._decided: set[tuple[bytes, int]] = set()
        self._redriven: set[bytes] = set()
        self._to_send: list[Sent] = [Sent(event=each) for each in self._events]

    def _type(self) -> str:
        return self.random.choices([*TYPES], [*TYPES.values()])[0]

    def _steps(self) -> list[str]:
        steps = self.random.choices(EFFECTS, k=self.random.randint(1, 4))
        if self.random.random() < 0.5:
            steps.append(self.random.choice(ENDS))
        if self.random.random() < 0.3:
            steps.append(self.random.choice(EFFECTS))
        return steps

    def play(self) -> None:
        """Take random steps, then calm ones until nothing is left to do; see what came of it."""
        try:
            for _ in range(WILD_STEPS):
                self._step()
            self.calm, work.DEPLOYED.fault = True, ""
            for _ in range(CALM_STEPS):
                if not self._step():
                    break
            else:
                raise Wrong("it goes on for ever")
            self._judge()
        except Exception as error:
            steps = "\n".join(self.history[-120:])
            events = "\n".join(f"{each.id} {each.type}: {each.data.decode()}" for each in self._events)
            raise Wrong(f"seed {self.seed}: {type(error).__name__}: {error}\n{events}\n{steps}") from error
        finally:
            work.DEPLOYED.fault = ""
            for cell in (self.cell, *self.ghosts):
                cell.close()

    # --- steps ---

    def _step(self) -> bool:
        steps = list(self._possible())
        if not steps:
            return self._later()
        weights, names, acts = zip(*steps, strict=True)
        (index,) = self.random.choices(range(len(steps)), weights)
        self.history.append(f"{(self.now_ms - START_MS) / 1000:9.2f} {names[index]}")
        acts[index]()
        return True

    def _possible(self) -> Iterator[tuple[float, str, Callable[[], Any]]]:
        cell = self.cell
        if cell.happenings:
            yield 4, "take", lambda: cell.take(self.now_ms)
        if cell.batches:
            yield 3, "commit", lambda: cell.commit(self.random.randint(1, len(cell.batches)))
        if cell.read < len(self.log.sent) and not cell.leaving:
            yield 3, "read", lambda: cell.read_next(self.now_ms)
        if self._to_send:
            yield 2, "send", lambda: self.log.sent.append(self._to_send.pop(0))
        for each in [cell, *self.ghosts]:
            for due_ms, started in each.calls:
                if due_ms <= self.now_ms:
                    yield (
                        2,
                        f"call {started.kind} {started.place}",
                        lambda e=each, s=started: self._call(e, s),
                    )
        for request in self.requests:
            yield from self._replies(request)
        if any(due_ms <= self.now_ms for due_ms, _ in cell.due) and not cell.leaving:
            yield 3, "due", self._due
        if (parked := self._parked()) is not None:
            yield 1, f"resolve {parked.key.hex()[:4]}", lambda: self._resolve(parked)
        if cell.leaving:
            yield 0.5, "✗ its slot moves", self._move
        elif not self.calm:
            yield from self._faults()

    def _faults(self) -> Iterator[tuple[float, str, Callable[[], Any]]]:
        if self.crashes < 6:
            looks = any(isinstance(each, Looked) for each in self.cell.happenings)
            yield 2.0 if looks and not self.cell.batches else 0.4, "✗ dies", self._crash
            yield 0.4, "✗ replaced", lambda: self._crash(ghost=True)
            yield 0.3, "✗ loses its slot", self._lose_slot
            yield 0.3, "its slot is about to move", self.cell.leave
        yield 0.3, "snapshot", self._take_snapshot
        yield 0.5, "time", lambda: self._pass(self.random.choice([200, 2_000, 6_000]))
        yield 0.02, "an hour", lambda: self._pass(3_600_000)
        # Copies of signals are not known for as long; nor, after two of them, what an open run may have to undo.
        if self.cell.read == len(self.log.sent) and self.now_ms < START_MS + OPEN_MS // 2:
            yield 0.003, "a fortnight", lambda: self._pass(15 * 24 * 3_600_000)
        yield 0.3, "signal", self._signal
        yield 0.1, "event again", lambda: self.log.sent.append(Sent(event=self.random.choice(self._events)))
        if self.log.letters:
            yield 0.3, "redrive", self._redrive
        yield 0.05, "cancel", self._cancel
        yield 0.02, "discard", self._discard
        yield 0.05, "deploy", self._deploy

    def _later(self) -> bool:
        """Nothing is left to do now: wait for what is due, or for what only the world can do."""
        calls = [call for cell in (self.cell, *self.ghosts) for call in cell.calls]
        times = [due_ms for due_ms, _ in (*calls, *self.cell.due)]
        times += [request.until_ms for request in self.requests]
        soon, ever = (
            [ms for ms in times if ms < self.now_ms + hours * 3_600_000] for hours in (12, 24 * 365)
        )
        if soon:
            self._pass(max(1, min(soon) - self.now_ms))
            return True
        if not self.calm:
            return True
        held = open_runs(sorted(self.log.ledger.items()))
        waits = [e.wait for run in held for e in run.journal.values() if e.open and e.wait and e.wait.type]
        if waits:
            self._signal(waits[0].id)
            return True
        if ever:
            self._pass(min(ever) - self.now_ms)
        return bool(ever)

    def _pass(self, ms: int) -> None:
        self.now_ms += ms
        for request in list(self.requests):
            if request.until_ms <= self.now_ms:
                if not request.landed and self.random.random() < 0.5:
                    self._land(request, request.until_ms)
                self._answer(request, TimeoutError("no answer in time"))
                self.requests.remove(request)

    def _due(self) -> None:
        due = next(each for each in self.cell.due if each[0] <= self.now_ms)
        self.cell.due.remove(due)
        self.cell.happenings.append(due[1])

    def _crash(self, *, ghost: bool = False) -> None:
        self.crashes += 1
        old = self.cell
        if ghost:
            self.ghosts.append(old)
        for request in self.requests:
            request.cell = None
        old.settle(self.random)
        if not ghost:
            self._pass(self.random.choice(AWAY_MS))
        self.cell = self._successor(old)
        if not ghost:
            old.close()

    def _successor(self, old: Cell) -> Cell:
        if self.random.random() < 0.3:
            self.snapshot = None  # it is lost
        return Cell(self.log, self.now_ms, self.snapshot, self.room)

    def _move(self) -> None:
        self.cell.give_up(self.now_ms, in_time=self.random.random() < 0.8)
        self._crash(ghost=True)

    def _take_snapshot(self) -> None:
        self.snapshot = self.cell.lane.snapshot()

    def _lose_slot(self) -> None:
        self.crashes += 1
        self.cell.lose_slot(self.random)

    def _signal(self, id: str = "") -> None:
        known = [each for each, sent_ms in self._signals if self.now_ms < sent_ms + KEPT_MS]
        if known and not self.calm and self.random.random() < 0.3:
            self.log.sent.append(Sent(signal=self.random.choice(known)))  # a copy, while one is known for one
            return
        number = len(self._signals) + 1
        status = "done" if self.calm else self.random.choice(["done", "begun"])
        subject = id or str(number % len(self._events))
        signal = Signal("news", subject, status, {}, "world", str(number))
        self._signals.append((signal, self.now_ms))
        self.log.sent.append(Sent(signal=signal))

    def _cancel(self) -> None:
        held = open_runs(sorted(self.log.ledger.items()))
        if held:
            run = self.random.choice(held)
            self.log.sent.append(Sent(command=Command("cancel", TENANT, run.key.hex())))

    def _discard(self) -> None:
        if self.log.letters:
            run, _ = self.random.choice(self.log.letters).to_redrive
            self.log.sent.append(Sent(command=Command("discard", TENANT, run.hex())))

    def _deploy(self) -> None:
        """The agents of this cell, and of those to come, are others, though their version is the same."""
        work.DEPLOYED.fault = self.random.choice(["", *work.FAULTS])
        self._deployed = True

    def _redrive(self) -> None:
        offset = self.random.randrange(len(self.log.letters))
        arrived = self.log.letters[offset].arrived
        run, kept = self.log.letters[offset].to_redrive
        root = arrived.root or run
        again = Redrive(run, root, f"letters/0/{offset}", kept)
        self._redriven.add(root)
        self.log.sent.append(Sent(event=arrived.incoming, redrive=again))

    # --- calls ---

    def _call(self, cell: Cell, started: Any) -> None:
        cell.calls = [(due_ms, call) for due_ms, call in cell.calls if call is not started]
        request = Request(cell, started, self.now_ms)
        if cell is not self.cell:
            request.cell = None
        late = started.send_by_ms and self.now_ms > started.send_by_ms
        started.call.sent(self.now_ms, started.tool.timeout_s)
        if late or not started.run.wants(started):
            started.call.not_sent()
            self._answer(request, NotSent())
        else:
            self.targets.sent(request, self.now_ms)
            self.requests.append(request)

    def _replies(self, request: Request) -> Iterator[tuple[float, str, Callable[[], Any]]]:
        started = request.started
        what = f"{started.run.root[:4]} {started.kind} {started.tool.name} {started.place}"
        yield 2, f"ok {what}", lambda: self._ok(request)
        if self.calm:
            return
        if not request.landed:
            yield 0.7, f"lands {what}", lambda: self._land(request)
            often = 0.8 if started.kind == "reconcile" else 0.2
            yield often, f"refused {what}", lambda: self._refused(request)
        if request.cell is not None:
            yield 0.4, f"answer lost {what}", lambda: self._answer(request, ConnectionError("reset"))

    def _refused(self, request: Request) -> None:
        self.requests.remove(request)
        after = self.random.choice([None, None, 60.0])
        errors = [GiveUp("no"), Failed("no", "never"), *[RetryLater("busy", after=after)] * 8]
        error: Exception = self.random.choice(errors)
        self._answer(request, error)

    def _ok(self, request: Request) -> None:
        self.requests.remove(request)
        if not request.landed:
            self._land(request)
        if request.started.kind == "reconcile" and request.result is None:
            answer: Any = FoundNotDone(request.started.place, request.started.call.attempt)
        else:
            answer = answer_of(request.started, request.result)
            if self._cannot_be_kept(request):
                error = UnusableResult("of another shape")
                answer = Raised(request.started.place, request.started.call.attempt, error)
        if request.cell is self.cell:
            self.cell.happenings.append(answered(request, answer))

    def _cannot_be_kept(self, request: Request) -> bool:
        of = request.started
        if self.calm or of.kind != "call" or of.tool.effect == "read" or self.random.random() > 0.03:
            return False
        self._unusable.add(request.result)
        return True

    def _answer(self, request: Request, error: BaseException) -> None:
        if request.cell is self.cell:
            raised = Raised(request.started.place, request.started.call.attempt, error)
            self.cell.happenings.append(answered(request, raised))
        request.cell = None

    def _land(self, request: Request, at_ms: int = 0) -> None:
        """A request reaches its target, now or at an earlier time."""
        request.landed = True
        tool = request.started.tool
        if request.started.kind == "reconcile":
            request.result = self.targets.standing.get(request.subject)
        elif tool.effect != "read":
            request.result = self.targets.do(request, at_ms or self.now_ms)
        elif tool in (work.check, work.steady):
            well = self.calm or self.random.random() < 0.6
            request.result = "ok" if well else "no"
        else:
            request.result = f"thought-{self.random.random()}"

    # --- a person, who looks at the targets once nothing is on its way ---

    def _parked(self) -> OpenRun | None:
        if self.requests or any(cell.calls for cell in self.ghosts):
            return None
        held = [run for run in open_runs(sorted(self.log.ledger.items())) if run.parked]
        open_ = [run for run in held if (run.key, run.segments) not in self._decided]
        return open_[0] if open_ else None

    def _mended(self, run: OpenRun) -> None:
        """A run whose agent was another one goes on once it is the former one again."""
        if work.DEPLOYED.fault:
            self._decided.discard((run.key, run.segments))
        elif not self._deployed:
            raise Wrong(f"run {run.key.hex()} is parked: {run.journal[PARKED].error}")
        else:
            action: Any = (
                "cancel" if run.key in self._mended_before else "again"
            )  # it has done what the other one asked
            self._mended_before.add(run.key)
            self.log.sent.append(Sent(command=Command(action, TENANT, run.key.hex(), run.segments)))

    def _resolve(self, run: OpenRun) -> None:
        self._decided.add((run.key, run.segments))
        parked = run.journal[PARKED]
        place = parked.arguments.decode()
        if not place:
            self._mended(run)
            return
        called = run.journal[place.removeprefix(UNDO)]
        root = (run.begun.root or run.key).hex()
        subject: tuple[str, ...] = (called.tool, root, place.removeprefix(UNDO))
        if called.tool in work.SHARED:
            subject = (called.tool, work.customer(run.begun.incoming.id))
        answer = self.targets.standing.get(subject)
        if place.startswith(UNDO):
            action = "result" if answer is None else self.random.choice(["again", "again", "fail"])
            if action == "fail":
                self._given_up.add(answer)
        else:
            action = "result" if answer is not None else self.random.choice(["fail", "again"])
        result = msgspec.Raw(msgspec.json.encode(answer))
        command: Any = Command(action, TENANT, run.key.hex(), run.segments, result=result)  # type: ignore[arg-type]
        self.log.sent.append(Sent(command=command))

    # --- the end ---

    def _judge(self) -> None:
        ended = ended_runs(self.log)
        if len(ended) != len(self._events):
            raise Wrong(f"{len(self._events) - len(ended)} events have no end")
        if self.log.ledger and not self._deployed:
            raise Wrong(f"the ledger holds {self.log.ledger}")
        if self.cell.records != self.log.ledger:
            raise Wrong("the cell believes something else than the ledger says")
        news: list[str] = []
        for key, outcome in ended.items():
            root = key.hex()
            stands = {
                answer
                for subject, answer in self.targets.standing.items()
                if len(subject) == 3 and subject[1] == root
            }
            if isinstance(outcome, RunFailed):
                left_over = {
                    answer for answer in stands if answer.split("#")[0] in work.UNDOABLE
                } - self._given_up
                if left_over:
                    raise Wrong(f"run {root} has failed ({outcome}), and {left_over} stand")
                continue
            self._as_said(root, outcome, stands)
            news += [each for each in _flat(outcome.value) if each.startswith("news#")]
        if not self._deployed:
            self._nobody_is_left_out(ended)
        self._in_order()
        if len(set(news)) != len(news):
            raise Wrong(f"a signal has ended two waits: {news}")

    def _nobody_is_left_out(self, ended: Mapping[bytes, Completed | RunFailed]) -> None:
        """What can be undone, and belongs to all runs, stands because one of them has completed with it."""
        said = [
            each
            for outcome in ended.values()
            if isinstance(outcome, Completed)
            for each in _flat(outcome.value)
        ]
        for (name, *of), answer in self.targets.standing.items():
            nobodys = name in work.SHARED and name != work.poke.name and answer not in said
            if nobodys and work.UNKNOWN not in said and answer not in self._unusable | self._given_up:
                raise Wrong(f"{answer} for {of} stands, and no run has completed with it")

    def _in_order(self) -> None:
        """Runs of one line have ended in the order of their events; but those that a person has cancelled."""
        lines: dict[str, dict[bytes, int]] = {}
        for offset, sent in enumerate(self.log.sent):
            if sent.event is not None and work.AGENTS[sent.event.type].order_by:
                lines.setdefault(sent.event.type, {}).setdefault(sent.key, offset)
        for line in lines.values():
            ended = [
                line[key]
                for key, outcome in self.log.completions.items()
                if key in line and getattr(outcome, "code", "") not in (CANCELLED, REFUSED)
            ]
            if ended != sorted(ended):
                raise Wrong(f"the events at {sorted(ended)} were done in the order {ended}")

    def _as_said(self, root: str, outcome: Completed, stands: set[str]) -> None:
        said = _flat(outcome.value)
        claims = {each for each in said if "#" in each and each.split("#")[0] not in {"news", *work.SHARED}}
        mails = {each for each in said if "#" in each and each.split("#")[0] in work.SHARED}
        if not claims <= stands:
            raise Wrong(f"run {root} says that {claims - stands} were done")
        unsaid = stands - claims - self._unusable - self._given_up
        if len(unsaid) > said.count(work.UNKNOWN):
            raise Wrong(f"run {root} does not say that {unsaid} were done")
        if not mails <= {*self.targets.standing.values(), *self.targets.earlier}:
            raise Wrong(f"run {root} says that {mails} were sent")


def _flat(value: Any) -> list[str]:
    if isinstance(value, list):
        return [text for each in value for text in _flat(each)]
    return [value] if isinstance(value, str) else []


def played(seed: int) -> tuple[str, Counter[str]]:
    """What was wrong ("": nothing), and how much was done."""
    schedule = Schedule(seed)
    try:
        schedule.play()
    except AssertionError as error:
        return str(error), Counter()
    done = Counter(schedule.targets.done)
    done["crashes"] = schedule.crashes
    done["runs"] = len(schedule.log.completions)
    return "", done
