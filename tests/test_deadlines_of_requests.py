"""Deadlines around requests to resources: single ones, bodies in blocks, streams, observations, forwarded
ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import Transport
from waiting import wait_until

from aiomas_ng import Agent, Cache, Container, Context, deadlines, expose
from aiomas_ng._core.deadline import get_deadline
from aiomas_ng.agent import _get_base_url
from aiomas_ng.channel import Limits
from aiomas_ng.clocks import BaseClock, ExternalClock
from aiomas_ng.error import RequestTimedOut, ResponseWrappingError
from aiomas_ng.exceptions import DeadlineExceededError
from aiomas_ng.message import GET, POST, Code, Message, OptionNumber
from aiomas_ng.pipe import IterablePipe, Pipe
from aiomas_ng.resource import ObservableResource, Resource
from tests.faults import MESSAGE, RawPeer, connect_raw, listen_raw

START = "2026-01-01"
DEADLINE, SIMULATED = int(OptionNumber.DEADLINE), int(OptionNumber.SIMULATED_DEADLINE)
URI_PATH, OBSERVE, BLOCK2, NO_RESPONSE = 11, 6, 23, 258
CONTENT, GATEWAY_TIMEOUT = 69, 164


class Waiting(Resource):
    """Waits for the gate of its agent."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper

    async def render_get(self, request: Message) -> Message:
        return await self.keeper.wait()

    async def render_post(self, request: Message) -> Message:
        self.keeper.sizes.append(len(request.payload))
        return Message(payload=bytes(len(request.payload)))


class Plain(Resource):
    """Says what bounds it, and what options it was asked with."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper

    def render_get(self, request: Message) -> Message:
        self.keeper.notes.append([number for number, _ in request.opt.option_list()])
        clock = self.keeper.container.clock
        left = (deadlines.remaining(), deadlines.remaining(clock=clock))
        return Message(payload=repr(left).encode(), content_format=0)


class Level(ObservableResource):
    """A state to be observed."""

    def __init__(self, keeper: Keeper) -> None:
        super().__init__()
        self.keeper = keeper
        self.level = 0

    async def render_get(self, request: Message) -> Message:
        self.keeper.bounds.append(get_deadline() is not None)
        if self.keeper.is_slow:
            return await self.keeper.wait()
        size = self.keeper.size
        return Message(payload=str(self.level).encode() + b" " * size, content_format=0)


class Stream(Resource):
    """A stream of responses without an end."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper

    async def render_to_pipe(self, pipe: Pipe) -> None:
        pipe.add_response(Message(Code.CONTENT, b"first"))
        await self.keeper.wait()


class Own(Resource):
    """Notifies by itself, and looks what bounds it meanwhile."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper

    async def render_to_pipe(self, pipe: Pipe) -> None:
        for number in range(3):
            self.keeper.bounds.append(get_deadline() is not None)
            pipe.add_response(Message(Code.CONTENT, str(number).encode(), observe=number))
            await pipe.drain()
        await self.keeper.wait()


class Keeper(Agent):
    """Has the resources."""

    def __init__(self, container: Container, aid: str = "k") -> None:
        super().__init__(container, aid=aid)
        self.gate = asyncio.Event()
        self.cancelled = 0
        self.working = 0
        self.notes: list[Any] = []
        self.sizes: list[int] = []
        self.bounds: list[bool] = []
        self.size = 0
        self.is_slow = False
        self.level = Level(self)
        self.site.add_resource("waiting", Waiting(self))
        self.site.add_resource("plain", Plain(self))
        self.site.add_resource("level", self.level)
        self.site.add_resource("stream", Stream(self))
        self.site.add_resource("own", Own(self))

    async def wait(self) -> Message:
        self.working += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.working -= 1
        return Message(payload=b"done", content_format=0)

    @expose
    async def fetch(self, url: str) -> Any:
        return await self.container.context.get(url)

    @expose
    def set_level(self, level: int) -> None:
        self.level.level = level
        self.level.updated_state()


@contextlib.asynccontextmanager
async def open_keepers(
    transport: Transport, count: int = 2, clocks: list[BaseClock] | None = None, **kwds: Any
) -> AsyncIterator[list[Keeper]]:
    """Give agents in containers of their own."""
    async with contextlib.AsyncExitStack() as stack:
        keepers = []
        for index in range(count):
            own = {"clock": clocks[index]} if clocks else {}
            container = await Container.create(transport.address(), as_coro=True, **own, **kwds)
            stack.push_async_callback(container.shutdown, as_coro=True)
            keepers.append(Keeper(container))
        yield keepers


@contextlib.asynccontextmanager
async def open_raw(keeper: Keeper) -> AsyncIterator[RawPeer]:
    """Give a peer that has connected to the container of *keeper*."""
    peer = RawPeer()
    await connect_raw(keeper.container._base_url, peer)
    try:
        yield peer
    finally:
        peer.abort()


async def recv_message(peer: RawPeer) -> list[Any]:
    """Return the next frame that is a message."""
    while True:
        frame = await peer.recv()
        if frame[0] == MESSAGE:
            return frame


def is_idle(*keepers: Keeper) -> bool:
    """Return whether no request is under way."""
    return not any(
        keeper.container.context.tokenmanager.outgoing_requests
        or keeper.container.context.tokenmanager.incoming_requests
        or keeper.container.context._tasks
        for keeper in keepers
    )


# -- Single requests -------------------------------------------------------------------------------


async def test_requests_end_when_the_deadline_passes(transport: Transport) -> None:
    """A request fails with the same error as a call, and its handler is cancelled."""
    async with open_keepers(transport) as (near, far):
        context = near.container.context
        for timeout in (None, 3600):
            with pytest.raises(DeadlineExceededError) as caught, deadlines.within(0.05):
                await context.get(far.addr + "/waiting", timeout=timeout)
            assert caught.value.was_sent
            assert not isinstance(caught.value, RequestTimedOut)
            assert far.addr + "/waiting" in str(caught.value)
        with pytest.raises(RequestTimedOut), deadlines.within(3600):
            await context.get(far.addr + "/waiting", timeout=0.02)
        await wait_until(lambda: is_idle(near, far))
        assert far.working == 0
        assert await context.get(far.addr + "/plain") == "(None, None)"


async def test_requests_end_in_simulated_time(transport: Transport) -> None:
    """The same by the clock of the container, exactly."""
    clock = ExternalClock(START)
    async with open_keepers(transport, 2, [clock] * 2) as (near, far):
        with deadlines.within(60, clock=clock):
            task = asyncio.ensure_future(near.container.context.get(far.addr + "/waiting"))
            await wait_until(lambda: far.working)
        clock.set_time(59.5)
        await asyncio.sleep(0.01)
        assert not task.done()
        clock.set_time(60)
        with pytest.raises(DeadlineExceededError) as caught:
            await task
        assert caught.value.timeout == 60
        await wait_until(lambda: is_idle(near, far))
        assert far.cancelled == 1
        assert clock.next_due() is None


async def test_what_is_begun_too_late_is_not_sent(transport: Transport) -> None:
    """After the deadline has passed no request leaves; one that a cache can answer is answered."""
    async with open_keepers(transport) as (near, far):
        context = near.container.context
        context.cache = Cache()
        assert await context.get(far.addr + "/plain") == "(None, None)"
        with deadlines.within(0):
            with pytest.raises(DeadlineExceededError, match="was not sent") as caught:
                await context.get(far.addr + "/waiting")
            assert caught.value.was_sent is False
            with pytest.raises(DeadlineExceededError, match="was not sent"):
                await context.post(far.addr + "/waiting", bytes(200_000))
            async with context.observe(far.addr + "/level") as states:
                with pytest.raises(DeadlineExceededError, match="was not sent"):
                    await anext(states)
            pipe = Pipe(Message(GET, uri=far.addr + "/waiting"))
            events: list[Any] = []
            pipe.on_event(lambda event: not events.append(event))  # type: ignore[func-returns-value]
            context.begin(pipe)
            assert [type(event.exception) for event in events] == [DeadlineExceededError]
            assert await context.get(far.addr + "/plain") == "(None, None)"
        assert is_idle(near, far)
        assert (far.working, far.cancelled, far.sizes, far.bounds) == (0, 0, [], [])


async def test_the_time_that_is_left_travels(transport: Transport) -> None:
    """Handlers have it, their own requests and calls too, and nobody sees the options that carry it."""
    clocks: list[BaseClock] = [ExternalClock(START, init_time=5), ExternalClock(START), ExternalClock(START)]
    async with open_keepers(transport, 3, clocks) as (first, second, third):
        agent = await first.container.connect(second.addr)
        with deadlines.within(100), deadlines.within(60, clock=clocks[0]):
            found = [
                await first.container.context.get(second.addr + "/plain"),
                await agent.fetch(third.addr + "/plain"),
            ]
        for text in found:
            real, simulated = eval(text)
            assert 99 < real <= 100.01
            assert simulated == 60
        assert await agent.fetch(third.addr + "/plain") == "(None, None)"
        for keeper in (second, third):
            for numbers in keeper.notes:
                assert not {DEADLINE, SIMULATED} & set(numbers)


async def test_what_is_on_the_wire(transport: Transport) -> None:
    """Microseconds in two options; without a deadline there are none, and the program's message keeps its
    own."""
    peer = RawPeer()
    clock = ExternalClock(START)
    async with listen_raw(transport, lambda: peer) as address:
        context = await Context.create_client_context(clock=clock)
        try:
            message = Message(GET, uri=_get_base_url(address) + "a")
            requests = [context.request(message)]
            assert (await recv_message(peer))[2][2] == [URI_PATH, "a"]
            with deadlines.within(3600), deadlines.within(0.25, clock=clock):
                requests.append(context.request(message))
            found = (await recv_message(peer))[2][2]
            assert found[:2] + found[4:] == [URI_PATH, "a", SIMULATED, 250_000]
            assert found[2] == DEADLINE
            assert 3_590_000_000 < found[3] <= 3_600_000_000
            with deadlines.within(1e12):  # too long to be told
                requests.append(context.request(message))
            assert (await recv_message(peer))[2][2] == [URI_PATH, "a"]
            assert DEADLINE not in message.opt
            assert all(DEADLINE not in request.request.opt for request in requests)
            for request in requests:
                request.response.cancel()
        finally:
            await context.shutdown()


# -- At the server ---------------------------------------------------------------------------------


async def test_work_is_given_up_though_nobody_tells(transport: Transport) -> None:
    """The handler is cancelled when the time is over, and the answer is 5.04 with the option."""
    async with open_keepers(transport, 1) as (keeper,), open_raw(keeper) as peer:
        for path in ("waiting", "stream"):
            peer.send(MESSAGE, 1, [1, b"t", [URI_PATH, "k", URI_PATH, path, DEADLINE, 20_000]])
            code, token, *rest = (await recv_message(peer))[2]
            if path == "stream":
                assert (code, rest[1:]) == (CONTENT, [b"first", True])
                code, token, *rest = (await recv_message(peer))[2]
            assert (code, token) == (GATEWAY_TIMEOUT, b"t")
            assert rest[0] == [DEADLINE, 0]
            assert b"deadline" in rest[1]
        await wait_until(lambda: keeper.cancelled == 2 and is_idle(keeper))


async def test_work_that_comes_too_late_is_not_begun(transport: Transport) -> None:
    """A request with no time left is answered at once, and not rendered."""
    async with open_keepers(transport, 1) as (keeper,), open_raw(keeper) as peer:
        peer.send(MESSAGE, 1, [1, b"t", [URI_PATH, "k", URI_PATH, "plain", DEADLINE, 0]])
        assert (await recv_message(peer))[2][:2] == [GATEWAY_TIMEOUT, b"t"]
        peer.send(MESSAGE, 1, [1, b"u", [URI_PATH, "k", URI_PATH, "plain"]])
        assert (await recv_message(peer))[2][:2] == [CONTENT, b"u"]
        assert len(keeper.notes) == 1
        assert is_idle(keeper)


@pytest.mark.parametrize("value", [-5, 1.5, "5", b"5", True, 2**56, None, [5]], ids=repr)
@pytest.mark.parametrize("number", [DEADLINE, SIMULATED])
async def test_a_bad_deadline_is_ignored(transport: Transport, number: int, value: Any) -> None:
    """As the option is elective, one that is malformed counts as not there (RFC 7252, section 5.4.1)."""
    async with open_keepers(transport, 1) as (keeper,), open_raw(keeper) as peer:
        peer.send(MESSAGE, 1, [1, b"t", [URI_PATH, "k", URI_PATH, "plain", number, value]])
        _, _, (code, _, _, payload) = await recv_message(peer)
        assert (code, payload) == (CONTENT, b"(None, None)")


async def test_a_deadline_that_comes_twice(transport: Transport) -> None:
    """The first one counts, as for every option that must not be repeated."""
    async with open_keepers(transport, 1) as (keeper,), open_raw(keeper) as peer:
        options = [URI_PATH, "k", URI_PATH, "waiting", DEADLINE, 10_000, DEADLINE, 2**40]
        peer.send(MESSAGE, 1, [1, b"t", options])
        assert (await recv_message(peer))[2][0] == GATEWAY_TIMEOUT
        await wait_until(lambda: is_idle(keeper))


async def test_a_request_that_wants_no_response(transport: Transport) -> None:
    """It is bound all the same, and nothing is said when it is given up."""
    async with open_keepers(transport, 1) as (keeper,), open_raw(keeper) as peer:
        options = [URI_PATH, "k", URI_PATH, "waiting", NO_RESPONSE, 26, DEADLINE, 20_000]
        peer.send(MESSAGE, 1, [1, b"t", options])
        await wait_until(lambda: keeper.cancelled == 1 and is_idle(keeper))
        peer.send(MESSAGE, 1, [1, b"u", [URI_PATH, "k", URI_PATH, "plain"]])
        assert (await recv_message(peer))[2][1] == b"u"


async def test_a_server_whose_clock_is_ahead(transport: Transport) -> None:
    """If the server's time is the first to reach the deadline, the requester gets the error of a deadline,
    and no response."""
    clocks = [ExternalClock(START), ExternalClock(START)]
    async with open_keepers(transport, 2, list(clocks)) as (near, far):
        with deadlines.within(60, clock=clocks[0]):
            tasks = [
                asyncio.ensure_future(near.container.context.get(far.addr + "/waiting")),
                asyncio.ensure_future(read_stream(near, far.addr + "/stream")),
            ]
            await wait_until(lambda: far.working == 2)
        clocks[1].set_time(61)
        for task in tasks:
            with pytest.raises(DeadlineExceededError):
                await task
        await wait_until(lambda: is_idle(near, far))
        assert [clock.next_due() for clock in clocks] == [None, None]


async def test_a_gateway_timeout_stays_a_response(transport: Transport) -> None:
    """A 5.04 of the server's that is no matter of our deadline is passed on as it is."""
    async with open_keepers(transport, 2) as (near, far):
        near.container.mount("beyond", far.container._base_url, timeout=0.02)
        context = near.container.context
        with deadlines.within(3600), pytest.raises(ResponseWrappingError) as caught:
            await context.get(near.container._base_url + "beyond/k/waiting")
        assert caught.value.code == Code.GATEWAY_TIMEOUT


async def read_stream(keeper: Keeper, url: str) -> list[bytes]:
    """Return the payloads of all responses of a stream."""
    payloads = []
    async with IterablePipe(Message(GET, uri=url)) as pipe:
        keeper.container.context.begin(pipe)
        async for event in pipe:
            if event.exception is not None:
                raise event.exception
            assert event.message is not None
            payloads.append(event.message.payload)
    return payloads


async def test_streams_are_bound_to_their_end(transport: Transport) -> None:
    """A stream of responses has to end by the deadline, also behind a forwarder."""
    async with open_keepers(transport, 2) as (near, far):
        near.container.mount("beyond", far.container._base_url)
        for url in (far.addr + "/stream", near.container._base_url + "beyond/k/stream"):
            with pytest.raises(DeadlineExceededError), deadlines.within(0.1):
                await read_stream(near, url)
        await wait_until(lambda: is_idle(near, far))
        assert far.working == 0


# -- Bodies ----------------------------------------------------------------------------------------


async def test_bodies_in_blocks(transport: Transport) -> None:
    """All blocks together have the time, in both directions; a body that takes longer is given up."""
    size = 300_000
    limits = Limits(block_size=2048)
    async with open_keepers(transport, 2, limits=limits) as (near, far):
        context = near.container.context
        with deadlines.within(3600):
            assert await context.post(far.addr + "/waiting", bytes(size)) == bytes(size)
        assert far.sizes == [size]
        with pytest.raises(DeadlineExceededError), deadlines.within(0.03):
            await context.post(far.addr + "/waiting", bytes(100 * size))
        await wait_until(lambda: is_idle(near, far))
        assert far.sizes == [size]


async def test_blocks_take_the_deadline_along(transport: Transport) -> None:
    """Each block of a request tells what is left, none more than the one before."""
    peer = RawPeer()
    async with listen_raw(transport, lambda: peer) as address:
        context = await Context.create_client_context(limits=Limits(block_size=1024))
        try:
            with deadlines.within(3600):
                request = context.request(Message(POST, bytes(3000), uri=_get_base_url(address) + "a"))
            told = []
            for block in range(3):
                _, _, (_, token, options, *_) = await recv_message(peer)
                pairs = dict(zip(options[::2], options[1::2], strict=True))
                told.append(pairs[DEADLINE])
                code = 95 if block < 2 else 68
                peer.send(MESSAGE, 1, [code, token, [27, pairs[27]]])
            assert (await request.response).code == Code.CHANGED
            assert told == sorted(told, reverse=True)
            assert 3_590_000_000 < told[-1] <= told[0] <= 3_600_000_000
        finally:
            await context.shutdown()


# -- Observations ----------------------------------------------------------------------------------


async def test_the_registration_of_an_observation_is_bound(transport: Transport) -> None:
    """It fails if there is no first state in time, and the server forgets it."""
    async with open_keepers(transport, 2) as (near, far):
        far.is_slow = True
        for base in (far.addr, near.addr):
            async with near.container.context.observe(base + "/level") as states:
                pass
            with deadlines.within(0.05):
                states = near.container.context.observe(base + "/level")
            near.is_slow = True
            with pytest.raises(DeadlineExceededError):
                await anext(states)
            await states.aclose()
        await wait_until(lambda: is_idle(near, far))
        assert far.working == near.working == 0


@pytest.mark.parametrize("size", [0, 100_000])
async def test_an_observation_outlives_the_deadline(transport: Transport, size: int) -> None:
    """What was registered in time goes on beyond it, with large states too, and through a forwarder; the
    server renders further states without it."""
    clock = ExternalClock(START)
    async with open_keepers(transport, 2, [clock] * 2) as (near, far):
        far.size = size
        near.container.mount("beyond", far.container._base_url)
        remote = await near.container.connect(far.addr)
        for url in (far.addr + "/level", near.container._base_url + "beyond/k/level"):
            far.level.level = 0
            del far.bounds[:]
            with deadlines.within(60, clock=clock):
                states = near.container.context.observe(url)
                assert (await anext(states)).strip() == "0"
            clock.set_time(clock.time() + 1000)
            for level in (1, 2):
                with deadlines.within(5, clock=clock):
                    await remote.set_level(level)
                assert (await anext(states)).strip() == str(level)
            assert far.bounds[:3] == [True, False, False]
            await states.aclose()
        await wait_until(lambda: is_idle(near, far))


async def test_a_resource_that_notifies_by_itself(transport: Transport) -> None:
    """After its first notification nothing bounds it any more."""
    clock = ExternalClock(START)
    async with open_keepers(transport, 2, [clock] * 2) as (near, far):
        with deadlines.within(60, clock=clock):
            states = near.container.context.observe(far.addr + "/own", accept=None)
            await anext(states)
        await wait_until(lambda: far.working)
        clock.set_time(1000)
        await asyncio.sleep(0.01)
        assert (far.working, far.cancelled) == (1, 0)
        assert far.bounds == [True, False, False]
        await states.aclose()
        await wait_until(lambda: is_idle(near, far))


async def test_an_observation_that_is_made_anew(transport: Transport) -> None:
    """The connection is lost after the deadline: what registers the observation anew is not bound by it."""
    clock = ExternalClock(START)
    async with open_keepers(transport, 2, [clock] * 2, resumable=False) as (near, far):
        with deadlines.within(60, clock=clock):
            states = near.container.context.observe(far.addr + "/level")
            assert await anext(states) == "0"
        clock.set_time(61)
        for client in list(near.container._connections):
            client.channel.transport.abort()
        await wait_until(lambda: len(far.bounds) == 2)
        far.set_level(5)
        async with asyncio.timeout(5):
            while await anext(states) != "5":
                pass
        assert far.bounds[0] is True
        assert not any(far.bounds[1:])
        await states.aclose()
        await wait_until(lambda: is_idle(near, far))


async def test_a_registration_that_is_begun_anew_before_its_first_state(transport: Transport) -> None:
    """If the connection is lost while the blocks of the first state are fetched, the observation is
    registered anew; the first state still has to come in time."""
    peer, other = peers = [RawPeer(), RawPeer()]
    async with listen_raw(transport, iter(peers).__next__) as address:
        context = await Context.create_client_context()
        try:
            with deadlines.within(0.5):
                request = context.request(Message(GET, uri=_get_base_url(address) + "a", observe=0))
            token = (await recv_message(peer))[2][1]
            options = [4, b"tag", OBSERVE, 1, BLOCK2, 8 | 7, 28, 2048]
            peer.send(MESSAGE, 1, [CONTENT, token, options, bytes(1024), True])
            _, _, (_, _, options, *_) = await recv_message(peer)
            assert BLOCK2 in options
            peer.abort()
            again = (await recv_message(other))[2]
            assert again[2] == [OBSERVE, 0, URI_PATH, "a"]
            with pytest.raises(DeadlineExceededError):
                await request.response
            assert request.observation.cancelled
        finally:
            await context.shutdown()
            other.abort()


async def test_tasks_of_a_context_have_no_deadline(transport: Transport) -> None:
    """What a context does in the background, such as keeping a registration, goes on."""
    async with open_keepers(transport, 1) as (keeper,):
        found: list[Any] = []

        async def look() -> None:
            found.append(get_deadline())

        with deadlines.within(5):
            await keeper.container.context.spawn(look())
        assert found == [None]


# -- Forwarding ------------------------------------------------------------------------------------


async def test_forwarders_pass_on_what_is_left(transport: Transport) -> None:
    """Over several hops the time gets less, and behind each of them the work ends."""
    async with open_keepers(transport, 3) as (first, second, third):
        first.container.mount("on", second.container._base_url)
        second.container.mount("on", third.container._base_url)
        url = first.container._base_url + "on/on/k/"
        context = first.container.context
        with deadlines.within(100):
            real, _ = eval(await context.get(url + "plain"))
        assert 99 < real <= 100.01
        assert await context.get(url + "plain") == "(None, None)"
        with pytest.raises(DeadlineExceededError), deadlines.within(0.1):
            await context.get(url + "waiting")
        await wait_until(lambda: is_idle(first, second, third))
        assert third.working == 0


async def test_a_forwarder_behind_which_time_runs_faster(transport: Transport) -> None:
    """A clock far ahead at the last hop is told through all of them by the error of a deadline."""
    clocks = [ExternalClock(START) for _ in range(3)]
    async with open_keepers(transport, 3, list(clocks)) as (first, second, third):
        second.container.mount("on", third.container._base_url)
        with deadlines.within(60, clock=clocks[0]):
            task = asyncio.ensure_future(
                first.container.context.get(second.container._base_url + "on/k/waiting")
            )
            await wait_until(lambda: third.working)
        clocks[2].set_time(60)
        with pytest.raises(DeadlineExceededError):
            await task
        await wait_until(lambda: is_idle(first, second, third))
        assert [clock.next_due() for clock in clocks] == [None] * 3
