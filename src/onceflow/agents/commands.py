"""What a person decides: how a parked run goes on, that a run is to end, that lost records of an input are let go.

A command reaches the run's cell through F.inbox, as a record with the header `onceflow-command`; so it is finished in
the transaction that carries what it led to, once. It names how much of the journal its sender had seen: when two people
resolve the same run, the second is refused.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from onceflow.agents.calls import RESULT_MAX_BYTES
from onceflow.agents.journal import (
    CALL_FAILED,
    FAILING,
    NIL,
    OUTCOME_UNKNOWN,
    PARKED,
    UNDO,
    Entry,
    OpenRun,
    settled,
)

HEADER = "onceflow-command"
CANCELLED = "cancelled"

Action = Literal["result", "again", "fail", "cancel", "accept-loss", "discard"]


class Command(msgspec.Struct, frozen=True):
    """`run`: in hex. `segments`: of its journal, as the sender saw it; a cancel doesn't need it.

    Action `discard` lets go of what is kept of a failed run. `accept-loss` is about an input: `topic`, `partition`, and
    the offset below which its records are let go.
    """

    action: Action
    tenant: str = ""
    run: str = ""
    segments: int = 0
    topic: str = ""
    partition: int = 0
    offset: int = 0
    result: msgspec.Raw = msgspec.Raw(b"null")  # JSON; action `result`
    format: int = 1


def encode_command(command: Command) -> bytes:
    return msgspec.json.encode(command)


def decode_command(value: bytes) -> Command:
    """Raises msgspec.DecodeError for what is none."""
    return msgspec.json.decode(value, type=Command)


def stored_result(result: bytes) -> bytes:
    """A call's result, in JSON, as its journal keeps it. Raises ValueError, in a line, for what it cannot keep."""
    try:
        stored = msgspec.msgpack.encode(msgspec.json.decode(result))
    except RecursionError as error:
        raise ValueError("it nests too deep") from error
    except OverflowError as error:
        raise ValueError(f"{error}; write such a number as a text") from error
    if len(stored) > RESULT_MAX_BYTES:
        raise ValueError(f"it takes {len(stored)} bytes, at most {RESULT_MAX_BYTES} fit")
    return stored


def resolution(command: Command, run: OpenRun) -> Mapping[str, Entry] | str:
    """What a command on a run that is not under way writes into its journal, or why it is refused."""
    parked = run.journal.get(PARKED)
    if command.action == "cancel":
        news = {FAILING: Entry(run.begun.agent, 0, b"", None, (CANCELLED, "cancelled by an operator"))}
        if run.parked and parked is not None:
            news[PARKED] = settled(run.begun.agent)
            place = parked.arguments.decode()
            if place and not place.startswith(UNDO):  # it stays unknown, and is undone where that can be
                error = (OUTCOME_UNKNOWN, f"{run.journal[place].tool}: cancelled while nobody knew")
                news[place] = msgspec.structs.replace(run.journal[place], error=error)
        return news
    if not run.parked or parked is None:
        return "the run is not parked"
    if command.segments != run.segments:
        return "somebody was faster: the run has changed since it was looked at"
    place = parked.arguments.decode()
    if not place:  # a replay differs from the record
        if command.action == "again":
            return {PARKED: settled(run.begun.agent)}
        return "no call's outcome is in question: write --again, once its agent is mended, or cancel the run"
    known = run.journal[place]
    if command.action == "result":
        try:
            stored = NIL if place.startswith(UNDO) else stored_result(bytes(command.result))
        except ValueError as wrong:
            return f"the result cannot be stored: {wrong}"
        outcome = msgspec.structs.replace(known, result=stored, error=None)
    elif command.action == "fail":
        error = (CALL_FAILED, f"{known.tool}: an operator said that it did not happen")
        outcome = msgspec.structs.replace(known, error=error)
    else:
        assert known.intent is not None
        outcome = msgspec.structs.replace(known, intent=msgspec.structs.replace(known.intent, again=True))
    return {place: outcome, PARKED: settled(run.begun.agent)}
