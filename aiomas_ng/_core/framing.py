"""Frames in a stream of bytes.

Rules:

- A frame is a 4-byte big-endian length and that many bytes of payload.
- Any chunking of the same bytes gives the same events, at a cost linear in the bytes.
- A payload above the limit is never held: its first :data:`HEAD_SIZE` bytes are reported, so that the request
  can be answered, and the rest is counted and dropped.
- Memory follows the bytes that have arrived, not the length that was announced: it is at most
  :data:`GROWTH` times as much.
- A large frame may be read to where it belongs (:meth:`FrameParser.get_buffer`), without a copy in between.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from aiomas_ng.exceptions import FrameTooLargeError

__all__ = ["HEADER", "HEAD_SIZE", "Frame", "FrameParser", "Oversized", "encode_frame"]

HEADER: Final = struct.Struct("!L")
#: Bytes of an oversized payload that are kept, enough for its type and id.
HEAD_SIZE: Final = 64
#: Bytes of a frame that have to be there, and that have to be missing, before it is worth to read the rest
#: into a buffer of its own.
BULK_SIZE: Final = 64 * 1024
#: How many times the bytes that are there a buffer may have that is made for them.
GROWTH: Final = 4

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


#: The payload of a frame; that of a large one is a part of a buffer that will be used again.
Frame = bytes | memoryview


class FrameParser:
    """Cut a stream of bytes into frames.

    Args:
        limit: Largest payload in bytes.
    """

    __slots__ = ("_bulk", "_filled", "_limit", "_missing", "_skip", "_skipped", "_tail", "count")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tail = bytearray()  # the frame that has begun and is not complete, header included
        self._skip = 0  # bytes of an oversized frame that are still to come
        self._skipped = 0  # size of that frame
        self.count = 0  #: Frames that were complete so far, or turned out to be too large.
        self._bulk: bytearray | None = None  # the payload of a large frame, while it is read by get_buffer()
        self._filled = 0  # bytes of it that have arrived
        self._missing = 0  # and those that have not

    @property
    def unfinished(self) -> int:
        """Bytes of a frame that has begun and is not complete; 0 between two frames."""
        return len(self._tail) + self._skip if self._bulk is None else 4 + self._filled

    @property
    def arrived(self) -> int:
        """Bytes that have arrived of a frame that has begun and is not complete; 0 between two frames."""
        if self._bulk is not None:
            return 4 + self._filled
        return self._skipped - self._skip if self._skip else len(self._tail)

    @property
    def is_in_bulk(self) -> bool:
        """Whether a large frame has begun whose rest had better be read by :meth:`begin_bulk`."""
        tail = self._tail
        if len(tail) < BULK_SIZE:
            return False
        size: int = _unpack_from(tail)[0]
        return size <= self._limit and size + 4 - len(tail) >= BULK_SIZE

    def begin_bulk(self, buffer: bytearray) -> None:
        """Read the rest of the frame that has begun by :meth:`get_buffer` and :meth:`buffer_updated`.

        Args:
            buffer: To read into; if it is too small, another one is made.
        """
        tail = self._tail
        size = _unpack_from(tail)[0]
        self._filled = filled = len(tail) - 4
        self._missing = size - filled
        self._bulk = buffer = buffer if len(buffer) >= size else bytearray(min(size, GROWTH * filled))
        with memoryview(tail) as source, memoryview(buffer) as target:
            target[:filled] = source[4:]  # between bytearrays there would be one more copy
        self._tail = bytearray()

    @property
    def held(self) -> int:
        """Bytes of the buffer that a large frame is read into; 0 if there is none."""
        return 0 if self._bulk is None else min(len(self._bulk), self._filled + self._missing)

    @property
    def growth(self) -> int:
        """Bytes by which that buffer has to grow before more can be read."""
        if self._bulk is None or self._filled < len(self._bulk):
            return 0
        return min(self._filled + self._missing, GROWTH * self._filled) - self._filled

    def skip_bulk(self) -> Oversized:
        """Drop the large frame that is being read, and skip the rest of it."""
        bulk, self._bulk = self._bulk, None
        assert bulk is not None
        self._skip = self._missing
        self._skipped = size = self._filled + self._missing
        return Oversized(size, bytes(bulk[: min(self._filled, HEAD_SIZE)]))

    def get_buffer(self) -> memoryview:
        """Return where the next bytes of a large frame belong."""
        bulk = self._bulk
        assert bulk is not None
        filled = self._filled
        if filled == len(bulk):
            grown = bytearray(min(filled + self._missing, GROWTH * filled))
            grown[:filled] = bulk
            self._bulk = bulk = grown
        return memoryview(bulk)[filled : filled + self._missing]

    def buffer_updated(self, count: int) -> tuple[bytearray, int] | None:
        """Take note of *count* bytes that were read; return buffer and size of the payload if it is
        complete."""
        self._filled += count
        self._missing -= count
        if self._missing:
            return None
        self.count += 1
        bulk, self._bulk = self._bulk, None
        assert bulk is not None
        return bulk, self._filled

    def is_frame(self, data: bytes) -> bool:
        """Return whether *data* is just one frame within the limit, and nothing had begun before."""
        size = len(data) - 4
        if size < 0 or size > self._limit or self._tail or self._skip:
            return False
        return bool(_unpack_from(data)[0] == size)

    def feed(self, data: bytes) -> list[Frame | Oversized]:
        """Take *data* and return the payloads that are complete now, in order."""
        frames: list[Frame | Oversized] = []
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
                self._skipped = size
                pos = min(end, stop + missing)
                continue
            if stop > end:
                break
            frames.append(data[start:stop])
            pos = stop
        if pos < end:
            self._tail += data[pos:] if pos else data
        self.count += len(frames)
        return frames

    def _finish_begun(self, data: bytes, frames: list[Frame | Oversized]) -> int:
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
                self._skipped = size
                pos += step
            else:
                frames.append(payload)
        return pos
