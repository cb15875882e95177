"""Rules of the product, left out one at a time: what replaces a function must fit where it goes."""

import inspect
from typing import Any

import pytest


def replace(patch: pytest.MonkeyPatch, owner: Any, name: str, replacement: Any) -> None:
    """Replace a function by one with the same parameters: another one would fail for that, and prove nothing."""
    was, becomes = (list(inspect.signature(each).parameters) for each in (getattr(owner, name), replacement))
    assert was == becomes, f"{name} takes {was}, not {becomes}"
    patch.setattr(owner, name, replacement)
