"""CBOR by the package ``cbor2`` (``pip install aiomas_ng[cbor]``), within bounds.

CBOR has tags that give a meaning to the value after them.  Those of dates, sets, numbers, addresses and UUIDs
are understood, in both directions.  Some others, which the package knows, could do harm and are refused:

- references to values (28, 29) and to strings (25, 256): by them some bytes become a value that contains
  itself, or that takes for ever to walk through;
- regular expressions (35) and mails (36), whose parsers are not made for hostile input;
- binary fractions (5), which may take gigabytes to compute.

Large numbers are refused too: the time to calculate with them grows with the square of their size.
"""

from __future__ import annotations

import io
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from aiomas_ng._core.builtin_types import MAX_INT_SIZE
from aiomas_ng._core.codec_errors import describe, explain
from aiomas_ng.exceptions import DeserializationError, SerializationError

__all__ = ["MAX_EXPONENT", "decode", "encode"]

#: The largest exponent of a decimal number, positive or negative.
MAX_EXPONENT: Final = 10_000

_MISSING: Final = "the format CBOR needs cbor2: pip install aiomas_ng[cbor]"


def encode(value: Any) -> bytes:
    """Return *value* as CBOR.

    Raises:
        SerializationError: It has something that CBOR has no place for, or contains itself; or ``cbor2`` is
            not installed.
    """
    try:
        import cbor2
    except ImportError as exc:
        raise SerializationError(_MISSING) from exc
    try:
        return cbor2.dumps(value)
    except Exception as exc:
        text, cause = explain(exc, value)
        raise SerializationError(text) from cause


def decode(payload: bytes) -> Any:
    """Return the value that *payload* is.

    Raises:
        DeserializationError: It is no CBOR, or something follows the value, or it has one of the tags above;
            or ``cbor2`` is not installed.
    """
    try:
        import cbor2
    except ImportError as exc:
        raise DeserializationError(_MISSING) from exc
    stream = io.BytesIO(payload)
    try:
        value = cbor2.CBORDecoder(stream, semantic_decoders=_DECODERS).decode()
    except Exception as exc:
        # What a decoder below raises is the cause of the package's own error.
        cause = exc.__cause__ if isinstance(exc.__cause__, DeserializationError) else None
        raise DeserializationError(str(cause) if cause is not None else describe(exc)) from exc
    if stream.tell() != len(payload):
        raise DeserializationError(f"{len(payload) - stream.tell()} bytes follow the value")
    return value


def _refuse(value: Any, is_immutable: bool) -> Any:
    raise DeserializationError("it has a tag that is refused, see aiomas_ng.content")


def _to_int(data: Any, is_immutable: bool) -> int:
    if not isinstance(data, bytes) or len(data) > MAX_INT_SIZE:
        raise DeserializationError(f"an integer must have at most {MAX_INT_SIZE} bytes")
    return int.from_bytes(data, "big")


def _to_negative_int(data: Any, is_immutable: bool) -> int:
    return -1 - _to_int(data, is_immutable)


def _to_decimal(parts: Any, is_immutable: bool) -> Decimal:
    exponent, mantissa = _to_two_ints(parts)
    if abs(exponent) > MAX_EXPONENT:
        raise DeserializationError(f"the exponent of a decimal number must be up to {MAX_EXPONENT}")
    # Not by scaling, which would round to the precision of the context.
    sign, digits, _ = Decimal(mantissa).as_tuple()
    return Decimal((sign, digits, exponent))


def _to_fraction(parts: Any, is_immutable: bool) -> Fraction:
    return Fraction(*_to_two_ints(parts))


def _to_two_ints(parts: Any) -> tuple[int, int]:
    if not isinstance(parts, (list, tuple)) or len(parts) != 2 or {type(part) for part in parts} != {int}:
        raise DeserializationError("a number that is made of two integers is made of something else")
    return parts[0], parts[1]


_DECODERS: Final = {
    2: _to_int,
    3: _to_negative_int,
    4: _to_decimal,
    30: _to_fraction,
    **dict.fromkeys((5, 25, 28, 29, 35, 36, 256), _refuse),
}
