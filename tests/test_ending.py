"""The orderly end of a container: who is told, what is waited for, and what happens when it is disturbed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from conftest import Transport
from waiting import wait_until

from aiomas_ng import Agent, Container, rpc
from aiomas_ng._container import ending
from aiomas_ng.error import ObservationCancelled
from aiomas_ng.exceptions import (
    AgentNotFoundError,
    ChannelClosedError,
    ClosedByPeerError,
    ClosedByUsError,
    ConnectError,
    RemoteCancelledError,
)
from aiomas_ng.message import CONTENT, GET, Message
from aiomas_ng.protocol import Context
from aiomas_ng.resource import ObservableResource, Resource, Site


class Worker(Agent):
    """An agent that works until it is let go."""

    def __init__(self, container: Container) -> None:
        super().__init__(container)
        self.gate = asyncio.Event()
        self.log: list[Any] = []

    @rpc.expose
    def note(self, value: Any) -> Any:
        self.log.append(value)
        return value

    @rpc.expose
    async def work(self, value: Any) -> Any:
        self.log.append(f"begin {value}")
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.log.append(f"cancelled {value}")
            raise
        return value

    @rpc.expose
    async def items(self, number: int) -> AsyncIterator[int]:
        for value in range(number):
            await self.gate.wait()
            yield value

    @rpc.expose
    async def ask(self, url: str, value: Any) -> Any:
        await self.gate.wait()
        return await (await self.container.connect(url)).note(value)

    @rpc.expose
    async def end(self) -> None:
        await self.container.shutdown(as_coro=True)
        self.log.append("ended")


class Slow(Resource):
    """Answers when the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.begun = 0

    async def render_get(self, request: Message) -> Message:
        self.begun += 1
        await self.gate.wait()
        return Message(CONTENT, payload=b"slow")


class Watched(ObservableResource):
    """Is observed."""

    async def render_get(self, request: Message) -> Message:
        return Message(CONTENT, payload=b"state")


@contextlib.asynccontextmanager
async def containers(*addrs: Any) -> AsyncIterator[list[Container]]:
    """Make a container at each address, and shut all of them down at the end."""
    made = [await Container.create(addr, as_coro=True) for addr in addrs]
    try:
        yield made
    finally:
        for container in made:
            await container.shutdown(as_coro=True, grace=0)


def is_closed(container: Container) -> bool:
    """Return whether nothing of *container* is left open."""
    return (
        container.is_shut_down
        and container._tcp_server is None
        and not container._connections
        and not container._peers.get_tasks()
        and not container._context._tasks
    )


# -- What is waited for ----------------------------------------------------------------------------


async def test_everything_under_way_ends(transport: Transport) -> None:
    """Calls, streams, batches, requests to resources, and calls inside of the container get their replies;
    new ones are refused meanwhile."""
    async with containers(transport.address(), transport.address()) as (one, two):
        worker, slow = Worker(two), Slow()
        local = Worker(two)
        worker.site.add_resource(["slow"], slow)
        proxy = await one.connect(worker.addr)
        assert await proxy.note(0) == 0
        call = proxy.work(1)
        batch = asyncio.ensure_future(rpc.batch([partial(proxy.work, "a"), partial(proxy.work, "b")]))
        stream = asyncio.ensure_future(_collect(proxy.items(100)))
        nested = proxy.ask(local.addr, "nested")
        response = asyncio.ensure_future(one.context.get(worker.addr + "/slow"))
        await wait_until(lambda: slow.begun and len(worker.log) == 4)
        end = asyncio.ensure_future(two.shutdown(as_coro=True, grace=20))
        await wait_until(lambda: two._ending.has_begun)
        assert two._tcp_server is None
        with pytest.raises((ClosedByPeerError, ConnectError)):
            await proxy.note(2)
        assert not end.done()
        worker.gate.set()
        slow.gate.set()
        assert await call == 1
        assert await batch == ["a", "b"]
        assert await stream == list(range(100))
        assert await nested == "nested"
        assert await response == b"slow"
        await end
        assert is_closed(two)
        assert 2 not in worker.log


async def _note_all(stream: Any, seen: list[Any]) -> None:
    async for item in stream:
        seen.append(item)  # those before an error count


async def _collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


async def test_grace_ends(transport: Transport) -> None:
    """What goes on after the grace is cancelled; its caller is told that it may have been executed."""
    async with containers(transport.address(), transport.address()) as (one, two):
        worker = Worker(two)
        call = (await one.connect(worker.addr)).work(1)
        await wait_until(lambda: worker.log)
        begin = time.monotonic()
        await two.shutdown(as_coro=True, grace=0.05)
        assert 0.04 < time.monotonic() - begin < 3
        assert worker.log == ["begin 1", "cancelled 1"]
        with pytest.raises(ClosedByPeerError) as caught:
            await call
        assert caught.value.was_sent is True


async def test_nothing_to_wait_for(transport: Transport) -> None:
    """With nothing under way no grace is taken, however long it may be."""
    async with containers(transport.address(), transport.address()) as (one, two):
        proxy = await one.connect(Worker(two).addr)
        back = await two.connect(Worker(one).addr)
        assert [await proxy.note(1), await back.note(2)] == [1, 2]
        begin = time.monotonic()
        await two.shutdown(as_coro=True, grace=1000)
        await one.shutdown(as_coro=True, grace=1000)
        assert time.monotonic() - begin < 1
        assert is_closed(one)
        assert is_closed(two)


async def test_observations_end_with_a_last_notification(transport: Transport) -> None:
    """An observer learns that the server shuts down, at once, and not by the loss of the connection."""
    async with containers(transport.address(), transport.address()) as (one, two):
        worker = Worker(two)
        worker.site.add_resource(["state"], Watched())
        blocker = (await one.connect(worker.addr)).work(1)
        request = one.context.request(Message(GET, uri=worker.addr + "/state", observe=0))
        assert (await request.response).payload == b"state"
        assert request.observation is not None
        notifications = aiter(request.observation)
        end = asyncio.ensure_future(two.shutdown(as_coro=True, grace=20))
        seen: list[Message] = []
        with pytest.raises(ObservationCancelled):
            await _note_all(notifications, seen)
        assert seen[-1].code.dotted == "5.03"
        assert not end.done()
        worker.gate.set()
        assert await blocker == 1
        await end


async def test_new_requests_to_resources_are_refused(transport: Transport) -> None:
    """A request that crosses the news is answered by 5.03."""
    async with containers(transport.address(), transport.address()) as (one, two):
        worker, slow = Worker(two), Slow()
        worker.site.add_resource(["slow"], slow)
        proxy = await one.connect(worker.addr)
        blocker = proxy.work(1)
        await wait_until(lambda: worker.log)
        end = asyncio.ensure_future(two.shutdown(as_coro=True, grace=20))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        request = one.context.request(Message(GET, uri=worker.addr + "/slow"))
        outcome = (await asyncio.gather(request.response, return_exceptions=True))[0]
        assert isinstance(outcome, ConnectionError) or outcome.code.dotted == "5.03"
        assert not slow.begun
        worker.gate.set()
        await blocker
        await end


async def test_messages_that_wait_still_leave(transport: Transport) -> None:
    """One-way calls that were made right before, even to a container that is not connected yet, arrive."""
    async with containers(transport.address(), transport.address()) as (one, two):
        worker = Worker(two)
        quick = rpc.with_options(await one.connect(worker.addr), oneway=True)
        for number in range(300):
            quick.note(number)
        await one.shutdown(as_coro=True)
        await wait_until(lambda: len(worker.log) == 300)
        assert worker.log == list(range(300))
    async with containers(transport.address(), transport.address()) as (one, two):
        other = Worker(two)
        fresh = rpc.with_options(await one.connect(other.addr), oneway=True)
        (channel,) = [client.channel for client in one._connections]
        channel._abort("for a test")
        for number in range(10):
            fresh.note(number)  # to be sent when it has connected anew
        assert one._peers.get_tasks()
        await one.shutdown(as_coro=True)
        await wait_until(lambda: len(other.log) == 10)
        assert other.log == list(range(10))


async def test_calls_of_agents_that_stop(transport: Transport) -> None:
    """In ``on_stop`` an agent can still call others, in its own container and elsewhere, and connect anew."""
    results: list[Any] = []

    class Leaving(Agent):
        async def on_stop(self) -> None:
            for url in urls:
                proxy = await self.container.connect(url)
                results.append(await proxy.note(url))

    async with containers(*(transport.address() for _ in range(3))) as (one, two, three):
        agents = [Worker(container) for container in (one, two, three)]
        urls = [agent.addr for agent in agents]
        Leaving(one)
        assert await (await one.connect(urls[1])).note("known") == "known"
        await one.shutdown(as_coro=True)
        assert results == urls


# -- What peers do ---------------------------------------------------------------------------------


async def test_peers_dial_the_one_that_comes_after(transport: Transport) -> None:
    """While a container ends, a new one can take its address, and proxies reach that."""
    async with containers(transport.address(), transport.address()) as (one, two):
        worker = Worker(two)
        proxy = await one.connect(worker.addr)
        call = proxy.work(1)
        await wait_until(lambda: worker.log)
        end = asyncio.ensure_future(two.shutdown(as_coro=True, grace=20))
        await wait_until(lambda: one._peers.get(proxy._link.address).client is None)
        again = await Container.create(two._base_url.rstrip("/"), as_coro=True)
        successor = Worker(again)
        assert successor.addr == worker.addr
        assert await proxy.note("new") == "new"
        assert successor.log == ["new"]
        worker.gate.set()
        assert await call == 1  # of the old one, over the old connection
        await end
        assert await (await one.connect(worker.addr)).note("newer") == "newer"
        await again.shutdown(as_coro=True)


async def test_both_ends_shut_down_at_once(transport: Transport) -> None:
    """Two containers that work for each other both end, with all replies."""
    async with containers(transport.address(), transport.address()) as (one, two):
        a, b = Worker(one), Worker(two)
        there, back = (await one.connect(b.addr)).work(1), (await two.connect(a.addr)).work(2)
        await wait_until(lambda: a.log and b.log)
        ends = asyncio.gather(one.shutdown(as_coro=True), two.shutdown(as_coro=True))
        await wait_until(lambda: one._ending.has_begun and two._ending.has_begun)
        a.gate.set()
        b.gate.set()
        assert await asyncio.gather(there, back) == [1, 2]
        await ends


async def test_connections_that_come_too_late(transport: Transport) -> None:
    """A container that shuts down accepts nobody: who dials in the last moment sees the connection end."""
    async with containers(transport.address(), transport.address()) as (one, two):
        worker = Worker(two)
        call = (await one.connect(worker.addr)).work(1)
        await wait_until(lambda: worker.log)
        server = two._tcp_server
        assert server is not None
        accept = asyncio.ensure_future(Container.create(transport.address(), as_coro=True))
        late = await accept
        end = asyncio.ensure_future(two.shutdown(as_coro=True, grace=20))
        await wait_until(lambda: two._ending.has_begun)
        with pytest.raises((ConnectError, ChannelClosedError)):
            await late.connect(worker.addr)
        assert len(two._connections) <= 1
        worker.gate.set()
        await call
        await end
        await late.shutdown(as_coro=True)


# -- Disturbances ----------------------------------------------------------------------------------


async def test_second_call_with_less_grace(transport: Transport) -> None:
    """It ends for both, when the shorter grace is over."""
    async with containers(transport.address(), transport.address()) as (one, two):
        worker = Worker(two)
        call = (await one.connect(worker.addr)).work(1)
        await wait_until(lambda: worker.log)
        first = asyncio.ensure_future(two.shutdown(as_coro=True, grace=1000))
        await asyncio.sleep(0)
        await two.shutdown(as_coro=True, grace=0)
        await asyncio.wait_for(first, 2)
        with pytest.raises(ClosedByPeerError):
            await call


async def test_shutdown_while_connecting(transport: Transport) -> None:
    """A ``connect`` that is dialling at that moment fails, wherever it is, and leaves nothing behind."""
    async with containers(transport.address()) as (two,):
        worker = Worker(two)
        for turns in TURNS:
            one = await Container.create(transport.address(), as_coro=True)
            own = Worker(one)
            attempts = [asyncio.ensure_future(one.connect(url)) for url in (worker.addr, own.addr)]
            for _ in range(turns):
                await asyncio.sleep(0)
            await one.shutdown(as_coro=True)
            for outcome in await asyncio.gather(*attempts, return_exceptions=True):
                assert isinstance(outcome, rpc.Proxy | ClosedByUsError | ConnectError | ChannelClosedError)
            assert is_closed(one)


TURNS = (*range(10), 12, 15, 20, 30)
"""Turns of the loop after which a shutdown is disturbed; it has ended after fewer than the last."""


@pytest.mark.parametrize("grace", [0, 1000])
async def test_cancelled_after_each_turn(transport: Transport, grace: float) -> None:
    """Whenever it is cancelled, everything is closed when the caller goes on, and no peer waits for ever."""
    async with containers(transport.address()) as (one,):
        back = Worker(one)
        for turns in TURNS:
            two = await Container.create(transport.address(), as_coro=True)

            class Leaving(Worker):
                async def on_stop(self) -> None:
                    for _ in range(5):
                        await asyncio.sleep(0)

            worker = Leaving(two)
            replies = [(await one.connect(worker.addr)).work(1), (await two.connect(back.addr)).work(2)]
            replies.append((await two.connect(worker.addr)).work(3))
            await wait_until(lambda worker=worker: len(worker.log) == 2)
            end = asyncio.ensure_future(two.shutdown(as_coro=True, grace=grace))
            for _ in range(turns):
                await asyncio.sleep(0)
            end.cancel()
            outcome = (await asyncio.gather(end, return_exceptions=True))[0]
            if turns:  # else it was never begun
                assert is_closed(two), (turns, outcome)
            await two.shutdown(as_coro=True, grace=0)
            assert is_closed(two)
            outcomes = await asyncio.gather(*replies, return_exceptions=True)
            assert all(isinstance(error, ConnectionResetError) for error in outcomes)
        back.gate.set()


async def test_cancelled_twice_after_each_turn(transport: Transport) -> None:
    """A caller that is cancelled again does not wait any more; the end comes by itself all the same."""
    async with containers(transport.address()) as (one,):
        for turns in TURNS:
            two = await Container.create(transport.address(), as_coro=True)
            worker = Worker(two)
            call = (await one.connect(worker.addr)).work(1)
            await wait_until(lambda worker=worker: worker.log)
            end = asyncio.ensure_future(two.shutdown(as_coro=True, grace=1000))
            await asyncio.sleep(0)
            for _ in range(2):
                end.cancel()
                for _ in range(turns):
                    await asyncio.sleep(0)
            await asyncio.gather(end, return_exceptions=True)
            await wait_until(lambda two=two: is_closed(two))
            with pytest.raises(ConnectionResetError):
                await call


def test_loop_that_ends_in_the_middle(transport: Transport) -> None:
    """``asyncio.run`` that cancels everything leaves nothing open, in whichever turn it comes."""
    for turns in TURNS[1::2]:

        async def main(turns: int = turns) -> None:
            one, two = [await Container.create(transport.address(), as_coro=True) for _ in range(2)]
            worker = Worker(two)
            call = (await one.connect(worker.addr)).work(1)
            await wait_until(lambda: worker.log)
            call.add_done_callback(lambda reply: reply.cancelled() or reply.exception())
            for container in (one, two):
                task = asyncio.ensure_future(container.shutdown(as_coro=True))
                task.add_done_callback(lambda task: task.cancelled() or task.exception())
            for _ in range(turns):
                await asyncio.sleep(0)

        asyncio.run(main())
        gc.collect()


async def test_end_from_a_handler_waits_for_the_others(transport: Transport) -> None:
    """A handler that ends its container is not waited for by itself; the other ones get their grace."""
    async with containers(transport.address(), transport.address()) as (one, two):
        worker = Worker(two)
        proxy = await one.connect(worker.addr)
        other, ender, again = proxy.work(1), proxy.end(), proxy.end()
        await wait_until(lambda: two._ending.has_begun)
        worker.gate.set()
        assert await other == 1
        outcomes = await asyncio.gather(ender, again, return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, ConnectionResetError) for outcome in outcomes)
        await wait_until(lambda: worker.log.count("ended") == 2)
        assert is_closed(two)


async def test_end_from_a_batch(transport: Transport) -> None:
    """A call of a batch may end the container; it gets that done, and the others of the batch their grace."""
    async with containers(transport.address(), transport.address()) as (one, two):
        worker = Worker(two)
        proxy = await one.connect(worker.addr)
        await proxy.note(0)
        worker.gate.set()
        outcome = asyncio.ensure_future(
            rpc.batch(
                [partial(proxy.work, 1), partial(proxy.end), partial(proxy.note, 2)], return_exceptions=True
            )
        )
        outcomes = await outcome
        assert any(isinstance(item, ConnectionResetError) for item in outcomes)
        await wait_until(lambda: "ended" in worker.log)
        assert is_closed(two)


async def test_end_from_a_resource(transport: Transport) -> None:
    """The handler of a resource may end the container; it is not waited for by itself."""

    class Ending(Resource):
        async def render_get(self, request: Message) -> Message:
            await two.shutdown(as_coro=True)
            ended.set()
            return Message(CONTENT)

    ended = asyncio.Event()
    async with containers(transport.address(), transport.address()) as (one, two):
        worker, slow = Worker(two), Slow()
        worker.site.add_resource(["end"], Ending())
        worker.site.add_resource(["slow"], slow)
        other = asyncio.ensure_future(one.context.get(worker.addr + "/slow"))
        await wait_until(lambda: slow.begun)
        request = one.context.request(Message(GET, uri=worker.addr + "/end"))
        await wait_until(lambda: two._ending.has_begun)
        slow.gate.set()
        assert await other == b"slow"
        await ended.wait()
        await asyncio.gather(request.response, return_exceptions=True)


async def test_handler_that_ignores_its_cancellation(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It delays the end by its bound only, and is named in the log."""
    monkeypatch.setattr("aiomas_ng._io.connection.CLOSE_GRACE", 0.05)
    release = asyncio.Event()

    class Stubborn(Worker):
        router = rpc.Service()

        @rpc.expose
        async def stay(self) -> None:
            self.log.append("begin")
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()
            self.log.append("end")

    async with containers(transport.address(), transport.address()) as (one, two):
        agent = Stubborn(two)
        call = (await one.connect(agent.addr)).stay()
        await wait_until(lambda: agent.log)
        await two.shutdown(as_coro=True, grace=0.02)
        with pytest.raises(ConnectionResetError):
            await call
        assert "goes on" in caplog.text
        release.set()
        await wait_until(lambda: agent.log == ["begin", "end"])


# -- Hooks -----------------------------------------------------------------------------------------


class Stopping(Agent):
    """An agent whose end is of some kind."""

    def __init__(self, container: Container, kind: str, log: list[str]) -> None:
        super().__init__(container)
        self.kind = kind
        self.log = log

    def on_stop(self) -> Any:
        self.log.append(self.kind)
        match self.kind:
            case "hang":
                return asyncio.Event().wait()
            case "stubborn":
                return self.hold_out()
            case "raise":
                raise ValueError("on_stop fails")
            case "raise later":
                return self.fail(ValueError("on_stop fails"))
            case "cancelled":
                return self.fail(asyncio.CancelledError())
            case "shut down":
                return self.container.shutdown(as_coro=True)
        return None

    async def fail(self, error: BaseException) -> None:
        await asyncio.sleep(0)
        raise error

    async def hold_out(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        self.log.append("cancelled")


async def test_hooks_of_all_kinds(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each agent has its turn, whatever those before it do; what hangs is cancelled, and named."""
    monkeypatch.setattr(ending, "HOOK_TIME", 0.05)
    monkeypatch.setattr(ending, "LAST_HOOK_TIME", 0.05)
    log: list[str] = []
    kinds = ["raise", "raise later", "cancelled", "shut down", "hang", "stubborn", "plain", "raise later"]
    async with containers(transport.address()) as (container,):
        for kind in kinds:
            Stopping(container, kind, log)
        begin = time.monotonic()
        await container.shutdown(as_coro=True, grace=0)
        assert time.monotonic() - begin < 2
        assert [kind for kind in log if kind != "cancelled"] == [
            kind for kind in kinds if kind != "cancelled"
        ]
        assert log.count("cancelled") == 2
        assert is_closed(container)
    failures = [record for record in caplog.records if "failed" in record.getMessage()]
    assert len(failures) == 4
    assert all(record.exc_info for record in failures)
    assert len([record for record in caplog.records if "took too long" in record.getMessage()]) == 1


@pytest.mark.parametrize("turns", [*range(12), 100])
@pytest.mark.parametrize("is_plain", [False, True])
async def test_removed_while_the_container_ends(turns: int, is_plain: bool) -> None:
    """However the removal of agents and the end of their container fall together, each ``on_stop`` is run
    once, and both wait for it. An agent that removes itself in it waits for nothing."""
    begun: list[Any] = []
    ended: list[Any] = []

    class Waiting(Agent):
        async def on_stop(self) -> None:
            begun.append(self)
            for _ in range(5):
                await asyncio.sleep(0)
            with contextlib.suppress(AgentNotFoundError):
                await self.container.remove_agent(self)
            ended.append(self)

    class Plain(Agent):
        def on_stop(self) -> None:
            begun.append(self)
            ended.append(self)

    async def remove(agent: Agent) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        with contextlib.suppress(AgentNotFoundError):
            await container.remove_agent(agent)
            assert agent in ended

    container = await Container.create(("127.0.0.1", 0), as_coro=True)
    agents = [(Plain if is_plain else Waiting)(container) for _ in range(3)]
    removals = [asyncio.create_task(remove(agent)) for agent in agents[1:]]
    async with asyncio.timeout(5):
        await container.shutdown(as_coro=True)
        assert len(ended) == 3
        await asyncio.gather(*removals)
    assert sorted(begun, key=agents.index) == agents


async def test_many_agents_with_hooks(transport: Transport) -> None:
    """The hooks are run in the order of the agents, one after the other, and many take little time."""
    log: list[str] = []

    class Numbered(Agent):
        async def on_stop(self) -> None:
            log.append(f"begin {self.addr}")
            await asyncio.sleep(0)
            log.append(f"end {self.addr}")

    async with containers(transport.address()) as (container,):
        urls = [Numbered(container).addr for _ in range(100)]
        await container.shutdown(as_coro=True)
        assert log == [f"{step} {url}" for url in urls for step in ("begin", "end")]


# -- Mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grace", [-1, float("inf"), float("nan")])
async def test_bad_grace(transport: Transport, grace: Any) -> None:
    """It is refused, and the container goes on."""
    async with containers(transport.address()) as (container,):
        with pytest.raises(ValueError, match="grace"):
            await container.shutdown(as_coro=True, grace=grace)
        assert not container.is_shut_down
        assert container._tcp_server is not None


def test_container_of_another_loop(transport: Transport) -> None:
    """What is to run in another loop than that of the container says so."""
    container = Container.create(transport.address())

    async def main() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await container.connect(container._base_url + "0")
        with pytest.raises(RuntimeError, match="another event loop"):
            await container.shutdown(as_coro=True)
        with pytest.raises(RuntimeError, match="another event loop"):
            Worker(container)

    asyncio.run(main())
    asyncio.set_event_loop(container.loop)
    container.shutdown()
    container.loop.close()
    asyncio.set_event_loop(None)


async def test_cancelled_handler_is_no_end(transport: Transport) -> None:
    """A handler that is cancelled by something else ends its own call, and nothing more."""
    async with containers(transport.address(), transport.address()) as (one, two):
        worker = Worker(two)
        proxy = await one.connect(worker.addr)
        call = proxy.work(1)
        await wait_until(lambda: worker.log)
        for client in two._connections:
            for job in client.channel._running:
                job.task.cancel()
        with pytest.raises(RemoteCancelledError):
            await call
        assert await proxy.note(2) == 2


# -- Contexts and servers --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def contexts(transport: Transport) -> AsyncIterator[tuple[Context, Context, Slow, str]]:
    """Give a client, a server, its slow resource, and the URL of that."""
    slow, site = Slow(), Site()
    site.add_resource(["slow"], slow)
    site.add_resource(["state"], Watched())
    server = await Context.create_server_context(site, transport.address())
    client = await Context.create_client_context()
    try:
        assert (await client.get(server.urls[0] + "state")) == b"state"
        yield client, server, slow, server.urls[0] + "slow"
    finally:
        await client.shutdown(grace=0)
        await server.shutdown(grace=0)


async def test_context_lets_handlers_end(transport: Transport) -> None:
    """A context of its own does as a container does: what is under way is answered, the rest refused."""
    async with contexts(transport) as (client, server, slow, url):
        request = asyncio.ensure_future(client.get(url))
        await wait_until(lambda: slow.begun)
        end = asyncio.ensure_future(server.shutdown(grace=20))
        await asyncio.sleep(0)
        late = client.request(Message(GET, uri=url))
        outcome = (await asyncio.gather(late.response, return_exceptions=True))[0]
        assert isinstance(outcome, ConnectionError) or outcome.code.dotted == "5.03"
        assert slow.begun == 1
        assert not end.done()
        slow.gate.set()
        assert await request == b"slow"
        await end
        assert not server.tokenmanager.remotes
        assert not server._tasks


async def test_grace_of_a_context_ends(transport: Transport) -> None:
    """Then the request is answered by 5.03."""
    async with contexts(transport) as (client, server, slow, url):
        request = client.request(Message(GET, uri=url))
        await wait_until(lambda: slow.begun)
        await server.shutdown(grace=0.02)
        assert (await request.response).code.dotted == "5.03"


async def test_cancelled_shutdown_of_a_context(transport: Transport) -> None:
    """Whenever it is cancelled, everything is on its way to be closed; to be told again does it no harm."""
    for turns in (*range(6), 9, 15):
        async with contexts(transport) as (client, server, slow, url):
            request = client.request(Message(GET, uri=url))
            await wait_until(lambda slow=slow: slow.begun)
            end = asyncio.ensure_future(server.shutdown(grace=20))
            for _ in range(turns):
                await asyncio.sleep(0)
            end.cancel()
            await asyncio.gather(end, return_exceptions=True)
            if turns:
                assert not server.tokenmanager.remotes
            await server.shutdown(grace=0)
            outcome = (await asyncio.gather(request.response, return_exceptions=True))[0]
            assert isinstance(outcome, ConnectionError) or outcome.code.dotted == "5.03"
            assert not server._tasks


async def test_resource_ends_its_context(transport: Transport) -> None:
    """The handler that does so is not waited for by itself."""

    class Ending(Resource):
        async def render_get(self, request: Message) -> Message:
            await server.shutdown(grace=1000)
            ended.set()
            return Message(CONTENT)

    ended = asyncio.Event()
    async with contexts(transport) as (client, server, _, _):
        assert isinstance(server.serversite, Site)
        server.serversite.add_resource(["end"], Ending())
        request = client.request(Message(GET, uri=server.urls[0] + "end"))
        await asyncio.wait_for(ended.wait(), 5)
        assert (await request.response).code.dotted == "5.03"


async def test_server_shuts_down(transport: Transport) -> None:
    """``Server.shutdown`` lets the handlers of all connections end, and closes these."""

    class Service:
        router = rpc.Service()

        @rpc.expose
        async def work(self) -> str:
            begun.append(1)
            await gate.wait()
            return "done"

    begun: list[int] = []
    gate = asyncio.Event()
    server = await rpc.start_server(transport.address(), Service())
    clients = [await rpc.open_connection(server.url) for _ in range(3)]
    calls = [client.remote.work() for client in clients]
    await wait_until(lambda: len(begun) == 3)
    end = asyncio.ensure_future(server.shutdown(grace=20))
    await asyncio.sleep(0)
    assert not server.is_serving()
    assert not end.done()
    gate.set()
    assert await asyncio.gather(*calls) == ["done"] * 3
    await end
    assert not server._connections
    with pytest.raises(ValueError, match="grace"):
        await server.shutdown(grace=-1)
    for client in clients:
        await client.close()
