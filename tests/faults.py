"""Peers and networks that misbehave, over every transport.

* :class:`RawPeer` speaks frames by hand, right or wrong, and reads only when it is asked to.
* :class:`FaultyLink` lies between a client and a server: it holds bytes back, cuts in the middle of a frame,
  or loses one side without telling the other.
* :func:`open_link`, :func:`open_raw_client` and :func:`open_raw_server` put the ends together and clean up.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgpack

from aiomas_ng import channel as channels
from aiomas_ng import codecs, local_queue
from aiomas_ng._io.endpoint import as_address
from aiomas_ng.channel import Channel

REQUEST, RESULT, EXCEPTION, CANCEL, ITEM, MESSAGE, CREDIT, PING, PONG, SESSION, STREAM = range(11)
"""The types of frames as the documentation of the wire has them, not as the package has."""

FIRST_ID = 0x616E6700
"""The id of the first request of a peer that knows the types above 2."""

CODECS = {"msgpack": codecs.MsgPack, "json": codecs.JSON}


def frame(payload: bytes) -> bytes:
    """Return *payload* with its header."""
    return struct.pack("!L", len(payload)) + payload


def encode(codec: str, msg_type: Any, msg_id: Any, content: Any) -> bytes:
    """Return a frame of *codec*, ``'msgpack'`` or ``'json'``."""
    message = [msg_type, msg_id, content]
    return frame(msgpack.packb(message) if codec == "msgpack" else json.dumps(message).encode())


async def until(is_reached: Callable[[], Any]) -> None:
    """Let the loop run until a condition is true that no event can be waited for."""
    while not is_reached():  # noqa: ASYNC110  # bounded by the time limit of the test
        await asyncio.sleep(0)


class RawPeer(asyncio.Protocol):
    """A peer that does what the test says.

    Args:
        codec: ``'msgpack'`` or ``'json'``.
        greets: Its ids begin where those of a peer of ours do.
    """

    def __init__(self, codec: str = "msgpack", *, greets: bool = False) -> None:
        self.codec = codec
        self.transport: Any = None
        self.received = bytearray()
        self.frames: collections.deque[list[Any]] = collections.deque()
        self.is_lost = False
        self.first_id = self._next_id = FIRST_ID if greets else 0
        self._changed = asyncio.Event()

    # Events of the transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        self.received += data
        while len(self.received) >= 4:
            size = struct.unpack_from("!L", self.received)[0]
            if len(self.received) < 4 + size:
                break
            payload = bytes(self.received[4 : 4 + size])
            del self.received[: 4 + size]
            decode = msgpack.unpackb if self.codec == "msgpack" else json.loads
            self.frames.append(decode(payload))
        self._changed.set()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.is_lost = True
        self._changed.set()

    # What a test does

    async def until(self, is_reached: Callable[[], Any]) -> None:
        """Wait until an event makes a condition true."""
        while not is_reached():
            self._changed.clear()
            await self._changed.wait()

    async def recv(self) -> list[Any]:
        """Return the next frame as ``[type, id, content]``.

        Raises:
            EOFError: The connection has ended.
        """
        await self.until(lambda: self.frames or self.is_lost)
        if not self.frames:
            raise EOFError
        return self.frames.popleft()

    async def recv_reply(self, msg_id: Any) -> list[Any]:
        """Return the next frame that is a result or exception for *msg_id*; drop those before it."""
        while True:
            reply = await self.recv()
            if reply[0] in (RESULT, EXCEPTION) and reply[1] == msg_id:
                return reply

    async def until_lost(self) -> None:
        """Wait until the connection has ended."""
        await self.until(lambda: self.is_lost)

    def send(self, msg_type: Any, msg_id: Any, content: Any = None) -> None:
        """Send a frame."""
        self.transport.write(encode(self.codec, msg_type, msg_id, content))

    def send_bytes(self, data: bytes) -> None:
        """Send anything."""
        self.transport.write(data)

    def request(self, content: Any) -> int:
        """Send a request and return its id."""
        msg_id = self._next_id
        self._next_id += 1
        self.send(REQUEST, msg_id, content)
        return msg_id

    async def call(self, content: Any) -> Any:
        """Send a request and return the result.

        Raises:
            AssertionError: The answer is an exception.
        """
        reply = await self.recv_reply(self.request(content))
        assert reply[0] == RESULT, reply
        return reply[2]

    def stop_reading(self) -> None:
        """Read nothing any more."""
        self.transport.pause_reading()

    def start_reading(self) -> None:
        """Read again."""
        self.transport.resume_reading()

    def close(self) -> None:
        """Close the connection."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Break the connection."""
        if self.transport is not None:
            self.transport.abort()


async def connect_raw(address: Any, peer: asyncio.Protocol) -> None:
    """Connect *peer* to a server."""
    loop = asyncio.get_running_loop()
    target = as_address(address)
    if isinstance(target, local_queue.LocalQueue):
        await local_queue.create_connection(lambda: peer, target)
    elif isinstance(target, str):
        await loop.create_unix_connection(lambda: peer, target)
    else:
        await loop.create_connection(lambda: peer, *target)


@contextlib.asynccontextmanager
async def listen_raw(transport: Any, factory: Callable[[], asyncio.Protocol]) -> AsyncIterator[Any]:
    """Listen with the protocols of *factory*; gives the address to connect to."""
    loop = asyncio.get_running_loop()
    address = transport.address()
    server: Any
    if transport.kind == "local":
        server = await local_queue.create_server(factory, address)
    elif transport.kind == "unix":
        server = await loop.create_unix_server(factory, address)
    else:
        server = await loop.create_server(factory, *address)
        address = server.sockets[0].getsockname()
    try:
        yield address
    finally:
        server.close()


def serve(channel: Channel, func: Callable[[Any], Any]) -> None:
    """Answer the requests of *channel* with ``func(content)``, as the layer for RPC does."""

    def handle(msg_id: int | str | None, content: Any) -> None:
        try:
            result = func(content)
        except Exception as error:
            if msg_id is not None:
                channel._answer_error(msg_id, error)
            return
        channel._settle(msg_id, result)

    channel._serve(handle)


@contextlib.asynccontextmanager
async def accept(transport: Any, **kwds: Any) -> AsyncIterator[tuple[Any, asyncio.Future[Channel]]]:
    """Listen for one client; gives the server and the future of its channel, which is closed at the end."""
    accepted: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
    async with await channels.start_server(transport.address(), accepted.set_result, **kwds) as server:
        try:
            yield server, accepted
        finally:
            if accepted.done():
                await accepted.result().close()


@contextlib.asynccontextmanager
async def open_link(
    transport: Any, *, near: dict[str, Any] | None = None, far: dict[str, Any] | None = None, **kwds: Any
) -> AsyncIterator[tuple[Channel, Channel]]:
    """Give two ends of a connection, the client's and the server's.

    Args:
        transport: Which way to connect.
        near: Options of the client's end.
        far: Options of the server's end.
        **kwds: Options of both.
    """
    async with accept(transport, **kwds, **(far or {})) as (server, accepted):
        client = await channels.open_connection(server.url, **kwds, **(near or {}))
        try:
            yield client, await accepted
        finally:
            await client.close()


@contextlib.asynccontextmanager
async def open_raw_client(
    transport: Any, speaks: str = "msgpack", *, greets: bool = False, **kwds: Any
) -> AsyncIterator[tuple[RawPeer, Channel]]:
    """Give a raw peer that has connected to a server of ours, and the channel to it.

    Args:
        transport: Which way to connect.
        speaks: The codec of the peer, which our side uses as well, unless it is given another.
        greets: The peer is one of ours by the ids of its requests.
        **kwds: Options of the server.
    """
    peer = RawPeer(speaks, greets=greets)
    async with accept(transport, **{"codec": CODECS[speaks], **kwds}) as (server, accepted):
        await connect_raw(server.url, peer)
        try:
            yield peer, await accepted
        finally:
            peer.abort()


@contextlib.asynccontextmanager
async def open_raw_server(
    transport: Any, speaks: str = "msgpack", **kwds: Any
) -> AsyncIterator[tuple[Channel, RawPeer]]:
    """Give a channel that has connected to a raw peer, and that peer; for the arguments see the client."""
    peer = RawPeer(speaks)
    async with listen_raw(transport, lambda: peer) as address:
        channel = await channels.open_connection(address, **{"codec": CODECS[speaks], **kwds})
        await peer.until(lambda: peer.transport)
        try:
            yield channel, peer
        finally:
            peer.abort()
            await channel.close()


class FaultyLink:
    """Lies between a client and a server, and forwards the bytes of one connection as the test lets it.

    Args:
        target: The address of the server.
    """

    def __init__(self, target: Any) -> None:
        self.target = target
        self.client = _Half(self)
        self.server = _Half(self)
        self.client.other, self.server.other = self.server, self.client
        self._dialling: asyncio.Task[None] | None = None

    def __call__(self) -> asyncio.Protocol:
        """Take the connection of the client and connect to the server."""
        self._dialling = asyncio.get_running_loop().create_task(connect_raw(self.target, self.server))
        return self.client

    async def until_connected(self) -> None:
        """Wait until both sides are connected."""
        await until(lambda: self._dialling)
        assert self._dialling is not None
        await self._dialling

    def hold(self) -> None:
        """Let no byte pass until :meth:`release`."""
        self.client.limit = self.server.limit = 0

    def release(self) -> None:
        """Let all bytes pass, those that were held back as well."""
        for half in (self.client, self.server):
            half.limit = None
            half.forward()

    def cut_after(self, size: int) -> None:
        """Let *size* more bytes of the server pass, then close the connection to the client."""
        self.server.limit = size
        self.server.cuts = True

    def lose_server(self) -> None:
        """Break the connection to the server without telling the client."""
        self.client.is_deaf = True
        self.server.is_deaf = True
        self.server.transport.abort()

    def close(self) -> None:
        """Close both connections."""
        for half in (self.client, self.server):
            if half.transport is not None:
                half.transport.abort()


class _Half(asyncio.Protocol):
    """One of the two connections of a :class:`FaultyLink`."""

    def __init__(self, link: FaultyLink) -> None:
        self.link = link
        self.other: _Half
        self.transport: Any = None
        self.limit: int | None = None  # bytes that may still be forwarded
        self.cuts = False
        self.is_deaf = False  # the end of this connection is not passed on
        self._held = bytearray()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.other.forward()

    def data_received(self, data: bytes) -> None:
        self._held += data
        self.forward()

    def forward(self) -> None:
        """Pass on what may pass."""
        if self.other.transport is None:
            return
        size = len(self._held) if self.limit is None else min(self.limit, len(self._held))
        if size:
            if not self.other.transport.is_closing():
                self.other.transport.write(bytes(self._held[:size]))
            del self._held[:size]
        if self.limit is not None:
            self.limit -= size
            if self.cuts and not self.limit:
                self.other.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self.is_deaf and self.other.transport is not None:
            self.other.transport.close()


@contextlib.asynccontextmanager
async def open_faulty_link(transport: Any, **kwds: Any) -> AsyncIterator[tuple[Channel, Channel, FaultyLink]]:
    """Give the client's end, the server's end, and what lies between them."""
    async with accept(transport, **kwds) as (server, accepted):
        link = FaultyLink(server.url)
        async with listen_raw(transport, link) as address:
            client = await channels.open_connection(address, **kwds)
            try:
                await link.until_connected()
                yield client, await accepted, link
            finally:
                link.close()
                await client.close()
