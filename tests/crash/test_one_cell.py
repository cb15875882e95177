"""One cell under load, ended at moments chosen by a seed; whatever it loses with its process, the output is right."""

import signal

import pytest

from tests.crash.scene import Scene

pytestmark = pytest.mark.crash

KILLS = 3


@pytest.mark.parametrize(("lost", "seed"), [("nothing", 11), ("recovery", 12), ("state", 13)])
def test_a_cell_that_is_killed_loses_and_doubles_nothing(scene: Scene, lost: str, seed: int) -> None:
    """kill -9, then a start with everything kept, without the recovery directory, without any directory."""
    scene.seed(seed)
    scene.load.start()
    cell = scene.cell("a").start()
    for number in range(KILLS):
        if number % 2:  # at any moment of its life, its start too
            scene.wait_for_sent(scene.random.randint(200, 2_500))
        else:  # while it works
            scene.wait_for_output(scene.random.randint(1, 3_000))
        cell.kill()
        scene.say("kill -9")
        if lost == "recovery":
            cell.lose_recovery()
        elif lost == "state":
            cell.lose_state()
        cell.start()
    scene.wait_for_output(100)
    scene.finish()


def test_a_cell_that_is_asked_to_end_ends_with_0_at_any_moment(scene: Scene) -> None:
    """SIGTERM or SIGINT under load: status 0 within the grace period, and the next start goes on."""
    scene.seed(21)
    scene.load.start()
    cell = scene.cell("a")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        cell.start()
        scene.wait_for_output(scene.random.randint(1, 3_000))
        assert cell.end(number) == 0, cell.text()[-2_000:]
        scene.say(f"{number.name}, status 0")
    cell.start()
    scene.finish()
