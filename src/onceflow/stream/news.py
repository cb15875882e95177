"""What the grants tell the worker, and in which order it may act on it."""

from collections.abc import Sequence
from typing import NamedTuple

from onceflow.agents.journal import OpenRun, Unreadable
from onceflow.stream.content import Grant, Input

KeptUntil = tuple[str, bytes, int]  # tenant, Kafka key (or what those of a run begin with), until when (ms)


class Ready(NamedTuple):
    """News for the worker: a grant is settled; go on with these runs, and read these inputs (the inbox is assigned)."""

    grant: Grant
    inputs: list[Input]
    runs: list[OpenRun]
    kept: list[KeptUntil]  # signals, calls of scope `tenant`, failed runs
    unreadable: Sequence[Unreadable] = ()


class Added(NamedTuple):
    """News for the worker: an input of a grant that is settled already. One that was removed may be back."""

    input: Input

    @property
    def grant(self) -> Grant:
        return self.input.grant


class Removed(NamedTuple):
    """News for the worker: this input's topic is not listed, or is another one of the same name now."""

    input: Input

    @property
    def grant(self) -> Grant:
        return self.input.grant


News = Ready | Added | Removed


def news_follow(earlier: News, later: News) -> bool:
    """Whether `later` must wait for `earlier`: nothing is read of a grant before its runs go on."""
    if earlier.grant is not later.grant:
        return False
    if isinstance(earlier, Ready) or isinstance(later, Ready):
        return True
    return (earlier.input.topic, earlier.input.partition) == (later.input.topic, later.input.partition)
