"""Flow under test: orders that are placed over HTTP, see `effect_server`; what came of it is the completion.

CRASH_TARGET: the target's URL. An order's data: {"order", "effect": "keyed" | "blind", "behaviour", "times"}.
"""

import json
import os
import urllib.error
import urllib.request
from datetime import timedelta

from onceflow import (
    Call,
    CallFailed,
    Event,
    OutcomeUnknown,
    RetryLater,
    RetryPolicy,
    Run,
    agent,
    dataflow,
    tool,
)
from tests.crash.effect_server import PATIENCE_S
from tests.crash.load import TYPE

TARGET = os.environ["CRASH_TARGET"]
RETRY = RetryPolicy(attempts=3, first=timedelta(seconds=0.1))
PATIENCE = timedelta(seconds=PATIENCE_S)


def post(path: str, headers: dict[str, str]) -> str:
    """Place an order as most clients would: whatever goes wrong is raised as it comes."""
    request = urllib.request.Request(TARGET + path, b"{}", headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=2 * PATIENCE_S) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 429:
                raise RetryLater("429", after=float(error.headers["Retry-After"])) from None
            raise
    return body.decode() if len(body) > 1_000 else str(json.loads(body)["id"])


@tool(effect="keyed", timeout=PATIENCE, retry=RETRY, on_unknown="fail")
def place(call: Call, path: str) -> str:
    return post(path, call.headers)


@tool(effect="blind", timeout=PATIENCE, on_unknown="fail")
def place_blindly(call: Call, path: str) -> str:
    return post(path, {})


@agent("places", on=TYPE)
async def places(run: Run, event: Event[dict[str, str]]) -> str:
    """Place the order; say what came of it."""
    asked = event.data
    how = place if asked["effect"] == "keyed" else place_blindly
    try:
        return await run.call(how, path=f"/{asked['order']}/{asked['behaviour']}/{asked['times']}")
    except OutcomeUnknown:
        return "unknown"
    except CallFailed as error:
        return f"failed: {error}"


flow = dataflow(os.environ["CRASH_FLOW"], agents=[places])
