"""One test's flow on one Kafka: its topics, load and cells, what comes out, and what was done when.

Whatever a test waits for, the scene looks after the cells meanwhile: one that ended with status 3 is started again, as
a supervisor would; any other end that the test didn't ask for fails the test.
"""

import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from confluent_kafka.admin import AdminClient, NewTopic

from onceflow.config import Events, Kafka, Settings
from onceflow.observe.open_runs import read_open_runs
from onceflow.observe.status import read_status
from onceflow.stream.cluster import Cluster
from onceflow.stream.topics import Names, prepare
from tests.crash.cells import Cell
from tests.crash.checker import Contents, Event, Sent, echoes, faults
from tests.crash.checker import Reader as Outputs
from tests.crash.load import TYPE, Load, Mix, Record, encode, outcome
from tests.waiting import wait_until

PARTITIONS = 16  # of the shared topic, and so the flow's slots
TENANTS = 120
OWN = ("own-a", "own-b", "own-c")  # tenants with a topic of their own
SETTLED_S = 60.0  # for all that was sent to come out
CLIENT_BUG = "rd_kafka_enq_once_del_source_return"  # librdkafka 2.16's assertion, see onceflow.stream.cluster
TAIL = 2_000  # bytes of a log that are shown
MODES = ("all kept", "recovery and state lost", "slots moved")  # what a death leaves


class Scene:
    """See above. `seed` decides the load and `random`, with which tests choose their moments."""

    def __init__(
        self, flow: str, bootstrap_servers: str, directory: Path, write: Callable[[str], None] = print
    ) -> None:
        self._write = write  # takes the lines of `say`
        self.flow, self.bootstrap_servers, self.directory = flow, bootstrap_servers, directory
        self.shared, self.own_prefix = f"{flow}-shared", f"{flow}-own."
        self.client_aborts = 0  # cells that librdkafka's own assertion ended; like a kill -9
        self.admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
        self.cells: list[Cell] = []
        self.random = random.Random(0)
        self.load: Load | None = None
        self._outputs: Outputs | None = None
        self._agent, self._contents = "echo", echoes
        self._started_at = time.monotonic()
        self._settings = Settings(
            kafka=Kafka(bootstrap_servers=bootstrap_servers),
            events=Events(shared=(self.shared,), tenant_prefix=self.own_prefix, signals=f"{flow}-signals"),
        )

    # --- what a test sets up ---

    def prepare(self) -> None:
        """Make the flow's topics."""
        self.topic(self.shared, PARTITIONS)
        for tenant in OWN:
            self.topic(self.own_prefix + tenant, 1)
        inputs = {self.shared, *(self.own_prefix + tenant for tenant in OWN)}
        # A topic just made may not be listed yet, and the slots are chosen by the partitions of the shared one.
        wait_until(lambda: self._with_leaders() >= inputs, 30, "the inputs have leaders")
        cluster = Cluster(self._settings.kafka.properties())
        cluster.patiently(lambda: prepare(self.flow, cluster, self._settings))
        wait_until(
            lambda: self._with_leaders() >= inputs | set(Names.of(self.flow)), 30, "all topics have leaders"
        )

    def topic(self, name: str, partitions: int) -> None:
        """Make an input topic."""
        self.admin.create_topics([NewTopic(name, partitions)])[name].result(20)

    def seed(self, seed: int, events_per_s: int = 1_000) -> None:
        """Choose load and moments."""
        self.say(f"seed {seed}, logs in {self.directory}")
        self.random = random.Random(seed)
        self.load = self._new_load(seed, events_per_s)

    def load_again(self, seed: int, events_per_s: int = 1_000) -> None:
        """Start another load after one that was stopped; what was sent before stays on record."""
        assert self.load is not None
        sent = self.load.stop()
        self.load = self._new_load(seed, events_per_s)
        self.load.sent = sent
        self.load.start()

    def cell(self, name: str, module: str = "tests.crash.echo_flow", **environment: str) -> Cell:
        """A cell, not started yet."""
        usual = {
            "ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "ONCEFLOW_EVENTS__SHARED": self.shared,
            "ONCEFLOW_EVENTS__TENANT_PREFIX": self.own_prefix,
            "ONCEFLOW_EVENTS__SIGNALS": f"{self.flow}-signals",
            "ONCEFLOW_TOPICS_REFRESH": "0.5",
            "CRASH_FLOW": self.flow,
        }
        cell = Cell(name, self.directory / name, module, usual | environment)
        self.cells.append(cell)
        return cell

    def send(self, event: Event, *, topic: str = "", kind: str = TYPE) -> None:
        """Send one event of this type: to `topic`, or to the shared one."""
        assert self.load is not None
        key = "" if topic else event.tenant
        self.load.send(
            Record(topic or self.shared, 0 if topic else -1, key, encode(event, kind), [], event, "")
        )

    # --- what a test does ---

    def say(self, what: str) -> None:
        """A line of what was done when; pytest shows it if the test fails."""
        self._write(f"{time.monotonic() - self._started_at:7.2f} s  {what}")

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = SETTLED_S) -> None:
        """Wait, looking after the cells."""

        def served() -> bool:
            self._look_after_cells()
            return bool(condition())

        try:
            wait_until(served, timeout_s, what)
        except AssertionError as error:
            for cell in self.cells:  # whose files may be gone when somebody asks why
                error.add_note(f"{cell.name}, statuses {cell.statuses}, its log ends with:\n{cell.stands()}")
            raise
        self.say(what)

    def wait_for_sent(self, more: int) -> None:
        """Wait until so many records more were sent."""
        assert self.load is not None
        sent = self.load.sent
        goal = len(sent) + more
        self.wait(lambda: len(sent) >= goal, f"{more} more records sent ({goal})")

    def wait_for_output(self, more: int) -> None:
        """Wait until so many records more have come out."""
        goal = self.outputs.more() + more
        self.wait(lambda: self.outputs.more() >= goal, f"{more} more records came out ({goal})")

    def expect(self, agent: str, contents: Contents) -> None:
        """Say what completions are to be; unless told, those of the flow `echo`."""
        self._agent, self._contents = agent, contents

    def let_die(self, cell: Cell, mode: str, serves: Callable[[], object] | None = None) -> None:
        """Start a cell that is doomed, and wait for its death. Unless its slots move, it is started again with what is
        left, until it `serves` (unless given: until something came out), and killed.
        """
        cell.start()
        self.wait(lambda: -9 in cell.statuses, f"it dies: {cell.doom['CRASH_AT']}")
        cell.doom = {}
        if mode == "recovery and state lost":
            cell.lose_recovery()
            cell.lose_state()
        if mode == "slots moved":
            return
        cell.start()
        if serves is None:
            self.wait_for_output(1)
        else:
            self.wait(serves, "it serves")
        cell.kill()

    def wait_for_members(self, wanted: Mapping[str, bool]) -> None:
        """Wait until the group lists exactly these cells, those marked True with slots, and all slots are owned."""

        def so() -> bool:
            found = self.members()
            return (
                found.keys() == wanted.keys()
                and all(found[name] for name, owns in wanted.items() if owns)
                and sum(found.values()) == PARTITIONS
            )

        self.wait(so, f"the group has {len(wanted)} members and all slots are owned")

    def members(self) -> dict[str, int]:
        """The group's members by instance id, and how many slots each has."""
        # A client that saw Kafka killed may wait for its former coordinator for ever; so each question has its own.
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        described = admin.describe_consumer_groups([self.flow])[self.flow].result(30)
        return {
            member.group_instance_id: len(member.assignment.topic_partitions) for member in described.members
        }

    def unfinished(self) -> int:
        """How many events are neither done nor in the ledger's care."""
        return sum(each.unfinished for each in read_status(self.flow, self._settings).inputs)

    @property
    def outputs(self) -> Outputs:
        """What comes out."""
        if self._outputs is None:
            topics = (f"{self.flow}.completions", f"{self.flow}.dead-letters")
            self._outputs = Outputs(self.bootstrap_servers, topics)
        return self._outputs

    def settle(self, timeout_s: float = SETTLED_S) -> list[Sent]:
        """Stop the load and wait until as much has come out as must; return what was sent."""
        assert self.load is not None
        sent = self.load.stop()
        runs = {(s.event.tenant, s.event.key): s.event for s in sent if s.event is not None}
        failed = sum(1 for event in runs.values() if outcome(event).failed)
        wanted = len(runs) + failed + sum(1 for s in sent if s.event is None)
        try:
            self.wait(
                lambda: self.outputs.more() >= wanted, f"{wanted} outputs of {len(sent)} records", timeout_s
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._wrong(sent)}") from None
        return sent

    def check(self, timeout_s: float = SETTLED_S) -> None:
        """Stop the load, wait until all is done, and check what came out; the cells go on."""
        sent = self.settle(timeout_s)
        self.wait(self.outputs.at_end, "all output is read, no transaction is open", timeout_s)
        wrong = self._wrong(sent)
        assert not wrong, f"{wrong}\nlogs: {self.directory}"
        self.say(f"right so far: {len(sent)} records")

    def finish(
        self,
        *,
        agent: str = "",
        contents: Contents = echoes,
        but: Callable[[Sent], bool] = lambda _: False,
    ) -> None:
        """Wait until all is done, end the cells, and check what came out. `but`: records that must not be done.

        `agent`, `contents`: see `expect`.
        """
        assert agent or contents is echoes, "whose contents?"
        if agent:
            self.expect(agent, contents)
        if self.load is not None and not any(but(record) for record in self.load.sent):
            self.settle()
        for cell in self.cells:
            if cell.running():
                status = cell.end(signal.SIGTERM)
                self.say(f"{cell.name}: SIGTERM, status {status}")
                assert status == 0, f"{cell.name} ended with {status} when asked to: {self._tail(cell)}"
        self.wait(self.outputs.at_end, "all output is read, no transaction is open")
        assert self.load is not None
        wrong = self._wrong([s for s in self.load.stop() if not but(s)])
        assert not wrong, f"{wrong}\nlogs: {self.directory}"
        left = [f"{run.key.hex()} of {run.tenant}" for run in read_open_runs(self.flow, self._settings)]
        assert not left, f"{len(left)} runs have ended and are open in the ledger: {left[:5]}"
        ends = {cell.name: cell.statuses for cell in self.cells}
        self.say(f"right; statuses {ends}")

    def remove_topics(self) -> None:
        """Delete the flow's topics from a Kafka that others use."""
        ours = [name for name in self.admin.list_topics(timeout=10).topics if name.startswith(self.flow)]
        for removed in self.admin.delete_topics(ours).values():
            removed.result(20)

    def close(self) -> None:
        """End all that still runs."""
        for cell in self.cells:
            if cell.running():
                cell.send(signal.SIGCONT)
                cell.end(signal.SIGKILL)
        if self.load is not None:
            self.load.abandon()
        if self._outputs is not None:
            self._outputs.close()

    # --- within ---

    def _new_load(self, seed: int, events_per_s: int) -> Load:
        mix = Mix(seed, self.shared, PARTITIONS, OWN, self.own_prefix, TENANTS)
        return Load(self.bootstrap_servers, mix, PARTITIONS, events_per_s=events_per_s)

    def _look_after_cells(self) -> None:
        for cell in self.cells:
            status = cell.ended()
            if status is None:
                continue
            self.say(f"{cell.name} ended with status {status} ({cell.log.name})")
            if cell.doom and status == -signal.SIGKILL:
                continue  # it met its crash point
            if status == -signal.SIGABRT and CLIENT_BUG in cell.text():
                self.client_aborts += 1
                cell.start()
                continue
            assert status == 3, f"{cell.name} ended with status {status}: {self._tail(cell)}"
            cell.start()

    def _wrong(self, sent: list[Sent]) -> str:
        found = self.outputs.found
        return "\n".join(
            faults(
                sent,
                found[f"{self.flow}.completions"],
                found[f"{self.flow}.dead-letters"],
                flow=self.flow,
                agent=self._agent,
                slots=PARTITIONS,
                contents=self._contents,
                outcome=outcome,
            )
        )

    def _with_leaders(self) -> set[str]:
        """The topics that are listed with a leader for each partition."""
        topics = self.admin.list_topics(timeout=10).topics.values()
        return {topic.topic for topic in topics if all(p.leader >= 0 for p in topic.partitions.values())}

    def _tail(self, cell: Cell) -> str:
        return f"{cell.log}\n{cell.text()[-TAIL:]}"
