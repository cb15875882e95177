"""Tools: the functions through which an agent reaches the world.

`@tool(effect=…)` turns a function into a `Tool`. The effect has no default, because it decides how safe a
call must be made; whatever else can be wrong with a tool is found when its module is imported, not when it is
first called. A `Tool` is a frozen fact: who runs calls asks it to `bind` arguments, and to encode and decode
the results that a run's journal keeps. It does no I/O of its own.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from hashlib import blake2b
from types import CodeType, FrameType
from typing import (
    Any,
    Generic,
    Literal,
    ParamSpec,
    TypeVar,
    Unpack,
    overload,
)

import msgspec
import pydantic
import xxhash

from onceflow.agents import tool_names
from onceflow.agents.call import RetryPolicy, check_count, check_retry, seconds_of
from onceflow.agents.told import as_told, encode_sorted, sorted_text
from onceflow.agents.tool_checks import (
    STORABLE,
    Effect,
    OnUnknown,
    Scope,
    annotations,
    check_arguments,
    check_choice,
    check_declared,
    check_effect,
    check_function,
    check_name,
    check_parameters,
    check_storable,
    split_call,
)
from onceflow.agents.tool_typing import EffectDecorator, PureDecorator, ReadDecorator, ToolOptions
from onceflow.errors import ConfigError, as_text
from onceflow.event import type_name as _type_name

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False, repr=False)
class Tool(Generic[P, R_co]):
    """A function that agents call through `run.call`. Made by `@tool`.

    Called directly, outside a run, it is the plain function (handy in tests; nothing is recorded or retried). An agent
    has to say run.call, unless the tool is pure.
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
    key_fields: tuple[str, ...] = ()  # of scope `tenant`: the arguments that make the key
    free_fields: tuple[str, ...] = ()  # arguments that don't tell calls apart
    ttl_s: float = 86_400.0  # how long the target remembers a key
    on_unknown: OnUnknown = "park"
    _declared: dict[str, Callable[..., Any]] = field(
        default_factory=dict
    )  # after it: what undoes, what reconciles

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.effect in ("keyed", "blind"):
            raise ConfigError(
                f"tool {self.name}: a {self.effect} tool changes something: call it with run.call({self.name}, …), or, "
                f"in a test of its own, as {self.name}.function(call, …)"
            )
        if self.effect == "read" and _called_by_agent():
            raise ConfigError(
                f"tool {self.name}: called directly it is not on record, and asked again in each replay: call it with "
                f"run.call({self.name}, …)"
            )
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.name} version {self.version}, {self.effect}>"

    @cached_property
    def direct(self) -> Callable[..., R_co] | None:
        """The function, if a call is no more than calling it: nothing to record, nothing to fill in."""
        inline = self.effect == "pure" and not self.takes_call and self.tenant_arg is None
        return self.function if inline else None

    def bind(self, args: Sequence[Any], kwargs: dict[str, Any], tenant: str) -> dict[str, Any]:
        """A call's arguments by name, in the signature's order, defaults and the run's tenant filled in.

        By hand, because `inspect.Signature.bind` takes four times as long.
        """
        if not args and (*kwargs,) == self._as_given:
            return kwargs
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
        except Exception as error:
            raise TypeError(
                f"tool {self.name}: its {type(value).__name__} result cannot be stored ({_why(error)}); {STORABLE}"
            ) from error

    def decode_result(self, stored: bytes) -> R_co:
        """A result from the journal, by the return annotation. Raises TypeError if it isn't of that type."""
        try:
            result: R_co = self._decoder.decode(stored)
        except Exception as error:
            raise TypeError(
                f"tool {self.name}: its result is not the {_type_name(self.result_type)} of its annotation "
                f"({_why(error)}); correct the one or the other"
            ) from error
        return result

    @check_arguments("write it without brackets, @charge.compensate for a tool charge")
    def compensate(self, function: F, /) -> F:
        """Declare what undoes a call: `(call, result)`; result None: it may or may not have happened."""
        return self._declare("compensate", function, ("call", "result"))

    @check_arguments("write it without brackets, @charge.reconcile for a tool charge")
    def reconcile(self, function: F, /) -> F:
        """Declare how to find out whether a call happened: `(call)`, which returns its result or `NotDone`."""
        return self._declare("reconcile", function, ("call",))

    @property
    def compensation(self) -> Callable[..., Any] | None:
        """What undoes a call; None: nothing does."""
        return self._declared.get("compensate")

    @property
    def reconciliation(self) -> Callable[..., Any] | None:
        """What finds out whether a call happened; None: nothing does."""
        return self._declared.get("reconcile")

    def check(self) -> None:
        """Raise ConfigError if `on_unknown` needs what was never declared; only known once its module is imported."""
        if self.on_unknown in ("compensate", "reconcile") and self.on_unknown not in self._declared:
            raise ConfigError(
                f'tool {self.name}: on_unknown="{self.on_unknown}" needs a function below it, decorated with '
                f"@{self.name}.{self.on_unknown}"
            )

    def fingerprint(self, arguments: Mapping[str, Any]) -> bytes:
        """16 bytes that tell calls at one place apart. Raises TypeError for arguments that have no stable form."""
        counted = arguments
        if self.free_fields:
            counted = {name: value for name, value in arguments.items() if name not in self.free_fields}
        try:
            text = encode_sorted(counted)
        except (OverflowError, TypeError, ValueError):
            text = as_told(self.name, counted)
        return xxhash.xxh3_128_digest(text)

    def key(self, tenant: str, run: str, fingerprint: bytes, place: str) -> str:
        """The call key, 32 hex digits: BLAKE2b, for it leaves the system, and xxh3 does not resist attack."""
        parts = (tenant, run, self.name, self.version, fingerprint, place)
        return blake2b(_encode(parts), digest_size=16).hexdigest()

    def shared_digest(self, tenant: str, arguments: Mapping[str, Any]) -> bytes:
        """16 bytes that name a call of scope `tenant`: no version, no run, no place; in every process the same."""
        fields = [arguments[name] for name in self.key_fields]
        try:
            parts = encode_sorted((tenant, self.name, fields))
        except (OverflowError, TypeError, ValueError):
            parts = sorted_text([tenant, self.name, fields]).encode("utf-8", "surrogatepass")
        return blake2b(parts, digest_size=16, person=b"scope tenant").digest()

    def _declare(self, what: str, function: F, parameters: tuple[str, ...]) -> F:
        where = f"@{self.name}.{what}"
        if self.effect not in ("keyed", "blind"):
            raise ConfigError(f"{where}: a {self.effect} tool changes nothing; leave it out")
        if what in self._declared:
            raise ConfigError(f"{where}: it is declared already, once is enough")
        check_declared(where, function, parameters)
        self._declared[what] = function
        return function

    @cached_property
    def _as_given(self) -> tuple[str, ...] | None:
        """The names of all arguments, in the signature's order; None: one of them is filled in."""
        return (*self._names,) if self.tenant_arg is None else None

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


# --- Who calls a tool directly ---

AGENT_BENEATH: dict[CodeType, bool] = {}
"""Whether what these functions call is an agent; noted where they are defined."""


def _called_by_agent() -> bool:
    """Whether an agent calls the function that asks, and neither a test does nor another tool."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if (agent := AGENT_BENEATH.get(frame.f_code)) is not None:
            return agent
        frame = frame.f_back
    return False


# --- How results are stored: msgpack, by the return annotation; pydantic models by their field names ---


def _to_plain(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json", round_trip=True, by_alias=False)
    raise TypeError(f"{type(value).__qualname__} has no stored form")


def _from_plain(kind: Any, value: Any) -> Any:
    if kind is object:
        return value
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        try:  # not strict, whatever the model says: dates and the like are stored as text
            return kind.model_validate(value, strict=False, by_alias=False, by_name=True)
        except pydantic.ValidationError as error:  # its own words quote values, which must not reach a log
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise ValueError(f"{first['msg']} - at `{'.'.join(map(str, first['loc']))}`") from None
    raise ValueError(f"{_type_name(kind)} has no stored form")


def _why(error: Exception) -> str:
    """What is wrong with a result; of what a validator or serializer raised, which may quote it, the name."""
    if isinstance(error, (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)):
        return as_text(error)
    return type(error).__name__


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_plain)
_encode = msgspec.msgpack.Encoder().encode


# --- The decorator ---


_MISSING: Any = object()


@overload
def tool(*, effect: Literal["pure"], **options: Unpack[ToolOptions]) -> PureDecorator: ...
@overload
def tool(*, effect: Literal["read"], **options: Unpack[ToolOptions]) -> ReadDecorator: ...
@overload
def tool(*, effect: Literal["keyed", "blind"], **options: Unpack[ToolOptions]) -> EffectDecorator: ...
@check_arguments('write @tool(effect="read"), and the options that `help(onceflow.tool)` names')
def tool(
    *misplaced: Any,
    effect: Any = _MISSING,
    name: str | None = None,
    version: int = 1,
    scope: Scope = "run",
    key_fields: Sequence[str] | None = None,
    free_fields: Sequence[str] = (),
    tenant_arg: str | None = None,
    ttl: timedelta | float | None = None,
    timeout: timedelta | float = timedelta(seconds=30),
    retry: RetryPolicy | None = None,
    on_unknown: OnUnknown = "park",
) -> Any:
    """Make a function a tool.

    effect: `pure` computes, without I/O; `read` does I/O that changes nothing (a model's answer too); `keyed`
        changes something and honours the idempotency key it is given; `blind` does so and knows no key.
    name, version: part of the call key; the name is the function's unless given.
    free_fields: arguments that may differ in a replay, such as a text that a model writes (keyed tools).
    scope, key_fields: a call belongs to its `run`; or to its `tenant`: then the same call by two runs, or twice by one,
        is one effect, and `key_fields` are the arguments that make it the same.
    tenant_arg: the parameter that the run fills with its tenant; its default must be `FROM_RUN`.
    ttl: how long the target remembers a key; 24 hours unless given (keyed tools); of scope `tenant`: a call is known.
    timeout: of one attempt. retry: of failed attempts, `RetryPolicy()` unless given (read and keyed tools).
    on_unknown: what to do when a call may or may not have happened (keyed and blind tools): `park` it for a person,
        `fail` it (the agent sees OutcomeUnknown), `reconcile` or `compensate` it by the function declared for that.
    """
    if misplaced or effect is _MISSING:
        raise ConfigError(
            'a tool must say its effect: write @tool(effect="read") (or "pure", "keyed", "blind")'
        )
    caller_locals = sys._getframe(2).f_locals

    def decorate(function: Callable[..., Any]) -> Tool[..., Any]:
        tool_name = str(name or getattr(function, "__name__", "?"))
        where = f"tool {tool_name}"
        check_choice(where, "effect", effect, Effect)
        check_function(where, function, effect)
        check_name(where, tool_name)
        check_choice(where, "scope", scope, Scope)
        check_choice(where, "on_unknown", on_unknown, OnUnknown)
        check_count(where, "version", version)
        ttl_s = seconds_of(where, "ttl", timedelta(hours=24) if ttl is None else ttl)
        timeout_s = seconds_of(where, "timeout", timeout)
        check_retry(where, retry)
        hints = annotations(where, function, caller_locals)
        takes_call, signature = split_call(where, function, hints)
        check_parameters(where, signature, tenant_arg, key_fields, free_fields)
        check_effect(where, effect, takes_call=takes_call, key_fields=key_fields, scope=scope)
        for option, given, effects in (
            ("free_fields", bool(free_fields), ("keyed", "blind") if scope == "tenant" else ("keyed",)),
            ("ttl", ttl is not None, ("keyed", "blind") if scope == "tenant" else ("keyed",)),
            ("on_unknown", on_unknown != "park", ("keyed", "blind")),
            ("retry", retry is not None, ("pure", "read", "keyed")),
        ):
            if given and effect not in effects:
                raise ConfigError(f"{where}: leave out {option}, it is for {' and '.join(effects)} tools")
        result_type = hints.get("return", Any)
        if effect != "pure":  # results of pure tools are computed again, never stored
            check_storable(where, result_type)
        if scope == "tenant":
            tool_names.enter(tool_name, version, function)
        return Tool(
            name=tool_name,
            version=version,
            effect=effect,
            scope=scope,
            timeout_s=timeout_s,
            retry=RetryPolicy() if retry is None else retry,
            function=function,
            signature=signature,
            result_type=result_type,
            takes_call=takes_call,
            is_async=inspect.iscoroutinefunction(function),
            tenant_arg=tenant_arg,
            key_fields=tuple(key_fields or ()),
            free_fields=tuple(free_fields),
            ttl_s=ttl_s,
            on_unknown=on_unknown,
        )

    return decorate
