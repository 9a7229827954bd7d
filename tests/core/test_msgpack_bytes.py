"""What is read from MessagePack without decoding it: just as a decoder would, and only what is there."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiomas_ng._core.msgpack_bytes import (
    FEW_VALUES,
    FREE_CELLS,
    check_arrays,
    cut_array,
    has_few_values,
    read_head,
)

BUNDLE = b"\x93\x0b"

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=40))
)


def pack(value: Any) -> bytes:
    """Encode integers of any size that fit, and everything else as msgpack does."""
    message: bytes = msgpack.packb(value)
    return message


def count_values(value: Any) -> int:
    """Return how many values there are in *value*, itself included."""
    if isinstance(value, dict):
        return 1 + sum(1 + count_values(item) for item in value.values())
    return 1 + sum(map(count_values, value)) if type(value) is list else 1


def has_wide_part(value: Any) -> bool:
    """Return whether there is an array or map of 16 items and more in *value*."""
    if isinstance(value, dict):
        return len(value) >= 16 or any(map(has_wide_part, value.values()))
    return type(value) is list and (len(value) >= 16 or any(map(has_wide_part, value)))


def is_complete(message: bytes) -> bool:
    """Return whether a whole value is at the head of *message*, as msgpack sees it."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(message) + 1)
    unpacker.feed(message)
    try:
        unpacker.skip()
    except Exception:
        return False
    return True


# -- has_few_values --------------------------------------------------------------------------------


keyed = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.integers(-(2**63), 2**64 - 1), inner, max_size=20)
    ),
    max_leaves=80,
)


@settings(max_examples=40)
@given(value=keyed)
@example(value=[0] * 15)
@example(value=[0] * 16)
@example(value={n: n for n in range(15)})
@example(value=[[0] * 15] * 4)
@example(value=[[[]] * 15] * 2)
def test_few_values_are_counted(value: Any) -> None:
    """It is true for exactly the messages that are made of few values and of small arrays and maps."""
    message = pack(value)
    expected = count_values(value) <= FEW_VALUES and not has_wide_part(value)
    for data in (message, bytearray(message), memoryview(message), message + b"rest"):
        assert has_few_values(data) == expected


@settings(max_examples=40)
@given(value=keyed, data=st.data())
def test_message_that_is_cut_off_is_not_of_few_values(value: Any, data: st.DataObject) -> None:
    """Of what is cut off it is never said that it is complete."""
    message = pack(value)
    assert not has_few_values(message[: data.draw(st.integers(0, len(message) - 1))])


@given(message=st.binary(max_size=80) | st.lists(st.integers(0x80, 0xE0), max_size=40).map(bytes))
@example(message=b"")
@example(message=b"\xc1")
@example(message=b"\x91\xc1")
@example(message=b"\xc6\xff\xff\xff\xff")
@example(message=b"\xc9\x00\x00\x00\x00")
@example(message=b"\xc7\x00")
@example(message=b"\xdd\xff\xff\xff\xff")
def test_any_bytes_of_few_values_are_complete(message: bytes) -> None:
    """What it is true for, msgpack can step over: so no header in it announces more than is there."""
    if has_few_values(message):
        assert is_complete(message)


@pytest.mark.parametrize("depth", [FEW_VALUES - 1, FEW_VALUES, 10_000])
def test_depth(depth: int) -> None:
    """Nesting counts as any values, and takes no stack."""
    assert has_few_values(b"\x91" * depth + b"\x00") == (depth < FEW_VALUES)


def test_large_value_is_not_copied() -> None:
    """One large value among few is stepped over in no time and without memory."""
    message = pack([0, 1, ["path", [bytes(2**24)], {}]])
    tracemalloc.start()
    started = time.process_time()
    try:
        for _ in range(100):
            check_arrays(message)
            check_arrays(memoryview(message))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 5


# -- check_arrays ----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(value=keyed)
def test_honest_messages_pass(value: Any) -> None:
    """No message that was really encoded is refused, as bytes, bytearray or view."""
    message = pack([value, bytes(400)])
    for data in (message, bytearray(message), memoryview(message)):
        check_arrays(data)


@pytest.mark.parametrize("rest", [0, FREE_CELLS, 2 * FREE_CELLS])
@pytest.mark.parametrize("header", [b"\xdd\x7f\xff\xff\xff", b"\xdc\xff\xff"])
def test_announced_items_have_to_be_there(header: bytes, rest: int) -> None:
    """Headers that announce far more than there is are found, in messages of any size."""
    message = header * 2000 + bytes(rest)
    for data in (message, memoryview(message)):
        with pytest.raises(Exception):  # noqa: B017  # whichever msgpack raises
            check_arrays(data)


@pytest.mark.parametrize("filler", [b"\xc6" + (2 * FREE_CELLS).to_bytes(4, "big") + bytes(2 * FREE_CELLS)])
def test_announced_items_beside_a_large_value(filler: bytes) -> None:
    """A large value does not hide that something else announces too much."""
    for message in (b"\x92" + filler + b"\xdd\x7f\xff\xff\xff", b"\x92\xdd\x7f\xff\xff\xff" + filler):
        with pytest.raises(Exception):  # noqa: B017  # whichever msgpack raises
            check_arrays(message)


# -- cut_array -------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(items=st.lists(keyed, max_size=10), head=st.binary(max_size=5))
def test_items_are_cut_as_they_are_encoded(items: list[Any], head: bytes) -> None:
    """The items of an array come back byte by byte, wherever in the message it begins."""
    encoded = list(map(pack, items))
    message = head + pack(items)
    for data in (message, memoryview(message)):
        parts = cut_array(data, len(head), b"\xc1")
        assert parts == encoded
        assert parts is not None
        assert all(type(part) is bytes for part in parts)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_forbidden_items(place: int) -> None:
    """If one item begins as it must not, none is returned; elsewhere the same bytes do no harm."""
    items: list[Any] = [b"\x93\x0b", [1, [11, 0, []]], "x"]
    assert cut_array(pack(items), 0, BUNDLE) is not None
    items.insert(place, [11, 0, []])
    assert cut_array(pack(items), 0, BUNDLE) is None


@pytest.mark.parametrize(
    "message",
    [
        b"", b"\x91", b"\x92\x00", b"\x00", b"\x81\x00\x00", b"\xa1x", b"\xc1", b"\x91\xc1", b"\xdc",
        b"\xdc\x00", b"\xdd\xff\xff\xff\xff\x00", b"\x91\xc6\xff\xff\xff\xff", b"\x91\xdd\xff\xff\xff\xff",
        b"\x91" * 5000, b"\x90\x00", b"\x91\x00\x00",
    ],
    ids=lambda message: message[:8].hex(),
)  # fmt: skip
def test_damaged_arrays_are_refused(message: bytes) -> None:
    """What is cut off, is no array, or has something behind it, is an error."""
    for offset in (0, 3):
        with pytest.raises(Exception):  # noqa: B017  # whichever msgpack raises
            cut_array(b"abc"[:offset] + message, offset, BUNDLE)


# -- read_head -------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(first=st.integers(-(2**63), 2**64 - 1), second=st.integers(0, 2**64 - 1) | st.text(), value=keyed)
def test_head_is_read(first: int, second: int | str, value: Any) -> None:
    """Type and id are read, whatever comes behind them, or if that is cut off."""
    message = pack([first, second, value])
    assert read_head(message) == (first, second)
    assert read_head(message[: -len(pack(value))]) == (first, second)
