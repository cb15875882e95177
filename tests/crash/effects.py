"""What the flows under test have done to the world outside, see `world`; and what is wrong with that."""

import fcntl
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash.cells import Cell
from tests.crash.checker import Event, Sent
from tests.crash.load import FAILING
from tests.crash.scene import Scene


class Effect(NamedTuple):
    """Something that was done."""

    operation: str
    order: str
    key: str
    answer: str


class World:
    """What the flow `effects_flow` has done to the world; there, an order is an event's key."""

    module = "tests.crash.effects_flow"

    def __init__(self, directory: Path) -> None:
        self.directory, self.gate = directory / "world", directory / "gate"
        self.directory.mkdir()
        (self.directory / "done").touch()
        self._read, self._orders = 0, defaultdict[str, list[Effect]](list)

    def cell(self, scene: Scene, name: str, module: str = "") -> Cell:
        paths = {"CRASH_WORLD": str(self.directory), "CRASH_GATE": str(self.gate)}
        return scene.cell(name, module or self.module, **paths)

    def done(self) -> list[Effect]:
        """Each effect, in the order they happened."""
        return self._effects(0)[0]

    def of(self, order: str) -> list[Effect]:
        """The effects of one order, in the order they happened."""
        news, self._read = self._effects(self._read)
        for effect in news:
            self._orders[effect.order].append(effect)
        return self._orders[order]

    def operations(self, order: str) -> list[str]:
        return [effect.operation for effect in self.of(order)]

    def contents(self, event: Event, data: Any) -> str:
        """A completion says what was done, and nothing else was."""
        answers = {effect.operation: effect.answer for effect in self.of(event.key)}
        if data["ship"] == "unknown":
            answers["ship"] = "unknown"
        return "" if data == answers else f"the completion says {data}, the world {answers}"

    def wanted(self, event: Event) -> list[list[str]]:
        """What may have been done for an order, in its order: all, but for a shipping that nobody knows about."""
        if FAILING in event.data:
            return [["reserve", "charge", "refund", "release"]]
        return [["reserve", "charge", "ship"], ["reserve", "charge"]]

    def wrong(self, events: Iterable[Event]) -> list[str]:
        """The orders with other effects than these, and the keys by which something was done twice."""
        found = [(event, self.operations(event.key)) for event in events]
        wrong = [f"{event.id}: {done}" for event, done in found if done not in self.wanted(event)]
        keys = Counter(effect.key for effect in self.done() if effect.key != "-")
        return wrong + [f"{key}: {times} times" for key, times in keys.items() if times > 1]

    def check(self, sent: Iterable[Sent]) -> None:
        """Fail if something is wrong with the effects of all that was sent."""
        wrong = self.wrong({each.event for each in sent if each.event is not None})
        assert not wrong, f"{len(wrong)} x effects: {wrong[:5]}"

    def _effects(self, since: int) -> tuple[list[Effect], int]:
        with (self.directory / "done").open() as done:
            fcntl.flock(done, fcntl.LOCK_SH)  # a line that is being written may show in part
            done.seek(since)
            lines = done.read().splitlines()
            return [Effect(*line.split()) for line in lines], done.tell()
