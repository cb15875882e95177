"""Room for runs in flight, shared by the lanes of a cell."""

from collections import OrderedDict
from collections.abc import Iterable

from onceflow.agents.poison import Watch


class Capacity:
    """Bounds the runs in flight, per lane and per cell. Room that becomes free goes round the lanes that wait."""

    def __init__(self, *, runs_per_lane: int, runs_per_cell: int, watch: Watch | None = None) -> None:
        self.runs_per_lane = runs_per_lane
        self.runs_per_cell = runs_per_cell
        self.watch = watch or Watch.forgetful()
        self.in_flight = 0  # runs, and turns not yet used
        self.closed = False  # no more runs begin: the cell is stopping
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._turns: set[str] = set()

    def may_begin(self, tenant: str, in_lane: int) -> bool:
        """Whether a run may begin now; if there is no room, the lane is queued for a turn."""
        if self.closed or in_lane >= self.runs_per_lane:
            return False  # the lane asks again when one of its runs ends
        if self.watch.waiting:
            self._waiting[tenant] = None
            return False
        if tenant in self._turns:
            self.give_back_turn(tenant)
            return True
        if self._waiting or self.in_flight >= self.runs_per_cell:
            self._waiting[tenant] = None
            return False
        return True

    def begun(self, key: bytes) -> None:
        """A run is in flight, whether or not there was room: it may have slept. Most end before they need any."""
        self.in_flight += 1
        self.watch.names.enter(key)

    def ended(self, key: bytes) -> None:
        """A run has ended, or fallen asleep."""
        self.in_flight -= 1
        self.watch.names.leave(key)
        self.watch.over(key)

    def lost(self, keys: Iterable[bytes]) -> None:
        """Runs go on in another cell."""
        for key in keys:
            self.in_flight -= 1
            self.watch.names.leave(key)
            self.watch.over(key, survived=False)

    def give_back_turn(self, tenant: str) -> None:
        """A lane does not use its turn."""
        if tenant in self._turns:
            self._turns.remove(tenant)
            self.in_flight -= 1

    def turns(self, now_s: float = 0.0) -> list[str]:
        """The lanes whose turn it is, as many as there is room for runs; each has room for one run now.

        Suspects of killing the process have their turn when nothing else is in flight. `now_s`: of any steady clock.
        """
        self.watch.look_at(now_s)
        if self.watch.waiting:
            return [] if self.watch.group or self.in_flight else sorted(self.watch.next_group())
        tenants = sorted(self.watch.released())
        while self._waiting and self.in_flight < self.runs_per_cell:
            tenant, _ = self._waiting.popitem(last=False)
            self._turns.add(tenant)
            self.in_flight += 1
            tenants.append(tenant)
        return tenants
