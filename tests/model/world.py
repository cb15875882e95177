"""Machines, disks and producers; what disturbs them; and calm, in which everything drains.

Every disturbance is a method here: a crash, an expired session, a transaction's time-out, a slot that moves, a lost
or an old disk, two processes with one identity, a clock that jumps. `schedule` says how often.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.model import grants, outbox, worker
from tests.model.cell import KEPT, WINDOW, Cell, Disk, Event, Topics, kept
from tests.model.checker import check, unfinished
from tests.model.kafka import Broker, Choose, Fenced, Group, Partition, Record
from tests.model.rules import Rules

Step = Callable[[Cell], bool]

ROUNDS = 40  # of calm; what isn't finished after them is stuck


@dataclass(slots=True)
class Machine:
    disk: Disk
    cell: Cell | None = None
    backup: Disk | None = None


@dataclass(slots=True)
class World:
    choose: Choose
    rules: Rules
    tracing: bool
    broker: Broker = field(init=False)
    topics: Topics = field(init=False)
    machines: list[Machine] = field(init=False)
    identities: int = 0
    sent: list[Event] = field(default_factory=list)
    last_ready: dict[int, str] = field(default_factory=dict)
    crashes: int = 0
    fenced: int = 0
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        choose = self.choose
        slots = 2 + (choose(4) == 3)
        count = slots * (1 + (choose(4) == 3))
        self.broker = Broker(Group(slots))
        self.topics = Topics(
            slots,
            events=[Partition(f"events/{p}") for p in range(count)],
            own=Partition("own/0"),
            inbox=[Partition(f"inbox/{slot}") for slot in range(slots)],
            completions=[Partition(f"completions/{slot}") for slot in range(slots)],
            dead_letters=[Partition(f"dead-letters/{slot}") for slot in range(slots)],
            progress=[Partition(f"progress/{slot}") for slot in range(slots)],
        )
        self.machines = [Machine(self.new_disk()) for _ in range(2 + (choose(3) == 2))]

    def new_disk(self) -> Disk:
        self.identities += 1
        return Disk(f"cell-{self.identities}")

    def note(self, machine: Machine | None, what: str) -> None:
        if self.tracing:
            place = "" if machine is None else f"{self.machines.index(machine)} {machine.disk.identity}: "
            self.trace.append(f"{self.broker.clock:4} {place}{what}")

    # One step of one cell

    def step(self, machine: Machine, step: Step, most: int = 1) -> bool:
        """Up to `most` such steps; whether any did something. A fatal error ends the process."""
        cell = machine.cell
        if cell is None:
            return False
        for done in range(most):
            try:
                if not step(cell):
                    return done > 0
            except Fenced as fenced:
                self.note(machine, f"{step.__name__}: {fenced}, the process ends")
                machine.cell = None
                self.fenced += 1
                return True
            if self.tracing:
                self.note(machine, f"{step.__name__}{describe(cell)}")
        return most > 0

    def start(self, machine: Machine) -> bool:
        if machine.cell is not None:
            return False
        machine.cell = Cell(self.broker, self.topics, self.rules, machine.disk, self.choose, self.last_ready)
        self.note(machine, "starts")
        return True

    def round(self, machine: Machine) -> bool:
        """All that a cell does while nothing disturbs it."""
        worked = [
            self.get_going(machine),
            self.step(machine, worker.release, 2),
            self.step(machine, worker.read, 50),
            self.step(machine, worker.end_run, 50),
            self.step(machine, outbox.commit_step, 20),
        ]
        return any(worked)

    def get_going(self, machine: Machine) -> bool:
        """Until the slots that it has been granted run; what it has pending is committed on the way."""
        worked = [
            self.start(machine),
            self.step(machine, worker.poll),
            self.step(machine, grants.grant_step, 12),
            self.step(machine, outbox.commit_step, 20),
            self.step(machine, grants.grant_step, 12),
        ]
        return any(worked)

    def calm(self) -> bool:
        """One round of everything; whether anything was left to do."""
        broker = self.broker
        worked = broker.group.unbalanced
        if worked:
            broker.group.rebalance(self.choose, move=False)
        while broker.requests:
            broker.handle(0)
        for transaction in list(broker.transactions.values()):
            if transaction.committed is not None:
                broker.mark(transaction)
        for machine in self.machines:
            worked = self.round(machine) or worked
        return worked

    # Disturbances, and what goes on around the cells

    def send(self) -> None:
        """A producer sends: half of the time what was sent before, one time in three with another partitioner."""
        choose, clock, topics = self.choose, self.broker.clock, self.topics
        tenant, key = choose(3), choose(2)
        if self.sent and choose(2):
            tenant, key = (earlier := self.sent[choose(len(self.sent))]).tenant, earlier.key or 0
        claimed = clock if choose(6) < 5 else clock + (-2 * WINDOW, 2 * WINDOW)[choose(2)]
        event = Event(len(self.sent), tenant, key if choose(12) < 11 else None, claimed, clock)
        if topics.home(tenant) == 0 and not choose(3):
            partition = topics.own
        elif choose(3):
            partition = topics.events[topics.home(tenant)]
        else:
            partition = topics.events[choose(len(topics.events))]
        partition.log.append(Record((event, None), event.time))
        self.sent.append(event)
        self.note(None, f"{event} is sent to {partition.name}")

    def rebalance(self) -> None:
        if self.broker.group.members:
            self.broker.group.rebalance(self.choose, move=self.choose(2) == 1)
            self.note(None, f"generation {self.broker.group.generation}: {self.broker.group.target}")

    def expire(self) -> None:
        members = list(self.broker.group.members)
        if members:
            self.broker.group.expire(member := members[self.choose(len(members))])
            self.note(None, f"session of {member} expires")

    def lapse(self, machine: Machine) -> None:
        """It misses its session, learns so whatever it is at, and perhaps has its slots again soon after."""
        group = self.broker.group
        if machine.disk.identity in group.members:
            group.expire(machine.disk.identity)
            self.note(machine, "its session expires")
            self.step(machine, worker.poll)
            if self.choose(2):
                group.rebalance(self.choose, move=False)
                self.step(machine, worker.poll)
                self.step(machine, outbox.commit_step, self.choose(8))

    def leave_behind(self, machine: Machine) -> None:
        """It stands still, misses its session, and the others go on without it: it is a zombie now."""
        if machine.cell is not None and machine.disk.identity in self.broker.group.members:
            self.broker.group.expire(machine.disk.identity)
            self.note(machine, "its session expires, the others go on")
            self.others_go_on(machine)

    def hand_over(self, machine: Machine) -> None:
        """It is asked for a slot, gives it back, stays a member, and the others go on."""
        self.rebalance()
        self.step(machine, worker.poll)
        self.step(machine, worker.release)
        self.others_go_on(machine)

    def others_go_on(self, machine: Machine) -> None:
        if self.broker.group.members:
            self.broker.group.rebalance(self.choose, move=False)
        for other in self.machines:
            if other is not machine:
                self.get_going(other)

    def leave_unanswered(self, machine: Machine) -> None:
        """Its commit, if it has something to commit, is decided or not, but not answered."""
        for _ in range(outbox.ANSWER):
            if machine.cell is not None and machine.cell.step < outbox.ANSWER:
                self.step(machine, outbox.commit_step)
        if machine.cell is not None and machine.cell.step == outbox.ANSWER:
            if self.choose(2):
                self.handle()
            self.step(machine, outbox.commit_times_out)

    def mark_one(self) -> None:
        decided = [each for each in self.broker.transactions.values() if each.committed is not None]
        if decided:
            transaction = decided[self.choose(len(decided))]
            self.broker.mark_one(transaction, self.choose(len(transaction.unmarked)))

    def handle(self) -> None:
        if self.broker.requests:
            self.broker.handle(self.choose(len(self.broker.requests)))
            self.note(None, "a commit arrives")

    def time_out(self) -> None:
        producers = [each.producer for each in self.broker.transactions.values() if each.committed is None]
        if producers:
            self.broker.time_out(producer := producers[self.choose(len(producers))])
            self.note(None, f"transaction of {producer} times out")

    def time_passes(self) -> None:
        self.broker.clock += (1, WINDOW // 2, WINDOW + 1, KEPT)[self.choose(4)]

    def retain(self) -> None:
        """Old completions go, from the log and from the views."""
        before = self.broker.clock - kept(self.rules)
        for partition in self.topics.completions:
            partition.delete_before(before)
        for machine in self.machines:
            for view in machine.disk.views.values():
                view.keys = {key: time for key, time in view.keys.items() if time >= before}

    def make_own_anew(self) -> None:
        """The tenant's topic is deleted and made again, once nothing in it is unfinished."""
        own = self.topics.own
        if own.log and all(partition is not own for partition, _ in unfinished(self.topics, 0)):
            own.make_anew()
            self.note(None, f"{own.name} is deleted and made anew")

    def crash(self, machine: Machine) -> None:
        if machine.cell is not None:
            machine.cell = None
            self.crashes += 1
            self.note(machine, "crashes")

    def restart(self, machine: Machine) -> None:
        """With its disk, mostly; or with none, an old one, or a copy of another's."""
        if machine.cell is not None:
            return
        how = self.choose(8)
        if how == 5 and machine.backup is not None:
            machine.disk = machine.backup.copy()
            self.note(machine, "has an old disk")
        elif how == 6:
            machine.disk = self.new_disk()
            self.note(machine, "has an empty disk")
        elif how == 7:
            machine.disk = self.machines[self.choose(len(self.machines))].disk.copy()
            self.note(machine, "has a copy of a disk")
        self.start(machine)

    def back_up(self, machine: Machine) -> None:
        machine.backup = machine.disk.copy()

    def fault(self, machine: Machine) -> None:
        if machine.cell is not None:
            machine.cell.fault = True

    # The end

    def heal(self) -> list[str]:
        """All disturbances end, everything drains; the faults. Transactions time out when nothing else helps."""
        seen = set()
        for machine in self.machines:
            if machine.disk.identity in seen:
                machine.disk, machine.cell = self.new_disk(), None
            seen.add(machine.disk.identity)
        for member in set(self.broker.group.members) - seen:
            self.broker.group.expire(member)
        self.note(None, "calm")
        if not self.drain():
            return ["stuck: still at work"]
        held = self.held()
        for transaction in list(self.broker.transactions.values()):
            self.note(None, f"transaction of {transaction.producer} times out")
            self.broker.time_out(transaction.producer)
        if not self.drain():
            return ["stuck: still at work"]
        return held + check(self.sent, self.topics)

    def drain(self) -> bool:
        return any(not self.calm() for _ in range(ROUNDS))

    def held(self) -> list[str]:
        """Slots that wait for the dead cell that ran them last, and nothing else: it could be asked to let go."""
        faults = []
        for slot in range(self.topics.slots):
            logs = (self.topics.progress[slot], self.topics.completions[slot])
            holders = {transaction.producer for log in logs for transaction in log.unsettled}
            listed = any(holder in self.broker.group.members for holder in holders)
            if holders and not listed and holders == {self.last_ready.get(slot)}:
                faults.append(f"held: slot {slot} waits for the transaction of {holders} to time out")
        return faults

    def start_over(self) -> None:
        """Every process ends, every view is gone; what Kafka holds is all there is."""
        self.note(None, "all start over, without views")
        for machine in self.machines:
            machine.cell = None
            machine.disk.views.clear()


def describe(cell: Cell) -> str:
    following = outbox.STEPS[cell.rules.view_before_told][cell.step].__name__
    slots = " ".join(f"{g.slot}:{g.stage.name.lower()}{'!' * g.revoked}" for g in cell.grants.values())
    return f" -> generation {cell.generation}, slots [{slots}], next {following}"
