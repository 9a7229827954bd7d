"""Requests of ours: the response, and every way in which it does not come."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import pytest
from coap_contexts import Echo, Stuck, Value, raw_server, served, site_of
from conftest import Transport
from waiting import wait_until

from aiomas_ng import error
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import CallTimeoutError, OverloadError
from aiomas_ng.message import (
    BAD_GATEWAY,
    CHANGED,
    CONTENT,
    DELETE,
    EMPTY,
    FETCH,
    GATEWAY_TIMEOUT,
    GET,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    POST,
    PUT,
    SERVICE_UNAVAILABLE,
    Message,
)
from aiomas_ng.pipe import Pipe
from aiomas_ng.protocol import BlockwiseRequest, Context, Request

log = logging.getLogger("test")


def is_idle(*contexts: Context) -> bool:
    """Return whether no request is under way in either direction."""
    return not any(
        context.tokenmanager.outgoing_requests or context.tokenmanager.incoming_requests
        for context in contexts
    )


# -- The response ----------------------------------------------------------------------------------


@pytest.mark.parametrize("handle_blockwise", [True, False])
async def test_response(transport: Transport, handle_blockwise: bool) -> None:
    """A request has one response, which knows its request and where it came from."""
    async with served(transport, site_of(value=Value(b"state"))) as (client, server, url):
        request = client.request(Message(GET, uri=url + "value"), handle_blockwise)
        assert isinstance(request, BlockwiseRequest) is handle_blockwise
        assert request.observation is None
        assert "waiting" in repr(request)
        response = await request.response
        assert "done" in repr(request)
        assert (response.code, response.payload) == (CONTENT, b"state")
        assert response.request is not None
        assert response.get_request_uri() == url + "value"
        assert response.remote.uri_base == url
        assert is_idle(client, server)


async def test_every_code_is_a_response(transport: Transport) -> None:
    """An unsuccessful response is no exception."""
    async with served(transport, site_of(value=Value())) as (client, _, url):
        assert (await client.request(Message(GET, uri=url + "nothing")).response).code == NOT_FOUND
        response = await client.request(Message(DELETE, uri=url + "value")).response
        assert response.code == METHOD_NOT_ALLOWED


async def test_message_can_be_sent_again(transport: Transport) -> None:
    """A message is not changed by being sent: it can be sent many times, also at once or after a
    reconnection."""
    value = Value(b"1")
    async with served(transport, site_of(value=value)) as (client, server, url):
        message = Message(GET, uri=url + "value")
        remote, token = message.remote, message.token
        requests = [client.request(message) for _ in range(5)]
        assert [(await request.response).payload for request in requests] == [b"1"] * 5
        (connection,) = server.tokenmanager.remotes
        await connection.channel.close()
        value.payload = b"2"
        assert (await client.request(message).response).payload == b"2"
        assert (message.remote, message.token) == (remote, token)


async def test_requests_by_connection(transport: Transport) -> None:
    """A request can go to a connection in place of an address, as to a peer that has dialled us."""
    async with served(transport, site_of(value=Value(b"far"))) as (client, server, url):
        client.serversite = site_of(value=Value(b"near"))
        there = (await client.request(Message(GET, uri=url + "value")).response).remote
        (here,) = server.tokenmanager.remotes
        for context, remote, payload in ((client, there, b"far"), (server, here, b"near")):
            message = Message(GET, uri_path=["value"], remote=remote)
            assert (await context.request(message).response).payload == payload


async def test_responses_out_of_order(transport: Transport) -> None:
    """Each response finds its request, in whichever order they come."""
    async with raw_server(transport) as (client, server):
        requests = [client.request(Message(GET, uri=f"{server.url}{i}")) for i in range(3)]
        peer = await server.peer()
        received = [await peer.receive_message() for _ in requests]
        for message in reversed(received):
            peer.respond(message, payload=message.opt.uri_path[0].encode())
        assert [(await request.response).payload for request in requests] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("request_message", [None, "coap://x", b"", {"code": GET}])
async def test_request_has_to_be_a_message(request_message: Any) -> None:
    """Anything else is refused at once."""
    async with await Context.create_client_context() as client:
        with pytest.raises(TypeError, match="must be a Message"):
            client.request(request_message)


@pytest.mark.parametrize("code", [None, EMPTY, CONTENT, NOT_FOUND])
async def test_request_has_to_have_a_method(code: Any) -> None:
    """A code that is no method is refused at once."""
    async with await Context.create_client_context() as client:
        with pytest.raises(ValueError, match="must be a method"):
            client.request(Message(code, uri="tcp://localhost:1/"))


@pytest.mark.parametrize("handle_blockwise", [True, False])
async def test_request_without_a_destination(handle_blockwise: bool) -> None:
    """A message that does not say where it goes fails, and says so."""
    async with await Context.create_client_context() as client:
        with pytest.raises(ValueError, match="set its uri or remote"):
            await client.request(Message(GET, uri_path=["x"]), handle_blockwise).response


async def test_request_that_is_too_large_for_a_frame(transport: Transport) -> None:
    """What cannot be sent fails as a request, and leaves nothing behind."""
    async with served(transport, site_of(echo=Echo()), near={"limits": Limits(frame_size=20_000)}) as (
        client,
        server,
        url,
    ):
        assert (await client.request(Message(GET, uri=url)).response).code == NOT_FOUND
        with pytest.raises(ValueError, match="frame"):
            await client.request(Message(POST, bytes(30_000), uri=url + "echo"), False).response
        assert is_idle(client, server)


async def test_no_response_wanted(transport: Transport) -> None:
    """Who asks for no response at all (RFC 7967) gets an empty one at once, and the work is done."""
    value = Value()
    async with served(transport, site_of(value=value)) as (client, server, url):
        response = await client.request(Message(PUT, b"x", uri=url + "value", no_response=26)).response
        assert response.code == EMPTY
        assert (
            await client.request(Message(PUT, b"y", uri=url + "value", no_response=26)).response_raising
        ).code == EMPTY
        await wait_until(lambda: value.writes == [b"x", b"y"])
        await wait_until(lambda: is_idle(client, server))


async def test_first_of_several_responses_is_the_response(transport: Transport) -> None:
    """A plain request takes one response; who sends more of them is told to stop."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url))
        peer = await server.peer()
        message = await peer.receive_message()
        peer.respond(message, payload=b"1", more=True)
        assert (await request.response).payload == b"1"
        assert await peer.receive() == [0, message.token]
        assert is_idle(client)


# -- Raising or not --------------------------------------------------------------------------------


async def test_response_raising(transport: Transport) -> None:
    """A successful response is returned; an unsuccessful one raised, with all of it."""
    async with served(transport, site_of(value=Value(b"x"))) as (client, _, url):
        assert (await client.request(Message(GET, uri=url + "value")).response_raising).payload == b"x"
        with pytest.raises(error.ResponseWrappingError, match=r"4\.04") as caught:
            await client.request(Message(GET, uri=url + "nothing")).response_raising
        assert caught.value.coapmessage.code == NOT_FOUND
        assert b"nothing" in caught.value.coapmessage.payload
        request = client.request(Message(GET, uri="local://nobody/"))
        with pytest.raises(error.NetworkError):
            await request.response_raising
        with pytest.raises(error.NetworkError):  # again, for it is done
            await request.response_raising


async def test_response_nonraising(transport: Transport) -> None:
    """Errors become messages as a proxy would make them: 5.02, 5.04, or what the error says by itself."""
    stuck = Stuck()
    async with served(transport, site_of(value=Value(b"x"), stuck=stuck)) as (client, server, url):
        assert (await client.request(Message(GET, uri=url + "value")).response_nonraising).payload == b"x"
        assert (await client.request(Message(GET, uri=url + "nothing")).response_nonraising).code == NOT_FOUND
        response = await client.request(Message(GET, uri="local://nobody/")).response_nonraising
        assert response.code == BAD_GATEWAY
        assert b"nobody" in response.payload
        response = await client.request(Message(GET, uri=url + "stuck"), timeout=0.01).response_nonraising
        assert response.code == GATEWAY_TIMEOUT
        assert b"0.01 s" in response.payload
        request = client.request(Message(GET, uri=url + "stuck"))
        waiter = asyncio.ensure_future(request.response_nonraising)
        await wait_until(lambda: stuck.begun == 2)
        request._fail(error.ServiceUnavailable("no \udcff luck", max_age=7))
        response = await waiter
        assert (response.code, response.opt.max_age) == (SERVICE_UNAVAILABLE, 7)
        await server.shutdown()
    late = await client.request(Message(GET, uri=url + "value")).response_nonraising
    assert late.code == BAD_GATEWAY


async def test_cancellation_is_raised_in_any_case(transport: Transport) -> None:
    """Cancelling whoever waits is no error to be turned into a message; it takes back the request."""
    stuck = Stuck()
    async with served(transport, site_of(stuck=stuck)) as (client, server, url):
        for name in ("response", "response_raising", "response_nonraising"):
            request = client.request(Message(GET, uri=url + "stuck"))
            waiter = asyncio.ensure_future(getattr(request, name))
            await wait_until(lambda: stuck.begun > stuck.cancelled)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            await wait_until(lambda: stuck.begun == stuck.cancelled and is_idle(client, server))


# -- Cancelling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("handle_blockwise", [True, False])
async def test_cancelling_stops_the_work(transport: Transport, handle_blockwise: bool) -> None:
    """Cancelling the response cancels the handler at the peer, and others go on."""
    stuck = Stuck()
    async with served(transport, site_of(stuck=stuck, value=Value(b"x"))) as (client, server, url):
        request = client.request(Message(GET, uri=url + "stuck"), handle_blockwise)
        other = client.request(Message(GET, uri=url + "stuck"), handle_blockwise)
        await wait_until(lambda: stuck.begun == 2)
        request.response.cancel()
        await wait_until(lambda: stuck.cancelled == 1)
        assert not other.response.done()
        assert len(client.tokenmanager.outgoing_requests) == len(server.tokenmanager.incoming_requests) == 1
        other.response.cancel()
        await wait_until(lambda: stuck.cancelled == 2 and is_idle(client, server))
        assert await client.get(url + "value") == b"x"


@pytest.mark.parametrize("size", [0, 100_000])
async def test_cancelling_before_anything_was_sent(transport: Transport, size: int) -> None:
    """A request that is cancelled while its connection is made is never sent, however large its body."""
    async with raw_server(transport) as (client, server):
        cancelled = client.request(Message(PUT, bytes(size), uri=server.url))
        follower = client.request(Message(GET, uri=server.url + "follower"))
        cancelled.response.cancel()
        try:
            peer = await server.peer()
            message = await peer.receive_message()
        except EOFError:  # the connection that was given up
            peer = await server.peer(1)
            message = await peer.receive_message()
        assert message.opt.uri_path == ("follower",)
        peer.respond(message)
        await follower.response
        assert is_idle(client)


async def test_cancelling_while_connecting_does_not_disturb_others(transport: Transport) -> None:
    """Of two requests that wait for one connection, one is cancelled and the other one goes on."""
    async with served(transport, site_of(value=Value(b"x"))) as (client, _, url):
        first, second = (client.request(Message(GET, uri=url + "value")) for _ in range(2))
        await asyncio.sleep(0)
        first.response.cancel()
        assert (await second.response).payload == b"x"


async def test_cancelling_twice_and_late(transport: Transport) -> None:
    """Cancelling what is done or cancelled does no harm."""
    async with served(transport, site_of(value=Value(b"x"), stuck=Stuck())) as (client, server, url):
        request = client.request(Message(GET, uri=url + "value"))
        await request.response
        assert not request.response.cancel()
        request = client.request(Message(GET, uri=url + "stuck"))
        assert request.response.cancel()
        assert not request.response.cancel()
        await wait_until(lambda: is_idle(client, server))


async def test_response_that_crosses_the_cancellation(transport: Transport) -> None:
    """A response that was under way already is dropped, and its sender told that nobody waits."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url))
        peer = await server.peer()
        message = await peer.receive_message()
        request.response.cancel()
        assert await peer.receive() == [0, message.token]
        peer.respond(message)
        assert await peer.receive() == [0, message.token]


# -- Time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handle_blockwise", [True, False])
async def test_timeout(
    transport: Transport, handle_blockwise: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that takes too long fails, the peer stops working on it, and that is worth an INFO."""
    stuck = Stuck()
    caplog.set_level(logging.DEBUG, "coap")
    async with served(transport, site_of(stuck=stuck, value=Value(b"x"))) as (client, server, url):
        request = client.request(Message(GET, uri=url + "stuck"), handle_blockwise, timeout=0.02)
        with pytest.raises(error.RequestTimedOut, match=r"0\.02 s") as caught:
            await request.response
        assert isinstance(caught.value, TimeoutError)
        assert isinstance(caught.value, CallTimeoutError)
        assert caught.value.timeout == 0.02
        await wait_until(lambda: stuck.begun == stuck.cancelled and is_idle(client, server))
        assert await client.get(url + "value", timeout=10) == b"x"
    records = [record for record in caplog.records if "was not answered" in record.message]
    assert [record.levelname for record in records] == ["INFO"]


async def test_timeout_while_connecting(transport: Transport) -> None:
    """The time that it takes to connect counts."""
    async with await Context.create_client_context() as client:
        started = asyncio.Event()

        async def never(*args: Any) -> Any:
            started.set()
            await asyncio.Event().wait()

        client._peers._open = never
        address = "local://somewhere/"
        with pytest.raises(error.RequestTimedOut):
            await client.request(Message(GET, uri=address), timeout=0.02).response
        assert started.is_set()
        assert not [task for task in client._tasks if not task.done() and not task.cancelling()]


async def test_timeout_while_blocks_are_sent(transport: Transport) -> None:
    """The time for all blocks counts; after it none is sent."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(PUT, bytes(100_000), uri=server.url), timeout=0.1)
        peer = await server.peer()
        block = await peer.receive_message()
        peer.respond(block, 95, block1=block.opt.block1)
        second = await peer.receive_message()
        with pytest.raises(error.RequestTimedOut):
            await request.response
        assert await peer.receive() == [0, second.token]
        assert is_idle(client)


async def test_timeout_while_blocks_are_fetched(transport: Transport) -> None:
    """The time for the whole of the response counts; after it no block is asked for."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url), timeout=0.1)
        peer = await server.peer()
        peer.respond(await peer.receive_message(), payload=bytes(1024), block2=(0, True, 6))
        second = await peer.receive_message()
        with pytest.raises(error.RequestTimedOut):
            await request.response
        assert await peer.receive() == [0, second.token]
        assert is_idle(client)


async def test_response_in_time_stops_the_clock(transport: Transport) -> None:
    """No timer is left over after the response."""
    async with served(transport, site_of(value=Value(b"x"))) as (client, _, url):
        request = client.request(Message(GET, uri=url + "value"), timeout=100)
        await request.response
        await asyncio.sleep(0)
        assert request._timer is not None
        assert request._timer.cancelled()


# -- Connections -----------------------------------------------------------------------------------


async def test_nobody_listens(transport: Transport) -> None:
    """A request to a server that is gone fails, and one to it when it is back does not."""
    server = await Context.create_server_context(site_of(value=Value(b"1")), transport.address())
    url = server.urls[0]
    await server.shutdown()
    async with await Context.create_client_context() as client:
        for payload in (b"", bytes(100_000)):
            with pytest.raises(error.NetworkError) as caught:
                await client.request(Message(PUT, payload, uri=url + "value")).response
            assert isinstance(caught.value, ConnectionError)
        async with await Context.create_server_context(site_of(value=Value(b"2")), url):
            assert await client.get(url + "value") == b"2"


async def test_connection_lost_while_waiting(transport: Transport) -> None:
    """The requests of a lost connection fail, and the next one connects anew."""
    async with raw_server(transport) as (client, server):
        requests = [client.request(Message(GET, uri=server.url), block) for block in (True, False)]
        peer = await server.peer()
        await peer.receive_message()
        peer.raw.abort()
        for request in requests:
            with pytest.raises(error.NetworkError, match="connection"):
                await request.response
        assert is_idle(client)
        request = client.request(Message(GET, uri=server.url))
        peer = await server.peer(1)
        peer.respond(await peer.receive_message(), payload=b"again")
        assert (await request.response).payload == b"again"


async def test_connection_lost_before_the_request(transport: Transport) -> None:
    """A request to a connection that has ended fails; one to an address makes a new connection."""
    async with served(transport, site_of(value=Value(b"x"))) as (client, _server, url):
        remote = (await client.request(Message(GET, uri=url + "value")).response).remote
        await remote.channel.close()
        with pytest.raises(error.NetworkError, match="has ended"):
            await client.request(Message(GET, uri_path=["value"], remote=remote)).response
        assert await client.get(url + "value") == b"x"


@pytest.mark.parametrize("is_sudden", [True, False])
@pytest.mark.parametrize("size", [0, 100_000])
async def test_connection_lost_between_blocks(transport: Transport, size: int, is_sudden: bool) -> None:
    """A transfer does not go on over another connection, where nobody knows of it."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(FETCH, bytes(size), uri=server.url))
        peer = await server.peer()
        block = await peer.receive_message()
        if size:
            peer.respond(block, 95, block1=block.opt.block1)
        else:
            peer.respond(block, payload=bytes(1024), block2=(0, True, 6))
        if not is_sudden:
            await peer.receive_message()
        peer.raw.close()
        with pytest.raises(error.NetworkError):
            await request.response
        assert len(server.peers) == 1


# -- Nobody is interested --------------------------------------------------------------------------


async def test_failure_that_nobody_waits_for(transport: Transport, asyncio_errors: list[str]) -> None:
    """A request that fails unseen is noted by asyncio, as with any future."""
    async with await Context.create_client_context() as client:
        request = client.request(Message(GET, uri="local://nobody/"))
        await wait_until(request.response.done)
        del request
        gc.collect()
    assert "never retrieved" in asyncio_errors.pop()


async def test_request_by_pipe_alone() -> None:
    """A request is driven by its pipe, whoever is at the other end."""
    loop = asyncio.get_running_loop()
    pipe = Pipe(Message(GET), log)
    request = Request(pipe, loop, log)
    pipe.add_exception(error.NotFound("no"))
    with pytest.raises(error.NotFound):
        await request.response
    pipe = Pipe(Message(GET), log)
    request = Request(pipe, loop, log, timeout=10)
    pipe.on_interest_end(lambda: None)
    request.response.cancel()
    await asyncio.sleep(0)
    assert pipe.was_abandoned


async def test_body_beyond_the_limit_is_not_sent(transport: Transport) -> None:
    """A body that is larger than one may be fails here."""
    async with raw_server(transport, limits=Limits(body_size=2**16)) as (client, server):
        with pytest.raises(OverloadError, match="65536 bytes"):
            await client.request(Message(PUT, bytes(2**16 + 1), uri=server.url)).response
        request = client.request(Message(PUT, bytes(2**16), uri=server.url))
        peer = await server.peer()
        peer.respond(await peer.receive_message(), CHANGED)
        assert (await request.response).code == CHANGED


async def test_block_that_a_request_asks_for_by_itself(transport: Transport) -> None:
    """Who asks for a block by option gets that block alone."""
    async with served(transport, site_of(value=Value(bytes(5000)))) as (client, _, url):
        response = await client.request(Message(GET, uri=url + "value", block2=(1, False, 6))).response
        assert response.opt.block2 == (1, True, 6)
        assert len(response.payload) == 1024
