"""How commands print: results on standard output, everything else on standard error."""

import json
import re
import sys
from collections.abc import Iterable
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_COMMANDS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # but a line's end


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
    width = None if sys.stdout.isatty() else 200
    # "[red]" and ":tea:" are what they are.
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    for each in what:
        console.print(each)


def told(text: str) -> Text:
    """Text of an event, or of what became of it: whoever sent it must not command the terminal that shows it."""
    return Text(_COMMANDS.sub(lambda found: repr(found[0])[1:-1], text))


def new_table(*columns: str, right: Iterable[str] = ()) -> Table:
    """An empty table; columns named in `right` are aligned there."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table
