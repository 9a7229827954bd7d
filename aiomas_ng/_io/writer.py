"""Frames on their way out: gathered, put together, and held back while the peer does not read.

What is written in one turn of the event loop, or while one read is handled, leaves in one write: a call of
the system costs as much as ten requests. Only what nothing else is likely to follow leaves at once
(:meth:`FrameWriter.write_now`). If the peer takes bundles, what is gathered becomes one frame, which is
decoded in one go.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Sequence
from typing import Any, Final

from aiomas_ng._core.framing import HEADER
from aiomas_ng._core.limits import Limits
from aiomas_ng._core.session import Session
from aiomas_ng.exceptions import FrameTooLargeError

__all__ = ["CORK_SIZE", "MAX_GATHERED", "FrameWriter"]

#: Bytes that are gathered before they are written.
CORK_SIZE: Final = 64 * 1024
#: Frames that are gathered before they are written. The peer works on them while more are gathered; with 256
#: in place of 64 calls in flight took a quarter longer.
MAX_GATHERED: Final = 64
#: Bytes of a large object that are given to the transport at a time; it copies what the system does not take.
#: With 256 KiB, 16 MiB took a quarter longer.
SLICE_SIZE: Final = 1024 * 1024

#: Bytes at both ends of a large object that are written together with what is around it.
EDGE_SIZE: Final = 32 * 1024
#: Bytes that a bundle has beside the frames in it, at most.
BUNDLE_HEAD_SIZE: Final = 8

_pack = HEADER.pack


class FrameWriter:
    """The half of a :class:`~aiomas_ng.channel.ChannelProtocol` that writes.

    Args:
        loop: The event loop.
        limits: Bounds of this side.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self.transport: Any = None
        self.limits = limits
        self.is_paused = False  #: Whether the peer reads too slowly for what we write.
        self._is_blocked = False  # whether the transport is full
        self._session: Session | None = None  # keeps what is written, if the connection can be taken up again
        # Puts several payloads together into that of a bundle; None as long as the peer takes no bundles.
        self._join: Callable[[list[bytes]], bytes] | None = None
        self._loop = loop
        self._frame_size = limits.frame_size
        self._gathered: list[bytes] = []
        self._gathered_size = 0
        self._cork_size = CORK_SIZE
        self._is_flush_due = False
        # Frames that wait until the transport has room.  From Python 3.12 on, each write to a full one costs
        # time in proportion to the number of writes that it holds.
        self._held: collections.deque[bytes | memoryview] = collections.deque()
        self._held_size = 0
        self._drain_waiters: collections.deque[asyncio.Future[None]] = collections.deque()

    def take_up_bundles(self, join: Callable[[list[bytes]], bytes], size: int) -> None:
        """From now on put together what is gathered.

        Args:
            join: Puts payloads together.
            size: Bytes that the peer takes in one bundle.
        """
        self.flush()  # what is gathered already may be more than the peer takes in one
        # The last of what is gathered comes on top, and the head of the bundle.
        cork_size = min(CORK_SIZE, min(size, self._frame_size) // 2 - BUNDLE_HEAD_SIZE)
        if cork_size > 0:
            self._cork_size = cork_size
            self._join = join

    def write(self, payload: bytes) -> None:
        """Write *payload* as a frame, together with others of the same turn of the loop.

        Raises:
            FrameTooLargeError: It is above the limit.
        """
        size = len(payload)
        if size > self._frame_size:
            raise FrameTooLargeError(size, self._frame_size, "the encoded message")
        if size >= self._cork_size:
            self.flush()  # it goes by itself
        gathered = self._gathered
        gathered.append(payload)
        self._gathered_size += size
        if self._gathered_size >= self._cork_size or len(gathered) >= MAX_GATHERED:
            # The transport has to see them, to say when the peer reads too slowly.
            self.flush()
        elif not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush_due)

    def write_now(self, payload: bytes) -> None:
        """Write *payload* as a frame, at once unless others wait already.

        Raises:
            FrameTooLargeError: It is above the limit.
        """
        if self._is_flush_due or self._gathered:
            self.write(payload)
            return
        size = len(payload)
        if size > self._frame_size:
            raise FrameTooLargeError(size, self._frame_size, "the encoded message")
        if self._is_blocked:
            self._hold(_pack(size) + payload)
        else:
            self.transport.write(_pack(size) + payload)

    def write_pieces(self, pieces: Sequence[bytes]) -> None:
        """Write a payload that is given as *pieces*, the large ones without a copy of the whole.

        Raises:
            FrameTooLargeError: It is above the limit.
        """
        size = sum(map(len, pieces))
        if size > self._frame_size:
            raise FrameTooLargeError(size, self._frame_size, "the encoded message")
        self.flush()
        small: list[bytes | memoryview] = [_pack(size)]
        for piece in pieces:
            count = len(piece)
            if count <= 2 * EDGE_SIZE:
                small.append(piece)
                continue
            # What is small leaves together with the edges of what is large: a write of its own costs more
            # than to copy these, and wakes the peer for nothing.
            view = memoryview(piece)
            small.append(view[:EDGE_SIZE])
            self._pass_on(b"".join(small))
            for start in range(EDGE_SIZE, count - EDGE_SIZE, SLICE_SIZE):
                self._pass_on(view[start : min(start + SLICE_SIZE, count - EDGE_SIZE)])
            small = [view[-EDGE_SIZE:]]
        self._pass_on(b"".join(small))

    def gather(self) -> None:
        """Hold everything back until :meth:`release`."""
        self._is_flush_due = True

    def release(self) -> None:
        """Write what was held back since :meth:`gather`."""
        self._is_flush_due = False
        if self._gathered:
            self.flush()

    def _flush_due(self) -> None:
        if self._is_flush_due:
            self.release()

    def flush(self) -> None:
        """Write what was gathered."""
        gathered = self._gathered
        if not gathered:
            return
        self._gathered = []
        self._gathered_size = 0
        if len(gathered) == 1:
            payload = gathered[0]
            self._pass_on(_pack(len(payload)) + payload)
        elif self._join is not None:
            payload = self._join(gathered)
            self._pass_on(_pack(len(payload)) + payload)
        else:
            self._pass_on(b"".join([_pack(len(payload)) + payload for payload in gathered]))

    def _pass_on(self, data: bytes | memoryview) -> None:
        if self._is_blocked:
            self._hold(data)
        else:
            self.transport.write(data)

    def _hold(self, data: bytes | memoryview) -> None:
        self._held.append(data)
        self._held_size += len(data)

    def _write_held(self) -> None:
        """Write the oldest of what is held back, in pieces of at least :data:`CORK_SIZE` bytes if there is so
        much."""
        piece: list[bytes | memoryview] = []
        size = 0
        while self._held and size < CORK_SIZE:
            piece.append(self._held.popleft())
            size += len(piece[-1])
        self._held_size -= size
        self.transport.write(piece[0] if len(piece) == 1 else b"".join(piece))

    def close_transport(self) -> None:
        """Close the transport, which goes on to write what there is to write."""
        is_closing = self.transport.is_closing()
        if not is_closing:
            self.write_all()
        self._gathered.clear()
        self._held.clear()
        if not is_closing:  # one of asyncio with TLS cannot be asked for anything when it is closed twice
            self.transport.close()

    def write_all(self) -> None:
        """Give the transport all that waits, whether it has room or not."""
        self.flush()
        while self._held:
            self._write_held()

    def get_unsent_size(self) -> int:
        """Return the number of bytes that wait to be sent."""
        size: int = self.transport.get_write_buffer_size()
        return size + self._held_size + self._gathered_size

    def is_backlogged(self) -> bool:
        """Return whether the bytes that the peer does not read have reached the limit."""
        # Without those that the transport holds, which are few, and which it takes long to count.
        excess = 0 if self._session is None else self._session.excess
        return self._held_size + excess >= self.limits.backlog

    def pause_writing(self) -> None:
        """The transport's buffer is full: hold back what is written from now on."""
        self._is_blocked = self.is_paused = True

    def resume_writing(self) -> None:
        """The transport's buffer has emptied: go on, first with what was held back meanwhile."""
        self.write_held()

    def write_held(self) -> None:
        """Write what was held back, as far as the transport takes it; those who wait for room go on."""
        self._is_blocked = False
        while self._held:
            self._write_held()
            if self._is_blocked:
                return
        self.check_room()

    def check_room(self) -> None:
        """Go on, unless there is no transport and too much waits for one already."""
        session = self._session
        self.is_paused = self._is_blocked or (
            session is not None and session.pass_on is None and session.excess > 0
        )
        if not self.is_paused:
            self.wake_drainers()

    def wake_drainers(self) -> None:
        """Let all that wait for room look again."""
        while self._drain_waiters:
            waiter = self._drain_waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
