"""What a message may become when it is decoded.

A few bytes may stand for much more memory, for deep nesting, or for hours of work:

- Deep nesting is looked for before anything is decoded: in MsgPack by stepping over the values below so many
  arrays that the unpacker's own bound is met, in JSON by counting the brackets outside of strings.
- Memory: no value takes more than :data:`MSGPACK_GROWTH` (:data:`JSON_GROWTH`) times its bytes in the
  message. If that may be above the limit, MsgPack is metered: each array and map is counted as it is
  complete, so that decoding ends when the limit is reached. JSON is estimated by what is outside of strings.
- Keys of maps: those of str and bytes are hashed with a secret of the process, others are not, and a peer may
  choose them so that all have the same hash; then the time to decode grows with the square of their number.
  Such maps are refused.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgpack

from aiomas_ng._core import msgpack_bytes
from aiomas_ng.exceptions import DecodedTooLargeError, DeserializationError

__all__ = ["FEW_KEYS", "JSON_GROWTH", "MSGPACK_GROWTH", "Meter", "check_json", "make_map", "unpack"]

#: Bytes of memory for each byte of MsgPack, at most: two bytes begin a map whose only item is such a map.
MSGPACK_GROWTH: Final = 130
#: The same of JSON: eight bytes, as in ``{"":1},``, are a dict.
JSON_GROWTH: Final = 100

#: Keys that a map may have without a look at their hashes. To decode 64 keys of the same hash takes four
#: times as long as others; a thousand, fifty times.
FEW_KEYS: Final = 64
#: Keys of a map that may have the hash of another one.
MAX_COLLISIONS: Final = 64

#: Bytes of the smallest object that an item of an array can be, and of the pointer to it.
SMALLEST_ITEM: Final = 24

#: What is charged for each value of JSON, and on top for each dict, in bytes.
JSON_VALUE_COST: Final = 88
JSON_DICT_COST: Final = 160

_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)  # one that is cut off ends with the text
_NO_BRACKETS = re.compile(r"[^\[\]{}]+")
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # up and down by one, as signed bytes
_CHUNK: Final = 2**16

_STRINGS: Final = frozenset({str, bytes})

ExtHook = Callable[[int, bytes], Any]


class Meter:
    """What a message has taken so far.

    Args:
        limit: Bytes that it may take.
    """

    __slots__ = ("_left", "limit")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._left = limit

    @property
    def max_items(self) -> int:
        """Items of the longest array that there may be room for."""
        return int(min(self._left, sys.maxsize)) // SMALLEST_ITEM

    def count_array(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        """Count the *items* of an array, and return them.

        Raises:
            DecodedTooLargeError: All that was counted is above the limit.
        """
        self._count(items)
        return items

    def count_map(self, pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
        """Return the map of *pairs*, after counting all in it.

        Raises:
            DecodedTooLargeError: All that was counted is above the limit.
            DeserializationError: Too many keys have the same hash.
        """
        result = make_map(pairs)
        self._count(itertools.chain(result, result.values()))
        return result

    def _count(self, values: Iterable[Any]) -> None:
        self._left -= sum(map(sys.getsizeof, values))
        if self._left < 0:
            raise too_large(self.limit)


def too_large(limit: float) -> DecodedTooLargeError:
    """Return the error for a message above *limit*."""
    return DecodedTooLargeError("the message takes too many bytes of memory", "decoded_size", limit)


def too_deep(limit: float) -> DecodedTooLargeError:
    """Return the error for a message whose nesting is above *limit*."""
    return DecodedTooLargeError("the message has too many levels", "decoded_depth", limit)


def make_map(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return the map of *pairs*.

    Raises:
        DeserializationError: Too many keys have the same hash.
    """
    if len(pairs) > FEW_KEYS:
        keys = [key for key, _ in pairs]
        if not set(map(type, keys)) <= _STRINGS:
            collisions = len(keys) - len(set(map(hash, keys)))
            if collisions > MAX_COLLISIONS:
                raise DeserializationError(
                    f"A map has {collisions} keys with the hash of another one, {MAX_COLLISIONS} are the most"
                )
    return dict(pairs)


def unpack(
    data: bytes | bytearray | memoryview,
    ext_hook: ExtHook,
    max_depth: float,
    meter: Meter | None,
) -> Any:
    """Return what MsgPack *data* is, of which nothing is known yet.

    Args:
        data: The message, or the payload of an extension type.
        ext_hook: Decodes extension types; it shares the *meter*.
        max_depth: Levels of arrays and maps that may contain each other.
        meter: Counts, if the message has to be counted.

    Raises:
        DecodedTooLargeError: It is too deep or too large.
        Exception: What msgpack or *ext_hook* raise.
    """
    try:
        msgpack_bytes.check_arrays(data, max_depth)
    except msgpack.StackError as exc:
        raise too_deep(min(max_depth, msgpack_bytes.MAX_DEPTH)) from exc
    options: dict[str, Any] = {"use_list": False, "strict_map_key": False, "ext_hook": ext_hook}
    if meter is not None and not msgpack_bytes.has_few_values(data):
        try:
            return msgpack.unpackb(
                data,
                list_hook=meter.count_array,
                object_pairs_hook=meter.count_map,
                max_array_len=meter.max_items,
                **options,
            )
        except ValueError as exc:
            if "exceeds max_array_len" not in str(exc):
                raise
            raise too_large(meter.limit) from exc
    try:
        return msgpack.unpackb(data, max_map_len=FEW_KEYS, **options)
    except ValueError as exc:
        if "exceeds max_map_len" not in str(exc):
            raise
    return msgpack.unpackb(data, object_pairs_hook=make_map, **options)


def check_json(text: str, max_depth: float, max_size: float) -> None:
    """Check what JSON *text* becomes when it is decoded.

    Raises:
        DecodedTooLargeError: It is too deep or too large.
    """
    is_deep = len(text) > max_depth and text.count("[") + text.count("{") > max_depth
    is_large = len(text) * JSON_GROWTH > max_size
    if not is_deep and not is_large:
        return
    outside = _STRING.sub('"', text)
    if is_deep and _depth_of(outside, max_depth) > max_depth:
        raise too_deep(max_depth)
    if is_large:
        dicts = outside.count("{")
        values = outside.count(",") + outside.count(":") + outside.count("[") + dicts
        if sys.getsizeof(text) + JSON_VALUE_COST * values + JSON_DICT_COST * dicts > max_size:
            raise too_large(max_size)


def _depth_of(text: str, enough: float) -> int:
    """Return how deep brackets are nested in *text*, or something above *enough* if that is less."""
    steps = memoryview(_NO_BRACKETS.sub("", text).encode().translate(_STEPS)).cast("b")
    level = deepest = 0
    for start in range(0, len(steps), _CHUNK):
        levels = list(itertools.accumulate(steps[start : start + _CHUNK], initial=level))
        level = levels[-1]
        deepest = max(deepest, max(levels))
        if deepest > enough:
            break
    return deepest
