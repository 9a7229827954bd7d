"""Deadlines around calls: what they bound, how they travel, and that they end where they should."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import arrow
import pytest
from conftest import Transport
from waiting import wait_until

import aiomas_ng
from aiomas_ng import Agent, Container, channel, deadlines, expose, rpc, util
from aiomas_ng._core.deadline import get_deadline
from aiomas_ng.agent import _get_base_url
from aiomas_ng.clocks import AsyncioClock, BaseClock, ExternalClock
from aiomas_ng.codecs import JSON
from aiomas_ng.exceptions import (
    CallTimeoutError,
    ConnectError,
    DeadlineExceededError,
    RemoteException,
)
from tests.faults import (
    CANCEL,
    EXCEPTION,
    MESSAGE,
    REQUEST,
    RESULT,
    SESSION,
    RawPeer,
    connect_raw,
    listen_raw,
    open_link,
    serve,
)

START = "2026-01-01"
LOCAL = Transport("local", Path())


class Worker(Agent):
    """An agent that says what bounds it, and waits for others."""

    def __init__(self, container: Container, aid: str | None = None) -> None:
        super().__init__(container, aid=aid)
        self.notes: list[Any] = []
        self.gate = asyncio.Event()
        self.cancelled = 0
        self.next: Any = None
        self.find: Callable[[], Any] = list
        self.tasks: set[asyncio.Task[Any]] = set()

    def on_ready(self) -> None:
        self.notes.append(("ready", get_deadline()))

    @expose
    def note(self, value: Any = None) -> Any:
        self.notes.append(value)
        return value

    @expose
    def get_remaining(self) -> tuple[Any, Any]:
        """What is left, of real and of simulated time."""
        return deadlines.remaining(), deadlines.remaining(clock=self.container.clock)

    @expose
    def note_remaining(self) -> None:
        self.notes.append(deadlines.remaining())

    @expose
    async def get_remaining_later(self) -> tuple[Any, Any]:
        await asyncio.sleep(0)
        return self.get_remaining()

    @expose
    async def ask(self, hops: int, within: float | None = None) -> tuple[Any, Any]:
        """Ask the next one, and so on."""
        with deadlines.within(within):
            return self.get_remaining() if not hops else await self.next.ask(hops - 1)

    @expose
    async def wait(self) -> str:
        self.notes.append("waiting")
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "done"

    @expose
    async def count(self, stop: int) -> AsyncIterator[int]:
        try:
            for number in range(stop):
                yield number
            self.notes.append("waiting")
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    @expose
    def hand_on(self) -> Any:
        return self.next.wait()

    @expose
    def work_long(self) -> str:
        """Work until time is over, without a turn of the loop."""
        while True:
            deadlines.check("the long work")
            time.sleep(0.001)

    @expose
    async def begin_background(self) -> None:
        async def look() -> None:
            self.notes.append(get_deadline())

        await util.create_task(look())
        self.container.clock.call_in(0.001, lambda: self.notes.append(get_deadline()))

    @expose
    async def run_find(self) -> Any:
        return await self.find()

    @expose
    async def create(self, aid: str) -> None:
        Worker(self.container, aid)


@contextlib.asynccontextmanager
async def open_agents(
    transport: Transport, count: int = 2, clocks: list[BaseClock] | None = None, **kwds: Any
) -> AsyncIterator[list[Worker]]:
    """Give agents in containers of their own, each connected with the next one, the last with the first."""
    async with contextlib.AsyncExitStack() as stack:
        workers = []
        for index in range(count):
            own = {"clock": clocks[index]} if clocks else {}
            container = await Container.create(transport.address(), as_coro=True, **own, **kwds)
            stack.push_async_callback(container.shutdown, as_coro=True)
            workers.append(Worker(container, "w"))
        for worker, following in zip(workers, [*workers[1:], workers[0]], strict=True):
            worker.next = await worker.container.connect(following.addr)
        yield workers


@contextlib.asynccontextmanager
async def open_raw(worker: Worker, *, greets: bool = True) -> AsyncIterator[RawPeer]:
    """Give a peer that has connected to the container of *worker*."""
    peer = RawPeer(greets=greets)
    await connect_raw(worker.container._base_url, peer)
    try:
        yield peer
    finally:
        peer.abort()


def is_idle(*workers: Worker) -> bool:
    """Return whether nothing is worked on, and nothing is waited for."""
    return not any(
        client.channel._exchange.calls or client.channel._exchange.jobs or client.channel._running
        for worker in workers
        for client in worker.container._connections
    )


# -- Scopes ----------------------------------------------------------------------------------------


async def test_no_deadline() -> None:
    """Without one, nothing is left to count, and nothing is over."""
    assert deadlines.remaining() is None
    assert deadlines.remaining(clock=ExternalClock(START)) is None
    deadlines.check()
    for nothing in (deadlines.within(None), deadlines.within(math.inf), deadlines.none()):
        with nothing:
            assert deadlines.remaining() is None
            assert get_deadline() is None


async def test_nested_deadlines_only_get_tighter() -> None:
    """The shortest one counts inside, and the one around again afterwards."""
    with deadlines.within(100):
        with deadlines.within(10):
            with deadlines.within(50):
                left = deadlines.remaining()
                assert left is not None
                assert 9 < left <= 10.01
            with deadlines.within(None):
                assert deadlines.remaining() <= 10.01  # type: ignore[operator]
        assert deadlines.remaining() > 90  # type: ignore[operator]
        with deadlines.none():
            assert deadlines.remaining() is None
            with deadlines.within(200):
                assert deadlines.remaining() > 190  # type: ignore[operator]
    assert deadlines.remaining() is None


async def test_clocks_do_not_disturb_each_other() -> None:
    """Real and simulated time, and several clocks, are bounds side by side."""
    clock, other = ExternalClock(START), ExternalClock(START, init_time=50)
    with deadlines.within(60, clock=clock), deadlines.within(5), deadlines.within(7, clock=other):
        assert deadlines.remaining(clock=clock) == 60
        assert deadlines.remaining(clock=other) == 7
        assert 4 < deadlines.remaining() <= 5.01  # type: ignore[operator]
        clock.set_time(59)
        assert deadlines.remaining(clock=clock) == 1
        deadlines.check()
        clock.set_time(60)
        assert deadlines.remaining(clock=clock) == 0
        with pytest.raises(DeadlineExceededError, match="the work has no time left"):
            deadlines.check()
        with pytest.raises(DeadlineExceededError, match="planning"):
            deadlines.check("planning")


async def test_until_a_point_in_time() -> None:
    """A deadline may be a date, or a time of the clock; both are the same point."""
    clock = ExternalClock(START, init_time=10)
    with deadlines.until(25, clock=clock):
        assert deadlines.remaining(clock=clock) == 15
    with deadlines.until(arrow.get(START).shift(seconds=25.25), clock=clock):
        assert deadlines.remaining(clock=clock) == 15.25
    loop = asyncio.get_running_loop()
    real = AsyncioClock()
    for scope in (
        deadlines.until(loop.time() + 30),
        deadlines.until(loop.time() + 30, clock=real),
        deadlines.until(arrow.utcnow().shift(seconds=30)),
        deadlines.until(arrow.utcnow().shift(seconds=30), clock=real),
        deadlines.within(30, clock=real),
    ):
        with scope:
            assert 29 < deadlines.remaining() <= 30.01  # type: ignore[operator]
            assert 29 < deadlines.remaining(clock=real) <= 30.01  # type: ignore[operator]


@pytest.mark.parametrize("seconds", [0, -1, -math.inf])
async def test_a_deadline_that_has_passed(seconds: float) -> None:
    """No time, or less, is over at once."""
    with deadlines.within(seconds):
        assert deadlines.remaining() == 0
        with pytest.raises(DeadlineExceededError):
            deadlines.check()


def test_what_is_no_time_is_refused() -> None:
    """NaN is no number of seconds, on whichever clock."""
    for clock in (None, ExternalClock(START)):
        with pytest.raises(ValueError, match="NaN"):
            deadlines.within(math.nan, clock=clock)
        with pytest.raises(ValueError, match="NaN"):
            deadlines.until(math.nan, clock=clock)


def test_outside_of_a_loop() -> None:
    """Synchronous code can look as well."""
    with deadlines.within(5):
        assert 4 < deadlines.remaining() <= 5.01  # type: ignore[operator]
        deadlines.check()


async def test_a_scope_is_for_one_with() -> None:
    """One that is used again would count from its making, which nobody means."""
    scope = deadlines.within(5)
    with scope, pytest.raises(RuntimeError, match="one 'with' only"), scope:
        pass
    with pytest.raises(RuntimeError, match="one 'with' only"), scope:
        pass


async def test_a_generator_that_another_task_closes() -> None:
    """A deadline in an async generator that was not run to its end disturbs nobody."""

    async def generate() -> AsyncIterator[int]:
        with deadlines.within(5):
            yield 1
            yield 2

    generator = generate()
    assert await anext(generator) == 1
    with deadlines.within(100):
        await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
        left = deadlines.remaining()
    assert left is not None


async def test_tasks_inherit_and_background_tasks_do_not() -> None:
    """A task has the deadlines around its creation; one in the background has none."""
    found: list[Any] = []

    async def look() -> None:
        found.append(deadlines.remaining() is not None)

    with deadlines.within(5):
        await asyncio.create_task(look())
        async with asyncio.TaskGroup() as group:
            group.create_task(look())
        await util.create_task(look())
        with deadlines.none():
            inner = asyncio.create_task(look())
    await inner
    assert found == [True, True, False, False]


async def test_timers_have_no_deadline() -> None:
    """What a clock calls later is not bound by what bounded its setting."""
    found: list[Any] = []
    clock = ExternalClock(START)
    done = asyncio.Event()
    with deadlines.within(5):
        clock.call_in(1, lambda: found.append(get_deadline()))
        AsyncioClock().call_in(0.001, lambda: (found.append(get_deadline()), done.set()))
    clock.set_time(1)
    await done.wait()
    assert found == [None, None]


# -- What is bound ---------------------------------------------------------------------------------


async def iterate(stream: Any) -> list[Any]:
    """Return all items."""
    return [item async for item in stream]


WAYS: dict[str, Callable[[Any], Any]] = {
    "call": lambda agent: agent.wait(),
    "plain": lambda agent: agent.hand_on(),
    "batch": lambda agent: rpc.batch([partial(agent.wait), partial(agent.note, 1)]),
    "stream": lambda agent: iterate(agent.count(3)),
    "timeout": lambda agent: rpc.with_options(agent.wait, timeout=3600)(),
}


@pytest.mark.parametrize("way", WAYS)
async def test_calls_end_when_the_deadline_passes(transport: Transport, way: str) -> None:
    """Whatever the sort of call, it fails with the one error, and the work on it is given up."""
    async with open_agents(transport, 3) as (first, second, third):
        with pytest.raises(DeadlineExceededError) as caught, deadlines.within(0.05):
            await WAYS[way](first.next)
        assert isinstance(caught.value, CallTimeoutError)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.was_sent
        assert 0 < caught.value.timeout <= 0.051
        assert "by its deadline" in str(caught.value)
        await wait_until(lambda: is_idle(first, second, third))
        assert await first.next.note(5) == 5


@pytest.mark.parametrize("way", WAYS)
async def test_calls_end_in_simulated_time(transport: Transport, way: str) -> None:
    """The same by a clock that all share, exactly when its time comes, and no timer is left in it."""
    clock = ExternalClock(START)
    async with open_agents(transport, 3, [clock] * 3) as (first, second, third):
        with deadlines.within(60, clock=clock):
            task = asyncio.ensure_future(WAYS[way](first.next))
            await wait_until(lambda: "waiting" in second.notes + third.notes)
        clock.set_time(59.999)
        await asyncio.sleep(0.01)
        assert not task.done()
        clock.set_time(60)
        with pytest.raises(DeadlineExceededError) as caught:
            await task
        assert caught.value.timeout == 60
        await wait_until(lambda: is_idle(first, second, third))
        assert clock.next_due() is None
        assert second.cancelled + third.cancelled == 1


async def test_a_deadline_in_time_leaves_nothing(transport: Transport) -> None:
    """Calls that end in time are what they are without a deadline, and their timers are gone."""
    clock = ExternalClock(START)
    async with open_agents(transport, 2, [clock] * 2) as (first, second):
        with deadlines.within(60, clock=clock), deadlines.within(60):
            assert await first.next.note({"a": "b"}) == {"a": "b"}
            assert await rpc.batch([partial(first.next.note, n) for n in range(100)]) == list(range(100))
            second.gate.set()
            assert await first.next.wait() == "done"
            assert await iterate(first.next.count(200)) == list(range(200))
            with pytest.raises(RemoteException, match="argument") as caught:
                await first.next.note(1, 2, 3)
            assert not isinstance(caught.value, DeadlineExceededError)
        await wait_until(lambda: clock.next_due() is None)


async def test_what_is_begun_too_late_is_not_sent(transport: Transport) -> None:
    """After the deadline has passed, no call of any sort leaves, and each says so."""
    async with open_agents(transport, 2) as (first, second):
        notes = len(second.notes)
        agent = first.next
        with deadlines.within(0):
            for call in (agent.note, rpc.with_options(agent.note, oneway=True), agent.wait, agent.count):
                with pytest.raises(DeadlineExceededError, match="was not sent") as caught:
                    call(1)
                assert caught.value.was_sent is False
            with pytest.raises(DeadlineExceededError, match="was not sent"):
                await rpc.batch([partial(agent.note, 1)])
            results = await rpc.batch([partial(agent.note, n) for n in range(3)], return_exceptions=True)
            assert [type(result) for result in results] == [DeadlineExceededError] * 3
            with pytest.raises(DeadlineExceededError, match="was not sent"):
                agent._channel.send(["note", [], {}])
        assert is_idle(first, second)
        assert await agent.note(7) == 7
        assert second.notes[notes:] == [7]


async def test_a_call_within_a_container() -> None:
    """A call that stays in its container is bound as well, and its function is."""
    async with open_agents(LOCAL, 1) as (worker,):
        own = await worker.container.connect(worker.addr)
        assert await own.get_remaining() == (None, None)
        with deadlines.within(10):
            real, _ = await own.get_remaining()
            assert 9 < real <= 10.01
        with pytest.raises(DeadlineExceededError), deadlines.within(0.02):
            await own.wait()
        await wait_until(lambda: is_idle(worker))
        with deadlines.within(0), pytest.raises(DeadlineExceededError):
            own.note(1)
        assert await own.get_remaining() == (None, None)


async def test_a_call_before_a_deadline_is_not_bound_by_it() -> None:
    """What counts is where the call is made, and not where it is waited for."""
    async with open_agents(LOCAL, 2) as (first, second):
        own = await first.container.connect(first.addr)
        for agent in (first.next, own):
            reply = agent.get_remaining()
            with deadlines.within(0):
                assert await reply == (None, None)
        with deadlines.within(10):
            reply = first.next.get_remaining()
        assert (await reply)[0] > 9
        assert second.notes


async def test_the_smaller_of_timeout_and_deadline(transport: Transport) -> None:
    """A call with a timeout of its own ends by what comes first, and the error tells which that was."""
    async with open_agents(transport, 2) as (first, _):
        with pytest.raises(CallTimeoutError) as caught, deadlines.within(3600):
            await rpc.with_options(first.next.wait, timeout=0.02)()
        assert type(caught.value) is CallTimeoutError
        with pytest.raises(DeadlineExceededError), deadlines.within(0.02):
            await rpc.with_options(first.next.wait, timeout=3600)()


async def test_requests_of_a_channel(transport: Transport) -> None:
    """What is sent over a channel by hand is bound, and its content stays what it is."""
    received: list[Any] = []

    async def never(content: Any) -> None:
        received.append(content)
        await asyncio.Event().wait()

    async with open_link(transport) as (client, server):
        serve(server, never)
        with pytest.raises(DeadlineExceededError, match="the request did not end"), deadlines.within(0.05):
            await client.send(["a", [], {}])
        await wait_until(lambda: not server._running)
        assert list(received[0]) == ["a", (), {}] or list(received[0]) == ["a", [], {}]
        assert not client._exchange.calls


async def test_items_that_have_come_in_time_can_be_read(transport: Transport) -> None:
    """A stream that the deadline ends still gives what has arrived, and then the error."""
    clock = ExternalClock(START)
    async with open_agents(transport, 2, [clock] * 2) as (first, second):
        with deadlines.within(60, clock=clock):
            stream = await first.next.count(3)
        await wait_until(lambda: len(stream._state._items) == 3)
        clock.set_time(60)
        await wait_until(lambda: stream._state.is_ended)
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(DeadlineExceededError):
            await anext(stream)
        await wait_until(lambda: is_idle(first, second))
        assert second.cancelled == 1


# -- Connections -----------------------------------------------------------------------------------


async def test_connecting_is_bound(transport: Transport) -> None:
    """``connect()`` gives up when the deadline passes, whatever its own timeout is."""
    async with open_agents(transport, 1) as (worker,):
        address = transport.address()
        if transport.kind == "tcp":
            address = ("127.0.0.1", await find_free_port())
        url = _get_base_url(address)
        for timeout in (None, 3600):
            with pytest.raises(DeadlineExceededError, match="the connection to"), deadlines.within(0.05):
                await worker.container.connect(url + "x", timeout=timeout)
        with pytest.raises(ConnectError):  # which is no matter of time
            await worker.container.connect(url + "x")
        with deadlines.within(0), pytest.raises(DeadlineExceededError, match="was not sent"):
            await worker.container.connect(url + "x", timeout=None)
        with pytest.raises(DeadlineExceededError, match="the connection to"), deadlines.within(0.05):
            await rpc.open_connection(address, timeout=None)
        with pytest.raises(DeadlineExceededError, match="the connection to"), deadlines.within(0.05):
            await channel.open_connection(address, timeout=3600)


async def find_free_port() -> int:
    """Return a port that nobody listens at."""
    async with await channel.start_server(("127.0.0.1", 0), lambda _: None) as server:
        return int(server.address.place[1])


async def test_connecting_in_simulated_time() -> None:
    """The deadline of a connection may be one of simulated time."""
    clock = ExternalClock(START)
    async with open_agents(LOCAL, 1, [clock]) as (worker,):
        with deadlines.within(60, clock=clock):
            task = asyncio.create_task(worker.container.connect("local://nobody/x", timeout=None))
        for _ in range(20):
            await asyncio.sleep(0)
        clock.set_time(1000)  # far beyond
        with pytest.raises(DeadlineExceededError):
            await task


async def test_one_that_gives_up_connecting_leaves_the_others(transport: Transport) -> None:
    """Several wait for one connection: the one whose deadline passes goes, and the others get it."""
    async with open_agents(transport, 2) as (first, second):
        url = second.container._base_url
        peer = first.container._peers.get(first.next._link.address)
        await peer.client.close()
        server, second.container._tcp_server = second.container._tcp_server, None
        release = asyncio.Event()
        original = first.container._peers._open

        async def slow(*args: Any) -> Any:
            await release.wait()
            return await original(*args)

        first.container._peers._open = slow
        with deadlines.within(0.05):
            hurried = first.next.note(1)
            impatient = asyncio.create_task(first.container.connect(second.addr))
        patient = first.next.note(2)
        other = asyncio.create_task(first.container.connect(second.addr))
        with pytest.raises(DeadlineExceededError, match="was not sent") as caught:
            await hurried
        assert caught.value.was_sent is False
        with pytest.raises(DeadlineExceededError):
            await impatient
        release.set()
        assert await patient == 2
        assert (await other)._url == url
        assert 1 not in second.notes
        second.container._tcp_server = server


async def test_calls_that_wait_for_a_connection_keep_their_deadlines(transport: Transport) -> None:
    """Each call that waits for a connection has its own deadline; that of the first one, which connects for
    all, is not theirs."""
    async with open_agents(transport, 2) as (first, _):
        # The new connection has to be known to lead to one of ours, or nothing is told over it.
        await first.next._link.client.close()
        with deadlines.within(10):
            one = first.next.get_remaining()
        two = first.next.get_remaining()
        with deadlines.within(20):
            three = first.next.get_remaining()
        await asyncio.gather(one, two, three)
        with deadlines.within(0.02):
            late = first.next.wait()
        with pytest.raises(DeadlineExceededError):
            await late
        assert await first.next.get_remaining() == (None, None)


async def test_calls_that_wait_tell_their_deadlines() -> None:
    """Where the peer is known by then, as the own container is, each call that has waited for the connection
    tells what is left for it."""
    async with open_agents(LOCAL, 1) as (worker,):
        own = await worker.container.connect(worker.addr)
        await own._link.client.close()
        with deadlines.within(10):
            one = own.get_remaining()
        two = own.get_remaining()
        with deadlines.within(20):
            three = own.get_remaining()
        (first, _), second, (third, _) = await asyncio.gather(one, two, three)
        assert 9 < first <= 10.01
        assert second == (None, None)
        assert 19 < third <= 20.01


async def test_a_container_that_does_not_answer(transport: Transport) -> None:
    """Where a connection is made but nobody answers, the error is that of the deadline, and not one of the
    connection."""
    peer = RawPeer()
    async with open_agents(LOCAL, 1) as (worker,), listen_raw(transport, lambda: peer) as address:
        with pytest.raises(DeadlineExceededError, match="validate_aid"), deadlines.within(0.1):
            await worker.container.connect(_get_base_url(address) + "x", timeout=None)
        peer.abort()


async def test_a_one_way_call_that_cannot_be_sent_in_time(caplog: pytest.LogCaptureFixture) -> None:
    """It is dropped, and the log is told, as nobody else can be."""
    async with open_agents(LOCAL, 2) as (first, second):
        release = asyncio.Event()
        original = first.container._peers._open

        async def slow(*args: Any) -> Any:
            await release.wait()
            return await original(*args)

        await first.next._link.client.close()
        first.container._peers._open = slow
        with deadlines.within(0.02):
            assert rpc.with_options(first.next.note, oneway=True)("late") is None
        await wait_until(lambda: "was given up" in caplog.text)
        release.set()
        assert await first.next.note(1) == 1
        assert "late" not in second.notes


async def test_a_connection_outlives_the_deadline_in_which_it_was_made(transport: Transport) -> None:
    """What comes over a connection is bound by what its sender says, and not by what bounded its making, on
    neither side."""
    with deadlines.within(3600):
        async with open_agents(transport, 2) as (first, second):
            with deadlines.none():
                assert await first.next.get_remaining() == (None, None)
                assert await first.next.get_remaining_later() == (None, None)
                assert await second.next.get_remaining_later() == (None, None)
                assert await rpc.batch([first.next.get_remaining_later]) == [(None, None)]
            assert ("ready", None) in first.notes


async def test_callbacks_of_a_connection_have_no_deadline(transport: Transport) -> None:
    """What a server or a client does when a connection comes or ends is not bound by what bounded its own
    beginning, nor by what bounded the last one who resumed reading."""
    found: list[Any] = []
    ended = asyncio.Event()

    def connected(client: rpc.RpcClient) -> None:
        found.append(get_deadline())
        client.channel._stop_reading()
        with deadlines.within(3600):
            client.channel._start_reading()
        client.on_connection_reset(lambda _: (found.append(get_deadline()), ended.set()))

    class Desk:
        router = rpc.Service()

    with deadlines.within(3600):
        server = await rpc.start_server(transport.address(), Desk(), connected, start_serving=False)
        await server.start_serving()
    async with server:
        client = await rpc.open_connection(server.url)
        await wait_until(lambda: found)
        await client.close()
        await ended.wait()
        assert found == [None, None]


async def test_a_connection_that_is_taken_up_again(transport: Transport) -> None:
    """A break that is noticed where a deadline has passed is mended all the same, and calls that were under
    way keep their own."""

    class Desk:
        router = rpc.Service()
        gate = asyncio.Event()

        @rpc.expose
        async def wait(self) -> bool:
            await self.gate.wait()
            return get_deadline() is not None

    async with await rpc.start_server(transport.address(), Desk(), resumable=True) as server:
        client = await rpc.open_connection(server.url, resumable=True)
        try:
            Desk.gate.set()
            assert await client.remote.wait() is False
            Desk.gate.clear()
            resumption: Any = client.channel._protocol._resumption
            await wait_until(lambda: resumption.session.state.name == "OPEN")
            with deadlines.within(3600):
                bound = client.remote.wait()
            with deadlines.within(0.05):
                late = client.remote.wait()
            with deadlines.within(0):
                resumption.interrupt("the test wants it")
            with pytest.raises(DeadlineExceededError):
                await late
            await wait_until(
                lambda: resumption.session.state.name == "OPEN" and client.channel.transport.wire
            )
            free = client.remote.wait()
            Desk.gate.set()
            assert await bound is True
            assert await free is False
        finally:
            await client.close()
            server.close_clients()


async def test_reading_that_was_resumed_under_a_deadline(transport: Transport) -> None:
    """Event loops keep the context in which a transport was resumed for all that it reads afterwards."""
    async with open_agents(transport, 2) as (first, second):
        for client in [*first.container._connections, *second.container._connections]:
            client.channel._stop_reading()
            with deadlines.within(3600):
                client.channel._start_reading()
        assert await first.next.get_remaining() == (None, None)
        for client in second.container._connections:  # even where somebody does that by himself
            client.channel.transport.pause_reading()
            with deadlines.within(3600):
                client.channel.transport.resume_reading()
        assert await first.next.get_remaining() == (None, None)
        assert await first.next.get_remaining_later() == (None, None)
        with deadlines.within(10):
            assert (await first.next.get_remaining_later())[0] <= 10.01


# -- The way to the peer ---------------------------------------------------------------------------


async def test_the_time_that_is_left_travels(transport: Transport) -> None:
    """At each hop there is a little less than at the one before, and never more."""
    async with open_agents(transport, 4) as workers:
        for hops in range(1, 8):
            with deadlines.within(100):
                real, _ = await workers[0].next.ask(hops)
                after = deadlines.remaining()
            assert after is not None
            assert after <= real <= 100
        assert await workers[0].next.ask(5) == (None, None)


async def test_simulated_time_travels_exactly(transport: Transport) -> None:
    """Each hop measures by its own clock, whatever time that shows."""
    clocks = [ExternalClock(START, init_time=init) for init in (0, 1000.5, 77)]
    async with open_agents(transport, 3, list(clocks)) as workers:
        with deadlines.within(60.25, clock=clocks[0]):
            assert await workers[0].next.ask(1) == (None, 60.25)
            assert await workers[0].next.ask(4) == (None, 60.25)
            clocks[0].set_time(10)
            assert await workers[0].next.ask(4) == (None, 50.25)
        with deadlines.within(60, clock=clocks[0]), deadlines.within(100):
            real, simulated = await workers[0].next.ask(4)
            assert 99 < real <= 100.01
            assert simulated == 60


async def test_a_tighter_one_on_the_way(transport: Transport) -> None:
    """A hop may give less time to those behind it; its own calls afterwards have all that is left."""
    async with open_agents(transport, 3) as workers:
        with deadlines.within(100):
            assert 9 < (await workers[0].next.ask(1, 10))[0] <= 10.01
            assert 99 < (await workers[0].next.ask(1, 500))[0] <= 100.01
            assert (await workers[0].next.ask(1))[0] > 90


@pytest.mark.parametrize("codec", [None, JSON])
async def test_it_travels_in_every_codec_and_sort_of_call(transport: Transport, codec: Any) -> None:
    """Plain functions, coroutines, batches, one-way calls and calls with large data have it."""
    async with open_agents(transport, 2, codec=codec) as (first, second):
        await first.next.note(1)
        agent = first.next
        with deadlines.within(50):
            found = [await agent.get_remaining(), await agent.get_remaining_later()]
            found += await rpc.batch([agent.get_remaining, agent.get_remaining_later])
            assert await agent.note(bytes(200_000)) == bytes(200_000)
            rpc.with_options(agent.note_remaining, oneway=True)()
            await wait_until(lambda: second.notes[-1] != bytes(200_000))
        assert [49 < real <= 50.01 for real, _ in found] == [True] * 4
        assert 49 < second.notes[-1] <= 50.01
        assert list(await agent.get_remaining()) == [None, None]


async def test_nothing_is_told_without_a_deadline_nor_to_a_stranger(transport: Transport) -> None:
    """Requests without a deadline are those of aiomas; with one, only a peer of ours gets to see it."""
    peer = RawPeer()
    async with listen_raw(transport, lambda: peer) as address:
        client = await rpc.open_connection(address)
        try:
            with deadlines.within(3600, clock=ExternalClock(START)), deadlines.within(3600):
                replies = [client.remote.f(1)]
                frame = await peer.recv()
                assert frame == [REQUEST, peer_first_id(), ["f", [1], {}]]
                with deadlines.none():
                    replies.append(client.remote.g(oneway=1))
                    assert (await peer.recv())[2] == ["g", [], {"oneway": 1}]
                peer.send(SESSION, 0, {"version": 1})
                await wait_until(lambda: client.channel._exchange.is_peer_ours)
                replies.append(client.remote.f(2))
                frame = await peer.recv()
                while frame[0] != REQUEST:
                    frame = await peer.recv()
                path, args, kwargs, metadata = frame[2]
                assert [path, args, kwargs] == ["f", [2], {}]
                assert set(metadata) == {"deadline", "simulated_deadline"}
                assert 3590 < metadata["deadline"] <= 3600.01
                assert metadata["simulated_deadline"] == 3600
                rpc.with_options(client.remote.h, oneway=True)(3)
                frame = await peer.recv()
                assert frame[:2] == [MESSAGE, 0]
                assert set(frame[2][3]) == {"deadline", "simulated_deadline"}
            replies.append(client.remote.f(4))
            assert (await peer.recv())[2] == ["f", [4], {}]
        finally:
            await client.close()
        for reply in replies:
            assert reply.exception() is not None


def peer_first_id() -> int:
    """Return the id by which a peer of ours is known."""
    return 0x616E6700


async def test_a_stranger_is_told_to_stop_when_it_is_known(transport: Transport) -> None:
    """A call that has left before anything was known of the peer ends in time, and is taken back as soon as
    the peer shows itself."""
    peer = RawPeer()
    async with listen_raw(transport, lambda: peer) as address:
        client = await rpc.open_connection(address)
        try:
            with pytest.raises(DeadlineExceededError), deadlines.within(0.02):
                await client.remote.f()
            _, msg_id, _ = await peer.recv()
            peer.send(SESSION, 0, {"version": 1})
            frames = [await peer.recv(), await peer.recv()]
            assert [CANCEL, msg_id, None] in frames
        finally:
            await client.close()


# -- At the peer -----------------------------------------------------------------------------------


async def test_work_is_given_up_though_nobody_tells(transport: Transport) -> None:
    """A handler is cancelled when the deadline passes, even if the caller says nothing any more, and the
    answer tells why."""
    async with open_agents(transport, 1) as (worker,), open_raw(worker) as peer:
        for content in (
            ["agents/w/wait", [], {}, {"deadline": 0.1}],
            [None, [["agents/w/note", [1], {}], ["agents/w/wait", [], {}]], {}, {"deadline": 0.1}],
        ):
            kind, _, content = await peer.recv_reply(peer.request(content))
            assert (kind, content[0]) == (EXCEPTION, "aiomas_ng.DeadlineExceededError")
            assert "the work on a call did not end by its deadline" in content[1]
        assert worker.cancelled == 2
        msg_id = peer.request(["agents/w/count", [2], {}, {"deadline": 0.1}])
        kind, _, content = await peer.recv_reply(msg_id)
        assert (kind, content[0]) == (EXCEPTION, "aiomas_ng.DeadlineExceededError")
        peer.send(MESSAGE, 0, ["agents/w/wait", [], {}, {"deadline": 0.1}])
        await wait_until(lambda: worker.cancelled == 3)
        await wait_until(lambda: is_idle(worker))
        assert await peer.call(["agents/w/note", [5], {}]) == 5


async def test_work_that_comes_too_late_is_not_begun(transport: Transport) -> None:
    """A request with no time left is answered at once, and not executed; so is a batch."""
    async with open_agents(transport, 1) as (worker,), open_raw(worker) as peer:
        for content in (
            ["agents/w/note", [1], {}, {"deadline": 0}],
            [None, [["agents/w/note", [1], {}]], {}, {"deadline": 0.0}],
        ):
            kind, _, content = await peer.recv_reply(peer.request(content))
            assert (kind, content[0]) == (EXCEPTION, "aiomas_ng.DeadlineExceededError")
            assert "no time left" in content[1]
        peer.send(MESSAGE, 0, ["agents/w/note", [1], {}, {"deadline": 0}])
        assert await peer.call(["agents/w/note", [2], {}]) == 2
        assert [note for note in worker.notes if isinstance(note, int)] == [2]


@pytest.mark.parametrize(
    "metadata",
    [
        {"deadline": -1},
        {"deadline": math.nan},
        {"deadline": math.inf},
        {"deadline": "5"},
        {"deadline": [5]},
        {"deadline": True},
        {"deadline": 2**60},
        {"simulated_deadline": -0.5},
        {"simulated_deadline": b"5"},
        5,
        "deadline",
        [["deadline", 5]],
        None,
    ],
    ids=repr,
)
async def test_a_bad_deadline_is_an_error_of_that_request(metadata: Any) -> None:
    """It is answered by what is wrong with it, the function is not run, and the connection goes on without a
    fault."""
    async with open_agents(LOCAL, 1) as (worker,), open_raw(worker) as peer:
        kind, _, content = await peer.recv_reply(peer.request(["agents/w/note", [1], {}, metadata]))
        assert (kind, content[0]) == (EXCEPTION, "aiomas_ng.DeserializationError")
        assert "deadline" in content[1] or "must be a map" in content[1]
        assert await peer.call(["agents/w/note", [2], {}, {}]) == 2
        assert [note for note in worker.notes if isinstance(note, int)] == [2]
        assert all(not client.channel._violations for client in worker.container._connections)


@pytest.mark.parametrize("rest", [[{}, {}], [{"deadline": 1}, 5, 6]])
async def test_a_request_with_too_many_parts(rest: list[Any]) -> None:
    """It is refused as what it is."""
    async with open_agents(LOCAL, 1) as (worker,), open_raw(worker) as peer:
        kind, _, content = await peer.recv_reply(peer.request(["agents/w/note", [1], {}, *rest]))
        assert (kind, content[0]) == (EXCEPTION, "aiomas_ng.DeserializationError")
        assert await peer.call(["agents/w/note", [2], {}]) == 2


async def test_a_plain_function(transport: Transport) -> None:
    """It cannot be interrupted, but what it calls is bound, and it may look by itself."""
    async with open_agents(transport, 3) as (first, second, third):
        with pytest.raises(DeadlineExceededError), deadlines.within(0.05):
            await first.next.hand_on()
        await wait_until(lambda: is_idle(first, second, third))
        with pytest.raises((DeadlineExceededError, RemoteException)), deadlines.within(0.05):
            await first.next.work_long()
        assert await first.next.note(1) == 1


async def test_the_context_of_a_handler_is_its_own(transport: Transport) -> None:
    """Its deadline does not stay behind for the next call, whichever sort of function there was."""
    async with open_agents(transport, 2) as (first, _):
        with deadlines.within(10):
            await first.next.get_remaining()
            await first.next.get_remaining_later()
            await rpc.batch([first.next.get_remaining])
            with pytest.raises(RemoteException):
                await first.next.note(1, 2, 3)
        assert await first.next.get_remaining() == (None, None)
        assert await first.next.get_remaining_later() == (None, None)
        assert await rpc.batch([first.next.get_remaining_later]) == [(None, None)]


async def test_what_goes_on_after_a_call(transport: Transport) -> None:
    """Background tasks, timers and new agents that a handler begins are not bound by its deadline."""
    async with open_agents(transport, 2) as (first, second):
        del second.notes[:]
        with deadlines.within(10):
            await first.next.begin_background()
            await first.next.create("new")
        await wait_until(lambda: len(second.notes) == 2)
        assert second.notes == [None, None]
        created = second.container.agents.dict["new"]
        await wait_until(lambda: created.notes)
        assert created.notes == [("ready", None)]


# -- Clocks that disagree --------------------------------------------------------------------------


async def test_a_peer_whose_clock_is_ahead(transport: Transport) -> None:
    """If the peer's simulated time is the first to reach the deadline, the caller is told, by the same error,
    and does not wait for its own clock."""
    clocks = [ExternalClock(START), ExternalClock(START)]
    async with open_agents(transport, 2, list(clocks)) as (first, second):
        with deadlines.within(60, clock=clocks[0]):
            reply = first.next.wait()
            batch = asyncio.ensure_future(rpc.batch([first.next.wait]))
            stream = await first.next.count(0)
        await wait_until(lambda: second.notes.count("waiting") == 3)
        clocks[1].set_time(60)
        for waiting in (reply, batch, anext(stream)):
            with pytest.raises(DeadlineExceededError) as caught:
                await waiting
            assert caught.value.timeout == 60
            assert isinstance(caught.value.__cause__, RemoteException)
        assert second.cancelled == 3
        await wait_until(lambda: is_idle(first, second))
        assert [clock.next_due() for clock in clocks] == [None, None]


async def test_a_peer_whose_clock_is_behind(transport: Transport) -> None:
    """The caller ends by its own clock, and the peer is told."""
    clocks = [ExternalClock(START), ExternalClock(START)]
    async with open_agents(transport, 2, list(clocks)) as (first, second):
        with deadlines.within(60, clock=clocks[0]):
            reply = first.next.wait()
        await wait_until(lambda: "waiting" in second.notes)
        clocks[0].set_time(60)
        with pytest.raises(DeadlineExceededError) as caught:
            await reply
        assert caught.value.__cause__ is None
        await wait_until(lambda: is_idle(first, second))
        assert second.cancelled == 1
        assert clocks[1].next_due() is None


async def test_a_clock_that_is_set_far_ahead(transport: Transport) -> None:
    """All deadlines that it has passed by then come true, at once."""
    clock = ExternalClock(START)
    async with open_agents(transport, 2, [clock] * 2) as (first, second):
        replies = []
        for seconds in (10, 20, 30, 5000):
            with deadlines.within(seconds, clock=clock):
                replies.append(first.next.wait())
        await wait_until(lambda: second.notes.count("waiting") == 4)
        clock.set_time(4000)
        outcomes = await asyncio.gather(*replies[:3], return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [DeadlineExceededError] * 3
        await wait_until(lambda: second.cancelled == 3)
        second.gate.set()
        assert await replies[3] == "done"


async def test_simulated_time_where_nobody_can_measure_it(transport: Transport) -> None:
    """A container in real time takes no notice of it; the caller still ends the work."""
    clock = ExternalClock(START)
    async with open_agents(transport, 2, [clock, AsyncioClock()]) as (first, second):
        with deadlines.within(0.001, clock=clock):
            assert await first.next.get_remaining() == (None, None)
            reply = first.next.wait()
        await wait_until(lambda: "waiting" in second.notes)
        clock.set_time(1)
        with pytest.raises(DeadlineExceededError):
            await reply
        await wait_until(lambda: second.cancelled == 1)


async def test_rpc_with_a_clock(transport: Transport) -> None:
    """Services without containers measure simulated time if they are given a clock."""
    clocks = [ExternalClock(START), ExternalClock(START, init_time=5)]

    class Desk:
        router = rpc.Service()

        @rpc.expose
        def get_remaining(self) -> float | None:
            return deadlines.remaining(clock=clocks[1])

    async with await rpc.start_server(transport.address(), Desk(), clock=clocks[1]) as server:
        client = await rpc.open_connection(server.url, clock=clocks[0])
        try:
            await client.remote.get_remaining()
            with deadlines.within(60, clock=clocks[0]):
                assert await client.remote.get_remaining() == 60
        finally:
            await client.close()
            server.close_clients()


async def test_errors_of_a_nested_deadline(transport: Transport) -> None:
    """A handler that runs out of the time that it has set by itself has failed; that is no deadline of its
    caller's."""
    async with open_agents(transport, 3) as (first, second, _):

        async def ask_in_vain() -> Any:
            with deadlines.within(0.01):
                return await second.next.wait()

        second.find = ask_in_vain
        with deadlines.within(10), pytest.raises(RemoteException) as caught:
            await first.next.run_find()
        assert not isinstance(caught.value, DeadlineExceededError)
        assert caught.value.type_name == "DeadlineExceededError"
        assert caught.value.method == "run_find"


def test_it_is_public() -> None:
    """The module is reached through the package, and its error is part of the tree."""
    assert aiomas_ng.deadlines is deadlines
    assert issubclass(DeadlineExceededError, CallTimeoutError)
    assert str(DeadlineExceededError("the call of 'f'", 2.5)) == (
        "the call of 'f' did not end by its deadline, 2.5 s after it was begun"
    )
    assert all(hasattr(deadlines, name) for name in deadlines.__all__)
    assert RESULT == 1
