"""A cell's identity: one name for its life, in both of its directories, for one process at a time."""

from pathlib import Path

import pytest

from onceflow.errors import ConfigError
from onceflow.stream.identity import take_identity


def name_of(state: Path, recovery: Path | None = None) -> str:
    """The identity that a cell takes with these directories; released again."""
    identity = take_identity(state, recovery)
    identity.release()
    return identity.name


def test_a_cell_keeps_its_name_over_restarts(tmp_path: Path) -> None:
    assert name_of(tmp_path / "a") == name_of(tmp_path / "a")
    assert name_of(tmp_path / "a") != name_of(tmp_path / "b")


def test_directories_are_made_with_their_parents(tmp_path: Path) -> None:
    name_of(tmp_path / "a" / "state", tmp_path / "b" / "recovery")
    assert (tmp_path / "b" / "recovery" / "cell").read_text().startswith("cell-")


def test_the_directory_that_lacks_the_name_takes_it_from_the_other(tmp_path: Path) -> None:
    """Losing either directory loses no identity; losing both begins a new one."""
    state, recovery = tmp_path / "state", tmp_path / "recovery"
    name = name_of(state, recovery)
    (state / "cell").unlink()
    assert name_of(state, recovery) == name
    (recovery / "cell").unlink()
    assert name_of(state, recovery) == name
    (state / "cell").unlink()
    (recovery / "cell").unlink()
    assert name_of(state, recovery) != name


def test_directories_of_two_cells_are_refused(tmp_path: Path) -> None:
    name_of(tmp_path / "a", tmp_path / "a-recovery")
    name_of(tmp_path / "b", tmp_path / "b-recovery")
    with pytest.raises(ConfigError, match=r"two cells\. Give each cell both directories of its own"):
        take_identity(tmp_path / "a", tmp_path / "b-recovery")


@pytest.mark.parametrize("shared", ["state", "recovery"])
def test_a_directory_in_use_is_refused_until_it_is_released(tmp_path: Path, shared: str) -> None:
    first = {"state": tmp_path / "a", "recovery": tmp_path / "a-recovery"}
    second = {"state": tmp_path / "b", "recovery": tmp_path / "b-recovery", shared: first[shared]}
    running = take_identity(**first)
    with pytest.raises(ConfigError, match="in use by another cell"):
        take_identity(**second)
    running.release()
    take_identity(**first).release()


def test_a_refusal_leaves_nothing_locked_and_no_name_behind(tmp_path: Path) -> None:
    """The other directory of a refused cell is free for the next try, and still belongs to nobody."""
    running = take_identity(tmp_path / "a", None)
    with pytest.raises(ConfigError):
        take_identity(tmp_path / "b", tmp_path / "a")
    assert not (tmp_path / "b" / "cell").exists()
    take_identity(tmp_path / "b", None).release()
    running.release()


def test_a_file_that_holds_no_name_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "cell").write_text("who knows\n")
    with pytest.raises(ConfigError, match="Delete the file"):
        take_identity(tmp_path, None)


@pytest.mark.parametrize("below", ["", "below"])
def test_a_directory_that_cannot_be_made_is_refused_with_the_remedy(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file.* cannot be used as a directory \(.*ONCEFLOW_STATE_DIR"):
        take_identity(tmp_path / "file" / below, None)
