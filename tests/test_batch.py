"""Batches: many calls that are handed over at once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest
from conftest import Transport
from faults import (
    CANCEL,
    EXCEPTION,
    MESSAGE,
    REQUEST,
    RESULT,
    SESSION,
    STREAM,
    RawPeer,
    encode,
    open_faulty_link,
    open_raw_client,
    open_raw_server,
)
from waiting import wait_until

from aiomas_ng import JSON, Agent, Container, codecs, expose, rpc
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import (
    CallTimeoutError,
    ChannelClosedError,
    FrameTooLargeError,
    MalformedFrameError,
    OverloadError,
    RemoteException,
    RemoteOverloadError,
    RemoteSerializationError,
    SerializationError,
)

HOST = ("127.0.0.1", 0)


class Workshop:
    """A service with functions of every sort."""

    router = rpc.Service(["shelf"])

    def __init__(self) -> None:
        self.shelf = rpc.ServiceDict({"get": expose(lambda: "shelf")})
        self.notes: list[Any] = []
        self.working = 0
        self.most_working = 0
        self.cancelled = 0
        self.event = asyncio.Event()
        self.leave: Callable[[], Any] | None = None

    @expose
    def add(self, a: Any, b: Any = 1) -> Any:
        return a + b

    @expose
    async def add_later(self, a: Any, turns: int = 1) -> Any:
        for _ in range(turns):
            await asyncio.sleep(0)
        return a

    @expose
    def echo(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    @expose
    def note(self, value: Any) -> Any:
        self.notes.append(value)
        return value

    @expose
    async def work(self, value: Any = None) -> Any:
        self.working += 1
        self.most_working = max(self.most_working, self.working)
        try:
            await self.event.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.working -= 1
        return value

    @expose
    async def refuse_to_stop(self) -> str:
        self.working += 1
        try:
            await self.event.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
        self.working -= 1
        return "done all the same"

    @expose
    def start_work(self) -> Any:
        return asyncio.ensure_future(self.work("a future"))

    @expose
    def fail(self, text: str = "bad") -> None:
        raise ValueError(text)

    @expose
    async def fail_later(self, text: str = "bad") -> None:
        await asyncio.sleep(0)
        raise ValueError(text)

    @expose
    def be_cancelled(self) -> None:
        raise asyncio.CancelledError("by someone else")

    @expose
    async def be_cancelled_later(self) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    @expose
    def get_nothing_to_encode(self) -> Any:
        return [object()]

    @expose
    async def get_nothing_to_encode_later(self) -> Any:
        return [object()]

    @expose
    def get_bytes(self, size: int) -> bytes:
        return bytes(size)

    @expose
    async def count(self, stop: int) -> AsyncIterator[int]:
        for number in range(stop):
            yield number

    @expose
    async def get_count(self, stop: int) -> Any:
        return self.count(stop)

    @expose
    async def shut_door(self) -> None:
        assert self.leave is not None
        await self.leave()

    def hidden(self) -> None: ...


class Link:
    """Both ends of a connection, each of which knows that the other is ours."""

    def __init__(self, client: rpc.RpcClient, end: rpc.RpcClient, service: Workshop) -> None:
        self.client = client
        self.end = end
        self.service = service
        self.remote = client.remote

    def count_requests(self) -> int:
        """Return the number of requests that were sent."""
        return self.client.channel._exchange._next_id

    def assert_idle(self) -> None:
        """Nothing is worked on for the client, and it waits for nothing."""
        assert not self.end.channel._running
        assert not self.end.channel._exchange.jobs
        assert self.end.channel._batched == 0
        assert not self.client.channel._exchange.calls


@contextlib.asynccontextmanager
async def open_workshop(transport: Any, **kwds: Any) -> AsyncIterator[Link]:
    """Give both ends of a connection to a workshop."""
    service = Workshop()
    ends: asyncio.Queue[rpc.RpcClient] = asyncio.Queue()
    async with await rpc.start_server(transport.address(), service, ends.put_nowait, **kwds) as server:
        client = await rpc.open_connection(server.url, **kwds)
        end = await ends.get()
        try:
            assert await client.remote.add(1) == 2
            yield Link(client, end, service)
        finally:
            await client.close()
            await end.close()


# -- Results ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [codecs.MsgPack, JSON])
async def test_results_are_in_the_order_of_the_calls(transport: Transport, codec: type[codecs.Codec]) -> None:
    """The calls may be of any functions, plain or not; each result is where its call was. All go as one
    request."""
    async with open_workshop(transport, codec=codec) as link:
        remote = link.remote
        before = link.count_requests()
        results = await rpc.batch(
            [
                partial(remote.add, 1),
                partial(remote.add_later, "slow", turns=20),
                partial(remote.add, 1, b=2),
                remote.shelf.get,
                partial(remote.add_later, "fast"),
                partial(remote.shelf.get),
                partial(partial(remote.add, 5), 6),
                partial(remote.note, None),
            ]
        )
        assert results == [2, "slow", 3, "shelf", "fast", "shelf", 11, None]
        assert link.count_requests() == before + 1
        link.assert_idle()


async def test_arguments_are_as_in_single_calls(transport: Transport) -> None:
    """Arguments by position and by name arrive as they do in a call by itself."""
    async with open_workshop(transport) as link:
        echo = link.remote.echo
        for args, kwargs in [
            ((), {}),
            ((1, "ü", None, [2, (3,)]), {}),
            ((), {"path": 2, "args": 3, "kwargs": 4, "": 5}),
            ((b"bytes", 2**70, {1: {}}), {"k": {"nested": [1.5]}}),
        ]:
            alone = await echo(*args, **kwargs)
            assert await rpc.batch([partial(echo, *args, **kwargs)] * 2) == [alone, alone]


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 129, 1000])
async def test_any_number_of_calls(transport: Transport, count: int) -> None:
    """64 calls go in a request; a generator is as good as a list, and an empty batch is a batch."""
    async with open_workshop(transport) as link:
        before = link.count_requests()
        add = link.remote.add
        assert await rpc.batch(partial(add, number) for number in range(count)) == list(range(1, count + 1))
        assert link.count_requests() == before + -(-count // 64)
        link.assert_idle()


async def test_ten_thousand_calls() -> None:
    """A large batch needs no more calls in flight than it has requests, and is executed in order."""
    async with open_workshop(Transport("tcp", None), limits=Limits(calls=160)) as link:  # type: ignore[arg-type]
        results = await rpc.batch(partial(link.remote.note, number) for number in range(10_000))
        assert results == link.service.notes == list(range(10_000))
        link.assert_idle()


async def test_batches_at_the_same_time(transport: Transport) -> None:
    """Batches and single calls share a connection; each gets its own results."""
    async with open_workshop(transport) as link:
        remote = link.remote
        outcomes = await asyncio.gather(
            rpc.batch(partial(remote.add_later, (1, n), n % 7) for n in range(100)),
            remote.add(1),
            rpc.batch(partial(remote.add, (2, n), ()) for n in range(100)),
            remote.add_later(5, 3),
            rpc.batch([]),
        )
        assert outcomes == [
            [(1, n) for n in range(100)],
            2,
            [(2, n) for n in range(100)],
            5,
            [],
        ]
        link.assert_idle()


async def test_async_methods_of_a_batch_run_at_the_same_time(transport: Transport) -> None:
    """None of them waits for the end of another, in whichever of the requests they are; plain calls are
    executed meanwhile."""
    async with open_workshop(transport) as link:
        remote = link.remote
        task = asyncio.create_task(
            rpc.batch(partial(remote.work if n % 2 else remote.note, n) for n in range(300))
        )
        await wait_until(lambda: link.service.working == 150)
        assert link.service.notes == list(range(0, 300, 2))
        assert await remote.add(1) == 2
        link.service.event.set()
        assert await task == list(range(300))
        link.assert_idle()


async def test_a_function_may_return_a_future(transport: Transport) -> None:
    """What a plain function returns to be awaited is awaited."""
    async with open_workshop(transport) as link:
        task = asyncio.create_task(rpc.batch([link.remote.start_work, partial(link.remote.note, 1)]))
        await wait_until(lambda: link.service.working)
        link.service.event.set()
        assert await task == ["a future", 1]


async def test_services_and_proxies_in_a_batch(transport: Transport) -> None:
    """A service as an argument or a result of a call in a batch is a proxy at the other side."""
    ours = Workshop()

    class Clerk:
        router = rpc.Service()

        @expose
        def get_self(self) -> Clerk:
            return self

        @expose
        async def ask(self, other: Any, value: Any) -> Any:
            return await rpc.batch(partial(other.add, value, n) for n in range(3))

    async with await rpc.start_server(transport.address(), Clerk()) as server:
        client = await rpc.open_connection(server.url, rpc_service=ours)
        first, second = await rpc.batch([client.remote.get_self, client.remote.get_self])
        assert isinstance(first, rpc.Proxy)
        assert first == second
        assert await rpc.batch([partial(first.ask, ours, 1), partial(second.ask, ours, 10)]) == [
            (1, 2, 3),
            (10, 11, 12),
        ]
        await client.close()


# -- Order and places ------------------------------------------------------------------------------


async def test_calls_of_all_functions_are_executed_in_order(transport: Transport) -> None:
    """Calls at one place are executed in the order of the batch, also beyond one request, and between calls
    that were made before and after it."""
    async with open_workshop(transport) as link:
        note, echo = link.remote.note, link.remote.echo
        before = note("before")
        task = asyncio.create_task(rpc.batch(partial(note if n % 3 else echo, n) for n in range(200)))
        await asyncio.sleep(0)
        after = note("after")
        await task
        assert [await before, await after] == ["before", "after"]
        assert link.service.notes == ["before", *(n for n in range(200) if n % 3), "after"]


@pytest.mark.parametrize("options", [{"oneway": True}, {"timeout": 20}])
async def test_calls_with_options_keep_their_place(transport: Transport, options: dict[str, Any]) -> None:
    """Calls through proxies with and without options, over one connection, are executed in the order of the
    batch."""
    async with open_workshop(transport) as link:
        plain, special = link.remote.note, rpc.with_options(link.remote.note, **options)
        results = await rpc.batch(partial(special if n in (1, 4) else plain, n) for n in range(6))
        assert results == ([0, None, 2, 3, None, 5] if "oneway" in options else list(range(6)))
        assert link.service.notes == list(range(6))


async def test_one_way_calls_in_a_batch(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """One-way calls have ``None`` for a result, are executed, and their errors are logged by the peer."""
    async with open_workshop(transport) as link:
        remote = rpc.with_options(link.remote, oneway=True)
        calls = [partial(remote.note, 1), remote.fail, partial(remote.note, 2)]
        assert await rpc.batch(calls, timeout=20) == [None] * 3
        assert await link.remote.note(3) == 3
        assert link.service.notes == [1, 2, 3]
    assert [record.getMessage().split(" from")[0] for record in caplog.records] == ["a one-way call"]


class Member(Agent):
    """An agent."""

    def __init__(self, container: Container, log: list[Any] | None = None) -> None:
        super().__init__(container)
        self.log = log if log is not None else []
        self.others: list[Any] = []

    @expose
    def note(self, value: Any) -> Any:
        self.log.append(value)
        return value

    @expose
    async def note_later(self, value: Any) -> Any:
        await asyncio.sleep(0)
        return value

    @expose
    def get_self(self) -> Member:
        return self

    @expose
    async def remove(self, aid: str) -> None:
        await self.container.remove_agent(aid)

    @expose
    def remove_now(self, aid: str) -> None:
        coro = self.container.remove_agent(aid)
        with contextlib.suppress(StopIteration):  # it has nothing to wait for
            coro.send(None)

    @expose
    async def forward(self, values: Any) -> Any:
        return await rpc.batch(partial(other.note, value) for other in self.others for value in values)


@contextlib.asynccontextmanager
async def containers(transport: Transport, count: int, **kwds: Any) -> AsyncIterator[list[Container]]:
    """Make some containers."""
    made = []
    try:
        for _ in range(count):
            made.append(await Container.create(transport.address(), as_coro=True, **kwds))
        yield made
    finally:
        for container in made:
            await container.shutdown(as_coro=True)


@pytest.mark.parametrize("codec", [codecs.MsgPack, JSON])
async def test_several_places_at_once(transport: Transport, codec: type[codecs.Codec]) -> None:
    """Calls of one batch may go to several containers, to the own one, and to one that is not connected yet;
    they work at the same time, and the results are in order."""
    async with containers(transport, 3, codec=codec) as (own, second, third):
        agents = [Member(container) for container in (own, second, third, own)]
        proxies = [await own.connect(agent.addr) for agent in agents]
        # The proxy of a third party is connected to when it is called first.
        unconnected = await (await third.connect(agents[2].addr)).get_self()
        agents[1].others = proxies
        proxies.append(await proxies[2].get_self())
        del unconnected
        calls = [partial(proxies[n % 5].note if n % 3 else proxies[n % 5].note_later, n) for n in range(500)]
        assert await rpc.batch(calls) == list(range(500))
        for index, agent in enumerate(agents):
            expected = [n for n in range(500) if n % 3 and (n % 5 == index or (index == 2 and n % 5 == 4))]
            assert sorted(agent.log) == expected


async def test_an_unconnected_place(transport: Transport) -> None:
    """A batch over a proxy of a third party that nobody has connected to connects first; order is kept."""
    async with containers(transport, 3) as (own, second, third):
        target, relay = Member(third), Member(second)
        relay.others = []

        class Giver(Agent):
            @expose
            async def get_other(self) -> Any:
                return await self.container.connect(target.addr)

        giver = await own.connect(Giver(second).addr)
        proxy = await giver.get_other()
        assert proxy._link.channel is None
        assert await rpc.batch(partial(proxy.note, n) for n in range(150)) == list(range(150))
        assert target.log == list(range(150))
        # Now it is connected, and is known to be ours.
        assert await rpc.batch(partial(proxy.note, n) for n in range(150)) == list(range(150))
        await third.shutdown(as_coro=True)
        errors = await rpc.batch([partial(proxy.note, 1), partial(proxy.note, 2)], return_exceptions=True)
        assert [isinstance(error, ConnectionError) for error in errors] == [True, True]


async def test_two_ways_to_the_same_place_keep_the_order(transport: Transport) -> None:
    """Proxies that were got in different ways, but use one connection, are no reason for another order."""
    async with containers(transport, 2) as (own, other):
        for home in (own, other):
            agent = Member(home)
            connected = await own.connect(agent.addr)
            received = await connected.get_self()
            assert received == connected
            await rpc.batch(partial(received.note if n in (1, 3, 4) else connected.note, n) for n in range(6))
            assert agent.log == list(range(6))


async def test_a_batch_within_a_handler(transport: Transport) -> None:
    """A handler may make a batch of calls, also at the agents of its own container and at itself."""
    async with containers(transport, 2) as (own, other):
        agents = [Member(other) for _ in range(3)]
        agents[0].others = [await other.connect(agent.addr) for agent in agents]
        agents[0].others.append(await other.connect(Member(own).addr))
        proxy = await own.connect(agents[0].addr)
        assert await rpc.batch([partial(proxy.forward, [1, 2])] * 2) == [(1, 2) * 4] * 2


async def test_an_agent_that_is_removed_in_mid_batch(transport: Transport) -> None:
    """What is called after the agent has gone fails, if nothing of it had been called in that request before;
    all other calls are fine, and so is the batch after."""
    async with containers(transport, 2) as (own, other):
        remover, victim = Member(other), Member(other)
        aid = victim.addr.rpartition("/")[2]
        first, second = await own.connect(remover.addr), await own.connect(victim.addr)
        results = await rpc.batch(
            [
                partial(first.note, 1),
                partial(first.remove_now, aid),
                partial(second.note, 2),
                partial(first.note, 3),
            ],
            return_exceptions=True,
        )
        assert results[:2] + results[3:] == [1, None, 3]
        assert isinstance(results[2], LookupError)
        assert results[2].path == f"agents/{aid}/note"
        assert remover.log == [1, 3]
        assert victim.log == []
        results = await rpc.batch([partial(second.note, 4), partial(first.note, 5)], return_exceptions=True)
        assert isinstance(results[0], LookupError)
        assert results[1] == 5


async def test_an_agent_that_is_removed_by_an_async_call_of_the_batch(transport: Transport) -> None:
    """An async call that removes an agent ends well for itself and for the others."""
    async with containers(transport, 2) as (own, other):
        remover, victim = Member(other), Member(other)
        aid = victim.addr.rpartition("/")[2]
        first, second = await own.connect(remover.addr), await own.connect(victim.addr)
        calls = [partial(first.remove, aid), partial(second.note_later, 1), partial(first.remove, aid)]
        results = await rpc.batch(calls, return_exceptions=True)
        assert results[:2] == [None, 1]
        assert isinstance(results[2], RemoteException)
        assert "AgentNotFoundError" in results[2].type_name


# -- Foreign peers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", ["json", "msgpack"])
async def test_a_foreign_peer_gets_single_requests(transport: Transport, speaks: str) -> None:
    """A peer that has not shown itself to be ours gets each call as a request; its replies come in any
    order, and its failures belong to their calls."""
    async with open_raw_server(transport, speaks) as (channel, peer):
        remote = rpc.RpcClient(channel).remote
        task = asyncio.create_task(
            rpc.batch((partial(remote.get, n, k=n) for n in range(70)), return_exceptions=True)
        )
        requests = [await peer.recv() for _ in range(70)]
        assert [request[2] for request in requests] == [["get", [n], {"k": n}] for n in range(70)]
        assert {request[0] for request in requests} == {REQUEST}
        for number, request in reversed(list(enumerate(requests))):
            if number == 3:
                peer.send(EXCEPTION, request[1], "Traceback: bad")
            else:
                peer.send(RESULT, request[1], number)
        results = await task
        error = results.pop(3)
        assert results == [n for n in range(70) if n != 3]
        assert isinstance(error, RemoteException)
        assert (error.path, error.message) == ("get", "Traceback: bad")
        assert not peer.frames


async def test_a_timeout_at_a_foreign_peer(transport: Transport) -> None:
    """The timeout holds there as well; nothing but the requests is sent."""
    async with open_raw_server(transport, "json") as (channel, peer):
        remote = rpc.RpcClient(channel).remote
        results = await rpc.batch(
            (partial(remote.get, n) for n in range(3)), timeout=0.02, return_exceptions=True
        )
        assert [type(result) for result in results] == [CallTimeoutError] * 3
        assert "the call of 'get'" in str(results[0])
        call = remote.get(3)
        for number in range(3):
            assert (await peer.recv())[2] == ["get", [number], {}]
        request = await peer.recv()
        assert request[2] == ["get", [3], {}]
        peer.send(RESULT, request[1], 3)
        assert await call == 3


# -- Errors ----------------------------------------------------------------------------------------

FAILURES: dict[str, Callable[[rpc.Proxy], Any]] = {
    "plain": lambda remote: partial(remote.fail, "é"),
    "async": lambda remote: partial(remote.fail_later, "é"),
    "unknown": lambda remote: partial(remote.unknown, 1),
    "unknown below": lambda remote: remote.shelf.unknown,
    "hidden": lambda remote: remote.hidden,
    "service": lambda remote: remote.shelf,
    "too few arguments": lambda remote: remote.add,
    "too many arguments": lambda remote: partial(remote.add, 1, 2, 3),
    "unknown argument": lambda remote: partial(remote.add, 1, c=2),
    "too few arguments, async": lambda remote: remote.add_later,
    "wrong type": lambda remote: partial(remote.add, 1, "b"),
    "unencodable": lambda remote: remote.get_nothing_to_encode,
    "unencodable, async": lambda remote: remote.get_nothing_to_encode_later,
    "cancelled": lambda remote: remote.be_cancelled,
    "cancelled, async": lambda remote: remote.be_cancelled_later,
    "builtin": lambda remote: remote.shelf.get.unknown,
}


@pytest.mark.parametrize("name", FAILURES)
async def test_an_error_is_that_of_a_single_call(transport: Transport, name: str) -> None:
    """Type, message, path, origin and traceback of a call's error are those that it has by itself, and no
    other call is harmed."""
    async with open_workshop(transport) as link:
        call = FAILURES[name](link.remote)
        with pytest.raises(RemoteException) as caught:
            await call()
        alone = caught.value
        work = partial(link.remote.add_later, 1)
        results = await rpc.batch(
            [work, call, partial(link.remote.add, 1), call, work], return_exceptions=True
        )
        assert results[::2] == [1, 2, 1]
        for error in results[1::2]:
            assert type(error) is type(alone)
            assert (error.type_name, error.message, error.path, error.origin) == (
                alone.type_name,
                alone.message,
                alone.path,
                alone.origin,
            )
            # Where in the data it is differs by the place in the batch.
            if "unencodable" not in name:
                assert error.remote_traceback == alone.remote_traceback
        link.assert_idle()


async def test_the_first_error_by_order_is_raised(transport: Transport) -> None:
    """Not the one that comes first in time; and all other calls have ended by then."""
    async with open_workshop(transport) as link:
        remote = link.remote
        calls = [
            partial(remote.add, 1),
            partial(remote.fail_later, "first"),
            partial(remote.fail, "second"),
            partial(remote.add_later, 1, turns=50),
            *[partial(remote.note, n) for n in range(100)],
        ]
        with pytest.raises(RemoteException) as caught:
            await rpc.batch(calls)
        assert (caught.value.type_name, caught.value.message) == ("ValueError", "first")
        assert caught.value.path == "fail_later"
        assert link.service.notes == list(range(100))
        link.assert_idle()


async def test_the_first_error_of_several_places(transport: Transport) -> None:
    """Also where the calls go to different places, the first error by the order of the batch counts."""
    async with open_workshop(transport) as one, open_workshop(transport) as two:
        calls = [
            partial(one.remote.add, 1),
            partial(two.remote.fail_later, "first"),
            partial(one.remote.fail, "second"),
        ]
        with pytest.raises(RemoteException) as caught:
            await rpc.batch(calls)
        assert caught.value.message == "first"
        first, second, third = await rpc.batch(calls, return_exceptions=True)
        assert (first, second.message, third.message) == (2, "first", "second")


async def test_an_error_names_agent_and_method(transport: Transport) -> None:
    """An agent's error says which agent and method it was, and its origin is that of single calls."""
    async with containers(transport, 2) as (own, other):
        for home in (own, other):
            agent = await own.connect(Member(home).addr)
            with pytest.raises(RemoteException) as caught:
                await agent.remove("99")
            alone = caught.value
            results = await rpc.batch([partial(agent.remove, "98"), agent.remove], return_exceptions=True)
            for error in results:
                assert (error.agent, error.method, error.origin) == (
                    alone.agent,
                    alone.method,
                    alone.origin,
                )


async def test_results_that_cannot_be_encoded(transport: Transport) -> None:
    """Results that no codec knows are errors of their calls alone, plain or not."""
    async with open_workshop(transport) as link:
        remote = link.remote
        for bad in ([remote.get_nothing_to_encode], [remote.get_nothing_to_encode_later]):
            calls = [*bad, partial(remote.add, 1), *bad, remote.shelf.get, *bad]
            results = await rpc.batch(calls, return_exceptions=True)
            assert results[1::2] == [2, "shelf"]
            for error in results[::2]:
                assert isinstance(error, RemoteSerializationError)
                assert error.path == bad[0]._path
                assert "object" in error.message
            with pytest.raises(RemoteSerializationError):
                await rpc.batch(calls)


@pytest.mark.parametrize("return_exceptions", [False, True])
async def test_arguments_that_cannot_be_encoded(transport: Transport, return_exceptions: bool) -> None:
    """They are an error of the caller, raised at once; what was sent before is given up, and later calls are
    fine."""
    async with open_workshop(transport) as link:
        remote = link.remote
        calls = [partial(remote.work, n) for n in range(70)] + [partial(remote.add, object())]
        with pytest.raises(SerializationError):
            await rpc.batch(calls, return_exceptions=return_exceptions)
        assert await rpc.batch([partial(remote.add, 1)]) == [2]
        await wait_until(lambda: not link.end.channel._running)
        assert link.service.working == 0
        link.assert_idle()


async def test_streams_are_refused(transport: Transport) -> None:
    """A method that streams is an error of that call, which says why."""
    async with open_workshop(transport) as link:
        remote = link.remote
        results = await rpc.batch(
            [partial(remote.count, 3), partial(remote.add, 1), partial(remote.get_count, 3)],
            return_exceptions=True,
        )
        assert results[1] == 2
        for error in results[::2]:
            assert isinstance(error, RemoteException)
            assert error.type_name == "aiomas_ng.StreamError"
            assert "batch" in error.message
        assert [number async for number in remote.count(3)] == [0, 1, 2]
        link.assert_idle()


async def test_what_is_too_large(transport: Transport) -> None:
    """Calls that are too large together, or have results that are, fail; the connection goes on."""
    async with open_workshop(transport, limits=Limits(frame_size=5000)) as link:
        remote = link.remote
        with pytest.raises(FrameTooLargeError):
            await rpc.batch([partial(remote.add, 1), partial(remote.echo, bytes(6000))])
        results = await rpc.batch(
            [partial(remote.get_bytes, 3000), partial(remote.get_bytes, 3000)], return_exceptions=True
        )
        assert [type(result) for result in results] == [RemoteSerializationError] * 2
        results = await rpc.batch(
            [partial(remote.get_bytes, 6000), partial(remote.add_later, 3)], return_exceptions=True
        )
        assert [type(result) for result in results] == [RemoteSerializationError] * 2
        assert await rpc.batch([partial(remote.get_bytes, 1000)] * 2) == [bytes(1000)] * 2
        link.assert_idle()


async def test_large_values(transport: Transport) -> None:
    """Arguments and results of a megabyte pass as in single calls, also between small ones."""
    async with open_workshop(transport) as link:
        data = bytes(range(256)) * 4096
        results = await rpc.batch(
            [partial(link.remote.note, data), partial(link.remote.add, 1), partial(link.remote.note, data)]
        )
        assert results == [data, 2, data]


# -- Input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda remote: print,
        lambda remote: partial(print, 1),
        lambda remote: None,
        lambda remote: "remote.add",
        lambda remote: (remote.add, 1),
        lambda remote: remote,
        lambda remote: partial(remote),
        lambda remote: lambda: remote.add(1),
        lambda remote: functools.partialmethod(remote.add, 1),
    ],
)
async def test_what_is_no_call(transport: Transport, make: Callable[[rpc.Proxy], Any]) -> None:
    """Anything but a proxy of a function, bare or in a partial, is refused. The error says which one it is
    and what to give; none of the calls that would have gone with it is sent."""
    async with open_workshop(transport) as link:
        before = link.count_requests()
        with pytest.raises(TypeError, match=r"call 1 of a batch is .*partial\(proxy"):
            await rpc.batch([partial(link.remote.note, 1), make(link.remote), partial(link.remote.note, 2)])
        assert link.count_requests() == before
        assert link.service.notes == []


async def test_a_call_that_was_made_already(transport: Transport) -> None:
    """Who passes replies instead of calls, as to ``gather``, is told so."""
    async with open_workshop(transport) as link:
        reply = link.remote.add(1)
        with pytest.raises(TypeError, match=r"call 0 of a batch is .*Reply"):
            await rpc.batch([reply])
        assert await reply == 2


async def test_calls_that_are_no_iterable(transport: Transport) -> None:
    """A call instead of a list of calls is a TypeError, and an error of a generator is passed on."""
    async with open_workshop(transport) as link:
        with pytest.raises(TypeError):
            await rpc.batch(partial(link.remote.note, 1))  # type: ignore[arg-type]

        def make() -> Iterator[Any]:
            yield partial(link.remote.note, 1)
            raise KeyError("mine")

        with pytest.raises(KeyError):
            await rpc.batch(make())
        assert link.service.notes == []


# -- Giving up -------------------------------------------------------------------------------------


async def test_a_timeout(transport: Transport) -> None:
    """After the timeout all calls of a request have failed, also those that had ended, and the peer's work is
    stopped; other places have their results."""
    async with open_workshop(transport) as one, open_workshop(transport) as two:
        calls = [partial(one.remote.work, 1), partial(two.remote.add, 1)]
        results = await rpc.batch(calls, timeout=0.05, return_exceptions=True)
        assert isinstance(results[0], CallTimeoutError)
        assert results[1] == 2
        with pytest.raises(CallTimeoutError):
            await rpc.batch(calls, timeout=0.05)
        await wait_until(lambda: one.service.cancelled == 2)
        await wait_until(lambda: not one.end.channel._running)
        assert await rpc.batch(calls[1:], timeout=20) == [2]
        one.assert_idle()
        two.assert_idle()


@pytest.mark.parametrize(("own", "all_"), [(0.02, None), (0.02, 20), (20, 0.02)])
async def test_timeouts_of_calls(
    transport: Transport, own: float, all_: float | None, asyncio_errors: list[str]
) -> None:
    """A call that has a timeout of its own ends after the shorter one, and nobody else does."""
    async with open_workshop(transport) as link:
        work = rpc.with_options(link.remote.work, timeout=own)
        add = rpc.with_options(link.remote.add, timeout=own)
        results = await rpc.batch([work, partial(add, 1), work], timeout=all_, return_exceptions=True)
        assert [type(result) for result in results] == [CallTimeoutError, int, CallTimeoutError]
        await wait_until(lambda: link.service.cancelled == 2)
        await wait_until(lambda: not link.end.channel._running)
        assert await link.remote.add(1) == 2
        link.assert_idle()
        assert asyncio_errors == []


async def test_cancelling_a_batch(transport: Transport) -> None:
    """The peers stop what they do for it, free its room, and serve the next calls."""
    async with open_workshop(transport) as one, open_workshop(transport) as two:
        calls = [partial((one if n % 2 else two).remote.work, n) for n in range(200)]
        task = asyncio.create_task(rpc.batch(calls))
        await wait_until(lambda: one.service.working == two.service.working == 100)
        assert one.end.channel._batched == 100
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for link in (one, two):
            await wait_until(lambda link=link: not link.end.channel._running)
            assert (link.service.working, link.service.cancelled) == (0, 100)
            link.assert_idle()
            assert await rpc.batch([partial(link.remote.add, 1)]) == [2]


async def test_a_handler_that_does_not_stop(transport: Transport) -> None:
    """A handler that ends well although its batch was cancelled keeps nothing."""
    async with open_workshop(transport) as link:
        task = asyncio.create_task(rpc.batch([link.remote.refuse_to_stop, link.remote.work]))
        await wait_until(lambda: link.service.working == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until(lambda: not link.end.channel._running)
        assert link.service.cancelled == 2
        link.assert_idle()


async def test_cancelling_before_the_calls_have_left(transport: Transport) -> None:
    """A batch that is cancelled before it was begun, or before its place is connected, does nothing."""
    async with open_workshop(transport) as link:
        task = asyncio.create_task(rpc.batch([partial(link.remote.note, 1)]))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await link.remote.add(1) == 2
        assert link.service.notes == []


async def test_cancelling_a_batch_of_which_a_part_has_failed(
    transport: Transport, asyncio_errors: list[str]
) -> None:
    """The error of a part that nobody waits for any more is not logged as forgotten."""
    async with open_workshop(transport) as one, open_workshop(transport) as two:
        task = asyncio.create_task(rpc.batch([one.remote.work, two.remote.work]))
        await wait_until(lambda: one.service.working == two.service.working == 1)
        two.end.channel.transport.abort()
        await wait_until(lambda: two.client.channel.is_closed)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        del task
        gc.collect()
    assert asyncio_errors == []


async def test_the_work_of_a_batch_ends_with_the_connection(transport: Transport) -> None:
    """When the caller's connection breaks, the calls of its batches are stopped, and nothing of them is
    counted any more."""
    async with open_workshop(transport) as link:
        task = asyncio.create_task(
            rpc.batch([*[link.remote.work] * 70, partial(link.remote.note, 1)], return_exceptions=True)
        )
        await wait_until(lambda: link.service.working == 70)
        link.client.channel.transport.abort()
        results = await task
        assert {type(result) for result in results[:64]} == {type(results[0])}
        assert all(isinstance(result, ChannelClosedError) for result in results)
        assert results[0].was_sent
        await wait_until(lambda: not link.end.channel._running)
        assert link.service.cancelled == 70
        assert link.end.channel._batched == 0


async def test_a_handler_of_a_batch_closes_the_connection(transport: Transport) -> None:
    """A call of a batch may close the connection that it has come from: the others end, and nothing hangs."""
    async with open_workshop(transport) as link:
        link.service.leave = link.end.close
        results = await rpc.batch(
            [link.remote.work, link.remote.shut_door, partial(link.remote.add, 1)], return_exceptions=True
        )
        assert all(isinstance(result, ChannelClosedError) for result in results)
        async with asyncio.timeout(1):
            await wait_until(lambda: not link.end.channel._running)
        assert link.end.channel._batched == 0


async def test_a_connection_that_is_cut_in_mid_frame(transport: Transport) -> None:
    """If the result of a batch arrives in part only, all of its calls fail."""
    async with open_faulty_link(transport) as (near, far, between):
        service = Workshop()
        rpc.RpcClient(far, service)
        remote = rpc.RpcClient(near).remote
        assert await remote.add(1) == 2
        between.cut_after(30)
        results = await rpc.batch(
            (partial(remote.add, str(n), "x" * 10) for n in range(64)), return_exceptions=True
        )
        assert all(isinstance(result, ChannelClosedError) for result in results)
        assert "in the middle of a frame" in str(results[0])


async def test_one_of_several_places_is_lost(transport: Transport) -> None:
    """The results of the others are there all the same, and the lost calls have their error."""
    async with open_workshop(transport) as one, open_workshop(transport) as two:
        calls = [partial(one.remote.add, 1), two.remote.work, partial(one.remote.add, 2)]
        task = asyncio.create_task(rpc.batch(calls, return_exceptions=True))
        await wait_until(lambda: two.service.working)
        two.end.channel.transport.abort()
        first, second, third = await task
        assert (first, third) == (2, 3)
        assert isinstance(second, ChannelClosedError)


async def test_one_of_several_places_was_lost_before(transport: Transport) -> None:
    """It makes no difference whether a place was lost just before the batch or just after: with
    ``return_exceptions``, the others are called, and their results are there."""
    async with open_workshop(transport) as one, open_workshop(transport) as two:
        await two.client.close()
        calls = [partial(two.remote.add, 1), partial(one.remote.note, 1), partial(two.remote.add, 1)]
        first, second, third = await rpc.batch(calls, return_exceptions=True)
        assert second == 1
        assert isinstance(first, ChannelClosedError)
        assert isinstance(third, ChannelClosedError)
        with pytest.raises(ChannelClosedError):
            await rpc.batch(calls)
        await one.remote.add(1)
        one.assert_idle()


# -- Bounds ----------------------------------------------------------------------------------------


async def test_the_limit_of_requests_counts_the_calls_of_a_batch(transport: Transport) -> None:
    """Of async calls no more are worked on than the limit allows, however they are put together; those
    for which there is no room are refused, and the room is free again afterwards."""
    async with open_workshop(transport, limits=Limits(requests=100)) as link:
        remote = link.remote
        first = asyncio.create_task(rpc.batch(partial(remote.work, n) for n in range(60)))
        await wait_until(lambda: link.service.working == 60)
        assert link.end.channel._batched == 60
        with pytest.raises(RemoteOverloadError):
            await rpc.batch(partial(remote.work, n) for n in range(60))
        assert link.service.working == 60
        assert await rpc.batch(partial(remote.note, n) for n in range(60)) == list(range(60))
        second = asyncio.create_task(rpc.batch(partial(remote.work, n) for n in range(30)))
        await wait_until(lambda: link.service.working == 90)
        singles = [remote.work(n) for n in range(30)]
        refused, _ = await asyncio.wait(singles, return_when=asyncio.FIRST_COMPLETED)
        assert isinstance(next(iter(refused)).exception(), RemoteOverloadError)
        link.service.event.set()
        assert await first == list(range(60))
        assert await second == list(range(30))
        await asyncio.gather(*singles, return_exceptions=True)
        assert link.service.most_working <= 100
        assert await rpc.batch(partial(remote.work, n) for n in range(60)) == list(range(60))
        link.assert_idle()


async def test_the_limit_of_requests_holds_for_batches_that_come_at_once(transport: Transport) -> None:
    """Batches that arrive in one read cannot have more async calls begun than the limit allows: each counts
    from when it was taken."""
    async with open_workshop(transport, limits=Limits(requests=100)) as link:
        outcomes = asyncio.gather(
            rpc.batch((partial(link.remote.work, n) for n in range(640)), return_exceptions=True),
            rpc.batch((partial(link.remote.work, n) for n in range(640)), return_exceptions=True),
        )
        await wait_until(lambda: link.service.working)
        for _ in range(20):
            assert await link.remote.add(1) == 2
        link.service.event.set()
        results = [result for part in await outcomes for result in part]
        assert link.service.most_working <= 100
        assert {type(result) for result in results} == {int, RemoteOverloadError}
        link.assert_idle()


async def test_a_batch_without_room_leaves_no_coroutine(transport: Transport) -> None:
    """Where a batch is refused, its async calls have not begun, and none of them is forgotten unawaited."""
    async with open_workshop(transport, limits=Limits(requests=3)) as link:
        results = await rpc.batch(
            [partial(link.remote.work, n) for n in range(5)] + [link.remote.start_work],
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [RemoteOverloadError] * 6
        assert link.service.working == 0
        assert await link.remote.add(1) == 2
        link.assert_idle()


async def test_the_limit_of_calls(transport: Transport) -> None:
    """Where the own side has no room for the requests of a batch, their calls fail; the others do not."""
    async with open_workshop(transport, limits=Limits(calls=3)) as link:
        task = asyncio.create_task(
            rpc.batch((partial(link.remote.work, n) for n in range(64 * 4)), return_exceptions=True)
        )
        await wait_until(lambda: link.service.working == 64 * 3)
        link.service.event.set()
        results = await task
        assert results[: 64 * 3] == list(range(64 * 3))
        assert {type(result) for result in results[64 * 3 :]} == {OverloadError}
        assert await link.remote.add(1) == 2
        link.assert_idle()


# -- Hostile peers ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def raw_server(transport: Transport) -> AsyncIterator[tuple[rpc.Proxy, RawPeer]]:
    """Give a proxy of a peer that has said that it is ours, and that peer."""
    async with open_raw_server(transport) as (channel, peer):
        client = rpc.RpcClient(channel)
        peer.send(SESSION, 0, {"version": 1})
        await wait_until(lambda: channel._exchange.is_peer_ours)
        yield client.remote, peer


@pytest.mark.parametrize(
    "result",
    [
        None,
        1,
        "ab",
        b"ab",
        {},
        [],
        [[1, 2]],
        [[1, 2], [], []],
        [[1], []],
        [[1, 2, 3], []],
        [None, []],
        [1, []],
        ["ab", []],
        [{"a": 1, "b": 2}, []],
        [[1, 2], None],
        [[1, 2], 5],
        [[1, 2], [1]],
        [[1, 2], [[]]],
        [[1, 2], [[0]]],
        [[1, 2], [[0, "x", 1]]],
        [[1, 2], [[2, "x"]]],
        [[1, 2], [[-1, "x"]]],
        [[1, 2], [[2**63, "x"]]],
        [[1, 2], [["0", "x"]]],
        [[1, 2], [[None, "x"]]],
        [[1, 2], [[0.0, "x"]]],
        [[1, 2], "ab"],
        [[1, 2], {"a": "b"}],
    ],
)
async def test_a_malformed_result(transport: Transport, result: Any) -> None:
    """What is no result of this batch fails each of its calls with a clear error; the connection goes on."""
    async with raw_server(transport) as (remote, peer):
        task = asyncio.create_task(
            rpc.batch([partial(remote.get, 1), partial(remote.get, 2)], return_exceptions=True)
        )
        await peer.until(lambda: any(frame[0] == REQUEST for frame in peer.frames))
        request = next(frame for frame in peer.frames if frame[0] == REQUEST)
        assert request[2] == [None, [["get", [1], {}], ["get", [2], {}]], {}]
        peer.frames.clear()
        peer.send(RESULT, request[1], result)
        results = await task
        assert [type(error) for error in results] == [MalformedFrameError] * 2
        assert "[results, errors]" in str(results[0])
        call = remote.get(3)
        peer.send(RESULT, (await peer.recv())[1], 3)
        assert await call == 3


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("a plain text", "a plain text"),
        (["KeyError", "'é'", "line\n"], "'é'"),
        (["KeyError"], ""),
        ([], "()"),
        (None, "None"),
        ([1, [2]], "(1, (2,))"),
    ],
)
async def test_odd_errors_in_a_result(transport: Transport, description: Any, message: str) -> None:
    """An error in a result is understood in each style in which one is understood by itself."""
    async with raw_server(transport) as (remote, peer):
        task = asyncio.create_task(
            rpc.batch([partial(remote.get, 1), partial(remote.deep.get, 2)], return_exceptions=True)
        )
        await peer.until(lambda: any(frame[0] == REQUEST for frame in peer.frames))
        msg_id = next(frame[1] for frame in peer.frames if frame[0] == REQUEST)
        peer.send(RESULT, msg_id, [[1, None], [[1, description]]])
        result, error = await task
        assert result == 1
        assert isinstance(error, RemoteException)
        assert (error.message, error.path) == (message, "deep/get")


async def test_a_batch_that_is_refused_as_a_whole(transport: Transport) -> None:
    """An exception for the request is that of each call, and names the call's path."""
    async with raw_server(transport) as (remote, peer):
        task = asyncio.create_task(
            rpc.batch([partial(remote.get, 1), partial(remote.deep.get, 2)], return_exceptions=True)
        )
        await peer.until(lambda: any(frame[0] == REQUEST for frame in peer.frames))
        msg_id = next(frame[1] for frame in peer.frames if frame[0] == REQUEST)
        peer.send(EXCEPTION, msg_id, ["aiomas_ng.OverloadError", "full"])
        errors = await task
        assert [type(error) for error in errors] == [RemoteOverloadError] * 2
        assert [error.path for error in errors] == ["get", "deep/get"]


async def test_a_stream_for_a_batch(transport: Transport) -> None:
    """A peer that answers a batch with a stream breaks the rules, and nothing else."""
    async with raw_server(transport) as (remote, peer):
        task = asyncio.create_task(rpc.batch([remote.get, remote.get], return_exceptions=True))
        await peer.until(lambda: any(frame[0] == REQUEST for frame in peer.frames))
        msg_id = next(frame[1] for frame in peer.frames if frame[0] == REQUEST)
        peer.frames.clear()
        peer.send(STREAM, msg_id)
        assert [type(error) for error in await task] == [MalformedFrameError] * 2
        call = remote.get(3)
        await peer.until(lambda: any(frame[0] == REQUEST for frame in peer.frames))
        msg_id = next(frame[1] for frame in peer.frames if frame[0] == REQUEST)
        peer.send(RESULT, msg_id, 3)
        assert await call == 3


@contextlib.asynccontextmanager
async def raw_client(
    transport: Transport, speaks: str = "msgpack", **kwds: Any
) -> AsyncIterator[tuple[RawPeer, Workshop, rpc.RpcClient]]:
    """Give a peer that calls a workshop as one of ours, by hand."""
    service = Workshop()
    async with open_raw_client(transport, speaks, greets=True, **kwds) as (peer, channel):
        end = rpc.RpcClient(channel, service)
        assert await peer.call(["add", [1], {}]) == 2
        yield peer, service, end


async def call_batch(peer: RawPeer, calls: Any, kwargs: Any = None) -> Any:
    """Make a batch by hand; return type and content of the reply."""
    reply = await peer.recv_reply(peer.request([None, calls, {} if kwargs is None else kwargs]))
    return reply[0], reply[2]


@pytest.mark.parametrize("speaks", ["msgpack", "json"])
async def test_a_batch_on_the_wire(transport: Transport, speaks: str) -> None:
    """A batch is a request without a path; its result has all results, and the errors with their index."""
    async with raw_client(transport, speaks) as (peer, service, _):
        calls = [["note", [1], {}], ["fail", [], {"text": "é"}], ["add_later", [2, 3], {}]]
        kind, (results, errors) = await call_batch(peer, calls)
        assert (kind, results) == (RESULT, [1, None, 2])
        assert [(index, error[:2]) for index, error in errors] == [(1, ["ValueError", "é"])]
        assert all(isinstance(part, str) for part in errors[0][1])
        assert await call_batch(peer, []) == (RESULT, [[], []])
        assert service.notes == [1]


@pytest.mark.parametrize("speaks", ["msgpack", "json"])
@pytest.mark.parametrize(
    ("call", "type_name"),
    [
        (None, "aiomas_ng.DeserializationError"),
        (5, "aiomas_ng.DeserializationError"),
        ("add", "aiomas_ng.DeserializationError"),
        ([], "aiomas_ng.DeserializationError"),
        (["add"], "aiomas_ng.DeserializationError"),
        (["add", [1]], "aiomas_ng.DeserializationError"),
        ({"a": 1, "b": 2, "c": 3}, "aiomas_ng.DeserializationError"),
        (["add", None, {}], "aiomas_ng.DeserializationError"),
        (["note", 5, {}], "aiomas_ng.DeserializationError"),
        (["note", "x", {}], "aiomas_ng.DeserializationError"),
        (["note", {"x": 1}, {}], "aiomas_ng.DeserializationError"),
        (["note", [1], None], "aiomas_ng.DeserializationError"),
        (["note", [1], []], "aiomas_ng.DeserializationError"),
        (["note", [1], "x"], "aiomas_ng.DeserializationError"),
        ([None, [["note", [1], {}]], {}], "aiomas_ng.RoutingError"),
        ([5, [1], {}], "aiomas_ng.RoutingError"),
        ([["note"], [1], {}], "aiomas_ng.RoutingError"),
        ([{"a": 1}, [1], {}], "aiomas_ng.RoutingError"),
        ([True, [1], {}], "aiomas_ng.RoutingError"),
        (["", [1], {}], "aiomas_ng.RoutingError"),
        (["hidden", [], {}], "aiomas_ng.NotExposedError"),
        (["router/obj", [], {}], "aiomas_ng.NotExposedError"),
        (["__init__", [], {}], "aiomas_ng.NotExposedError"),
    ],
)
async def test_a_malformed_call_in_a_batch(
    transport: Transport, speaks: str, call: Any, type_name: str
) -> None:
    """It is an error of its own, is not executed, and harms no other call."""
    async with raw_client(transport, speaks) as (peer, service, end):
        calls = [["add_later", [1], {}], call, ["add", [2], {}]]
        kind, (results, errors) = await call_batch(peer, calls)
        assert (kind, results) == (RESULT, [1, None, 3])
        assert [(index, error[0]) for index, error in errors] == [(1, type_name)]
        assert service.notes == []
        assert end.channel._batched == 0
        assert end.channel._violations == 0


async def test_metadata_of_a_call_in_a_batch(transport: Transport) -> None:
    """A call in a batch may have a fourth part, as a call by itself may."""
    async with raw_client(transport) as (peer, service, _):
        assert await peer.call(["note", [1], {}, {"later": 1}]) == 1
        assert await call_batch(peer, [["note", [2], {}, {"later": 1}]]) == (RESULT, [[2], []])
        assert service.notes == [1, 2]


@pytest.mark.parametrize("calls", [None, 5, "note", {"a": 1}, True])
async def test_a_batch_that_is_no_list(transport: Transport, calls: Any) -> None:
    """It is refused; the connection goes on."""
    async with raw_client(transport) as (peer, _, end):
        kind, error = await call_batch(peer, calls)
        assert (kind, error[0]) == (EXCEPTION, "aiomas_ng.DeserializationError")
        kind, error = await call_batch(peer, [], kwargs=5)
        assert (kind, error[0]) == (EXCEPTION, "aiomas_ng.DeserializationError")
        assert await peer.call(["add", [1], {}]) == 2
        assert end.channel._violations == 0


async def test_a_batch_with_too_many_calls(transport: Transport) -> None:
    """64 calls are the most: with one more, none is executed."""
    async with raw_client(transport) as (peer, service, _):
        kind, error = await call_batch(peer, [["note", [n], {}] for n in range(65)])
        assert (kind, error[0]) == (EXCEPTION, "aiomas_ng.DeserializationError")
        assert "64" in error[1]
        assert service.notes == []
        kind, content = await call_batch(peer, [["note", [n], {}] for n in range(64)])
        assert (kind, content) == (RESULT, [list(range(64)), []])


async def test_a_one_way_batch(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """There are none: it is logged as any one-way call that fails, and nothing of it is executed."""
    async with raw_client(transport) as (peer, service, _):
        peer.send(MESSAGE, 0, [None, [["note", [1], {}], ["work", [], {}]], {}])
        assert await peer.call(["add", [1], {}]) == 2
        assert service.notes == []
        assert service.working == 0
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "one-way call" in caplog.text


async def test_a_batch_at_a_side_without_a_service(transport: Transport) -> None:
    """It is refused with the same error as a call."""
    async with open_raw_client(transport, greets=True) as (peer, channel):
        rpc.RpcClient(channel)
        kind, error = await call_batch(peer, [["note", [1], {}]])
        assert (kind, error[0]) == (EXCEPTION, "aiomas_ng.RoutingError")


async def test_a_batch_that_is_cancelled_before_it_was_begun(transport: Transport) -> None:
    """Request and cancellation in one piece: the async calls never begin, and none is left unawaited."""
    async with raw_client(transport) as (peer, service, end):
        msg_id = peer.first_id + 1
        data = encode("msgpack", REQUEST, msg_id, [None, [["work", [], {}]] * 20, {}])
        peer.send_bytes(data + encode("msgpack", CANCEL, msg_id, None))
        peer.request(["add", [1], {}])
        await peer.recv_reply(msg_id)
        await wait_until(lambda: not end.channel._running)
        assert service.working == 0
        assert end.channel._batched == 0


async def test_an_id_that_is_used_twice(transport: Transport) -> None:
    """A batch under the id of a request that is worked on is a violation; its async calls are dropped, the
    first request goes on."""
    async with raw_client(transport) as (peer, service, end):
        peer.send(REQUEST, 7, ["work", ["first"], {}])
        await wait_until(lambda: service.working)
        peer.send(REQUEST, 7, [None, [["work", [], {}]] * 3, {}])
        await wait_until(lambda: end.channel._violations)
        assert service.working == 1
        assert end.channel._batched == 0
        service.event.set()
        assert (await peer.recv_reply(7))[2] == "first"


async def test_calls_of_a_hostile_peer_are_bounded(transport: Transport) -> None:
    """However many batches of async calls come in one piece, not more tasks run than the limit allows, and
    all of the room comes back."""
    async with raw_client(transport, limits=Limits(requests=50)) as (peer, service, end):
        ids = [peer.request([None, [["work", [n], {}]] * 20, {}]) for n in range(30)]
        await wait_until(lambda: service.working)
        last = peer.request(["add", [1], {}])
        replies = {}
        while last not in replies:
            frame = await peer.recv()
            replies[frame[1]] = frame
        assert service.most_working <= 50
        service.event.set()
        while not replies.keys() >= set(ids):
            frame = await peer.recv()
            replies[frame[1]] = frame
        refused = 0
        for msg_id in ids:
            kind, _, content = replies[msg_id]
            if kind == RESULT:
                names = {error[0] for _, error in content[1]}
                refused += len(content[1])
            else:
                names = {content[0]}
                refused += 20
            assert names <= {"aiomas_ng.OverloadError"}
        assert refused >= 30 * 20 - 50
        assert end.channel._batched == 0
        kind, content = await call_batch(peer, [["work", [n], {}] for n in range(20)])
        assert (kind, content) == (RESULT, [list(range(20)), []])
