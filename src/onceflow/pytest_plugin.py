"""A pytest plugin, there wherever onceflow is installed: fixtures for tests of agents and tools."""

import pytest

from onceflow.testing import Target


@pytest.fixture
def onceflow_target() -> Target:
    """A service that does each idempotency key once, with nothing done yet."""
    return Target()
