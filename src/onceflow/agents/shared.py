"""Calls of scope `tenant`: the same call by two runs, or twice by one, is one effect.

Such a call belongs to its key: tenant, tool and `key_fields`. The ledger has one record of it for `ttl`, which says
who is making it, how it came out, and which runs have taken its result. Who asks while it is made waits; who asks
later gets the result that is there. When its effect is undone, who asks next makes it anew, with another key.

What can be undone is undone when the last run fails that has its result, and none has completed with it. So the record
names the runs that have it and are open, and outlives its `ttl` for them; once one has completed it stands for good.

    Kafka key     tenant · 00 · "k" · digest of tool and key fields (16 bytes)
    value         Shared, msgpack
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from onceflow.agents.journal import OUTCOME_UNKNOWN, UNUSABLE_RESULT, Entry, check_format

FORMAT = 2  # in 1 `takers` named runs that had completed, too
OPEN_MS = 30 * 24 * 3_600_000  # a record outlives its time for open runs so long; then what they have stands
TAKERS_MAX = 1_000  # the record is written anew for each; with more open runs its effect stands for good

NOBODY = (b"", "")

_KIND = b"\0k"


class Shared(msgspec.Struct, array_like=True, frozen=True):
    """What is known of a call. Begins with a format number, as every stored form."""

    format: int
    tool: str
    arguments: bytes  # fingerprint
    until_ms: int  # the target remembers the key so long; then all of it is forgotten
    undone: int = 0  # how often its effect was undone: part of the call key
    holder: tuple[bytes, str] = (
        b"",
        "",
    )  # the run and place that make it, undo it, or do not know; b"": none
    result: bytes | None = None
    unknown: str = ""  # why nobody knows whether it happened
    takers: tuple[bytes, ...] = ()  # open runs that have its result
    unusable: str = ""  # why its result cannot be kept; its effect stands
    kept: bool = False  # no run undoes it: one has completed with it, or nothing could; no takers then
    unknown_ms: int = 0  # when nobody knew of its last attempt; 0: it was never so
    lingers: bool = False  # one has completed with it, and others may be parked over it

    @property
    def made(self) -> bool:
        """Whether its effect stands."""
        return self.result is not None or bool(self.unusable)

    @property
    def forgotten_ms(self) -> int:
        """When it is forgotten, if no run holds it: what an open run may have to undo is remembered for longer."""
        return self.until_ms + (OPEN_MS if self.takers and self.format > 1 else 0)

    @property
    def deleted_ms(self) -> int:
        """When the record is deleted: who is told of it by a person, after its time, must know that it is kept."""
        return self.until_ms + OPEN_MS if self.lingers else self.forgotten_ms


class Free(NamedTuple):
    """Nobody has made the call: make it, with the key of this number."""

    undone: int


class Held(NamedTuple):
    """Another run is at it: wait."""


class Reused(NamedTuple):
    """Another call had this key."""

    message: str


class Unknown(NamedTuple):
    """Nobody knows whether it happened, with the key of this number."""

    message: str
    undone: int


class Taken(NamedTuple):
    """It has this result; or one that cannot be kept."""

    result: bytes | None
    unusable: str


Answer = Free | Held | Reused | Unknown | Taken


def asked(known: Shared | None, by: tuple[bytes, str], fingerprint: bytes, now_ms: int) -> Answer:
    """What a run is told that asks for a call; `by`: its key, and the call's place."""
    if known is None or forgotten(known, now_ms):
        return Free(0)
    if known.arguments != fingerprint and (known.holder[0] or known.unknown or known.made):
        return Reused(
            f"{known.tool}: a call with the same key fields and other arguments was made; nothing was called. Add what "
            "tells them apart to key_fields, or what may differ to free_fields"
        )
    if known.made:
        return Taken(known.result, known.unusable)
    if known.unknown:
        return Unknown(known.unknown, known.undone)
    return Held() if known.holder[0] and known.holder != by else Free(known.undone)


def forgotten(known: Shared, now_ms: int) -> bool:
    """Whether its time is over."""
    return known.forgotten_ms <= now_ms and not known.holder[0]


def taken(known: Shared, run: bytes) -> Shared:
    """The record once a run has taken its result."""
    if known.kept or run in known.takers:
        return known
    if len(known.takers) >= TAKERS_MAX:
        return completed(known)
    return msgspec.structs.replace(known, takers=(*known.takers, run))


def completed(known: Shared) -> Shared:
    """The record once a run has completed that has its result."""
    return msgspec.structs.replace(known, takers=(), kept=True, lingers=known.unknown_ms > 0)


def counts(known: Shared, by: tuple[bytes, str], outcome: Entry) -> bool:
    """Whether what a run says of a call is news. That it did not happen, or that nobody knows, is none while its effect
    stands, or while another run makes it or finds out: the word of a run that was parked meanwhile, or has undone it.
    """
    happened = outcome.result is not None or (outcome.error or ("",))[0] == UNUSABLE_RESULT
    return happened or known.holder == by or bool(known.unknown)


def decided(
    known: Shared, by: tuple[bytes, str], outcome: Entry, now_ms: int, until_ms: int = 0
) -> Shared | None:
    """The record once the call has an outcome; None: it did not happen, and all of it is forgotten.

    An outcome that is open: it is made again. `until_ms`: how long what its holder has made is known: from now on, for
    it may have been long in the making.
    """
    if known.holder == by and until_ms > known.until_ms:
        known = msgspec.structs.replace(known, until_ms=until_ms)
    if outcome.result is not None:
        replaced = msgspec.structs.replace(known, holder=NOBODY, result=outcome.result, unknown="")
        return taken(replaced, by[0])
    code, message = outcome.error or ("", "")
    if code == UNUSABLE_RESULT:
        return taken(msgspec.structs.replace(known, holder=NOBODY, unusable=message, unknown=""), by[0])
    if code == OUTCOME_UNKNOWN:
        since_ms = known.unknown_ms if known.unknown else now_ms
        return msgspec.structs.replace(known, holder=NOBODY, unknown=message, unknown_ms=since_ms)
    if outcome.open:
        return held(known, by)
    return _free(known) if known.undone else None


def held(known: Shared, by: tuple[bytes, str]) -> Shared:
    """The record while a run finds out about a call of which nobody knows, undoes it, or makes it again."""
    return msgspec.structs.replace(known, holder=by, unknown="")


def left(known: Shared, by: tuple[bytes, str]) -> tuple[Shared, bool]:
    """A run that has the result fails: the record then, and whether the effect is to be undone (nobody else has it)."""
    others = tuple(taker for taker in known.takers if taker != by[0])
    if others:
        return msgspec.structs.replace(known, takers=others), False
    if known.made and by[0] not in known.takers:
        return known, False  # it is kept; or it was made anew since, and what this run has was kept
    if not known.made and not known.unknown and known.holder != by:
        return known, False  # it is undone already: the run has asked for it twice
    return msgspec.structs.replace(known, takers=(), holder=by, result=None, unusable="", unknown=""), True


def undone(known: Shared, until_ms: int = 0) -> Shared:
    """The record once its effect is undone; `until_ms`: how long the target remembers the key of that."""
    until_ms = max(known.until_ms, until_ms)
    return msgspec.structs.replace(_free(known), undone=known.undone + 1, until_ms=until_ms)


def undo_told(known: Shared, outcome: Entry, now_ms: int) -> Shared:
    """The record once a person has said how a compensation came out: done, or not, and then nobody has the result."""
    until_ms = now_ms + OPEN_MS  # the target may remember its key, or have done it, since a moment ago
    if outcome.result is not None:
        return undone(known, until_ms)
    return msgspec.structs.replace(
        known,
        until_ms=max(known.until_ms, until_ms),
        holder=NOBODY,
        result=None,
        unusable="",
        unknown="its compensation was given up",
        unknown_ms=now_ms,
    )


def _free(known: Shared) -> Shared:
    return Shared(FORMAT, known.tool, known.arguments, known.until_ms, known.undone)


def call_key(digest: bytes, undone: int) -> str:
    """The call key, 32 hex digits."""
    return blake2b(digest + undone.to_bytes(4, "big"), digest_size=16).hexdigest()


def shared_key(tenant: str, digest: bytes) -> bytes:
    """The Kafka key of a call's record."""
    return tenant.encode() + _KIND + digest


def encode_shared(shared: Shared) -> bytes:
    return msgspec.msgpack.encode(shared)


def decode_shared(value: bytes) -> Shared:
    """Raises ConfigError for a record of a newer format."""
    check_format(value)
    return _decode(value)


def remembered(records: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, bytes, int]]:
    """The calls among these records of one slot, as (tenant, Kafka key, until when they are remembered at least)."""
    found = []
    for key, value in records:
        tenant, _, rest = key.partition(b"\0")
        if rest[:1] == _KIND[1:]:
            found.append((tenant.decode(), key, decode_shared(value).until_ms))
    return found


_decode = msgspec.msgpack.Decoder(Shared).decode
