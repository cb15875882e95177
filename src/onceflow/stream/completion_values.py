"""The values of completions: how the end of a run is written, and which value fails its run instead.

An agent may return anything. What has no JSON, or makes a completion too large for its topic, ends its own run as
failed, and no other. It is decided here, without Kafka, so that the testing kit ends a run as a cell does.
"""

from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import msgspec
import pydantic

from onceflow.agents.calls import Completed, RunFailed
from onceflow.agents.happenings import Arrived, Ended, EndedAtOnce
from onceflow.errors import TEXT_MAX, as_text
from onceflow.event import NotRead, Reason


class _Completion(msgspec.Struct, gc=False):
    specversion: str
    id: str
    source: str
    type: str
    tenant: str
    causesource: str
    causeid: str
    time: str
    data: Any
    rootrun: str | msgspec.UnsetType = msgspec.UNSET


class _Failure(msgspec.Struct, gc=False):
    code: str
    message: str


class CompletionValues:
    """Writes the values of a flow's completions, of `bytes_max` each at most."""

    def __init__(self, flow: str, bytes_max: int) -> None:
        self._source = f"/onceflow/{flow}"
        self._bytes_max = bytes_max
        self._encode = msgspec.json.Encoder(enc_hook=_plain).encode
        self._now_ms, self._now_text = 0, ""
        self._types: dict[str, tuple[str, str]] = {}

    def of(self, ended: Ended, now_ms: int) -> tuple[bytes, RunFailed | None]:
        """How a run ended, and how it failed, if it did."""
        arrived, outcome = ended.arrived, ended.outcome
        if type(outcome) is Completed:
            outcome = self.written(arrived, outcome, now_ms)
        if isinstance(outcome, Completed):
            return outcome.written, None
        failure = _Failure(outcome.code, outcome.message[:TEXT_MAX])
        return self._encoded(arrived, self._types_of(arrived.agent.name)[1], failure, now_ms), outcome

    def written(self, arrived: Arrived, end: Completed, now_ms: int) -> Completed | RunFailed:
        """The end of a run that returned a value, with its completion; or how the run fails, if there can be none.

        Asked before a run that has changed something is let go: what it did is then undone, and kept for a redrive.
        """
        if end.written:
            return end
        try:
            value = self._encoded(arrived, self._types_of(arrived.agent.name)[0], end.value, now_ms)
        except Exception as error:  # noqa: BLE001 (whatever has no JSON fails its own run)
            text = f"what the agent returned has no JSON: {type(error).__name__}: {as_text(error)}"
            return RunFailed(Reason.AGENT_FAILED, as_text(text, 1_000), "")
        if len(value) <= self._bytes_max:
            return Completed(end.value, value)
        text = f"the agent's return value makes a completion of {len(value)} bytes, at most {self._bytes_max} fit"
        return RunFailed(Reason.TOO_LARGE, text, "")

    def of_all(self, ended: EndedAtOnce, now_ms: int) -> list[bytes]:
        """How runs ended that returned a value at once; empty: one of these fails its run, which is seen one by one."""
        arrivals, source, encode = ended.arrivals, self._source, self._encode
        kind, time = self._types_of(arrivals.agent.name)[0], self._text_of(now_ms)
        try:
            written = [
                encode(_Completion("1.0", key.hex(), source, kind, i.tenant, i.source, i.id, time, value))
                for i, key, value in zip(arrivals.incomings, arrivals.keys, ended.values, strict=True)
            ]
        except Exception:  # noqa: BLE001 (one of them has no JSON)
            return []
        return written if written and max(map(len, written)) <= self._bytes_max else []

    def _types_of(self, agent: str) -> tuple[str, str]:
        """The types of a completion, well or failed, by its agent."""
        types = self._types.get(agent)
        if types is None:
            types = self._types[agent] = (f"{agent}.completed", f"{agent}.failed")
        return types

    def _encoded(self, arrived: Arrived, kind: str, data: Any, now_ms: int) -> bytes:
        incoming = arrived.incoming
        return self._encode(
            _Completion(
                "1.0",
                arrived.key.hex(),
                self._source,
                kind,
                incoming.tenant,
                incoming.source,
                incoming.id,
                self._text_of(now_ms),
                data,
                arrived.root.hex() if arrived.root else msgspec.UNSET,
            )
        )

    def _text_of(self, now_ms: int) -> str:
        if self._now_ms != now_ms:
            self._now_ms, self._now_text = now_ms, utc_text(now_ms)
        return self._now_text


def _plain(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, NotRead):
        raise TypeError("an event is not written as a whole: return event.data")
    if isinstance(value, MappingProxyType):  # an event's attributes, most likely: alone, or of a whole event
        raise TypeError("a read-only mapping has no JSON form: return event.data, or dict(event.attributes)")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def utc_text(time_ms: int) -> str:
    """A time as CloudEvents writes it (RFC 3339, UTC, milliseconds)."""
    text = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
