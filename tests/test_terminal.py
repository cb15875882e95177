"""What commands print: of texts that others have written, and where not every character can be shown."""

import json
import os
import subprocess
import sys

import pytest

from onceflow.terminal import new_table, show, told

SAYS = """
from rich.text import Text
from onceflow.terminal import new_table, print_json, show, show_what_cannot_be_encoded
show_what_cannot_be_encoded()
text = "f\\u00fcnf \\ud83d\\ude00".encode("utf-16", "surrogatepass").decode("utf-16")
"""


def printed(lines: str, encoding: str) -> bytes:
    """What these lines print, in a process whose standard output has this encoding."""
    command = (sys.executable, "-c", SAYS + lines)
    environ = {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.run(command, capture_output=True, timeout=60, check=True, env=environ).stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_in_any_encoding(encoding: str) -> None:
    assert json.loads(printed("print_json([text])", encoding).decode(encoding)) == ["fünf 😀"]


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "f\\xfcnf \\U0001f600"), ("latin-1", "fünf \\U0001f600")]
)
def test_a_table_shows_escaped_what_the_encoding_lacks(encoding: str, shown: str) -> None:
    table = "table = new_table('why')\ntable.add_row(Text(text))\nshow(table)"
    assert shown in printed(table, encoding).decode(encoding)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;pwned\x07\x9b31m", "\\x1b]0;pwned\\x07\\x9b31m"),
        ("\u202eDLOG\r\t", "\\u202eDLOG\\r\\t"),
        ("[/x] [red] :tea:", "[/x] [red] :tea:"),
        ("two\nlines", "two\nlines"),
    ],
    ids=["commands", "direction", "markup", "lines"],
)
def test_what_others_have_written_commands_no_terminal(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = new_table("why")
    table.add_row(told(text))
    table.add_row("[/x]")
    show(table, "[/x]")
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "why",
        *shown.split("\n"),
        "[/x]",
        "[/x]",
    ]
