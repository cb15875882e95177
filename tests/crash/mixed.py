"""What the flow `mixed_flow` has done to the world outside, and what is wrong with that."""

from collections.abc import Iterable
from typing import Any

from tests.crash.checker import Event
from tests.crash.effects import World
from tests.crash.load import FAILING

CUSTOMERS = 3  # of a tenant


class MixedWorld(World):
    """Each order is reserved, checked and shipped, or released; each customer is welcomed once."""

    module = "tests.crash.mixed_flow"

    def contents(self, event: Event, data: Any) -> str:
        answers = {effect.operation: effect.answer for effect in self.of(event.key)}
        (welcome,) = self.of(customer_of(event.tenant, event.key))
        answers["welcome"] = welcome.answer
        return "" if data == answers else f"the completion says {data}, the world {answers}"

    def wrong(self, events: Iterable[Event]) -> list[str]:
        wrong = []
        for event in events:
            wanted = ["reserve", "check", "release" if FAILING in event.data else "ship"]
            if (found := self.operations(event.key)) != wanted:
                wrong.append(f"{event.id}: {found}")
        return wrong


def customer_of(tenant: str, key: str) -> str:
    """The customer that an order is of."""
    return f"{tenant}/{int(key[:4], 16) % CUSTOMERS}"
