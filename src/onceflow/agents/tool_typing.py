"""How `@tool` is typed: its options, and what it makes of which function.

A tool's parameters are its function's, `call` included, and `Run.call` leaves `call` out. Overloading the decorator on
`call` would be simpler and wrong: a function with an `Any` anywhere in its signature, such as `-> dict[str, Any]`, fits
several overloads, and mypy then checks nothing at all. For the same reason plain functions are told from async ones by
what they return, see `Storable`.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from typing_extensions import TypedDict

from onceflow.agents.call import Call, RetryPolicy
from onceflow.agents.tool_checks import OnUnknown, Scope

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Set as AbstractSet
    from decimal import Decimal
    from enum import Enum
    from uuid import UUID

    import msgspec
    import pydantic
    from _typeshed import DataclassInstance

    from onceflow.agents.tool import Tool

P = ParamSpec("P")
R = TypeVar("R")

Storable = TypeVar(
    "Storable",
    bound="int | float | bytes | bytearray | Sequence[Any] | Mapping[Any, Any] | AbstractSet[Any] | Decimal"
    " | UUID | Enum | dt.date | dt.time | dt.timedelta | msgspec.Struct | pydantic.BaseModel"
    " | DataclassInstance | None",
)
"""What a plain function may return: what can be stored. No coroutines: so just one overload fits."""


class ToolOptions(TypedDict, total=False):
    """What may be said of a tool besides its effect; `tool` has the defaults."""

    name: str | None
    version: int
    scope: Scope
    key_fields: Sequence[str] | None
    free_fields: Sequence[str]
    tenant_arg: str | None
    ttl: timedelta | float | None
    timeout: timedelta | float
    retry: RetryPolicy | None
    on_unknown: OnUnknown


class PureDecorator(Protocol):
    """Takes a plain function."""

    def __call__(self, function: Callable[P, R], /) -> "Tool[P, R]": ...


class ReadDecorator(Protocol):
    """Takes an async or a plain function."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> "Tool[P, R]": ...
    @overload
    def __call__(self, function: Callable[P, Storable], /) -> "Tool[P, Storable]": ...


class EffectDecorator(Protocol):
    """Takes an async or a plain function whose first parameter is `call: Call`."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Call, P], Coroutine[Any, Any, R]], /
    ) -> "Tool[P, R]": ...
    @overload
    def __call__(self, function: Callable[Concatenate[Call, P], Storable], /) -> "Tool[P, Storable]": ...
