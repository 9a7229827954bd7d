"""Streamed replies: items in order, back pressure by credit, and every way in which a stream can end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiomas_ng.channel import Channel, Limits, ReplyStream
from aiomas_ng.exceptions import (
    ChannelClosedError,
    ClosedByPeerError,
    FrameTooLargeError,
    ProtocolError,
    RemoteCancelledError,
    RemoteException,
    RemoteSerializationError,
    StreamError,
)
from tests.faults import (
    CANCEL,
    CREDIT,
    EXCEPTION,
    ITEM,
    REQUEST,
    RESULT,
    SESSION,
    STREAM,
    open_faulty_link,
    open_link,
    open_raw_client,
    open_raw_server,
    serve,
    until,
)

WINDOW = 8


class Producer:
    """Streams numbers, and knows how far it got and how it ended."""

    def __init__(self) -> None:
        self.produced = 0
        self.end: BaseException | None = None
        self.ended = asyncio.Event()

    def __call__(self, content: Any) -> Any:
        return self.stream(content) if isinstance(content, int) else content

    async def stream(self, count: int) -> AsyncIterator[int]:
        try:
            for number in range(count):
                self.produced += 1
                yield number
        except BaseException as error:
            self.end = error
            raise
        finally:
            await asyncio.sleep(0)
            self.ended.set()


@contextlib.asynccontextmanager
async def open_stream(transport: Any, **kwds: Any) -> AsyncIterator[tuple[Channel, Channel, Producer]]:
    """Give both ends of a channel whose server streams numbers."""
    limits = Limits(stream_window=WINDOW)
    async with open_link(transport, near={"limits": limits}, **kwds) as (client, server):
        producer = Producer()
        serve(server, producer)
        yield client, server, producer


async def assert_is_stopped(client: Channel, server: Channel, producer: Producer) -> None:
    """Check that the producer was stopped in order and that the channel is as good as before."""
    await producer.ended.wait()
    assert producer.produced < 1000
    assert isinstance(producer.end, GeneratorExit | asyncio.CancelledError)
    assert await client.send("still there") == "still there"
    await until(lambda: not server._running)
    assert not client._exchange.calls
    assert not server._exchange.jobs


# -- Reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 1000])
async def test_items_arrive_in_order(transport: Any, count: int) -> None:
    """All items come, once and in order, whatever their number; then the stream ends."""
    async with open_stream(transport) as (client, server, producer):
        assert [item async for item in client.send(count)] == list(range(count))
        await producer.ended.wait()
        assert not client._exchange.calls
        await until(lambda: not server._running)


async def test_awaiting_the_reply_gives_the_stream(transport: Any) -> None:
    """The reply may be awaited first; the stream is iterated over, and is empty afterwards."""
    async with open_stream(transport) as (client, _, _):
        stream = await client.send(20)
        assert isinstance(stream, ReplyStream)
        assert [item async for item in stream] == list(range(20))
        assert [item async for item in stream] == []


async def test_awaiting_a_stream_is_an_error(transport: Any) -> None:
    """A stream has no value to wait for."""
    async with open_stream(transport) as (client, _, _), await client.send(1000) as stream:
        with pytest.raises(StreamError, match="async for"):
            await stream


async def test_iterating_over_a_plain_result_is_an_error(transport: Any) -> None:
    """The error says what the result was and to await it."""
    async with open_stream(transport) as (client, _, _):
        with pytest.raises(StreamError, match=r"'plain'.*await"):
            async for _ in client.send("plain"):
                pass


async def test_two_readers_of_one_stream(transport: Any) -> None:
    """Only one task may wait for the next item at a time; the first one is not disturbed."""
    async with open_link(transport) as (client, server):
        go = asyncio.Event()

        async def produce(_: Any) -> AsyncIterator[int]:
            await go.wait()
            yield 1

        serve(server, produce)
        stream = await client.send("x")
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(StreamError, match="another task"):
            await anext(stream)
        go.set()
        assert await first == 1


async def test_waiting_for_an_item_may_be_cancelled(transport: Any) -> None:
    """No item is lost by it, and the stream goes on."""
    async with open_link(transport) as (client, server):
        go = asyncio.Event()

        async def produce(_: Any) -> AsyncIterator[int]:
            for number in range(3):
                await go.wait()
                yield number

        serve(server, produce)
        stream = await client.send("x")
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        go.set()
        assert [item async for item in stream] == [0, 1, 2]


async def test_streams_and_calls_do_not_wait_for_each_other(transport: Any) -> None:
    """Two streams and plain calls are interleaved on one connection."""
    async with open_stream(transport) as (client, _, _):
        first, second = await client.send(50), await client.send(50)
        for number in range(50):
            assert await anext(first) == number
            assert await client.send("call") == "call"
            assert await anext(second) == number
        for stream in (first, second):
            with pytest.raises(StopAsyncIteration):
                await anext(stream)


async def test_streams_in_both_directions(transport: Any) -> None:
    """The server may ask for a stream as well."""
    async with open_stream(transport) as (client, server, _):
        assert await client.send("hello") == "hello"
        serve(client, Producer())
        assert [item async for item in server.send(30)] == list(range(30))


async def test_a_stream_is_passed_on(transport: Any) -> None:
    """A handler may return the stream, or the reply, that it got from somebody else; leaving stops both."""
    async with (
        open_stream(transport) as (client, server, producer),
        open_link(transport) as (outer, relay),
    ):
        serve(relay, client.send)
        assert [item async for item in outer.send(30)] == list(range(30))

        async def get_stream(count: Any) -> Any:
            return await client.send(count)

        relay._handler = None
        serve(relay, get_stream)
        producer.ended.clear()
        async with await outer.send(1000) as stream:
            assert await anext(stream) == 0
        await assert_is_stopped(client, server, producer)


async def test_any_async_iterator_is_streamed(transport: Any) -> None:
    """An object with __aiter__ and __anext__ is a stream too, also if it has nothing to close."""

    class Countdown:
        def __init__(self) -> None:
            self.left = 3

        def __aiter__(self) -> Countdown:
            return self

        async def __anext__(self) -> int:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return self.left

    async with open_link(transport) as (client, server):
        serve(server, lambda _: Countdown())
        assert [item async for item in client.send("x")] == [2, 1, 0]


async def test_request_replies_with_a_stream(transport: Any) -> None:
    """Request.reply() streams an async generator, and returns when it has ended."""
    async with open_link(transport) as (client, server):
        reply = client.send("x")
        request = await server.recv()
        replying = asyncio.ensure_future(request.reply(Producer().stream(100)))
        assert [item async for item in reply] == list(range(100))
        await replying


async def test_cancelling_the_reply_of_a_stream_tells_the_reader(transport: Any) -> None:
    """If the task that streams with Request.reply() is cancelled, the reader gets an error, not an end."""
    async with open_link(transport) as (client, server):
        producer = Producer()
        reply = client.send("x")
        request = await server.recv()
        replying = asyncio.ensure_future(request.reply(producer.stream(1000)))
        stream = await reply
        assert await anext(stream) == 0
        replying.cancel()
        with pytest.raises(RemoteCancelledError):
            async for _ in stream:
                pass
        assert replying.cancelled()
        await producer.ended.wait()


async def test_timeout_is_for_the_beginning_of_a_stream(transport: Any) -> None:
    """A timeout of the call holds until the stream opens; then the reader decides how long to wait."""
    async with open_stream(transport) as (client, _, _):
        reply = client.send(3, timeout=1000)
        stream = await reply
        await asyncio.sleep(0)
        assert reply._timer is None
        assert [item async for item in stream] == [0, 1, 2]


# -- Back pressure ---------------------------------------------------------------------------------


async def test_producer_stops_a_window_ahead_of_the_reader(transport: Any) -> None:
    """Without a reader the producer makes as many items as the window has, and goes on as they are taken."""
    async with open_stream(transport) as (client, server, producer):
        stream = await client.send(1000)
        (job,) = server._running
        await until(lambda: producer.produced == WINDOW and job._waiter is not None)
        assert await client.send("nothing moves meanwhile") == "nothing moves meanwhile"
        assert producer.produced == WINDOW
        for number in range(100):
            assert await anext(stream) == number
            assert producer.produced <= number + 1 + WINDOW
        await client.send("let what is under way arrive")
        assert producer.produced <= 100 + WINDOW
        stream.cancel()
        await assert_is_stopped(client, server, producer)


async def test_a_window_of_one(transport: Any) -> None:
    """The smallest window works, one item at a time."""
    limits = Limits(stream_window=1)
    async with open_link(transport, near={"limits": limits}) as (client, server):
        producer = Producer()
        serve(server, producer)
        async for item in client.send(20):
            assert producer.produced <= item + 2


async def test_a_stream_of_large_items_waits_for_a_slow_reader_of_bytes(transport: Any) -> None:
    """Besides credit, items wait for the transport: little more than its buffer is held at a time."""
    item = bytes(2**18)
    async with open_raw_client(transport, greets=True) as (peer, server):
        made = 0

        async def produce(_: Any) -> AsyncIterator[bytes]:
            nonlocal made
            while made < 200:
                made += 1
                yield item

        serve(server, produce)
        msg_id = peer.request("x")
        await peer.until(lambda: len(peer.frames) == 2)
        peer.stop_reading()
        peer.send(CREDIT, msg_id, 1000)
        await until(lambda: server._protocol._drain_waiters)
        assert server.transport.get_write_buffer_size() <= 2 * len(item)
        assert made < 100
        peer.start_reading()
        await peer.recv_reply(msg_id)
        assert made == 200


async def test_a_stream_does_not_starve_calls_nor_they_it(transport: Any) -> None:
    """While the transport is full, requests that wait and streams take turns."""
    item = bytes(2**17)
    async with open_raw_client(transport, greets=True) as (peer, server):

        async def produce() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield item

        serve(server, lambda content: produce() if content == "stream" else item)
        stream_id = peer.request("stream")
        await peer.until(lambda: len(peer.frames) == 2)
        peer.stop_reading()
        peer.send(CREDIT, stream_id, 100)
        await until(lambda: server._protocol.is_paused)
        call_ids = [peer.request("call") for _ in range(100)]
        await until(lambda: server._inbox)
        peer.frames.clear()
        peer.start_reading()
        order = [(await peer.recv())[:2] for _ in range(150)]
        items = [i for i, each in enumerate(order) if each == [ITEM, stream_id]]
        results = [i for i, (kind, msg_id) in enumerate(order) if kind == RESULT and msg_id in call_ids]
        assert items
        assert results
        # Neither has to wait for the end of the other.
        assert results[0] < items[-1]
        assert items[0] < results[-1]


# -- Leaving early ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["break", "cancel", "aclose", "with", "aclosing", "drop", "reader", "body"])
async def test_leaving_early_stops_the_producer(transport: Any, way: str) -> None:
    """However a reader leaves, the producer's ``finally`` runs and nothing is left on either side."""
    async with open_stream(transport) as (client, server, producer):
        if way == "break":
            async for item in client.send(1000):
                if item == 3:
                    break
        elif way == "aclosing":
            async with contextlib.aclosing(client.send(1000)) as items:
                async for item in items:
                    if item == 3:
                        break
        elif way in ("reader", "body"):
            read = 0

            async def read_all() -> None:
                nonlocal read
                async for item in client.send(1000):
                    read = item
                    if item == 3 and way == "body":
                        await asyncio.Event().wait()

            reading = asyncio.ensure_future(read_all())
            # The task is kept, and with it its error and all that this refers to.
            await until(lambda: read == 3 if way == "body" else producer.produced > 3)
            reading.cancel()
            await asyncio.wait([reading])
            assert reading.cancelled()
        else:
            stream = await client.send(1000)
            assert await anext(stream) == 0
            if way == "cancel":
                stream.cancel()
                stream.cancel()
            elif way == "aclose":
                await stream.aclose()
            elif way == "with":
                async with stream:
                    pass
            if way == "drop":
                del stream
                gc.collect()
            else:
                assert [item async for item in stream] == []
        await assert_is_stopped(client, server, producer)


async def test_aclose_of_the_iteration_and_of_a_reply(transport: Any) -> None:
    """Every object on the way from the reply to the items can be closed, before and after it has begun."""
    async with open_stream(transport) as (client, server, producer):
        iteration = aiter(client.send(1000))
        assert aiter(iteration) is iteration
        assert await anext(iteration) == 0
        await iteration.aclose()
        await assert_is_stopped(client, server, producer)

        reply = client.send(1000)
        await reply.aclose()
        assert reply.cancelled()
        await reply.aclose()

        failing = client.send(1000)
        failing.cancel()
        plain = client.send("plain")
        assert await plain == "plain"
        await plain.aclose()


async def test_cancelling_the_request_of_a_stream_before_it_opens(transport: Any) -> None:
    """A stream that arrives for a request which was given up is not granted anything."""
    async with open_raw_server(transport) as (client, peer):
        reply = client.send("x")
        msg_id = (await peer.recv())[1]
        reply.cancel()
        peer.send(STREAM, msg_id)
        peer.send(ITEM, msg_id, 1)
        assert await peer.recv() == [CANCEL, msg_id, None]
        other = client.send("y")
        assert (await peer.recv())[2] == "y"
        peer.send(RESULT, (msg_id + 1), "z")
        assert await other == "z"
        assert not peer.frames


# -- Errors ----------------------------------------------------------------------------------------


async def test_error_in_mid_stream(transport: Any) -> None:
    """The items before the error arrive, then the error is raised, every time; the channel goes on."""

    async def produce() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise ZeroDivisionError("out of numbers")

    async with open_link(transport) as (client, server):
        serve(server, lambda content: produce() if content == "stream" else content)
        stream = await client.send("stream", path="a/b")
        assert [await anext(stream), await anext(stream)] == [1, 2]
        for _ in range(2):
            with pytest.raises(RemoteException) as caught:
                await anext(stream)
            assert caught.value.type_name == "ZeroDivisionError"
            assert caught.value.path == "a/b"
        assert await client.send("still there") == "still there"


@pytest.mark.parametrize("error", [ClosedByPeerError("another one"), ConnectionResetError("of the system")])
async def test_connection_error_of_the_producer_is_no_end(transport: Any, error: Exception) -> None:
    """A generator that fails because some other connection was lost does not look complete."""

    async def produce(_: Any) -> AsyncIterator[int]:
        yield 1
        raise error

    async with open_link(transport) as (client, server):
        serve(server, produce)
        stream = await client.send("x")
        assert await anext(stream) == 1
        with pytest.raises(RemoteException, match=type(error).__name__):
            await anext(stream)


async def test_error_before_the_first_item(transport: Any) -> None:
    """An error at the beginning is raised by the iteration."""

    async def produce(_: Any) -> AsyncIterator[int]:
        raise ValueError("no")
        yield 1

    async with open_link(transport) as (client, server):
        serve(server, produce)
        with pytest.raises(RemoteException, match="ValueError"):
            async for _ in client.send("x"):
                pass


async def test_item_that_cannot_be_encoded(transport: Any) -> None:
    """It ends the stream with an error, and the generator is closed."""
    closed = asyncio.Event()

    async def produce(_: Any) -> AsyncIterator[Any]:
        try:
            yield 1
            yield object()
        finally:
            closed.set()

    async with open_link(transport) as (client, server):
        serve(server, produce)
        stream = await client.send("x")
        assert await anext(stream) == 1
        with pytest.raises(RemoteSerializationError):
            await anext(stream)
        await closed.wait()


async def test_item_that_is_too_large_for_the_producer(transport: Any) -> None:
    """An item above the producer's limit is an error at the reader, in its place."""

    async def produce(_: Any) -> AsyncIterator[Any]:
        yield 1
        yield bytes(5000)

    async with open_link(transport, far={"limits": Limits(frame_size=4096)}) as (client, server):
        serve(server, produce)
        stream = await client.send("x")
        assert await anext(stream) == 1
        with pytest.raises(RemoteSerializationError, match="limit is 4096"):
            await anext(stream)


async def test_item_that_is_too_large_for_the_reader(transport: Any) -> None:
    """An item above the reader's limit ends the stream with a typed error, and the producer stops."""
    async with open_link(transport, near={"limits": Limits(frame_size=4096)}) as (client, server):
        closed = asyncio.Event()

        async def produce(size: int) -> AsyncIterator[Any]:
            try:
                yield 1
                yield bytes(size)
                await asyncio.Event().wait()
            finally:
                closed.set()

        serve(server, lambda content: produce(content) if isinstance(content, int) else content)
        assert await client.send("hello") == "hello"
        other = client.send("other")
        stream = await client.send(10_000)
        assert await anext(stream) == 1
        with pytest.raises(FrameTooLargeError):
            await anext(stream)
        await closed.wait()
        assert await other == "other"
        assert await client.send("still there") == "still there"


async def test_old_peers_get_a_clear_error_instead_of_a_stream(transport: Any) -> None:
    """A peer that knows the types 0 to 2 only learns that the reply would be a stream."""
    async with open_raw_client(transport, "json") as (peer, server):
        producer = Producer()
        serve(server, producer)
        msg_type, _, content = await peer.recv_reply(peer.request(1000))
        assert msg_type == EXCEPTION
        assert content[0] == "aiomas_ng.StreamError"
        assert "streams its reply" in content[1]
        assert await peer.call("still there") == "still there"
        assert producer.produced == 0


async def test_one_way_call_of_a_stream_is_logged(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A stream that nobody could read is not begun."""
    async with open_stream(transport) as (client, _, producer):
        await client.send("hello")
        client.post(1000)
        await client.send("hello")
        assert producer.produced == 0
    assert "streams its reply" in caplog.text


@pytest.mark.parametrize("is_waiting", [True, False])
async def test_connection_is_lost_in_mid_stream(transport: Any, is_waiting: bool) -> None:
    """What has arrived can still be read, then the reader gets the error; the producer is stopped."""
    async with open_faulty_link(transport) as (client, server, link):
        producer = Producer()
        serve(server, producer)
        stream = await client.send(1000)
        (job,) = server._running
        await until(lambda: producer.produced == 64 and job._waiter is not None)
        await until(lambda: len(stream._state._items) == 64)
        if is_waiting:
            link.server.limit = 0
            for _ in range(64):
                await anext(stream)
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            link.client.transport.close()
            with pytest.raises(ChannelClosedError):
                await waiting
        else:
            link.client.transport.close()
            await until(lambda: client.is_closed)
            assert [await anext(stream) for _ in range(64)] == list(range(64))
        with pytest.raises(ChannelClosedError):
            await anext(stream)
        link.close()
        await producer.ended.wait()
        assert isinstance(producer.end, GeneratorExit | asyncio.CancelledError)


async def test_closing_a_channel_ends_its_streams(transport: Any) -> None:
    """close() on the side of the producer closes the generator and waits for it."""
    async with open_stream(transport) as (client, server, producer):
        stream = await client.send(1000)
        assert await anext(stream) == 0
        await server.close()
        assert producer.ended.is_set()
        with pytest.raises(ClosedByPeerError):
            async for _ in stream:
                pass


# -- Hostile peers ---------------------------------------------------------------------------------


async def test_producer_that_ignores_credit(transport: Any) -> None:
    """A peer that sends more than it may is cut off: the reader gets what was granted, then an error."""
    async with open_raw_server(transport, limits=Limits(stream_window=WINDOW)) as (client, peer):
        reply = client.send("x")
        msg_id = (await peer.recv())[1]
        peer.send(STREAM, msg_id)
        for number in range(1000):
            peer.send(ITEM, msg_id, number)
        stream = await reply
        assert await peer.recv() == [CREDIT, msg_id, WINDOW]
        assert await peer.recv() == [CANCEL, msg_id, None]
        await until(lambda: stream._state.is_ended)
        assert [await anext(stream) for _ in range(WINDOW)] == list(range(WINDOW))
        with pytest.raises(ProtocolError, match="faster than it may"):
            await anext(stream)
        assert (await peer.recv())[:2] == [EXCEPTION, None]
        other = client.send("y")
        msg_type, msg_id, content = await peer.recv()
        while msg_type != REQUEST:
            msg_type, msg_id, content = await peer.recv()
        peer.send(RESULT, msg_id, content)
        assert await other == "y"


async def test_frames_of_a_stream_out_of_place(transport: Any) -> None:
    """An item before the stream opens, a second opening: errors of the peer that harm no call."""
    async with open_raw_server(transport) as (client, peer):
        reply = client.send("x")
        msg_id = (await peer.recv())[1]
        peer.send(ITEM, msg_id, 1)
        assert (await peer.recv())[:2] == [EXCEPTION, None]
        peer.send(STREAM, msg_id)
        assert (await peer.recv())[:2] == [CREDIT, msg_id]
        peer.send(STREAM, msg_id)
        assert (await peer.recv())[:2] == [EXCEPTION, None]
        peer.send(STREAM, msg_id + 1)
        assert (await peer.recv())[:2] == [EXCEPTION, None]
        peer.send(ITEM, msg_id, 2)
        peer.send(RESULT, msg_id, "ignored")
        assert [item async for item in await reply] == [2]
        peer.send(ITEM, msg_id, 3)
        peer.send(STREAM, msg_id)
        other = client.send("y")
        assert (await peer.recv())[2] == "y"
        peer.send(RESULT, msg_id + 1, "z")
        assert await other == "z"


async def test_credit_out_of_place(transport: Any) -> None:
    """Credit for unknown requests and for plain ones is ignored, credit that is no number is an error."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        go = asyncio.Event()

        async def wait() -> str:
            await go.wait()
            return "done"

        serve(server, lambda content: wait() if content == "wait" else content)
        assert await peer.call("hello") == "hello"
        msg_id = peer.request("wait")
        for strange_id in (msg_id, 12345, "text", None, [1], 1.5, {}):
            peer.send(CREDIT, strange_id, 5)
            peer.send(CANCEL, strange_id if strange_id != msg_id else -1)
        assert await peer.call("hello") == "hello"
        for credit in (0, -1, "5", None, True, 1.0):
            peer.send(CREDIT, msg_id, credit)
            assert (await peer.recv())[:2] == [EXCEPTION, None]
        go.set()
        assert (await peer.recv_reply(msg_id))[2] == "done"


async def test_enormous_credit(transport: Any) -> None:
    """A peer may grant as much as it likes; the producer still waits for the transport."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        serve(server, Producer())
        msg_id = peer.request(200)
        peer.send(CREDIT, msg_id, 2**63)
        frames = [await peer.recv() for _ in range(203)]
        assert [frame[0] for frame in frames] == [SESSION, STREAM, *[ITEM] * 200, RESULT]


async def test_peer_cancels_a_stream_twice(transport: Any) -> None:
    """The second CANCEL is for nobody."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        producer = Producer()
        serve(server, producer)
        msg_id = peer.request(1000)
        peer.send(CREDIT, msg_id, 10)
        await until(lambda: producer.produced == 10)
        peer.send(CANCEL, msg_id)
        peer.send(CANCEL, msg_id)
        await producer.ended.wait()
        assert await peer.call("still there") == "still there"
        assert not [frame for frame in peer.frames if frame[1] == msg_id and frame[0] in (RESULT, EXCEPTION)]
