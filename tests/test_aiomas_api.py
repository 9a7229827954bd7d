"""What programs written for aiomas 2.0.1 rely on, one test for each name, named after it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import multiprocessing
import pickle
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import arrow
import msgpack
import pytest
import trustme
from conftest import Transport
from waiting import wait_until

import aiomas_ng as aiomas

START = "2026-01-01T00:00:00+00:00"


class Greeter(aiomas.Agent):
    """An agent that can be called."""

    def __init__(self, container: Any, name: str = "") -> None:
        super().__init__(container)
        self.name = name

    @classmethod
    async def create(cls, container: Any, name: str) -> Greeter:
        await asyncio.sleep(0)
        return cls(container, name)

    @aiomas.expose
    def greet(self) -> str:
        return str(self)

    @aiomas.expose
    def get_name(self) -> str:
        return self.name

    @aiomas.expose
    def get_self(self) -> Greeter:
        return self

    @aiomas.expose
    async def ask(self, other: Any) -> Any:
        return await other.greet()

    @aiomas.expose
    def echo(self, value: Any) -> Any:
        return value

    @aiomas.expose
    async def wait(self) -> None:
        await asyncio.get_running_loop().create_future()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def make_unlistening_container(**kwds: Any) -> Any:
    """Return a container that says it is at ``localhost:5555``."""
    loop = aiomas.util.get_loop()
    return aiomas.Container("tcp://localhost:5555/", loop, kwds.pop("clock", None), kwds)


# -- Containers and agents -------------------------------------------------------------------------


def run_container(addr: str, container_kwargs: dict[str, Any]) -> None:
    """Run a container in a worker of multiprocessing."""
    aiomas.run(aiomas.subproc.start(addr, **container_kwargs))


def test_container_create(tmp_path: Path) -> None:
    """It blocks where no loop runs, time and again; its arguments go through pickle to worker processes."""
    kwds: dict[str, Any] = {
        "clock": aiomas.ExternalClock(START, init_time=5),
        "codec": aiomas.JSON,
        "extra_serializers": [Value.__serializer__],  # type: ignore[attr-defined]
        "ssl": None,
    }
    for _ in range(2):
        container = aiomas.Container.create(("localhost", 0), **pickle.loads(pickle.dumps(kwds)))
        assert isinstance(container, aiomas.Container)
        assert container.clock.time() == 5
        container.shutdown()
    assert pickle.loads(pickle.dumps(aiomas.SSLCerts("a", "b", "c"))) == ("a", "b", "c")

    path = str(tmp_path / "worker")
    process = multiprocessing.get_context("spawn").Process(target=run_container, args=(path, kwds))
    process.start()
    container = aiomas.Container.create(("localhost", 0), **kwds)

    async def main() -> Any:
        manager = await container.connect(f"ipc://[{path}]/0", 30)
        await manager.set_time(6)
        agent, _ = await manager.spawn(f"{__name__}:Greeter", "bob")
        name = await agent.get_name()
        await manager.stop()
        return name

    assert aiomas.run(main()) == "bob"
    process.join()
    assert process.exitcode == 0
    process.close()
    container.shutdown()


def test_container_create_parameters() -> None:
    """The parameters are keywords of the known names."""
    parameters = inspect.signature(aiomas.Container.create).parameters
    expected = ["addr", "clock", "codec", "extra_serializers", "ssl", "as_coro", "loop"]
    assert [name for name in parameters if name in expected] == expected
    for name in expected[1:]:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert not parameters[name].default


async def test_container_create_as_coro() -> None:
    """With ``as_coro=True`` it is awaited."""
    creating = aiomas.Container.create(("localhost", 0), as_coro=True)
    assert inspect.iscoroutine(creating)
    container = await creating
    await container.shutdown(as_coro=True)


async def test_container_init() -> None:
    """Subclasses override ``__init__`` with four positional arguments, and are made by ``create``."""
    seen: list[Any] = []

    class Own(aiomas.Container):
        def __init__(self, base_url: str, loop: Any, clock: Any, connect_kwargs: Any) -> None:
            super().__init__(base_url, loop, clock, connect_kwargs)
            seen.extend([base_url, loop, clock, connect_kwargs])
            self.extra = True

    clock = aiomas.ExternalClock(START)
    container = await Own.create(("localhost", 0), clock=clock, codec=aiomas.JSON, as_coro=True)
    assert type(container) is Own
    assert container.extra
    assert seen[0] == container._base_url
    assert seen[1] is asyncio.get_running_loop()
    assert seen[2] is clock
    assert seen[3]["codec"] is aiomas.JSON
    assert await (await container.connect(Greeter(container).addr)).greet()
    await container.shutdown(as_coro=True)


async def test_container_connect() -> None:
    """It reaches agents of the own container too, takes ``timeout`` by position, and is retried."""
    one = await aiomas.Container.create(("localhost", 0), as_coro=True)
    own = Greeter(one)
    assert await (await one.connect(own.addr)).greet() == str(own)
    assert inspect.signature(one.connect).parameters["timeout"].default == 0
    port = free_port()
    url = f"tcp://localhost:{port}/0"
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            await one.connect(url)
    connecting = asyncio.ensure_future(one.connect(url, 10))
    await asyncio.sleep(0)
    two = await aiomas.Container.create(("localhost", port), as_coro=True)
    other = Greeter(two)
    assert await (await connecting).greet() == str(other)
    assert await (await one.connect(url, 10)).greet() == str(other)
    with pytest.raises(ConnectionError):
        await one.connect(url[:-1] + "7")
    for container in (one, two):
        await container.shutdown(as_coro=True)


def test_container_shutdown() -> None:
    """It can be called again, frees the port at once, and ``_tcp_server`` is ``None`` afterwards."""
    port = free_port()
    for _ in range(3):
        container = aiomas.Container.create(("localhost", port))
        assert container._tcp_server is not None
        container.shutdown()
        assert container._tcp_server is None
        container.shutdown()
        aiomas.run(container.shutdown(as_coro=True))


async def test_container_agents_dict() -> None:
    """It is a plain dict in the order of the agents; a manager is ``'0'`` and can be called locally."""
    container = await aiomas.Container.create(("localhost", 0), as_coro=True)
    manager = aiomas.subproc.Manager(container)
    greeters = [Greeter(container) for _ in range(11)]
    assert type(container.agents.dict) is dict
    assert list(container.agents.dict) == [str(number) for number in range(12)]
    assert list(container.agents.dict.values()) == [manager, *greeters]
    agent, addr = await container.agents.dict["0"].spawn(f"{__name__}:Greeter", "bob")
    assert type(agent).__name__ == "Greeter"
    assert agent is container.agents.dict["12"]
    assert agent.addr == addr
    await container.shutdown(as_coro=True)


async def test_clock_loop_container_addr() -> None:
    """A container has its clock and loop, an agent its container and its address, exactly."""
    clock = aiomas.ExternalClock(START)
    container = make_unlistening_container(clock=clock)
    agent = Greeter(container)
    assert container.clock is clock
    assert container.loop is asyncio.get_running_loop()
    assert agent.container is container
    assert agent.addr == "tcp://localhost:5555/0"
    assert Greeter(container).addr == "tcp://localhost:5555/1"


async def test_str_of_an_agent() -> None:
    """An agent is shown with its class and address."""

    class Cls(aiomas.Agent):
        pass

    assert str(Cls(make_unlistening_container())) == "Cls('tcp://localhost:5555/0')"


# -- RPC -------------------------------------------------------------------------------------------


async def test_expose(transport: Transport) -> None:
    """It returns the same function, marked, under each of its names, and for every kind of function."""
    other = Greeter(make_unlistening_container())

    class Chatty:
        router = aiomas.rpc.Service()

        def __init__(self) -> None:
            self.alias = other.greet
            self.given = aiomas.expose(lambda: "lambda")

        @router.expose
        def by_router(self) -> str:
            return "router"

        @aiomas.rpc.Service.expose
        def by_service(self) -> str:
            return "service"

    def func() -> None:
        pass

    for expose in (aiomas.expose, aiomas.rpc.expose, aiomas.rpc.Service.expose, Chatty().router.expose):
        assert expose(func) is func
        assert func.__rpc__ is True  # type: ignore[attr-defined]
    server = await aiomas.rpc.start_server(transport.address(), Chatty())
    client = await aiomas.rpc.open_connection(server.url)
    remote: Any = client.remote
    assert await remote.by_router() == "router"
    assert await remote.by_service() == "service"
    assert await remote.given() == "lambda"
    assert await remote.alias() == "Greeter('tcp://localhost:5555/0')"
    await client.close()
    server.close()


def test_rpc_service() -> None:
    """Each instance gets a router when it is asked for; sub-services may come later; it can be redefined."""

    class Sub:
        router = aiomas.rpc.Service()

        @aiomas.expose
        def func(self) -> int:
            return 1

    class Base:
        router = aiomas.rpc.Service()

    class Main(Base):
        router = aiomas.rpc.Service(["sub", "other"])

        def __init__(self) -> None:
            assert "router" not in self.__dict__
            self.sub: Any = None
            self.other: Any = None

    one, two = Main(), Main()
    assert isinstance(Main.router, aiomas.rpc.Service)
    assert "router" not in one.__dict__
    assert one.router is one.router
    assert one.router is not two.router
    one.sub = Sub()
    assert one.router.resolve("sub/func")() == 1
    assert one.sub.router.path == "sub"
    with pytest.raises(LookupError):
        one.router.resolve("other/func")


async def test_service_dict_and_router(transport: Transport) -> None:
    """Services are attached at run time; an empty dict is a service, with and without an argument."""

    class Sub:
        router = aiomas.rpc.Service()

        @aiomas.expose
        def func(self) -> int:
            return 1

    class Main:
        router = aiomas.rpc.Service()

        def __init__(self) -> None:
            self.sub = Sub()
            self.attached = aiomas.rpc.ServiceDict({})

    assert aiomas.rpc.ServiceDict().dict == aiomas.rpc.ServiceDict({}).dict == {}
    main = Main()
    main.router.add("sub")
    main.router.set_sub_router(main.attached.router, "attached")
    server = await aiomas.rpc.start_server(transport.address(), main)
    client = await aiomas.rpc.open_connection(server.url)
    remote: Any = client.remote
    assert await remote.sub.func() == 1
    late = Sub()
    main.attached.dict["late"] = late
    main.attached.router.set_sub_router(late.router, "late")
    assert await remote.attached.late.func() == 1
    assert (main.router.path, main.sub.router.path, late.router.path) == ("", "sub", "attached/late")
    assert main.router.resolve("attached/late/func")() == 1
    await client.close()
    server.close()


async def test_rpc_open_connection() -> None:
    """The port may be a numeric string; codec, serializers, service and timeout are keywords."""

    class Own:
        router = aiomas.rpc.Service()

        @aiomas.expose
        def get(self, value: Any) -> Any:
            return value

    clients: list[Any] = []
    kwds: dict[str, Any] = {"codec": aiomas.JSON, "extra_serializers": [Value.__serializer__]}  # type: ignore[attr-defined]
    server = await aiomas.rpc.start_server(("127.0.0.1", 0), Own(), clients.append, **kwds)
    port = server.sockets[0].getsockname()[1]
    client = await aiomas.rpc.open_connection(("127.0.0.1", str(port)), rpc_service=Own(), timeout=5, **kwds)
    remote: Any = client.remote
    assert (await remote.get(Value(3))).number == 3
    assert (await clients[0].remote.get(Value(4))).number == 4
    await client.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        await aiomas.rpc.open_connection(("127.0.0.1", port), timeout=0)


@aiomas.serializable
class Value:
    """A value with a serializer."""

    def __init__(self, number: int) -> None:
        self.number = number


async def test_rpc_start_server() -> None:
    """The server is used like one of asyncio; the callback may be given by position."""

    class Empty:
        router = aiomas.rpc.Service()

    clients: list[Any] = []
    server = await aiomas.rpc.start_server(("127.0.0.1", 0), Empty(), clients.append, codec=aiomas.JSON)
    address = server.sockets[0].getsockname()
    async with server:
        serving = asyncio.ensure_future(server.serve_forever())
        client = await aiomas.rpc.open_connection(address, codec=aiomas.JSON)
        await wait_until(lambda: clients)
        assert type(clients[0]) is aiomas.rpc.RpcClient
        server.close()
        await server.wait_closed()
        await serving
    await client.close()


async def test_rpc_client(transport: Transport) -> None:
    """It has ``remote``, ``channel``, ``service``, ``close()`` and ``on_connection_reset(cb)``."""

    class Own:
        router = aiomas.rpc.Service()

    ends: list[Any] = []
    server = await aiomas.rpc.start_server(transport.address(), Own(), ends.append)
    client = await aiomas.rpc.open_connection(server.url, rpc_service=Own())
    await wait_until(lambda: ends)
    assert isinstance(client.remote, aiomas.rpc.Proxy)
    assert isinstance(client.channel, aiomas.channel.Channel)
    assert asyncio.isfuture(client.service)
    errors: list[Any] = []
    ends[0].on_connection_reset(errors.append)
    await client.close()
    await client.service
    await ends[0].service
    assert [isinstance(error, ConnectionResetError) for error in errors] == [True]
    server.close()


async def test_proxy() -> None:
    """Calls return futures; proxies compare, hash and show themselves as they did; ``_path`` is there."""
    one, two = [await aiomas.Container.create(("127.0.0.1", 0), as_coro=True) for _ in range(2)]
    greeter = Greeter(two)
    proxy, same = await one.connect(greeter.addr), await one.connect(greeter.addr)
    other = await one.connect(Greeter(two).addr)
    futures = [proxy.greet(), other.greet()]
    await asyncio.gather(*futures)
    assert [future.result() for future in futures] == [f"Greeter('{two._base_url}{i}')" for i in range(2)]
    assert proxy == same
    assert hash(proxy) == hash(same)
    assert proxy in [same]
    assert proxy in {same: None}
    assert proxy != other
    assert other not in {proxy}
    assert proxy._path == "agents/0"
    assert str(proxy) == f"GreeterProxy('{two._base_url}0')"
    client = await aiomas.rpc.open_connection(two._base_url)
    port = client.channel.get_extra_info("peername")[1]
    assert str(client.remote.agents.x) == f"Proxy(('127.0.0.1', {port}), 'agents/x')"
    assert str(getattr(client.remote.agents, "1")) == f"Proxy(('127.0.0.1', {port}), 'agents/1')"
    await client.close()
    for container in (one, two):
        await container.shutdown(as_coro=True)


async def test_agent_or_service_as_argument_or_result(transport: Transport) -> None:
    """They arrive as proxies; ``Manager.spawn`` returns one and the address."""
    one, two = [await aiomas.Container.create(transport.address(), as_coro=True) for _ in range(2)]
    mine = Greeter(one)
    manager = await one.connect(aiomas.subproc.Manager(two).addr)
    agent, addr = await manager.spawn(f"{__name__}:Greeter", "bob")
    assert isinstance(agent, aiomas.rpc.Proxy)
    assert addr == f"{two._base_url}1"
    assert await agent.ask(mine) == str(mine)
    assert await (await agent.get_self()).get_name() == "bob"
    for container in (one, two):
        await container.shutdown(as_coro=True)


async def test_connection_reset_error(transport: Transport) -> None:
    """Calls that wait when the peer closes raise ``ConnectionResetError``."""
    one, two = [await aiomas.Container.create(transport.address(), as_coro=True) for _ in range(2)]
    calls = [(await one.connect(Greeter(two).addr)).wait() for _ in range(2)]
    await two.shutdown(as_coro=True, grace=0)
    for call in calls:
        with pytest.raises(ConnectionResetError):
            await call
    await one.shutdown(as_coro=True)


# -- Codecs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "sequence"), [(aiomas.JSON, list), (aiomas.MsgPack, tuple)])
async def test_codecs(transport: Transport, codec: Any, sequence: type) -> None:
    """Sequences are lists with JSON and tuples with MsgPack, through RPC as well; dates and types travel."""
    kwds: dict[str, Any] = {"codec": codec, "extra_serializers": [Value.__serializer__]}  # type: ignore[attr-defined]
    one, two = [await aiomas.Container.create(transport.address(), as_coro=True, **kwds) for _ in range(2)]
    greeter = Greeter(two)
    for container in (one, two):
        proxy = await container.connect(greeter.addr)
        for value in ([1, [2]], (1, (2,))):
            assert await proxy.echo(value) == sequence([1, sequence([2])])
        assert (await proxy.echo(Value(5))).number == 5
        date = arrow.get(START)
        assert await proxy.echo({"date": date}) == {"date": date}
    for container in (one, two):
        await container.shutdown(as_coro=True)


@pytest.mark.parametrize("codec", [aiomas.JSON, aiomas.MsgPack])
def test_codec_add_serializer(codec: Any) -> None:
    """Types are added with three arguments, also odd ones such as a function, once each."""

    def odd() -> None:
        pass

    instance = codec()
    instance.add_serializer(odd, str, str)
    instance.add_serializer(Value, lambda value: value.number, Value)
    assert instance.decode(instance.encode(Value(3))).number == 3
    with pytest.raises(ValueError, match="already"):
        instance.add_serializer(*Value.__serializer__())  # type: ignore[attr-defined]
    cls, serialize, deserialize = Value.__serializer__()  # type: ignore[attr-defined]
    assert cls is Value
    assert deserialize(serialize(Value(4))).number == 4


def test_codec_with_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec whose package is missing can be named, and raises ``ImportError`` when it is instantiated."""
    monkeypatch.setitem(sys.modules, "blosc2", None)
    codec = aiomas.codecs.MsgPackBlosc
    with pytest.raises(ImportError, match=r"pip install aiomas_ng\[blosc\]"):
        codec()
    with pytest.raises(ImportError):
        aiomas.Container.create(("localhost", 0), codec=codec)


# -- Clocks ----------------------------------------------------------------------------------------


def test_external_clock() -> None:
    """It needs no loop, is shared and subclassed, has ``_utc_start``, and its time strictly increases."""

    class Own(aiomas.ExternalClock):
        def __init__(self, utc_start: str) -> None:
            super().__init__(utc_start, 10, None)
            self.own = True

    clock = Own(START)
    assert clock._utc_start == arrow.get(START)
    assert clock.time() == 10
    one, two = (aiomas.Container.create(("localhost", 0), clock=clock) for _ in range(2))
    assert one.clock is two.clock is clock
    clock.set_time(20)
    for time in (20, 19):
        with pytest.raises(ValueError, match="more than 20"):
            clock.set_time(time)
    assert clock.time() == 20

    async def main() -> None:
        sleeping = clock.sleep_until(clock.utcnow().shift(seconds=5))
        clock.set_time(25)
        await sleeping

    aiomas.run(main())
    clock.utcnow = lambda: arrow.get(0)  # type: ignore[method-assign]
    assert clock.utcnow() == arrow.get(0)
    for container in (one, two):
        container.shutdown()


async def test_asyncio_clock() -> None:
    """``time``, ``utcnow``, ``sleep``, ``sleep_until``, ``call_in``, ``call_at`` and ``cancel`` are there."""
    clock = aiomas.AsyncioClock()
    assert isinstance(clock, aiomas.clocks.BaseClock)
    called: list[str] = []
    now = clock.time()
    handle = clock.call_in(1000, called.append, "never")
    assert isinstance(handle, aiomas.clocks.TimerHandle)
    handle.cancel()
    clock.call_in(0.001, called.append, "in")
    clock.call_at(now + 0.002, called.append, "at")
    await clock.sleep_until(now + 0.003)
    assert await clock.sleep(0.001, "result") == "result"
    assert called == ["in", "at"]
    assert abs(clock.utcnow() - arrow.utcnow()).total_seconds() < 10


# -- Processes and queues --------------------------------------------------------------------------


async def test_subproc_start(transport: Transport) -> None:
    """It runs a container with a manager as agent 0 until the manager is told to stop."""
    address = transport.address()
    if transport.kind == "tcp":
        address = ("127.0.0.1", free_port())
    base_url = aiomas.agent._get_base_url(address)
    running = asyncio.ensure_future(aiomas.subproc.start(address, clock=aiomas.ExternalClock(START)))
    container = await aiomas.Container.create(transport.address(), as_coro=True)
    manager = await container.connect(base_url + "0", 10)
    await manager.set_time(5)
    with contextlib.suppress(ConnectionResetError):
        await manager.stop()
    await running
    await container.shutdown(as_coro=True)


async def test_subproc_manager(transport: Transport) -> None:
    """A manager is subclassed; it makes agents of classes and of coroutine class methods."""

    class Own(aiomas.subproc.Manager):
        def __init__(self, container: Any) -> None:
            super().__init__(container)
            self.own = True

    one, two = [await aiomas.Container.create(transport.address(), as_coro=True) for _ in range(2)]
    local = Own(two)
    manager = await one.connect(local.addr)
    for name in ("Greeter", "Greeter.create"):
        agent, addr = await manager.spawn(f"{__name__}:{name}", name)
        assert await agent.get_name() == name
        assert await agent.greet() == f"Greeter({addr!r})"
    assert asyncio.isfuture(local.stop_received)
    assert not local.stop_received.done()
    await manager.stop()
    assert local.stop_received.done()
    for container in (one, two):
        await container.shutdown(as_coro=True)


def test_get_queue() -> None:
    """The same id gives the same queue, until the cache is cleared."""
    queue = aiomas.get_queue("q")
    assert aiomas.get_queue("q") is aiomas.local_queue.get_queue("q") is queue
    assert aiomas.get_queue("p") is not queue
    aiomas.local_queue.clear_queue_cache()
    assert aiomas.get_queue("q") is not queue


# -- Helpers ---------------------------------------------------------------------------------------


def test_run() -> None:
    """Without argument it runs for ever, else until something is done, and returns the result."""
    loop = aiomas.util.get_loop()
    called: list[int] = []
    loop.call_soon(called.append, 1)
    loop.call_later(0.001, loop.stop)
    aiomas.run()
    assert called == [1]
    assert aiomas.run(asyncio.sleep(0, "result")) == "result"
    assert aiomas.run(until=asyncio.sleep(0, "result"), loop=loop) == "result"


def test_util(tmp_path: Path) -> None:
    """``obj_from_str``, ``arrow_serializer`` and the functions for TLS are there; ``SSLCerts`` has names."""
    assert aiomas.util.obj_from_str(f"{__name__}:Greeter.create").__func__ is Greeter.create.__func__  # type: ignore[attr-defined]
    cls, serialize, deserialize = aiomas.util.arrow_serializer()
    date = arrow.get(START)
    assert cls is arrow.Arrow
    assert deserialize(serialize(date)) == date
    authority = trustme.CA()
    cert = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    cert.private_key_pem.write_to_path(tmp_path / "key.pem")
    cert.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    paths = [str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem")]
    certs = aiomas.SSLCerts(cafile=paths[0], certfile=paths[1], keyfile=paths[2])
    assert [*certs] == paths
    assert isinstance(aiomas.make_ssl_server_context(*certs), ssl.SSLContext)
    assert isinstance(aiomas.make_ssl_client_context(**certs._asdict()), ssl.SSLContext)
    assert aiomas.agent.SSLCerts is aiomas.SSLCerts


async def test_exceptions(transport: Transport) -> None:
    """The errors are there under their names, and are raised as before."""
    error = aiomas.RemoteException("origin", "traceback")
    assert (error.origin, error.remote_traceback) == ("origin", "traceback")
    assert str(error) == "Origin: origin\ntraceback"
    for cls in (aiomas.RemoteException, aiomas.SerializationError):
        assert issubclass(cls, aiomas.AiomasError)
    for name in ("AiomasError", "RemoteException", "SerializationError"):
        assert getattr(aiomas, name) is getattr(aiomas.exceptions, name)
    container = await aiomas.Container.create(transport.address(), as_coro=True)
    proxy = await container.connect(Greeter(container).addr)
    with pytest.raises(aiomas.RemoteException, match="missing 1 required positional argument"):
        await proxy.echo()
    with pytest.raises(aiomas.SerializationError):
        await proxy.echo(object())
    await container.shutdown(as_coro=True)


async def test_create_task() -> None:
    """It runs a coroutine in the background."""
    assert await aiomas.create_task(asyncio.sleep(0, "result")) == "result"


async def test_private_names() -> None:
    """``_get_base_url``, ``_base_url`` and ``_tcp_server`` are read by subclasses."""
    assert aiomas.agent._get_base_url(("localhost", 5555)) == "tcp://localhost:5555/"
    assert aiomas.agent._get_base_url("/tmp/path") == "ipc://[/tmp/path]/"
    assert aiomas.agent._get_base_url(aiomas.get_queue("q")) == "local://q/"
    assert aiomas.agent._get_base_url(("", 5555)) == f"tcp://{socket.getfqdn()}:5555/"
    container = await aiomas.Container.create(("localhost", 0), as_coro=True)
    port = container._tcp_server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    assert container._base_url == f"tcp://localhost:{port}/"
    await container.shutdown(as_coro=True)


CONTAINER_NAMES = [
    *("name", "logger", "_logger", "_name", "age", "artifacts", "manager"),
    *("close", "destroy", "start", "spawn", "states", "_agents"),
]
AGENT_NAMES = [
    *("name", "env", "logger", "_connections", "stop", "run"),
    *("setup", "update", "register", "create", "factory"),
]


def spoil(names: list[str]) -> dict[str, Any]:
    """Return attributes of a class that fail if they are used."""

    def fail(*args: Any, **kwds: Any) -> Any:
        raise AssertionError("a name that belongs to a subclass was used")

    return {name: property(fail) for name in names}


async def use_containers(container_cls: Any, agent_cls: Any, transport: Transport) -> None:
    """Do everything with containers and agents that the package offers."""
    one, two = [await container_cls.create(transport.address(), as_coro=True) for _ in range(2)]
    mine, yours, named = agent_cls(one), agent_cls(two), agent_cls(two)
    proxy = await one.connect(yours.addr)
    assert await proxy.ask(mine) == str(mine)
    assert await (await two.connect(named.addr)).get_self() == await one.connect(named.addr)
    await two.remove_agent(named)
    assert str(one)
    for container in (one, two):
        await container.shutdown(as_coro=True)


class AnyAgent(aiomas.Agent):
    """An agent that needs no further name."""

    @aiomas.expose
    def greet(self) -> str:
        return str(self)

    @aiomas.expose
    async def ask(self, other: Any) -> Any:
        return await other.greet()

    @aiomas.expose
    def get_self(self) -> Any:
        return self


async def test_names_that_subclasses_of_containers_define(transport: Transport) -> None:
    """A container neither has nor needs the names that subclasses give a meaning of their own."""
    assert not [name for name in CONTAINER_NAMES if hasattr(aiomas.Container, name)]
    container = make_unlistening_container()
    assert not [name for name in CONTAINER_NAMES if hasattr(container, name)]
    await use_containers(type("Own", (aiomas.Container,), spoil(CONTAINER_NAMES)), AnyAgent, transport)


async def test_names_that_subclasses_of_agents_define(transport: Transport) -> None:
    """An agent neither has nor needs the names that subclasses give a meaning of their own."""
    assert not [name for name in AGENT_NAMES if hasattr(aiomas.Agent, name)]
    agent = aiomas.Agent(make_unlistening_container())
    assert not [name for name in AGENT_NAMES if hasattr(agent, name)]
    await use_containers(aiomas.Container, type("Own", (AnyAgent,), spoil(AGENT_NAMES)), transport)


# -- The wire --------------------------------------------------------------------------------------


class Blocking:
    """A client in another language: a plain socket in a thread, with JSON or MessagePack."""

    def __init__(self, sock: socket.socket, codec: str) -> None:
        self.sock = sock
        self.pack: Callable[[Any], bytes]
        if codec == "json":
            self.pack, self.unpack = lambda data: json.dumps(data).encode(), json.loads
        else:
            self.pack, self.unpack = msgpack.packb, msgpack.unpackb

    def send(self, *frame: Any) -> None:
        payload = self.pack(list(frame))
        self.sock.sendall(struct.pack(">I", len(payload)) + payload)

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def recv(self) -> Any:
        return self.unpack(self.read(struct.unpack(">I", self.read(4))[0]))


CODECS = {"json": aiomas.JSON, "msgpack": aiomas.MsgPack}


class Simulator:
    """A service as co-simulation has it, which calls its caller."""

    router = aiomas.rpc.Service()
    client: Any

    @aiomas.expose
    def init(self, sid: str, **params: Any) -> dict[str, Any]:
        return {"sid": sid, **params}

    @aiomas.expose
    async def step(self, time: int, inputs: Any) -> Any:
        return [time, inputs, await self.client.remote.get_progress()]

    @aiomas.expose
    def fail(self) -> None:
        raise ValueError("bad step")


@contextlib.contextmanager
def in_thread(func: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Run *func* in a thread; gives a function that returns its result."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(func()))
    thread.start()
    yield lambda: result[0] if result else None
    thread.join()


@pytest.mark.parametrize("codec", CODECS)
async def test_wire_of_a_server(codec: str) -> None:
    """A client that knows nothing but length, ``[type, id, content]`` and types 0 to 2 is served."""
    simulator = Simulator()
    server = await aiomas.rpc.start_server(
        ("127.0.0.1", 0), simulator, lambda client: setattr(simulator, "client", client), codec=CODECS[codec]
    )
    done = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def talk() -> list[Any]:
        with socket.create_connection(server.sockets[0].getsockname()) as sock:
            peer = Blocking(sock, codec)
            frames = []
            peer.send(0, 0, ["init", ["sim-0"], {"time_resolution": 1.0}])
            frames.append(peer.recv())
            peer.send(0, 1, ["step", [0, {"a": {"b": 1}}], {}])
            request = peer.recv()
            frames.append(request)
            peer.send(1, request[1], 12.5)
            frames.append(peer.recv())
            peer.send(0, 2, ["fail", [], {}])
            frames.append(peer.recv())
            peer.send(0, "text", ["nothing", [], {}])
            frames.append(peer.recv())
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(EOFError):
                peer.recv()
        loop.call_soon_threadsafe(done.set_result, None)
        return frames

    with in_thread(talk) as get_frames:
        await done
    init, request, step, failure, lookup = get_frames()
    assert init == [1, 0, {"sid": "sim-0", "time_resolution": 1.0}]
    assert request[0] == 0
    assert type(request[1]) is int
    assert request[2] == ["get_progress", [], {}]
    assert step == [1, 1, [0, {"a": {"b": 1}}, 12.5]]
    assert failure[:2] == [2, 2]
    assert failure[2][:2] == ["ValueError", "bad step"]
    assert all(isinstance(line, str) for line in failure[2])
    assert lookup[:2] == [2, "text"]
    server.close()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("failure", ["text", "list"])
async def test_wire_of_a_client(codec: str, failure: str) -> None:
    """A server that knows nothing but types 0 to 2 is called; its failures may be a text or a list."""
    contents: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                peer = Blocking(sock, codec)
                with contextlib.suppress(EOFError):
                    while True:
                        msg_type, msg_id, content = peer.recv()
                        contents.append([msg_type, content])
                        if content[0] == "fail":
                            peer.send(
                                2, msg_id, "bad" if failure == "text" else ["ValueError", "bad", "line\n"]
                            )
                        elif content[0] != "never":
                            peer.send(1, msg_id, content)

        with in_thread(serve):
            client = await aiomas.rpc.open_connection(listener.getsockname(), codec=CODECS[codec])
            remote: Any = client.remote
            sequence = list if codec == "json" else tuple
            assert await remote.a.b(1, c=[2]) == sequence(["a/b", sequence([1]), {"c": sequence([2])}])
            given_up = remote.never()
            given_up.cancel()
            with pytest.raises(TimeoutError):
                await aiomas.rpc.with_options(remote.never, timeout=0.001)()
            aiomas.rpc.with_options(remote.note, oneway=True)("quiet")
            with pytest.raises(aiomas.RemoteException) as caught:
                await remote.fail()
            assert caught.value.message == "bad"
            assert caught.value.type_name == ("" if failure == "text" else "ValueError")
            await client.close()
    assert [msg_type for msg_type, _ in contents] == [0] * 5
    assert contents[0][1] == ["a/b", [1], {"c": [2]}]
    assert contents[3][1] == ["note", ["quiet"], {}]
