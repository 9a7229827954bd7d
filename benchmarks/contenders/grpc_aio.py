"""grpcio: its interface for asyncio, with declared types.

The interface is compiled when this is imported, by grpcio-tools.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from benchmarks.contender import Operations

messages, services = grpc.protos_and_services("benchmarks/contenders/echo.proto")
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Echo(services.EchoServicer):  # type: ignore[name-defined, misc]  # made at run time
    """What is called."""

    async def EchoNumber(self, request: Any, context: Any) -> Any:
        """Return *request*."""
        return request

    EchoRecord = EchoData = EchoNumber

    async def Count(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Stream numbers."""
        for number in range(request.value):
            yield messages.Number(value=number)


@asynccontextmanager
async def server() -> AsyncIterator[Any]:
    """Serve."""
    server = grpc.aio.server(options=OPTIONS)
    services.add_EchoServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@asynccontextmanager
async def client(address: Any) -> AsyncIterator[Operations]:
    """Be connected."""
    async with grpc.aio.insecure_channel(address, OPTIONS) as channel:
        echo = services.EchoStub(channel)

        async def number(value: int) -> Any:
            return (await echo.EchoNumber(messages.Number(value=value))).value

        async def data(value: bytes) -> Any:
            return (await echo.EchoData(messages.Data(value=value))).value

        async def stream(count: int) -> AsyncIterator[int]:
            async for item in echo.Count(messages.Number(value=count)):
                yield item.value

        yield Operations(
            number=number,
            record=echo.EchoRecord,
            data=data,
            stream=stream,
            as_record=lambda record: messages.Record(**record),
        )
