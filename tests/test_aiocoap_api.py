"""The names of aiocoap that our modules of the same name have: a test for each, in the order of its pages."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from conftest import Transport
from waiting import wait_until

from aiomas_ng import error, pipe, protocol, resource, tokenmanager
from aiomas_ng._coap.remote import Remote
from aiomas_ng.linkformat import LinkFormat
from aiomas_ng.message import CHANGED, CONTENT, GET, NOT_FOUND, PUT, VALID, Message
from aiomas_ng.pipe import IterablePipe, Pipe, PipeState
from aiomas_ng.protocol import Context
from aiomas_ng.resource import ObservableResource, Resource, Site, WKCResource, hashing_etag

log = logging.getLogger("test")


def parameters(func: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters of *func*, those of the page first."""
    return [name for name in inspect.signature(func).parameters if name not in ("self", "cls")]


class Number(ObservableResource):
    """A number that can be read, written and observed."""

    rt = "example.number"

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.counts: list[int] = []
        self.was_cancelled = asyncio.Event()

    def update_observation_count(self, newcount: int) -> None:
        self.counts.append(newcount)

    async def render_get(self, request: Message) -> Message:
        return Message(payload=str(self.value).encode())

    async def render_put(self, request: Message) -> Message:
        self.value = int(request.payload)
        self.updated_state()
        return Message(code=CHANGED)


class Stuck(Resource):
    """A resource that never answers."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.was_cancelled = asyncio.Event()

    async def render_get(self, request: Message) -> Message:
        self.has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.was_cancelled.set()
        raise AssertionError


@asynccontextmanager
async def served(transport: Transport, site: Any) -> AsyncIterator[tuple[Context, Context, str]]:
    """Open a client and a server of *site*; yield both and the base URL."""
    server = await Context.create_server_context(site, transport.address())
    client = await Context.create_client_context()
    try:
        yield client, server, server.urls[0]
    finally:
        await client.shutdown()
        await server.shutdown()


def number_site(value: int = 0) -> tuple[Site, Number]:
    """Return a site with a number at ``/number``."""
    site, number = Site(), Number(value)
    site.add_resource(["number"], number)
    return site, number


# -- aiocoap.pipe ----------------------------------------------------------------------------------


def test_pipe_takes_a_request_and_a_log() -> None:
    """A pipe has its request from the beginning, and is being prepared."""
    request = Message(code=GET)
    made = Pipe(request, log)
    assert parameters(Pipe.__init__) == ["request", "log"]
    assert made.request is request
    assert made.log is log
    assert made.state is PipeState.PREPARING


def test_pipe_event_is_a_tuple() -> None:
    """An event is a tuple of message, exception and whether it is the last one."""
    event = Pipe.Event(None, None, True)
    assert isinstance(event, tuple)
    assert Pipe.Event._fields == ("message", "exception", "is_last")
    assert (event.message, event.exception, event.is_last) == (None, None, True) == event


def test_pipe_poke() -> None:
    """Poking reaches the responder, and returns nothing."""
    made = Pipe(Message(code=GET), log)
    pokes: list[int] = []
    made.on_event(lambda event: True)
    made.on_poke(lambda: pokes.append(1))
    made.poke()
    assert pokes == [1]


def test_pipe_on_event() -> None:
    """A callback is called again only if it returned True; a mere watcher learns of the end of interest."""
    assert parameters(Pipe.on_event) == ["callback", "is_interest"]
    made = Pipe(Message(code=GET), log)
    seen: list[Any] = []
    watched: list[Any] = []
    made.on_event(lambda event: seen.append(event))  # returns None, so it is called once
    unregister = made.on_event(lambda event: True)
    made.on_event(lambda event: watched.append(event) or True, is_interest=False)
    first = Message(code=CONTENT)
    made.add_response(first)
    made.add_response(Message(code=CONTENT))
    assert seen == [(first, None, False)]
    unregister()
    assert len(watched) == 3
    assert watched[-1] == (None, None, True)


def test_pipe_on_interest_end() -> None:
    """The callback comes exactly once: at the end of all interest, at the last event, or right now."""
    ends: list[str] = []
    Pipe(Message(code=GET), log).on_interest_end(lambda: ends.append("nobody"))
    assert ends == ["nobody"]
    left = Pipe(Message(code=GET), log)
    unregister = left.on_event(lambda event: True)
    left.on_interest_end(lambda: ends.append("left"))
    assert ends == ["nobody"]
    unregister()
    unregister()
    answered = Pipe(Message(code=GET), log)
    answered.on_event(lambda event: True)
    answered.on_interest_end(lambda: ends.append("answered"))
    answered.add_response(Message(code=CONTENT), is_last=True)
    assert ends == ["nobody", "left", "answered"]


def test_pipe_add_response() -> None:
    """Responses come as events, in order, up to the last."""
    assert parameters(Pipe.add_response) == ["response", "is_last"]
    made = Pipe(Message(code=GET), log)
    events: list[Any] = []
    made.on_event(lambda event: events.append(event) or True)
    responses = [Message(code=CONTENT) for _ in range(3)]
    made.add_response(responses[0])
    made.add_response(responses[1], is_last=True)
    made.add_response(responses[2])
    assert events == [(responses[0], None, False), (responses[1], None, True)]


def test_pipe_add_exception() -> None:
    """An exception is always the last event."""
    made = Pipe(Message(code=GET), log)
    events: list[Any] = []
    made.on_event(lambda event: events.append(event) or True)
    failure = ValueError("x")
    made.add_exception(failure)
    assert events == [(None, failure, True)]
    assert made.is_ended


async def test_pipe_run_driving_pipe() -> None:
    """The end of the coroutine ends the pipe, and the end of all interest cancels the coroutine."""
    assert parameters(pipe.run_driving_pipe)[:3] == ["pipe", "coroutine", "name"]
    made = Pipe(Message(code=GET), log)
    events: list[Any] = []
    made.on_event(lambda event: events.append(event) or True)

    async def fail() -> None:
        raise error.NotFound("gone")

    assert pipe.run_driving_pipe(made, fail(), name="fails") is None  # type: ignore[func-returns-value]
    await wait_until(lambda: events)
    assert isinstance(events[0].exception, error.NotFound)

    was_cancelled = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    abandoned = Pipe(Message(code=GET), log)
    unregister = abandoned.on_event(lambda event: True)
    pipe.run_driving_pipe(abandoned, hang())
    await asyncio.sleep(0)
    unregister()
    await was_cancelled.wait()


def test_pipe_error_to_message() -> None:
    """Exceptions on the new pipe are responses on the old one, and loss of interest goes the other way."""
    assert parameters(pipe.error_to_message) == ["old_pr", "log"]
    old = Pipe(Message(code=GET), log)
    events: list[Any] = []
    old.on_event(lambda event: events.append(event) or True)
    pipe.error_to_message(old, log).add_exception(error.NotFound("no such thing"))
    assert events[0].message.code == NOT_FOUND
    assert events[0].message.payload == b"no such thing"
    assert events[0].is_last

    old = Pipe(Message(code=GET), log)
    unregister = old.on_event(lambda event: True)
    ends: list[int] = []
    pipe.error_to_message(old, log).on_interest_end(lambda: ends.append(1))
    unregister()
    assert ends == [1]


async def test_iterable_pipe() -> None:
    """An IterablePipe is a pipe to the responder, and is iterated over by the requester, once."""
    made = IterablePipe(Message(code=GET))
    responses = [Message(code=CONTENT) for _ in range(2)]
    made.add_response(responses[0])
    made.add_response(responses[1], is_last=True)
    assert [event.message async for event in made] == responses
    with pytest.raises(error.PipeStateError):
        made.__aiter__()


async def test_iterable_pipe_iterator() -> None:
    """The iterator takes a queue and what to call when the iteration was left."""
    assert parameters(IterablePipe.Iterator.__init__)[:2] == ["queue", "on_interest_end"]
    made = IterablePipe(Message(code=GET))
    made.add_response(Message(code=CONTENT))
    iterator = made.__aiter__()
    assert isinstance(iterator, IterablePipe.Iterator)
    assert (await iterator.__anext__()).is_last is False
    del iterator
    assert made.was_abandoned


# -- aiocoap.tokenmanager --------------------------------------------------------------------------


async def test_token_manager_outgoing_and_incoming_requests(transport: Transport) -> None:
    """Requests are there while they are under way, by token and remote, on both sides."""
    site, stuck = Site(), Stuck()
    site.add_resource(["stuck"], stuck)
    async with served(transport, site) as (client, server, url):
        request = client.request(Message(code=GET, uri=url + "stuck"))
        await stuck.has_begun.wait()
        ((token, remote),) = client.tokenmanager.outgoing_requests
        assert isinstance(token, bytes)
        assert isinstance(remote, Remote)
        assert client.tokenmanager.outgoing_requests[token, remote].request.opt.uri_path == ("stuck",)
        ((there, _),) = server.tokenmanager.incoming_requests
        assert there == token
        request.response.cancel()
        await stuck.was_cancelled.wait()
        assert not client.tokenmanager.outgoing_requests
        assert not server.tokenmanager.incoming_requests


async def test_token_manager_client_credentials() -> None:
    """They are those of the context."""
    context = Context(client_credentials=None)
    assert tokenmanager.TokenManager(context).client_credentials is context.client_credentials
    await context.shutdown()


async def test_token_manager_next_token() -> None:
    """Each token is a new one, of one to eight bytes."""
    manager = tokenmanager.TokenManager(Context())
    tokens = [manager.next_token() for _ in range(1000)]
    assert len(set(tokens)) == 1000
    assert all(isinstance(token, bytes) and 1 <= len(token) <= 8 for token in tokens)


async def test_token_manager_dispatch_error(transport: Transport) -> None:
    """An error of a remote ends exactly the requests of that remote."""
    site, stuck = Site(), Stuck()
    site.add_resource(["stuck"], stuck)
    async with served(transport, site) as (client, _, one), served(transport, site) as (_, _, two):
        first, second = (client.request(Message(code=GET, uri=url + "stuck")) for url in (one, two))
        await wait_until(lambda: len(client.tokenmanager.outgoing_requests) == 2)
        remote = next(r for r in client.tokenmanager.remotes if r.url == one)
        client.tokenmanager.dispatch_error(OSError("cut"), remote)
        with pytest.raises(error.NetworkError, match="cut"):
            await first.response
        assert not second.response.done()
        second.response.cancel()
        await wait_until(lambda: not client.tokenmanager.outgoing_requests)


async def test_token_manager_process_request_and_process_response(transport: Transport) -> None:
    """A request is rendered and a response finds its request; one that nobody waits for is told so."""
    site, _ = number_site(7)
    async with served(transport, site) as (client, server, url):
        request = Message(code=GET, uri=url + "number")
        await client.request(request).response
        (remote,) = client.tokenmanager.remotes
        stray = Message(code=CONTENT, token=b"stray", remote=remote)
        assert client.tokenmanager.process_response(stray) is False
        (back,) = server.tokenmanager.remotes
        server.tokenmanager.process_request(Message(code=GET, token=b"x", remote=back, uri_path=["number"]))
        await wait_until(lambda: not server.tokenmanager.incoming_requests)


async def test_token_manager_request(transport: Transport) -> None:
    """A pipe whose remote is known is sent, and gets the response."""
    site, _ = number_site(7)
    async with served(transport, site) as (client, _, url):
        message = Message(code=GET, uri=url + "number")
        assert await client.tokenmanager.fill_or_recognize_remote(message)
        made = IterablePipe(message)
        client.tokenmanager.request(made)
        assert [event.message.payload async for event in made if event.message] == [b"7"]


async def test_token_manager_fill_or_recognize_remote(transport: Transport) -> None:
    """An address becomes a connection; a connection of ours is recognized, that of others is not."""
    site, _ = number_site()
    async with served(transport, site) as (client, server, url):
        message = Message(code=GET, uri=url + "number")
        assert await client.tokenmanager.fill_or_recognize_remote(message)
        assert isinstance(message.remote, Remote)
        assert await client.tokenmanager.fill_or_recognize_remote(message)
        assert not await server.tokenmanager.fill_or_recognize_remote(message)


async def test_token_manager_shutdown(transport: Transport) -> None:
    """It ends all requests, in both directions."""
    site, stuck = Site(), Stuck()
    site.add_resource(["stuck"], stuck)
    async with served(transport, site) as (client, _, url):
        request = client.request(Message(code=GET, uri=url + "stuck"))
        await stuck.has_begun.wait()
        await client.tokenmanager.shutdown()
        with pytest.raises(error.LibraryShutdown):
            await request.response
        await stuck.was_cancelled.wait()


def test_token_manager_plumbing_request() -> None:
    """It is the pipe, under its former name."""
    assert tokenmanager.PlumbingRequest is Pipe


# -- aiocoap.protocol ------------------------------------------------------------------------------


async def test_context_constructor() -> None:
    """The arguments are those of the page; all can be left out."""
    expected = ["loop", "serversite", "loggername", "client_credentials", "server_credentials"]
    assert parameters(Context.__init__)[:5] == expected
    context = Context(None, Site(), "a-logger")
    assert context.log.name == "a-logger"
    assert isinstance(context.serversite, Site)
    await context.shutdown()


async def test_context_create_client_context() -> None:
    """A client context listens nowhere; unknown transports are refused by name."""
    assert parameters(Context.create_client_context)[:3] == ["loggername", "loop", "transports"]
    context = await Context.create_client_context(transports=["tcp"])
    assert context.urls == []
    await context.shutdown()
    with pytest.raises(ValueError, match="udp6"):
        await Context.create_client_context(transports=["udp6"])


async def test_context_create_server_context(transport: Transport) -> None:
    """A server context answers; without a site, which can be set later, with 4.04."""
    names = [
        "site",
        "bind",
        "loggername",
        "loop",
        "_ssl_context",
        "multicast",
        "server_credentials",
        "transports",
    ]
    assert parameters(Context.create_server_context)[:8] == names
    async with served(transport, None) as (client, server, url):
        message = Message(code=GET, uri=url + "number")
        assert (await client.request(message).response).code == NOT_FOUND
        server.serversite = number_site(3)[0]
        assert (await client.request(message).response).payload == b"3"


async def test_context_multicast_is_refused() -> None:
    """There is no UDP, so no multicast: it is refused, and nothing is left open."""
    with pytest.raises(error.MulticastNotSupported):
        await Context.create_server_context(Site(), ("127.0.0.1", 0), multicast=["lo"])


async def test_context_shutdown(transport: Transport) -> None:
    """It closes everything, can be called twice, and requests after it fail."""
    async with served(transport, number_site()[0]) as (client, _, url):
        await client.get(url + "number")
        await client.shutdown()
        await client.shutdown()
        with pytest.raises(error.LibraryShutdown):
            await client.get(url + "number")


async def test_context_request(transport: Transport) -> None:
    """A request is an object with a response, whether blocks are handled or not."""
    assert parameters(Context.request)[:2] == ["request_message", "handle_blockwise"]
    async with served(transport, number_site(5)[0]) as (client, _, url):
        for handle_blockwise in (True, False):
            message = Message(code=GET, uri=url + "number")
            request = client.request(message, handle_blockwise=handle_blockwise)
            assert isinstance(request, protocol.Request)
            assert isinstance(request, protocol.BlockwiseRequest) is handle_blockwise
            assert (await request.response).payload == b"5"


async def test_context_find_remote_and_interface(transport: Transport) -> None:
    """The message gets its remote, and what sends it is returned."""
    async with served(transport, number_site()[0]) as (client, _, url):
        message = Message(code=GET, uri=url + "number")
        interface = await client.find_remote_and_interface(message)
        assert interface is client.tokenmanager
        assert message.remote.uri_base == url


async def test_context_render_to_pipe() -> None:
    """A pipe is filled by the site, and errors are responses."""
    context = Context(serversite=number_site(9)[0])
    for path, payload in (("number", b"9"), ("none", None)):
        made = IterablePipe(Message(code=GET, uri_path=[path]))
        context.render_to_pipe(made)
        (event,) = [event async for event in made]
        assert event.message is not None
        if payload is None:
            assert event.message.code == NOT_FOUND
        else:
            assert event.message.payload == payload
    await context.shutdown()


async def test_base_unicast_request_response_raising(transport: Transport) -> None:
    """It returns a successful response, and raises an unsuccessful one."""
    assert issubclass(protocol.BaseUnicastRequest, protocol.BaseRequest)
    async with served(transport, number_site(5)[0]) as (client, _, url):
        assert (await client.request(Message(code=GET, uri=url + "number")).response_raising).payload == b"5"
        with pytest.raises(error.ResponseWrappingError) as caught:
            await client.request(Message(code=GET, uri=url + "none")).response_raising
        assert caught.value.to_message().code == NOT_FOUND


async def test_base_unicast_request_response_nonraising(transport: Transport) -> None:
    """It makes a message of class 5 of what went wrong."""
    async with served(transport, number_site(5)[0]) as (client, _, url):
        assert (
            await client.request(Message(code=GET, uri=url + "none")).response_nonraising
        ).code == NOT_FOUND
        nowhere = Message(code=GET, uri="local://nobody-listens-here/x")
        assert (await client.request(nowhere).response_nonraising).code.class_ == 5


async def test_request_constructor() -> None:
    """A request takes a pipe, a loop and a log, and its response is what comes along the pipe."""
    assert parameters(protocol.Request.__init__)[:3] == ["pipe", "loop", "log"]
    made = Pipe(Message(code=GET), log)
    request = protocol.Request(made, asyncio.get_running_loop(), log)
    response = Message(code=CONTENT)
    made.add_response(response, is_last=True)
    assert await request.response is response


async def test_blockwise_request_constructor(transport: Transport) -> None:
    """A blockwise request takes a context and a message."""
    assert parameters(protocol.BlockwiseRequest.__init__)[:2] == ["protocol", "app_request"]
    async with served(transport, number_site(6)[0]) as (client, _, url):
        request = protocol.BlockwiseRequest(client, Message(code=GET, uri=url + "number"))
        assert (await request.response).payload == b"6"


async def test_client_observation_callbacks(transport: Transport) -> None:
    """Callbacks get each notification, and none after cancel, of which the server learns."""
    site, number = number_site(1)
    async with served(transport, site) as (client, _, url):
        request = client.request(Message(code=GET, uri=url + "number", observe=0))
        assert (await request.response).payload == b"1"
        seen: list[bytes] = []
        assert request.observation is not None
        request.observation.register_callback(lambda response: seen.append(response.payload))
        await client.put(url + "number", "2")
        await wait_until(lambda: seen == [b"2"])
        request.observation.cancel()
        await wait_until(lambda: not number.observation_count)
        await client.put(url + "number", "3")
        assert seen == [b"2"]


async def test_client_observation_errbacks(transport: Transport) -> None:
    """An errback gets the error that ends the observation, after the last notification."""
    site, _ = number_site(1)
    async with served(transport, site) as (client, _, url):
        request = client.request(Message(code=GET, uri=url + "number", observe=0))
        await request.response
        observation = request.observation
        assert observation is not None
        codes: list[int] = []
        failures: list[BaseException] = []
        observation.register_callback(lambda response: codes.append(response.code))
        observation.register_errback(failures.append)
        site.remove_resource(["number"])
        await wait_until(lambda: failures)
        assert codes == [NOT_FOUND]
        assert isinstance(failures[0], error.ObservationCancelled)


def test_client_observation_callback_and_error() -> None:
    """Who drives an observation passes responses and one error in."""
    observation = protocol.ClientObservation()
    seen: list[Any] = []
    observation.register_callback(seen.append)
    observation.register_errback(seen.append)
    response, failure = Message(code=CONTENT), error.ObservationCancelled("over")
    observation.callback(response)
    observation.error(failure)
    observation.callback(response)
    assert seen == [response, failure]
    with pytest.raises(error.PipeStateError):
        observation.error(failure)


def test_client_observation_cancel_and_on_cancel() -> None:
    """Cancelling is no error, happens once, and is told to who wants to know."""
    observation = protocol.ClientObservation()
    calls: list[str] = []
    observation.register_errback(lambda failure: calls.append("error"))
    observation.on_cancel(lambda: calls.append("cancelled"))
    observation.cancel()
    observation.cancel()
    assert calls == ["cancelled"]
    observation.on_cancel(lambda: calls.append("late"))
    assert calls == ["cancelled", "late"]


async def test_client_observation_iteration(transport: Transport) -> None:
    """An observation is iterated over, and leaving it ends it at the server."""
    site, number = number_site(0)
    async with served(transport, site) as (client, _, url):
        request = client.request(Message(code=GET, uri=url + "number", observe=0))
        await request.response
        assert request.observation is not None
        await client.put(url + "number", "1")
        seen = []
        iterator = request.observation.__aiter__()
        await client.put(url + "number", "2")
        async for response in iterator:
            seen.append(int(response.payload))
            if seen[-1] == 5:
                break
            await client.put(url + "number", str(seen[-1] + 1))
        assert seen[-1] == 5
        del iterator
        await wait_until(lambda: not number.observation_count)


async def test_server_observation_accept_and_deregister(transport: Transport) -> None:
    """What is accepted is observed until it is deregistered; the reason is told to the observer."""
    accepted: list[protocol.ServerObservation] = []
    cancelled = asyncio.Event()

    class Choosy(Number):
        async def add_observation(self, request: Message, serverobservation: Any) -> None:
            accepted.append(serverobservation)
            serverobservation.accept(cancelled.set)

    site = Site()
    site.add_resource(["number"], Choosy(4))
    async with served(transport, site) as (client, _, url):
        request = client.request(Message(code=GET, uri=url + "number", observe=0))
        assert (await request.response).opt.observe is not None
        last: list[Message] = []
        assert request.observation is not None
        request.observation.register_callback(last.append)
        accepted[0].deregister("closing time")
        await cancelled.wait()
        await wait_until(lambda: request.observation.cancelled)  # type: ignore[union-attr]
        assert last[0].payload == b"closing time"
        assert not last[0].code.is_successful()


async def test_server_observation_trigger(transport: Transport) -> None:
    """A trigger sends the response given, or lets the resource render; an unsuccessful one is the last."""
    assert parameters(protocol.ServerObservation.trigger) == ["response", "is_last"]
    observations: list[protocol.ServerObservation] = []

    class Triggered(Number):
        async def add_observation(self, request: Message, serverobservation: Any) -> None:
            observations.append(serverobservation)
            await super().add_observation(request, serverobservation)

    number = Triggered(1)
    site = Site()
    site.add_resource(["number"], number)
    async with served(transport, site) as (client, _, url):
        request = client.request(Message(code=GET, uri=url + "number", observe=0))
        await request.response
        assert request.observation is not None
        seen: list[bytes] = []
        request.observation.register_callback(lambda response: seen.append(response.payload))
        number.value = 2
        observations[0].trigger()
        await wait_until(lambda: seen == [b"2"])
        observations[0].trigger(Message(code=CONTENT, payload=b"by hand"))
        await wait_until(lambda: seen == [b"2", b"by hand"])
        observations[0].trigger(Message(code=NOT_FOUND, payload=b"gone"))
        await wait_until(lambda: request.observation.cancelled)  # type: ignore[union-attr]
        assert seen[-1] == b"gone"


# -- aiocoap.resource ------------------------------------------------------------------------------


def test_resource_hashing_etag() -> None:
    """The doctest of the page: who has the version already gets 2.03 and no payload."""
    request = Message(code=GET)
    hash_of_hello = b"\xaa\xf4\xc6\x1d\xdc\xc5\xe8\xa2"
    request.opt.etags = [hash_of_hello]
    response = Message(code=CONTENT)
    response.payload = b"hello"
    hashing_etag(request, response)
    assert response.code == VALID
    assert response.payload == b""
    assert response.opt.etag == hash_of_hello
    assert "2.03 Valid" in repr(response)
    assert "1 option" in repr(response)


def test_resource_get_link_description() -> None:
    """A link shows ct, rt and if of the resource."""
    described = Resource()
    described.rt, described.if_, described.ct = "a.b", "core.s", 50
    assert described.get_link_description() == {"rt": "a.b", "if": "core.s", "ct": "50"}


async def test_resource_delegates_to_methods(transport: Transport) -> None:
    """A method without a handler is answered by 4.05."""
    async with served(transport, number_site(1)[0]) as (client, _, url):
        response = await client.request(Message(code=PUT, payload=b"2", uri=url + "number")).response
        assert response.code == CHANGED
        with pytest.raises(error.ResponseWrappingError) as caught:
            await client.delete(url + "number")
        assert caught.value.code.dotted == "4.05"


async def test_observable_resource_hooks(transport: Transport) -> None:
    """The number of observers is told to the hook, and updated_state notifies them."""
    assert parameters(ObservableResource.add_observation) == ["request", "serverobservation"]
    site, number = number_site(1)
    async with served(transport, site) as (client, _, url):
        async with client.observe(url + "number") as states:
            assert await anext(states) == b"1"
            assert number.counts == [1]
            number.value = 2
            number.updated_state()
            assert await anext(states) == b"2"
        await wait_until(lambda: number.counts == [1, 0])


async def test_wkc_resource(transport: Transport) -> None:
    """It renders what the function given to it returns, in link format."""
    assert WKCResource.ct == 40
    assert parameters(WKCResource.__init__) == ["listgenerator"]
    site, _ = number_site()
    site.add_resource([".well-known", "core"], WKCResource(site.get_resources_as_linkheader))
    async with served(transport, site) as (client, _, url):
        response = await client.request(Message(code=GET, uri=url + ".well-known/core")).response
        assert response.opt.content_format == 40
        assert response.payload.startswith(b'</number>;rt="example.number";obs')
    assert isinstance(site.get_resources_as_linkheader(), LinkFormat)


async def test_path_capable(transport: Transport) -> None:
    """What is path-capable gets the rest of the path."""

    class Echo(Resource, resource.PathCapable):
        def render_get(self, request: Message) -> Message:
            return Message(payload="|".join(request.opt.uri_path).encode())

    site = Site()
    site.add_resource(["echo"], Echo())
    async with served(transport, site) as (client, _, url):
        assert await client.get(url + "echo/a/b%2Fc") == b"a|b/c"


async def test_site_add_resource(transport: Transport) -> None:
    """The doctest of the page: resources of a nested site, and its root with a slash at the end."""
    batch = Site()
    batch.add_resource(["light1"], Number(1))
    batch.add_resource(["light2"], Number(2))
    batch.add_resource([], Number(3))
    site = Site()
    site.add_resource("batch", batch)
    async with served(transport, site) as (client, _, url):
        assert [await client.get(f"{url}batch/{name}") for name in ("light1", "light2", "")] == [
            b"1",
            b"2",
            b"3",
        ]
        with pytest.raises(error.ResponseWrappingError, match=r"4\.04"):
            await client.get(url + "batch")


async def test_site_add_observation() -> None:
    """The observation is passed on to the resource of the request."""
    site, _ = number_site()
    observation = protocol.ServerObservation()
    await site.add_observation(Message(code=GET, uri_path=["number"]), observation)
    assert observation.is_accepted
