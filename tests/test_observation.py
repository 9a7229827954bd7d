"""Observations: what the observer gets, how it ends, and that it outlives a lost connection."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from typing import Any

import pytest
from coap_contexts import MessagePeer, Stuck, Value, raw_client, raw_server, served, site_of
from conftest import Transport
from waiting import wait_until

from aiomas_ng import error
from aiomas_ng._coap import requests
from aiomas_ng.cache import Cache
from aiomas_ng.message import (
    BAD_REQUEST,
    CONTENT,
    GET,
    NOT_FOUND,
    SERVICE_UNAVAILABLE,
    Message,
)
from aiomas_ng.protocol import ClientObservation, Context, ServerObservation
from aiomas_ng.resource import ObservableResource

FAILURE = error.ObservationCancelled("over")


def message(number: int) -> Message:
    """Return a notification."""
    return Message(CONTENT, str(number).encode())


def observe(client: Context, url: str, **kwds: Any) -> tuple[Any, ClientObservation]:
    """Begin to observe; return the request and its observation."""
    request = client.request(Message(GET, uri=url, observe=0), **kwds)
    assert request.observation is not None
    return request, request.observation


def payloads(observation: ClientObservation) -> list[bytes]:
    """Return a list that the payloads of all notifications are added to."""
    seen: list[bytes] = []
    observation.register_callback(lambda response: seen.append(response.payload))
    return seen


# -- ClientObservation by itself -------------------------------------------------------------------


def test_callbacks_in_order_and_late() -> None:
    """All callbacks get each notification in the order of registration; a late one the latest one at once."""
    observation = ClientObservation()
    seen: list[tuple[str, bytes]] = []
    observation.register_callback(lambda response: seen.append(("a", response.payload)))
    observation.register_callback(lambda response: seen.append(("b", response.payload)))
    observation.callback(message(1))
    observation.callback(message(2))
    assert seen == [("a", b"1"), ("b", b"1"), ("a", b"2"), ("b", b"2")]
    observation.register_callback(lambda response: seen.append(("c", response.payload)))
    assert seen[4:] == [("c", b"2")]
    assert repr(observation) == "<ClientObservation, active, 3 callbacks>"


def test_callback_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """A callback that raises is logged with its traceback; the others, and itself later, are called all the
    same."""
    observation = ClientObservation()
    calls = []

    def fail(response: Message) -> None:
        calls.append(response.payload)
        raise ZeroDivisionError

    observation.register_callback(fail)
    seen = payloads(observation)
    observation.callback(message(1))
    observation.callback(message(2))
    assert seen == calls == [b"1", b"2"]
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert caplog.records[0].exc_info is not None
    observation.register_errback(fail)  # type: ignore[arg-type]  # raises because an error has no payload
    observation.error(FAILURE)
    assert "AttributeError" in caplog.text


def test_callback_that_registers_and_cancels() -> None:
    """Callbacks may register others, and cancel the observation: then nobody is called any more."""
    observation = ClientObservation()
    seen: list[bytes] = []

    def register(response: Message) -> None:
        if not seen:
            observation.register_callback(lambda response: seen.append(response.payload))

    observation.register_callback(register)
    observation.callback(message(1))
    assert seen == [b"1"]
    observation.register_callback(lambda response: observation.cancel())
    assert observation.cancelled
    observation.callback(message(2))
    assert seen == [b"1"]


def test_error_is_the_end() -> None:
    """An error reaches all errbacks once, a late one as well; then there is nothing any more."""
    observation = ClientObservation()
    failures: list[BaseException] = []
    seen = payloads(observation)
    observation.register_errback(failures.append)
    observation.error(FAILURE)
    assert observation.cancelled
    observation.register_errback(failures.append)
    assert failures == [FAILURE, FAILURE]
    observation.callback(message(1))
    observation.register_callback(lambda response: seen.append(response.payload))
    assert not seen
    observation.cancel()  # no harm
    observation.on_cancel(lambda: failures.append(FAILURE))
    assert len(failures) == 2
    with pytest.raises(error.PipeStateError, match="ended already"):
        observation.error(FAILURE)
    assert "cancelled" in repr(observation)


def test_cancel_is_no_error() -> None:
    """Cancelling calls no errback, and what is to be told of it once, in order, even if one of them
    raises."""
    observation = ClientObservation()
    calls: list[str] = []
    observation.register_errback(lambda failure: calls.append("error"))
    observation.on_cancel(lambda: calls.append("first"))
    observation.on_cancel(lambda: 1 // 0)
    observation.on_cancel(lambda: calls.append("last"))
    observation.cancel()
    observation.cancel()
    observation.register_errback(lambda failure: calls.append("error"))
    observation.on_cancel(lambda: calls.append("late"))
    assert calls == ["first", "last", "late"]


async def test_iteration_sees_the_latest_only() -> None:
    """Who does not keep up gets the latest state; what came before the iteration began is not lost."""
    observation = ClientObservation()
    observation.callback(message(1))
    observation.callback(message(2))
    iterator = aiter(observation)
    assert (await anext(iterator)).payload == b"2"
    for number in range(3, 10):
        observation.callback(message(number))
    assert (await anext(iterator)).payload == b"9"
    waiter = asyncio.ensure_future(anext(iterator))
    await asyncio.sleep(0)
    observation.callback(message(10))
    observation.callback(message(11))
    assert (await waiter).payload == b"11"
    assert aiter(iterator) is iterator
    await iterator.aclose()


async def test_several_iterations_at_once() -> None:
    """Each iteration gets the notifications by itself; the observation ends with the last one."""
    observation = ClientObservation()
    first, second = aiter(observation), aiter(observation)
    observation.callback(message(1))
    assert [(await anext(iterator)).payload for iterator in (first, second)] == [b"1", b"1"]
    await first.aclose()
    await first.aclose()
    assert not observation.cancelled
    with pytest.raises(StopAsyncIteration):
        await anext(first)
    observation.callback(message(2))
    assert (await anext(second)).payload == b"2"
    await second.aclose()
    assert observation.cancelled


async def test_iteration_beside_a_callback() -> None:
    """Leaving an iteration does not end an observation that somebody else wants."""
    observation = ClientObservation()
    seen = payloads(observation)
    iterator = aiter(observation)
    await iterator.aclose()
    observation.callback(message(1))
    assert seen == [b"1"]
    assert not observation.cancelled


async def test_end_of_iteration_by_error() -> None:
    """The last notification is still given out, then the error, then the iteration is over."""
    observation = ClientObservation()
    iterator = aiter(observation)
    observation.callback(message(1))
    observation.error(FAILURE)
    assert (await anext(iterator)).payload == b"1"
    with pytest.raises(error.ObservationCancelled):
        await anext(iterator)
    for late in (iterator, iterator):
        with pytest.raises(StopAsyncIteration):
            await anext(late)
    with pytest.raises(error.ObservationCancelled):
        await anext(aiter(observation))


async def test_end_of_iteration_by_cancel() -> None:
    """Who waits while the observation is cancelled, or begins afterwards, gets no error."""
    observation = ClientObservation()
    iterator = aiter(observation)
    waiter = asyncio.ensure_future(anext(iterator, None))
    await asyncio.sleep(0)
    observation.cancel()
    assert await waiter is None
    assert [response async for response in observation] == []


async def test_two_tasks_in_one_iteration() -> None:
    """A second task that waits at the same iterator is refused; cancelling the first one is safe."""
    observation = ClientObservation()
    iterator = aiter(observation)
    waiter = asyncio.ensure_future(anext(iterator))
    await asyncio.sleep(0)
    with pytest.raises(error.PipeStateError, match="another task"):
        await anext(iterator)
    waiter.cancel()
    await asyncio.wait([waiter])
    observation.callback(message(1))
    assert (await anext(iterator)).payload == b"1"
    await iterator.aclose()


async def test_async_with_cancels() -> None:
    """The end of ``async with`` ends the observation, whoever else is registered."""
    observation = ClientObservation()
    payloads(observation)
    async with observation as entered:
        assert entered is observation
    assert observation.cancelled


# -- Over a connection -----------------------------------------------------------------------------


@pytest.mark.parametrize("handle_blockwise", [True, False])
async def test_response_and_notifications(transport: Transport, handle_blockwise: bool) -> None:
    """The first response is that of the request; each change that there is time for is notified."""
    value = Value(b"0")
    async with served(transport, site_of(value=value)) as (client, server, url):
        request, observation = observe(client, url + "value", handle_blockwise=handle_blockwise)
        first = await request.response
        assert first.payload == b"0"
        assert first.opt.observe is not None
        seen = payloads(observation)
        for number in range(1, 6):
            value.set(str(number).encode())
            await wait_until(lambda number=number: len(seen) == number)  # type: ignore[misc]
        assert seen == [b"1", b"2", b"3", b"4", b"5"]
        assert value.observation_count == 1
        observation.cancel()
        await wait_until(lambda: not value.observation_count)
        assert not server.tokenmanager.incoming_requests
        assert not client.tokenmanager.outgoing_requests


async def test_nothing_between_response_and_iteration_is_lost(transport: Transport) -> None:
    """What is notified between the first response and the begin of the iteration is seen by it."""
    value = Value(b"0")
    async with served(transport, site_of(value=value)) as (client, _, url):
        request, observation = observe(client, url + "value")
        await request.response
        reads = value.reads
        value.set(b"1")
        await wait_until(lambda: value.reads > reads and observation._latest is not None)
        async for response in observation:
            assert response.payload == b"1"
            break


@pytest.mark.parametrize("way", ["break", "exception", "cancel", "async with", "aclose", "del"])
async def test_leaving_the_iteration_tells_the_server(transport: Transport, way: str) -> None:
    """However the iteration is left, the server forgets the observer, and nothing is left on either side."""
    value = Value(b"0")

    async def iterate() -> None:
        request, observation = observe(client, url + "value")
        if way == "async with":
            async with observation as notifications:
                async for _ in notifications:
                    return
        elif way in ("aclose", "del"):
            iterator = aiter(observation)
            await request.response
            await anext(iterator)
            if way == "aclose":
                await iterator.aclose()
        else:
            async for _ in observation:
                if way == "break":
                    break
                if way == "exception":
                    raise LookupError
                await asyncio.Event().wait()

    async with served(transport, site_of(value=value)) as (client, server, url):
        task = asyncio.ensure_future(iterate())
        await wait_until(lambda: value.observation_count and client.tokenmanager.outgoing_requests)
        value.set(b"1")
        if way == "cancel":
            await wait_until(lambda: value.reads > 1)
            await asyncio.sleep(0.01)
            task.cancel()
        with contextlib.suppress(LookupError, asyncio.CancelledError):
            await task
        await wait_until(lambda: not value.observation_count)
        assert not client.tokenmanager.outgoing_requests
        assert not server.tokenmanager.incoming_requests


async def test_leaving_needs_no_garbage_collection(transport: Transport) -> None:
    """The observation ends as soon as the iterator is dropped, and not when memory is looked through."""
    value = Value(b"0")
    async with served(transport, site_of(value=value)) as (client, _, url):
        gc.collect()
        gc.disable()
        try:
            async for _ in client.observe(url + "value"):
                break
            await wait_until(lambda: not value.observation_count)
        finally:
            gc.enable()


async def test_resource_that_is_not_observable(transport: Transport) -> None:
    """The request has its response; the observation fails, and says why."""
    async with served(transport, site_of(stuck=Stuck())) as (client, _, url):
        for path, code in (("nothing", NOT_FOUND), (".well-known/core", NOT_FOUND)):
            request, observation = observe(client, url + path)
            failures: list[BaseException] = []
            observation.register_errback(failures.append)
            assert (await request.response).code == code
            assert isinstance(failures[0], error.NotObservable)
            assert "4.04" in str(failures[0])
            with pytest.raises(error.NotObservable):
                await anext(aiter(observation))


async def test_failing_request_fails_the_observation(transport: Transport) -> None:
    """What ends the request before its response ends the observation too."""
    stuck = Stuck()
    async with served(transport, site_of(stuck=stuck)) as (client, _, url):
        request, observation = observe(client, "local://nobody/")
        with pytest.raises(error.NetworkError):
            await anext(aiter(observation))
        assert isinstance(request.response.exception(), error.NetworkError)
        _, observation = observe(client, url + "stuck", timeout=0.01)
        with pytest.raises(error.RequestTimedOut):
            await anext(aiter(observation))
        request, observation = observe(client, url + "stuck")
        iterator = aiter(observation)
        request.response.cancel()
        assert await anext(iterator, None) is None
        assert observation.cancelled
        await wait_until(lambda: stuck.begun == stuck.cancelled)


async def test_cancelling_before_the_first_response(transport: Transport) -> None:
    """It takes back the request: nobody waits for ever for its response."""
    stuck = Stuck()
    async with served(transport, site_of(stuck=stuck)) as (client, _, url):
        request, observation = observe(client, url + "stuck")
        await wait_until(lambda: stuck.begun)
        observation.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request.response
        await wait_until(lambda: stuck.cancelled)


async def test_timeout_is_for_the_first_response_only(transport: Transport) -> None:
    """An observation goes on when the time for its response is over."""
    value = Value(b"0")
    async with served(transport, site_of(value=value)) as (client, _, url):
        request, observation = observe(client, url + "value", timeout=0.05)
        await request.response
        seen = payloads(observation)
        await asyncio.sleep(0.06)  # what is tested is that nothing happens in this time
        value.set(b"1")
        await wait_until(lambda: seen == [b"1"])
        observation.cancel()


async def test_server_ends_the_observation(transport: Transport) -> None:
    """A removal, a reason, a last state, and a handler that raises: the last notification, then the error."""
    observations: list[ServerObservation] = []

    class Kept(Value):
        fails = False

        async def add_observation(self, request: Message, serverobservation: ServerObservation) -> None:
            observations.append(serverobservation)
            await super().add_observation(request, serverobservation)

        def render_get(self, request: Message) -> Message:
            if self.fails:
                raise error.Conflict("broken")
            return super().render_get(request)

    value = Kept(b"0")
    site = site_of(value=value)

    def fail() -> None:
        value.fails = True
        value.updated_state()

    ends: list[tuple[Any, bytes, str]] = [
        (lambda: observations[-1].deregister("closing time"), b"closing time", r"5\.03"),
        (lambda: observations[-1].deregister(), b"the observation was ended by the server", r"5\.03"),
        (lambda: observations[-1].trigger(Message(CONTENT, b"last"), is_last=True), b"last", r"2\.05"),
        (lambda: observations[-1].trigger(is_last=True), b"0", r"2\.05"),
        (fail, b"broken", r"4\.09"),
    ]
    async with served(transport, site) as (client, _, url):
        for end, payload, text in ends:
            value.fails = False
            request, observation = observe(client, url + "value")
            await request.response
            seen = payloads(observation)
            iterator = aiter(observation)
            end()
            assert (await anext(iterator)).payload == payload
            with pytest.raises(error.ObservationCancelled, match=text):
                await anext(iterator)
            assert seen == [payload]
            assert not value.observation_count
            assert not client.tokenmanager.outgoing_requests
        request, observation = observe(client, url + "value")
        value.fails = False
        iterator = aiter(observation)
        await request.response
        site.remove_resource("value")
        assert (await anext(iterator)).code == NOT_FOUND
        with pytest.raises(error.ObservationCancelled, match=r"4\.04"):
            await anext(iterator)


async def test_cancelling_at_the_last_notification(transport: Transport) -> None:
    """Who cancels in a callback gets no error, even if that was the last notification."""
    async with raw_server(transport) as (client, server):
        request, observation = observe(client, server.url)
        peer = await server.peer()
        first = await peer.receive_message()
        peer.respond(first, more=True, observe=1)
        await request.response
        failures: list[BaseException] = []
        observation.register_errback(failures.append)
        observation.register_callback(lambda response: observation.cancel())
        peer.respond(first, BAD_REQUEST)
        await wait_until(lambda: observation.cancelled)
        assert not failures


async def test_cache_learns_of_the_end(transport: Transport) -> None:
    """When the last notification says that the resource is gone, no cache gives its state any more."""
    value = Value(b"1")
    site = site_of(value=value)
    async with served(transport, site, near={"cache": Cache()}) as (client, server, url):
        states = client.observe(url + "value")
        assert await anext(states) == b"1"
        assert await client.get(url + "value") == b"1"
        assert value.reads == 1
        site.remove_resource("value")
        for call in (anext(states), client.get(url + "value")):
            with pytest.raises(error.ResponseWrappingError, match=r"4\.04"):
                await call
        assert not server.tokenmanager.incoming_requests


# -- Order -----------------------------------------------------------------------------------------


async def begin(
    client: Context, server: Any, number: int, **kwds: Any
) -> tuple[ClientObservation, MessagePeer, Message]:
    """Begin to observe a server by hand, whose first response has the Observe *number*."""
    request, observation = observe(client, server.url, **kwds)
    peer = await server.peer(len(server.peers))
    first = await peer.receive_message()
    peer.respond(first, more=True, observe=number)
    await request.response
    return observation, peer, first


async def test_stale_notification_is_dropped(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """What the numbers of RFC 7641 show to be older than what we have is dropped, and noted as INFO."""
    caplog.set_level(logging.INFO, "coap")
    async with raw_server(transport) as (client, server):
        observation, peer, first = await begin(client, server, 10)
        seen = payloads(observation)
        for number in (12, 11, 10, 12, 13, 2**23 + 13, 2**23 + 12, 14, 2**23 + 13):
            peer.respond(first, payload=str(number).encode(), more=True, observe=number)
        last = str(2**23 + 13).encode()
        await wait_until(lambda: last in seen)
        assert seen == [b"12", b"13", str(2**23 + 12).encode(), last]
        observation.cancel()
    dropped = [record for record in caplog.records if "older" in record.message]
    assert {record.levelname for record in dropped} == {"INFO"}


async def test_numbers_wrap_around(transport: Transport) -> None:
    """Numbers have 24 bits; after the largest one comes 0."""
    async with raw_server(transport) as (client, server):
        observation, peer, first = await begin(client, server, 2**24 - 2)
        seen = payloads(observation)
        for number in (2**24 - 1, 0, 2**24 - 1, 1):
            peer.respond(first, payload=str(number).encode(), more=True, observe=number)
        await wait_until(lambda: seen[-1:] == [b"1"])
        assert seen == [str(2**24 - 1).encode(), b"0", b"1"]
        observation.cancel()


async def test_order_counts_for_a_while_only(transport: Transport) -> None:
    """Any number is newer when the last notification is more than 128 s old."""
    async with raw_server(transport) as (client, server):
        request, observation = observe(client, server.url)
        peer = await server.peer()
        first = await peer.receive_message()
        peer.respond(first, more=True, observe=10)
        await request.response
        seen = payloads(observation)
        request._freshness._time -= 127
        peer.respond(first, payload=b"stale", more=True, observe=1)
        peer.respond(first, payload=b"fresh", more=True, observe=11)
        await wait_until(lambda: seen == [b"fresh"])
        request._freshness._time -= 129
        peer.respond(first, payload=b"late", more=True, observe=1)
        await wait_until(lambda: seen == [b"fresh", b"late"])
        observation.cancel()


@pytest.mark.parametrize("number", [2**24, 2**32, -1, "1", b"\0" * 5])
async def test_number_out_of_range(transport: Transport, number: Any) -> None:
    """A number that cannot be one is as good as none, as with any elective option; then that was the end."""
    async with raw_server(transport) as (client, server):
        observation, peer, first = await begin(client, server, 10)
        iterator = aiter(observation)
        peer.send([CONTENT, first.token, [6, number], b"bad", True])
        assert (await anext(iterator)).payload == b"bad"
        with pytest.raises(error.ObservationCancelled):
            await anext(iterator)


async def test_notification_without_number_is_the_last(transport: Transport) -> None:
    """A response without Observe ends the observation (RFC 7641, section 3.2), and the server is told."""
    async with raw_server(transport) as (client, server):
        observation, peer, first = await begin(client, server, 10)
        iterator = aiter(observation)
        peer.respond(first, payload=b"last", more=True)
        assert (await anext(iterator)).payload == b"last"
        with pytest.raises(error.ObservationCancelled, match=r"2\.05"):
            await anext(iterator)
        assert await peer.receive() == [0, first.token]


# -- Lost connections ------------------------------------------------------------------------------


@pytest.mark.parametrize("handle_blockwise", [True, False])
async def test_registered_anew(transport: Transport, handle_blockwise: bool) -> None:
    """When the connection is lost, the observation goes on over a new one, with the latest state, many
    times."""
    value = Value(b"0")
    async with served(transport, site_of(value=value)) as (client, server, url):
        request, observation = observe(client, url + "value", handle_blockwise=handle_blockwise)
        await request.response
        seen = payloads(observation)
        for number in range(1, 6):
            (remote,) = server.tokenmanager.remotes
            value.payload = str(number).encode()
            remote.channel._transport.abort()
            await wait_until(lambda: seen and seen[-1] == value.payload)
        assert value.observation_count == 1
        value.set(b"live")
        await wait_until(lambda: seen[-1] == b"live")
        observation.cancel()
        await wait_until(lambda: not value.observation_count)


async def test_server_comes_back(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """An observation waits for a server that has broken down, and for the resource to be there again."""
    caplog.set_level(logging.INFO, "coap")
    first = await Context.create_server_context(site_of(value=Value(b"1")), transport.address())
    url = first.urls[0]
    async with await Context.create_client_context() as client, client.observe(url + "value") as states:
        assert await anext(states) == b"1"
        for server in first._servers:
            server.close()
        for remote in first.tokenmanager.remotes:
            remote.channel._transport.abort()
        waiter = asyncio.ensure_future(anext(states))
        site = site_of()
        async with await Context.create_server_context(site, url) as second:
            await wait_until(lambda: second.tokenmanager.remotes)
            await asyncio.sleep(0.05)  # so that it is asked in vain first
            assert not waiter.done()
            value = Value(b"2")
            site.add_resource("value", value)
            assert await waiter == b"2"
            value.set(b"3")
            assert await anext(states) == b"3"
    await first.shutdown()
    assert "registering it anew" in caplog.text


async def test_patience_comes_to_an_end(transport: Transport) -> None:
    """A server that stays away ends the observation after the patience."""
    server = await Context.create_server_context(site_of(value=Value(b"1")), transport.address())
    async with await Context.create_client_context(patience=0.05) as client:
        states = client.observe(server.urls[0] + "value")
        assert await anext(states) == b"1"
        server._servers[0].close()
        (remote,) = server.tokenmanager.remotes
        remote.channel._transport.abort()
        with pytest.raises(error.NetworkError):
            await anext(states)
        with pytest.raises(StopAsyncIteration):
            await anext(states)
        assert not client._tasks
    await server.shutdown()


async def test_no_patience_at_all(transport: Transport) -> None:
    """With a patience of 0 the loss of the connection ends the observation, as in aiocoap."""
    async with served(transport, site_of(value=Value(b"1")), near={"patience": 0}) as (client, server, url):
        states = client.observe(url + "value")
        assert await anext(states) == b"1"
        server.tokenmanager.remotes[0].channel._transport.abort()
        with pytest.raises(error.NetworkError):
            await anext(states)


async def test_resource_that_does_not_come_back(transport: Transport) -> None:
    """A server that comes back without the resource ends the observation after the patience, by what it
    says."""
    async with raw_server(transport, patience=0.05) as (client, server):
        observation, peer, _ = await begin(client, server, 5)
        iterator = aiter(observation)
        peer.raw.abort()
        waiter = asyncio.ensure_future(anext(iterator))
        peer = await server.peer(1)
        count = 0
        while not waiter.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    peer.respond(await peer.receive_message(), NOT_FOUND, b"not here")
                    count += 1
        assert (await waiter).payload == b"not here"
        assert count > 1
        with pytest.raises(error.ObservationCancelled, match=r"4\.04"):
            await anext(iterator)


async def test_final_answer_of_a_server_that_is_back(transport: Transport) -> None:
    """An answer that time will not change ends the observation at once."""
    async with raw_server(transport) as (client, server):
        observation, peer, _ = await begin(client, server, 5)
        iterator = aiter(observation)
        peer.raw.abort()
        peer = await server.peer(1)
        peer.respond(await peer.receive_message(), BAD_REQUEST, b"what?")
        assert (await anext(iterator)).payload == b"what?"
        with pytest.raises(error.ObservationCancelled, match=r"4\.00 what"):
            await anext(iterator)


async def test_unsuccessful_notification_is_final_while_connected(transport: Transport) -> None:
    """A server that is there and says that the resource is not has the last word."""
    async with raw_server(transport) as (client, server):
        observation, peer, first = await begin(client, server, 5)
        peer.respond(first, more=True, observe=6)
        peer.respond(first, SERVICE_UNAVAILABLE)
        iterator = aiter(observation)
        await anext(iterator)
        with pytest.raises(error.ObservationCancelled, match=r"5\.03"):
            await anext(iterator)


async def test_old_numbers_do_not_count_after_a_loss(transport: Transport) -> None:
    """A server that has started again numbers from the beginning."""
    async with raw_server(transport) as (client, server):
        observation, peer, _ = await begin(client, server, 1000)
        seen = payloads(observation)
        peer.raw.abort()
        peer = await server.peer(1)
        request = await peer.receive_message()
        assert request.opt.observe == 0
        peer.respond(request, payload=b"new", more=True, observe=1)
        await wait_until(lambda: seen == [b"new"])
        observation.cancel()


async def test_lost_again_before_the_answer(transport: Transport) -> None:
    """A connection that is lost before the observation is registered over it is one more attempt."""
    async with raw_server(transport) as (client, server):
        observation, peer, _ = await begin(client, server, 5)
        seen = payloads(observation)
        for number in range(1, 4):
            peer.raw.abort()
            peer = await server.peer(number)
        peer.respond(await peer.receive_message(), payload=b"at last", more=True, observe=1)
        await wait_until(lambda: seen == [b"at last"])
        observation.cancel()


async def test_server_that_drops_connections_is_not_hammered(transport: Transport) -> None:
    """Pauses grow between connections that are lost again and again, also if each brings a notification."""
    async with raw_server(transport, patience=0.4) as (client, server):
        observation, peer, _ = await begin(client, server, 5)
        seen = payloads(observation)
        loop = asyncio.get_running_loop()
        end = loop.time() + 0.5
        while loop.time() < end:
            number = len(server.peers)
            peer.raw.abort()
            peer = await server.peer(number)
            peer.respond(await peer.receive_message(), payload=b"x", more=True, observe=1)
            await wait_until(lambda number=number: len(seen) == number)  # type: ignore[misc]
        assert 3 < len(seen) < 12
        assert not observation.cancelled  # each time it has worked, so that patience begins anew
        observation.cancel()


async def test_pauses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a connection was lost, the pause does not exceed its longest; a steady one has none."""
    now = 0.0

    class FakeContext:
        patience = 1e9

        class loop:  # stands for an attribute
            @staticmethod
            def time() -> float:
                return now

        @staticmethod
        def spawn(coroutine: Any, on_failure: Any) -> Any:
            coroutine.close()

    reopener: Any = requests.Reopener(FakeContext(), None)  # type: ignore[arg-type]
    request: Any = ClientObservation()
    request._fail = None
    pauses = []
    for _ in range(3000):
        assert reopener.lost(request)
        pauses.append(reopener._pause)
        now += 0.001
    assert pauses[:2] == [0.0, requests.FIRST_PAUSE]
    assert pauses == sorted(pauses)
    assert pauses[-1] == requests.LONGEST_PAUSE
    now += requests.CALM + 1
    assert reopener.lost(request)
    assert reopener._pause == 0
    now += 1e9
    assert not reopener.lost(request)
    reopener.end_outage()
    assert reopener.lost(request)


@pytest.mark.parametrize("way", ["cancel", "async with", "response"])
async def test_cancelling_while_reconnecting(transport: Transport, way: str) -> None:
    """Nothing goes on in the background when an observation is cancelled while its server is away."""
    server = await Context.create_server_context(site_of(value=Value(b"1")), transport.address())
    async with await Context.create_client_context() as client:
        request, observation = observe(client, server.urls[0] + "value")
        await request.response
        server._servers[0].close()
        server.tokenmanager.remotes[0].channel._transport.abort()
        await wait_until(lambda: client._tasks)
        if way == "async with":
            async with observation:
                pass
        else:
            observation.cancel()
        await wait_until(lambda: not client._tasks)
    await server.shutdown()


async def test_observation_of_a_peer_that_has_dialled_us(transport: Transport) -> None:
    """Nobody can dial such a peer, so that the loss of its connection ends the observation."""
    async with served(transport, site_of(value=Value(b"far"))) as (client, server, url):
        near = Value(b"near")
        client.serversite = site_of(value=near)
        await client.get(url + "value")
        (remote,) = server.tokenmanager.remotes
        request = server.request(Message(GET, uri_path=["value"], remote=remote, observe=0))
        assert (await request.response).payload == b"near"
        assert request.observation is not None
        iterator = aiter(request.observation)
        near.set(b"nearer")
        assert (await anext(iterator)).payload == b"nearer"
        remote.channel._transport.abort()
        with pytest.raises(error.NetworkError):
            await anext(iterator)


async def test_observation_by_connection_is_registered_anew(transport: Transport) -> None:
    """A connection that we have dialled has an address, so that its observations go on over another one."""
    value = Value(b"1")
    async with served(transport, site_of(value=value)) as (client, server, url):
        remote = (await client.request(Message(GET, uri=url + "value")).response).remote
        request = client.request(Message(GET, uri_path=["value"], remote=remote, observe=0))
        await request.response
        assert request.observation is not None
        iterator = aiter(request.observation)
        value.payload = b"2"
        server.tokenmanager.remotes[0].channel._transport.abort()
        assert (await anext(iterator)).payload == b"2"
        await iterator.aclose()


async def test_lost_connection_after_cancel(transport: Transport) -> None:
    """An observation that was cancelled stays so when the connection is lost."""
    async with raw_server(transport) as (client, server):
        observation, peer, _ = await begin(client, server, 5)
        observation.cancel()
        peer.raw.abort()
        await wait_until(lambda: not client.tokenmanager.remotes)
        assert not client._tasks
        assert len(server.peers) == 1


async def test_observation_that_was_ended_from_outside(transport: Transport) -> None:
    """Who drives it by hand ends it; the server is told with the next notification."""
    async with raw_server(transport) as (client, server):
        observation, peer, first = await begin(client, server, 5)
        seen = payloads(observation)
        observation.error(FAILURE)
        peer.respond(first, more=True, observe=6)
        assert await peer.receive() == [0, first.token]
        assert not seen


async def test_connection_lost_before_the_first_response(transport: Transport) -> None:
    """An observation that was never registered is not registered anew."""
    async with raw_server(transport) as (client, server):
        request, observation = observe(client, server.url)
        peer = await server.peer()
        await peer.receive_message()
        peer.raw.abort()
        with pytest.raises(error.NetworkError):
            await request.response
        assert observation.cancelled
        assert len(server.peers) == 1


async def test_shutdown_while_reconnecting(transport: Transport) -> None:
    """Who waits for a notification learns that the context was shut down."""
    server = await Context.create_server_context(site_of(value=Value(b"1")), transport.address())
    client = await Context.create_client_context()
    states = client.observe(server.urls[0] + "value")
    await anext(states)
    server._servers[0].close()
    server.tokenmanager.remotes[0].channel._transport.abort()
    waiter = asyncio.ensure_future(anext(states))
    await wait_until(lambda: client._tasks)
    await client.shutdown()
    with pytest.raises(error.LibraryShutdown):
        await waiter
    await server.shutdown()


async def test_shutdown_ends_observations(transport: Transport) -> None:
    """Shutting down the observer's side is an error to who iterates; the observed side says that it goes."""
    value = Value(b"1")
    async with served(transport, site_of(value=value)) as (client, server, url):
        mine = client.observe(url + "value")
        await anext(mine)
        await client.shutdown()
        with pytest.raises(error.LibraryShutdown):
            await anext(mine)
        await wait_until(lambda: not value.observation_count)
        async with await Context.create_client_context() as other:
            states = other.observe(url + "value")
            await anext(states)
            await server.shutdown()
            with pytest.raises(error.ResponseWrappingError, match=r"5\.03"):
                await anext(states)


# -- States ----------------------------------------------------------------------------------------


async def test_states_are_values(transport: Transport) -> None:
    """States come decoded, beginning with the present one."""
    value = Value(b"0")
    value.render_get = lambda request: Message(payload=b"[%s]" % value.payload, content_format=50)  # type: ignore[method-assign]
    async with served(transport, site_of(value=value)) as (client, _, url):
        seen: list[Any] = []
        async with client.observe(url + "value") as states:
            assert "States of" in repr(states)
            assert aiter(states) is states
            async for state in states:
                seen.append(state)
                if len(seen) == 3:
                    break
                value.set(str(len(seen)).encode())
        assert seen == [[0], [1], [2]]
        await wait_until(lambda: not value.observation_count)


async def test_slow_reader_of_states_skips(transport: Transport) -> None:
    """Between two looks at the states only the latest one is kept, and it is the last that there was."""
    value = Value(b"0")
    async with served(transport, site_of(value=value)) as (client, _, url):
        states = client.observe(url + "value")
        assert await anext(states) == b"0"
        for number in range(1, 100):
            await client.put(url + "value", str(number).encode())
        await wait_until(lambda: states._observation._latest.payload == b"99")  # type: ignore[union-attr]
        assert await anext(states) == b"99"
        await states.aclose()


async def test_states_that_cannot_be_had(transport: Transport) -> None:
    """The iteration raises what a get would; a resource that cannot be observed gives one state first."""
    once = Value(b"once")

    async def decline(request: Message, serverobservation: Any) -> None:
        pass

    once.add_observation = decline  # type: ignore[method-assign]
    stuck = Stuck()
    async with served(transport, site_of(once=once, stuck=stuck)) as (client, _, url):
        with pytest.raises(error.ResponseWrappingError, match=r"4\.04"):
            await anext(client.observe(url + "nothing"))
        states = client.observe(url + "once")
        assert await anext(states) == b"once"
        with pytest.raises(error.NotObservable):
            await anext(states)
        with pytest.raises(error.NetworkError):
            await anext(client.observe("local://nobody/x"))
        states = client.observe(url + "stuck", timeout=0.01)
        for _ in range(2):
            with pytest.raises(error.RequestTimedOut):
                await anext(states)
        await wait_until(lambda: stuck.begun == stuck.cancelled)


async def test_state_that_cannot_be_decoded(transport: Transport) -> None:
    """A state in a format that it has not is an error of the iteration, which can go on."""
    value = Value(b"1")
    value.render_get = lambda request: Message(payload=value.payload, content_format=50)  # type: ignore[method-assign]
    async with (
        served(transport, site_of(value=value)) as (client, _, url),
        client.observe(url + "value") as states,
    ):
        assert await anext(states) == 1
        value.set(b"{")
        with pytest.raises(ValueError, match="JSON"):
            await anext(states)
        value.set(b"2")
        assert await anext(states) == 2


async def test_states_end_by_an_error_of_the_server(transport: Transport) -> None:
    """An unsuccessful notification is raised as with a get, and ends the iteration."""
    value = Value(b"1")
    site = site_of(value=value)
    async with served(transport, site) as (client, _, url):
        states = client.observe(url + "value")
        assert await anext(states) == b"1"
        site.remove_resource("value")
        with pytest.raises(error.ResponseWrappingError, match=r"4\.04"):
            await anext(states)
        with pytest.raises(StopAsyncIteration):
            await anext(states)


@pytest.mark.parametrize("way", ["aclose", "del", "async with", "cancel", "other task"])
async def test_states_given_up_before_the_first(transport: Transport, way: str) -> None:
    """States that nobody waits for any more take back the request, also if there was no state yet."""
    stuck = Stuck()
    async with served(transport, site_of(stuck=stuck)) as (client, server, url):
        states = client.observe(url + "stuck")
        await wait_until(lambda: stuck.begun)
        if way == "aclose":
            await states.aclose()
            await states.aclose()
            assert await anext(states, None) is None
        elif way == "del":
            del states
        elif way == "async with":
            async with states:
                pass
        else:
            waiter = asyncio.ensure_future(anext(states, "end"))
            await asyncio.sleep(0)
            if way == "cancel":
                waiter.cancel()
                await asyncio.wait([waiter])
                assert not stuck.cancelled  # it can still be iterated over
                del states, waiter
            else:
                await states.aclose()
                assert await waiter == "end"
        await wait_until(lambda: stuck.cancelled)
        await wait_until(lambda: not server.tokenmanager.incoming_requests)
        assert not client.tokenmanager.outgoing_requests


async def test_first_state_can_be_waited_for_again(transport: Transport) -> None:
    """Who has not waited for long enough can go on to wait."""
    async with raw_server(transport) as (client, server):
        states = client.observe(server.url)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(states)
        peer = await server.peer()
        peer.respond(await peer.receive_message(), payload=b"1", more=True, observe=0)
        assert await anext(states) == b"1"
        waiter = asyncio.ensure_future(anext(states, "end"))
        await asyncio.sleep(0)
        await states.aclose()
        assert await waiter == "end"


async def test_states_that_fail_unseen(transport: Transport) -> None:
    """An observation that nobody iterates over fails in silence."""
    async with await Context.create_client_context() as client:
        states = client.observe("local://nobody/x")
        await wait_until(states.request.response.done)
        del states
        gc.collect()


# -- ServerObservation -----------------------------------------------------------------------------


def test_server_observation_is_accepted_once() -> None:
    """What is not accepted is no observation; its end is told once, whatever the callback does."""
    ends: list[str] = []
    observation = ServerObservation()
    assert not observation.is_accepted
    assert repr(observation) == "<ServerObservation, not accepted>"
    observation.accept(lambda: ends.append("end"))
    assert observation.is_accepted
    assert repr(observation) == "<ServerObservation, accepted>"
    with pytest.raises(error.PipeStateError, match="accepted already"):
        observation.accept(lambda: None)
    observation._finish()
    observation._finish()
    assert ends == ["end"]
    assert not observation.is_accepted
    assert repr(observation) == "<ServerObservation, ended>"
    observation.trigger(message(1))  # too late, no harm
    observation.deregister("too late")


def test_cancellation_callback_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the observation has ended."""
    observation = ServerObservation()
    observation.accept(lambda: 1 // 0)
    observation.deregister()
    assert not observation.is_accepted
    assert "ZeroDivisionError" in caplog.text


def test_triggers_before_the_first_response() -> None:
    """They are made up for, the latest one, or the last one of the observation, once the response is sent."""
    one, two = message(1), message(2)
    for triggers, expected in (
        ([], []),
        ([(None, False)], [(None, False)]),
        ([(one, False), (two, False)], [(two, False)]),
        ([(one, True), (two, False)], [(one, True)]),
    ):
        seen: list[Any] = []
        observation = ServerObservation()
        observation.accept(lambda: None)
        for response, is_last in triggers:
            observation.trigger(response, is_last=is_last)
        observation._begin(lambda response, is_last, seen=seen: seen.append((response, is_last)))  # type: ignore[misc]
        assert seen == expected
        observation.trigger(two)
        assert seen == [*expected, (two, False)]


async def test_deregistered_while_the_first_response_is_made(transport: Transport) -> None:
    """Who is deregistered before the response is there gets it, and the reason, and does not wait for
    ever."""
    proceed = asyncio.Event()
    observations: list[ServerObservation] = []

    class Slow(ObservableResource):
        async def add_observation(self, request: Message, serverobservation: ServerObservation) -> None:
            observations.append(serverobservation)
            serverobservation.accept(lambda: None)

        async def render_get(self, request: Message) -> Message:
            await proceed.wait()
            return Message(payload=b"1")

    slow = Slow()
    async with served(transport, site_of(slow=slow)) as (client, server, url):
        request, observation = observe(client, url + "slow")
        failures: list[BaseException] = []
        observation.register_errback(failures.append)
        await wait_until(lambda: observations)
        observations[0].deregister("changed my mind")
        proceed.set()
        assert (await request.response).payload == b"1"
        await wait_until(lambda: failures)
        await wait_until(lambda: not server.tokenmanager.incoming_requests)
        assert not slow.observation_count


async def test_declined_by_deregister(transport: Transport) -> None:
    """A resource that deregisters in place of accepting, or right after it, gives its state once."""

    class Choosy(Value):
        accepts = False

        async def add_observation(self, request: Message, serverobservation: ServerObservation) -> None:
            if self.accepts:
                serverobservation.accept(lambda: None)
            serverobservation.deregister("no")

    value = Choosy(b"1")
    async with served(transport, site_of(value=value)) as (client, server, url):
        for value.accepts in (False, True):
            request, observation = observe(client, url + "value")
            response = await request.response
            assert (response.payload, response.opt.observe) == (b"1", None)
            assert observation.cancelled
            assert not value.observation_count
            assert not server.tokenmanager.incoming_requests


async def test_observation_by_hand(transport: Transport) -> None:
    """On the wire: Observe in each notification but the last; a signal of no interest ends it at the
    server."""
    value = Value(b"1")
    async with served(transport, site_of(value=value)) as (_, _, url), raw_client(url) as peer:
        first = await peer.ask(GET, "value", observe=0)
        value.set(b"2")
        second = await peer.receive_message()
        assert (first.payload, second.payload) == (b"1", b"2")
        assert 0 < second.opt.observe - first.opt.observe < 2**23
        assert value.observation_count == 1
        peer.send([0, b"t"])
        await wait_until(lambda: not value.observation_count)
        value.set(b"3")
        assert (await peer.ask(GET, "value")).opt.observe is None
