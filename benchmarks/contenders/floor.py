"""The floor: the least that could do the work. A length prefix and MsgPack over asyncio's protocols.

There is no routing, no limit, no flow control, no error and no timeout: a request is ``[id, value]``, and
so is its reply. The variant ``coalescing`` collects what is written in one iteration of the event loop, as
a server does anyway with the replies to what it has received at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import msgpack

from benchmarks.contender import Operations

IS_COALESCING = os.environ.get("BENCHMARK_VARIANT") == "coalescing"
LARGEST = 2**26

pack = msgpack.Packer(autoreset=True).pack


def unpack(data: bytes) -> Any:
    """Decode one message."""
    return msgpack.unpackb(data, max_bin_len=LARGEST)


class Framed(asyncio.Protocol):
    """Cuts what arrives into messages, and sends messages."""

    def __init__(self) -> None:
        self.buffer = b""
        self.needed = 4  # bytes, before there is anything to do
        self.pieces: list[bytes] = []  # that have not been joined yet
        self.size = 0  # bytes in the pieces
        self.outgoing: list[bytes] = []
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.size or len(data) < self.needed:
            self.pieces.append(data)
            self.size += len(data)
            if self.size < self.needed:
                return
            data = b"".join(self.pieces)
            self.pieces, self.size = [], 0
        place, end = 0, len(data)
        self.needed = 4
        while end - place >= 4:
            stop = place + 4 + int.from_bytes(data[place : place + 4], "big")
            if stop > end:
                self.needed = stop - place
                break
            self.received(*unpack(data[place + 4 : stop]))
            place = stop
        if place < end:
            self.pieces, self.size = [data[place:]], end - place
        self.flush()

    def received(self, number: int, value: Any) -> None:
        """Do what a message asks for."""
        raise NotImplementedError

    def send(self, number: int, value: Any) -> None:
        """Write a message, or keep it for :meth:`flush`."""
        body = pack((number, value))
        message = len(body).to_bytes(4, "big") + body
        if not IS_COALESCING:
            self.transport.write(message)
            return
        self.outgoing.append(message)

    def flush(self) -> None:
        """Write what was kept."""
        if self.outgoing:
            self.transport.write(b"".join(self.outgoing))
            self.outgoing.clear()


class Server(Framed):
    """Sends back what it receives."""

    received = Framed.send


class Client(Framed):
    """Waits for replies."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = count()
        self.waiting: dict[int, asyncio.Future[Any]] = {}

    def call(self, value: Any) -> asyncio.Future[Any]:
        """Return a future for *value*."""
        number = next(self.numbers)
        reply = self.waiting[number] = self.loop.create_future()
        if IS_COALESCING and not self.outgoing:
            self.loop.call_soon(self.flush)
        self.send(number, value)
        return reply

    def received(self, number: int, value: Any) -> None:
        self.waiting.pop(number).set_result(value)


@asynccontextmanager
async def server() -> AsyncIterator[Any]:
    """Serve."""
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()


@asynccontextmanager
async def client(address: Any) -> AsyncIterator[Operations]:
    """Be connected."""
    transport, protocol = await asyncio.get_running_loop().create_connection(Client, *address)
    call = protocol.call
    yield Operations(number=call, record=call, data=call)
    transport.close()
