"""The parts of JSON messages that :mod:`json` does not do: markers, their escape, and a look at the head.

A custom type is a dict with one key, the marker ``{"__type__": [name, data]}``.  A dict of the user's own
that has this key becomes a marker itself, named ``dict``, with a list of its items; so any dict arrives as it
was.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

__all__ = ["MARKER", "TYPE_KEY", "escape", "read_head"]

TYPE_KEY: Final = "__type__"
"""The key of the dict that carries a custom type."""

MARKER: Final = f'"{TYPE_KEY}"'
"""The key as it stands in the text.  Nothing else can look like it, except a str of the same letters."""

_HEAD = re.compile(
    rb"[ \t\r\n]*\[[ \t\r\n]*(-?[0-9]{1,20})[ \t\r\n]*,[ \t\r\n]*"
    rb'(-?[0-9]{1,20}|"(?:[^"\\]|\\.)*")[ \t\r\n]*,'
)


def escape(data: Any) -> Any:
    """Return *data* with every dict that has the marker's key turned into a marker itself."""
    if isinstance(data, dict):
        if TYPE_KEY in data:
            return {TYPE_KEY: ["dict", [[_to_key(key), escape(value)] for key, value in data.items()]]}
        return {key: escape(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [escape(item) for item in data]
    return data


def _to_key(key: Any) -> str:
    """Return what :mod:`json` makes of a key."""
    return key if isinstance(key, str) else str(next(iter(json.loads(json.dumps({key: None})))))


def read_head(data: bytes) -> tuple[int, Any] | None:
    """Return the first two items of the list at the head of *data*, or ``None``.

    Raises:
        ValueError: They look like a number and a text, but are none.
    """
    match = _HEAD.match(data)
    return None if match is None else (json.loads(match[1]), json.loads(match[2]))
