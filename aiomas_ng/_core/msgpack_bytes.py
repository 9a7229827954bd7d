"""What is read from MessagePack before, or instead of, decoding it."""

from __future__ import annotations

from typing import Any, Final

import msgpack

__all__ = [
    "FREE_CELLS",
    "HARMLESS_SIZE",
    "MAX_DEPTH",
    "check_arrays",
    "cut_array",
    "has_few_values",
    "read_head",
]

FREE_CELLS: Final = 2**17
"""Cells that the array headers in a message can announce together without a closer look."""

HARMLESS_SIZE: Final = 362
"""Bytes of a message whose headers cannot announce more than :data:`FREE_CELLS`, whatever is in it."""

FEW_VALUES: Final = 64
"""Values that are stepped over one by one in Python."""

MAX_DEPTH: Final = 1024
"""Arrays and maps that msgpack itself lets contain each other."""

COUNTED_SIZE: Final = 4096
"""Bytes of a message up to which to count its headers is faster than to step over its values."""

# What an array or map that is not empty begins with; other places may have these bytes as well.
_HEADERS: Final = bytes([*range(0x81, 0x90), *range(0x91, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])

# Of the first byte of a value: how many bytes follow that say the size of the rest, or of how many it is.
_SIZE_BYTES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED: Final = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8,
    0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
_EXT: Final = (0xC7, 0xC8, 0xC9)


def check_arrays(message: bytes | bytearray | memoryview, max_depth: float = MAX_DEPTH) -> None:
    """Raise an error if arrays in *message* could have far fewer items than their headers announce, or
    contain each other too deep.

    A tuple is allocated from its header, and headers can be nested a thousand deep, so some kilobytes could
    allocate gigabytes before it turns out that the items are missing.

    Args:
        message: The message.
        max_depth: Arrays and maps that may contain each other.

    Raises:
        msgpack.StackError: They contain each other deeper.
        Exception: What msgpack raises for a message that is cut off.
    """
    size = len(message)
    # A few values of which one is large are told without the copy that an unpacker makes of all of them.
    if size > COUNTED_SIZE and max_depth >= FEW_VALUES and has_few_values(message):
        return
    if isinstance(message, memoryview):
        message = message.tobytes()
    # Arrays of 16 items and more have one of these bytes in their header; other places may have them as well.
    # In a large message, to count them takes longer than to step over all of its values.
    if size <= FREE_CELLS and (message.count(b"\xdc") + message.count(b"\xdd")) * size <= FREE_CELLS:
        is_shallow = size <= max_depth or max_depth >= MAX_DEPTH
        if is_shallow or (
            size <= COUNTED_SIZE and size - len(message.translate(None, _HEADERS)) <= max_depth
        ):
            return
    # Below so many arrays more, what is too deep exceeds what the unpacker can hold.
    above = b"\x91" * max(0, MAX_DEPTH - int(min(max_depth, MAX_DEPTH)))
    unpacker = msgpack.Unpacker(max_buffer_size=size + len(above))
    unpacker.feed(above)
    unpacker.feed(message)
    unpacker.skip()


def has_few_values(message: bytes | bytearray | memoryview) -> bool:
    """Return whether *message* is complete and made of at most :data:`FEW_VALUES` values."""
    size = len(message)
    pos, waiting = 0, 1
    for _ in range(FEW_VALUES):
        if pos >= size:
            return False
        first = message[pos]
        pos += 1
        waiting -= 1
        if first <= 0x7F or first >= 0xE0:
            pass
        elif first <= 0x8F:
            waiting += 2 * (first & 0x0F)
        elif first <= 0x9F:
            waiting += first & 0x0F
        elif first <= 0xBF:
            pos += first & 0x1F
        elif first in _FIXED:
            pos += _FIXED[first]
        elif first in _SIZE_BYTES:
            width = _SIZE_BYTES[first]
            pos += width + int.from_bytes(message[pos : pos + width], "big") + (first in _EXT)
        else:
            return False  # an array or map of 16 items and more, or nothing that there is
        if not waiting:
            return pos <= size
    return False


def cut_array(message: bytes | memoryview, offset: int, forbidden: bytes) -> list[bytes] | None:
    """Return the items of the array at *offset* in *message* as they are encoded; ``None`` if one of them
    begins with *forbidden*.

    Raises:
        Exception: What msgpack raises for a message that is cut off.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=len(message))
    unpacker.feed(memoryview(message)[offset:])
    items = []
    count = unpacker.read_array_header()
    start = unpacker.tell()
    for _ in range(count):
        unpacker.skip()
        stop = unpacker.tell()
        items.append(bytes(message[offset + start : offset + stop]))
        start = stop
    if offset + start != len(message):
        raise ValueError("there is more than the array")
    return None if any(item.startswith(forbidden) for item in items) else items


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
