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
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from aiomas_ng._io.local_transport import LocalQueueTransport
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

_A = TypeVar("_A", bound=asyncio.BaseProtocol)
_B = TypeVar("_B", bound=asyncio.BaseProtocol)
_queues: dict[str, LocalQueue] = {}


def get_queue(queue_id: str) -> LocalQueue:
    """Return the queue of that id, always the same one for the same id.

    Args:
        queue_id: Any string without a ``/`` (the id is part of the agents' URLs), but not an empty one.

    Raises:
        ValueError: The id is no string, is empty or contains a ``/``.
    """
    if not isinstance(queue_id, str):
        raise ValueError(f"the id of a queue must be a str, not {type(queue_id).__name__}: {queue_id!r}")
    if not queue_id:
        raise ValueError("the id of a queue must not be empty")
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
