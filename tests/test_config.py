"""Settings: what is read from where, what wins, and what is refused in one line that helps."""

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from onceflow.config import SETTINGS, Events, Limits, Settings, flow_name, load, rows
from onceflow.errors import ConfigError


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def environment(**variables: str) -> dict[str, str]:
    return {f"ONCEFLOW_{name}": value for name, value in variables.items()} | {"HOME": "/nowhere"}


def test_the_environment_wins_over_the_file_which_wins_over_the_default() -> None:
    Path("onceflow.toml").write_text('slots = 8\n[dedup]\nwindow = 60\ncontent = "ignore"\n')
    settings = load("clearledger", environ=environment(DEDUP__WINDOW="PT1H"))
    assert (settings.slots, settings.dedup.content) == (8, "ignore")
    assert settings.dedup.window == timedelta(hours=1)
    assert settings.state_dir == Path("state/clearledger")
    shown = {row.name: (row.value, row.unit, row.origin) for row in rows(settings)}
    assert shown["slots"] == ("8", "slots", "onceflow.toml")
    assert shown["dedup.window"] == ("3600", "s", "environment (ONCEFLOW_DEDUP__WINDOW)")
    assert shown["commit_interval"] == ("0.1", "s", "default")


def test_settings_made_in_code_ignore_the_environment_and_do_not_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONCEFLOW_SLOTS", "8")
    assert Settings().slots is None
    with pytest.raises(ValidationError, match="frozen"):
        Settings().slots = 3  # type: ignore[misc]


def test_every_setting_is_described_and_its_default_is_one_that_may_be_given() -> None:
    assert all(field.description for field in SETTINGS.values())
    for row in rows(Settings()):
        if row.value:
            load(environ=environment(**{row.name.upper().replace(".", "__"): row.value}))


def test_the_file_is_the_one_that_is_named_and_then_it_must_exist(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    with pytest.raises(ConfigError, match=r"other\.toml is missing"):
        load(environ=environment(CONFIG=str(other)))
    other.write_text("slots = 4")
    Path("onceflow.toml").write_text("slots = 8")
    assert load(environ=environment(CONFIG=str(other))).slots == 4
    assert load(environ={}, path=other).slots == 4


@pytest.mark.parametrize("value", ["3600", "3600.0", "PT1H", "PT60M", "P0DT1H"])
def test_a_duration_is_a_number_of_seconds_or_iso_8601(value: str) -> None:
    assert load(environ=environment(DEDUP__WINDOW=value)).dedup.window == timedelta(hours=1)


@pytest.mark.parametrize("value", ["billing,events", '["billing", "events"]', " billing , events "])
def test_the_environment_gives_a_list_as_json_or_with_commas(value: str) -> None:
    assert load(environ=environment(EVENTS__SHARED=value)).events.shared == ("billing", "events")


def test_client_properties_come_as_tables_quoted_names_or_variables_and_secrets_stay_hidden() -> None:
    Path("onceflow.toml").write_text(
        '[kafka.client]\nsasl.username = "me"\nsasl.mechanism = "PLAIN"\n"sasl.password" = "hunter2"\n'
        '"socket.keepalive.enable" = true\n"ssl.key.pem" = "hunter2"\n'
    )
    settings = load(environ=environment(KAFKA__CLIENT__SASL_MECHANISM="SCRAM-SHA-512"))
    assert settings.kafka.properties() == {
        "bootstrap.servers": "127.0.0.1:9092",
        "metadata.recovery.strategy": "none",
        "sasl.username": "me",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.password": "hunter2",
        "socket.keepalive.enable": "true",
        "ssl.key.pem": "hunter2",
    }
    shown = {row.name: row.value for row in rows(settings)}
    assert shown["kafka.client.sasl.password"] == shown["kafka.client.ssl.key.pem"] == "******"
    assert shown["kafka.client.sasl.username"] == "me"
    assert "hunter2" not in repr(settings)


REFUSED = [
    # in the environment; in the file; what the line says
    ({"SLOTS": "300"}, "", "slots = '300', from environment (ONCEFLOW_SLOTS): must be a whole number"),
    ({}, "slots = true", "slots = True, from onceflow.toml: must be a whole number, from 1 up to 256"),
    ({"DEDUP__CONTENT": "canonicl"}, "", "one of bytes, canonical, ignore; did you mean 'canonical'?"),
    ({"DEDUP__WINDOW": "soon"}, "", "must be a number of seconds or an ISO 8601 duration such as PT90S"),
    ({"DEDUP__WINDOW": "0"}, "", "dedup.window = '0'"),
    ({"DEDUP__WINDOW": "nan"}, "", "dedup.window = 'nan'"),
    ({"COMMIT_INTERVAL": "11"}, "", "from 0.001 up to 10"),
    ({"SLOTZ": "3"}, "", "environment: ONCEFLOW_SLOTZ is not a setting; did you mean 'ONCEFLOW_SLOTS'?"),
    ({"LIMITS": "{}"}, "", "it is a table of settings, such as 'ONCEFLOW_LIMITS__VALUE_BYTES'"),
    ({"KAFKA__CLIENT": "{}"}, "", "such as 'ONCEFLOW_KAFKA__CLIENT__SASL_MECHANISM'"),
    ({}, "dedup.windo = 3", "onceflow.toml: there is no setting 'dedup.windo'; did you mean 'dedup.window'?"),
    ({}, "window = 3", "there is no setting 'window'; did you mean 'dedup.window'?"),
    ({}, "dedup = 3", "it is a table of settings, such as 'dedup.window'"),
    ({}, "slots = ", "onceflow.toml is not TOML"),
    ({}, '[kafka.client]\nsasl.mechanism = "x"\n"sasl.mechanism" = "y"', "given twice"),
    ({}, '[kafka.client]\n"group.id" = "x"', "must be left out: exactly once depends on"),
    ({}, '[kafka.client]\n"max.poll.interval.ms" = "9"', "must be left out: a cell always polls within"),
    ({}, '[events.plain]\nid = "key"', "events.plain.source is missing: must be header:NAME, key"),
    ({"EVENTS__PLAIN__ID": "id"}, "", "events.plain.id = 'id'"),
    ({"STATE_DIR": ""}, "", "must be a directory of the cell's own"),
    ({"EVENTS__SHARED": "", "EVENTS__TENANT_PREFIX": ""}, "", "events.shared = '', from environment"),
    ({"EVENTS__SHARED": "signals"}, "", "events.signals = signals, the default: must be a topic that is not in"),
    ({"EVENTS__SIGNALS": "events"}, "", "events.signals = 'events', from environment (ONCEFLOW_"),
    ({"EVENTS__SIGNALS": "events.acme"}, "", "is not a tenant's own (events.tenant_prefix and a name)"),
    ({"EVENTS__TENANT_PREFIX": "e"}, "", "must be a prefix that topic 'events' does not begin with"),
    ({"LIMITS__RUNS_PER_LANE": "9000"}, "", "limits.runs_per_cell = 8192, the default: must be at least"),
    ({"LIMITS__UNFINISHED_PER_CELL": "1"}, "", "must be at least limits.unfinished_per_input, which is 4096"),
]  # fmt: skip


@pytest.mark.parametrize(("variables", "file", "line"), REFUSED)
def test_what_is_not_understood_is_refused_in_one_line(
    variables: dict[str, str], file: str, line: str
) -> None:
    Path("onceflow.toml").write_text(file)
    with pytest.raises(ConfigError) as refused:
        load("flow", environ=environment(**variables))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_refused_secret_is_not_repeated() -> None:
    Path("onceflow.toml").write_text(
        'kafka.client."sasl.password" = "hunter2"\nkafka.client."group.id" = "g"'
    )
    with pytest.raises(ConfigError) as refused:
        load(environ={})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "file",
    [
        '[kafka.client]\n"sasl.pasword" = "hunter2"\n',
        '[kafka.client]\n"sasl.kerberos.kinit.cmd" = "echo hunter2 | kinit me"\n',
        '[kafka.client.sasl]\npassword.of = "hunter2"\n',
    ],
)
def test_what_may_be_a_secret_is_not_shown(file: str) -> None:
    Path("onceflow.toml").write_text(file)
    assert [row.value for row in rows(load(environ={})) if "hunter2" in row.value] == []
    assert [row.name for row in rows(load(environ={})) if "******" in row.value]


@pytest.mark.parametrize("servers", ["me:hunter2@k:9092", "k:9092,me:hunter2,hunter2@k:9092"])
def test_brokers_with_a_password_are_refused_and_not_repeated(servers: str) -> None:
    Path("onceflow.toml").write_text(f'[kafka]\nbootstrap_servers = "{servers}"\n')
    with pytest.raises(ConfigError, match=r"passwords belong into kafka\.client") as refused:
        load(environ={})
    assert "hunter2" not in str(refused.value)


def test_a_text_instead_of_the_client_s_table_is_not_repeated() -> None:
    Path("onceflow.toml").write_text('[kafka]\nclient = "sasl.password=hunter2"\n')
    with pytest.raises(ConfigError, match="must be a table of librdkafka's properties") as refused:
        load(environ={})
    assert "hunter2" not in str(refused.value)


def test_properties_that_hold_no_secret_are_shown() -> None:
    Path("onceflow.toml").write_text(
        '[kafka.client]\n"security.protocol" = "SASL_SSL"\n"socket.timeout.ms" = 5000\n"client.id" = "c1"\n'
        '"ssl.ca.location" = "/ca.pem"\n"receive.message.max.bytes" = 5\n'
    )
    shown = [row.value for row in rows(load(environ={})) if row.name.startswith("kafka.client.")]
    assert sorted(shown) == sorted(["SASL_SSL", "5000", "c1", "/ca.pem", "5"])


def test_variables_of_others_are_left_alone() -> None:
    """The project's own that are no settings, and what Kubernetes makes for a Service named onceflow."""
    others = environment(
        CACHE="/c", TEST_KAFKA="h:1", KAFKA_HEAP="1g", SERVICE_HOST="10.0.0.1", SERVICE_PORT="80"
    )
    kubernetes = environment(
        PORT="tcp://10.0.0.1:80", PORT_80_TCP_ADDR="10.0.0.1", HTTP_SERVICE_PORT_WEB="80"
    )
    assert load(environ=others | kubernetes) == load(environ={})


def test_limits_that_contradict_each_other_cannot_be_made_in_code_either() -> None:
    with pytest.raises(
        ValidationError, match=r"limits\.runs_per_cell must be at least limits\.runs_per_lane"
    ):
        Settings(limits=Limits(runs_per_lane=10, runs_per_cell=9))


@pytest.mark.parametrize("name", ["Clear", "", "1st", "a_b", "a.b", "a" * 64, "flow\n"])
def test_a_flows_name_is_lower_case_letters_digits_and_hyphens(name: str) -> None:
    with pytest.raises(ConfigError, match="must be 1 to 63 lower-case letters"):
        flow_name(name, Settings())


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("events", {}),
        ("clearledger", {"EVENTS__TENANT_PREFIX": "clear"}),
        ("dedup", {"EVENTS__SHARED": "events,dedup.completions"}),
        ("dedup", {"EVENTS__SIGNALS": "dedup.inbox"}),
    ],
)
def test_a_flow_whose_topics_would_be_read_as_events_is_refused(name: str, variables: dict[str, str]) -> None:
    cause = next((name.lower().replace("__", ".") for name in variables), "events.tenant_prefix")
    with pytest.raises(ConfigError, match=rf"would be read as (events|signals) \(.*{cause} "):
        load(name, environ=environment(**variables))
    assert flow_name("billing", load(environ=environment(**variables))) == "billing"


def test_events_may_have_the_topic_that_signals_have_by_default_if_signals_have_another_or_none() -> None:
    for other in ("bank-signals", ""):
        given = environment(EVENTS__SHARED="signals", EVENTS__SIGNALS=other)
        assert load("flow", environ=given).events.shared == ("signals",)


def test_signals_are_an_input_unless_their_topic_is_empty() -> None:
    assert Events().is_input("signals")
    assert not Events(signals="").is_input("signals")
    assert Events(signals="bank-signals").is_input("bank-signals")
