"""How commands print: results on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Iterable
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.table import Table


def show_what_cannot_be_encoded() -> None:
    """Text of events may hold what this terminal has no characters for: shown as \\xfc, it is no error."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does by itself


def say(line: str) -> None:
    """Print a line for people, on standard error."""
    print(line, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print a result as one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=sys.stdout.encoding.lower() != "utf-8"))


def show(*what: Any) -> None:
    """Print results: as wide as the terminal; in a pipe wide enough that what belongs to a line stays on it."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for each in what:
        console.print(each)


def new_table(*columns: str, right: Iterable[str] = ()) -> Table:
    """An empty table; columns named in `right` are aligned there."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table
