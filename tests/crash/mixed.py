"""What the flow `mixed_flow` has done to the world outside, and what is wrong with that."""

from typing import Any

from tests.crash.checker import Event
from tests.crash.effects import World
from tests.crash.load import FAILING

CUSTOMERS = 3  # of a tenant


class MixedWorld(World):
    """Each order is reserved, checked and shipped, or released; each customer is welcomed once."""

    module = "tests.crash.mixed_flow"

    def contents(self, event: Event, data: Any) -> str:
        welcomes = self.of(customer_of(event.tenant, event.key))
        if len(welcomes) != 1:
            return f"its customer was welcomed {len(welcomes)} times"
        answers = {effect.operation: effect.answer for effect in [*welcomes, *self.of(event.key)]}
        return "" if data == answers else f"the completion says {data}, the world {answers}"

    def wanted(self, event: Event) -> list[list[str]]:
        return [["reserve", "check", "release" if FAILING in event.data else "ship"]]


def customer_of(tenant: str, key: str) -> str:
    """The customer that an order is of."""
    return f"{tenant}/{int(key[:4], 16) % CUSTOMERS}"
