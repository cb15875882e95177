"""Drives an agent's run without Kafka: carries out the calls that it asks for, at once, and answers them."""

import asyncio
import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from onceflow.agents.agent import Agent
from onceflow.agents.calls import Answer, Completed, Effect, Raised, Returned, RunFailed, StartCall
from onceflow.agents.failures import failure
from onceflow.agents.machine import Machine
from onceflow.event import Event, Incoming, InvalidData, idempotency_key


class Driven(NamedTuple):
    """How a run went: its end, and each attempt of a call as (tool, attempt, delay before it in s)."""

    outcome: Completed | RunFailed
    attempts: list[tuple[str, int, float]]

    @property
    def value(self) -> Any:
        """What the completion carries, as its reader sees it; the run must have completed."""
        assert type(self.outcome) is Completed, self.outcome
        return msgspec.json.decode(msgspec.json.encode(self.outcome.value))

    @property
    def failed(self) -> RunFailed:
        """How it failed; it must have failed."""
        assert type(self.outcome) is RunFailed, self.outcome
        return self.outcome


def drive(agent: Agent[Any, Any], data: Any, *, tenant: str = "acme") -> Driven:
    """Run `agent` on an event with this data until its end."""
    text = msgspec.json.encode(data)
    incoming = Incoming(tenant, "test", "evt-1", agent.on[0], None, text)
    key = idempotency_key(tenant, "test", "evt-1", text).hex()
    machine = Machine(agent, token=None)
    attempts: list[tuple[str, int, float]] = []
    try:
        effects: Iterable[Effect] = machine.begin(Event.of(incoming, key, agent.decode(text)), now_ms=0)
    except InvalidData as error:
        return Driven(failure(error), attempts)
    waiting = list(effects)
    while waiting:
        effect = waiting.pop(0)
        if not isinstance(effect, StartCall):
            return Driven(effect, attempts)
        attempts.append((effect.tool.name, effect.call.attempt, effect.delay_s))
        waiting += machine.answer(_carry_out(effect), now_ms=0)
    raise AssertionError("the run neither ended nor asked for a call")


def _carry_out(started: StartCall) -> Answer:
    tool, call = started.tool, started.call
    try:
        result = tool.function(*((call,) if tool.takes_call else ()), **call.arguments)
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
    except Exception as error:  # noqa: BLE001 (whatever a tool raises is the answer)
        return Raised(started.place, call.attempt, error)
    return Returned(started.place, call.attempt, tool.encode_result(result))


async def _awaited(result: Any) -> Any:
    return await result
