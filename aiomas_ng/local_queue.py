"""A transport inside one process and one event loop, deterministic and otherwise like TCP.

It is made for tests, for simulations and for agents that share a process: what is written arrives in the
order of the writes over *all* connections, so that the same program gives the same run, message by message.
To everything above it a :class:`LocalQueueTransport` is a stream transport like any other: the bytes have no
message boundaries, a slow reader holds up the writer, each side can be half-closed.

Rules that hold for every connection:

- A protocol is never called from within a call of its own transport or of the peer's, only by the event loop
  (except for ``pause_writing()``, which asyncio calls from ``write()`` as well).
- ``connection_made()`` comes first and ``connection_lost()`` last, each exactly once.
- A protocol runs in the :mod:`contextvars` context in which its side was set up, never in the one of whoever
  wrote the bytes: context does not cross a network connection either.

Queues and connections belong to one event loop and are not safe for threads.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

from aiomas_ng.exceptions import AddressInUseError, ConnectError

__all__ = [
    "LocalQueue",
    "LocalQueueServer",
    "LocalQueueTransport",
    "clear_queue_cache",
    "create_connection",
    "create_pair",
    "create_server",
    "get_queue",
]

#: Largest number of bytes that a protocol is given at a time, as in asyncio's TCP transport.
MAX_PIECE = 256 * 1024
#: Number of unsent bytes above which a protocol's ``pause_writing()`` is called.
HIGH_WATER = 64 * 1024
#: Writes to a closed connection from which on each is logged.
WARN_AFTER = 5

_A = TypeVar("_A", bound=asyncio.BaseProtocol)
_B = TypeVar("_B", bound=asyncio.BaseProtocol)
_logger = logging.getLogger(__name__)
_queues: dict[str, LocalQueue] = {}


def get_queue(queue_id: str) -> LocalQueue:
    """Return the queue of that id, always the same one for the same id.

    Args:
        queue_id: Any string without a ``/`` (the id is part of the agents' URLs).

    Raises:
        ValueError: The id is no string or contains a ``/``.
    """
    if not isinstance(queue_id, str):
        raise ValueError(f"the id of a queue must be a str, not {type(queue_id).__name__}: {queue_id!r}")
    if "/" in queue_id:
        raise ValueError(f"the id of a queue must not contain a '/': {queue_id!r}")
    queue = _queues.get(queue_id)
    if queue is None:
        queue = _queues[queue_id] = LocalQueue(queue_id)
    return queue


def clear_queue_cache() -> None:
    """Forget all queues, so that :func:`get_queue` makes new ones; servers and connections go on."""
    _queues.clear()


async def create_connection(
    protocol_factory: Callable[[], _A],
    lq: LocalQueue,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    **kwds: Any,
) -> tuple[LocalQueueTransport, _A]:
    """Connect to the server of a queue.

    When this returns, ``connection_made()`` was called on both sides, on the server's first.  If it is
    cancelled, the connection is closed.

    Args:
        protocol_factory: Is called without arguments and returns the protocol of our side.
        lq: The queue that the server is bound to.
        loop: The running loop, if given.
        **kwds: ``ssl=None`` is accepted, for the sake of code that serves all transports.

    Returns:
        Transport and protocol of our side.

    Raises:
        ConnectError: No server is bound to the queue, or it could not make a protocol.
        RuntimeError: The server belongs to another event loop.
        ValueError: TLS is asked for.
        TypeError: Another option is given.
    """
    _check_options(kwds)
    loop = loop or asyncio.get_running_loop()
    server = lq.server
    if server is None or server.get_loop().is_closed():
        raise ConnectError(lq, "no server is bound to this queue; call create_server() first")
    if server.get_loop() is not loop:
        raise RuntimeError(
            f"the server of {lq} runs in another event loop; both sides of a LocalQueue must share one "
            f"(use TCP between threads or processes)"
        )
    protocol = protocol_factory()
    extra = {"peername": str(lq), "sockname": str(lq), "local_queue": lq}
    client = LocalQueueTransport(loop, protocol, extra, contextvars.copy_context())
    await _establish(client, server._accept(extra))
    return client, protocol


async def create_server(
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    lq: LocalQueue,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    **kwds: Any,
) -> LocalQueueServer:
    """Start a server that is bound to a queue.

    Args:
        protocol_factory: Is called without arguments for each connection and returns its protocol.
        lq: The queue to bind to.
        loop: The running loop, if given.
        **kwds: ``ssl=None`` is accepted, for the sake of code that serves all transports.

    Raises:
        AddressInUseError: The queue has a server already.
        ValueError: TLS is asked for.
        TypeError: Another option is given.
    """
    _check_options(kwds)
    return LocalQueueServer(protocol_factory, lq, loop=loop)


async def create_pair(
    protocol_a_factory: Callable[[], _A],
    protocol_b_factory: Callable[[], _B],
    *,
    names: tuple[str, str] = ("a", "b"),
    loop: asyncio.AbstractEventLoop | None = None,
) -> tuple[tuple[LocalQueueTransport, _A], tuple[LocalQueueTransport, _B]]:
    """Join two protocols directly, without a queue and a server.

    When this returns, ``connection_made()`` was called on both sides, on *b* first.  If it is cancelled, the
    connection is closed.

    Args:
        protocol_a_factory: Is called without arguments and returns the protocol of side *a*.
        protocol_b_factory: The same for side *b*.
        names: ``sockname`` of *a* and of *b*; each is the ``peername`` of the other.
        loop: The running loop, if given.

    Returns:
        ``((transport_a, protocol_a), (transport_b, protocol_b))``
    """
    loop = loop or asyncio.get_running_loop()
    protocol_a, protocol_b = protocol_a_factory(), protocol_b_factory()
    extra_a = {"sockname": names[0], "peername": names[1]}
    extra_b = {"sockname": names[1], "peername": names[0]}
    a = LocalQueueTransport(loop, protocol_a, extra_a, contextvars.copy_context())
    b = LocalQueueTransport(loop, protocol_b, extra_b, contextvars.copy_context())
    await _establish(a, b)
    return (a, protocol_a), (b, protocol_b)


def _check_options(options: dict[str, Any]) -> None:
    """Refuse what a LocalQueue has no notion of, instead of ignoring it."""
    if options.pop("ssl", None):
        raise ValueError("TLS is not available on a LocalQueue: nothing leaves the process; leave ssl unset")
    if options:
        raise TypeError(f"a LocalQueue has no options {', '.join(sorted(options))}")


async def _establish(client: LocalQueueTransport, server: LocalQueueTransport) -> None:
    """Join two transports and wait until both protocols know it."""
    client._join(server)
    loop = client._loop
    is_made: asyncio.Future[None] = loop.create_future()
    server._soon(server._start)
    client._soon(client._start)
    loop.call_soon(_set_unless_cancelled, is_made)
    try:
        await is_made
    except BaseException:
        client.close()
        raise


def _set_unless_cancelled(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class LocalQueue:
    """The address of a server inside this process.

    Get one from :func:`get_queue` and pass it where other transports take ``(host, port)``.  It has at most
    one server at a time.  Queues are compared and hashed by identity.

    Args:
        queue_id: Any string without a ``/``.
    """

    def __init__(self, queue_id: str) -> None:
        self._queue_id = queue_id
        self._server: LocalQueueServer | None = None

    def __repr__(self) -> str:
        state = "no server" if self._server is None else "has a server"
        return f"<{type(self).__name__} {self._queue_id!r}, {state}, at {id(self):#x}>"

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._queue_id!r})"

    @property
    def queue_id(self) -> str:
        """The id that the queue was made with."""
        return self._queue_id

    @property
    def server(self) -> LocalQueueServer | None:
        """The server that is bound to this queue, or ``None``."""
        return self._server

    def set_server(self, server: LocalQueueServer) -> None:
        """Bind a server; :class:`LocalQueueServer` does it by itself.

        Raises:
            AddressInUseError: There is one already.  One left behind in a closed loop does not count.
        """
        if self._server is not None and not self._server.get_loop().is_closed():
            raise AddressInUseError(self)
        self._server = server

    def unset_server(self) -> None:
        """Free the queue for another server; closing a server does it by itself."""
        self._server = None


class LocalQueueServer(asyncio.AbstractServer):
    """Accepts the connections to a :class:`LocalQueue`, from the moment it is made.

    Args:
        protocol_factory: Is called without arguments for each connection and returns its protocol.
        lq: The queue to bind to.
        loop: The running loop, if given.

    Raises:
        AddressInUseError: The queue has a server already.
    """

    def __init__(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        lq: LocalQueue,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._protocol_factory = protocol_factory
        self._lq = lq
        self._loop = loop or asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._forever: asyncio.Future[NoReturn] | None = None
        lq.set_server(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._lq} {'serving' if self.is_serving() else 'closed'}>"

    @property
    def lq(self) -> LocalQueue:
        """The queue that the server is, or was, bound to."""
        return self._lq

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that the server belongs to."""
        return self._loop

    def is_serving(self) -> bool:
        """Return whether new connections are accepted."""
        return self._lq.server is self

    def close(self) -> None:
        """Accept no more connections and free the queue at once; existing connections go on."""
        if self.is_serving():
            self._lq.unset_server()
        if self._forever is not None and not self._loop.is_closed():
            self._forever.cancel()

    async def wait_closed(self) -> None:
        """Return at once: nothing of the server itself is left after :meth:`close`."""

    async def start_serving(self) -> None:
        """Do nothing, the server serves already.

        Raises:
            RuntimeError: The server is closed.
        """
        if not self.is_serving():
            raise RuntimeError(f"server {self!r} is closed")

    async def serve_forever(self) -> NoReturn:
        """Wait until the server is closed or this call is cancelled, which closes it.

        Raises:
            RuntimeError: The server is closed, or somebody else waits already.
            asyncio.CancelledError: The server was closed meanwhile.
        """
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already awaited in serve_forever()")
        await self.start_serving()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        finally:
            self._forever = None
            self.close()
        raise AssertionError("only cancellation ends the wait")

    def _accept(self, extra: dict[str, Any]) -> LocalQueueTransport:
        """Make our side of a connection."""
        context = self._context.copy()
        try:
            protocol = context.run(self._protocol_factory)
        except Exception as exc:
            message = f"the server's protocol factory failed: {exc!r}"
            self._loop.call_exception_handler({"message": message, "exception": exc})
            raise ConnectError(self._lq, message) from exc
        return LocalQueueTransport(self._loop, protocol, extra, context)


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
