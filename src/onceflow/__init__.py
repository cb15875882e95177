"""Run AI-agent work once: a multi-tenant stream processor.

Agents and tools are written with `agent` and `tool`; a flow of them is made by `dataflow` and run by
`onceflow run` or `python -m bytewax.run`.
"""

from onceflow.agents.agent import agent
from onceflow.agents.call import FROM_RUN, Call, NotDone, RetryPolicy
from onceflow.agents.run import Run
from onceflow.agents.signals import Signal
from onceflow.agents.tool import tool
from onceflow.errors import (
    CallFailed,
    Failed,
    GiveUp,
    KeyReused,
    OutcomeUnknown,
    RetryLater,
    WaitExpired,
)
from onceflow.event import Event
from onceflow.flow import dataflow

__all__ = [
    "FROM_RUN",
    "Call",
    "CallFailed",
    "Event",
    "Failed",
    "GiveUp",
    "KeyReused",
    "NotDone",
    "OutcomeUnknown",
    "RetryLater",
    "RetryPolicy",
    "Run",
    "Signal",
    "WaitExpired",
    "agent",
    "dataflow",
    "tool",
]
