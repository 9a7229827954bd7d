"""aio-msgpack-rpc: MsgPack-RPC over asyncio's streams. Plain functions as handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aio_msgpack_rpc
import msgpack

from benchmarks.contender import Operations

LARGEST = 2**26


def new_unpacker() -> msgpack.Unpacker:
    """Return a decoder that also takes the large values."""
    return msgpack.Unpacker(raw=False, max_buffer_size=LARGEST)


class Echo:
    """What is called."""

    count = 0

    def echo(self, value: Any) -> Any:
        """Return *value*."""
        return value

    def post(self, value: int) -> None:
        """Count a message."""
        self.count += 1

    def arrived(self) -> int:
        """Return how many messages there were."""
        return self.count


@asynccontextmanager
async def server() -> AsyncIterator[Any]:
    """Serve."""
    serve = aio_msgpack_rpc.Server(Echo(), unpacker_factory=new_unpacker)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()


@asynccontextmanager
async def client(address: Any) -> AsyncIterator[Operations]:
    """Be connected."""
    reader, writer = await asyncio.open_connection(*address)
    client = aio_msgpack_rpc.Client(reader, writer, unpacker=new_unpacker())
    call = partial(client.call, "echo")

    async def post(count: int) -> None:
        for number in range(count):
            await client.notify("post", number)

    yield Operations(number=call, record=call, data=call, post=post, arrived=partial(client.call, "arrived"))
    client.close()
