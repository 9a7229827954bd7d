"""Requests that can never be answered: where there are no resources, or in messages that are too large."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conftest import Transport
from waiting import wait_until

from aiomas_ng import channel as channels
from aiomas_ng import error, rpc
from aiomas_ng.channel import Limits
from aiomas_ng.error import NetworkError
from aiomas_ng.message import GET, PUT, Message
from aiomas_ng.protocol import Context
from aiomas_ng.resource import Resource, Site


class Greeter:
    """Something that can be called, and has no resources."""

    router = rpc.Service()

    @rpc.expose
    def greet(self) -> str:
        return "hello"


async def test_peer_without_resources_says_so(transport: Transport) -> None:
    """A server of procedures answers 4.04, however many requests come, and its procedures go on."""
    server = await rpc.start_server(transport.address(), Greeter())
    async with await Context.create_client_context() as context:
        for _ in range(2 * Limits().violations):
            response = await context.request(Message(GET, uri=server.url + "battery/soc")).response
            assert (response.code.dotted, response.payload) == ("4.04", b"there are no resources here")
        async with context.observe(server.url + "battery/soc") as states:
            with pytest.raises(error.ResponseWrappingError, match=r"4\.04"):
                await anext(states)
        client = await rpc.open_connection(server.url)
        assert await client.remote.greet() == "hello"
        await client.close()
    server.close()


async def test_signals_to_a_peer_without_resources_are_ignored(transport: Transport) -> None:
    """What is no request needs no answer; what is no message is a fault, and is counted."""
    accepted: list[channels.Channel] = []
    server = await channels.start_server(transport.address(), accepted.append)
    client = await channels.open_connection(server.url)
    for content in ([0, b"t"], [0, b"t", 5], [69, b"t"], [224, b"t"]):
        client.post(content, lane=1)
    await wait_until(lambda: accepted)
    client.post("last")
    assert (await accepted[0].recv()).content == "last"
    assert accepted[0]._violations == 0
    nonsense: list[Any] = [5, [], [1], ["x", b"t"], [1, "t"], {"a": 1}]
    for content in nonsense:
        client.post(content, lane=1)
    client.post("last")
    assert (await accepted[0].recv()).content == "last"
    assert accepted[0]._violations == len(nonsense)
    await client.close()
    await accepted[0].close()
    server.close()


class Large(Resource):
    """A resource of some size."""

    def render_get(self, request: Message) -> Message:
        return Message(payload=bytes(20_000))

    def render_put(self, request: Message) -> Message:
        return Message()


@pytest.mark.parametrize("code", [GET, PUT])
async def test_message_that_is_too_large_for_the_peer(transport: Transport, code: Any) -> None:
    """If one side's limit is lower than the other's blocks, the request fails and does not wait for ever."""
    site = Site()
    site.add_resource(["large"], Large())
    low = Limits(frame_size=10_000)
    limits = {GET: (low, Limits()), PUT: (Limits(), low)}[code]
    async with (
        await Context.create_client_context(limits=limits[0]) as client,
        await Context.create_server_context(site, transport.address(), limits=limits[1]) as server,
    ):
        message = Message(code, bytes(20_000) if code == PUT else b"", uri=server.urls[0] + "large")
        with pytest.raises(error.NetworkError, match="limit is 10000"):
            await client.request(message, handle_blockwise=False).response
        assert not client.tokenmanager.outgoing_requests
        await wait_until(lambda: not server.tokenmanager.incoming_requests)
        small = await client.request(Message(PUT, b"small", uri=server.urls[0] + "large")).response
        assert small.code.is_successful(), "the connection goes on"


async def test_damaged_bundle_ends_requests_to_resources() -> None:
    """What waits for a response that may have been in a damaged bundle fails; it does not wait for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
        payload = bytes.fromhex("930b00929305")  # [11, 0, [[5, … cut off
        writer.write(len(payload).to_bytes(4, "big") + payload)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with await Context.create_client_context() as context, asyncio.timeout(10):
        with pytest.raises(NetworkError):
            await context.get(f"tcp://127.0.0.1:{port}/x")
    server.close()
    await server.wait_closed()
