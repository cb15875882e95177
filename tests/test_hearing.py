"""The order in which a cell takes what it hears of its grants. The rest is shown in tests/crash."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from onceflow.stream.content import Grant, Input
from onceflow.stream.hearing import Hearing
from onceflow.stream.news import Added, News, Ready, Removed


class World:
    """A cell, as far as news go: `done` is what it has done about them."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.not_begun: set[Grant] = set()  # the client has not begun with these slots
        self.outlived: set[str] = set()  # topics whose name another one had, of which events are under way
        open_runs: Any = SimpleNamespace(resume=self._resume)
        cell: Any = SimpleNamespace(
            read=self._read,
            drop=lambda input: self.done.append(("drop", input.topic)),
            outlived=lambda input: input.topic in self.outlived,
        )
        self.hearing = Hearing(cell, open_runs, {}, 8)

    def hear(self, *news: News, stopping: bool = False) -> list[tuple[str, str]]:
        """What is done about news."""
        self.done = []
        self.hearing.hear(news, {}, stopping=stopping)
        return self.done

    def _read(self, inputs: Iterable[Input]) -> bool:
        wanted = list(inputs)
        if any(input.is_inbox and input.grant in self.not_begun for input in wanted):
            return False
        self.done += [("read", input.topic) for input in wanted]
        return True

    def _resume(self, ready: Ready) -> Iterable[Any]:
        self.done.append(("resume", str(ready.grant.slot)))
        return ()


@pytest.fixture
def world() -> World:
    return World()


def ready(grant: Grant, *inputs: Input) -> Ready:
    inbox = Input("inbox", grant.slot, grant, topic_id="inbox", is_inbox=True)
    return Ready(grant, [inbox, *inputs], [], [])


def test_nothing_is_read_of_a_grant_before_its_runs_go_on(world: World) -> None:
    """An event that an open run holds would be judged as the first of its key."""
    late, other = Grant(1), Grant(2)
    world.not_begun = {late}
    known, new = (Input(name, 0, late, topic_id=name) for name in ("known", "new"))
    elsewhere = Input("elsewhere", 0, other, topic_id="elsewhere")
    first = world.hear(ready(late, known), Added(new), ready(other), Added(elsewhere))
    assert first == [("read", "inbox"), ("resume", "2"), ("read", "elsewhere")]
    assert world.hear(Removed(known)) == []
    world.not_begun = set()
    then = [("read", "inbox"), ("read", "known"), ("resume", "1"), ("read", "new"), ("drop", "known")]
    assert world.hear() == then
    assert world.hear() == []


def test_a_topic_made_anew_waits_and_others_do_not(world: World) -> None:
    grant = Grant(1)
    world.outlived = {"anew"}
    anew, other = (Input(name, 0, grant, topic_id=name) for name in ("anew", "other"))
    assert world.hear(Added(anew), Added(other)) == [("read", "other")]
    assert world.hear(Removed(anew), Removed(other)) == [("drop", "other")]
    world.outlived = set()
    assert world.hear() == [("read", "anew"), ("drop", "anew")]


def test_news_of_a_slot_that_is_lost_are_forgotten(world: World) -> None:
    grant = Grant(1)
    world.not_begun = {grant}
    assert world.hear(ready(grant)) == []
    grant.live, world.not_begun = False, set()
    assert world.hear(Removed(Input("gone", 0, grant, topic_id="gone"))) == []


@pytest.mark.parametrize(("news", "does"), [(Ready, []), (Added, []), (Removed, [("drop", "events")])])
def test_while_the_cell_stops_nothing_is_read_any_more_and_what_is_gone_is_gone(
    world: World, news: type[News], does: list[tuple[str, str]]
) -> None:
    """Offsets of a topic that was deleted would be refused with all that is to be committed."""
    grant = Grant(3)
    input = Input("events", 3, grant, topic_id="id")
    told = ready(grant, input) if news is Ready else news(input)  # type: ignore[call-arg, arg-type]
    assert world.hear(told, stopping=True) == does
