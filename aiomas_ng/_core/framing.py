"""Frames in a stream of bytes.

Rules:

- A frame is a 4-byte big-endian length and that many bytes of payload.
- Any chunking of the same bytes gives the same events, at a cost linear in the bytes.
- A payload above the limit is never held: its first :data:`HEAD_SIZE` bytes are reported, so that the request
  can be answered, and the rest is counted and dropped.
- Memory follows the bytes that have arrived, not the length that was announced.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from aiomas_ng.exceptions import FrameTooLargeError

__all__ = ["HEADER", "HEAD_SIZE", "FrameParser", "Oversized", "encode_frame"]

HEADER: Final = struct.Struct("!L")
#: Bytes of an oversized payload that are kept, enough for its type and id.
HEAD_SIZE: Final = 64

_pack = HEADER.pack
_unpack_from = HEADER.unpack_from


def encode_frame(payload: bytes, limit: int) -> bytes:
    """Return *payload* as a frame.

    Raises:
        FrameTooLargeError: The payload has more than *limit* bytes.
    """
    size = len(payload)
    if size > limit:
        raise FrameTooLargeError(size, limit, "the encoded message")
    return _pack(size) + payload


@dataclass(frozen=True, slots=True)
class Oversized:
    """A frame above the limit: its announced *size* in bytes and the *head* of its payload."""

    size: int
    head: bytes


class FrameParser:
    """Cut a stream of bytes into frames.

    Args:
        limit: Largest payload in bytes.
    """

    __slots__ = ("_limit", "_skip", "_tail")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tail = bytearray()  # the frame that has begun and is not complete, header included
        self._skip = 0  # bytes of an oversized frame that are still to come

    @property
    def unfinished(self) -> int:
        """Bytes of a frame that has begun and is not complete; 0 between two frames."""
        return len(self._tail) + self._skip

    def feed(self, data: bytes) -> list[bytes | Oversized]:
        """Take *data* and return the payloads that are complete now, in order."""
        frames: list[bytes | Oversized] = []
        pos = self._finish_begun(data, frames) if self._tail or self._skip else 0
        end = len(data)
        limit = self._limit
        while end - pos >= 4:
            size = _unpack_from(data, pos)[0]
            start = pos + 4
            stop = start + size
            if size > limit:
                stop = start + min(size, HEAD_SIZE)
                if stop > end:
                    break
                frames.append(Oversized(size, bytes(data[start:stop])))
                missing = size - (stop - start)
                self._skip = max(0, missing - (end - stop))
                pos = min(end, stop + missing)
                continue
            if stop > end:
                break
            frames.append(data[start:stop])
            pos = stop
        if pos < end:
            self._tail += data[pos:] if pos else data
        return frames

    def _finish_begun(self, data: bytes, frames: list[bytes | Oversized]) -> int:
        """Go on with the frame that an earlier chunk began; return where in *data* the next one starts."""
        end = len(data)
        pos = min(self._skip, end)
        self._skip -= pos
        tail = self._tail
        while tail:
            size = _unpack_from(tail)[0] if len(tail) >= 4 else 0
            is_oversized = size > self._limit
            want = 4 + (min(size, HEAD_SIZE) if is_oversized else size)
            if len(tail) < 4 or len(tail) < want:
                take = min(max(want, 4) - len(tail), end - pos)
                if not take:
                    break
                tail += data[pos : pos + take]
                pos += take
                continue
            with memoryview(tail) as view:
                payload = bytes(view[4:])
            self._tail = tail = bytearray()
            if is_oversized:
                frames.append(Oversized(size, payload))
                missing = size - len(payload)
                step = min(missing, end - pos)
                self._skip = missing - step
                pos += step
            else:
                frames.append(payload)
        return pos
