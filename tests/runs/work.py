"""The agent of the schedules: it does what its event lists, with tools of every effect, scope and policy."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from onceflow.agents.agent import agent
from onceflow.agents.call import Call, NotDone, RetryPolicy
from onceflow.agents.run import Run
from onceflow.agents.tool import Tool, tool
from onceflow.errors import CallFailed, Failed, OutcomeUnknown
from onceflow.event import Event

TIMEOUT_S = 5.0
_OPTIONS: dict[str, Any] = {
    "timeout": TIMEOUT_S,
    "retry": RetryPolicy(attempts=3, first=1, longest=30),
    "ttl": timedelta(days=365),
}


def _tool(name: str, effect: str, *, undo: bool = False, **options: Any) -> Tool[Any, Any]:
    async def asked(call: Call, what: str) -> Any: ...

    options = {**_OPTIONS, **options}
    if effect != "keyed":
        del options["ttl"]
    if effect == "blind":
        del options["retry"]
    made: Any = tool(effect=effect, name=name, **options)(asked)
    if undo:
        made.compensate(_undo)
    if options.get("on_unknown") == "reconcile":
        made.reconcile(_find)
    return made  # type: ignore[no-any-return]


async def _undo(call: Call, result: Any) -> None: ...


async def _find(call: Call) -> Any:
    return NotDone


think = _tool("think", "read")
check = _tool("check", "read")
steady = _tool("steady", "read")
pay = _tool("pay", "keyed", on_unknown="park")
hold = _tool("hold", "keyed", undo=True, on_unknown="park")
fee = _tool("fee", "keyed", undo=True, on_unknown="compensate")
seal = _tool("seal", "keyed", undo=True, on_unknown="reconcile")
push = _tool("push", "blind", on_unknown="park")
dare = _tool("dare", "blind", on_unknown="fail")
seek = _tool("seek", "blind", on_unknown="reconcile")
book = _tool("book", "blind", undo=True, on_unknown="compensate")
mail = _tool("mail", "keyed", undo=True, scope="tenant", key_fields=("what",))
text = _tool("text", "keyed", undo=True, scope="tenant", key_fields=("what",), on_unknown="compensate")

UNDOABLE = {hold.name, fee.name, seal.name, book.name}
UNKNOWN = "unknown"
FAILED = "failed"


async def _planned(run: Run, place: str) -> Any:
    """What is paid is what a model says, on second thought, and it says something else each time."""
    return await run.call(pay, await run.call(think, await run.call(think, place)))


async def _caught(run: Run, of: Tool[Any, Any], what: str) -> Any:
    try:
        return await run.call(of, what)
    except OutcomeUnknown:
        return UNKNOWN
    except CallFailed:
        return FAILED


def customer(event: str) -> str:
    """Whom an event is about: two may be about the same."""
    return str(int(event[-1]) % 2)


async def _both(run: Run, place: str) -> Any:
    return await run.gather(run.call(hold, f"{place}a"), _planned(run, place), run.call(book, f"{place}b"))


async def _waits(run: Run, place: str) -> Any:
    found = await run.wait_for("news", run.event.id[-1], until=("done",))
    return f"news#{found.event_id}"


async def _hurries(run: Run, place: str) -> Any:
    await run.wait_for("other", run.event.id, timeout=20, on_timeout=think)


async def _checks(run: Run, place: str) -> None:
    if await run.call(check, place) != "ok":
        raise Failed("refused")


async def _stumbles(run: Run, place: str) -> None:
    if await run.call(steady, place) != "ok":
        raise ValueError("stumbled")


STEPS: dict[str, Callable[[Run, str], Awaitable[Any]]] = {
    "planned": _planned,
    "hold": lambda run, place: run.call(hold, place),
    "fee": lambda run, place: _caught(run, fee, place),
    "seal": lambda run, place: run.call(seal, place),
    "push": lambda run, place: run.call(push, place),
    "dare": lambda run, place: _caught(run, dare, place),
    "seek": lambda run, place: run.call(seek, place),
    "book": lambda run, place: run.call(book, place),
    "mail": lambda run, place: run.call(mail, customer(run.event.id)),
    "text": lambda run, place: _caught(run, text, customer(run.event.id)),
    "both": _both,
    "nap": lambda run, place: run.sleep(15),
    "news": _waits,
    "hurry": _hurries,
    "check": _checks,
    "stumble": _stumbles,
}


@agent("works", on="work", retry=RetryPolicy(attempts=3, first=1))
async def works(run: Run, event: Event[list[str]]) -> list[Any]:
    """What its event lists, one after another."""
    return [await STEPS[step](run, str(number)) for number, step in enumerate(event.data)]
