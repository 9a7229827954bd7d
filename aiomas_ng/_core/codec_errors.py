"""What to tell somebody whose data could not be encoded or decoded, in few words and without failing
itself."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from aiomas_ng.exceptions import SerializationError

__all__ = ["MAX_VISITS", "EncodeError", "describe", "explain", "short"]

MAX_VISITS: Final = 10_000
"""How many values are looked at for the one that failed."""

_MAX_TEXT = 200
"""Characters of an error's text that are passed on: some errors print all the data that they are about."""


class EncodeError(SerializationError):
    """One value could not be encoded; becomes a :exc:`SerializationError` that also says where it is.

    Args:
        text: What is wrong with it.
        obj: The value.
    """

    def __init__(self, text: str, obj: Any) -> None:
        super().__init__(text)
        self.obj = obj


def short(obj: Any) -> str:
    """Return the representation of *obj*, shortened; its own ``__repr__()`` may fail."""
    try:
        return reprlib.repr(obj)
    except Exception:
        return f"<{type(obj).__qualname__} at {id(obj):#x}>"


def describe(exc: BaseException) -> str:
    """Return type and message of *exc*, shortened; its own ``__str__()`` may fail."""
    try:
        text = str(exc)
    except Exception:
        text = ""
    return f"{type(exc).__name__}: {text[:_MAX_TEXT]}" if text else type(exc).__name__


def explain(exc: Exception, data: Any) -> tuple[str, BaseException | None]:
    """Return what went wrong while *data* was encoded, and the error that caused it."""
    if isinstance(exc, EncodeError):
        return f"{exc}{_place(data, lambda value: value is exc.obj)}", exc.__cause__
    if isinstance(exc, UnicodeEncodeError):
        return f"Text with surrogates cannot be encoded{_place(data, _has_surrogates)}: {exc.reason}", exc
    if isinstance(exc, SerializationError):
        return str(exc), exc
    text = describe(exc)
    if isinstance(exc, RecursionError) or "recursion limit" in text or "Circular" in text:
        return "Data is nested too deep, or contains itself", exc
    return f"Could not encode {short(data)}: {text}", exc


def _has_surrogates(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _place(data: Any, is_culprit: Callable[[Any], bool]) -> str:
    """Return in words where in *data* the culprit is, ``""`` where it is not found."""
    # Without recursion, and lazily: data may be too deep to be encoded, and very wide.
    waiting: list[Iterator[tuple[str, Any]]] = [iter([("", data)])]
    for _ in range(MAX_VISITS):
        while waiting and (found := next(waiting[-1], None)) is None:
            waiting.pop()
        if not waiting or found is None:
            break
        path, value = found
        if is_culprit(value):
            return f" (at {path})" if path else ""
        waiting.append(_children(path, value))
    return ""


def _children(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is in *value*, and where."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{path or 'the top'}, the key {short(key)}", key
            yield f"{path}[{short(key)}]", item
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"{path}[{index}]", item
