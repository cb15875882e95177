"""A flow's module, from its import to its run: what is wrong with it is one line and status 2, however it is run."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onceflow.agents import tool_names
from onceflow.agents.agent import agent
from onceflow.agents.run import Run
from onceflow.config import Settings
from onceflow.errors import ConfigError
from onceflow.event import Event
from onceflow.flow import dataflow, find_flow


@agent("pass-on", on="*")
async def pass_on(run: Run, event: Event) -> int:
    return 1


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize(
    ("agents", "says"),
    [
        (pass_on, "write a list, agents=[…]"),
        ([], "a flow needs at least one agent"),
        ((each for each in []), "a flow needs at least one agent"),
        (None, "write a list, agents=[…]"),
        ([print], "decorate the function with @agent"),
    ],
    ids=["an agent", "none", "a generator of none", "None", "no agent"],
)
def test_a_flow_is_made_of_a_list_of_agents(agents: list, says: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError) as refused:
        dataflow("flow", agents=agents)
    assert says in str(refused.value)


@pytest.mark.parametrize("settings", [None, Settings()], ids=["loaded", "given"])
@pytest.mark.parametrize("name", ["", "Flow", 5])
def test_its_name_is_checked_wherever_its_settings_come_from(name: Any, settings: Settings | None) -> None:
    with pytest.raises(ConfigError, match=f"flow name {name!r}: must be 1 to 63 lower-case letters"):
        dataflow(name, agents=[pass_on], settings=settings)


def test_its_agents_are_named() -> None:
    positional: Any = dataflow
    with pytest.raises(
        ConfigError, match=r"too many positional arguments; write dataflow\(\"my-flow\", agents="
    ):
        positional("flow", [pass_on])


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (("import json", "import nothere"), "ModuleNotFoundError: No module named 'nothere' ("),
        (("import json", "x = = 1"), "SyntaxError: invalid syntax ("),
        (("import json", "json.loads('{')"), "JSONDecodeError: Expecting property name"),
    ],
    ids=["an import", "the syntax", "anything"],
)
def test_a_module_that_cannot_be_imported_is_told_in_a_line_with_its_place(
    tmp_path: Path, request: pytest.FixtureRequest, lines: tuple[str, ...], says: str
) -> None:
    module = f"broken_{request.node.callspec.id.replace(' ', '_')}"
    (tmp_path / f"{module}.py").write_text("\n".join(lines))
    with pytest.raises(ConfigError) as refused:
        find_flow(module)
    line = str(refused.value)
    assert says in line
    assert line.endswith(f"({tmp_path / module}.py:2)")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("lines", "status", "says"),
    [
        (
            "from onceflow import tool\n@tool(effect='no')\nasync def x(): ...\n",
            2,
            "onceflow: tool x: effect='no'",
        ),
        ("import onceflow\nraise ValueError('theirs')\n", 1, "Traceback"),
    ],
    ids=["ours", "another"],
)
def test_under_bytewax_too_a_wrong_tool_ends_with_2_and_a_line_and_other_errors_as_ever(
    tmp_path: Path, lines: str, status: int, says: str
) -> None:
    (tmp_path / "wrong.py").write_text(lines)
    command = (sys.executable, "-m", "bytewax.run", "wrong")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(says)
    assert status == 1 or done.stderr.count("\n") == 1


TELLS = """
from onceflow import Call, tool
@tool(effect="keyed", scope="tenant", key_fields=("to",), version={version})
async def notify(call: Call, to: str) -> str: ...
"""
BOTH = """
from onceflow import agent, dataflow
import by_mail, by_text
@agent("tells", on="*")
async def tells(run, event):
    return await run.call(by_mail.notify, to="ann"), await run.call(by_text.notify, to="ann")
flow = dataflow("tells", agents=[tells])
"""


def tells(directory: Path, version: int) -> None:
    (directory / "by_mail.py").write_text(TELLS.format(version=1))
    (directory / "by_text.py").write_text(TELLS.format(version=version))
    (directory / "tells.py").write_text(BOTH)


def test_two_tools_of_one_name_that_would_share_their_calls_are_refused_before_a_cell_starts(
    tmp_path: Path,
) -> None:
    tells(tmp_path, version=1)
    command = (sys.executable, "-m", "bytewax.run", "tells")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    line = "onceflow: two tools of scope tenant are named 'notify': by_mail.notify and by_text.notify."
    assert done.stderr.startswith(line)
    assert "name=…" in done.stderr
    assert done.stderr.count("\n") == 1


def test_two_versions_of_one_tool_share_their_calls_by_intention(tmp_path: Path) -> None:
    tells(tmp_path, version=2)
    check = "import tells; from onceflow.agents.tool_names import check_names; check_names()"
    done = subprocess.run(
        (sys.executable, "-c", check), stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_module_that_is_imported_anew_declares_the_same_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_names, "_declared", {})
    (tmp_path / "by_mail.py").write_text(TELLS.format(version=1))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("by_mail")
    importlib.reload(module)
    tool_names.check_names()
