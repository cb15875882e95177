"""What the requests that the world outside has noted come to: what was done, done again, and done twice."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks import outside


class Request(NamedTuple):
    """What a target was asked to change; `key`: "" if it was given none."""

    run: str
    name: str
    key: str

    @property
    def step(self) -> tuple[str, str]:
        """The step that asks."""
        return self.run, self.name


def requests(file: Path) -> list[Request]:
    """All requests to change something, in order."""
    return [Request(run, name, key.strip("-")) for run, name, key in words(file, "effect")]


def words(file: Path, kind: str) -> list[list[str]]:
    """What is noted of the requests of one kind."""
    return [line[1:] for line in outside.noted(file) if line[0] == kind]


def again(before: Iterable[Request], after: Iterable[Request]) -> list[Request]:
    """The requests after a kill for what had happened before it."""
    happened = {request.step for request in before}
    return [request for request in after if request.step in happened]


def twice(all_requests: Iterable[Request]) -> int:
    """How often something was done that had been done; what has a key is done once by key."""
    done: dict[tuple[str, str], list[str]] = {}
    for request in all_requests:
        keys = done.setdefault(request.step, [])
        if not request.key or request.key not in keys:
            keys.append(request.key)
    return sum(len(keys) - 1 for keys in done.values())
