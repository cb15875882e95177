"""A kill at every crash point, the losses after it in turn; `python -m tests.crash.sweep` does all of them."""

import itertools
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.crash.cells import ROOT
from tests.crash.effects import World
from tests.crash.points import AFTER, ALL, BEFORE, POINTS, Point, environment, find, install
from tests.crash.scene import Scene
from tests.crash.sweep import EVENTS_PER_S, MODES_OF, Kill, Sweep, plan, rotation

PARTS = 5  # scenes, so that two workers share them evenly
PASSES = """
from onceflow.stream.progress import Skip
from tests.crash import points
Skip.__contains__ = lambda skip, offset: print("inside", offset, flush=True) or True
points.POINTS["it"] = points.Point("it", "stream.progress:Skip.__contains__", {when!r})
points.install_from_environment()
for offset in range(1, 6):
    print("entering", offset, flush=True)
    offset in Skip([])
"""


@pytest.mark.parametrize("point", ALL, ids=lambda point: point.name)
def test_a_point_names_a_method_that_is_there(point: Point) -> None:
    owner, method = find(point)
    assert callable(getattr(owner, method))


def test_a_point_whose_method_is_gone_raises_at_once_and_names_its_line() -> None:
    with pytest.raises(LookupError, match=r"'moved away'.*Outbox\._gone is not there.*points\.py"):
        install(Point("moved away", "stream.outbox:Outbox._gone", "before"), 1, "")


@pytest.mark.parametrize(("when", "last"), [(BEFORE, "entering 3"), (AFTER, "inside 3")])
def test_a_process_dies_at_the_pass_asked_for_and_leaves_a_note(tmp_path: Path, when: str, last: str) -> None:
    note = tmp_path / "note"
    doom = environment(Point("it", "", ""), 3, note)
    program = PASSES.format(when=when)
    died = subprocess.run(
        [sys.executable, "-c", program], env=doom, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (died.returncode, died.stdout.splitlines()[-1:]) == (-signal.SIGKILL, [last]), died.stderr
    assert note.read_text() == "it\n"


def test_the_sweep_has_every_point_in_every_mode_and_its_rotation_every_point_once() -> None:
    modes = MODES_OF["echo"]
    planned = Counter((kill.point, kill.mode) for kill in plan(ALL, modes, 3, seed=1))
    assert planned == dict.fromkeys(itertools.product(ALL, modes), 3)
    assert Counter(kill.point for kill in rotation(ALL, 1)) == dict.fromkeys(ALL, 1)


@pytest.mark.crash
@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_cell_that_dies_at_any_point_loses_and_doubles_nothing(scene: Scene, part: int) -> None:
    seed = 100 + part
    scene.seed(seed, events_per_s=EVENTS_PER_S)
    Sweep(scene).run(rotation(ALL[part::PARTS], seed))


@pytest.mark.crash
@pytest.mark.parametrize("name", ["slot revoked", "slot revoked, flushed"])
def test_a_cell_that_stands_still_while_it_gives_slots_away_changes_nothing_when_it_goes_on(
    scene: Scene, tmp_path: Path, name: str
) -> None:
    """When it goes on it is another member of its group, and what it holds is of the one that it was."""
    scene.seed(20, events_per_s=EVENTS_PER_S)
    kills = [Kill(POINTS[name], "zombie", 1)] * 2
    Sweep(scene, world=World(tmp_path)).run(kills)
