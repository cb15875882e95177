"""Every error that a user can meet, each with its remedy.

OnceflowError
├── ConfigError           wrong usage or configuration; the process ends with status 2
└── Fault                 a fault that a restart heals; the process ends with status 3
RunError                  what agents and tools raise and catch
├── RetryLater            raised by a tool: this attempt changed nothing, try again later
├── GiveUp                raised by a tool: this attempt changed nothing, do not try again
├── Failed                raised by an agent (or tool): the run failed, with a code of its own
├── CallFailed            raised to an agent: a call failed for good
├── OutcomeUnknown        raised to an agent: a call may or may not have happened
├── WaitExpired           raised to an agent: a wait's deadline passed
└── KeyReused             raised to an agent: other arguments under the same call key
"""

import math
from datetime import timedelta

TEXT_MAX = 4_000  # characters
AFTER_MAX_S = 365 * 86_400.0


def as_text(said: object, most: int = TEXT_MAX) -> str:
    """What a tool or an agent says, as a text that can be stored and sent: whole characters, and not too many.

    Whatever it is: one run's odd words must not end the cell of all.
    """
    try:
        text = str(said)
    except Exception:  # noqa: BLE001 (a __str__ may raise anything)
        text = f"({type(said).__name__}, whose text cannot be had)"
    if len(text) > most:
        text = text[: most - 1] + "…"
    return text.encode("utf-8", "replace").decode()


class OnceflowError(Exception):
    """Base of what ends a command or a cell; `exit_status`, which each kind says, is the status it ends with."""

    exit_status: int


class ConfigError(OnceflowError):
    """Wrong usage or configuration. The message says which, and what to write instead."""

    exit_status = 2


class Fault(OnceflowError):  # noqa: N818
    """A fault that a restart heals: the supervisor should start the cell again."""

    exit_status = 3


class RunError(Exception):
    """Base of what agents and tools raise and catch."""


class RetryLater(RunError):  # noqa: N818
    """Raised by a tool: this attempt changed nothing; try again.

    `after`: how long to wait at least: seconds (a text too, as a Retry-After header holds them) or a timedelta, of
    which 365 days count at most. What is neither, such as a date or NaN, counts as None: by the retry policy. For
    that nothing was done, which this says, must not be lost over a header.
    """

    after_s: float | None = None  # of a class whose own __init__ sets none

    def __init__(self, message: str = "", *, after: float | str | timedelta | None = None) -> None:
        super().__init__(message)
        self.after_s = _seconds(after)


def _seconds(after: float | str | timedelta | None) -> float | None:
    if after is None:
        return None
    try:
        seconds = float(after.total_seconds() if isinstance(after, timedelta) else after)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), AFTER_MAX_S)


class GiveUp(RunError):  # noqa: N818
    """Raised by a tool: this attempt changed nothing and another would not help."""


class Failed(RunError):  # noqa: N818
    """Raised by an agent: the run ends as failed, with this code and message in its completion.

    From a tool it says that this attempt changed nothing, and reaches the agent as it is. Of a code or message that
    is no text, such as 404, a text is made; an empty code is `failed`.
    """

    code: str = "failed"  # of a class whose own __init__ sets none
    message: str = ""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(code, message)
        self.code = as_text(code) or Failed.code
        self.message = "" if message is None else as_text(message)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class CallFailed(RunError):  # noqa: N818
    """Raised to an agent: a call failed for good; its retries are used up or would not help."""


class OutcomeUnknown(RunError):  # noqa: N818
    """Raised to an agent: a call may or may not have happened."""


class WaitExpired(RunError):  # noqa: N818
    """Raised to an agent: a wait's deadline passed."""


class KeyReused(RunError):  # noqa: N818
    """Raised to an agent: another call used the same key with other arguments; nothing was executed."""
