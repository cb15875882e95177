"""The house stays tidy: imports go one way, and nothing grows too long to be read in one go.

    errors < event, config < state < agents < stream < observe, http < flow < cli, demo, … < flows

A module imports only what stands to the left of it, or its own package. So whoever reads from left to right needs
nothing that comes later, and a change touches nothing to its left.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import onceflow

ROOT = Path(__file__).parent.parent
FUNCTION_LINES = 70
FILE_LINES = 500

RANKS = {
    "errors": 0,
    "event": 1,
    "config": 1,
    "state": 2,
    "agents": 3,
    "stream": 4,
    "observe": 5,
    "http": 5,
    "flow": 6,
    "": 7,  # onceflow itself, the public names
    "devkafka": 8,
    "testing": 8,
    "demo": 8,
    "pytest_plugin": 9,
    "terminal": 8,
    "cli_runs": 8,
    "cli_status": 8,
    "cli_letters": 8,
    "cli": 8,
    "__main__": 9,
}
SHELL = {
    "devkafka",
    "testing",
    "demo",
    "terminal",
    "cli_runs",
    "cli_status",
    "cli_letters",
    "cli",
}  # of the same rank, and may use each other
LONGER = {
    "tests/test_event.py": "its tables show what each kind of record comes to",
    "tests/model/cell.py": "the model's cell does the steps of all parts of the real one",
}
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "common", "types", "base", "misc"}


class Import(NamedTuple):
    """A module imports another, `at` a line. What is imported for types only does not count."""

    module: str
    imported: str
    line: int


def files(*directories: str) -> list[Path]:
    return sorted(path for directory in directories for path in (ROOT / directory).rglob("*.py"))


def name_of(path: Path) -> str:
    """A file's name as a module."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[0] == "src" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, apart from those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from statements(child)


@cache
def imports(*directories: str) -> tuple[Import, ...]:
    modules = {name_of(path) for path in files("src", "flows")}
    found = []
    for path in files(*directories):
        module = name_of(path)
        for node in statements(tree(path)):
            if isinstance(node, ast.Import):
                found += [Import(module, alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
                source = node.module or ""
                for alias in node.names:  # `from package import module` imports the module
                    submodule = f"{source}.{alias.name}"
                    found.append(Import(module, submodule if submodule in modules else source, node.lineno))
    return tuple(found)


def part(module: str) -> str:
    """The part of onceflow that a module belongs to, a key of RANKS."""
    return [*module.split("."), ""][1]


def test_imports_go_one_way() -> None:
    wrong = []
    for module, imported, line in imports("src"):
        if imported.split(".")[0] != "onceflow" or module == "onceflow":
            continue
        here, there = part(module), part(imported)
        if here == there or {here, there} <= SHELL:
            continue
        if RANKS[here] <= RANKS[there]:
            wrong.append(f"{module}:{line} imports {imported}")
    assert wrong == []


def test_every_part_has_its_place_in_the_order() -> None:
    assert {part(name_of(path)) for path in files("src")} <= RANKS.keys()


def test_nothing_imports_the_flows() -> None:
    """They are examples: what users deploy looks like them, and onceflow knows neither."""
    assert [each for each in imports("src") if each.imported.split(".")[0] == "flows"] == []


def test_flows_use_public_names_only() -> None:
    """What an example needs and cannot get from `onceflow` itself is missing there."""
    inner = [
        each
        for each in imports("flows")
        if each.imported.startswith("onceflow.") and each.imported != "onceflow.errors"
    ]
    assert inner == []


def test_there_are_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    for module, imported, _ in imports("src", "flows"):
        if module not in ("onceflow", imported):
            graph.setdefault(module, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' <- '.join(error.args[1])}")


def test_bytewax_is_known_in_one_place() -> None:
    """Its rules are odd, and its version pinned: a change of it must concern few."""
    users = {each.module for each in imports("src") if each.imported.split(".")[0] == "bytewax"}
    assert users <= {"onceflow.stream.dataflow", "onceflow.testing"}


def test_functions_fit_on_a_screen() -> None:
    long = []
    for path in files("src", "flows", "benchmarks", "tests"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.body[0].lineno + 1
                if lines > FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert long == []


def test_files_can_be_read_in_one_go() -> None:
    long = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in files("src", "flows", "tests")
    }
    too_long = {name: lines for name, lines in long.items() if lines > FILE_LINES and name not in LONGER}
    assert too_long == {}


def test_names_of_modules_say_what_is_in_them() -> None:
    stems = {path.stem for path in files("src", "flows", "benchmarks")}
    assert stems & NAMES_THAT_SAY_NOTHING == set()


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in files("src", "flows", "benchmarks", "tests")
        if path.read_text().strip() and not ast.get_docstring(tree(path))
    ]
    assert silent == []


def test_the_public_names_are_sorted_and_there() -> None:
    """In isort's order: constants, classes, functions."""
    names = onceflow.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert [name for name in names if not hasattr(onceflow, name)] == []


def test_all_modules_can_be_imported() -> None:
    for path in files("src"):
        if path.stem != "__main__":
            importlib.import_module(name_of(path))


SLEEPS = re.compile(r"\b(?:time|asyncio)\.sleep\((?!0\))|^\s*from (?:time|asyncio) import .*\bsleep\b")


def test_tests_wait_for_conditions_and_never_for_a_length_of_time() -> None:
    """A loop that polls for a condition may, and what is under test where its line says why."""
    wrong = []
    for path in files("tests"):
        lines = path.read_text().splitlines() if path.name != "test_tidy.py" else []
        for number, (before, line) in enumerate(zip(["", *lines], lines, strict=False), 1):
            if SLEEPS.search(line) and "# sleeps:" not in line and " while " not in before:
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert [each for each in wrong if not each.startswith("tests/waiting.py")] == []


def test_no_test_is_left_out_and_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b|pytest\.mark\.skip\(|unittest")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files("src", "flows", "benchmarks", "tests")
        if path.name != "test_tidy.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert wrong == []
