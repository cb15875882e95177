"""A worker that does not go on: named, then ended, so that a supervisor starts the cell again."""

import logging

import pytest

from onceflow.stream.standing import BEAT_S, END_S, NAMED_S, Standing

TO_BE_NAMED, TO_END = int(NAMED_S / BEAT_S), int(END_S / BEAT_S)


class Watched:
    """A worker, looked at beat by beat."""

    def __init__(self) -> None:
        self.ended = 0
        self.standing = Standing(lambda: b"\x07" * 16, self._end)

    def _end(self) -> None:
        self.ended += 1

    def looks(self, beats: int) -> None:
        for _ in range(beats):
            self.standing.look()


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_run_that_does_not_let_go_is_named_and_the_cell_is_not_well(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.standing.at("acme")
    watched.looks(TO_BE_NAMED)
    assert watched.standing.reason is None
    watched.looks(5)
    assert watched.standing.reason is not None
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert (record.tenant, record.run) == ("acme", "07" * 16)  # type: ignore[attr-defined]
    assert not watched.ended


def test_in_the_end_the_process_ends(watched: Watched) -> None:
    watched.standing.at("acme")
    watched.looks(TO_END)
    assert not watched.ended
    watched.looks(1)
    assert watched.ended == 1


def test_a_worker_that_goes_on_is_well(watched: Watched) -> None:
    for _ in range(3):
        watched.standing.at("acme")
        watched.looks(TO_END - 1)
        watched.standing.at("")
        watched.looks(TO_END)
    assert (watched.standing.reason, watched.ended) == (None, 0)


def test_one_that_has_gone_on_after_all_is_well_again(watched: Watched) -> None:
    watched.standing.at("acme")
    watched.looks(TO_BE_NAMED + 1)
    watched.standing.at("globex")
    watched.looks(1)
    assert watched.standing.reason is None
