"""Arrays and scalars of numpy as plain values, without pickle.

A value becomes ``(descr, shape, data)``: the dtype as :func:`numpy.lib.format.dtype_to_descr` writes it, the
lengths of the axes, and the items in C order.  ``descr`` is a str such as ``'<f8'``, or for a structured
dtype a list of ``[name, descr]`` or ``[name, descr, shape]``, with ``[title, name]`` for a name that has a
title.

Everything that a peer says is checked before something is allocated for it.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

from aiomas_ng.exceptions import DeserializationError, SerializationError

__all__ = ["MAX_DIMENSIONS", "MAX_EMPTY_ITEMS", "dump", "load"]

MAX_DIMENSIONS: Final = 64
"""Axes of the largest shape that is accepted; numpy itself may allow less."""

MAX_EMPTY_ITEMS: Final = 65536
"""Items without a size (of an empty structured dtype) in one array: they cost a peer nothing to announce."""

_KINDS: Final = frozenset("biufcmMSUV")
# What dtype_to_descr writes for these kinds, and for objects, which are refused by another check.
# The many other strings that numpy.dtype() parses are refused.
_DTYPE = re.compile(r"[<>|=]?[biufcmMOSUV][0-9]{0,10}(\[[0-9]{0,10}[A-Za-zμ]{1,7}\])?", re.ASCII)


def dump(value: Any) -> tuple[Any, tuple[int, ...], bytes]:
    """Return ``(descr, shape, data)`` of an array or scalar.

    Raises:
        SerializationError: It holds Python objects, or is of a class or dtype that would lose something.
    """
    import numpy as np

    if isinstance(value, np.ndarray) and type(value) not in (np.ndarray, np.memmap):
        raise SerializationError(
            f"{type(value).__name__} would arrive as a plain array; add a serializer for it or send "
            f"numpy.asarray(value)"
        )
    array = np.asarray(value)
    if array.dtype.names is not None and not array.dtype.hasobject:
        # What is between the fields is not copied: it is any memory of this process.
        array, original = np.zeros(array.shape, array.dtype), array
        array[...] = original
    return _dump_dtype(array.dtype), array.shape, array.tobytes()


def load(descr: Any, shape: Any, data: bytes, *, is_scalar: bool = False) -> Any:
    """Return the array, which is writable, or the scalar.

    Raises:
        DeserializationError: The three do not fit together, hold Python objects, or numpy is missing.
        Exception: What numpy raises for a dtype or shape that it does not accept.
    """
    try:
        import numpy as np
        from numpy.lib.format import descr_to_dtype
    except ImportError as exc:
        raise DeserializationError(
            "The peer sent a value of numpy, which is missing here; pip install aiomas_ng[numpy]"
        ) from exc
    lengths = _load_shape(shape)
    dtype = np.dtype(descr_to_dtype(_load_descr(descr)))
    if dtype.hasobject:
        raise DeserializationError(f"An array of dtype {dtype} would hold Python objects")
    items = math.prod(lengths)
    if items * dtype.itemsize != len(data) or (not dtype.itemsize and items > MAX_EMPTY_ITEMS):
        raise DeserializationError(
            f"{len(data)} bytes are no array of shape {lengths} with items of {dtype.itemsize} bytes"
        )
    if is_scalar and lengths:
        raise DeserializationError(f"A scalar has no shape, not {lengths}")
    # The copy makes it writable.  array.copy() would put any memory of this process between the fields.
    array = np.ndarray(lengths, dtype, buffer=bytearray(data))
    return array[()] if is_scalar else array


def _dump_dtype(dtype: Any) -> Any:
    from numpy.lib.format import descr_to_dtype, dtype_to_descr

    if dtype.hasobject or dtype.kind not in _KINDS:
        raise SerializationError(f"dtype {dtype} cannot be carried: its items are no plain bytes")
    try:
        descr = dtype_to_descr(dtype)
        # Types of other packages (such as bfloat16) pretend to be plain bytes, and would arrive as such.
        is_faithful = descr_to_dtype(descr) == dtype
    except ValueError as exc:
        raise SerializationError(f"dtype {dtype} cannot be carried: {exc}") from exc
    if not is_faithful:
        raise SerializationError(f"dtype {dtype} cannot be carried: it would arrive as {descr}")
    return _dump_descr(descr)


def _dump_descr(descr: Any) -> Any:
    """Turn the tuples of a description into lists, as every format has them."""
    if isinstance(descr, str):
        return descr
    fields = []
    for name, inner, *shape in descr:
        if not isinstance(name, str) and not all(isinstance(part, str) for part in name):
            raise SerializationError(f"the title of the field {name!r} is no text")
        wire_name = name if isinstance(name, str) else list(name)
        fields.append([wire_name, _dump_descr(inner), *map(list, shape)])
    return fields


def _load_descr(descr: Any) -> Any:
    """Turn lists back into the tuples that numpy expects, and let nothing else pass."""
    if isinstance(descr, str):
        if not _DTYPE.fullmatch(descr):
            raise DeserializationError(f"No dtype: {descr[:40]!r}")
        return descr
    if not isinstance(descr, (list, tuple)):
        raise DeserializationError(f"No dtype: a {type(descr).__name__}")
    return [_load_field(*field) for field in descr]


def _load_field(name: Any, descr: Any, *shape: Any) -> tuple[Any, ...]:
    parts = name if isinstance(name, (list, tuple)) else [name]
    if len(parts) > 2 or len(shape) > 1 or not all(isinstance(part, str) for part in parts):
        raise DeserializationError("Malformed field in a dtype")
    return (tuple(parts) if len(parts) == 2 else parts[0], _load_descr(descr), *map(_load_shape, shape))


def _load_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, (list, tuple)) or len(shape) > MAX_DIMENSIONS:
        raise DeserializationError("Malformed shape of an array")
    if not all(type(length) is int and 0 <= length < 2**63 for length in shape):
        raise DeserializationError("Malformed shape of an array")
    return tuple(shape)
