"""Slots that go in a moment, or a cell that ends: what becomes of calls that nobody may repeat.

A `blind` call without an outcome on record is one that nobody knows about; most often a person is asked then. So those
that are out are waited for, and those that were not sent are put on record as that.
"""

import logging
import time
from collections.abc import Callable, Sequence

from onceflow.agents.happenings import Decided
from onceflow.agents.lane import Lane

log = logging.getLogger(__name__)


def leave(
    lanes: Sequence[Lane],
    patience_s: float,
    take_answers: Callable[[], None],
    wait: Callable[[], None],
    decided: Callable[[str, Decided], None],
) -> None:
    """Have these lanes begin and send nothing more, and settle what they can.

    `take_answers` gives the lanes the answers that are there, `wait` waits a moment for more, `decided` takes what a
    tenant's lane has decided.
    """
    for lane in lanes:
        lane.leave()
    take_answers()
    deadline, said = time.monotonic() + patience_s, False
    while in_doubt := [lane.tenant for lane in lanes if lane.in_doubt]:
        if time.monotonic() >= deadline:
            log.warning(
                "calls that nobody may repeat are still out; their outcome will not be known",
                extra={"tenants": len(in_doubt), "waited_s": patience_s},
            )
            break
        if not said:
            said = True
            log.info(
                "waiting for calls that nobody may repeat",
                extra={"tenants": len(in_doubt), "at_most_s": patience_s},
            )
        wait()
        take_answers()
    for lane in lanes:
        decided(lane.tenant, lane.take_back(int(time.time() * 1000)))
