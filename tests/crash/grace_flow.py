"""Flow under test: `effects_flow`, in a cell whose group waits for it no longer than its session lasts.

Otherwise a test would take half a minute to show that a cell which does not poll is put out of its group.
"""

from onceflow.stream import cell
from tests.crash.effects_flow import flow

__all__ = ["flow"]

cell._REBALANCE_S = 0.0  # the longer of this and the session's time counts
