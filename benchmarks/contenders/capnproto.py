"""pycapnp: Cap'n Proto's RPC in asyncio, with declared types.

A record is sent from a message that exists already; of the reply all fields are read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import capnp

from benchmarks.contender import Operations

interface = capnp.load(str(Path(__file__).with_name("echo.capnp")))
#: No more of a message is read than that, in words of 8 bytes.
LARGEST = 2**26


class Record(tuple[Any, ...]):
    """The fields of a record, and the message that is sent for it."""

    message: Any

    @classmethod
    def make(cls, record: Mapping[str, Any]) -> Record:
        """Make both of *record*."""
        fields = cls(record.values())
        names = ("id", "t", "pKw", "name", "ok")
        fields.message = interface.Record.new_message(**dict(zip(names, fields, strict=True)))
        return fields


class Echo(interface.Echo.Server):  # type: ignore[name-defined, misc]  # made at run time
    """What is called."""

    async def number(self, value: Any, **kwds: Any) -> Any:
        """Return *value*."""
        return value

    record = data = number


@asynccontextmanager
async def server() -> AsyncIterator[Any]:
    """Serve."""

    async def serve(stream: Any) -> None:
        await capnp.TwoPartyServer(stream, bootstrap=Echo()).on_disconnect()

    async with capnp.kj_loop():
        server = await capnp.AsyncIoStream.create_server(serve, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()


@asynccontextmanager
async def client(address: Any) -> AsyncIterator[Operations]:
    """Be connected."""
    async with capnp.kj_loop():
        stream = await capnp.AsyncIoStream.create_connection(*address)
        echo = (
            capnp.TwoPartyClient(stream, traversal_limit_in_words=LARGEST).bootstrap().cast_as(interface.Echo)
        )

        async def number(value: int) -> Any:
            return (await echo.number(value)).value

        async def data(value: bytes) -> Any:
            return (await echo.data(value)).value

        async def record(value: Record) -> Any:
            reply = (await echo.record(value.message)).value
            return reply.id, reply.t, reply.pKw, reply.name, reply.ok

        yield Operations(number=number, record=record, data=data, as_record=Record.make)
