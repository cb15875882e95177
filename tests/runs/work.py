"""The agent of the schedules: it does what its event lists, with tools of every effect, scope and policy."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from onceflow.agents.agent import Agent, agent
from onceflow.agents.call import Call, NotDone, RetryPolicy
from onceflow.agents.run import Run
from onceflow.agents.tool import Tool, tool
from onceflow.errors import CallFailed, Failed, OutcomeUnknown, RetryLater
from onceflow.event import Event, InvalidData

TIMEOUT_S = 5.0
TTL_S = 3_600.0
UNFIT = "unfit"  # what no completion can hold
_OPTIONS: dict[str, Any] = {
    "timeout": TIMEOUT_S,
    "retry": RetryPolicy(attempts=3, first=1, longest=30),
    "ttl": TTL_S,
}


def _tool(
    name: str, effect: str, *, undo: bool = False, scope: str = "run", **options: Any
) -> Tool[Any, Any]:
    async def asked(call: Call, what: str) -> Any: ...

    options = {**_OPTIONS, **options}
    if effect != "keyed":
        del options["ttl"]
    if effect == "blind":
        del options["retry"]
        if scope == "tenant":
            options["ttl"] = _OPTIONS["ttl"]
    made: Any = tool(effect=effect, name=name, scope=scope, **options)(asked)
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

find = _tool("find", "keyed", undo=True, scope="tenant", key_fields=("what",), on_unknown="reconcile")
post = _tool("post", "blind", undo=True, scope="tenant", key_fields=("what",), on_unknown="reconcile")
ring = _tool("ring", "blind", undo=True, scope="tenant", key_fields=("what",), on_unknown="compensate")
cast = _tool("cast", "blind", undo=True, scope="tenant", key_fields=("what",), on_unknown="park")
poke = _tool("poke", "blind", scope="tenant", key_fields=("what",), on_unknown="fail")

SHARED = {each.name for each in (mail, text, find, post, ring, cast, poke)}
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


async def _maybe(run: Run, place: str) -> Any:
    """Whether a letter is written is what a model says, and it says something else each time."""
    if await run.call(check, place) == "ok":
        return await run.call(mail, customer(run.event.id))
    return None


async def _at_once(run: Run, place: str) -> Any:
    """A shared call twice, and a wait beside it."""
    whom = customer(run.event.id)
    return await run.gather(run.call(mail, whom), run.sleep(15), run.call(mail, whom), run.call(hold, place))


async def _waits(run: Run, place: str) -> Any:
    found = await run.wait_for("news", run.event.id[-1], until=("done",))
    return f"news#{found.event_id}"


async def _hurries(run: Run, place: str) -> Any:
    await run.wait_for("other", run.event.id, timeout=20, on_timeout=think)


async def _checks(run: Run, place: str) -> None:
    if await run.call(check, place) != "ok":
        raise Failed("refused")


async def _later(run: Run, place: str) -> None:
    if await run.call(steady, place) != "ok":
        raise RetryLater(after=40)


async def _clock(run: Run, place: str) -> Any:
    """What a replay must see again."""
    drawn = (run.now(), run.random().random(), run.uuid(), run.flag("asked", place))
    return await run.call(pay, " ".join(map(str, drawn)))


async def _polls(run: Run, place: str) -> None:
    await run.wait_for(
        "other", run.event.id, poll=check, every=10, until=("ok",), timeout=25, on_timeout=think
    )


async def _expires(run: Run, place: str) -> None:
    await run.wait_for("news", run.event.id[-1], until=("done",), timeout=30)


async def _tidies(run: Run, place: str) -> Any:
    """What it does in its `finally` it does also when it fails."""
    held = await run.call(hold, f"{place}a")
    try:
        await _checks(run, place)
    finally:
        sealed = await run.call(seal, f"{place}b")
    return [held, sealed]


async def _unfit(run: Run, place: str) -> str:
    return UNFIT


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
    "find": lambda run, place: run.call(find, customer(run.event.id)),
    "post": lambda run, place: run.call(post, customer(run.event.id)),
    "ring": lambda run, place: _caught(run, ring, customer(run.event.id)),
    "cast": lambda run, place: run.call(cast, customer(run.event.id)),
    "poke": lambda run, place: _caught(run, poke, customer(run.event.id)),
    "maybe": _maybe,
    "at once": _at_once,
    "both": _both,
    "nap": lambda run, place: run.sleep(15),
    "news": _waits,
    "hurry": _hurries,
    "clock": _clock,
    "poll": _polls,
    "later": _later,
    "tidy": _tidies,
    "expire": _expires,
    "unfit": _unfit,
    "check": _checks,
    "stumble": _stumbles,
}


FAULTS = ("asks", "refuses")
DEPLOYED = SimpleNamespace(
    fault=""
)  # what agents are deployed with: they ask for another call, or take no event
AGAIN = RetryPolicy(attempts=3, first=1)


async def _does(run: Run, event: Event[list[str]]) -> list[Any]:
    """What its event lists, one after another."""
    if DEPLOYED.fault == "asks" and run._machine.segments and "0" in run._machine.journal:
        await run.call(pay, "something else")
    return [await STEPS[step](run, str(number)) for number, step in enumerate(event.data)]


works = agent("works", on="work", retry=AGAIN)(_does)
follows = agent("follows", on="work.in-order", order_by="source", retry=AGAIN)(_does)
hurries = agent("hurries", on="work.soon", deadline=60, retry=AGAIN)(_does)
both = agent("both", on="work.soon.in-order", order_by="source", deadline=120)(_does)


def _as_deployed(of: Agent[Any, Any]) -> Agent[Any, Any]:
    def decode(data: bytes) -> Any:
        if DEPLOYED.fault == "refuses":
            raise InvalidData("its agent takes other data now")
        return of.decode(data)

    return replace(of, decode=decode)


AGENTS = {of: _as_deployed(each) for each in (works, follows, hurries, both) for of in each.on}
