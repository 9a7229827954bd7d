"""What peers are told of exceptions: type and message; the traceback only where that is switched on, and else
it is in our own log, once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from aiomas_ng import Agent, Container, expose, rpc, state
from aiomas_ng import channel as channels
from aiomas_ng.codecs import MsgPack
from aiomas_ng.exceptions import RemoteException, RemoteSerializationError
from aiomas_ng.message import GET, Message
from tests.conftest import Transport

SECRET = "what is only to be read in the code"
"""Stands in the source lines that a traceback shows."""


class Odd:
    """A type whose serializer fails."""

    @staticmethod
    def serializer() -> Any:
        """Return the arguments of ``add_serializer``."""
        return Odd, fail_to_serialize, lambda parts: Odd()


def fail_to_serialize(odd: Odd) -> Any:
    raise LookupError("no words for it") from ValueError(f"{SECRET=}")


class Faulty(Agent):
    """An agent whose methods fail in every way there is."""

    @expose
    def plain(self) -> None:
        """Fail at once."""
        raise ValueError("told") from LookupError(f"{SECRET=}")

    @expose
    async def later(self) -> None:
        """Fail in a task."""
        await asyncio.sleep(0)
        raise ValueError("told") from LookupError(f"{SECRET=}")

    @expose
    async def stream(self) -> AsyncIterator[int]:
        """Fail in the middle of a stream."""
        yield 1
        raise ValueError("told") from LookupError(f"{SECRET=}")

    @expose
    def odd(self) -> Odd:
        """Return what cannot be serialized."""
        return Odd()

    @expose
    async def odd_later(self) -> Odd:
        """Return what cannot be serialized."""
        return Odd()

    @state
    def level(self) -> float:
        """Fail as a resource."""
        raise ValueError("told") from LookupError(f"{SECRET=}")


def faults(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the errors in the log, with their tracebacks."""
    formatter = logging.Formatter()
    return [formatter.format(record) for record in caplog.records if record.levelno >= logging.ERROR]


async def call(proxy: Any, how: str) -> Any:
    """Make a call of the kind *how*."""
    if how == "stream":
        return [item async for item in proxy.stream()]
    if how.startswith("batch "):
        return await rpc.batch([partial(getattr(proxy, how[6:]))])
    return await getattr(proxy, how)()


async def fail(proxy: Any, how: str) -> RemoteException:
    """Return what a call fails with."""
    with pytest.raises(RemoteException) as caught:
        await call(proxy, how)
    return caught.value


HOWS = [
    *("plain", "later", "stream", "odd", "odd_later"),
    *("batch plain", "batch later", "batch odd", "batch odd_later"),
]


@pytest.mark.parametrize("is_inside", [False, True], ids=["between", "inside"])
@pytest.mark.parametrize("tracebacks", [False, True], ids=["off", "on"])
async def test_calls(
    transport: Transport, caplog: pytest.LogCaptureFixture, tracebacks: bool, is_inside: bool
) -> None:
    """Calls of all kinds, between containers and inside of one: off, which is the default, the peer gets type
    and message alone, and our log the traceback, once; on, the peer gets it."""
    kwds: dict[str, Any] = {"extra_serializers": [Odd.serializer], "as_coro": True}
    if tracebacks:
        kwds["tracebacks"] = True
    home = await Container.create(transport.address(), **kwds)
    away = await Container.create(transport.address(), **kwds)
    try:
        proxy = await (home if is_inside else away).connect(Faulty(home).addr)
        for how in HOWS:
            caplog.clear()
            error = await fail(proxy, how)
            is_odd = "odd" in how
            assert isinstance(error, RemoteSerializationError) is is_odd
            assert error.type_name == ("aiomas_ng.SerializationError" if is_odd else "ValueError")
            assert is_odd or error.message == "told"
            text = error.remote_traceback
            assert ("Traceback" in text) is ("SECRET=" in text) is (__file__ in text) is tracebacks
            if not tracebacks:
                assert text == f"{error.type_name}: {error.message}"
                assert SECRET not in str(error)
            logged = faults(caplog)
            assert len(logged) == (not tracebacks)
            for text in logged:
                assert "failed" in text
                assert "SECRET=" in text
                assert __file__ in text
    finally:
        await away.shutdown(as_coro=True)
        await home.shutdown(as_coro=True)


async def test_peer_is_told_by_the_side_that_fails(transport: Transport) -> None:
    """Each side decides for itself what its peer is told."""

    class Service:
        router = rpc.Service()

        @expose
        def fail(self) -> None:
            raise ValueError("told")

    ends: asyncio.Queue[rpc.RpcClient] = asyncio.Queue()
    server = await rpc.start_server(transport.address(), Service(), ends.put_nowait)
    client = await rpc.open_connection(server.url, rpc_service=Service(), tracebacks=True)
    end = await ends.get()
    assert (await fail(client.remote, "fail")).remote_traceback == "ValueError: told"
    assert "in fail" in (await fail(end.remote, "fail")).remote_traceback
    await client.close()
    server.close()


async def test_requests_of_a_channel(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """``Request.fail`` follows the same switch."""
    for tracebacks in (False, True):

        async def serve(channel: channels.Channel) -> None:
            request = await channel.recv()
            try:
                raise ValueError("told")
            except ValueError as error:
                await request.fail(error)

        server = await channels.start_server(transport.address(), serve, tracebacks=tracebacks)
        channel = await channels.open_connection(server.url)
        with pytest.raises(RemoteException) as caught:
            await channel.send("x")
        assert ("Traceback" in caught.value.remote_traceback) is tracebacks
        await channel.close()
        server.close()
    assert len(faults(caplog)) == 1


@pytest.mark.parametrize("tracebacks", [False, True])
async def test_resources(transport: Transport, caplog: pytest.LogCaptureFixture, tracebacks: bool) -> None:
    """A resource that fails says nothing of it, or type and message; the log has the traceback once."""
    home = await Container.create(transport.address(), tracebacks=tracebacks, as_coro=True)
    away = await Container.create(transport.address(), as_coro=True)
    try:
        response = await away.context.request(Message(code=GET, uri=Faulty(home).addr + "/level")).response
        assert response.payload == (b"ValueError: told" if tracebacks else b"")
        (text,) = faults(caplog)
        assert "SECRET=" in text
    finally:
        await away.shutdown(as_coro=True)
        await home.shutdown(as_coro=True)


async def test_mistakes_of_a_peer_are_no_faults_of_ours(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer that asks for what is not there, or with wrong arguments, gets its error and fills no log."""
    home = await Container.create(transport.address(), as_coro=True)
    away = await Container.create(transport.address(), as_coro=True)
    try:
        proxy = await away.connect(Faulty(home).addr)
        for how in ("missing", "addr"):
            with pytest.raises(RemoteException):
                await getattr(proxy, how)()
        with pytest.raises(RemoteException):
            await proxy.plain(1, 2, 3)
        with pytest.raises(RemoteException):
            await rpc.batch([proxy.missing])
        assert not faults(caplog)
    finally:
        await away.shutdown(as_coro=True)
        await home.shutdown(as_coro=True)


async def test_wire(transport: Transport) -> None:
    """What is sent is type name and message and nothing else, so no peer has to trust another one to hide
    the rest."""
    seen: list[Any] = []

    class Codec(MsgPack):
        def encode(self, data: Any) -> bytes:
            seen.append(data)
            return super().encode(data)

    async def serve(channel: channels.Channel) -> None:
        request = await channel.recv()
        await request.fail(KeyError("told"))

    server = await channels.start_server(transport.address(), serve, codec=Codec)
    channel = await channels.open_connection(server.url, codec=Codec)
    with pytest.raises(RemoteException):
        await channel.send("x")
    assert [frame[2] for frame in seen if frame[0] == 2] == [["KeyError", "'told'"]]
    await channel.close()
    server.close()
