"""Whatever code of a user raises, wherever it is called, ends what it concerns and nothing more.

Each case lets one piece of a user's code raise, and checks what becomes of it. Around it a call over the same
connection is under way, which has to get its reply; and what nobody else is told is in the log, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from conftest import Transport
from waiting import wait_until

from aiomas_ng import Agent, Container, agent, clocks, rpc
from aiomas_ng.exceptions import (
    ClosedByPeerError,
    DeserializationError,
    RemoteCancelledError,
    RemoteException,
    RemoteSerializationError,
    SerializationError,
)
from aiomas_ng.message import CONTENT, GET, Message
from aiomas_ng.resource import ObservableResource, Resource


class Odd(BaseException):
    """An error that ``except Exception`` does not catch."""


class Mute(Exception):
    """An error that cannot be put into words."""

    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


class Unsent:
    """Cannot be encoded: its serializer raises."""


class Untaken:
    """Cannot be decoded: its deserializer raises."""


ERRORS: list[Callable[[], BaseException]] = [
    lambda: ValueError("bad"),
    RecursionError,
    MemoryError,
    Odd,
    Mute,
    asyncio.CancelledError,
    lambda: StopIteration("bad"),
    lambda: GeneratorExit("bad"),
]


class Faulty(Agent):
    """Raises the error of the test, in every way there is."""

    def __init__(self, container: Container, error: Callable[[], BaseException]) -> None:
        super().__init__(container)
        self.error = error
        self.gate = asyncio.Event()
        self.waits = 0
        self.site.add_resource(["plain"], Failing(error))
        self.watched = Watched(error)
        self.site.add_resource(["watched"], self.watched)

    def raise_(self) -> Any:
        raise self.error()

    @rpc.expose
    async def wait(self) -> str:
        self.waits += 1
        await self.gate.wait()
        return "still there"

    @rpc.expose
    def echo(self, value: Any) -> Any:
        return value

    @rpc.expose
    def plain(self) -> Any:
        return self.raise_()

    @rpc.expose
    async def later(self) -> Any:
        await asyncio.sleep(0)
        return self.raise_()

    @rpc.expose
    async def stream(self, before: int) -> AsyncIterator[int]:
        for value in range(before):
            yield value
        self.raise_()

    @rpc.expose
    async def stream_unsent(self) -> AsyncIterator[Any]:
        yield 0
        yield Unsent()

    @rpc.expose
    def get_unsent(self) -> Any:
        return Unsent()

    @rpc.expose
    async def get_unsent_later(self) -> Any:
        return Unsent()

    @rpc.expose
    def get_untaken(self) -> Any:
        return Untaken()

    @agent.state
    def level(self) -> float:
        self.raise_()
        return 1.0

    def on_stop(self) -> Any:
        return self.raise_()


class Failing(Resource):
    """Raises the error of the test."""

    def __init__(self, error: Callable[[], BaseException]) -> None:
        super().__init__()
        self.error = error

    async def render_get(self, request: Message) -> Message:
        raise self.error()


class Watched(ObservableResource):
    """Raises it when the number of its observers changes."""

    def __init__(self, error: Callable[[], BaseException]) -> None:
        super().__init__()
        self.error = error

    def update_observation_count(self, newcount: int) -> None:
        raise self.error()

    async def render_get(self, request: Message) -> Message:
        return Message(CONTENT, payload=b"state")


class Stage:
    """What a case works with."""

    def __init__(self, one: Container, two: Container, faulty: Faulty, proxy: Any, error: Any) -> None:
        self.one = one
        self.two = two
        self.faulty = faulty
        self.proxy = proxy
        self.error = error

    @property
    def is_cancellation(self) -> bool:
        return self.error is asyncio.CancelledError

    async def expect_remote(self, awaitable: Awaitable[Any]) -> None:
        """Check that the caller is told what was raised."""
        with pytest.raises(RemoteException) as caught:
            await awaitable
        name = caught.value.type_name.removeprefix("aiomas_ng.")
        assert name in (
            type(self.error()).__name__,
            "RuntimeError",
        )  # what a generator makes of StopIteration
        assert isinstance(caught.value, RemoteCancelledError) == (name == "CancelledError")


async def drain(stream: Any) -> None:
    async for _ in stream:
        pass


# The cases: each returns how many lines it expects in the log.


async def plain_handler(stage: Stage) -> int:
    await stage.expect_remote(stage.proxy.plain())
    return 0


async def async_handler(stage: Stage) -> int:
    await stage.expect_remote(stage.proxy.later())
    return 0


async def handler_in_the_same_container(stage: Stage) -> int:
    local = await stage.two.connect(stage.faulty.addr)
    await stage.expect_remote(local.plain())
    await stage.expect_remote(local.later())
    return 0


async def stream_at_the_beginning(stage: Stage) -> int:
    await stage.expect_remote(drain(stage.proxy.stream(0)))
    return 0


async def stream_in_the_middle(stage: Stage) -> int:
    await stage.expect_remote(drain(stage.proxy.stream(3)))
    return 0


async def batch(stage: Stage) -> int:
    calls = [partial(stage.proxy.plain), partial(stage.proxy.later), partial(stage.proxy.echo, 1)]
    outcomes = await rpc.batch(calls, return_exceptions=True)
    for outcome in outcomes[:2]:
        assert isinstance(outcome, RemoteException)
    assert outcomes[2] == 1
    return 0


async def one_way(stage: Stage) -> int:
    rpc.with_options(stage.proxy.plain, oneway=True)()
    await stage.proxy.echo(1)
    return 1


async def one_way_later(stage: Stage) -> int:
    rpc.with_options(stage.proxy.later, oneway=True)()
    await stage.proxy.echo(1)
    await wait_until(lambda: not any(len(c.channel._running) > 1 for c in stage.two._connections))
    return 1


async def serializer_of_an_argument(stage: Stage) -> int:
    with pytest.raises(SerializationError):
        stage.proxy.echo(Unsent())
    return 0


async def deserializer_of_an_argument(stage: Stage) -> int:
    with pytest.raises(RemoteSerializationError):
        await stage.proxy.echo(Untaken())
    return 1


async def serializer_of_a_result(stage: Stage) -> int:
    with pytest.raises(RemoteSerializationError):
        await stage.proxy.get_unsent()
    with pytest.raises(RemoteSerializationError):
        await stage.proxy.get_unsent_later()
    return 0


async def serializer_of_an_item(stage: Stage) -> int:
    with pytest.raises(RemoteSerializationError):
        await drain(stage.proxy.stream_unsent())
    return 0


async def serializer_of_a_result_in_a_batch(stage: Stage) -> int:
    calls = [
        partial(stage.proxy.get_unsent),
        partial(stage.proxy.echo, 1),
        partial(stage.proxy.get_unsent_later),
    ]
    outcomes = await rpc.batch(calls, return_exceptions=True)
    assert isinstance(outcomes[0], RemoteSerializationError)
    assert isinstance(outcomes[2], RemoteSerializationError)
    assert outcomes[1] == 1
    return 0


async def deserializer_of_a_result(stage: Stage) -> int:
    with pytest.raises(DeserializationError):
        await stage.proxy.get_untaken()
    return 0


async def values_in_the_same_container(stage: Stage) -> int:
    local = await stage.two.connect(stage.faulty.addr)
    with pytest.raises(RemoteSerializationError):
        await local.get_unsent()
    with pytest.raises(DeserializationError):
        await local.get_untaken()
    with pytest.raises(SerializationError):
        local.echo(Unsent())
    with pytest.raises(RemoteSerializationError):
        await local.echo(Untaken())
    return 1


async def resource(stage: Stage) -> int:
    request = stage.one.context.request(Message(GET, uri=stage.faulty.addr + "/plain"))
    code = (await request.response).code.dotted
    assert code == ("5.03" if stage.is_cancellation else "5.00")
    return 0 if stage.is_cancellation else 1


async def property_read_as_a_state(stage: Stage) -> int:
    request = stage.one.context.request(Message(GET, uri=stage.faulty.addr + "/level"))
    code = (await request.response).code.dotted
    assert code == ("5.03" if stage.is_cancellation else "5.00")
    return 0 if stage.is_cancellation else 1


async def observation_callbacks(stage: Stage) -> int:
    stage.faulty.watched.error = ValueError  # twice: when the observer comes, and when it goes
    request = stage.one.context.request(Message(GET, uri=stage.faulty.addr + "/watched", observe=0))
    seen: list[Message] = []

    def callback(response: Message) -> None:
        raise stage.error()

    assert request.observation is not None
    await request.response
    request.observation.register_callback(callback)
    request.observation.register_callback(seen.append)
    stage.faulty.watched.updated_state()
    await wait_until(lambda: seen)
    request.observation.cancel()
    await wait_until(lambda: not stage.faulty.watched._observers)
    return 3


async def observer_counts(stage: Stage) -> int:
    request = stage.one.context.request(Message(GET, uri=stage.faulty.addr + "/watched", observe=0))
    assert (await request.response).payload == b"state"
    assert request.observation is not None
    request.observation.cancel()
    await wait_until(lambda: not stage.faulty.watched._observers)
    return 2


async def on_stop(stage: Stage) -> int:
    other = Faulty(stage.two, stage.error)
    await stage.two.remove_agent(other)
    return 1


async def on_ready(stage: Stage) -> int:
    class Unready(Agent):
        async def on_ready(self) -> None:
            await asyncio.sleep(0)
            raise stage.error()

    await stage.two._wait_ready(Unready(stage.two))
    return 1


CASES = [
    plain_handler,
    async_handler,
    handler_in_the_same_container,
    stream_at_the_beginning,
    stream_in_the_middle,
    batch,
    one_way,
    one_way_later,
    serializer_of_an_argument,
    deserializer_of_an_argument,
    serializer_of_a_result,
    serializer_of_an_item,
    serializer_of_a_result_in_a_batch,
    deserializer_of_a_result,
    values_in_the_same_container,
    resource,
    property_read_as_a_state,
    observation_callbacks,
    observer_counts,
    on_stop,
    on_ready,
]


@contextlib.asynccontextmanager
async def staged(transport: Transport, error: Callable[[], BaseException]) -> AsyncIterator[Stage]:
    """Two containers, an agent that raises *error*, and a call to it that is under way meanwhile."""

    def fail(value: Any) -> Any:
        raise error()

    serializers = [lambda: (Unsent, fail, fail), lambda: (Untaken, lambda value: 0, fail)]
    one, two = [
        await Container.create(
            transport.address(), as_coro=True, extra_serializers=serializers, tracebacks=True
        )
        for _ in range(2)
    ]
    try:
        faulty = Faulty(two, error)
        proxy = await one.connect(faulty.addr)
        bystander = proxy.wait()
        await wait_until(lambda: faulty.waits)
        connections = set(two._connections)
        yield Stage(one, two, faulty, proxy, error)
        assert connections <= two._connections
        assert await proxy.echo(5) == 5
        faulty.gate.set()
        assert await bystander == "still there"
        faulty.error = lambda: ValueError("at the end")
    finally:
        await one.shutdown(as_coro=True, grace=0)
        await two.shutdown(as_coro=True, grace=0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_error_ends_what_it_concerns(
    transport: Transport, caplog: pytest.LogCaptureFixture, case: Callable[[Stage], Awaitable[int]]
) -> None:
    """Each error of :data:`ERRORS`, raised in each place, has its own end, and the rest goes on."""
    for error in ERRORS:
        caplog.clear()
        async with staged(transport, error) as stage:
            expected = await case(stage)
            records = [record for record in caplog.records if record.levelno >= logging.WARNING]
            assert len(records) == expected, (error, [record.getMessage() for record in records])
            assert all(record.exc_info for record in records)


# -- What belongs to a connection ------------------------------------------------------------------


class Plain:
    """A service."""

    router = rpc.Service()

    @rpc.expose
    def echo(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize("is_async", [False, True])
async def test_client_connected_cb(
    transport: Transport, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    """If it raises, that connection is closed, and the others are served."""
    for error in ERRORS:
        if is_async and error is asyncio.CancelledError:
            continue  # see below
        caplog.clear()
        count = 0

        async def later(error: Callable[[], BaseException] = error) -> None:
            await asyncio.sleep(0)
            raise error()

        def connected(client: Any, error: Callable[[], BaseException] = error) -> Any:
            nonlocal count
            count += 1
            if count == 2:
                if is_async:
                    return later()
                raise error()
            return None

        server = await rpc.start_server(transport.address(), Plain(), connected)
        clients = [await rpc.open_connection(server.url) for _ in range(3)]
        await wait_until(lambda: clients[1].channel.is_closed)  # noqa: B023
        for client in (clients[0], clients[2]):
            assert await client.remote.echo(1) == 1
        for client in clients:
            await client.close()
        await server.shutdown()
        records = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(records) == 1, error
        assert records[0].exc_info


async def test_client_connected_cb_that_is_cancelled(transport: Transport) -> None:
    """A connection whose callback was cancelled by something that it waited for is closed."""

    async def connected(client: Any) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    server = await rpc.start_server(transport.address(), Plain(), connected)
    client = await rpc.open_connection(server.url)
    await wait_until(lambda: client.channel.is_closed)
    await client.close()
    await server.shutdown()


async def test_callbacks_of_a_lost_connection(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """One that raises keeps no other one from being called, and calls that wait still fail as they should."""
    for error in ERRORS:
        caplog.clear()
        seen: list[str] = []
        accepted: asyncio.Future[rpc.RpcClient] = asyncio.get_running_loop().create_future()
        server = await rpc.start_server(transport.address(), Plain(), accepted.set_result)
        client = await rpc.open_connection(server.url, rpc_service=Plain())

        def fail(reason: BaseException, error: Callable[[], BaseException] = error) -> None:
            raise error()

        client.channel._when_lost(fail)
        client.channel._when_lost(lambda reason, seen=seen: seen.append("second"))
        client.on_connection_reset(fail)
        assert await client.remote.echo(1) == 1
        call = client.remote.echo(2)
        client.channel._when_peer_closes(fail)  # type: ignore[arg-type]
        client.channel._when_peer_closes(lambda seen=seen: seen.append("closing"))
        (await accepted).channel._abort("for a test")
        with pytest.raises(ClosedByPeerError):
            await call
        assert "second" in seen
        records = [record for record in caplog.records if record.exc_info]
        assert len(records) == 2, error
        await client.close()
        await server.shutdown()


async def test_clock_callbacks(asyncio_errors: list[str]) -> None:
    """A callback of a clock that raises keeps no other one from being called; the loop logs it."""
    for error in ERRORS:
        if error is asyncio.CancelledError or isinstance(error(), StopIteration | GeneratorExit):
            continue
        clock = clocks.ExternalClock("2020-01-01T00:00:00Z")
        seen: list[int] = []

        def fail(error: Callable[[], BaseException] = error) -> None:
            raise error()

        for number in range(3):
            clock.call_in(1, fail)
            clock.call_in(1, seen.append, number)
        sleeper = asyncio.ensure_future(clock.sleep(1))
        await asyncio.sleep(0)
        clock.set_time(2)
        await sleeper
        await wait_until(lambda seen=seen: len(seen) == 3)
        assert len(asyncio_errors) == 3
        asyncio_errors.clear()


# -- What ends the program -------------------------------------------------------------------------


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    "case",
    [
        plain_handler,
        one_way,
        serializer_of_a_result,
        deserializer_of_an_argument,
        deserializer_of_a_result,
        serializer_of_an_item,
        observer_counts,
        on_stop,
    ],
    ids=lambda case: case.__name__,
)
def test_interrupts_reach_the_program(
    transport: Transport, case: Callable[[Stage], Awaitable[int]], interrupt: type[BaseException]
) -> None:
    """``KeyboardInterrupt`` and ``SystemExit`` come out of the loop, and leave everything as it should be: a
    program that catches them there can go on."""
    loop = asyncio.new_event_loop()

    async def main() -> None:
        async with staged(transport, interrupt) as stage:
            with contextlib.suppress(Exception):
                await case(stage)
            await asyncio.sleep(0.01)

    task = loop.create_task(main())
    count = 0
    while not task.done():
        try:
            loop.run_until_complete(task)
        except interrupt:
            count += 1
            assert not (task.done() and task.exception())
    assert count
    assert task.exception() is None
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
