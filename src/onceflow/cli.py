"""The command line: `onceflow`.

A command prints its result on standard output and everything else on standard error. With `--json` the
result is one JSON document. What goes wrong is one line on standard error that says the remedy, and the exit
status: 0 done as asked, 2 wrong usage or configuration, 3 a fault that a restart heals (Kafka away, for one).

What takes long to import is imported by the commands that need it.
"""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from onceflow.cli_letters import dead_letters
from onceflow.cli_runs import runs, signals
from onceflow.cli_status import AsJson, FlowModule, inputs, status
from onceflow.errors import Fault, OnceflowError
from onceflow.terminal import new_table, print_json, say, show, show_what_cannot_be_encoded

if TYPE_CHECKING:
    from onceflow.devkafka import Broker

app = typer.Typer(
    name="onceflow",
    help="A multi-tenant stream processor that runs AI-agent work once.\n\n"
    "Start with `onceflow demo`: it shows all of it on a real Kafka, within a minute.",
    epilog="Exit status: 0 done as asked; 2 wrong usage or configuration; 3 a fault that a restart heals.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # a trace shows local values, and events must not be shown
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _group(name: str, panel: str, explanation: str) -> typer.Typer:
    group = typer.Typer(name=name, help=explanation, no_args_is_help=True, rich_markup_mode="markdown")
    app.add_typer(group, rich_help_panel=panel)
    return group


RUNNING, LOOKING, DECIDING, TRYING = "Run a flow", "See how it is", "Decide what a person must", "Try it out"

# In the order of the help.
kafka = _group("kafka", TRYING, "A real Apache Kafka on this machine, without Docker or an installed Java.")
app.add_typer(dead_letters, rich_help_panel=LOOKING)
app.add_typer(inputs, rich_help_panel=LOOKING)
app.add_typer(runs, rich_help_panel=DECIDING)
app.add_typer(signals, rich_help_panel=TRYING)

RecoveryDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Where Bytewax keeps the journals of runs in flight.", show_default=False
    ),
]


def main() -> None:
    """The console entry point."""
    show_what_cannot_be_encoded()
    status = _run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `onceflow … | head`
        _write_nowhere()
    sys.stderr.flush()
    # At once: freeing a Kafka client can wait for ever (librdkafka, where a group's coordinator was not there at
    # the first asking), and there is nothing left to do.
    os._exit(status)


def _run() -> int:
    """Run the command that the arguments ask for; the status to end with."""
    try:
        ended: int | None = app(prog_name="onceflow", standalone_mode=False)
        return ended or 0
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # met by Typer or Rich first
            _write_nowhere()
            return 0
        return end.code if isinstance(end.code, int) else 0
    except OnceflowError as error:
        say(f"onceflow: {error}")
        return error.exit_status
    except BrokenPipeError:
        _write_nowhere()
        return 0
    except Exception as error:
        if (usage := _wrong_usage(error)) is not None:
            return usage
        client = sys.modules.get("confluent_kafka")
        if client is None or not isinstance(error, client.KafkaException):
            raise
        from onceflow.stream.cluster import is_away

        say(f"onceflow: Kafka refused: {error.args[0].str()}")
        return 3 if is_away(error.args[0]) else 2


def _write_nowhere() -> None:
    """Nobody reads what is printed any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _wrong_usage(error: Exception) -> int | None:
    """If this error says what is wrong with the arguments, say it in a line; the status to end with, None: it does not.

    Told by what it has, for its class is Click's or, by Typer's version, that of a copy of Click.
    """
    worded = getattr(error, "format_message", None)
    if worded is None:
        return None
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been shown
        text = "which command? Give one of those above"
    else:
        text = " ".join(worded().split()).removesuffix(".")
    say(f"onceflow: {text} (`{context.command_path if context else 'onceflow'} --help`)")
    return 2


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"onceflow {version('onceflow')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Its version.")
    ] = False,
) -> None:
    """Options of `onceflow` itself."""


# --- running ---


@app.command(rich_help_panel=RUNNING)
def run(
    flow: FlowModule,
    recovery_dir: RecoveryDir = None,
    no_prepare: Annotated[
        bool, typer.Option("--no-prepare", help="The topics were prepared by someone else.")
    ] = False,
) -> None:
    """Run one cell of a flow, until SIGTERM or Ctrl-C.

    Makes missing topics first, and keeps the journals of runs in flight in `<state dir>/recovery` unless told
    otherwise.
    More cells: the same command again, each with a state directory of its own.

    Example: `ONCEFLOW_STATE_DIR=state/second onceflow run flows.clearledger`
    """
    from onceflow.flow import find_flow, run_flow
    from onceflow.stream.cluster import Cluster
    from onceflow.stream.topics import prepare as prepare_topics

    found = find_flow(flow)
    settings = found.settings
    where = f"Kafka {settings.kafka.bootstrap_servers}, state in {settings.state_dir}"
    for number in (signal.SIGTERM, signal.SIGINT):  # until the cell has its own: nothing is under way
        signal.signal(number, lambda *_: os._exit(0))
    print(f"onceflow: flow {found.name}, {where}", file=sys.stderr, flush=True)
    if not no_prepare:
        for line in prepare_topics(found.name, Cluster(settings.kafka.properties()), settings):
            print(f"onceflow: {line}", file=sys.stderr, flush=True)
    run_flow(found, recovery_dir or settings.state_dir / "recovery")


@app.command(rich_help_panel=RUNNING)
def prepare(
    flow: FlowModule,
    recovery_dir: RecoveryDir = None,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="earliest|latest|TIME",
            help="Where inputs begin that the flow has not read yet. TIME: ISO 8601 with a time zone.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Make the topics that a flow needs, and mend their settings. Doing it again changes nothing.

    `--from` is for a flow that does not run, and leaves inputs alone that it has read before.

    Example: `onceflow prepare flows.clearledger --recovery-dir recovery --from latest`
    """
    from onceflow.flow import find_flow
    from onceflow.observe.status import read_progress
    from onceflow.stream.cluster import Cluster
    from onceflow.stream.dataflow import initialise_recovery
    from onceflow.stream.topics import existing_slots, read_start, start_from
    from onceflow.stream.topics import prepare as prepare_topics

    found = find_flow(flow)
    begin = read_start(start) if start else None
    settings = found.settings
    cluster = Cluster(settings.kafka.properties())
    done = prepare_topics(found.name, cluster, settings)
    if begin is not None:
        slots = existing_slots(found.name, cluster, settings)
        known = read_progress(found.name, cluster, settings, slots)
        done += start_from(found.name, cluster, settings, begin, known)
    if recovery_dir is not None and not any(recovery_dir.glob("part-*.sqlite3")):
        initialise_recovery(recovery_dir)
        done.append(f"made the recovery directory {recovery_dir}")
    for line in done:
        print(line)
    if all(line.startswith("warning: ") for line in done):
        print("nothing to do")


@app.command("config", rich_help_panel=RUNNING)
def show_config(
    flow: Annotated[
        str,
        typer.Argument(metavar="[FLOW]", help="A flow's module; settings without one.", show_default=False),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Every setting: its value, its unit, and where the value came from. Secrets are masked.

    Settings come from `onceflow.toml` (or the file that ONCEFLOW_CONFIG names) and from the environment, which
    wins: `ONCEFLOW_DEDUP__WINDOW` is `dedup.window`.

    Example: `onceflow config flows.clearledger --json`
    """
    from onceflow.config import load, rows

    if flow:
        from onceflow.flow import find_flow

        settings = find_flow(flow).settings
    else:
        settings = load()
    found = rows(settings)
    if as_json:
        names = ("name", "value", "unit", "origin", "description")
        print_json([{name: getattr(row, name) for name in names} for row in found])
        return
    table = new_table("setting", "value", "unit", "from", "what it is")
    for row in found:
        style = "" if row.origin == "default" else "bold"
        table.add_row(row.name, Text(row.value or "-", style), row.unit, row.origin, row.description)
    show(table)


app.command(rich_help_panel=LOOKING)(status)


# --- Kafka and the demo ---

Directory = Annotated[Path, typer.Option("--dir", metavar="D", help="Where it keeps its data and log.")]
KAFKA_DIRECTORY = Path("state/kafka")


@kafka.command("start")
def start_kafka(
    directory: Directory = KAFKA_DIRECTORY,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Its port; without it the one it had, or a free one.")
    ] = None,
) -> None:
    """Start Kafka, or find it running. The first time downloads 45 MB.

    Example: `onceflow kafka start --port 9092`
    """
    from onceflow import devkafka

    _show_broker(devkafka.start(directory, port, progress=say))


@kafka.command("stop")
def stop_kafka(directory: Directory = KAFKA_DIRECTORY) -> None:
    """Stop Kafka. What it holds stays for the next start.

    Example: `onceflow kafka stop`
    """
    from onceflow import devkafka

    if not devkafka.stop(directory, progress=say):
        print(f"no Kafka runs in {directory}")


@kafka.command("status")
def kafka_status(directory: Directory = KAFKA_DIRECTORY, as_json: AsJson = False) -> None:
    """Whether Kafka runs, and where.

    Example: `onceflow kafka status --json`
    """
    from onceflow import devkafka

    broker = devkafka.status(directory)
    if as_json:
        where = None if broker is None else broker.bootstrap_servers
        process = None if broker is None else broker.pid
        print_json({"runs": broker is not None, "bootstrap_servers": where, "pid": process})
    elif broker is None:
        print(f"no Kafka runs in {directory}: `onceflow kafka start` starts one")
    else:
        _show_broker(broker)


@app.command(rich_help_panel=TRYING)
def demo(
    events: Annotated[int, typer.Option(min=200, help="How many events are sent.")] = 20_000,
    directory: Annotated[
        Path, typer.Option("--dir", metavar="D", help="For Kafka, state and logs; emptied first.")
    ] = Path("demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave Kafka running, to look at its topics.")] = False,
) -> None:
    """The main job on a real Kafka: a day of invoices, one cell killed half-way, all counted from outside.

    Asks nothing, leaves nothing running, and takes well under a minute once Kafka is downloaded (45 MB).

    Example: `onceflow demo --events 50000`
    """
    from onceflow.demo import run_demo

    if not run_demo(events, directory, keep=keep):
        raise typer.Exit(Fault.exit_status)  # what is wrong has been shown


# --- how it is shown ---


def _show_broker(broker: "Broker") -> None:
    print(f"Kafka runs on {broker.bootstrap_servers} (process {broker.pid}, {broker.directory})")
    print(f"export ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS={broker.bootstrap_servers}")


if __name__ == "__main__":
    main()
