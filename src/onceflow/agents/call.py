"""A call as its tool sees it, and how often it is tried."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import msgspec

from onceflow.errors import ConfigError, as_text

LINEAGE_MAX = 100  # ids
LONGEST_S = 100 * 365 * 86_400.0  # whatever is longer: a time beyond it has no date
_ID_MAX = 200  # characters


def check_count(where: str, option: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{where}: {option}={value!r}; write a whole number, 1 or more")


def seconds_of(where: str, option: str, value: timedelta | float, *, zero: bool = False) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if (
        isinstance(seconds, int | float)
        and math.isfinite(seconds)
        and (seconds > 0 or (zero and seconds == 0))
    ):
        return min(float(seconds), LONGEST_S)
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
    arguments: Mapping[str, Any]  # by name, defaults applied
    deadline_ms: int = 0  # set when the attempt is sent
    lineage: tuple[tuple[str, list[str]], ...] = ()  # what `retrieved` has noted
    fingerprint: bytes = b""  # of the arguments, as a replay is held to them

    @property
    def deadline(self) -> datetime:
        """After it nobody waits for this attempt; aware."""
        return datetime.fromtimestamp(self.deadline_ms / 1000, UTC)

    def sent(self, now_ms: int, timeout_s: float) -> None:
        """Note that this attempt is sent now."""
        msgspec.structs.force_setattr(self, "deadline_ms", now_ms + int(timeout_s * 1000))

    def not_sent(self) -> None:
        """Note that it is not, after all."""
        msgspec.structs.force_setattr(self, "deadline_ms", 0)

    def retrieved(self, ids: Iterable[str], tenant: str | None = None) -> None:
        """Note which records the call has found, and whose they are (by default its own tenant's).

        Kept with the call on record, and shown by `onceflow runs show`: of at most 100 ids, as text.
        """
        room = LINEAGE_MAX - sum(len(known) for _, known in self.lineage)
        if found := [as_text(each, _ID_MAX) for each in islice(ids, room)]:
            noted = (as_text(tenant or self.tenant, _ID_MAX), found)
            msgspec.structs.force_setattr(self, "lineage", (*self.lineage, noted))

    @property
    def headers(self) -> dict[str, str]:
        """The key as an HTTP header. Bare, as Stripe and most targets take it; the IETF's draft would quote it."""
        return {"Idempotency-Key": self.key}

    @property
    def meta(self) -> dict[str, str]:
        """The key as `_meta` of an MCP request."""
        return {"onceflow/idempotency-key": self.key}


class NotDone:
    """Returned by `@t.reconcile`, the class or an instance of it: the call did not happen."""


def is_not_done(value: object) -> bool:
    """Whether a reconciliation says that the call did not happen."""
    return value is NotDone or isinstance(value, NotDone)


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
        check_count("RetryPolicy", "attempts", self.attempts)
        seconds_of("RetryPolicy", "first", self.first, zero=True)
        seconds_of("RetryPolicy", "longest", self.longest, zero=True)
        factor: object = self.factor
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < math.inf:
            raise ConfigError(
                f"RetryPolicy: factor={factor!r}; write a number, 1 or more (less would shorten the delays)"
            )

    def delay_s(self, attempt: int, unit: float) -> float:
        """Seconds to wait after `attempt` (counts from 1) failed; `unit` is a random number in [0, 1)."""
        longest_s = seconds_of("RetryPolicy", "longest", self.longest, zero=True)
        first_s = seconds_of("RetryPolicy", "first", self.first, zero=True)
        try:
            bound_s = min(longest_s, first_s * self.factor ** (attempt - 1))
        except OverflowError:  # attempt in the thousands: beyond what a float holds, so beyond `longest`
            bound_s = longest_s
        return unit * bound_s


def check_retry(where: str, retry: object) -> None:
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise ConfigError(f"{where}: retry={retry!r}; write RetryPolicy(attempts=3), for example")
