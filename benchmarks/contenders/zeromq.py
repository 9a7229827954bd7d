"""pyzmq: a DEALER and a ROUTER in asyncio, with MsgPack; requests and replies are told apart by a number.

Not with :mod:`zmq.asyncio`, which reaches a third of this with many calls in flight, but with plain sockets
whose file descriptor the event loop watches. It tells of changes, not of states, so it is looked at again
after sending.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import msgpack
import zmq

from benchmarks.contender import Operations

pack = msgpack.Packer(autoreset=True).pack


class Peer:
    """A socket in the event loop."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self.loop = asyncio.get_running_loop()
        self.is_scheduled = False
        self.loop.add_reader(socket.FD, self.receive)

    def send(self, parts: list[bytes]) -> None:
        """Send a message, and look later for what has come in meanwhile."""
        self.socket.send_multipart(parts, zmq.NOBLOCK)
        if not self.is_scheduled:
            self.is_scheduled = True
            self.loop.call_soon(self.receive)

    def receive(self) -> None:
        """Take all that is there."""
        self.is_scheduled = False
        try:
            while True:
                self.received(*self.socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            pass

    def received(self, *parts: bytes) -> None:
        """Do what a message asks for."""
        raise NotImplementedError


class Server(Peer):
    """Sends back what comes in."""

    def received(self, *parts: bytes) -> None:
        sender, message = parts
        number, value = msgpack.unpackb(message)
        self.send([sender, pack((number, value))])


class Client(Peer):
    """Sends requests, and waits for replies."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        super().__init__(socket)
        self.numbers = count()
        self.waiting: dict[int, asyncio.Future[Any]] = {}

    def call(self, value: Any) -> asyncio.Future[Any]:
        """Return a future for *value*."""
        number = next(self.numbers)
        reply = self.waiting[number] = self.loop.create_future()
        self.send([pack((number, value))])
        return reply

    def received(self, *parts: bytes) -> None:
        number, value = msgpack.unpackb(parts[0])
        self.waiting.pop(number).set_result(value)


@asynccontextmanager
async def server() -> AsyncIterator[Any]:
    """Serve."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        peer = Server(socket)
        yield f"tcp://127.0.0.1:{port}"
        peer.loop.remove_reader(socket.FD)


@asynccontextmanager
async def client(address: Any) -> AsyncIterator[Operations]:
    """Be connected."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(address)
        peer = Client(socket)
        yield Operations(number=peer.call, record=peer.call, data=peer.call)
        peer.loop.remove_reader(socket.FD)
