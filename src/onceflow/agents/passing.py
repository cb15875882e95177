"""Calls pass the gate of their tenant and tool: at once, or one after another, in the order in which they came.

Who stands first waits for the gate, the others for who stands before them. So what passes wakes one, not all: thousands
may stand there.
"""

import asyncio
import logging
import time
from collections import deque

import msgspec

from onceflow.agents.calling import Whose
from onceflow.agents.calls import NotSent
from onceflow.agents.durable import LONGEST_IN_MEMORY_S
from onceflow.agents.gates import Allowance, Gate

log = logging.getLogger("onceflow.executor")

Turn = asyncio.Future[None]

now = time.monotonic


class _Queue(msgspec.Struct, eq=False):
    """Who waits at a gate."""

    turns: deque[Turn]
    freed: Turn | None = None  # that the first waits for: a call has ended


class Passing:
    """The gates of one loop's calls. For its thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, allowance: Allowance) -> None:
        self._loop = loop
        self._allowance = allowance
        self._gates: dict[Whose, Gate] = {}
        self._queues: dict[Whose, _Queue] = {}  # none is empty

    def at_once(self, at: Whose, at_s: float) -> Gate | None:
        """The gate, if a call passes it now; None: it has to wait."""
        gate = self._gates.get(at)
        if gate is None:
            gate = self._gates[at] = Gate()
        if at in self._queues or gate.wait_s(self._allowance, at_s) != 0:
            return None
        gate.sent(self._allowance, at_s)
        return gate

    async def in_turn(self, at: Whose) -> Gate:
        """Wait until a call may pass. A long time is none to wait in memory: raises NotSent."""
        queue = self._queues.get(at)
        if queue is None:
            queue = self._queues[at] = _Queue(deque())
        elif self._allowance.per_second:
            wait_s = len(queue.turns) / self._allowance.per_second  # at least, for those before it
            if wait_s > LONGEST_IN_MEMORY_S:
                raise NotSent(self._gates.setdefault(at, Gate()).later_s(self._allowance, now(), wait_s))
        turn: Turn = self._loop.create_future()
        queue.turns.append(turn)
        try:
            if queue.turns[0] is not turn:
                await turn
            return await self._first(at, queue)
        finally:  # whether it has passed, is not sent, or its run was abandoned
            was_first = queue.turns[0] is turn
            queue.turns.remove(turn)
            if not queue.turns:
                del self._queues[at]
            elif was_first and not (after := queue.turns[0]).done():
                after.set_result(None)

    async def _first(self, at: Whose, queue: _Queue) -> Gate:
        while True:
            gate, at_s = self._gates.setdefault(at, Gate()), now()
            wait_s = gate.wait_s(self._allowance, at_s)
            if wait_s == 0:
                gate.sent(self._allowance, at_s)
                return gate
            if wait_s > LONGEST_IN_MEMORY_S:
                raise NotSent(wait_s)
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            else:
                queue.freed = self._loop.create_future()
                await queue.freed

    def ended(self, at: Whose, gate: Gate, error: BaseException | None) -> None:
        """A call that has passed the gate has ended so; None: it was answered."""
        if error is None:
            gate.answered()
        elif isinstance(error, (NotSent, asyncio.CancelledError)):
            gate.given_up()
        elif gate.ended(self._allowance, now(), error):
            said = {"tool": at[1], "tenant": at[0], "cause": type(error).__name__}
            log.warning("a tool is left in peace for a while", extra=said)
        queue = self._queues.get(at)
        if queue is not None and queue.freed is not None and not queue.freed.done():
            queue.freed.set_result(None)

    def forget_idle(self, at_s: float) -> None:
        """Forget the gates of which nothing need be known."""
        self._gates = {at: gate for at, gate in self._gates.items() if not gate.idle(at_s)}
