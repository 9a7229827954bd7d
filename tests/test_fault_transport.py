"""The transport that makes a connection bad: what it promises to the protocol, and does to the peer."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomas_ng import ExternalClock, faults
from aiomas_ng._io import endpoint, fault_flow
from aiomas_ng._io.fault_transport import WARN_AFTER
from tests.conftest import Transport
from tests.faults import connect_raw, listen_raw
from tests.waiting import wait_until

KIB = 1024


class End(asyncio.Protocol):
    """One end of a connection that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.received = bytearray()
        self.transport: Any = None
        self.error: BaseException | None = None
        self.keeps_open = False
        self.is_lost = False

    def connection_made(self, transport: Any) -> None:
        self.events.append("made")
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        assert not self.is_lost
        self.received += data

    def eof_received(self) -> bool:
        self.events.append("eof")
        return self.keeps_open

    def connection_lost(self, exc: BaseException | None) -> None:
        self.events.append("lost")
        self.error = exc
        self.is_lost = True

    def pause_writing(self) -> None:
        assert self.events[-1] != "pause"
        self.events.append("pause")

    def resume_writing(self) -> None:
        assert self.events[-1] == "pause"
        self.events.append("resume")

    async def until_received(self, size: int) -> None:
        """Wait until so many bytes have come, and make sure that no more do."""
        await wait_until(lambda: len(self.received) >= size)
        assert len(self.received) == size

    async def until_lost(self) -> None:
        """Wait for the end of the connection."""
        await wait_until(lambda: self.is_lost)


Ends = tuple[End, End, faults.FaultyTransport]


@contextlib.asynccontextmanager
async def open_ends(
    transport: Transport, network: faults.Network, near: Callable[[], Any] = End
) -> AsyncIterator[Ends]:
    """Give the end that meets the network, the other one, and the transport of the first."""
    far = End()
    loop = asyncio.get_running_loop()
    if network.applies_to == "dialled":
        async with listen_raw(transport, lambda: far) as address:
            end: Any = await endpoint.dial(address, near, loop=loop, network=network)
            await wait_until(lambda: far.transport)
    else:
        end = near()
        server = await endpoint.listen(transport.address(), lambda _: end, loop=loop, network=network)
        await connect_raw(server.address, far)
        await wait_until(lambda: end.transport)
        server.close()
    try:
        yield end, far, end.transport
    finally:
        far.transport.abort()
        end.transport.abort()
        network.close()
        await wait_until(lambda: not network.connections)
        await far.until_lost()
        await wait_until(lambda: end.transport._protocol is not end or end.is_lost)


@pytest.fixture(params=["dialled", "accepted"])
def side(request: pytest.FixtureRequest) -> Any:
    """Both sides that a network can apply to."""
    return request.param


async def settle() -> None:
    """Let happen what would happen by now."""
    for _ in range(10):
        await asyncio.sleep(0.001)


# A good connection


async def test_a_network_without_conditions_is_a_good_one(transport: Transport, side: Any) -> None:
    """Bytes go both ways, then one side closes: everybody is told what it would be told otherwise."""
    async with open_ends(transport, faults.Network(applies_to=side)) as (near, far, faulty):
        faulty.write(b"ab")
        faulty.writelines([bytearray(b"cd"), memoryview(b"ef"), b""])
        far.transport.write(b"answer")
        await far.until_received(6)
        await near.until_received(6)
        assert (far.received, near.received) == (b"abcdef", b"answer")
        faulty.write(b"end")
        faulty.close()
        faulty.close()
        assert faulty.is_closing()
        await far.until_lost()
        await near.until_lost()
        assert far.received == b"abcdefend"
        assert (near.error, far.error) == (None, None)
        assert near.events == ["made", "lost"]
        assert far.events[:2] == ["made", "eof"]
        assert (faulty.bytes_sent, faulty.bytes_received, faulty.bytes_lost) == (9, 6, 0)


async def test_the_peer_closes(transport: Transport, side: Any) -> None:
    """The end of the peer comes after its last bytes, and closes our end."""
    async with open_ends(transport, faults.Network(applies_to=side, delay=0.01)) as (near, far, _):
        far.transport.write(b"last")
        far.transport.close()
        await near.until_lost()
        assert near.received == b"last"
        assert near.events == ["made", "eof", "lost"]
        assert near.error is None


async def test_one_direction_can_end(transport: Transport, side: Any) -> None:
    """After write_eof() bytes still come from the peer, until that closes."""
    async with open_ends(transport, faults.Network(applies_to=side, delay=0.01)) as (near, far, faulty):
        far.keeps_open = True
        assert faulty.can_write_eof()
        faulty.write(b"question")
        faulty.write_eof()
        faulty.write_eof()
        with pytest.raises(RuntimeError, match="write_eof"):
            faulty.write(b"more")
        await wait_until(lambda: "eof" in far.events)
        assert far.received == b"question"
        far.transport.write(b"answer")
        await near.until_received(6)
        far.transport.close()
        await near.until_lost()


async def test_an_abort_ends_both_sides(transport: Transport, side: Any) -> None:
    """Our end is told at once, the peer soon after."""
    async with open_ends(transport, faults.Network(applies_to=side)) as (near, far, faulty):
        faulty.abort()
        faulty.abort()
        assert faulty.is_closing()
        await near.until_lost()
        await far.until_lost()
        assert near.error is None
        assert near.events == ["made", "lost"]


async def test_writes_after_the_end_are_dropped(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """As with asyncio's transports they do nothing, and if it goes on that is logged."""
    async with open_ends(transport, faults.Network()) as (_near, far, faulty):
        faulty.close()
        with caplog.at_level(logging.WARNING):
            for _ in range(WARN_AFTER):
                faulty.write(b"x")
            assert not caplog.records
            faulty.write(b"x")
            assert len(caplog.records) == 1
        faulty.write_eof()
        await far.until_lost()
        assert not far.received


async def test_only_bytes_can_be_written(transport: Transport) -> None:
    """A mistake is said at once; what is written can be changed afterwards."""
    async with open_ends(transport, faults.Network(delay=0.01)) as (_, far, faulty):
        with pytest.raises(TypeError, match="str"):
            faulty.write("text")  # type: ignore[arg-type]
        data = bytearray(b"before")
        faulty.write(data)
        data[:] = b"after!"
        await far.until_received(6)
        assert far.received == b"before"


async def test_what_it_knows_about_the_connection(transport: Transport) -> None:
    """It passes on what the real transport knows, but no socket, by which a blackhole could be seen."""
    async with open_ends(transport, faults.Network()) as (_, __, faulty):
        assert faulty.get_extra_info("socket") is None
        assert faulty.get_extra_info("socket", 5) == 5
        assert faulty.get_extra_info("peername") is not None
        assert faulty.get_extra_info("no such thing", 7) == 7
        assert "open" in repr(faulty)
        faulty.close()
        assert "clos" in repr(faulty)


async def test_an_unknown_socket_option_of_an_unmade_transport() -> None:
    """Before it is connected, a transport knows nothing."""
    network = faults.Network()
    lines = network._gate._make_lines("a", "b", Random)
    faulty = faults.FaultyTransport(
        End(), network, faults.Route("a", "b"), 1, lines, network._timing, has_dialled=True
    )
    assert faulty.get_extra_info("peername", "none") == "none"
    assert faulty.get_write_buffer_size() == 0


async def test_limits_of_the_write_buffer_are_checked(transport: Transport) -> None:
    """They follow the rules of asyncio."""
    async with open_ends(transport, faults.Network()) as (_, __, faulty):
        assert faulty.get_write_buffer_limits() == (16 * KIB, 64 * KIB)
        faulty.set_write_buffer_limits(low=10)
        assert faulty.get_write_buffer_limits() == (10, 40)
        faulty.set_write_buffer_limits(high=400)
        assert faulty.get_write_buffer_limits() == (100, 400)
        for high, low in [(1, 2), (-1, None), (None, -1)]:
            with pytest.raises(ValueError, match="high >= low >= 0"):
                faulty.set_write_buffer_limits(high, low)


# Reading


async def test_reading_can_be_paused(transport: Transport, side: Any) -> None:
    """Neither bytes nor the end come while it is paused, and all of it after."""
    async with open_ends(transport, faults.Network(applies_to=side, delay=0.005)) as (near, far, faulty):
        faulty.pause_reading()
        assert not faulty.is_reading()
        far.transport.write(b"held")
        far.transport.close()
        await asyncio.sleep(0.02)
        assert not near.received
        assert near.events == ["made"]
        faulty.resume_reading()
        faulty.resume_reading()
        assert faulty.is_reading()
        assert not near.received  # not from within our own call
        await near.until_lost()
        assert near.received == b"held"


async def test_who_does_not_read_slows_the_peer_down(transport: Transport, side: Any) -> None:
    """Back pressure goes through the network, in both directions, and no byte is lost by it."""
    async with open_ends(transport, faults.Network(applies_to=side, delay=0.001)) as (near, far, _faulty):
        for reader, writer in [(near, far), (far, near)]:
            reader.transport.pause_reading()
            sent = 0
            while "pause" not in writer.events:
                writer.transport.write(bytes(256 * KIB))
                sent += 256 * KIB
                await asyncio.sleep(0)
                assert sent < 64 * 1024 * KIB
            reader.transport.resume_reading()
            await wait_until(lambda reader=reader, sent=sent: len(reader.received) == sent)
            await wait_until(lambda writer=writer: writer.events[-1] == "resume")


async def test_what_waits_for_the_rate_pauses_the_writer(transport: Transport, side: Any) -> None:
    """A throttled line holds up who writes more, tells it when there is room, and then all has arrived."""
    network = faults.Network(applies_to=side, rate=4_000_000)
    async with open_ends(transport, network) as (near, far, faulty):
        data = Random(1).randbytes(300 * KIB)
        begin = asyncio.get_running_loop().time()
        faulty.write(data)
        assert near.events == ["made", "pause"]
        assert faulty.get_write_buffer_size() > 64 * KIB
        await wait_until(lambda: near.events[-1] == "resume")
        await far.until_received(len(data))
        assert asyncio.get_running_loop().time() - begin >= len(data) / 4_000_000
        assert far.received == data
        assert faulty.get_write_buffer_size() == 0


async def test_a_slow_way_in_slows_the_peer_down(transport: Transport, side: Any) -> None:
    """The network does not take more from the peer than the line has room for."""
    network = faults.Network(applies_to=side, rate=8_000_000)
    async with open_ends(transport, network) as (near, far, _):
        size = 800 * KIB
        far.transport.write(bytes(size))
        await wait_until(lambda: near.received)
        assert network.connections[0]._in.size <= 64 * KIB + fault_flow.MAX_PIECE
        await near.until_received(size)


async def test_a_window_bounds_what_is_under_way(transport: Transport) -> None:
    """With a long delay, too, who writes too much is told to pause."""
    clock = ExternalClock(0)
    async with open_ends(transport, faults.Network(clock=clock, jitter=1, window=100_000)) as (
        near,
        far,
        faulty,
    ):
        faulty.write(bytes(100_000))
        assert near.events == ["made"]
        faulty.write(bytes(100_000))
        assert near.events == ["made", "pause"]
        clock.set_time(1)
        await far.until_received(200_000)
        await wait_until(lambda: near.events[-1] == "resume")


class Filler(asyncio.BufferedProtocol):
    """Reads so many bytes into a small buffer, in place of another protocol."""

    def __init__(self, protocol: Any, size: int) -> None:
        self.protocol = protocol
        self.left = size
        self.received = bytearray()
        self.buffer = bytearray(10)
        protocol.transport.set_protocol(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        self.buffer = bytearray(min(10, self.left))  # a new one each time, as a view of it may be left over
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]
        self.left -= nbytes
        if self.left == 50:
            self.protocol.transport.pause_reading()
        if not self.left:
            self.protocol.transport.set_protocol(self.protocol)


async def test_protocols_can_be_switched(transport: Transport, side: Any) -> None:
    """A buffered protocol that stands in gets its share of a read, may pause in it, and hands back."""
    async with open_ends(transport, faults.Network(applies_to=side, delay=0.001)) as (near, far, faulty):
        data = Random(2).randbytes(300)
        filler = Filler(near, 200)
        assert faulty.get_protocol() is filler
        far.transport.write(data)
        await wait_until(lambda: filler.left == 50)
        await settle()
        assert filler.left == 50
        faulty.resume_reading()
        await near.until_received(100)
        assert filler.received + near.received == data
        assert faulty.get_protocol() is near


async def test_a_protocol_that_fails_ends_its_connection(
    transport: Transport, side: Any, asyncio_errors: list[str]
) -> None:
    """What it raises is reported, its connection is lost with that, and the peer sees the end."""

    class Broken(End):
        def data_received(self, data: bytes) -> None:
            raise RuntimeError("cannot take it")

    async with open_ends(transport, faults.Network(applies_to=side, delay=0.001), Broken) as (near, far, _):
        far.transport.write(b"x")
        await near.until_lost()
        await far.until_lost()
        assert isinstance(near.error, RuntimeError)
        assert "cannot take it" in asyncio_errors.pop()
        assert not asyncio_errors


async def test_an_empty_buffer_ends_the_connection(transport: Transport, asyncio_errors: list[str]) -> None:
    """A buffered protocol that has no room breaks its promise."""
    async with open_ends(transport, faults.Network()) as (near, far, _faulty):
        filler = Filler(near, 0)
        filler.connection_lost = near.connection_lost  # type: ignore[method-assign]
        far.transport.write(b"x")
        await near.until_lost()
        assert "empty buffer" in asyncio_errors.pop()


async def test_a_protocol_is_called_in_its_own_context(transport: Transport, side: Any) -> None:
    """What was set by who wrote, or by who moved the clock on, is not seen by who reads."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="own")
    seen: list[str] = []

    class Reader(End):
        def data_received(self, data: bytes) -> None:
            seen.append(variable.get())
            super().data_received(data)

        def connection_lost(self, exc: BaseException | None) -> None:
            seen.append(variable.get())
            super().connection_lost(exc)

    clock = ExternalClock(0)
    network = faults.Network(applies_to=side, jitter=0.5, clock=clock)
    async with open_ends(transport, network, Reader) as (near, far, faulty):
        variable.set("of the writer")
        far.transport.write(b"one")
        faulty.write(b"question")
        await wait_until(lambda: faulty._in.size == 3)
        faulty.pause_reading()
        faulty.resume_reading()
        clock.set_time(1)
        await near.until_received(3)
        await far.until_received(8)
        far.transport.write(b"two")
        await wait_until(lambda: faulty._in.size == 3)
        clock.set_time(2)
        await near.until_received(6)
        network.set(jitter=0)
        faulty.hold()
        far.transport.write(b"three")
        await wait_until(lambda: faulty._in.size == 5)
        faulty.release()
        assert len(near.received) == 6  # not from within our call
        await near.until_received(11)
        faulty.abort()
        await near.until_lost()
    assert seen == ["own", "own", "own", "own"]


# Faults


@pytest.mark.parametrize("size", [0, 1, 1000, 99_999])
async def test_a_cut_comes_after_exactly_so_many_bytes(transport: Transport, side: Any, size: int) -> None:
    """The peer gets these bytes and not one more; both ends are told that the connection has ended."""
    network = faults.Network(applies_to=side, delay=0.001)
    async with open_ends(transport, network) as (near, far, faulty):
        faulty.cut(after=size)
        for _ in range(100):
            faulty.write(bytes(1000))
        await far.until_lost()
        await near.until_lost()
        assert len(far.received) == size
        assert isinstance(near.error, ConnectionResetError)
        assert "eof" not in near.events
        assert network.counts["cut"] == 1


async def test_a_cut_on_the_way_in(transport: Transport, side: Any) -> None:
    """Our end gets exactly so many bytes of the peer."""
    network = faults.Network(applies_to=side, cut_after=5000, rate=1e6)
    async with open_ends(transport, network) as (near, far, _):
        far.transport.write(bytes(8000))
        await near.until_lost()
        await far.until_lost()
        assert len(near.received) == 5000
        assert isinstance(near.error, ConnectionResetError)


async def test_a_cut_waits_for_who_reads_slowly(transport: Transport) -> None:
    """What has passed before the cut is the peer's, even if it takes it later."""
    async with open_ends(transport, faults.Network()) as (near, far, faulty):
        far.transport.pause_reading()
        size = 0
        while "pause" not in near.events:  # until the real transport is full
            faulty.write(bytes(64 * KIB))
            size += 64 * KIB
        faulty.cut()
        await settle()
        assert not near.is_lost
        assert faulty.is_closing()
        far.transport.resume_reading()
        await near.until_lost()
        await far.until_lost()
        assert len(far.received) == faulty.bytes_sent == size
        assert isinstance(near.error, ConnectionResetError)


async def test_a_cut_does_not_wait_for_ever(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that reads nothing does not keep our end from being told."""
    monkeypatch.setattr(fault_flow, "CUT_GRACE", 0.02)
    async with open_ends(transport, faults.Network()) as (near, far, faulty):
        far.transport.pause_reading()
        while "pause" not in near.events:
            faulty.write(bytes(64 * KIB))
        faulty.cut()
        await near.until_lost()
        assert isinstance(near.error, ConnectionResetError)
        far.transport.resume_reading()


async def test_a_blackhole_gives_no_sign(transport: Transport, side: Any) -> None:
    """Bytes of both sides vanish, the write buffer stays empty, and both ends believe in the connection."""
    async with open_ends(transport, faults.Network(applies_to=side)) as (near, far, faulty):
        faulty.blackhole()
        faulty.write(bytes(1000 * KIB))
        far.transport.write(b"hello?")
        await wait_until(lambda: faulty.bytes_lost == 1000 * KIB + 6)
        assert (near.events, far.events) == (["made"], ["made"])
        assert not near.received
        assert not far.received
        assert faulty.get_write_buffer_size() == 0


async def test_what_was_under_way_vanishes_as_well(transport: Transport, side: Any) -> None:
    """A hole swallows what has left but not arrived."""
    async with open_ends(transport, faults.Network(applies_to=side, delay=0.01)) as (_, far, faulty):
        faulty.write(b"too late")
        faulty.blackhole()
        await asyncio.sleep(0.02)
        assert not far.received
        assert faulty.bytes_lost == 8


async def test_after_a_blackhole_a_write_breaks_the_connection(transport: Transport, side: Any) -> None:
    """A stream with a gap is none: it stays half-open until someone writes, and then is reset for both."""
    async with open_ends(transport, faults.Network(applies_to=side)) as (near, far, faulty):
        faulty.blackhole()
        faulty.write(b"lost")
        faulty.release()
        await settle()
        assert (near.events, far.events) == (["made"], ["made"])
        faulty.write(b"behind the gap")
        await near.until_lost()
        await far.until_lost()
        assert isinstance(near.error, ConnectionResetError)
        assert not far.received


async def test_after_a_blackhole_a_write_of_the_peer_breaks_it(transport: Transport, side: Any) -> None:
    """The same in the other direction."""
    async with open_ends(transport, faults.Network(applies_to=side)) as (near, far, faulty):
        faulty.blackhole()
        far.transport.write(b"lost")
        await wait_until(lambda: faulty.bytes_lost)
        faulty.release()
        far.transport.write(b"behind the gap")
        await near.until_lost()
        await far.until_lost()
        assert not near.received


async def test_who_was_silent_in_a_blackhole_goes_on(transport: Transport, side: Any) -> None:
    """Nothing was lost, so nothing happens."""
    async with open_ends(transport, faults.Network(applies_to=side)) as (_, far, faulty):
        faulty.blackhole()
        faulty.release()
        faulty.release()
        faulty.write(b"fine")
        await far.until_received(4)


async def test_a_cut_that_is_due_when_both_have_gone(transport: Transport, side: Any) -> None:
    """The peer has gone unnoticed, a cut is due, and our end gives up: nothing is left to be cut."""
    network = faults.Network(applies_to=side)
    async with open_ends(transport, network) as (near, far, faulty):
        faulty.write(b"one")
        await far.until_received(3)
        faulty.blackhole()
        far.transport.abort()
        await far.until_lost()
        await settle()
        faulty.cut(after=0)
        faulty.release()
        faulty.abort()
        await near.until_lost()
        assert near.events == ["made", "lost"]


@pytest.mark.parametrize("ending", ["close", "abort"])
async def test_our_end_closes_in_a_blackhole(transport: Transport, side: Any, ending: str) -> None:
    """It is gone for us; the peer learns of it when packets pass again, and not before."""
    network = faults.Network(applies_to=side)
    async with open_ends(transport, network) as (near, far, faulty):
        faulty.write(b"before")
        await far.until_received(6)
        faulty.blackhole()
        getattr(faulty, ending)()
        await near.until_lost()
        assert near.error is None
        await settle()
        assert far.events == ["made"]
        assert network.connections == [faulty]
        faulty.release()
        await far.until_lost()
        assert not network.connections


@pytest.mark.parametrize("ending", ["close", "abort"])
async def test_the_peer_closes_in_a_blackhole(transport: Transport, side: Any, ending: str) -> None:
    """Our end is not told, even after it; it is when it writes."""
    async with open_ends(transport, faults.Network(applies_to=side)) as (near, far, faulty):
        faulty.blackhole()
        getattr(far.transport, ending)()
        await settle()
        assert near.events == ["made"]
        faulty.release()
        await settle()
        assert near.events == ["made"]
        faulty.write(b"hello?")
        await near.until_lost()
        assert isinstance(near.error, ConnectionResetError)


async def test_both_close_in_a_blackhole(transport: Transport, side: Any) -> None:
    """Then nobody is left to keep the real connection."""
    network = faults.Network(applies_to=side)
    async with open_ends(transport, network) as (near, far, faulty):
        faulty.blackhole()
        faulty.close()
        await near.until_lost()
        far.transport.close()
        await far.until_lost()
        await wait_until(lambda: not network.connections)


async def test_held_bytes_arrive_after_it(transport: Transport, side: Any) -> None:
    """While a connection holds, nothing arrives on either side; afterwards everything does."""
    async with open_ends(transport, faults.Network(applies_to=side)) as (near, far, faulty):
        faulty.hold()
        faulty.write(b"there")
        far.transport.write(b"back")
        await settle()
        assert not near.received
        assert not far.received
        faulty.release()
        await far.until_received(5)
        await near.until_received(4)


@pytest.mark.parametrize("ending", ["close", "abort"])
async def test_ends_are_held_as_well(transport: Transport, side: Any, ending: str) -> None:
    """Our end is gone at once, the peer's when it gets the bytes and the end that were held."""
    network = faults.Network(applies_to=side)
    async with open_ends(transport, network) as (near, far, faulty):
        faulty.hold()
        faulty.write(b"last")
        getattr(faulty, ending)()
        await near.until_lost()
        await settle()
        assert far.events == ["made"]
        faulty.release()
        await far.until_lost()
        if ending == "close":
            assert far.received == b"last"


async def test_the_end_of_the_peer_is_held(transport: Transport, side: Any) -> None:
    """A broken connection of the peer is no news until news arrive."""
    async with open_ends(transport, faults.Network(applies_to=side)) as (near, far, faulty):
        faulty.hold()
        far.transport.write(b"last")
        await wait_until(lambda: faulty._in.size == 4)
        far.transport.abort()
        await far.until_lost()
        await settle()
        assert near.events == ["made"]
        faulty.release()
        await near.until_lost()
        assert near.received == b"last"


async def test_a_fault_for_a_while(transport: Transport) -> None:
    """It ends by itself after so many seconds; a later order replaces an earlier one."""
    clock = ExternalClock(0)
    async with open_ends(transport, faults.Network(clock=clock)) as (_, far, faulty):
        faulty.hold(10)
        faulty.write(b"x")
        faulty.hold(20)
        clock.set_time(15)
        await settle()
        assert not far.received
        clock.set_time(20)
        await far.until_received(1)


async def test_a_blackhole_of_the_conditions(transport: Transport, side: Any) -> None:
    """After so many bytes the connection falls silent, for as long as was drawn."""
    clock = ExternalClock(0)
    network = faults.Network(applies_to=side, clock=clock, blackhole_after=100, blackhole_for=(5, 6))
    async with open_ends(transport, network) as (near, far, faulty):
        faulty.write(bytes(250))
        await far.until_received(100)
        far.transport.write(bytes(60))
        await wait_until(lambda: faulty.bytes_lost == 210)
        assert 5 <= next(event.detail for event in network.log if event.what == "blackhole") <= 6
        assert (near.events, far.events) == (["made"], ["made"])
        clock.set_time(6)
        await settle()
        faulty.write(b"x")
        await near.until_lost()


async def test_who_closes_before_the_bytes_have_arrived(transport: Transport, side: Any) -> None:
    """Close and abort do not take back what is under way: it arrives in its time, then the end."""
    for ending in ("close", "abort"):
        clock = ExternalClock(0)
        network = faults.Network(applies_to=side, clock=clock, jitter=5)
        async with open_ends(transport, network) as (near, far, faulty):
            faulty.write(b"under way")
            getattr(faulty, ending)()
            await near.until_lost()
            await settle()
            assert far.events == ["made"]
            clock.set_time(5)
            if ending == "close":
                await far.until_lost()
                assert far.received == b"under way"
            await wait_until(lambda network=network: not network.connections)


async def test_close_waits_for_the_rate_and_abort_does_not(transport: Transport) -> None:
    """What has not left keeps a closed connection, and is forgotten by an aborted one."""
    for ending in ("close", "abort"):
        clock = ExternalClock(0)
        async with open_ends(transport, faults.Network(clock=clock, rate=100)) as (near, far, faulty):
            faulty.write(bytes(200))
            clock.set_time(1)
            await wait_until(lambda far=far: far.received)
            getattr(faulty, ending)()
            await settle()
            assert near.is_lost is (ending == "abort")
            for t in (2, 3):
                clock.set_time(t)
                await settle()
            assert near.is_lost
            assert len(far.received) == 200 if ending == "close" else len(far.received) <= 100


async def test_a_connection_that_is_over_takes_no_orders(transport: Transport) -> None:
    """Whoever kept the transport can do no harm with it."""
    network = faults.Network()
    async with open_ends(transport, network) as (near, _far, faulty):
        faulty.close()
        await near.until_lost()
        await wait_until(lambda: not network.connections)
        count = len(network.log)
        faulty.cut()
        faulty.cut(5)
        faulty.blackhole()
        faulty.hold(1)
        faulty.release()
        faulty.pause_reading()
        faulty.resume_reading()
        faulty.set_write_buffer_limits(0)
        await settle()
        assert len(network.log) == count
        assert not network.connections


# Anything, in any order


ends = st.sampled_from(["near", "far"])
sides = st.sampled_from(["dialled", "accepted"])
steps = st.one_of(
    st.tuples(st.just("write"), ends, st.integers(1, 300)),
    st.tuples(st.sampled_from(["pause", "resume"]), ends),
    st.tuples(st.sampled_from(["hold", "release"])),
    st.tuples(st.just("wait"), st.floats(0.01, 3)),
)
harmful = st.one_of(
    st.tuples(st.sampled_from(["close", "abort", "eof"]), ends),
    st.tuples(st.sampled_from(["blackhole"])),
    st.tuples(st.just("cut"), st.one_of(st.none(), st.integers(0, 300))),
)
bad = st.builds(
    faults.Conditions,
    delay=st.just(0),
    jitter=st.sampled_from([0, 1, (0, 2)]),
    rate=st.sampled_from([None, 2000, 20_000]),
    window=st.sampled_from([1, 100, 1_000_000]),
)


async def play(script: list[Any], conditions: faults.Conditions, side: Any) -> tuple[Ends, dict[str, bytes]]:
    """Do what a script says to the two ends of a connection, then let all time pass."""
    clock = ExternalClock(0)
    options = {name: getattr(conditions, name) for name in ("jitter", "rate", "window")}
    network = faults.Network(applies_to=side, clock=clock, **options)
    sent = {"near": b"", "far": b""}
    async with open_ends(Transport("local", Path()), network) as (near, far, faulty):
        at = {"near": near, "far": far}
        for number, (what, *args) in enumerate(script):
            end = at.get(args[0] if args else "near", near).transport
            if what == "write" and not end.is_closing() and not end._is_eof_sent:
                data = bytes([number % 256]) * args[1]
                end.write(data)
                sent[args[0]] += data
            elif what in ("pause", "resume"):
                getattr(end, f"{what}_reading")()
            elif what in ("hold", "release", "blackhole"):
                getattr(faulty, what)()
            elif what == "wait":
                clock.set_time(clock.time() + args[0])
            elif what == "cut":
                faulty.cut(args[0])
            elif what in ("close", "abort"):
                getattr(end, what)()
            elif what == "eof":
                end.write_eof()
            for _ in range(number % 3):
                await asyncio.sleep(0)
        faulty.release()
        near.transport.resume_reading()
        far.transport.resume_reading()
        quiet = 0
        while quiet < 30:  # turns of the loop in which nothing waited
            await asyncio.sleep(0)
            quiet += 1
            if clock.next_due() is not None:
                clock.set_time(clock.next_due())
            if faulty._timer is not None:
                quiet = 0
        return (near, far, faulty), sent


@given(
    script=st.lists(steps, max_size=25), conditions=bad, applies_to=st.sampled_from(["dialled", "accepted"])
)
async def test_whatever_is_done_all_bytes_arrive(
    script: list[Any], conditions: faults.Conditions, applies_to: str
) -> None:
    """As long as nothing is lost, cut or closed, each end gets what the other one has sent."""
    (near, far, _), sent = await play(script, conditions, applies_to)
    assert far.received == sent["near"]
    assert near.received == sent["far"]


@settings(max_examples=60)
@given(
    script=st.lists(st.one_of(steps, steps, harmful), max_size=25),
    conditions=bad,
    applies_to=sides,
)
async def test_whatever_is_done_each_end_gets_a_prefix(
    script: list[Any], conditions: faults.Conditions, applies_to: str
) -> None:
    """Whatever happens, each end gets a first part of what the other one has sent, and one end."""
    (near, far, faulty), sent = await play(script, conditions, applies_to)
    assert sent["near"].startswith(far.received)
    assert sent["far"].startswith(near.received)
    for end in (near, far):
        assert end.events.count("made") == 1
        assert end.events.count("lost") == 1
        assert end.events[-1] == "lost"
        assert end.events.count("eof") <= 1
    assert faulty.is_closing()
    assert faulty._is_over()


# TLS, cost, time


def make_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the TLS contexts of a server and of its clients."""
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("ending", ["near", "far", "cut"])
async def test_over_tls(side: Any, ending: str, caplog: pytest.LogCaptureFixture) -> None:
    """The faults apply to what is encrypted; both ends are told of the end, and nobody complains of it."""
    server_tls, client_tls = make_contexts()
    near, far = End(), End()
    accepted, dialled = (far, near) if side == "dialled" else (near, far)
    loop = asyncio.get_running_loop()
    network = faults.Network(applies_to=side, delay=0.002)
    options = {"loop": loop, "network": network}
    server = await endpoint.listen(
        ("127.0.0.1", 0),
        lambda _: accepted,  # type: ignore[arg-type,return-value]  # any protocol will do
        ssl=server_tls,
        **({"loop": loop} if side == "dialled" else options),
    )
    await endpoint.dial(
        server.url,
        lambda: dialled,
        ssl=client_tls,
        **(options if side == "dialled" else {"loop": loop}),
    )
    await wait_until(lambda: accepted.transport)
    server.close()
    assert near.transport.get_extra_info("ssl_object") is not None
    near.transport.write(bytes(100 * KIB))
    await far.until_received(100 * KIB)
    far.transport.write(b"answer")
    await near.until_received(6)
    if ending == "cut":
        near.transport.cut(after=1000)
        near.transport.write(bytes(5000))
        await near.until_lost()
        assert isinstance(near.error, ConnectionResetError)
    else:
        (near if ending == "near" else far).transport.close()
    await near.until_lost()
    await far.until_lost()
    if ending == "cut":
        assert len(far.received) == 101 * KIB - 24
    await wait_until(lambda: not network.connections)
    assert not [record for record in caplog.records if not record.getMessage().startswith("Executing")]


async def test_one_timer_for_a_connection(transport: Transport) -> None:
    """However much is under way, in both directions, a connection waits for its next byte only."""
    clock = ExternalClock(0)
    async with open_ends(transport, faults.Network(clock=clock, jitter=(1, 2))) as (near, far, faulty):
        for _ in range(300):
            faulty.write(b"out")
            far.transport.write(b"in")
        await wait_until(lambda: faulty._in.size == 600)
        alive = [entry for entry in clock._schedule._heap if not entry[2].is_dead()]
        assert len(alive) == 1
        clock.set_time(10)
        await far.until_received(900)
        await near.until_received(600)


async def test_the_cost_of_a_write_does_not_grow(transport: Transport) -> None:
    """A write costs the same whether ten or ten thousand others are under way."""

    def count(action: Callable[[], Any]) -> int:
        calls = 0

        def profile(frame: Any, event: str, arg: Any) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(profile)
        try:
            action()
        finally:
            sys.setprofile(None)
        return calls

    clock = ExternalClock(0)
    async with open_ends(transport, faults.Network(clock=clock, jitter=1, rate=1e9)) as (_, _far, faulty):
        few = [count(lambda: faulty.write(b"x" * 10)) for _ in range(10)]
        for _ in range(10_000):
            faulty.write(b"x" * 10)
        many = [count(lambda: faulty.write(b"x" * 10)) for _ in range(10)]
        assert max(many) <= max(few)
        faulty.cut()
