"""A signal ends a wait of its own tenant only, though all tenants' records stand in one view."""

import pytest

from onceflow.agents import in_flight, waking
from tests.left_out import replace
from tests.tenant import Tenant
from tests.test_waits import signal, waits


def ended_by_the_signal_of_another_tenant() -> bool:
    """A tenant has had a signal early; another one, whose records stand in the same view, waits for one like it."""
    acme, other = Tenant(waits), Tenant(waits, name="other")
    other.memory.records = acme.memory.records
    acme.signalled(signal())
    other.event(waits)
    return bool(other.ended)


def test_a_signal_ends_a_wait_of_its_own_tenant_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ended_by_the_signal_of_another_tenant()
    prefix, key = waking.signal_prefix, waking.signal_key
    for module in (in_flight, waking):
        replace(monkeypatch, module, "signal_prefix", lambda tenant, type, id: prefix("", type, id))
    replace(monkeypatch, waking, "signal_key", lambda tenant, signal: key("", signal))
    assert ended_by_the_signal_of_another_tenant(), "with that rule left out"
