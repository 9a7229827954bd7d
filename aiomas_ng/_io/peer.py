"""Servers reached by address: dialled when something is called there, and anew when the connection has
died."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiomas_ng._io.reply import Reply
from aiomas_ng.exceptions import AiomasError, ClosedByUsError, ConnectError

if TYPE_CHECKING:
    from aiomas_ng._core.addresses import Address
    from aiomas_ng.channel import Channel
    from aiomas_ng.rpc import CallOptions, Proxy, RpcClient

__all__ = ["Peer", "Peers"]

#: Opens a connection to an address within a timeout.
Open = Callable[["Address", "float | None"], Awaitable["RpcClient"]]


class Peer:
    """One server. It is a link for proxies (see :class:`~aiomas_ng.rpc.Link`), whether it is connected now or
    not.

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
            tuple[Reply, str, tuple[Any, ...], dict[str, Any], CallOptions | None]
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

    async def connect(self, timeout: float | None = 0) -> RpcClient:
        """Return the live connection, after making one if need be.

        Any number of tasks may call this at once: one of them dials, the others share the connection or, if
            that failed, try for
        themselves.  Cancelling one does not disturb the others.

        Args:
            timeout: Seconds to go on trying; 0 tries once, ``None`` for ever.

        Raises:
            ConnectError: Nobody answers at the address.
        """
        client = self.client
        if client is not None:
            return client
        deadline = time.monotonic() + timeout if timeout else None
        async with contextlib.AsyncExitStack() as stack:
            try:
                # With a timeout the time spent waiting for other tasks' attempts counts.
                async with asyncio.timeout(timeout or None):
                    await stack.enter_async_context(self._lock)
            except TimeoutError:
                raise ConnectError(self.url.rstrip("/"), f"no answer within {timeout} s") from None
            client = self.client
            if client is None:
                left = max(0.001, deadline - time.monotonic()) if deadline is not None else timeout
                client = await self._peers._open(self.address, left)
                if self._peers.is_closed:
                    await client.close()
                    raise ClosedByUsError("the container was shut down while it connected")
                self._client = client
                self._peers._keep(self, client)
        return client

    def call(
        self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions | None
    ) -> Reply | None:
        """Call the function at *path*; connects first if need be, and keeps the order of calls."""
        client = self.client
        if client is not None and not self._waiting:
            return client.call(path, args, kwargs, options)
        if self._peers.is_closed:
            raise ClosedByUsError("the container was shut down", was_sent=False)
        reply = Reply(self._peers.loop, path)
        if options is not None and options.timeout is not None:
            reply.expire_after(options.timeout)
        self._waiting.append((reply, path, args, kwargs, options))
        if self._task is None:
            self._task = self._peers.loop.create_task(self._connect_and_call())
        return None if options is not None and options.oneway else reply

    async def _connect_and_call(self) -> None:
        error: BaseException = ClosedByUsError("the connection attempt was given up", was_sent=False)
        try:
            client = await self.connect()
            while self._waiting:
                reply, path, args, kwargs, options = self._waiting.popleft()
                if not reply.done():
                    try:
                        client.call(path, args, kwargs, options, reply)
                    except AiomasError as failure:
                        reply.set_exception(failure)
        except (AiomasError, OSError) as failure:
            error = failure
        finally:
            self._task = None
            while self._waiting:
                reply = self._waiting.popleft()[0]
                if not reply.done():
                    reply.set_exception(error)


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

    def get(self, address: Address) -> Peer:
        """Return the peer at *address*, the same one each time."""
        peer = self._known.get(address)
        if peer is None:
            peer = self._known[address] = Peer(address, self)
        return peer

    def _keep(self, peer: Peer, client: RpcClient) -> None:
        self._connected[client] = peer
        client.channel._lost_callbacks.append(lambda _: self._forget(client))

    def _forget(self, client: RpcClient) -> None:
        self._connected.pop(client, None)

    async def close(self) -> None:
        """Close all connections; attempts that are under way fail."""
        self.is_closed = True
        tasks = [peer._task for peer in self._known.values() if peer._task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(
            *tasks, *(client.close() for client in list(self._connected)), return_exceptions=True
        )
