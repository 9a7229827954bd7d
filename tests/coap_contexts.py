"""Contexts over every transport, and peers that speak messages by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from conftest import Transport
from faults import MESSAGE, RawPeer, connect_raw, listen_raw

from aiomas_ng.local_queue import LocalQueue
from aiomas_ng.message import CONTENT, Message
from aiomas_ng.protocol import Context
from aiomas_ng.resource import ObservableResource, Resource, Site

LANE = 1
"""The number of the lane for messages, as the documentation of the wire has it."""


class Value(ObservableResource):
    """Bytes that can be read, written and observed."""

    def __init__(self, payload: bytes = b"") -> None:
        self.payload = payload
        self.reads = 0
        self.writes: list[bytes] = []

    def render_get(self, request: Message) -> Message:
        self.reads += 1
        return Message(payload=self.payload)

    def render_put(self, request: Message) -> Message:
        self.writes.append(request.payload)
        self.set(request.payload)
        return Message()

    def set(self, payload: bytes) -> None:
        """Change the state."""
        self.payload = payload
        self.updated_state()


class Stuck(Resource):
    """Never answers; tells when it has begun and when it was cancelled."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0

    async def render_get(self, request: Message) -> Message:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # cleaning up may take a while, too
            self.cancelled += 1
        raise AssertionError

    render_post = render_get


class Echo(Resource):
    """Answers each method but DELETE with what it got."""

    def render_post(self, request: Message) -> Message:
        return Message(payload=request.payload)

    def render_fetch(self, request: Message) -> Message:
        return Message(CONTENT, request.payload)


def site_of(**resources: Any) -> Site:
    """Return a site with *resources* by name."""
    site = Site()
    for name, resource in resources.items():
        site.add_resource([name], resource)
    return site


@contextlib.asynccontextmanager
async def served(
    transport: Transport,
    site: Any,
    *,
    near: dict[str, Any] | None = None,
    far: dict[str, Any] | None = None,
    **both: Any,
) -> AsyncIterator[tuple[Context, Context, str]]:
    """Give a client, a server of *site*, and the server's URL.

    Args:
        transport: How they are connected.
        site: What answers.
        near: Options of the client.
        far: Options of the server.
        **both: Options of both.
    """
    server = await Context.create_server_context(site, transport.address(), **{**both, **(far or {})})
    async with server, await Context.create_client_context(**{**both, **(near or {})}) as client:
        yield client, server, server.urls[0]


class MessagePeer:
    """Sends and receives messages by hand.

    Args:
        raw: The connection.
    """

    def __init__(self, raw: RawPeer) -> None:
        self.raw = raw
        self.contents: list[Any] = []

    async def receive(self) -> list[Any]:
        """Return the next thing that came on the lane: a message in compact form, or a signal."""
        while True:
            kind, lane, content = await self.raw.recv()
            if kind == MESSAGE and lane == LANE:
                return list(content)

    async def receive_message(self) -> Message:
        """Return the next message; signals before it are dropped."""
        while True:
            content = await self.receive()
            if content[0] != 0:
                return Message.from_compact(content)[0]

    async def receive_signal(self) -> list[Any]:
        """Return the next signal; messages before it are dropped."""
        while True:
            content = await self.receive()
            if content[0] == 0:
                return content

    def send(self, content: Any) -> None:
        """Send anything on the lane."""
        self.raw.send(MESSAGE, LANE, content)

    def request(
        self, code: int, path: str, payload: bytes = b"", token: bytes = b"t", **options: Any
    ) -> None:
        """Send a request."""
        message = Message(code, payload, token=token, uri_path=path.split("/"), **options)
        self.send(message.to_compact())

    async def ask(
        self, code: int, path: str, payload: bytes = b"", token: bytes = b"t", **options: Any
    ) -> Message:
        """Send a request and return the next message."""
        self.request(code, path, payload, token, **options)
        return await self.receive_message()

    def respond(
        self, request: Message, code: int = CONTENT, payload: bytes = b"", more: bool = False, **options: Any
    ) -> None:
        """Send a response."""
        self.send(Message(code, payload, **options).to_compact(token=request.token, more=more))


@contextlib.asynccontextmanager
async def raw_client(url: str) -> AsyncIterator[MessagePeer]:
    """Give a peer by hand that has connected to a server."""
    raw = RawPeer()
    await connect_raw(url, raw)
    try:
        yield MessagePeer(raw)
    finally:
        raw.abort()


class RawServer:
    """Listens, and has a peer by hand for each connection."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.peers: list[MessagePeer] = []
        self._has_new = asyncio.Event()

    def make_peer(self) -> RawPeer:
        """Return the peer of a new connection."""
        raw = RawPeer()
        self.peers.append(MessagePeer(raw))
        self._has_new.set()
        return raw

    async def peer(self, number: int = 0) -> MessagePeer:
        """Return the peer of the connection *number*, as soon as there is one."""
        while len(self.peers) <= number:
            self._has_new.clear()
            await self._has_new.wait()
        peer = self.peers[number]
        await peer.raw.until(lambda: peer.raw.transport is not None)
        return peer


@contextlib.asynccontextmanager
async def raw_server(transport: Transport, **kwds: Any) -> AsyncIterator[tuple[Context, RawServer]]:
    """Give a client context, with options *kwds*, and a server by hand."""
    server = RawServer("")
    async with listen_raw(transport, server.make_peer) as address:
        server.url = url_of(address)
        async with await Context.create_client_context(**kwds) as client:
            try:
                yield client, server
            finally:
                for peer in server.peers:
                    peer.raw.abort()


def url_of(address: Any) -> str:
    """Return the URL of an address."""
    if isinstance(address, LocalQueue):
        return f"local://{address.queue_id}/"
    if isinstance(address, str):
        return f"ipc://[{address}]/"
    return f"tcp://{address[0]}:{address[1]}/"
