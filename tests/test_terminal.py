"""What commands print where not every character can be shown."""

import json
import os
import subprocess
import sys

import pytest

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
