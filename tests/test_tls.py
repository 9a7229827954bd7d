"""Who may talk to whom over TLS: every way in which a handshake fails ends quickly, says why at both sides,
and lets nobody in; with both event loops, over TCP and Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiomas_ng
from aiomas_ng import channel as channels
from aiomas_ng import codecs, rpc
from aiomas_ng._core.log_limit import LOG_LINES
from aiomas_ng._core.tls_reasons import ALERT, explain_handshake, is_alert, is_client_hello
from aiomas_ng._io import tls, tls_handshake
from aiomas_ng._io.endpoint import as_address
from aiomas_ng._io.tls import Threshold
from aiomas_ng._io.tls_mistakes import is_mistaken
from aiomas_ng.agent import Agent, Container
from aiomas_ng.channel import Channel, Limits, Server
from aiomas_ng.exceptions import (
    ChannelClosedError,
    ClosedByPeerError,
    ClosedByUsError,
    ConnectError,
    TLSError,
    TLSRefusedError,
)
from aiomas_ng.util import SSLCerts
from tests.conftest import Transport
from tests.faults import FIRST_ID, REQUEST, encode
from tests.tls_certificates import Parties

LOGGER = "aiomas_ng.channel"

QUICK = 5.0
"""Seconds within which a refusal has to be known; far below the time limit of a handshake."""

HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Parties:
    """Everybody."""
    return Parties(tmp_path_factory.mktemp("parties"))


@pytest.fixture(scope="module", autouse=True)
def first_uvloop() -> None:
    """The first loop of uvloop opens pipes that live as long as the process; let no test be blamed."""
    if HAS_UVLOOP:
        import uvloop

        uvloop.new_event_loop().close()


@pytest.fixture(params=["asyncio", pytest.param("uvloop", marks=pytest.mark.needs("uvloop"))])
def on_loop(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Return a function that runs a coroutine in a loop of each kind that there is, in debug mode.

    What reaches the exception handler of the loop fails the test.
    """
    factory = None
    if request.param == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop

    def run(coro: Coroutine[Any, Any, Any]) -> Any:
        contexts: list[dict[str, Any]] = []

        async def observe() -> Any:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: contexts.append(context))
            async with asyncio.timeout(15):
                result = await coro
            for _ in range(5):
                await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return result

        with asyncio.Runner(debug=True, loop_factory=factory) as runner:
            result = runner.run(observe())
        assert not contexts
        return result

    return run


@pytest.fixture(params=["tcp", "unix"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """An address of each kind that leaves the process."""
    return Transport(request.param, tmp_path).address()


@contextlib.asynccontextmanager
async def serving(
    addr: Any, context: ssl.SSLContext | None, **kwds: Any
) -> AsyncIterator[tuple[Server, list[Channel]]]:
    """Give a server that answers each request with ``'pong'``, and the channels that it got to see."""
    seen: list[Channel] = []

    async def answer(channel: Channel) -> None:
        seen.append(channel)
        while True:
            await (await channel.recv()).reply("pong")

    server = await channels.start_server(addr, answer, ssl=context, **kwds)
    try:
        yield server, seen
    finally:
        server.close()
        await asyncio.gather(*(channel.close() for channel in seen))


async def ping(url: str, context: ssl.SSLContext | None, **kwds: Any) -> Any:
    """Connect and make a call."""
    channel = await channels.open_connection(url, ssl=context, **kwds)
    try:
        return await channel.send("ping")
    finally:
        await channel.close()


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log of channels has, all of it."""
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


# -- The matrix ------------------------------------------------------------------------------------

SAME = "signed by an authority that is not in cafile; both sides need certificates of the same one"

CASES: list[tuple[str, str, type[Exception], str, str]] = [
    # server, client, error at the client, what it says, what the log of the server says
    ("good", "no certificate", TLSRefusedError, "we have shown no certificate; give one", "shown no certif"),
    (
        "good",
        "wrong authority",
        TLSRefusedError,
        "authority that it does not know",
        f"of the client is {SAME}",
    ),
    ("good", "self-signed", TLSRefusedError, "our certificate is self-signed, or", "client is self-signed"),
    ("good", "expired", TLSRefusedError, "our certificate has expired; renew", "of the client has expired"),
    ("good", "not yet valid", TLSRefusedError, "our certificate is not valid yet", "client is not valid yet"),
    ("good", "TLS 1.2", TLSError, "other versions of TLS", "only speaks versions of TLS that are not accept"),
    ("good", "plain", TLSRefusedError, "peer speaks TLS, and this side does not; give", "does not speak TLS"),
    ("plain", "good", TLSError, "does not speak TLS: give both sides cert", "the peer speaks TLS, and this"),
    ("wrong authority", "good", TLSError, f"of the server is {SAME}", "authority that it does not know"),
    ("self-signed", "good", TLSError, "the server is self-signed", "our certificate is self-signed, or"),
    ("expired", "good", TLSError, "of the server has expired; renew", "our certificate has expired"),
    ("not yet valid", "good", TLSError, "server is not valid yet; check", "our certificate is not valid yet"),
    (
        "wrong name",
        "good",
        TLSError,
        "for another (name|address).*(localhost|127)",
        "client refuses the conn",
    ),
    ("TLS 1.2", "good", TLSError, "it speaks other versions", "only speaks versions of TLS that are not acc"),
]


@pytest.mark.parametrize(("at_server", "at_client", "error", "told", "logged"), CASES)
def test_refused(
    on_loop: Callable[..., Any],
    place: Any,
    parties: Parties,
    caplog: pytest.LogCaptureFixture,
    at_server: str,
    at_client: str,
    error: type[Exception],
    told: str,
    logged: str,
) -> None:
    """Who does not fit is refused at once with an error that says what is wrong; the server's log has one
    line, without a traceback; and where the server speaks TLS, it makes no channel for it."""

    async def scenario() -> None:
        async with serving(place, parties.context(at_server, is_server=True)) as (server, seen):
            with pytest.raises(ConnectError, match=told) as caught:
                async with asyncio.timeout(QUICK):
                    # That it would be tried for a long time must not delay it.
                    await ping(server.url, parties.context(at_client, is_server=False), timeout=600)
            assert type(caught.value) is error
            assert isinstance(caught.value, ssl.SSLError)
            assert "127.0.0.1" in str(caught.value) or str(place) in str(caught.value)
            while not refusals(caplog):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert not seen or at_server == "plain"
            assert not any(protocol.channel for protocol in server._connections)
            # It is as if nothing had been.
            if at_server == "good":
                assert await ping(server.url, parties.context("good", is_server=False)) == "pong"
                assert len(seen) == 1

    on_loop(scenario())
    (line,) = refusals(caplog)
    assert line.startswith("refused the connection from ")
    assert logged in line
    assert all(record.exc_info is None for record in caplog.records if record.levelno >= logging.WARNING)


def test_accepted(
    on_loop: Callable[..., Any], place: Any, parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    """Those who fit talk TLS 1.3, in both directions, and the context stays as its owner has made it."""

    async def scenario() -> None:
        server_side = parties.context("good", is_server=True)
        client_side = parties.context("good", is_server=False)
        assert server_side is not None
        assert client_side is not None
        async with serving(place, server_side) as (server, seen):
            channel = await channels.open_connection(server.url, ssl=client_side)
            assert await asyncio.gather(*(channel.send(number) for number in range(100))) == ["pong"] * 100
            assert await channel.send(b"x" * 2_000_000) == "pong"
            for end in (channel, seen[0]):
                assert end.get_extra_info("ssl_object").version() == "TLSv1.3"
                assert end.get_extra_info("peercert")["subjectAltName"]
            await channel.close()
        assert server_side.sslobject_class is client_side.sslobject_class is ssl.SSLObject

    on_loop(scenario())
    assert not refusals(caplog)


async def test_error_is_also_that_of_a_closed_channel(parties: Parties) -> None:
    """A server's refusal ends the channel: all calls fail with it, and say that they were not executed."""
    async with serving(("127.0.0.1", 0), parties.context("good", is_server=True)) as (server, _):
        channel = await channels.open_connection(server.url, ssl=parties.context("expired", is_server=False))
        calls = [channel.send(number) for number in range(3)]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert type(outcome) is TLSRefusedError
            assert isinstance(outcome, ClosedByPeerError)
            assert outcome.was_sent is False
            assert isinstance(outcome.__cause__, ssl.SSLError)
        with pytest.raises(TLSRefusedError, match=r"has expired.*not executed"):
            channel.send("late")
        with pytest.raises(TLSRefusedError, match="has expired"):
            await channel.recv()
        assert channel.is_closed


# -- Nothing is reached ----------------------------------------------------------------------------


class Vault(Agent):
    """Has seen whoever has reached it."""

    touched: list[str] = []  # noqa: RUF012  # of all, so that nothing escapes

    def __init__(self, container: Container) -> None:
        super().__init__(container, aid="vault")

    @aiomas_ng.state
    def power(self) -> int:
        """Take note of who reads a resource."""
        self.touched.append("resource")
        return 5

    @aiomas_ng.expose
    def touch(self, how: str) -> str:
        """Take note of a call."""
        self.touched.append(how)
        return how

    @aiomas_ng.expose
    async def touch_later(self, how: str) -> str:
        """Take note of a call, in a task."""
        self.touched.append(how)
        return how


class Watched(Container):
    """Takes note of whatever is connected to it."""

    connected: list[Any] = []  # noqa: RUF012

    def _add_connection(self, chan: Any, url: str | None = None) -> Any:
        self.connected.append(chan)
        return super()._add_connection(chan, url)

    @aiomas_ng.agent.Container.router.expose  # type: ignore[misc]
    def validate_aid(self, aid: str) -> str | None:
        """Take note of the question."""
        Vault.touched.append("validate_aid")
        return super().validate_aid(aid)


FRAMES = b"".join(
    [
        encode("msgpack", REQUEST, FIRST_ID, ["agents/vault/touch", ["call"], {}]),
        encode("msgpack", REQUEST, FIRST_ID + 1, ["agents/vault/touch_later", ["task"], {}]),
        encode("msgpack", REQUEST, FIRST_ID + 2, ["validate_aid", ["vault"], {}]),
        encode("msgpack", REQUEST, FIRST_ID + 3, [None, [["agents/vault/touch", ["batch"], {}]], {}]),
        encode("msgpack", 5, 0, ["agents/vault/touch", ["one-way"], {}]),
        encode("msgpack", 5, 1, [1, b"t", [11, "vault", 11, "power"], b""]),
    ]
)
"""Everything that a peer might try at once."""


def try_hard(address: tuple[str, int], context: ssl.SSLContext | None) -> bytes:
    """Connect with blocking sockets, send everything as early as possible, and return what comes back."""
    with socket.create_connection(address, timeout=10) as sock:
        received = bytearray()
        with contextlib.suppress(OSError):
            wrapped = sock if context is None else context.wrap_socket(sock, server_hostname=address[0])
            with wrapped:
                wrapped.sendall(FRAMES)
                while data := wrapped.recv(65536):
                    received += data
    return bytes(received)


@pytest.mark.parametrize(
    "who",
    ["no certificate", "wrong authority", "self-signed", "expired", "not yet valid", "TLS 1.2", "plain"],
)
def test_unauthorised_reaches_nothing(on_loop: Callable[..., Any], parties: Parties, who: str) -> None:
    """Whatever a peer sends that was not let in, however early: no channel is made for it, no callback is
    called, no method and no resource is reached, and it gets nothing back."""

    async def scenario() -> None:
        Watched.connected.clear()
        Vault.touched.clear()
        certs = parties.certs["good"]
        container = await Watched.create(("127.0.0.1", 0), ssl=certs, as_coro=True)
        try:
            Vault(container)
            address = as_address(container._base_url.rstrip("/"))
            answer = await asyncio.to_thread(try_hard, address, parties.context(who, is_server=False))
            assert answer == (ALERT if who == "plain" else b"")
            assert not Watched.connected
            assert not Vault.touched
            # The same frames of somebody who was let in reach all of it.
            loop = asyncio.get_running_loop()
            trying = loop.run_in_executor(None, try_hard, address, parties.context("good", is_server=False))
            while len(Vault.touched) < 6:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        finally:
            await container.shutdown(as_coro=True)
        assert len(await trying) > 100
        assert sorted(Vault.touched) == ["batch", "call", "one-way", "resource", "task", "validate_aid"]

    on_loop(scenario())


@pytest.mark.parametrize("who", ["no certificate", "expired", "plain", "TLS 1.2"])
async def test_containers_say_it_at_connect(parties: Parties, place: Any, who: str) -> None:
    """``Container.connect`` raises the clear error, with the address, although only a call has shown it; it
    does not try again."""
    good = parties.certs["good"]
    tls = parties.context("good", is_server=True), parties.context(who, is_server=False)
    async with contextlib.AsyncExitStack() as stack:
        inner = await Container.create(place, ssl=good, as_coro=True)
        stack.push_async_callback(inner.shutdown, as_coro=True)
        outer = await Container.create(("127.0.0.1", 0), ssl=None if who == "plain" else tls, as_coro=True)
        stack.push_async_callback(outer.shutdown, as_coro=True)
        agent = Agent(inner)
        with pytest.raises(TLSError, match=r"cannot connect to .*(certificate|TLS)") as caught:
            async with asyncio.timeout(QUICK):
                await outer.connect(agent.addr, timeout=600)
        target = as_address(inner._base_url.rstrip("/"))
        assert str(target[1] if isinstance(target, tuple) else target) in str(caught.value)
        assert not inner._connections


# -- Peers that waste our time ---------------------------------------------------------------------


def test_silent_client(
    on_loop: Callable[..., Any], parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    """Who connects and says nothing is dropped when its time is over, with one line."""

    async def scenario() -> None:
        context = parties.context("good", is_server=True)
        async with serving(("127.0.0.1", 0), context, ssl_handshake_timeout=0.05) as (server, seen):
            reader, writer = await asyncio.open_connection(*server.address.place)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            assert not seen

    on_loop(scenario())
    (line,) = refusals(caplog)
    assert "has not completed the TLS handshake within 0.05 s" in line


def test_client_that_hangs_up(
    on_loop: Callable[..., Any], parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    """Who ends the connection in the middle of the handshake leaves one line."""

    async def scenario() -> None:
        async with serving(("127.0.0.1", 0), parties.context("good", is_server=True)) as (server, seen):
            for count, data in enumerate((b"", hello(parties)[:100], hello(parties))):
                _, writer = await asyncio.open_connection(*server.address.place)
                writer.write(data)
                writer.close()
                while len(refusals(caplog)) <= count:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            assert not seen

    on_loop(scenario())
    assert len(refusals(caplog)) == 3
    assert all("ended the connection during the TLS handshake" in line for line in refusals(caplog))


def test_very_many_refusals(
    on_loop: Callable[..., Any], parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    """Of very many that are refused, each with a connection of its own, the log has some; their number comes
    when the server is closed. Those that another server refuses are not hidden by it."""
    count = LOG_LINES + 5

    async def hang_up(server: Server) -> None:
        reader, writer = await asyncio.open_connection(*server.address.place)
        writer.write(b"\0\0\0\1x")  # no TLS
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    async def scenario() -> None:
        context = parties.context("good", is_server=True)
        async with (
            serving(("127.0.0.1", 0), context) as (flooded, _),
            serving(("127.0.0.1", 0), context) as (other, _),
        ):
            for _ in range(count):
                await hang_up(flooded)
            assert flooded._entrance is not None
            while flooded._entrance._tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            before = len(refusals(caplog))
            await hang_up(other)
            assert len(refusals(caplog)) == before + 1
            flooded.close()

    on_loop(scenario())
    lines = refusals(caplog)
    assert sum("does not speak TLS" in line for line in lines) == LOG_LINES + 1
    assert "counted and not logged" in lines[LOG_LINES]
    assert lines[-1].startswith("5 more lines about refused connections to ")


async def test_very_many_without_tls(parties: Parties, caplog: pytest.LogCaptureFixture) -> None:
    """The same for those who come with TLS to a server that has none."""
    async with serving(("127.0.0.1", 0), None) as (server, _):
        for _ in range(LOG_LINES + 5):
            reader, writer = await asyncio.open_connection(*server.address.place)
            writer.write(hello(parties))
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
    lines = refusals(caplog)
    assert sum("this side does not" in line for line in lines) == LOG_LINES
    assert lines[-1].startswith("5 more lines about refused connections to ")


def hello(parties: Parties) -> bytes:
    """Return what a client of TLS begins with."""
    context = parties.context("good", is_server=False)
    assert context is not None
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_client_that_does_not_go(
    on_loop: Callable[..., Any],
    parties: Parties,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who was refused, goes on sending and does not end the connection is cut off."""
    monkeypatch.setattr(tls_handshake, "LINGER_TIME", 0.05)

    async def scenario() -> None:
        async with serving(("127.0.0.1", 0), parties.context("good", is_server=True)) as (server, seen):
            reader, writer = await asyncio.open_connection(*server.address.place)
            with contextlib.suppress(ConnectionError):
                writer.write(b"\0\0\0\1x" * 100)
                assert await reader.readexactly(len(ALERT)) == ALERT
                while True:
                    writer.write(b"x" * 1000)
                    await writer.drain()
                    await asyncio.sleep(0.001)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            assert not seen

    on_loop(scenario())
    (line,) = refusals(caplog)
    assert "does not speak TLS" in line


def test_crowd(
    on_loop: Callable[..., Any],
    parties: Parties,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only so many handshakes are under way at a time; more are refused, which is logged once; when those
    that were begun have ended, all is well."""
    monkeypatch.setattr(tls, "MAX_HANDSHAKES", 3)

    async def scenario() -> None:
        context = parties.context("good", is_server=False)
        async with serving(("127.0.0.1", 0), parties.context("good", is_server=True)) as (server, _):
            idle = [await asyncio.open_connection(*server.address.place) for _ in range(3)]
            assert server._entrance is not None
            while len(server._entrance._tasks) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            for _ in range(5):
                with pytest.raises(ConnectError, match="ended the connection"):
                    await ping(server.url, context)
            assert refusals(caplog) == ["refusing connections: 3 TLS handshakes are under way"]
            for _, writer in idle:
                writer.close()
            assert await ping(server.url, context, timeout=10) == "pong"

    on_loop(scenario())


@pytest.mark.parametrize("side", ["near", "far"])
async def test_taken_up_again(parties: Parties, place: Any, side: str) -> None:
    """A resumable connection over TLS that is cut is taken up again, with the call that is under way; the
    server has checked the certificate once more."""
    asked, answer = asyncio.Event(), asyncio.Event()

    class Slow(Agent):
        @aiomas_ng.expose
        async def ask(self) -> str:
            asked.set()
            await answer.wait()
            return "answer"

    good = parties.certs["good"]
    async with contextlib.AsyncExitStack() as stack:
        near = await Container.create(place, ssl=good, as_coro=True)
        stack.push_async_callback(near.shutdown, as_coro=True)
        far = await Container.create(("127.0.0.1", 0), ssl=good, as_coro=True)
        stack.push_async_callback(far.shutdown, as_coro=True)
        proxy = await far.connect(Slow(near).addr)
        reply = proxy.ask()
        await asked.wait()
        (client,) = (near if side == "near" else far)._connections
        wire = client.channel.transport.wire
        wire.abort()
        while client.channel.transport.wire in (None, wire):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        answer.set()
        assert await reply == "answer"
        assert client.channel.get_extra_info("ssl_object").version() == "TLSv1.3"


def test_server_closed_meanwhile(on_loop: Callable[..., Any], parties: Parties) -> None:
    """A server that is closed gives up handshakes that are under way; nothing is left of them."""

    async def scenario() -> None:
        async with serving(("127.0.0.1", 0), parties.context("good", is_server=True)) as (server, seen):
            writers = [(await asyncio.open_connection(*server.address.place)) for _ in range(5)]
            assert server._entrance is not None
            while len(server._entrance._tasks) < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            server.close()
            for reader, writer in writers:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
            assert not server._entrance._tasks
            assert not seen

    on_loop(scenario())


@contextlib.asynccontextmanager
async def mute_server() -> AsyncIterator[tuple[str, int]]:
    """Give the address of a server that accepts connections and says nothing."""
    writers = []
    server = await asyncio.start_server(lambda reader, writer: writers.append(writer), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


def test_mute_server(on_loop: Callable[..., Any], parties: Parties) -> None:
    """A server that does not answer the handshake costs the time that a handshake may take, and the error
    asks whether it uses TLS; cancelling and timing out leave nothing behind."""

    async def scenario() -> None:
        context = parties.context("good", is_server=False)
        async with mute_server() as address:
            with pytest.raises(ConnectError, match=r"within 0.05 s; does it use TLS at all\?"):
                await channels.open_connection(address, ssl=context, ssl_handshake_timeout=0.05)
            with pytest.raises(ConnectError, match=r"no answer within 0.05 s"):
                await channels.open_connection(address, ssl=context, timeout=0.05)
            task = asyncio.create_task(channels.open_connection(address, ssl=context))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    on_loop(scenario())


@contextlib.asynccontextmanager
async def held_up(target: tuple[str, int], go: asyncio.Event) -> AsyncIterator[tuple[str, int]]:
    """Give an address whose connections lead on to *target*; what the client sends is held until *go*."""
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None]] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_held: bool) -> None:
        with contextlib.suppress(ConnectionError):
            if is_held:
                await go.wait()
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def connected(near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        reader, writer = await asyncio.open_connection(*target)
        writers.extend((near_writer, writer))
        tasks.append(asyncio.create_task(pump(near_reader, writer, True)))
        tasks.append(asyncio.create_task(pump(reader, near_writer, False)))

    relay = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield relay.sockets[0].getsockname()
    finally:
        go.set()
        relay.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("side", ["client", "server"])
def test_limit_of_a_handshake(
    on_loop: Callable[..., Any], parties: Parties, caplog: pytest.LogCaptureFixture, side: str
) -> None:
    """A handshake may take as long as ``Limits.handshake_time`` of either side says, and no longer: one that
    is held up for less goes on, and one for more is given up then, not before. The other side's limit, and
    none at all, do not matter."""

    async def connect(seconds: float, pause: float) -> tuple[str | None, float]:
        """Say why a handshake fails that is held up for *pause*, and how long it has taken."""
        loop, go = asyncio.get_running_loop(), asyncio.Event()
        limits = {"client": Limits(handshake_time=float("inf")), "server": Limits(handshake_time=1000)}
        limits[side] = Limits(handshake_time=seconds)
        context = parties.context("good", is_server=True)
        begin = loop.time()
        async with (
            serving(("127.0.0.1", 0), context, limits=limits["server"]) as (server, _),
            held_up(server.address.place, go) as address,
        ):
            if pause < seconds:
                loop.call_later(pause, go.set)
            context = parties.context("good", is_server=False)
            try:
                assert await ping(f"tcp://127.0.0.1:{address[1]}", context, limits=limits["client"]) == "pong"
            except ConnectError as error:
                return str(error), loop.time() - begin
            return None, loop.time() - begin

    async def scenario() -> None:
        reason, taken = await connect(5, 0.1)
        assert reason is None
        assert taken >= 0.1
        assert not refusals(caplog)
        reason, taken = await connect(0.1, 5)
        assert 0.1 <= taken < 5
        text = f"the {'client' if side == 'server' else 'server'} has not completed the TLS handshake within"
        where = refusals(caplog) if side == "server" else [str(reason)]
        assert reason is not None
        assert any(f"{text} 0.1 s" in line for line in where)

    on_loop(scenario())


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
async def test_no_time_for_a_handshake(parties: Parties, seconds: float) -> None:
    """A time that is none is refused at once, on both sides."""
    context = parties.context("good", is_server=True)
    with pytest.raises(ValueError, match="ssl_handshake_timeout must be > 0"):
        await channels.start_server(("127.0.0.1", 0), print, ssl=context, ssl_handshake_timeout=seconds)
    with pytest.raises(ValueError, match="ssl_handshake_timeout must be > 0"):
        await channels.open_connection(("127.0.0.1", 1), ssl=context, ssl_handshake_timeout=seconds)


async def test_cancelled_at_each_point(parties: Parties) -> None:
    """An attempt can be cancelled in any turn of the loop; neither side is left with anything."""
    context = parties.context("good", is_server=False)
    async with serving(("127.0.0.1", 0), parties.context("good", is_server=True)) as (server, _):
        for turns in range(40):
            task = asyncio.create_task(channels.open_connection(server.url, ssl=context))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await task).close()
        assert server._entrance is not None
        while server._entrance._tasks or server._connections:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert await ping(server.url, context) == "pong"


async def test_server_that_is_not_there_yet(parties: Parties) -> None:
    """A server that ends connections without a word may be about to start, so it is tried again."""
    attempts = 0

    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.transport.abort()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    context = parties.context("good", is_server=False)
    try:
        with pytest.raises(ConnectError, match=r"ended the connection during the TLS handshake|no answer"):
            await channels.open_connection(server.sockets[0].getsockname(), ssl=context, timeout=0.2)
        assert attempts > 1
    finally:
        server.close()


# -- What comes right behind the handshake ---------------------------------------------------------


def test_message_and_end_right_behind_the_handshake(on_loop: Callable[..., Any], parties: Parties) -> None:
    """A one-way message of a client that ends the connection at once arrives, however the bytes come."""

    def send_and_go(address: tuple[str, int], count: int) -> None:
        context = parties.context("good", is_server=False)
        assert context is not None
        for number in range(count):
            outgoing, incoming = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = context.wrap_bio(incoming, outgoing, server_hostname=address[0])
            with socket.create_connection(address, timeout=10) as sock:
                while True:
                    try:
                        client.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        sock.sendall(outgoing.read())
                        incoming.write(sock.recv(65536))
                client.write(encode("msgpack", 5, 0, number))
                with contextlib.suppress(ssl.SSLWantReadError):
                    client.unwrap()
                sock.sendall(outgoing.read())  # the end of the handshake, the message and the end in one

    async def scenario() -> None:
        got: list[Any] = []
        lost: list[ChannelClosedError] = []

        async def take(channel: Channel) -> None:
            channel._when_lost(lost.append)
            got.append((await channel.recv()).content)

        server = await channels.start_server(
            ("127.0.0.1", 0), take, ssl=parties.context("good", is_server=True)
        )
        try:
            await asyncio.to_thread(send_and_go, server.address.place, 10)
            while len(got) < 10 or len(lost) < 10 or server._connections:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert got == list(range(10))
        finally:
            server.close()

    on_loop(scenario())


def test_calls_of_a_server_right_behind_the_handshake(on_loop: Callable[..., Any], parties: Parties) -> None:
    """A server that calls as soon as it has a channel is heard."""

    async def scenario() -> None:
        answers: list[Any] = []

        async def ask(channel: Channel) -> None:
            answers.append(await channel.send("who?"))
            answers.append(await channel.send(b"x" * 500_000))

        server = await channels.start_server(
            ("127.0.0.1", 0), ask, ssl=parties.context("good", is_server=True)
        )
        try:
            channel = await channels.open_connection(server.url, ssl=parties.context("good", is_server=False))
            await (await channel.recv()).reply("me")
            await (await channel.recv()).reply("thanks")
            while len(answers) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await channel.close()
        finally:
            server.close()
            server.close_clients()

    on_loop(scenario())


async def test_connection_that_breaks_can_be_closed(parties: Parties) -> None:
    """A connection that is reset, at whichever side, ends; to close it then returns."""
    for side in ("server", "client"):
        async with serving(("127.0.0.1", 0), parties.context("good", is_server=True)) as (server, seen):
            channel = await channels.open_connection(server.url, ssl=parties.context("good", is_server=False))
            assert await channel.send("ping") == "pong"
            ends = {"server": seen[0], "client": channel}
            sock = ends[side].get_extra_info("socket")
            linger = struct.pack("ii", 1, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            ends[side].transport.abort()
            async with asyncio.timeout(QUICK):
                with pytest.raises(ChannelClosedError):
                    await channel.recv()
                for end in ends.values():
                    await end.close()


class RecordingProtocol(asyncio.Protocol):
    """Takes note of what it is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def connection_made(self, transport: Any) -> None:
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.events.append(data)

    def eof_received(self) -> None:
        self.events.append("eof")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.events.append("lost")

    def pause_writing(self) -> None:
        self.events.append("pause")


class TransportStub:
    """A transport of which only the protocol matters."""

    protocol: Any = None

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (name, default)

    def abort(self) -> None:
        self.protocol = "aborted"


def test_hand_over() -> None:
    """Everything that has happened before the channel was there is told to it, in order, and once."""
    threshold, protocol, transport = Threshold(), RecordingProtocol(), TransportStub()
    threshold.pause_writing()
    threshold.data_received(b"a")
    threshold.data_received(b"b")
    threshold.hand_over(transport, protocol)
    assert protocol.events == ["made", "pause", b"ab"]
    assert transport.protocol is protocol


def test_hand_over_what_is_lost() -> None:
    """Even if the connection is gone altogether, all that it has brought is heard, and its end."""
    threshold, transport, protocol = Threshold(), TransportStub(), RecordingProtocol()
    threshold.data_received(b"a")
    threshold.connection_lost(None)
    threshold.hand_over(transport, protocol)
    assert protocol.events == ["made", b"a", "eof", "lost"]


def test_hand_over_what_has_ended() -> None:
    """If the peer has gone, its last words are still heard; the transport that stands in takes everything."""
    threshold, transport = Threshold(), TransportStub()
    seen: list[Any] = []

    class Protocol(RecordingProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            seen.append(transport)

    protocol = Protocol()
    threshold.pause_writing()
    threshold.resume_writing()
    threshold.data_received(b"a")
    threshold.eof_received()
    threshold.hand_over(transport, protocol)
    assert transport.protocol is None
    threshold.connection_lost(None)
    assert protocol.events == ["made", b"a", "eof", "lost"]
    (stand_in,) = seen
    stand_in.write(b"x")
    stand_in.pause_reading()
    stand_in.resume_reading()
    stand_in.close()
    assert stand_in.is_closing()
    assert stand_in.get_write_buffer_size() == 0
    assert stand_in.get_extra_info("peername") == ("peername", None)
    stand_in.abort()
    assert transport.protocol == "aborted"


# -- Contexts --------------------------------------------------------------------------------------


async def test_own_class_of_ssl_objects(parties: Parties) -> None:
    """A context whose owner has a class of SSL objects of their own keeps it, and refuses as well."""

    class Own(ssl.SSLObject):
        made = 0

        def do_handshake(self) -> None:
            type(self).made += 1
            super().do_handshake()

    server_side = parties.context("good", is_server=True)
    assert server_side is not None
    server_side.sslobject_class = Own
    async with serving(("127.0.0.1", 0), server_side) as (server, seen):
        assert await ping(server.url, parties.context("good", is_server=False)) == "pong"
        with pytest.raises(ChannelClosedError, match="it may not accept our certificate"):
            await ping(server.url, parties.context("expired", is_server=False))
        assert len(seen) == 1
    assert server_side.sslobject_class is Own
    assert Own.made


@pytest.mark.parametrize("bad", ["yes", 1, SSLCerts("a", "b", "c")])
async def test_what_is_no_context(bad: Any, place: Any) -> None:
    """Something else as ``ssl`` is a ``TypeError`` at both sides."""
    with pytest.raises(TypeError, match="SSLContext"):
        await channels.start_server(place, lambda channel: None, ssl=bad)
    with pytest.raises(TypeError, match="SSLContext"):
        await channels.open_connection(place, ssl=bad)


async def test_default_context(parties: Parties) -> None:
    """``ssl=True`` stands for the system's authorities at a client, which do not know ours."""
    async with serving(("127.0.0.1", 0), parties.context("good", is_server=True)) as (server, _):
        with pytest.raises(TLSError, match="authority that is not in cafile"):
            await ping(server.url, True)  # type: ignore[arg-type]


async def test_server_hostname(parties: Parties, place: Any) -> None:
    """Another name than that of the address can be asked for."""
    async with serving(place, parties.context("wrong name", is_server=True)) as (server, _):
        client = parties.context("good", is_server=False)
        assert await ping(server.url, client, server_hostname="elsewhere.example") == "pong"
        with pytest.raises(TLSError, match=r"another name.*other.example"):
            await ping(server.url, client, server_hostname="other.example")


async def test_expired_while_connected_cannot_come_back(parties: Parties) -> None:
    """No ticket is given out, so nobody can resume a session with a certificate that is not valid any more:
    each connection shows it anew."""
    context = parties.context("good", is_server=False)
    assert context is not None
    sessions: list[Any] = []

    def talk(address: tuple[str, int], session: ssl.SSLSession | None) -> bool | None:
        with (
            socket.create_connection(address, timeout=10) as sock,
            context.wrap_socket(sock, server_hostname=address[0], session=session) as wrapped,
        ):
            wrapped.sendall(encode("msgpack", REQUEST, 0, "ping"))
            assert wrapped.recv(1000)
            sessions.append(wrapped.session)
            return wrapped.session_reused

    async with serving(("127.0.0.1", 0), parties.context("good", is_server=True)) as (server, _):
        assert not await asyncio.to_thread(talk, server.address.place, None)
        assert not sessions[0].has_ticket
        assert not await asyncio.to_thread(talk, server.address.place, sessions[0])


# -- Only one of both sides uses TLS ---------------------------------------------------------------


async def test_large_frames_hide_no_handshake(parties: Parties) -> None:
    """A server without TLS knows a handshake even where its length would be that of an allowed frame."""
    server = await channels.start_server(
        ("127.0.0.1", 0), lambda channel: None, limits=Limits(frame_size=2**32 - 1)
    )
    try:
        with pytest.raises(TLSError, match="does not speak TLS"):
            async with asyncio.timeout(QUICK):
                await ping(server.url, parties.context("good", is_server=False))
    finally:
        server.close()


@settings(max_examples=50)
@given(
    st.sampled_from([codecs.MsgPack, codecs.JSON]),
    st.integers(0, 2**32 - 1),
    st.one_of(st.none(), st.text(), st.binary().map(repr), st.lists(st.integers())),
    st.sampled_from([0x1503030002, 0x1503010002, 0x1603010200, 0x1603010001, 0x1603030093]),
)
def test_no_request_is_taken_for_tls(codec: Any, msg_id: int, content: Any, length: int) -> None:
    """What a peer of ours begins with is never taken for TLS, whatever the length in front of it."""
    payload = codec().encode((REQUEST, msg_id, content))
    assert not is_mistaken(struct.pack("!L", len(payload)) + payload)
    assert not is_client_hello(struct.pack("!L", length >> 8) + payload)


def test_tls_is_recognized(parties: Parties) -> None:
    """The begin of a handshake and an alert are known, by OpenSSL's own and by the standard's form."""
    assert is_client_hello(hello(parties))
    assert is_alert(ALERT)
    assert is_alert(b"\x15\x03\x01\x00\x02\x02\x46")
    assert not is_alert(hello(parties))
    for data in (b"", b"\x16\x03\x01", b"\x00\x00\x00\x05abcde", b"GET / HTTP/1.1\r\n"):
        assert not is_mistaken(data)


async def test_client_without_tls_at_a_foreign_server(parties: Parties) -> None:
    """An alert of any server tells a client without TLS what is wrong."""

    def alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x15\x03\x01\x00\x02\x02\x46")
        writer.close()

    server = await asyncio.start_server(alert, "127.0.0.1", 0)
    try:
        with pytest.raises(TLSRefusedError, match="peer speaks TLS, and this side does not; give it cert"):
            await ping("tcp://{}:{}".format(*server.sockets[0].getsockname()), None)
    finally:
        server.close()


# -- Words -----------------------------------------------------------------------------------------


def make_error(cls: type[ssl.SSLError], **attributes: Any) -> ssl.SSLError:
    error = cls(1, "as OpenSSL has it")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (make_error(ssl.SSLError, reason="SSLV3_ALERT_CERTIFICATE_REVOKED"), "refuses.*was revoked"),
        (make_error(ssl.SSLError, reason="TLSV1_ALERT_WHAT_IS_THIS"), "refuses.*alert 'what is this'"),
        (make_error(ssl.SSLError, reason="NO_SHARED_CIPHER"), "no cipher in common"),
        (
            make_error(ssl.SSLError, reason="BAD_DIGEST_LENGTH"),
            "TLS with the server failed: bad digest length",
        ),
        (make_error(ssl.SSLError, reason=None), "as OpenSSL has it"),
        (make_error(ssl.SSLEOFError, reason="UNEXPECTED_EOF"), "ended the connection during"),
        (ConnectionResetError(), "ended the connection during"),
        (
            make_error(ssl.SSLCertVerificationError, verify_code=7, verify_message="odd signature"),
            "certificate of the server is not accepted: odd signature",
        ),
        (
            make_error(ssl.SSLCertVerificationError, verify_code=23, verify_message="revoked"),
            "certificate of the server was revoked",
        ),
    ],
)
def test_words(error: BaseException, text: str) -> None:
    """Every error of OpenSSL becomes a sentence, an unknown one as well."""
    assert re.search(text, explain_handshake(error, "server"))


# -- Exposure --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "has_warning"),
    [("0.0.0.0", True), ("", True), (None, True), ("127.0.0.1", False), ("localhost", False)],
)
@pytest.mark.parametrize("options", [{}, {"ssl": True}, {"insecure": True}], ids=str)
async def test_all_interfaces(
    caplog: pytest.LogCaptureFixture, parties: Parties, host: Any, has_warning: bool, options: dict[str, Any]
) -> None:
    """To listen on all interfaces without TLS leaves one warning that says what to do, unless it is meant."""
    if "ssl" in options:
        options = {"ssl": parties.context("good", is_server=True)}
    server = await rpc.start_server((host, 0), rpc.ServiceDict(), **options)
    server.close()
    warnings = refusals(caplog)
    assert len(warnings) == (has_warning and not options)
    for warning in warnings:
        assert "all interfaces without TLS" in warning
        assert "insecure=True" in warning
        assert str(server.address.place[1]) in warning


async def test_container_on_all_interfaces(caplog: pytest.LogCaptureFixture) -> None:
    """A container warns as well, once, and can be told that it is meant."""
    for insecure in (False, True):
        caplog.clear()
        container = await Container.create(("", 0), insecure=insecure, as_coro=True)
        await container.shutdown(as_coro=True)
        assert len(refusals(caplog)) == (not insecure)


def test_frames_are_what_msgpack_makes() -> None:
    """The frames that are tried are well-formed."""
    size = struct.unpack_from("!L", FRAMES)[0]
    assert msgpack.unpackb(FRAMES[4 : 4 + size])[2][0] == "agents/vault/touch"


async def test_closed_by_us_is_no_refusal(parties: Parties) -> None:
    """A client that closes its own channel before anything has come is not told of certificates."""
    async with serving(("127.0.0.1", 0), parties.context("good", is_server=True)) as (server, _):
        channel = await channels.open_connection(server.url, ssl=parties.context("good", is_server=False))
        call = channel.send("ping")
        await channel.close()
        with pytest.raises(ClosedByUsError, match="closed on this side"):
            await call
