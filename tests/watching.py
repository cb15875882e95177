"""The watch over runs that may be poison, for tests: its names are those of a tenant's events."""

from onceflow.agents.poison import CONTROL_S, NAMES_BYTES, Names, Suspicion, Watch
from tests.tenant import Tenant


def name(number: int) -> bytes:
    return Tenant.event_key(number)


A, B, C, D = name(1), name(2), name(3), name(4)


def watched(known: Suspicion) -> Watch:
    return Watch(Names(memoryview(bytearray(NAMES_BYTES))), known, lambda _: None)


def controlled(watch: Watch) -> None:
    """The time of the control is over."""
    for now_s in (5.0, 5.0 + CONTROL_S):
        watch.look_at(now_s)
