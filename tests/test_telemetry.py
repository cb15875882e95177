"""The log and the metrics of a cell."""

import json
import logging
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest

from onceflow.event import Reason
from onceflow.observe.telemetry import Metrics, setup_logging

log = logging.getLogger("onceflow.test")


@pytest.fixture(autouse=True)
def _put_the_log_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_text_line_is_readable_and_ends_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("text", "info", cell="c1")
    log.debug("not this")
    log.info("slot granted", extra={"slot": 3, "why": "a new one"})
    (line,) = capsys.readouterr().err.splitlines()
    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert rest == 'INFO    onceflow.test: slot granted cell=c1 slot=3 why="a new one"'


def test_a_json_line_is_one_object_with_its_fields_and_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("text", "info")
    setup_logging("json", "info", cell="c1")  # replaces the first: one line, not two
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("failed on %s", "purpose", extra={"slots": [1, 2], "lag": float("nan")})
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry.pop("time")
    assert entry.pop("trace").endswith("ValueError: no")
    assert entry == {
        "level": "error",
        "logger": "onceflow.test",
        "message": "failed on purpose",
        "cell": "c1",
        "slots": [1, 2],
        "lag": "nan",
    }


@pytest.mark.parametrize("kind", ["text", "json"])
def test_what_may_hold_an_events_value_is_shown_as_its_type(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(kind, "info")  # type: ignore[arg-type]
    log.info("read", extra={"data": {"iban": "secret"}, "value": b"secret", "items": ["secret"]})
    line = capsys.readouterr().err
    assert "secret" not in line
    assert "<dict>" in line


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_text_from_outside_cannot_begin_a_line_of_its_own(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(kind, "info")  # type: ignore[arg-type]
    log.info("tenant %s", "a\nERROR forged", extra={"id": "x\r\nERROR forged"})
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_series_is_there_from_the_start_and_counts() -> None:
    metrics = Metrics()
    text = generate_latest(metrics.registry).decode()
    for series in (
        *(f'onceflow_events_total{{verdict="{verdict}"}}' for verdict in ("first", "duplicate", "conflict")),
        *(f'onceflow_completions_total{{outcome="{outcome}"}}' for outcome in ("completed", "failed")),
        *(f'onceflow_dead_letters_total{{reason="{reason}"}}' for reason in Reason),
        *("onceflow_forwarded_total", "onceflow_runs_in_flight", "onceflow_oldest_unfinished_seconds"),
        *('onceflow_commit_seconds_bucket{le="0.002"}', "onceflow_commit_records_sum"),
        *("onceflow_catchup_remaining", "onceflow_slots_granted", "onceflow_unfinished_events"),
        'onceflow_inputs_paused{cause="unfinished"}',
    ):
        assert f"\n{series} 0.0\n" in text
    assert "process_resident_memory_bytes" in text
    metrics.events["first"].inc(4000)
    metrics.commit_seconds.observe(0.003)
    metrics.dead_letters["a-later-reason"].inc()
    read = metrics.registry.get_sample_value
    assert read("onceflow_events_total", {"verdict": "first"}) == 4000
    assert read("onceflow_commit_seconds_bucket", {"le": "0.004"}) == 1
    assert read("onceflow_dead_letters_total", {"reason": "a-later-reason"}) == 1
    assert Metrics().registry.get_sample_value("onceflow_events_total", {"verdict": "first"}) == 0
