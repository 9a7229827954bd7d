"""Framing: any chunking gives the same frames, at a cost in time and memory that follows what has arrived."""

from __future__ import annotations

import itertools
import struct
import time
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiomas_ng._core.framing import HEAD_SIZE, HEADER, FrameParser, Oversized, encode_frame
from aiomas_ng.exceptions import AiomasError, FrameTooLargeError

LARGEST = 2**32 - 1
MIB = 2**20
TIME_LIMIT = 20.0
"""Seconds of processor time that a linear parser needs by far not, and a quadratic one exceeds many times."""

Event = bytes | Oversized

limits = st.integers(1, 3 * HEAD_SIZE)
payloads = st.integers(0, 4 * HEAD_SIZE).map(lambda size: bytes(n % 251 for n in range(size)))
"""Some within the limit and some above, some shorter than the head that is kept and some longer."""


def frame(payload: bytes) -> bytes:
    """Return a frame without any check."""
    return struct.pack(">I", len(payload)) + payload


def parse_at_once(stream: bytes, limit: int) -> tuple[list[Event], bool]:
    """Return the events in *stream*, and whether a frame is unfinished at its end: the naive way."""
    events: list[Event] = []
    while len(stream) >= 4:
        size = int.from_bytes(stream[:4], "big")
        body, rest = stream[4 : 4 + size], stream[4 + size :]
        if size > limit:
            if len(body) < min(size, 64):
                return events, True
            events.append(Oversized(size, body[:64]))
            if len(body) < size:
                return events, True
        elif len(body) < size:
            return events, True
        else:
            events.append(body)
        stream = rest
    return events, bool(stream)


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """Return *stream* in chunks; a place given twice makes an empty one."""
    edges = [0, *sorted(min(place, len(stream)) for place in places), len(stream)]
    return [stream[start:stop] for start, stop in itertools.pairwise(edges)]


def feed_all(parser: FrameParser, chunks: Iterable[bytes]) -> list[Event]:
    return [event for chunk in chunks for event in parser.feed(chunk)]


# -- The same events for any chunking --------------------------------------------------------------


@given(
    frames=st.lists(payloads, max_size=6),
    missing=st.integers(0, 5 * HEAD_SIZE),
    limit=limits,
    places=st.lists(st.integers(0, 8 * HEAD_SIZE), max_size=12),
)
@example(frames=[b""], missing=0, limit=1, places=[0, 1, 2, 3, 4])
@example(frames=[b"ab", b"", b"c"], missing=0, limit=1, places=range(20))
@example(frames=[b"x" * 65, b"y"], missing=0, limit=64, places=[3, 4, 67, 68, 69])
@example(frames=[b"x" * 64, b"y"], missing=0, limit=63, places=[67, 68])
def test_any_chunking_gives_the_same_events(
    frames: list[bytes], missing: int, limit: int, places: Iterable[int]
) -> None:
    """However the bytes of any frames are cut, and wherever they end, the naive parser sees the same."""
    stream = b"".join(map(frame, frames))
    stream = stream[: max(0, len(stream) - missing)]
    events, is_unfinished = parse_at_once(stream, limit)
    for chunks in ([stream], cut(stream, places), cut(stream, range(len(stream)))):
        parser = FrameParser(limit)
        assert feed_all(parser, chunks) == events
        assert bool(parser.unfinished) == is_unfinished


@given(
    stream=st.binary(max_size=400)
    | st.lists(st.sampled_from([0, 0, 0, 1, 2, 5, 64, 65, 255]), max_size=400).map(bytes),
    limit=limits | st.just(LARGEST),
    places=st.lists(st.integers(0, 400), max_size=12),
)
def test_any_bytes_give_the_same_events(stream: bytes, limit: int, places: list[int]) -> None:
    """No bytes at all make the parser raise or disagree with the naive one."""
    parser = FrameParser(limit)
    events, is_unfinished = parse_at_once(stream, limit)
    assert feed_all(parser, cut(stream, places)) == events
    assert bool(parser.unfinished) == is_unfinished


@given(
    frames=st.lists(payloads, max_size=6), limit=limits, places=st.lists(st.integers(0, 1500), max_size=12)
)
def test_each_event_comes_as_soon_as_it_can(frames: list[bytes], limit: int, places: list[int]) -> None:
    """After each chunk there is what the bytes so far contain: nothing waits for the chunk after it."""
    parser, fed, seen = FrameParser(limit), b"", []
    for chunk in cut(b"".join(map(frame, frames)), places):
        fed += chunk
        seen += parser.feed(chunk)
        assert (seen, bool(parser.unfinished)) == parse_at_once(fed, limit)


@given(payload=payloads, limit=limits)
def test_what_is_encoded_is_parsed(payload: bytes, limit: int) -> None:
    """A frame arrives as it was sent, or is not sent at all because it is too large."""
    if len(payload) > limit:
        with pytest.raises(FrameTooLargeError) as caught:
            encode_frame(payload, limit)
        assert (caught.value.size, caught.value.limit) == (len(payload), limit)
        assert f"the encoded message has {len(payload)} bytes, the limit is {limit}" in str(caught.value)
        assert isinstance(caught.value, AiomasError)
        assert isinstance(caught.value, ValueError)
    else:
        assert encode_frame(payload, limit) == frame(payload)
        assert FrameParser(limit).feed(encode_frame(payload, limit)) == [payload]


def test_header_is_four_bytes_big_endian() -> None:
    """The header is that of aiomas, simpy.io and mosaik."""
    assert HEADER.size == 4
    assert encode_frame(b"abc", 3) == b"\x00\x00\x00\x03abc"


@pytest.mark.parametrize("limit", [1, HEAD_SIZE - 1, HEAD_SIZE, HEAD_SIZE + 1])
@pytest.mark.parametrize("over", [1, 2, HEAD_SIZE, 10 * HEAD_SIZE])
def test_frames_after_one_that_is_too_large_arrive(limit: int, over: int) -> None:
    """A frame above the limit costs itself alone, also where the limit is smaller than what is kept of it."""
    big = bytes(n % 251 for n in range(limit + over))
    stream = frame(b"1") + frame(big) + frame(big) + frame(b"2") + frame(b"")
    head = big[: min(len(big), HEAD_SIZE)]
    expected = [b"1", Oversized(len(big), head), Oversized(len(big), head), b"2", b""]
    for step in (1, 2, 3, 5, HEAD_SIZE, HEAD_SIZE + 4, len(stream)):
        assert feed_all(FrameParser(limit), cut(stream, range(0, len(stream), step))) == expected


def test_empty_chunks_change_nothing() -> None:
    """An empty chunk gives nothing, in whatever state the parser is."""
    parser = FrameParser(HEAD_SIZE)
    stream = frame(b"x" * 5) + frame(b"y" * 100)
    for n in range(len(stream)):
        before = parser.unfinished
        assert parser.feed(b"") == []
        assert parser.unfinished == before
        parser.feed(stream[n : n + 1])
    assert parser.feed(b"") == []
    assert parser.unfinished == 0


def test_rest_of_an_oversized_frame_is_not_taken_for_frames() -> None:
    """A peer cannot smuggle frames into the payload of one that is skipped."""
    inner = frame(b"evil") * 100
    stream = frame(inner) + frame(b"good")
    for step in (1, 7, 68, 69, len(stream)):
        events = feed_all(FrameParser(10), cut(stream, range(0, len(stream), step)))
        assert events == [Oversized(len(inner), inner[:HEAD_SIZE]), b"good"]


def test_largest_length_is_no_special_case() -> None:
    """A length of 2**32 - 1 is a frame that has begun, or one that is too large, like any other."""
    parser = FrameParser(LARGEST)
    assert parser.feed(b"\xff\xff\xff\xff" + bytes(100)) == []
    assert parser.unfinished
    parser = FrameParser(LARGEST - 1)
    assert parser.feed(b"\xff\xff\xff\xff" + bytes(HEAD_SIZE)) == [Oversized(LARGEST, bytes(HEAD_SIZE))]
    assert parser.unfinished == LARGEST - HEAD_SIZE


# -- Linear in time --------------------------------------------------------------------------------


class CountedBytes(bytes):
    """Bytes that count how many of them were copied by slicing."""

    copied = 0

    def __getitem__(self, key):  # type: ignore[no-untyped-def]  # as in bytes
        part = super().__getitem__(key)
        self.copied += len(part)
        return part


@pytest.mark.parametrize("rest", [b"", frame(b"abc")[:-1]], ids=["complete", "cut off"])
def test_many_tiny_frames_in_one_chunk_are_copied_once(rest: bytes) -> None:
    """Of 200,000 frames in one chunk no byte is copied twice."""
    begun = frame(b"0" * 10)
    for prefix, start in (b"", b""), (begun[:7], begun[7:]):
        data = CountedBytes(start + frame(b"xy") * 200_000 + rest)
        parser = FrameParser(100)
        parser.feed(prefix)
        started = time.process_time()
        frames = parser.feed(data)
        assert time.process_time() - started < TIME_LIMIT
        assert len(frames) == 200_000 + bool(prefix)
        assert data.copied <= len(data)
        assert parser.unfinished == len(rest)


@pytest.mark.parametrize("size", [1, 1024], ids=["bytes", "KiB"])
@pytest.mark.parametrize("is_oversized", [False, True])
def test_large_frame_in_small_chunks_takes_linear_time(size: int, is_oversized: bool) -> None:
    """A frame of 32 MiB in chunks of 1 KiB, and one of 512 KiB byte by byte, are no work to speak of."""
    count = 32 * 1024 if size > 1 else 512 * 1024
    chunk = bytes(size)
    parser = FrameParser(100 if is_oversized else LARGEST)
    started = time.process_time()
    assert parser.feed(struct.pack(">I", count * size)) == []
    events = feed_all(parser, (chunk for _ in range(count)))
    assert time.process_time() - started < TIME_LIMIT
    assert events == [Oversized(count * size, bytes(HEAD_SIZE)) if is_oversized else bytes(count * size)]
    assert parser.unfinished == 0


def test_many_frames_cut_in_their_headers_take_linear_time() -> None:
    """Frames that are all cut in the same unlucky place cost no more than others."""
    stream = frame(b"xy") * 200_000
    parser = FrameParser(100)
    started = time.process_time()
    frames = feed_all(parser, cut(stream, range(3, len(stream), 6)))
    assert time.process_time() - started < TIME_LIMIT
    assert frames == [b"xy"] * 200_000


# -- Memory follows what has arrived ---------------------------------------------------------------


def peak_of(parser: FrameParser, chunks: Iterable[bytes]) -> int:
    """Return the most bytes that were allocated at a time while *chunks* were parsed."""
    tracemalloc.start()
    try:
        for chunk in chunks:
            parser.feed(chunk)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limit", [100, LARGEST])
def test_announced_bytes_take_no_memory(limit: int) -> None:
    """A peer that announces 4 GiB and sends a little makes us hold a little."""
    chunk = bytes(100)
    assert peak_of(FrameParser(limit), [b"\xff\xff\xff\xff", *[chunk] * 10]) < 20_000


def test_memory_is_proportional_to_what_has_arrived() -> None:
    """Of a frame that comes slowly we hold what has come, and half as much again at most."""
    chunk = bytes(64 * 1024)
    for count in (4, 16, 64):
        parser = FrameParser(LARGEST)
        assert peak_of(parser, [b"\xff\xff\xff\xff", *[chunk] * count]) < 1.5 * count * len(chunk) + 100_000
        assert parser.unfinished == 4 + count * len(chunk)


@pytest.mark.parametrize("size", [1000, 64 * 1024])
def test_oversized_frame_takes_no_memory(size: int) -> None:
    """A frame above the limit is dropped while it comes, however large it is."""
    count = 64 * MIB // size
    chunk = bytes(size)
    header = struct.pack(">I", count * size)
    peak = peak_of(FrameParser(MIB), (header if n == 0 else chunk for n in range(count + 1)))
    assert peak < 20_000 + 2 * size


def test_oversized_frame_in_one_chunk_is_not_copied() -> None:
    """Also of a chunk that contains all of a frame above the limit, the head is kept alone."""
    chunk = frame(bytes(8 * MIB)) + frame(b"next")
    assert peak_of(FrameParser(MIB), [chunk]) < 20_000


def test_nothing_is_held_after_a_frame() -> None:
    """Once a large frame was handed over, the parser's own memory is free again."""
    parser = FrameParser(LARGEST)
    chunk = bytes(MIB)
    tracemalloc.start()
    try:
        parser.feed(struct.pack(">I", 8 * MIB))
        for _ in range(8):
            parser.feed(chunk)
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
