"""What can be set: units, defaults, limits, and what fits together."""

import json
import math
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from onceflow.errors import ConfigError

PREFIX = "ONCEFLOW_"
FLOW_TOPICS = ("inbox", "completions", "dead-letters", "ledger", "progress")
CLIENT = "kafka.client."

_FLOW = re.compile(r"[a-z][a-z0-9-]{0,62}")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ONLY_OURS = {
    "bootstrap.servers": "left out: set kafka.bootstrap_servers instead",
    "session.timeout.ms": "left out: set session_timeout instead",
    "transaction.timeout.ms": "left out: set transaction_timeout instead",
    "heartbeat.interval.ms": "left out: it follows session_timeout",
    "max.poll.interval.ms": "left out: a cell always polls within milliseconds",
    "batch.size": "left out: it follows the topics' max.message.bytes",
    "message.max.bytes": "left out: it follows the topics' max.message.bytes",
} | dict.fromkeys(
    [
        *("group.id", "group.instance.id", "group.protocol", "partition.assignment.strategy"),
        *("transactional.id", "enable.idempotence", "isolation.level", "auto.offset.reset"),
        *("enable.auto.commit", "enable.auto.offset.store"),
    ],
    "left out: exactly once depends on the value that onceflow gives it",
)


def _refused(setting: str, allowed: str) -> PydanticCustomError:
    return PydanticCustomError(
        "setting", "{setting} must be {allowed}", {"setting": setting, "allowed": allowed}
    )


def _seconds(value: object) -> object:
    """A number in a string is seconds too: the environment has nothing but strings."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _names(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [name.strip() for name in value.split(",") if name.strip()]


def _properties(value: object) -> object:
    """librdkafka takes strings; TOML may have said `true` or 5."""
    if not isinstance(value, dict):
        return value
    return {
        name: each if isinstance(each, str) else json.dumps(each, default=str) for name, each in value.items()
    }


Duration = Annotated[timedelta, BeforeValidator(_seconds)]
TopicNames = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")], ...], NoDecode, BeforeValidator(_names)
]


def _setting(default: Any, description: str, unit: str = "", allowed: str = "", **bounds: Any) -> Any:
    extra: JsonDict = {"unit": unit, "allowed": allowed}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def _whole(default: int | None, unit: str, description: str, least: int = 1, most: int | None = None) -> Any:
    return _setting(default, description, unit, ge=least, le=most)


def _time(default_s: float, description: str, least_s: float, most_s: float) -> Any:
    least, most = timedelta(seconds=least_s), timedelta(seconds=most_s)
    return _setting(timedelta(seconds=default_s), description, "s", ge=least, le=most)


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class KafkaTopics(_Table):
    """How `onceflow prepare` makes topics; what is not set is as the cluster says."""

    replication_factor: int | None = _whole(None, "replicas", "Copies of each topic")
    min_insync_replicas: int | None = _whole(None, "replicas", "Copies that must have a record to count")


class Kafka(_Table):
    """The cluster, and how its clients connect."""

    bootstrap_servers: str = _setting(
        "127.0.0.1:9092",
        "The brokers: host:port, comma-separated",
        allowed="host:port of each broker, comma-separated; users and passwords belong into kafka.client",
        pattern=r"^[^@]+$",  # it is logged
    )
    client: Annotated[dict[str, str], BeforeValidator(_properties)] = Field(
        default_factory=dict,
        repr=False,  # it holds passwords
        description="Any property of librdkafka, given to every client (environment: _ for the dot)",
        json_schema_extra={"allowed": "a table of librdkafka's properties"},
    )
    topics: KafkaTopics = KafkaTopics()

    def properties(self) -> dict[str, str]:
        """What every client of this cluster is made with, secrets in clear."""
        # Re-bootstrapping, librdkafka's default while all brokers are down, leaves an open transaction stuck.
        return {
            "bootstrap.servers": self.bootstrap_servers,
            "metadata.recovery.strategy": "none",
            **self.client,
        }


def _place(default: Any, description: str) -> Any:
    allowed = "header:NAME, key (Kafka's), /json/pointer or =constant"
    return _setting(default, description, allowed=allowed, pattern=r"^(key|header:.+|/.*|=.+)$")


class Plain(_Table):
    """Where producers that send no CloudEvents put what an event needs."""

    tenant: str | None = _place(None, "Where the tenant is found; unset: in the topic's name only")
    id: str = _place(..., "Where the event's id is found")
    source: str = _place(..., "Where the event's source is found")
    type: str = _place(..., "Where the event's type is found")


class Events(_Table):
    """The topics that events come from."""

    tenant_prefix: str = _setting(
        "events.",
        "A topic of this prefix and a tenant's name is that tenant's own; empty: there are none",
        allowed="empty, or up to 120 letters, digits, '.', '_', '-' that begin with a letter or digit",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,119})?$",
    )
    shared: TopicNames = _setting(("events",), "Topics that tenants share", allowed="a list of topic names")
    signals: str = _setting(
        "signals",
        "The topic of the signals that end waits, of all tenants; empty: none are read",
        allowed="empty, or a topic's name",
        pattern=r"^[A-Za-z0-9._-]{0,249}$",
    )
    plain: Plain | None = None

    @property
    def needs_key(self) -> bool:
        """Whether an event cannot be read again without its record's Kafka key: more than its tenant is made of it."""
        plain = self.plain
        return plain is not None and "key" in (plain.id, plain.source, plain.type)

    def is_input(self, topic: str) -> bool:
        """Whether events or signals are read from this topic."""
        return topic in (*self.shared, self.signals) or self.is_tenants_own(topic)

    def is_tenants_own(self, topic: str) -> bool:
        """Whether this topic is the prefix and a tenant's name."""
        prefix = self.tenant_prefix
        return bool(prefix) and topic.startswith(prefix) and bool(_TENANT.fullmatch(topic, len(prefix)))


class Dedup(_Table):
    """When two events are the same."""

    window: Duration = _setting(
        timedelta(hours=72), "How long after a completion a copy is a duplicate", "s", gt=timedelta(0)
    )
    content: Literal["bytes", "canonical", "ignore"] = _setting(
        "bytes", "What of `data` is part of the key: its bytes, its re-encoded canonical form, or nothing"
    )
    conflict: Literal["distinct", "reject"] = _setting(
        "distinct", "The same source and id with other data: a run of its own, or a dead letter `conflict`"
    )


class Limits(_Table):
    """What bounds a cell's memory and keeps one tenant from taking it all."""

    value_bytes: int = _whole(1_000_000, "bytes", "Largest event, value and headers", 1024, 1_000_000)
    unfinished_per_input: int = _whole(4096, "events", "Unfinished events at which an input is paused")
    unfinished_per_cell: int = _whole(
        65_536, "events", "Unfinished events of a cell; of paused inputs only a share counts"
    )
    unfinished_bytes: int = _whole(
        64 << 20, "bytes", "Records of a cell's unfinished events; of paused inputs only a share counts", 1024
    )
    runs_per_lane: int = _whole(64, "runs", "Runs in flight of one tenant in a cell")
    runs_per_cell: int = _whole(8192, "runs", "Runs in flight of a cell")
    lane_queue: int = _whole(1024, "events", "Events of one tenant that may wait in a cell for a run")
    calls_at_once: int = _whole(64, "calls", "Calls of one tool by one tenant at a time, in a cell")
    calls_per_second: float = _setting(0.0, "Calls of one tool by one tenant per second; 0: no limit", ge=0)
    calls_failing: int = _whole(8, "calls", "Failures in a row that have a tool left in peace; 0: never", 0)
    prefetch_bytes: int = _whole(32 << 20, "bytes", "What a cell's consumer fetches ahead", 1 << 20, 1 << 31)


class Settings(BaseSettings):
    """All settings of a flow. Made in code it takes what it is given and never looks at the environment."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=True, env_prefix=PREFIX, env_nested_delimiter="__"
    )

    state_dir: Path = _setting(
        Path("state"), "Where a cell keeps its identity and views; unset: state/<flow>"
    )
    slots: int | None = _whole(
        None, "slots", "Shares that tenants are divided into; unset: as prepared", 1, 256
    )
    kafka: Kafka = Kafka()
    events: Events = Events()
    dedup: Dedup = Dedup()
    commit_interval: Duration = _time(0.1, "Longest that a decision waits for a commit", 0.001, 10)
    transaction_timeout: Duration = _time(30, "A transaction open for longer is ended by the broker", 1, 900)
    session_timeout: Duration = _time(6, "A cell silent for longer loses its slots", 1, 1800)
    grace: Duration = _time(10, "How long running calls may go on when a cell is asked to end", 0, 3600)
    topics_refresh: Duration = _time(5, "How often new tenants' topics are looked for", 0.1, 3600)
    limits: Limits = Limits()
    log: Literal["text", "json"] = _setting("text", "Form of the log on standard error")
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "Least level that is logged")
    flags: Path = _setting(Path("flags.toml"), "What run.flag asks; may be changed while cells run")
    http_port: int = _whole(0, "", "Port of /metrics, /healthz and /readyz; 0: off", 0, 65_535)
    http_host: str = _setting("127.0.0.1", "Address that they are served on", min_length=1)

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(cls, *_: Any, **sources: Any) -> tuple[Any, ...]:
        return (sources["init_settings"],)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        limits, topics, events = self.limits, self.kafka.topics, self.events
        if self.state_dir == Path():
            raise _refused("state_dir", "a directory of the cell's own")
        for larger, smaller in (
            ("runs_per_cell", "runs_per_lane"),
            ("unfinished_per_cell", "unfinished_per_input"),
            ("unfinished_bytes", "value_bytes"),
            ("prefetch_bytes", "value_bytes"),
        ):
            if getattr(limits, smaller) > getattr(limits, larger):
                least = f"at least limits.{smaller}, which is {getattr(limits, smaller)}"
                raise _refused(f"limits.{larger}", least)
        if self.commit_interval * 2 > self.transaction_timeout:
            raise _refused("transaction_timeout", "at least twice commit_interval")
        if (topics.min_insync_replicas or 1) > (topics.replication_factor or math.inf):
            most = f"at most kafka.topics.replication_factor, which is {topics.replication_factor}"
            raise _refused("kafka.topics.min_insync_replicas", most)
        for name in self.kafka.client:
            if name in _ONLY_OURS:
                raise _refused(CLIENT + name, _ONLY_OURS[name])
        if not events.tenant_prefix and not events.shared:
            raise _refused("events.shared", "at least one topic, as events.tenant_prefix is empty too")
        if events.signals in events.shared or events.is_tenants_own(events.signals):
            other = "a topic that is not in events.shared and is not a tenant's own (events.tenant_prefix and a name)"
            raise _refused("events.signals", other)
        for topic in events.shared:
            if events.is_tenants_own(topic):
                other = f"a prefix that topic {topic!r} does not begin with (a trailing '.' helps)"
                raise _refused("events.tenant_prefix", other)
        return self


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        for table in (field.annotation, *get_args(field.annotation)):
            if isinstance(table, type) and issubclass(table, BaseModel):
                yield from _leaves(table, f"{prefix}{name}.")
                break
        else:
            yield prefix + name, field


SETTINGS = dict(_leaves(Settings))
"""Every setting by its dotted name. `kafka.client` is a table whose names are librdkafka's."""


def _read_as(topic: str, events: Events) -> str:
    if topic == events.signals:
        return f"signals (events.signals {events.signals!r})"
    shared = ", ".join(events.shared)
    return f"events (events.tenant_prefix {events.tenant_prefix!r}, events.shared {shared})"


def flow_name(name: str, settings: Settings) -> str:
    """This name, if a flow may have it under these settings."""
    if not isinstance(name, str) or not _FLOW.fullmatch(name):
        raise ConfigError(
            f"flow name {name!r}: must be 1 to 63 lower-case letters, digits and '-', and begin with a letter"
        )
    for topic in (f"{name}.{suffix}" for suffix in FLOW_TOPICS):
        if settings.events.is_input(topic):
            raise ConfigError(
                f"flow name {name!r}: its topic {topic!r} would be read as {_read_as(topic, settings.events)}: "
                "rename the flow or change these settings"
            )
    return name
