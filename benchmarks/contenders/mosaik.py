"""mosaik-api-v3: its channel, which carries JSON, and therefore no bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from mosaik_api_v3.connection import Channel, EndOfRequests

from benchmarks.contender import Operations


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes in."""
    channel = Channel(reader, writer)
    with suppress(EndOfRequests):
        while True:
            request = await channel.next_request()
            await request.set_result(request.content)


@asynccontextmanager
async def server() -> AsyncIterator[Any]:
    """Serve."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()


@asynccontextmanager
async def client(address: Any) -> AsyncIterator[Operations]:
    """Be connected."""
    channel = Channel(*await asyncio.open_connection(*address))
    yield Operations(number=channel.send, record=channel.send)
    await channel.close()
