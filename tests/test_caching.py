"""A context with a cache: what is asked for again, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from conftest import Transport
from waiting import wait_until

from aiomas_ng import Agent, Container, error, state
from aiomas_ng.cache import Cache
from aiomas_ng.clocks import ExternalClock
from aiomas_ng.message import CONTENT, Message
from aiomas_ng.protocol import Context
from aiomas_ng.resource import ObservableResource, Site, hashing_etag

START = "2026-01-01T00:00:00+00:00"


class Value(ObservableResource):
    """Bytes that can be read, written and observed; counts how often they were rendered."""

    def __init__(self, payload: bytes, max_age: int | None = 60) -> None:
        self.payload = payload
        self.max_age = max_age
        self.renders = 0
        self.proceed = asyncio.Event()
        self.proceed.set()

    async def render_get(self, request: Message) -> Message:
        self.renders += 1
        payload = self.payload
        await self.proceed.wait()
        response = Message(CONTENT, payload, max_age=self.max_age)
        hashing_etag(request, response)
        return response

    def render_put(self, request: Message) -> Message:
        self.payload = request.payload
        self.updated_state()
        return Message()

    def render_post(self, request: Message) -> Message:
        raise error.Conflict("not now")


class Setup:
    """A client with a cache in simulated time, and a server with one value."""

    def __init__(
        self, client: Context, value: Value, clock: ExternalClock, url: str, server: Context
    ) -> None:
        self.client = client
        self.value = value
        self.clock = clock
        self.url = url
        self.server = server

    @property
    def figures(self) -> Any:
        """The figures of the cache."""
        assert self.client.cache is not None
        return self.client.cache.figures

    async def get(self) -> Any:
        """Read the value."""
        return await self.client.get(self.url)


@asynccontextmanager
async def open_setup(
    transport: Transport, payload: bytes = b"1", max_age: int | None = 60
) -> AsyncIterator[Setup]:
    """Open both sides."""
    value, clock, site = Value(payload, max_age), ExternalClock(START), Site()
    site.add_resource(["value"], value)
    async with (
        await Context.create_server_context(site, transport.address()) as server,
        await Context.create_client_context(clock=clock, cache=Cache()) as client,
    ):
        yield Setup(client, value, clock, server.urls[0] + "value", server)


async def test_ages_are_measured_in_simulated_time(transport: Transport) -> None:
    """Real time does not matter; when the clock has passed Max-Age, the server is asked again."""
    async with open_setup(transport) as setup:
        assert [await setup.get(), await setup.get()] == [b"1", b"1"]
        setup.clock.set_time(59)
        await setup.get()
        assert setup.value.renders == 1
        setup.clock.set_time(60)
        await setup.get()
        assert setup.value.renders == 2


async def test_what_has_changed_is_sent_in_full(transport: Transport) -> None:
    """The tag of an old version does not match, and the new version is what is kept."""
    async with open_setup(transport) as setup:
        await setup.get()
        setup.value.payload = b"2"
        setup.clock.set_time(60)
        assert [await setup.get(), await setup.get()] == [b"2", b"2"]
        assert setup.figures.revalidations == 0
        assert setup.value.renders == 2


async def test_own_changes_are_seen_at_once(transport: Transport) -> None:
    """After a PUT of ours the state is asked for again, also after one that has failed."""
    async with open_setup(transport) as setup:
        await setup.get()
        await setup.client.put(setup.url, b"2")
        assert await setup.get() == b"2"
        setup.value.payload = b"3"
        with pytest.raises(error.ResponseWrappingError, match=r"4\.09"):
            await setup.client.post(setup.url)
        assert await setup.get() == b"3"


async def test_response_that_was_overtaken_is_not_kept(transport: Transport) -> None:
    """A GET that was under way during a PUT may have seen either state, so it is not kept."""
    async with open_setup(transport) as setup:
        setup.value.proceed.clear()
        reading = asyncio.ensure_future(setup.get())
        await wait_until(lambda: setup.value.renders)
        await setup.client.put(setup.url, b"2")
        setup.value.proceed.set()
        assert await reading == b"1"
        assert await setup.get() == b"2"


async def test_change_that_was_cancelled_counts(transport: Transport) -> None:
    """A PUT may have been executed although nobody waits for its response any more."""
    async with open_setup(transport) as setup:
        await setup.get()
        request = setup.client.request(Message(3, b"2", uri=setup.url))
        request.response.cancel()
        await asyncio.sleep(0)
        await setup.get()
        assert setup.value.renders == 2


async def test_observation_keeps_an_entry_fresh(transport: Transport) -> None:
    """While it is observed, the latest state is there without asking, beyond Max-Age; not after."""
    async with open_setup(transport) as setup:
        async with setup.client.observe(setup.url) as states:
            assert await anext(states) == b"1"
            setup.clock.set_time(1000)
            renders = setup.value.renders
            assert await setup.get() == b"1"
            await setup.server.tokenmanager.context.loop.run_in_executor(None, lambda: None)
            setup.value.payload = b"2"
            setup.value.updated_state()
            assert await anext(states) == b"2"
            assert await setup.get() == b"2"
            assert setup.value.renders == renders + 1
        setup.clock.set_time(1061)
        setup.value.payload = b"3"
        assert await setup.get() == b"3"


async def test_lost_connection_ends_the_freshness_by_observation(transport: Transport) -> None:
    """When nobody could tell of a change any more, the age counts again."""
    async with open_setup(transport) as setup, setup.client.observe(setup.url) as states:
        await anext(states)
        setup.clock.set_time(1000)
        setup.server._servers[0].close()
        (remote,) = setup.server.tokenmanager.remotes
        await remote.channel.close()
        await wait_until(lambda: not setup.client.tokenmanager.remotes)
        with pytest.raises(error.NetworkError):
            await setup.get()


async def test_large_bodies_are_cached_in_one_piece(transport: Transport) -> None:
    """A body that came in blocks is one entry, and is revalidated without its blocks."""
    body = bytes(range(256)) * 1000
    async with open_setup(transport, body) as setup:
        assert [await setup.get(), await setup.get()] == [body, body]
        assert setup.figures.entries == 1
        setup.clock.set_time(100)
        assert await setup.get() == body
        assert setup.figures.revalidations == 1
        assert setup.value.renders == 2


async def test_formats_are_entries_of_their_own(transport: Transport) -> None:
    """What was asked for in one format is no answer to who wants another."""

    class Sensor(Agent):
        @state
        def value(self) -> list[int]:
            return [1, 2]

    async with opened(transport, transport) as (here, there):
        here.context.cache = Cache()
        sensor = Sensor(there)
        for accept in (50, 65000, 50, 65000):
            value = await here.context.get(f"{sensor.addr}/value", accept=accept)
            assert list(value) == [1, 2]
        assert here.context.cache.figures.hits == 2


async def test_containers_clock_is_the_caches_clock(transport: Transport) -> None:
    """A cache without a clock takes that of the container."""
    async with opened(transport) as (container,):
        cache = Cache()
        container.context.cache = cache
        assert cache.clock is container.clock


async def test_forwarding_container_can_cache(transport: Transport) -> None:
    """A container on the way answers from its cache, so that the origin is asked once."""
    reads = 0

    class Sensor(Agent):
        @state(max_age=10)
        def value(self) -> int:
            nonlocal reads
            reads += 1
            return reads

    async with opened(transport, transport, transport) as (origin, hub, user):
        sensor = Sensor(origin, aid="sensor")
        hub.context.cache = Cache()
        hub.mount("origin", origin._base_url)
        url = f"{hub._base_url}origin/{sensor.addr.rpartition('/')[2]}/value"
        assert [await user.context.get(url) for _ in range(3)] == [1, 1, 1]
        assert hub.context.cache.figures.hits == 2


@asynccontextmanager
async def opened(*transports: Transport) -> AsyncIterator[list[Container]]:
    """Open a container at each of *transports*."""
    containers = [await Container.create(transport.address(), as_coro=True) for transport in transports]
    try:
        yield containers
    finally:
        for container in containers:
            await container.shutdown(as_coro=True)
