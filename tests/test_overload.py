"""Each limit at its edge: exactly at it all works; one above, what the documentation says happens, and the
connection and everybody else go on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest

import aiomas_ng
from aiomas_ng import expose, rpc
from aiomas_ng._core.log_limit import LOG_LINES, LogLimit
from aiomas_ng._io import limited_log
from aiomas_ng._io.limited_log import LimitedLog
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import (
    ChannelClosedError,
    ClosedByPeerError,
    ConnectionStalledError,
    OverloadError,
    RemoteOverloadError,
    RemoteSerializationError,
    TooManyConnectionsError,
)
from tests.faults import (
    EXCEPTION,
    MESSAGE,
    REQUEST,
    RESULT,
    RawPeer,
    accept,
    connect_raw,
    encode,
    frame,
    open_link,
    open_raw_client,
    open_raw_server,
    serve,
    until,
)

MIB = 2**20


class Service:
    """What is called; some of it waits until it is let go."""

    router = rpc.Service()

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun = 0
        self.clients: list[Any] = []

    @expose
    def echo(self, value: Any) -> Any:
        return value

    @expose
    def large(self, size: int) -> bytes:
        return bytes(size)

    @expose
    async def wait(self, value: Any = None) -> Any:
        self.begun += 1
        await self.go.wait()
        return value

    @expose
    async def count(self, end: int) -> Any:
        for number in range(end):
            yield number


@contextlib.asynccontextmanager
async def open_server(transport: Any, **limits: Any) -> AsyncIterator[tuple[Any, Service]]:
    """Give the address of a server with these limits, and its service."""
    service = Service()
    clients = service.clients
    server = await rpc.start_server(transport.address(), service, clients.append, limits=Limits(**limits))
    try:
        yield server.url, service
    finally:
        service.go.set()
        server.close()
        for client in clients:
            await client.close()


@contextlib.asynccontextmanager
async def open_clients(url: Any, count: int, **kwds: Any) -> AsyncIterator[list[Any]]:
    """Give so many clients."""
    clients = [await rpc.open_connection(url, **kwds) for _ in range(count)]
    try:
        yield clients
    finally:
        for client in clients:
            await client.close()


# -- What a message becomes ------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_decoded_depth(transport: Any, codec: str) -> None:
    """A request as deep as allowed is answered; one that is deeper is answered by an error."""
    async with open_raw_client(transport, codec, limits=Limits(decoded_depth=10)) as (peer, server):
        serve(server, lambda content: "done")
        deep: Any = 0
        for _ in range(9):
            deep = [deep]
        assert await peer.call(deep) == "done"
        reply = await peer.recv_reply(peer.request([deep]))
        assert reply[2][0] == "aiomas_ng.DecodedTooLargeError"
        assert "decoded_depth" in reply[2][1]
        assert await peer.call(deep) == "done"


async def test_decoded_size(transport: Any) -> None:
    """A small frame that stands for much memory is refused as what it is, and the next call is served."""
    async with open_link(transport, far={"limits": Limits(decoded_size=MIB)}) as (client, server):
        serve(server, len)
        assert await client.send([{}] * 5_000) == 5_000
        with pytest.raises(RemoteSerializationError, match="decoded_size"):
            await client.send([{}] * 50_000)
        assert await client.send([]) == 0


async def test_decoded_size_of_a_reply(transport: Any) -> None:
    """A reply that stands for too much memory ends its call with that error, and no other one."""
    async with open_link(transport, near={"limits": Limits(decoded_size=MIB)}) as (client, server):
        serve(server, lambda count: [{}] * count)
        with pytest.raises(aiomas_ng.exceptions.DecodedTooLargeError):
            await client.send(50_000)
        assert await client.send(1) == ({},)


# -- Connections -----------------------------------------------------------------------------------


async def test_connections(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    """As many connections as allowed are served. The next one is closed, and its calls say why; when one has
    ended, there is room again. Of very many that are refused the log has the number only."""
    async with open_server(transport, connections=2) as (url, _), open_clients(url, 2) as (first, second):
        assert await first.remote.echo(1) == 1
        assert await second.remote.echo(2) == 2
        for _ in range(LOG_LINES + 5):
            async with open_clients(url, 1) as (third,):
                with pytest.raises(TooManyConnectionsError, match="2 connections") as caught:
                    await third.remote.echo(3)
                assert caught.value.was_sent is not True
                assert isinstance(caught.value, ClosedByPeerError)
        assert await first.remote.echo(4) == 4
        await second.close()
        async with asyncio.timeout(10):
            while True:
                async with open_clients(url, 1) as (third,):
                    with contextlib.suppress(TooManyConnectionsError):
                        assert await third.remote.echo(5) == 5
                        break
    lines = [record for record in caplog.records if "is refused" in record.getMessage()]
    assert len(lines) == LOG_LINES
    assert re.search(r"[5-9] more lines about refused connections to .* were left out", caplog.text)


async def test_refused_peer_is_told(transport: Any) -> None:
    """Any peer is told why, in the way of aiomas, before the connection is closed."""
    async with open_server(transport, connections=1) as (url, _), open_clients(url, 1) as (first,):
        assert await first.remote.echo(1) == 1
        peer = RawPeer()
        await connect_raw(url, peer)
        msg_type, msg_id, content = await peer.recv()
        assert (msg_type, msg_id, content[0]) == (EXCEPTION, None, "aiomas_ng.TooManyConnectionsError")
        await peer.until_lost()


async def test_host_connections() -> None:
    """One address gets no more than its share; others are still served, and so is it when one has ended."""
    service = Service()
    limits = Limits(host_connections=1)
    async with await rpc.start_server(("127.0.0.1", 0), service, limits=limits) as server:
        async with open_clients(server.url, 1) as (first,):
            assert await first.remote.echo(1) == 1
            async with open_clients(server.url, 1) as (second,):
                with pytest.raises(TooManyConnectionsError, match=r"1 connections from 127\.0\.0\.1"):
                    await second.remote.echo(2)
            async with open_clients(server.url, 1, local_addr=("127.0.0.2", 0)) as (other,):
                assert await other.remote.echo(3) == 3
                async with open_clients(server.url, 1, local_addr=("127.0.0.2", 0)) as (fourth,):
                    with pytest.raises(TooManyConnectionsError):
                        await fourth.remote.echo(4)
            assert await first.remote.echo(5) == 5
        await until(lambda: not server._connections)
        async with open_clients(server.url, 1) as (again,):
            assert await again.remote.echo(6) == 6


async def test_a_connection_that_is_taken_up_again_counts_once(transport: Any) -> None:
    """A connection that breaks has room to be taken up again where it has filled the last place, and the
    place is free when it has ended."""
    service = Service()
    clients: list[Any] = []
    server = await rpc.start_server(
        transport.address(), service, clients.append, limits=Limits(connections=1), resumable=True
    )
    client = await rpc.open_connection(server.url, resumable=True)
    for value in range(3):
        assert await client.remote.echo(value) == value
        call = asyncio.ensure_future(client.remote.wait(value))
        await until(lambda value=value: service.begun == value + 1)
        client.channel._protocol._resumption.transport.wire.abort()
        await until(lambda: clients[0].channel._protocol._resumption.is_interrupted)
        service.go.set()
        assert await call == value
        service.go.clear()
        async with open_clients(server.url, 1) as (other,):
            with pytest.raises(TooManyConnectionsError):
                await other.remote.echo(1)
    admission = clients[0].channel._protocol._admission
    assert len(admission) == 1
    await client.close()
    await until(lambda: len(admission) == 0)
    server.close()


async def test_a_broken_connection_is_no_slow_frame(transport: Any) -> None:
    """A frame that has arrived in part when the connection breaks waits for it to be taken up again."""
    async with open_link(transport, resumable=True, limits=Limits(frame_time=0.05, frame_rate=10**6)) as (
        client,
        server,
    ):
        serve(server, lambda content: content)
        assert await client.send("a") == "a"
        server._protocol.data_received(b"\x00\x00")  # as if it were the begin of a frame
        server._protocol._resumption.interrupt("a test")
        assert server._protocol._frame_watch._timer is not None
        await asyncio.sleep(0.15)
        assert not server.is_closed


async def test_container_is_told_to_have_no_room(transport: Any) -> None:
    """An agent whose container is refused learns it from the error of its call, and of a request for a
    resource from the cause."""
    full = await aiomas_ng.Container.create(transport.address(), limits=Limits(connections=1), as_coro=True)
    others = [await aiomas_ng.Container.create(transport.address(), as_coro=True) for _ in range(2)]
    try:
        agent = aiomas_ng.Agent(full)
        await others[0].connect(agent.addr)
        with pytest.raises(TooManyConnectionsError):
            await others[1].connect(agent.addr)
        with pytest.raises(aiomas_ng.error.NetworkError) as caught:
            await others[1].context.get(agent.addr + "/x")
        assert isinstance(caught.value.__cause__, TooManyConnectionsError)
        await others[0].connect(agent.addr)
    finally:
        for container in (*others, full):
            await container.shutdown(as_coro=True)


# -- Time of a frame -------------------------------------------------------------------------------

SLOW = {"frame_time": 0.2, "frame_rate": 100}


async def test_frame_time(transport: Any) -> None:
    """A frame that has begun and does not go on ends the connection, and the peer is told so."""
    async with open_raw_client(transport, limits=Limits(**SLOW)) as (peer, server):
        serve(server, lambda content: content)
        assert await peer.call("a") == "a"
        peer.send_bytes(encode("msgpack", REQUEST, 7, "b")[:-1])
        msg_type, msg_id, content = await peer.recv()
        assert (msg_type, msg_id, content[0]) == (EXCEPTION, None, "aiomas_ng.ConnectionStalledError")
        await peer.until_lost()
        assert server.is_closed
        assert isinstance(server._error.__cause__, ConnectionStalledError)


@pytest.mark.parametrize("size", [3, 2 * MIB])
async def test_header_and_skipped_frame_are_watched(transport: Any, size: int) -> None:
    """So do a header that is not complete, and a frame that is too large and therefore skipped."""
    async with open_raw_client(transport, limits=Limits(frame_size=MIB, **SLOW)) as (peer, server):
        serve(server, lambda content: content)
        data = frame(bytes(size)) if size > MIB else b"\x00\x00\x00"
        peer.send_bytes(data[:-1] if size > MIB else data)
        await peer.until_lost()
        assert server.is_closed


async def test_silence_is_no_slow_frame(transport: Any) -> None:
    """Who sends nothing, from the beginning or between two frames, stays connected."""
    async with open_raw_client(transport, limits=Limits(frame_time=0.05)) as (peer, server):
        serve(server, lambda content: content)
        await asyncio.sleep(0.15)
        assert await peer.call("a") == "a"
        peer.send_bytes(encode("msgpack", REQUEST, 7, "b")[:-1])
        await asyncio.sleep(0.01)
        peer.send_bytes(encode("msgpack", REQUEST, 7, "b")[-1:])
        assert (await peer.recv_reply(7))[2] == "b"
        await asyncio.sleep(0.15)
        assert await peer.call("c") == "c"


@pytest.mark.parametrize("size", [1000, 300_000])
async def test_slow_but_steady_frame(transport: Any, size: int) -> None:
    """A frame that takes many times as long arrives as long as it goes on fast enough."""
    async with open_raw_client(transport, limits=Limits(frame_time=0.1, frame_rate=size / 2)) as (
        peer,
        server,
    ):
        serve(server, len)
        data = encode("msgpack", REQUEST, 7, bytes(size))
        step = len(data) // 20 + 1
        for start in range(0, len(data), step):
            peer.send_bytes(data[start : start + step])
            await asyncio.sleep(0.02)
        assert (await peer.recv_reply(7))[2] == size


async def test_not_reading_is_not_slow(transport: Any) -> None:
    """A frame whose rest waits because we do not read is not the peer's fault."""
    async with open_raw_client(transport, limits=Limits(frame_time=0.05, requests=1)) as (peer, server):
        data = encode("msgpack", REQUEST, 3, bytes(MIB))
        for number in range(2):
            peer.send(REQUEST, number, "x")
        peer.send_bytes(data[:-5])
        await until(lambda: not server._is_reading)
        await asyncio.sleep(0.2)
        assert not server.is_closed
        peer.send_bytes(data[-5:])
        assert [(await server.recv()).content for _ in range(3)] == ["x", "x", bytes(MIB)]


# -- What connections share ------------------------------------------------------------------------


async def test_container_calls(transport: Any) -> None:
    """Calls over all connections of a container are counted together, and one that ends makes room."""
    target = await aiomas_ng.Container.create(transport.address(), as_coro=True)
    other = await aiomas_ng.Container.create(transport.address(), as_coro=True)
    caller = await aiomas_ng.Container.create(
        transport.address(), limits=Limits(container_calls=3), as_coro=True
    )
    go = asyncio.Event()

    class Waiter(aiomas_ng.Agent):
        @expose
        async def wait(self) -> str:
            await go.wait()
            return "done"

    try:
        first, second = [await caller.connect(Waiter(home).addr) for home in (target, other)]
        calls = [asyncio.ensure_future(call()) for call in (first.wait, second.wait, first.wait)]
        for proxy in (first, second):
            with pytest.raises(OverloadError, match="container_calls"):
                await proxy.wait()
        calls[0].cancel()
        await asyncio.wait([calls[0]])
        calls.append(asyncio.ensure_future(second.wait()))
        go.set()
        assert await asyncio.gather(*calls[1:]) == ["done"] * 3
        assert await first.wait() == "done"
    finally:
        for container in (caller, other, target):
            await container.shutdown(as_coro=True)


async def test_container_requests(transport: Any) -> None:
    """Requests that are worked on for all connections are counted together; plain ones are served anyway."""
    async with (
        open_server(transport, container_requests=3) as (url, service),
        open_clients(url, 2) as (first, second),
    ):
        calls = [asyncio.ensure_future(c.remote.wait(c is first)) for c in (first, second, first)]
        await until(lambda: service.begun == 3)
        for client in (first, second):
            with pytest.raises(RemoteOverloadError):
                await client.remote.wait()
            assert await client.remote.echo(1) == 1
        calls[0].cancel()
        await asyncio.wait([calls[0]])
        calls.append(asyncio.ensure_future(second.remote.wait(2)))
        await until(lambda: service.begun == 4)
        service.go.set()
        assert await asyncio.gather(*calls[1:]) == [False, True, 2]
        assert await first.remote.wait(5) == 5


async def test_ended_connections_give_back(transport: Any) -> None:
    """What a connection held is free again when it has ended, however it did: work, what waits, calls."""
    limits = Limits(container_requests=5, requests=5)
    async with accept(transport, limits=limits) as (server, accepted):
        async with open_clients(server.url, 1) as (client,):
            channel = await accepted
            budget = channel._budget
            for number in range(3):
                client.channel.send(number).add_done_callback(lambda reply: reply.exception())
            await until(lambda: budget.waiting == 3)
            assert budget.size > 0
        await channel._lost
        assert (budget.waiting, budget.size, budget.working) == (0, 0, 0)
        assert [(await channel.recv()).content for _ in range(3)] == [0, 1, 2]
        assert (budget.waiting, budget.size, budget.working) == (0, 0, 0)


async def test_container_requests_of_resources(transport: Any) -> None:
    """Requests to resources count as well: beyond, the answer is 5.03, and there is room when one ends."""
    home = await aiomas_ng.Container.create(
        transport.address(), limits=Limits(container_requests=2), as_coro=True
    )
    far = await aiomas_ng.Container.create(transport.address(), as_coro=True)
    go = asyncio.Event()

    class Slow(aiomas_ng.resource.Resource):
        async def render_get(self, request: Any) -> Any:
            await go.wait()
            return aiomas_ng.Message(code=aiomas_ng.message.CONTENT, payload=b"done")

    try:
        agent = aiomas_ng.Agent(home)
        agent.site.add_resource(["slow"], Slow())
        budget = home._connect_kwargs["budget"]
        calls = [asyncio.ensure_future(far.context.get(agent.addr + "/slow")) for _ in range(2)]
        await until(lambda: budget.working == 2)
        with pytest.raises(aiomas_ng.error.ResponseWrappingError, match=r"5\.03"):
            await far.context.get(agent.addr + "/slow")
        calls[0].cancel()
        await until(lambda: budget.working == 1)
        calls.append(asyncio.ensure_future(far.context.get(agent.addr + "/slow")))
        await until(lambda: budget.working == 2)
        go.set()
        for call in calls[1:]:
            await call
        await until(lambda: budget.working == 0)
    finally:
        for container in (far, home):
            await container.shutdown(as_coro=True)


@pytest.mark.parametrize("is_request", [True, False])
async def test_container_size(transport: Any, is_request: bool) -> None:
    """A large frame for which there is no room beside those of others is skipped as it comes: a request is
    refused, a reply ends its call; and when there is room again it is taken."""
    limits = Limits(container_size=2 * MIB + 400_000)
    content = bytes(2 * MIB)
    head = 500_000
    async with open_raw_client(transport, limits=limits) as (holder, channel):
        budget = channel._budget
        data = encode("msgpack", REQUEST, 0, content)
        holder.send_bytes(data[:head])
        await until(lambda: budget.size >= head)
        assert budget.size <= limits.container_size
        async with open_raw_server(transport, limits=limits, budget=budget) as (client, peer):
            serve(client, len)
            call = client.send("x")
            await peer.recv()
            if is_request:
                peer.send(REQUEST, 1, content)
                reply = await peer.recv_reply(1)
                assert (reply[0], reply[2][0]) == (EXCEPTION, "aiomas_ng.OverloadError")
                peer.send(RESULT, 0x616E6700, "done")
                assert await call == "done"
            else:
                peer.send(RESULT, 0x616E6700, content)
                with pytest.raises(aiomas_ng.exceptions.FrameTooLargeError, match="no room"):
                    await call
            holder.send_bytes(data[head:])
            assert (await channel.recv()).content == content
            assert budget.size == 0
            peer.send(REQUEST, 2, content)
            assert (await peer.recv_reply(2))[2] == len(content)
            assert budget.size == 0


async def test_cut_frames_give_back(transport: Any) -> None:
    """What a large frame held is free when the connection breaks in the middle of it."""
    async with open_raw_client(transport) as (peer, channel):
        peer.send_bytes(encode("msgpack", REQUEST, 0, bytes(2 * MIB))[:MIB])
        await until(lambda: channel._budget.size > 0)
        peer.abort()
        await channel._lost
        assert channel._budget.size == 0


# -- One-way messages ------------------------------------------------------------------------------


async def test_oneways_wait(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One-way messages whose handlers need a task wait for room. As soon as too many do, nothing more is
    read, which is logged; all of them are worked on in the end."""
    total = 3_000
    async with open_raw_client(transport, greets=True, limits=Limits(requests=3, oneways=10, turn=16)) as (
        peer,
        server,
    ):
        go = asyncio.Event()
        most, seen, running = 0, [], 0

        async def work(content: Any) -> None:
            nonlocal most, running
            running += 1
            most = max(most, running)
            await go.wait()
            seen.append(content)
            running -= 1

        serve(server, work)
        for number in range(total):
            peer.send(MESSAGE, 0, number)
        await until(lambda: not server._is_reading)
        for _ in range(20):
            await asyncio.sleep(0)
        assert running == 3
        assert 10 <= len(server._oneways.jobs) <= 10 + 16
        go.set()
        await until(lambda: len(seen) == total)
        assert sorted(seen) == list(range(total))
        assert most == 3
        assert server._is_reading
        assert not server._oneways.jobs
    assert [record for record in caplog.records if "nothing more is read" in record.getMessage()]


async def test_oneways_where_waiting_is_not_safe(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    """While calls of ours wait for the peer, reading goes on: as many one-way messages as allowed wait, the
    others are dropped, and both sides know."""
    async with open_raw_client(transport, greets=True, limits=Limits(requests=1, oneways=5)) as (
        peer,
        server,
    ):
        go = asyncio.Event()
        seen = []

        async def work(content: Any) -> None:
            await go.wait()
            seen.append(content)

        serve(server, lambda content: work(content) if isinstance(content, int) else content)
        assert await peer.call("hello") == "hello"
        call = server.send("a call of ours")
        for number in range(20):
            peer.send(MESSAGE, 0, number)
        msg_id = peer.request("still served")
        frames = [await peer.recv()]
        while frames[-1][:2] != [RESULT, msg_id]:
            frames.append(await peer.recv())
        assert frames[-1][2] == "still served"
        assert len(server._oneways.jobs) == 5
        (request,) = [item for item in frames if item[0] == REQUEST]
        (dropped,) = [item for item in frames if item[0] == EXCEPTION]
        assert dropped[1] is None
        assert dropped[2][0] == "aiomas_ng.OverloadError"
        peer.send(RESULT, request[1], "and answered")
        assert await call == "and answered"
        go.set()
        await until(lambda: len(seen) == 6)
        assert seen == list(range(6))
        peer.send(MESSAGE, 0, 99)
        await until(lambda: len(seen) == 7)
    lines = [record.getMessage() for record in caplog.records if "are dropped" in record.getMessage()]
    assert len(lines) == 1


async def test_oneways_wait_for_other_connections(transport: Any) -> None:
    """Where it is the work for other connections that takes all the room, its end lets them go on."""
    async with (
        open_server(transport, container_requests=2, requests=2) as (url, service),
        open_clients(url, 3) as (first, second, third),
    ):
        for client in (first, second, third):
            assert await client.remote.echo(0) == 0
        calls = [asyncio.ensure_future(first.remote.wait(n)) for n in range(2)]
        await until(lambda: service.begun == 2)
        for client in (second, third):
            for _ in range(3):
                rpc.with_options(client.remote.wait, oneway=True)()
            assert await client.remote.echo(1) == 1
        assert service.begun == 2
        calls[0].cancel()
        await until(lambda: service.begun == 3)
        service.go.set()
        assert await calls[1] == 1
        await until(lambda: service.begun == 8)
        for client in (second, third):
            assert await client.remote.wait(5) == 5


async def test_not_reading_ends_where_it_does_not_help(transport: Any) -> None:
    """If none of the work ends while nothing is read, it may wait for what was not read: reading goes on."""
    limits = Limits(requests=1, oneways=2, oneway_time=0.1)
    async with open_raw_client(transport, greets=True, limits=limits) as (peer, server):
        go = asyncio.Event()

        async def work() -> None:
            await go.wait()

        serve(server, lambda content: go.set() if content == "go" else work())
        for number in range(3):
            peer.send(MESSAGE, 0, number)
        await until(lambda: not server._is_reading)
        peer.send(MESSAGE, 0, "go")  # what the work waits for
        async with asyncio.timeout(10):
            await go.wait()
        await until(lambda: not server._running and not server._oneways.jobs)
        assert server._is_reading


async def test_waiting_oneways_end_with_the_connection(transport: Any) -> None:
    """What has not begun when the connection ends is dropped, without a warning, and gives its room back."""
    async with open_raw_client(transport, greets=True, limits=Limits(requests=1)) as (peer, server):

        async def work() -> None:
            await asyncio.get_running_loop().create_future()

        serve(server, lambda content: work())
        for number in range(5):
            peer.send(MESSAGE, 0, number)
        await until(lambda: len(server._oneways.jobs) == 4)
        peer.abort()
        await server.close()
        assert not server._oneways.jobs
        assert not server._running
        budget = server._budget
        assert (budget.waiting, budget.size, budget.working) == (0, 0, 0)


# -- Streams ---------------------------------------------------------------------------------------


async def test_streams(transport: Any) -> None:
    """As many streams as allowed are sent; the next one is refused, and there is room when one has ended."""
    async with open_server(transport, streams=2) as (url, _), open_clients(url, 1) as (client,):
        count = client.remote.count
        streams = [await count(10**9) for _ in range(2)]
        with pytest.raises(RemoteOverloadError, match="2 streams"):
            await count(3)
        assert await client.remote.echo(1) == 1
        assert await anext(streams[0]) == 0
        await streams[0].aclose()
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(RemoteOverloadError):
                    assert [number async for number in count(3)] == [0, 1, 2]
                    break
        await streams[1].aclose()


# -- Turns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_bundled", [False, True])
async def test_turns(transport: Any, is_bundled: bool) -> None:
    """However many requests arrive at once, they are handled in pieces and in their order, and others have
    their turn in between."""
    total, turn = 2_000, 16
    async with open_raw_client(transport, greets=True, limits=Limits(turn=turn)) as (peer, server):
        seen: list[int] = []
        serve(server, seen.append)
        pieces = []
        requests = [[REQUEST, 0x616E6700 + number, number] for number in range(total)]
        if is_bundled:
            peer.send_bytes(frame(msgpack.packb([11, 0, requests])))
        else:
            peer.send_bytes(b"".join(frame(msgpack.packb(request)) for request in requests))
        await until(lambda: seen)
        pieces.append(len(seen))
        while len(seen) < total:
            await asyncio.sleep(0)
            if len(seen) > sum(pieces):
                pieces.append(len(seen) - sum(pieces))
        assert seen == list(range(total))
        assert max(pieces) <= 2 * (64 if is_bundled else turn)  # one turn of ours may see two of it
        assert server._is_reading
        peer.send(REQUEST, 1, -1)
        await until(lambda: seen[-1] == -1)


async def test_mixed_turns_keep_the_order(transport: Any) -> None:
    """Bundles, single frames, tasks and large replies in one read are handled in the order they came in."""
    async with open_raw_client(transport, greets=True, limits=Limits(turn=7)) as (peer, server):
        seen: list[Any] = []

        async def work() -> None:
            await asyncio.sleep(0)

        def handle(content: int) -> Any:
            seen.append(content)
            return bytes(MIB // 4) if content % 50 == 0 else work() if content % 3 == 0 else None

        serve(server, handle)
        numbers = iter(range(600))
        data = b""
        for size in [1, 100, 3, 1, 65, 64, 1, 1, 130, 2]:
            requests = [[REQUEST, 0x616E6700 + number, number] for number in itertools.islice(numbers, size)]
            data += frame(msgpack.packb([11, 0, requests] if size > 1 else requests[0]))
        peer.send_bytes(data)
        await until(lambda: len(seen) == 1 + 100 + 3 + 1 + 65 + 64 + 1 + 1 + 130 + 2)
        assert seen == sorted(seen)
        await until(lambda: not server._running)
        assert server._is_reading


async def test_turns_end_with_the_connection(transport: Any) -> None:
    """What waits for a further turn when the connection is closed is dropped."""
    async with open_raw_client(transport, limits=Limits(turn=1)) as (peer, server):
        seen: list[int] = []

        def handle(content: int) -> None:
            seen.append(content)
            if content == 3:
                server._abort("enough")

        serve(server, handle)
        peer.send_bytes(b"".join(encode("msgpack", REQUEST, n, n) for n in range(100)))
        await peer.until_lost()
        for _ in range(5):
            await asyncio.sleep(0)
        assert seen == [0, 1, 2, 3]
        assert not server._protocol._turns.waiting


async def test_a_busy_connection_leaves_others_their_turn(transport: Any) -> None:
    """While one client sends all it can, another one waits for a few turns, and not for all of that."""
    async with open_server(transport) as (url, _), open_clients(url, 2) as (busy, calm):
        for client in (busy, calm):
            await client.remote.echo(0)
        flood = [busy.remote.echo(number) for number in range(6000)]
        before = sum(reply.done() for reply in flood)
        assert await calm.remote.echo("me too") == "me too"
        after = sum(reply.done() for reply in flood)
        assert before == 0
        assert after < len(flood) / 2
        assert await asyncio.gather(*flood) == list(range(6000))


# -- Attacks, on a small scale; tests/endurance/overload.py has them on a large one --------------------


async def test_many_slow_connections(transport: Any) -> None:
    """Connections that send a byte now and then are closed in time; a client beside them is served, and so
    is a new one."""
    count = 60
    async with (
        open_server(transport, frame_time=0.5, connections=count + 2) as (url, _),
        open_clients(url, 1) as (client,),
    ):
        peers = [RawPeer() for _ in range(count)]
        data = iter(encode("msgpack", REQUEST, 0, bytes(1000)))
        for peer in peers:
            await connect_raw(url, peer)
        while not all(peer.is_lost for peer in peers):
            byte = bytes([next(data)])
            for peer in peers:
                if not peer.is_lost:
                    peer.send_bytes(byte)
            assert await client.remote.echo(1) == 1
            await asyncio.sleep(0.05)
        async with open_clients(url, 2) as others:
            for other in others:
                assert await other.remote.echo(2) == 2


async def test_many_deaf_connections(transport: Any) -> None:
    """Connections that ask for large results and read none make the server hold little; a client beside them
    is served."""
    count, size = 20, MIB // 2
    async with open_server(transport) as (url, service), open_clients(url, 1) as (client,):
        peers = [RawPeer() for _ in range(count)]
        for peer in peers:
            await connect_raw(url, peer)
            peer.stop_reading()
            for number in range(50):
                peer.send(REQUEST, number, ["large", [size], {}])
        for _ in range(30):
            assert await client.remote.echo(1) == 1
            await asyncio.sleep(0.01)
        held = sum(end.channel._protocol.get_unsent_size() for end in service.clients)
        assert held <= count * 2 * size  # of 50 for each
        for peer in peers:
            peer.abort()


# -- The log ---------------------------------------------------------------------------------------


def test_limited_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many lines the first ones are written, and that the others are not; their number comes before the
    next line after a while, or at the end. A line may go to another logger, and is counted all the same."""
    now = 1000.0
    monkeypatch.setattr(limited_log.time, "monotonic", lambda: now)
    other = logging.getLogger("tests.other")
    log = LimitedLog(logging.getLogger("tests.overload"), "us", LogLimit(2, 5))
    error = ValueError("on purpose")
    assert log.log(logging.ERROR, "line %d", 0, error=error)
    assert log.log(logging.WARNING, "line %d", 1, to=other)
    assert [log.log(logging.WARNING, "line %d", number) for number in (2, 3, 4)] == [False] * 3
    now += 5
    assert log.log(logging.WARNING, "line %d", 5)
    log.finish()
    assert log.log(logging.WARNING, "line %d", 6)
    assert not log.log(logging.WARNING, "line %d", 7)
    log.finish()
    log.finish()
    further = "further lines about us are counted and not logged, until 5 s after the first one"
    assert [(record.name[6:], record.getMessage()) for record in caplog.records] == [
        ("overload", "line 0"),
        ("other", "line 1"),
        ("overload", further),
        ("overload", "3 more lines about us were left out of the log"),
        ("overload", "line 5"),
        ("overload", "line 6"),
        ("overload", further),
        ("overload", "1 more lines about us were left out of the log"),
    ]
    assert [record.exc_info is not None for record in caplog.records] == [True] + [False] * 7


def test_closed_error_says_that_nothing_was_executed() -> None:
    """However the error is made again for a call, it says that the call was not executed."""
    assert TooManyConnectionsError("x", True).was_sent is False
    assert TooManyConnectionsError("x").was_sent is None
    assert isinstance(TooManyConnectionsError(), ChannelClosedError)
