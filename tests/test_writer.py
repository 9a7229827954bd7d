"""Frames on their way out: gathered, bundled, held back; and what peers may do with bundles."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiomas_ng import codecs
from aiomas_ng._io.writer import CORK_SIZE, MAX_GATHERED, SLICE_SIZE, FrameWriter
from aiomas_ng.channel import Channel, ChannelProtocol, Limits
from aiomas_ng.codecs import LARGE
from aiomas_ng.exceptions import (
    AiomasError,
    ChannelClosedError,
    ClosedByUsError,
    FrameTooLargeError,
    MalformedFrameError,
    OverloadError,
    SerializationError,
)
from tests.faults import (
    CANCEL,
    EXCEPTION,
    FIRST_ID,
    MESSAGE,
    PING,
    PONG,
    REQUEST,
    RESULT,
    SESSION,
    RawPeer,
    encode,
    frame,
    open_link,
    open_raw_client,
    open_raw_server,
    serve,
    until,
)

BUNDLE = 11
"""As the documentation of the wire has it."""

OUR_BUNDLE_SIZE = 128 * 1024
"""What we announce."""

UNKNOWN = msgpack.ExtType(5, b"x")
"""What no codec of ours decodes."""


def echo(content: Any) -> Any:
    return content


def pack(*message: Any) -> bytes:
    """Return the payload of a frame."""
    payload: bytes = msgpack.packb(message)
    return payload


def bundle(*payloads: bytes) -> bytes:
    """Return the payload of a bundle."""
    return b"\x93\x0b\x00\xdc" + struct.pack("!H", len(payloads)) + b"".join(payloads)


def cut_frames(data: bytes) -> Iterator[bytes]:
    """Yield the payloads of the frames that *data* consists of."""
    pos = 0
    while pos < len(data):
        size = struct.unpack_from("!L", data, pos)[0]
        assert pos + 4 + size <= len(data)
        yield bytes(data[pos + 4 : pos + 4 + size])
        pos += 4 + size


def unbundle(payload: bytes) -> list[Any]:
    """Return the messages in a frame: one, or those of a bundle."""
    message = msgpack.unpackb(payload)
    return list(message[2]) if message[0] == BUNDLE else [message]


class Sink(asyncio.Transport):
    """A transport that keeps what is written, write by write.

    Args:
        room: Bytes after which the protocol is told to pause; ``None``: never.
    """

    def __init__(self, room: int | None = None) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.room = room
        self.fill = 0
        self.is_closed = False
        self.writer: Any = None

    @property
    def written(self) -> bytes:
        return b"".join(self.writes)

    @property
    def messages(self) -> list[Any]:
        """All messages that were written, in order, those in bundles as well."""
        return [message for payload in cut_frames(self.written) for message in unbundle(payload)]

    def write(self, data: Any) -> None:
        assert not self.is_closed
        assert len(data)
        self.writes.append(bytes(data))
        self.fill += len(data)
        if self.room is not None and self.fill > self.room and not self.writer.is_paused:
            self.writer.pause_writing()

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        return 0


class HandLoop:
    """A loop whose turns the test takes by hand."""

    def __init__(self) -> None:
        self.handles: collections.deque[Callable[[], Any]] = collections.deque()

    def call_soon(self, callback: Callable[[], Any]) -> None:
        self.handles.append(callback)

    def turn(self) -> None:
        for _ in range(len(self.handles)):
            self.handles.popleft()()


def open_writer(room: int | None = None, **limits: Any) -> tuple[FrameWriter, Sink, HandLoop]:
    """Return a writer, where it writes to, and its loop."""
    loop = HandLoop()
    writer = FrameWriter(loop, Limits(**limits))  # type: ignore[arg-type]
    writer.transport = sink = Sink(room)
    sink.writer = writer
    return writer, sink, loop


def open_protocol(codec: codecs.Codec | None = None, **limits: Any) -> tuple[ChannelProtocol, Channel, Sink]:
    """Return a protocol that is connected to a :class:`Sink`."""
    protocol = ChannelProtocol(
        codec or codecs.MsgPack(), loop=asyncio.get_running_loop(), limits=Limits(**limits)
    )
    sink = Sink()
    sink.writer = protocol
    protocol.connection_made(sink)
    assert protocol.channel is not None
    return protocol, protocol.channel, sink


def receive(protocol: ChannelProtocol, *messages: Any) -> None:
    """Let a protocol receive some messages, each in a frame, in one read."""
    protocol.data_received(b"".join(encode("msgpack", *message) for message in messages))


# -- The writer by itself --------------------------------------------------------------------------


def sized(number: int, size: int) -> bytes:
    """Return a message with a number, of some more bytes than *size*."""
    return pack(MESSAGE, number, bytes(size))


STEP = (
    st.tuples(st.sampled_from(["write", "write_now"]), st.integers(0, 60) | st.integers(0, 80_000))
    | st.tuples(st.just("pieces"), st.integers(0, 600_000))
    | st.tuples(
        st.sampled_from(["gather", "release", "flush", "pause", "resume", "turn", "many"]), st.just(0)
    )
    | st.tuples(st.just("bundles"), st.integers(0, 400) | st.integers(0, 200_000) | st.just(2**64))
)


@settings(max_examples=150)
@given(
    steps=st.lists(STEP, max_size=40),
    room=st.none() | st.just(0) | st.integers(0, 200_000),
    ends=st.booleans(),
)
@example(steps=[("many", 0), ("bundles", 100)], room=None, ends=False)
@example(steps=[("bundles", 2**64), ("many", 0), ("bundles", 100)], room=None, ends=False)
@example(steps=[("write", 5), ("pieces", 300_000), ("write_now", 5), ("write", 70_000)], room=0, ends=True)
def test_order_is_that_of_the_writes(steps: list[tuple[str, int]], room: int | None, ends: bool) -> None:
    """Whatever is mixed with whatever, the peer gets all payloads in the order in which they were written,
    no bundle is above what it has announced, and nothing is written while it does not read."""
    writer, sink, loop = open_writer(room)
    join = codecs.MsgPack().join
    number = allowed = 0
    for name, value in steps:
        was_paused, before = writer.is_paused, len(sink.writes)
        for _ in range(100 if name == "many" else 1):
            if name in ("write", "many"):
                writer.write(sized(number, value))
            elif name == "write_now":
                writer.write_now(sized(number, value))
            elif name == "pieces":
                payload = sized(number, value)
                writer.write_pieces([payload[:8], payload[8:]])
            number += name in ("write", "many", "write_now", "pieces")
        if name == "pause":
            writer.pause_writing()
        elif name == "resume":
            sink.fill = 0
            writer.resume_writing()
        elif name == "turn":
            loop.turn()
        elif name == "bundles":
            writer.take_up_bundles(join, value)
            allowed = max(allowed, value)
        elif name in ("gather", "release", "flush"):
            getattr(writer, name)()
        assert name == "resume" or not was_paused or len(sink.writes) == before
    if ends:
        writer.close_transport()
        assert sink.is_closed
    else:
        sink.room = None
        writer.resume_writing()
        writer.release()
        loop.turn()
    assert [message[1] for message in sink.messages] == list(range(number))
    assert writer.get_unsent_size() == 0
    assert all(len(payload) <= allowed for payload in cut_frames(sink.written) if payload[1] == BUNDLE)
    assert all(message[2] == bytes(len(message[2])) for message in sink.messages)


def test_one_turn_is_one_write() -> None:
    """What is written in one turn of the loop leaves in one piece, at the end of the turn."""
    writer, sink, loop = open_writer()
    for n in range(MAX_GATHERED - 1):
        writer.write(sized(n, 10))
    assert sink.writes == []
    assert len(loop.handles) == 1
    loop.turn()
    assert len(sink.writes) == 1
    loop.turn()
    assert [message[1] for message in sink.messages] == list(range(MAX_GATHERED - 1))


def test_what_is_gathered_is_bounded() -> None:
    """After some frames, or some bytes, what was gathered leaves without waiting for the turn's end."""
    writer, sink, _ = open_writer()
    for n in range(4 * MAX_GATHERED):
        writer.write(sized(n, 10))
    assert len(sink.writes) == 4
    for n in range(100):
        writer.write(sized(n, CORK_SIZE // 10))
        assert writer.get_unsent_size() <= CORK_SIZE
    assert len(sink.writes) > 10


def test_write_now_is_at_once_unless_others_wait() -> None:
    """What need not wait does not, and what does keeps its place."""
    writer, sink, loop = open_writer()
    writer.write_now(sized(0, 1))
    assert len(sink.writes) == 1
    assert not loop.handles
    writer.write(sized(1, 1))
    writer.write_now(sized(2, 1))
    assert len(sink.writes) == 1
    loop.turn()
    assert len(sink.writes) == 2
    writer.gather()
    writer.write_now(sized(3, 1))
    assert len(sink.writes) == 2
    writer.release()
    assert [message[1] for message in sink.messages] == [0, 1, 2, 3]


@pytest.mark.parametrize("method", ["write", "write_now", "write_pieces"])
@pytest.mark.parametrize("state", ["idle", "gathering", "paused"])
def test_too_large_a_frame_changes_nothing(method: str, state: str) -> None:
    """What is above our limit is refused before anything of it is written; what waits still leaves."""
    writer, sink, loop = open_writer(frame_size=100)
    if state == "gathering":
        writer.write(sized(0, 1))
    elif state == "paused":
        writer.pause_writing()
    unsent = writer.get_unsent_size()
    with pytest.raises(FrameTooLargeError):
        getattr(writer, method)([bytes(50), bytes(51)] if method == "write_pieces" else bytes(101))
    assert writer.get_unsent_size() == unsent
    writer.write(sized(1, 1))
    writer.resume_writing()
    loop.turn()
    assert [message[1] for message in sink.messages] == ([0, 1] if state == "gathering" else [1])


def test_bundle_is_within_our_own_limit_as_well() -> None:
    """No frame above our own limit is sent, and a bundle is a frame."""
    writer, sink, loop = open_writer(frame_size=1000)
    writer.take_up_bundles(codecs.MsgPack().join, OUR_BUNDLE_SIZE)
    for n in range(60):
        writer.write(sized(n, 400))
    loop.turn()
    assert max(map(len, cut_frames(sink.written))) <= 1000
    assert [message[1] for message in sink.messages] == list(range(60))


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 18, 100])
def test_tiny_announcement_does_not_end_the_gathering(size: int) -> None:
    """A peer that takes next to no bundles gets what was gathered as it did before: in one write."""
    writer, sink, loop = open_writer()
    writer.take_up_bundles(codecs.MsgPack().join, size)
    for n in range(10):
        writer.write(pack(MESSAGE, 0, n))
    loop.turn()
    if size < 18:
        assert len(sink.writes) == 1
    assert [message[2] for message in sink.messages] == list(range(10))
    assert all(payload[1] != BUNDLE or len(payload) <= size for payload in cut_frames(sink.written))


@given(
    announced=st.integers(0, 3000) | st.integers(0, 300_000),
    sizes=st.lists(st.integers(0, 300) | st.integers(0, 100_000), max_size=80),
)
def test_bundle_is_never_above_what_was_announced(announced: int, sizes: list[int]) -> None:
    """However much is gathered, a bundle has at most the bytes that the peer takes."""
    writer, sink, loop = open_writer()
    writer.take_up_bundles(codecs.MsgPack().join, announced)
    for n, size in enumerate(sizes):
        writer.write(sized(n, size))
    loop.turn()
    for payload in cut_frames(sink.written):
        assert payload[1] != BUNDLE or len(payload) <= announced
    assert [message[1] for message in sink.messages] == list(range(len(sizes)))


def test_unsent_size_counts_all_that_waits() -> None:
    """What is gathered and what is held back both count, and nothing is left when all has gone."""
    writer, sink, loop = open_writer(backlog=1000)
    writer.write(bytes(100))
    assert writer.get_unsent_size() == 100
    writer.pause_writing()
    loop.turn()
    assert sink.writes == []
    assert writer.get_unsent_size() == 104
    assert not writer.is_backlogged()
    writer.write_pieces([bytes(10), bytes(SLICE_SIZE + 1)])
    assert writer.get_unsent_size() == 104 + 4 + 10 + SLICE_SIZE + 1
    assert writer.is_backlogged()
    writer.resume_writing()
    assert writer.get_unsent_size() == 0
    assert not writer.is_backlogged()
    assert list(map(len, cut_frames(sink.written))) == [100, 11 + SLICE_SIZE]


def test_large_piece_is_given_in_slices() -> None:
    """Of a large piece the transport gets a part at a time, and nothing any more as soon as it is full."""
    writer, sink, _ = open_writer(room=SLICE_SIZE)
    payload = bytes(range(256)) * 8192
    writer.write_pieces([payload])
    assert max(map(len, sink.writes)) <= SLICE_SIZE
    assert writer.is_paused
    assert len(sink.written) <= 2 * SLICE_SIZE + 4
    sink.room = None
    writer.resume_writing()
    assert list(cut_frames(sink.written)) == [payload]


# -- Which peers get bundles -----------------------------------------------------------------------


async def test_peer_that_announces_nothing_gets_no_bundle(transport: Any) -> None:
    """Until the peer has said that it takes bundles it gets none, also one of ours."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        serve(server, echo)
        for session in (
            None,
            {},
            {"version": 1},
            {"version": 1, "bundle": None},
            {"version": 1, "bundle": 0},
        ):
            if session is not None:
                peer.send(SESSION, 0, session)
            ids = [peer.request(n) for n in range(100)]
            assert [await peer.recv_reply(n) for n in ids] == [[RESULT, n, n - ids[0]] for n in ids]


async def test_peer_that_announces_bundles_gets_them(transport: Any) -> None:
    """From its SESSION on, the replies to many requests come in few frames, all of them and in order."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        serve(server, echo)
        assert await peer.call("first") == "first"
        peer.send(SESSION, 0, {"version": 1, "bundle": 10_000})
        data = b"".join(encode("msgpack", REQUEST, FIRST_ID + 1 + n, n) for n in range(300))
        peer.send_bytes(data)
        replies: list[Any] = []
        count = 0
        while len(replies) < 300:
            message = await peer.recv()
            count += 1
            replies += message[2] if message[0] == BUNDLE else [message]
        assert replies == [[RESULT, FIRST_ID + 1 + n, n] for n in range(300)]
        assert count < 30


async def test_session_says_what_we_take(transport: Any) -> None:
    """We announce bundles of our size, or of our limit if that is less; exactly once, whoever begins."""
    for limit, size in ((2**26, OUR_BUNDLE_SIZE), (5000, 5000)):
        async with open_raw_client(transport, greets=True, limits=Limits(frame_size=limit)) as (peer, server):
            serve(server, echo)
            peer.request(1)
            assert await peer.recv() == [SESSION, 0, {"version": 1, "close": True, "bundle": size}]
            assert (await peer.recv())[0] == RESULT
            peer.send(SESSION, 0, {"version": 1, "bundle": 1000})
            peer.send(SESSION, 0, {"version": 1, "bundle": 1000})
            peer.send(PING, 1)
            assert (await peer.recv())[0] == PONG
        async with open_raw_server(transport, limits=Limits(frame_size=limit)) as (_, server_peer):
            server_peer.send(SESSION, 0, {"version": 1})
            assert await server_peer.recv() == [SESSION, 0, {"version": 1, "close": True, "bundle": size}]


@pytest.mark.parametrize("sizes", [(1000,), (10_000, 100), (100, 10_000)])
async def test_announcement_while_something_is_gathered(sizes: tuple[int, ...]) -> None:
    """What was gathered before the peer says how much it takes does not go out as a bundle above that."""
    protocol, channel, sink = open_protocol(turn=1000)
    serve(channel, echo)
    receive(protocol, (REQUEST, FIRST_ID, "first"))
    number, before = 1, 0
    for size in sizes:
        requests = [(REQUEST, FIRST_ID + n, "y" * 50) for n in range(number, number + 60)]
        number += 60
        start = len(sink.written)
        receive(protocol, *requests[:30], (SESSION, 0, {"version": 1, "bundle": size}), *requests[30:])
        seen = 0
        for payload in cut_frames(sink.written[start:]):
            count = len(unbundle(payload))
            assert count == 1 or len(payload) <= (before if seen < 30 else size)
            seen += count
        before = size
    messages = [message for message in sink.messages if message[0] == RESULT]
    assert [message[1] - FIRST_ID for message in messages] == list(range(number))
    protocol.connection_lost(None)


@pytest.mark.parametrize("size", [1, 16, 17, 18, 60, 128, 1000, 2**16, 2**31, 2**63, 2**64 - 1])
async def test_any_announcement_is_kept_to(transport: Any, size: int) -> None:
    """The peer gets no bundle above what it announced, be that next to nothing or beyond all bounds."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        serve(server, echo)
        await peer.call("first")
        peer.send(SESSION, 0, {"version": 1, "bundle": size})
        first = peer._next_id
        peer._next_id += 200
        peer.send_bytes(b"".join(encode("msgpack", REQUEST, first + n, bytes(20)) for n in range(200)))
        seen: list[Any] = []
        while len(seen) < 200:
            message = await peer.recv()
            if message[0] == BUNDLE:
                assert len(msgpack.packb(message)) <= min(size, OUR_BUNDLE_SIZE)
                seen += message[2]
            else:
                seen.append(message)
        assert seen == [[RESULT, first + n, bytes(20)] for n in range(200)]


@pytest.mark.parametrize(
    "session", [[], None, 1, {"bundle": -1}, {"bundle": True}, {"bundle": 1.5}, {"bundle": "9"}]
)
async def test_malformed_session(transport: Any, session: Any) -> None:
    """A session that is none is a broken rule, which the peer is told; it gets no bundles by it."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        serve(server, echo)
        await peer.call("first")
        peer.send(SESSION, 0, session)
        msg_type, msg_id, content = await peer.recv()
        assert (msg_type, msg_id, content[0]) == (EXCEPTION, None, "aiomas_ng.MalformedFrameError")
        ids = [peer.request(n) for n in range(50)]
        assert [(await peer.recv())[1] for _ in ids] == ids


class Doubled(codecs.MsgPack):
    """A user's codec: what it encodes has a byte in front, and is decoded without it."""

    def encode(self, data: Any) -> bytes:
        return b"!" + super().encode(data)

    def decode(self, data: Any) -> Any:
        assert bytes(data[:1]) == b"!"
        return super().decode(bytes(data[1:]))

    def peek(self, data: Any) -> Any:
        return super().peek(data[1:])


class OnlyEncode(codecs.MsgPack):
    """A user's codec that looks at what is sent."""

    def encode(self, data: Any) -> bytes:
        assert type(data) is tuple
        return super().encode(data)


class OnlyDecode(codecs.MsgPack):
    """A user's codec that looks at what arrives, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    def decode(self, data: Any) -> Any:
        self.kept.append((data, bytes(data)))
        return super().decode(data)


class SetOnInstance(codecs.MsgPack):
    """A user's codec whose methods are changed from outside, by a wrapper or a spy."""

    def __init__(self) -> None:
        super().__init__()
        encode, decode = self.encode, self.decode
        self.encode = lambda data: b"!" + encode(data)  # type: ignore[method-assign]
        self.decode = lambda data: decode(bytes(data[1:]))  # type: ignore[method-assign]


def spy_on(channel: Channel, payloads: list[bytes]) -> None:
    """Add each payload that the peer sends to *payloads*."""
    protocol = channel._protocol
    take = protocol._take_payload

    def take_payload(payload: Any, *args: Any) -> None:
        payloads.append(bytes(payload))
        take(payload, *args)

    protocol._take_payload = take_payload  # type: ignore[method-assign]


OTHER_CODECS = [
    codecs.JSON,
    Doubled,
    OnlyEncode,
    OnlyDecode,
    SetOnInstance,
    pytest.param(codecs.MsgPackBlosc, marks=pytest.mark.needs("blosc2")),
]


@pytest.mark.parametrize("codec", OTHER_CODECS)
async def test_other_codecs_are_never_bypassed(transport: Any, codec: Any) -> None:
    """A codec that is not plain MsgPack encodes and decodes each message itself: none is bundled, and large
    ones are not taken to pieces, even if the peer says that it takes bundles."""
    async with open_link(transport, codec=codec) as (client, server):
        serve(server, echo)
        payloads: list[bytes] = []
        for channel in (client, server):
            spy_on(channel, payloads)
        assert await client.send("first") == "first"
        client._send_control(SESSION, 0, {"version": 1, "bundle": 100_000})
        server._send_control(SESSION, 0, {"version": 1, "bundle": 100_000})
        assert await client.send("second") == "second"
        large = bytes(range(256)) * (LARGE // 256 + 1)
        contents = [*range(100), large, bytearray(large), memoryview(large), *range(100)]
        results = await asyncio.gather(*map(client.send, contents))
        assert results == [
            bytes(item) if isinstance(item, bytearray | memoryview) else item for item in contents
        ]
        own = codec()
        messages = [own.decode(payload) for payload in payloads]
        assert not [message for message in messages if message[0] == BUNDLE]
        sessions = [message[2] for message in messages if message[0] == SESSION]
        assert [session.get("bundle") for session in sessions if session.get("bundle") != 100_000] == [
            None
        ] * 2


async def test_codec_with_own_types_is_bundled(transport: Any) -> None:
    """Serializers of the user's are no reason not to bundle."""

    def complex_serializer() -> tuple[Any, Any, Any]:
        return complex, lambda z: [z.real, z.imag], lambda parts: complex(*parts)

    async with open_link(transport, extra_serializers=[complex_serializer]) as (client, server):
        serve(server, echo)
        await client.send(0)
        await client.send(0)
        payloads: list[bytes] = []
        spy_on(server, payloads)
        numbers = [complex(n, -n) for n in range(200)]
        assert await asyncio.gather(*map(client.send, numbers)) == numbers
        assert len(payloads) < 50


# -- One bad message in a bundle -------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        pack(REQUEST, FIRST_ID + 50, UNKNOWN),
        pack(REQUEST, FIRST_ID + 50, msgpack.ExtType(codecs.EXT_TYPE, b"\x92\xa3a.B\x00")),
        b"\x93\x00" + msgpack.packb(FIRST_ID + 50) + b"\xa2\xff\xff",
        b"\x93\x00" + msgpack.packb(FIRST_ID + 50) + b"\x81\x80\x00",
    ],
    ids=["ext", "type", "utf-8", "unhashable"],
)
@pytest.mark.parametrize("place", ["first", "middle", "last", "all"])
async def test_request_that_does_not_decode_harms_no_other(transport: Any, bad: bytes, place: str) -> None:
    """Of a bundle in which one request cannot be decoded the others are answered, and that one fails."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        serve(server, echo)
        await peer.call("first")
        good = [pack(REQUEST, FIRST_ID + 1 + n, n) for n in range(6)]
        at = {"first": 0, "middle": 3, "last": 6, "all": 0}[place]
        payloads = [bad] * 3 if place == "all" else [*good[:at], bad, *good[at:]]
        peer.send_bytes(frame(bundle(*payloads)))
        replies = [await peer.recv() for _ in payloads]
        for payload, reply in zip(payloads, replies, strict=True):
            if payload is bad:
                # An unhashable key may only come to light when it is too late to tell whose it was.
                assert reply[0] == EXCEPTION
                assert reply[1] == FIRST_ID + 50
            else:
                assert reply[0] == RESULT
        assert [reply[2] for reply in replies if reply[0] == RESULT] == (
            [] if place == "all" else list(range(6))
        )
        assert not server.is_closed


async def test_reply_that_does_not_decode_harms_no_other(transport: Any) -> None:
    """Of the calls whose replies come in one bundle only that fails whose reply cannot be decoded."""
    async with open_raw_server(transport) as (client, peer):
        calls = [client.send(n) for n in range(5)]
        ids = [(await peer.recv())[1] for _ in calls]
        payloads = [pack(RESULT, msg_id, "fine") for msg_id in ids]
        payloads[2] = pack(RESULT, ids[2], UNKNOWN)
        peer.send_bytes(frame(bundle(*payloads)))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert results[:2] + results[3:] == ["fine"] * 4
        assert isinstance(results[2], AiomasError)
        late = client.send("still there")
        peer.send(RESULT, (await peer.recv())[1], "yes")
        assert await late == "yes"


async def test_each_frame_is_treated_as_if_it_came_by_itself(transport: Any) -> None:
    """A bundle may hold frames of all kinds; broken rules in it are told one by one, in order."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        served: list[Any] = []
        serve(server, lambda content: served.append(content) or content)
        await peer.call("first")
        peer.send_bytes(
            frame(
                bundle(
                    pack(PING, 7, None),
                    pack(MESSAGE, 0, "one way"),
                    pack("a", 1, 2),
                    pack(REQUEST, FIRST_ID + 1, "call"),
                    pack(99, 1, 2),
                    pack(1, 2),
                    pack(RESULT, 12345, None),
                    msgpack.packb(None),
                    pack(REQUEST, FIRST_ID + 2, "call"),
                )
            )
        )
        replies = [await peer.recv() for _ in range(8)]
        kinds = [(reply[0], reply[1]) for reply in replies]
        fault = (EXCEPTION, None)
        assert kinds == [
            (PONG, 7), fault, (RESULT, FIRST_ID + 1), fault, fault, fault, fault, (RESULT, FIRST_ID + 2)
        ]  # fmt: skip
        assert served == ["first", "one way", "call", "call"]


# -- Bundles of hostile peers ----------------------------------------------------------------------

NESTED = bundle(pack(MESSAGE, 0, "nested"))
NESTED_OTHERWISE = b"\xdc\x00\x03\xcc\x0b\x00\x91" + pack(MESSAGE, 0, "nested")
BAD = pack(REQUEST, FIRST_ID + 40, UNKNOWN)


def deep(count: int) -> bytes:
    payload = pack(MESSAGE, 0, "nested")
    for _ in range(count):
        payload = b"\x93\x0b\x00\x91" + payload
    return payload


@pytest.mark.parametrize(
    "payload",
    [
        pack(BUNDLE, 0, None),
        pack(BUNDLE, 0, 5),
        pack(BUNDLE, 0, "abc"),
        pack(BUNDLE, 0, b"abc"),
        pack(BUNDLE, 0, {}),
        pack(BUNDLE, 0, {1: [MESSAGE, 0, "no"]}),
        pack(BUNDLE, 0, []),
        pack(BUNDLE, 0, [1]),
        pack(BUNDLE, 0, [None]),
        pack(BUNDLE, 0, [[]]),
        pack(BUNDLE, 0, [[0, 1]]),
        pack(BUNDLE, 0, [[0, 1, 2, 3]]),
        pack(BUNDLE, 0, [["0", 1, 2]]),
        pack(BUNDLE, 0, [[None, 1, 2]]),
        pack(BUNDLE, 0, [[REQUEST, None, 2]]),
        pack(BUNDLE, 0, [[REQUEST, [], 2]]),
        pack(BUNDLE, 0, UNKNOWN),
        bundle(NESTED),
        bundle(NESTED_OTHERWISE),
        bundle(BAD, NESTED)[:-1] + b"\xc1",
        deep(2),
        deep(100),
        deep(300),
        deep(20_000),
        b"\x93\x0b\x00\x92" + pack(MESSAGE, 0, 1),
        b"\x93\x0b\x00\xdd\xff\xff\xff\xff" + pack(MESSAGE, 0, 1) * 3,
        b"\x93\x0b\x00\xdd\xff\xff\xff\xff",
        b"\x93\x0b\x00\xdc",
        b"\x93\x0b\x00",
        b"\x93\x0b",
        b"\x93\x0b\x00\xc1",
        b"\x93\x0b\x00\xdd\x00\x00\xff\xff" + bytes(100),
        b"\x93\x0b\x00\x90junk",
        b"\x93\x0b\x00\x91" + BAD + b"\xc1",
    ],
    ids=lambda payload: payload[:16].hex(),
)
async def test_malformed_bundle(transport: Any, payload: bytes) -> None:
    """A bundle that is none is a fault that the peer is told of; nothing in it that breaks the rules is
    executed, the connection goes on, and calls of ours go on or fail, but do not hang."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        served: list[Any] = []
        serve(server, lambda content: served.append(content) or content)
        await peer.call("first")
        call = server.send("ours")
        assert (await peer.recv())[2] == "ours"
        peer.send_bytes(frame(payload))
        while (reply := await peer.recv())[0] == CANCEL:
            pass
        assert reply[0] == EXCEPTION
        assert await peer.call("still there") == "still there"
        assert "nested" not in served
        peer.send(RESULT, FIRST_ID, "answered")
        with contextlib.suppress(AiomasError):
            assert await asyncio.wait_for(call, 10) == "answered"
        assert await peer.call("and still") == "and still"


@pytest.mark.parametrize("nested", [NESTED, NESTED_OTHERWISE, deep(5)], ids=["as usual", "otherwise", "deep"])
async def test_nested_bundle_beside_what_does_not_decode(transport: Any, nested: bytes) -> None:
    """A bundle holds no bundle, also if it has to be taken apart, and however the inner one is encoded."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        served: list[Any] = []
        serve(server, lambda content: served.append(content) or content)
        await peer.call("first")
        peer.send_bytes(frame(bundle(BAD, nested, pack(MESSAGE, 0, "other"))))
        assert await peer.call("still there") == "still there"
        assert "nested" not in served


async def test_rest_behind_a_bundle_is_a_fault(transport: Any) -> None:
    """Bytes behind the last message of a bundle are a broken rule, and count as one."""
    async with open_raw_client(transport, greets=True, limits=Limits(violations=10)) as (peer, server):
        serve(server, echo)
        await peer.call("first")
        for _ in range(11):
            peer.send_bytes(frame(b"\x93\x0b\x00\x90" + b"junk"))
        await peer.until_lost()


async def test_too_many_faults_in_bundles_close_the_connection(transport: Any) -> None:
    """Broken rules count also if they come in one bundle; what comes behind the last one is not taken."""
    async with open_raw_client(transport, greets=True, limits=Limits(violations=10)) as (peer, server):
        served: list[Any] = []
        serve(server, lambda content: served.append(content) or content)
        await peer.call("first")
        peer.send_bytes(frame(bundle(*[pack(99, 0, 0)] * 50, pack(MESSAGE, 0, "too late"))))
        await peer.until_lost()
        assert served == ["first"]


async def test_damaged_bundle_fails_our_calls(transport: Any) -> None:
    """If a bundle cannot be taken apart, the replies to any calls may have been in it: they fail at once."""
    async with open_raw_server(transport) as (client, peer):
        calls = [client.send(n) for n in range(3)]
        ids = [(await peer.recv())[1] for _ in calls]
        peer.send_bytes(frame(bundle(*[pack(RESULT, msg_id, 1) for msg_id in ids])[:-3]))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, AiomasError) for result in results)
        late = client.send("still there")
        while (message := await peer.recv())[0] != REQUEST:
            pass
        peer.send(RESULT, message[1], "yes")
        assert await late == "yes"


async def test_bundle_above_what_we_take_is_refused(transport: Any) -> None:
    """A bundle above the size that we announce is not worked on: it would hold up everybody else."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        served: list[Any] = []
        serve(server, served.append)
        peer.request("first")
        item = pack(MESSAGE, 0, "x")
        for last in (item, pack(MESSAGE, 0, UNKNOWN)):
            count = 2 * OUR_BUNDLE_SIZE // len(item)
            payload = b"\x93\x0b\x00\xdd" + struct.pack("!L", count) + item * (count - 1) + last
            longest = time.perf_counter()
            peer.send_bytes(frame(payload))
            while (message := await peer.recv())[0] in (SESSION, RESULT):
                pass
            assert message[:2] == [EXCEPTION, None]
            assert served == ["first"]
            assert time.perf_counter() - longest < 20
        assert not server.is_closed


@settings(max_examples=60)
@given(data=st.data())
async def test_no_damage_to_a_bundle_makes_the_protocol_raise(data: st.DataObject) -> None:
    """Whatever bytes of a bundle are wrong, the protocol goes on or closes the connection in order."""
    protocol, channel, sink = open_protocol()
    serve(channel, echo)
    receive(protocol, (REQUEST, FIRST_ID, 0), (SESSION, 0, {"version": 1, "bundle": 5000}))
    payload = bytearray(bundle(*[pack(REQUEST, FIRST_ID + n, n) for n in range(1, 20)], BAD))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(3, len(payload) - 1))] = data.draw(st.integers(0, 255))
    protocol.data_received(frame(bytes(payload[: data.draw(st.integers(1, len(payload)))])))
    await asyncio.sleep(0)  # faults are told at the end of the turn
    count = len(sink.messages)
    if not channel.is_closed:
        receive(protocol, (PING, 5, None))
        assert len(sink.messages) == count + 1
        assert sink.messages[-1] == [PONG, 5, None]
    protocol.connection_lost(None)


# -- Gathering in a connection ---------------------------------------------------------------------


async def test_nothing_is_taken_after_the_end() -> None:
    """What still comes after the connection has ended is not executed, a small read as little as a large."""
    for count in (1, 5):
        protocol, channel, _ = open_protocol()
        served: list[Any] = []
        serve(channel, served.append)
        channel._set_error(ClosedByUsError("the end"))
        receive(protocol, *[(REQUEST, FIRST_ID + n, "late") for n in range(count)])
        protocol.data_received(
            frame(bundle(pack(REQUEST, FIRST_ID, "late"), pack(REQUEST, FIRST_ID + 1, "late")))
        )
        assert served == []
        protocol.connection_lost(None)


async def test_handler_that_ends_the_connection_in_a_bundle() -> None:
    """If a handler closes the connection, the rest of the bundle is not executed."""
    for bad in ([], [BAD]):
        protocol, channel, sink = open_protocol()
        served: list[Any] = []

        def close(content: Any, channel: Channel = channel, served: list[Any] = served) -> None:
            served.append(content)
            channel._set_error(ClosedByUsError("by the handler"))

        serve(channel, close)
        protocol.data_received(
            frame(bundle(*[pack(MESSAGE, 0, n) for n in range(3)], *bad)) + encode("msgpack", MESSAGE, 0, 9)
        )
        assert served == [0]
        assert sink.is_closed
        protocol.connection_lost(None)


@settings(max_examples=40)
@given(
    plan=st.lists(
        st.sampled_from(["small", "large", "post", "ping", "turn", "drain", "error", "burst"]),
        min_size=1,
        max_size=25,
    ),
    slow=st.booleans(),
)
async def test_requests_arrive_in_the_order_of_the_calls(plan: list[str], slow: bool) -> None:
    """Small and large calls and messages arrive in the order in which they were made, whatever the peer
    reads meanwhile, and calls that cannot be encoded leave no gap."""
    loop = asyncio.get_running_loop()
    from aiomas_ng.channel import open_pair

    near, far = await open_pair("pair", loop=loop)
    seen: list[int] = []
    serve(far, lambda content: seen.append(content[0]) or content[0])
    calls: list[Any] = []
    number = 0

    def step(kind: str) -> None:
        nonlocal number
        if kind == "error":
            with pytest.raises(SerializationError):
                near.send([number, object()])
            return
        if kind == "post":
            near.post([number])
        else:
            calls.append(
                near.send((number, bytes(LARGE + 10)) if kind == "large" else [number, "x" * number])
            )
            if kind == "large":  # not at the top level: encoded as a whole
                number += 1
                near._protocol.write_pieces(near._encode_pieces((MESSAGE, 0, [number, bytes(LARGE)])))
        number += 1

    await near.send([-1])
    await near.send([-1])
    if slow:
        far.transport.pause_reading()
    for kind in plan:
        if kind == "turn":
            await asyncio.sleep(0)
        elif kind == "drain":
            far.transport.resume_reading()
            await near.drain()
            if slow:
                far.transport.pause_reading()
        elif kind == "ping":
            near._send_control(PING, 1)
        elif kind == "burst":
            for _ in range(MAX_GATHERED + 5):
                step("small")
        else:
            step(kind)
    far.transport.resume_reading()
    assert await asyncio.gather(*calls) == [n for n in seen if n in {call.result() for call in calls}]
    await until(lambda: len(seen) == number + 2)
    assert seen[2:] == list(range(number))
    await near.close()
    await far.close()


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("is_slow", [False, True], ids=["reads", "reads later"])
async def test_value_that_is_changed_after_the_call(transport: Any, is_large: bool, is_slow: bool) -> None:
    """What leaves is the value as it was when the call was made, also while it waits in a buffer of ours."""
    size = 2 * LARGE if is_large else 10
    async with open_link(transport) as (client, server):
        serve(server, lambda content: content)
        await client.send(0)
        await client.send(0)
        if is_slow:
            server.transport.pause_reading()
        buffer = bytearray(b"a" * size)
        values = [bytearray(b"a" * size), memoryview(buffer), [b"a" * size, [1]], {"a": [b"a" * size]}]
        for _ in range(4):  # beyond what the system takes
            calls = [client.send(value) for value in values]
            client.post(values[0])
        values[0][:] = b"b" * size  # type: ignore[index]
        values[0].clear()  # type: ignore[attr-defined]
        buffer[:] = b"b" * size
        values[2][0] = None  # type: ignore[index]
        values[2][1].append(2)  # type: ignore[index]
        values[3]["a"].clear()  # type: ignore[call-overload]
        server.transport.resume_reading()
        first, second, third, fourth = await asyncio.gather(*calls)
        assert first == second == b"a" * size
        assert third == (b"a" * size, (1,))
        assert fourth == {"a": (b"a" * size,)}


async def test_answer_that_is_changed_afterwards(transport: Any) -> None:
    """A handler may go on to change what it has returned."""
    state = bytearray(b"a" * 2 * LARGE)
    items = [1]

    def change(content: Any) -> Any:
        if content == "end":
            state[:] = b"b" * len(state)
            items.append(2)
            return None
        return {"bytes": state, "list": items} if content else state

    async with open_link(transport) as (client, server):
        serve(server, change)
        await client.send(0)
        first, second, _ = await asyncio.gather(client.send(0), client.send(1), client.send("end"))
        assert first == second["bytes"] == b"a" * 2 * LARGE
        assert second["list"] == (1,)


async def test_error_of_encoding_belongs_to_its_call(transport: Any) -> None:
    """Among calls that are gathered, one that cannot be encoded raises by itself; the others arrive."""
    released = memoryview(b"abc")
    released.release()
    large = bytes(2 * LARGE)
    async with open_link(transport) as (client, server):
        serve(server, lambda content: content if type(content) is not str else object())
        await client.send(0)
        calls = []
        for bad in (object(), [object()], {1: object()}, "\ud800", 2**40_000, released):
            calls.append(client.send(1))
            with pytest.raises(SerializationError):
                client.send(bad)
            calls.append(client.send(large))
        assert await asyncio.gather(*calls) == [1, large] * 6
        good, bad_answer, other = client.send(1), client.send("object"), client.send(large)
        assert await good == 1
        with pytest.raises(AiomasError, match="serializ"):
            await bad_answer
        assert await other == large
        assert not client._exchange.calls


async def test_gathered_frames_count_and_drain_waits(transport: Any) -> None:
    """A peer that does not read pauses us also if all frames are small; drain() waits, and all arrive."""
    async with open_raw_client(transport, greets=True, limits=Limits(backlog=500_000)) as (peer, server):
        peer.send(SESSION, 0, {"version": 1, "bundle": OUR_BUNDLE_SIZE})
        assert (await peer.recv())[0] == SESSION
        peer.stop_reading()
        count = 0
        while not server._protocol.is_paused:
            server.post("x" * 100)
            count += 1
            if count % 1000 == 0:
                await asyncio.sleep(0)
        draining = asyncio.ensure_future(server.drain())
        try:
            for _ in range(100_000):
                server.post("x" * 100)
                count += 1
        except OverloadError:
            pass
        else:
            pytest.fail("what waits is not bounded")
        assert server._protocol.get_unsent_size() < 500_000 + 2**22 + 2 * CORK_SIZE
        await asyncio.sleep(0)
        assert not draining.done()
        peer.start_reading()
        await draining
        seen = 0
        while seen < count:
            message = await peer.recv()
            seen += len(message[2]) if message[0] == BUNDLE else 1
        assert seen == count
        await until(lambda: not server._protocol.get_unsent_size())


@pytest.mark.parametrize("is_paused", [False, True])
async def test_close_sends_what_was_gathered(transport: Any, is_paused: bool) -> None:
    """What was written in the turn in which the connection is closed still leaves, in order."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        peer.send(SESSION, 0, {"version": 1, "bundle": 10_000})
        assert (await peer.recv())[0] == SESSION
        if is_paused:
            peer.stop_reading()
        total = 0
        while is_paused and not server._protocol.is_paused:
            server.post([total, "y" * 10_000])
            total += 1
        for _ in range(10):
            server.post([total, ""])
            total += 1
        closing = asyncio.ensure_future(server.close())
        await asyncio.sleep(0)
        peer.start_reading()
        await peer.until_lost()
        seen = [m[2][0] for f in peer.frames for m in (f[2] if f[0] == BUNDLE else [f])]
        assert seen == list(range(total))
        await closing


async def test_frames_that_are_gathered_when_the_connection_breaks(transport: Any) -> None:
    """Calls whose frames have not left when the connection breaks fail, and nothing else happens."""
    async with open_raw_server(transport) as (client, peer):
        peer.abort()
        await until(lambda: peer.is_lost)
        calls = []
        with contextlib.suppress(ChannelClosedError):
            for _ in range(100_000):
                calls.append(client.send("x"))
                await asyncio.sleep(0)
        assert client.is_closed
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, ChannelClosedError) for result in results)


async def test_one_bad_bundle_among_many_connections(transport: Any) -> None:
    """What one peer does in its bundles is no business of the others."""
    async with (
        open_raw_client(transport, greets=True, limits=Limits(violations=3)) as (bad, bad_server),
        open_link(transport) as (client, server),
    ):
        for channel in (bad_server, server):
            serve(channel, echo)
        await bad.call("first")
        calls = [client.send(n) for n in range(200)]
        bad.send_bytes(frame(bundle(*[pack(77, 0, 0)] * 100)) * 5)
        assert await asyncio.gather(*calls) == list(range(200))
        await bad.until_lost()
        assert isinstance(bad_server._error.__cause__, MalformedFrameError | AiomasError)  # type: ignore[union-attr]
        assert await client.send("fine") == "fine"


async def test_raw_peer_may_bundle_at_once(transport: Any) -> None:
    """A peer that has seen our SESSION may send its very next requests as a bundle, and calls within it are
    answered in order, plain and waiting ones."""

    async def later(content: Any) -> Any:
        await asyncio.sleep(0)
        return content

    peer: RawPeer
    async with open_raw_client(transport, greets=True) as (peer, server):
        serve(server, lambda content: later(content) if content % 3 == 0 else content)
        peer.send_bytes(frame(bundle(*[pack(REQUEST, FIRST_ID + n, n) for n in range(30)])))
        replies = {}
        while len(replies) < 30:
            message = await peer.recv()
            if message[0] == RESULT:
                replies[message[1] - FIRST_ID] = message[2]
        assert replies == {n: n for n in range(30)}
