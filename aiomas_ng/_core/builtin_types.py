"""Types that every codec carries without a serializer, though its format has no place for them.

Each travels under a reserved name:

========= =============================================== ==========================================
name      representation                                  for
========= =============================================== ==========================================
``bytes`` base64 as text                                  bytes, bytearray and memoryview in JSON
``int``   bytes, two's complement, big-endian             integers beyond 64 bits in MsgPack
``dict``  list of ``[key, value]``                        in JSON, a dict that has the marker's key
``array`` ``[descr, shape, bytes]``                       :class:`numpy.ndarray`
``scalar``  the same with an empty shape                  scalars of numpy
========= =============================================== ==========================================

A format that has no bytes carries them as base64 in ``array`` and ``scalar`` as well.  Nothing here imports
numpy, except when a peer has sent something of it.
"""

from __future__ import annotations

import base64
import sys
from typing import Any, Final

from aiomas_ng._core import numpy_types
from aiomas_ng._core.codec_errors import describe
from aiomas_ng.exceptions import DeserializationError, SerializationError

__all__ = ["MAX_INT_SIZE", "NAMES", "represent", "restore"]

MAX_INT_SIZE: Final = 4096
"""Bytes of the largest integer that is carried beyond 64 bits, for both directions."""

NAMES: Final = frozenset({"array", "bytes", "dict", "int", "scalar"})
"""The reserved names."""


def represent(obj: Any, as_text: bool) -> tuple[str, Any] | None:
    """Return name and representation of *obj*, or ``None`` where it is not of these types.

    Args:
        obj: The object that the format has no place for.
        as_text: Write bytes as base64.

    Raises:
        SerializationError: It is of these types, and yet cannot be carried.
    """
    if isinstance(obj, (bytes, bytearray, memoryview)):
        data = obj.tobytes() if isinstance(obj, memoryview) else bytes(obj)
        return "bytes", _to_text(data) if as_text else data
    if isinstance(obj, int):
        size = obj.bit_length() // 8 + 1
        if size > MAX_INT_SIZE:
            raise SerializationError(f"an integer of {size} bytes is too large, the limit is {MAX_INT_SIZE}")
        return "int", obj.to_bytes(size, "big", signed=True)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(obj, (numpy.ndarray, numpy.generic)):
        descr, shape, data = numpy_types.dump(obj)
        name = "array" if isinstance(obj, numpy.ndarray) else "scalar"
        return name, [descr, shape, _to_text(data) if as_text else data]
    return None


def restore(name: str, representation: Any) -> Any:
    """Return the object of the reserved *name*.

    Raises:
        DeserializationError: *representation* does not follow the rules above.
    """
    try:
        if name == "bytes":
            return _to_bytes(representation)
        if name == "dict":
            return _to_dict(representation)
        if name == "int":
            return _to_int(representation)
        descr, shape, data = representation
        return numpy_types.load(descr, shape, _to_bytes(data), is_scalar=name == "scalar")
    except DeserializationError:
        raise
    except Exception as exc:
        raise DeserializationError(f"Malformed value of the type {name!r}: {describe(exc)}") from exc


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _to_bytes(representation: Any) -> bytes:
    if isinstance(representation, bytes):
        return representation
    return base64.b64decode(representation, validate=True)


def _to_int(data: Any) -> int:
    if not isinstance(data, bytes) or len(data) > MAX_INT_SIZE:
        raise DeserializationError(f"An integer must be at most {MAX_INT_SIZE} bytes")
    return int.from_bytes(data, "big", signed=True)


def _to_dict(pairs: Any) -> dict[str, Any]:
    pairs = list(pairs)
    # Before there is a dict: other keys could be chosen so that all of them have the same hash.
    if not all(isinstance(key, str) for key, _ in pairs):
        raise DeserializationError("A dict must have str for keys")
    return dict(pairs)
