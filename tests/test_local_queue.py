"""The transport inside one process behaves like TCP, except that it is deterministic."""

from __future__ import annotations

import array
import asyncio
import contextvars
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomas_ng import local_queue
from aiomas_ng.exceptions import AddressInUseError, AiomasError, ConnectError
from aiomas_ng.local_queue import (
    LocalQueueTransport,
    create_connection,
    create_pair,
    create_server,
    get_queue,
)

LARGE = bytes(range(256)) * 4096
"""One MiB, in which every piece of 256 KiB can be told from a shifted one."""


class Recorder(asyncio.Protocol):
    """Writes down what happens to it; data in a row counts as one event, as TCP may cut it anywhere."""

    def __init__(self, *, stays: bool = False, greeting: bytes = b"") -> None:
        self.stays = stays
        self.greeting = greeting
        self.events: list[tuple[Any, ...]] = []
        self.pieces: list[bytes] = []
        self.on_data: Callable[[bytes], None] | None = None
        self.on_eof: Callable[[], None] | None = None
        self._changed = asyncio.Event()
        self.transport: Any = None

    def record(self, *event: Any) -> None:
        self.events.append(event)
        self._changed.set()

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    async def until(self, is_reached: Callable[[], Any]) -> None:
        """Wait until an event makes a condition true."""
        while not is_reached():
            self._changed.clear()
            await self._changed.wait()

    async def until_data(self, size: int) -> None:
        await self.until(lambda: len(self.data) >= size)

    async def until_event(self, name: str) -> None:
        await self.until(lambda: name in [event[0] for event in self.events])

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.record("made")
        if self.greeting:
            transport.write(self.greeting)

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        if self.events[-1][0] == "data":
            data = self.events.pop()[1] + data
        self.record("data", data)
        if self.on_data is not None:
            self.on_data(data)

    def eof_received(self) -> bool:
        self.record("eof")
        if self.on_eof is not None:
            self.on_eof()
        return self.stays

    def pause_writing(self) -> None:
        self.record("pause")

    def resume_writing(self) -> None:
        self.record("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.record("lost", exc and type(exc))


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):
    """The same with a buffer of its own, whose size it changes after each piece."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._buffer = bytearray(100)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._buffer[:nbytes])
        self._buffer.extend(bytes(len(self._buffer) % 5000))
        self.data_received(data)


async def join(kind: str, a: Recorder, b: Recorder) -> None:
    """Connect *a* to *b*, which is the server's side, and wait until both know it."""
    loop = asyncio.get_running_loop()
    if kind == "tcp":
        server: asyncio.AbstractServer = await loop.create_server(lambda: b, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()  # type: ignore[attr-defined]  # this one has sockets
        await loop.create_connection(lambda: a, *address)
        await b.until_event("made")
        server.close()
    elif kind == "pair":
        await create_pair(lambda: a, lambda: b)
    else:
        lq = get_queue("scenario")
        server = await create_server(lambda: b, lq)
        await create_connection(lambda: a, lq)
        server.close()


async def play(kind: str, scenario: Callable[[Recorder, Recorder], Awaitable[None]], **options: Any) -> Any:
    """Run a scenario on one transport until both sides are lost; return what both sides recorded.

    Flow control counts only where it is the subject: TCP's buffers are larger than ours.
    """
    protocol = options.pop("protocol", Recorder)
    a, b = protocol(**options), protocol(**options)
    await join(kind, a, b)
    await scenario(a, b)
    for side in (a, b):
        await side.until_event("lost")
    ignored = () if scenario is pause_writing else (("pause",), ("resume",))
    return [[event for event in side.events if event not in ignored] for side in (a, b)]


# -- Like TCP: the same scenario on both, which must record the same ---------------------------------


async def echo(a: Recorder, b: Recorder) -> None:
    b.on_data = lambda data: b.transport.write(b"answer")
    a.transport.write(b"question")
    await a.until(lambda: a.data.endswith(b"answer"))
    a.transport.close()
    a.record("state", a.transport.is_closing(), a.transport.is_reading())
    a.transport.close()
    a.transport.write(b"too late")


async def close_by_server(a: Recorder, b: Recorder) -> None:
    b.transport.write(b"bye")
    b.transport.close()


async def flush_before_close(a: Recorder, b: Recorder) -> None:
    # Not at the end: an empty last piece hangs asyncio's own TCP transport on Python 3.12.1 and 3.13.0.
    a.transport.writelines([b"", LARGE, bytearray(b"x"), memoryview(b"y")])
    a.transport.close()
    await b.until_event("lost")
    assert b.data == LARGE + b"xy"


async def write_eof(a: Recorder, b: Recorder) -> None:
    a.record("state", a.transport.can_write_eof())
    a.transport.write(b"question")
    a.transport.write_eof()
    a.transport.write_eof()
    with pytest.raises(RuntimeError, match=r"write_eof"):
        a.transport.write(b"more")
    await b.until_event("eof")
    # Does nothing where eof_received() was false: then the transport closes by itself.
    if b.stays:
        b.transport.write(b"answer")
        b.transport.close()
        await a.until_event("eof")
        a.transport.close()


async def answer_within_eof(a: Recorder, b: Recorder) -> None:
    b.on_eof = lambda: b.transport.write(LARGE)
    a.transport.write_eof()
    await a.until_data(len(LARGE))
    assert a.data == LARGE
    a.transport.close()
    b.transport.close()


async def eof_from_both(a: Recorder, b: Recorder) -> None:
    a.transport.write(b"a")
    b.transport.write(b"b")
    a.transport.write_eof()
    b.transport.write_eof()
    await a.until_event("eof")
    await b.until_event("eof")
    a.transport.close()
    b.transport.close()


async def pause_reading(a: Recorder, b: Recorder) -> None:
    b.transport.pause_reading()
    b.transport.pause_reading()
    b.record("state", b.transport.is_reading())
    a.transport.write(b"held back")
    a.transport.write_eof()
    # What b still sends shows that time passes while it reads nothing.
    b.transport.write(b"meanwhile")
    await a.until_data(9)
    b.record("resuming")
    b.transport.resume_reading()
    b.transport.resume_reading()
    b.record("state", b.transport.is_reading())
    await b.until_event("eof")
    a.transport.close()
    b.transport.close()


async def pause_writing(a: Recorder, b: Recorder) -> None:
    b.transport.pause_reading()
    a.transport.set_write_buffer_limits(high=1000, low=0)
    a.record("state", a.transport.get_write_buffer_limits())
    size = 0
    while ("pause",) not in a.events:  # the system's buffers take some MiB before
        a.transport.write(LARGE)
        size += len(LARGE)
    assert a.transport.get_write_buffer_size() > 1000
    b.transport.resume_reading()
    await a.until_event("resume")
    await b.until_data(size)
    a.transport.close()
    await b.until_event("lost")
    b.events = [event[:1] if event[0] == "data" else event for event in b.events]


async def switch_protocol(a: Recorder, b: Recorder) -> None:
    second = Recorder()

    def switch(data: bytes) -> None:
        b.transport.set_protocol(second)
        assert b.transport.get_protocol() is second
        second.events = b.events
        second.record("switched")
        b.transport.write(b"ready")

    b.on_data = switch
    a.transport.write(b"old")
    await a.until_data(5)
    a.transport.write(b"new")
    await second.until_data(3)
    a.transport.close()
    await second.until_event("lost")


def reset_on_close(*sides: Recorder) -> None:
    """Make TCP say that it was aborted, as our transport always does."""
    for side in sides:
        sock: socket.socket | None = side.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def abort(a: Recorder, b: Recorder) -> None:
    reset_on_close(a)
    a.transport.abort()
    a.transport.abort()
    a.transport.close()
    a.record("state", a.transport.is_closing())


async def abort_while_closing(a: Recorder, b: Recorder) -> None:
    reset_on_close(a)
    b.transport.pause_reading()
    while a.transport.get_write_buffer_size() < 1_000_000:
        a.transport.write(LARGE)
    a.transport.close()
    a.transport.abort()
    await a.until_event("lost")
    # Over TCP a side that reads nothing does not notice; ours is told at once.
    b.transport.abort()
    await b.until_event("lost")
    a.events = [event for event in a.events if event[0] == "lost"]
    b.events = [event[:1] for event in b.events]


async def fail_in_data_received(a: Recorder, b: Recorder) -> None:
    def fail(data: bytes) -> None:
        raise ZeroDivisionError

    reset_on_close(b)
    b.on_data = fail
    a.transport.write(b"poison")


async def fail_in_eof_received(a: Recorder, b: Recorder) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    reset_on_close(b)
    b.on_eof = fail
    a.transport.write_eof()


SCENARIOS: list[tuple[Callable[[Recorder, Recorder], Awaitable[None]], dict[str, Any]]] = [
    (echo, {}),
    (echo, {"greeting": b"welcome"}),
    (close_by_server, {}),
    (flush_before_close, {}),
    (write_eof, {}),
    (write_eof, {"stays": True}),
    (answer_within_eof, {}),
    (answer_within_eof, {"stays": True}),
    (eof_from_both, {"stays": True}),
    (eof_from_both, {}),
    (pause_reading, {"stays": True}),
    (pause_writing, {}),
    (switch_protocol, {}),
    (abort, {}),
    (abort_while_closing, {}),
]
FAILURES = [fail_in_data_received, fail_in_eof_received]


@pytest.mark.parametrize("protocol", [Recorder, BufferedRecorder])
@pytest.mark.parametrize("kind", ["local", "pair"])
@pytest.mark.parametrize(
    ("scenario", "options"), SCENARIOS, ids=[f"{s.__name__}-{'-'.join(o)}" for s, o in SCENARIOS]
)
async def test_events_are_those_of_tcp(
    scenario: Any, options: dict[str, Any], kind: str, protocol: Any
) -> None:
    """Protocols see the same events, in the same order, as over a TCP connection."""
    ours = await play(kind, scenario, protocol=protocol, **options)
    assert ours == await play("tcp", scenario, protocol=protocol, **options)
    for events in ours:
        names = [event[0] for event in events]
        assert names.count("lost") == 1
        assert names.count("made") <= 1


@pytest.mark.parametrize("protocol", [Recorder, BufferedRecorder])
@pytest.mark.parametrize("scenario", FAILURES)
async def test_failing_protocol_is_treated_as_by_tcp(
    scenario: Any, protocol: Any, asyncio_errors: list[str]
) -> None:
    """A protocol that raises is reported to the loop and loses its connection, with its own exception."""
    ours = await play("local", scenario, protocol=protocol)
    reports = len(asyncio_errors)
    assert ours == await play("tcp", scenario, protocol=protocol)
    assert ours[0][-1] == ("lost", ConnectionResetError)
    assert ours[1][-1] == ("lost", ZeroDivisionError)
    assert reports == 1
    assert "ZeroDivisionError" in asyncio_errors[0]
    asyncio_errors.clear()


# -- Deterministic ----------------------------------------------------------------------------------


async def turn() -> None:
    """Let the loop make one turn."""
    await asyncio.sleep(0)


class Logger(Recorder):
    """Writes its pieces to a log that it shares with others."""

    def __init__(self, name: int, log: list[tuple[int, bytes]]) -> None:
        super().__init__()
        self._name, self._log = name, log

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._log.append((self._name, data))


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=5)), max_size=8), max_size=6
    )
)
async def test_data_arrives_in_the_order_of_the_writes(turns: list[list[tuple[int, bytes]]]) -> None:
    """Over all connections, the order of the first writes of a turn is the order of the deliveries."""
    log: list[tuple[int, bytes]] = []
    pairs = [await create_pair(Recorder, lambda name=name: Logger(name, log)) for name in range(4)]  # type: ignore[misc]
    for writes in turns:
        expected: dict[int, bytes] = {}
        for name, data in writes:
            pairs[name][0][0].write(data)
            expected[name] = expected.get(name, b"") + data
        assert not log, "nothing is delivered within write()"
        await turn()
        assert log == list(expected.items())
        log.clear()
    for (transport, a), (_, b) in pairs:
        transport.close()
        await a.until_event("lost")
        await b.until_event("lost")


OPERATION = st.one_of(
    st.tuples(st.just("write"), st.binary(max_size=3).map(lambda data: data * 2000)),
    st.tuples(st.sampled_from(["write_eof", "pause_reading", "resume_reading", "close", "abort", "turn"])),
)


@given(
    st.lists(st.tuples(st.integers(0, 1), OPERATION), max_size=30),
    st.tuples(st.booleans(), st.booleans()),
    st.tuples(*[st.sampled_from([Recorder, BufferedRecorder])] * 2),
)
async def test_any_use_keeps_the_rules(
    operations: list[tuple[int, Any]], stays: tuple[bool, bool], protocols: tuple[Any, Any]
) -> None:
    """Whatever both sides do: a prefix of what was sent arrives, all of it if EOF does, in due order."""
    sides: list[Recorder] = [protocols[n](stays=stays[n]) for n in (0, 1)]
    sent = [b"", b""]
    ended = [False, False]
    await create_pair(lambda: sides[0], lambda: sides[1])
    for side in sides:
        side.transport.set_write_buffer_limits(high=5000)
    for n, (name, *args) in operations:
        transport = sides[n].transport
        if name == "turn":
            await turn()
            continue
        if name == "write":
            if ended[n]:
                continue
            if not transport.is_closing():
                sent[n] += args[0]
        ended[n] = ended[n] or name == "write_eof"
        getattr(transport, name)(*args)
    for side in sides:
        side.transport.resume_reading()
        side.transport.close()
    for n, side in enumerate(sides):
        await side.until_event("lost")
        names = [event[0] for event in side.events]
        assert names[0] == "made"
        assert names[-1] == "lost"
        assert names.count("made") == names.count("lost") == 1
        assert names.count("eof") <= 1
        assert sent[1 - n].startswith(side.data)
        if "eof" in names:
            assert side.data == sent[1 - n]
            assert "data" not in names[names.index("eof") :]
        flow = [name for name in names if name in ("pause", "resume")]
        assert flow == ["pause", "resume"] * (len(flow) // 2) + ["pause"] * (len(flow) % 2)
    await turn()
    assert [side.events[-1][0] for side in sides] == ["lost", "lost"]


async def test_large_data_comes_in_pieces_of_bounded_size() -> None:
    """A protocol is given 256 KiB at most, one piece in each turn of the loop."""
    a, b = Recorder(), Recorder()
    await join("pair", a, b)
    a.transport.write(LARGE[:-1])
    for count in range(1, 5):
        await turn()
        assert len(b.pieces) == count
    assert [len(piece) for piece in b.pieces] == [256 * 1024] * 3 + [256 * 1024 - 1]
    assert b.data == LARGE[:-1]
    a.transport.abort()


async def test_mutable_data_is_copied() -> None:
    """A buffer that is changed after write() does not change what was written."""
    a, b = Recorder(), Recorder()
    await join("pair", a, b)
    buffer = bytearray(b"before")
    a.transport.write(buffer)
    a.transport.write(memoryview(buffer))
    buffer[:] = b"behind"
    await b.until_data(12)
    assert b.data == b"beforebefore"
    a.transport.abort()


@pytest.mark.parametrize("data", ["text", 3, None, array.array("b", [1])])
async def test_only_bytes_can_be_written(data: Any) -> None:
    """What asyncio's transports refuse is refused here as well."""
    a, b = Recorder(), Recorder()
    await join("pair", a, b)
    with pytest.raises(TypeError, match=type(data).__name__):
        a.transport.write(data)
    a.transport.abort()


async def test_protocols_keep_their_own_context() -> None:
    """A context variable of the writer is not seen by the reader, as little as over a network."""
    variable = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []
    variable.set("server")
    a, b = Recorder(), Recorder()
    b.on_data = lambda data: seen.append(variable.get())
    lq = get_queue("context")
    server = await create_server(lambda: b, lq)
    variable.set("client")
    await create_connection(lambda: a, lq)
    variable.set("writer")
    a.transport.write(b"x")
    await b.until_data(1)
    a.on_data = lambda data: seen.append(variable.get())
    b.transport.write(b"x")
    await a.until_data(1)
    assert seen == ["server", "client"]
    server.close()
    a.transport.abort()


# -- Flow control -----------------------------------------------------------------------------------


async def test_default_limits_of_the_write_buffer() -> None:
    """More than 64 KiB pause the writer, 16 KiB let it go on; what counts is what the peer has not taken."""
    a, b = Recorder(), Recorder()
    await join("pair", a, b)
    assert a.transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
    b.transport.pause_reading()
    a.transport.write(bytes(64 * 1024))
    assert a.events == [("made",)]
    a.transport.write(b"x")
    assert a.events == [("made",), ("pause",)]
    assert a.transport.get_write_buffer_size() == 64 * 1024 + 1
    b.transport.resume_reading()
    await a.until_event("resume")
    assert a.transport.get_write_buffer_size() == 0
    a.transport.abort()


async def test_limits_of_the_write_buffer_can_be_set() -> None:
    """One limit follows from the other, nonsense is refused, and lower limits hold at once."""
    a, b = Recorder(), Recorder()
    await join("pair", a, b)
    transport = a.transport
    transport.set_write_buffer_limits(low=100)
    assert transport.get_write_buffer_limits() == (100, 400)
    transport.set_write_buffer_limits(high=100)
    assert transport.get_write_buffer_limits() == (25, 100)
    for limits in ({"high": 1, "low": 2}, {"low": -1}):
        with pytest.raises(ValueError, match="high >= low >= 0"):
            transport.set_write_buffer_limits(**limits)
    transport.write(bytes(60))
    assert ("pause",) not in a.events
    transport.set_write_buffer_limits(high=50)
    assert ("pause",) in a.events
    transport.abort()


async def test_writer_resumes_when_the_peer_closes_without_reading() -> None:
    """A side that reads only when it can write is not stuck if its peer leaves."""
    a, b = Recorder(), Recorder()
    await join("pair", a, b)
    a.transport.pause_reading()
    b.transport.pause_reading()
    a.transport.write(LARGE)
    b.transport.close()
    await a.until_event("resume")
    a.transport.write(LARGE)
    assert a.transport.get_write_buffer_size() == 0
    a.transport.resume_reading()
    await a.until_event("lost")
    assert a.events == [("made",), ("pause",), ("resume",), ("eof",), ("lost", None)]


async def test_writer_that_writes_more_is_not_resumed() -> None:
    """Between reading and resume_writing() the buffer can fill again; then the pause goes on."""
    a, b = Recorder(), Recorder()
    await join("pair", a, b)

    def write_more(data: bytes) -> None:
        b.on_data = None
        asyncio.get_running_loop().call_soon(a.transport.write, LARGE)

    b.on_data = write_more
    a.transport.write(LARGE[: 256 * 1024])
    await b.until_data(256 * 1024 + len(LARGE))
    await a.until_event("resume")
    assert a.events == [("made",), ("pause",), ("resume",)]
    a.transport.abort()


@pytest.mark.parametrize("method", ["pause_writing", "resume_writing"])
async def test_failing_flow_control_is_reported(method: str, asyncio_errors: list[str]) -> None:
    """A protocol whose pause_writing() or resume_writing() raises is reported, and the connection goes on."""

    class Failing(Recorder):
        pass

    def fail(self: Recorder) -> None:
        self.record(method)
        raise ZeroDivisionError

    setattr(Failing, method, fail)
    a, b = Failing(), Recorder()
    await join("pair", a, b)
    a.transport.write(LARGE)
    await b.until_data(len(LARGE))
    await a.until(lambda: len(a.events) == 3)
    assert len(asyncio_errors) == 1
    assert f"protocol.{method}() failed" in asyncio_errors[0]
    asyncio_errors.clear()
    a.transport.abort()


# -- End of a connection ----------------------------------------------------------------------------


async def test_closing_waits_for_a_peer_that_does_not_read() -> None:
    """close() keeps what was written until the peer takes it; abort() ends the wait."""
    a, b = Recorder(), Recorder()
    await join("pair", a, b)
    b.transport.pause_reading()
    a.transport.write(b"x")
    a.transport.close()
    for _ in range(5):
        await turn()
    assert a.events == b.events == [("made",)]
    a.transport.abort()
    await b.until_event("lost")
    assert a.events[1:] == [("lost", None)]
    assert b.events[1:] == [("lost", ConnectionResetError)]


async def test_data_for_a_closing_side_is_dropped() -> None:
    """What is sent to a side that closes does not arrive, and does not pause the sender."""
    a, b = Recorder(), Recorder(stays=True)
    await join("pair", a, b)
    b.transport.write(b"on its way")
    a.transport.close()
    b.transport.write(LARGE)
    await b.until_event("lost")
    assert a.events == [("made",), ("lost", None)]
    assert b.events == [("made",), ("eof",), ("lost", None)]


async def test_close_after_write_eof_ends_both_sides() -> None:
    """A side that stays after EOF is lost when the other one closes for good."""
    a, b = Recorder(), Recorder(stays=True)
    await join("pair", a, b)
    a.transport.write_eof()
    await b.until_event("eof")
    a.transport.close()
    await b.until_event("lost")
    assert b.events == [("made",), ("eof",), ("lost", None)]


async def test_writes_after_close_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The first five writes after close() are ignored, further ones as well, but logged."""
    a, b = Recorder(), Recorder()
    await join("local", a, b)
    a.transport.close()
    with caplog.at_level(logging.WARNING, "aiomas_ng.local_queue"):
        for _ in range(5):
            a.transport.write(b"x")
        assert not caplog.records
        a.transport.write(b"x")
    assert [record.getMessage() for record in caplog.records] == [
        "write() on the closed connection to LocalQueue('scenario')"
    ]
    await b.until_event("lost")


async def test_failing_connection_lost_does_not_harm_the_peer(asyncio_errors: list[str]) -> None:
    """If connection_lost() raises, the loop reports it, and both sides are still told once."""

    class Failing(Recorder):
        def connection_lost(self, exc: BaseException | None) -> None:
            super().connection_lost(exc)
            raise ZeroDivisionError

    a, b = Failing(), Failing()
    await join("pair", a, b)
    a.transport.close()
    await b.until_event("lost")
    assert a.events[1:] == [("lost", None)]
    assert b.events[1:] == [("eof",), ("lost", None)]
    assert len(asyncio_errors) == 2
    asyncio_errors.clear()


@pytest.mark.parametrize("method", ["connection_made", "get_buffer", "empty_buffer"])
async def test_failing_protocol_loses_its_connection_only(method: str, asyncio_errors: list[str]) -> None:
    """Other methods that raise are reported as well; other connections go on."""

    class Failing(BufferedRecorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if method == "connection_made":
                raise ZeroDivisionError

        def get_buffer(self, sizehint: int) -> bytearray:
            if method == "empty_buffer":
                return bytearray()
            raise ZeroDivisionError

    other = Recorder(), Recorder()
    await join("pair", *other)
    a, b = Recorder(), Failing()
    await join("pair", a, b)
    a.transport.write(b"x")
    await a.until_event("lost")
    await b.until_event("lost")
    assert a.events[-1] == ("lost", ConnectionResetError)
    assert b.events[-1] == ("lost", RuntimeError if method == "empty_buffer" else ZeroDivisionError)
    assert len(asyncio_errors) == 1
    asyncio_errors.clear()
    other[0].transport.write(b"well")
    await other[1].until_data(4)
    other[0].transport.abort()


async def test_get_buffer_may_close_the_transport() -> None:
    """A protocol that aborts instead of giving a buffer is not told about data any more."""

    class Closing(BufferedRecorder):
        def get_buffer(self, sizehint: int) -> bytearray:
            self.transport.abort()
            return super().get_buffer(sizehint)

    a, b = Recorder(), Closing()
    await join("pair", a, b)
    a.transport.write(b"x")
    await b.until_event("lost")
    assert b.events == [("made",), ("lost", None)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("place", ["made", "data", "pause"])
def test_interrupts_pass_through(error: type[BaseException], place: str) -> None:
    """What ends the program is neither swallowed nor reported as a fault of the protocol."""

    class Interrupted(Recorder):
        def record(self, *event: Any) -> None:
            super().record(*event)
            if event[0] == place:
                raise error

    async def main() -> None:
        a, b = Interrupted(), Interrupted()
        await join("pair", a, b)
        a.transport.write(LARGE)
        await b.until_event("lost")

    loop = asyncio.new_event_loop()
    task = loop.create_task(main())
    with pytest.raises(error):
        loop.run_until_complete(task)
    task.cancel()
    while not task.done():
        try:
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        except error:
            continue
    assert task.cancelled() or isinstance(task.exception(), error)
    loop.close()


def test_transports_outlive_their_loop() -> None:
    """Closing a transport whose loop is closed already is no error; nobody is told."""
    a, b = Recorder(), Recorder()
    asyncio.run(join("pair", a, b))
    a.transport.close()
    b.transport.abort()
    assert a.transport.is_closing()
    assert b.transport.is_closing()
    assert a.events == b.events == [("made",)]


# -- Queues -----------------------------------------------------------------------------------------


def test_queues_are_cached_by_id() -> None:
    """The same id gives the same queue, until the cache is cleared."""
    lq = get_queue("spam")
    assert get_queue("spam") is lq
    assert get_queue("eggs") is not lq
    assert len({lq, get_queue("spam"), get_queue("eggs")}) == 2
    local_queue.clear_queue_cache()
    assert get_queue("spam") is not lq
    assert get_queue("spam") != lq


@pytest.mark.parametrize("queue_id", [b"spam", 3, None, "", "a/b", "/"])
def test_queue_ids_are_checked(queue_id: Any) -> None:
    """An id is a string without a slash, and not empty."""
    with pytest.raises(ValueError, match="id of a queue"):
        get_queue(queue_id)


async def test_queue_describes_itself() -> None:
    """str() of a queue is what programs log; id and server can be read."""
    lq = get_queue("spam")
    assert str(lq) == "LocalQueue('spam')"
    assert lq.queue_id == "spam"
    assert lq.server is None
    assert "'spam', no server" in repr(lq)
    server = await create_server(Recorder, lq)
    assert lq.server is server
    assert "'spam', has a server" in repr(lq)
    server.close()


# -- Servers and connecting -------------------------------------------------------------------------


async def test_connecting_needs_a_server() -> None:
    """Without a server, or after it was closed, the connection is refused."""
    lq = get_queue("spam")
    with pytest.raises(ConnectError, match=r"cannot connect to LocalQueue\('spam'\): no server"):
        await create_connection(Recorder, lq)
    server = await create_server(Recorder, lq)
    server.close()
    with pytest.raises(ConnectionRefusedError):
        await create_connection(Recorder, lq)


async def test_both_sides_are_made_when_connecting_returns() -> None:
    """Server first, then client, both before create_connection() returns, both with all extra information."""
    order: list[str] = []

    class Ordered(Recorder):
        def __init__(self, name: str) -> None:
            super().__init__()
            self._name = name

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            order.append(self._name)

    a, b = Ordered("client"), Ordered("server")
    lq = get_queue("spam")
    server = await create_server(lambda: b, lq)
    transport, protocol = await create_connection(lambda: a, lq)
    assert order == ["server", "client"]
    assert (transport, protocol) == (a.transport, a)
    assert isinstance(transport, LocalQueueTransport)
    for side in (a, b):
        assert side.transport.get_protocol() is side
        assert side.transport.get_extra_info("peername") == "LocalQueue('spam')"
        assert side.transport.get_extra_info("sockname") == "LocalQueue('spam')"
        assert side.transport.get_extra_info("local_queue") is lq
        assert side.transport.get_extra_info("nothing", "default") == "default"
    assert repr(transport) == "<LocalQueueTransport LocalQueue('spam') open>"
    b.transport.pause_reading()
    transport.write(b"x")
    transport.close()
    assert repr(transport) == "<LocalQueueTransport LocalQueue('spam') closing>"
    transport.abort()
    assert repr(transport) == "<LocalQueueTransport LocalQueue('spam') closed>"
    server.close()


async def test_pair_has_names() -> None:
    """The name of each side of a pair is its sockname and the peername of the other."""
    (transport_a, a), (transport_b, b) = await create_pair(Recorder, Recorder, names=("left", "right"))
    assert (transport_a.get_protocol(), transport_b.get_protocol()) == (a, b)
    assert transport_a.get_extra_info("sockname") == transport_b.get_extra_info("peername") == "left"
    assert transport_b.get_extra_info("sockname") == transport_a.get_extra_info("peername") == "right"
    assert transport_a.get_extra_info("local_queue") is None
    transport_a.abort()


async def test_cancelled_connecting_closes_the_connection() -> None:
    """Nobody would own a connection whose create_connection() is cancelled, so it is closed."""
    a, b = Recorder(), Recorder()
    lq = get_queue("spam")
    server = await create_server(lambda: b, lq)
    connecting = asyncio.ensure_future(create_connection(lambda: a, lq))
    await turn()
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    await b.until_event("lost")
    assert a.events == [("made",), ("lost", None)]
    assert b.events == [("made",), ("eof",), ("lost", None)]
    server.close()


async def test_failing_factory_refuses_the_connection(asyncio_errors: list[str]) -> None:
    """If the server cannot make a protocol, the client gets an error and the server's loop a report."""
    lq = get_queue("spam")
    server = await create_server(lambda: 1 / 0, lq)  # type: ignore[arg-type, return-value]  # never returns
    with pytest.raises(ConnectError, match="division by zero") as caught:
        await create_connection(Recorder, lq)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert len(asyncio_errors) == 1
    asyncio_errors.clear()
    server.close()


async def test_options_of_other_transports_are_refused() -> None:
    """``ssl=None`` is fine, TLS is not, and nothing else is silently ignored."""
    lq = get_queue("spam")
    for create in (create_server, create_connection):
        with pytest.raises(ValueError, match="TLS is not available"):
            await create(Recorder, lq, ssl=object())
        with pytest.raises(TypeError, match="backlog, limit"):
            await create(Recorder, lq, limit=3, backlog=3)
    server = await create_server(Recorder, lq, ssl=None)
    transport, _ = await create_connection(Recorder, lq, ssl=None, loop=asyncio.get_running_loop())
    transport.abort()
    server.close()


async def test_queue_has_one_server_at_a_time() -> None:
    """A second server is refused; the queue is free as soon as the first is closed."""
    lq = get_queue("spam")
    first = await create_server(Recorder, lq)
    with pytest.raises(AddressInUseError, match=r"LocalQueue\('spam'\) is in use") as caught:
        await create_server(Recorder, lq)
    assert isinstance(caught.value, AiomasError)
    assert isinstance(caught.value, OSError)
    first.close()
    second = await create_server(Recorder, lq)
    first.close()
    assert lq.server is second
    second.close()


async def test_closing_the_server_keeps_connections() -> None:
    """close() stops accepting only, and wait_closed() does not wait for connections."""
    a, b = Recorder(), Recorder()
    lq = get_queue("spam")
    server = await create_server(lambda: b, lq)
    await server.start_serving()
    assert server.is_serving()
    assert server.lq is lq
    assert server.get_loop() is asyncio.get_running_loop()
    assert repr(server) == "<LocalQueueServer LocalQueue('spam') serving>"
    await create_connection(lambda: a, lq)
    server.close()
    server.close()
    await server.wait_closed()
    assert not server.is_serving()
    assert repr(server) == "<LocalQueueServer LocalQueue('spam') closed>"
    with pytest.raises(RuntimeError, match="closed"):
        await server.start_serving()
    with pytest.raises(RuntimeError, match="closed"):
        await server.serve_forever()
    a.transport.write(b"still here")
    await b.until_data(10)
    a.transport.abort()


async def test_server_is_an_async_context_manager() -> None:
    """Leaving the context closes the server."""
    lq = get_queue("spam")
    async with await create_server(Recorder, lq) as server:
        assert server.is_serving()
    assert lq.server is None


@pytest.mark.parametrize("way", ["cancel", "close"])
async def test_serve_forever_ends_with_the_server(way: str) -> None:
    """Cancelling serve_forever() closes the server, closing the server cancels it."""
    lq = get_queue("spam")
    server = await create_server(Recorder, lq)
    serving = asyncio.ensure_future(server.serve_forever())
    await turn()
    with pytest.raises(RuntimeError, match="already"):
        await server.serve_forever()
    if way == "cancel":
        serving.cancel()
    else:
        server.close()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert lq.server is None


def test_server_and_client_share_a_loop() -> None:
    """Connecting from another loop is an error; a server whose loop is closed is no server any more."""
    lq = get_queue("spam")
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(create_server(Recorder, lq))
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(create_connection(Recorder, lq))
    loop.close()
    server.close()  # as a program does that only now cleans up
    assert lq.server is None
    lq.set_server(server)
    with pytest.raises(ConnectError, match="no server"):
        asyncio.run(create_connection(Recorder, lq))

    async def serve_again() -> None:
        (await create_server(Recorder, lq)).close()

    asyncio.run(serve_again())


async def test_streams_work() -> None:
    """asyncio's stream classes run on this transport."""
    lq = get_queue("spam")

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    loop = asyncio.get_running_loop()
    server = await create_server(lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), shout), lq)
    reader = asyncio.StreamReader()
    transport, protocol = await create_connection(lambda: asyncio.StreamReaderProtocol(reader), lq)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    writer.write(b"hello\n")
    assert await reader.readline() == b"HELLO\n"
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    server.close()
