"""Which types the data of events and the results of tools may be declared as."""

from typing import Any

import msgspec
import pydantic
from msgspec import inspect


def undecodable(kind: Any) -> str:
    """The name of a type within `kind` that nothing decodes; "": there is none. Raises TypeError for what is no type.

    msgspec takes any class, and leaves those that it does not know to a hook: ours decodes pydantic models.
    """
    met: set[int] = set()
    rest: list[Any] = [inspect.type_info(kind)]
    while rest:
        node = rest.pop()
        if id(node) in met:  # a type may hold itself
            continue
        met.add(id(node))
        if isinstance(node, inspect.CustomType):
            if node.cls is not object and not issubclass(node.cls, pydantic.BaseModel):
                return type_name(node.cls)
        elif isinstance(node, inspect.Type | inspect.Field):
            for value in msgspec.structs.astuple(node):
                rest += value if isinstance(value, tuple) else (value,)
    return ""


def type_name(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) else str(kind)
