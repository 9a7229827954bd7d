"""Bodies that are larger than a message: block by block, in both directions, at both ends."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from coap_contexts import Echo, MessagePeer, Value, raw_client, raw_server, served, site_of
from conftest import Transport
from hypothesis import given, settings
from waiting import wait_until

from aiomas_ng import error
from aiomas_ng._coap.bodies import RESTARTS
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import OverloadError
from aiomas_ng.local_queue import get_queue
from aiomas_ng.message import (
    BAD_REQUEST,
    CHANGED,
    CONTENT,
    CONTINUE,
    FETCH,
    FORBIDDEN,
    GET,
    INTERNAL_SERVER_ERROR,
    NOT_FOUND,
    POST,
    PUT,
    REQUEST_ENTITY_INCOMPLETE,
    REQUEST_ENTITY_TOO_LARGE,
    SERVICE_UNAVAILABLE,
    Block,
    Message,
)
from aiomas_ng.pipe import IterablePipe, Pipe
from aiomas_ng.protocol import Context
from aiomas_ng.resource import Resource

SIZE = Limits().block_size
SMALL = Limits(block_size=1024)


def body_of(size: int, seed: int = 0) -> bytes:
    """Return *size* bytes in which no two blocks are alike."""
    count = size // 8 + 1
    return b"".join((seed << 40 | number).to_bytes(8, "big") for number in range(count))[:size]


def transfers_of(context: Context) -> tuple[int, int]:
    """Return how many bodies a context holds that arrive, and that are fetched."""
    held = [remote.transfers for remote in context.tokenmanager.remotes if remote.transfers is not None]
    return sum(len(item.assemblies) for item in held), sum(len(item.bodies) for item in held)


# -- Whole bodies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE, 2 * SIZE + 1, 3 * 2**20 + 7])
async def test_sizes(transport: Transport, size: int) -> None:
    """Bodies of every size arrive unchanged, by every method and in both directions."""
    value, body = Value(), body_of(size)
    async with served(transport, site_of(value=value, echo=Echo())) as (client, server, url):
        assert (await client.request(Message(PUT, body, uri=url + "value")).response).code == CHANGED
        assert value.writes == [body]
        response = await client.request(Message(GET, uri=url + "value")).response
        assert (response.code, response.payload) == (CONTENT, body)
        assert response.opt.block2 is None
        assert response.opt.size2 is None
        for code in (POST, FETCH):
            response = await client.request(Message(code, body, uri=url + "echo")).response
            assert response.payload == body
        assert transfers_of(server) == (0, 0)
        assert not client.tokenmanager.outgoing_requests


@settings(max_examples=60)
@given(
    size=st.integers(0, 20_000),
    near=st.integers(1, 8).map(lambda count: count * 1024),
    far=st.integers(1, 8).map(lambda count: count * 1024),
)
async def test_any_size_in_blocks_of_any_size(size: int, near: int, far: int) -> None:
    """Whatever the size of the body, and that of the blocks at either end, it arrives unchanged both ways."""
    body = body_of(size)
    server = await Context.create_server_context(
        site_of(echo=Echo()), get_queue("any-size"), limits=Limits(block_size=far)
    )
    async with server, await Context.create_client_context(limits=Limits(block_size=near)) as client:
        for code in (POST, FETCH):
            request = client.request(Message(code, body, uri=server.urls[0] + "echo"))
            assert (await request.response).payload == body
        assert transfers_of(server) == (0, 0)


@pytest.mark.parametrize("frame_size", [1500, 3000, 20_000])
async def test_small_frames(transport: Transport, frame_size: int) -> None:
    """Where frames are small, so are the blocks, at the end that has small frames, and both."""
    small, body = Limits(frame_size=frame_size), body_of(5000)
    for options in ({"both": small}, {"near": small, "far": small}):
        limits = {name: {"limits": value} for name, value in options.items()}
        both = limits.pop("both", {})
        async with served(transport, site_of(echo=Echo()), **limits, **both) as (client, _, url):
            response = await client.request(Message(POST, body, uri=url + "echo")).response
            assert response.payload == body


async def test_blocks_have_the_size_of_the_limit(transport: Transport) -> None:
    """On the wire: blocks of the size that was set, counted in units of 1024 bytes, with Size1 in the
    first."""
    body = body_of(5000)
    async with raw_server(transport, limits=Limits(block_size=2048)) as (client, server):
        request = client.request(Message(PUT, body, uri=server.url))
        peer = await server.peer()
        seen = []
        for number in (0, 2, 4):
            block = await peer.receive_message()
            seen.append(block)
            assert block.opt.block1 == (number, number < 4, 7)
            assert block.payload == body[number * 1024 : number * 1024 + 2048]
            peer.respond(block, CHANGED if number == 4 else CONTINUE, block1=block.opt.block1)
        assert (await request.response).code == CHANGED
        assert [block.opt.size1 for block in seen] == [5000, None, None]
        assert len({block.opt.request_tag for block in seen}) == 1
        assert seen[0].opt.request_tag


async def test_concurrent_transfers_do_not_mix(transport: Transport) -> None:
    """Of two bodies that are put to one resource at once, each arrives whole."""
    value = Value()
    bodies = [body_of(300_000 + number, number) for number in range(5)]
    async with served(transport, site_of(value=value)) as (client, server, url):
        requests = [client.request(Message(PUT, body, uri=url + "value")) for body in bodies]
        assert {(await request.response).code for request in requests} == {CHANGED}
        assert sorted(value.writes) == sorted(bodies)
        assert transfers_of(server) == (0, 0)


@pytest.mark.parametrize("size", [10, 100_000])
async def test_large_responses_to_equal_requests_do_not_mix(transport: Transport, size: int) -> None:
    """Two equal requests that are answered differently each get all blocks of their own response."""

    class Counter(Resource):
        count = 0

        async def render_post(self, request: Message) -> Message:
            self.count += 1
            return Message(payload=body_of(200_000, self.count))

    counter = Counter()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        requests = [client.request(Message(POST, bytes(size), uri=url + "counter")) for _ in range(5)]
        responses = {(await request.response).payload for request in requests}
        assert responses == {body_of(200_000, number) for number in range(1, 6)}


async def test_concurrent_fetches_of_one_resource(transport: Transport) -> None:
    """Many fetch the same large state at once; those who end first do not take it away from the others."""
    value = Value(body_of(500_000))
    async with served(transport, site_of(value=value)) as (client, server, url):
        requests = [client.request(Message(GET, uri=url + "value")) for _ in range(8)]
        for request in requests:
            assert (await request.response).payload == value.payload
        await wait_until(lambda: not client.tokenmanager.outgoing_requests)
        assert transfers_of(server)[1] <= 1


async def test_own_entity_tag_is_kept(transport: Transport) -> None:
    """A resource's own tag is that of all blocks; without one, a tag is made from the body."""
    value = Value(body_of(100_000))
    async with served(transport, site_of(value=value)) as (client, _, url):
        response = await client.request(Message(GET, uri=url + "value")).response
        assert response.opt.etag == hashlib.sha1(value.payload).digest()[:8]
        value.render_get = lambda request: Message(payload=value.payload, etag=b"mine")  # type: ignore[method-assign]
        response = await client.request(Message(GET, uri=url + "value")).response
        assert response.opt.etag == b"mine"


async def test_cancelling_a_transfer(transport: Transport) -> None:
    """A transfer that is cancelled half-way sends nothing more, and the server forgets it after a while."""
    value = Value()
    limits = Limits(block_size=1024, transfer_time=0.05)
    async with served(transport, site_of(value=value), limits=limits) as (client, server, url):
        request = client.request(Message(PUT, bytes(2_000_000), uri=url + "value"))
        await wait_until(lambda: transfers_of(server)[0])
        request.response.cancel()
        await wait_until(lambda: not client._tasks and not client.tokenmanager.outgoing_requests)
        assert transfers_of(server) == (1, 0)
        await wait_until(lambda: transfers_of(server) == (0, 0))
        assert not value.writes


async def test_abandoned_fetch_is_forgotten(transport: Transport) -> None:
    """A response of which no further block is asked for is forgotten after a while."""
    value = Value(body_of(100_000))
    async with (
        served(transport, site_of(value=value), far={"limits": Limits(transfer_time=0.05)}) as (
            _,
            server,
            url,
        ),
        raw_client(url) as peer,
    ):
        assert (await peer.ask(GET, "value")).opt.block2 == (0, True, 7)
        assert transfers_of(server) == (0, 1)
        await wait_until(lambda: transfers_of(server) == (0, 0))


async def test_lost_connection_frees_the_transfers(transport: Transport) -> None:
    """Nothing is kept for a peer that is gone, and no timer runs."""
    value = Value(body_of(100_000))
    async with served(transport, site_of(value=value)) as (_, server, url), raw_client(url) as peer:
        await peer.ask(GET, "value")
        await peer.ask(PUT, "value", bytes(1024), block1=(0, True, 6))
        (remote,) = server.tokenmanager.remotes
        transfers = remote.transfers
        assert transfers is not None
        assert transfers_of(server) == (1, 1)
        assert transfers._timer is not None
        peer.raw.abort()
        await wait_until(lambda: not server.tokenmanager.remotes)
        assert len(transfers.assemblies) == len(transfers.bodies) == 0
        assert transfers._timer is None


# -- The responder, asked by hand ------------------------------------------------------------------


@pytest.mark.parametrize("szx", range(8))
async def test_blocks_of_the_size_that_is_asked_for(transport: Transport, szx: int) -> None:
    """A requester with little room gets small blocks, from the first one on."""
    value = Value(body_of(5000))
    async with served(transport, site_of(value=value)) as (_, server, url), raw_client(url) as peer:
        body, number = b"", 0
        while True:
            response = await peer.ask(GET, "value", block2=(number, False, szx))
            assert response.code == CONTENT
            body += response.payload
            block = response.opt.block2
            if block is None:  # all of it fits
                assert szx == 7
                break
            assert (block.number, block.szx) == (number, szx)
            assert response.opt.size2 == (5000 if number == 0 else None)
            if not block.more:
                break
            assert len(response.payload) == block.size
            number += 1
        assert body == value.payload
        assert value.reads == 1
        assert transfers_of(server) == (0, 0)


async def test_larger_blocks_than_there_is_room_for(transport: Transport) -> None:
    """A responder with small frames answers with smaller blocks than it was asked for, at the same place."""
    value, limits = Value(body_of(2000)), Limits(frame_size=1500)
    async with (
        served(transport, site_of(value=value), far={"limits": limits}) as (_, _, url),
        raw_client(url) as peer,
    ):
        response = await peer.ask(GET, "value", block2=(1, False, 6))
        assert response.opt.block2 == (16, True, 2)
        assert response.payload == value.payload[1024:1088]


@pytest.mark.parametrize("szx", range(7))
async def test_small_blocks_are_put_together(transport: Transport, szx: int) -> None:
    """A requester may send blocks of any size."""
    value, body = Value(), body_of(3000)
    async with served(transport, site_of(value=value)) as (_, server, url), raw_client(url) as peer:
        size = 16 << szx
        for number in range(len(body) // size + 1):
            part = body[number * size : (number + 1) * size]
            more = (number + 1) * size < len(body)
            response = await peer.ask(PUT, "value", part, block1=(number, more, szx))
            assert response.code == (CONTINUE if more else CHANGED)
            assert response.opt.block1 == (number, more, szx)
        assert value.writes == [body]
        assert transfers_of(server) == (0, 0)


async def test_size_that_changes_on_the_way(transport: Transport) -> None:
    """Blocks may get smaller on the way, as long as each begins where the one before has ended."""
    value, body = Value(), body_of(1024 + 512 + 16)
    async with served(transport, site_of(value=value)) as (_, _, url), raw_client(url) as peer:
        for block in (Block(0, True, 6), Block(2, True, 5), Block(96, False, 0)):
            part = body[block.start : block.start + block.size]
            response = await peer.ask(PUT, "value", part, block1=block)
        assert response.code == CHANGED
        assert value.writes == [body]


async def test_single_block_is_a_whole_body(transport: Transport) -> None:
    """A block that is the first and the last one needs no transfer."""
    value = Value()
    async with served(transport, site_of(value=value)) as (_, server, url), raw_client(url) as peer:
        response = await peer.ask(PUT, "value", b"all", block1=(0, False, 6))
        assert (response.code, response.opt.block1) == (CHANGED, (0, False, 6))
        assert value.writes == [b"all"]
        assert all(remote.transfers is None for remote in server.tokenmanager.remotes)


@pytest.mark.parametrize(
    ("before", "block", "payload", "code"),
    [
        ([], Block(1, True, 6), 1024, REQUEST_ENTITY_INCOMPLETE),
        ([], Block(7, False, 6), 10, REQUEST_ENTITY_INCOMPLETE),
        ([Block(0, True, 6)], Block(2, True, 6), 1024, REQUEST_ENTITY_INCOMPLETE),
        ([Block(0, True, 6), Block(1, True, 6)], Block(3, False, 6), 5, REQUEST_ENTITY_INCOMPLETE),
        ([], Block(0, True, 6), 1000, BAD_REQUEST),
        ([], Block(0, True, 7), 1000, BAD_REQUEST),
        ([], Block(0, True, 7), 0, BAD_REQUEST),
        ([Block(0, True, 6)], Block(1, False, 6), 1025, BAD_REQUEST),
        ([], Block(0, True, 7), 70 * 1024, REQUEST_ENTITY_TOO_LARGE),
    ],
)
async def test_wrong_blocks(
    transport: Transport,
    caplog: pytest.LogCaptureFixture,
    before: list[Block],
    block: Block,
    payload: int,
    code: int,
) -> None:
    """Blocks out of order, of no transfer, of a wrong size, or too many: the code of the RFC, and a
    WARNING."""
    value = Value()
    async with (
        served(transport, site_of(value=value), far={"limits": Limits(body_size=2**16)}) as (
            _,
            server,
            url,
        ),
        raw_client(url) as peer,
    ):
        for item in before:
            assert (await peer.ask(PUT, "value", bytes(1024), block1=item)).code == CONTINUE
        caplog.clear()
        response = await peer.ask(PUT, "value", bytes(payload), block1=block)
        assert response.code == code
        assert response.payload
        assert response.opt.size1 == (2**16 if code == REQUEST_ENTITY_TOO_LARGE else None)
        assert transfers_of(server) == (0, 0)
        assert not value.writes
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert (await peer.ask(PUT, "value", b"fine")).code == CHANGED


@pytest.mark.parametrize("size", [2**16 + 1, 2**32 - 1])
async def test_announced_size_is_believed(transport: Transport, size: int) -> None:
    """A body that announces itself as too large is refused with its first block, and nothing is allocated."""
    async with (
        served(transport, site_of(value=Value()), far={"limits": Limits(body_size=2**16)}) as (
            _,
            server,
            url,
        ),
        raw_client(url) as peer,
    ):
        response = await peer.ask(PUT, "value", bytes(1024), block1=(0, True, 6), size1=size)
        assert (response.code, response.opt.size1) == (REQUEST_ENTITY_TOO_LARGE, 2**16)
        assert transfers_of(server) == (0, 0)


async def test_too_many_transfers(transport: Transport) -> None:
    """Beyond the limit a new transfer is refused by 5.03, and those that are under way go on."""
    value = Value()
    async with (
        served(transport, site_of(value=value), far={"limits": Limits(transfers=2)}) as (
            _,
            server,
            url,
        ),
        raw_client(url) as peer,
    ):

        async def send(tag: bytes, number: int, more: bool) -> int:
            response = await peer.ask(PUT, "value", bytes(1024), block1=(number, more, 6), request_tag=(tag,))
            return int(response.code)

        assert await send(b"1", 0, True) == await send(b"2", 0, True) == CONTINUE
        assert await send(b"3", 0, True) == SERVICE_UNAVAILABLE
        assert await send(b"1", 1, True) == CONTINUE
        assert await send(b"2", 1, False) == CHANGED
        assert await send(b"3", 0, True) == CONTINUE
        assert transfers_of(server) == (2, 0)


async def test_too_large_transfers_together(transport: Transport) -> None:
    """All bodies of a connection share a bound; who would go beyond it is refused."""
    limits = Limits(body_size=4096, transfer_size=6000)
    async with (
        served(transport, site_of(value=Value()), far={"limits": limits}) as (_, _, url),
        raw_client(url) as peer,
    ):
        codes = [
            (
                await peer.ask(
                    PUT,
                    "value",
                    bytes(1024),
                    block1=(0, True, 6),
                    size1=4096,
                    request_tag=(bytes([number]),),
                )
            ).code
            for number in range(2)
        ]
        assert codes == [CONTINUE, SERVICE_UNAVAILABLE]


async def test_block_of_a_response_that_is_not_there(transport: Transport) -> None:
    """Of a safe method it is rendered again; of others, and of those that had a body, 4.08 says so."""
    value = Value(body_of(5000))
    async with served(transport, site_of(value=value, echo=Echo())) as (_, _, url), raw_client(url) as peer:
        response = await peer.ask(GET, "value", block2=(2, False, 6))
        assert (response.payload, response.opt.block2) == (value.payload[2048:3072], (2, True, 6))
        assert (await peer.ask(GET, "value", block2=(5, False, 6))).code == BAD_REQUEST
        response = await peer.ask(POST, "echo", b"x", block2=(1, False, 6))
        assert response.code == REQUEST_ENTITY_INCOMPLETE
        response = await peer.ask(FETCH, "echo", b"", block2=(1, False, 6), request_tag=(b"t",))
        assert response.code == REQUEST_ENTITY_INCOMPLETE


async def test_responses_that_are_fetched_give_way(transport: Transport) -> None:
    """Who begins to fetch more responses than are kept gets all of them nevertheless."""

    class Numbered(Resource):
        async def render_get(self, request: Message) -> Message:
            return Message(payload=body_of(5000, int(request.opt.uri_query[0])))

    async with served(transport, site_of(n=Numbered()), limits=Limits(block_size=1024, transfers=2)) as (
        client,
        server,
        url,
    ):
        requests = [client.request(Message(GET, uri=f"{url}n?{number}")) for number in range(6)]
        for number, request in enumerate(requests):
            assert (await request.response).payload == body_of(5000, number)
        assert transfers_of(server)[1] <= 2


async def test_response_beyond_the_limit(transport: Transport) -> None:
    """A response that is larger than a body may be becomes 5.00 at the server."""
    async with served(
        transport, site_of(value=Value(bytes(70_000))), far={"limits": Limits(body_size=2**16)}
    ) as (
        client,
        _,
        url,
    ):
        response = await client.request(Message(GET, uri=url + "value")).response
        assert response.code == INTERNAL_SERVER_ERROR
        assert b"65536" in response.payload


async def test_errors_are_not_cut(transport: Transport) -> None:
    """An unsuccessful response is sent in one piece."""

    class Failing(Resource):
        def render_get(self, request: Message) -> Message:
            return Message(FORBIDDEN, bytes(5000))

    async with served(transport, site_of(failing=Failing()), limits=SMALL) as (client, _, url):
        response = await client.request(Message(GET, uri=url + "failing")).response
        assert (response.code, len(response.payload)) == (FORBIDDEN, 5000)


async def test_resource_that_handles_blocks_by_itself(transport: Transport) -> None:
    """It gets each block as it comes, and its own blocks are left alone."""
    seen: list[Any] = []

    class Own(Resource):
        async def needs_blockwise_assembly(self, request: Message) -> bool:
            return False

        def render_put(self, request: Message) -> Message:
            seen.append((request.opt.block1, request.payload))
            return Message(CONTINUE, block1=request.opt.block1)

        def render_get(self, request: Message) -> Message:
            return Message(CONTENT, b"x" * 5000, block2=(3, False, 6))

    async with (
        served(transport, site_of(own=Own()), limits=SMALL) as (_, server, url),
        raw_client(url) as peer,
    ):
        response = await peer.ask(PUT, "own", b"part", block1=(9, False, 6))
        assert response.code == CONTINUE
        assert seen == [((9, False, 6), b"part")]
        response = await peer.ask(GET, "own", block2=(3, False, 6))
        assert (len(response.payload), response.opt.block2) == (5000, (3, False, 6))
        assert transfers_of(server) == (0, 0)


async def test_stream_of_large_responses_is_not_cut(transport: Transport) -> None:
    """Of several responses to one request none but the last is cut: nobody could ask for a block of the
    others."""

    class Stream(Resource):
        async def render_to_pipe(self, pipe: Pipe) -> None:
            for number in range(3):
                pipe.add_response(Message(CONTENT, body_of(5000, number)), is_last=number == 2)
                await pipe.drain()

    async with served(transport, site_of(stream=Stream()), limits=SMALL) as (client, _, url):
        pipe = IterablePipe(Message(GET, uri=url + "stream"))
        client.begin(pipe)
        events = [event async for event in pipe]
        payloads = [event.message.payload for event in events]  # type: ignore[union-attr]
        assert payloads == [body_of(5000, 0), body_of(5000, 1), body_of(5000, 2)[:1024]]


async def test_request_that_comes_over_no_connection() -> None:
    """Where a context is asked directly, bodies come in one piece; further blocks have nowhere to come
    from."""
    async with Context(serversite=site_of(value=Value(body_of(100_000)), echo=Echo())) as context:

        async def ask(message: Message) -> Message:
            async with IterablePipe(message) as pipe:
                context.render_to_pipe(pipe)
                async for event in pipe:
                    assert event.message is not None
                    return event.message
            raise AssertionError

        response = await ask(Message(GET, uri_path=["value"]))
        assert (response.payload, response.opt.block2) == (body_of(100_000), None)
        response = await ask(Message(GET, uri_path=["value"], block2=(1, False, 6)))
        assert response.payload == body_of(100_000)[1024:2048]
        response = await ask(Message(POST, b"whole", uri_path=["echo"], block1=(0, False, 6)))
        assert response.payload == b"whole"
        response = await ask(Message(POST, bytes(1024), uri_path=["echo"], block1=(0, True, 6)))
        assert response.code == REQUEST_ENTITY_INCOMPLETE


# -- The requester, answered by hand ---------------------------------------------------------------


async def test_server_wants_smaller_blocks(transport: Transport) -> None:
    """The size that the server asks for with the first acknowledgement is that of all further blocks."""
    body = body_of(5000)
    async with raw_server(transport, limits=Limits(block_size=2048)) as (client, server):
        request = client.request(Message(PUT, body, uri=server.url))
        peer = await server.peer()
        got = bytearray()
        first = await peer.receive_message()
        got += first.payload
        peer.respond(first, CONTINUE, block1=(0, True, 4))
        while True:
            block = await peer.receive_message()
            assert block.opt.block1 is not None
            assert block.opt.block1.szx == 4
            assert block.opt.block1.start == len(got)
            got += block.payload
            if not block.opt.block1.more:
                break
            peer.respond(block, CONTINUE, block1=block.opt.block1)
        peer.respond(block, CHANGED, block1=block.opt.block1)
        assert (await request.response).code == CHANGED
        assert bytes(got) == body


async def test_server_refuses_large_blocks(transport: Transport) -> None:
    """4.13 with a smaller size (RFC 7959, section 2.9.3) begins the transfer anew with blocks of that
    size."""
    body = body_of(100)
    async with raw_server(transport, limits=Limits(frame_size=1500)) as (client, server):
        request = client.request(Message(PUT, body, uri=server.url))
        peer = await server.peer()
        block = await peer.receive_message()
        assert block.opt.block1 == (0, True, 2)
        peer.respond(block, REQUEST_ENTITY_TOO_LARGE, block1=(0, True, 1))
        block = await peer.receive_message()
        assert block.opt.block1 == (0, True, 1)
        assert (block.payload, block.opt.size1) == (body[:32], 100)
        request.response.cancel()


@pytest.mark.parametrize("hint", [None, Block(0, True, 7), Block(0, True, 6)])
async def test_server_refuses_the_body(transport: Transport, hint: Block | None) -> None:
    """4.13 without a smaller size, or again, is the response."""
    async with raw_server(transport, limits=Limits(block_size=2048)) as (client, server):
        request = client.request(Message(PUT, bytes(5000), uri=server.url, observe=0))
        peer = await server.peer()
        peer.respond(await peer.receive_message(), REQUEST_ENTITY_TOO_LARGE, block1=hint)
        if hint is not None and hint.szx == 6:
            block = await peer.receive_message()
            assert block.opt.block1 == hint
            peer.respond(block, REQUEST_ENTITY_TOO_LARGE, block1=hint)
        assert (await request.response).code == REQUEST_ENTITY_TOO_LARGE
        assert request.observation is not None
        with pytest.raises(error.NotObservable):
            await anext(aiter(request.observation))
        assert not client.tokenmanager.outgoing_requests


async def test_response_in_the_middle(transport: Transport) -> None:
    """A final response before the last block ends the transfer, even one that is large itself."""
    async with raw_server(transport, limits=SMALL) as (client, server):
        request = client.request(Message(PUT, bytes(5000), uri=server.url))
        peer = await server.peer()
        block = await peer.receive_message()
        peer.respond(block, CONTINUE, block1=block.opt.block1)
        block = await peer.receive_message()
        peer.respond(block, CHANGED, b"a" * 1024, block2=(0, True, 6))
        follow_up = await peer.receive_message()
        assert follow_up.opt.block2 == (1, False, 6)
        peer.respond(follow_up, CHANGED, b"b", block2=(1, False, 6))
        assert (await request.response).payload == b"a" * 1024 + b"b"


@pytest.mark.parametrize("answer", [None, Block(1, True, 7), Block(5, True, 2), Block(0, True, 7)])
async def test_wrong_acknowledgement(
    transport: Transport, caplog: pytest.LogCaptureFixture, answer: Block | None
) -> None:
    """An acknowledgement of another block than the one that was sent is the server's fault, and a WARNING."""
    async with raw_server(transport, limits=SMALL) as (client, server):
        request = client.request(Message(PUT, bytes(5000), uri=server.url))
        peer = await server.peer()
        block = await peer.receive_message()
        peer.respond(block, CONTINUE, block1=block.opt.block1)
        peer.respond(await peer.receive_message(), CONTINUE, block1=answer)
        if answer == Block(1, True, 7):
            assert (await peer.receive_message()).opt.block1 == (2, True, 7)
            request.response.cancel()
            return
        with pytest.raises(error.UnexpectedBlock1Option, match="byte 1024"):
            await request.response
        assert [record.levelname for record in caplog.records] == ["WARNING"]


WRONG_BLOCKS: list[tuple[Block | None, int]] = [
    (None, 1024),
    (Block(0, True, 6), 1024),  # the same again
    (Block(2, True, 6), 1024),
    (Block(1, True, 6), 0),
    (Block(2**20 - 1, False, 6), 10),
]


@pytest.mark.parametrize(("block", "size"), WRONG_BLOCKS)
async def test_wrong_block_of_a_response(
    transport: Transport, caplog: pytest.LogCaptureFixture, block: Block | None, size: int
) -> None:
    """Another block than the one that was asked for is the server's fault; nobody puts it in the wrong
    place."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url))
        peer = await server.peer()
        peer.respond(await peer.receive_message(), CONTENT, bytes(1024), block2=(0, True, 6))
        follow_up = await peer.receive_message()
        assert follow_up.opt.block2 == (1, False, 6)
        peer.respond(follow_up, CONTENT, bytes(size), block2=block)
        with pytest.raises(error.UnexpectedBlock2, match="byte 1024"):
            await request.response
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert not client.tokenmanager.outgoing_requests


async def test_block_that_is_not_full(transport: Transport) -> None:
    """A block of an odd size makes no gap and no endless loop."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url))
        peer = await server.peer()
        peer.respond(await peer.receive_message(), CONTENT, b"x", block2=(0, True, 6))
        follow_up = await peer.receive_message()
        peer.respond(follow_up, CONTENT, bytes(1024), block2=follow_up.opt.block2)
        with pytest.raises(error.UnexpectedBlock2):
            await request.response


async def test_response_that_begins_in_the_middle(transport: Transport) -> None:
    """Who did not ask for a block gets the first one, or it is wrong."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url))
        peer = await server.peer()
        peer.respond(await peer.receive_message(), CONTENT, bytes(1024), block2=(3, True, 6))
        with pytest.raises(error.UnexpectedBlock2, match="not the first"):
            await request.response


@pytest.mark.parametrize("announced", [True, False])
async def test_response_beyond_our_limit(transport: Transport, announced: bool) -> None:
    """We do not fetch more than a body may have, whether the server announces its size or not."""
    async with raw_server(transport, limits=Limits(body_size=4096)) as (client, server):
        request = client.request(Message(GET, uri=server.url))
        peer = await server.peer()
        message, number = await peer.receive_message(), 0
        while not request.response.done():
            size2 = 2**32 - 1 if announced and not number else None
            peer.respond(message, CONTENT, bytes(1024), block2=(number, True, 6), size2=size2)
            number += 1
            if announced or number > 4:
                break
            message = await peer.receive_message()
        with pytest.raises(OverloadError, match="4096 bytes"):
            await request.response
        assert number == (1 if announced else 5)
        assert not client.tokenmanager.outgoing_requests


async def test_error_in_place_of_a_block(transport: Transport) -> None:
    """An unsuccessful response to the request for a block is the response."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url))
        peer = await server.peer()
        peer.respond(await peer.receive_message(), CONTENT, bytes(1024), block2=(0, True, 6))
        peer.respond(await peer.receive_message(), NOT_FOUND, b"gone")
        response = await request.response
        assert (response.code, response.payload) == (NOT_FOUND, b"gone")


# -- Resources that change on the way --------------------------------------------------------------


class Changing(Value):
    """Has another state each time that it is asked, for a while."""

    def __init__(self, changes: int, size: int = 100_000) -> None:
        super().__init__()
        self.left = changes
        self.size = size

    async def render_get(self, request: Message) -> Message:  # type: ignore[override]
        self.reads += 1
        return Message(payload=body_of(self.size, self.reads))


async def answer_blocks(peer: MessagePeer, tag: bytes, payload: bytes, **kwds: Any) -> None:
    """Answer the next request by a block of a body with that tag, whose number is asked for."""
    request = await peer.receive_message()
    number = request.opt.block2.number if request.opt.block2 else 0
    peer.respond(request, CONTENT, payload, block2=(number, True, 6), etag=tag, **kwds)


async def test_changes_on_the_way(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """A state that has changed while it was fetched is fetched anew; blocks of two states are never
    joined."""
    caplog.set_level(logging.INFO, "coap")
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url, etags=(b"mine",)))
        peer = await server.peer()
        await answer_blocks(peer, b"1", b"a" * 1024)
        await answer_blocks(peer, b"1", b"a" * 1024)
        await answer_blocks(peer, b"2", b"b" * 1024)
        again = await peer.receive_message()
        assert again.opt.block2 is None
        assert again.opt.etags == ()
        peer.respond(again, CONTENT, b"c" * 1024, block2=(0, True, 6), etag=b"3")
        follow_up = await peer.receive_message()
        peer.respond(follow_up, CONTENT, b"cc", block2=(1, False, 6), etag=b"3")
        assert (await request.response).payload == b"c" * 1024 + b"cc"
    assert "starting anew" in caplog.text


async def test_state_that_has_become_small(transport: Transport) -> None:
    """A state that fits into a message when it is fetched anew is the response."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url))
        peer = await server.peer()
        await answer_blocks(peer, b"1", bytes(1024))
        await answer_blocks(peer, b"2", bytes(1024))
        peer.respond(await peer.receive_message(), CONTENT, b"small")
        assert (await request.response).payload == b"small"


async def test_always_changes(transport: Transport) -> None:
    """A state that changes each time is given up after some attempts."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url))
        peer = await server.peer()
        for number in range(2 * RESTARTS + 2):
            await answer_blocks(peer, bytes([number + 1]), bytes(1024))
        with pytest.raises(error.ResourceChanged):
            await request.response
        assert not client.tokenmanager.outgoing_requests


async def test_response_of_an_unsafe_method_changes(transport: Transport) -> None:
    """What has been done is not done again, even if its response cannot be had."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(POST, b"x", uri=server.url))
        peer = await server.peer()
        await answer_blocks(peer, b"1", bytes(1024))
        await answer_blocks(peer, b"2", bytes(1024))
        with pytest.raises(error.ResourceChanged, match="has changed"):
            await request.response
        request = client.request(Message(POST, b"x", uri=server.url))
        await answer_blocks(peer, b"1", bytes(1024))
        peer.respond(await peer.receive_message(), REQUEST_ENTITY_INCOMPLETE)
        assert (await request.response).code == REQUEST_ENTITY_INCOMPLETE


@pytest.mark.parametrize("size", [10, 5000])
async def test_fetch_is_sent_anew_with_its_body(transport: Transport, size: int) -> None:
    """A FETCH whose response the server has forgotten, or that has changed, is sent again with all of its
    body."""
    body, bodies = body_of(size), []

    class Fetched(Resource):
        async def render_fetch(self, request: Message) -> Message:
            bodies.append(request.payload)
            if len(bodies) == 1:
                asyncio.get_running_loop().call_soon(forget)
            return Message(CONTENT, body_of(50_000, len(bodies)))

    def forget() -> None:
        (remote,) = server.tokenmanager.remotes
        assert remote.transfers is not None
        remote.transfers.bodies.clear()

    async with served(transport, site_of(fetched=Fetched()), limits=SMALL) as (client, server, url):
        response = await client.request(Message(FETCH, body, uri=url + "fetched")).response
        assert set(bodies) == {body}
        assert response.payload == body_of(50_000, len(bodies))
        assert len(bodies) > 1


# -- Observations of large states ------------------------------------------------------------------


@pytest.mark.parametrize("size", [1025, 100_000])
async def test_large_notifications(transport: Transport, size: int) -> None:
    """Each state that an observer gets is whole, and the last one is the latest."""
    value = Value(body_of(size))
    async with served(transport, site_of(value=value), limits=SMALL) as (client, _, url):
        seen = []
        async with client.observe(url + "value") as states:
            async for state in states:
                seen.append(state)
                if len(seen) == 4:
                    break
                value.set(body_of(size, len(seen)))
        assert seen == [body_of(size, number) for number in range(4)]


async def test_states_of_changing_size(transport: Transport) -> None:
    """Small and large states follow each other; in the end there is the latest."""
    value = Value(b"0")
    sizes = [1, 50_000, 2, 3, 80_000, 90_000, 4]
    async with (
        served(transport, site_of(value=value), limits=SMALL) as (client, _, url),
        client.observe(url + "value") as states,
    ):
        assert await anext(states) == b"0"
        for number, size in enumerate(sizes):
            value.set(body_of(size, number))
            await asyncio.sleep(0)
        async for state in states:
            assert state in [body_of(size, number) for number, size in enumerate(sizes)]
            if state == value.payload:
                break


async def test_changes_while_a_notification_is_fetched(transport: Transport) -> None:
    """Writing without a pause, the observer is never given a mixture, and ends on the last state."""
    value = Value(body_of(20_000))
    async with served(transport, site_of(value=value), limits=SMALL) as (client, _, url):
        seen: list[int] = []

        async def watch() -> None:
            async for state in client.observe(url + "value"):
                number = int.from_bytes(state[:8], "big") >> 40
                assert state == body_of(20_000, number)
                seen.append(number)
                if number == 100:
                    return

        watcher = asyncio.ensure_future(watch())
        await wait_until(lambda: seen)
        for number in range(1, 101):
            value.set(body_of(20_000, number))
            await asyncio.sleep(0.001)  # faster than it can be fetched
        await watcher
        assert seen == sorted(seen)


async def test_state_that_is_fetched_stays_until_it_was(transport: Transport) -> None:
    """While an observer fetches a large state it is not told of newer ones; then it is, of the latest."""
    value = Value(body_of(3000))
    async with served(transport, site_of(value=value), limits=SMALL) as (_, _, url), raw_client(url) as peer:
        first = await peer.ask(GET, "value", observe=0)
        for number in range(1, 4):
            value.set(body_of(3000, number))
            await asyncio.sleep(0.002)  # what is tested is that nothing comes
        parts = [first.payload]
        for number in (1, 2):
            response = await peer.ask(GET, "value", block2=(number, False, 7), token=b"f")
            assert (response.token, response.opt.etag) == (b"f", first.opt.etag)
            parts.append(response.payload)
        assert b"".join(parts) == body_of(3000)
        latest = await peer.receive_message()
        assert latest.token == b"t"
        assert latest.payload == body_of(3000, 3)[:1024]


async def test_observer_that_does_not_fetch(transport: Transport) -> None:
    """Who does not fetch the rest of a large state is told of the next one when its time is over."""
    value = Value(body_of(3000))
    limits = Limits(block_size=1024, transfer_time=0.05)
    async with (
        served(transport, site_of(value=value), far={"limits": limits}) as (_, server, url),
        raw_client(url) as peer,
    ):
        await peer.ask(GET, "value", observe=0)
        value.set(b"small")
        assert (await peer.receive_message()).payload == b"small"
        assert transfers_of(server) == (0, 0)


async def begin(client: Context, server: Any) -> tuple[Any, MessagePeer, Message]:
    """Begin to observe a server by hand."""
    request = client.request(Message(GET, uri=server.url, observe=0))
    peer = await server.peer()
    first = await peer.receive_message()
    peer.respond(first, CONTENT, b"0", more=True, observe=0)
    await request.response
    return request, peer, first


def notify(
    peer: MessagePeer, first: Message, number: int, payload: bytes, is_large: bool, **kwds: Any
) -> None:
    """Send a notification, or the first block of one."""
    block = (0, True, 6) if is_large else None
    peer.respond(
        first, CONTENT, payload, more=True, observe=number, block2=block, etag=b"%d" % number, **kwds
    )


async def test_newer_notification_while_blocks_are_fetched(transport: Transport) -> None:
    """What comes meanwhile is handed on afterwards, the latest of it."""
    async with raw_server(transport) as (client, server):
        request, peer, first = await begin(client, server)
        seen: list[bytes] = []
        request.observation.register_callback(lambda response: seen.append(response.payload))
        notify(peer, first, 1, b"a" * 1024, True)
        follow_up = await peer.receive_message()
        notify(peer, first, 2, b"two", False)
        notify(peer, first, 3, b"three", False)
        peer.respond(follow_up, CONTENT, b"a", block2=(1, False, 6), etag=b"1")
        await wait_until(lambda: len(seen) == 2)
        assert seen == [b"a" * 1024 + b"a", b"three"]
        request.observation.cancel()


async def test_notification_older_than_what_was_fetched_anew(transport: Transport) -> None:
    """A notification that has come before a state was fetched anew is not handed on after it."""
    async with raw_server(transport) as (client, server):
        request, peer, first = await begin(client, server)
        seen: list[bytes] = []
        request.observation.register_callback(lambda response: seen.append(response.payload))
        notify(peer, first, 1, b"a" * 1024, True)
        follow_up = await peer.receive_message()
        notify(peer, first, 2, b"b", False)
        peer.respond(follow_up, CONTENT, b"c" * 1024, block2=(1, True, 6), etag=b"3")
        peer.respond(await peer.receive_message(), CONTENT, b"c", etag=b"3")
        await wait_until(lambda: seen)
        notify(peer, first, 4, b"d", False)
        await wait_until(lambda: seen[-1] == b"d")
        assert seen == [b"c", b"d"]
        request.observation.cancel()


async def test_notification_that_changes_all_the_time(transport: Transport) -> None:
    """A state that cannot be fetched is left out: there was a change, so there will be another
    notification."""
    for has_newer in (True, False):
        async with raw_server(transport) as (client, server):
            request, peer, first = await begin(client, server)
            iterator = aiter(request.observation)
            notify(peer, first, 1, bytes(1024), True)
            for number in range(2 * RESTARTS):
                await answer_blocks(peer, b"x%d" % number, bytes(1024))
            last = await peer.receive_message()
            if has_newer:
                notify(peer, first, 2, b"newer", False)
            peer.respond(last, CONTENT, bytes(1024), block2=last.opt.block2, etag=b"y")
            if not has_newer:
                await wait_until(lambda: not client._tasks)  # awaited at once
                notify(peer, first, 3, b"newer", False)
            assert (await anext(iterator)).payload == b"newer"
            await iterator.aclose()


async def test_error_while_a_notification_is_fetched(transport: Transport) -> None:
    """An unsuccessful response in place of a block is the last notification, and the server is told."""
    async with raw_server(transport) as (client, server):
        request, peer, first = await begin(client, server)
        iterator = aiter(request.observation)
        notify(peer, first, 1, bytes(1024), True)
        peer.respond(await peer.receive_message(), NOT_FOUND, b"gone")
        assert (await anext(iterator)).payload == b"gone"
        with pytest.raises(error.ObservationCancelled, match=r"4\.04"):
            await anext(iterator)
        assert await peer.receive_signal() == [0, first.token]


async def test_last_notification_is_large(transport: Transport) -> None:
    """All of the last notification is fetched before the observation ends."""
    value = Value(b"1")
    observations: list[Any] = []

    async def add_observation(request: Message, serverobservation: Any) -> None:
        observations.append(serverobservation)
        serverobservation.accept(lambda: None)

    value.add_observation = add_observation  # type: ignore[method-assign]
    async with served(transport, site_of(value=value), limits=SMALL) as (client, _, url):
        states = client.observe(url + "value")
        assert await anext(states) == b"1"
        observations[0].trigger(Message(CONTENT, body_of(5000)), is_last=True)
        assert await anext(states) == body_of(5000)
        with pytest.raises(error.ObservationCancelled):
            await anext(states)


async def test_end_while_the_first_response_is_fetched(transport: Transport) -> None:
    """Where the observation ends before its first response was fetched, that is how the response ends."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url, observe=0))
        peer = await server.peer()
        first = await peer.receive_message()
        peer.respond(first, CONTENT, bytes(1024), more=True, observe=0, block2=(0, True, 6), etag=b"1")
        await peer.receive_message()
        peer.respond(first, NOT_FOUND, b"removed")
        assert (await request.response).payload == b"removed"
        assert request.observation is not None
        with pytest.raises(error.ObservationCancelled):
            await anext(aiter(request.observation))


async def test_first_response_that_changes_all_the_time(transport: Transport) -> None:
    """Where the first response of an observation cannot be fetched, the next notification takes its place."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url, observe=0))
        peer = await server.peer()
        first = await peer.receive_message()
        notify(peer, first, 1, bytes(1024), True)
        for number in range(2 * RESTARTS + 1):
            await answer_blocks(peer, b"x%d" % number, bytes(1024))
        await wait_until(lambda: not client._tasks)
        notify(peer, first, 2, b"calm", False)
        assert (await request.response).payload == b"calm"
        assert request.observation is not None
        iterator = aiter(request.observation)
        notify(peer, first, 3, b"and on", False)
        assert (await anext(iterator)).payload == b"and on"
        await iterator.aclose()


async def test_cancel_while_the_first_response_is_fetched(transport: Transport) -> None:
    """Cancelling the observation takes back the request, also when a part of its response is there."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url, observe=0))
        peer = await server.peer()
        first = await peer.receive_message()
        peer.respond(first, CONTENT, bytes(1024), more=True, observe=0, block2=(0, True, 6), etag=b"1")
        follow_up = await peer.receive_message()
        assert request.observation is not None
        request.observation.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request.response
        signals = [await peer.receive_signal(), await peer.receive_signal()]
        assert sorted(signals) == sorted([[0, first.token], [0, follow_up.token]])
        assert not client._tasks


@pytest.mark.parametrize("has_first", [True, False])
async def test_connection_lost_while_blocks_are_fetched(transport: Transport, has_first: bool) -> None:
    """The observation goes on over another connection, and its first response comes from there if need be."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url, observe=0))
        assert request.observation is not None
        iterator = aiter(request.observation)
        peer = await server.peer()
        first = await peer.receive_message()
        if has_first:
            peer.respond(first, CONTENT, b"0", more=True, observe=0)
        notify(peer, first, 1, bytes(1024), True)
        await peer.receive_message()
        peer.raw.abort()
        peer = await server.peer(1)
        again = await peer.receive_message()
        assert (again.opt.observe, again.opt.block2) == (0, None)
        notify(peer, again, 1, b"a" * 1024, True)
        follow_up = await peer.receive_message()  # over the new connection
        peer.respond(follow_up, CONTENT, b"a", block2=(1, False, 6), etag=b"1")
        if has_first:
            assert (await request.response).payload == b"0"
            assert (await anext(iterator)).payload == b"a" * 1025
        else:
            assert (await request.response).payload == b"a" * 1025
        notify(peer, again, 2, b"live", False)
        assert (await anext(iterator)).payload == b"live"
        await iterator.aclose()


async def test_observation_with_a_large_request(transport: Transport) -> None:
    """A FETCH with a large body can be observed; registered anew, it sends its body again."""
    seen: list[bytes] = []

    class Query(Value):
        async def render_fetch(self, request: Message) -> Message:
            seen.append(request.payload)
            return Message(CONTENT, self.payload)

    query, body = Query(b"1"), body_of(5000)
    async with served(transport, site_of(query=query), limits=SMALL) as (client, server, url):
        request = client.request(Message(FETCH, body, uri=url + "query", observe=0))
        assert (await request.response).payload == b"1"
        assert request.observation is not None
        iterator = aiter(request.observation)
        query.set(body_of(3000))
        assert (await anext(iterator)).payload == body_of(3000)
        query.payload = b"2"
        server.tokenmanager.remotes[0].channel._transport.abort()
        assert (await anext(iterator)).payload == b"2"
        assert set(seen) == {body}
        await iterator.aclose()
        await wait_until(lambda: not query.observation_count)


async def test_cancel_while_registered_anew_in_blocks(transport: Transport) -> None:
    """Cancelling while the body is sent again sends nothing more."""
    async with raw_server(transport, limits=SMALL) as (client, server):
        request = client.request(Message(FETCH, bytes(3000), uri=server.url, observe=0))
        peer = await server.peer()
        for _ in range(2):
            block = await peer.receive_message()
            peer.respond(block, CONTINUE, block1=block.opt.block1)
        peer.respond(await peer.receive_message(), CONTENT, b"1", more=True, observe=0)
        await request.response
        peer.raw.abort()
        peer = await server.peer(1)
        block = await peer.receive_message()
        assert block.opt.block1 == (0, True, 7)
        assert request.observation is not None
        request.observation.cancel()
        assert await peer.receive_signal() == [0, block.token]
        assert not client._tasks


# -- Speed -----------------------------------------------------------------------------------------


def test_big_transfer_does_not_hold_up_small_requests() -> None:
    """While 64 MiB are put block by block, small requests take less than three times as long as without."""
    program = Path(__file__).with_name("big_transfer.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True, timeout=300)
    figures = json.loads(done.stdout)
    print(figures)
    assert figures["bytes"] == 64 * 2**20
    assert figures["requests"] >= 1000
    ratios = [during / alone for alone, during in figures["medians"]]
    assert statistics.median(ratios) < 3, figures
