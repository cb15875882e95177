"""What an agent awaits while there is no answer, and the awaitables of a gather, which wait side by side."""

from collections.abc import Awaitable, Generator, Iterable
from typing import Generic, TypeVar

import msgspec

from onceflow.agents.tool import Tool

T = TypeVar("T")

SUSPENDED = object()
_SUSPENDED_ONCE = (SUSPENDED,)


class _Suspension:
    """What `run.call` awaits while there is no answer."""

    __slots__ = ()

    def __await__(self) -> Generator[object, None, None]:
        return iter(_SUSPENDED_ONCE)  # type: ignore[return-value]  # any iterator does, and costs half as much


suspension = _Suspension()


class ForeignAwait(Exception):  # noqa: N818
    """An agent awaited something that isn't its run's."""


class Strand(msgspec.Struct, gc=False):
    """Counts the calls of one line of execution, so that places don't depend on which answer came first."""

    prefix: str = ""
    count: int = 0

    def next(self) -> str:
        """The place of the next call."""
        place = f"{self.prefix}{self.count}"
        self.count += 1
        return place


class Branch(Generic[T]):
    """One awaitable of a gather, driven by hand."""

    __slots__ = ("_iterator", "ended", "error", "result", "strand")

    def __init__(self, awaitable: Awaitable[T], strand: Strand) -> None:
        try:
            self._iterator = awaitable.__await__()
        except AttributeError:
            raise TypeError(_no_call(awaitable)) from None
        self.strand = strand
        self.ended = False
        self.result: T | None = None
        self.error: BaseException | None = None

    def step(self) -> None:
        try:
            token = self._iterator.send(None)
        except StopIteration as stop:
            self.result, self.ended = stop.value, True
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 (raised to the agent once its siblings have ended)
            self.error, self.ended = error, True
        else:
            if token is not SUSPENDED:
                self.error, self.ended = ForeignAwait(token), True


def _no_call(given: object) -> str:
    """What to write instead of a run.gather of this."""
    if isinstance(given, Tool):
        return f"run.gather takes calls: write run.call({given.name}, …) instead of {given.name}"
    if isinstance(given, Iterable):
        return "run.gather takes calls one by one: write run.gather(*calls) instead of run.gather(calls)"
    return f"run.gather takes calls, as run.call(…) makes them, and not a {type(given).__name__}"
