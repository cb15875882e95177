"""Ten thousand broken events in all three modes: each becomes one run or one dead letter, and the cell lives.

What a record must come to is judged here anew, by Python's own JSON and the public description: one that the cell
took must be an event by that, with its run; one that it refused must have been damaged, by more than what is harmless.
"""

import json
import random
import re
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from confluent_kafka import KafkaError, Message, Producer

from tests.crash.checker import Event, Outcome, Output, Sent, faults, home
from tests.crash.lag import lag
from tests.crash.load import TYPE
from tests.crash.scene import PARTITIONS, Scene

pytestmark = pytest.mark.crash

RECORDS = 10_000
REASONS = {"undecodable", "invalid", "unknown-type"}
TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PLAIN = {"TENANT": "key", "ID": "/order", "SOURCE": "header:shop", "TYPE": f"={TYPE}"}
DATA = (
    b'{"n":%d,"text":"Z\xc3\xbcrich"}',
    b'{ "n" : %d , "list" : [1, 2.50, null, true] }',
    b"[%d]",
    b'"%d"',
)
ODD_TEXT = (rb"\ud800", rb"\u0000", rb"\ud83d\ude00", rb"\/", "\u202e".encode(), "é".encode(), b"\x7f", b"\t")
ODD_NUMBERS = (b"1e400", b"-0", b"9" * 300, b"9" * 5_000, b"0123", b"NaN", b"1.", b"-1e-999", b"0x1f")


class Fuzzed(NamedTuple):
    """A record as it is sent. `harmless`: nothing was done to it that could make it no event."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    harmless: bool = True


class Digits(NamedTuple):
    """An integer as it was written; Python's own has a limit of digits."""

    text: str


Mutation = Callable[[random.Random, Fuzzed], Fuzzed]
JSON = json.JSONDecoder(parse_int=Digits)


def base(choose: random.Random, number: int) -> Fuzzed:
    """A good event, in one of the three modes."""
    tenant, id = f"tenant-{choose.randrange(40)}", f"fuzz-{number}"
    data = choose.choice(DATA) % number
    kind = choose.randrange(3)
    if kind == 0:
        head = {"specversion": "1.0", "id": id, "source": "erp/fuzz", "type": TYPE, "tenant": tenant}
        value = json.dumps(head, separators=(",", ":")).encode()[:-1] + b',"data":' + data + b"}"
        return Fuzzed(tenant.encode(), value, ())
    if kind == 1:
        names = {"specversion": "1.0", "id": id, "source": "erp/fuzz", "type": TYPE, "tenant": tenant}
        headers = tuple((f"ce_{name}", text.encode()) for name, text in names.items())
        return Fuzzed(tenant.encode(), data, headers)
    value = b'{"order":"' + id.encode() + b'","data":' + data + b"}"
    return Fuzzed(tenant.encode(), value, (("shop", b"erp/fuzz"),))


# --- mutations: of the value, of the headers, of the key ---


def flip(choose: random.Random, record: Fuzzed) -> Fuzzed:
    value = bytearray(record.value or b"\0")
    for _ in range(choose.randint(1, 3)):
        value[choose.randrange(len(value))] ^= 1 << choose.randrange(8)
    return record._replace(value=bytes(value))


def cut(choose: random.Random, record: Fuzzed) -> Fuzzed:
    value = record.value or b""
    return record._replace(value=value[: choose.randrange(len(value) + 1)])


def insert(choose: random.Random, record: Fuzzed) -> Fuzzed:
    value = record.value or b""
    at = choose.randrange(len(value) + 1)
    junk = choose.choice(
        (choose.randbytes(1), b'"', b",", b"}", b"{", b"\\", b"\xef\xbb\xbf", b"\xed\xa0\x80")
    )
    return record._replace(value=value[:at] + junk + value[at:])


def double_key(choose: random.Random, record: Fuzzed) -> Fuzzed:
    name = choose.choice(("id", "tenant", "specversion", "source", "type", "data", "order", "data_base64"))
    content = choose.choice((b'"other"', b"null", b"7", b'""', b"{}", b'"1.0"', b'"' + b"x" * 600 + b'"'))
    return _into_object(choose, record, b'"%s":%s' % (name.encode(), content))


def nest(choose: random.Random, record: Fuzzed) -> Fuzzed:
    levels = choose.choice((150, 197, 198, 199, 200, 201, 5_000, 100_000))
    opening, closing = choose.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return _into_object(choose, record, b'"data":' + opening * levels + b"1" + closing * levels)


def number(choose: random.Random, record: Fuzzed) -> Fuzzed:
    return _into_object(choose, record, b'"data":[' + choose.choice(ODD_NUMBERS) + b"]")


def text(choose: random.Random, record: Fuzzed) -> Fuzzed:
    """Something odd after a quotation mark."""
    value = record.value or b""
    quotes = [at for at, byte in enumerate(value) if byte == ord('"')] or [0]
    at = choose.choice(quotes) + 1
    return record._replace(value=value[:at] + choose.choice(ODD_TEXT) + value[at:])


def whole_value(choose: random.Random, record: Fuzzed) -> Fuzzed:
    value = record.value or b""
    utf_16 = value.decode("utf-8", "replace").encode("utf-16")
    return record._replace(value=choose.choice((None, b"", b"null", b"[]", b"{}", utf_16, value + value)))


def header(choose: random.Random, record: Fuzzed) -> Fuzzed:
    """A header is lost, doubled, renamed, emptied, or no text; or one comes that changes the mode."""
    headers = list(record.headers)
    at = choose.randrange(len(headers) + 1)
    odd = choose.choice(
        (None, b"", b"\xff", "Ä\u202e".encode(), b"\0", b"x" * 600, b"1.0", b"0.3", TYPE.encode())
    )
    if at == len(headers) or choose.random() < 0.3:
        names = (
            "ce_id",
            "ce_specversion",
            "ce_tenant",
            "ce_",
            "ce_data_base64",
            "CE_ID",
            "shop",
            "content-type",
        )
        headers.insert(at, (choose.choice(names), odd))
    elif choose.random() < 0.3:
        del headers[at]
    else:
        headers[at] = (headers[at][0], odd)
    return record._replace(headers=tuple(headers))


def kafka_key(choose: random.Random, record: Fuzzed) -> Fuzzed:
    return record._replace(key=choose.choice((None, b"", b"\xff\xfe", b"tenant-1", b"no tenant", b"x" * 200)))


def unknown_header(choose: random.Random, record: Fuzzed) -> Fuzzed:
    """Harmless: a header that means nothing here, or claims to be the flow's own."""
    names = (
        "traceparent",
        "onceflow-origin",
        "onceflow-time",
        "onceflow-run",
        "onceflow-reason",
        "x" * 300,
        "Ü",
    )
    content = choose.choice((None, b"", b"\xff\xfe", b"made-up/0/0", b"0", b"y" * 5_000))
    return record._replace(headers=(*record.headers, (choose.choice(names), content)))


def unknown_member(choose: random.Random, record: Fuzzed) -> Fuzzed:
    """Harmless: an attribute that nobody knows, and blanks."""
    member = choose.choice(
        (b'"traceparent":"00-1"', b'"Id":7', b'"":{}', b'"\xf0\x9f\x98\x80":[1e9]', b' "a" : 1 ')
    )
    return _into_object(choose, record, member)


def _into_object(choose: random.Random, record: Fuzzed, member: bytes) -> Fuzzed:
    """A member more, first or last; a value that is no object is left as it is."""
    value = record.value or b""
    if not (value.startswith(b"{") and value.endswith(b"}") and len(value) > 2):
        return record
    if choose.random() < 0.5:
        return record._replace(value=b"{" + member + b"," + value[1:])
    return record._replace(value=value[:-1] + b"," + member + b"}")


HARMFUL: tuple[Mutation, ...] = (
    flip,
    cut,
    insert,
    double_key,
    nest,
    number,
    text,
    whole_value,
    header,
    kafka_key,
)
HARMLESS: tuple[Mutation, ...] = (unknown_header, unknown_member)


def records(seed: int) -> Iterator[Fuzzed]:
    """A quarter unharmed, the rest mutated once or more; one in twenty is a copy of an earlier one."""
    choose = random.Random(seed)
    sent: list[Fuzzed] = []
    for number in range(RECORDS):
        if sent and choose.random() < 0.05:
            record = choose.choice(sent)
        else:
            record = base(choose, number)
            for mutate in choose.sample(HARMLESS, choose.choice((0, 0, 1, 2))):
                record = mutate(choose, record)
            for mutate in choose.choices(HARMFUL, k=choose.choice((0, 1, 1, 1, 2, 3))):
                record = mutate(choose, record)._replace(harmless=False)
        sent.append(record)
        yield record


# --- what a record is, by the public description ---


def event_of(record: Fuzzed) -> Event:
    """The event in a record that the cell took; ValueError if there is none by this reading."""
    value = record.value or b""
    found: dict[str, object]
    if any(name == "ce_specversion" for name, _ in record.headers):
        named = [(name[3:], content) for name, content in record.headers if name.startswith("ce_")]
        found = {name: None if content is None else content.decode() for name, content in named}
        data = value
        if value:
            JSON.decode(value.decode())
    else:
        whole = JSON.decode(value.decode())
        if isinstance(whole, dict) and whole.get("specversion") is not None:
            found, data = whole, dict(members(value.decode())).get("data", "").encode()
        else:
            found, data = plain(record, whole), value
    tenant, source, id = (found.get(name) for name in ("tenant", "source", "id"))
    kind = found.get("type")
    if not (isinstance(tenant, str) and TENANT.fullmatch(tenant) and kind == TYPE):
        raise ValueError(f"tenant {tenant!r}, type {kind!r}")
    for name, content in (("source", source), ("id", id)):
        if not (isinstance(content, str) and 1 <= len(content.encode()) <= 512):
            raise ValueError(f"{name} {content!r}")
    return Event(tenant, str(source), str(id), data)


def plain(record: Fuzzed, whole: object) -> dict[str, object]:
    """The attributes of an event that is no CloudEvent, as PLAIN says where they are."""
    shops = [content for name, content in record.headers if name == "shop"]
    order = whole.get("order") if isinstance(whole, dict) else None
    return {
        "tenant": None if record.key is None else record.key.decode(),
        "source": shops[-1].decode() if shops and shops[-1] is not None else None,
        "id": order.text if isinstance(order, Digits) else order,
        "type": TYPE,
    }


def members(text: str) -> Iterator[tuple[str, str]]:
    """A JSON object's members, each with its value's text as sent."""
    blank = re.compile(r"[ \t\r\n]*")

    def after_blanks(at: int) -> int:
        return blank.match(text, at).end()

    at = after_blanks(0)
    while text[at] != "}":
        name, at = JSON.raw_decode(text, after_blanks(at + 1))
        start = after_blanks(after_blanks(at) + 1)
        _, end = JSON.raw_decode(text, start)
        yield name, text[start:end]
        at = after_blanks(end)


def outcome(event: Event) -> Outcome:
    """A number that no program can take fails the run; so does one that asks for it."""

    def finite(digits: str) -> float:
        if abs(float(digits)) == float("inf"):
            raise ValueError(digits)
        return float(digits)

    try:
        json.loads(event.data or b"null", parse_float=finite)
    except ValueError:
        return Outcome("invalid-data")
    return Outcome()


# --- the test ---


def produce(scene: Scene, seed: int) -> dict[str, Fuzzed]:
    """Send all records, most of them to their key's home partition; return them by origin."""
    sent: dict[str, Fuzzed] = {}
    producer = Producer({"bootstrap.servers": scene.bootstrap_servers, "linger.ms": 20, "log_level": 0})
    choose = random.Random(seed)

    def delivered(record: Fuzzed) -> Callable[[KafkaError | None, Message], None]:
        def note(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            sent[f"{message.topic()}/{message.partition()}/{message.offset()}"] = record

        return note

    for record in records(seed):
        at_home = home((record.key or b"").decode("utf-8", "replace"), PARTITIONS)
        partition = at_home if choose.random() < 0.9 else choose.randrange(PARTITIONS)
        producer.produce(
            scene.shared,
            record.value,
            record.key,
            partition,
            on_delivery=delivered(record),
            headers=list(record.headers),
        )
        producer.poll(0)
    assert producer.flush(60) == 0
    assert len(sent) == RECORDS
    return sent


def classified(sent: dict[str, Fuzzed], letters: list[Output]) -> list[Sent]:
    """What each record turned out to be: refused with a reason, or an event."""
    headers = [letter.headers for letter in letters if "onceflow-run" not in letter.headers]
    refused = {found["onceflow-origin"].decode(): found["onceflow-reason"].decode() for found in headers}
    result, wrong = [], []
    for origin, record in sent.items():
        reason = refused.get(origin, "")
        event = None
        if not reason:
            try:
                event = event_of(record)
            except (ValueError, UnicodeDecodeError, RecursionError) as error:
                wrong.append(f"{origin} was taken, but is no event ({error}): {str(record)[:300]}")
        elif record.harmless or reason not in REASONS:
            wrong.append(f"{origin} was refused as {reason}: {str(record)[:300]}")
        result.append(Sent(origin, record.value, event, reason))
    assert not wrong, f"{len(wrong)} records judged wrongly:\n" + "\n".join(wrong[:10])
    return result


def test_each_of_ten_thousand_fuzzed_records_is_one_run_or_one_dead_letter(scene: Scene) -> None:
    seed = 101
    scene.seed(seed)
    cell = scene.cell(
        "a", **{f"ONCEFLOW_EVENTS__PLAIN__{name}": place for name, place in PLAIN.items()}
    ).start()
    sent = produce(scene, seed)
    scene.say(f"{len(sent)} records sent")
    scene.wait(lambda: scene.outputs.more() > 0 and lag(scene) == 0, "no record is unfinished")
    assert cell.end(signal.SIGTERM) == 0, f"{cell.log}\n{cell.text()[-2_000:]}"
    assert cell.statuses == [0], f"it ended in between: {cell.statuses}, {cell.directory}"
    scene.wait(scene.outputs.at_end, "all output is read")
    completions, letters = (
        scene.outputs.found[f"{scene.flow}.{part}"] for part in ("completions", "dead-letters")
    )
    judged = classified(sent, letters)
    wrong = faults(
        judged, completions, letters, flow=scene.flow, agent="echo", slots=PARTITIONS, outcome=outcome
    )
    assert not wrong, "\n".join([*wrong, f"logs: {scene.directory}"])
    refused = sum(1 for record in judged if record.event is None)
    scene.say(
        f"{RECORDS - refused} taken, {len(completions)} runs, {refused} refused, {len(letters)} dead letters"
    )
    assert min(refused, RECORDS - refused) > RECORDS // 10, (
        "the mutations are too weak or too strong to say much"
    )
