"""Servers reached by address: dialled when something is called there, and anew when the connection has
died."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._core.deadline import Deadline, get_context_without, get_deadline
from aiomas_ng._io.endpoint import FIRST_PAUSE, LONGEST_PAUSE, PAUSE_GROWTH
from aiomas_ng._io.expiry import bounded, check_deadline, run_under
from aiomas_ng._io.reply import Reply, describe_call
from aiomas_ng.exceptions import ClosedByUsError, ConnectError, DeadlineExceededError, OverloadError, TLSError

if TYPE_CHECKING:
    from aiomas_ng._core.addresses import Address
    from aiomas_ng._io.proxy import CallOptions, Proxy
    from aiomas_ng.channel import Channel
    from aiomas_ng.rpc import RpcClient

__all__ = ["Peer", "Peers"]

logger = logging.getLogger(__name__)

#: Calls to one peer that may wait for the connection to it.
MAX_WAITING: Final = 100_000

#: Opens a connection to an address within a timeout.
Open = Callable[["Address", "float | None"], Awaitable["RpcClient"]]


class Peer:
    """One server. For proxies it is a :class:`~aiomas_ng._io.proxy.Link`, whether it is connected now or not.

    Args:
        address: Where it listens.
        peers: The table that it belongs to.
    """

    def __init__(self, address: Address, peers: Peers) -> None:
        self.address = address
        self.url = address.url
        self.proxies: weakref.WeakValueDictionary[str, Proxy] = weakref.WeakValueDictionary()
        self._peers = peers
        self._client: RpcClient | None = None
        self._lock = asyncio.Lock()
        # Calls made while there is no connection, in their order; they leave as soon as there is one.
        self._waiting: collections.deque[
            tuple[Reply, str, tuple[Any, ...], dict[str, Any], CallOptions | None, Deadline | None]
        ]
        self._waiting = collections.deque()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Peer at {self.url}>"

    @property
    def client(self) -> RpcClient | None:
        """The live connection, if there is one."""
        client = self._client
        if client is not None and client.channel.is_closed:
            self._client = client = None
            self.proxies.clear()
        return client

    @property
    def channel(self) -> Channel | None:
        """The live connection's channel, if there is one."""
        client = self.client
        return client.channel if client is not None else None

    def _let_go(self, client: RpcClient) -> None:
        """The peer takes no new requests over this connection: the next one goes over another."""
        if self._client is client:
            self._client = None
            self.proxies.clear()

    async def connect(self, timeout: float | None = 0) -> RpcClient:
        """Return the live connection, after making one if need be.

        Any number of tasks may call this at once: one of them dials, the others share the connection or, if
        that failed, try for themselves. Cancelling one does not disturb the others.

        Args:
            timeout: Seconds to go on trying, with growing pauses; 0 tries once, ``None`` for ever.

        Raises:
            ConnectError: Nobody answers at the address.
            ClosedByUsError: The table of peers was closed.
            DeadlineExceededError: A deadline around it has passed.
        """
        client = self.client
        if client is not None:
            return client
        async with bounded(self._peers.loop, f"the connection to {self.url}"):
            return await self._try_to_connect(timeout)

    async def _try_to_connect(self, timeout: float | None) -> RpcClient:
        failure = ConnectError(self.url.rstrip("/"), f"no answer within {timeout} s")
        pause = FIRST_PAUSE
        try:
            async with self._peers._attempt(timeout) as limit:
                while True:
                    try:
                        return await self._dial()
                    except ConnectError as error:
                        failure = error
                        if timeout == 0 or isinstance(error, TLSError):
                            raise
                    # Towards the end attempts get denser, so that one who comes late is still found.
                    end = limit.when()
                    left = end - self._peers.loop.time() if end is not None else LONGEST_PAUSE
                    await asyncio.sleep(min(pause, max(FIRST_PAUSE, left / 2)))
                    pause = min(LONGEST_PAUSE, pause * PAUSE_GROWTH)
        except TimeoutError:
            self._peers.check_open()
            raise failure from failure.__cause__

    async def _dial(self) -> RpcClient:
        """Try once, after those who try already: each holds the lock for one attempt only, however long it
        goes on trying."""
        async with self._lock:
            client = self.client
            if client is None:
                client = await self._peers._open(self.address, 0)
                self._client = client
                self._peers._keep(self, client)
            return client

    def call(
        self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions | None
    ) -> Reply | None:
        """Call the function at *path*; connects first if need be, and keeps the order of calls.

        Raises:
            OverloadError: Too many calls wait for the connection already.
            ClosedByUsError: The table of peers was closed.
            DeadlineExceededError: A deadline around the call has passed.
        """
        client = self._client
        if client is not None and not self._waiting and client._channel._error is None:
            shortcut = client._channel._shortcut
            if shortcut is not None:
                return shortcut.call(path, args, kwargs, options)
            if options is None:
                return client._channel._request((path, args, kwargs), args, path)
            return client.call(path, args, kwargs, options)
        client = self.client
        if client is not None and not self._waiting:
            return client.call(path, args, kwargs, options)
        self._peers.check_open()
        if len(self._waiting) >= MAX_WAITING:
            raise OverloadError(f"{len(self._waiting)} calls wait for the connection to {self.url} already")
        reply = Reply(loop=self._peers.loop)
        reply.path = path
        reply._channel = None
        if options is not None and options.timeout is not None:
            reply.expire_after(options.timeout)
        deadline = get_deadline()
        if deadline is not None:
            check_deadline(deadline, self._peers.loop, describe_call(path))
            reply.expire_at(deadline)
            if options is not None and options.oneway:
                reply.add_done_callback(_log_outcome)
        # Only a connection can encode them, but the caller may change them afterwards, as with any call.
        self._waiting.append((reply, path, _snapshot(args), _snapshot(kwargs), options, deadline))
        if self._task is None:
            # It is for all that wait, so it is not bound by what bounds the first one.
            connecting = self._connect_and_call()
            self._task = self._peers.loop.create_task(connecting, context=get_context_without())
        return None if options is not None and options.oneway else reply

    async def _connect_and_call(self) -> None:
        error: BaseException = ClosedByUsError("the connection attempt was given up", was_sent=False)
        try:
            client = await self.connect()
            while self._waiting:
                reply, path, args, kwargs, options, deadline = self._waiting.popleft()
                if not reply.done():
                    try:
                        with run_under(deadline):
                            client.call(path, args, kwargs, options, reply)
                    except Exception as failure:
                        _fail(reply, options, failure)
        except Exception as failure:
            error = failure
        finally:
            self._task = None
            while self._waiting:
                reply, _, _, _, options, _ = self._waiting.popleft()
                if not reply.done():
                    _fail(reply, options, error)


def _fail(reply: Reply, options: CallOptions | None, error: BaseException) -> None:
    """Let a call that was not sent fail; of a one-way call the log is told, as nobody has its reply."""
    reply.set_exception(error)
    if options is not None and options.oneway:
        reply.exception()
        logger.warning("the one-way call of %r was not sent: %s", reply.path, error)


def _log_outcome(reply: asyncio.Future[Any]) -> None:
    """Tell the log of a one-way call whose deadline has passed before it could be sent."""
    error = None if reply.cancelled() else reply.exception()
    if isinstance(error, DeadlineExceededError):
        logger.warning("a one-way call was given up: %s", error)


def _snapshot(value: Any) -> Any:
    """Return a copy of the lists and dicts, inside of each other, that *value* is made of."""
    if type(value) is tuple:
        return tuple(map(_snapshot, value))
    if type(value) is list:
        return list(map(_snapshot, value))
    if type(value) is dict:
        return {key: _snapshot(item) for key, item in value.items()}
    return value


class Peers:
    """The servers that one container, or one client, knows. Those nobody refers to and that are not connected
    vanish.

    Args:
        loop: The event loop.
        open_client: Opens a connection.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, open_client: Open) -> None:
        self.loop = loop
        self.is_closed = False
        self._open = open_client
        self._known: weakref.WeakValueDictionary[Address, Peer] = weakref.WeakValueDictionary()
        self._connected: dict[RpcClient, Peer] = {}
        self._attempts: set[asyncio.Timeout] = set()

    def get(self, address: Address) -> Peer:
        """Return the peer at *address*, the same one each time."""
        peer = self._known.get(address)
        if peer is None:
            peer = self._known[address] = Peer(address, self)
        return peer

    def check_open(self) -> None:
        """Raise :exc:`~aiomas_ng.exceptions.ClosedByUsError` if the table was closed."""
        if self.is_closed:
            raise ClosedByUsError("the container was shut down", was_sent=False)

    def drop(self) -> None:
        """Close all connections without waiting; whoever calls one of the peers again connects anew."""
        for client in list(self._connected):
            client.channel._set_error(ClosedByUsError("the connection to a third party was given up"))

    def get_tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks that connect for calls which were made before there was a connection."""
        return [peer._task for peer in list(self._known.values()) if peer._task is not None]

    def end(self) -> None:
        """Close all connections, now and for ever, without waiting; attempts that are under way fail."""
        self.is_closed = True
        for attempt in self._attempts:
            if not attempt.expired():
                attempt.reschedule(self.loop.time())
        for client in list(self._connected):
            client.channel._end_here()

    async def close(self) -> None:
        """The same as :meth:`end`, and wait until all is closed."""
        clients = list(self._connected)
        self.end()
        await asyncio.gather(
            *self.get_tasks(), *(client.close() for client in clients), return_exceptions=True
        )

    @contextlib.asynccontextmanager
    async def _attempt(self, timeout: float | None) -> AsyncIterator[asyncio.Timeout]:
        """End what runs in it by a ``TimeoutError`` after *timeout* seconds (0 and ``None``: never), or when
        the table is closed."""
        self.check_open()
        async with asyncio.timeout(timeout or None) as attempt:
            self._attempts.add(attempt)
            try:
                yield attempt
            finally:
                self._attempts.discard(attempt)

    def _keep(self, peer: Peer, client: RpcClient) -> None:
        self._connected[client] = peer
        client.channel._when_lost(lambda _: self._forget(client))
        client.channel._when_peer_closes(lambda: peer._let_go(client))

    def _forget(self, client: RpcClient) -> None:
        self._connected.pop(client, None)
