"""What a test gives the kit: what does not fit is refused with the remedy, and tools get their results from it."""

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from onceflow.agents.signals import Signal
from onceflow.agents.tool import Tool
from onceflow.errors import Failed, GiveUp, RetryLater
from onceflow.event import Incoming


class ScriptError(AssertionError):
    """A test's script does not fit."""


SAYS_NOTHING_DONE = (RetryLater, GiveUp, Failed)


def no_such_raise(tool: Tool[Any, Any], error: BaseException, though: str) -> str:
    """What to tell whose tool raises what says that nothing was done."""
    name = type(error).__name__
    return (
        f"tool {tool.name} raises {name}, which says that this attempt changed nothing, {though}: let what was raised "
        f"there go through, or raise {name} only for an answer that says so"
    )


def check_no_loop(name: str) -> None:
    """Raise ScriptError in an async test: each tool is run in a loop of its own, and there is one already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ScriptError(
        f"{name} is called where an event loop runs: call it from a plain `def` test, "
        f"or write `await asyncio.to_thread({name}, …)`"
    )


def check_script(given: object, results: Mapping[Any, Any], flags: object) -> None:
    """Raise ScriptError for what can be seen to be wrong before anything runs."""
    if not isinstance(given, Incoming):
        raise ScriptError(f"the event is a {type(given).__name__}: make it with onceflow.testing.event(…)")
    if not isinstance(flags, Mapping):
        raise ScriptError(
            f"flags is {flags!r}: write flags={{'name': True}}, or {{'name': {{'SE': True}}}} by market"
        )
    for name, flag in flags.items():
        if not all(
            isinstance(each, bool) for each in (flag.values() if isinstance(flag, Mapping) else [flag])
        ):
            raise ScriptError(
                f"the flag {name!r} is {flag!r}: write True, False, or {{'SE': True}} by market"
            )
    for key in results:
        if isinstance(key, str):
            raise ScriptError(f"results takes tools, not names: write {{{key}: …}} instead of {{{key!r}: …}}")
        if not isinstance(key, Tool):
            name = getattr(key, "__name__", repr(key))
            raise ScriptError(f"results takes tools: decorate {name} with @tool(effect=…)")


def listed_signals(signals: Iterable[Signal]) -> list[Signal]:
    """Signals that can be sent again and again."""
    given = list(signals) if isinstance(signals, Iterable) else [None]
    if not all(isinstance(each, Signal) for each in given):
        raise ScriptError(f"signals is {signals!r}: write signals=[signal(…), …]")
    return given


class Scripts:
    """What the tools in `results` return, one request after another."""

    def __init__(self, results: Mapping[Any, Any]) -> None:
        self.disturbed = False  # a process died, or a request was not answered well: tools are called again
        self._results = {tool: list(r) if isinstance(r, list) else r for tool, r in results.items()}

    def __contains__(self, tool: Tool[Any, Any]) -> bool:
        return tool in self._results

    def next(self, tool: Tool[Any, Any], arguments: Mapping[str, Any]) -> Any:
        """The next result of a tool; raises what the script says that the tool raises."""
        value = self._results[tool]
        if isinstance(value, list):
            if not value:
                remedy = "give it a value, or a longer list"
                if self.disturbed:
                    remedy = (
                        "after a crash, or without an answer, a tool is called again: "
                        "give it one value for all its calls, or a function of their arguments"
                    )
                raise ScriptError(
                    f"the script of {tool.name} has no more results: {remedy}; "
                    "one result that is a list itself is written as [[1, 2]]"
                )
            value = value.pop(0)
        if callable(value) and not _is_exception_class(value):
            value = _called(tool, value, arguments)
        if isinstance(value, BaseException) or _is_exception_class(value):
            raise _raised(tool, value)
        return value


def _is_exception_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _called(tool: Tool[Any, Any], function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What a function of a script returns; that it does not fit must not look like what the tool raises."""
    try:
        inspect.signature(function).bind(**arguments)
    except ValueError:  # a built-in one, which does not tell
        pass
    except TypeError as error:
        raise ScriptError(
            f"the script of {tool.name} is called with the arguments of the call, and {error}: "
            f"write `lambda {', '.join(arguments)}: …`"
        ) from None
    value = function(**arguments)
    if inspect.iscoroutine(value):
        value.close()
        raise ScriptError(
            f"the script of {tool.name} is async: write a plain function, or leave the tool out of results"
        )
    return value


def _raised(tool: Tool[Any, Any], error: BaseException | type[BaseException]) -> BaseException:
    if isinstance(error, BaseException):
        return error
    try:
        return error()
    except TypeError as missing:
        raise ScriptError(
            f"the script of {tool.name} is an exception class that needs arguments ({missing}): "
            f"write {error.__name__}(…), with them"
        ) from None
