"""What can be wrong with a tool, found when its module is imported; each says what to write instead."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Literal, TypeVar, cast, get_args, get_type_hints

from onceflow.agents.call import FROM_RUN, Call
from onceflow.errors import ConfigError
from onceflow.event import undecodable

Effect = Literal["pure", "read", "keyed", "blind"]
OnUnknown = Literal["park", "reconcile", "compensate", "fail"]
Scope = Literal["run", "tenant"]

F = TypeVar("F", bound=Callable[..., Any])

STORABLE = "return JSON-like values, a dataclass, a msgspec Struct or a pydantic model"


def check_choice(where: str, option: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(
            f"{where}: {option}={value!r}; write one of {', '.join(map(repr, get_args(choices)))}"
        )


def check_arguments(remedy: str) -> Callable[[F], F]:
    """Have a call whose arguments do not fit the function told with what to write instead.

    The function is one frame further from its caller than it seems.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise ConfigError(f"{function.__name__}: {error}; {remedy}") from None
            return function(*args, **kwargs)

        return cast("F", checked)

    return decorate


def check_function(where: str, function: Callable[..., Any], effect: Effect) -> None:
    if not inspect.isfunction(function):
        raise ConfigError(f"{where}: {function!r} is not a function; decorate a `def` or `async def`")
    check_no_method(where, function)
    check_no_generator(where, function)
    if effect == "pure" and inspect.iscoroutinefunction(function):
        raise ConfigError(
            f'{where}: a pure tool has nothing to await; write `def`, or effect="read" if it does I/O'
        )


def check_no_method(where: str, function: Callable[..., Any]) -> None:
    if next(iter(inspect.signature(function).parameters), "") in ("self", "cls"):
        raise ConfigError(
            f"{where}: a method is called with an object, which no replay would have: no methods, move it out of the "
            "class"
        )


def check_no_generator(where: str, function: Callable[..., Any]) -> None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"{where}: a generator has no single result that can be recorded; return a list")


def check_name(where: str, name: str) -> None:
    if name == "<lambda>":
        raise ConfigError(f"{where}: a lambda has no name; write name=…, or a `def`")
    if not re.fullmatch(r"\w[\w.:/-]{0,127}", name):
        raise ConfigError(f"{where}: write name=… with up to 128 letters, digits and . : / _ -")


def check_declared(where: str, function: Any, names: tuple[str, ...]) -> None:
    """What undoes a call, or finds out about it: a function of these parameters."""
    wanted = f"write `async def {getattr(function, '__name__', 'f')}({', '.join(names)})`"
    if not inspect.isfunction(function):
        raise ConfigError(f"{where}: {function!r} is not a function; {wanted}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"{where}: a generator would do nothing; {wanted}, without `yield`")
    signature = inspect.signature(function)
    taken = signature.parameters.values()
    by_position = [each.name for each in taken if each.kind is each.POSITIONAL_OR_KEYWORD]
    others = [each for each in taken if each.kind is each.KEYWORD_ONLY and each.default is each.empty]
    swapped = by_position == [*names[::-1]] != [*names]
    if len(by_position) != len(names) or others or swapped or by_position[:1] == ["self"]:
        raise ConfigError(f"{where}: it takes {signature}; {wanted}")


def split_call(
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
        if isinstance(each.default, list | dict | set):
            raise ConfigError(
                f"{where}: `{each.name}={each.default!r}` would be one value for all calls; write None or a tuple"
            )
        if hints.get(each.name) is Call:
            raise ConfigError(f"{where}: `{each.name}: Call` must be the first parameter, and the only Call")
    return takes_call, signature.replace(parameters=rest)


def check_parameters(
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
    if key_fields is not None and not key_fields:
        raise ConfigError(
            f"{where}: key_fields={key_fields!r}; name a parameter of {signature}, or leave it out"
        )
    if both := [each for each in free_fields if each in (key_fields or ())]:
        raise ConfigError(
            f"{where}: {both} in key_fields and in free_fields; what makes the key may not differ"
        )
    if tenant_arg is not None and tenant_arg not in parameters:
        raise ConfigError(f"{where}: tenant_arg={tenant_arg!r} is no parameter of {signature}")
    for each in parameters.values():
        if (each.name == tenant_arg) != (each.default is FROM_RUN):
            raise ConfigError(
                f"{where}: for the run to fill in its tenant, write both tenant_arg={each.name!r} and the "
                f"parameter `{each.name}: str = FROM_RUN`"
            )


def check_effect(
    where: str, effect: Effect, *, takes_call: bool, key_fields: Sequence[str] | None, scope: Scope
) -> None:
    if effect in ("pure", "read") and key_fields is not None:
        raise ConfigError(f"{where}: leave out key_fields, they are for keyed tools")
    if effect in ("keyed", "blind") and not takes_call:
        raise ConfigError(
            f"{where}: a {effect} tool needs `call: Call` as its first parameter, to pass on call.key"
        )
    if scope == "tenant" and effect not in ("keyed", "blind"):
        raise ConfigError(f"{where}: leave out scope, it is for keyed and blind tools")
    if (scope == "tenant") != bool(key_fields):
        raise ConfigError(
            f'{where}: scope="tenant" and key_fields=(…) go together: for all runs of a tenant a call is the same '
            "if its key fields are"
        )


def check_storable(where: str, result_type: Any) -> None:
    try:
        unknown = undecodable(result_type)
    except TypeError as error:
        raise ConfigError(f"{where}: its result cannot be stored ({error}); {STORABLE}") from error
    if unknown:
        raise ConfigError(f"{where}: a {unknown} cannot be stored; {STORABLE}")


def annotations(where: str, function: Callable[..., Any], caller_locals: Mapping[str, Any]) -> dict[str, Any]:
    """A function's annotations as types, strings resolved in its module and where its decorator stands."""
    try:
        return get_type_hints(function, localns=dict(caller_locals), include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise ConfigError(
            f"{where}: an annotation cannot be read ({error}); annotations are read when the program runs: "
            "define or import the name before the function, and not under TYPE_CHECKING"
        ) from error
