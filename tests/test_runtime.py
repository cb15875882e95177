"""The order in which a cell takes what it hears of its grants, and where its places are. The rest is in tests/crash."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onceflow.agents.agent import routes
from onceflow.config import Settings
from onceflow.stream.content import Grant, Input
from onceflow.stream.news import Added, News, Ready, Removed
from onceflow.stream.runtime import Runtime


class World:
    """A cell's runtime, as far as news go: `done` is what it has done about them."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.heard: list[News] = []
        self.not_begun: set[Grant] = set()  # the client has not begun with these slots
        self.outlived: set[str] = set()  # topics whose name another one had, of which events are under way
        self.runtime = Runtime("flow", Settings(), routes([]), SimpleNamespace(), None)  # type: ignore[arg-type]
        parts: Any = self.runtime
        parts._grants = SimpleNamespace(news=lambda: self.heard)
        parts._open_runs = SimpleNamespace(resume=self._resume)
        parts._cell = SimpleNamespace(
            read=self._read,
            drop=lambda input: self.done.append(("drop", input.topic)),
            outlived=lambda input: input.topic in self.outlived,
        )

    def hear(self, *news: News) -> list[tuple[str, str]]:
        """What is done about news."""
        self.done, self.heard = [], [*news]
        self.runtime._take_news({})
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


def test_a_tool_that_changes_the_working_directory_changes_no_place_of_the_cell_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (here / "flags.toml").write_text("[fast]\ndefault = true\n")
    monkeypatch.chdir(here)
    runtime = Runtime("flow", Settings(state_dir=Path("state")), routes([]), SimpleNamespace(), None)  # type: ignore[arg-type]
    monkeypatch.chdir(elsewhere)
    runtime.identify()
    assert runtime._flags("fast", None)
    assert (here / "state" / "cell").exists()
    assert [*elsewhere.iterdir()] == []
    assert runtime._identity is not None
    runtime._identity.release()
