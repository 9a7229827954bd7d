"""What is read from MessagePack before, or instead of, decoding it."""

from __future__ import annotations

from typing import Any, Final

import msgpack

__all__ = ["FREE_CELLS", "FREE_HEADERS", "check_arrays", "read_head"]

FREE_HEADERS: Final = 8
"""Array headers in a message that are let pass without a closer look, ..."""
FREE_CELLS: Final = 2**17
"""... and cells that all headers in a message can announce together, which are as well."""


def check_arrays(message: bytes | bytearray, free_headers: int = 0) -> None:
    """Raise an error if an array in *message* could have fewer items than its header announces.

    A tuple is allocated from its header, and headers can be nested a thousand deep, so some kilobytes could
    allocate gigabytes before it turns out that the items are missing.

    Args:
        message: The message.
        free_headers: So many headers may announce too much, each as many items as *message* has bytes.

    Raises:
        Exception: What msgpack raises for a message that is cut off.
    """
    # Arrays of 16 items and more have one of these bytes in their header; other places may have them as well.
    headers = message.count(b"\xdc") + message.count(b"\xdd")
    if headers <= free_headers or headers * len(message) <= FREE_CELLS:
        return
    unpacker = msgpack.Unpacker(max_buffer_size=len(message))
    unpacker.feed(message)
    unpacker.skip()


def read_head(data: bytes | bytearray | memoryview) -> tuple[int, Any] | None:
    """Return the first two items of the array of three at the head of *data*, or ``None``.

    Raises:
        Exception: What msgpack raises for anything but numbers and text.
    """
    # With these limits nothing is allocated, and no hook called, for anything else.
    unpacker = msgpack.Unpacker(
        max_buffer_size=len(data), max_array_len=0, max_map_len=0, max_ext_len=0, max_bin_len=0
    )
    unpacker.feed(data)
    if unpacker.read_array_header() != 3:
        return None
    first, second = unpacker.unpack(), unpacker.unpack()
    # A bool is an int to Python, but not on the wire.
    is_head = type(first) is int and type(second) in (int, str)
    return (first, second) if is_head else None
