"""What the worker does about news of its grants: runs go on, inputs are read, or read no more."""

from collections.abc import Iterable, Mapping

from onceflow.agents.happenings import Happening, Settled
from onceflow.agents.lane import Lane
from onceflow.event import home_slot
from onceflow.stream.cell import Cell
from onceflow.stream.content import finished_by
from onceflow.stream.news import Added, News, Ready, Removed, news_follow
from onceflow.stream.open_runs import OpenRuns


class Hearing:
    """Acts on news as soon as it may, in the order of each grant. Worker's thread only."""

    def __init__(self, cell: Cell, open_runs: OpenRuns, lanes: Mapping[str, Lane], slots: int) -> None:
        self._cell = cell
        self._open_runs = open_runs
        self._lanes = lanes
        self._slots = slots
        self._postponed: list[News] = []

    def hear(self, heard: Iterable[News], happenings: dict[str, list[Happening]], *, stopping: bool) -> None:
        """Act on news, those that had to wait first; what comes of it for lanes is added to `happenings`."""
        postponed, self._postponed = self._postponed, []
        for news in [*postponed, *heard]:
            if stopping and type(news) is not Removed:
                continue  # nothing more begins; but what is committed must know of a topic that is gone
            if news.grant.live:
                waits = any(news_follow(earlier, news) for earlier in self._postponed)
                if waits or not self._take(news, happenings):
                    self._postponed.append(news)

    def _take(self, news: News, happenings: dict[str, list[Happening]]) -> bool:
        """Act on news; False: that must wait."""
        if type(news) is Ready:
            return self._begin(news, happenings)
        if type(news) is Added:
            # A copy of what is under way would count as its duplicate; and that has no record any more, should
            # this process die.
            return not self._cell.outlived(news.input) and self._cell.read([news.input])
        assert type(news) is Removed
        self._cell.drop(news.input)
        return True

    def _begin(self, ready: Ready, happenings: dict[str, list[Happening]]) -> bool:
        """Go on with the runs of a settled grant, and read its inputs; False: that must wait."""
        finished = finished_by(ready.inputs)
        if not self._cell.read(ready.inputs):
            return False
        for tenant, resumed in self._open_runs.resume(ready):
            happenings.setdefault(tenant, []).append(resumed)
        for tenant, lane in self._lanes.items():
            if lane.has_journals and home_slot(tenant, self._slots) == ready.grant.slot:
                happenings.setdefault(tenant, []).append(Settled(finished))
        return True
