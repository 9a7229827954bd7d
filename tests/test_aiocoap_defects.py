"""What was wrong in aiocoap, one test for each defect; the files of the modules have the details."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from conftest import Transport
from waiting import wait_until

from aiomas_ng import error
from aiomas_ng.cache import Cache
from aiomas_ng.clocks import ExternalClock
from aiomas_ng.exceptions import OverloadError
from aiomas_ng.message import CONTENT, GET, Message
from aiomas_ng.pipe import WINDOW, IterablePipe, Pipe, run_driving_pipe
from aiomas_ng.protocol import Context, ServerObservation
from aiomas_ng.resource import ObservableResource, Resource, Site, hashing_etag


class Number(ObservableResource):
    """A number that counts how often it was read."""

    def __init__(self, value: int = 0, max_age: int | None = None) -> None:
        self.value = value
        self.max_age = max_age
        self.reads = 0

    def render_get(self, request: Message) -> Message:
        self.reads += 1
        response = Message(CONTENT, str(self.value).encode(), max_age=self.max_age)
        hashing_etag(request, response)
        return response

    def set(self, value: int) -> None:
        self.value = value
        self.updated_state()


@asynccontextmanager
async def served(
    transport: Transport, resource: Any, **kwds: Any
) -> AsyncIterator[tuple[Context, Context, str]]:
    """Serve *resource* at ``/it``; yield client, server and its URL."""
    site = Site()
    site.add_resource(["it"], resource)
    async with (
        await Context.create_server_context(site, transport.address()) as server,
        await Context.create_client_context(**kwds) as client,
    ):
        yield client, server, server.urls[0] + "it"


def test_late_exception_on_an_ended_pipe_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """What comes after the end is noted in the log, and raises nothing."""
    pipe = Pipe(Message(GET), logging.getLogger("late"))
    pipe.on_event(lambda event: True)
    pipe.add_response(Message(CONTENT), is_last=True)
    with caplog.at_level(logging.DEBUG, "late"):
        pipe.add_exception(ValueError("too late"))
        pipe.add_response(Message(CONTENT))
    assert "too late" in caplog.text
    assert len(caplog.records) == 2


async def test_iteration_over_a_pipe_ends_after_the_last_event() -> None:
    """It ends by itself, and nothing is left for the garbage collector to clean up."""
    pipe = IterablePipe(Message(GET))
    ended = asyncio.Event()

    async def respond() -> None:
        try:
            pipe.add_response(Message(CONTENT))
            pipe.add_response(Message(CONTENT), is_last=True)
        finally:
            ended.set()

    gc.disable()
    try:
        run_driving_pipe(pipe, respond())
        assert len([event async for event in pipe]) == 2
        assert pipe.is_ended
        await ended.wait()
        left = IterablePipe(Message(GET))
        was_cancelled = asyncio.Event()

        async def respond_for_ever() -> None:
            try:
                while True:
                    left.add_response(Message(CONTENT))
                    await left.drain()
                    await asyncio.sleep(0)
            finally:
                was_cancelled.set()

        async with left:
            run_driving_pipe(left, respond_for_ever())
            async for _ in left:
                break
        await was_cancelled.wait()
    finally:
        gc.enable()


async def test_queue_of_a_pipe_is_bounded() -> None:
    """A slow reader holds the producer back, and a producer that does not care is told so."""
    pipe = IterablePipe(Message(GET))
    produced = 0

    async def respond() -> None:
        nonlocal produced
        while True:
            await pipe.drain()
            pipe.add_response(Message(CONTENT))
            produced += 1

    async with pipe:
        run_driving_pipe(pipe, respond())
        iterator = pipe.__aiter__()
        await anext(iterator)
        for _ in range(10):
            await asyncio.sleep(0)
        assert produced <= WINDOW + 1

    careless = IterablePipe(Message(GET))

    def respond_carelessly() -> None:
        for _ in range(10 * WINDOW):
            careless.add_response(Message(CONTENT))

    with pytest.raises(OverloadError, match="drain"):
        respond_carelessly()
    async with careless:
        pass


async def test_declined_observation_is_a_plain_response(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """Who declines an observation replies once, and nothing fails afterwards."""

    class Declining(Number):
        async def add_observation(self, request: Message, serverobservation: ServerObservation) -> None:
            pass

    class Deregistering(Number):
        async def add_observation(self, request: Message, serverobservation: ServerObservation) -> None:
            serverobservation.deregister("not for you")

    for number in (Declining(1), Deregistering(1)):
        async with served(transport, number) as (client, server, url):
            request = client.request(Message(GET, uri=url, observe=0))
            response = await request.response
            assert (response.payload, response.opt.observe) == (b"1", None)
            assert request.observation is not None
            failures: list[BaseException] = []
            request.observation.register_errback(failures.append)
            assert isinstance(failures[0], error.NotObservable)
            number.set(2)
            await wait_until(lambda: not server.tokenmanager.incoming_requests)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_interest_does_not_survive_the_last_event() -> None:
    """Whatever the callbacks say, after the last event there is no interest, and none can come up."""
    pipe = Pipe(Message(GET))
    ends: list[int] = []
    pipe.on_event(lambda event: True)
    pipe.on_event(lambda event: True, is_interest=False)
    pipe.on_interest_end(lambda: ends.append(1))
    pipe.add_response(Message(CONTENT), is_last=True)
    assert ends == [1]
    assert pipe.is_ended
    with pytest.raises(error.PipeStateError):
        pipe.on_event(lambda event: True)


async def test_observation_is_registered_again(transport: Transport) -> None:
    """When the connection was lost, the observation goes on over a new one, from the latest state on."""
    number = Number(1)
    async with served(transport, number) as (client, server, url), client.observe(url) as states:
        assert await anext(states) == b"1"
        (remote,) = server.tokenmanager.remotes
        number.value = 2
        await remote.channel.close()
        assert await anext(states) == b"2"
        number.set(3)
        assert await anext(states) == b"3"
        assert number.observation_count == 1


async def test_cancelling_an_observation_tells_the_server(transport: Transport) -> None:
    """The server forgets an observer as soon as it has cancelled."""
    number = Number(1)
    async with served(transport, number) as (client, server, url):
        request = client.request(Message(GET, uri=url, observe=0))
        await request.response
        assert number.observation_count == 1
        assert request.observation is not None
        request.observation.cancel()
        await wait_until(lambda: not number.observation_count)
        assert not server.tokenmanager.incoming_requests


async def test_max_age_and_etags_are_used(transport: Transport) -> None:
    """A fresh response is not asked for again, and one that is not is revalidated by its tag."""
    number, clock = Number(1, max_age=10), ExternalClock("2026-01-01T00:00:00+00:00")
    async with served(transport, number, clock=clock, cache=Cache()) as (client, _, url):
        assert [await client.get(url) for _ in range(3)] == [b"1"] * 3
        assert number.reads == 1
        clock.set_time(10)
        assert await client.get(url) == b"1"
        assert number.reads == 2
        assert client.cache is not None
        figures = client.cache.figures
        assert (figures.hits, figures.revalidations) == (2, 1)


async def test_timeout_is_per_request(transport: Transport) -> None:
    """One request ends after its time, and others on the same connection go on."""
    proceed = asyncio.Event()

    class Slow(Resource):
        async def render_get(self, request: Message) -> Message:
            await proceed.wait()
            return Message(payload=b"done")

    async with served(transport, Slow()) as (client, _, url):
        patient = client.request(Message(GET, uri=url))
        with pytest.raises(error.RequestTimedOut) as caught:
            await client.request(Message(GET, uri=url), timeout=0.01).response
        assert caught.value.timeout == 0.01
        assert isinstance(caught.value, TimeoutError)
        proceed.set()
        assert (await patient.response).payload == b"done"
