"""How a flow is: `onceflow status` and `onceflow inputs list|accept-loss`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from onceflow.errors import ConfigError
from onceflow.terminal import new_table, print_json, show

if TYPE_CHECKING:
    from onceflow.observe.status import InputStatus, Status

LINES_SHOWN = 10  # of a long list, unless --all

inputs = typer.Typer(
    name="inputs",
    help="The partitions that a flow reads, and how far it is in each.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

FlowModule = Annotated[
    str,
    typer.Argument(
        metavar="FLOW",
        help="A module, optionally `:name` (default `flow`), as seen from the working directory.",
        show_default=False,
    ),
]
FlowName = Annotated[str, typer.Option("--flow", metavar="NAME", help="The flow's name.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document, for programs.")]
All = Annotated[bool, typer.Option("--all", help="Long lists whole.")]


def status(flow: FlowModule, as_json: AsJson = False, everything: All = False) -> None:
    """Lag, slots and their cells, events in flight, duplicates, dead letters.

    Read from Kafka, so it works from any machine, whether cells run or not.

    Example: `onceflow status flows.clearledger`
    """
    from onceflow.flow import find_flow
    from onceflow.observe.status import read_status, status_as_json

    found = find_flow(flow)
    now = read_status(found.name, found.settings)
    if as_json:
        print_json(status_as_json(now))
    else:
        _show_status(now, everything)


@inputs.command("list")
def list_inputs(flow: FlowName, as_json: AsJson = False) -> None:
    """Every input, with its lag, and whether it waits for an operator: records of it are lost, or cannot be read.

    Example: `onceflow inputs list --flow clearledger`
    """
    from onceflow.config import load
    from onceflow.observe.status import inputs_as_json, read_status

    now = read_status(flow, load(flow))
    if as_json:
        print_json(inputs_as_json(now.inputs))
    else:
        show(_inputs_table(now, len(now.inputs)))


@inputs.command("accept-loss")
def accept_loss(
    partition: Annotated[str, typer.Argument(metavar="TOPIC/PARTITION", show_default=False)], flow: FlowName
) -> None:
    """Go on with an input that is blocked. Records that are deleted or cannot be read are lost; the others are read.

    Example: `onceflow inputs accept-loss events/3 --flow clearledger`
    """
    from onceflow.config import load
    from onceflow.observe.open_runs import accept_loss as accept

    topic, _, number = partition.rpartition("/")
    if not topic or not number.isdecimal():
        raise ConfigError(f"{partition!r}: write TOPIC/PARTITION, such as events/3")
    was = accept(flow, load(flow), topic, int(number))
    if was.lost:
        print(f"{partition} goes on, without {was.lost:,} records")
    else:
        print(
            f"{partition} goes on behind offset {was.unreadable}; its cell's log has what else cannot be read"
        )


# --- how it is shown ---


def _show_status(now: "Status", everything: bool) -> None:
    tally, cells = now.tally, now.cells
    letters = ", ".join(f"{count:,} {reason}" for reason, count in now.dead_letters.items())
    owned = sum(cells.values())
    summary = new_table("", "", right=())
    summary.show_header = False
    summary.add_row("cells", f"{len(cells)}, owning {owned} of {len(now.slots)} slots")
    summary.add_row("not finished", f"{now.unfinished:,} events (lag {sum(i.lag for i in now.inputs):,})")
    summary.add_row("firsts", f"{tally.first:,}")
    summary.add_row("duplicates", f"{tally.duplicate:,}")
    summary.add_row("conflicts", f"{tally.conflict:,}")
    summary.add_row("unusable", f"{tally.unusable:,}")
    summary.add_row("forwarded", f"{tally.forwarded:,} to their home slot")
    summary.add_row(
        "dead letters", f"{sum(now.dead_letters.values()):,}" + (f" ({letters})" if letters else "")
    )
    show(Text(f"flow {now.flow}", "bold"), summary)
    for blocked in now.blocked:
        show(Text(f"blocked: {blocked.topic}/{blocked.partition}: {blocked.blocked}", "bold red"))
    if away := sum(each.away for each in now.inputs):
        show(
            Text(
                f"away: {away} inputs have no leader, or may not be asked for; they are not counted",
                "bold red",
            )
        )
    if not cells:
        show("", "no cell runs: start one with `onceflow run FLOW`")
    shown = len(now.slots) + len(now.inputs) if everything else LINES_SHOWN
    show("", _cells_table(now, shown), "", _inputs_table(now, shown))
    if max(len(now.inputs), len(now.slots)) > shown:
        whole = f"{len(now.slots)} slots and {len(now.inputs)} inputs"
        show("", f"of {whole}, the {shown} with most to do are shown: --all shows the rest")


def _cells_table(now: "Status", shown: int) -> Table:
    table = new_table("slot", "cell", "inputs", "not finished", right=("slot", "inputs", "not finished"))
    for slot in sorted(now.slots, key=lambda each: (-each.unfinished, each.slot))[:shown]:
        cell = slot.cell or (f"none (last: {slot.last_cell})" if slot.last_cell else "none")
        table.add_row(str(slot.slot), cell, str(slot.inputs), f"{slot.unfinished:,}")
    return table


def _inputs_table(now: "Status", shown: int) -> Table:
    numbers = ("slot", "lag", "not finished", "first", "duplicate", "forwarded")
    table = new_table("input", *numbers, "", right=numbers)
    for each in sorted(
        now.inputs, key=lambda each: (not (each.blocked or each.away), -each.unfinished, each)
    )[:shown]:
        table.add_row(
            f"{each.topic}/{each.partition}",
            str(each.slot),
            f"{each.lag:,}",
            f"{each.unfinished:,}",
            f"{each.tally.first:,}",
            f"{each.tally.duplicate:,}",
            f"{each.tally.forwarded:,}",
            Text(_remark(each), "bold red"),
        )
    return table


def _remark(input: "InputStatus") -> str:
    if input.lost:
        return f"blocked: {input.lost:,} lost"
    if input.blocked:
        return f"blocked: offset {input.unreadable} unreadable"
    return "away: no leader, or no access" if input.away else ""
