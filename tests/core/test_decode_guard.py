"""What a message may become when it is decoded: at each bound it passes, one above it is refused."""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomas_ng import codecs
from aiomas_ng._core import decode_guard
from aiomas_ng._core.decode_guard import FEW_KEYS, JSON_GROWTH, MAX_COLLISIONS, MSGPACK_GROWTH
from aiomas_ng._core.limits import DEFAULT_LIMITS, Limits
from aiomas_ng._core.msgpack_bytes import FREE_CELLS, MAX_DEPTH
from aiomas_ng.exceptions import DecodedTooLargeError, DeserializationError

MIB = 2**20
P = sys.hash_info.modulus

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
)
values = st.recursive(
    scalars | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-100, 100), inner),
    max_leaves=50,
)


def codec_with(cls: type[codecs.Codec], **limits: Any) -> codecs.Codec:
    """Return a codec with other limits than those by default."""
    codec = cls()
    codec.use_limits(Limits(**limits))
    return codec


def cost_of(value: Any) -> int:
    """Return what all that is in *value* takes, as the documentation says."""
    if isinstance(value, dict):
        inner = [*value, *value.values()]
    else:
        inner = list(value) if isinstance(value, (list, tuple)) else []
    return sum(map(sys.getsizeof, inner)) + sum(map(cost_of, inner))


def colliding(count: int) -> list[tuple[int, int]]:
    """Return items for a map whose keys have the same hash, all of them."""
    return [(number * P, 0) for number in range(1, count + 1)]


# -- Depth -----------------------------------------------------------------------------------------

NESTED = {
    "arrays": (codecs.MsgPack, lambda depth: b"\x91" * depth + b"\xc0"),
    "maps": (codecs.MsgPack, lambda depth: b"\x81\x00" * depth + b"\xc0"),
    "JSON": (codecs.JSON, lambda depth: b"[" * depth + b"0" + b"]" * depth),
    "JSON objects": (codecs.JSON, lambda depth: b'{"[":' * depth + b"0" + b"}" * depth),
}


def pack(value: Any) -> bytes:
    return bytes(msgpack.packb(value))


@pytest.mark.parametrize("kind", ["arrays", "maps", "JSON", "JSON objects"])
@pytest.mark.parametrize("limit", [3, 100, DEFAULT_LIMITS.decoded_depth])
def test_depth(kind: str, limit: int) -> None:
    """Nesting up to the limit decodes; one level more is refused, and the error names the limit."""
    cls, nest = NESTED[kind]
    codec = codec_with(cls, decoded_depth=limit)
    codec.decode(nest(limit))
    with pytest.raises(DecodedTooLargeError, match=f"the limit is {limit}.*decoded_depth"):
        codec.decode(nest(limit + 1))


@pytest.mark.parametrize("padding", [b"", bytes(5000), bytes(2 * FREE_CELLS)])
def test_depth_beside_something_large(padding: bytes) -> None:
    """Nesting is found wherever it is, in messages of any size."""
    codec = codec_with(codecs.MsgPack, decoded_depth=70)
    for many in ([], [0] * 200):
        head = b"\xdc\x01\x00" + pack(padding) + b"".join(map(pack, many)) + b"\xc0" * (254 - len(many))
        codec.decode(head + b"\x91" * 69 + b"\xc0")
        with pytest.raises(DecodedTooLargeError):
            codec.decode(head + b"\x91" * 70 + b"\xc0")


def test_depth_of_the_library() -> None:
    """The bound of msgpack itself is what we rely on, and no limit goes beyond it."""
    codec = codec_with(codecs.MsgPack, decoded_depth=10**6)
    codec.decode(b"\x91" * MAX_DEPTH + b"\xc0")
    with pytest.raises(DeserializationError):
        codec.decode(b"\x91" * (MAX_DEPTH + 1) + b"\xc0")


@pytest.mark.parametrize("text", [b"[" * MIB, b'{"":' * MIB, b'["' + b"[" * MIB, b'["\\' + b'"[' * MIB])
def test_json_never_ends_the_stack(text: bytes) -> None:
    """Brackets without end are refused as what they are, and no RecursionError leaks out, at any limit."""
    for limit in (1, 500, 10**9):
        with pytest.raises(DeserializationError):
            codec_with(codecs.JSON, decoded_depth=limit).decode(text)


def test_brackets_in_strings_are_no_nesting() -> None:
    """Brackets, quotes and backslashes inside of strings do not count."""
    codec = codec_with(codecs.JSON, decoded_depth=2)
    for text in ("[" * 100, '"[' * 100, '\\"[{' * 100, "\\" * 99, "]" * 100 + "\n["):
        data = [{text: text}]
        assert codec.decode(codec.encode(data)) == data
    with pytest.raises(DecodedTooLargeError):
        codec.decode(codec.encode([[["]]"]]]))


def test_scan_of_strings_takes_linear_time() -> None:
    """A text that is a string without end, full of escaped quotes, is looked through once."""
    codec = codec_with(codecs.JSON, decoded_depth=1)
    started = time.process_time()
    with pytest.raises(DeserializationError):
        codec.decode(b'[["' + b'\\"[' * MIB)
    assert time.process_time() - started < 5


NEST: Any = {}
"""The smallest that there is below each other."""
for _ in range(400):
    NEST = {0: NEST}

# -- Size ------------------------------------------------------------------------------------------


@given(value=values)
def test_growth_of_msgpack(value: Any) -> None:
    """No message takes more than so many times its bytes."""
    message = pack([value])
    decoded = msgpack.unpackb(message, use_list=False, strict_map_key=False)
    assert cost_of(decoded) <= MSGPACK_GROWTH * len(message)


@pytest.mark.parametrize(
    "item", [0, None, True, "", "a", "ab", "Ā", [], {}, [0], {0: 0}, {"": 0}, {0: {}}, b"", NEST]
)
def test_growth_of_the_smallest(item: Any) -> None:
    """Not even arrays of the smallest values there are do so, with their pointers."""
    for value, decode, encode, growth in (
        (item, lambda m: msgpack.unpackb(m, use_list=False, strict_map_key=False), pack, MSGPACK_GROWTH),
        (None if item == b"" else item, json.loads, json.dumps, JSON_GROWTH),
    ):
        message = encode([value] * 1000)
        assert cost_of(decode(message)) + 8 * 1000 <= growth * len(message)


@given(value=values)
@settings(max_examples=50)
def test_exact_size_of_msgpack(value: Any) -> None:
    """A message that takes just the limit decodes as it would without; with one byte less it is refused."""
    message = pack([value, [0] * 100])
    expected = codecs.MsgPack().decode(message)
    limit = cost_of(expected)
    assert codec_with(codecs.MsgPack, decoded_size=limit).decode(message) == expected
    with pytest.raises(DecodedTooLargeError, match=f"limit is {limit - 1}.*decoded_size"):
        codec_with(codecs.MsgPack, decoded_size=limit - 1).decode(message)


@pytest.mark.parametrize("item", [b"\x80", b"\x90", b"\xc0", b"\x81\x00\x00", b"\x91\xc0", b"\xa2ab"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_memory_is_bounded(item: bytes, is_nested: bool) -> None:
    """A message that would take far more than the limit is refused before it does, in a custom type too."""
    count = MIB // len(item)
    message = b"\xdd" + count.to_bytes(4, "big") + item * count
    if is_nested:
        message = pack([msgpack.ExtType(codecs.EXT_TYPE, b"\x92\xa1r" + message)])
    codec = codec_with(codecs.MsgPack, decoded_size=2 * MIB)
    codec.add_serializer(set, list, set, name="r")
    tracemalloc.start()
    try:
        with pytest.raises(DecodedTooLargeError):
            codec.decode(message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Up to three copies of the message, and an array whose items are counted when it is complete.
    assert peak < 4 * 2 * MIB + 3 * len(message)


def test_custom_types_share_the_limit() -> None:
    """What several custom types take together is bounded, not what each of them takes."""
    codec = codec_with(codecs.MsgPack, decoded_size=200_000)
    codec.add_serializer(set, list, set, name="r")
    part = msgpack.ExtType(codecs.EXT_TYPE, pack(["r", list(range(1000))]))
    assert len(codec.decode(pack([part] * 2))) == 2
    with pytest.raises(DecodedTooLargeError):
        codec.decode(pack([part] * 20))


def test_what_is_large_but_few_is_not_counted() -> None:
    """A few large values take no more than their bytes, and pass."""
    codec = codec_with(codecs.MsgPack, decoded_size=1000)
    assert codec.decode(pack([0, 1, ["path", [bytes(10_000)], {}]]))[2][1] == (bytes(10_000),)


@pytest.mark.parametrize("item", [{}, [], 0, {"": 0}, "", {"a": [1, 2.5, "x"]}])
def test_size_of_json(item: Any) -> None:
    """Few small values pass, and so many that they may take more than the limit are refused."""
    codec = codec_with(codecs.JSON, decoded_size=MIB)
    codec.decode(codec.encode([item] * 500))
    with pytest.raises(DecodedTooLargeError, match="decoded_size"):
        codec.decode(codec.encode([item] * 50_000))


@given(value=values.filter(lambda value: b"" not in [value]))
@settings(max_examples=50)
def test_json_is_never_underestimated(value: Any) -> None:
    """What passes takes no more than the limit."""
    text = codecs.JSON().encode([value, *range(10)])
    result = codecs.JSON().decode(text)
    with pytest.raises(DecodedTooLargeError):
        codec_with(codecs.JSON, decoded_size=max(1, cost_of(json.loads(text)) - 1)).decode(text)
    assert codec_with(codecs.JSON, decoded_size=JSON_GROWTH * len(text)).decode(text) == result


@pytest.mark.needs("blosc2")
def test_decompressed_size() -> None:
    """A message may have as many bytes as the limit says when it is decompressed, and not one more."""
    message = codecs.MsgPackBlosc().encode(bytes(10_000))
    size = len(pack(bytes(10_000)))
    codec = codec_with(codecs.MsgPackBlosc, decompressed_size=size)
    assert codec.decode(message) == bytes(10_000)
    codec.use_limits(Limits(decompressed_size=size))
    with pytest.raises(DecodedTooLargeError, match=f"{size} bytes.*limit is {size - 1}.*decompressed_size"):
        codec_with(codecs.MsgPackBlosc, decompressed_size=size - 1).decode(message)


@pytest.mark.needs("blosc2")
def test_own_decompressed_size_stays() -> None:
    """A bound that was set on a subclass or an instance is not changed by a connection."""

    class Larger(codecs.MsgPackBlosc):
        max_decompressed_size = 2**40

    own = codecs.MsgPackBlosc()
    own.max_decompressed_size = 7
    for codec, value in ((Larger(), 2**40), (own, 7)):
        codec.use_limits(Limits(decompressed_size=100))
        assert codec.max_decompressed_size == value


# -- Keys that collide -----------------------------------------------------------------------------


def test_colliding_keys_are_refused() -> None:
    """A map with some keys of the same hash decodes, one with more does not, and it takes no time."""
    codec = codecs.MsgPack()
    allowed = dict(colliding(MAX_COLLISIONS + 1))
    assert codec.decode(codec.encode(allowed)) == allowed
    with pytest.raises(DeserializationError, match="keys with the hash of another one"):
        codec.decode(codec.encode(dict(colliding(MAX_COLLISIONS + 2))))
    key = pack(msgpack.ExtType(codecs.EXT_TYPE, pack(["int", (P * 2**64).to_bytes(20, "big")])))
    keys = [key[:-4] + i.to_bytes(4, "big") for i in range(50_000)]
    message = b"\xdf" + len(keys).to_bytes(4, "big") + b"".join(item + b"\x00" for item in keys)
    assert len(codec.decode(message)) == len(keys)  # these have hashes of their own
    items = b"".join(codec.encode(key) + b"\x00" for key, _ in colliding(50_000))
    started = time.process_time()
    with pytest.raises(DeserializationError):
        codec.decode(b"\xdf" + (50_000).to_bytes(4, "big") + items)
    assert time.process_time() - started < 5


def test_honest_keys() -> None:
    """Maps with many keys of any type arrive as they are."""
    codec = codecs.MsgPack()
    for keys in (
        range(1000),
        [str(i) for i in range(1000)],
        [(i, -i) for i in range(1000)],
        [i / 3 for i in range(999)],
    ):
        data = {"first": {1: 2}, "map": dict.fromkeys(keys, 0)}
        assert codec.decode(codec.encode(data)) == data


def test_colliding_keys_in_json() -> None:
    """The escape of JSON takes no keys but str, and says so before it makes a dict of them."""
    pairs = ",".join(f"[{key},0]" for key, _ in colliding(20_000))
    started = time.process_time()
    with pytest.raises(DeserializationError, match="must have str"):
        codecs.JSON().decode(b'{"__type__":["dict",[' + pairs.encode() + b"]]}")
    assert time.process_time() - started < 5


@pytest.mark.parametrize("count", [FEW_KEYS, FEW_KEYS + 1])
def test_double_keys(count: int) -> None:
    """Of a key that comes twice the last value counts, in small and in large maps."""
    message = (
        b"\xdf"
        + (count + 1).to_bytes(4, "big")
        + b"".join(map(pack, [x for i in range(count) for x in (i, i)]))
    )
    result = codecs.MsgPack().decode(message + pack(0) + pack("last"))
    assert result[0] == "last"
    assert len(result) == count


def test_make_map() -> None:
    """Pairs become the map that they are."""
    assert decode_guard.make_map([]) == {}
    assert decode_guard.make_map([("a", 1), ("b", 2)]) == {"a": 1, "b": 2}


# -- Numbers ---------------------------------------------------------------------------------------


def test_digits_of_json() -> None:
    """An integer of so many digits that it takes long to compute is refused."""
    assert codecs.JSON().decode(b"9" * 4300) == 10**4300 - 1
    with pytest.raises(DeserializationError):
        codecs.JSON().decode(b"9" * 4301)
