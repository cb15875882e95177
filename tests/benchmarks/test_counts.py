"""What is counted of the world outside: steps executed again, and effects done twice."""

from pathlib import Path

import pytest

from benchmarks import outside
from benchmarks.counts import Request, again, requests, twice, words


def test_every_request_is_noted_once_and_read_back_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "outside"
    assert requests(file) == []
    monkeypatch.setenv(*next(iter(outside.environment(file).items())))
    outside.note("effect", 7, 0, "-")
    outside.note("asked", 7, 0)
    outside.note("model", 7, 1200)
    outside.note("effect", 7, 1, "c0ffee")
    assert requests(file) == [Request("7", "0", ""), Request("7", "1", "c0ffee")]
    assert words(file, "model") == [["7", "1200"]]


def test_a_step_is_executed_again_if_its_effect_had_happened_before_the_kill() -> None:
    before = [Request("1", "a", "k"), Request("2", "a", "")]
    after = [Request("1", "a", "k"), Request("1", "b", "m"), Request("3", "a", "")]
    assert again(before, after) == [Request("1", "a", "k")]


@pytest.mark.parametrize(
    ("keys", "extra"),
    [([""], 0), (["", ""], 1), (["", "", ""], 2), (["k", "k", "k"], 0), (["k", "m"], 1), (["k", ""], 1)],
)
def test_an_effect_is_done_twice_unless_the_target_is_given_the_same_key_again(
    keys: list[str], extra: int
) -> None:
    others = [Request("2", "act", ""), Request("1", "tell", "")]  # other steps, which happen once
    assert twice([*others, *(Request("1", "act", key) for key in keys)]) == extra
