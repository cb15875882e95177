"""Agents: the async functions that events are handed to, and which agent takes which event.

`@agent(name, on=…)` turns an async function `(run, event)` into an `Agent`, checked when its module is
imported. `routes` joins the agents of a flow into a table from event type to agent: a cell answers "who takes
this event?" with one look-up, and a flow in which two agents claim one type does not start.
"""

import inspect
import json
import re
import sys
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, get_args, get_origin

import msgspec

from onceflow.agents.call import RetryPolicy, check_count, check_retry, seconds_of
from onceflow.agents.tool_checks import annotations, check_arguments, check_no_generator, check_no_method
from onceflow.errors import ConfigError
from onceflow.event import Event, Incoming, attribute_fault, data_decoder

if TYPE_CHECKING:
    from onceflow.agents.run import Run

T = TypeVar("T")
R = TypeVar("R")

LINE_MAX_BYTES = 1_000  # of what names a line; the ledger holds it beside the event that holds it too

REST = "*"
"""The type that stands for every type that no other agent of the flow takes."""


@dataclass(frozen=True, eq=False, repr=False)
class Agent(Generic[T, R]):
    """An async function that takes events of some types. Made by `@agent`.

    Called directly, outside a run, it is the plain function (handy in tests).
    """

    name: str
    on: tuple[str, ...]
    version: int
    function: Callable[["Run", Event[T]], Coroutine[Any, Any, R]]
    data_type: Any  # S of `Event[S]`; Any for plain `Event`
    decode: Callable[[bytes], Any]  # the event's data as `data_type`; raises InvalidData
    deadline_s: float | None
    retry: RetryPolicy | None = None
    order_by: tuple[str, ...] = ()

    @cached_property
    def plain(self) -> bool:
        """Whether its runs have neither an order nor a deadline."""
        return self.deadline_s is None and not self.order_by

    def line_of(self, incoming: Incoming) -> bytes:
        """What the runs that follow one another have in common; empty: the event has no such value, and no order."""
        found: Any = {"source": incoming.source, "id": incoming.id, "type": incoming.type}
        if self.order_by[0] == "data":
            try:
                found = {"data": msgspec.json.decode(incoming.data)}
            except msgspec.DecodeError:
                return b""
        for part in self.order_by:
            if isinstance(found, dict) and part in found:
                found = found[part]
            elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            else:
                return b""
        try:
            line = msgspec.json.encode([self.name, found], order="sorted")
        except OverflowError:  # an integer beyond 64 bits
            line = json.dumps([self.name, found], sort_keys=True).encode()
        return line if len(line) <= LINE_MAX_BYTES else blake2b(line, digest_size=16).digest()

    def __call__(self, run: "Run", event: Event[T]) -> Coroutine[Any, Any, R]:
        return self.function(run, event)

    def __repr__(self) -> str:
        return f"<agent {self.name} version {self.version} on {', '.join(self.on)}>"


class AgentDecorator(Protocol):
    """Takes an async function `(run, event)`."""

    def __call__(self, function: Callable[["Run", Event[T]], Coroutine[Any, Any, R]], /) -> Agent[T, R]: ...


@check_arguments('write @agent("my-agent", on="some.type")')
def agent(
    name: str,
    *,
    on: str | Collection[str],
    version: int = 1,
    order_by: str | None = None,
    deadline: timedelta | float | None = None,
    retry: RetryPolicy | None = None,
) -> AgentDecorator:
    """Make an async function an agent.

    name: part of what it writes (`<name>.completed`).
    on: the event type that it takes, several of them, or `"*"` for all that no other agent of the flow takes.
    version: raise it whenever its calls change. While runs of the old one are open, list both in the flow.
    deadline: how long after its event was sent a run may take, its waits included; then it ends as failed (code
        `expired`), and what stands is undone. A timedelta or seconds; None: as long as it likes.
    order_by: where in the event a value stands, as `"data.account"` or as a JSON pointer, `"/data/account"`: a
        tenant's runs of this agent with the same value follow one another, in the order of the log. Otherwise, and
        for events without it, a tenant's runs are concurrent and unordered.
    retry: how often a run is tried again whose agent raises anything but `Failed`, `GiveUp` and the like; what stands
        of its effects stays, what came after them is done anew. None: only after `RetryLater`, by the default policy.
    """
    where = f"agent {name}"
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", name):
        raise ConfigError(
            f"{where}: the name must be up to 63 lower-case letters, digits and dashes, a letter first: "
            'write @agent("my-agent", on="some.type")'
        )
    check_count(where, "version", version)
    types = _types(where, on)
    check_retry(where, retry)
    path = _path(where, order_by)
    deadline_s = None if deadline is None else seconds_of(where, "deadline", deadline)
    caller_locals = sys._getframe(2).f_locals

    def decorate(function: Callable[["Run", Event[T]], Coroutine[Any, Any, R]]) -> Agent[T, R]:
        data_type = _data_type(where, function, caller_locals)
        try:
            decode = data_decoder(data_type)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        return Agent(
            name=name,
            on=types,
            version=version,
            function=function,
            data_type=data_type,
            decode=decode,
            deadline_s=deadline_s,
            retry=retry,
            order_by=path,
        )

    return decorate


def _types(where: str, on: str | Collection[str]) -> tuple[str, ...]:
    types = (on,) if isinstance(on, str) else tuple(on) if isinstance(on, Collection) else ()
    if not types or not all(isinstance(each, str) and each for each in types):
        raise ConfigError(f'{where}: on={on!r}; write an event type, a list of them, or "*"')
    for each in types:
        if fault := attribute_fault("type", each):
            raise ConfigError(f"{where}: on={each[:80]!r}: no event has such a type ({fault})")
    patterns = [each for each in types if REST in each and each != REST]
    if patterns:
        raise ConfigError(
            f'{where}: {patterns} are patterns; list the types one by one, or write "*" for all the rest'
        )
    return tuple(dict.fromkeys(types))


def _path(where: str, order_by: str | None) -> tuple[str, ...]:
    """A dotted path or a JSON pointer (RFC 6901) as its parts."""
    if order_by is None:
        return ()
    pointer = isinstance(order_by, str) and order_by.startswith("/")
    parts = order_by[1:].split("/") if pointer else order_by.split(".") if isinstance(order_by, str) else []
    if not parts or not all(parts) or parts[0] not in ("data", "source", "id", "type"):
        raise ConfigError(
            f'{where}: order_by={order_by!r}; write where in the event the value stands: "data.account", '
            '"/data/account" or "source"'
        )
    return tuple(part.replace("~1", "/").replace("~0", "~") if pointer else part for part in parts)


def _data_type(where: str, function: Callable[..., Any], caller_locals: Mapping[str, Any]) -> Any:
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        raise ConfigError(f"{where}: {function!r} is not a function; decorate an `async def`")
    check_no_generator(where, function)
    check_no_method(where, function)
    if not inspect.iscoroutinefunction(function):
        raise ConfigError(f"{where}: {function!r} is not an async function; write `async def`")
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) != 2 or any(
        each.kind not in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters
    ):
        raise ConfigError(f"{where}: it must take exactly `(run: Run, event: Event)`")
    declared = annotations(where, function, caller_locals).get(parameters[1].name, Event)
    if declared is Event or declared is Any:
        return Any
    if get_origin(declared) is not Event:
        raise ConfigError(
            f"{where}: its second parameter is annotated {declared!r}; write `event: Event` for JSON values "
            "or `event: Event[S]`, S being the type of the event's data"
        )
    return get_args(declared)[0]


# --- Which agent takes which event ---


@dataclass(frozen=True, slots=True)
class Routes:
    """The agents of a flow by the event types that they take."""

    by_type: Mapping[str, Agent[Any, Any]]
    rest: Agent[Any, Any] | None
    by_version: Mapping[tuple[str, int], Agent[Any, Any]]

    def find(self, event_type: str) -> Agent[Any, Any] | None:
        """The agent for a new run of such an event."""
        return self.by_type.get(event_type, self.rest)

    def pinned(self, name: str, version: int) -> Agent[Any, Any] | None:
        """The agent on which an open run began."""
        return self.by_version.get((name, version))


def routes(agents: Iterable[Agent[Any, Any]]) -> Routes:
    """The routes of a flow with these agents.

    Of several versions of an agent the highest alone takes new events, by its own `on`; the lower ones are
    there for the runs that began on them, and claim nothing.
    """
    by_version: dict[tuple[str, int], Agent[Any, Any]] = {}
    newest: dict[str, Agent[Any, Any]] = {}
    for each in agents:
        if not isinstance(each, Agent):
            raise ConfigError(f"agents=[…, {each!r}]: not an agent; decorate the function with @agent")
        if by_version.setdefault((each.name, each.version), each) is not each:
            raise ConfigError(
                f"agent {each.name} version {each.version} is listed twice; give the newer a higher version"
            )
        if each.name not in newest or newest[each.name].version < each.version:
            newest[each.name] = each
    by_type: dict[str, Agent[Any, Any]] = {}
    for each in newest.values():
        for event_type in each.on:
            if by_type.setdefault(event_type, each) is not each:
                raise ConfigError(
                    f"agents {by_type[event_type].name} and {each.name} both take {event_type!r}; a flow has "
                    "one agent per type: give one of them other types, or put it into a flow of its own"
                )
    return Routes(by_type=by_type, rest=by_type.pop(REST, None), by_version=by_version)
