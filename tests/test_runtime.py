"""The runtime: where its places are. What it does is shown in the tests of its parts, and in tests/crash."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from onceflow.agents.agent import routes
from onceflow.config import Settings
from onceflow.errors import ConfigError
from onceflow.stream.runtime import Runtime


def runtime_here() -> Runtime:
    return Runtime("flow", Settings(state_dir=Path("state")), routes([]), SimpleNamespace(), None)  # type: ignore[arg-type]


def test_a_tool_that_changes_the_working_directory_changes_no_place_of_the_cell_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (here / "flags.toml").write_text("[fast]\ndefault = true\n")
    monkeypatch.chdir(here)
    runtime = runtime_here()
    monkeypatch.chdir(elsewhere)
    runtime.identify()
    assert runtime._flags("fast", None)
    assert (here / "state" / "cell").exists()
    assert [*elsewhere.iterdir()] == []
    assert runtime._identity is not None
    runtime._identity.release()


def test_it_does_not_open_with_flags_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flags.toml").write_text("[fast")
    with pytest.raises(ConfigError, match="flags"):
        runtime_here().open()
