"""Large frames: read into a buffer that is used again, over every transport, and without harm to others."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import msgpack
import pytest
import trustme
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiomas_ng import channel as channels
from aiomas_ng import codecs, tuning
from aiomas_ng._core.framing import BULK_SIZE, GROWTH, FrameParser
from aiomas_ng._io import bulk
from aiomas_ng._io.bulk import BulkReader
from aiomas_ng.channel import Channel, ChannelProtocol, Limits
from aiomas_ng.exceptions import AiomasError, ClosedByPeerError
from tests.faults import (
    EXCEPTION,
    FIRST_ID,
    REQUEST,
    RESULT,
    encode,
    frame,
    open_faulty_link,
    open_link,
    open_raw_client,
    serve,
    until,
)

with contextlib.suppress(ImportError):
    import uvloop

    uvloop.new_event_loop().close()  # the first one opens pipes that live as long as the process

MIB = 2**20
SIZES = [
    BULK_SIZE - 10, BULK_SIZE, 2 * BULK_SIZE - 4, 2 * BULK_SIZE, 2 * BULK_SIZE + 100, codecs.LARGE,
    GROWTH * BULK_SIZE, 3 * MIB + 7,
]  # fmt: skip
"""Bytes around every threshold that there is."""


def pattern(size: int, seed: int = 0) -> bytes:
    """Return bytes of which each part tells where it belongs."""
    unit = b"".join(struct.pack("!LL", seed, n) for n in range(min(size // 8 + 1, 8192)))
    return (unit * (size // len(unit) + 1))[:size]


@pytest.fixture(autouse=True)
def spare() -> Iterator[list[bytearray]]:
    """The buffer that is kept, empty at first."""
    bulk._SPARE.clear()
    yield bulk._SPARE
    bulk._SPARE.clear()


@pytest.fixture
def is_kept() -> bool:
    """Whether this process keeps a buffer at all."""
    return tuning.keep_freed_memory()


class Feeder(asyncio.Transport):
    """A transport whose test says what is read, in which pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.written = bytearray()
        self.is_closed = False
        self.is_paused = False
        self.was_bulk = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def read(self, data: bytes) -> None:
        """Give *data* to whichever protocol it is, as a real transport does."""
        data = memoryview(data)
        while len(data) and not self.is_closed:
            if isinstance(self.protocol, asyncio.BufferedProtocol):
                self.was_bulk = True
                buffer = self.protocol.get_buffer(-1)
                count = min(len(buffer), len(data))
                buffer[:count] = data[:count]
                self.protocol.buffer_updated(count)
                data = data[count:]
            else:
                self.protocol.data_received(bytes(data))
                return

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def get_write_buffer_size(self) -> int:
        return 0


def open_protocol(
    codec: codecs.Codec | None = None, **limits: Any
) -> tuple[ChannelProtocol, Channel, Feeder]:
    """Return a protocol that is connected to a :class:`Feeder`."""
    protocol = ChannelProtocol(
        codec or codecs.MsgPack(), loop=asyncio.get_running_loop(), limits=Limits(**limits)
    )
    feeder = Feeder()
    feeder.protocol = protocol
    protocol.connection_made(feeder)
    assert protocol.channel is not None
    return protocol, protocol.channel, feeder


def request(number: int, content: Any) -> bytes:
    return encode("msgpack", REQUEST, FIRST_ID + number, content)


# -- The parser ------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    sizes=st.lists(
        st.integers(0, 300) | st.integers(BULK_SIZE - 5, 8 * BULK_SIZE) | st.sampled_from(SIZES), max_size=6
    ),
    chunks=st.lists(st.integers(1, 100) | st.integers(1, 300_000), min_size=1, max_size=30),
    spare_size=st.integers(0, 10 * BULK_SIZE),
    limit=st.sampled_from([100, 3 * BULK_SIZE, 2**26]),
)
@example(sizes=[2 * BULK_SIZE], chunks=[BULK_SIZE], spare_size=0, limit=2**26)
@example(sizes=[2 * BULK_SIZE - 4], chunks=[BULK_SIZE], spare_size=0, limit=2**26)
@example(
    sizes=[8 * BULK_SIZE, 5, 8 * BULK_SIZE], chunks=[BULK_SIZE, 7], spare_size=9 * BULK_SIZE, limit=2**26
)
def test_same_payloads_with_and_without_bulk(
    sizes: list[int], chunks: list[int], spare_size: int, limit: int
) -> None:
    """However the bytes are cut, and whatever is read in bulk, the payloads are those of the plain parser."""
    stream = b"".join(frame(pattern(size, seed)) for seed, size in enumerate(sizes))
    expected = FrameParser(limit).feed(stream)
    parser, spare_buffer = FrameParser(limit), bytearray(b"\xff" * spare_size)
    got: list[Any] = []
    pos = turn = 0
    is_bulk = False
    while pos < len(stream):
        # Small pieces all the way would take long; some of them at each place are enough.
        step = chunks[turn % len(chunks)] if turn % 100 < 60 else BULK_SIZE
        piece = stream[pos : pos + step]
        turn += 1
        if is_bulk:
            with parser.get_buffer() as buffer:
                assert len(buffer)
                piece = piece[: len(buffer)]
                buffer[: len(piece)] = piece
            done = parser.buffer_updated(len(piece))
            if done is not None:
                got.append(bytes(done[0][: done[1]]))
                is_bulk = False
                assert parser.unfinished == 0
        else:
            got += parser.feed(piece)
            if parser.is_in_bulk:
                begun = parser.unfinished
                parser.begin_bulk(spare_buffer)
                assert parser.unfinished == begun
                is_bulk = True
        pos += len(piece)
    assert got == expected


@pytest.mark.parametrize("arrived", [BULK_SIZE, BULK_SIZE + 1, 10 * BULK_SIZE])
def test_memory_follows_what_has_arrived(arrived: int) -> None:
    """Of a frame that announces 64 MiB, the buffer has at most GROWTH times the bytes that have come."""
    parser = FrameParser(2**26)
    parser.feed(struct.pack("!L", 2**26) + bytes(arrived - 4))
    assert parser.is_in_bulk
    tracemalloc.start()
    try:
        parser.begin_bulk(bytearray())
        filled = arrived - 4
        assert tracemalloc.get_traced_memory()[0] <= GROWTH * filled + 1000
        assert tracemalloc.get_traced_memory()[1] <= (GROWTH + 1) * filled + 1000
        while filled < 2**22:
            with parser.get_buffer() as buffer:
                count = min(len(buffer), 10_000)
                buffer[:count] = bytes(count)
            assert parser.buffer_updated(count) is None
            filled += count
            assert tracemalloc.get_traced_memory()[0] <= GROWTH * filled + 1000
    finally:
        tracemalloc.stop()
    assert parser.unfinished == filled + 4


def test_many_announced_frames_allocate_nothing() -> None:
    """10,000 connections that announce 64 MiB each, and send a little of it, cost what they have sent."""
    header = struct.pack("!L", 2**26)
    tracemalloc.start()
    try:
        parsers = []
        for _ in range(10_000):
            parser = FrameParser(2**26)
            parser.feed(header + b"12345678")
            assert not parser.is_in_bulk
            parsers.append(parser)
        assert tracemalloc.get_traced_memory()[1] < 10_000 * 1000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limit", [BULK_SIZE, 10 * BULK_SIZE, 10 * BULK_SIZE - 1])
def test_frame_above_the_limit_is_never_read_in_bulk(limit: int) -> None:
    """What is too large is skipped, not read to anywhere."""
    parser = FrameParser(limit)
    stream = frame(bytes(10 * BULK_SIZE))
    parser.feed(stream[: 2 * BULK_SIZE])
    assert parser.is_in_bulk == (limit >= 10 * BULK_SIZE)


def test_bulk_is_only_for_what_is_worth_it() -> None:
    """The rest of a frame is read in bulk only if much of it has come and much is missing."""
    size = 4 * BULK_SIZE
    stream = frame(bytes(size))
    for come in (1, BULK_SIZE - 1, BULK_SIZE, size + 4 - BULK_SIZE, size + 5 - BULK_SIZE, size + 3, size + 4):
        parser = FrameParser(2**26)
        parser.feed(stream[:come])
        assert parser.is_in_bulk == (BULK_SIZE <= come <= size + 4 - BULK_SIZE)


# -- In a connection, fed by hand ------------------------------------------------------------------


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 100) | st.sampled_from(SIZES[:7]), min_size=1, max_size=5),
    chunks=st.lists(st.integers(1, 100_000) | st.just(BULK_SIZE) | st.just(262_144), min_size=1, max_size=10),
)
async def test_any_chunking_gives_the_same_requests(sizes: list[int], chunks: list[int]) -> None:
    """Large and small requests arrive as they were sent, in order, however the transport cuts them."""
    protocol, channel, feeder = open_protocol()
    seen: list[Any] = []
    serve(channel, seen.append)
    contents = [pattern(size, seed) for seed, size in enumerate(sizes)]
    stream = b"".join(request(n, content) for n, content in enumerate(contents))
    pos = turn = 0
    while pos < len(stream):
        step = chunks[turn % len(chunks)] if turn % 100 < 60 else BULK_SIZE
        turn += 1
        feeder.read(stream[pos : pos + step])
        pos += step
        await until(lambda: not feeder.is_paused)
    assert seen == contents
    assert feeder.protocol is protocol
    protocol.connection_lost(None)


async def test_large_frames_are_read_in_bulk(spare: list[bytearray], is_kept: bool) -> None:
    """A large request takes the way that this file is about, and leaves its buffer for the next one."""
    protocol, channel, feeder = open_protocol()
    kept: list[Any] = []
    serve(channel, kept.append)
    for n in range(3):
        stream = request(n, pattern(MIB, n))
        feeder.read(stream[: BULK_SIZE + 10])
        assert isinstance(feeder.protocol, BulkReader)
        assert spare == []
        feeder.read(stream[BULK_SIZE + 10 :])
        assert feeder.protocol is protocol
        assert len(spare) == is_kept
    assert feeder.was_bulk
    # What was handed over is not touched by what comes later.
    assert kept == [pattern(MIB, n) for n in range(3)]
    protocol.connection_lost(None)


async def test_spare_buffer_is_never_shared(spare: list[bytearray]) -> None:
    """Connections that read large frames at the same time never read into the same buffer."""
    ends = [open_protocol() for _ in range(4)]
    seen: list[Any] = []
    for _, channel, _ in ends:
        serve(channel, seen.append)
    for turn in range(3):
        streams = [request(turn, pattern(MIB, 10 * turn + n)) for n in range(4)]
        for start in range(0, len(streams[0]), 90_000):
            for stream, (_, _, feeder) in zip(streams, ends, strict=True):
                feeder.read(stream[start : start + 90_000])
            buffers = [id(p._parser._bulk) for p, _, _ in ends if p._parser._bulk is not None]
            assert len(set(buffers)) == len(buffers)
            assert not {id(buffer) for buffer in spare} & set(buffers)
        assert len(spare) <= 1
        assert seen[4 * turn :] == [pattern(MIB, 10 * turn + n) for n in range(4)]
    for protocol, _, _ in ends:
        protocol.connection_lost(None)


class KeepsViews(codecs.MsgPack):
    """A user's codec that keeps what it is given, without a copy."""

    def decode(self, data: Any) -> Any:
        if len(data) < 1000:
            return super().decode(data)
        return [REQUEST, FIRST_ID, memoryview(data)[-1000:]]


async def test_codec_that_keeps_views_gets_its_own_buffer(spare: list[bytearray]) -> None:
    """A user's codec may hold on to the bytes of a frame: they never change."""
    protocol, channel, feeder = open_protocol(KeepsViews())
    seen: list[Any] = []
    serve(channel, seen.append)
    spare.append(bytearray(4 * MIB))
    for n in range(3):
        stream = request(n, bytes([n]) * MIB)
        for start in range(0, len(stream), 100_000):
            feeder.read(stream[start : start + 100_000])
    assert feeder.was_bulk
    assert [bytes(view) for view in seen] == [bytes([n]) * 1000 for n in range(3)]
    assert len(spare) == 1
    protocol.connection_lost(None)


async def test_nothing_that_was_decoded_refers_to_the_buffer(spare: list[bytearray], is_kept: bool) -> None:
    """Nothing that is decoded is a part of the buffer, be it of a custom type or kept by one."""

    class Keeper:
        def __init__(self, data: Any) -> None:
            self.data = data

    protocol, channel, feeder = open_protocol()
    channel.codec.add_serializer(Keeper, lambda keeper: keeper.data, Keeper)
    contents = [
        {"bytes": pattern(MIB), "text": "x" * MIB},
        [bytearray(pattern(MIB)), memoryview(pattern(MIB)), [pattern(BULK_SIZE)] * 8],
        Keeper(pattern(MIB)),
        [Keeper([pattern(MIB), Keeper(pattern(MIB))])],
        2 ** (8 * 4000),
    ]
    seen: list[Any] = []
    serve(channel, seen.append)
    for n, content in enumerate(contents):
        payload = channel.codec.encode((REQUEST, FIRST_ID + n, [content, bytes(3 * BULK_SIZE)]))
        for start in range(0, len(payload) + 4, 100_000):
            feeder.read(frame(payload)[start : start + 100_000])
        if is_kept:
            assert spare
            before = channel.codec.encode(seen[n])
            spare[0][:] = b"\xff" * len(spare[0])
            spare[0].append(0)  # fails if anything still has a view of it
            del spare[0][-1]
            assert channel.codec.encode(seen[n]) == before
    assert len(seen) == len(contents)
    protocol.connection_lost(None)


@pytest.mark.parametrize(
    "bad", [msgpack.ExtType(5, b"x"), msgpack.ExtType(codecs.EXT_TYPE, b"\x92\xa3a.B\x00")]
)
async def test_large_frame_that_does_not_decode(spare: list[bytearray], bad: Any) -> None:
    """Its request is answered with an error; the next large one is taken as ever."""
    protocol, channel, feeder = open_protocol()
    seen: list[Any] = []
    serve(channel, seen.append)
    for n, content in enumerate([[bad, bytes(MIB)], [bytes(MIB), bad], b"fine" * BULK_SIZE]):
        stream = encode("msgpack", REQUEST, FIRST_ID + n, content)
        for start in range(0, len(stream), 100_000):
            feeder.read(stream[start : start + 100_000])
    assert seen == [b"fine" * BULK_SIZE]
    assert feeder.written.count(b"aiomas_ng.DeserializationError") >= 2
    assert all(len(buffer.copy()) for buffer in spare)
    protocol.connection_lost(None)


async def test_bulk_frame_whose_handler_ends_the_connection(spare: list[bytearray]) -> None:
    """A handler of a large request may close the connection, and nothing that comes behind is taken."""
    protocol, channel, feeder = open_protocol()
    seen: list[Any] = []

    def end(content: Any) -> None:
        seen.append(len(content))
        channel._abort("the end")

    serve(channel, end)
    stream = request(0, bytes(MIB)) + request(1, bytes(MIB))
    for start in range(0, len(stream), 100_000):
        feeder.read(stream[start : start + 100_000])
    assert seen == [MIB]
    protocol.connection_lost(None)


@pytest.mark.parametrize("ending", ["eof", "lost", "broken"])
async def test_connection_that_ends_in_bulk(ending: str, spare: list[bytearray]) -> None:
    """If the connection ends within a large frame, all that waits fails, and says how much had arrived."""
    protocol, channel, feeder = open_protocol()
    spare.append(bytearray(2 * MIB))
    call = channel.send("x")
    feeder.read(request(0, bytes(MIB))[: 5 * BULK_SIZE])
    reader = feeder.protocol
    assert isinstance(reader, BulkReader)
    if ending == "eof":
        assert not reader.eof_received()
    else:
        reader.connection_lost(OSError("gone") if ending == "broken" else None)
    with pytest.raises(ClosedByPeerError, match=rf"middle of a frame \({5 * BULK_SIZE} bytes"):
        await call
    assert spare == []  # it is not given to the next one while this one might still be read into
    protocol.connection_lost(None)


async def test_flow_control_goes_on_in_bulk() -> None:
    """While a large frame is read, the transport still says when the peer does not read, and that matters."""
    protocol, channel, feeder = open_protocol()
    serve(channel, len)
    feeder.read(request(0, bytes(MIB))[: 2 * BULK_SIZE])
    reader = feeder.protocol
    assert isinstance(reader, BulkReader)
    reader.pause_writing()
    assert protocol.is_paused
    feeder.written.clear()
    channel.post("waits")
    protocol.flush()
    assert not feeder.written
    reader.resume_writing()
    assert not protocol.is_paused
    assert b"waits" in feeder.written
    protocol.connection_lost(None)


async def test_kept_buffer_is_bounded(spare: list[bytearray], is_kept: bool) -> None:
    """A buffer that is larger than what the process keeps anyway is not kept; of several only one is."""
    for size, count in ((tuning.KEPT_SIZE // 2, 1), (tuning.KEPT_SIZE + MIB, 0)):
        spare.clear()
        protocol, channel, feeder = open_protocol()
        serve(channel, len)
        feeder.read(struct.pack("!L", size + 10) + b"\x93\x00" + msgpack.packb(FIRST_ID))
        feeder.read(b"\xc6" + struct.pack("!L", size + 10 - 12) + bytes(BULK_SIZE))
        chunk, left = bytes(MIB), size - BULK_SIZE - 2
        while left > 0:
            feeder.read(chunk[:left])
            left -= MIB
        assert feeder.protocol is protocol
        assert len(spare) == count * is_kept
        protocol.connection_lost(None)


# -- Over every transport --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_tls_link(**kwds: Any) -> AsyncIterator[tuple[Channel, Channel]]:
    """Give two ends of a TCP connection with TLS."""
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    accepted: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
    async with await channels.start_server(
        ("127.0.0.1", 0), accepted.set_result, ssl=server_side, **kwds
    ) as server:
        port = urlsplit(server.url).port
        client = await channels.open_connection(("127.0.0.1", port), ssl=client_side, **kwds)
        try:
            yield client, await accepted
        finally:
            await client.close()
            await (await accepted).close()


async def check_large_and_small(client: Channel, server: Channel) -> None:
    """Call with contents of all sizes, at once and one after the other, in both directions."""
    serve(client, lambda content: content)
    serve(server, lambda content: content)
    contents = [pattern(size, seed) for seed, size in enumerate(SIZES)]
    for content in contents:
        assert await client.send(content) == content
    mixed = [item for content in contents for item in (content, 1, [content], {"a": content})]
    results = await asyncio.gather(*map(client.send, mixed), *map(server.send, mixed))
    expected = [tuple(item) if type(item) is list else item for item in mixed]
    assert results == expected * 2


async def test_all_sizes(transport: Any) -> None:
    """Values of any size come back as they were, alone and among others, both ways at once."""
    async with open_link(transport) as (client, server):
        await check_large_and_small(client, server)


async def test_all_sizes_over_tls() -> None:
    """The same with TLS, where the records cut the frames once more."""
    async with open_tls_link() as (client, server):
        await check_large_and_small(client, server)


@pytest.mark.needs("uvloop")
@pytest.mark.parametrize("is_tls", [False, True])
def test_all_sizes_on_uvloop(is_tls: bool) -> None:
    """The same on uvloop, which has its own way to change the protocol of a transport."""

    class Tcp:
        kind = "tcp"

        def address(self) -> Any:
            return ("127.0.0.1", 0)

    async def check() -> None:
        async with open_tls_link() if is_tls else open_link(Tcp()) as (client, server):
            await asyncio.wait_for(check_large_and_small(client, server), 25)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(check())


@pytest.mark.parametrize("codec", [codecs.JSON, KeepsViews])
async def test_other_codecs(transport: Any, codec: Any, spare: list[bytearray]) -> None:
    """Large frames of codecs that are not plain MsgPack are read as well, and touch no spare buffer."""
    kept = bytearray(b"kept" * MIB)
    spare.append(kept)
    async with open_link(transport, codec=codec) as (_, server):
        seen: list[Any] = []
        serve(server, seen.append)
    async with open_link(transport, codec=codecs.JSON) as (client, server):
        serve(server, len)
        assert await asyncio.gather(*[client.send("x" * (MIB + n)) for n in range(3)]) == [
            MIB,
            MIB + 1,
            MIB + 2,
        ]
    assert spare == [kept]
    assert kept == b"kept" * MIB


@pytest.mark.parametrize("cut", [5, BULK_SIZE, 2 * BULK_SIZE, 3 * MIB])
async def test_connection_that_is_cut_in_mid_frame(transport: Any, cut: int) -> None:
    """A reply that is cut off fails its call, wherever; the buffer is not left to anybody by halves."""
    async with open_faulty_link(transport) as (client, server, link):
        serve(server, bytes)
        assert await client.send(MIB) == bytes(MIB)
        assert await client.send(1) == b"\0"
        link.cut_after(cut)
        with pytest.raises(ClosedByPeerError):
            await client.send(4 * MIB)
        link.client.transport = None  # closed by itself, and asyncio's may then not be aborted
    async with open_link(transport) as (client, server):
        serve(server, lambda seed: pattern(MIB, seed))
        assert await client.send(1) == pattern(MIB, 1)


async def test_two_connections_at_once(transport: Any) -> None:
    """Large replies on two connections at the same time do not mix, and neither do those of later ones."""
    async with open_link(transport) as (one, server_one), open_link(transport) as (two, server_two):
        for server in (server_one, server_two):
            serve(server, lambda seed: pattern(3 * MIB, seed))
        for turn in range(3):
            seeds = [10 * turn + n for n in range(4)]
            results = await asyncio.gather(*[(one, two)[seed % 2].send(seed) for seed in seeds])
            assert results == [pattern(3 * MIB, seed) for seed in seeds]


async def test_values_are_not_changed_by_later_frames(transport: Any) -> None:
    """What a call has returned stays as it is, however many large frames follow."""
    async with open_link(transport) as (client, server):
        kept: list[Any] = []
        serve(server, lambda content: kept.append(content) or content)
        results = [await client.send(pattern(MIB, seed)) for seed in range(6)]
        for seed, (result, argument) in enumerate(zip(results, kept, strict=True)):
            assert result == argument == pattern(MIB, seed)


async def test_small_calls_go_on_meanwhile(transport: Any) -> None:
    """While a message of 16 MiB arrives on one connection, calls on another one are answered."""
    async with (
        open_raw_client(transport, greets=True) as (peer, large_server),
        open_link(transport) as (c, s),
    ):
        arrived: list[int] = []
        serve(large_server, lambda content: arrived.append(len(content)))
        serve(s, lambda content: content)
        await c.send(0)
        peer.send_bytes(request(0, bytes(16 * MIB)))
        answered = 0
        while not arrived:
            assert await c.send(answered) == answered
            answered += 1
        # Each read takes what the system holds, which is a part, and in between the others have their turn.
        assert answered >= 2
        assert arrived == [16 * MIB]


async def test_announcements_on_many_connections(transport: Any, spare: list[bytearray]) -> None:
    """Peers that announce large frames and send some 100 KiB of them cost some times that, not 64 MiB."""
    count = 8 if transport.kind != "local" else 20
    async with contextlib.AsyncExitStack() as stack:
        ends = [
            await stack.enter_async_context(open_raw_client(transport, greets=True)) for _ in range(count)
        ]
        come = bytes(2 * BULK_SIZE)
        tracemalloc.start()
        try:
            for peer, _ in ends:
                peer.send_bytes(struct.pack("!L", 2**26) + come)
            await until(lambda: all(server._protocol._parser.unfinished >= len(come) for _, server in ends))
            assert tracemalloc.get_traced_memory()[0] < (GROWTH + 3) * count * len(come) + MIB
        finally:
            tracemalloc.stop()
        for peer, _ in ends:
            peer.abort()


async def test_pauses_of_reading_in_bulk(transport: Any) -> None:
    """A side that stops reading in the middle of a large frame goes on where it was."""
    async with open_link(transport) as (client, server):
        serve(server, lambda content: content)
        await client.send(0)
        call = client.send(pattern(8 * MIB))
        protocol = server._protocol
        await until(lambda: protocol._parser._bulk is not None)
        server.transport.pause_reading()
        for _ in range(5):
            await asyncio.sleep(0)
        assert protocol._parser.unfinished
        server.transport.resume_reading()
        assert await call == pattern(8 * MIB)


async def test_request_too_large_behind_a_large_one(transport: Any) -> None:
    """Frames above the limit between large ones within it are refused one by one."""
    async with open_raw_client(transport, greets=True, limits=Limits(frame_size=2 * MIB)) as (peer, server):
        serve(server, len)
        for n in range(4):
            peer.send_bytes(request(n, bytes(MIB if n % 2 == 0 else 3 * MIB)))
        replies = [await peer.recv_reply(FIRST_ID + n) for n in range(4)]
        assert [reply[0] for reply in replies] == [RESULT, EXCEPTION, RESULT, EXCEPTION]
        assert [reply[2] for reply in replies[::2]] == [MIB, MIB]


@pytest.mark.parametrize("size", [codecs.LARGE - 1, codecs.LARGE, 4 * MIB])
async def test_error_in_a_call_with_large_values(transport: Any, size: int) -> None:
    """A call with large bytes that cannot be encoded leaves nothing behind, and nothing half on the wire."""
    async with open_link(transport) as (client, server):
        serve(server, lambda content: content)
        await client.send(0)
        unsent: Callable[[], int] = client._protocol.get_unsent_size
        for bad in (object(), [object()], "\ud800"):
            with pytest.raises(AiomasError):
                client._request([bytes(size), bad], [bytes(size), bad], "path")
        assert unsent() < 100  # a frame of our own, at most
        assert not client._exchange.calls
        assert await client.send(bytes(size)) == bytes(size)
