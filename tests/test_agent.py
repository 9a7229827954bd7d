"""Containers and agents: addresses, connecting, ids, hooks, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import shutil
import socket
import ssl
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from conftest import Transport
from waiting import wait_until

import aiomas_ng
from aiomas_ng import Agent, Container, SSLCerts, clocks, codecs, rpc
from aiomas_ng import agent as agents
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import (
    AddressError,
    AddressInUseError,
    AgentIdError,
    AgentNotFoundError,
    ChannelClosedError,
    ClosedByUsError,
    ConnectError,
    RemoteException,
    RemoteLookupError,
    RemoteSerializationError,
    SocketPathError,
)

KINDS = ("tcp", "unix", "local")


class Member(Agent):
    """An agent with functions of every sort."""

    def __init__(self, container: Container, **kwds: Any) -> None:
        super().__init__(container, **kwds)
        self.kept: list[Any] = []
        self.event = asyncio.Event()
        self.is_cancelled = asyncio.Event()

    @rpc.expose
    def get_name(self) -> str:
        return str(self)

    @rpc.expose
    def keep(self, value: Any) -> None:
        self.kept.append(value)

    @rpc.expose
    def get_kept(self) -> list[Any]:
        return self.kept

    @rpc.expose
    def get_self(self) -> Member:
        return self

    @rpc.expose
    async def ask(self, other: Any) -> Any:
        return await other.get_name()

    @rpc.expose
    async def relay(self, url: str) -> Any:
        return await (await self.container.connect(url)).get_name()

    @rpc.expose
    async def pass_on(self, other: Any, third: Any) -> Any:
        return await other.ask(third)

    @rpc.expose
    async def wait(self) -> None:
        self.kept.append("waiting")
        try:
            await self.event.wait()
        except asyncio.CancelledError:
            self.is_cancelled.set()
            raise

    @rpc.expose
    def fail(self) -> None:
        raise ValueError("bad")

    @rpc.expose
    async def shut_down(self) -> None:
        await self.container.shutdown(as_coro=True)
        self.event.set()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="ng-"))
    yield path
    shutil.rmtree(path)


@contextlib.asynccontextmanager
async def containers(*addrs: Any, **kwds: Any) -> AsyncIterator[list[Container]]:
    """Make a container at each address and shut all of them down at the end."""
    made: list[Container] = []
    try:
        for addr in addrs:
            made.append(await Container.create(addr, as_coro=True, **kwds))
        yield made
    finally:
        for container in made:
            await container.shutdown(as_coro=True)


def count_sockets() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for number in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            count += stat.S_ISSOCK(os.fstat(int(number)).st_mode)
    return count


# -- Calls between agents --------------------------------------------------------------------------


async def test_agents_of_two_containers_talk(transport: Transport) -> None:
    """An agent calls one in another container, and is called back over the same connection."""
    async with containers(transport.address(), transport.address()) as (one, two):
        a, b = Member(one), Member(two)
        proxy = await one.connect(b.addr)
        assert await proxy.get_name() == str(b)
        assert await proxy.relay(a.addr) == str(a)
        assert await proxy.ask(a) == str(a)


async def test_agents_are_values(transport: Transport) -> None:
    """An agent as argument or result arrives as a proxy, equal to the one from ``connect``."""
    async with containers(transport.address(), transport.address()) as (one, two):
        a, b = Member(one), Member(two)
        proxy = await one.connect(b.addr)
        result = await proxy.get_self()
        assert isinstance(result, rpc.Proxy)
        assert result == proxy
        assert hash(result) == hash(proxy)
        assert str(result) == str(proxy) == f"MemberProxy({b.addr!r})"
        await proxy.keep(a)
        assert b.kept == [await two.connect(a.addr)]
        assert await b.kept[0].get_name() == str(a)


@pytest.mark.parametrize("kinds", list(itertools.product(KINDS, KINDS, KINDS)), ids="-".join)
async def test_proxy_is_handed_on_to_a_third_container(kinds: tuple[str, ...], directory: Path) -> None:
    """A proxy can be passed to a container that does not know its owner yet, and used there."""
    addresses = [Transport(kind, directory).address() for kind in kinds]
    async with containers(*addresses) as made:
        one, two, three = made
        a, b, c = Member(one), Member(two), Member(three)
        to_b, to_c = await one.connect(b.addr), await one.connect(c.addr)
        assert await to_b.ask(to_c) == str(c)
        assert await to_b.pass_on(to_c, a) == str(a)
        assert await to_c.pass_on(to_b, to_b) == str(b)
        await to_b.keep([{"third": to_c}])
        (kept,) = await to_b.get_kept()
        assert kept[0]["third"] == to_c
        assert str(b.kept[0][0]["third"]) == str(to_c)


async def test_proxy_that_comes_home_stays_a_proxy(transport: Transport) -> None:
    """A receiver cannot tell whether an agent lives in its own container: it always gets a proxy."""
    async with containers(transport.address(), transport.address()) as (one, two):
        a, b, c = Member(one), Member(two), Member(two)
        to_b = await one.connect(b.addr)
        of_connect = await one.connect(c.addr)
        of_result = await of_connect.get_self()
        for proxy in (of_connect, of_result):
            assert await to_b.ask(proxy) == str(c)
            await to_b.keep(proxy)
        assert b.kept == [await two.connect(c.addr)] * 2
        assert {str(kept) for kept in b.kept} == {f"MemberProxy({c.addr!r})"}
        to_a = await two.connect(a.addr)
        await to_a.keep(await to_a.get_self())
        assert await a.kept[0].get_name() == str(a)


async def test_proxy_of_a_method_is_a_value(transport: Transport) -> None:
    """One method of an agent can be handed over, and is then called without its agent."""

    class Caller(Agent):
        @rpc.expose
        async def run(self, func: Any) -> Any:
            return await func()

    async with containers(transport.address(), transport.address()) as (one, two):
        a, b = Member(one), Caller(two)
        proxy = await one.connect(b.addr)
        itself = await one.connect(a.addr)
        assert await proxy.run(itself.get_name) == str(a)
        assert await proxy.run((await two.connect(a.addr)).get_name) == str(a)


async def test_remote_exception_names_agent_and_method(transport: Transport) -> None:
    """An exception of an agent says which agent and which method it comes from."""
    async with containers(transport.address(), transport.address()) as (one, two):
        proxy = await one.connect(Member(two, aid="bob").addr)
        with pytest.raises(RemoteException) as caught:
            await proxy.fail()
        assert (caught.value.agent, caught.value.method) == ("bob", "fail")
        assert caught.value.path == "agents/bob/fail"
        with pytest.raises(RemoteLookupError) as lookup:
            await proxy.nothing()
        assert (lookup.value.agent, lookup.value.method) == ("bob", "nothing")


async def test_agent_with_sub_services(transport: Transport) -> None:
    """An agent may redefine its router, with sub-services that are set after the base constructor."""

    class Part:
        router = rpc.Service()

        @rpc.expose
        def get_number(self) -> int:
            return 5

    class Whole(Agent):
        router = rpc.Service(["part"])

        def __init__(self, container: Container) -> None:
            super().__init__(container)
            self.part = Part()

        @rpc.expose
        def get_part(self) -> Part:
            return self.part

    async with containers(transport.address(), transport.address()) as (one, two):
        proxy = await one.connect(Whole(two).addr)
        assert await proxy.part.get_number() == 5
        assert await (await proxy.get_part()).get_number() == 5


async def test_calls_through_a_lost_connection_connect_anew(transport: Transport) -> None:
    """A proxy survives the loss of its connection: what waits fails, the next call connects again."""
    async with containers(transport.address(), transport.address()) as (one, two):
        b = Member(two)
        proxy = await one.connect(b.addr)
        waiting = proxy.wait()
        await wait_until(lambda: b.kept)
        for client in list(two._connections):
            await client.close()
        with pytest.raises(ConnectionResetError) as caught:
            await waiting
        assert caught.value.was_sent is True  # type: ignore[attr-defined]
        assert await proxy.get_name() == str(b)
        assert await (await one.connect(b.addr)).get_name() == str(b)


async def test_one_way_call_connects_anew(transport: Transport) -> None:
    """A one-way call through a lost connection is sent over a new one, before later calls."""
    async with containers(transport.address(), transport.address()) as (one, two):
        b = Member(two)
        proxy = await one.connect(b.addr)
        for client in list(one._connections):
            await client.close()
        quiet = rpc.with_options(proxy, oneway=True)
        assert quiet.keep("first") is None
        await proxy.keep("second")
        assert quiet.keep("third") is None
        assert await proxy.get_kept() == ("first", "second", "third")


# -- In one container ------------------------------------------------------------------------------


async def test_own_container_needs_no_socket(transport: Transport) -> None:
    """Agents of one container talk without a socket, and without the server seeing a connection."""
    async with containers(transport.address()) as (container,):
        a, b = Member(container), Member(container)
        before = count_sockets()
        proxy = await container.connect(b.addr)
        assert await proxy.get_name() == str(b)
        assert await proxy.ask(a) == str(a)
        assert await proxy.relay(a.addr) == str(a)
        assert count_sockets() == before
        assert not container._tcp_server._connections  # type: ignore[union-attr]


async def test_own_container_passes_copies(transport: Transport) -> None:
    """Inside one container values pass through the codec: nobody sees the other's later changes."""
    async with containers(transport.address()) as (container,):
        agent = Member(container)
        proxy = await container.connect(agent.addr)
        value = [1, {"a": [2]}]
        reply = proxy.keep(value)
        value.append(3)
        value[1]["a"].append(4)  # type: ignore[index]
        await reply
        assert agent.kept == [(1, {"a": (2,)})]
        result = await proxy.get_kept()
        agent.kept.clear()
        assert result == ((1, {"a": (2,)}),)
        agent.kept.append(object())
        with pytest.raises(RemoteSerializationError):
            await proxy.get_kept()


async def test_own_container_keeps_turns(transport: Transport) -> None:
    """A call inside one container is not executed before the caller has waited, as with any other."""
    async with containers(transport.address()) as (container,):
        agent = Member(container)
        proxy = await container.connect(agent.addr)
        reply = proxy.keep(1)
        assert not agent.kept
        assert not reply.done()
        await reply
        assert agent.kept == [1]


async def test_own_container_raises_the_same_errors(transport: Transport) -> None:
    """Errors inside one container are those of a remote call."""
    async with containers(transport.address()) as (container,):
        agent = Member(container, aid="bob")
        proxy = await container.connect(agent.addr)
        with pytest.raises(RemoteException, match="bad") as caught:
            await proxy.fail()
        assert (caught.value.type_name, caught.value.agent) == ("ValueError", "bob")
        with pytest.raises(AgentNotFoundError):
            await container.connect(agent.addr.replace("bob", "eve"))


async def test_call_to_a_third_party_takes_its_arguments_at_once(transport: Transport) -> None:
    """Arguments of a call that has to connect first may be changed after the call, like those of any."""
    async with containers(transport.address(), transport.address()) as (one, two):
        agent = Member(two)
        proxy = await one.connect(agent.addr)
        for client in list(one._connections):
            await client.close()
        value: Any = [1, {"a": [2]}, (3, [4])]
        reply = proxy.keep(value)
        value[1]["a"].append(5)
        value[2][1].append(6)
        value.append(7)
        await reply
        assert agent.kept == [(1, {"a": (2,)}, (3, (4,)))]


# -- Connecting ------------------------------------------------------------------------------------


async def test_concurrent_connects_dial_once(transport: Transport) -> None:
    """Any number of tasks that connect to one place at a time share one connection."""
    async with containers(transport.address(), transport.address()) as (one, two):
        members = [Member(two) for _ in range(5)]
        proxies = await asyncio.gather(*(one.connect(member.addr) for member in members * 10))
        assert await asyncio.gather(*(proxy.get_name() for proxy in proxies)) == [
            str(m) for m in members * 10
        ]
        assert len(two._tcp_server._connections) == 1  # type: ignore[union-attr]
        assert len(one._connections) == len(two._connections) == 1


async def test_both_containers_connect_at_once(transport: Transport) -> None:
    """Two containers may connect to each other at the same time."""
    async with containers(transport.address(), transport.address()) as (one, two):
        a, b = Member(one), Member(two)
        to_b, to_a = await asyncio.gather(one.connect(b.addr), two.connect(a.addr))
        assert [await to_b.get_name(), await to_a.get_name()] == [str(b), str(a)]


@pytest.mark.parametrize("index", range(3))
async def test_cancelled_connect_harms_no_other(transport: Transport, index: int) -> None:
    """Cancelling one of those that connect at a time, the one that dials or another, disturbs no other."""
    async with containers(transport.address(), transport.address()) as (one, two):
        member = Member(two)
        tasks = [asyncio.ensure_future(one.connect(member.addr)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[index].cancel()
        results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results.pop(index), asyncio.CancelledError)
        for proxy in results:
            assert await proxy.get_name() == str(member)


async def test_connect_after_a_refused_connect(transport: Transport) -> None:
    """Connecting fails while nobody listens, each time anew, and works as soon as somebody does."""
    async with containers(transport.address(), transport.address()) as (one, two):
        addr = Member(two).addr
        base_url = two._base_url
        await two.shutdown(as_coro=True)
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError) as caught:
                await one.connect(addr)
            assert isinstance(caught.value, ConnectError)
            if transport.kind == "unix":
                assert isinstance(caught.value, FileNotFoundError)
                assert isinstance(caught.value, SocketPathError)
        async with containers(base_url) as (again,):
            member = Member(again)
            assert member.addr == addr
            assert await (await one.connect(addr)).get_name() == str(member)


async def test_connect_after_an_unknown_agent(transport: Transport) -> None:
    """Connecting to an agent that is not there fails, each time anew, and works once it is there."""
    async with containers(transport.address(), transport.address()) as (one, two):
        addr = f"{two._base_url}bob"
        for _ in range(3):
            with pytest.raises(AgentNotFoundError, match="'bob' does not exist") as caught:
                await one.connect(addr)
            assert isinstance(caught.value, ConnectionError)
            assert caught.value.aid == "bob"
            assert caught.value.container == two._base_url
        bob = Member(two, aid="bob")
        assert bob.addr == addr
        assert await (await one.connect(addr)).get_name() == str(bob)


async def test_connect_after_the_peer_came_back(transport: Transport) -> None:
    """A connection that died is replaced when the peer listens again at the same address."""
    async with containers(transport.address(), transport.address()) as (one, two):
        addr = Member(two).addr
        proxy = await one.connect(addr)
        assert await proxy.get_name()
        base_url = two._base_url
        await two.shutdown(as_coro=True)
        await wait_until(lambda: not one._connections)
        with pytest.raises(ConnectionRefusedError):
            await proxy.get_name()
        with pytest.raises(ConnectionRefusedError):
            await one.connect(addr)
        async with containers(base_url) as (again,):
            Member(again)
            assert await (await one.connect(addr)).get_name() == f"Member({addr!r})"
            assert await proxy.get_name() == f"Member({addr!r})"
            assert len(one._connections) == 1


async def test_agent_of_the_peer_that_came_back_is_looked_up_again(transport: Transport) -> None:
    """What was known of the agents of a container ends with the connection."""
    async with containers(transport.address(), transport.address()) as (one, two):
        kept = await one.connect(Member(two).addr)
        base_url = two._base_url
        await two.shutdown(as_coro=True)
        await wait_until(lambda: not one._connections)
        async with containers(base_url):
            with pytest.raises(AgentNotFoundError):
                await one.connect(base_url + "0")
            with pytest.raises(RemoteLookupError):
                await kept.get_name()


async def test_connect_with_timeout_waits_for_the_peer(transport: Transport) -> None:
    """With a timeout, or without limit, connecting goes on until somebody listens; it is positional."""
    async with containers(transport.address(), transport.address()) as (one, two):
        base_url = two._base_url
        await two.shutdown(as_coro=True)
        tasks = [asyncio.ensure_future(one.connect(base_url + "0", timeout)) for timeout in (10, None)]
        with pytest.raises(ConnectionRefusedError):  # the others do not hold up who tries once
            await one.connect(base_url + "0")
        async with containers(base_url) as (again,):
            member = Member(again)
            for proxy in await asyncio.gather(*tasks):
                assert await proxy.get_name() == str(member)
            assert len(one._connections) == 1


async def test_connect_with_timeout_in_vain(transport: Transport) -> None:
    """When the time is up, connecting fails with the error of the last attempt."""
    async with containers(transport.address(), transport.address()) as (one, two):
        base_url = two._base_url
        await two.shutdown(as_coro=True)
        loop = asyncio.get_running_loop()
        start = loop.time()
        with pytest.raises(ConnectError) as caught:
            await one.connect(base_url + "0", timeout=0.1)
        assert 0.09 < loop.time() - start < 5  # the clocks of some loops are coarse
        assert isinstance(caught.value, FileNotFoundError) == (transport.kind == "unix")


async def test_connection_that_dies_while_the_agent_is_looked_up(transport: Transport) -> None:
    """If the peer goes away before it has said whether it has the agent, connecting fails with that."""

    class Silent(Container):
        @rpc.expose
        async def validate_aid(self, aid: str) -> Any:  # type: ignore[override]
            asked.set()
            return await asyncio.get_running_loop().create_future()

    asked = asyncio.Event()
    async with containers(transport.address()) as (one,):
        two = await Silent.create(transport.address(), as_coro=True)
        connecting = asyncio.ensure_future(one.connect(two._base_url + "0"))
        await asked.wait()
        await two.shutdown(as_coro=True, grace=0)
        with pytest.raises(ConnectionResetError):
            await connecting


@pytest.mark.parametrize(
    "url",
    [
        "",
        "tcp://",
        "tcp://localhost:5555",
        "tcp://localhost:5555/",
        "tcp://localhost:5555/0/1",
        "tcp://localhost/0",
        "tcp://localhost:port/0",
        "tcp://:5555/0",
        "http://localhost:5555/0",
        "localhost:5555/0",
        "ipc:///tmp/x/0",
        "ipc://[/tmp/x",
        "ipc://[/tmp/x]",
        "local://",
        "local://queue",
        None,
        5,
    ],
)
async def test_malformed_url(url: Any) -> None:
    """A URL that does not parse is a ``ValueError``, and nothing is dialled."""
    async with containers(Transport("local", Path()).address()) as (container,):
        with pytest.raises(AddressError) as caught:
            await container.connect(url)
        assert isinstance(caught.value, ValueError)


async def test_server_that_is_no_container(transport: Transport) -> None:
    """Connecting to a server without agents fails, and says that it is no container."""

    class Plain:
        router = rpc.Service()

    server = await rpc.start_server(transport.address(), Plain())
    async with containers(transport.address()) as (container,):
        with pytest.raises(ConnectError, match="no container answers there"):
            await container.connect(server.url + "0")
    server.close()


async def test_server_that_never_answers() -> None:
    """A server that accepts and says nothing does not hold up who connects for longer than the timeout."""
    writers = []
    server = await asyncio.start_server(lambda reader, writer: writers.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with containers(("127.0.0.1", 0)) as (container,):
        with pytest.raises(ConnectError, match=r"it is connected, but .* was not answered within 0\.1 s"):
            await container.connect(f"tcp://127.0.0.1:{port}/0", timeout=0.1)
    server.close()
    for writer in writers:
        writer.close()


async def test_agent_of_another_container_as_an_argument(transport: Transport) -> None:
    """An agent of another container than the one that the call comes from arrives as its proxy as well."""

    class Visitor(Agent):
        @rpc.expose
        async def ask(self, other: Any) -> str:
            return str(await other.get_name())

        @rpc.expose
        def get_name(self) -> str:
            return str(self)

    async with containers(*(transport.address() for _ in range(3))) as (first, second, third):
        host, guest = Visitor(second), Visitor(third)
        proxy = await first.connect(host.addr)
        assert await proxy.ask(guest) == str(guest)


class Unfinished(Agent):
    """Forgets to call the constructor of its base."""

    def __init__(self, container: Container) -> None:
        pass


async def test_agent_that_forgets_its_base(transport: Transport) -> None:
    """An agent that was not initialized says so when it is used."""
    async with containers(transport.address()) as (container,):
        agent = Unfinished(container)
        for use in (lambda: agent.addr, lambda: agent.container, lambda: str(agent)):
            with pytest.raises(RuntimeError, match=r"must call super\(\).__init__\(container\) first"):
                use()
        with pytest.raises(TypeError, match=r"\(await it first\)"):
            Agent(coro := Container.create(transport.address(), as_coro=True))  # type: ignore[arg-type]
        coro.close()


# -- Ids -------------------------------------------------------------------------------------------


async def test_ids_count_up_and_are_never_given_twice(transport: Transport) -> None:
    """Agents are numbered in the order of their making, and a number is not used again after a removal."""
    async with containers(transport.address()) as (container,):
        first = [Member(container) for _ in range(3)]
        assert [agent.addr for agent in first] == [f"{container._base_url}{number}" for number in range(3)]
        await container.remove_agent(first[1])
        await container.remove_agent(first[2])
        assert Member(container).addr == f"{container._base_url}3"
        assert list(container.agents.dict) == ["0", "3"]


async def test_named_agents(transport: Transport) -> None:
    """A name is an id for good: numbers go around names that are numbers, and none is given twice."""
    async with containers(transport.address()) as (container,):
        assert Member(container, aid="bob").addr == f"{container._base_url}bob"
        assert Member(container, aid="1").addr.endswith("/1")
        assert [Member(container).addr.rpartition("/")[2] for _ in range(3)] == ["0", "2", "3"]
        for aid in ("bob", "0", "1", "3"):
            with pytest.raises(AgentIdError, match="given before"):
                Member(container, aid=aid)
        for aid in ("bob", "1", "2"):
            await container.remove_agent(aid)
            with pytest.raises(AgentIdError, match="given before"):
                Member(container, aid=aid)
        assert Member(container, aid="4").addr.endswith("/4")
        assert Member(container, aid="05").addr.endswith("/05")
        assert Member(container).addr.endswith("/5")
        assert list(container.agents.dict) == ["0", "3", "4", "05", "5"]


@pytest.mark.parametrize("aid", ["", "a/b", "a b", "a?", "#", "[x]", "\n", 5, b"bob", ["bob"]])
async def test_malformed_ids(aid: Any) -> None:
    """An id that could not be part of a URL is refused, and no agent is registered."""
    async with containers(Transport("local", Path()).address()) as (container,):
        with pytest.raises(AgentIdError, match="must be a non-empty string") as caught:
            Member(container, aid=aid)
        assert isinstance(caught.value, ValueError)
        assert not container.agents.dict


async def test_id_of_many_letters(transport: Transport) -> None:
    """Ids may be in any script."""
    async with containers(transport.address(), transport.address()) as (one, two):
        bob = Member(two, aid="Zähler-٣.ß")
        assert await (await one.connect(bob.addr)).get_name() == str(bob)


def test_agent_needs_a_container() -> None:
    """Something else in place of the container is a ``TypeError``."""
    with pytest.raises(TypeError, match="must be a Container"):
        Agent("container")  # type: ignore[arg-type]


async def test_agent_whose_router_is_none(transport: Transport) -> None:
    """An agent that has replaced its router by something else is not registered."""

    class Broken(Agent):
        router: Any = None

    async with containers(transport.address()) as (container,):
        with pytest.raises(ValueError, match="not a valid router"):
            Broken(container)
        assert not container.agents.dict


# -- Removal and hooks -----------------------------------------------------------------------------


class Hooked(Agent):
    """An agent that writes down what happens to it."""

    def __init__(self, container: Container, log: list[str], name: str = "", **kwds: Any) -> None:
        super().__init__(container, **kwds)
        self.log = log
        self.name = name
        self.log.append(f"made {name}")

    @rpc.expose
    def get_log(self) -> list[str]:
        return self.log


class PlainHooks(Hooked):
    def on_ready(self) -> None:
        self.log.append(f"ready {self.name}")

    def on_stop(self) -> None:
        self.log.append(f"stop {self.name}")


class AsyncHooks(Hooked):
    async def on_ready(self) -> None:
        await asyncio.sleep(0)
        self.log.append(f"ready {self.name}")

    async def on_stop(self) -> None:
        await asyncio.sleep(0)
        self.log.append(f"stop {self.name}")


class FailingHooks(Hooked):
    def on_ready(self) -> None:
        self.log.append(f"ready {self.name}")
        raise ValueError("not ready")

    async def on_stop(self) -> None:
        self.log.append(f"stop {self.name}")
        raise ValueError("cannot stop")


@pytest.mark.parametrize("cls", [PlainHooks, AsyncHooks, FailingHooks])
async def test_hooks_are_called_in_order(
    transport: Transport, cls: type[Hooked], caplog: pytest.LogCaptureFixture
) -> None:
    """``on_ready`` comes after the constructors, ``on_stop`` at the end, in the order of the agents."""
    log: list[str] = []
    async with containers(transport.address()) as (container,):
        made = [cls(container, log, name) for name in "ab"]
        assert log == ["made a", "made b"]
        for agent in made:
            await container._wait_ready(agent)
        assert sorted(log[2:]) == ["ready a", "ready b"]
    assert log[4:] == ["stop a", "stop b"]
    texts = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    if cls is FailingHooks:
        assert texts == [f"{hook} of {agent} failed" for hook in ("on_ready", "on_stop") for agent in made]
    else:
        assert not texts


async def test_removed_agent_is_stopped_and_gone(transport: Transport) -> None:
    """Removal runs ``on_stop``; then nobody reaches the agent, by old proxies or new ones."""
    log: list[str] = []
    async with containers(transport.address(), transport.address()) as (one, two):
        agent = AsyncHooks(two, log, "a")
        proxy = await one.connect(agent.addr)
        await proxy.get_log()
        await two._wait_ready(agent)
        await two.remove_agent(agent)
        assert log[-1] == "stop a"
        with pytest.raises(RemoteLookupError) as caught:
            await proxy.get_log()
        assert caught.value.agent == "0"
        del proxy, caught
        with pytest.raises(AgentNotFoundError):
            await one.connect(agent.addr)
        with pytest.raises(AgentNotFoundError):
            await two.connect(agent.addr)
        for again in (agent, "0", "bob"):
            with pytest.raises(AgentNotFoundError):
                await two.remove_agent(again)
    assert log.count("stop a") == 1


async def test_agent_of_another_container_is_not_removed(transport: Transport) -> None:
    """A container does not take an agent of another for its own one of the same id."""
    async with containers(transport.address(), transport.address()) as (one, two):
        a, b = Member(one), Member(two)
        with pytest.raises(AgentNotFoundError):
            await one.remove_agent(b)
        assert one.agents.dict == {"0": a}
        assert two.agents.dict == {"0": b}


async def test_agent_removed_before_it_was_ready(transport: Transport) -> None:
    """An agent that is removed at once is stopped, but never gets ready."""
    log: list[str] = []
    async with containers(transport.address()) as (container,):
        agent = PlainHooks(container, log, "a")
        await container.remove_agent(agent)
        await asyncio.sleep(0)
        await container._wait_ready(agent)
    assert log == ["made a", "stop a"]


async def test_on_stop_comes_after_on_ready_has_ended(transport: Transport) -> None:
    """An ``on_ready`` that still runs is cancelled before ``on_stop`` is called."""

    class Slow(Hooked):
        async def on_ready(self) -> None:
            self.log.append("begin")
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.sleep(0)
                self.log.append("end")

        def on_stop(self) -> None:
            self.log.append("stop")

    log: list[str] = []
    async with containers(transport.address()) as (container,):
        agent = Slow(container, log, "a")
        await wait_until(lambda: "begin" in log)
        await container.remove_agent(agent)
        assert log == ["made a", "begin", "end", "stop"]
        Slow(container, log, "b")
        await wait_until(lambda: log[-1] == "begin")
    assert log[4:] == ["made b", "begin", "end", "stop"]


async def test_agent_may_remove_itself(transport: Transport) -> None:
    """``on_ready`` and exposed methods may remove their own agent."""

    class Shortlived(Hooked):
        async def on_ready(self) -> None:
            await self.container.remove_agent(self)

        def on_stop(self) -> None:
            self.log.append("stop")

    class Leaver(Hooked):
        @rpc.expose
        async def leave(self) -> str:
            await self.container.remove_agent(self)
            return "bye"

    log: list[str] = []
    async with containers(transport.address(), transport.address()) as (one, two):
        Shortlived(two, log)
        await wait_until(lambda: "stop" in log)
        leaver = await one.connect(Leaver(two, log).addr)
        assert await leaver.leave() == "bye"
        assert not two.agents.dict


async def test_connections_are_open_in_on_stop(transport: Transport) -> None:
    """An agent can say good-bye in ``on_stop``, to others and in its own container."""

    class Polite(Agent):
        def __init__(self, container: Container, *urls: str) -> None:
            super().__init__(container)
            self.urls = urls

        async def on_stop(self) -> None:
            for url in self.urls:
                await (await self.container.connect(url)).keep("bye")

    async with containers(transport.address(), transport.address()) as (one, two):
        here, there = Member(one), Member(two)
        Polite(one, here.addr, there.addr)
        await one.shutdown(as_coro=True)
        assert here.kept == there.kept == ["bye"]


async def test_agents_of_synchronous_code_get_ready(transport: Transport) -> None:
    """``_wait_ready`` returns at once for agents without ``on_ready``, which need no waiting."""
    async with containers(transport.address()) as (container,):
        agent = Member(container)
        await container._wait_ready(agent)


# -- Shutdown --------------------------------------------------------------------------------------


async def test_shutdown_is_idempotent(transport: Transport) -> None:
    """A container may be shut down again, by the same or several callers; afterwards it has no server."""
    async with containers(transport.address(), transport.address()) as (one, two):
        proxy = await one.connect(Member(two).addr)
        await asyncio.gather(*(two.shutdown(as_coro=True) for _ in range(3)))
        await two.shutdown(as_coro=True)
        assert two._tcp_server is None
        assert not two._connections
        await wait_until(lambda: not one._connections)
        await one.shutdown(as_coro=True)
        with pytest.raises(ClosedByUsError, match="shut down"):
            await proxy.get_name()
        with pytest.raises(ClosedByUsError, match="shut down"):
            await one.connect(Member(one).addr)


async def test_second_caller_waits_for_the_end(transport: Transport) -> None:
    """Who calls ``shutdown`` while it is under way returns when it has ended, not before."""
    async with containers(transport.address()) as (container,):
        agent = Hooked(container, [])
        release = asyncio.Event()

        class Slow(Agent):
            async def on_stop(self) -> None:
                await release.wait()

        Slow(container)
        first = asyncio.ensure_future(container.shutdown(as_coro=True))
        await wait_until(lambda: container._tcp_server is None)
        second = asyncio.ensure_future(container.shutdown(as_coro=True))
        await asyncio.sleep(0.01)
        assert not second.done()
        release.set()
        await asyncio.gather(first, second)
        assert str(agent)


async def test_shutdown_fails_calls_that_wait(transport: Transport) -> None:
    """Calls in both directions fail, and handlers are cancelled."""
    async with containers(transport.address(), transport.address()) as (one, two):
        a, b = Member(one), Member(two)
        ours = (await two.connect(a.addr)).wait()
        theirs = (await one.connect(b.addr)).wait()
        await wait_until(lambda: a.kept and b.kept)
        await two.shutdown(as_coro=True, grace=0)
        for reply in (ours, theirs):
            with pytest.raises(ConnectionResetError) as caught:
                await reply
            assert isinstance(caught.value, ChannelClosedError)
        assert b.is_cancelled.is_set()
        await a.is_cancelled.wait()


async def test_shutdown_while_connecting(transport: Transport) -> None:
    """Attempts to connect that are under way fail at once, however long they would go on."""
    async with containers(transport.address(), transport.address()) as (one, two):
        await two.shutdown(as_coro=True)
        tasks = [asyncio.ensure_future(one.connect(two._base_url + "0", timeout)) for timeout in (None, 100)]
        await asyncio.sleep(0.01)
        await one.shutdown(as_coro=True)
        for task in tasks:
            with pytest.raises(ClosedByUsError, match="shut down"):
                await task


async def test_shutdown_from_within_an_exposed_method(transport: Transport) -> None:
    """An agent may end its container when it is called from outside, or from inside."""
    async with containers(transport.address(), transport.address(), transport.address()) as (one, two, three):
        b, c = Member(two), Member(three)
        with pytest.raises(ConnectionResetError):
            await (await one.connect(b.addr)).shut_down()
        await b.event.wait()
        assert two._tcp_server is None
        with pytest.raises(ConnectionResetError):
            await (await three.connect(c.addr)).shut_down()
        await c.event.wait()
        assert three._tcp_server is None


async def test_shutdown_from_within_hooks(transport: Transport) -> None:
    """Hooks may end their container, also while it is being ended already."""

    class Ender(Hooked):
        async def on_ready(self) -> None:
            try:
                await asyncio.sleep(0)
                await self.container.shutdown(as_coro=True)
            finally:
                await self.container.shutdown(as_coro=True)
                self.log.append("ready")

        async def on_stop(self) -> None:
            await self.container.shutdown(as_coro=True)
            self.log.append("stop")

    log: list[str] = []
    async with containers(transport.address()) as (container,):
        agent = Ender(container, log, "a")
        await container._wait_ready(agent)
        assert log == ["made a", "stop", "ready"]
    async with containers(transport.address()) as (container,):
        Ender(container, log, "b")
        await container.shutdown(as_coro=True)
    assert log[3:] == ["made b", "stop"]


async def test_two_handlers_shut_down_at_once(transport: Transport) -> None:
    """Handlers that both end their container do not wait for each other for ever."""
    async with containers(transport.address(), transport.address()) as (one, two):
        b, c = Member(two), Member(two)
        to_b, to_c = await one.connect(b.addr), await one.connect(c.addr)
        results = await asyncio.gather(to_b.shut_down(), to_c.shut_down(), return_exceptions=True)
        assert all(result is None or isinstance(result, ConnectionResetError) for result in results)
        await b.event.wait()


async def test_shutdown_with_a_handler_that_ignores_its_cancellation(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that goes on although it was cancelled delays the end by the grace only, and is named."""
    monkeypatch.setattr("aiomas_ng._io.connection.CLOSE_GRACE", 0.05)
    release, is_running = asyncio.Event(), asyncio.Event()

    class Stubborn(Agent):
        @rpc.expose
        async def work(self) -> None:
            is_running.set()
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()
            is_running.clear()

    async with containers(transport.address(), transport.address()) as (one, two):
        call = (await one.connect(Stubborn(two).addr)).work()
        await is_running.wait()
        await two.shutdown(as_coro=True, grace=0)
        with pytest.raises(ConnectionResetError):
            await call
        assert is_running.is_set()
        assert "Stubborn" in caplog.text or "goes on" in caplog.text
        release.set()
        await wait_until(lambda: not is_running.is_set())


async def test_cancelled_shutdown_still_closes(transport: Transport) -> None:
    """Cancelling a shutdown skips the hooks that still run, and closes everything nevertheless."""

    class Endless(Agent):
        async def on_stop(self) -> None:
            await asyncio.get_running_loop().create_future()

    async with containers(transport.address(), transport.address()) as (one, two):
        proxy = await one.connect(Member(two).addr)
        Endless(two)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await two.shutdown(as_coro=True)
        await two.shutdown(as_coro=True)
        assert not two._connections
        await wait_until(lambda: not one._connections)
        with pytest.raises(ConnectionRefusedError):
            await proxy.get_name()


async def test_port_is_free_at_once(transport: Transport) -> None:
    """A container can be made where another one was just shut down, with connections open or not."""
    base_url: Any = transport.address()
    for _ in range(10):
        async with containers(base_url, transport.address()) as (container, other):
            base_url = container._base_url
            proxy = await other.connect(Member(container).addr)
            assert await proxy.get_name() == f"Member('{base_url}0')"


async def test_address_that_is_taken(transport: Transport) -> None:
    """Two containers cannot listen at one address, and the second one leaves nothing behind."""
    async with containers(transport.address()) as (one,):
        with pytest.raises(AddressInUseError) as caught:
            await Container.create(one._base_url, as_coro=True)
        assert isinstance(caught.value, OSError)
        assert await (await one.connect(Member(one).addr)).get_name()


# -- Creation --------------------------------------------------------------------------------------


def test_synchronous_use(transport: Transport) -> None:
    """Without a running loop, creation and shutdown block; it works again and again."""
    for _ in range(2):
        container = Container.create(transport.address())
        member = Member(container)

        async def main(url: str, container: Container = container) -> Any:
            return await (await container.connect(url)).get_name()

        assert aiomas_ng.run(main(member.addr)) == str(member)
        container.shutdown()
        container.shutdown()
        assert container._tcp_server is None


def test_synchronous_use_of_a_given_loop(transport: Transport) -> None:
    """The loop can be given."""
    loop = asyncio.new_event_loop()
    container = Container.create(transport.address(), loop=loop)
    assert container.loop is loop
    container.shutdown()
    loop.close()


async def test_blocking_use_in_a_running_loop_says_what_to_do(transport: Transport) -> None:
    """Who forgets ``as_coro=True`` is told so, instead of a riddle."""
    with pytest.raises(RuntimeError, match="as_coro=True"):
        Container.create(transport.address())
    async with containers(transport.address()) as (container,):
        with pytest.raises(RuntimeError, match="as_coro=True"):
            container.shutdown()
        assert container._tcp_server is not None


async def test_container_shows_its_parts(transport: Transport) -> None:
    """A container has its loop and clock, and shows its address."""
    clock = clocks.ExternalClock("2026-01-01T00:00:00+00:00")
    async with containers(transport.address(), clock=clock) as (container,):
        assert container.loop is asyncio.get_running_loop()
        assert container.clock is clock
        assert str(container) == f"Container({container._base_url!r})"
        agent = Member(container)
        assert agent.container is container
        assert str(agent) == f"Member({agent.addr!r})"
        with pytest.raises(RuntimeError, match="server already"):
            container.set_server(container._tcp_server)  # type: ignore[arg-type]
    async with containers(transport.address()) as (container,):
        assert type(container.clock) is clocks.AsyncioClock


@pytest.mark.parametrize(
    "codec",
    [codecs.JSON, codecs.MsgPack, pytest.param(codecs.MsgPackBlosc, marks=pytest.mark.needs("blosc2"))],
)
async def test_codec_and_serializers(transport: Transport, codec: Any) -> None:
    """The codec is used for all connections, with one's own serializers and one for dates."""
    import arrow

    kwds: dict[str, Any] = {"codec": codec, "extra_serializers": [Reading.__serializer__]}  # type: ignore[attr-defined]
    async with containers(transport.address(), transport.address(), **kwds) as (one, two):
        member = Member(two)
        for proxy in (await one.connect(member.addr), await two.connect(member.addr)):
            date = arrow.get("2026-01-01T00:00:00+02:00")
            await proxy.keep(Reading(5, date))
            value = member.kept.pop()
            assert (type(value), value.kw, value.date) == (Reading, 5, date)


@codecs.serializable
class Reading:
    """A value with a serializer."""

    def __init__(self, kw: float, date: Any) -> None:
        self.kw = kw
        self.date = date


async def test_limits_hold_for_all_connections(transport: Transport) -> None:
    """Limits given to a container are those of each of its connections, also of that to itself."""
    async with containers(transport.address(), transport.address(), limits=Limits(calls=1)) as (one, two):
        member = Member(two)
        for proxy in (await one.connect(member.addr), await two.connect(member.addr)):
            reply = proxy.wait()
            with pytest.raises(aiomas_ng.exceptions.OverloadError):
                proxy.get_name()
            reply.cancel()


async def test_constructor_that_fails_leaves_nothing(transport: Transport) -> None:
    """If the constructor of a subclass fails, its server is closed."""

    class Broken(Container):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            raise ValueError("broken")

    address = transport.address()
    with pytest.raises(ValueError, match="broken"):
        await Broken.create(address, as_coro=True)
    async with containers(address):
        pass


async def test_port_zero(transport: Transport) -> None:
    """With port 0, the agents' addresses have the port that the system gave."""
    async with containers(("127.0.0.1", 0), ("127.0.0.1", "0")) as (one, two):
        for container, other in ((one, two), (two, one)):
            assert not container._base_url.endswith(":0/")
            member = Member(container)
            assert await (await other.connect(member.addr)).get_name() == str(member)


@pytest.mark.parametrize("host", [None, "", "0.0.0.0", "::"])
async def test_wildcard_hosts(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On all interfaces, the agents' addresses have the machine's name."""
    monkeypatch.setattr(socket, "getfqdn", lambda: "localhost")
    async with containers((host, 0), ("127.0.0.1", 0)) as (container, other):
        port = container._tcp_server.address.place[1]  # type: ignore[union-attr]
        assert container._base_url == f"tcp://localhost:{port}/"
        member = Member(container)
        assert await (await container.connect(member.addr)).get_name() == str(member)
        if host != "::":
            assert await (await other.connect(f"tcp://127.0.0.1:{port}/0")).get_name() == str(member)


def has_ipv6() -> bool:
    """Return whether this machine can listen at ``::1``."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


if has_ipv6():

    async def test_ipv6() -> None:
        """Addresses of IPv6 have brackets, and can be connected to."""
        async with containers(("::1", 0), ("::1", 0)) as (one, two):
            member = Member(two)
            assert member.addr.startswith("tcp://[::1]:")
            proxy = await one.connect(member.addr)
            assert await proxy.get_name() == str(member)
            assert await proxy.ask(Member(one)) == f"Member({one._base_url + '0'!r})"
            assert await (await two.connect(member.addr)).get_name() == str(member)


@pytest.mark.parametrize(
    ("addr", "url"),
    [
        (("localhost", 5555), "tcp://localhost:5555/"),
        (("localhost", "5555"), "tcp://localhost:5555/"),
        (["10.0.0.1", 1], "tcp://10.0.0.1:1/"),
        (("::1", 5555), "tcp://[::1]:5555/"),
        ("/tmp/x", "ipc://[/tmp/x]/"),
        (Path("/tmp/x"), "ipc://[/tmp/x]/"),
        ("tcp://a:1", "tcp://a:1/"),
        ("local://q/", "local://q/"),
    ],
)
def test_base_url(addr: Any, url: str) -> None:
    """The base URL of an address is the address, exactly as it was given."""
    assert agents._get_base_url(addr) == url
    assert agents._get_base_url(aiomas_ng.get_queue("q")) == "local://q/"


@pytest.mark.parametrize(
    "addr", [None, 5, (), ("localhost",), ("localhost", -1), ("localhost", "x"), "", b"x"]
)
async def test_malformed_address(addr: Any) -> None:
    """What is no address is a ``ValueError``, and nothing is opened."""
    with pytest.raises(AddressError):
        await Container.create(addr, as_coro=True)


# -- TLS -------------------------------------------------------------------------------------------


class Authority:
    """Certificates of one authority, as files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(directory / "ca.pem")
        self.count = 0

    def issue(self, *names: str) -> SSLCerts:
        """Return the files of a certificate for *names*."""
        self.count += 1
        cert = self.ca.issue_cert(*names)
        chain, key = (self.directory / f"{self.count}.{kind}" for kind in ("pem", "key"))
        cert.private_key_pem.write_to_path(key)
        for blob in cert.cert_chain_pems:
            blob.write_to_path(chain, append=True)
        return SSLCerts(str(self.directory / "ca.pem"), str(chain), str(key))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that issues certificates."""
    return Authority(tmp_path / "authority")


def contexts_of(certs: SSLCerts) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of server and client."""
    return aiomas_ng.make_ssl_server_context(*certs), aiomas_ng.make_ssl_client_context(*certs)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("as_contexts", [False, True], ids=["files", "contexts"])
async def test_tls_between_containers(
    authority: Authority, directory: Path, kind: str, as_contexts: bool
) -> None:
    """Containers with certificates of one authority talk over TLS 1.3, third parties as well."""
    address = Transport(kind, directory).address
    certs = authority.issue("127.0.0.1", "localhost")
    tls: Any = contexts_of(certs) if as_contexts else certs
    async with containers(address(), address(), address(), ssl=tls) as (one, two, three):
        b, c = Member(two), Member(three)
        to_b, to_c = await one.connect(b.addr), await one.connect(c.addr)
        assert await to_b.get_name() == str(b)
        assert await to_b.ask(to_c) == str(c)
        for client in (*one._connections, *two._connections):
            assert client.channel.get_extra_info("ssl_object").version() == "TLSv1.3"
        before = count_sockets()
        assert await (await two.connect(b.addr)).get_name() == str(b)
        assert count_sockets() == before


async def test_tls_refuses_strangers(authority: Authority, tmp_path: Path) -> None:
    """Who has no certificate, one of another authority, or one for another host, gets no connection."""
    asyncio.get_running_loop().set_debug(False)  # else asyncio logs each refusal as an error
    certs = authority.issue("127.0.0.1")
    strangers = Authority(tmp_path / "strangers").issue("127.0.0.1")
    async with containers(("127.0.0.1", 0), ssl=certs) as (container,):
        member = Member(container)
        nobody = ssl.create_default_context(cafile=certs.cafile)
        for tls in ((contexts_of(certs)[0], nobody), strangers, None):
            async with containers(("127.0.0.1", 0), ssl=tls) as (stranger,):
                with pytest.raises(ConnectionError):
                    await asyncio.wait_for(stranger.connect(member.addr), 10)
        async with containers(("127.0.0.1", 0), ssl=authority.issue("127.0.0.1")) as (friend,):
            assert await (await friend.connect(member.addr)).get_name() == str(member)
    async with (
        containers(("127.0.0.1", 0), ssl=authority.issue("example.org")) as (liar,),
        containers(("127.0.0.1", 0), ssl=certs) as (friend,),
    ):
        sockets = count_sockets()
        with pytest.raises(ConnectError, match="certificate"):
            await friend.connect(Member(liar).addr)
        await wait_until(lambda: count_sockets() == sockets)


@pytest.mark.parametrize("tls", [True, "certs", (1, 2), (None,), [1]])
def test_tls_that_is_neither_files_nor_contexts(tls: Any) -> None:
    """Something else as ``ssl`` is a ``TypeError``."""
    with pytest.raises(TypeError, match="SSLCerts"):
        Container.create(("127.0.0.1", 0), ssl=tls)


async def test_tls_is_not_for_local_queues(authority: Authority) -> None:
    """A container with TLS talks to one in the same process, on a LocalQueue, without it."""
    certs = authority.issue("127.0.0.1")
    async with (
        containers(("127.0.0.1", 0), ssl=certs) as (one,),
        containers(Transport("local", Path()).address()) as (two,),
    ):
        member = Member(two)
        assert await (await one.connect(member.addr)).get_name() == str(member)


async def test_proxy_handed_on_over_tls_by_a_plain_client(authority: Authority) -> None:
    """A client that speaks TLS reaches third parties with the same context."""
    server_tls, client_tls = contexts_of(authority.issue("127.0.0.1"))

    class Introducer:
        router = rpc.Service()

        @rpc.expose
        def get_other(self) -> Any:
            return other.remote

    class Other:
        router = rpc.Service()

        @rpc.expose
        def get_number(self) -> int:
            return 5

    first = await rpc.start_server(("127.0.0.1", 0), Introducer(), ssl=server_tls)
    second = await rpc.start_server(("127.0.0.1", 0), Other(), ssl=server_tls)
    other = await rpc.open_connection(second.url, ssl=client_tls)
    client = await rpc.open_connection(first.url, ssl=client_tls)
    proxy = await client.remote.get_other()
    assert await proxy.get_number() == 5
    for end in (client, other):
        await end.close()
    for server in (first, second):
        server.close()


def test_nothing_is_kept_of_a_container(arun: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
    """A container that was shut down, and its agents, are freed."""
    import weakref

    async def main() -> list[weakref.ref[Any]]:
        async with containers(("127.0.0.1", 0), ("127.0.0.1", 0)) as (one, two):
            a, b = Member(one), AsyncHooks(two, [])
            await (await one.connect(b.addr)).get_log()
            await (await two.connect(a.addr)).get_name()
            return [weakref.ref(one), weakref.ref(two), weakref.ref(a), weakref.ref(b)]

    references = arun(main())
    gc.collect()
    assert [reference() for reference in references] == [None] * 4
