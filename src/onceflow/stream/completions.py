"""How completions are read back: what dedup knows the runs by that have ended."""

from binascii import unhexlify
from functools import lru_cache

import msgspec

from onceflow.state.seen import identity_key, seen_key, tenant_prefix


class _ReadBack(msgspec.Struct, gc=False):
    """What dedup needs of a completion."""

    id: str
    tenant: str
    causesource: str
    causeid: str
    rootrun: str = ""


_read_back = msgspec.json.Decoder(_ReadBack).decode


def keys_of_completion(value: bytes, slot: int) -> tuple[bytes, bytes | None]:
    """What dedup knows a completion's run by, and its event's source and id; ValueError: it is none."""
    read = _read_back(value)
    prefix = tenant_prefix(slot, read.tenant)
    identity = None
    if not read.rootrun:  # a redrive says nothing about other events
        identity = identity_key(prefix, read.causesource, read.causeid)
    return seen_key(prefix, bytes.fromhex(read.id)), identity


def run_of_completion(value: bytes, kafka_key: bytes | None, slot: int) -> bytes:
    """The first of `keys_of_completion` alone; at a glance, for a long catch-up has millions of them."""
    if kafka_key and value.startswith(_HEAD) and value[_ID.stop : _ID.stop + 1] == b'"':
        return _begin_of(slot, kafka_key) + unhexlify(value[_ID])
    return keys_of_completion(value, slot)[0]


_HEAD = b'{"specversion":"1.0","id":"'
_ID = slice(len(_HEAD), len(_HEAD) + 32)


@lru_cache(maxsize=16_384)
def _begin_of(slot: int, tenant: bytes) -> bytes:
    return seen_key(tenant_prefix(slot, tenant.decode()), b"")
