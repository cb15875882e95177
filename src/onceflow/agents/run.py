"""Run: what an agent is given.

The agent is an async function, replayed from its run's journal: `run.call` returns a result on record without
calling, and otherwise suspends the agent until the answer comes. Each call has a place (`3`, or `4.0.1`
inside a `gather`), the same in every replay. What a run decides is in `machine`.
"""

import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

import msgspec

from onceflow.agents.agent import Agent
from onceflow.agents.call import Call, seconds_of
from onceflow.agents.journal import (
    CALL_FAILED,
    KEY_REUSED,
    OUTCOME_UNKNOWN,
    SPECIAL,
    UNUSABLE_RESULT,
    Entry,
    Wait,
)
from onceflow.agents.signals import Signal, waited_for
from onceflow.agents.suspension import Branch, Strand, suspension
from onceflow.agents.tool import AGENT_BENEATH, Tool
from onceflow.errors import CallFailed, Failed, KeyReused, OutcomeUnknown, WaitExpired, as_text
from onceflow.event import Event

if TYPE_CHECKING:
    from onceflow.agents.machine import Machine

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

log = logging.getLogger("onceflow.run")


class Run(msgspec.Struct, eq=False):
    """What an agent is given: its event, and the only ways to reach the world.

    Time, random numbers and ids come from here, so that a replay sees the same ones.
    """

    event: Event[Any]
    _made: Any = None  # the run's Machine; a run that only computes needs none
    _make: Callable[..., Any] | None = None  # makes it, of `_of`
    _of: tuple[Any, ...] = ()
    _own_strand: Strand | None = None

    __repr__ = object.__repr__  # not what it holds: that is the event's, and not for a log

    @property
    def _machine(self) -> "Machine":
        if self._made is None:
            assert self._make is not None
            self._made = self._make(self.event, *self._of)
            self._make, self._of = None, ()  # it may hold what was read together with the event
        machine: Machine = self._made
        return machine

    @property
    def _strand(self) -> Strand:
        if self._own_strand is None:
            self._own_strand = Strand()
        return self._own_strand

    @_strand.setter
    def _strand(self, strand: Strand) -> None:
        self._own_strand = strand

    @property
    def id(self) -> str:
        """The event's key, in hex."""
        return self.event.key

    @property
    def tenant(self) -> str:
        return self.event.tenant

    @overload
    async def call(self, tool: Tool[Concatenate[Call, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def call(self, tool: Tool[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def call(self, tool: Tool[Any, Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a tool and return its result.

        Raises CallFailed when the call failed for good, or the tool's own `Failed`. A `pure` tool runs at
        once; a `read` tool is retried by its policy.
        """
        strand = self._own_strand or self._strand
        try:
            direct = tool.direct
        except AttributeError:  # instead of a look at its type, which all other calls would pay for
            raise TypeError(_no_tool(tool)) from None
        if direct is not None:
            strand.count += 1
            return _call_inline(tool, direct, args, kwargs)
        place = strand.next()
        event = self.event
        arguments = tool.bind(args, kwargs, event.tenant)
        if tool.effect == "pure":
            call = Call(event.tenant, event.key, "", 1, arguments, self._machine.now_ms)
            inline = (lambda **given: tool.function(call, **given)) if tool.takes_call else tool.function
            return _call_inline(tool, inline, (), arguments)
        machine: Machine = self._made or self._machine
        asked = machine.ask(event, tool, place, arguments)
        while (entry := machine.outcome(tool, place, asked)) is None:
            await suspension
            self._own_strand = strand
        if entry.result is None:
            raise _error_of(entry)
        return tool.decode_result(entry.result)

    async def gather(self, *calls: Awaitable[Any]) -> list[Any]:
        """Run several calls at the same time; return their results in the order given.

        When one raises, the others are waited for first; then the first error in the order given is raised.
        """
        strand = self._strand
        place = strand.next()
        branches = [Branch(call, Strand(f"{place}.{index}.")) for index, call in enumerate(calls)]
        if len({id(call) for call in calls}) < len(calls):  # its second branch would wait for ever
            raise TypeError("run.gather was given one call twice: make each with a run.call(…) of its own")
        moved, open_branches = branches, len(branches)
        while True:
            for branch in moved:
                self._strand = branch.strand
                branch.step()
                open_branches -= branch.ended
            if not open_branches:
                break
            machine = self._machine
            machine.gathers()
            await suspension
            # Not all of them: of thousands, each answer concerns one.
            moved = [branches[index] for index in machine.moved(place) if not branches[index].ended]
        self._strand = strand
        for branch in branches:
            if branch.error is not None:
                raise branch.error
        return [branch.result for branch in branches]

    def now(self) -> datetime:
        """The time, as a replay will see it again: UTC, to the millisecond."""
        return utc(
            int.from_bytes(self._recorded("now", lambda: self._machine.now_ms.to_bytes(8, "big")), "big")
        )

    def random(self) -> random.Random:
        """A source of random numbers, the same in every replay (not for secrets)."""
        return random.Random(f"{self.root}/{self._strand.next()}")  # noqa: S311

    def uuid(self) -> uuid.UUID:
        """An id, the same in every replay."""
        return uuid.uuid5(_UUID_SPACE, f"{self.tenant}/{self.root}/{self._strand.next()}")

    @property
    def root(self) -> str:
        """The id of the run that failed first, if this one is its redrive; otherwise its own."""
        return self._machine.root

    @property
    def history(self) -> tuple[tuple[str, str], ...]:
        """The finished calls so far, as (place, tool)."""
        return tuple(
            (place, entry.tool)
            for place, entry in self._machine.journal.items()
            if not entry.open and place[0] not in SPECIAL
        )

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that names the run. A replay writes its lines again."""
        return logging.LoggerAdapter(
            log, {"run": self.id, "tenant": self.tenant, "agent": self._machine.agent.name}
        )

    async def sleep(self, duration: timedelta | float) -> None:
        """Go on after this time (a timedelta or seconds), however often the process is restarted meanwhile."""
        seconds = seconds_of("run.sleep", "duration", duration, zero=True)
        await self._wait("sleep", Wait(self._due_ms(seconds)))

    async def wait_for(
        self,
        type: str,
        id: str,
        *,
        until: Collection[str] = (),
        timeout: timedelta | float | None = None,
        poll: Tool[Any, Any] | None = None,
        every: timedelta | float = timedelta(minutes=30),
        on_timeout: Tool[Any, Any] | None = None,
    ) -> Any:
        """Wait for the signal `type` whose subject is `id`, and return it (a `Signal`).

        until: the statuses that end the wait, any if empty; others don't. timeout: how long, for ever if None;
        then `on_timeout` is called with `id` and what it returns is returned, or WaitExpired is raised.
        poll: a tool that is called with `id` each time that `every` has passed without a signal; it returns None, or a
        status, or a mapping with `status`, and ends the wait as a signal would.
        """
        type, id, statuses = waited_for(type, id, until)
        for name, tool in (
            ("poll", poll),
            ("on_timeout", on_timeout),
        ):  # now, and not when it is called in hours
            if tool is not None and not isinstance(tool, Tool):
                raise TypeError(
                    f"run.wait_for: {name}={tool!r}; write a tool, decorated with @tool(effect=…)"
                )
        every_s = seconds_of("run.wait_for", "every", every)
        end_ms = 0
        if timeout is not None:
            end_ms = self._due_ms(seconds_of("run.wait_for", "timeout", timeout, zero=True))
        while True:
            due_ms = end_ms
            if poll is not None:
                due_ms = min(self._due_ms(every_s), end_ms or 1 << 62)
            entry = await self._wait("wait_for", Wait(due_ms, type, id, statuses))
            if entry.result is not None:
                return _decode_signal(entry.result)
            if poll is not None:
                found = await self.call(poll, id)
                status = found.get("status") if isinstance(found, Mapping) else found
                if status is not None and (not statuses or str(status) in statuses):
                    return Signal(type, id, str(status), found, f"poll/{poll.name}", "")
            if end_ms and entry.wait is not None and entry.wait.due_ms >= end_ms:
                if on_timeout is not None:
                    return await self.call(on_timeout, id)
                raise WaitExpired(entry.error[1] if entry.error else f"{type} {id}")

    async def _wait(self, name: str, wait: Wait) -> Entry:
        strand = self._strand
        place = strand.next()
        while (entry := self._machine.wait(place, name, wait)) is None:
            await suspension
            self._strand = strand
        return entry

    def _due_ms(self, seconds: float) -> int:
        """So many seconds from now, as a replay will see it again."""
        return int(self.now().timestamp() * 1000) + round(seconds * 1000)

    def flag(self, name: str, market: str | None = None) -> bool:
        """Whether a flag is set, as it was when this run first asked; changed without a restart, see `flags`.

        `market`: what it is set for, such as a country; the flag's `default` counts for others.
        """
        flags = self._machine.flags
        return self._recorded("flag", lambda: b"\1" if flags(name, market) else b"\0") == b"\1"

    def _recorded(self, name: str, make: Any) -> bytes:
        return self._machine.recorded(self._strand.next(), name, make)


_UUID_SPACE = uuid.UUID("0b1f7c52-7d5e-5a8e-9a53-2f6e1f0f5d11")


def _no_tool(given: object) -> str:
    """What to write instead of a run.call of this."""
    if isinstance(given, Agent):
        return (
            f"run.call takes a tool, and {given.name} is an agent: `await` an async function that takes the run, of "
            "what both do, or let each have its own events"
        )
    if callable(given):
        return (
            f"run.call takes a tool: decorate {getattr(given, '__name__', repr(given))} with @tool(effect=…)"
        )
    return (
        f"run.call takes a tool and its arguments, and this is a {type(given).__name__}: write run.call(charge, 1) for "
        "a tool charge, not run.call(charge(1))"
    )


def _error_of(entry: Entry) -> Exception:
    assert entry.error is not None
    code, message = entry.error
    if code == OUTCOME_UNKNOWN:
        return OutcomeUnknown(message)
    if code == KEY_REUSED:
        return KeyReused(message)
    return CallFailed(message) if code in (CALL_FAILED, UNUSABLE_RESULT) else Failed(code, message)


def _call_inline(tool: Tool[Any, R], function: Any, args: Any, kwargs: Mapping[str, Any]) -> R:
    try:
        result: R = function(*args, **kwargs)
    except Failed:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise CallFailed(f"{tool.name}: {type(error).__name__}: {as_text(error)}") from error
    return result


AGENT_BENEATH[_call_inline.__code__] = False

_decode_signal = msgspec.msgpack.Decoder(Signal).decode


def utc(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)
