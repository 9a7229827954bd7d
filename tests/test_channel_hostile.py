"""What peers send that they should not: it is answered or ends the connection, and harms nobody else."""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiomas_ng import channel as channels
from aiomas_ng import codecs, local_queue
from aiomas_ng.channel import Channel, ChannelProtocol, Limits, Reply
from aiomas_ng.exceptions import (
    ClosedByPeerError,
    ClosedByUsError,
    DeserializationError,
    FrameTooLargeError,
    MalformedFrameError,
    RemoteException,
    RemoteSerializationError,
)
from tests.faults import (
    CANCEL,
    CREDIT,
    EXCEPTION,
    FIRST_ID,
    ITEM,
    MESSAGE,
    PING,
    PONG,
    REQUEST,
    RESULT,
    SESSION,
    STREAM,
    RawPeer,
    connect_raw,
    encode,
    frame,
    open_faulty_link,
    open_link,
    open_raw_client,
    open_raw_server,
    serve,
    until,
)


def echo(content: Any) -> Any:
    return content


async def assert_rejected(peer: RawPeer, error: str) -> None:
    """Check that the peer is told that one of its frames was bad, and that it is still served."""
    msg_type, msg_id, content = await peer.recv()
    assert (msg_type, msg_id, content[0]) == (EXCEPTION, None, f"aiomas_ng.{error}")
    assert await peer.call("still there") == "still there"


# -- Frames that are too large ---------------------------------------------------------------------


async def test_request_that_is_too_large_is_not_sent(transport: Any) -> None:
    """The sender's limit holds before anything is sent; the channel goes on."""
    async with open_link(transport, near={"limits": Limits(frame_size=1000)}) as (client, server):
        serve(server, echo)
        with pytest.raises(FrameTooLargeError) as caught:
            client.send(bytes(1000))
        assert (caught.value.limit, caught.value.size) == (1000, 1010)
        assert await client.send(bytes(990)) == bytes(990)
        assert await client.send(1) == 1


async def test_request_that_is_too_large_for_the_peer(transport: Any) -> None:
    """The caller gets RemoteSerializationError for exactly that call; its size and the limit are named."""
    async with open_link(transport, far={"limits": Limits(frame_size=4096)}) as (client, server):
        serve(server, echo)
        other = client.send("before")
        large = client.send(bytes(10_000))
        following = client.send("after")
        with pytest.raises(RemoteSerializationError, match="limit is 4096"):
            await large
        assert [await other, await following] == ["before", "after"]
        assert await client.send(bytes(4086)) == bytes(4086)
        for size, text in ((4087, "4097 bytes"), (10**6, "1000012 bytes")):
            with pytest.raises(RemoteSerializationError, match=text):
                await client.send(bytes(size))
        assert await client.send("still there") == "still there"


async def test_first_request_that_is_too_large(transport: Any) -> None:
    """A peer is recognized by its first request even if that cannot be taken."""
    async with open_link(transport, far={"limits": Limits(frame_size=4096)}) as (client, server):
        with pytest.raises(RemoteSerializationError):
            await client.send(bytes(10_000))
        assert client._exchange.is_peer_ours
        assert server._exchange.is_peer_ours


async def test_reply_that_is_too_large_to_be_sent(transport: Any) -> None:
    """A result above the answerer's limit becomes an error of that call."""
    async with open_link(transport, far={"limits": Limits(frame_size=4096)}) as (client, server):
        serve(server, lambda size: bytes(size))
        with pytest.raises(RemoteSerializationError, match="limit is 4096"):
            await client.send(10_000)
        assert await client.send(1) == b"\0"


async def test_reply_that_is_too_large_to_be_taken(transport: Any) -> None:
    """A result or error above the caller's limit fails that call with a typed error, and no other."""
    async with open_link(transport, near={"limits": Limits(frame_size=1000)}) as (client, server):

        def answer(size: int) -> bytes:
            if size < 0:
                raise ValueError("x" * -size)
            return bytes(size)

        serve(server, answer)
        replies = [client.send(1), client.send(10_000), client.send(-10_000), client.send(2)]
        for reply in replies[1:3]:
            with pytest.raises(FrameTooLargeError) as caught:
                await reply
            assert caught.value.limit == 1000
        assert [await replies[0], await replies[3]] == [b"\0", b"\0\0"]


async def test_error_that_is_too_large_to_be_sent(transport: Any) -> None:
    """With a tiny limit the shortest form of an error is sent, so that the caller does not wait for ever."""
    async with open_link(transport, far={"limits": Limits(frame_size=100)}) as (client, server):
        serve(server, lambda _: 1 / 0)
        with pytest.raises(RemoteException) as caught:
            await client.send(1)
        assert caught.value.type_name == "ZeroDivisionError"


async def test_oversized_frame_whose_envelope_cannot_be_read(transport: Any) -> None:
    """It may be the reply to any call, so all that wait fail at once; the connection goes on."""
    async with open_raw_server(transport, limits=Limits(frame_size=1000)) as (client, peer):
        replies = [client.send(i) for i in range(3)]
        requests = [await peer.recv() for _ in range(3)]
        peer.send_bytes(frame(b"\xc1" * 2000))
        for reply in replies:
            with pytest.raises(FrameTooLargeError):
                await reply
        assert (await peer.recv())[:2] == [EXCEPTION, None]
        peer.send(RESULT, requests[0][1], "late")
        reply = client.send("x")
        _, msg_id, content = await peer.recv()
        peer.send(RESULT, msg_id, content)
        assert await reply == "x"


@pytest.mark.parametrize(
    ("msg_type", "msg_id"), [(MESSAGE, 0), (REQUEST, None), (99, 1), (CREDIT, 1), (RESULT, 5), (ITEM, 5)]
)
async def test_oversized_frame_that_answers_no_call(transport: Any, msg_type: int, msg_id: Any) -> None:
    """Other frames above the limit are errors of the peer."""
    async with open_raw_client(transport, limits=Limits(frame_size=1000)) as (peer, server):
        serve(server, echo)
        peer.send(msg_type, msg_id, bytes(2000))
        error = "UnknownReplyError" if msg_type in (RESULT, ITEM) else "MalformedFrameError"
        await assert_rejected(peer, error)


async def test_4_gib_are_announced_and_never_sent(transport: Any) -> None:
    """Memory follows the bytes that have arrived, not those that were announced; other peers are served."""
    async with open_raw_client(transport) as (peer, server):
        serve(server, echo)
        assert await peer.call("x") == "x"
        tracemalloc.start()
        try:
            peer.send_bytes(struct.pack("!L", 2**32 - 1) + b"\x93\x00\x05")
            for _ in range(20):
                peer.send_bytes(bytes(2**18))
            await until(lambda: server._protocol._parser.unfinished == 2**32 - 1 - 3 - 20 * 2**18)
            assert tracemalloc.get_traced_memory()[0] < 2 * 2**20
        finally:
            tracemalloc.stop()
        # The request is refused as soon as its head is known.
        reply = await peer.recv_reply(5)
        assert reply[2][0] == "aiomas_ng.FrameTooLargeError"
        peer.close()
        await until(lambda: server.is_closed)
        with pytest.raises(ClosedByPeerError, match="in the middle of a frame"):
            await server.drain()


async def test_peer_that_dies_in_mid_frame(transport: Any) -> None:
    """Calls that wait fail, and the error says how much of a frame had come."""
    async with open_faulty_link(transport) as (client, server, link):
        serve(server, echo)
        assert await client.send("x") == "x"
        link.cut_after(7)
        with pytest.raises(ClosedByPeerError, match=r"in the middle of a frame \(7 bytes"):
            await client.send(bytes(1000))


async def test_connection_that_is_lost_without_a_word(transport: Any) -> None:
    """A half-open connection is no end, a call on it ends by its timeout; closing does not wait for it."""
    async with open_faulty_link(transport) as (client, server, link):
        serve(server, echo)
        assert await client.send("x") == "x"
        link.lose_server()
        await until(lambda: server.is_closed)
        with pytest.raises(TimeoutError):
            await client.send("y", timeout=0.02)
        assert not client.is_closed


async def test_slow_connection(transport: Any) -> None:
    """Bytes that are held up for a while arrive; nothing is lost or done twice."""
    async with open_faulty_link(transport) as (client, server, link):
        seen: list[int] = []
        serve(server, lambda content: seen.append(content) or content)
        link.hold()
        replies = [client.send(i) for i in range(10)]
        given_up = client.send(10, timeout=0.01)
        with pytest.raises(TimeoutError):
            await given_up
        assert seen == []
        link.release()
        assert await asyncio.gather(*replies) == list(range(10))
        assert await client.send(11) == 11
        assert seen == list(range(12))


# -- Frames that do not decode ---------------------------------------------------------------------


EXT = msgpack.ExtType(0x61, msgpack.packb(["no.such.Type", 1]))


async def test_request_that_does_not_decode(transport: Any) -> None:
    """A request with a readable envelope is answered with the error; those around it are not disturbed."""
    async with open_raw_client(transport) as (peer, server):
        serve(server, echo)
        before = peer.request("before")
        bad = peer.request(EXT)
        after = peer.request("after")
        assert await peer.recv() == [RESULT, before, "before"]
        msg_type, msg_id, content = await peer.recv()
        assert (msg_type, msg_id) == (EXCEPTION, bad)
        assert content[0] == "aiomas_ng.DeserializationError"
        assert "no.such.Type" in content[1]
        assert await peer.recv() == [RESULT, after, "after"]
        assert server._violations == 0


async def test_types_that_only_one_side_knows(transport: Any) -> None:
    """Both ways: a request is RemoteSerializationError at the caller, a reply DeserializationError."""

    class Point:
        pass

    def add(channel: Channel) -> None:
        channel.codec.add_serializer(Point, lambda _: 1, lambda _: Point())

    async with open_link(transport) as (client, server):
        serve(server, lambda content: Point() if content == "point" else content)
        add(client)
        with pytest.raises(RemoteSerializationError, match="Point"):
            await client.send(Point())
    async with open_link(transport) as (client, server):
        serve(server, lambda content: Point() if content == "point" else content)
        add(server)
        other = client.send("other")
        with pytest.raises(DeserializationError, match="Point"):
            await client.send("point")
        assert await other == "other"
        assert await client.send("still there") == "still there"


@pytest.mark.parametrize("msg_type", [EXCEPTION, ITEM])
async def test_other_answers_that_do_not_decode(transport: Any, msg_type: int) -> None:
    """An error or an item that cannot be read fails its call, which is cancelled where it goes on."""
    async with open_raw_server(transport) as (client, peer):
        reply = client.send("x")
        msg_id = (await peer.recv())[1]
        if msg_type == ITEM:
            peer.send(STREAM, msg_id)
            stream = await reply
            assert (await peer.recv())[:2] == [CREDIT, msg_id]
        peer.send(msg_type, msg_id, EXT)
        with pytest.raises(DeserializationError):
            await (anext(stream) if msg_type == ITEM else reply)
        if msg_type == ITEM:
            assert await peer.recv() == [CANCEL, msg_id, None]
        peer.send(msg_type, msg_id, EXT)  # it has ended, so this is only late
        peer.send(PING, 1)
        while (answer := await peer.recv())[0] != PONG:
            assert answer[0] != EXCEPTION


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x93",
        b"\x93\x00",
        b"hello",
        msgpack.packb([]),
        msgpack.packb([0]),
        msgpack.packb([0, 1]),
        msgpack.packb([0, 1, 2, 3]),
        msgpack.packb(None),
        msgpack.packb("abc"),
        msgpack.packb({"a": 1}),
        msgpack.packb({1: 1, 2: 2, 3: 3}),
        msgpack.packb(["0", 1, 2]),
        msgpack.packb([None, 1, 2]),
        msgpack.packb([True, 1, 2]),
        msgpack.packb([0.0, 1, 2]),
        msgpack.packb([[0], 1, 2]),
        msgpack.packb([0, None, 2]),
        msgpack.packb([0, True, 2]),
        msgpack.packb([0, 1.0, 2]),
        msgpack.packb([0, [1], 2]),
        msgpack.packb([0, {}, 2]),
        msgpack.packb([-1, 1, 2]),
        msgpack.packb([11, 1, 2]),
        msgpack.packb([2**64 - 1, 1, 2]),
        msgpack.packb([RESULT, 0, 2]),
        msgpack.packb([RESULT, FIRST_ID, 2]),
        msgpack.packb([RESULT, -1, 2]),
        msgpack.packb([RESULT, "0", 2]),
        msgpack.packb([RESULT, None, 2]),
        msgpack.packb([RESULT, [], 2]),
        msgpack.packb([RESULT, float(FIRST_ID), 2]),
        msgpack.packb([EXCEPTION, 12345, ["ValueError", "x"]]),
        msgpack.packb([ITEM, 12345, 1]),
        msgpack.packb([STREAM, {}, None]),
        msgpack.packb([MESSAGE, 1, None]),
        msgpack.packb([MESSAGE, None, None]),
        msgpack.packb([CREDIT, 1, "many"]),
        msgpack.packb([PING, "one", None]),
        msgpack.packb([PING, None, None]),
        # Python does not print integers of this size.
        codecs.MsgPack().encode([2**20_000, 1, 2]),
        codecs.MsgPack().encode([[2**20_000], 1, 2]),
        codecs.MsgPack().encode([0, [2**20_000], 2]),
        codecs.MsgPack().encode([RESULT, 2**20_000, 2]),
        codecs.MsgPack().encode([MESSAGE, 2**20_000, None]),
        codecs.MsgPack().encode([CREDIT, 1, [2**20_000]]),
        codecs.MsgPack().encode([PING, [2**20_000], None]),
        b"\x91" * 100_000 + b"\x90",
        b"\x93\x00\x05" + b"\x91" * 100_000 + b"\x90",
        b"\xdd\xff\xff\xff\xff",
        b"\x93\x00\x05\xdd\xff\xff\xff\xff",
    ],
    ids=lambda payload: payload[:12].hex(),
)
async def test_garbage(transport: Any, payload: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a frame contains, the peer is told and logged, and the connection and calls on it go on."""
    async with open_raw_client(transport) as (peer, server):
        serve(server, echo)
        assert await peer.call("hello") == "hello"
        if payload.startswith(b"\x93\x00\x05"):
            peer.send_bytes(frame(payload))
            assert (await peer.recv())[:2] == [EXCEPTION, 5]
            assert await peer.call("still there") == "still there"
            return
        call = server.send("x")
        _, call_id, _ = await peer.recv()
        if payload == msgpack.packb([RESULT, FIRST_ID, 2]):
            peer.send(RESULT, call_id, 2)
            assert await call == 2
            return
        peer.send_bytes(frame(payload))
        msg_type, msg_id, content = await peer.recv()
        assert (msg_type, msg_id) == (EXCEPTION, None)
        assert content[0].startswith("aiomas_ng.")
        assert "broke the rules" in caplog.text
        assert await peer.call("still there") == "still there"
        peer.send(RESULT, call_id, "y")
        assert await call == "y"


async def test_reply_to_a_request_that_was_never_sent(transport: Any) -> None:
    """It is an error of the peer that harms no call that waits."""
    async with open_raw_server(transport) as (client, peer):
        reply = client.send("x")
        msg_id = (await peer.recv())[1]
        peer.send(RESULT, msg_id + 1, "not yours")
        peer.send(EXCEPTION, msg_id - 1, ["ValueError", "not yours"])
        for _ in range(2):
            answer = await peer.recv()
            assert answer[2][0] == "aiomas_ng.UnknownReplyError"
        peer.send(RESULT, msg_id, "yours")
        assert await reply == "yours"


async def test_double_replies(transport: Any) -> None:
    """The first reply counts, the others are dropped without a word."""
    async with open_raw_server(transport) as (client, peer):
        reply = client.send("x")
        msg_id = (await peer.recv())[1]
        for answer in ("first", "second"):
            peer.send(RESULT, msg_id, answer)
        peer.send(EXCEPTION, msg_id, ["ValueError", "third"])
        peer.send(PING, 1)
        assert await reply == "first"
        assert await peer.recv() == [PONG, 1, None]


@pytest.mark.parametrize(
    "content", ["text", "", ["A"], ["A", "b"], ["A", "b", "c\n"], [], None, 5, ["A", 1], {}]
)
async def test_every_form_of_an_exception(transport: Any, content: Any) -> None:
    """An EXCEPTION frame ends the call as RemoteException, whatever stands in it."""
    async with open_raw_server(transport) as (client, peer):
        reply = client.send("x", path="agents/7/step")
        peer.send(EXCEPTION, (await peer.recv())[1], content)
        with pytest.raises(RemoteException) as caught:
            await reply
        assert (caught.value.agent, caught.value.method) == ("7", "step")
        assert str(caught.value)


async def test_rejections_of_the_peer_are_logged(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An EXCEPTION frame without an id is about a frame of ours; it is for the log, and is not answered."""
    async with open_raw_server(transport) as (_, peer):
        peer.send(EXCEPTION, None, ["aiomas_ng.MalformedFrameError", "what was that?"])
        peer.send(PING, 1)
        assert await peer.recv() == [PONG, 1, None]
        assert "rejected a frame of ours" in caplog.text
        assert "what was that?" in caplog.text


async def test_duplicate_ids_in_flight(transport: Any) -> None:
    """An id that is used again before its request was answered is an error; the first request goes on."""
    async with open_raw_client(transport) as (peer, server):
        go = asyncio.Event()
        begun: list[str] = []

        async def wait(content: str) -> str:
            begun.append(content)
            await go.wait()
            return content

        serve(server, lambda content: wait(content) if content != "still there" else content)
        peer.send(REQUEST, 100, "first")
        peer.send(REQUEST, 100, "second")
        await assert_rejected(peer, "MalformedFrameError")
        go.set()
        assert await peer.recv() == [RESULT, 100, "first"]
        assert begun == ["first"]
        peer.send(REQUEST, 100, "third")
        assert await peer.recv() == [RESULT, 100, "third"]


async def test_duplicate_ids_of_requests_that_wait(transport: Any) -> None:
    """The same holds for requests that nobody has received yet, and for streamed replies."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        peer.send(REQUEST, FIRST_ID, "first")
        peer.send(REQUEST, FIRST_ID, "second")
        assert (await peer.recv())[0] == SESSION
        assert (await peer.recv())[:2] == [EXCEPTION, None]
        first = await server.recv()
        assert first.content == "first"

        async def produce() -> Any:
            yield 1

        replying = asyncio.ensure_future(first.reply(produce()))
        await until(lambda: server._exchange.jobs)
        await first.reply(produce())
        await peer.until(lambda: peer.frames)
        peer.send(CREDIT, FIRST_ID, 2)
        await replying
        frames = [await peer.recv() for _ in range(4)]
        assert sorted(frame[0] for frame in frames) == [RESULT, EXCEPTION, ITEM, STREAM]


async def test_id_that_can_be_decoded_but_not_encoded(transport: Any) -> None:
    """JSON can spell texts that UTF-8 cannot: no reply is possible, but no harm is done either."""
    async with open_raw_client(transport, "json") as (peer, server):
        serve(server, echo)
        peer.send_bytes(frame(b'[0, "\\ud800", 1]'))
        await assert_rejected(peer, "MalformedFrameError")


async def test_too_many_violations_close_the_connection(transport: Any) -> None:
    """Beyond the limit the connection is closed, and only that one."""
    serving: list[Channel] = []

    def connected(channel: Channel) -> None:
        serving.append(channel)
        serve(channel, echo)

    limits = Limits(violations=5)
    async with await channels.start_server(transport.address(), connected, limits=limits) as server:
        good, bad = RawPeer(), RawPeer()
        await connect_raw(server.url, good)
        await connect_raw(server.url, bad)
        assert await good.call(1) == await bad.call(1) == 1
        channel = serving[1]
        pending = channel.send("x")
        for _ in range(5):
            bad.send(99, 0)
        assert await bad.call(2) == 2
        bad.send(99, 0)
        bad.request("not executed")
        await bad.until_lost()
        with pytest.raises(ClosedByUsError, match="broke the rules of the wire 6 times") as caught:
            await pending
        assert "UnknownFrameTypeError" in repr(caught.value.__cause__)
        assert await good.call(3) == 3
        good.abort()
        for channel in serving:
            await channel.close()


# -- Codecs that do not match ----------------------------------------------------------------------


@pytest.mark.parametrize("is_packed", [True, False])
async def test_codecs_that_do_not_match(transport: Any, is_packed: bool) -> None:
    """Instead of a hang there is an error that names the codec and asks for the other side's."""
    near, far = (codecs.MsgPack, codecs.JSON) if is_packed else (codecs.JSON, codecs.MsgPack)
    async with open_link(transport, near={"codec": near}, far={"codec": far}) as (client, server):
        serve(server, echo)
        replies = [client.send(["x", i]) for i in range(3)]
        for reply in replies:
            with pytest.raises(MalformedFrameError, match=f"same codec.*{near.__name__}"):
                await reply
        with pytest.raises(ClosedByUsError, match="same codec"):
            client.send("y")
        await until(lambda: server.is_closed)
        assert server._violations <= 3


@pytest.mark.parametrize("speaks", ["json", "msgpack"])
async def test_raw_peer_with_another_codec(transport: Any, speaks: str) -> None:
    """A server that gets something it does not understand says so in its own codec, and bears it for long."""
    codec = codecs.MsgPack if speaks == "json" else codecs.JSON
    async with open_raw_client(transport, speaks, codec=codec) as (peer, server):
        peer.codec = "msgpack" if speaks == "json" else "json"
        peer.send_bytes(encode(speaks, REQUEST, 1, ["x"]))
        _, msg_id, content = await peer.recv()
        assert msg_id is None
        assert "do both sides use the same codec?" in content[1]
        serve(server, echo)
        assert await peer.call("now right") == "now right"


@pytest.mark.needs("blosc2")
async def test_compressed_frames_that_do_not_decode(transport: Any) -> None:
    """A codec whose envelope cannot be read without decoding still gives an error instead of a hang."""
    async with open_link(transport, near={"codec": codecs.MsgPackBlosc}) as (client, _):
        with pytest.raises(MalformedFrameError, match="MsgPackBlosc"):
            await client.send("x")


# -- Anything at all -------------------------------------------------------------------------------


class Sink(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        """Nobody reads: what arrives is handed to the protocol by the test."""

    resume_reading = pause_reading

    def get_write_buffer_size(self) -> int:
        return 0


def open_protocol(codec: codecs.Codec, **limits: Any) -> tuple[ChannelProtocol, Channel, Sink]:
    """Return a protocol that is connected to nothing."""
    protocol = ChannelProtocol(codec, loop=asyncio.get_running_loop(), limits=Limits(**limits))
    sink = Sink()
    protocol.connection_made(sink)
    assert protocol.channel is not None
    return protocol, protocol.channel, sink


CONTENT = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=5) | st.binary(max_size=200),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


def as_received(content: Any) -> Any:
    """Return *content* as it arrives: sequences are tuples."""
    return tuple(map(as_received, content)) if isinstance(content, list) else content


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Return *data* in pieces, cut at *places*."""
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges) if begin < end]


@given(
    contents=st.lists(CONTENT, max_size=8),
    places=st.lists(st.integers(0, 5000), max_size=30),
    limit=st.sampled_from([64, 1000]),
)
async def test_any_chunking_gives_the_same_requests(
    contents: list[Any], places: list[int], limit: int
) -> None:
    """However the bytes are cut, the same requests are received, and the same are refused."""
    frames = [encode("msgpack", REQUEST, number, content) for number, content in enumerate(contents)]
    data = b"".join(frames)
    outcomes = []
    for pieces in ([data], cut(data, places), [bytes([byte]) for byte in data]):
        protocol, channel, sink = open_protocol(codecs.MsgPack(), frame_size=limit)
        for piece in pieces:
            protocol.data_received(piece)
        received = [(key, content) for key, (content, _) in channel._inbox.items()]
        outcomes.append((received, bytes(sink.written)))
        assert protocol._parser.unfinished == 0
        protocol.connection_lost(None)
    expected = [
        (number, as_received(content))
        for number, content in enumerate(contents)
        if len(frames[number]) - 4 <= limit
    ]
    assert outcomes[0][0] == expected
    assert outcomes[0] == outcomes[1] == outcomes[2]


ENVELOPES = st.tuples(
    st.integers(-1, 12) | CONTENT,
    st.integers(FIRST_ID - 1, FIRST_ID + 4) | CONTENT,
    CONTENT | st.lists(st.text(max_size=3), max_size=3),
)


@settings(max_examples=300)
@given(
    parts=st.lists(
        ENVELOPES.map(lambda message: frame(msgpack.packb(message)))
        | st.binary(max_size=30).map(frame)
        | st.builds(
            lambda message, place, byte: _replace(frame(msgpack.packb(message)), place, byte),
            ENVELOPES,
            st.integers(4, 60),
            st.integers(0, 255),
        ),
        max_size=12,
    ),
    has_handler=st.booleans(),
)
async def test_no_bytes_make_the_protocol_raise(parts: list[bytes], has_handler: bool) -> None:
    """Frames of any content are taken or refused; data_received never raises, and every call ends."""
    protocol, channel, _ = open_protocol(codecs.MsgPack(), frame_size=100, violations=1000)
    if has_handler:
        serve(channel, echo)
    replies = [channel.send(i) for i in range(3)]
    for part in parts:
        protocol.data_received(part)
    assert not channel.is_closed or any(
        isinstance(reply.exception(), MalformedFrameError) for reply in replies if reply.done()
    )
    protocol.connection_lost(None)
    for reply in replies:
        assert reply.done()
        reply.cancelled() or reply.exception()


def _replace(data: bytes, place: int, byte: int) -> bytes:
    changed = bytearray(data)
    changed[4 + (place - 4) % max(1, len(data) - 4) if len(data) > 4 else 0] = byte if len(data) > 4 else 0
    return bytes(changed)


# -- A model of the exchange -----------------------------------------------------------------------


class ExchangeMachine(RuleBasedStateMachine):
    """A channel over a real LocalQueue and a raw peer that answers late, twice, wrongly or never.

    The model says what each call must come to, whatever happens to the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(debug=True)
        self.calls: list[tuple[int, Reply]] = []
        self.expected: dict[int, tuple[str, Any]] = {}  # how each call has to end, by id
        self.cancelled: list[int] = []
        self.violations = 0
        self.is_known = False
        self.served: list[int] = []
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.peer = RawPeer()
        self.queue = local_queue.get_queue("exchange-machine")
        self.listener = await local_queue.create_server(lambda: self.peer, self.queue)
        self.channel = await channels.open_connection(self.queue, limits=Limits(calls=6, violations=10**6))
        serve(self.channel, echo)

    def teardown(self) -> None:
        self.runner.run(self._close())
        self.runner.close()

    async def _close(self) -> None:
        self.listener.close()
        self.peer.abort()
        await self.channel.close()
        for msg_id, reply in self.calls:
            if msg_id not in self.expected:
                assert isinstance(reply.exception(), ClosedByPeerError | ClosedByUsError)

    def do(self, action: Callable[[], Any]) -> None:
        """Do something and let both sides take notice of it."""

        async def act() -> None:
            result = action()
            if asyncio.iscoroutine(result):
                await result
            for _ in range(8):
                await asyncio.sleep(0)

        self.runner.run(act())

    def waiting(self) -> list[int]:
        return [msg_id for msg_id, _ in self.calls if msg_id not in self.expected]

    @precondition(lambda self: len(self.waiting()) < 6)
    @rule(content=CONTENT)
    def send(self, content: Any) -> None:
        def act() -> None:
            msg_id = FIRST_ID + len(self.calls)
            self.calls.append((msg_id, self.channel.send(content)))

        self.do(act)
        assert [REQUEST, FIRST_ID + len(self.calls) - 1, content] in self.peer.frames

    @precondition(lambda self: len(self.waiting()) == 6)
    @rule()
    def send_too_many(self) -> None:
        def act() -> None:
            with pytest.raises(Exception, match="which is the limit"):
                self.channel.send(1)

        self.do(act)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), content=CONTENT, is_error=st.booleans())
    def reply(self, data: st.DataObject, content: Any, is_error: bool) -> None:
        """Answer any call that was ever made: in time, late or once more."""
        msg_id = data.draw(st.sampled_from([msg_id for msg_id, _ in self.calls]))
        if is_error:
            self.expected.setdefault(msg_id, ("error", "E"))
            self.do(lambda: self.peer.send(EXCEPTION, msg_id, ["E", "text"]))
        else:
            self.expected.setdefault(msg_id, ("result", as_received(content)))
            self.do(lambda: self.peer.send(RESULT, msg_id, content))

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        msg_id = data.draw(st.sampled_from(self.waiting()))
        self.expected[msg_id] = ("cancelled", None)
        self.cancelled.append(msg_id)
        reply = dict(self.calls)[msg_id]
        self.do(reply.cancel)

    @rule(
        distance=st.integers(0, 3), content=CONTENT, kind=st.sampled_from([RESULT, EXCEPTION, ITEM, STREAM])
    )
    def reply_to_nothing(self, distance: int, content: Any, kind: int) -> None:
        self.violations += 1
        self.is_known = self.is_known or kind > EXCEPTION
        self.do(lambda: self.peer.send(kind, FIRST_ID + len(self.calls) + distance, content))

    @rule(kind=st.sampled_from([11, 99, -1]))
    def send_unknown_type(self, kind: int) -> None:
        self.violations += 1
        self.do(lambda: self.peer.send(kind, 0))

    @rule()
    def introduce(self) -> None:
        """The peer shows that it is one of ours, at any time."""
        self.is_known = True
        self.do(lambda: self.peer.send(SESSION, 0, {"version": 1}))

    @rule(content=CONTENT)
    def request(self, content: Any) -> None:
        """The peer's own requests are answered all the time."""
        msg_id = len(self.served)
        self.served.append(msg_id)
        self.do(lambda: self.peer.send(REQUEST, msg_id, content))
        assert [RESULT, msg_id, content] in self.peer.frames

    @invariant()
    def calls_are_as_expected(self) -> None:
        for msg_id, reply in self.calls:
            kind, value = self.expected.get(msg_id, (None, None))
            assert reply.done() == (kind is not None)
            assert reply.cancelled() == (kind == "cancelled")
            if kind == "result":
                assert reply.result() == value
            elif kind == "error":
                assert isinstance(reply.exception(), RemoteException)

    @invariant()
    def nothing_is_left_of_ended_calls(self) -> None:
        assert sorted(self.channel._exchange.calls) == self.waiting()
        assert not self.channel.is_closed

    @invariant()
    def the_peer_was_told(self) -> None:
        """Of its errors, and of calls that were cancelled as soon as it could understand it."""
        assert self.channel._violations == self.violations
        rejections = [each for each in self.peer.frames if each[:2] == [EXCEPTION, None]]
        assert len(rejections) == self.violations
        told = [msg_id for kind, msg_id, _ in self.peer.frames if kind == CANCEL]
        assert sorted(told) == (sorted(self.cancelled) if self.is_known else [])
        assert all(kind <= EXCEPTION for kind, _, _ in self.peer.frames) or self.is_known


def test_exchange_is_as_its_model() -> None:
    """Whatever a peer answers, and when, each call ends as it must and no other call is touched."""
    steps = settings(max_examples=60, stateful_step_count=30)
    run_state_machine_as_test(ExchangeMachine, settings=steps)


async def test_server_survives_many_bad_clients(transport: Any) -> None:
    """Clients that connect and leave in every bad way do not disturb the one that behaves."""
    serving: list[Channel] = []

    def connected(channel: Channel) -> None:
        serving.append(channel)
        serve(channel, echo)

    async with await channels.start_server(transport.address(), connected) as server:
        good = RawPeer()
        await connect_raw(server.url, good)
        for leave in ("close", "abort"):
            for data in (b"", b"\0", b"\0\0\0\x05\x93", frame(b"\xc1"), json.dumps([0, 1, 2]).encode()):
                bad = RawPeer()
                await connect_raw(server.url, bad)
                bad.send_bytes(data)
                getattr(bad, leave)()
                await bad.until_lost()
                assert await good.call(data) == data
        await until(lambda: len(server._connections) == 1)
        good.abort()
        for channel in serving:
            await channel.close()
