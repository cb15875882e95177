"""The inlet: the one source through which everything that can happen to a tenant comes into the dataflow.

Records of Kafka, answers of calls, slots granted or lost, turns of waiting lanes: all of it leaves here as
(tenant, happenings). A record that is no event becomes a dead letter here, and an event whose tenant is at
home in another slot is forwarded there; neither goes further. How much may be unfinished says `room`.
"""

import logging
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from confluent_kafka import Message

from onceflow.agents.agent import Routes
from onceflow.agents.commands import Command
from onceflow.agents.happenings import Arrivals, Arrived, Commanded, Happening, Signalled
from onceflow.agents.signals import read_signal
from onceflow.config import Settings
from onceflow.event import (
    Headers,
    Incoming,
    PlainMapping,
    Reason,
    Unusable,
    home_slot,
    read_event,
    read_fast,
    record_bytes,
)
from onceflow.stream.cell import Cell, record_error
from onceflow.stream.cluster import by_partition
from onceflow.stream.content import NO_EVENT, Ends, Finished, Input, Reads
from onceflow.stream.forwarded import ForwardedShare
from onceflow.stream.headers import Forwarding, command_of, forwarding, redrive_of, with_key, without_ours
from onceflow.stream.letters import Letters
from onceflow.stream.room import Room

log = logging.getLogger(__name__)

_POSITIONS_EVERY_S = 1.0

_UNREADABLE: Headers = [("unreadable", None)]
_NAME_IS_NO_TEXT = Unusable(Reason.UNDECODABLE, "the name of a header is not UTF-8", "")


class Poll(NamedTuple):
    """What one poll brought: happenings by tenant, ends, what was read, and inputs blocked or let go on."""

    arrived: dict[str, list[Happening]]
    ends: Ends
    reads: list[Reads]
    passed: list[Reads]


class Reading:
    """Turns records into happenings. Worker's thread only."""

    def __init__(
        self,
        cell: Cell,
        settings: Settings,
        slots: int,
        routes: Routes,
        letters: Letters,
        room: Room,
    ) -> None:
        self._cell = cell
        self._room = room
        self._value_bytes = settings.limits.value_bytes
        self._slots = slots
        self._signals = settings.events.signals
        self._signals_origin = f"{self._signals}/"
        self._agents, self._agent_of_the_rest = routes.by_type, routes.rest
        self._letters = letters
        plain = settings.events.plain
        self._plain = None if plain is None else PlainMapping.parse(plain.model_dump(exclude_none=True))
        self._keeps_keys = settings.events.needs_key
        self._positions_at = 0.0
        self._forwarded = ForwardedShare()
        self._unreadable: dict[int, Message] = {}  # of this poll: whose headers cannot be read
        self._told: list[Reads] = []  # where inputs go on whose loss was accepted, and where some cannot

    def poll(self) -> Poll:
        """Read what was fetched."""
        self._unreadable.clear()
        arrived: dict[str, list[Happening]] = {}
        ends = Ends()
        reads: dict[Input, list[int]] = {}
        count = 0
        for partition, messages in by_partition(self._without_errors(self._cell.poll())):
            input = self._cell.inputs.get(partition)
            if input is None:
                continue
            offsets = self._read(input, messages, arrived, ends)
            self._room.took(input, offsets)
            count += len(offsets)
            reads.setdefault(input, []).extend(offsets)
        self._room.pause_heavy(reads)
        if count:
            self._forwarded.count(count, sum(1 for end in ends if end.verdict == "forwarded"))
        told, self._told = self._told, []
        return Poll(arrived, ends, [Reads(i, o, i.next_offset) for i, o in reads.items()], told)

    def _without_errors(self, messages: list[Message]) -> list[Message]:
        errors: dict[Any, Message] = {}  # one that comes again before it was seen is the same one
        for message in messages:
            if (error := message.error()) is not None:
                errors[message.topic(), message.partition(), error.code()] = message
        if not errors:
            return messages
        for message in errors.values():
            if (told := record_error(self._cell, message)) is not None:
                self._told.append(told)
        return [message for message in messages if message.error() is None]

    def look(self) -> list[Reads]:
        """Now and then: pause and resume inputs, and pass markers of transactions where nothing else was read."""
        now = time.monotonic()
        if not self._room.look(now) or now < self._positions_at:
            return []
        self._positions_at = now + _POSITIONS_EVERY_S
        idle = [input for input in self._cell.inputs.values() if not (input.unfinished or input.blocked)]
        passed = []
        for input, position in self._cell.positions(idle).items():
            if position > input.next_offset:
                input.next_offset = position
                passed.append(Reads(input, [], position))
        return passed

    def _read(
        self, input: Input, messages: list[Message], arrived: dict[str, list[Happening]], ends: Ends
    ) -> list[int]:
        """Read records of one input; return the offsets of those that are read now."""
        offsets = [message.offset() or 0 for message in messages]
        plainly = not (input.is_inbox or input.topic == self._signals or self._plain or input.skip)
        if plainly and offsets[0] >= input.next_offset and not any(self._headers(m) for m in messages):
            self._read_plain(input, offsets, messages, arrived, ends)
            return offsets
        return self._read_each(input, messages, arrived, ends)

    def _read_plain(
        self,
        input: Input,
        offsets: list[int],
        messages: list[Message],
        arrived: dict[str, list[Happening]],
        ends: Ends,
    ) -> None:
        """Read records that are events with nothing special about them, as most are; the others one by one."""
        slot, own_tenant, size_max = input.grant.slot, input.tenant, self._value_bytes
        agents, agent_of_the_rest = self._agents, self._agent_of_the_rest
        batches: dict[str, Arrivals] = {}  # by tenant: of the agent that took its last event
        kind, agent = "", agent_of_the_rest  # of the last event
        size = 0
        times = [message.timestamp()[1] for message in messages]
        values = [message.value() for message in messages]
        for offset, time_ms, value, message in zip(offsets, times, values, messages, strict=True):
            incoming = None
            if value and len(value) <= size_max:
                incoming = read_fast(value, own_tenant)
            if incoming is None:
                self._read_each(input, [message], arrived, ends)
                continue
            size += len(value)  # type: ignore[arg-type]  # there is one
            batch = batches.get(incoming.tenant)
            if incoming.type != kind:
                kind = incoming.type
                agent = agents.get(kind, agent_of_the_rest)
            if batch is None or batch.agent is not agent:
                tenant = incoming.tenant
                home = slot if own_tenant else home_slot(tenant, self._slots)
                if home != slot or agent is None or not agent.plain:
                    size -= len(value)  # type: ignore[arg-type]
                    self._read_each(input, [message], arrived, ends)
                    continue
                batch = batches[tenant] = Arrivals(input, agent, [], [], [])
                arrived.setdefault(tenant, []).append(batch)
            batch.offsets.append(offset)
            batch.times_ms.append(time_ms)
            batch.incomings.append(incoming)
        input.next_offset = offsets[-1] + 1
        self._room.took_bytes(input, size)

    def _read_each(
        self,
        input: Input,
        messages: Iterable[Message],
        arrived: dict[str, list[Happening]],
        ends: Ends,
    ) -> list[int]:
        """Read records of one input, whatever they are."""
        slot, next_offset, size_max = input.grant.slot, input.next_offset, self._value_bytes
        own_tenant, plain, is_inbox = input.tenant, self._plain, input.is_inbox
        is_signals = input.topic == self._signals
        agents, agent_of_the_rest = self._agents, self._agent_of_the_rest
        batches: dict[str, list[Happening]] = {}  # tenants at home in this slot
        offsets: list[int] = []
        size = 0
        for message in messages:
            offset = message.offset()
            if offset is None or offset < next_offset:
                continue
            next_offset = offset + 1
            if input.skip is not None:
                if offset in input.skip:
                    continue
                if offset >= input.skip.end:
                    input.skip = None
            offsets.append(offset)
            value, headers = message.value(), self._headers(message)
            takes = record_bytes(value, headers)
            size += takes
            if headers is _UNREADABLE:
                ends.append(self._unusable(input, offset, message, _NAME_IS_NO_TEXT, None))
                continue
            sent = forwarding(headers) if is_inbox else None
            if is_inbox and (command := command_of(headers, value, slot, self._slots)) is not None:
                found = self._commanded(input, message, command, takes)
                if isinstance(found, Finished):
                    ends.append(found)
                else:
                    arrived.setdefault(found.command.tenant, []).append(found)
                continue
            topic_tenant = sent.tenant if sent else own_tenant
            key = None if plain is None else message.key()
            theirs = without_ours(headers) if sent or self._keeps_keys else headers
            incoming = read_event(value, theirs, key, topic_tenant, plain, size_max)
            if type(incoming) is Unusable:
                ends.append(self._unusable(input, offset, message, incoming, sent))
                continue
            assert type(incoming) is Incoming
            tenant = incoming.tenant
            batch = batches.get(tenant)
            if batch is None:
                home = slot if own_tenant else home_slot(tenant, self._slots)
                if home != slot:
                    ends.append(self._forwarded_home(input, offset, message, home))
                    continue
                batch = batches[tenant] = arrived.setdefault(tenant, [])
            time_ms = sent.time_ms if sent else message.timestamp()[1]
            origin = sent.origin if sent else None
            if is_signals or (origin is not None and origin.startswith(self._signals_origin)):
                signalled = self._signalled(input, message, incoming, sent)
                if isinstance(signalled, Unusable):
                    ends.append(self._unusable(input, offset, message, signalled, sent))
                else:
                    batch.append(signalled)
                continue
            agent = agents.get(incoming.type, agent_of_the_rest)
            if agent is None:
                detail = f"no agent of this flow takes events of type {incoming.type!r}"
                untaken = Unusable(Reason.UNKNOWN_TYPE, detail, tenant)
                ends.append(self._unusable(input, offset, message, untaken, sent))
                continue
            event = Arrived(input, offset, time_ms, value, headers, incoming, agent, origin)
            batch.append(event if sent is None else _as_asked_for(event))
        input.next_offset = next_offset
        self._room.took_bytes(input, size)
        return offsets

    def _headers(self, message: Message) -> Headers:
        """A record's headers. Kafka takes any bytes as a name, the client only text: then none can be read.

        It may be asked once only: the second time it gives what it has read, with holes that end the process.
        """
        if id(message) in self._unreadable:
            return _UNREADABLE
        try:
            headers: Headers = message.headers()  # type: ignore[assignment]  # a list of bytes, as read
            return with_key(headers, message.key()) if self._keeps_keys else headers
        except (SystemError, UnicodeDecodeError):
            self._unreadable[id(message)] = message
            return _UNREADABLE

    def _commanded(
        self, input: Input, message: Message, command: Command | Unusable, takes: int
    ) -> Commanded | Finished:
        """What an operator has decided about a run; or the end of the record, if it is about something else."""
        offset = message.offset() or 0
        if isinstance(command, Unusable):
            return self._unusable(input, offset, message, command, None)
        if command.action != "accept-loss":
            return Commanded(input, offset, takes, command)
        self._accept_loss(command)
        return Finished(input, (offset,), NO_EVENT, takes)

    def _signalled(
        self, input: Input, message: Message, incoming: Incoming, sent: Forwarding | None
    ) -> Signalled | Unusable:
        """The signal in a record of its topic, or one forwarded from there."""
        signal = read_signal(incoming)
        if isinstance(signal, str):
            return Unusable(Reason.INVALID, signal, incoming.tenant)
        offset, value = message.offset() or 0, message.value()
        origin = sent.origin if sent else f"{input.topic}/{input.partition}/{offset}"
        time_ms = sent.time_ms if sent else message.timestamp()[1]
        headers = self._headers(message)
        takes = record_bytes(value, headers)
        return Signalled(input, offset, takes, time_ms, signal, origin, value, headers)

    def _accept_loss(self, command: Command) -> None:
        """Go on with an input that waits for that, from the offset that the operator has named."""
        blocked = self._cell.inputs.get((command.topic, command.partition))
        if blocked is None or not blocked.blocked:
            about = {"topic": command.topic, "partition": command.partition}
            log.warning(
                "an operator has accepted the loss of an input that does not wait for it", extra=about
            )
            return
        self._cell.unblock(blocked, max(blocked.next_offset, command.offset))
        self._told.append(Reads(blocked, [], blocked.next_offset))

    def _forwarded_home(self, input: Input, offset: int, message: Message, home: int) -> Finished:
        """The end of a record here whose event's tenant is at home in another slot: it is sent there."""
        return self._letters.forwarded(
            input,
            offset,
            message.key(),
            message.value(),
            self._headers(message),
            time_ms=message.timestamp()[1],
            slot=home,
        )

    def _unusable(
        self, input: Input, offset: int, message: Message, why: Unusable, sent: Forwarding | None
    ) -> Finished:
        """The end of a record that is no event for this flow: its dead letter, where its tenant is at home."""
        slot = home_slot(why.tenant, self._slots) if why.tenant else input.grant.slot
        value, headers = message.value(), self._headers(message)
        letter = self._letters.dead_letter(
            input,
            offset,
            value,
            None if headers is _UNREADABLE else headers,
            reason=why.reason,
            detail=why.detail,
            tenant=why.tenant,
            slot=slot,
            origin=sent.origin if sent else "",
        )
        return Finished(input, (offset,), "unusable", record_bytes(value, headers), (letter,))


def _as_asked_for(event: Arrived) -> Arrived:
    """An event from the inbox: a person may have asked for it to be done anew."""
    if (redrive := redrive_of(event.headers)) is not None:
        event.redrive, event.root = redrive, redrive.root
    return event
