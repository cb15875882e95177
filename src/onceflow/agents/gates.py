"""Gates: how many calls of one tool one tenant has at a time, how fast they follow, and when none is sent.

A tool that fails again and again for a tenant, or that says when to come back, is left in peace: its calls wait at the
gate, and then one is let through to try (a circuit breaker, Nygard, "Release It!", 2007). What waits there waits for
nobody else: each tenant and tool has a gate of its own. Pure: who asks says what time it is.
"""

from typing import NamedTuple

import msgspec

from onceflow.config import Limits
from onceflow.errors import Failed, GiveUp, RetryLater

REST_FIRST_S, REST_LONGEST_S = 1.0, 60.0
LONGEST_AFTER = 6  # tries in vain


class Allowance(NamedTuple):
    """What each tenant may ask of each tool."""

    at_once: int = 64  # calls
    per_second: float = 0.0  # calls; 0: as many as it likes
    failures: int = 8  # one after another, until the tool is left in peace; 0: never


def allowance_of(limits: Limits) -> Allowance:
    """What the settings allow."""
    return Allowance(limits.calls_at_once, limits.calls_per_second, limits.calls_failing)


class Gate(msgspec.Struct):
    """One tenant's calls of one tool. Times in seconds of a monotonic clock."""

    running: int = 0
    closed_until: float = 0.0
    probing: bool = False  # it was closed, and one call is through to try
    failed: int = 0  # one after another
    failed_at: float = 0.0  # the last of them
    next_at: float = 0.0  # by the rate
    later_at: float = 0.0  # by the rate, of the last one that was told to come later

    def wait_s(self, allowance: Allowance, now: float) -> float:
        """Seconds until a call may ask again; 0: it may be sent now; negative: when another one has ended."""
        if now < self.closed_until:
            return self.closed_until - now
        if self.running >= allowance.at_once or (self.probing and self.running):
            return -1.0
        return self.next_at - now if self.next_at > now else 0.0

    def sent(self, allowance: Allowance, now: float) -> None:
        """A call is let through."""
        self.running += 1
        if self.closed_until:
            self.closed_until, self.probing = 0.0, True
        if allowance.per_second:
            self.next_at = max(now, self.next_at) + 1 / allowance.per_second

    def later_s(self, allowance: Allowance, now: float, least_s: float) -> float:
        """In how many seconds one is to come again that stands too far behind by the rate: each at a time of its own.

        Otherwise thousands would come together, and all but a few in vain, again and again.
        """
        self.later_at = max(self.later_at + 1 / allowance.per_second, now + least_s)
        return self.later_at - now

    def answered(self) -> None:
        """A call has had its answer."""
        self.running -= 1
        self.failed, self.probing = 0, False

    def given_up(self) -> None:
        """A call that was let through ends without an answer of its tool: that says nothing about the tool."""
        self.running -= 1

    def idle(self, now: float) -> bool:
        """Whether nothing is lost when this gate is forgotten: a failure counts for as long as the longest rest."""
        if self.running or max(self.next_at, self.later_at, self.closed_until) > now:
            return False
        return not self.failed or now - max(self.failed_at, self.closed_until) > REST_LONGEST_S

    def ended(self, allowance: Allowance, now: float, error: BaseException) -> bool:
        """A call has raised this; whether the tool, which was not, is left in peace because of it."""
        if isinstance(error, (Failed, GiveUp)):
            self.answered()
            return False
        self.running -= 1
        self.failed_at = now
        if now >= self.closed_until and self.failed < allowance.failures + LONGEST_AFTER:
            self.failed += 1  # those that were under way together when it closed are no tries
        rest_s = 0.0
        if isinstance(error, RetryLater) and error.after_s is not None:
            rest_s = error.after_s
        elif allowance.failures and self.failed >= allowance.failures:
            rest_s = min(REST_LONGEST_S, REST_FIRST_S * 2 ** (self.failed - allowance.failures))
        if rest_s <= 0:
            return False
        was_closed = now < self.closed_until
        self.closed_until = max(self.closed_until, now + rest_s)
        return not was_closed
