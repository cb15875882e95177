"""How many events lie in another slot's partitions than their tenants are at home in."""

import logging
import time

log = logging.getLogger(__name__)

EVENTS = 10_000  # over which the share is taken


class ForwardedShare:
    """Warns when many events are at home in another slot than they are read in."""

    def __init__(self) -> None:
        self._events = self._forwarded = 0
        self._line_at = 0.0

    def count(self, events: int, forwarded: int) -> None:
        self._events += events
        self._forwarded += forwarded
        if self._events < EVENTS:
            return
        if self._forwarded * 10 > self._events and time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + 300
            log.warning(
                "many events are forwarded to another slot once: right, but twice the traffic. Producers with "
                "librdkafka should set partitioner=murmur2_random and key by tenant; a shared topic's partitions "
                "should be a multiple of the slots",
                extra={"events": self._events, "forwarded": self._forwarded},
            )
        self._events = self._forwarded = 0
