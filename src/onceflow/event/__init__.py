"""What an event is, how it is read, and its key.

json_text   is it well-formed, what does it hold
attributes  what an attribute may hold
plain       where events that are no CloudEvents carry theirs
incoming    an event as it was read; why a record is none
reading     bytes become one or the other
key         what names an event; its tenant's slot
kinds       which types its data may be declared as
event       what an agent sees of it
"""

from onceflow.event.attributes import attribute_fault
from onceflow.event.event import Event, NotRead, data_decoder
from onceflow.event.incoming import Headers, Incoming, Reason, Unusable, record_bytes
from onceflow.event.json_text import InvalidData
from onceflow.event.key import home_slot, idempotency_key, idempotency_keys
from onceflow.event.kinds import type_name, undecodable
from onceflow.event.plain import PlainMapping
from onceflow.event.reading import read_event, read_fast

__all__ = [
    "Event",
    "Headers",
    "Incoming",
    "InvalidData",
    "NotRead",
    "PlainMapping",
    "Reason",
    "Unusable",
    "attribute_fault",
    "data_decoder",
    "home_slot",
    "idempotency_key",
    "idempotency_keys",
    "read_event",
    "read_fast",
    "record_bytes",
    "type_name",
    "undecodable",
]
