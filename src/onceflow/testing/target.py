"""A service that tools change, in tests: it keeps what was done, once per idempotency key, and cannot forget."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from onceflow.testing.script import ScriptError


class Effect(NamedTuple):
    """One thing that was done to the world."""

    operation: str
    subject: str
    key: str  # "": it was asked for without one
    answer: Any


class Target:
    """See above. A tool under test calls `do` where it would call the real service."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.asked: list[tuple[str, str]] = []  # operation and key of each request, done or known
        self.reached = 0  # how often it was asked, or asked for what it knows
        self._lost = 0

    def lose_next_answer(self) -> None:
        """The next request is done, and its answer is lost: it raises TimeoutError."""
        self._lost += 1

    def answer_again(self) -> None:
        """No answer is lost any more."""
        self._lost = 0

    def do(self, operation: str, subject: str, key: str = "", make: Callable[[], Any] | None = None) -> Any:
        """Do it, unless a request with this key has been done; return its answer (`make`s, or a number).

        A key is for one request: what else comes with it would be lost at a real service, and raises ScriptError.
        """
        self.asked.append((operation, key))
        self.reached += 1
        known = next((effect for effect in self.effects if key and effect.key == key), None)
        if known is not None and (known.operation, known.subject) != (operation, subject):
            raise ScriptError(
                f"this key was used for {known.operation} {known.subject}, so {operation} {subject} would not be done: "
                f"derive one per request, as call.key + ':{operation}'\n\nEffects:\n{listed(self.effects, ())}"
            )
        if known is None:
            answer = f"{operation}-{len(self.effects) + 1}" if make is None else make()
            known = Effect(operation, subject, key, answer)
            self.effects.append(known)
        if self._lost:
            self._lost -= 1
            raise TimeoutError("the answer was lost")
        return known.answer

    def find(self, operation: str, subject: str) -> Effect | None:
        """What was done to a subject."""
        self.reached += 1
        return next((e for e in self.effects if (e.operation, e.subject) == (operation, subject)), None)

    def forget(self) -> None:
        """Begin with nothing done."""
        self.__init__()  # type: ignore[misc]


def listed(effects: Iterable[Effect], wrong: Iterable[int]) -> str:
    """Effects, a line each, some of them marked."""
    marked = set(wrong)
    return "\n".join(
        f"{'→' if n in marked else ' '} {n + 1}. {e.operation} {e.subject} key {e.key[:6] or '-'} -> {e.answer!r}"
        for n, e in enumerate(effects)
    )
