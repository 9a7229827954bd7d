"""Remote procedure calls: calls, services as values, proxies, errors, and the end of a connection."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import inspect
import itertools
import logging
import pickle
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Transport
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from aiomas_ng import channel, codecs, rpc
from aiomas_ng._io.connection import CLOSE_GRACE
from aiomas_ng.exceptions import (
    AddressInUseError,
    CallTimeoutError,
    ChannelClosedError,
    ClosedByPeerError,
    ClosedByUsError,
    ConnectError,
    DeserializationError,
    FrameTooLargeError,
    RemoteArgumentError,
    RemoteCancelledError,
    RemoteException,
    RemoteLookupError,
    RemoteOverloadError,
    RemoteSerializationError,
    SerializationError,
)

KINDS = ("tcp", "unix", "local")


class Desk:
    """A service with state."""

    router = rpc.Service()

    def __init__(self, number: int = 0) -> None:
        self.number = number

    @rpc.expose
    def get_number(self) -> int:
        return self.number


class OverloadError(Exception):
    """An error of the user's, of the same name as one of ours."""


class Unprintable(Exception):
    """An error that cannot be put into words."""

    def __str__(self) -> str:
        raise ValueError("no words")


class Office:
    """A service with sub-services, and functions of every sort."""

    router = rpc.Service(["desk", "annex", "rooms"])

    def __init__(self) -> None:
        self.desk = Desk(1)
        self.annex: Any = None
        self.rooms = rpc.ServiceDict({"left": Desk(2), "ping": rpc.expose(lambda: "pong")})
        self.notes: list[Any] = []
        self.event = asyncio.Event()
        self.is_cancelled = asyncio.Event()

    @rpc.expose
    def add(self, a: Any, b: Any = 1) -> Any:
        return a + b

    @rpc.expose
    async def slow_add(self, a: Any, b: Any = 1) -> Any:
        await asyncio.sleep(0)
        return a + b

    @rpc.expose
    def note(self, text: Any) -> None:
        self.notes.append(text)

    @rpc.expose
    def get_notes(self) -> list[Any]:
        return self.notes

    @rpc.expose
    def echo(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    @rpc.expose
    def get_desk(self) -> Desk:
        return self.desk

    @rpc.expose
    def get_stranger(self) -> Desk:
        return Desk(99)

    @rpc.expose
    def get_nothing_to_encode(self) -> Any:
        return {"here": [object()]}

    @rpc.expose
    def get_bytes(self, size: int) -> bytes:
        return bytes(size)

    @rpc.expose
    def is_desk(self, value: Any) -> bool:
        return value is self.desk

    @rpc.expose
    def call_plain(self, func: Callable[[], Any]) -> Any:
        return func()

    @rpc.expose
    async def ask(self, service: Any, *args: Any) -> Any:
        return await service.get_number(*args)

    @rpc.expose
    def keep(self, service: Any) -> None:
        self.notes.append(service)

    @rpc.expose
    async def ask_kept(self) -> Any:
        return await self.notes[-1].get_number()

    @rpc.expose
    async def count(self, stop: int) -> AsyncIterator[int]:
        for number in range(stop):
            yield number

    @rpc.expose
    async def wait(self) -> str:
        self.notes.append("waiting")
        try:
            await self.event.wait()
        except asyncio.CancelledError:
            self.is_cancelled.set()
            raise
        return "done"

    @rpc.expose
    def fail_with(self, name: str) -> None:
        raise FAILURES[name]()

    @rpc.expose
    async def fail_later_with(self, name: str) -> None:
        await asyncio.sleep(0)
        raise FAILURES[name]()

    @rpc.expose
    def fail_inside(self) -> None:
        len(5)  # type: ignore[arg-type]

    @property
    def temptation(self) -> Any:
        raise AssertionError("a property was evaluated")

    def secret(self) -> str:
        return "not exposed"


FAILURES: dict[str, Callable[[], BaseException]] = {
    "value": lambda: ValueError("bad value"),
    "stop": lambda: StopIteration("stop"),
    "cancel": lambda: asyncio.CancelledError("own"),
    "own": lambda: OverloadError("mine"),
    "unprintable": Unprintable,
    "exit": lambda: SystemExit(3),
    "interrupt": lambda: KeyboardInterrupt("key"),
    "generator": lambda: GeneratorExit("gone"),
}


class Session:
    """A server, a client that is connected to it, and the server's end of that."""

    def __init__(self, server: Any, client: Any, far: rpc.RpcClient) -> None:
        self.server = server
        self.client: rpc.RpcClient = client
        self.remote: Any = client.remote
        self.far = far


@contextlib.asynccontextmanager
async def connected(
    transport: Transport, service: Any, own_service: Any = None, **kwds: Any
) -> AsyncIterator[Session]:
    """Serve *service*, connect to it with *own_service*, and end both."""
    ends: list[rpc.RpcClient] = []
    server = await rpc.start_server(transport.address(), service, ends.append, **kwds)
    try:
        client = await rpc.open_connection(server.url, rpc_service=own_service, **kwds)
        await wait_until(lambda: ends)
        try:
            yield Session(server, client, ends[0])
        finally:
            await client.close()
            for end in ends:
                await end.close()
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def raw(server: Any) -> AsyncIterator[channel.Channel]:
    """Connect as a peer that can put anything into a request, references to services included."""

    def make_codec() -> codecs.Codec:
        codec = codecs.MsgPack()
        codec.add_serializer(Reference, lambda ref: ref.parts, lambda parts: parts, name=rpc.REFERENCE_NAME)
        return codec

    chan = await channel.open_connection(server.url, codec=make_codec)
    try:
        yield chan
    finally:
        await chan.close()


class Reference:
    """What a reference to a service is on the wire."""

    def __init__(self, *parts: Any) -> None:
        self.parts: Any = parts


# -- Calls -----------------------------------------------------------------------------------------


async def test_call_returns_the_result(transport: Transport) -> None:
    """A call carries positional and keyword arguments there and the result back."""
    async with connected(transport, Office()) as session:
        assert await session.remote.add(1) == 2
        assert await session.remote.add(1, 2) == 3
        assert await session.remote.add(b=[2], a=[1]) in ([1, 2], (1, 2))
        assert await session.remote.echo(1, x=2) == ((1,), {"x": 2})
        assert await session.remote.echo() == ((), {})


async def test_call_of_a_coroutine_function(transport: Transport) -> None:
    """A coroutine function is awaited at the peer."""
    async with connected(transport, Office()) as session:
        assert await session.remote.slow_add(1, b=4) == 5


async def test_calls_overlap(transport: Transport) -> None:
    """Calls that wait do not hold up others on the same connection, and each gets its own result."""
    office = Office()
    async with connected(transport, office) as session:
        waiting = session.remote.wait()
        assert await asyncio.gather(*(session.remote.slow_add(i, i) for i in range(100))) == [
            2 * i for i in range(100)
        ]
        assert not waiting.done()
        office.event.set()
        assert await waiting == "done"


async def test_calls_are_executed_in_their_order(transport: Transport) -> None:
    """Plain functions run in the order of the calls, awaited or not."""
    office = Office()
    async with connected(transport, office) as session:
        replies = [session.remote.note(number) for number in range(50)]
        await replies[-1]
        assert office.notes == list(range(50))
        assert all(reply.done() for reply in replies)


async def test_call_returns_a_future(transport: Transport) -> None:
    """What a call returns is a future: it can be gathered and then asked for its result."""
    async with connected(transport, Office()) as session:
        futures = [session.remote.add(number) for number in range(3)]
        assert all(asyncio.isfuture(future) for future in futures)
        await asyncio.gather(*futures)
        assert [future.result() for future in futures] == [1, 2, 3]


async def test_calls_in_both_directions(transport: Transport) -> None:
    """The client's service can be called through the server's end."""
    async with connected(transport, Office(), Desk(7)) as session:
        assert await session.far.remote.get_number() == 7
        assert await session.remote.desk.get_number() == 1


async def test_calls_to_and_fro_nest(transport: Transport) -> None:
    """A handler may call back, whose handler calls back again, and so on."""

    class Side:
        router = rpc.Service()

        def __init__(self) -> None:
            self.remote: Any = None

        @rpc.expose
        async def count_down(self, number: int) -> list[int]:
            return [number, *(await self.remote.count_down(number - 1) if number else [])]

    left, right = Side(), Side()
    async with connected(transport, right, left) as session:
        left.remote, right.remote = session.client.remote, session.far.remote
        assert await session.remote.count_down(10) == tuple(range(10, -1, -1))


async def test_paths_lead_through_sub_services(transport: Transport) -> None:
    """Attributes of a proxy lead through sub-services and dicts of services, which may come later."""
    office = Office()
    async with connected(transport, office) as session:
        assert await session.remote.desk.get_number() == 1
        assert await session.remote.rooms.left.get_number() == 2
        assert await session.remote.rooms.ping() == "pong"
        with pytest.raises(RemoteLookupError, match="not set"):
            await session.remote.annex.get_number()
        office.annex = Office()
        office.annex.rooms.dict["deep"] = Desk(5)
        assert await session.remote.annex.rooms.deep.get_number() == 5
        assert await getattr(session.remote.annex.rooms, "deep").get_number() == 5  # noqa: B009


async def test_entry_of_a_dict_is_gone_when_removed(transport: Transport) -> None:
    """What is removed from a dict of services cannot be called any more; a new entry counts at once."""
    office = Office()
    async with connected(transport, office) as session:
        assert await session.remote.rooms.left.get_number() == 2
        del office.rooms.dict["left"]
        with pytest.raises(RemoteLookupError, match="'left' not found in rooms"):
            await session.remote.rooms.left.get_number()
        office.rooms.dict["left"] = Desk(3)
        assert await session.remote.rooms.left.get_number() == 3


async def test_proxy_knows_its_channel(transport: Transport) -> None:
    """A proxy gives the channel that its calls take, as programs expect it of ``_channel``."""
    async with connected(transport, Office()) as session:
        assert session.remote.desk._channel is session.client.channel


async def test_call_streams_the_items_of_an_async_generator(transport: Transport) -> None:
    """``async for`` over a call gives the items of an async generator, beyond the window as well."""
    async with connected(transport, Office()) as session:
        assert [item async for item in session.remote.count(200)] == list(range(200))


async def test_calling_the_root_names_no_function(transport: Transport) -> None:
    """The root proxy is no function, and calling it says so."""
    async with connected(transport, Office()) as session:
        with pytest.raises(AttributeError, match="names no function"):
            session.remote()


async def test_exposed_functions_of_every_kind(transport: Transport) -> None:
    """Lambdas, static and class methods, and aliases of another object's bound method can be exposed."""
    other = Office()

    class Mixed:
        router = rpc.Service()

        def __init__(self) -> None:
            self.alias = other.add
            self.double = rpc.expose(lambda x: 2 * x)

        @rpc.expose
        @staticmethod
        def static(x: int) -> int:
            return x + 1

        @staticmethod
        @rpc.expose
        def inner_static(x: int) -> int:
            return x + 2

        @classmethod
        @rpc.expose
        def cls_method(cls) -> str:
            return cls.__name__

    async with connected(transport, Mixed()) as session:
        assert await session.remote.alias(1, 2) == 3
        assert await session.remote.double(4) == 8
        assert await session.remote.inner_static(1) == 3
        assert await session.remote.cls_method() == "Mixed"


async def test_function_may_return_a_future(transport: Transport) -> None:
    """A plain function that returns a future, task or coroutine answers with its outcome."""

    class Late:
        router = rpc.Service()

        @rpc.expose
        def future(self) -> asyncio.Future[int]:
            future = asyncio.get_running_loop().create_future()
            future.set_result(3)
            return future

        @rpc.expose
        def task(self) -> asyncio.Task[int]:
            return asyncio.get_running_loop().create_task(asyncio.sleep(0, 4))

    async with connected(transport, Late()) as session:
        assert await session.remote.future() == 3
        assert await session.remote.task() == 4


# -- Services as values ----------------------------------------------------------------------------


async def test_service_as_an_argument_arrives_as_a_proxy(transport: Transport) -> None:
    """The peer gets a proxy of a service of ours, and can call it."""
    desk = Desk(7)
    async with connected(transport, Office(), desk) as session:
        assert await session.remote.ask(desk) == 7
        await session.remote.keep(desk)
        assert await session.remote.ask_kept() == 7


async def test_service_as_a_result_arrives_as_a_proxy(transport: Transport) -> None:
    """We get a proxy of a service of the peer's, and can call it; so we do of one inside of other values."""
    office = Office()
    async with connected(transport, office) as session:
        desk = await session.remote.get_desk()
        assert isinstance(desk, rpc.Proxy)
        assert desk._path == "desk"
        assert await desk.get_number() == 1
        office.notes = [{"desks": [office.desk, office.rooms]}]
        notes = await session.remote.get_notes()
        assert await notes[0]["desks"][0].get_number() == 1
        assert await notes[0]["desks"][1].left.get_number() == 2


async def test_proxy_that_comes_home_is_the_service(transport: Transport) -> None:
    """A proxy that is sent back to its owner arrives as the service itself; one of a function as that."""
    office = Office()
    async with connected(transport, office) as session:
        assert await session.remote.is_desk(await session.remote.get_desk())
        assert await session.remote.is_desk(session.remote.desk)
        assert not await session.remote.is_desk(session.remote.rooms)
        assert await session.remote.call_plain(session.remote.desk.get_number) == 1
        await session.remote.keep(session.remote)
        assert office.notes == [office]


async def test_proxy_of_a_service_that_is_gone_comes_home(transport: Transport) -> None:
    """A proxy whose service does not exist any more is refused by its owner, and only that call fails."""
    async with connected(transport, Office()) as session:
        with pytest.raises(RemoteSerializationError, match="not there"):
            await session.remote.keep(session.remote.rooms.cellar)
        assert await session.remote.add(1) == 2


async def test_service_that_is_not_attached_cannot_be_sent(transport: Transport) -> None:
    """A service that is not part of the connection's tree is no argument and no result."""
    async with connected(transport, Office(), Desk()) as session:
        with pytest.raises(SerializationError, match="not exposed for this connection"):
            session.remote.keep(Desk())
        with pytest.raises(RemoteSerializationError, match="not exposed for this connection"):
            await session.remote.get_stranger()
        assert await session.remote.add(1) == 2


async def test_service_cannot_be_sent_without_one_of_ours(transport: Transport) -> None:
    """Where this side offers no service, none can be sent, and the peer can call nothing."""
    async with connected(transport, Office()) as session:
        with pytest.raises(SerializationError, match="no RPC service runs on this side"):
            session.remote.keep(Desk())
        with pytest.raises(RemoteLookupError, match="offers no RPC service"):
            await session.far.remote.anything()
        with pytest.raises(RemoteSerializationError, match="we offer none"):
            await session.far.remote.anything(session.far.remote.other)
        assert await session.remote.add(1) == 2


async def test_service_that_was_attached_later_can_be_sent(transport: Transport) -> None:
    """A service that became part of the tree after the connection was made can be sent over it."""
    office = Office()
    async with connected(transport, office) as session:
        office.annex = Office()
        office.notes = [office.annex.desk]
        (desk,) = await session.remote.get_notes()
        assert desk._path == "annex/desk"
        assert await desk.get_number() == 1


async def test_value_that_cannot_be_encoded(transport: Transport) -> None:
    """The error names the type that has no serializer, nothing is sent, and other calls go on."""
    async with connected(transport, Office()) as session:
        with pytest.raises(SerializationError, match="No serializer found for type"):
            session.remote.note(object())
        with pytest.raises(RemoteSerializationError, match="object"):
            await session.remote.get_nothing_to_encode()
        assert await session.remote.get_notes() in ([], ())


async def test_value_that_is_too_large(transport: Transport) -> None:
    """Arguments and results above the limit fail, each at its own call."""
    async with connected(transport, Office(), limits=channel.Limits(frame_size=10_000)) as session:
        with pytest.raises(FrameTooLargeError):
            session.remote.note(bytes(20_000))
        with pytest.raises(RemoteSerializationError, match="frame_size"):
            await session.remote.get_bytes(20_000)
        assert await session.remote.get_bytes(5) == bytes(5)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((0, "x", None), "four parts"),
        (5, "four parts"),
        ((0, 1, None, None), "malformed"),
        ((0, "x", 1, None), "malformed"),
        ((0, "x", None, 1), "malformed"),
        ((3, "x", "tcp://a:1/", None), "malformed"),
        ((2, "x", None, None), "malformed"),
        ((2, "x", "http://a:1/", None), "cannot parse URL"),
        ((2, "x", "tcp://a:1/agent", None), "no base URL"),
        ((1, "cellar", None, None), "not there"),
        ((1, "secret", None, None), "not exposed"),
    ],
)
async def test_malformed_reference_fails_its_call_alone(parts: Any, text: str) -> None:
    """A reference that is malformed or leads nowhere is an error of the call that carried it."""
    async with connected(Transport("local", Path()), Office()) as session, raw(session.server) as peer:
        reference = Reference()
        reference.parts = parts
        with pytest.raises(RemoteSerializationError, match=text):
            await peer.send(["note", [reference], {}])
        assert await peer.send(["add", [1], {}]) == 2


# -- Third parties ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))
async def test_proxy_is_handed_on_to_a_third_party(first: str, second: str, tmp_path: Path) -> None:
    """The receiver of a proxy reaches its owner directly, whatever the transports are."""
    one, two = Transport(first, tmp_path), Transport(second, tmp_path)
    async with connected(one, Desk(5)) as owner, connected(two, Office()) as user:
        assert await user.remote.ask(owner.remote) == 5
        await user.remote.keep(owner.remote)
        assert await user.remote.ask_kept() == 5


async def test_handed_on_proxy_comes_back_and_goes_on(transport: Transport) -> None:
    """A proxy that was handed on is equal to the original when it is returned, and can be handed on again."""
    third = Office()
    async with (
        connected(transport, Desk(5)) as owner,
        connected(transport, Office()) as user,
        connected(transport, third) as other,
    ):
        await user.remote.keep(owner.remote)
        (proxy,) = await user.remote.get_notes()
        assert proxy == owner.remote
        assert hash(proxy) == hash(owner.remote)
        assert await proxy.get_number() == 5
        assert await other.remote.ask(proxy) == 5


async def test_callback_service_of_a_pure_client_cannot_be_handed_on(transport: Transport) -> None:
    """A service that listens nowhere can be used by the peer, and the peer cannot hand it on."""

    class Broker:
        router = rpc.Service()

        @rpc.expose
        async def pass_on(self, service: Any) -> None:
            await user.remote.ask(service)

    desk = Desk(3)
    async with connected(transport, Office()) as user, connected(transport, Broker(), desk) as session:
        with pytest.raises(RemoteException, match="has no address that others could connect to") as caught:
            await session.remote.pass_on(desk)
        # It is about a call of the broker's own, not about ours.
        assert caught.value.type_name == "SerializationError"
        assert type(caught.value) is RemoteException


async def test_connection_to_a_third_party_ends_with_the_client(transport: Transport) -> None:
    """Closing a client closes what was opened for proxies that came through it; they are dead then."""
    ends: list[rpc.RpcClient] = []
    owner = await rpc.start_server(transport.address(), Desk(5), ends.append)
    async with connected(transport, Office()) as user:
        introducer = await rpc.open_connection(owner.url)
        await user.remote.keep(introducer.remote)
        await introducer.close()
        (proxy,) = await user.remote.get_notes()
        assert await proxy.get_number() == 5
        assert len(ends) == 2
        await user.client.close()
        await wait_until(lambda: ends[1].channel.is_closed)
        with pytest.raises(ClosedByUsError) as caught:
            proxy.get_number()
        assert caught.value.was_sent is False
    owner.close()


async def test_server_drops_third_parties_with_the_client(transport: Transport) -> None:
    """What a server opened for the proxies of a client ends with the client, and opens anew when called."""
    ends: list[rpc.RpcClient] = []
    office = Office()
    owner = await rpc.start_server(transport.address(), Desk(5), ends.append)
    user = await rpc.start_server(transport.address(), office)
    introducer = await rpc.open_connection(owner.url)
    client = await rpc.open_connection(user.url)
    assert await client.remote.ask(introducer.remote) == 5
    await client.remote.keep(introducer.remote)
    await introducer.close()
    await client.close()
    await wait_until(lambda: ends[1].channel.is_closed)
    assert await office.ask_kept() == 5
    office.notes[-1]._link.client.channel._set_error(ClosedByUsError("the end of the test"))
    await wait_until(lambda: ends[2].channel.is_closed)
    owner.close()
    user.close()


async def test_options_hold_for_third_parties_too(transport: Transport) -> None:
    """Codec and serializers of a client and of a server are also used towards third parties."""

    class Echo:
        router = rpc.Service()

        @rpc.expose
        def get_number(self, point: Point | None = None) -> Any:
            return point

        @rpc.expose
        async def ask(self, service: Any) -> Any:
            return await service.get_number(Point(3))

    options = {"codec": codecs.JSON, "extra_serializers": [Point.__serializer__]}  # type: ignore[attr-defined]
    async with (
        connected(transport, Echo(), **options) as owner,
        connected(transport, Echo(), **options) as user,
    ):
        assert (await user.remote.ask(owner.remote)).x == 3


@codecs.serializable
class Point:
    """A value with a serializer."""

    def __init__(self, x: Any) -> None:
        self.x = x


async def test_third_party_that_is_gone(transport: Transport) -> None:
    """A call to a third party that does not listen any more fails with the error of the attempt."""
    async with connected(transport, Office()) as user:
        async with connected(transport, Desk(5)) as owner:
            await user.remote.keep(owner.remote)
        with pytest.raises(RemoteException) as caught:
            await user.remote.ask_kept()
        assert caught.value.type_name in ("ConnectError", "SocketPathError")
        (proxy,) = await user.remote.get_notes()
        with pytest.raises(ConnectError):
            await proxy.get_number()


def test_tls_is_for_what_leaves_the_process() -> None:
    """TLS is used over TCP and Unix sockets, whose certificates are for ``localhost``, not in the process."""
    from aiomas_ng._core.addresses import Address

    assert rpc.tls_for(Address("tcp", ("a", 1)), None) == {}
    assert rpc.tls_for(Address("tcp", ("a", 1)), "ctx") == {"ssl": "ctx"}
    assert rpc.tls_for(Address("ipc", "/a"), "ctx") == {"ssl": "ctx", "server_hostname": "localhost"}
    assert rpc.tls_for(Address("local", "a"), "ctx") == {}


# -- Proxies ---------------------------------------------------------------------------------------


async def test_proxies_are_equal_if_they_lead_to_the_same_place(transport: Transport) -> None:
    """Equality and hash go by place: also over different connections, not by connection alone."""
    async with connected(transport, Office()) as session, connected(transport, Office()) as stranger:
        second = await rpc.open_connection(session.server.url)
        desk = await session.remote.get_desk()
        assert desk == session.remote.desk == second.remote.desk
        assert hash(desk) == hash(second.remote.desk)
        assert desk in {second.remote.desk}
        assert second.remote.desk in [desk]
        assert len({desk, session.remote.desk, second.remote.desk, session.remote}) == 2
        assert desk != session.remote
        assert desk != stranger.remote.desk
        assert desk != "desk"
        assert desk != None  # noqa: E711
        assert rpc.with_options(desk, timeout=1) == desk
        await second.close()


async def test_proxies_of_clients_without_address_differ(transport: Transport) -> None:
    """Services of two clients that listen nowhere are two places, though their paths are the same."""
    office = Office()
    one, two = Desk(1), Desk(2)
    async with connected(transport, office, one) as session:
        second = await rpc.open_connection(session.server.url, rpc_service=two)
        for client, desk in ((session.client, one), (session.client, one), (second, two)):
            await client.remote.keep(desk)
        first, again, other = office.notes
        assert first == again
        assert hash(first) == hash(again)
        assert first != other
        await second.close()


async def test_str_of_a_proxy(transport: Transport) -> None:
    """A proxy shows its peer and path, and its repr tells apart two that look the same."""
    async with connected(transport, Office()) as session:
        peername = session.client.channel.get_extra_info("peername")
        if transport.kind == "tcp":
            assert str(session.remote.a.b) == f"Proxy(('127.0.0.1', {peername[1]}), 'a/b')"
        else:
            assert str(session.remote.a.b) == f"Proxy({peername!r}, 'a/b')"
        assert repr(session.remote.a).startswith(f"<aiomas_ng.rpc.{session.remote.a} at 0x")


async def test_probing_a_proxy_calls_nothing(transport: Transport) -> None:
    """What Python and libraries look for in an object is neither found in a proxy nor called remotely."""
    requests: list[Any] = []

    async def record(chan: channel.Channel) -> None:
        while True:
            request = await chan.recv()
            requests.append(request.content)
            await request.reply(None)

    server = await channel.start_server(transport.address(), record)
    client = await rpc.open_connection(server.url)
    proxy = client.remote.service
    assert copy.copy(proxy) is proxy
    assert copy.deepcopy({"proxy": [proxy]}) == {"proxy": [proxy]}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(proxy, protocol)
    for probe in (
        inspect.iscoroutine,
        inspect.isawaitable,
        inspect.isasyncgen,
        inspect.isgenerator,
        inspect.isclass,
        asyncio.isfuture,
        inspect.iscoroutinefunction,
        inspect.isroutine,
    ):
        assert not probe(proxy)
    for name in ("__array__", "__len__", "__iter__", "__wrapped__", "__fspath__", "__html__"):
        assert not hasattr(proxy, name)
    for use in (len, iter, list, set, int, float, bytes, memoryview, next):
        with pytest.raises(TypeError):
            use(proxy)
    with pytest.raises(AttributeError, match="'Proxy' has no attribute '__array__'"):
        proxy.__array__  # noqa: B018
    assert bool(proxy)
    assert inspect.unwrap(proxy) is proxy
    await proxy.call()
    assert [list(content[0:1]) for content in requests] == [["service/call"]]
    await client.close()
    server.close()
    server.close_clients()


@pytest.mark.needs("numpy")
async def test_numpy_takes_a_proxy_for_an_object() -> None:
    """An array of proxies holds them as they are."""
    import numpy as np

    async with connected(Transport("local", Path()), Office()) as session:
        array = np.array([session.remote, session.remote.desk], dtype=object)
        assert list(array) == [session.remote, session.remote.desk]
        assert session.remote.desk in array


# -- Options ---------------------------------------------------------------------------------------


async def test_timeout_of_a_call(transport: Transport) -> None:
    """A call with a timeout fails, is cancelled at the peer, and harms no other call."""
    office = Office()
    async with connected(transport, office) as session:
        other = session.remote.wait()
        await session.remote.add(1)
        with pytest.raises(CallTimeoutError, match=r"'wait'.* within 0\.02 s") as caught:
            await rpc.with_options(session.remote, timeout=0.02).wait()
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.timeout == 0.02
        await office.is_cancelled.wait()
        assert await session.remote.add(1) == 2
        office.event.set()
        assert await other == "done"


async def test_timeout_that_is_not_reached(transport: Transport) -> None:
    """A call that is answered in time gives its result."""
    async with connected(transport, Office()) as session:
        assert await rpc.with_options(session.remote.add, timeout=10)(1) == 2


async def test_one_way_calls_keep_their_order(transport: Transport) -> None:
    """One-way calls return nothing and are executed in order with the other calls."""
    office = Office()
    async with connected(transport, office) as session:
        quiet = rpc.with_options(session.remote, oneway=True)
        for number in range(10):  # the first ones leave before it is known that the peer is one of ours
            assert quiet.note(number) is None
        await session.remote.note("asked")
        for number in range(10, 20):
            assert quiet.note(number) is None
        notes = await session.remote.get_notes()
        assert list(notes) == [*range(10), "asked", *range(10, 20)]


@pytest.mark.parametrize("path", ["fail_with", "fail_later_with", "cellar", "fail_inside", "slow_add"])
async def test_errors_of_one_way_calls_are_logged(
    transport: Transport, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong in a one-way call is in the log of the peer, and the connection goes on."""
    async with connected(transport, Office()) as session:
        await session.remote.add(1)
        args = ("value",) if "with" in path else ({},) if path == "slow_add" else ()
        getattr(rpc.with_options(session.remote, oneway=True), path)(*args)
        while not caplog.records:
            assert await session.remote.add(1) == 2
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert "a one-way call" in record.message
        assert record.exc_info


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_timeout_must_be_positive(timeout: float) -> None:
    """A timeout that is no time to wait is refused at once."""
    with pytest.raises(ValueError, match="must be > 0"):
        rpc.with_options(rpc.Proxy(None, "x"), timeout=timeout)  # type: ignore[arg-type]


def test_one_way_calls_have_no_timeout() -> None:
    """A timeout for calls that do not wait is a contradiction."""
    with pytest.raises(ValueError, match="not answered"):
        rpc.with_options(rpc.Proxy(None, "x"), timeout=1, oneway=True)  # type: ignore[arg-type]


async def test_cancelled_call_harms_no_other(transport: Transport) -> None:
    """A call that is cancelled is cancelled at the peer; calls of others go on."""
    office = Office()
    async with connected(transport, office) as session:
        await session.remote.add(1)
        task = asyncio.ensure_future(session.remote.wait())
        other = session.remote.wait()
        await wait_until(lambda: office.notes == ["waiting"] * 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await office.is_cancelled.wait()
        office.event.set()
        assert await other == "done"


# -- Errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["fail_with", "fail_later_with"])
async def test_remote_exception_says_what_happened(transport: Transport, function: str) -> None:
    """The error at the caller has the peer's address, type, message, traceback, path and method."""
    async with connected(transport, Office(), tracebacks=True) as session:
        with pytest.raises(RemoteException) as caught:
            await getattr(session.remote, function)("value")
        error = caught.value
        assert type(error) is RemoteException
        assert error.origin == session.client.channel.get_extra_info("peername")
        assert (error.type_name, error.message) == ("ValueError", "bad value")
        assert (error.path, error.method, error.agent) == (function, function, None)
        assert f"in {function}" in error.remote_traceback
        assert "aiomas_ng" not in error.remote_traceback
        assert "ValueError: bad value" in str(error)
        assert str(error.origin) in str(error)


@pytest.mark.parametrize("function", ["fail_with", "fail_later_with"])
@pytest.mark.parametrize(
    ("name", "type_name", "message"),
    [
        ("stop", "StopIteration", "stop"),
        ("own", "OverloadError", "mine"),
        ("unprintable", "Unprintable", "<str() of the exception failed: ValueError('no words')>"),
    ],
)
async def test_odd_exceptions_travel_as_well(function: str, name: str, type_name: str, message: str) -> None:
    """Exceptions that are special to Python, cannot be printed, or are called like one of ours are errors."""
    async with connected(Transport("local", Path()), Office()) as session:
        with pytest.raises(RemoteException) as caught:
            await getattr(session.remote, function)(name)
        assert not isinstance(caught.value, RemoteOverloadError)
        if name == "stop" and "later" in function:  # Python turns it into this inside of a coroutine
            type_name, message = "RuntimeError", "coroutine raised StopIteration"
        assert (caught.value.type_name, caught.value.message) == (type_name, message)
        assert await session.remote.add(1) == 2


@pytest.mark.parametrize("function", ["fail_with", "fail_later_with"])
async def test_cancelled_error_of_a_handler_ends_its_call_alone(transport: Transport, function: str) -> None:
    """A handler that ends with a CancelledError of its own is an error of its call, not of the connection."""
    office = Office()
    async with connected(transport, office) as session:
        other = session.remote.wait()
        with pytest.raises(RemoteCancelledError) as caught:
            await getattr(session.remote, function)("cancel")
        assert not isinstance(caught.value, asyncio.CancelledError)
        assert await session.remote.add(1) == 2
        office.event.set()
        assert await other == "done"


async def test_base_exception_of_a_plain_handler_ends_its_call_alone(transport: Transport) -> None:
    """Even an exception that is no ``Exception`` does not break the connection of others."""
    async with connected(transport, Office()) as session:
        with pytest.raises(RemoteException, match="gone"):
            await session.remote.fail_with("generator")
        assert await session.remote.add(1) == 2


@pytest.mark.parametrize("function", ["fail_with", "fail_later_with"])
@pytest.mark.parametrize(("name", "error"), [("exit", SystemExit), ("interrupt", KeyboardInterrupt)])
def test_exit_in_a_handler_ends_the_program(
    transport: Transport, function: str, name: str, error: type[BaseException], asyncio_errors: list[str]
) -> None:
    """``sys.exit()`` in a handler ends the loop that it runs in, as everywhere, and the caller is told."""
    outcome: list[BaseException] = []
    stop = asyncio.Event()

    async def main() -> None:
        async with connected(transport, Office()) as session:
            try:
                await getattr(session.remote, function)(name)
            except RemoteException as caught:
                outcome.append(caught)
            await stop.wait()

    with asyncio.Runner(debug=True) as runner:
        task = runner.get_loop().create_task(main())
        with pytest.raises(error):
            runner.run(asyncio.wait([task]))
        stop.set()
        runner.run(asyncio.wait([task]))
        task.result()
        gc.collect()
    assert all(error.__name__ in message for message in asyncio_errors)
    asyncio_errors.clear()  # asyncio logs the exception of a task that nobody waits for, even this one
    assert [caught.type_name for caught in outcome] == [error.__name__]  # type: ignore[attr-defined]


async def test_wrong_arguments_are_told_from_errors_inside(transport: Transport) -> None:
    """Arguments that do not fit are another error than a TypeError that the function raises."""
    async with connected(transport, Office()) as session:
        for args, kwargs in (((), {}), ((1, 2, 3), {}), ((1,), {"c": 2}), ((1,), {"a": 2})):
            with pytest.raises(RemoteArgumentError, match="cannot call 'add'") as caught:
                await session.remote.add(*args, **kwargs)
            assert isinstance(caught.value, TypeError)
        with pytest.raises(RemoteArgumentError):
            await session.remote.slow_add()
        with pytest.raises(RemoteException) as inside:
            await session.remote.fail_inside()
        assert not isinstance(inside.value, RemoteArgumentError)
        assert inside.value.type_name == "TypeError"
        with pytest.raises(RemoteException) as inside:
            await session.remote.add("1", 2)
        assert not isinstance(inside.value, RemoteArgumentError)


async def test_error_of_a_function_without_python_code(transport: Transport) -> None:
    """An error that a built-in function raises is its own; arguments that do not fit are told apart."""

    class Builtin:
        router = rpc.Service()

        def __init__(self) -> None:
            self.parse = rpc.expose(functools.partial(int, base=2))

    async with connected(transport, Builtin()) as session:
        assert await session.remote.parse("101") == 5
        with pytest.raises(RemoteException, match="invalid literal") as caught:
            await session.remote.parse("102")
        assert (type(caught.value), caught.value.type_name) == (RemoteException, "ValueError")
        with pytest.raises(RemoteArgumentError):
            await session.remote.parse("1", "2", "3")


async def test_calling_a_service_is_an_argument_error(transport: Transport) -> None:
    """A path that leads to a service instead of a function cannot be called."""
    async with connected(transport, Office()) as session:
        with pytest.raises(RemoteArgumentError, match="not callable"):
            await session.remote.desk()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("secret", "Office.secret .* is not exposed"),
        ("temptation", "is not exposed"),
        ("notes", "is not exposed"),
        ("cellar", "'cellar' not found in the root service"),
        ("cellar/get_number", "'cellar' not found in the root service"),
        ("desk/cellar", "'cellar' not found in desk"),
        ("rooms/cellar/get_number", "'cellar' not found in rooms"),
        ("add/__call__", "is not exposed"),
        ("__class__", "not"),
        ("desk/__init__", "not"),
        ("desk/router", "not"),
        ("rooms/dict", "not"),
        ("", "not found"),
        ("/add", "not found"),
        ("add/", "not"),
        ("//", "not found"),
    ],
)
async def test_path_that_leads_nowhere(path: str, text: str) -> None:
    """Nothing is reachable that was not exposed, and the error says how far the path could be followed."""
    async with connected(Transport("local", Path()), Office()) as session, raw(session.server) as peer:
        with pytest.raises(RemoteLookupError, match=text) as caught:
            await peer.send([path, [], {}])
        assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize(
    "content",
    [
        None,
        5,
        "add",
        [],
        ["add"],
        ["add", [1]],
        ["add", 1, {}],
        ["add", "12", {}],
        ["add", {"a": 1}, {}],
        ["add", [1], []],
        ["add", [1], None],
        ["add", [1], {1: 2}],
        {"add": 1, "b": 2, "c": 3},
        ["add", [1], Reference(0, "keys", None, None)],
        ["add", Reference(0, "x", None, None), {}],
    ],
    ids=repr,
)
async def test_malformed_request_fails_alone(content: Any) -> None:
    """A request that is no ``[path, args, kwargs]`` is answered with an error, and the connection goes on."""
    async with connected(Transport("local", Path()), Office()) as session, raw(session.server) as peer:
        with pytest.raises(RemoteSerializationError, match=r"\[path, args, kwargs\]"):
            await peer.send(content)
        assert await peer.send(["add", [1], {}]) == 2
        assert await session.remote.add(2) == 3


@pytest.mark.parametrize("path", [True, 5, ["add"], {}])
async def test_path_that_is_no_string(path: Any) -> None:
    """A path that is no string leads nowhere."""
    async with connected(Transport("local", Path()), Office()) as session, raw(session.server) as peer:
        with pytest.raises(RemoteLookupError, match="must be a string"):
            await peer.send([path, [], {}])


async def test_request_with_metadata(transport: Transport) -> None:
    """A fourth element of a request is metadata, and does not disturb the call."""
    async with connected(transport, Office()) as session, raw(session.server) as peer:
        assert await peer.send(["add", [1], {"b": 3}, {"deadline": 1.0}]) == 4


@given(
    content=st.recursive(
        st.none() | st.integers(-5, 5) | st.sampled_from(["add", "desk", "get_number", "", "/"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b"]), inner),
        max_leaves=8,
    )
)
async def test_any_content_is_answered(content: Any) -> None:
    """Whatever the content of a request is, it is answered, and the next one is served."""
    async with connected(Transport("local", Path()), Office()) as session, raw(session.server) as peer:
        with contextlib.suppress(RemoteException):
            await peer.send(content)
        assert await peer.send(["add", [1], {}]) == 2


# -- The end of a connection -----------------------------------------------------------------------


async def test_calls_fail_when_the_peer_closes(transport: Transport) -> None:
    """Calls that wait fail with a ``ConnectionResetError`` that says they may have been executed."""
    office = Office()
    async with connected(transport, office, Desk()) as session:
        reply = session.remote.wait()
        await wait_until(lambda: office.notes)
        await session.far.close()
        with pytest.raises(ClosedByPeerError) as caught:
            await reply
        assert isinstance(caught.value, ConnectionResetError)
        assert caught.value.was_sent is True
        await office.is_cancelled.wait()
        with pytest.raises(ClosedByPeerError) as caught:
            session.remote.add(1)
        assert caught.value.was_sent is False
        with pytest.raises(ChannelClosedError):
            rpc.with_options(session.remote, oneway=True).note(1)


async def test_close_ends_calls_and_handlers(transport: Transport) -> None:
    """Closing fails our calls, cancels handlers of the peer's, and may be done twice."""
    office, own = Office(), Office()
    async with connected(transport, office, own) as session:
        ours, theirs = session.remote.wait(), session.far.remote.wait()
        await wait_until(lambda: office.notes and own.notes)
        await asyncio.gather(session.client.close(), session.client.close())
        await session.client.close()
        assert own.is_cancelled.is_set()
        with pytest.raises(ClosedByUsError):
            await ours
        with pytest.raises(ClosedByPeerError):
            await theirs
        await office.is_cancelled.wait()


async def test_handler_may_close_its_connection(transport: Transport) -> None:
    """A handler that closes the connection it is called through is not cancelled by that."""
    done = asyncio.Event()

    class Closer:
        router = rpc.Service()

        @rpc.expose
        async def close(self) -> None:
            await session.far.close()
            done.set()

    async with connected(transport, Closer()) as session:
        with pytest.raises(ConnectionResetError):
            await session.remote.close()
        await asyncio.wait_for(done.wait(), CLOSE_GRACE)


async def test_on_connection_reset_is_called_when_the_peer_closes(transport: Transport) -> None:
    """The last callback that was set gets the error, once."""
    async with connected(transport, Office(), Desk()) as session:
        errors: list[BaseException] = []
        session.client.on_connection_reset(lambda error: pytest.fail("was replaced"))
        session.client.on_connection_reset(errors.append)
        await session.far.close()
        await session.client.service  # type: ignore[misc]
        assert [type(error) for error in errors] == [ClosedByPeerError]
        assert isinstance(errors[0], ConnectionResetError)


async def test_on_connection_reset_is_not_called_when_we_close(transport: Transport) -> None:
    """Closing ourselves is no reset; a callback that was removed is not called either."""
    async with connected(transport, Office(), Desk()) as session:
        for client in (session.client, session.far):
            client.on_connection_reset(lambda error: pytest.fail("called"))
        session.far.on_connection_reset(None)
        await session.client.close()
        await session.far.service  # type: ignore[misc]


async def test_on_connection_reset_that_fails_is_logged(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the callback is logged and disturbs nothing."""
    async with connected(transport, Office(), Desk()) as session:
        session.client.on_connection_reset(lambda error: 1 / 0)
        await session.far.close()
        await session.client.service  # type: ignore[misc]
    assert "the on_connection_reset callback" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_on_connection_reset_checks_its_argument(transport: Transport) -> None:
    """Something that cannot be called is refused, and so is a callback where no service runs."""
    async with connected(transport, Office(), Desk()) as session:
        with pytest.raises(ValueError, match="must be callable or None"):
            session.client.on_connection_reset(3)  # type: ignore[arg-type]
    async with connected(transport, Office()) as session:
        with pytest.raises(RuntimeError, match="no RPC service"):
            session.client.on_connection_reset(None)


async def test_service_is_done_when_the_connection_ends(transport: Transport) -> None:
    """``service`` can be awaited by many, also after the end; without a service it is ``None``."""
    async with connected(transport, Office(), Desk()) as session:
        waiters = [asyncio.ensure_future(wait_for_end(session.client)) for _ in range(3)]
        await session.far.close()
        assert await asyncio.gather(*waiters) == [None] * 3
        assert await session.client.service is None  # type: ignore[misc]
        assert session.client.service.done()  # type: ignore[union-attr]
        assert session.far.service.done()  # type: ignore[union-attr]
    async with connected(transport, Office()) as session:
        assert session.client.service is None


async def wait_for_end(client: rpc.RpcClient) -> None:
    """Wait until the connection of *client* has ended."""
    assert client.service is not None
    await client.service


async def test_cancelling_the_service_closes_the_connection(transport: Transport) -> None:
    """``service.cancel()`` closes the connection; awaiting it then returns."""
    async with connected(transport, Office(), Desk()) as session:
        service = session.far.service
        assert service is not None
        assert service.cancel()
        assert not service.cancel()
        await service
        assert not service.cancelled()
        await session.client.service  # type: ignore[misc]
        with pytest.raises(ClosedByUsError, match="cancelled"):
            session.far.remote.get_number()


async def test_cancelling_who_awaits_the_service_closes_nothing(transport: Transport) -> None:
    """A task that waits for the end of a connection can be cancelled, which is no end of the connection."""
    async with connected(transport, Office(), Desk()) as session:
        task = asyncio.ensure_future(wait_for_end(session.client))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await wait_for_end(session.client)
        assert await session.remote.add(1) == 2


async def test_client_of_a_connection_that_has_ended(transport: Transport) -> None:
    """A client can be made for a channel that has ended meanwhile; its service is done."""
    accepted: list[channel.Channel] = []
    server = await channel.start_server(transport.address(), accepted.append)
    chan = await channel.open_connection(server.url)
    await chan.close()
    client = rpc.RpcClient(chan, Desk())
    await wait_for_end(client)
    with pytest.raises(ClosedByUsError):
        client.remote.x()
    server.close()
    server.close_clients()


async def test_repr_of_a_client(transport: Transport) -> None:
    """The representation of a client says who the peer is and whether it is connected."""
    async with connected(transport, Office()) as session:
        peername = session.client.channel.get_extra_info("peername")
        assert repr(session.client) == f"<RpcClient of <Channel to {peername}, open>>"
        await session.client.close()
        assert "closed" in repr(session.client)


# -- Opening ---------------------------------------------------------------------------------------


async def test_what_is_no_service_is_refused(transport: Transport) -> None:
    """Server and client check what they are to offer before anything is opened."""
    for value in (object(), "service", 5):
        with pytest.raises(ValueError, match="not a valid RPC service"):
            await rpc.start_server(transport.address(), value)
        with pytest.raises(ValueError, match="not a valid RPC service"):
            await rpc.open_connection(transport.address(), rpc_service=value)
    with pytest.raises(ValueError, match="not a valid RPC service"):
        await rpc.start_server(transport.address(), None)


async def test_port_may_be_a_numeric_string() -> None:
    """Over TCP the port may be given as text."""
    server = await rpc.start_server(("127.0.0.1", "0"), Office())
    client = await rpc.open_connection(("127.0.0.1", str(server.sockets[0].getsockname()[1])))
    assert await client.remote.add(1) == 2
    await client.close()
    server.close()


async def test_addresses_that_clients_know(transport: Transport) -> None:
    """A client knows the base URL that it has dialled, however the address was given."""
    server = await rpc.start_server(transport.address(), Office())
    place: Any = server.address.place
    if transport.kind == "local":
        from aiomas_ng.local_queue import get_queue

        place = get_queue(place)
    for address in (server.url, server.url.rstrip("/"), place):
        client = await rpc.open_connection(address)
        assert client.url == server.url
        await client.close()
    server.close()


async def test_connecting_in_vain(transport: Transport) -> None:
    """Where nobody listens, connecting fails like a refused connection; an address is taken only once."""
    server = await rpc.start_server(transport.address(), Office())
    with pytest.raises(AddressInUseError):
        await rpc.start_server(server.url, Office())
    server.close()
    with pytest.raises(ConnectionRefusedError):
        await rpc.open_connection(server.url)


@pytest.mark.parametrize("is_coroutine", [False, True])
async def test_client_connected_cb(transport: Transport, is_coroutine: bool) -> None:
    """The callback of a server, a function or coroutine function, gets each client, and may call it."""
    numbers: asyncio.Queue[int] = asyncio.Queue()

    async def connected_later(client: rpc.RpcClient) -> None:
        numbers.put_nowait(await client.remote.get_number())

    def connected_now(client: rpc.RpcClient) -> None:
        client.remote.get_number().add_done_callback(lambda reply: numbers.put_nowait(reply.result()))

    callback = connected_later if is_coroutine else connected_now
    server = await rpc.start_server(transport.address(), Office(), callback)
    clients = [await rpc.open_connection(server.url, rpc_service=Desk(number)) for number in range(3)]
    assert sorted([await numbers.get() for _ in clients]) == [0, 1, 2]
    for client in clients:
        await client.close()
    server.close()


async def test_server_is_used_like_one_of_asyncio(transport: Transport) -> None:
    """``async with``, ``serve_forever``, ``close`` and ``wait_closed`` do what they do in asyncio."""
    async with await rpc.start_server(transport.address(), Office()) as server:
        serving = asyncio.ensure_future(server.serve_forever())
        client = await rpc.open_connection(server.url)
        assert await client.remote.add(1) == 2
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert not server.is_serving()
        assert await client.remote.add(1) == 2
        await client.close()
    await server.wait_closed()


async def test_deserialization_error_is_of_the_call(transport: Transport) -> None:
    """A result that we cannot decode fails its call with our own error, and no other."""

    def unknown() -> tuple[Any, ...]:
        return Point, lambda point: point.x, Point

    class Source:
        router = rpc.Service()

        @rpc.expose
        def get(self, is_point: bool) -> Any:
            return Point(1) if is_point else 1

    server = await rpc.start_server(transport.address(), Source(), extra_serializers=[unknown])
    client = await rpc.open_connection(server.url)
    with pytest.raises(DeserializationError, match="Point"):
        await client.remote.get(True)
    assert await client.remote.get(False) == 1
    await client.close()
    server.close()
