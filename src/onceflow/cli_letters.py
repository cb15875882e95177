"""The commands about dead letters: `onceflow dead-letters list|redrive|discard`."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from onceflow.errors import ConfigError
from onceflow.terminal import new_table, print_json, show, told

if TYPE_CHECKING:
    from onceflow.observe.redrive import Done
    from onceflow.observe.status import DeadLetter

dead_letters = typer.Typer(
    name="dead-letters",
    help="Events and runs that failed for good, as they came, and why.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

FlowName = Annotated[str, typer.Option("--flow", metavar="NAME", help="The flow's name.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document, for programs.")]
OfReason = Annotated[str, typer.Option("--reason", help="Only those of this reason, such as `invalid`.")]
OfTenant = Annotated[str, typer.Option("--tenant", help="Only those of this tenant.")]
Positions = Annotated[
    list[str] | None,
    typer.Argument(metavar="TOPIC/PARTITION/OFFSET", help="Where they lie.", show_default=False),
]
Everything = Annotated[bool, typer.Option("--all", help="All of them, or all of a reason or a tenant.")]


@dead_letters.command("list")
def list_dead_letters(
    flow: FlowName,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    reason: OfReason = "",
    tenant: OfTenant = "",
    values: Annotated[
        bool, typer.Option("--values", help="Show the values too. They may be confidential.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What failed for good, and why; the newest last.

    Example: `onceflow dead-letters list --flow clearledger --reason invalid --values`
    """
    from onceflow.config import load
    from onceflow.observe.status import letter_as_json, newest_dead_letters

    found, total = newest_dead_letters(flow, load(flow), limit, _wanted(reason, tenant))
    if as_json:
        print_json([letter_as_json(letter, values=values) for letter in found])
    else:
        _show_dead_letters(found, total, values=values)


@dead_letters.command("redrive")
def redrive(
    flow: FlowName,
    at: Positions = None,
    everything: Everything = False,
    reason: OfReason = "",
    tenant: OfTenant = "",
    as_json: AsJson = False,
) -> None:
    """Have it done anew, after what was wrong has been mended. Asked for twice, it is done once.

    A failed run is done anew as a run of its own: what it has done and what was not undone stays, and isn't done again.
    An event that never had a run is read again.

    Exit status 2: some were refused, their lines say why (the run is still open, or the event was not kept whole).

    Example: `onceflow dead-letters redrive clearledger.dead-letters/3/17 --flow clearledger`
    """
    from onceflow.config import load
    from onceflow.observe.redrive import find_letters
    from onceflow.observe.redrive import redrive as redrive_letters

    settings = load(flow)
    _check(at, everything)
    done = redrive_letters(flow, settings, find_letters(flow, settings, at or [], _wanted(reason, tenant)))
    if as_json:
        print_json([each._asdict() for each in done])
    else:
        for each in done:
            print(f"{each.at}  {_became(each)}")
        if not done:
            print("no such dead letters")
    if refused := [each.at for each in done if each.refused]:
        raise ConfigError(f"refused, for what is said of each: {', '.join(refused)}")


@dead_letters.command("discard")
def discard(
    flow: FlowName,
    at: Positions = None,
    everything: Everything = False,
    reason: OfReason = "",
    tenant: OfTenant = "",
) -> None:
    """Let go of what is kept for a redrive of failed runs. The dead letters stay until their retention is over.

    Example: `onceflow dead-letters discard clearledger.dead-letters/3/17 --flow clearledger`
    """
    from onceflow.config import load
    from onceflow.observe.redrive import discard as discard_letters
    from onceflow.observe.redrive import find_letters

    settings = load(flow)
    _check(at, everything)
    found = find_letters(flow, settings, at or [], _wanted(reason, tenant))
    count = discard_letters(flow, settings, found)
    print(f"{len(found):,} dead letters; of {count:,} something was kept, and is gone now")


def _became(done: "Done") -> str:
    if done.refused:
        return f"refused: {done.refused}"
    if done.before:
        return "redriven or discarded before"
    return f"run {done.run}" if done.run else "read again"


def _check(at: list[str] | None, everything: bool) -> None:
    if bool(at) == everything:
        raise ConfigError("name dead letters by where they lie, or write --all (with --reason or --tenant)")


def _wanted(reason: str, tenant: str) -> "Callable[[DeadLetter], bool]":
    from onceflow.event import Reason

    if reason and reason not in list(Reason):
        raise ConfigError(f"--reason {reason!r}: there is none; write one of {', '.join(Reason)}")

    def wanted(letter: "DeadLetter") -> bool:
        return letter.reason == (reason or letter.reason) and letter.tenant == (tenant or letter.tenant)

    return wanted


def _show_dead_letters(letters: Iterable["DeadLetter"], total: int, *, values: bool) -> None:
    from onceflow.observe.status import time_text

    found = list(letters)
    if not found:
        print("no dead letters")
        return
    table = new_table("at", "time", "reason", "tenant", "origin", "bytes", "why", right=("bytes",))
    for letter in found:
        why = letter.detail.split("\n", 1)[0] + (f" (run {letter.run})" if letter.run else "")
        table.add_row(
            letter.at,
            time_text(letter.time_ms),
            letter.reason,
            told(letter.tenant or "-"),
            told(letter.origin),
            f"{letter.size_bytes:,}",
            told(why),
        )
    show(table)
    for letter in found if values else ():
        # Escaped as Python does: bytes that are no text, and control characters, can do no harm in a terminal.
        shown = "no value" if letter.value is None else repr(letter.value)[2:-1]
        show("", Text(f"{letter.origin}:", "bold"), shown)
    if total > len(found):
        show("", f"the newest {len(found)} of {total:,}: --limit shows more")
    if not values:
        show("", "--values shows what was sent")
