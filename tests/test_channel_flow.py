"""Everything a peer can make us hold is bounded, slow peers are waited for, and two sides never wait for each
other for ever."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest

from aiomas_ng._io import connection
from aiomas_ng._io.answerer import REJECTED_SIZE
from aiomas_ng.channel import Channel, Limits
from aiomas_ng.exceptions import (
    ChannelClosedError,
    ClosedByPeerError,
    ClosedByUsError,
    ConnectionStalledError,
    OverloadError,
    RemoteOverloadError,
)
from tests.faults import (
    CANCEL,
    EXCEPTION,
    MESSAGE,
    PING,
    PONG,
    REQUEST,
    RESULT,
    encode,
    frame,
    open_link,
    open_raw_client,
    open_raw_server,
    serve,
    until,
)

MIB = 2**20


def echo(content: Any) -> Any:
    return content


def fill(channel: Channel, size: int = MIB) -> list[asyncio.Future[Any]]:
    """Send requests until the transport is full, which needs a peer that does not read."""
    replies = []
    while not channel._protocol.is_paused:
        replies.append(channel.send(bytes(size)))
    return replies


async def fill_up(channel: Channel) -> list[asyncio.Future[Any]]:
    """Send until nothing moves any more, not even into the buffers of the system."""
    replies = fill(channel)
    size = -1
    while size != (size := channel._protocol.get_unsent_size()):
        await asyncio.sleep(0.01)
        replies += fill(channel)
    return replies


async def clog(channel: Channel) -> None:
    """Write frames that mean nothing until nothing moves any more."""
    size = -1
    while size != (size := channel._protocol.get_unsent_size()) or not channel._protocol.is_paused:
        while not channel._protocol.is_paused:
            channel._send_control(PONG, 0, bytes(MIB))
        await asyncio.sleep(0.01)


async def drop(replies: list[Any]) -> None:
    """Wait for the end of calls whose outcome does not matter."""
    await asyncio.gather(*replies, return_exceptions=True)


# -- Senders ---------------------------------------------------------------------------------------


async def test_drain_waits_for_a_slow_peer(transport: Any) -> None:
    """drain() returns at once while there is room, and else when the peer has read, to all who wait."""
    async with open_raw_server(transport) as (client, peer):
        await client.drain()
        peer.stop_reading()
        replies = await fill_up(client)
        draining = [asyncio.ensure_future(client.drain()) for _ in range(3)]
        impatient = asyncio.ensure_future(client.drain())
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.wait([impatient])
        assert not any(task.done() for task in draining)
        peer.start_reading()
        await asyncio.gather(*draining)
        peer.abort()
        await drop(replies)


@pytest.mark.parametrize("end", ["peer", "us", "eof"])
async def test_pending_write_ends_with_the_connection(transport: Any, end: str) -> None:
    """Who waits for room gets an error when the connection ends, on whichever side, and does not hang."""
    async with open_raw_server(transport) as (client, peer):
        peer.stop_reading()
        replies = await fill_up(client)
        draining = asyncio.ensure_future(client.drain())
        await asyncio.sleep(0)
        closing = None
        if end == "peer":
            peer.abort()
        elif end == "eof":
            peer.transport.write_eof()
        else:
            closing = asyncio.ensure_future(client.close())
        with pytest.raises(ClosedByUsError if end == "us" else ClosedByPeerError):
            await draining
        peer.abort()
        if closing:
            await closing
        await drop(replies)


async def test_backlog_is_limited(transport: Any) -> None:
    """Beyond the limit of unsent bytes send() and post() fail at the caller, and work again afterwards."""
    limits = Limits(backlog=4 * MIB)
    async with open_raw_server(transport, limits=limits) as (client, peer):
        peer.stop_reading()
        replies = await fill_up(client)
        while not client._protocol.is_backlogged():
            replies.append(client.send(bytes(MIB)))
        with pytest.raises(OverloadError, match="does not read"):
            client.send("x")
        assert 4 * MIB <= client._protocol.get_unsent_size() <= 7 * MIB
        with pytest.raises(OverloadError):
            client.post(1)
        assert len(client._exchange.calls) == len(replies)
        peer.start_reading()
        await client.drain()
        last = client.send("again")
        while (request := await peer.recv())[2] != "again":
            pass
        peer.send(RESULT, request[1], "yes")
        assert await last == "yes"
        peer.abort()
        await drop(replies)


async def test_calls_are_limited(transport: Any) -> None:
    """Beyond the limit of calls that wait, send() fails and has sent nothing; ended calls make room."""
    async with open_link(transport, limits=Limits(calls=3)) as (client, server):
        replies = [client.send(i) for i in range(3)]
        with pytest.raises(OverloadError, match="3 calls wait"):
            client.send(3)
        replies[0].cancel()
        replies.append(client.send(4))
        serve(server, echo)
        assert await asyncio.gather(*replies[1:]) == [1, 2, 4]


async def test_many_small_requests_to_a_peer_that_does_not_read(transport: Any) -> None:
    """While the transport is full, frames are collected for it, and all arrive in order; a close in between
    loses none of them."""
    for closes in (False, True):
        async with open_raw_server(transport) as (client, peer):
            peer.stop_reading()
            await clog(client)
            replies = [client.send(number) for number in range(3000)]
            assert client._protocol._held_size > 30_000
            closing = asyncio.ensure_future(client.close() if closes else client.drain())
            await asyncio.sleep(0)
            peer.start_reading()
            await closing
            await peer.until(lambda: peer.frames and peer.frames[-1][2] == 2999)
            assert [each[2] for each in peer.frames if each[0] == REQUEST] == list(range(3000))
            assert client._protocol._held_size == 0 or closes
            peer.abort()
            await drop(replies)


# -- Peers that send much --------------------------------------------------------------------------


async def test_requests_that_nobody_receives_hold_up_the_peer(transport: Any) -> None:
    """Where nobody calls recv(), reading stops at the limit; each recv() lets the peer go on, in order."""
    limits = Limits(requests=10, inbox_size=MIB)
    async with open_raw_client(transport, limits=limits) as (peer, server):
        count = 40
        for number in range(count):
            peer.send(REQUEST, number, bytes([number]) * MIB)
        await until(lambda: not server._is_reading)
        assert len(server._inbox) <= 3
        assert server._watchdog is None
        for number in range(count):
            request = await server.recv()
            assert request.content == bytes([number]) * MIB
            assert server._inbox_size <= 2 * MIB
            await request.reply(number)
        assert [(await peer.recv())[2] for _ in range(count)] == list(range(count))


async def test_number_of_requests_that_wait_is_limited(transport: Any) -> None:
    """Small requests are counted as well."""
    async with open_raw_client(transport, limits=Limits(requests=10)) as (peer, server):
        count = 30_000
        peer.send_bytes(b"".join(encode("msgpack", REQUEST, number, None) for number in range(count)))
        await until(lambda: not server._is_reading)
        assert len(server._inbox) < count
        for _ in range(count):
            await (await server.recv()).reply(None)
        await peer.until(lambda: len(peer.frames) == count)
        assert [each[1] for each in peer.frames] == list(range(count))


async def test_requests_are_refused_where_waiting_is_not_safe(transport: Any) -> None:
    """While a call of ours waits, its reply may come behind those requests: they are refused instead."""
    limits = Limits(requests=10)
    async with open_raw_client(transport, limits=limits) as (peer, server):
        call = server.send("x")
        call_id = (await peer.recv())[1]
        for number in range(30):
            peer.send(REQUEST, number)
        peer.send(RESULT, call_id, "y")
        assert await call == "y"
        refused = [await peer.recv() for _ in range(20)]
        assert [each[1] for each in refused] == list(range(10, 30))
        assert {each[2][0] for each in refused} == {"aiomas_ng.OverloadError"}
        for number in range(10):
            await (await server.recv()).reply(number)
        assert [(await peer.recv())[2] for _ in range(10)] == list(range(10))


async def test_refused_requests_are_remote_overload_errors(transport: Any) -> None:
    """At the caller a refusal has a type of its own; it says that nothing was executed."""
    async with open_link(transport, far={"limits": Limits(requests=2)}) as (client, server):
        waiting = server.send("wait")
        replies = [client.send(i) for i in range(5)]
        outcomes = await asyncio.gather(*replies[2:], return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [RemoteOverloadError] * 3
        assert "not accepted" in outcomes[0].message
        serve(server, echo)
        assert await asyncio.gather(*replies[:2]) == [0, 1]
        await client.close()
        await drop([waiting])


async def test_one_way_messages_are_refused_where_waiting_is_not_safe(transport: Any) -> None:
    """A flood of messages while we wait for a reply is bounded too, and the peer is told."""
    async with open_raw_client(transport, limits=Limits(requests=10)) as (peer, server):
        call = server.send("x")
        call_id = (await peer.recv())[1]
        for number in range(30):
            peer.send(MESSAGE, 0, number)
        peer.send(RESULT, call_id, "y")
        assert await call == "y"
        assert len(server._inbox) == 10
        for _ in range(20):
            msg_type, msg_id, content = await peer.recv()
            assert (msg_type, msg_id, content[0]) == (EXCEPTION, None, "aiomas_ng.OverloadError")
        assert [(await server.recv()).content for _ in range(10)] == list(range(10))


async def test_a_call_of_ours_makes_us_read_on(transport: Any) -> None:
    """When reading has stopped for requests that nobody receives, a call still gets its reply."""
    async with open_raw_client(transport, limits=Limits(requests=5)) as (peer, server):
        for number in range(10):
            peer.send(REQUEST, number)
        await until(lambda: not server._is_reading)
        call = server.send("x")
        assert server._is_reading
        await peer.until(lambda: peer.frames)
        _, call_id, _ = next(each for each in peer.frames if each[0] == REQUEST)
        peer.send(RESULT, call_id, "y")
        assert await call == "y"


@pytest.mark.parametrize("is_oneway", [True, False])
async def test_number_of_running_handlers_is_limited(transport: Any, is_oneway: bool) -> None:
    """Beyond the limit of requests that are worked on, further ones are refused before they are begun, and
    one-way messages wait until there is room."""
    async with open_raw_client(transport, limits=Limits(requests=5), greets=True) as (peer, server):
        go = asyncio.Event()
        begun = 0

        async def wait() -> str:
            nonlocal begun
            begun += 1
            await go.wait()
            return "done"

        def handle(content: Any) -> Any:
            if content == "future":
                return asyncio.get_running_loop().create_future()
            return wait() if content == "wait" else content

        serve(server, handle)
        assert await peer.call("hello") == "hello"
        for _ in range(7):
            if is_oneway:
                peer.send(MESSAGE, 0, "wait")
            else:
                peer.request("wait")
        peer.request("future")
        refused = [await peer.recv() for _ in range(1 if is_oneway else 3)]
        assert {each[2][0] for each in refused} == {"aiomas_ng.OverloadError"}
        assert not any(each[1] is None for each in refused)
        assert begun == len(server._running) == 5
        assert await peer.call("plain ones go on") == "plain ones go on"
        go.set()
        if is_oneway:
            await until(lambda: begun == 7 and not server._running)
        else:
            assert [(await peer.recv())[2] for _ in range(5)] == ["done"] * 5


async def test_handlers_that_ignore_cancellation_count(transport: Any) -> None:
    """A peer cannot have more work done than the limit by cancelling what does not end."""
    async with open_raw_client(transport, limits=Limits(requests=3), greets=True) as (peer, server):
        go = asyncio.Event()

        async def ignore(_: Any) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await go.wait()

        serve(server, ignore)
        begun = asyncio.Event()
        for _ in range(3):
            begun.clear()
            msg_id = peer.request("x")
            await begun.wait()
            peer.send(CANCEL, msg_id)
        msg_type, _, content = await peer.recv_reply(peer.request("x"))
        assert (msg_type, content[0]) == (EXCEPTION, "aiomas_ng.OverloadError")
        assert len(server._running) == 3
        go.set()
        await until(lambda: not server._running)


# -- Peers that do not read ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "async", "recv", "fail"])
async def test_peer_that_floods_and_never_reads_its_replies(transport: Any, kind: str) -> None:
    """What we hold for such a peer is bounded, however large the replies are; the rest waits at the peer."""
    limits = Limits(requests=200, inbox_size=MIB, backlog=8 * MIB)
    result = bytes(MIB)
    made = 0
    async with open_raw_client(transport, limits=limits) as (peer, server):

        def plain(_: Any) -> bytes:
            nonlocal made
            made += 1
            if kind == "fail":
                raise ValueError("x" * 8000)
            return result

        async def later(_: Any) -> bytes:
            await asyncio.sleep(0)
            return plain(None)

        async def receive() -> None:
            while True:
                request = await server.recv()
                await request.reply(plain(None))

        receiving = asyncio.ensure_future(receive()) if kind == "recv" else None
        if kind != "recv":
            serve(server, later if kind == "async" else plain)
        peer.stop_reading()
        tracemalloc.start()
        try:
            number = 0
            while server._watchdog is None:
                number += 1
                peer.send(REQUEST, number)
                if not number % 100:
                    await asyncio.sleep(0)
            assert not server._is_reading
            # Large enough for the buffers of the system, and for all requests of one read.
            assert tracemalloc.get_traced_memory()[0] < 40 * MIB
        finally:
            tracemalloc.stop()
        assert server._protocol.get_unsent_size() < 8 * MIB
        assert made < number if kind == "fail" else made < 500
        peer.abort()
        if receiving is not None:
            with pytest.raises(ChannelClosedError):
                await receiving


async def test_replies_to_one_read_do_not_pile_up(transport: Any) -> None:
    """Many small requests in one piece with large replies: work stops when the transport is full, and in the
    end all replies come in order."""
    async with open_raw_client(transport) as (peer, server):
        made = 0

        def handle(content: int) -> bytes:
            nonlocal made
            made += 1
            return bytes([content]) * MIB

        serve(server, handle)
        peer.stop_reading()
        peer.send_bytes(b"".join(encode("msgpack", REQUEST, i, i) for i in range(100)))
        await until(lambda: len(server._inbox) + made == 100)
        assert 0 < made < 50
        assert server._protocol.get_unsent_size() < 10 * MIB
        peer.start_reading()
        for number in range(100):
            assert await peer.recv() == [RESULT, number, bytes([number]) * MIB]


async def test_order_is_kept_when_requests_had_to_wait(transport: Any) -> None:
    """Requests that come just when there is room again do not overtake those that wait."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        order: list[int] = []

        def handle(content: Any) -> Any:
            order.append(content[0])
            return content

        serve(server, handle)
        peer.stop_reading()
        for number in range(60):
            if number % 3:
                peer.request([number, bytes(MIB)])
            else:
                peer.send(MESSAGE, 0, [number, None])
        await until(lambda: server._inbox)
        peer.start_reading()
        for number in range(60, 600):
            peer.request([number, None])
            if not number % 50:
                await asyncio.sleep(0)
        await until(lambda: len(order) == 600)
        assert order == list(range(600))


@pytest.mark.parametrize("kind", ["ping", "bad", "large"])
async def test_answers_of_the_channel_itself_are_bounded(transport: Any, kind: str) -> None:
    """A peer that does not read cannot fill our memory with pongs and refusals either; later it gets them."""
    limits = Limits(requests=100, inbox_size=MIB, frame_size=2 * MIB)
    async with open_raw_client(transport, limits=limits) as (peer, server):
        serve(server, echo)
        peer.stop_reading()
        await clog(server)
        before = server._protocol.get_unsent_size()
        count = 30 if kind == "large" else 3000
        for number in range(count):
            if kind == "ping":
                peer.send(PING, number)
            elif kind == "bad":
                peer.send_bytes(frame(b"\x93\x00\xcd" + number.to_bytes(2, "big")))
            else:
                peer.send(REQUEST, number, bytes(2 * MIB))
        if kind == "ping":
            await until(lambda: server._due_pong == count - 1)
        else:
            await until(lambda: not server._is_reading or len(server._inbox) == count)
            assert server._inbox_size < MIB + 2 * 2**18 + count * REJECTED_SIZE
        assert server._protocol.get_unsent_size() == before
        peer.start_reading()
        if kind == "ping":
            await peer.until(lambda: [PONG, count - 1, None] in peer.frames)
        else:
            await peer.until(lambda: sum(each[0] == EXCEPTION for each in peer.frames) == count)
        peer.frames.clear()
        assert await peer.call("still there") == "still there"


async def test_bad_requests_are_refused_in_their_turn(transport: Any) -> None:
    """Where requests are received by hand, those that do not decode are answered and never seen."""
    async with open_raw_client(transport) as (peer, server):
        peer.stop_reading()
        await clog(server)
        peer.send(REQUEST, 1, "good")
        peer.send_bytes(b"\0\0\0\x03\x93\x00\x02")
        peer.send(REQUEST, 3, "good too")
        await until(lambda: len(server._inbox) == 3)
        receiving = [await server.recv(), await server.recv()]
        assert [request.content for request in receiving] == ["good", "good too"]
        peer.start_reading()
        reply = await peer.recv_reply(2)
        assert reply[0] == EXCEPTION


# -- Two sides -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False])
async def test_two_sides_that_flood_each_other(transport: Any, is_async: bool) -> None:
    """Large requests and large replies in both directions at once all arrive; nobody waits for ever."""

    async def later(content: Any) -> Any:
        await asyncio.sleep(0)
        return content

    async with open_link(transport) as (client, server):
        for channel in (client, server):
            serve(channel, later if is_async else echo)
        content = bytes(MIB)
        replies = [channel.send(content) for _ in range(40) for channel in (client, server)]
        assert await asyncio.gather(*replies) == [content] * 80


@pytest.mark.parametrize("is_async", [True, False])
async def test_two_sides_that_flood_each_other_beyond_their_limits(transport: Any, is_async: bool) -> None:
    """With limits that are much too small each call still ends, with its result or with a refusal."""

    async def later(content: Any) -> Any:
        await asyncio.sleep(0)
        return content

    limits = Limits(requests=3, inbox_size=MIB, stall_time=30)
    async with open_link(transport, limits=limits) as (client, server):
        for channel in (client, server):
            serve(channel, later if is_async else echo)
        content = bytes(MIB)
        replies = [channel.send(content) for _ in range(40) for channel in (client, server)]
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*replies, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {bytes, RemoteOverloadError}
        assert content in outcomes
        assert await client.send("still there") == "still there"
        assert await server.send("still there") == "still there"


async def test_two_sides_that_read_nothing_are_parted(transport: Any) -> None:
    """If neither direction moves for the stall time, the connection is given up, and says so."""
    limits = Limits(requests=1, inbox_size=1, stall_time=0.1)
    async with open_raw_client(transport, limits=limits) as (peer, server):
        serve(server, lambda _: bytes(MIB))
        peer.stop_reading()
        number = 0
        while not server.is_closed:
            number += 1
            peer.send(REQUEST, number)
            await asyncio.sleep(0)
        with pytest.raises(ClosedByUsError, match=r"neither side read for 0\.1 s") as caught:
            server.send("x")
        assert isinstance(caught.value.__cause__, ConnectionStalledError)
        assert isinstance(caught.value.__cause__, ConnectionAbortedError)


async def test_a_slow_peer_is_not_stalled(transport: Any) -> None:
    """As long as bytes leave, however slowly, the connection is not given up; reading on ends the watch."""
    limits = Limits(requests=1, inbox_size=1, stall_time=0.05)
    async with open_raw_client(transport, limits=limits) as (peer, server):
        serve(server, lambda _: bytes(MIB))
        peer.stop_reading()
        number = 0
        while server._watchdog is None:
            number += 1
            peer.send(REQUEST, number)
            await asyncio.sleep(0)
        peer.start_reading()
        await peer.recv_reply(number)
        await until(lambda: server._watchdog is None)
        assert server._is_reading
        assert not server.is_closed


async def test_watch_goes_on_while_bytes_leave() -> None:
    """The watch gives up only after a period in which the transport took nothing."""
    given_up: list[int] = []
    sizes = [5, 4, 3, 3]

    class Slow:
        _loop = asyncio.get_running_loop()
        _protocol: Any = None
        _watchdog: Any = None
        _watch = connection.Connection._watch

        def get_unsent_size(self) -> int:
            return sizes.pop(0)

    slow: Any = Slow()
    slow._protocol = slow
    slow._watch(0.001, lambda: given_up.append(len(sizes)))
    await until(lambda: given_up)
    assert given_up == [0]
    assert slow._watchdog is None


# -- Closing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_full", [True, False])
async def test_close_does_not_wait_for_a_peer_that_never_reads(
    transport: Any, is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close() returns after some time although there are bytes that cannot leave, many or few."""
    monkeypatch.setattr(connection, "CLOSE_GRACE", 0.05)
    async with open_raw_server(transport) as (client, peer):
        peer.stop_reading()
        if is_full:
            replies = await fill_up(client)
        else:
            # Too few bytes to be told that the peer is slow, behind what fills the buffers of the system.
            client.transport.set_write_buffer_limits(high=2**30)
            replies = []
            while not client._protocol.get_unsent_size():
                replies.append(client.send(bytes(MIB)))
                await asyncio.sleep(0.01)
            assert not client._protocol.is_paused
        async with asyncio.timeout(10):
            await client.close()
        errors = await asyncio.gather(*replies, return_exceptions=True)
        assert {type(error) for error in errors} == {ClosedByUsError}


async def test_what_was_sent_before_close_arrives(transport: Any) -> None:
    """close() does not throw away what a slow peer has yet to read."""
    async with open_raw_server(transport) as (client, peer):
        peer.stop_reading()
        replies = [client.send(bytes(MIB)) for _ in range(20)]
        closing = asyncio.ensure_future(client.close())
        await asyncio.sleep(0.01)
        peer.start_reading()
        for _ in range(20):
            assert (await peer.recv())[2] == bytes(MIB)
        await closing
        await drop(replies)


async def test_peer_that_closes_one_direction_and_never_reads(
    transport: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a connection does not stay open for ever."""
    monkeypatch.setattr(connection, "CLOSE_GRACE", 0.05)
    async with open_raw_server(transport) as (client, peer):
        peer.stop_reading()
        replies = await fill_up(client)
        peer.transport.write_eof()
        await drop(replies)
        async with asyncio.timeout(10):
            await asyncio.shield(client._lost)


async def test_handler_that_waits_for_room_ends_with_the_connection(transport: Any) -> None:
    """Handlers whose replies wait for a slow peer do not stay behind, and log nothing."""
    async with open_raw_client(transport) as (peer, server):

        async def later(_: Any) -> bytes:
            await asyncio.sleep(0)
            return bytes(MIB)

        serve(server, later)
        peer.stop_reading()
        for number in range(60):
            peer.send(REQUEST, number)
        await until(lambda: server._protocol._drain_waiters)
        peer.abort()
        await until(lambda: server.is_closed and not server._running)


async def test_request_reply_waits_for_a_slow_peer(transport: Any) -> None:
    """reply() and fail() return when there is room, and raise when the connection ends before."""
    async with open_raw_client(transport) as (peer, server):
        for number in range(3):
            peer.send(REQUEST, number)
        requests = [await server.recv() for _ in range(3)]
        peer.stop_reading()
        replies = await fill_up(server)
        answering = [
            asyncio.ensure_future(requests[0].reply("x")),
            asyncio.ensure_future(requests[1].fail(ValueError("y"))),
        ]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in answering)
        peer.start_reading()
        await asyncio.gather(*answering)
        peer.stop_reading()
        replies += await fill_up(server)
        late = asyncio.ensure_future(requests[2].reply("z"))
        await asyncio.sleep(0)
        peer.abort()
        with pytest.raises(ClosedByPeerError):
            await late
        await drop(replies)


async def test_small_frames_of_one_read_leave_in_one_write() -> None:
    """The replies to all requests of a read are written at once, but not more than the bound of it."""
    from aiomas_ng import codecs
    from tests.test_channel_hostile import open_protocol

    protocol, channel, sink = open_protocol(codecs.MsgPack(), turn=1000)
    writes: list[int] = []
    sink.write = lambda data: writes.append(len(data))  # type: ignore[method-assign]
    serve(channel, lambda size: bytes(size))
    protocol.data_received(b"".join(encode("msgpack", REQUEST, i, 100) for i in range(60)))
    assert len(writes) == 1
    protocol.data_received(b"".join(encode("msgpack", REQUEST, i, 10_000) for i in range(100)))
    assert 10 < len(writes) < 20
    assert max(writes) < 2**16 + 20_000
    protocol.connection_lost(None)
