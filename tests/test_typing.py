"""What mypy makes of tools and agents: no more and no fewer errors than a user deserves."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RIGHT, WRONG = "tests/typing/ok.py", "tests/typing/errors.py"


def marked(file: str) -> set[tuple[str, int, str]]:
    """(file, line, code) of each `# error: code[, code]` in it."""
    lines = enumerate((ROOT / file).read_text().splitlines(), 1)
    marks = ((number, re.search(r"# error: (.*)", line)) for number, line in lines)
    return {(file, number, code) for number, mark in marks if mark for code in mark[1].split(", ")}


def test_mypy_refuses_each_wrong_use_and_no_right_one() -> None:
    """`ok.py` has no error; `errors.py` has the marked ones, each on its line and of its kind."""
    mypy = subprocess.run(
        [sys.executable, "-m", "mypy", RIGHT, WRONG], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = re.findall(r"^(tests/typing/.+?):(\d+): error: .*\[([a-z-]+)\]$", mypy.stdout, re.MULTILINE)
    assert marked(WRONG)
    assert {(file, int(line), code) for file, line, code in found} == marked(WRONG), mypy.stdout + mypy.stderr
