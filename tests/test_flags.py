"""The file of a flow's flags: read while cells run, and what it said last counts while it cannot be read."""

from pathlib import Path

import pytest

from onceflow.errors import ConfigError
from onceflow.stream.flags import Flags


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("onceflow.stream.flags._LOOK_EVERY_S", 0.0)
    return tmp_path / "flags.toml"


def test_a_market_that_is_not_named_has_the_default(path: Path) -> None:
    path.write_text("[fast]\ndefault = true\nDE = false\n")
    flags = Flags(path)
    assert [flags("fast", market) for market in ("SE", "DE", None)] == [True, False, True]
    assert not flags("another", None)


def test_a_file_that_never_was_there_sets_none_until_it_is_made(path: Path) -> None:
    flags = Flags(path)
    assert not flags("fast", None)
    path.write_text("[fast]\ndefault = true\n")
    assert flags("fast", None)


@pytest.mark.parametrize("text", ["[fast", "fast = true"])
def test_a_cell_does_not_start_with_one_that_cannot_be_read(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"{path} cannot be read: .*; correct or remove it"):
        Flags(path).begin()


def test_nor_asks_for_one_that_never_was_there(path: Path) -> None:
    Flags(path).begin()


@pytest.mark.parametrize("damage", ["gone", "no TOML", "no flag"])
def test_a_file_that_vanishes_or_cannot_be_read_changes_nothing_and_is_reported_once(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("[fast]\ndefault = true\n")
    flags = Flags(path)
    assert flags("fast", None)
    if damage == "gone":
        path.unlink()
    else:
        path.write_text("[fast" if damage == "no TOML" else "fast = true")
    assert [flags("fast", None), flags("fast", None)] == [True, True]
    assert [record.levelname for record in caplog.records].count("WARNING") == (damage == "gone")
    assert [record.levelname for record in caplog.records].count("ERROR") == (damage != "gone")
    assert "flags stay as they were" in caplog.text
    path.write_text("")
    assert not flags("fast", None)
