"""Does a keyed tool pass its key on? What `keyed` promises, tried on the tool alone."""

import secrets
import time
from typing import Any

from onceflow.agents.call import Call
from onceflow.agents.tool import Tool
from onceflow.testing.script import SAYS_NOTHING_DONE, ScriptError, check_no_loop, no_such_raise
from onceflow.testing.simulation import finished
from onceflow.testing.target import Target, listed


def check_tool(tool: Tool[Any, Any], target: Target, **arguments: Any) -> None:
    """Call a keyed tool twice with one key, and once more after a lost answer: it must have the effects of one call.

    So many as one call with another key has: a tool may send several requests, with keys derived from its own. Its
    function must reach the target: as the service that it calls in a test. Raises AssertionError otherwise.
    """
    check_no_loop("check_tool")
    if not isinstance(tool, Tool) or not isinstance(target, Target):
        raise ScriptError(
            "write check_tool(charge, target, …): a tool, the Target that it reaches, and its arguments"
        )
    if tool.effect != "keyed":
        raise AssertionError(f"tool {tool.name} is {tool.effect}; check_tool is for keyed tools")

    bound = tool.bind((), arguments, "acme")  # as a run does it: defaults and the tenant filled in

    def call(key: str, attempt: int) -> None:
        asked = Call("acme", "run-1", key, attempt, bound)
        asked.sent(int(time.time() * 1000), tool.timeout_s)
        finished(tool.function(asked, **bound))

    key, other = secrets.token_hex(16), secrets.token_hex(16)  # the target may know those of earlier checks
    before, asked_before = len(target.effects), len(target.asked)
    target.lose_next_answer()
    said: Exception | None = None
    try:
        call(key, 1)
    except Exception as error:  # noqa: BLE001 (what does the tool make of a lost answer?)
        said = error
    finally:
        target.answer_again()  # if there was no request, it would be the next check's answer that is lost
    if isinstance(said, SAYS_NOTHING_DONE) and len(target.effects) > before:
        raise AssertionError(no_such_raise(tool, said, "though only the answer was lost")) from said
    for attempt in (2, 3):
        call(key, attempt)
    asked, done = target.asked[asked_before:], target.effects[before:]
    call(other, 1)
    of_one = len(target.effects) - before - len(done)
    if len(done) == of_one > 0:
        return
    keys = sorted({given for _, given in asked})
    given = ", ".join(f"key {each!r}" if each else "a request without a key" for each in keys)
    raise AssertionError(
        f"tool {tool.name} does not pass its key on: the target was given {given or 'no request'}. Send call.key, "
        "or keys derived from it, with each request, as call.headers (Idempotency-Key) or call.meta, and never a key "
        f"of your own. Called three times with one key it had {len(done)} effects, and once with another {of_one}.\n"
        + listed(target.effects[before:], ())
    )
