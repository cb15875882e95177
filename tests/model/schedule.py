"""A schedule: what `choose` answers, from the size of the world to the last action. How one is run.

Most actions are a single step of a single cell, some are several, some disturb. Then all disturbances end,
everything drains, and the checker looks. Half of the schedules then start every cell once more, without its
views, drain, and look again: what Kafka holds must be enough.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.model import grants, outbox, worker
from tests.model.kafka import Choose
from tests.model.rules import ALL, Rules
from tests.model.world import Machine, Step, World

Action = Callable[[World, Machine], object]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a schedule; `trace` is empty unless it was asked for."""

    faults: list[str]
    events: int  # sent
    crashes: int  # processes killed
    fenced: int  # processes that ended because they were fenced, or had no answer to a commit
    trace: list[str]

    def report(self, of: str) -> str:
        return "\n".join([f"schedule {of}:", *self.trace, *self.faults])


def run_schedule(seed: int, rules: Rules = ALL, *, tracing: bool = False) -> Outcome:
    """The schedule of a seed."""
    chance = random.Random(seed).random
    return run(lambda n: int(chance() * n), rules, tracing=tracing)


def run_bytes(schedule: bytes, rules: Rules = ALL, *, tracing: bool = False) -> Outcome:
    """A schedule written out, a byte for each choice, zeros after the last: what Hypothesis can shrink."""
    numbers = iter(schedule)
    return run(lambda n: next(numbers, 0) % n, rules, tracing=tracing)


def run(choose: Choose, rules: Rules, *, tracing: bool) -> Outcome:
    world = World(choose, rules, tracing)
    if choose(2):
        world.calm()
        world.calm()
    machines, broker = world.machines, world.broker
    count, work, trouble = len(machines), len(WORK), len(TROUBLE)
    rare = (4, 10, 25)[choose(3)]  # one action in so many disturbs
    long = (1, 5, 20)[choose(3)]  # so many actions, about, of one machine while the others stand still
    machine = machines[0]
    for _ in range(choose(256) + choose(256)):
        if choose(4) == 3:
            broker.clock += 1
        if not choose(long):
            machine = machines[choose(count)]
        if choose(rare) < rare - 1:
            WORK[choose(work)](world, machine)
        else:
            if choose(2):  # where troubles hurt: in the midst of a commit
                world.step(machine, worker.read, choose(3))
                world.step(machine, worker.end_run, choose(3))
                world.step(machine, outbox.commit_step, choose(8))
            TROUBLE[choose(trouble)](world, machine)
    faults = world.heal()
    if not faults and choose(2):
        world.start_over()
        faults = world.heal()
    return Outcome(faults, len(world.sent), world.crashes, world.fenced, world.trace)


def step(of: Step, most: int = 1) -> Action:
    return lambda world, machine: world.step(machine, of, most)


def around(act: Callable[[World], object]) -> Action:
    return lambda world, _: act(world)


def weighted(*actions: tuple[int, Action]) -> tuple[Action, ...]:
    return tuple(action for weight, action in actions for _ in range(weight))


WORK = weighted(
    (1, World.round),
    (1, World.get_going),
    (5, around(World.send)),
    (3, step(worker.poll)),
    (1, step(worker.release)),
    (2, step(grants.grant_step)),
    (1, step(grants.grant_step, 6)),
    (4, step(worker.read)),
    (1, step(worker.read, 4)),
    (4, step(worker.end_run)),
    (6, step(outbox.commit_step)),
    (3, step(outbox.commit_step, 3)),
    (1, step(outbox.send_one)),
    (1, around(World.mark_one)),
    (1, around(World.handle)),
    (1, World.restart),
)
TROUBLE = weighted(
    (4, World.crash),
    (4, World.restart),
    (5, around(World.rebalance)),
    (2, around(World.expire)),
    (3, World.lapse),
    (3, World.leave_behind),
    (3, World.hand_over),
    (2, around(World.time_out)),
    (2, around(World.time_passes)),
    (2, World.fault),
    (2, World.leave_unanswered),
    (1, World.back_up),
    (1, around(World.retain)),
    (1, around(World.make_own_anew)),
)
