"""What a cell asks of Kafka beside reading and writing: topics, offsets, settings, members of a group.

Each question waits for its answer up to a deadline; `patiently` asks again while Kafka is away and says so in
the log.
"""

import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public there, but not re-exported for checkers
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from onceflow.errors import ConfigError, OnceflowError

log = logging.getLogger(__name__)

ANSWER_S = 10.0
LISTED_S = 30.0  # hundreds of partitions that were just made, on a busy broker
_TOPICS_AT_ONCE = 500  # whose settings, some forty each, are asked for in one request
T = TypeVar("T")

Partition = tuple[str, int]  # topic, partition


class _Debug(logging.Filter):
    """Demotes librdkafka's own lines (one per try while a broker is away); what matters comes as an error."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


client_log = logging.getLogger("onceflow.librdkafka")
client_log.addFilter(_Debug())

# While a broker is away: try four times a second, not every few milliseconds.
RECONNECT = {"reconnect.backoff.ms": 250, "reconnect.backoff.max.ms": 1_000}


class Topic(NamedTuple):
    """A topic as the cluster knows it; its id changes when it is deleted and made anew."""

    name: str
    id: str
    partitions: int


def by_partition(messages: list[Message]) -> Iterator[tuple[Partition, list[Message]]]:
    """Messages as a client hands them out: some hundred of one partition, then of another. None is an error."""
    partitions = [message.partition() or 0 for message in messages]
    topics = [message.topic() or "" for message in messages]
    if len(set(partitions)) == 1 and len(set(topics)) == 1:
        yield (topics[0], partitions[0]), messages
        return
    start = 0
    for end in range(1, len(messages) + 1):
        if end == len(messages) or partitions[end] != partitions[start] or topics[end] != topics[start]:
            yield (topics[start], partitions[start]), messages[start:end]
            start = end


@contextmanager
def client_made(properties: Mapping[str, str]) -> Iterator[None]:
    """Around the making of a client with these properties; ConfigError for one that librdkafka does not take."""
    try:
        yield
    except (KafkaException, TypeError) as error:  # TypeError: a property that only code can give, a callback
        if isinstance(error, KafkaException) and error.args[0].code() != KafkaError._INVALID_ARG:
            raise
        cause = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        setting = ".".join(["kafka.client", *[name for name in properties if name in cause][:1]])
        raise ConfigError(
            f"{setting}: librdkafka refuses it ({cause}). Write a property and a value that it knows; "
            "`onceflow config` shows what is set, and where"
        ) from error


def answers(properties: Mapping[str, str]) -> bool:
    """Whether Kafka answers a client that is made anew; one that went through an outage may never find back."""
    try:
        AdminClient(dict(properties), logger=client_log).list_topics(timeout=2.0)
    except KafkaException:
        return False
    return True


class KafkaAway(OnceflowError):  # noqa: N818
    """Kafka did not answer in time."""

    exit_status = 3


class Cluster:
    """Answers questions about a Kafka cluster."""

    def __init__(self, properties: Mapping[str, str]) -> None:
        self.servers = properties["bootstrap.servers"]
        self._properties = dict(properties)
        self.renew()

    def patiently(self, question: Callable[[], T], *, stop: Callable[[], bool] = lambda: False) -> T:
        """Ask until there is an answer; a line in the log now and then while Kafka is away."""
        line_at = time.monotonic()
        while True:
            try:
                return question()
            except KafkaAway as away:
                if stop():
                    raise
                self.renew()
                if time.monotonic() >= line_at:
                    log.warning("%s; still trying", away)
                    line_at = time.monotonic() + 10

    def renew(self) -> None:
        """Ask with a client made anew from now on: one that went through an outage may never find back."""
        with client_made(self._properties):
            self._admin = AdminClient(
                {"retry.backoff.ms": 10, **RECONNECT, **self._properties}, logger=client_log
            )

    def topic_names(self) -> dict[str, int]:
        """All topics, with their partition counts."""
        try:
            listed = self._admin.list_topics(timeout=ANSWER_S).topics
        except KafkaException as exception:
            raise self._away(exception) from exception
        return {name: len(topic.partitions) for name, topic in listed.items() if topic.error is None}

    def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        """Those of the named topics that exist."""
        wanted = list(names)
        if not wanted:
            return {}
        found = {}
        for name, answer in self._admin.describe_topics(
            TopicCollection(wanted), request_timeout=ANSWER_S
        ).items():
            described = self._result(answer, missing=(KafkaError.UNKNOWN_TOPIC_OR_PART,))
            if described is not None:
                found[name] = Topic(name, str(described.topic_id), len(described.partitions))
        return found

    def first_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The lowest offset that each partition still has."""
        return self._offsets(partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    def first_offsets_known(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The same, without the partitions that have no leader now, or are gone."""
        return self._offsets(partitions, OffsetSpec.earliest(), partly=True)  # type: ignore[no-untyped-call]

    def end_offsets(self, partitions: Iterable[Partition], *, stable: bool = False) -> dict[Partition, int]:
        """Each partition's high watermark; `stable`: its last stable offset, below every open transaction."""
        level = IsolationLevel.READ_COMMITTED if stable else IsolationLevel.READ_UNCOMMITTED
        return self._offsets(partitions, OffsetSpec.latest(), level)  # type: ignore[no-untyped-call]

    def stable_offsets_known(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Each partition's last stable offset, without the partitions that have no leader now, or are gone."""
        spec, level = OffsetSpec.latest(), IsolationLevel.READ_COMMITTED  # type: ignore[no-untyped-call]
        return self._offsets(partitions, spec, level, partly=True)

    def offsets_at(self, partitions: Iterable[Partition], time_ms: int) -> dict[Partition, int]:
        """The first offset whose record is of this time or later; the end where there is none."""
        wanted = list(partitions)
        ends = self.end_offsets(wanted)
        found = self._offsets(wanted, OffsetSpec.for_timestamp(time_ms))
        return {partition: ends[partition] if offset < 0 else offset for partition, offset in found.items()}

    def settings(self, topic: str) -> dict[str, str]:
        """A topic's settings."""
        return self._settings([topic])[topic]

    def settings_known(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """Topics' settings, without those of topics whose settings this client may not see."""
        wanted, found = list(topics), dict[str, dict[str, str]]()
        for first in range(0, len(wanted), _TOPICS_AT_ONCE):
            found |= self._settings(wanted[first : first + _TOPICS_AT_ONCE], missing=_NO_ACCESS)
        return found

    def _settings(self, topics: list[str], *, missing: Container[int] = ()) -> dict[str, dict[str, str]]:
        resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
        found = {}
        for resource, answer in self._admin.describe_configs(resources, request_timeout=ANSWER_S).items():
            entries: dict[str, ConfigEntry] | None = self._result(answer, missing=missing)
            if entries is not None:
                set_ = {name: entry.value for name, entry in entries.items() if entry.value is not None}
                found[resource.name] = set_
        return found

    def change_settings(self, topic: str, settings: Mapping[str, str]) -> None:
        """Set some of a topic's settings; the others stay."""
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            for name, value in settings.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        self._result(self._admin.incremental_alter_configs([resource], request_timeout=ANSWER_S)[resource])

    def create(
        self, topic: str, partitions: int, settings: Mapping[str, str], replication: int | None
    ) -> None:
        """Make a topic; one that another process has just made is as good."""
        new = NewTopic(topic, partitions, -1 if replication is None else replication, config=dict(settings))
        answer = self._admin.create_topics([new], request_timeout=ANSWER_S)[topic]
        try:
            self._result(answer, missing=(KafkaError.TOPIC_ALREADY_EXISTS,))
        except KafkaException as exception:
            if exception.args[0].code() != KafkaError.INVALID_REPLICATION_FACTOR:
                raise
            given = "unset" if replication is None else str(replication)
            raise ConfigError(
                f"kafka.topics.replication_factor is {given}, and Kafka refuses that for {topic} "
                f"({exception.args[0].str().rstrip('.')}): set it to the number of brokers at most"
            ) from exception

    def await_topics(self, names: Iterable[str]) -> None:
        """Wait until topics just made are known to the broker that answers; making one returns earlier."""
        deadline = time.monotonic() + LISTED_S
        wanted = set(names)
        while missing := wanted - self.topic_names().keys():
            if time.monotonic() > deadline:
                raise KafkaAway(no_answer(self.servers, f"topic {min(missing)} was made and isn't listed"))
            time.sleep(0.05)

    def members(self, group: str) -> dict[str, set[int]]:
        """The cells that the group lists, each with the partitions (slots) it has."""
        deadline = time.monotonic() + ANSWER_S
        while True:
            try:
                # First whether Kafka answers at all: librdkafka 2.16 may abort the process (an assertion in
                # rdkafka_queue.h) when a question about a group runs out of time while its broker is away.
                self.topic_names()
                answer = self._admin.describe_consumer_groups([group], request_timeout=ANSWER_S / 4)[group]
                described = self._result(answer, missing=(KafkaError.GROUP_ID_NOT_FOUND,))
                break
            except KafkaAway:  # a broker that has just started loads its groups first
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        if described is None:
            return {}
        return {
            member.group_instance_id or member.member_id: {
                assigned.partition for assigned in member.assignment.topic_partitions
            }
            for member in described.members
        }

    def delete_records(self, before: Mapping[Partition, int]) -> None:
        """Delete the records below these offsets."""
        wanted = [TopicPartition(topic, partition, offset) for (topic, partition), offset in before.items()]
        for answer in self._admin.delete_records(wanted, request_timeout=ANSWER_S).values():
            self._result(answer, missing=(KafkaError.OFFSET_OUT_OF_RANGE,))

    def _offsets(
        self,
        partitions: Iterable[Partition],
        spec: OffsetSpec,
        level: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
        *,
        partly: bool = False,
    ) -> dict[Partition, int]:
        wanted = {TopicPartition(topic, partition): spec for topic, partition in partitions}
        if not wanted:
            return {}
        answers = self._admin.list_offsets(wanted, isolation_level=level, request_timeout=ANSWER_S)
        missing = _NOT_THERE if partly else ()
        found = {at: self._result(answer, missing=missing) for at, answer in answers.items()}
        return {(at.topic, at.partition): it.offset for at, it in found.items() if it is not None}

    def _result(self, answer: Any, *, missing: Container[int] = ()) -> Any:
        """What was answered; None for one of these errors."""
        try:
            return answer.result(ANSWER_S + 5)
        except KafkaException as exception:
            if exception.args[0].code() in missing:
                return None
            raise self._away(exception) from exception
        except TimeoutError as error:
            raise KafkaAway(no_answer(self.servers, "no answer")) from error

    def _away(self, exception: KafkaException) -> Exception:
        error = exception.args[0]
        return KafkaAway(no_answer(self.servers, error.str())) if is_away(error) else exception


def no_answer(servers: str, cause: str) -> str:
    """What is said when Kafka is away."""
    return (
        f"Kafka at {servers} does not answer ({cause}). Start one with `onceflow kafka start`, or set "
        "ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS"
    )


def is_away(error: KafkaError) -> bool:
    """Whether it says that Kafka is away, wholly or in part, and may be back later."""
    return error.code() in _AWAY or error.retriable()


_NO_ACCESS = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
_NOT_THERE = (  # a partition; others may be
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
)
_AWAY = (
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._NOENT,  # "No leaders found": just restarted
    KafkaError._WAIT_COORD,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.FENCED_LEADER_EPOCH,  # this and the next two: just restarted, or a topic that has just gone
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)
