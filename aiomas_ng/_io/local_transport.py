"""The transport of :mod:`aiomas_ng.local_queue`: bytes from one protocol to another, by the loop's own queue.

The rules that hold for every connection are written there.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["LocalQueueTransport"]

#: Largest number of bytes that a protocol is given at a time, as in asyncio's TCP transport.
MAX_PIECE = 256 * 1024
#: Number of unsent bytes above which a protocol's ``pause_writing()`` is called.
HIGH_WATER = 64 * 1024
#: Writes to a closed connection from which on each is logged.
WARN_AFTER = 5

_logger = logging.getLogger("aiomas_ng.local_queue")


class _ByteQueue:
    """The bytes on their way to one side: pieces as they were written, taken out as any number of bytes."""

    __slots__ = ("_chunks", "_offset", "size")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._offset = 0  # bytes of the first chunk that are taken already
        self.size = 0  # bytes left

    def put(self, data: bytes) -> None:
        self._chunks.append(data)
        self.size += len(data)

    def clear(self) -> None:
        self._chunks.clear()
        self._offset = self.size = 0

    def take(self, limit: int) -> bytes:
        """Remove and return what is there, at most *limit* bytes."""
        pieces = []
        room = min(limit, self.size)
        self.size -= room
        while room:
            chunk = self._chunks[0]
            if self._offset or len(chunk) > room:
                # Slicing from an offset copies each byte of a large chunk once, cutting the chunk would
                # copy its rest for each piece.
                chunk = chunk[self._offset : self._offset + room]
            pieces.append(chunk)
            room -= len(chunk)
            self._offset += len(chunk)
            if self._offset == len(self._chunks[0]):
                self._chunks.popleft()
                self._offset = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class LocalQueueTransport(asyncio.Transport):
    """One side of a connection, made by the functions of this module.

    It does what :class:`asyncio.Transport` describes.  What is written lies in the buffer of the other side
    until its protocol has taken it, so the size of the write buffer is what the peer has not read yet.
    ``get_extra_info()`` knows ``peername`` and ``sockname`` (``str(lq)`` for both sides of a connection to a
    queue) and ``local_queue``.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.BaseProtocol,
        extra: dict[str, Any],
        context: contextvars.Context,
    ) -> None:
        super().__init__(extra)
        self._loop = loop
        self._context = context
        self._peer = self  # until _join()
        self._incoming = _ByteQueue()
        self._is_eof_sent = False
        self._is_eof_coming = False  # the peer sent it, our protocol does not know yet
        self._is_eof_known = False
        self._is_reading_paused = False
        self._is_delivery_due = False
        self._is_writing_paused = False
        self._is_resume_due = False
        self._is_closing = False
        self._is_lost = False  # connection_lost() was called or will be, by the loop
        self._writes_after_close = 0
        self.set_protocol(protocol)
        self.set_write_buffer_limits()

    def __repr__(self) -> str:
        state = "closed" if self._is_lost else "closing" if self._is_closing else "open"
        return f"<{type(self).__name__} {self.get_extra_info('peername')} {state}>"

    # Protocol and state

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand all further events to another protocol; its ``connection_made()`` is not called."""
        self._protocol: Any = protocol
        self._is_buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol that is given the events."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""
        return self._is_closing

    def close(self) -> None:
        """Close both directions after what was written has been taken by the peer.

        Our protocol gets no more data, what the peer sends from now on is dropped.  The peer's protocol gets
        the rest of the data, then ``eof_received()``, then ``connection_lost(None)``.
        """
        if self._is_closing:
            return
        peer = self._peer
        self._is_closing = True
        self._incoming.clear()
        peer._on_taken()
        if not peer._incoming.size:
            self._finish(None)
        if not self._is_eof_sent:
            self._is_eof_sent = peer._is_eof_coming = True
            peer._schedule_delivery()
        elif peer._is_eof_known:
            peer.close()

    def abort(self) -> None:
        """Close both directions at once; what the peer has not taken yet is lost.

        Our protocol gets ``connection_lost(None)``, the peer's ``connection_lost(ConnectionResetError)``.
        """
        self._break(None)

    # Reading

    def is_reading(self) -> bool:
        """Return whether our protocol is given what arrives."""
        return not (self._is_closing or self._is_reading_paused)

    def pause_reading(self) -> None:
        """Hold back data and the end of the data until :meth:`resume_reading`."""
        self._is_reading_paused = True

    def resume_reading(self) -> None:
        """Let data come again, not before the next turn of the loop."""
        self._is_reading_paused = False
        self._schedule_delivery()

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; mutable ones are copied.

        Raises:
            TypeError: *data* is not bytes-like.
            RuntimeError: :meth:`write_eof` was called before.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be bytes, bytearray or memoryview, not {type(data).__name__}")
        if self._is_closing:
            self._warn_of_write_after_close()
            return
        if self._is_eof_sent:
            raise RuntimeError("cannot write after write_eof()")
        peer = self._peer
        chunk = bytes(data)
        if not chunk or peer._is_closing:
            return
        peer._incoming.put(chunk)
        peer._schedule_delivery()
        self._pause_writing_if_full()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send several bytes-like objects, as one piece."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """Return ``True``."""
        return True

    def write_eof(self) -> None:
        """Tell the peer that nothing more is written; data keeps coming from the peer if it so wishes.

        The peer's ``eof_received()`` is called after all data.  If that returns something false, the peer
        closes the connection when its own data has been taken.
        """
        if self._is_closing or self._is_eof_sent:
            return
        self._is_eof_sent = self._peer._is_eof_coming = True
        self._peer._schedule_delivery()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when our protocol is told to pause and to resume writing.

        Args:
            high: More bytes than this in the write buffer call ``pause_writing()``; four times *low* or
                64 KiB by default.
            low: As few bytes as this call ``resume_writing()``; a quarter of *high* by default.

        Raises:
            ValueError: Not ``high >= low >= 0``.
        """
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"write buffer limits must be high >= low >= 0, but high={high!r}, low={low!r}")
        self._high, self._low = high, low
        self._pause_writing_if_full()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return ``(low, high)``, in bytes, as in :class:`asyncio.Transport`."""
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        """Return how many bytes were written that the peer's protocol has not taken yet."""
        return self._peer._incoming.size

    def _warn_of_write_after_close(self) -> None:
        if self._writes_after_close >= WARN_AFTER:
            _logger.warning("write() on the closed connection to %s", self.get_extra_info("peername"))
        self._writes_after_close += 1

    def _pause_writing_if_full(self) -> None:
        if self._is_writing_paused or self.get_write_buffer_size() <= self._high:
            return
        self._is_writing_paused = True
        self._tell_protocol("pause_writing")

    def _on_taken(self) -> None:
        """React on that the peer has taken, or thrown away, something that we wrote."""
        if self._is_lost:
            return
        size = self.get_write_buffer_size()
        if self._is_writing_paused and size <= self._low and not self._is_resume_due:
            self._is_resume_due = True
            self._soon(self._resume_writing)
        if self._is_closing and not size:
            self._finish(None)

    def _resume_writing(self) -> None:
        self._is_resume_due = False
        if self._is_writing_paused and self.get_write_buffer_size() <= self._low:
            self._is_writing_paused = False
            self._tell_protocol("resume_writing")

    def _tell_protocol(self, method: str) -> None:
        try:
            getattr(self._protocol, method)()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(exc, f"protocol.{method}() failed")

    # Life of the connection; all that calls the protocol is called by the loop

    def _join(self, peer: LocalQueueTransport) -> None:
        self._peer, peer._peer = peer, self

    def _soon(self, callback: Callable[..., object], *args: object) -> None:
        # Transports may be dropped after their loop was closed; then there is nobody left to be told.
        if not self._loop.is_closed():
            self._loop.call_soon(callback, *args, context=self._context)

    def _start(self) -> None:
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fail(exc, "protocol.connection_made() failed")

    def _schedule_delivery(self) -> None:
        is_something_there = self._incoming.size or self._is_eof_coming
        if is_something_there and self.is_reading() and not self._is_delivery_due:
            self._is_delivery_due = True
            self._soon(self._deliver)

    def _deliver(self) -> None:
        """Give our protocol one piece, or the end, of what the peer has sent."""
        self._is_delivery_due = False
        if not self.is_reading():
            return
        step = "data_received"
        try:
            if not self._incoming.size:
                step = "eof_received"
                self._deliver_eof()
            elif self._is_buffered:
                step = "get_buffer/buffer_updated"
                self._fill_buffer()
            else:
                self._protocol.data_received(self._incoming.take(MAX_PIECE))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fail(exc, f"protocol.{step}() failed")
            return
        self._peer._on_taken()
        self._schedule_delivery()

    def _fill_buffer(self) -> None:
        # The views are released before the protocol is called again: it may want to resize its bytearray.
        with memoryview(self._protocol.get_buffer(-1)) as view, view.cast("B") as buffer:
            if not len(buffer):
                raise RuntimeError("get_buffer() returned an empty buffer")
            data = self._incoming.take(min(len(buffer), MAX_PIECE))
            buffer[: len(data)] = data
        if data:  # else get_buffer() has closed the transport
            self._protocol.buffer_updated(len(data))

    def _deliver_eof(self) -> None:
        self._is_eof_coming, self._is_eof_known = False, True
        wants_to_stay = self._protocol.eof_received()
        # A peer that has closed, and not just its own direction, reads nothing any more.
        if not wants_to_stay or self._peer._is_closing:
            self.close()

    def _report(self, exc: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        )

    def _fail(self, exc: BaseException, message: str) -> None:
        """End the connection because our protocol raised."""
        self._report(exc, message)
        self._break(exc)

    def _break(self, exc: BaseException | None) -> None:
        if not self._is_lost:
            self._finish(exc)
            self._peer._finish(ConnectionResetError(errno.ECONNRESET, "connection reset by the peer"))

    def _finish(self, exc: BaseException | None) -> None:
        if self._is_lost:
            return
        self._is_closing = self._is_lost = True
        self._incoming.clear()
        self._soon(self._call_connection_lost, exc)

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        # If the protocol raises, the loop reports it.
        self._protocol.connection_lost(exc)
