"""The broker: started, found and stopped, by any process, any number of times."""

import base64
import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from onceflow.devkafka.jars import KAFKA_VERSION, Installation, Progress, install, locked, silent, write_whole
from onceflow.errors import ConfigError, Fault

DEFAULT_DIRECTORY = Path("state/kafka")
HOST = "127.0.0.1"
# Below the range of outgoing connections, so that none takes a port between its choice and its use.
PORTS = range(20_000, 30_000)

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Broker:
    """A broker that runs."""

    bootstrap_servers: str
    directory: Path
    pid: int


# --- what is decided without touching anything -----------------------------------------------------------


def heap_option(environ: Mapping[str, str]) -> str:
    """The broker's heap as an option of Java: ONCEFLOW_KAFKA_HEAP, by default 1 GiB."""
    heap = environ.get("ONCEFLOW_KAFKA_HEAP") or "1g"
    if not re.fullmatch(r"[1-9][0-9]*[mMgG]", heap):
        raise ConfigError(f"ONCEFLOW_KAFKA_HEAP={heap}: write a size as Java does, such as 512m or 2g")
    return f"-Xmx{heap}"


def server_properties(port: int, controller_port: int, settings: Mapping[str, str] = NO_SETTINGS) -> str:
    """The text of server.properties for one node that is broker and controller; `settings` win."""
    listener, controller = f"PLAINTEXT://{HOST}:{port}", f"CONTROLLER://{HOST}:{controller_port}"
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "listeners": f"{listener},{controller}",
        "advertised.listeners": listener,
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "log.dirs": "data",  # below where it is started: no path, whatever its characters, has to be escaped
        # There is one node to replicate to.
        "default.replication.factor": "1",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # Quick to start, quick to form groups; the defaults (50 partitions each) are for clusters.
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "4",
        "group.initial.rebalance.delay.ms": "0",
        "log.cleaner.dedupe.buffer.size": "4194304",
        # After a kill the node waits until its former self's session has ended: 3 s, not 9.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        # A transaction past its time-out is ended within a second, not within ten.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        # A misspelt topic is an error.
        "auto.create.topics.enable": "false",
        **settings,
    }
    return "".join(f"{name}={value}\n" for name, value in properties.items())


# --- running ---------------------------------------------------------------------------------------------


def start(
    directory: Path = DEFAULT_DIRECTORY,
    port: int | None = None,
    *,
    settings: Mapping[str, str] = NO_SETTINGS,
    progress: Progress = silent,
    timeout_s: float = 60.0,
) -> Broker:
    """Start the broker of `directory`, or find it running; return once it answers, transactions included.

    Without `port`: the one that the directory had before, else a free one. `settings` go into
    server.properties; a broker that runs already keeps those it was started with.
    """
    directory = directory.absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "start.lock").touch()
    except OSError as error:
        raise ConfigError(
            f"{directory} cannot be used as a directory ({error.strerror}): name another one with --dir"
        ) from error
    deadline = time.monotonic() + timeout_s
    with locked(directory / "start.lock"):
        broker = status(directory)
        if broker is not None:
            if port is not None and broker.bootstrap_servers != f"{HOST}:{port}":
                raise ConfigError(
                    f"the Kafka in {directory} runs on {broker.bootstrap_servers} (process {broker.pid}): "
                    "stop it first to start it on another port"
                )
            _wait_until_ready(broker, deadline)
            return broker
        port = _choose_port(directory, port)
        installation = install(progress=progress)
        deadline = time.monotonic() + timeout_s  # anew: a download may take minutes
        broker = _launch(installation, directory, port, settings, progress)
        try:
            _wait_until_ready(broker, deadline)
        except BaseException:  # Ctrl-C too: nobody would know of the process
            _signal(broker, signal.SIGKILL)
            raise
    progress(f"Kafka {KAFKA_VERSION} runs on {broker.bootstrap_servers} (process {broker.pid}, {directory})")
    return broker


def status(directory: Path = DEFAULT_DIRECTORY) -> Broker | None:
    """The broker that runs in `directory`, if one does."""
    directory = directory.absolute()
    if not _runs(directory):
        return None
    try:
        pid, port = int((directory / "pid").read_text()), int((directory / "port").read_text())
    except (FileNotFoundError, ValueError):  # it takes a moment from the lock to the first line of its shell
        return None
    return Broker(f"{HOST}:{port}", directory, pid)


def stop(
    directory: Path = DEFAULT_DIRECTORY, *, progress: Progress = silent, timeout_s: float = 10.0
) -> bool:
    """End the broker of `directory`; whether there was one. What it holds stays for the next start."""
    directory = directory.absolute()
    if not directory.is_dir():
        return False
    with locked(directory / "start.lock"):
        broker = status(directory)
        if broker is None:
            return False
        _signal(broker, signal.SIGTERM)
        if not _wait_for(lambda: not _runs(directory), time.monotonic() + timeout_s):
            progress(f"Kafka did not end within {timeout_s:.0f} s of SIGTERM: killing process {broker.pid}")
            _signal(broker, signal.SIGKILL)
            if not _wait_for(lambda: not _runs(directory), time.monotonic() + timeout_s):
                raise Fault(f"process {broker.pid} (Kafka in {directory}) can't be killed")
    progress(f"Kafka in {directory} stopped")
    return True


def _launch(
    installation: Installation, directory: Path, port: int, settings: Mapping[str, str], progress: Progress
) -> Broker:
    data, properties, log = directory / "data", directory / "server.properties", directory / "broker.log"
    # The controller's port is known to this node alone, so each start takes a free one.
    properties.write_text(server_properties(port, _free_port(but=port), settings))
    write_whole(directory / "port", str(port))
    (directory / "pid").unlink(missing_ok=True)
    if log.exists():
        log.replace(directory / "broker.log.old")
    java = (
        str(installation.java),
        heap_option(os.environ),
        "-XX:-UsePerfData",  # nothing in /tmp
        "--sun-misc-unsafe-memory-access=allow",  # what Kafka does so; else the log begins with a warning
        f"-Djava.io.tmpdir={directory}",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.coordinator.group=info",  # who joined, left, failed
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-cp",
        os.pathsep.join(map(str, installation.class_path)),
    )
    if not (data / "meta.properties").exists():
        progress(f"formatting {data}")
        shutil.rmtree(data, ignore_errors=True)  # what an interrupted format left
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        _format(java, cluster, properties, log)
    # The outer shell ends at once, so the broker is nobody's child to wait for; the inner one leaves its id.
    spawn = ("sh", "-c", '"$@" &', "sh", "sh", "-c", 'echo $$ >"$0" && exec "$@"', str(directory / "pid"))
    running = os.open(directory / "running", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(running, fcntl.LOCK_EX)
        with log.open("ab") as output:
            subprocess.run(
                (*spawn, *java, "kafka.Kafka", str(properties)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C in this terminal is not for the broker
                pass_fds=(running,),
                cwd=directory,
                check=True,
            )
    finally:
        os.close(running)
    if not _wait_for(lambda: status(directory) or not _runs(directory), time.monotonic() + 10.0):
        raise Fault(f"the shell that should start {installation.java} hangs; try again")
    broker = status(directory)
    if broker is None:
        raise _did_not_start(directory, "ended at once")
    return broker


def _format(java: tuple[str, ...], cluster: str, properties: Path, log: Path) -> None:
    command = (*java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(properties))
    with log.open("wb") as output:
        outcome = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=log.parent, check=False
        )
    if outcome.returncode != 0:
        raise _did_not_start(log.parent, f"can't format its storage (status {outcome.returncode})")


def _wait_until_ready(broker: Broker, deadline: float) -> None:
    """Until a transaction can begin and a group's offsets can be asked for: the slowest parts."""
    host, port = broker.bootstrap_servers.split(":")

    def listens_or_ended() -> bool:
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
        except OSError:
            return not _runs(broker.directory)
        return True

    in_time = _wait_for(listens_or_ended, deadline)
    client = {
        "bootstrap.servers": broker.bootstrap_servers,
        "transactional.id": "devkafka-ready",
        "log_level": 0,
    }
    error: KafkaException | None = None
    while in_time and _runs(broker.directory):
        try:
            step_s = min(5.0, max(0.1, deadline - time.monotonic()))
            Producer(client).init_transactions(step_s)
            _ask_for_group(broker, step_s)
        except KafkaException as failure:
            error = failure
            in_time = time.monotonic() < deadline
        else:
            return
    reason = "ended" if not _runs(broker.directory) else "does not answer in time"
    raise _did_not_start(broker.directory, reason) from error


def _ask_for_group(broker: Broker, timeout_s: float) -> None:
    """Make the broker load its groups; a client that meets a coordinator not there yet may hang when it is freed."""
    reader = Consumer(
        {"bootstrap.servers": broker.bootstrap_servers, "group.id": "devkafka-ready", "log_level": 0}
    )
    try:
        reader.committed([TopicPartition("devkafka-ready", 0)], timeout=timeout_s)
    finally:
        reader.close()


def _did_not_start(directory: Path, reason: str) -> Fault:
    log = directory / "broker.log"
    tail = log.read_text(errors="replace").splitlines()[-20:] if log.exists() else []
    return Fault(
        f"the Kafka in {directory} {reason}. Is there disk, and memory (ONCEFLOW_KAFKA_HEAP)? Is "
        f"its port free (another port: --port)? The end of {log}:\n" + "\n".join(f"  {line}" for line in tail)
    )


def _choose_port(directory: Path, wanted: int | None) -> int:
    remembered = directory / "port"
    if wanted is None and remembered.exists():
        wanted = int(remembered.read_text())
    if wanted is None:
        return _free_port()
    if not _is_free(wanted):
        raise ConfigError(f"port {wanted} of {HOST} is taken by another program: choose another with --port")
    return wanted


def _free_port(but: int = 0) -> int:
    for _ in range(1000):
        port = secrets.choice(PORTS)
        if port != but and _is_free(port):
            return port
    raise Fault(f"no free port found from {PORTS.start} to {PORTS.stop}: name one with --port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does; connections may linger
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _runs(directory: Path) -> bool:
    """Whether a process holds the lock that the broker inherited."""
    try:
        running = os.open(directory / "running", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(running, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(running)
    return False


def _signal(broker: Broker, number: signal.Signals) -> None:
    if _runs(broker.directory):
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.kill(broker.pid, number)


def _wait_for(condition: Callable[[], object], deadline: float) -> bool:
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
