"""Half-open connections, busy peers, and loops that are blocked: what a connection makes of them.

Peers that vanish without a word:

* :class:`RawPeer` answers no ping by itself, and :class:`FaultyLink` swallows what passes. Both are sockets
  of a kernel that confirms everything, so such a peer counts as busy.
* :func:`vanish` makes the kernel throw away whatever comes to a TCP socket, as if its host were gone.
* :class:`Hidden` shows no socket, as a transport does that lies between: then only pings count.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import gc
import logging
import random
import socket
import ssl
import struct
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trustme

from aiomas_ng import channel as channels
from aiomas_ng import deadlines, rpc
from aiomas_ng._core.pulse import Pulse
from aiomas_ng._io import kernel
from aiomas_ng._io.endpoint import dial
from aiomas_ng._io.heartbeat import Heartbeat
from aiomas_ng.agent import Container
from aiomas_ng.channel import Channel, ChannelProtocol
from aiomas_ng.exceptions import (
    ChannelClosedError,
    ClosedByPeerError,
    PeerUnresponsiveError,
    SessionLostError,
)
from aiomas_ng.liveness import ConnectionState, Liveness
from tests.busy_peer import open_process
from tests.faults import (
    CODECS,
    MESSAGE,
    PING,
    PONG,
    REQUEST,
    RESULT,
    SESSION,
    FaultyLink,
    RawPeer,
    accept,
    encode,
    frame,
    listen_raw,
    open_faulty_link,
    open_link,
    open_raw_client,
    open_raw_server,
    serve,
)
from tests.waiting import wait_until

CONNECTED, UNRESPONSIVE, CLOSED = (
    ConnectionState.CONNECTED,
    ConnectionState.UNRESPONSIVE,
    ConnectionState.CLOSED,
)

SHORT = Liveness(interval=0.03, patience=0.06, busy_patience=0.3)
"""Ends within half a second."""
ENDLESS = Liveness(interval=0.03, patience=0.06, busy_patience=None)
"""Waits for busy peers without end."""
CALM = Liveness(interval=0.03, patience=20)
"""Pings, and does not judge within a test, however slow the machine is."""

IS_LINUX = sys.platform == "linux"
SO_ATTACH_FILTER = 26


@pytest.fixture(params=["tcp", "unix"])
def kind(request: pytest.FixtureRequest) -> str:
    """The transports that have a socket."""
    return str(request.param)


@pytest.fixture
def wire(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same as the fixture ``transport``, of those that have a socket."""
    from tests.conftest import Transport

    return Transport(kind, tmp_path_factory.mktemp("s"))


class States:
    """What a channel has told of its states."""

    def __init__(self, channel: Channel) -> None:
        self.seen: list[ConnectionState] = []
        self._changed = asyncio.Event()
        channel.on_state(self._note)

    def _note(self, channel: Channel, state: ConnectionState) -> None:
        self.seen.append(state)
        self._changed.set()

    async def until(self, *states: ConnectionState) -> None:
        """Wait for the states that come first, and no others."""
        while len(self.seen) < len(states):
            self._changed.clear()
            await self._changed.wait()
        assert tuple(self.seen) == states


def vanish(sock: Any) -> None:
    """Let the kernel throw away all that comes to *sock* before TCP sees it, so that nothing is confirmed."""
    instructions = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # return 0: keep no byte
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(instructions))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class Hidden(ChannelProtocol):
    """Lies behind a transport that shows no socket."""

    class Cover:
        """Shows nothing."""

        def __init__(self, transport: Any) -> None:
            self._transport = transport

        def __getattr__(self, name: str) -> Any:
            return getattr(self._transport, name)

        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return None if name == "socket" else self._transport.get_extra_info(name, default)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(self.Cover(transport))


@contextlib.asynccontextmanager
async def open_hidden(transport: Any, liveness: Liveness) -> AsyncIterator[tuple[Channel, RawPeer]]:
    """Give a channel whose transport shows no socket, and the raw peer at the other end."""
    peer = RawPeer()
    loop = asyncio.get_running_loop()
    async with listen_raw(transport, lambda: peer) as address:
        protocol = await dial(
            address, lambda: Hidden(CODECS["msgpack"](), loop=loop, liveness=liveness), loop=loop
        )
        assert protocol.channel is not None
        await peer.until(lambda: peer.transport)
        try:
            yield protocol.channel, peer
        finally:
            peer.abort()
            await protocol.channel.close()


async def greet(peer: RawPeer) -> None:
    """Show the channel at the other end that *peer* is one of ours, and take what it says to that."""
    peer.send(SESSION, 0, {"version": 1})
    assert (await peer.recv())[0] == SESSION


async def recv_ping(peer: RawPeer) -> int:
    """Return the number of the next ping; nothing else may come before it."""
    msg_type, number, content = await peer.recv()
    assert (msg_type, content) == (PING, None)
    assert isinstance(number, int)
    return number


# -- Pings -----------------------------------------------------------------------------------------


async def test_both_ends_ping_and_answer(wire: Any) -> None:
    """On a quiet connection of two of ours both ends ask and answer, and nothing changes."""
    counts = {"near": 0, "far": 0}
    async with open_link(wire, liveness=SHORT) as (near, far):
        serve(far, lambda content: content)
        assert await near.send(1) == 1
        for name, channel in (("near", near), ("far", far)):
            heartbeat = channel._protocol.heartbeat
            assert heartbeat is not None
            watch = States(channel)

            async def count(heartbeat: Heartbeat = heartbeat, name: str = name) -> None:
                await wait_until(lambda: heartbeat._number >= 5)
                counts[name] = heartbeat._number

            await count()
            assert watch.seen == []
            assert channel.state is CONNECTED
    assert min(counts.values()) >= 5


async def test_ping_leaves_only_when_nothing_comes(wire: Any) -> None:
    """As long as anything comes, a peer is not asked, whatever it is and however little."""
    async with open_raw_server(wire, liveness=Liveness(interval=0.3, patience=10)) as (channel, peer):
        await greet(peer)
        peer.send_bytes(b"\0\0\4\0")  # the frame never becomes complete
        for _ in range(50):
            peer.send_bytes(b"\0")
            await asyncio.sleep(0.01)
        assert channel._protocol.heartbeat is not None
        assert channel._protocol.heartbeat._number == 0
        assert await recv_ping(peer) == 1


async def test_pings_count_up_and_answers_need_not_match(wire: Any) -> None:
    """Each ping has the next number; what is answered matters less than that something is."""
    async with open_raw_server(wire, liveness=CALM) as (channel, peer):
        await greet(peer)
        for number in (1, 2, 3):
            assert await recv_ping(peer) == number
            peer.send(PONG, 99, {"any": "thing"})
        assert channel.state is CONNECTED


@pytest.mark.parametrize("speaks", ["msgpack", "json"])
async def test_peer_that_knows_no_pings_gets_none(wire: Any, speaks: str) -> None:
    """A peer of types 0 to 2 sees nothing new, before, between and after requests, and is never judged."""
    async with open_raw_client(wire, speaks, liveness=SHORT) as (peer, channel):
        serve(channel, lambda content: content)
        states = States(channel)
        for n in range(3):
            assert await peer.call(n) == n
            await asyncio.sleep(0.05)
        reply = channel.send("ask")
        msg_type, msg_id, _ = await peer.recv()
        assert msg_type == REQUEST
        await asyncio.sleep(0.3)
        assert not peer.frames
        peer.send(RESULT, msg_id, "answer")
        assert await reply == "answer"
        assert states.seen == []


async def test_none_switches_it_off(transport: Any) -> None:
    """Without figures there is no timer, no ping, and no option of the socket is touched."""
    async with open_raw_server(transport, liveness=None) as (channel, peer):
        await greet(peer)
        assert channel._protocol.heartbeat is None
        peer.send(PONG, 1)  # not asked for: harmless
        peer.send(PING, 1)
        assert await peer.recv() == [PONG, 1, None]
        if transport.kind == "tcp":
            sock = channel.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


async def test_local_queue_is_not_pinged() -> None:
    """The ends of a LocalQueue cannot lose each other, and pings would make runs of a simulation differ."""
    from tests.conftest import Transport

    async with open_raw_server(Transport("local", None), liveness=SHORT) as (channel, peer):  # type: ignore[arg-type]
        await greet(peer)
        assert channel._protocol.heartbeat is None
        await asyncio.sleep(0.3)
        assert not peer.frames
        assert channel.state is CONNECTED


async def test_content_of_pings_is_that_of_the_hook(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the channel wants to say along with pings and their answers is sent with them."""
    monkeypatch.setattr(Channel, "_ping_content", lambda self: self._protocol.received)
    async with open_raw_server(wire, liveness=CALM) as (channel, peer):
        await greet(peer)
        received = channel._protocol.received
        assert await peer.recv() == [PING, 1, received]
        peer.send(PING, 7, "anything")
        assert await peer.recv() == [PONG, 7, channel._protocol.received]
        assert channel._protocol.received > received


async def test_bytes_are_counted_in_each_way_of_reading(transport: Any) -> None:
    """Small frames, and large ones that are read into a buffer of their own, count alike."""
    async with open_raw_server(transport) as (channel, peer):
        sent = 0
        for size in (1, 100, 5_000, 300_000, 3_000_000, 10):
            data = encode("msgpack", MESSAGE, 0, bytes(size))
            sent += len(data)
            peer.send_bytes(data)
            assert len((await channel.recv()).content) == size
        assert channel._protocol.received == sent


# -- Busy peers ------------------------------------------------------------------------------------


async def test_peer_that_answers_nothing_while_its_host_does(wire: Any) -> None:
    """It is unresponsive after patience, and given up after busy_patience; calls fail and say so."""
    async with open_raw_server(wire, liveness=SHORT) as (channel, peer):
        await greet(peer)
        start = time.monotonic()
        states = States(channel)
        reply = channel.send("work")
        await states.until(UNRESPONSIVE)
        assert time.monotonic() - start >= SHORT.interval + SHORT.patience - 0.01
        with pytest.raises(
            PeerUnresponsiveError, match=r"its host is there.*busy_patience is 0\.3 s"
        ) as caught:
            await reply
        assert caught.value.was_sent
        assert time.monotonic() - start >= SHORT.interval + 0.3 - 0.01
        assert states.seen == [UNRESPONSIVE, CLOSED]
        assert isinstance(caught.value, ClosedByPeerError)
        with pytest.raises(PeerUnresponsiveError):
            channel.send("more")
        await peer.until_lost()


async def test_busy_peer_is_waited_for_without_end(wire: Any) -> None:
    """With ``busy_patience=None`` it is asked again and again, and any byte brings it back, each time."""
    async with open_raw_server(wire, liveness=ENDLESS) as (channel, peer):
        await greet(peer)
        states = States(channel)
        expected: list[ConnectionState] = []
        for _ in range(2):
            expected.append(UNRESPONSIVE)
            await states.until(*expected)
            for _ in range(5):
                await recv_ping(peer)
            assert states.seen == expected
            peer.send_bytes(b"\0")  # the begin of a header, no more
            expected.append(CONNECTED)
            await states.until(*expected)
            peer.frames.clear()
            peer.send_bytes(b"\0\0\4\x93\x08\1\xc0")


async def test_answer_to_a_ping_is_noticed_at_once(wire: Any) -> None:
    """A peer that has come back is not taken for unresponsive until the next look, which may be seconds
    away."""
    figures = Liveness(interval=0.01, patience=0.01, busy_patience=None)
    async with open_raw_server(wire, liveness=figures) as (channel, peer):
        await greet(peer)
        await States(channel).until(UNRESPONSIVE)
        heartbeat = channel._protocol.heartbeat
        assert heartbeat is not None
        assert heartbeat._handle is not None
        heartbeat._handle.cancel()  # no more looks
        peer.send(PONG, 1)
        await States(channel).until(CONNECTED)
        heartbeat._look_after(0)


async def test_process_that_is_stopped_is_busy(wire: Any) -> None:
    """A process that does nothing at all for a while is unresponsive and then back, and no call is lost."""
    async with open_process(wire.address()) as process:
        url = await process.start()
        async with container_of(ENDLESS) as container:
            worker = await container.connect(url)
            assert await worker.echo(1) == 1
            channel = channel_of(container)
            states = States(channel)
            process.stop()
            reply = worker.echo(2)
            await states.until(UNRESPONSIVE)
            await asyncio.sleep(6 * ENDLESS.patience)
            assert states.seen == [UNRESPONSIVE]
            process.go_on()
            assert await reply == 2
            await states.until(UNRESPONSIVE, CONNECTED)


async def test_process_that_is_stopped_for_too_long(wire: Any) -> None:
    """After busy_patience it is given up, although its host is there."""
    async with open_process(wire.address()) as process:
        url = await process.start()
        async with container_of(SHORT, resumable=False) as container:
            worker = await container.connect(url)
            channel = channel_of(container)
            states = States(channel)
            process.stop()
            with pytest.raises(PeerUnresponsiveError, match="busy_patience"):
                await worker.echo(2)
            assert states.seen == [UNRESPONSIVE, CLOSED]
            process.go_on()
            assert await worker.echo(3) == 3  # by a new connection


async def test_long_computation_in_a_handler(wire: Any) -> None:
    """A handler that computes for longer than patience gets its result through, and its own calls."""
    async with open_process(wire.address()) as process:
        url = await process.start()
        async with container_of(ENDLESS) as container:
            worker = await container.connect(url)
            states = States(channel_of(container))
            assert await worker.compute(0.3) == "done"
            await states.until(UNRESPONSIVE, CONNECTED)


async def test_peer_that_does_not_read_is_busy(wire: Any) -> None:
    """When even the system's buffers are full, so that a ping cannot leave, the peer is not taken for dead,
    and pings do not pile up behind the rest."""
    async with open_raw_server(wire, liveness=ENDLESS) as (channel, peer):
        await greet(peer)
        states = States(channel)
        peer.stop_reading()
        for _ in range(64):
            channel.post(bytes(2**20))
        await states.until(UNRESPONSIVE)
        unsent = channel._protocol.get_unsent_size()
        assert unsent > 0
        await asyncio.sleep(6 * ENDLESS.patience)
        assert channel._protocol.get_unsent_size() == unsent
        assert states.seen == [UNRESPONSIVE]
        peer.start_reading()
        while (msg := await peer.recv())[0] != PING:
            pass
        peer.send(PONG, msg[1])
        await states.until(UNRESPONSIVE, CONNECTED)
        assert not any(msg[0] != PING for msg in peer.frames)


async def test_ping_waits_behind_what_the_peer_has_not_read(wire: Any) -> None:
    """Who begins to read again comes to the ping at once, and need not wait for the next one."""
    async with open_raw_server(wire, liveness=CALM) as (channel, peer):
        await greet(peer)
        peer.stop_reading()
        for _ in range(64):
            channel.post(bytes(2**20))
        heartbeat = channel._protocol.heartbeat
        assert heartbeat is not None
        await wait_until(lambda: heartbeat._number)
        peer.start_reading()
        while (msg := await peer.recv())[0] != PING:
            assert msg[0] == MESSAGE


async def test_slow_sender_lives(wire: Any) -> None:
    """A large message that takes far longer than patience and busy_patience is a sign of life all the time;
    no ping is answered meanwhile."""
    async with open_raw_server(wire, liveness=SHORT) as (channel, peer):
        await greet(peer)
        states = States(channel)
        data = encode("msgpack", MESSAGE, 0, bytes(500_000))
        peer.send_bytes(data[:300_000])
        for start in range(300_000, len(data), 5000):
            await asyncio.sleep(0.02)
            peer.send_bytes(data[start : start + 5000])
        assert len((await channel.recv()).content) == 500_000
        assert states.seen == []


# -- Dead peers ------------------------------------------------------------------------------------


async def test_where_no_socket_is_seen_only_pings_count(transport: Any) -> None:
    """Over any transport that hides what is behind it, a silent peer is given up after patience."""
    async with open_hidden(transport, ENDLESS) as (channel, peer):
        await greet(peer)
        states = States(channel)
        reply = channel.send(1)
        with pytest.raises(PeerUnresponsiveError, match=r"its host is silent, too.*patience is 0\.06 s"):
            await reply
        await states.until(UNRESPONSIVE, CLOSED)


async def test_where_no_socket_is_seen_one_that_answers_lives(transport: Any) -> None:
    """Over any transport that hides what is behind it, a peer that answers is not given up."""
    async with open_hidden(transport, CALM) as (channel, peer):
        await greet(peer)
        for number in range(1, 6):
            assert await recv_ping(peer) == number
            peer.send(PONG, number)
        assert channel.state is CONNECTED


@pytest.mark.skipif(not IS_LINUX, reason="other systems do not tell")
@pytest.mark.parametrize("is_sending", [False, True])
async def test_host_that_has_gone(is_sending: bool) -> None:
    """On TCP the kernel sees that the host of the peer confirms nothing any more: it is given up after
    patience, however patient one is with busy peers; also if much waits to be sent to it."""
    from tests.conftest import Transport

    async with open_raw_server(Transport("tcp", None), liveness=ENDLESS) as (channel, peer):  # type: ignore[arg-type]
        await greet(peer)
        states = States(channel)
        vanish(peer.transport.get_extra_info("socket"))
        if is_sending:
            for _ in range(20):
                channel.post(bytes(2**20))
        start = time.monotonic()
        with pytest.raises(PeerUnresponsiveError, match="its host is silent, too"):
            await channel.send(1)
        assert time.monotonic() - start < 5
        await states.until(UNRESPONSIVE, CLOSED)


@pytest.mark.skipif(not IS_LINUX, reason="other systems do not tell")
async def test_host_that_goes_while_its_program_is_busy() -> None:
    """A busy peer whose host goes as well is given up after a further patience."""
    from tests.conftest import Transport

    async with open_raw_server(Transport("tcp", None), liveness=ENDLESS) as (channel, peer):  # type: ignore[arg-type]
        await greet(peer)
        states = States(channel)
        await states.until(UNRESPONSIVE)
        await asyncio.sleep(5 * ENDLESS.patience)
        assert states.seen == [UNRESPONSIVE]
        vanish(peer.transport.get_extra_info("socket"))
        await states.until(UNRESPONSIVE, CLOSED)


@pytest.mark.skipif(not IS_LINUX, reason="not every kernel has these options")
async def test_kernel_asks_where_pings_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has gone is noticed by the kernel where the peer knows no pings, and the error is the
    same."""
    from tests.conftest import Transport

    monkeypatch.setattr(kernel, "PROBES", 1)
    async with open_raw_server(Transport("tcp", None), liveness=SHORT) as (channel, peer):  # type: ignore[arg-type]
        states = States(channel)
        vanish(peer.transport.get_extra_info("socket"))
        await states.until(CLOSED)
        with pytest.raises(PeerUnresponsiveError, match="the connection broke"):
            channel.send(1)


@pytest.mark.skipif(not IS_LINUX, reason="other systems have other names for it")
async def test_options_of_the_socket() -> None:
    """Of the connections of both sides the kernel probes with the same figures, in whole seconds, and never
    ends one because its peer is slow to read."""
    from tests.conftest import Transport

    figures = Liveness(interval=7.5, patience=20)
    async with open_link(Transport("tcp", None), liveness=figures) as ends:  # type: ignore[arg-type]
        for channel in ends:
            sock = channel.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [8, 7, 3, 0]


@pytest.mark.parametrize("interval", [0.01, 1e6])
async def test_figures_that_the_kernel_cannot_take(interval: float) -> None:
    """The kernel gets the nearest that it can."""
    from tests.conftest import Transport

    figures = Liveness(interval=interval, patience=interval, busy_patience=None)
    async with open_link(Transport("tcp", None), liveness=figures) as (channel, _):  # type: ignore[arg-type]
        sock = channel.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        if IS_LINUX:
            idle = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            assert idle == (1 if interval < 1 else 32767)


async def test_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel cannot be asked, a silent peer counts as busy: nobody is declared dead for it."""
    from tests.conftest import Transport

    class Mute:
        family = socket.AF_INET

        def setsockopt(self, *_: object) -> None:
            raise OSError("not here")

        getsockopt = setsockopt

        def get_extra_info(self, name: str) -> Any:
            return self

    kernel.keep_alive(Mute(), SHORT)
    assert kernel.is_host_there(Mute(), 1)
    monkeypatch.setattr(kernel.sys, "platform", "elsewhere")
    async with open_raw_server(Transport("tcp", None), liveness=ENDLESS) as (channel, peer):  # type: ignore[arg-type]
        await greet(peer)
        states = States(channel)
        await states.until(UNRESPONSIVE)
        await asyncio.sleep(5 * ENDLESS.patience)
        assert states.seen == [UNRESPONSIVE]


async def test_half_open_connection_is_found_from_both_ends(wire: Any) -> None:
    """If what lies between swallows everything, both ends notice it, and give up; all calls end."""
    async with open_faulty_link(wire, liveness=SHORT) as (near, far, link):
        serve(far, lambda content: content)
        assert await near.send(1) == 1
        watches = States(near), States(far)
        link.hold()
        link.client.is_deaf = link.server.is_deaf = True  # nor does it pass on that one end has given up
        reply = near.send(2)
        for watch in watches:
            await watch.until(UNRESPONSIVE, CLOSED)
        for channel in (near, far):
            assert isinstance(channel._error, PeerUnresponsiveError)
        with pytest.raises(PeerUnresponsiveError):
            await reply


async def test_server_that_was_lost_behind_a_relay(wire: Any) -> None:
    """A connection whose other half has broken without a sign is found and ended."""
    async with open_faulty_link(wire, liveness=SHORT) as (near, far, link):
        serve(far, lambda content: content)
        assert await near.send(1) == 1
        watch = States(near)
        link.lose_server()
        with pytest.raises(PeerUnresponsiveError):
            await near.send(2)
        await watch.until(UNRESPONSIVE, CLOSED)


async def test_network_that_comes_back(wire: Any) -> None:
    """What was held back for a while arrives, both ends are well again, and no call is lost."""
    async with open_faulty_link(wire, liveness=ENDLESS) as (near, far, link):
        serve(far, lambda content: content)
        assert await near.send(1) == 1
        watches = States(near), States(far)
        link.hold()
        replies = [near.send(n) for n in range(10)]
        for watch in watches:
            await watch.until(UNRESPONSIVE)
        link.release()
        assert await asyncio.gather(*replies) == list(range(10))
        for watch in watches:
            await watch.until(UNRESPONSIVE, CONNECTED)


@pytest.mark.skipif(not IS_LINUX, reason="other systems do not tell")
async def test_connection_with_tls() -> None:
    """Below TLS the kernel is asked all the same: who does not read is busy, and whose host has gone is given
    up."""
    from tests.conftest import Transport

    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    tcp = Transport("tcp", None)  # type: ignore[arg-type]
    async with open_link(
        tcp, near={"ssl": client_context, "liveness": ENDLESS}, far={"ssl": server_context}
    ) as (near, far):
        serve(far, lambda content: content)
        assert await near.send(1) == 1
        states = States(near)
        far.transport.pause_reading()
        await states.until(UNRESPONSIVE)
        await asyncio.sleep(5 * ENDLESS.patience)
        far.transport.resume_reading()
        await states.until(UNRESPONSIVE, CONNECTED)
        vanish(far.get_extra_info("socket"))
        await states.until(UNRESPONSIVE, CONNECTED, UNRESPONSIVE, CLOSED)
        with pytest.raises(PeerUnresponsiveError, match="its host is silent"):
            near.send(2)
        far.transport.abort()  # whose end cannot hear that it is over


# -- Our own loop ----------------------------------------------------------------------------------


async def test_peer_is_not_blamed_for_our_own_loop(wire: Any) -> None:
    """However often, and whenever, our loop is blocked for longer than everything, a peer that answers is
    never suspected: what has come lies in the socket, or our ping has not left yet."""
    figures = Liveness(interval=0.03, patience=0.5, busy_patience=0.5)
    rng = random.Random(5)
    async with open_process(wire.address()) as process:
        url = await process.start()
        async with container_of(figures) as container:
            worker = await container.connect(url)
            states = States(channel_of(container))
            for _ in range(2):
                await asyncio.sleep(rng.random() * 0.1)
                time.sleep(0.6)  # noqa: ASYNC251
            assert await worker.echo(1) == 1
            assert states.seen == []


async def test_time_in_which_our_loop_was_blocked_is_not_counted(wire: Any) -> None:
    """A peer that has to answer gets all of its time, although our loop was blocked for longer than that."""
    async with open_raw_server(wire, liveness=Liveness(interval=0.03, patience=0.25)) as (channel, peer):
        await greet(peer)
        await recv_ping(peer)
        states = States(channel)
        time.sleep(0.4)  # noqa: ASYNC251
        start = time.monotonic()
        await states.until(UNRESPONSIVE)
        assert time.monotonic() - start >= 0.12


async def test_bytes_that_lie_in_the_socket_are_read_before_a_judgement(wire: Any) -> None:
    """Even if it is about to be judged, what has arrived by now is life."""
    async with open_raw_server(wire, liveness=Liveness(interval=50, patience=60)) as (channel, peer):
        await greet(peer)
        heartbeat = channel._protocol.heartbeat
        assert heartbeat is not None
        states = States(channel)
        for _ in range(20):
            pulse = heartbeat._pulse
            pulse.pinged = pulse._asked = pulse._quiet_since = heartbeat._loop.time() - 1000
            pulse._due = heartbeat._due = heartbeat._loop.time()
            peer.send_bytes(b"\0\0\0\4\x93\x08\1\xc0")
            assert heartbeat._handle is not None
            heartbeat._handle.cancel()
            heartbeat._look()
            await wait_until(lambda: pulse._asked is None)  # noqa: B023
        assert states.seen == []
        assert channel.state is CONNECTED


async def test_peer_is_not_judged_while_we_do_not_read(wire: Any) -> None:
    """When we do not read, for we have too much to do, the peer is not suspected; and we show it that we
    live, although we do not see its pings."""
    limits = channels.Limits(requests=1)
    async with open_link(wire, liveness=SHORT, far={"limits": limits}) as (near, far):
        near._exchange.recognize()
        far._exchange.recognize()
        watches = States(near), States(far)
        for n in range(20):
            near.post(n)
        await wait_until(lambda: not far._is_reading)
        await asyncio.sleep(0.6)  # SHORT is over after 0.39 s
        assert not far._is_reading
        assert [watch.seen for watch in watches] == [[], []]
        assert [(await far.recv()).content for _ in range(20)] == list(range(20))


async def test_looks_are_spread() -> None:
    """Connections that are made at once are not all looked at in the same moment, nor after the loop was
    blocked."""
    loop = asyncio.get_running_loop()

    class Silent:
        """As much of a channel as is needed."""

        received = 0
        _is_reading = True
        state = CONNECTED
        is_peer_ours = False

        def __init__(self) -> None:
            self._loop = loop
            self._protocol = self._exchange = self

        def _when_lost(self, callback: Callable[[Exception], None]) -> None:
            self.end = callback

    ends = [Silent() for _ in range(500)]
    hearts = [Heartbeat(end, Liveness(interval=0.3, patience=1)) for end in ends]  # type: ignore[arg-type]
    first = sorted(heart._due for heart in hearts)
    assert first[-1] - first[0] > 0.08
    for heart in hearts:
        heart._stop(OSError())
        heart._look_after(20)
    again = sorted(heart._due for heart in hearts)
    assert again[0] >= loop.time() + 19
    assert again[-1] - again[0] > 0.7
    for end in ends:
        end.end(OSError())
    assert all(heart._handle is None for heart in hearts)


# -- Connections that are taken up again -----------------------------------------------------------


@contextlib.asynccontextmanager
async def open_relayed(
    wire: Any, *, near: dict[str, Any] | None = None, far: dict[str, Any] | None = None, **kwds: Any
) -> AsyncIterator[tuple[Channel, Channel, list[FaultyLink]]]:
    """Give the two ends of a resumable connection, and what lies between them: a further link each time that
    the client dials; *near* and *far* are options of one end, and the others of both."""
    kwds["resumable"] = True
    links: list[FaultyLink] = []
    accepted: list[Channel] = []  # those after the first hand their transport over to that
    server = await channels.start_server(wire.address(), accepted.append, **kwds, **(far or {}))

    def make_link() -> asyncio.Protocol:
        links.append(FaultyLink(server.url))
        return links[-1]()

    async with server, listen_raw(wire, make_link) as address:
        client = await channels.open_connection(address, **kwds, **(near or {}))
        await wait_until(lambda: accepted)
        try:
            yield client, accepted[0], links
        finally:
            await client.close()
            for link in links:
                with contextlib.suppress(OSError):
                    await link.until_connected()
                link.close()
            await asyncio.gather(*[channel.close() for channel in accepted])


async def test_half_open_connection_is_taken_up_again(wire: Any) -> None:
    """If nothing passes any more, the transport is given up and another one takes its place; no call is lost,
    and the new one is looked after as the old one was."""
    async with open_relayed(wire, liveness=SHORT) as (near, far, links):
        serve(far, lambda content: content)
        assert await near.send(1) == 1
        await wait_until(lambda: far._exchange.is_peer_ours)
        expected: list[ConnectionState] = []
        states = States(near)
        for n in range(2):
            links[-1].hold()
            links[-1].client.is_deaf = links[-1].server.is_deaf = True
            replies = [near.send(n) for n in range(3)]
            assert await asyncio.gather(*replies) == [0, 1, 2]
            expected += [UNRESPONSIVE, ConnectionState.INTERRUPTED, CONNECTED]
            await states.until(*expected)
            assert len(links) == n + 2
        if wire.kind == "tcp" and IS_LINUX:
            sock = near.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 1
        await asyncio.sleep(2 * SHORT.interval)
        assert near.state is CONNECTED


async def test_peer_that_cannot_be_reached_anew(wire: Any) -> None:
    """If the peer does not answer on a new connection either, calls fail in the end, and the error says what
    it began with."""
    limits = channels.Limits(grace_time=0.3)
    async with open_relayed(wire, liveness=SHORT, limits=limits) as (near, far, links):
        serve(far, lambda content: content)
        assert await near.send(1) == 1
        states = States(near)
        links[0].hold()
        links[0].client.is_deaf = links[0].server.is_deaf = True
        reply = near.send(2)
        await states.until(UNRESPONSIVE)
        await far.close()
        with pytest.raises(SessionLostError, match="nothing has come from the peer"):
            await reply
        await states.until(UNRESPONSIVE, ConnectionState.INTERRUPTED, CLOSED)


async def test_function_may_close_an_interrupted_channel(wire: Any) -> None:
    """Who is told that a connection was interrupted may end it right then, at either end; nothing is left."""
    for side, name in enumerate(("near", "far")):
        # The other end notices nothing, or it might be faster and dial anew.
        async with open_relayed(wire, **{name: {"liveness": SHORT}}) as (near, far, links):
            serve(far, lambda content: content)
            assert await near.send(1) == 1
            await wait_until(lambda: far._protocol._resumption.can_resume)  # type: ignore[union-attr]
            channel = (near, far)[side]
            channel.on_state(
                lambda channel, state: (
                    channel._set_error(channels.ClosedByUsError("enough"))
                    if state is ConnectionState.INTERRUPTED
                    else None
                )
            )
            states = States(channel)
            resumption = channel._protocol._resumption
            assert resumption is not None
            links[0].hold()
            links[0].client.is_deaf = links[0].server.is_deaf = True
            await states.until(UNRESPONSIVE, ConnectionState.INTERRUPTED, CLOSED)
            if resumption._sessions is not None:
                assert resumption._sessions._broken == resumption._sessions._known == {}


# -- States ----------------------------------------------------------------------------------------


async def test_state_of_a_connection(transport: Any) -> None:
    """It is connected, then closed, on both sides, and each is told once."""
    async with open_link(transport) as (near, far):
        watches = States(near), States(far)
        assert near.state is far.state is CONNECTED
        await near.close()
        await near.close()
        for channel, watch in zip((near, far), watches, strict=True):
            await watch.until(CLOSED)
            assert channel.state is CLOSED
        near._set_state(CONNECTED)  # there is no way back
        assert near.state is CLOSED
        assert watches[0].seen == [CLOSED]


async def test_state_is_not_told_twice() -> None:
    """To be set to what it is already is no change."""
    near, far = await channels.open_pair("pair", loop=asyncio.get_running_loop())
    watch = States(near)
    for state in (CONNECTED, UNRESPONSIVE, UNRESPONSIVE, ConnectionState.INTERRUPTED, CONNECTED, CONNECTED):
        near._set_state(state)
    assert watch.seen == [UNRESPONSIVE, ConnectionState.INTERRUPTED, CONNECTED]
    await asyncio.gather(near.close(), far.close())


async def test_interrupted_connection_is_not_judged(wire: Any) -> None:
    """While a connection is being taken up again nobody is asked, and after that everything begins anew."""
    async with open_raw_server(wire, liveness=SHORT) as (channel, peer):
        await greet(peer)
        states = States(channel)
        await states.until(UNRESPONSIVE)
        channel._set_state(ConnectionState.INTERRUPTED)
        await asyncio.sleep(0.5)  # longer than busy_patience
        assert states.seen == [UNRESPONSIVE, ConnectionState.INTERRUPTED]
        channel._set_state(CONNECTED)
        await states.until(UNRESPONSIVE, ConnectionState.INTERRUPTED, CONNECTED, UNRESPONSIVE)


async def test_transport_may_be_given_up_without_the_channel(
    wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the end of a transport is not that of the channel, a dead peer is found again on the next one."""
    reasons = []

    def give_up(self: Channel, error: ChannelClosedError) -> None:
        reasons.append(time.monotonic())
        self._set_state(ConnectionState.INTERRUPTED)
        self._loop.call_soon(self._set_state, CONNECTED)

    monkeypatch.setattr(Channel, "_give_up_transport", give_up)
    async with open_raw_server(wire, liveness=SHORT) as (_, peer):
        await greet(peer)
        await wait_until(lambda: len(reasons) == 2)
        assert reasons[1] - reasons[0] >= SHORT.interval + 0.3 - 0.01


async def test_functions_are_told_in_order(caplog: pytest.LogCaptureFixture) -> None:
    """Each is told of each change in their order, even if one of them brings about the next; one that fails
    is logged, and the others are told; who has been removed is not."""
    near, far = await channels.open_pair("pair", loop=asyncio.get_running_loop())
    seen: list[tuple[str, ConnectionState]] = []

    def first(channel: Channel, state: ConnectionState) -> None:
        seen.append(("first", state))
        if state is UNRESPONSIVE:
            channel._set_error(channels.ClosedByUsError("enough"))
            remove_third()

    def second(channel: Channel, state: ConnectionState) -> None:
        seen.append(("second", state))
        raise ValueError("broken")

    def third(channel: Channel, state: ConnectionState) -> None:
        seen.append(("third", state))

    near.on_state(first)
    near.on_state(second)
    remove_third = near.on_state(third)
    near.on_state(third)
    with caplog.at_level(logging.ERROR, "aiomas_ng.liveness"):
        near._set_state(UNRESPONSIVE)
    told = ["first", "second", "third"]
    assert seen == [(name, state) for state in (UNRESPONSIVE, CLOSED) for name in told]
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
    remove_third()
    await asyncio.gather(near.close(), far.close())


async def test_function_that_ends_the_program_is_not_stopped() -> None:
    """SystemExit is no failure of a function, and does not leave the rest in disorder."""
    near, far = await channels.open_pair("pair", loop=asyncio.get_running_loop())
    seen = []

    def leave(channel: Channel, state: ConnectionState) -> None:
        if state is UNRESPONSIVE:
            channel._set_state(ConnectionState.INTERRUPTED)  # to be told when this one has been told to all
            raise SystemExit

    near.on_state(leave)
    near.on_state(lambda channel, state: seen.append(state))
    with pytest.raises(SystemExit):
        near._set_state(UNRESPONSIVE)
    near._set_state(CONNECTED)
    assert seen == [CONNECTED]
    await asyncio.gather(near.close(), far.close())


async def test_function_runs_in_the_context_of_its_own() -> None:
    """It is bound by no deadline, neither of who registers it nor of who brings about the change, and sees
    the context variables of the former."""
    near, far = await channels.open_pair("pair", loop=asyncio.get_running_loop())
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    seen = []

    def note(channel: Channel, state: ConnectionState) -> None:
        seen.append((name.get(), deadlines.remaining()))

    name.set("ours")
    with deadlines.within(5):
        near.on_state(note)

    def change() -> None:
        name.set("theirs")
        with deadlines.within(5):
            near._set_state(UNRESPONSIVE)

    contextvars.copy_context().run(change)
    assert seen == [("ours", None)]
    await asyncio.gather(near.close(), far.close())


async def test_what_is_no_function_is_refused(transport: Any) -> None:
    """A coroutine function would never be awaited, so it is refused at once."""

    async def later(channel: Channel, state: ConnectionState) -> None:
        raise AssertionError

    async with open_link(transport) as (near, _):
        for callback in (later, None, "print"):
            with pytest.raises(TypeError, match="on_state callback must be a plain function"):
                near.on_state(callback)  # type: ignore[arg-type]


@pytest.mark.parametrize("when", [UNRESPONSIVE, CONNECTED])
async def test_function_may_close_the_channel_that_it_is_told_of(wire: Any, when: ConnectionState) -> None:
    """Who is told that the peer does not answer, or does so again, may end the connection right then."""
    async with open_raw_server(wire, liveness=ENDLESS) as (channel, peer):

        def end(channel: Channel, state: ConnectionState) -> None:
            if state is when:
                channel._set_error(channels.ClosedByUsError("impatient"))

        await greet(peer)
        channel.on_state(end)
        states = States(channel)
        await states.until(UNRESPONSIVE, CLOSED) if when is UNRESPONSIVE else await states.until(UNRESPONSIVE)
        peer.send_bytes(b"\0")
        if when is CONNECTED:
            await states.until(UNRESPONSIVE, CONNECTED, CLOSED)
        assert channel._protocol.heartbeat is not None
        assert channel._protocol.heartbeat._handle is None


@pytest.mark.parametrize("turns", range(4))
async def test_channel_may_be_closed_while_the_peer_is_judged(wire: Any, turns: int) -> None:
    """Whenever the channel ends, nothing of the heartbeat is left, and nothing refers to the channel."""
    async with open_raw_server(wire, liveness=ENDLESS) as (channel, peer):
        await greet(peer)
        heartbeat = channel._protocol.heartbeat
        assert heartbeat is not None
        pulse = heartbeat._pulse
        pulse._asked = pulse._due = heartbeat._due = heartbeat._loop.time()
        assert heartbeat._handle is not None
        heartbeat._handle.cancel()
        heartbeat._look()
        for _ in range(turns):
            await asyncio.sleep(0)
        await channel.close()
        assert heartbeat._handle is None
        await asyncio.sleep(0.2)
        assert heartbeat._handle is None


async def test_closed_channel_is_freed(wire: Any) -> None:
    """A channel that has ended is not kept by its heartbeat."""
    async with open_link(wire, liveness=SHORT) as (near, far):
        serve(far, lambda content: content)
        assert await near.send(1) == 1
        assert near._protocol.heartbeat is not None
        gone = weakref.ref(near), weakref.ref(near._protocol.heartbeat._channel)
        del near, far
    await asyncio.sleep(0)
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


async def test_state_of_a_client(transport: Any) -> None:
    """Both ends of an RPC connection know its state."""

    class Service:
        router = rpc.Service()

    accepted: asyncio.Future[rpc.RpcClient] = asyncio.get_running_loop().create_future()
    server = await rpc.start_server(transport.address(), Service(), accepted.set_result, liveness=SHORT)
    client = await rpc.open_connection(server.url, liveness=SHORT)
    far = await accepted
    assert client.state is far.state is CONNECTED
    watch = States(far.channel)
    await client.close()
    await watch.until(CLOSED)
    assert client.state is far.state is CLOSED
    server.close()
    await far.close()


# -- Both ends of a container ----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def container_of(liveness: Liveness | None, **kwds: Any) -> AsyncIterator[Container]:
    """Give a container that is shut down at the end."""
    container = await Container.create(("127.0.0.1", 0), as_coro=True, liveness=liveness, **kwds)
    try:
        yield container
    finally:
        await container.shutdown(as_coro=True)


def channel_of(container: Container) -> Channel:
    """Return the channel of the one connection of a container."""
    (client,) = container._connections
    return client.channel


async def test_container_gives_its_figures_to_all_connections(wire: Any) -> None:
    """Those that it dials and those that it accepts; and ``None`` to all of them as well."""
    for figures in (SHORT, None):
        near = await Container.create(wire.address(), as_coro=True, liveness=figures)
        far = await Container.create(wire.address(), as_coro=True, liveness=figures)
        client = await near._peers.get(rpc.parse_url(far._base_url)[0]).connect()
        await wait_until(lambda: far._connections)  # noqa: B023
        for channel in (client.channel, channel_of(far)):
            assert channel._protocol.liveness == figures
            assert (channel._protocol.heartbeat is None) == (figures is None)
        await asyncio.gather(near.shutdown(as_coro=True), far.shutdown(as_coro=True))


def test_pulse_is_as_small_as_it_can_be() -> None:
    """There is one for each of many connections: neither it nor its shell has a dict."""
    assert not hasattr(Pulse(SHORT, 0, 0), "__dict__")
    assert "__dict__" not in dir(Heartbeat)


async def test_server_of_channels_takes_figures(transport: Any) -> None:
    """What a server is given holds for each connection that it accepts."""
    async with accept(transport, liveness=CALM) as (server, accepted):
        near = await channels.open_connection(server.url, liveness=None)
        far = await accepted
        assert far._protocol.liveness is CALM
        assert near._protocol.liveness is None
        assert frame(b"") == b"\0\0\0\0"
        await near.close()
