"""Tools whose target behaves as badly as targets do, over HTTP: what the run is told, and what was done.

One cell has all orders at once, so each also shows that it hurts no other.
"""

import json
import signal
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest

from tests.crash.checker import Event
from tests.crash.effect_server import RETRY_AFTER_S, EffectServer, Request
from tests.crash.scene import Scene

pytestmark = pytest.mark.crash

ATTEMPTS = {"keyed": 3, "blind": 5}
AFTER_THE_EFFECT = ("late", "broken", "drip", "reset", "garbage")
DONE, UNKNOWN, FAILED = "done", "unknown", "failed"


class Order(NamedTuple):
    """An order, and what must come of it."""

    effect: str
    behaviour: str
    times: int
    said: str
    requests: int
    effects: int

    @property
    def name(self) -> str:
        return f"{self.effect}-{self.behaviour}-{self.times}"


ORDERS = [
    *(Order("keyed", how, 1, DONE, requests=2, effects=1) for how in AFTER_THE_EFFECT),
    *(Order("keyed", how, 9, UNKNOWN, requests=ATTEMPTS["keyed"], effects=1) for how in AFTER_THE_EFFECT),
    *(Order("blind", how, 1, UNKNOWN, requests=1, effects=1) for how in AFTER_THE_EFFECT),
    *(Order(effect, "busy", 1, DONE, requests=2, effects=1) for effect in ("keyed", "blind")),
    *(
        Order(effect, "busy", 9, FAILED, requests=ATTEMPTS[effect], effects=0)
        for effect in ("keyed", "blind")
    ),
    *(Order(effect, "huge", 1, FAILED, requests=1, effects=1) for effect in ("keyed", "blind")),
    *(Order(effect, "well", 0, DONE, requests=1, effects=1) for effect in ("keyed", "blind")),
]


@pytest.fixture
def target() -> Iterator[EffectServer]:
    server = EffectServer()
    yield server
    server.close()


def wrong(order: Order, said: str, requests: list[Request]) -> str:
    """What is wrong with an order: with what its run was told, and with what was done."""
    faults = []
    wanted = requests[-1].answer if requests and order.said == DONE else order.said
    if said.partition(":")[0] != wanted:
        faults.append(f"its run says {said!r}")
    if len(requests) != order.requests:
        faults.append(f"{len(requests)} requests")
    if sum(request.done for request in requests) != order.effects:
        faults.append(f"done {sum(request.done for request in requests)} times")
    if order.effect == "keyed" and len({request.key for request in requests}) != 1:
        faults.append("keys differ")
    if order.behaviour == "busy" and any(
        later.at - earlier.at < RETRY_AFTER_S for earlier, later in pairwise(requests)
    ):
        faults.append("it came back too early")
    return f"{order.name}: {', '.join(faults)}; {requests}" if faults else ""


def test_a_run_is_told_what_is_known_and_nothing_is_done_twice(scene: Scene, target: EffectServer) -> None:
    scene.seed(81)
    cell = scene.cell("a", "tests.crash.http_flow", CRASH_TARGET=target.url).start()
    for number, order in enumerate(ORDERS):
        data = {"order": order.name, "effect": order.effect, "behaviour": order.behaviour}
        sent = json.dumps(data | {"times": str(order.times)}).encode()
        scene.send(Event(f"tenant-{number % 5}", "shop", order.name, sent))
    assert scene.load is not None
    scene.load.flush()

    def completions() -> dict[str, str]:
        scene.outputs.more()
        found = [json.loads(o.value or b"") for o in scene.outputs.found[f"{scene.flow}.completions"]]
        return {each["causeid"]: each["data"] for each in found}

    scene.wait(lambda: len(completions()) == len(ORDERS), "all orders are dealt with")
    found = completions()
    faults = [fault for order in ORDERS if (fault := wrong(order, found[order.name], target.of(order.name)))]
    assert faults == []
    assert scene.outputs.found[f"{scene.flow}.dead-letters"] == []
    assert cell.end(signal.SIGTERM) == 0
