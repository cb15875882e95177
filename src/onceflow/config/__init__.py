"""Every setting: its unit, its default, its limits, and where its value came from.

`load` reads `onceflow.toml` and the environment (`ONCEFLOW_…`, which wins; `__` between levels) into one frozen
`Settings`. Whatever is not understood is refused: a typo would otherwise leave a default in force that nobody chose.
Such an error is one line: which setting, from where, what came, what is allowed.

The models are also the reference: `rows` makes the table of `onceflow config` from them. A secret is shown nowhere.

settings  what can be set
shown     how it is shown
sources   where it comes from
"""

from onceflow.config.settings import (
    FLOW_TOPICS,
    SETTINGS,
    Dedup,
    Events,
    Kafka,
    KafkaTopics,
    Limits,
    Plain,
    Settings,
    flow_name,
)
from onceflow.config.shown import Row, rows
from onceflow.config.sources import FILE, OTHER_VARIABLES, load

__all__ = [
    "FILE",
    "FLOW_TOPICS",
    "OTHER_VARIABLES",
    "SETTINGS",
    "Dedup",
    "Events",
    "Kafka",
    "KafkaTopics",
    "Limits",
    "Plain",
    "Row",
    "Settings",
    "flow_name",
    "load",
    "rows",
]
