"""The command line: its help, what it prints, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from typer.testing import CliRunner

from onceflow import cli, devkafka
from onceflow.config import SETTINGS
from onceflow.errors import OnceflowError
from onceflow.stream.cluster import Cluster
from onceflow.stream.topics import Names
from tests.conftest import Kafka

runner = CliRunner()

COMMANDS = (
    *("run", "prepare", "config", "status", "demo", "kafka start", "kafka stop", "kafka status"),
    *(
        "dead-letters list",
        "dead-letters redrive",
        "dead-letters discard",
        "inputs list",
        "inputs accept-loss",
    ),
    *("runs list", "runs show", "runs resolve", "runs cancel", "signals send"),
)
SEND = "signals send --flow f"


class Ended(Exception):  # noqa: N818 (reads as what it says)
    """The process would have ended."""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working directory, and no settings from outside; imports of the test's flows are undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in list(cli.os.environ):
        if name.startswith("ONCEFLOW_"):
            monkeypatch.delenv(name)


def main(monkeypatch: pytest.MonkeyPatch, arguments: str) -> int:
    """Run `onceflow …` as the console entry point does; the status that the process would end with."""

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(sys, "argv", ["onceflow", *arguments.split()])
    monkeypatch.setattr(cli.os, "_exit", end)
    with pytest.raises(Ended) as ended:
        cli.main()
    return int(ended.value.args[0])


@pytest.fixture
def flow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flow_name: str, kafka: Kafka) -> str:
    """The module of a flow of this test's own, whose events come from topics of its own."""
    module = f"flow_{flow_name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(
        "from onceflow import agent, dataflow\n"
        "@agent('pass-on', on='*')\n"
        "async def pass_on(run, event):\n"
        "    return 1\n"
        f"flow = dataflow({flow_name!r}, agents=[pass_on])\n"
    )
    monkeypatch.setenv("ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("ONCEFLOW_EVENTS__SHARED", f"{flow_name}-in")
    monkeypatch.setenv("ONCEFLOW_EVENTS__TENANT_PREFIX", f"{flow_name}-in.")
    monkeypatch.setenv("ONCEFLOW_EVENTS__SIGNALS", f"{flow_name}-signals")
    monkeypatch.setenv("ONCEFLOW_SLOTS", "8")
    return module


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    result = runner.invoke(cli.app, [*command.split(), "--help"])
    assert result.exit_code == 0, result.output
    text = re.sub(r"[\s│]+", " ", result.output)
    assert f"Example: onceflow {command}" in text or f" onceflow {command}" in text


def test_the_help_lists_the_commands_in_groups() -> None:
    text = runner.invoke(cli.app, ["--help"]).output
    for panel in (cli.RUNNING, cli.LOOKING, cli.DECIDING, cli.TRYING):
        assert panel in text
    for command in COMMANDS:
        assert command.split()[0] in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("prepare nowhere.flow", "there is no module 'nowhere.flow'"),
        ("prepare ../flow", "there is no module '...flow'"),
        ("prepare :flow", "there is no module ''"),
        ("prepare flows.clearledger:stream", "no flow named 'stream'"),
        ("status flows.dedup:x", "no flow named 'x'"),
        ("dead-letters list --flow Nope", "lower-case"),
        ("inputs list --flow=", "lower-case"),
        ("dead-letters list --flow f --reason nonsense", "write one of undecodable, invalid, wrong-tenant,"),
        ("dead-letters redrive --all --flow f --reason nonsense", "write one of undecodable,"),
        ("dead-letters redrive --flow f", "or write --all"),
        ("dead-letters discard --all f.dead-letters/0/1 --flow f", "or write --all"),
        (f"{SEND} check.finished account-7 --tenant a/b", "that is no signal: "),
        (f"{SEND} {'x' * 513} account-7 --tenant acme", "that is no signal: "),
        (f"{SEND} check.finished account-7 --tenant acme --data NaN", "--data: write an object"),
        ("config --colour", "No such option: --colour (`onceflow config --help`)"),
        ("run", "Missing argument 'FLOW' (`onceflow run --help`)"),
        ("runs list --flow f --state asleep", "is not one of 'running', 'calling', 'waiting', 'parked',"),
        ("stop", "No such command 'stop'"),
    ],
)
def test_wrong_usage_is_told_on_standard_error_and_ends_with_2(
    arguments: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1]), *sys.path])
    assert main(monkeypatch, arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("onceflow: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("arguments", ["", "runs"])
def test_without_a_command_the_help_is_shown_and_it_ends_with_2(
    arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, arguments) == 2
    captured = capsys.readouterr()
    assert "Usage: onceflow" in captured.out
    assert captured.err.startswith("onceflow: which command?")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "status"), [(KafkaError.TOPIC_AUTHORIZATION_FAILED, 2), (KafkaError.NOT_ENOUGH_REPLICAS, 3)]
)
def test_what_kafka_refuses_ends_with_2_and_with_3_if_it_may_be_taken_later(
    code: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        retriable = code == KafkaError.NOT_ENOUGH_REPLICAS
        raise KafkaException(KafkaError(code, "not for you", retriable=retriable))

    monkeypatch.setattr("onceflow.observe.status.newest_dead_letters", refuse)
    assert main(monkeypatch, "dead-letters list --flow f") == status
    assert capsys.readouterr().err == "onceflow: Kafka refused: not for you\n"


@pytest.mark.parametrize("arguments", ["--help", "config", "config --json", "--version"])
def test_who_reads_no_further_is_no_error(arguments: str) -> None:
    """As with `onceflow … | head -3`."""
    command = (sys.executable, "-m", "onceflow", *arguments.split())
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_it_is_a_module_too_and_knows_its_version() -> None:
    command = (sys.executable, "-m", "onceflow", "--version")
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert shown == f"onceflow {version('onceflow')}\n"


@pytest.mark.parametrize(
    "arguments", ["dead-letters list --flow f", f"{SEND} check.finished account-7 --tenant acme"]
)
def test_without_kafka_a_command_names_the_remedy_and_ends_with_3(
    arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("onceflow.stream.cluster.ANSWER_S", 0.2)
    monkeypatch.setenv("ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert main(monkeypatch, arguments) == 3
    error = capsys.readouterr().err
    assert error.startswith("onceflow: Kafka at 127.0.0.1:1 does not answer")
    assert error.count("\n") == 1, "and not what its client says"
    assert "onceflow kafka start" in error
    assert "ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS" in error


def test_a_flow_that_reads_no_signals_is_sent_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONCEFLOW_EVENTS__SIGNALS", "")
    assert main(monkeypatch, f"{SEND} check.finished account-7 --tenant acme") == 2
    assert "events.signals is empty: this flow reads no signals" in capsys.readouterr().err


def test_config_shows_every_setting_with_its_origin_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCEFLOW_SLOTS", "32")
    monkeypatch.setenv("ONCEFLOW_KAFKA__CLIENT__SASL_PASSWORD", "hunter2")
    result = runner.invoke(cli.app, ["config", "--json"])
    shown = {row["name"]: row for row in json.loads(result.stdout)}
    assert SETTINGS.keys() <= shown.keys()
    assert shown["slots"]["value"] == "32"
    assert shown["slots"]["origin"] == "environment (ONCEFLOW_SLOTS)"
    assert shown["commit_interval"]["unit"] == "s"
    assert "hunter2" not in result.output
    assert "hunter2" not in runner.invoke(cli.app, ["config"]).output


def test_kafka_says_where_it_runs_and_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broker = devkafka.Broker("127.0.0.1:9", tmp_path, 42)
    monkeypatch.setattr(devkafka, "start", lambda *_, **__: broker)
    started = runner.invoke(cli.app, ["kafka", "start", "--port", "9"])
    assert "export ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS=127.0.0.1:9\n" in started.stdout
    monkeypatch.setattr(devkafka, "status", lambda _: None)
    status = runner.invoke(cli.app, ["kafka", "status", "--json"])
    assert json.loads(status.stdout) == {"runs": False, "bootstrap_servers": None, "pid": None}


@pytest.mark.parametrize(("correct", "status"), [(True, 0), (False, 3)])
def test_the_demo_ends_with_3_if_its_count_is_wrong(
    correct: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onceflow.demo.run_demo", lambda *_, **__: correct)
    assert main(monkeypatch, "demo") == status


def test_an_error_of_ours_is_wrong_usage_or_a_fault() -> None:
    """So a command that ends with it ends with 2 or 3, and never with 1."""
    source = Path(cli.__file__).parent
    for module in source.rglob("*.py"):
        assert "raise OnceflowError" not in module.read_text(), module
    assert not hasattr(OnceflowError, "exit_status")
    assert {kind.exit_status for kind in OnceflowError.__subclasses__()} == {2, 3}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cell_that_is_asked_to_end_before_kafka_has_answered_ends_with_0(
    number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "waits.py").write_text(
        "from onceflow import agent, dataflow\n"
        "@agent('pass-on', on='*')\n"
        "async def pass_on(run, event):\n"
        "    return 1\n"
        "flow = dataflow('waits', agents=[pass_on])\n"
    )
    environ = {**os.environ, "ONCEFLOW_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    command = (sys.executable, "-m", "onceflow", "run", "waits")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("onceflow: flow waits, Kafka 127.0.0.1:1")
        process.send_signal(number)
        assert process.wait(timeout=60) == 0


# --- on a real broker ---


def test_preparing_twice_changes_nothing_and_other_slots_are_refused(
    flow: str, flow_name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, f"prepare {flow} --recovery-dir recovery") == 0
    first = capsys.readouterr().out.splitlines()
    assert f"made {flow_name}.completions with 8 partitions" in first
    assert first[-1] == "made the recovery directory recovery"
    assert main(monkeypatch, f"prepare {flow} --recovery-dir recovery") == 0
    assert capsys.readouterr().out == "nothing to do\n"
    monkeypatch.setenv("ONCEFLOW_SLOTS", "16")
    sys.modules.pop(flow)  # the settings are read when the flow is imported
    assert main(monkeypatch, f"prepare {flow}") == 2
    assert "fixed for a flow's life" in capsys.readouterr().err


def test_from_latest_starts_new_inputs_at_their_end_and_once_only(
    flow: str,
    flow_name: str,
    kafka: Kafka,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(monkeypatch, f"prepare {flow}") == 0
    send(kafka, f"{flow_name}-in", [(b"old", b"{}", 3)])
    assert main(monkeypatch, f"prepare {flow} --from latest") == 0
    assert f"{flow_name}-in/3 starts at 1" in capsys.readouterr().out
    send(kafka, f"{flow_name}-in", [(b"new", b"{}", 3)])
    assert main(monkeypatch, f"prepare {flow} --from latest") == 0
    assert capsys.readouterr().out == "nothing to do\n"
    assert main(monkeypatch, f"status {flow} --json") == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["unfinished"], status["lag"]) == (1, 1)


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("yesterday", "write `earliest`, `latest`, or a time"),
        ("2026-01-31T08:00:00", "say the time zone too"),
    ],
)
def test_a_start_that_is_not_understood_is_refused_before_anything_is_made(
    flow: str,
    flow_name: str,
    start: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(monkeypatch, f"prepare {flow} --from {start}") == 2
    assert says in capsys.readouterr().err
    assert main(monkeypatch, f"status {flow}") == 2
    assert f"topic {flow_name}.inbox is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("partitions", "slots", "warnings"),
    [
        (
            0,
            "",
            ["warning: there is no shared topic yet: the flow gets 64 slots for its life (ONCEFLOW_SLOTS"],
        ),
        (
            4,
            "",
            ["-in has 4 partitions, the flow gets 64 slots for its life: most events will be forwarded once"],
        ),
        (12, "8", ["-in has 12 partitions, the flow gets 8 slots for its life"]),
        (12, "", []),
        (0, "8", []),
        (4, "2", []),
    ],
)
def test_preparing_warns_of_slots_that_do_not_fit(
    flow: str,
    flow_name: str,
    kafka: Kafka,
    partitions: int,
    slots: str,
    warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Their number is for the flow's life."""
    if partitions:
        cluster = Cluster({"bootstrap.servers": kafka.bootstrap_servers})
        cluster.create(f"{flow_name}-in", partitions, {}, None)
        cluster.await_topics([f"{flow_name}-in"])
    if slots:
        monkeypatch.setenv("ONCEFLOW_SLOTS", slots)
    else:
        monkeypatch.delenv("ONCEFLOW_SLOTS")
    assert main(monkeypatch, f"prepare {flow}") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(said) == len(warnings)
    assert all(warning in line for warning, line in zip(warnings, said, strict=True))
    assert main(monkeypatch, f"prepare {flow}") == 0
    again = capsys.readouterr().out.splitlines()
    assert again.pop() == "nothing to do"
    assert all("the flow has" in line and "ONCEFLOW_SLOTS" not in line for line in again)


def test_dead_letters_are_listed_and_their_values_only_when_asked_for(
    flow: str,
    flow_name: str,
    kafka: Kafka,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(monkeypatch, f"prepare {flow}") == 0
    letters = Names.of(flow_name).dead_letters
    about = {"origin": "in/3/17", "detail": "no [bold]id[/]\ntrace"}
    undecodable = headers(reason="undecodable", tenant="", **about)
    send(kafka, letters, [(b"acme", b"\xff\x1b[31msecret", 0, undecodable)])
    invalid = headers(reason="invalid", tenant="acme", **about)
    send(kafka, letters, [(b"acme", b'{"id":"secret"}', 1, invalid)])
    capsys.readouterr()

    assert main(monkeypatch, f"dead-letters list --flow {flow_name}") == 0
    shown = capsys.readouterr().out
    assert "no [bold]id[/]" in shown
    assert "in/3/17" in shown
    assert "trace" not in shown
    assert "secret" not in shown

    assert main(monkeypatch, f"dead-letters list --flow {flow_name} --values") == 0
    assert "\\xff\\x1b[31msecret" in capsys.readouterr().out

    assert main(monkeypatch, f"dead-letters list --flow {flow_name} --values --json --tenant acme") == 0
    (letter,) = json.loads(capsys.readouterr().out)
    assert letter["reason"] == "invalid"
    assert letter["value"] == '{"id":"secret"}'
    assert letter["size"] == 15

    assert main(monkeypatch, f"dead-letters list --flow {flow_name} --limit 1") == 0
    assert "the newest 1 of 2" in capsys.readouterr().out
    assert main(monkeypatch, f"status {flow}") == 0
    assert "dead letters  2 (1 invalid, 1 undecodable)" in capsys.readouterr().out


def test_a_redrive_passes_over_what_was_redriven_before_and_ends_with_2_if_it_refuses_one(
    flow: str,
    flow_name: str,
    kafka: Kafka,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The ledger holds nothing of the run that a letter says is kept: it has been redriven, or let go."""
    assert main(monkeypatch, f"prepare {flow}") == 0
    topic = Names.of(flow_name).dead_letters
    failed = {"reason": "agent-failed", "tenant": "acme", "origin": "in/3/17", "run": "ab" * 16}

    send(kafka, topic, [(b"acme", b"{}", 0, headers(**failed, kept="3"))])
    capsys.readouterr()
    assert main(monkeypatch, f"dead-letters redrive --all --flow {flow_name}") == 0
    assert capsys.readouterr().out == f"{topic}/0/0  redriven or discarded before\n"

    send(kafka, topic, [(b"acme", b"{", 1, headers(**failed, truncated="2000000"))])
    assert main(monkeypatch, f"dead-letters redrive --all --flow {flow_name}") == 2
    captured = capsys.readouterr()
    assert f"{topic}/1/0  refused: only its first part was kept" in captured.out
    assert captured.err == f"onceflow: refused, for what is said of each: {topic}/1/0\n"


def test_status_says_that_no_cell_runs_and_shows_all_when_asked(
    flow: str,
    flow_name: str,
    kafka: Kafka,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(monkeypatch, f"status {flow}") == 2
    missing = f"topic {flow_name}.inbox is missing: is the flow's name right? `onceflow prepare MODULE` makes"
    assert missing in capsys.readouterr().err
    assert main(monkeypatch, f"prepare {flow}") == 0
    send(kafka, f"{flow_name}-in", [(b"k", b"{}", 5)] * 3)
    capsys.readouterr()
    assert main(monkeypatch, f"status {flow}") == 0
    shown = capsys.readouterr().out
    assert "0, owning 0 of 8 slots" in shown
    assert "3 events (lag 3)" in shown
    assert "no cell runs" in shown
    assert "--all shows the rest" in shown
    assert main(monkeypatch, f"status {flow} --all") == 0
    assert f"{flow_name}.inbox/7" in capsys.readouterr().out
    assert main(monkeypatch, f"inputs list --flow {flow_name} --json") == 0
    inputs = {(each["topic"], each["partition"]): each for each in json.loads(capsys.readouterr().out)}
    assert len(inputs) == 24
    assert inputs[f"{flow_name}-in", 5]["unfinished"] == 3


def test_a_signal_is_sent_to_a_topic_that_is_there(
    flow: str,
    flow_name: str,
    kafka: Kafka,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    signal = f"signals send check.finished account-7 --tenant acme --flow {flow_name}"
    assert main(monkeypatch, signal) == 2
    captured = capsys.readouterr()
    assert f"topic {flow_name}-signals (events.signals) is missing" in captured.err
    assert captured.out == ""
    assert main(monkeypatch, f"prepare {flow}") == 0
    assert main(monkeypatch, f"{signal} --event-id s-1 --status passed") == 0
    assert f"sent s-1 to {flow_name}-signals\n" in capsys.readouterr().out
    topic = [(f"{flow_name}-signals", partition) for partition in range(8)]
    ends = Cluster({"bootstrap.servers": kafka.bootstrap_servers}).end_offsets(topic)
    assert sum(ends.values()) == 1


def headers(**about: str) -> list[tuple[str, str | bytes | None]]:
    """Headers of a dead letter."""
    return [(f"onceflow-{name}", value.encode()) for name, value in about.items()]


def send(kafka: Kafka, topic: str, records: list[tuple]) -> None:  # type: ignore[type-arg]
    """Write records: key, value, partition and perhaps headers."""
    Cluster({"bootstrap.servers": kafka.bootstrap_servers}).await_topics([topic])
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for key, value, partition, *headers in records:
        producer.produce(topic, value, key, partition, headers=headers[0] if headers else [])
    assert producer.flush(10) == 0
