"""What a cell writes: completions, dead letters, forwarded events.

All of them are records for one partition of one of the flow's topics. A value too large for its topic never
blocks it: a completion becomes a failed one, a dead letter keeps the first part of what it is about.
"""

from collections.abc import Iterator, Mapping

from onceflow.agents.calls import Completed, Parked
from onceflow.agents.happenings import NO_OFFSET, Arrived, Ended, EndedAtOnce
from onceflow.agents.signals import KEPT_MAX, Kept
from onceflow.event import Headers, Reason, record_bytes
from onceflow.stream.completion_values import CompletionValues
from onceflow.stream.content import Finished, Header, Input, Outgoing
from onceflow.stream.headers import KEY, key_of, without_ours
from onceflow.stream.topics import Names

KEPT_BYTES = 64 << 10  # of a value that is too large
DETAIL_BYTES = 16 << 10
_REASONS = (Reason.EXPIRED, Reason.POISON)  # of a failed run, that are its failure's code too
_OVERHEAD_BYTES = 4_000  # attributes, our headers, the record's own frame
CLOUDEVENTS_JSON: list[Header] = [("content-type", b"application/cloudevents+json")]


class Letters:
    """Writes a flow's records. `sizes`: the largest record that each topic takes, bytes.

    keeps_keys: whether the inlet has put Kafka keys into the headers; a redrive needs them.
    """

    def __init__(
        self, flow: str, names: Names, sizes: Mapping[str, int], value_bytes: int, *, keeps_keys: bool = False
    ) -> None:
        self._names = names
        self._keeps_keys = keeps_keys
        self.completions_topic = names.completions
        value_max = min(value_bytes, sizes[names.completions] - _OVERHEAD_BYTES)
        self.values = CompletionValues(flow, value_max)
        self._forwarded_max = sizes[names.inbox] - _OVERHEAD_BYTES
        letter_max = sizes[names.dead_letters] - _OVERHEAD_BYTES
        self._kept_max = min(KEPT_BYTES, letter_max // 4)
        self._detail_max = min(DETAIL_BYTES, letter_max // 4)
        self._letter_max = letter_max - self._detail_max  # value and headers, as they came

    def completion(self, ended: Ended, now_ms: int) -> Finished:
        """The end of a run that the ledger knows nothing of, and of its event's record."""
        arrived = ended.arrived
        value, letter = self.outcome(ended, now_ms)
        completion = Outgoing(
            self.completions_topic,
            arrived.source.grant.slot,
            arrived.incoming.tenant,
            (value,),
            CLOUDEVENTS_JSON,
        )
        return Finished(
            arrived.source,
            (arrived.offset,),
            "first",
            arrived.size,
            (completion,) if letter is None else (completion, letter),
            (arrived.seen,),
            () if arrived.identity is None else ((arrived.identity, arrived.seen),),
        )

    def outcome(self, ended: Ended, now_ms: int) -> tuple[bytes, Outgoing | None]:
        """How a run ended: the value of its completion, and the dead letter of one that failed."""
        arrived = ended.arrived
        value, failed = self.values.of(ended, now_ms)
        if failed is None:
            return value, None
        run, kept = ended.to_redrive
        letter = self.dead_letter(
            arrived.source,
            arrived.offset,
            arrived.value,
            arrived.headers,
            reason=failed.code if failed.code in _REASONS else Reason.AGENT_FAILED,
            detail=f"{failed.code}: {failed.message}\n{failed.detail}".rstrip(),
            tenant=arrived.incoming.tenant,
            slot=arrived.source.grant.slot,
            origin=arrived.origin,
            run=run.hex(),
            root=arrived.root.hex(),
            kept=kept,
        )
        return value, letter

    def dead_letter(
        self,
        input: Input,
        offset: int,
        value: bytes | None,
        headers: Headers,
        *,
        reason: str,
        detail: str,
        tenant: str,
        slot: int,
        origin: str = "",
        run: str = "",
        root: str = "",
        kept: int = 0,
    ) -> Outgoing:
        """What could not be done, as it came, and why.

        root: of a redriven run, the one that failed first. kept: how many segments the ledger keeps for a redrive.
        """
        theirs = without_ours(headers)
        ours: list[Header] = [
            ("onceflow-reason", str(reason).encode()),
            ("onceflow-detail", detail.encode("utf-8", "replace")[: self._detail_max]),
            ("onceflow-origin", (origin or f"{input.topic}/{input.partition}/{offset}").encode()),
            ("onceflow-tenant", tenant.encode()),
        ]
        if run:
            ours.append(("onceflow-run", run.encode()))
        if self._keeps_keys:
            ours += [(KEY, key) for key in key_of(headers)]
        if root:
            ours.append(("onceflow-root", root.encode()))
        if kept:
            ours.append(("onceflow-kept", str(kept).encode()))
        size = len(value or b"") + sum(len(name) + len(content or b"") for name, content in theirs)
        if reason == Reason.TOO_LARGE or size > self._letter_max:
            ours.append(("onceflow-truncated", str(len(value or b"")).encode()))
            value = None if value is None else value[: self._kept_max]
            theirs = _first_headers(theirs, self._kept_max)
        return Outgoing(self._names.dead_letters, slot, tenant.encode(), (value,), [*theirs, *ours])

    def conflict(self, event: Arrived) -> Finished:
        """The end of an event whose source and id are those of another one."""
        incoming = event.incoming
        letter = self.dead_letter(
            event.source,
            event.offset,
            event.value,
            event.headers,
            reason=Reason.CONFLICT,
            detail=f"source {incoming.source!r}, id {incoming.id!r}: an event with other content came before",
            tenant=incoming.tenant,
            slot=event.source.grant.slot,
            origin=event.origin,
        )
        return Finished(event.source, (event.offset,), "conflict", event.size, (letter,))

    def forwarded(
        self,
        input: Input,
        offset: int,
        kafka_key: bytes | None,
        value: bytes | None,
        headers: Headers,
        *,
        time_ms: int,
        slot: int,
    ) -> Finished:
        """An event on its way to its tenant's home slot."""
        ours: list[Header] = [
            ("onceflow-origin", f"{input.topic}/{input.partition}/{offset}".encode()),
            ("onceflow-time", str(time_ms).encode()),
        ]
        kept = without_ours(headers)
        size = len(value or b"") + len(kafka_key or b"") + sum(len(n) + len(c or b"") for n, c in kept)
        if size > self._forwarded_max:
            letter = self.dead_letter(
                input,
                offset,
                value,
                headers,
                reason=Reason.TOO_LARGE,
                detail=f"{size} bytes do not fit into {self._names.inbox}: raise its max.message.bytes",
                tenant="",
                slot=input.grant.slot,
            )
            return Finished(input, (offset,), "unusable", record_bytes(value, headers), (letter,))
        record = Outgoing(self._names.inbox, slot, kafka_key, (value,), [*kept, *ours])
        return Finished(input, (offset,), "forwarded", record_bytes(value, headers), (record,))

    def parked(self, arrived: Arrived, parked: Parked) -> Outgoing:
        """The dead letter of a run that waits for a person."""
        return self.dead_letter(
            arrived.source,
            arrived.offset,
            arrived.value,
            arrived.headers,
            reason=parked.reason,
            detail=parked.message,
            tenant=arrived.incoming.tenant,
            slot=arrived.source.grant.slot,
            origin=arrived.origin,
            run=arrived.key.hex(),
        )

    def unclaimed(self, kept: Kept, inbox: Input, tenant: str) -> Outgoing:
        """The dead letter of a signal that no run waited for."""
        return self.dead_letter(
            inbox,
            NO_OFFSET,
            kept.value,
            kept.headers,
            reason=Reason.UNCLAIMED_SIGNAL,
            detail=f"no run waited for signal {kept.signal.type!r} of {kept.signal.id!r} within 72 hours, or before "
            f"{KEPT_MAX} others came for it",
            tenant=tenant,
            slot=inbox.grant.slot,
            origin=kept.origin,
        )

    def completions(self, ended: EndedAtOnce, now_ms: int) -> Iterator[Finished]:
        """The ends of runs that ended at once."""
        arrivals = ended.arrivals
        written = self.values.of_all(ended, now_ms)
        if not written:
            for index, value in enumerate(ended.values):
                yield self.completion(Ended(arrivals.one(index), Completed(value)), now_ms)
            return
        slot, tenant = arrivals.source.grant.slot, arrivals.incomings[0].tenant
        outgoing = Outgoing(self.completions_topic, slot, tenant, written, CLOUDEVENTS_JSON)
        identities = list(zip(arrivals.identities, arrivals.seen, strict=True)) if arrivals.identities else ()
        yield Finished(
            arrivals.source,
            arrivals.offsets,
            "first",
            arrivals.size,
            (outgoing,),
            arrivals.seen,
            identities,
        )


def _first_headers(headers: list[tuple[str, bytes | None]], size_max: int) -> list[tuple[str, bytes | None]]:
    kept, size = [], 0
    for name, content in headers:
        size += len(name) + len(content or b"")
        if size > size_max:
            break
        kept.append((name, content))
    return kept
