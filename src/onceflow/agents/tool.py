"""Tools: the functions through which an agent reaches the world.

`@tool(effect=…)` turns a function into a `Tool`. The effect has no default, because it decides how safe a
call must be made; whatever else can be wrong with a tool is found when its module is imported, not when it is
first called. A `Tool` is a frozen fact: who runs calls asks it to `bind` arguments, and to encode and decode
the results that a run's journal keeps. It does no I/O of its own.

How the decorator is typed: a tool's parameters are its function's, `call` included, and `Run.call` leaves
`call` out. Overloading the decorator on `call` would be simpler and wrong: a function with an `Any` anywhere
in its signature, such as `-> dict[str, Any]`, fits several overloads, and mypy then checks nothing at all.
For the same reason plain functions are told from async ones by what they return, see `Storable`.
"""

import inspect
import math
import re
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    get_args,
    get_type_hints,
    overload,
)

import msgspec
import pydantic
from typing_extensions import TypedDict

from onceflow.errors import ConfigError, NotYet

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Set as AbstractSet
    from decimal import Decimal
    from enum import Enum
    from uuid import UUID

    from _typeshed import DataclassInstance

Effect = Literal["pure", "read", "keyed", "blind"]
OnUnknown = Literal["park", "reconcile", "compensate", "fail"]
Scope = Literal["run", "tenant"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])

Storable = TypeVar(
    "Storable",
    bound="int | float | bytes | bytearray | Sequence[Any] | Mapping[Any, Any] | AbstractSet[Any] | Decimal"
    " | UUID | Enum | dt.date | dt.time | dt.timedelta | msgspec.Struct | pydantic.BaseModel"
    " | DataclassInstance | None",
)
"""What a plain function may return: what can be stored. No coroutines: so just one overload fits."""


def _check_choice(where: str, option: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(
            f"{where}: {option}={value!r}; write one of {', '.join(map(repr, get_args(choices)))}"
        )


def _check_count(where: str, option: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{where}: {option}={value!r}; write a whole number, 1 or more")


def _seconds(where: str, option: str, value: timedelta | float, *, zero: bool = False) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if (
        isinstance(seconds, int | float)
        and math.isfinite(seconds)
        and (seconds > 0 or (zero and seconds == 0))
    ):
        return float(seconds)
    least = "0 or more" if zero else "more than 0"
    raise ConfigError(f"{where}: {option}={value!r}; write a timedelta or seconds, {least}")


class _FromRun:
    def __repr__(self) -> str:
        return "FROM_RUN"


FROM_RUN: Any = _FromRun()
"""Default of the parameter that `tenant_arg` names: the run fills it, never the caller."""


class Call(msgspec.Struct, frozen=True):
    """What a tool may know about the call that it is carrying out."""

    tenant: str
    run_id: str
    key: str  # the same at every attempt; to be passed on as the target's idempotency key
    attempt: int  # counts from 1
    deadline: datetime  # aware; after it nobody waits for this attempt
    arguments: Mapping[str, Any]  # by name, defaults applied


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a failed attempt is repeated: exponential backoff with full jitter.

    The delay after attempt n is random between 0 and `first * factor**(n-1)`, at most `longest`; by default
    up to 0.5 s, 1 s, 2 s, 4 s. Full jitter keeps callers that failed together from coming back together
    ("Exponential Backoff and Jitter", AWS Architecture Blog, 2015). `attempts` counts the first; durations
    may be seconds.
    """

    attempts: int = 5
    first: timedelta | float = timedelta(seconds=0.5)
    factor: float = 2
    longest: timedelta | float = timedelta(seconds=60)

    def __post_init__(self) -> None:
        _check_count("RetryPolicy", "attempts", self.attempts)
        _seconds("RetryPolicy", "first", self.first, zero=True)
        _seconds("RetryPolicy", "longest", self.longest, zero=True)
        if not self.factor >= 1:
            raise ConfigError(
                f"RetryPolicy: factor={self.factor!r} would shorten the delays; write 1 or more"
            )

    def delay_s(self, attempt: int, unit: float) -> float:
        """Seconds to wait after `attempt` (counts from 1) failed; `unit` is a random number in [0, 1)."""
        longest_s = _seconds("RetryPolicy", "longest", self.longest, zero=True)
        first_s = _seconds("RetryPolicy", "first", self.first, zero=True)
        try:
            bound_s = min(longest_s, first_s * self.factor ** (attempt - 1))
        except OverflowError:  # attempt in the thousands: beyond what a float holds, so beyond `longest`
            bound_s = longest_s
        return unit * bound_s


@dataclass(frozen=True, eq=False, repr=False)
class Tool(Generic[P, R_co]):
    """A function that agents call through `run.call`. Made by `@tool`.

    Called directly, outside a run, it is the plain function (handy in tests; nothing is recorded or retried).
    """

    name: str
    version: int
    effect: Effect
    scope: Scope
    timeout_s: float  # of one attempt; a pure tool has none
    retry: RetryPolicy
    function: Callable[..., Any]
    signature: inspect.Signature  # without `call`
    result_type: Any
    takes_call: bool
    is_async: bool
    tenant_arg: str | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.name} version {self.version}, {self.effect}>"

    @cached_property
    def direct(self) -> Callable[..., R_co] | None:
        """The function, if a call is no more than calling it: nothing to record, nothing to fill in."""
        inline = self.effect == "pure" and not self.takes_call and self.tenant_arg is None
        return self.function if inline else None

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any], tenant: str) -> dict[str, Any]:
        """A call's arguments by name, in the signature's order, defaults and the run's tenant filled in.

        By hand, because `inspect.Signature.bind` takes four times as long.
        """
        given = {**dict(zip(self._positional, args, strict=False)), **kwargs} if args else kwargs
        if self.tenant_arg in given:
            raise TypeError(
                f"tool {self.name}: leave {self.tenant_arg!r} out of the call, the run fills it in"
            )
        bound = {**self._defaults, **given}
        if len(given) != len(args) + len(kwargs) or bound.keys() != self._names.keys():
            try:
                self.signature.bind(*args, **kwargs)  # slower, but it words what is wrong
            except TypeError as error:
                raise TypeError(f"tool {self.name}: {error}; it takes {self.signature}") from None
        if self.tenant_arg is not None:
            bound[self.tenant_arg] = tenant
        return {name: bound[name] for name in self._names}

    def encode_result(self, value: Any) -> bytes:
        """A result as the journal keeps it. Raises TypeError for what cannot be kept."""
        try:
            return _encoder.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise TypeError(
                f"tool {self.name}: its {type(value).__name__} result cannot be stored ({error}); {_STORABLE}"
            ) from error

    def decode_result(self, stored: bytes) -> R_co:
        """A result from the journal, by the return annotation. Raises TypeError if it isn't of that type."""
        try:
            result: R_co = self._decoder.decode(stored)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise TypeError(
                f"tool {self.name}: its result is not the {_type_name(self.result_type)} of its annotation "
                f"({error}); correct the one or the other"
            ) from error
        return result

    def compensate(self, function: F, /) -> F:
        """Declare what undoes a call."""
        raise NotYet(f"@{self.name}.compensate on {function.__name__}")

    def reconcile(self, function: F, /) -> F:
        """Declare how to find out whether a call happened."""
        raise NotYet(f"@{self.name}.reconcile on {function.__name__}")

    @cached_property
    def _names(self) -> dict[str, None]:
        return dict.fromkeys(self.signature.parameters)

    @cached_property
    def _positional(self) -> tuple[str, ...]:
        parameters = self.signature.parameters.values()
        return tuple(each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD)

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        parameters = self.signature.parameters.values()
        return {each.name: each.default for each in parameters if each.default is not each.empty}

    @cached_property
    def _decoder(self) -> msgspec.msgpack.Decoder[Any]:
        return msgspec.msgpack.Decoder(self.result_type, dec_hook=_from_plain)


# --- How results are stored: msgpack, by the return annotation; pydantic models by their field names ---


def _to_plain(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json", round_trip=True, by_alias=False)
    raise TypeError(f"{type(value).__qualname__} has no stored form")


def _from_plain(kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        try:  # not strict, whatever the model says: dates and the like are stored as text
            return kind.model_validate(value, strict=False, by_alias=False, by_name=True)
        except pydantic.ValidationError as error:  # its own words quote values, which must not reach a log
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise ValueError(f"{first['msg']} - at `{'.'.join(map(str, first['loc']))}`") from None
    raise ValueError(f"{_type_name(kind)} has no stored form")


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_plain)
_STORABLE = "return JSON-like values, a dataclass, a msgspec Struct or a pydantic model"


# --- Checks, all of them at import ---


def _check_function(where: str, function: Callable[..., Any], effect: Effect) -> None:
    if not inspect.isfunction(function):
        raise ConfigError(f"{where}: {function!r} is not a function; decorate a `def` or `async def`")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"{where}: a generator has no single result that can be recorded; return a list")
    if effect == "pure" and inspect.iscoroutinefunction(function):
        raise ConfigError(
            f'{where}: a pure tool has nothing to await; write `def`, or effect="read" if it does I/O'
        )


def _split_call(
    where: str, function: Callable[..., Any], hints: Mapping[str, Any]
) -> tuple[bool, inspect.Signature]:
    """Whether the function takes `call: Call`, and its signature without it."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    takes_call = bool(parameters) and hints.get(parameters[0].name, Call) is Call
    takes_call = takes_call and (parameters[0].name in hints or parameters[0].name == "call")
    if takes_call and parameters[0].kind is parameters[0].KEYWORD_ONLY:
        raise ConfigError(
            f"{where}: `{parameters[0].name}: Call` is passed by position; move it before the `*`"
        )
    rest = parameters[1:] if takes_call else parameters
    for each in rest:
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY):
            raise ConfigError(
                f"{where}: arguments are recorded by name, `{each}` has none: name each parameter, drop `/`"
            )
        if hints.get(each.name) is Call:
            raise ConfigError(f"{where}: `{each.name}: Call` must be the first parameter, and the only Call")
    return takes_call, signature.replace(parameters=rest)


def _check_parameters(
    where: str,
    signature: inspect.Signature,
    tenant_arg: str | None,
    key_fields: Sequence[str] | None,
    free_fields: Sequence[str],
) -> None:
    parameters = signature.parameters
    for option, names in (("key_fields", key_fields or ()), ("free_fields", free_fields)):
        unknown = [names] if isinstance(names, str) else [each for each in names if each not in parameters]
        if unknown:
            raise ConfigError(
                f"{where}: {option} must be a tuple of parameters of {signature}, unlike {unknown}"
            )
    if tenant_arg is not None and tenant_arg not in parameters:
        raise ConfigError(f"{where}: tenant_arg={tenant_arg!r} is no parameter of {signature}")
    for each in parameters.values():
        if (each.name == tenant_arg) != (each.default is FROM_RUN):
            raise ConfigError(
                f"{where}: for the run to fill in its tenant, write both tenant_arg={each.name!r} and the "
                f"parameter `{each.name}: str = FROM_RUN`"
            )


def _check_storable(where: str, result_type: Any) -> None:
    try:
        info = msgspec.inspect.type_info(result_type)
    except TypeError as error:
        raise ConfigError(f"{where}: its result cannot be stored ({error}); {_STORABLE}") from error
    if isinstance(info, msgspec.inspect.CustomType) and not issubclass(info.cls, pydantic.BaseModel):
        raise ConfigError(f"{where}: a {_type_name(result_type)} cannot be stored; {_STORABLE}")


def _type_name(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) else str(kind)


# --- The decorator ---


class ToolOptions(TypedDict, total=False):
    """What may be said of a tool besides its effect; `tool` has the defaults."""

    name: str | None
    version: int
    scope: Scope
    key_fields: Sequence[str] | None
    free_fields: Sequence[str]
    tenant_arg: str | None
    ttl: timedelta | float
    timeout: timedelta | float
    retry: RetryPolicy
    on_unknown: OnUnknown


class PureDecorator(Protocol):
    """Takes a plain function."""

    def __call__(self, function: Callable[P, R], /) -> Tool[P, R]: ...


class ReadDecorator(Protocol):
    """Takes an async or a plain function."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Tool[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Storable], /) -> Tool[P, Storable]: ...


class EffectDecorator(Protocol):
    """Takes an async or a plain function whose first parameter is `call: Call`."""

    @overload
    def __call__(self, function: Callable[Concatenate[Call, P], Coroutine[Any, Any, R]], /) -> Tool[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Call, P], Storable], /) -> Tool[P, Storable]: ...


_MISSING: Any = object()


@overload
def tool(*, effect: Literal["pure"], **options: Unpack[ToolOptions]) -> PureDecorator: ...
@overload
def tool(*, effect: Literal["read"], **options: Unpack[ToolOptions]) -> ReadDecorator: ...
@overload
def tool(*, effect: Literal["keyed", "blind"], **options: Unpack[ToolOptions]) -> EffectDecorator: ...
def tool(
    *misplaced: Any,
    effect: Any = _MISSING,
    name: str | None = None,
    version: int = 1,
    scope: Scope = "run",
    key_fields: Sequence[str] | None = None,
    free_fields: Sequence[str] = (),
    tenant_arg: str | None = None,
    ttl: timedelta | float = timedelta(hours=24),
    timeout: timedelta | float = timedelta(seconds=30),
    retry: RetryPolicy = RetryPolicy(),
    on_unknown: OnUnknown = "park",
) -> Any:
    """Make a function a tool.

    effect: `pure` computes, without I/O; `read` does I/O that changes nothing (a model's answer too); `keyed`
        changes something and honours the idempotency key it is given; `blind` does so and knows no key.
    name, version: part of the call key; the name is the function's unless given.
    scope, key_fields, free_fields: what makes two calls the same (keyed tools).
    tenant_arg: the parameter that the run fills with its tenant; its default must be `FROM_RUN`.
    ttl: how long the target remembers a key (keyed tools).
    timeout: of one attempt. retry: of failed attempts (not of pure and blind tools).
    on_unknown: what to do when a call may or may not have happened (keyed and blind tools).
    """
    if misplaced or effect is _MISSING:
        raise ConfigError(
            'a tool must say its effect: write @tool(effect="read") (or "pure", "keyed", "blind")'
        )
    caller_locals = sys._getframe(1).f_locals

    def decorate(function: Callable[..., Any]) -> Tool[..., Any]:
        tool_name = str(name or getattr(function, "__name__", "?"))
        where = f"tool {tool_name}"
        _check_choice(where, "effect", effect, Effect)
        _check_choice(where, "scope", scope, Scope)
        _check_choice(where, "on_unknown", on_unknown, OnUnknown)
        if not re.fullmatch(r"\w[\w.:/-]{0,127}", tool_name):
            raise ConfigError(f"{where}: write name=… with up to 128 letters, digits and . : / _ -")
        _check_count(where, "version", version)
        _seconds(where, "ttl", ttl)
        timeout_s = _seconds(where, "timeout", timeout)
        _check_function(where, function, effect)
        hints = annotations(where, function, caller_locals)
        takes_call, signature = _split_call(where, function, hints)
        _check_parameters(where, signature, tenant_arg, key_fields, free_fields)
        if effect in ("pure", "read"):
            if key_fields is not None or free_fields or on_unknown != "park":
                raise ConfigError(
                    f"{where}: leave out key_fields, free_fields and on_unknown, they are for keyed tools"
                )
        elif not takes_call:
            raise ConfigError(
                f"{where}: a {effect} tool needs `call: Call` as its first parameter, to pass on call.key"
            )
        else:
            raise NotYet(f'{where}: effect="{effect}"')
        if scope == "tenant":
            raise NotYet(f'{where}: scope="tenant"')
        result_type = hints.get("return", Any)
        if effect != "pure":  # results of pure tools are computed again, never stored
            _check_storable(where, result_type)
        return Tool(
            name=tool_name,
            version=version,
            effect=effect,
            scope=scope,
            timeout_s=timeout_s,
            retry=retry,
            function=function,
            signature=signature,
            result_type=result_type,
            takes_call=takes_call,
            is_async=inspect.iscoroutinefunction(function),
            tenant_arg=tenant_arg,
        )

    return decorate


def annotations(where: str, function: Callable[..., Any], caller_locals: Mapping[str, Any]) -> dict[str, Any]:
    """A function's annotations as types, strings resolved in its module and where its decorator stands."""
    try:
        return get_type_hints(function, localns=dict(caller_locals), include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise ConfigError(
            f"{where}: an annotation cannot be read ({error}); annotations are read when the program runs: "
            "define or import the name before the function, and not under TYPE_CHECKING"
        ) from error
