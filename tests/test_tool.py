"""Tools: what is refused when their module is imported, how arguments are bound and results stored."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest

from onceflow.agents.call import FROM_RUN, Call, RetryPolicy
from onceflow.agents.tool import tool
from onceflow.errors import ConfigError


def declare(function: Callable[..., Any], **options: Any) -> Any:
    """`@tool(**options)` on the function, whatever types say."""
    decorator: Any = tool
    return decorator(**options)(function)


def plain(x: int, y: int = 2) -> int:
    return x + y


async def fetch(call: Call, url: str) -> str:
    return f"{call.tenant} {url}"


class Unstorable: ...


# --- Declaring ---


def test_a_tool_knows_what_its_declaration_says() -> None:
    named = declare(fetch, effect="read", name="http.get", version=3, timeout=timedelta(minutes=1))
    assert (named.name, named.version, named.effect, named.timeout_s) == ("http.get", 3, "read", 60.0)
    assert (named.takes_call, named.is_async, str(named.signature)) == (True, True, "(url: str) -> str")
    unnamed = declare(plain, effect="pure")
    assert (unnamed.name, unnamed.version, unnamed.takes_call, unnamed.is_async) == ("plain", 1, False, False)


def test_only_a_pure_tool_without_call_and_tenant_can_be_called_directly_in_a_run() -> None:
    def with_call(call: Call) -> int:
        return call.attempt

    def with_tenant(tenant: str = FROM_RUN) -> str:
        return tenant

    assert declare(plain, effect="pure").direct is plain
    assert declare(plain, effect="read").direct is None
    assert declare(with_call, effect="pure").direct is None
    assert declare(with_tenant, effect="pure", tenant_arg="tenant").direct is None


def test_outside_a_run_a_tool_is_its_plain_function() -> None:
    call = Call("acme", "run", "key", 1, {})
    assert declare(plain, effect="pure")(1, y=3) == 4
    assert asyncio.run(declare(fetch, effect="read")(call, "/a")) == "acme /a"


def test_annotations_may_be_text_that_names_local_classes() -> None:
    class Price(msgspec.Struct):
        cents: int

    def price(request: "Call", sku: "str") -> "Price | None":
        return Price(len(sku)) if request.attempt else None

    declared = declare_in_place = tool(effect="read")(price)
    assert declared.takes_call
    assert declare_in_place.decode_result(declared.encode_result(Price(7))) == Price(7)


def generator(x: int) -> Iterator[int]:
    yield x


async def keyed(call: Call, order_id: str, note: str = "") -> None: ...


async def unannotated_call(call, url):  # type: ignore[no-untyped-def]
    return url


def hidden(x: "NotImported") -> int:  # type: ignore[name-defined]  # noqa: F821 (that is the point)
    return 1


class Shop:
    async def offer(self, sku: str) -> int: ...  # type: ignore[empty-body]
    async def order(self, call: Call, sku: str) -> int: ...  # type: ignore[empty-body]


WRONG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (plain, {}, "must say its effect"),
    (plain, {"effect": "write"}, "one of 'pure', 'read', 'keyed', 'blind'"),
    (plain, {"effect": "read", "scope": "world"}, "one of 'run', 'tenant'"),
    (plain, {"effect": "read", "on_unknown": "shrug"}, "one of 'park'"),
    (plain, {"effect": "read", "version": 0}, "version=0; write a whole number"),
    (plain, {"effect": "read", "version": "2"}, "version='2'; write a whole number"),
    (plain, {"effect": "read", "timeout": 0}, "timeout=0; write a timedelta"),
    (plain, {"effect": "read", "timeout": timedelta(seconds=-1)}, "write a timedelta"),
    (plain, {"effect": "read", "ttl": float("nan")}, "ttl=nan; write a timedelta"),
    (plain, {"effect": "read", "retry": 3}, "tool plain: retry=3; write RetryPolicy(attempts=3)"),
    (plain, {"effect": "read", "retry": RetryPolicy}, "write RetryPolicy(attempts=3)"),
    (plain, {"effect": "read", "name": "a b"}, "write name="),
    (lambda x: x, {"effect": "pure"}, "a lambda has no name; write name=…, or a `def`"),
    (partial(plain, 1), {"effect": "pure"}, "functools.partial(<function plain"),
    (Unstorable(), {"effect": "pure"}, "is not a function; decorate a `def`"),
    (Shop.offer, {"effect": "read"}, "tool offer: a method is called with an object"),
    (Shop.order, {"effect": "keyed"}, "no methods, move it out of the class"),
    (plain, {"effect": "read", "version": True}, "version=True; write a whole number"),
    (plain, {"effect": "read", "retries": 3}, "unexpected keyword argument 'retries'; write @tool("),
    (int, {"effect": "pure"}, "decorate a `def`"),
    (fetch, {"effect": "pure"}, "nothing to await"),
    (generator, {"effect": "read"}, "return a list"),
    (hidden, {"effect": "read"}, "not under TYPE_CHECKING"),
    (lambda *xs: xs, {"effect": "pure", "name": "n"}, "name each parameter"),
    (lambda **xs: xs, {"effect": "pure", "name": "n"}, "name each parameter"),
    (lambda xs=[]: xs, {"effect": "pure", "name": "n"}, "write None or a tuple"),
    (lambda *, xs={}: xs, {"effect": "read", "name": "n"}, "write None or a tuple"),
    (lambda x, /: x, {"effect": "pure", "name": "n"}, "drop `/`"),
    (plain, {"effect": "read", "tenant_arg": "tenant"}, "is no parameter of"),
    (plain, {"effect": "read", "tenant_arg": "y"}, "`y: str = FROM_RUN`"),
    (lambda t=FROM_RUN: t, {"effect": "read", "name": "n"}, "tenant_arg='t'"),
    (plain, {"effect": "read", "key_fields": ("x",)}, "are for keyed tools"),
    (
        plain,
        {"effect": "read", "on_unknown": "fail"},
        "leave out on_unknown, it is for keyed and blind tools",
    ),
    (keyed, {"effect": "blind", "retry": RetryPolicy()}, "leave out retry"),
    (keyed, {"effect": "blind", "ttl": 60}, "leave out ttl, it is for keyed tools"),
    (keyed, {"effect": "blind", "free_fields": ("note",)}, "leave out free_fields, it is for keyed tools"),
    (plain, {"effect": "keyed"}, "needs `call: Call` as its first parameter"),
    (plain, {"effect": "blind"}, "needs `call: Call` as its first parameter"),
    (keyed, {"effect": "keyed", "key_fields": ("order",)}, "key_fields must be a tuple of parameters"),
    (keyed, {"effect": "keyed", "key_fields": ()}, "key_fields=(); name a parameter of (order_id: str, note"),
    (
        keyed,
        {"effect": "keyed", "scope": "tenant", "key_fields": ("note",), "free_fields": ("note",)},
        "['note'] in key_fields and in free_fields",
    ),
    (keyed, {"effect": "keyed", "key_fields": "note"}, "key_fields must be a tuple of parameters"),
    (keyed, {"effect": "keyed", "free_fields": ("text",)}, "free_fields must be a tuple of parameters"),
]


@pytest.mark.parametrize(("function", "options", "remedy"), WRONG)
def test_what_is_wrong_is_refused_at_import_with_a_remedy(
    function: Callable[..., Any], options: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        declare(function, **options)


def test_call_must_come_first_and_by_position() -> None:
    def last(url: str, call: Call) -> str:
        return url + call.key

    def by_name(*, call: Call) -> str:
        return call.key

    with pytest.raises(ConfigError, match="must be the first parameter"):
        declare(last, effect="read")
    with pytest.raises(ConfigError, match="move it before"):
        declare(by_name, effect="read")
    assert declare(unannotated_call, effect="read").takes_call


@dataclass
class Holder:
    held: list[Unstorable]


@pytest.mark.parametrize(
    "returned",
    [Unstorable, re.Pattern[str], Unstorable | int, Awaitable[int], list[Unstorable], dict[str, Holder]],
)
def test_a_result_that_cannot_be_stored_is_refused_unless_it_never_will_be(returned: Any) -> None:
    def made() -> Any: ...

    made.__annotations__["return"] = returned
    with pytest.raises(ConfigError, match="cannot be stored"):
        declare(made, effect="read")
    declare(made, effect="pure")


def test_the_decorator_without_its_brackets_is_refused() -> None:
    decorator: Any = tool
    with pytest.raises(ConfigError, match=re.escape('write @tool(effect="read")')):
        decorator(plain)


# --- Tools that change something outside ---


async def undo(call: Call, result: None) -> None: ...


async def find(call: Call) -> None: ...


def test_what_undoes_a_call_and_what_finds_out_about_it_are_declared_below_the_tool() -> None:
    changes = declare(keyed, effect="keyed")
    assert (changes.compensation, changes.reconciliation) == (None, None)
    assert changes.compensate(undo) is undo
    assert changes.reconcile(find) is find
    assert (changes.compensation, changes.reconciliation) == (undo, find)


def test_they_are_declared_once_and_only_for_what_changes_something() -> None:
    changes = declare(keyed, effect="keyed")
    changes.compensate(undo)
    with pytest.raises(ConfigError, match="declared already"):
        changes.compensate(undo)
    with pytest.raises(ConfigError, match=re.escape("write `async def undo(call)`")):
        changes.reconcile(undo)
    with pytest.raises(ConfigError, match="changes nothing"):
        declare(fetch, effect="read").compensate(undo)


async def swapped(result: None, call: Call) -> None: ...
async def with_more(call: Call, result: None, more: int) -> None: ...
async def with_more_by_name(call: Call, result: None, *, more: int) -> None: ...
async def other_names(request: Call, made: None, *, more: int = 1) -> None: ...


async def asynchronous_generator(call: Call, result: None) -> Any:
    yield


@pytest.mark.parametrize(
    "wrong", [find, swapped, with_more, with_more_by_name, asynchronous_generator, Shop.order, partial(undo)]
)
def test_what_undoes_a_call_takes_the_call_and_its_result_and_runs_when_it_is_called(wrong: Any) -> None:
    changes = declare(keyed, effect="keyed")
    with pytest.raises(ConfigError, match=r"write `async def \w+\(call, result\)`"):
        changes.compensate(wrong)
    changes.compensate(other_names)


def test_it_is_declared_without_brackets() -> None:
    with pytest.raises(ConfigError, match="write it without brackets"):
        declare(keyed, effect="keyed").compensate()


@pytest.mark.parametrize("policy", ["reconcile", "compensate"])
def test_a_policy_for_unknown_outcomes_needs_its_function(policy: Any) -> None:
    changes = declare(keyed, effect="keyed", on_unknown=policy)
    with pytest.raises(ConfigError, match=re.escape(f"@keyed.{policy}")):
        changes.check()
    getattr(changes, policy)(undo if policy == "compensate" else find)
    changes.check()


@pytest.mark.parametrize("effect", ["keyed", "blind"])
def test_a_tool_that_changes_something_is_not_called_outside_a_run(effect: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape("call it with run.call")):
        declare(keyed, effect=effect)(None, order_id="1")


def test_a_key_tells_tenants_runs_places_arguments_and_versions_apart() -> None:
    one = declare(keyed, effect="keyed", free_fields=("note",))
    other = declare(keyed, effect="keyed", free_fields=("note",), version=2)
    usual = ("acme", "ab", one.fingerprint({"order_id": "1", "note": "x"}), "0")
    key = one.key(*usual)
    assert re.fullmatch("[0-9a-f]{32}", key)
    assert one.key("acme", "ab", one.fingerprint({"order_id": "1", "note": "other words"}), "0") == key
    assert key not in {
        one.key("b", *usual[1:]),
        one.key("acme", "cd", *usual[2:]),
        one.key(*usual[:3], "1"),
        one.key("acme", "ab", one.fingerprint({"order_id": "2", "note": "x"}), "0"),
        other.key(*usual),
    }


def test_a_call_hands_its_key_on() -> None:
    call = Call("acme", "ab", "k", 1, {})
    assert call.headers == {"Idempotency-Key": "k"}
    assert call.meta == {"onceflow/idempotency-key": "k"}


# --- Binding ---


@pytest.mark.parametrize(
    ("args", "kwargs", "bound"),
    [
        ((1,), {}, {"x": 1, "y": 2, "z": 3}),
        ((1, 5), {"z": 6}, {"x": 1, "y": 5, "z": 6}),
        ((), {"z": 6, "x": 1}, {"x": 1, "y": 2, "z": 6}),
        ((), {}, "missing a required argument: 'x'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"x": 1}, "multiple values for argument 'x'"),
        ((1,), {"w": 1}, "unexpected keyword argument 'w'"),
        ((), {"y": 1, "w": 1}, "missing a required argument: 'x'"),
    ],
)
def test_arguments_are_bound_as_python_would_in_the_order_of_the_signature(
    args: tuple[Any, ...], kwargs: dict[str, Any], bound: Any
) -> None:
    def three(call: Call, x: int, y: int = 2, *, z: int = 3) -> int:
        return x + y + z

    bind = declare(three, effect="read").bind
    if isinstance(bound, str):
        with pytest.raises(TypeError, match=f"tool three: .*{bound}"):
            bind(args, kwargs, "acme")
    else:
        assert list(bind(args, kwargs, "acme").items()) == list(bound.items())


def test_the_run_fills_in_its_tenant_and_no_caller_can() -> None:
    def balance(account: str, tenant: str = FROM_RUN) -> str:
        return tenant + account

    bind = declare(balance, effect="read", tenant_arg="tenant").bind
    assert bind(("a",), {}, "acme") == {"account": "a", "tenant": "acme"}
    for args, kwargs in ((("a", "globex"), {}), (("a",), {"tenant": "globex"})):
        with pytest.raises(TypeError, match="leave 'tenant' out"):
            bind(args, kwargs, "acme")


# --- Results ---


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    day: date
    ratio: float = pydantic.Field(alias="share")

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def percent(self) -> float:
        return self.ratio * 100


class Struct(msgspec.Struct):
    amount: Decimal
    models: list[Model]


class Picky(pydantic.BaseModel):
    name: str

    @pydantic.field_validator("name")
    @classmethod
    def known(cls, name: str) -> str:
        return name if name == "fine" else {}[name]

    @pydantic.field_serializer("name")
    def plain(self, name: str) -> str:
        raise KeyError(name)


class Checked(msgspec.Struct):
    name: str

    def __post_init__(self) -> None:
        if self.name != "fine":
            raise KeyError(self.name)


@dataclass
class Point:
    x: int
    y: tuple[int, ...]


class Row(TypedDict):
    at: datetime


MODEL = Model(day=date(2024, 2, 29), share=0.5)


@pytest.mark.parametrize(
    ("returned", "value", "back"),
    [
        (None, None, None),
        (Any, {"a": [1, 2.5, "é", b"\x00", None]}, ...),
        (Any, Point(1, (2,)), {"x": 1, "y": [2]}),
        (Any, MODEL, {"day": "2024-02-29", "ratio": 0.5}),
        (Point, Point(1, (2, 3)), ...),
        (Row, {"at": datetime(2024, 1, 1, tzinfo=UTC)}, ...),
        (Struct, Struct(Decimal("1.10"), [MODEL]), ...),
        (Model, MODEL, ...),
        (Model | None, None, ...),
        (dict[str, list[Model]], {"a": [MODEL]}, ...),
        (dict[str, object], {"a": [1, "b"]}, ...),
        (set[int], {1, 2}, ...),
    ],
)
def test_a_result_comes_back_as_its_annotation_says(returned: Any, value: Any, back: Any) -> None:
    async def result() -> Any: ...

    result.__annotations__["return"] = returned
    declared = declare(result, effect="read")
    assert declared.decode_result(declared.encode_result(value)) == (value if back is ... else back)


@pytest.mark.parametrize(
    "value",
    [Unstorable(), 2**70, "\ud800", iter(()), [Unstorable()], Unstorable, Picky(name="fine")],
)
def test_a_result_that_cannot_be_stored_names_its_tool_and_type(value: Any) -> None:
    def result() -> Any: ...

    with pytest.raises(TypeError, match=f"tool result: its {type(value).__name__} result cannot be stored"):
        declare(result, effect="read").encode_result(value)


@pytest.mark.parametrize(
    ("returned", "value"),
    [
        (int, "secret"),
        (Model, {"day": "secret", "ratio": 1.0}),
        (Model, "secret"),
        (Picky, {"name": "secret"}),
        (Checked, {"name": "secret"}),
    ],
)
def test_a_result_of_another_type_is_refused_without_its_value(returned: Any, value: Any) -> None:
    def result() -> Any: ...

    result.__annotations__["return"] = returned
    declared = declare(result, effect="read")
    with pytest.raises(TypeError, match=f"tool result: .* not the {returned.__name__}") as refused:
        declared.decode_result(declared.encode_result(value))
    assert "secret" not in str(refused.value)


# --- Retrying ---


def test_delays_double_up_to_the_longest_and_are_spread_over_all_of_it() -> None:
    policy = RetryPolicy(first=0.5, longest=timedelta(seconds=3))
    assert [policy.delay_s(attempt, 0.5) for attempt in range(1, 6)] == [0.25, 0.5, 1.0, 1.5, 1.5]
    assert policy.delay_s(1, 0.0) == 0.0
    assert RetryPolicy().delay_s(100_000, 0.5) == 30.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": "3"},
        {"first": -1},
        {"first": "1s"},
        {"factor": 0.5},
        {"factor": "2"},
        {"factor": None},
        {"factor": float("inf")},
        {"longest": float("inf")},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="RetryPolicy: "):
        RetryPolicy(**wrong)
