"""The check that a chunk must pass before the Blosc2 library may see it.

The library trusts several of the sizes in a chunk, and runs filters and codecs that the chunk names, so a
hostile chunk could make it read foreign memory.  Only what an ordinary compression writes passes: an extended
header of 32 bytes, the built-in compressors, and the filters that move bytes around.  The layout, from
``README_CHUNK_FORMAT.rst`` of c-blosc2, sizes in bytes and little-endian::

    0 version   1 version of the compressor   2 flags   3 type size
    4 size decompressed (int32)   8 size of a block (int32)   12 size of the chunk (int32)
    16 six filters   22 user-defined codec, its metadata   24 metadata of the filters   30 further flags (2)
"""

from __future__ import annotations

import struct
from typing import Final

from aiomas_ng.exceptions import DecodedTooLargeError, DeserializationError

__all__ = ["HEADER_SIZE", "MAX_SIZE", "decompressed_size"]

HEADER_SIZE: Final = 32
MAX_SIZE: Final = 2**31 - 1 - HEADER_SIZE
"""Bytes of the largest payload that fits into one chunk."""

_SIZES = struct.Struct("<iii")
_EXTENDED = 0b0101
"""Both shuffles at once mean that the header is an extended one."""
_MAX_COMPRESSOR = 4
"""BloscLZ, LZ4, Snappy, zlib, Zstandard; above it are those that somebody registered."""
_MAX_FILTER = 2
"""None, shuffle, bit shuffle."""
_SPECIAL = 0b0111_0000
"""The flags for a chunk of equal values.  All others concern dictionaries, lazy chunks and other layouts."""


def decompressed_size(chunk: bytes | bytearray, limit: float) -> int:
    """Return how many bytes *chunk* says to hold.

    Args:
        chunk: The whole chunk.
        limit: The largest size allowed, in bytes.

    Raises:
        DecodedTooLargeError: The size is above the limit.
        DeserializationError: The chunk is not an ordinary one.
    """
    if len(chunk) < HEADER_SIZE:
        raise DeserializationError(f"{len(chunk)} bytes are no Blosc2 chunk")
    sizes: tuple[int, int, int] = _SIZES.unpack_from(chunk, 4)
    size, block_size, chunk_size = sizes
    if size > limit:
        what = f"the message has {size} bytes when decompressed"
        raise DecodedTooLargeError(what, "decompressed_size", limit)
    flags = chunk[2]
    is_ordinary = (
        size > 0
        and 0 < block_size <= size
        and chunk_size == len(chunk)
        and flags & _EXTENDED == _EXTENDED
        and flags >> 5 <= _MAX_COMPRESSOR
        and max(chunk[16:22]) <= _MAX_FILTER
        and not any(chunk[24:31])
        and not chunk[31] & ~_SPECIAL
    )
    if not is_ordinary:
        raise DeserializationError("Not a chunk that Blosc2 writes by default, or it is damaged")
    return size
