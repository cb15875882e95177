"""A run: one event's passage through an agent, as a state machine.

    (state, happening) -> (state, effects)

A happening is the run's begin or the answer to one of its calls; an effect is a call to start or the run's
end. There is no I/O and no clock in it: who drives the machine says what time it is, starts the calls and
brings the answers.

The agent is an async function, replayed from the run's journal: `run.call` returns a result on record without
calling, and otherwise suspends the agent until the answer comes. Each call has a place (`3`, or `4.0.1`
inside a `gather`), the same in every replay. The journal is a cache in this version (tools change nothing
outside): an entry that doesn't fit the call at its place is left aside and the call is made anew.
"""

import logging
import random
import traceback
import uuid
from collections.abc import Awaitable, Coroutine, Generator, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Concatenate, Generic, NamedTuple, NoReturn, ParamSpec, TypeVar, overload

import msgspec
import xxhash

from onceflow.agents.agent import Agent
from onceflow.agents.tool import Call, Tool
from onceflow.errors import CallFailed, Failed, GiveUp, NotYet, RetryLater
from onceflow.event import Event, InvalidData

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

DETAIL_MAX = 8_000  # characters of a traceback that go into a dead letter

log = logging.getLogger("onceflow.run")


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A journal's record of a finished call: its result, or why it failed for good."""

    tool: str
    version: int
    arguments: bytes  # digest
    result: bytes | None  # as the tool encodes it; None: the call failed
    error: tuple[str, str] | None = None  # ("call-failed" or the code of `Failed`, message)


# --- effects ---


class StartCall(NamedTuple):
    """Start a call of a tool, `delay_s` from now."""

    run: "Machine"
    place: str
    tool: Tool[Any, Any]
    call: Call
    delay_s: float


class Completed(msgspec.Struct, frozen=True):
    """The run's end: what the agent returned."""

    value: Any


class RunFailed(NamedTuple):
    """The run's end: it failed for good."""

    code: str
    message: str
    detail: str  # for the dead letter: the traceback


Effect = StartCall | Completed | RunFailed

# --- happenings ---


class Returned(NamedTuple):
    """A call's answer: its encoded result."""

    place: str
    attempt: int
    result: bytes


class Raised(NamedTuple):
    """A call's answer: this attempt failed."""

    place: str
    attempt: int
    error: BaseException


Answer = Returned | Raised


class Machine(msgspec.Struct, eq=False):
    """One run's state. `begin` once, then `answer` for each call that was started, until it has ended.

    A run that has ended holds nothing that refers back to it, so it is freed at once, without a search for cycles.
    """

    agent: Agent[Any, Any]
    token: Any  # whatever the driver needs to know the run by
    journal: Mapping[str, Entry] = MappingProxyType({})
    ended: bool = False
    now_ms: int = 0
    _waiting: dict[str, StartCall] | None = None
    _coroutine: Coroutine[Any, Any, Any] | None = None
    _effects: list[Effect] = []

    def begin(self, event: Event[Any], now_ms: int) -> list[Effect]:
        """Start the agent; return what is to be done."""
        self.now_ms = now_ms
        return self._step(self.agent.function(Run(self, event), event))

    def answer(self, answer: Answer, now_ms: int) -> list[Effect]:
        """Take a call's answer; one that nobody waits for (an earlier attempt's) changes nothing."""
        if self.ended or self._waiting is None or self._coroutine is None:
            return []
        started = self._waiting.get(answer.place)
        if started is None or started.call.attempt != answer.attempt:
            return []
        self.now_ms = now_ms
        entry = _entry(started, answer)
        if entry is None:
            return [self._again(started, answer)]
        del self._waiting[answer.place]
        self.record(answer.place, entry)
        return self._step(self._coroutine)

    def close(self) -> None:
        """Abandon the run; its agent sees GeneratorExit."""
        self.ended = True
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            _close(coroutine)

    def _step(self, coroutine: Coroutine[Any, Any, Any]) -> list[Effect]:
        self._coroutine = None
        effects: list[Effect] = []
        self._effects = effects
        try:
            token = coroutine.send(None)
        except StopIteration as stop:
            self.ended = True
            return [Completed(stop.value)]
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 (an agent may raise anything; only its own run fails)
            self.ended = True
            return [failure(error)]
        if token is not _SUSPENDED:
            self.ended = True
            _close(coroutine)
            return [_foreign_await(_ForeignAwait(token))]
        self._coroutine = coroutine
        return effects

    # -- what Run asks for --

    def record(self, place: str, entry: Entry) -> None:
        """Write a finished call into the journal."""
        if not isinstance(self.journal, dict):
            self.journal = {}
        self.journal[place] = entry

    def start(
        self, handle: "Run", tool: Tool[Any, Any], place: str, arguments: dict[str, Any], digest: bytes
    ) -> None:
        """Ask for a call, unless it is under way."""
        if self._waiting is None:
            self._waiting = {}
        elif place in self._waiting:
            return
        call = Call(
            tenant=handle.tenant,
            run_id=handle.id,
            key=_call_key(handle, tool, place, digest),
            attempt=1,
            deadline=_utc(self.now_ms) + timedelta(seconds=tool.timeout_s),
            arguments=arguments,
        )
        started = StartCall(self, place, tool, call, 0.0)
        self._waiting[place] = started
        self._effects.append(started)

    def _again(self, started: StartCall, answer: Answer) -> StartCall:
        """The next attempt of a call, after a delay with full jitter that a replay would draw again."""
        call, tool = started.call, started.tool
        unit = random.Random(f"{call.key}/{call.attempt}").random()  # noqa: S311 (spreads load, no secret)
        delay_s = tool.retry.delay_s(call.attempt, unit)
        if (
            isinstance(answer, Raised)
            and isinstance(answer.error, RetryLater)
            and answer.error.after_s is not None
        ):
            delay_s = max(delay_s, answer.error.after_s)
        deadline = _utc(self.now_ms) + timedelta(seconds=delay_s + tool.timeout_s)
        again = started._replace(
            call=msgspec.structs.replace(call, attempt=call.attempt + 1, deadline=deadline), delay_s=delay_s
        )
        assert self._waiting is not None
        self._waiting[started.place] = again
        return again


class Run:
    """What an agent is given: its event, and the only ways to reach the world.

    Time, random numbers and ids come from here, so that a replay sees the same ones.
    """

    __slots__ = ("_machine", "_strand", "event")

    def __init__(self, machine: Machine, event: Event[Any]) -> None:
        self._machine = machine
        self._strand = _Strand("")
        self.event = event

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
        strand = self._strand
        if tool.direct is not None:
            strand.count += 1
            return _call_inline(tool, tool.direct, args, kwargs)
        place = strand.next()
        arguments = tool.bind(args, kwargs, self.tenant)
        if tool.effect == "pure":
            call = Call(self.tenant, self.id, "", 1, self.now_at(), arguments)
            inline = (lambda **given: tool.function(call, **given)) if tool.takes_call else tool.function
            return _call_inline(tool, inline, (), arguments)
        digest = _digest(arguments)
        while True:
            entry = self._machine.journal.get(place)
            if entry and (entry.tool, entry.version, entry.arguments) == (tool.name, tool.version, digest):
                return _outcome(tool, entry)
            self._machine.start(self, tool, place, arguments, digest)
            await _Suspension()
            self._strand = strand

    async def gather(self, *calls: Awaitable[Any]) -> list[Any]:
        """Run several calls at the same time; return their results in the order given.

        When one raises, the others are waited for first; then the first error in the order given is raised.
        """
        strand = self._strand
        place = strand.next()
        branches = [_Branch(call, _Strand(f"{place}.{index}.")) for index, call in enumerate(calls)]
        open_branches = branches
        while open_branches:
            for branch in open_branches:
                self._strand = branch.strand
                branch.step()
            open_branches = [branch for branch in open_branches if not branch.ended]
            if open_branches:
                await _Suspension()
        self._strand = strand
        for branch in branches:
            if branch.error is not None:
                raise branch.error
        return [branch.result for branch in branches]

    def now(self) -> datetime:
        """The time, as a replay will see it again: UTC, to the millisecond."""
        return _utc(
            int.from_bytes(self._recorded("now", lambda: self._machine.now_ms.to_bytes(8, "big")), "big")
        )

    def now_at(self) -> datetime:
        """The time of the happening that the run is working on; not recorded."""
        return _utc(self._machine.now_ms)

    def random(self) -> random.Random:
        """A source of random numbers, the same in every replay (not for secrets)."""
        return random.Random(f"{self.id}/{self._strand.next()}")  # noqa: S311

    def uuid(self) -> uuid.UUID:
        """An id, the same in every replay."""
        return uuid.uuid5(_UUID_SPACE, f"{self.tenant}/{self.id}/{self._strand.next()}")

    @property
    def history(self) -> tuple[tuple[str, str], ...]:
        """The finished calls so far, as (place, tool)."""
        return tuple((place, entry.tool) for place, entry in self._machine.journal.items())

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that names the run. A replay writes its lines again."""
        return logging.LoggerAdapter(
            log, {"run": self.id, "tenant": self.tenant, "agent": self._machine.agent.name}
        )

    def sleep(self, duration: timedelta | float) -> NoReturn:
        """Not yet: waits come with the ledger."""
        raise NotYet(f"run.sleep({duration})")

    def wait_for(self, type: str, id: str, **options: Any) -> NoReturn:
        """Not yet: waits come with the ledger."""
        raise NotYet(f"run.wait_for({type!r}, {id!r}{', …' if options else ''})")

    def flag(self, name: str, market: str | None = None) -> NoReturn:
        """Not yet: flags come with the ledger."""
        raise NotYet(f"run.flag({name!r}, {market!r})")

    def _recorded(self, name: str, make: Any) -> bytes:
        place = self._strand.next()
        entry = self._machine.journal.get(place)
        if entry is None or entry.tool != name or entry.result is None:
            entry = Entry(name, 1, b"", make())
            self._machine.record(place, entry)
        result = entry.result
        assert result is not None
        return result


class _Strand(msgspec.Struct, gc=False):
    """Counts the calls of one line of execution, so that places don't depend on which answer came first."""

    prefix: str
    count: int = 0

    def next(self) -> str:
        place = f"{self.prefix}{self.count}"
        self.count += 1
        return place


class _Branch(Generic[T]):
    """One awaitable of a gather, driven by hand."""

    __slots__ = ("_iterator", "ended", "error", "result", "strand")

    def __init__(self, awaitable: Awaitable[T], strand: _Strand) -> None:
        self._iterator = awaitable.__await__()
        self.strand = strand
        self.ended = False
        self.result: T | None = None
        self.error: BaseException | None = None

    def step(self) -> None:
        try:
            token = self._iterator.send(None)
        except StopIteration as stop:
            self.result, self.ended = stop.value, True
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 (raised to the agent once its siblings have ended)
            self.error, self.ended = error, True
        else:
            if token is not _SUSPENDED:
                self.error, self.ended = _ForeignAwait(token), True


_SUSPENDED = object()
_UUID_SPACE = uuid.UUID("0b1f7c52-7d5e-5a8e-9a53-2f6e1f0f5d11")


class _Suspension:
    """What `run.call` awaits while there is no answer."""

    __slots__ = ()

    def __await__(self) -> Generator[object, None, None]:
        yield _SUSPENDED


def _close(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Give an agent up; its clean-up must not take others with it, whatever it raises."""
    try:
        coroutine.close()
    except BaseException:
        log.warning("an agent raised while its run was given up", exc_info=True)


class _ForeignAwait(Exception):  # noqa: N818
    """An agent awaited something that isn't its run's."""


def failure(error: BaseException) -> RunFailed:
    """How a run ends whose agent raised `error`."""
    detail = "".join(traceback.format_exception(error))[-DETAIL_MAX:]
    if isinstance(error, Failed):
        return RunFailed(error.code, error.message, detail)
    if isinstance(error, InvalidData):
        return RunFailed("invalid-data", str(error), "")
    if isinstance(error, _ForeignAwait):
        return _foreign_await(error)
    if (
        isinstance(error, RuntimeError) and str(error) == "no running event loop"
    ):  # asyncio.sleep and its like
        return _foreign_await(error)
    return RunFailed("agent-failed", f"{type(error).__name__}: {error}"[:1_000], detail)


def _entry(started: StartCall, answer: Answer) -> Entry | None:
    """The journal's record of a call that this answer ends; None: it is to be tried again."""
    tool = started.tool
    known = (tool.name, tool.version, _digest(started.call.arguments))
    if isinstance(answer, Returned):
        return Entry(*known, answer.result)
    error = answer.error
    if isinstance(error, Failed):
        return Entry(*known, None, (error.code, error.message))
    message = (
        f"{tool.name}: {type(error).__name__}: {error}"
        if str(error)
        else f"{tool.name}: {type(error).__name__}"
    )
    if isinstance(error, GiveUp):
        return Entry(*known, None, ("call-failed", message))
    if started.call.attempt >= tool.retry.attempts:
        return Entry(*known, None, ("call-failed", f"{message} (attempt {started.call.attempt}, the last)"))
    return None


def _outcome(tool: Tool[Any, R], entry: Entry) -> R:
    if entry.error is None:
        assert entry.result is not None
        return tool.decode_result(entry.result)
    code, message = entry.error
    raise CallFailed(message) if code == "call-failed" else Failed(code, message)


def _call_inline(tool: Tool[Any, R], function: Any, args: Any, kwargs: Mapping[str, Any]) -> R:
    try:
        result: R = function(*args, **kwargs)
    except Failed:
        raise
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise CallFailed(f"{tool.name}: {type(error).__name__}: {error}") from error
    return result


def _digest(arguments: Mapping[str, Any]) -> bytes:
    """Tells calls of one place apart; what has no encoding counts by its text."""
    try:
        text = msgspec.msgpack.encode(arguments, enc_hook=repr, order="sorted")
    except (OverflowError, TypeError, ValueError):
        text = repr(arguments).encode("utf-8", "surrogatepass")
    return xxhash.xxh3_128_digest(text)


def _call_key(run: Run, tool: Tool[Any, Any], place: str, digest: bytes) -> str:
    """The key of a call in scope `run` (BLAKE2b-128: it may leave the system, so it must resist attack)."""
    parts = msgspec.msgpack.encode((run.tenant, run.id, tool.name, tool.version, digest, place))
    return blake2b(parts, digest_size=16).hexdigest()


def _foreign_await(error: BaseException) -> RunFailed:
    awaited = type(error.args[0]).__name__ if isinstance(error, _ForeignAwait) else "part of asyncio"
    return RunFailed(
        "agent-failed",
        f"the agent awaited something ({awaited}) that isn't its run's: await only run.call, "
        "run.gather and the run's waits, and put other I/O into a tool (a replay must be able to repeat every await)",
        "",
    )


def _utc(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)
