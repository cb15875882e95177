"""What a record must be to be an event, and what names it: line by line, then against independent judges."""

import json
import random
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128

from onceflow.errors import ConfigError
from onceflow.event import (
    Event,
    Incoming,
    InvalidData,
    PlainMapping,
    Reason,
    Unusable,
    data_decoder,
    home_slot,
    idempotency_key,
    idempotency_keys,
    read_event,
    reading,
)
from onceflow.event.json_text import too_deep

GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "evt-1",
    "source": "erp/netsuite",
    "type": "invoice.received",
    "tenant": "acme",
    "data": {"x": 1},
}


def structured(without: str = "", **changes: Any) -> bytes:
    members = {name: content for name, content in (GOOD | changes).items() if name != without}
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()


def with_raw(name: str, text: str) -> bytes:
    """The good event with one member more, in front, its JSON text as given."""
    return b'{"%s":%s,' % (name.encode(), text.encode("utf-8", "surrogateescape")) + structured()[1:]


def binary(**changes: bytes | None) -> list[tuple[str, bytes | None]]:
    headers = {name: content.encode() for name, content in GOOD.items() if name != "data"} | changes
    return [(f"ce_{name}", content) for name, content in headers.items()]


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def read(value: bytes | None, headers: Any = None, **options: Any) -> Incoming:
    incoming = read_event(value, headers, **options)
    assert isinstance(incoming, Incoming), incoming
    return incoming


def test_a_structured_event_is_read_as_it_was_sent() -> None:
    value = b' {"specversion":"1.0","id":"evt-1","source":"erp/netsuite","type":"t","tenant":"acme", "data" : {"x": 1 } , "time":"2026-08-01T12:00:00+02:00"}\n'  # noqa: E501 (as sent)
    incoming = read(value)
    assert (incoming.tenant, incoming.source, incoming.id, incoming.type) == (
        "acme",
        "erp/netsuite",
        "evt-1",
        "t",
    )
    assert incoming.time == datetime(2026, 8, 1, 10, tzinfo=UTC)
    assert incoming.data == b'{"x": 1 }'
    assert type(incoming.data) is bytes


ACCEPTED = [
    ("data may be absent", structured(without="data"), b""),
    ("data null is not absent", structured(data=None), b"null"),
    ("data may be any JSON", structured(data="text"), b'"text"'),
    ("a number that no program can take", with_raw("a", "1").replace(b'{"x":1}', b"1e400"), b"1e400"),
    ("an integer beyond 64 bits", structured(data=2**70), str(2**70).encode()),
    ("of doubled data the last", with_raw("data", r'"\u0001"'), b'{"x":1}'),
    ("of a doubled attribute the last", with_raw("id", '"another"'), b'{"x":1}'),
    ("the data may speak of tenants", structured(data={"tenant": "no tenant"}), b'{"tenant":"no tenant"}'),
    ("an attribute that we do not know", with_raw("traceparent", '{"a":[1e400]}'), b'{"x":1}'),
    ("null = unset", with_raw("time", "null"), b'{"x":1}'),
    ("512 bytes", structured(source="é" * 256), b'{"x":1}'),
    ("128 characters", structured(tenant="A" + "-" * 127), b'{"x":1}'),
    ("200 levels", structured(data=json.loads(nested(199))), nested(199).encode()),
    ("brackets in strings are no levels", structured(data='["\\[{' * 300), None),
    ("a wide one is not deep", structured(data=[[{}]] * 1000), None),
]


@pytest.mark.parametrize(
    ("value", "data"), [case[1:] for case in ACCEPTED], ids=[case[0] for case in ACCEPTED]
)
def test_accepted(value: bytes, data: bytes | None) -> None:
    incoming = read(value)
    assert data is None or incoming.data == data
    assert incoming.id == "evt-1"


def test_an_event_is_stored_with_its_data_once() -> None:
    large = structured(data="x" * 10_000)
    assert len(msgspec.msgpack.encode(read(large).stored())) < len(large) + 200
    binary = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"s"), ("ce_type", b"t")]
    for incoming in (
        read(large),
        read(structured(without="data")),
        read(b"7", [*binary, ("ce_tenant", b"acme")]),
    ):
        stored = msgspec.msgpack.decode(msgspec.msgpack.encode(incoming.stored()), type=Incoming)
        assert stored.restored() == incoming


UNDECODABLE: list[tuple[str, bytes | None, Any]] = [
    ("no value", None, None),
    ("an empty value", b"", [("traceparent", b"x")]),
    ("not JSON", b"hello", None),
    ("only blanks", b" \n", None),
    ("cut off", structured()[:-1], None),
    ("trailing text", structured() + b" x", None),
    ("a byte order mark", b"\xef\xbb\xbf" + structured(), None),
    ("NaN", with_raw("a", "NaN"), None),
    ("invalid UTF-8 in an attribute", structured().replace(b"evt", b"\xff"), None),
    ("invalid UTF-8 in the data", structured(data="?").replace(b"?", b"\xc3("), None),
    ("invalid UTF-8 in an unknown attribute", with_raw("a", '"\udcff"'), None),
    ("invalid UTF-8 in an unknown name", with_raw("a", "1").replace(b'"a"', b'"\xff"'), None),
    ("half a surrogate pair", with_raw("a", r'"\ud800"'), None),
    ("201 levels", structured(data=json.loads(nested(200))), None),
    ("201 levels in an unknown attribute", with_raw("a", nested(200)), None),
    ("201 levels behind a backslash", structured(data=["\\", json.loads(nested(200))]), None),
    ("malformed after an invalid attribute", b'{"specversion":1,"id":"', None),
    ("malformed, and no object", b"[1, 2", None),
    ("binary: the value is no JSON", b"hello", binary()),
    ("binary: the value is no JSON and an attribute invalid", b"hello", binary(id=b"")),
    ("binary: invalid UTF-8 in the value", b'"\xff"', binary()),
    ("binary: 201 levels", nested(201).encode(), binary()),
    ("binary: invalid UTF-8 in an attribute", b"1", binary(id=b"\xff")),
    ("binary: invalid UTF-8 in an unknown attribute", b"1", binary(other=b"\xff")),
]
INVALID: list[tuple[str, bytes | None, Any]] = [
    ("no object", b"[]", None),
    ("an empty object", b"{}", None),
    *((f"{name} missing", structured(without=name), None) for name in GOOD if name != "data"),
    *((f"{name} null", structured(**{name: None}), None) for name in GOOD if name != "data"),
    *((f"{name} empty", structured(**{name: ""}), None) for name in GOOD if name != "data"),
    *((f"{name} a number", structured(**{name: 1}), None) for name in GOOD if name != "data"),
    *((f"{name} over its limit", structured(**{name: "a" * 513}), None) for name in ("id", "source", "type")),
    *((f"{name} 514 bytes", structured(**{name: "é" * 257}), None) for name in ("id", "source", "type")),
    *((f"{name}: C0", structured(**{name: "a\nb"}), None) for name in ("id", "source", "type", "tenant")),
    *((f"{name}: DEL", structured(**{name: "a\x7fb"}), None) for name in ("id", "source", "type", "tenant")),
    *((f"{name}: C1", structured(**{name: "a\x85b"}), None) for name in ("id", "source", "type", "tenant")),
    ("another version", structured(specversion="0.3"), None),
    ("tenant of 129 characters", structured(tenant="a" * 129), None),
    ("tenant begins with a dot", structured(tenant=".acme"), None),
    ("tenant with a slash", structured(tenant="acme/x"), None),
    ("tenant ends with a newline", structured(tenant="acme\n"), None),
    ("time without offset", structured(time="2026-08-01T12:00:00"), None),
    ("time is no time", structured(time="yesterday"), None),
    ("time a number", structured(time=1), None),
    ("time before the first day", structured(time="0001-01-01T00:00:00+23:59"), None),
    ("time after the last day", structured(time="9999-12-31T23:59:59-23:59"), None),
    ("data_base64", structured(data_base64="AA=="), None),
    ("a first copy is of another type", with_raw("id", "5"), None),
    ("a first copy is empty", with_raw("type", '""'), None),
    ("a first copy is over its limit", with_raw("source", '"%s"' % ("a" * 513)), None),
    ("a first copy has a control character", with_raw("id", r'"\u0000"'), None),
    ("a first copy is no tenant", with_raw("tenant", '"a b"'), None),
    ("a first copy, its name escaped", with_raw(r"tenan\u0074", '"a b"'), None),
    ("a first copy of time", with_raw("time", '"noon"').replace(b'"id"', b'"time":null,"id"'), None),
    ("a first copy of the version", with_raw("specversion", '"2.0"'), None),
    ("attributes as headers, but no ce_specversion", None, binary()[1:]),
    ("binary: empty", b"1", binary(id=b"")),
    ("binary: null", b"1", binary(id=None)),
    ("binary: another version", b"1", binary(specversion=b"1")),
    ("binary: control character", b"1", binary(source=b"a\tb")),
    ("binary: time", b"1", binary(time=b"noon")),
    ("binary: time after the last day", b"1", binary(time=b"9999-12-31T23:59:59-23:59")),
    ("binary: no tenant", b"1", binary(tenant=b"a b")),
    ("binary: a first copy", b"1", [("ce_id", b""), *binary()]),
    ("binary: data_base64", b"1", binary(data_base64=b"AA==")),
]


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [(*case[1:], Reason.UNDECODABLE) for case in UNDECODABLE]
    + [(*case[1:], Reason.INVALID) for case in INVALID],
    ids=[case[0] for case in UNDECODABLE + INVALID],
)
def test_refused(value: bytes | None, headers: Any, reason: Reason) -> None:
    refused = read_event(value, headers)
    assert isinstance(refused, Unusable)
    assert refused.reason == reason, refused
    assert refused.detail.isprintable()
    assert refused.tenant in ("", "acme")


def test_a_value_with_its_headers_has_a_limit_that_is_looked_at_first() -> None:
    value = structured(data="")
    full = value.replace(b'""', b'"%s"' % (b"a" * (1_000_000 - len(value))))
    assert isinstance(read_event(full, None), Incoming)
    for value, headers in (
        (full + b" ", None),
        (full, [("é", None)]),
        (full, [("", b"1")]),
        (full, [("\udcff", b"1")]),
        (b"x" * 10**6, [("a", b"")]),
    ):
        refused = read_event(value, headers, topic_tenant="acme")
        assert isinstance(refused, Unusable)
        assert (refused.reason, refused.tenant) == (Reason.TOO_LARGE, "acme")


@pytest.mark.parametrize("headers", [None, binary()])
def test_a_tenants_own_topic_names_the_tenant(headers: Any) -> None:
    """There tenant may be left out and must agree when given; "" is not left out."""
    value = b"1" if headers else structured()
    assert read(value, headers, topic_tenant="acme").tenant == "acme"
    unnamed = [header for header in headers or () if header[0] != "ce_tenant"]
    assert (
        read(b"1" if headers else structured(without="tenant"), unnamed, topic_tenant="zeta").tenant == "zeta"
    )
    refused = read_event(value, headers, topic_tenant="zeta")
    assert isinstance(refused, Unusable)
    assert (refused.reason, refused.tenant) == (Reason.WRONG_TENANT, "zeta")
    empty = read_event(b"1", binary(tenant=b""), topic_tenant="acme") if headers else None
    empty = empty or read_event(structured(tenant=""), None, topic_tenant="acme")
    assert isinstance(empty, Unusable)
    assert empty.reason == Reason.INVALID


@pytest.mark.parametrize(
    ("value", "headers", "tenant"),
    [
        (structured(id=""), None, "acme"),
        (structured(tenant="a b"), None, ""),
        (with_raw("tenant", '"a b"'), None, ""),
        (b"hello", None, ""),
        (b"hello", binary(), "acme"),
    ],
)
def test_on_a_shared_topic_a_refused_record_has_a_tenant_only_if_it_was_well_formed(
    value: bytes, headers: Any, tenant: str
) -> None:
    refused = read_event(value, headers)
    assert isinstance(refused, Unusable)
    assert refused.tenant == tenant


PLAIN = PlainMapping.parse(
    {"tenant": "header:x-tenant", "id": "/order/a~1b", "source": "=shop", "type": "key"}
)


def test_a_plain_value_is_the_data_as_a_whole() -> None:
    value = b' {"order": {"a/b": 7}} '
    incoming = read(value, [("x-tenant", b"acme")], kafka_key=b"order.placed", plain=PLAIN)
    assert (incoming.tenant, incoming.source, incoming.id, incoming.type) == (
        "acme",
        "shop",
        "7",
        "order.placed",
    )
    assert incoming.data == value
    assert set(incoming.attributes()) == {"tenant", "source", "id", "type"}


@pytest.mark.parametrize(
    ("value", "key", "reason"),
    [
        (b'{"order":{"a/b":7}}', None, Reason.INVALID),
        (b'{"order":{"a/b":true}}', b"k", Reason.INVALID),
        (b'{"order":{"a/b":""}}', b"k", Reason.INVALID),
        (b'{"order":[1]}', b"k", Reason.INVALID),
        (b"7", b"k", Reason.INVALID),
        (b'{"order":{"a/b":7}}', b"\xff", Reason.UNDECODABLE),
        (b'{"order":{"a/b":7}', b"k", Reason.UNDECODABLE),
        (b"", b"k", Reason.UNDECODABLE),
    ],
)
def test_a_plain_value_without_its_attributes_is_refused(
    value: bytes, key: bytes | None, reason: Reason
) -> None:
    refused = read_event(value, None, key, plain=PLAIN, topic_tenant="acme")
    assert isinstance(refused, Unusable)
    assert refused.reason == reason


def test_where_plain_values_are_taken_cloud_events_stay_cloud_events() -> None:
    assert read(structured(), plain=PLAIN) == read(structured())
    assert read(b"1", binary(), plain=PLAIN) == read(b"1", binary())
    assert read_event(structured(specversion="2.0"), None, plain=PLAIN) == read_event(
        structured(specversion="2.0"), None
    )


@pytest.mark.parametrize(
    ("mapping", "remedy"),
    [
        ({"id": "key", "source": "=s"}, "events.plain.type is missing"),
        ({"id": "key", "source": "=s", "type": "name"}, 'write "header:NAME"'),
        ({"id": "key", "source": "=", "type": "=t"}, "1 to 512 bytes"),
        ({"id": "key", "source": "=\udcff", "type": "=t"}, "no control characters"),
        ({"id": "/a~2", "source": "=s", "type": "=t"}, '"~0"'),
        ({"id": "header:", "source": "=s", "type": "=t"}, 'write "header:NAME"'),
        ({"id": "key", "source": "=s", "type": "=t", "time": "key"}, "remove it"),
    ],
)
def test_a_mapping_that_cannot_work_is_refused_with_its_remedy(mapping: dict[str, str], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        PlainMapping.parse(mapping)


@pytest.mark.parametrize(
    ("data", "content", "key"),
    [
        (b'{"x":1}', "bytes", "a78c26d09a35e4cb73d0255993ab7bce"),
        (b'{"x":1}', "ignore", "931910790863d829ead4d4aac53bc9d5"),
        (b"", "bytes", "931910790863d829ead4d4aac53bc9d5"),
        (b'{ "x": 2, "x": 1 }', "canonical", "a78c26d09a35e4cb73d0255993ab7bce"),
    ],
)
def test_the_key_of_the_contract(data: bytes, content: str, key: str) -> None:
    assert idempotency_key("acme", "erp/netsuite", "evt-1", data, content).hex() == key


@pytest.mark.parametrize("content", ["bytes", "canonical", "ignore"])
def test_the_keys_of_many_events_are_those_of_each(content: str) -> None:
    sources = ["erp", "erp", "shop", "erp", "", "ü" * 200]
    events = [
        Incoming("acme", source, f"evt-{number}" * number, "t", None, b'{"b": 1, "a": %d}' % number)
        for number, source in enumerate(sources)
    ]
    each = [idempotency_key(e.tenant, e.source, e.id, e.data, content) for e in events]
    assert idempotency_keys(events, content) == each


@given(st.text(), st.text(), st.text(), st.binary())
def test_the_key_is_the_hash_of_the_framed_parts(tenant: str, source: str, name: str, data: bytes) -> None:
    framed = b"".join(
        len(part.encode()).to_bytes(4, "big") + part.encode() for part in (tenant, source, name)
    )
    assert idempotency_key(tenant, source, name, data) == xxh3_128(framed + xxh3_128(data).digest()).digest()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b'{"a":1,"b":[{"d":1,"c":2}]}', b' { "b" : [{"c":2,"d":1}], "a":1}', True),
        (b'"\\u00e9"', '"é"'.encode(), True),
        (b"1.0", b"1.00e0", True),
        (b"1.0", b"1", False),
        (str(2**80).encode(), str(2**80 + 1).encode(), False),
        (str(2**80).encode(), b" %d" % 2**80, True),
        (b"1e400", b"1e401", False),
        (b"1" * 5000, b"1" * 5001, False),
        (nested(300).encode(), nested(300).encode() + b" ", False),
        (b"null", b"", False),
    ],
)
def test_canonical_contents_are_compared_by_their_meaning(one: bytes, other: bytes, same: bool) -> None:
    keys = {idempotency_key("t", "s", "i", data, "canonical") for data in (one, other)}
    assert (len(keys) == 1) is same


def test_an_unknown_kind_of_content_is_refused() -> None:
    with pytest.raises(ValueError, match="use bytes, canonical or ignore"):
        idempotency_key("t", "s", "i", b"", "none")


@pytest.mark.parametrize(
    ("tenant", "murmur2"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("abc", 479470107),
    ],
)
def test_the_home_slot_is_where_java_producers_send_the_tenant(tenant: str, murmur2: int) -> None:
    """The hashes are those of the tests of Apache Kafka's Java client."""
    for slots in (1, 7, 64):
        assert home_slot(tenant, slots) == (murmur2 & 0x7FFFFFFF) % slots


texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=100)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    attributes=st.fixed_dictionaries(
        {
            "id": texts,
            "source": texts,
            "type": texts,
            "tenant": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True),
        },
        optional={"time": st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat), "traceparent": texts},
    ),
    data=st.none() | json_values,
    ascii_only=st.booleans(),
)
def test_structured_and_binary_mode_of_an_event_are_one_event(
    attributes: dict[str, str], data: Any, ascii_only: bool
) -> None:
    attributes = {"specversion": "1.0"} | attributes
    sent = json.dumps(data, ensure_ascii=ascii_only).encode("utf-8", "replace")
    members = ",".join(
        f"{json.dumps(k)}:{json.dumps(v, ensure_ascii=ascii_only)}" for k, v in attributes.items()
    )
    one = read(b'{%s, "data": %s }' % (members.encode(), sent))
    other = read(sent, [(f"ce_{name}", text.encode()) for name, text in attributes.items()])
    for name in ("tenant", "source", "id", "type", "time", "data"):
        assert getattr(one, name) == getattr(other, name)
    assert one.attributes() == other.attributes() == attributes
    assert one.data == sent


def judged_by_the_standard_library(value: bytes) -> bool:
    """Whether this is UTF-8 JSON with nothing that the contract refuses; the values here nest little."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        every_copy = json.loads(str(value, "utf-8"), parse_constant=refuse, object_pairs_hook=list)
        json.dumps(every_copy, ensure_ascii=False).encode()  # fails for half a surrogate pair
    except ValueError:
        return False
    return True


def test_damaged_events_are_judged_alike_by_both_readers_and_the_standard_library() -> None:
    """30,000 of them, none raises: bytes changed, lost and doubled, in events with doubled keys."""
    chance = random.Random(1)
    data = {"tenant": 'ü"\n', "y": [{}, -1.5e3]}
    whole = [
        structured(time="2026-08-01T12:00:00Z", extra={"tenant": [1, "é\\"]}, data=data),
        with_raw("tenant", r'"z\/"'),
        with_raw("id", '"é"'),
        with_raw("data", r'"\u00e9\ud83d\ude00"'),
        with_raw("time", '"2026-08-01T12:00:00+01:00"'),
    ]
    pieces = [
        b'"',
        b"\\",
        b"{",
        b"}",
        b",",
        b"\xff",
        b"\x7f",
        b"\n",
        b"1",
        b'"id":"",',
        b'"tenant":"a b",',
        b'"document":"aGFs",',
        b'"headers":null,',
        b'"headers":7,',
        b"\\ud800",
    ]
    seen = set()
    for _ in range(30_000):
        value = chance.choice(whole)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(value))
            end = at + chance.choice((0, 0, 1, 1, chance.randrange(40)))
            value = value[:at] + chance.choice((b"", chance.choice(pieces), value[at:end] * 2)) + value[end:]
        fast, careful = reading.read_fast(value, ""), reading._read_carefully(value, "")
        assert fast is None or fast.whole() == careful, value
        assert read_event(value, None) == careful
        assert isinstance(careful, Unusable) or careful.stored().restored() == careful, value
        undecodable = isinstance(careful, Unusable) and careful.reason is Reason.UNDECODABLE
        assert undecodable is not judged_by_the_standard_library(value), value
        seen.add((fast is None, careful.reason if isinstance(careful, Unusable) else None))
    assert seen == {(False, None), (True, None), (True, Reason.INVALID), (True, Reason.UNDECODABLE)}


@given(
    st.none() | st.binary(),
    st.none()
    | st.lists(
        st.tuples(
            st.sampled_from(
                ["ce_id", "ce_specversion", "ce_source", "ce_type", "ce_tenant", "ce_time", "ce_", "x"]
            )
            | st.text(),
            st.none() | st.binary() | st.sampled_from([b"1.0", b"a"]),
        )
    ),
    st.none() | st.binary(),
    st.sampled_from(["", "acme"]),
    st.sampled_from([None, PLAIN]),
)
def test_no_bytes_make_it_raise(value: Any, headers: Any, key: Any, topic_tenant: str, plain: Any) -> None:
    outcome = read_event(value, headers, key, topic_tenant=topic_tenant, plain=plain)
    assert outcome.tenant == topic_tenant if topic_tenant else isinstance(outcome, Incoming | Unusable)


@pytest.mark.parametrize(
    "piece", [b"[", b"]", b"{", b'"', b'""', b'\\"', b"[]", b'[""]', b'{"a":', b'["[",', b"[[]],", b"1,"]
)
@pytest.mark.parametrize("start", [b"", b'{"a":', b'{"specversion":"1.0","data":[', b'"'])
def test_a_megabyte_of_nesting_is_refused_without_recursion(piece: bytes, start: bytes) -> None:
    value = (start + piece * (900_000 // len(piece)))[:900_000]
    refused = read_event(value, None)
    assert isinstance(refused, Unusable)
    assert refused.reason is Reason.UNDECODABLE


@given(
    st.recursive(
        st.just("1"),
        lambda inner: st.lists(inner, max_size=4).map(lambda texts: f'["]",{",".join(["1", *texts])}]'),
    ),
    st.integers(150, 201),
)
def test_levels_are_counted_exactly(inside: str, above: int) -> None:
    depth = deepest = 0
    for character in inside.replace('"]"', ""):
        depth += {"[": 1, "]": -1}.get(character, 0)
        deepest = max(deepest, depth)
    text = "[" * above + inside + "]" * above
    assert too_deep(text.encode()) is (above + deepest > 200)


class Order(msgspec.Struct):
    sku: str
    kind: str = "a"


class Model(pydantic.BaseModel):
    price: float


class Currency(pydantic.BaseModel):
    name: str

    @pydantic.field_validator("name")
    @classmethod
    def known(cls, name: str) -> str:
        return {"EUR": "Euro"}[name]


class Account(msgspec.Struct):
    name: str

    def __post_init__(self) -> None:
        raise LookupError(self.name)


class Wordless(pydantic.BaseModel):
    name: str

    @pydantic.field_validator("name")
    @classmethod
    def known(cls, name: str) -> str:
        raise ValueError("\ud800")


class Basket(msgspec.Struct):
    model: Model
    within: "Basket | None" = None
    more: object = None


class Custom: ...


@pytest.mark.parametrize(
    ("kind", "data", "decoded"),
    [
        (Any, b"", None),
        (Any, b'{"a":[1,null]}', {"a": [1, None]}),
        (Any, b"123456789012345678901234567890", 123456789012345678901234567890),
        (Order, b'{"sku":"A-1","more":1}', Order("A-1")),
        (Order | None, b"", None),
        (dict[str, int], b'{"a":1}', {"a": 1}),
        (Model, b'{"price":1.5}', Model(price=1.5)),
        (list[Model], b'[{"price":1.5}]', [Model(price=1.5)]),
        (Model | None, b"", None),
        (
            Basket,
            b'{"model":{"price":1},"within":{"model":{"price":2},"more":[1]}}',
            Basket(Model(price=1), Basket(Model(price=2), None, [1])),
        ),
    ],
)
def test_data_is_decoded_as_the_agent_declares(kind: Any, data: bytes, decoded: Any) -> None:
    assert data_decoder(kind)(data) == decoded


@pytest.mark.parametrize("kind", [Any, Order, Model, dict[str, Any], list[Model], dict[str, Model]])
@pytest.mark.parametrize(
    "data",
    [
        b'{"sku":1,"price":"secret","n":1e400}',
        b'{"price":1e400}',
        b'{"a":%s}' % (b"1" * 5000),
        b"[1",
        b'"\xff"',
    ],
)
def test_data_that_cannot_be_taken_is_one_line_without_its_values(kind: Any, data: bytes) -> None:
    with pytest.raises(InvalidData) as raised:
        data_decoder(kind)(data)
    assert str(raised.value).isprintable()
    assert "secret" not in str(raised.value)
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("kind", "raised"), [(Currency, "KeyError"), (Account, "LookupError"), (Wordless, "Error")]
)
def test_whatever_a_validator_raises_the_data_cannot_be_taken(kind: Any, raised: str) -> None:
    with pytest.raises(InvalidData, match=rf"^(a validator|its type) raised \w*{raised}$"):
        data_decoder(kind)(b'{"name":"secret"}')


def test_a_model_within_another_type_is_refused_as_one_of_its_own_and_with_its_place() -> None:
    for data in (b'[{"price":"secret"}]', b'[{"price":1e400}]', b"[7]", b"[{}]"):
        with pytest.raises(InvalidData) as raised:
            data_decoder(list[Model])(data)
        assert "secret" not in str(raised.value)
        assert str(raised.value).isprintable()
        assert raised.value.__suppress_context__
    with pytest.raises(InvalidData, match=r"`\$\.model`"):
        data_decoder(Basket)(b'{"model":{"price":"secret"}}')


def test_the_message_leaves_out_the_values_that_the_decoders_quote() -> None:
    for data in (b'"secret"', b'"secret - at `x`"', b'"secret\\n"'):
        with pytest.raises(InvalidData, match=r"^Invalid enum value$"):
            data_decoder(Literal["a"])(data)
    with pytest.raises(InvalidData, match=r"^Invalid enum value - at `\$\[0\]`$"):
        data_decoder(list[Literal["a"]])(b'["secret"]')


@pytest.mark.parametrize(
    "kind", [object(), Custom, list[Custom], Custom | None, dict[str, tuple[Custom, int]]]
)
def test_a_kind_that_no_data_can_fill_is_refused_at_once(kind: Any) -> None:
    with pytest.raises(ConfigError, match="declare Event"):
        data_decoder(kind)


def test_an_event_shows_its_attributes_and_can_be_read_only() -> None:
    incoming = read(with_raw("traceparent", '"00-ab"').replace(b'"data"', b'"nr":[1],"unset":null,"data"'))
    seen: Event[Any] = Event.of(incoming, "a78c", {"x": 1})
    assert (seen.tenant, seen.id, seen.source, seen.type, seen.time) == (
        "acme",
        "evt-1",
        "erp/netsuite",
        "invoice.received",
        None,
    )
    assert (seen.key, seen.data, msgspec.json.encode(seen.raw)) == ("a78c", {"x": 1}, b'{"x":1}')
    assert seen.attributes == {name: content for name, content in GOOD.items() if name != "data"} | {
        "traceparent": "00-ab",
        "nr": [1],
    }
    for name in ("tenant", "data", "key", "attributes"):
        with pytest.raises(AttributeError):
            setattr(seen, name, "other")
    with pytest.raises(TypeError):
        seen.attributes["id"] = "other"  # type: ignore[index]
    assert Event.of(read(structured(without="data")), "k", None).raw == msgspec.Raw(b"null")


def test_in_binary_mode_the_content_type_is_an_attribute_too() -> None:
    incoming = read(
        b"1", [*binary(traceparent=b"00-ab"), ("content-type", b"application/json"), ("onceflow-run", b"x")]
    )
    assert incoming.attributes() == {name: content for name, content in GOOD.items() if name != "data"} | {
        "traceparent": "00-ab",
        "datacontenttype": "application/json",
    }


def test_an_unknown_attribute_that_no_program_can_take_is_invalid_data() -> None:
    with pytest.raises(InvalidData, match="out of range"):
        read(with_raw("a", "1e400")).attributes()
