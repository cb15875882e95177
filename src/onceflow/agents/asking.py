"""What a run's agent asks for, calls and waits, and what is on record of them.

A replay asks for the same at the same places. What it finds on record is returned; what differs stops the run.
"""

from collections.abc import Callable, Mapping
from typing import Any

from onceflow.agents import anew
from onceflow.agents.call import Call
from onceflow.agents.calls import SEND_WITHIN_MS, AskKey, StartCall, WaitBegun, Waiting, later_key
from onceflow.agents.durable import DurableCalls
from onceflow.agents.journal import SPECIAL, UNDO, UNDONE, Entry, Retry, Wait, expired
from onceflow.agents.state import NONE
from onceflow.agents.tool import Tool
from onceflow.event import Event, Reason


class Asking(DurableCalls, eq=False):
    """A run's state, as far as `Run` asks it."""

    def ask(self, event: Event[Any], tool: Tool[Any, Any], place: str, arguments: Mapping[str, Any]) -> Call:
        """The call that the agent asks for, whether or not it is on record."""
        fingerprint, tenant = tool.fingerprint(arguments), event.tenant
        key = tool.key(tenant, self.root, fingerprint, place)
        if self.journal and (undone := self.journal.get(UNDONE + place)) is not None:
            key = later_key(key, undone.version)
        call = Call(tenant, event.key, key, 1, arguments, 0, (), fingerprint)
        if tool.effect != "read" and not self._given_up:
            tool.check()
            if tool.scope == "tenant":
                self._belongs(tool, place, call)
            self._asked[place] = (tool, call)
        return call

    def _belongs(self, tool: Tool[Any, Any], place: str, call: Call) -> None:
        """What a shared call belongs to: as it is on record, if it is."""
        known, digest = self.journal.get(place), b""
        if known is not None and known.intent is not None and known.arguments == call.fingerprint:
            digest = known.intent.shared
        digest = digest or tool.shared_digest(call.tenant, call.arguments)
        self._digests = {**self._digests, place: digest}

    def _ask_no_more(self) -> None:
        """Shared calls whose keys this run has only asked for are not waited for: who has one, perhaps this very run at
        another place, may go on only when this run does.
        """
        for place, waiting in [*self._waiting.items()]:
            known = self.journal.get(place.removeprefix(UNDO))
            asks = known is None or (known.open and known.intent is None)
            if asks and waiting.started.tool.scope == "tenant":
                del self._waiting[place]

    def outcome(self, tool: Tool[Any, Any], place: str, call: Call) -> Entry | None:
        """The outcome of a call; None: it has none yet, but is under way, unless the run is over."""
        while not self._given_up:
            known = self.journal.get(place)
            if known is not None and (found := self._on_record(known, tool, place, call)) is not None:
                return found
            if not self._start(tool, place, call, known):
                break
        return None

    def _on_record(self, entry: Entry, tool: Tool[Any, Any], place: str, call: Call) -> Entry | None:
        """The outcome on record of this call; None: it has none. Another call on record parks a run of the ledger, or
        ends the replay of one that fails.
        """
        same = entry.tool == tool.name and entry.arguments == call.fingerprint
        if same and tool.scope == "tenant" and entry.open and entry.intent is None:
            return None  # it has only waited for its key, and no version of the tool has been called
        if same and (entry.version == tool.version or (self.segments and not entry.open)):
            return None if entry.open else entry
        if self.segments:
            was = f"{entry.tool} version {entry.version}"
            now = f"{tool.name} version {tool.version}" + (" with other arguments" if not same else "")
            self._differs(f"call {place} on record is {was}, replay asks for {now}")
            if self._end is not None:
                self._asked.pop(place, None)  # what is on record is not for this tool to undo
        return None

    def _differs(self, message: str) -> None:
        if self._parking is None and self._end is None:
            self._parking = (Reason.NONDETERMINISTIC, message, "")

    def wait(self, place: str, name: str, wait: Wait) -> Entry | None:
        """Wait at this place; the outcome, if there is one by now."""
        if self._given_up:
            return None
        known = self.journal.get(place)
        if known is not None:
            was = known.wait or Wait(0)
            if (known.tool, was.type, was.id, was.until) != (name, wait.type, wait.id, wait.until):
                self._differs(
                    f"{place} on record is {known.tool} {was.type} {was.id}, replay asks for {name}"
                )
                return None
            if not known.open:
                return known
            wait = was
        if self._end is not None or self._parking is not None:
            return None
        if place not in self._waits:
            self._waits = {**self._waits, place: wait}
            if known is None:
                self.record(place, Entry(name, 1, b"", wait=wait))
            looked = known is not None or not wait.type  # or there is no signal to look for
            if looked and 0 < wait.due_ms <= self.now_ms:
                return self._expire(place)
            if wait.type:
                self._effects.append(WaitBegun(self._whole, place, wait))
        return None

    def gathers(self) -> None:
        """The agent waits for several calls at once: from now on note which of them have news."""
        if self._moved is NONE:
            self._moved = []

    def moved(self, gather: str) -> list[int]:
        """Which branches of the gather at this place have news."""
        prefix = f"{gather}."
        places = [place.removeprefix(UNDO) for place in self._moved]
        found = [place.removeprefix(prefix) for place in places if place.startswith(prefix)]
        return sorted({int(below.partition(".")[0]) for below in found})

    def recorded(self, place: str, name: str, make: Callable[[], bytes]) -> bytes:
        """What is on record at this place; or what is made, and put on record."""
        known = self.journal.get(place)
        if known is not None and known.tool == name and known.result is not None:
            return known.result
        made = make()
        if self._given_up:
            return made
        if known is not None and self.segments:
            self._differs(f"{place} on record is {known.tool}, replay asks for {name}")
        else:
            self.record(place, Entry(name, 1, b"", made))
        return made

    def _passed_over(self, place: str) -> str:
        """An effect on record before this place that a replay has not come to; "": there is none."""
        if len(self._asked) > len(self.journal):  # this call too: so all that is on record was asked for
            return ""
        here = anew.order(place)
        for other, entry in self.journal.items():
            if entry.intent is None or other in self._asked or other[0] in SPECIAL:
                continue
            if anew.order(other) < here:
                return f"call {other} of {entry.tool}"
        return ""

    def _expire(self, place: str) -> Entry:
        """The time of a wait is over."""
        del self._waits[place]
        if self.journal[place].retry is None:
            self.record(place, expired(self.journal[place]))
        elif self._moved is not NONE:  # an attempt is due, and will be asked for
            self._moved.append(place)
        return self.journal[place]

    def _start(self, tool: Tool[Any, Any], place: str, call: Call, known: Entry | None) -> bool:
        """Have a call made, unless it is under way or the run is over; whether it was decided at once."""
        if place in self._waiting or self._parking is not None:
            return False
        if self._end is not None:
            return self._give_up(place)
        intent = None if known is None else known.intent
        asks = (
            tool.scope == "tenant" and intent is None
        )  # what was heard of its key before may be no longer true
        if known is not None and not asks and self._postponed(place):
            return False
        if tool.effect == "read":
            started = StartCall(self._whole, place, tool, call)
            waiting = Waiting(started, asked_ms=self.now_ms)
            self._waiting[place] = waiting
            if known is not None and known.retry is not None:
                self._taken_up(waiting, known.retry, call.key)
            self._effects.append(waiting.started)
            return False
        if intent is None and self.segments and (missed := self._passed_over(place)):
            self._differs(f"replay asks for {tool.name} at {place}, but not for {missed}, which is on record")
            return False
        send_by_ms = self.now_ms + SEND_WITHIN_MS
        started = StartCall(self._whole, place, tool, call, 0.0, "call", None, send_by_ms)
        waiting = self._waiting[place] = Waiting(started)
        if known is None or intent is None:
            if tool.scope == "tenant":
                self._effects.append(AskKey(self._whole, place, tool, self._digest(place), call.fingerprint))
            else:
                self._intend(waiting)
            return False
        if UNDO + place in self.journal:  # its `on_unknown` has decided
            self._taken_up(waiting, Retry(1, intent.executions, unknown=True), intent.key)
            return self._undo_unknown(waiting.started, 0.0)
        return self._resume(waiting, intent, known.retry)
