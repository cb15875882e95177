"""The commands about open runs, and the one that sends a signal: `onceflow runs …`, `onceflow signals …`."""

import json
import secrets
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from onceflow.errors import ConfigError
from onceflow.terminal import new_table, print_json, say, show, told

if TYPE_CHECKING:
    from onceflow.agents.commands import Action

runs = typer.Typer(
    name="runs",
    help="Runs that are open: under way with an effect, waiting, or parked until a person decides.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
signals = typer.Typer(
    name="signals", help="What ends a wait from outside.", no_args_is_help=True, rich_markup_mode="markdown"
)

FlowName = Annotated[str, typer.Option("--flow", metavar="NAME", help="The flow's name.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document, for programs.")]
RunId = Annotated[
    str, typer.Argument(metavar="RUN", help="Its id, or how the id begins.", show_default=False)
]


class State(StrEnum):
    """What an open run is about."""

    RUNNING = "running"
    CALLING = "calling"
    WAITING = "waiting"
    PARKED = "parked"
    UNDOING = "undoing"
    QUEUED = "queued"
    FAILED = "failed"
    UNREADABLE = "unreadable"


@runs.command("list")
def list_runs(
    flow: FlowName,
    tenant: Annotated[str, typer.Option(help="Only this tenant's.")] = "",
    state: Annotated[State | None, typer.Option(help="Only those in this state.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """The open runs that the ledger holds. One that only reads is not in it, and begins anew after a crash.

    `queued`: behind another one, by `order_by`. `--state failed`: those that have ended, and are kept to be redriven.
    `unreadable`: of a record that this version cannot read; the version that wrote it goes on with the run.

    Example: `onceflow runs list --flow clearledger --state parked`
    """
    from onceflow.config import load
    from onceflow.observe.open_runs import (
        by_state,
        read_all_runs,
        run_as_json,
        state_of,
        steps_of,
        unreadable_as_json,
    )
    from onceflow.observe.status import time_text

    known, unreadable = read_all_runs(flow, load(flow), tenant)
    found = by_state([run for run in known if state is State.FAILED or not run.failed], state or "")
    if state not in (None, State.UNREADABLE):
        unreadable = []
    if as_json:
        print_json([*map(run_as_json, found), *map(unreadable_as_json, unreadable)])
        return
    if not found and not unreadable:
        print("no open runs")
        return
    table = new_table("run", "tenant", "agent", "state", "since", "at")
    for run in found:
        agent = f"{run.begun.agent} {run.begun.version}"
        last = next((step for step in reversed(steps_of(run)) if step.state == "open"), None)
        at = "" if last is None else f"{last.what} {last.detail}"
        table.add_row(
            run.key.hex(), told(run.tenant), agent, state_of(run), time_text(run.begun.time_ms), told(at)
        )
    for each in unreadable:
        table.add_row(each.key.hex(), told(each.tenant), "-", State.UNREADABLE, "-", told(each.why))
    show(table)


@runs.command("show")
def show_run(run: RunId, flow: FlowName, as_json: AsJson = False) -> None:
    """A run's journal: calls with their keys and executions, how long they took, how many records they found, waits,
    what failed. Results are not shown. A run that has failed is kept, and shown, as long as its dead letter.

    Example: `onceflow runs show a78c26d0 --flow clearledger`
    """
    from onceflow.config import load
    from onceflow.observe.open_runs import find_run, run_as_json, state_of, steps_of
    from onceflow.observe.status import time_text

    found = find_run(flow, load(flow), run)
    if as_json:
        print_json(run_as_json(found))
        return
    begun = found.begun
    about = new_table("", "")
    about.show_header = False
    about.add_row("run", found.key.hex())
    about.add_row("state", state_of(found))
    about.add_row("agent", f"{begun.agent} version {begun.version}")
    about.add_row("event", told(f"{begun.incoming.id} of {begun.incoming.source}, tenant {found.tenant}"))
    about.add_row("read from", f"{begun.origin}, sent {time_text(begun.time_ms)}")
    columns = ("place", "what", "state", "executions", "took", "key", "found", "")
    table = new_table(*columns, right=("executions", "took", "found"))
    for step in steps_of(found):
        executions = str(step.executions) if step.executions else ""
        took = "" if step.seconds is None else f"{step.seconds:.3f} s"
        found_ = str(sum(len(ids) for ids in step.retrieved.values())) if step.retrieved else ""
        what, detail = told(step.what), told(step.detail)
        table.add_row(step.place, what, step.state, executions, took, step.key, found_, detail)
    show(about, "", table)


@runs.command("resolve")
def resolve(
    run: RunId,
    flow: FlowName,
    result: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", help="The call has happened, and this is its result.", show_default=False
        ),
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Make the call once more; or, of a replay that differed: replay again."),
    ] = False,
    fail: Annotated[
        bool, typer.Option("--fail", help="The call has not happened: its agent sees CallFailed.")
    ] = False,
) -> None:
    """Say how a parked run goes on. If somebody else was faster, nothing is done.

    A result must be of the type that the tool returns; the run fails otherwise. Of a compensation, `--result null`
    says that it has been done, and `--fail` leaves the effect standing.

    Example: `onceflow runs resolve a78c26d0 --result '{"id": "ch_1"}' --flow billing`
    """
    if [result is not None, again, fail].count(True) != 1:
        raise ConfigError("say one of --result JSON, --again and --fail")
    if result is not None:
        from onceflow.agents.commands import stored_result

        try:
            json.loads(result)
        except ValueError as error:
            raise ConfigError(
                f"--result: not JSON ({error}); a text needs quotes: --result '\"done\"'"
            ) from error
        try:
            stored_result(result.encode())
        except ValueError as error:
            raise ConfigError(f"--result cannot be stored: {error}") from error
    _decide(flow, run, "result" if result is not None else "again" if again else "fail", result)


@runs.command("cancel")
def cancel(run: RunId, flow: FlowName) -> None:
    """End a run as failed: nothing more is started, calls under way are waited for, what stands is undone.

    Example: `onceflow runs cancel a78c26d0 --flow clearledger`
    """
    _decide(flow, run, "cancel", None)


@signals.command("send")
def send_signal(
    type: Annotated[str, typer.Argument(help="The signal's name.", show_default=False)],
    id: Annotated[str, typer.Argument(help="The wait that it ends: its subject.", show_default=False)],
    flow: FlowName,
    tenant: Annotated[str, typer.Option(help="Whose wait it is.", show_default=False)],
    status: Annotated[str, typer.Option(help="What became of it.")] = "",
    data: Annotated[str, typer.Option(metavar="JSON", help="An object; `status` is added.")] = "{}",
    event_id: Annotated[
        str, typer.Option(help="Its own id: the same again is a copy. One is made up unless given.")
    ] = "",
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Say that it is made up: source `sandbox`.")
    ] = False,
) -> None:
    """Send a signal, on the topic and in the form of any producer.

    Example: `onceflow signals send check.finished account-7 --tenant acme --status passed --flow accounts`
    """
    from onceflow.config import load
    from onceflow.observe.open_runs import send_signal as send

    settings = load(flow)
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"--data: not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ConfigError("--data: write an object, such as '{\"score\": 7}'")
    if status:
        fields["status"] = status
    about = {
        "id": event_id or secrets.token_hex(8),
        "source": "sandbox" if sandbox else "onceflow/cli",
        "data": fields,
    }
    send(settings, type, id, tenant, about)
    print(f"sent {about['id']} to {settings.events.signals}")


def _decide(flow: str, run: str, action: "Action", result: str | None) -> None:
    import msgspec

    from onceflow.agents.commands import Command
    from onceflow.config import load
    from onceflow.observe.open_runs import await_change, find_run, send_command, state_of

    settings = load(flow)
    found = find_run(flow, settings, run)
    if found.failed:
        raise ConfigError(
            f"run {found.key.hex()} has failed: `onceflow dead-letters redrive` has it done anew, `discard` lets it go"
        )
    if action != "cancel" and not found.parked:
        raise ConfigError(
            f"run {found.key.hex()} is {state_of(found)}, not parked: there is nothing to resolve"
        )
    command = Command(
        action=action,
        tenant=found.tenant,
        run=found.key.hex(),
        segments=found.segments,
        result=msgspec.Raw((result or "null").encode()),
    )
    send_command(flow, settings, command)
    say("sent; waiting until its cell has acted on it")
    now = await_change(flow, settings, found)
    print(f"run {found.key.hex()} {'has ended' if now is None else 'is ' + state_of(now)}")
