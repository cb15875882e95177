"""What a cell refuses to start with: status 2 and a line that says what to do, before it has touched anything."""

import signal

import pytest

from tests.crash.cells import Cell
from tests.crash.scene import Scene

pytestmark = pytest.mark.crash


def refused(cell: Cell, *words: str) -> None:
    """It ends with 2 and says these words."""
    assert cell.end() == 2, cell.text()
    missing = [word for word in words if word not in cell.text()]
    assert not missing, f"{missing} not in: {cell.text()}"


def test_a_directory_of_another_cell_is_refused(scene: Scene) -> None:
    """A state or recovery directory in use, or the two of different cells; the cell in use goes on."""
    scene.seed(81, events_per_s=200)
    scene.load.start()
    first = scene.cell("a").start()
    scene.wait_for_output(1)

    second = scene.cell("b")
    second.start(ONCEFLOW_STATE_DIR=str(first.state))
    refused(second, str(first.state), "in use by another cell", "ONCEFLOW_STATE_DIR")
    second.start(["-r", str(first.recovery)])
    refused(second, str(first.recovery), "in use by another cell", "-r")

    assert first.end(signal.SIGTERM) == 0
    second.start()
    scene.wait_for_output(1)
    assert second.end(signal.SIGTERM) == 0
    second.start(["-r", str(first.recovery)])
    refused(second, first.identity, second.identity, "recovery directory")
    first.start()
    scene.finish()


@pytest.mark.parametrize(
    "arguments", [("-w", "2"), ("-i", "0", "-a", "127.0.0.1:1;127.0.0.1:2")], ids=["-w 2", "-i 0 -a two"]
)
def test_a_bytewax_cluster_is_refused(scene: Scene, arguments: tuple[str, ...]) -> None:
    """At once instead of hanging in its handshake."""
    cell = scene.cell("a").start(arguments)
    refused(cell, "one process per cell")
    assert not cell.state.exists()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"CRASH_FLOW": "never-prepared"}, ("never-prepared.", "onceflow prepare")),
        ({"ONCEFLOW_SLOTS": "7"}, ("ONCEFLOW_SLOTS", "16 partitions")),
        ({"ONCEFLOW_COMIT_INTERVAL": "1"}, ("COMIT_INTERVAL", "COMMIT_INTERVAL")),
    ],
    ids=["topics missing", "another number of slots", "a setting misspelt"],
)
def test_a_wrong_set_up_is_refused(scene: Scene, environment: dict[str, str], words: tuple[str, ...]) -> None:
    refused(scene.cell("a").start(**environment), *words)
