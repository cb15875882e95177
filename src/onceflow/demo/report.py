"""The demo's last page: what went in, what must come out, what came, and how fast."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onceflow.demo.day import Day, Faults, Sent, check_completions, check_letters
from onceflow.demo.wire import Found


class Outcome(NamedTuple):
    """What there is to judge. `origins`: the records that must end as dead letters, by where they lie."""

    day: Day
    origins: Mapping[str, Sent]
    found: Found
    began_ms: int
    killed_ms: int
    recovered_ms: int | None
    duplicates: int
    exit_statuses: Mapping[str, int | None]


class Line(NamedTuple):
    """One count: what it must be, and what it is."""

    what: str
    must: int
    found: int


def judge(outcome: Outcome) -> tuple[list[Line], Faults, Faults]:
    """The counts, and what is wrong with completions and dead letters."""
    day, found = outcome.day, outcome.found
    completions = check_completions(day.runs, found.completions)
    failed_runs = {record.run: record for record in day.records if record.run and record.reason}
    letters = check_letters({**outcome.origins, **failed_runs}, found.letters)
    reasons = Counter(letter.reason for letter in found.letters)
    lines = [
        Line("runs completed", len(day.runs), len(found.completions)),
        Line("duplicates stopped", day.copies, outcome.duplicates),
        *(Line(f"dead letters: {name}", day.bad[name], reasons[name]) for name in sorted(day.bad | reasons)),
        Line("lost", 0, len(completions.lost) + len(letters.lost)),
        Line("twice", 0, len(completions.twice) + len(letters.twice)),
        Line("from nowhere", 0, len(completions.foreign) + len(letters.foreign)),
        Line("with other content", 0, len(completions.wrong) + len(letters.wrong)),
    ]
    return lines, completions, letters


def show(console: Console, outcome: Outcome) -> bool:
    """Print the table; whether every count is as it must be."""
    lines, completions, letters = judge(outcome)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("   of " + f"{len(outcome.day.records):,} records")
    table.add_column("must be", justify="right")
    table.add_column("is", justify="right")
    table.add_column("")
    for line in lines:
        right = line.must == line.found
        mark = Text("ok" if right else "WRONG", "green" if right else "bold red")
        table.add_row(f"   {line.what}", f"{line.must:,}", f"{line.found:,}", mark)
    console.print(table)
    for what, faults in (("completions", completions), ("dead letters", letters)):
        for kind, names in zip(Faults._fields, faults, strict=True):
            if names:
                console.print(
                    f"   {kind} among the {what}, first of {len(names):,}: {names[0]}", style="bold red"
                )
    if unclean := {name: status for name, status in outcome.exit_statuses.items() if status != 0}:
        console.print(f"   cells that did not end with status 0: {unclean}", style="bold red")
    for line_of_speed in speed(outcome):
        console.print(f"   {line_of_speed}")
    correct = all(line.must == line.found for line in lines) and not unclean
    verdict = (
        "every event once, and nothing else"
        if correct
        else "the count is wrong: please report it, with the logs"
    )
    console.print(Text(f"\n   {verdict}", "bold green" if correct else "bold red"))
    return correct


def speed(outcome: Outcome) -> list[str]:
    """How fast it was, from the broker's clock."""
    times = sorted(each.time_ms for each in outcome.found.completions)
    if not times:
        return []
    whole_s = max(0.001, (times[-1] - outcome.began_ms) / 1000)
    fullest = max(Counter(time // 1000 for time in times).values())
    rate = len(outcome.day.records) / whole_s
    found = [
        f"{whole_s:.1f} s from the first event to the last run: {rate:,.0f} events/s (best: {fullest:,})"
    ]
    if outcome.recovered_ms is not None:
        after_s = (outcome.recovered_ms - outcome.killed_ms) / 1000
        found.append(f"{after_s:.1f} s from the kill to the next run completed in the killed cell's slots")
    return found
