"""Calls that an agent asked for and never awaited: nothing was done for them, and Python only warns."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onceflow.agents import failures

_FORGOTTEN = r"coroutine 'Run\.(\w+)' was never awaited"


@contextmanager
def forgotten_awaits() -> Iterator[list[str]]:
    """Collects them meanwhile, as what to write instead; all other warnings go their way.

    An agent that is given up, to be replayed later, may have been about to await what it holds.
    """
    found: list[str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("always", _FORGOTTEN, RuntimeWarning)
        show = warnings.showwarning

        def noted(
            message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None
        ) -> None:
            named = re.match(_FORGOTTEN, str(message))
            if named is None:
                show(message, category, filename, lineno, file, line)
            elif filename != failures.__file__:
                found.append(f"await run.{named[1]}(…)")

        warnings.showwarning = noted
        yield found
