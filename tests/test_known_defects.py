"""What was wrong in aiomas 2.0.1, one test for each defect; the files of the modules have the details."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import stat
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trustme
from conftest import Transport
from waiting import wait_until

import aiomas_ng
from aiomas_ng import Agent, Container, clocks, codecs, expose, rpc, subproc
from aiomas_ng import channel as channels
from aiomas_ng._core.framing import FrameParser, encode_frame
from aiomas_ng.channel import Channel, Limits
from aiomas_ng.exceptions import (
    AddressError,
    AgentNotFoundError,
    AiomasError,
    ChannelClosedError,
    OverloadError,
    RemoteException,
    RemoteLookupError,
    SerializationError,
    SpawnError,
)

REQUEST, RESULT, EXCEPTION = range(3)


class Greeter(Agent):
    """An agent that can be called."""

    @expose
    def greet(self) -> str:
        return str(self)

    @expose
    async def ask(self, other: Any) -> Any:
        return await other.greet()


class RawPeer:
    """A peer that speaks the frames of aiomas through a plain socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *frame: Any) -> None:
        """Send a frame of the given type, id and content."""
        self.send_payload(msgpack.packb(frame))

    def send_payload(self, payload: bytes) -> None:
        """Send anything as a frame."""
        self.writer.write(struct.pack("!L", len(payload)) + payload)

    async def recv(self) -> Any:
        """Return the next frame of a type that aiomas knows."""
        while True:
            (size,) = struct.unpack("!L", await self.reader.readexactly(4))
            frame = msgpack.unpackb(await self.reader.readexactly(size))
            if frame[0] in (REQUEST, RESULT, EXCEPTION):
                return frame


@contextlib.asynccontextmanager
async def raw_client(on_channel: Callable[[Channel], Any], **kwds: Any) -> AsyncIterator[RawPeer]:
    """Connect as a raw peer to a server of ours."""
    accepted: list[Channel] = []

    def connected(channel: Channel) -> Any:
        accepted.append(channel)
        return on_channel(channel)

    server = await channels.start_server(("127.0.0.1", 0), connected, **kwds)
    reader, writer = await asyncio.open_connection(*server.address.place)
    try:
        yield RawPeer(reader, writer)
    finally:
        writer.transport.abort()
        server.close()
        for channel in accepted:
            await channel.close()


@contextlib.asynccontextmanager
async def raw_server(**kwds: Any) -> AsyncIterator[tuple[Channel, RawPeer]]:
    """Connect to a raw peer, and give our channel and the peer."""
    peers: asyncio.Queue[RawPeer] = asyncio.Queue()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.put_nowait(RawPeer(reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    channel = await channels.open_connection(server.sockets[0].getsockname(), **kwds)
    peer = await peers.get()
    try:
        yield channel, peer
    finally:
        await channel.close()
        peer.writer.transport.abort()
        server.close()


async def echo(channel: Channel) -> None:
    """Answer each request with its content."""
    while True:
        request = await channel.recv()
        await request.reply(request.content)


@contextlib.asynccontextmanager
async def containers(*addrs: Any, **kwds: Any) -> AsyncIterator[list[Container]]:
    """Make containers, and shut them down at the end."""
    made: list[Container] = []
    try:
        for addr in addrs:
            made.append(await Container.create(addr, as_coro=True, **kwds))
        yield made
    finally:
        for container in made:
            await container.shutdown(as_coro=True)


@pytest.mark.parametrize("ending", ["cancelled", "timed out"])
async def test_late_reply_does_not_poison_the_connection(ending: str) -> None:
    """A reply to a call that was cancelled or timed out is dropped; all other calls get theirs."""
    async with raw_server() as (channel, peer):
        given_up = channel.send("given up", timeout=0.001 if ending == "timed out" else None)
        waiting = channel.send("waiting")
        requests = [await peer.recv() for _ in range(2)]
        if ending == "cancelled":
            given_up.cancel()
        with pytest.raises((asyncio.CancelledError, TimeoutError)):
            await given_up
        for _, msg_id, content in requests:
            peer.send(RESULT, msg_id, content)
        assert await waiting == "waiting"
        later = channel.send("later")
        peer.send(RESULT, (await peer.recv())[1], "later")
        assert await later == "later"


async def test_dead_connection_does_not_stay_in_the_cache(transport: Transport) -> None:
    """``connect()`` works again when the peer is back at its address."""
    async with containers(transport.address(), transport.address()) as (one, two):
        url = Greeter(two).addr
        await (await one.connect(url)).greet()
        base_url = two._base_url
        await two.shutdown(as_coro=True)
        with pytest.raises(ConnectionError):
            await one.connect(url)
        async with containers(base_url) as (again,):
            greeter = Greeter(again)
            assert await (await one.connect(url)).greet() == str(greeter)


async def test_connect_does_not_hang_after_a_failure(transport: Transport) -> None:
    """After a refused ``connect()``, and after one to an unknown agent, the next one works."""
    async with containers(transport.address(), transport.address()) as (one, two):
        base_url = two._base_url
        await two.shutdown(as_coro=True)
        with pytest.raises(ConnectionRefusedError):
            await one.connect(base_url + "0")
        async with containers(base_url) as (again,):
            with pytest.raises(AgentNotFoundError):
                await one.connect(base_url + "0")
            greeter = Greeter(again)
            assert await (await one.connect(base_url + "0")).greet() == str(greeter)


async def test_pending_write_ends_when_the_connection_is_lost() -> None:
    """A task that waits for its bytes to leave gets an error when the connection is lost."""
    async with raw_server() as (channel, peer):
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        replies = []
        while not channel._protocol.is_paused:
            replies.append(channel.send(bytes(1_000_000)))
        draining = asyncio.ensure_future(channel.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        peer.writer.transport.abort()
        with pytest.raises(ChannelClosedError):
            await draining
        results = await asyncio.gather(*replies, return_exceptions=True)
        assert all(isinstance(result, ChannelClosedError) for result in results)


@pytest.mark.parametrize("make_codec", [codecs.JSON, codecs.MsgPack])
def test_own_dict_with_the_key_of_types(make_codec: type[codecs.Codec]) -> None:
    """A user's own dict may have the key ``__type__``."""
    codec = make_codec()
    for value in ({"__type__": [0, "x"]}, {"__type__": None}, {"a": {"__type__": ["bytes", "eA=="], "b": 1}}):
        data = codec.decode(codec.encode(value))
        assert codec.encode(data) == codec.encode(value)
        assert list(data) == list(value)


async def test_size_of_a_frame_is_limited() -> None:
    """A peer that announces 4 GiB gets an error at once, and nothing of its frame is kept."""
    async with raw_client(echo) as peer:
        peer.writer.write(struct.pack("!L", 2**32 - 1) + msgpack.packb([REQUEST, 7, bytes(100_000)]))
        msg_type, msg_id, content = await peer.recv()
        assert (msg_type, msg_id) == (EXCEPTION, 7)
        assert content[0] == "aiomas_ng.FrameTooLargeError"
    parser = FrameParser(1000)
    parser.feed(struct.pack("!L", 2**32 - 1))
    for _ in range(10):
        parser.feed(bytes(100_000))
    assert len(parser._tail) <= 1000


def test_many_messages_in_one_read_are_cut_in_linear_time() -> None:
    """Of many small messages in one read, each byte is copied a constant number of times."""

    class Counting(bytes):
        copied = 0

        def __getitem__(self, key: Any) -> Any:
            part = super().__getitem__(key)
            if isinstance(key, slice):
                Counting.copied += len(part)
            return part

    data = Counting(b"".join(encode_frame(b"payload", 100) for _ in range(10_000)) + b"\0\0\0\7pay")
    parser = FrameParser(100)
    assert parser.feed(data) == [b"payload"] * 10_000
    assert Counting.copied <= 2 * len(data)
    assert parser.feed(b"load") == [b"payload"]


async def test_broken_frame_and_unknown_reply_do_not_raise() -> None:
    """A frame that does not decode, and a reply to nothing, are logged; the connection goes on."""
    async with raw_client(echo) as peer:
        peer.send(REQUEST, 1, "first")
        assert await peer.recv() == [RESULT, 1, "first"]
        peer.send_payload(b"\xc1 is no message")
        peer.send(RESULT, 12345, "unasked")
        peer.send(REQUEST, 2, "second")
        while (frame := await peer.recv())[0] == EXCEPTION:
            assert frame[1] is None
        assert frame == [RESULT, 2, "second"]


async def test_outgoing_messages_are_bounded() -> None:
    """There is an error, and not more and more memory in use, when the peer does not read or answer."""
    async with raw_server(limits=Limits(calls=10)) as (channel, _):
        replies = [channel.send("x") for _ in range(10)]
        with pytest.raises(OverloadError):
            channel.send("x")
        for reply in replies:
            reply.cancel()
    async with raw_server(limits=Limits(backlog=10_000_000)) as (channel, peer):
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]

        def send_much() -> None:
            for _ in range(100):
                channel.send(bytes(1_000_000)).add_done_callback(lambda reply: reply.exception())

        with pytest.raises(OverloadError):
            send_much()


class First:
    """A type with a serializer."""


class Second:
    """Another one."""


def test_order_of_serializers_does_not_matter() -> None:
    """Types travel by name: two sides may add their serializers in any order."""
    for make_codec in (codecs.JSON, codecs.MsgPack):
        one, two = make_codec(), make_codec()
        for codec, types in ((one, (First, Second)), (two, (Second, First))):
            for cls in types:
                codec.add_serializer(cls, vars, lambda data, cls=cls: cls(**data))  # type: ignore[misc]
        assert type(two.decode(one.encode(First()))) is First
        assert type(one.decode(two.encode(Second()))) is Second


async def test_agent_ids_are_not_given_twice(transport: Transport) -> None:
    """After a removal, the id of the removed agent is not used for another one."""
    async with containers(transport.address()) as (container,):
        greeters = [Greeter(container) for _ in range(3)]
        await container.remove_agent(greeters[1])
        assert Greeter(container).addr == f"{container._base_url}3"
        assert list(container.agents.dict) == ["0", "2", "3"]


def test_router_does_not_remember_paths() -> None:
    """What was removed or replaced after it was resolved once is not found any more."""
    services = rpc.ServiceDict(
        {"func": expose(lambda: 1), "sub": rpc.ServiceDict({"func": expose(lambda: 1)})}
    )
    assert services.router.resolve("func")() == services.router.resolve("sub/func")() == 1
    services.dict["func"] = services.dict["sub"].dict["func"] = expose(lambda: 2)
    assert services.router.resolve("func")() == services.router.resolve("sub/func")() == 2
    del services.dict["func"], services.dict["sub"]
    for path in ("func", "sub/func"):
        with pytest.raises(LookupError):
            services.router.resolve(path)


async def test_urls_are_checked_by_exceptions(transport: Transport) -> None:
    """A malformed URL is a ``ValueError``, also where Python leaves out assertions."""
    async with containers(transport.address()) as (container,):
        for url in ("tcp:/localhost:5555/0", "http://localhost:5555/0", "tcp://localhost:5555/", "ipc://x/0"):
            with pytest.raises(AddressError) as caught:
                await container.connect(url)
            assert isinstance(caught.value, ValueError)
            assert not isinstance(caught.value.__context__, AssertionError)
            assert url in str(caught.value)


def test_serialization_error_is_an_aiomas_error() -> None:
    """``except AiomasError`` catches errors of serialization."""
    assert issubclass(SerializationError, AiomasError)
    with pytest.raises(AiomasError):
        codecs.MsgPack().encode(object())


async def test_port_zero_gives_agents_a_real_port() -> None:
    """With port 0, the agents' addresses have the port that the container listens on."""
    async with containers(("127.0.0.1", 0), ("127.0.0.1", 0)) as (one, two):
        greeter = Greeter(two)
        port = two._tcp_server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        assert greeter.addr == f"tcp://127.0.0.1:{port}/0"
        assert await (await one.connect(greeter.addr)).greet() == str(greeter)


async def test_tls_is_not_fixed_to_1_2(tmp_path: Path) -> None:
    """Containers speak the latest version of TLS that there is, and none before 1.3."""
    authority = trustme.CA()
    cert = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    cert.private_key_pem.write_to_path(tmp_path / "key.pem")
    cert.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certs = aiomas_ng.SSLCerts(*(str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem")))
    for make in (aiomas_ng.make_ssl_server_context, aiomas_ng.make_ssl_client_context):
        context = make(*certs)
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.maximum_version == ssl.TLSVersion.MAXIMUM_SUPPORTED
    async with containers(("127.0.0.1", 0), ("127.0.0.1", 0), ssl=certs) as (one, two):
        await one.connect(Greeter(two).addr)
        (client,) = one._connections
        assert client.channel.get_extra_info("ssl_object").version() == "TLSv1.3"


async def test_manager_does_not_call_anything_importable(transport: Transport, tmp_path: Path) -> None:
    """A peer cannot have a manager call what makes no agents, such as ``os.mkdir``."""
    async with containers(transport.address(), transport.address()) as (one, two):
        manager = await one.connect(subproc.Manager(two).addr)
        for name in ("os:mkdir", "os:system", "builtins:eval", "subprocess:Popen"):
            with pytest.raises(RemoteException) as caught:
                await manager.spawn(name, str(tmp_path / "made"))
            assert caught.value.type_name == f"aiomas_ng.{SpawnError.__name__}"
        assert not (tmp_path / "made").exists()


async def test_agents_of_one_container_use_no_socket(transport: Transport) -> None:
    """Agents of one container talk to each other without a socket."""
    async with containers(transport.address()) as (container,):
        one, two = Greeter(container), Greeter(container)
        before = count_sockets()
        proxy = await container.connect(one.addr)
        assert await proxy.ask(two) == str(two)
        assert count_sockets() == before


def count_sockets() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for number in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            count += stat.S_ISSOCK(os.fstat(int(number)).st_mode)
    return count


async def test_proxy_of_an_agent_in_a_third_container_is_passed_on(transport: Transport) -> None:
    """A proxy can be an argument of a call to a container other than that of its agent."""
    async with containers(transport.address(), transport.address(), transport.address()) as (one, two, three):
        proxy, third = await one.connect(Greeter(two).addr), await one.connect(Greeter(three).addr)
        assert await proxy.ask(third) == f"Greeter({three._base_url + '0'!r})"


def test_works_on_this_python(transport: Transport) -> None:
    """What fails on Python 3.10 and later works: shutdown, LocalQueue, clocks, MsgPack."""
    clock = clocks.ExternalClock("2026-01-01T00:00:00+00:00")
    container = Container.create(transport.address(), clock=clock, codec=codecs.MsgPack)
    greeter = Greeter(container)

    async def main() -> Any:
        await clocks.AsyncioClock().sleep(0.001)
        return await (await container.connect(greeter.addr)).greet()

    assert aiomas_ng.run(main()) == str(greeter)
    clock.set_time(60)
    assert str(clock.utcnow()) == "2026-01-01T00:01:00+00:00"
    assert codecs.MsgPack().decode(codecs.MsgPack().encode({1: (2, b"3")})) == {1: (2, b"3")}
    container.shutdown()


async def test_wait_closed_does_not_hang_while_connections_are_open(transport: Transport) -> None:
    """``wait_closed()`` returns when the server has stopped listening, on every version of Python."""
    accepted: list[Channel] = []
    server = await channels.start_server(transport.address(), accepted.append)
    client = await channels.open_connection(server.url)
    await wait_until(lambda: accepted)
    async with asyncio.timeout(5):
        server.close()
        await server.wait_closed()
    assert not client.is_closed
    await client.close()
    for channel in accepted:
        await channel.close()


async def test_removed_agent_is_not_found(transport: Transport) -> None:
    """Nor does anything else of what was resolved once stay reachable: a removed agent is gone for peers."""
    async with containers(transport.address(), transport.address()) as (one, two):
        greeter = Greeter(two)
        proxy = await one.connect(greeter.addr)
        await proxy.greet()
        await two.remove_agent(greeter)
        with pytest.raises(RemoteLookupError):
            await proxy.greet()
