"""What README, ARCHITECTURE and CONTRIBUTING say is so: their code runs, their commands, files and names exist."""

import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import confluent_kafka
import pytest
import typer

from onceflow import cli
from onceflow.agents import calls, happenings
from onceflow.agents.agent import Agent
from onceflow.config import load, rows
from onceflow.event import Incoming, Reason, read_event
from onceflow.flow import EPOCH
from onceflow.stream.runtime import REVOKE_S
from tests.flows.driver import drive

ROOT = Path(__file__).parent.parent.parent
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/agents.md")
TEXT = {page: (ROOT / page).read_text() for page in PAGES}
OTHER_VARIABLES = {"ONCEFLOW_CONFIG", "ONCEFLOW_TEST_KAFKA"}  # no settings


def blocks(language: str, *pages: str) -> list[str]:
    """The code blocks of a language, in the order they stand."""
    return [
        block
        for page in pages or PAGES
        for block in re.findall(rf"^```{language}\n(.*?)^```", TEXT[page], re.MULTILINE | re.DOTALL)
    ]


def shell_lines() -> list[str]:
    """Every line of shell blocks without its comment, and every inline `make …` and `onceflow …`."""
    lines = [line.split(" # ")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    inline = [code for page in PAGES for code in re.findall(r"`((?:make|onceflow) [^`\n]+)`", TEXT[page])]
    return [line for line in lines + inline if line]


def executed(block: str) -> dict[str, Any]:
    """The names that a block of Python defines."""
    names: dict[str, Any] = {"__name__": "documented"}
    exec(compile(block, "page", "exec"), names)
    return names


def only_agent(names: dict[str, Any]) -> Agent[Any, Any]:
    (found,) = [value for value in names.values() if isinstance(value, Agent)]
    return found


# --- Python ---


def test_the_first_flow_takes_the_event_that_is_shown_and_gives_what_the_text_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The flow and the producer of the README are run as they stand; only Kafka is left out."""
    sent: list[tuple[str, str, str]] = []

    class Recorder:
        def __init__(self, settings: dict[str, str]) -> None:
            assert settings["partitioner"] == "murmur2_random"

        def produce(self, topic: str, *, key: str, value: str) -> None:
            sent.append((topic, key, value))

        def flush(self) -> None: ...

    monkeypatch.setattr(confluent_kafka, "Producer", Recorder)
    flow_block, producer_block = blocks("python", "README.md")[:2]
    documented = executed(flow_block)
    executed(producer_block)
    ((topic, key, value),) = sent
    incoming = read_event(value.encode(), None)
    assert isinstance(incoming, Incoming)
    found = only_agent(documented)
    assert (topic, key, found.on) == ("events", incoming.tenant, (incoming.type,))
    result = drive(found, json.loads(incoming.data)).value
    assert f'"data":{json.dumps(result, separators=(",", ":"))}' in TEXT["README.md"]
    assert documented["flow"].flow_id == "orders"


def test_the_agents_of_the_readme_run_and_pass_their_kit() -> None:
    """The other blocks, one after another; among them is a `crash_everywhere`."""
    names = executed("\n".join(blocks("python", "README.md")[2:]))
    assert {value.name for value in names.values() if isinstance(value, Agent)} == {
        "checkout",
        "open-account",
    }


def test_the_first_flow_is_as_short_as_its_heading_says() -> None:
    lines = [line for line in blocks("python", "README.md")[0].splitlines() if line.strip()]
    assert len(lines) <= 20


def test_the_example_for_contributors_runs() -> None:
    (block,) = blocks("python", "CONTRIBUTING.md")
    found = only_agent(executed(block))
    assert drive(found, {"city": "Espoo"}).value == {"advice": "go as you are"}
    lost = drive(found, {"city": "Atlantis"})
    assert "GiveUp: no such city: Atlantis" in lost.failed.message
    assert len(lost.attempts) == 1


def test_the_guide_for_agent_authors_runs_and_so_do_its_tests() -> None:
    names = executed("\n".join(blocks("python", "docs/agents.md")))
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        test()


# --- Commands ---


def test_every_make_target_that_is_named_exists_and_every_target_is_explained() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in shell_lines() if line.startswith("make ")}
    assert named <= targets
    assert {line.split()[1] for line in blocks("bash", "CONTRIBUTING.md")[0].splitlines()} == targets - {
        "help"
    }


def test_every_onceflow_command_that_is_named_exists_with_its_options() -> None:
    lines = [line for line in shell_lines() if re.search(r"(^|\s)onceflow [a-z]", line) and "…" not in line]
    assert len(lines) > 8
    for line in lines:
        words = shlex.split(line[line.index("onceflow ") :])[1:]
        command: Any = typer.main.get_command(cli.app)
        while (group := getattr(command, "commands", None)) and words:
            name = words.pop(0)
            assert name in group, line
            command = group[name]
        known = {option for parameter in command.params for option in parameter.opts}
        given = {word for word in words if word.startswith("--")}
        assert given <= known, line
        needed = {parameter.opts[0] for parameter in command.params if parameter.required}
        assert not words or {option for option in needed if option.startswith("--")} <= given, line


def test_the_settings_file_that_is_shown_is_one(tmp_path: Path) -> None:
    (shown,) = blocks("toml", "README.md")
    (file := tmp_path / "onceflow.toml").write_text(shown)
    assert load(path=file, environ={}).kafka.topics.replication_factor == 3


def test_every_setting_that_is_named_exists() -> None:
    known = {f"ONCEFLOW_{row.name.upper().replace('.', '__')}" for row in rows(load(environ={}))}
    for page, text in TEXT.items():
        assert set(re.findall(r"\bONCEFLOW_[A-Z_]+", text)) <= known | OTHER_VARIABLES, page


def test_every_reason_is_named() -> None:
    named = re.search(r"The reason of a dead letter: (.*?)\n\n", TEXT["README.md"], re.DOTALL)
    assert named is not None
    assert set(re.findall(r"`([a-z-]+)`", named[1])) == set(Reason)


# --- Files and names ---


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https://)([^)]+)\)", TEXT[page]):
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_code_that_is_named_by_path_exists() -> None:
    for page, text in TEXT.items():
        for path in re.findall(r"`((?:src|tests|flows|benchmarks)/[\w/.]+)`", text):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_the_states_of_a_run_are_drawn_with_the_names_of_the_code() -> None:
    """Every happening and every effect has its arrow, and no arrow has a name that the code doesn't know."""
    (diagram,) = blocks("mermaid", "ARCHITECTURE.md")
    drawn = set(re.findall(r": ([A-Z]\w+)$", diagram, re.MULTILINE))
    happening = set(get_args(happenings.Happening)) - {
        happenings.Answered
    }  # it brings an answer, which is drawn
    known = happening | set(get_args(calls.Answer)) | set(get_args(calls.Effect))
    assert drawn == {each.__name__ for each in known}


def test_numbers_in_the_text_are_those_of_the_code() -> None:
    settings = load(environ={})
    said = {
        f"commit what is pending ({REVOKE_S:g} seconds at most)": "ARCHITECTURE.md",
        f"Snapshots every {EPOCH.total_seconds():g} s": "ARCHITECTURE.md",
        f"waits up to {settings.commit_interval.total_seconds():g} s": "ARCHITECTURE.md",
        f"old session's end ({settings.session_timeout.total_seconds():g} s)": "ARCHITECTURE.md",
        f"running calls get {settings.grace.total_seconds():g} seconds": "README.md",
        f"until {settings.dedup.window.total_seconds() / 3600:g} hours": "README.md",
    }
    missing = [words for words, page in said.items() if words not in " ".join(TEXT[page].split())]
    assert missing == []
