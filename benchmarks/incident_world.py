"""The world of `benchmarks incident`: a model that costs tokens, and a target that acts on what it says.

Both lose answers now and then: what was asked for is done, and whoever asks runs into a time-out. Both also refuse, as
a busy service does. Which requests, and how many tokens an answer costs, is drawn from the event's number with a fixed
seed: it is the same whoever asks. Only the first attempt of a call meets a fault.
"""

import asyncio
import random
import secrets

from benchmarks import outside

SEED = 7
LOST, BUSY = 0.05, 0.02  # shares of the calls
TOKENS = range(400, 1_600)  # of an answer
ANSWER_S = 0.2
_at_once = asyncio.Semaphore(32)  # what the model takes


class Busy(Exception):  # noqa: N818 (reads as what it says)
    """Refused: nothing was done."""


async def ask(number: int, attempt: int) -> str:
    """Ask the model what to do about an event; another answer each time."""
    draw = _draw("model", number)
    tokens = draw.choice(TOKENS)
    async with _at_once:
        lost = _fault(draw, attempt)
        await asyncio.sleep(ANSWER_S)
        outside.note("model", number, tokens)
    if lost:
        raise TimeoutError("the model's answer was lost")
    return secrets.token_hex(4)


async def act(number: int, plan: str, key: str, attempt: int) -> str:
    """Do what was planned; without a key, each time."""
    lost = _fault(_draw("act", number), attempt)
    outside.note("effect", number, "act", key or "-")
    if lost:
        raise TimeoutError("the answer was lost")
    return plan


def _draw(what: str, number: int) -> random.Random:
    return random.Random(f"{SEED} {what} {number}")


def _fault(draw: random.Random, attempt: int) -> bool:
    """Whether the answer is lost; Busy, if the request is refused."""
    found = draw.random()
    if attempt == 1 and found < BUSY:
        raise Busy("ask again")
    return attempt == 1 and found < BUSY + LOST
