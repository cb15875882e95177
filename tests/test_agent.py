"""Agents: what is refused when their module is imported, and which of them takes which event."""

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from onceflow.agents.agent import Agent, agent, routes
from onceflow.errors import ConfigError
from onceflow.event import Event, Incoming, InvalidData


def declare(name: Any = "reconcile", function: Any = None, **options: Any) -> Agent[Any, Any]:
    """`@agent(name, **options)` on the function, whatever types say."""
    decorator: Any = agent
    declared: Agent[Any, Any] = decorator(name, **{"on": "a", **options})(function or takes_anything)
    return declared


class Invoice(msgspec.Struct):
    number: str


async def takes_anything(run: Any, event: Event) -> Any:
    return event.data


async def takes_invoices(run: Any, event: Event[Invoice]) -> str:
    return event.data.number


# --- Declaring ---


def test_an_agent_knows_what_its_declaration_says() -> None:
    declared = declare("reconcile", takes_invoices, on=["a", "b", "a"], version=3)
    assert (declared.name, declared.on, declared.version) == ("reconcile", ("a", "b"), 3)
    assert (declared.data_type, declared.deadline_s) == (Invoice, None)
    assert declared.decode(b'{"number":"1"}') == Invoice("1")
    with pytest.raises(InvalidData):
        declared.decode(b'{"number":1}')


def test_data_of_a_plain_event_is_json() -> None:
    async def bare(run, event):  # type: ignore[no-untyped-def]
        return None

    for function in (takes_anything, bare):
        declared = declare(function=function)
        assert declared.data_type is Any
        assert declared.decode(b'{"a":[1]}') == {"a": [1]}


def test_outside_a_run_an_agent_is_its_plain_function() -> None:
    incoming = Incoming("acme", "erp", "1", "a", None, b"")
    event = Event(incoming, "key", Invoice("7"))
    assert asyncio.run(declare(function=takes_invoices)(None, event)) == "7"  # type: ignore[arg-type]


def test_annotations_may_be_text_that_names_local_classes() -> None:
    class Order(msgspec.Struct):
        sku: str

    @agent("capture-order", on="order.placed")
    async def capture(run: "Any", event: "Event[Order]") -> "None": ...

    assert capture.data_type is Order


class Opaque: ...


async def one(run: Any) -> None: ...
async def three(run: Any, event: Event, more: int = 1) -> None: ...
async def keyword_only(run: Any, *, event: Event) -> None: ...
async def variadic(run: Any, *events: Event) -> None: ...
async def of_dict(run: Any, event: dict[str, Any]) -> None: ...
async def of_object(run: Any, event: Event[Opaque]) -> None: ...
async def hidden(run: Any, event: "Event[NotImported]") -> None: ...  # type: ignore[name-defined]  # noqa: F821
def not_async(run: Any, event: Event) -> None: ...


async def generates(run: Any, event: Event) -> Any:
    yield


class Desk:
    async def handle(self, run: Any, event: Event) -> None: ...


@pytest.mark.parametrize(
    ("name", "function", "options", "remedy"),
    [
        ("Reconcile", None, {}, "lower-case letters"),
        ("a_b", None, {}, "lower-case letters"),
        ("a" * 64, None, {}, "up to 63"),
        (takes_anything, None, {}, 'write @agent("my-agent", on="some.type")'),
        ("a", None, {"version": 0}, "version=0; write a whole number"),
        ("a", None, {"on": []}, "write an event type"),
        ("a", None, {"on": ""}, "write an event type"),
        ("a", None, {"on": [1]}, "write an event type"),
        ("a", None, {"on": None}, "write an event type"),
        ("a", None, {"on": "invoice.*"}, "list the types one by one"),
        ("a", None, {"on": "paid\n"}, 'no event has such a type (attribute "type" must hold no control'),
        (
            "a",
            None,
            {"on": ["paid", "x" * 513]},
            'no event has such a type (attribute "type" must be 1 to 512',
        ),
        ("a", None, {"version": True}, "version=True; write a whole number"),
        ("a", not_async, {}, "write `async def`"),
        ("a", generates, {}, "a generator has no single result"),
        ("a", Desk.handle, {}, "no methods, move it out of the class"),
        ("a", partial(three, more=2), {}, "is not a function; decorate an `async def`"),
        ("a", one, {}, "exactly `(run: Run, event: Event)`"),
        ("a", three, {}, "exactly `(run: Run, event: Event)`"),
        ("a", keyword_only, {}, "exactly `(run: Run, event: Event)`"),
        ("a", variadic, {}, "exactly `(run: Run, event: Event)`"),
        ("a", of_dict, {}, "`event: Event[S]`"),
        ("a", of_object, {}, "agent a: event data cannot be decoded"),
        ("a", hidden, {}, "not under TYPE_CHECKING"),
        ("a", None, {"order_by": "account"}, "order_by='account'; write where"),
        ("a", None, {"order_by": "data..x"}, "write where"),
        ("a", None, {"order_by": 7}, "write where"),
        ("a", None, {"retry": 3}, "write RetryPolicy(attempts=3)"),
    ],
)
def test_what_is_wrong_is_refused_at_import_with_a_remedy(
    name: Any, function: Callable[..., Any] | None, options: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        declare(name, function, **options)


def test_an_agent_says_its_name_and_what_it_takes() -> None:
    decorator: Any = agent
    with pytest.raises(
        ConfigError, match=r"missing a required argument: 'on'; write @agent\(\"my-agent\", on="
    ):
        decorator(takes_anything)
    with pytest.raises(ConfigError, match="missing a required argument: 'on'"):
        decorator("a")


@pytest.mark.parametrize(
    ("order_by", "value"),
    [
        ("data.account", "7"),
        ("/data/account", "7"),
        ("data.lines.0.sku", '"x"'),
        ("/data/a~1b", "true"),
        ("source", '"erp"'),
        ("data.nothing", None),
        ("data.account.deeper", None),
        ("data.lines.9", None),
    ],
)
def test_what_runs_are_ordered_by_is_a_place_in_the_event(order_by: str, value: str | None) -> None:
    incoming = Incoming("acme", "erp", "1", "t", None, b'{"account":7,"lines":[{"sku":"x"}],"a/b":true}')
    line = f'["a",{value}]' if value is not None else ""
    assert declare("a", None, order_by=order_by).line_of(incoming) == line.encode()


def test_an_event_that_cannot_be_read_has_no_order() -> None:
    incoming = Incoming("acme", "erp", "1", "t", None, b"1e400")
    assert declare("a", None, order_by="data.account").line_of(incoming) == b""


# --- Routing ---


def test_an_event_goes_to_the_agent_of_its_type_and_otherwise_to_the_one_for_the_rest() -> None:
    invoices, others = declare("invoices", on=["a", "b"]), declare("others", on="*")
    table = routes([others, invoices])
    assert [table.find(each) for each in ("a", "b", "c", "*")] == [invoices, invoices, others, others]
    assert routes([invoices]).find("c") is None


def test_the_highest_version_alone_takes_new_events_and_the_others_are_found_by_open_runs() -> None:
    """Version 1 also took `b`; version 2 gave it up, so another agent may take it."""
    old, new = declare("x", on=["a", "b"]), declare("x", on="a", version=2)
    heir = declare("y", on="b")
    for agents in ([old, new, heir], [heir, new, old]):
        table = routes(agents)
        assert (table.find("a"), table.find("b")) == (new, heir)
        assert (table.pinned("x", 1), table.pinned("x", 2), table.pinned("x", 3)) == (old, new, None)


@pytest.mark.parametrize(
    ("agents", "remedy"),
    [
        (
            [("x", "a", 1), ("y", ["b", "a"], 1)],
            "agents x and y both take 'a'; a flow has one agent per type",
        ),
        ([("x", "*", 1), ("y", "*", 1)], "agents x and y both take '*'"),
        (
            [("x", "a", 1), ("x", "b", 1)],
            "agent x version 1 is listed twice; give the newer a higher version",
        ),
    ],
)
def test_two_claims_to_one_type_or_version_are_refused(agents: list[Any], remedy: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        routes([declare(name, on=on, version=version) for name, on, version in agents])


def test_what_is_no_agent_is_refused() -> None:
    listed: Any = [takes_anything]
    with pytest.raises(ConfigError, match="decorate the function with @agent"):
        routes(listed)
