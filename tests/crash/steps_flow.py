"""Flow under test: three `read` calls per run, each noted outside the process; the last one waits for a gate.

CRASH_NOTES: a file to which each call appends a line `<tool> <run> <number>`, whatever happens to the process after.
CRASH_GATE: a file; while it is missing, the last call of each run does not answer.
"""

import os
import secrets
from pathlib import Path

from onceflow import Call, Event, Run, agent, dataflow, tool
from tests.crash import points
from tests.crash.load import TYPE
from tests.waiting import until

NOTES, GATE = Path(os.environ["CRASH_NOTES"]), Path(os.environ["CRASH_GATE"])


def note(call: Call, name: str) -> str:
    """Note a call where its process's death changes nothing; return the number that it answers with."""
    number = secrets.token_hex(8)
    notes = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(notes, f"{name} {call.run_id} {number}\n".encode())
    os.close(notes)
    return number


@tool(effect="read")
async def look_up(call: Call, thing: str) -> str:
    return note(call, "look_up")


@tool(effect="read")
async def ask_model(call: Call, seen: str) -> str:
    return note(call, "ask_model")


@tool(effect="read")
async def check(call: Call, answer: str) -> str:
    number = note(call, "check")
    await until(GATE.exists)
    return number


@agent("steps", on=TYPE)
async def steps(run: Run, event: Event) -> dict[str, str]:
    """Three steps, each of which needs the one before."""
    seen = await run.call(look_up, thing=event.id)
    answer = await run.call(ask_model, seen=seen)
    checked = await run.call(check, answer=answer)
    return {"look_up": seen, "ask_model": answer, "check": checked}


points.install_from_environment()
flow = dataflow(os.environ["CRASH_FLOW"], agents=[steps])
