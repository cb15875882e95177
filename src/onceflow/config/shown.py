"""Settings as people read them: the table of `onceflow config`, and what an error says. A secret is shown nowhere."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from onceflow.config.settings import CLIENT, SETTINGS, Settings

# Of librdkafka's properties those that hold no secret: of others, and of those that it does not know, nobody can tell.
_HARMLESS = re.compile(
    r".+\.(ms|bytes|kbytes|messages|enable|location|algorithm|family|ttl|rack|id)|security\.protocol"
    r"|sasl\.(mechanisms?|username|oauthbearer\.method|kerberos\.(principal|service\.name))"
    r"|acks|request\.required\.acks|debug|log_level|compression\.(type|codec|level)|message\.send\.max\.retries|retries"
    r"|max\.in\.flight(\.requests\.per\.connection)?|partitioner|check\.crcs|client\.dns\.lookup"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One setting as `onceflow config` shows it; an empty value is not set."""

    name: str
    value: str
    unit: str
    origin: str
    description: str


def rows(settings: Settings) -> list[Row]:
    """Every setting with its value, and where that came from; secrets masked."""
    values = dict(flat(settings.model_dump()))
    fields = SETTINGS | {name: SETTINGS["kafka.client"] for name in values if name.startswith(CLIENT)}
    return [
        Row(
            name=name,
            value=masked(name, text_of(values.get(name))),
            unit=_extra(field, "unit"),
            origin=settings._origins.get(name, "default"),
            description=field.description or "",
        )
        for name, field in sorted(fields.items())
    ]


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables, by dotted name."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _extra(field: FieldInfo, key: str) -> str:
    extra = field.json_schema_extra
    return str(extra.get(key, "")) if isinstance(extra, dict) else ""


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The words that a setting may be; none, if it is no matter of words."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def allowed_of(field: FieldInfo) -> str:
    """What a setting may be, from its type and bounds."""
    if said := _extra(field, "allowed"):
        return said
    if choices := choices_of(field):
        return "one of " + ", ".join(choices)
    kinds = (field.annotation, *get_args(field.annotation))
    if timedelta in kinds:
        kind = "a number of seconds or an ISO 8601 duration such as PT90S"
    elif int in kinds:
        kind = "a whole number"
    else:
        return "text, not empty"
    bounds = [
        f"{word} {text_of(getattr(limit, sign))}"
        for sign, word in (("ge", "from"), ("gt", "more than"), ("le", "up to"))
        for limit in field.metadata
        if hasattr(limit, sign)
    ]
    return f"{kind}, {' '.join(bounds)}"


def text_of(value: Any) -> str:
    """A value as it is written in a table: durations in seconds, lists with commas."""
    if value is None:
        return ""
    if isinstance(value, timedelta):
        return str(value.total_seconds()).removesuffix(".0")
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def masked(name: str, text: str) -> str:
    """The text of a setting's value, unless it may be a secret."""
    if name == "kafka.bootstrap_servers":
        return text if "@" not in text else f"******@{text.rpartition('@')[2]}"
    if not f"{name}.".startswith(CLIENT) or _HARMLESS.fullmatch(name.removeprefix(CLIENT)):
        return text
    return "******" if text else ""
