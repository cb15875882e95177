"""Which functions have which name, among tools of scope `tenant`.

Such a call belongs to its tenant, its tool's name and its key fields. So two functions of one name would take each
other's results, and one of the two effects would never happen. Only when all modules are imported is it known whether
there are two; a cell asks before it starts. A module that is imported anew is the same function, and two versions of a
tool are one effect, by intention.
"""

import inspect
from collections.abc import Callable
from typing import Any

from onceflow.errors import ConfigError

Where = tuple[str, str]  # a function's file and its qualified name

_declared: dict[
    tuple[str, int], dict[Where, str]
] = {}  # by name and version: the functions, as they are shown


def enter(name: str, version: int, function: Callable[..., Any]) -> None:
    """A tool of scope `tenant` is declared."""
    where = (inspect.unwrap(function).__code__.co_filename, function.__qualname__)
    _declared.setdefault((name, version), {})[where] = f"{function.__module__}.{function.__qualname__}"


def check_names() -> None:
    """Raise ConfigError if two functions have one name."""
    for (name, _), functions in _declared.items():
        if len(functions) > 1:
            raise ConfigError(
                f"two tools of scope tenant are named {name!r}: {' and '.join(functions.values())}. A call of the one "
                "would be taken for a call of the other: give one of them name=…"
            )
