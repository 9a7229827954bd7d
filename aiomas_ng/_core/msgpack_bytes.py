"""What is read from MessagePack before, or instead of, decoding it."""

from __future__ import annotations

from typing import Any, Final

import msgpack

__all__ = ["FREE_CELLS", "check_arrays", "read_head"]

FREE_CELLS: Final = 2**17
"""Cells that the array headers in a message can announce together without a closer look."""


def check_arrays(message: bytes | bytearray) -> None:
    """Raise an error if arrays in *message* could have far fewer items than their headers announce.

    A tuple is allocated from its header, and headers can be nested a thousand deep, so some kilobytes could
    allocate gigabytes before it turns out that the items are missing.

    Raises:
        Exception: What msgpack raises for a message that is cut off.
    """
    size = len(message)
    # Arrays of 16 items and more have one of these bytes in their header; other places may have them as well.
    # In a large message, to count them takes longer than to step over all of its values.
    if size <= FREE_CELLS and (message.count(b"\xdc") + message.count(b"\xdd")) * size <= FREE_CELLS:
        return
    unpacker = msgpack.Unpacker(max_buffer_size=size)
    unpacker.feed(message)
    unpacker.skip()


def read_head(data: bytes | bytearray | memoryview) -> tuple[int, Any] | None:
    """Return the first two items of the array of three at the head of *data*, or ``None``.

    Raises:
        Exception: What msgpack raises for anything but numbers and text.
    """
    # With these limits next to nothing is allocated, and no hook called, for anything else.
    unpacker = msgpack.Unpacker(
        max_buffer_size=len(data), max_array_len=3, max_map_len=0, max_ext_len=0, max_bin_len=0
    )
    unpacker.feed(data)
    if unpacker.read_array_header() != 3:
        return None
    first, second = unpacker.unpack(), unpacker.unpack()
    # A bool is an int to Python, but not on the wire.
    is_head = type(first) is int and type(second) in (int, str)
    return (first, second) if is_head else None
