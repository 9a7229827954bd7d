"""Connections that break and are taken up again: over every transport, with all that may be under way."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import faults
import pytest
from faults import SESSION, FaultyLink, RawPeer, connect_raw, listen_raw, serve, until

from aiomas_ng import Agent, Container, expose, rpc
from aiomas_ng import channel as channels
from aiomas_ng._core.session import State
from aiomas_ng._io import resumption as resumptions
from aiomas_ng.channel import Channel, Limits, Server
from aiomas_ng.exceptions import (
    ClosedByPeerError,
    ClosedByUsError,
    OverloadError,
    SessionLostError,
)
from aiomas_ng.util import as_ssl_context
from tests.conftest import Transport
from tests.tls_certificates import Certificates

SHORT = Limits(grace_time=0.3, refusal_time=0.1)
MIB = 2**20


@contextlib.asynccontextmanager
async def open_link(transport: Any, **kwds: Any) -> AsyncIterator[tuple[Channel, Channel]]:
    """Give the ends of a resumable connection whose session is open: client and server."""
    accepted: asyncio.Queue[Channel] = asyncio.Queue()
    kwds.setdefault("resumable", True)
    async with await channels.start_server(transport.address(), accepted.put_nowait, **kwds) as server:
        client = await channels.open_connection(server.url, **kwds)
        far = await accepted.get()
        try:
            await begin(client, far)
            yield client, far
        finally:
            await client.close()
            await far.close()
            while not accepted.empty():
                await accepted.get_nowait().close()


async def begin(client: Channel, far: Channel, func: Any = lambda content: content) -> None:
    """Serve requests at the far end, and let both ends find out that they can resume."""
    serve(far, func)
    assert await client.send("first") == "first"
    assert resumption_of(client).session.state is State.OPEN
    await until(lambda: far._exchange.is_peer_ours)
    assert resumption_of(far).session.state is State.OPEN


def resumption_of(channel: Channel) -> Any:
    resumption = channel._protocol._resumption
    assert resumption is not None
    return resumption


def cut(channel: Channel) -> None:
    """Break the transport of a channel."""
    wire = channel.transport.wire
    assert wire is not None
    wire.abort()


async def until_resumed(channel: Channel) -> None:
    await until(lambda: resumption_of(channel).session.state is State.OPEN and channel.transport.wire)


async def until_broken(channel: Channel) -> None:
    await until(lambda: channel.transport.wire is None)


def slow(gate: asyncio.Event) -> Any:
    async def handle(content: Any) -> Any:
        await gate.wait()
        return content

    return handle


# -- What was under way goes on --------------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "server"])
async def test_calls_go_on(transport: Any, side: str) -> None:
    """Calls that wait, and those made while there is no transport, end as if nothing had happened, whichever
    end sees the break."""
    gate = asyncio.Event()
    calls: list[Any] = []
    async with open_link(transport) as (client, far):

        async def handle(content: Any) -> Any:
            calls.append(content)
            await gate.wait()
            return content

        serve(far, handle)
        before = [client.send(number) for number in range(3)]
        await until(lambda: len(calls) == 3)
        cut(client if side == "client" else far)
        await until_broken(client)
        after = [client.send(number) for number in range(3, 6)]
        await until_resumed(client)
        gate.set()
        assert await asyncio.gather(*before, *after) == list(range(6))
        assert calls == list(range(6))
        assert not far._exchange.jobs


async def test_one_way_messages_arrive_once_and_in_order(transport: Any) -> None:
    """Each one-way message arrives once, in order, with the requests, over many breaks at either side."""
    received: list[Any] = []
    async with open_link(transport) as (client, far):
        serve(far, received.append)
        for number in range(500):
            client.post(number)
            if number % 3 == 0:
                await asyncio.sleep(0)
            if number % 20 == 10 and client.transport.wire is not None:
                cut(client if number % 40 == 10 else far)
        await client.send(500)
        assert received == list(range(501))


async def test_stream_goes_on(transport: Any) -> None:
    """A stream that is interrupted goes on with the next item."""

    async def count(number: int) -> AsyncIterator[int]:
        for item in range(number):
            yield item
            await asyncio.sleep(0)

    async with open_link(transport) as (client, far):
        serve(far, count)
        items = []
        async for item in client.send(300):
            items.append(item)
            if item % 50 == 25:
                cut(client)
        assert items == list(range(300))


@pytest.mark.parametrize("size", [100, 100_000, 3 * MIB])
async def test_cut_within_a_frame(transport: Any, size: int) -> None:
    """A frame that was cut is completed over the next transport, a large one too, in both directions."""
    data = bytes(range(256)) * (size // 256 + 1)
    async with open_link(transport) as (client, far):
        for _ in range(3):
            reply = client.send(data)
            for _ in range(3):
                await asyncio.sleep(0)
            if client.transport.wire is not None:
                cut(client)
            await asyncio.sleep(0)
            await until_resumed(client)
            if far.transport.wire is not None:
                cut(far)
            assert await reply == data


async def test_cut_at_each_byte(transport: Any) -> None:
    """It does not matter at which byte the transport breaks."""
    accepted: asyncio.Queue[Channel] = asyncio.Queue()
    links: list[FaultyLink] = []
    async with await channels.start_server(
        transport.address(), accepted.put_nowait, resumable=True
    ) as server:

        def make_link() -> asyncio.Protocol:
            links.append(FaultyLink(server.url))
            return links[-1]()

        async with listen_raw(transport, make_link) as address:
            client = await channels.open_connection(address, resumable=True)
            far = await accepted.get()
            await begin(client, far)
            for size in range(1, 60):
                link = links[-1]
                link.client.limit, link.client.cuts = size // 2, True
                link.server.limit, link.server.cuts = size, True
                replies = [client.send("x" * size), client.send(size)]
                with contextlib.suppress(IndexError):
                    async with asyncio.timeout(10):
                        assert await asyncio.gather(*replies) == ["x" * size, size]
                await until_resumed(client)
            assert len(links) > 30
            await client.close()
            await far.close()
            for link in links:
                link.close()
        while not accepted.empty():
            await accepted.get_nowait().close()


async def test_half_open_connection_is_replaced(transport: Any) -> None:
    """The server sees no break, and the client connects anew: the client is right."""
    async with open_link(transport) as (client, far):
        old = far.transport.wire
        resumption_of(client).interrupt("nothing was heard")
        await until_resumed(client)
        assert await client.send(1) == 1
        assert far.transport.wire is not old
        assert old.is_closing()


async def test_reading_stays_paused(transport: Any) -> None:
    """Back pressure outlives a break: who does not read is not sent more over the next transport."""
    async with open_link(transport, limits=Limits(requests=1)) as (client, far):
        far._handler = None
        for number in range(5):
            client.post(number)
        await until(lambda: not far._is_reading)
        cut(client)
        await until_broken(client)
        await until_resumed(client)
        assert [(await far.recv()).content for _ in range(5)] == list(range(5))


async def test_agents_notice_nothing(transport: Any) -> None:
    """Containers are resumable by themselves; proxies, calls and observations go on."""

    class Counter(Agent):
        @expose
        def add(self, number: int) -> int:
            return number + 1

        @expose
        async def ask_back(self, url: str, number: int) -> Any:
            other = await self.container.connect(url)
            return await other.add(number)

    a = await Container.create(transport.address(), as_coro=True)
    b = await Container.create(transport.address(), as_coro=True)
    try:
        near, far = Counter(a), Counter(b)
        proxy = await a.connect(far.addr)
        for number in range(20):
            for client in list(a._connections):
                if client.channel.transport.wire is not None:
                    cut(client.channel)
            assert await proxy.ask_back(near.addr, number) == number + 1
    finally:
        await a.shutdown(as_coro=True)
        await b.shutdown(as_coro=True)


# -- When it cannot be taken up --------------------------------------------------------------------


async def fate(reply: Any) -> bool | None:
    """Return whether a call that failed was sent, as its error says."""
    with pytest.raises(SessionLostError) as error:
        await reply
    return error.value.was_sent


async def test_replaced_process(transport: Any) -> None:
    """The server is another one at the same address: each call fails, and says whether it may have been
    executed."""
    gate = asyncio.Event()
    async with open_link(transport) as (client, far):
        serve(far, slow(gate))
        sent = client.send(1)
        await until(lambda: far._exchange.jobs)
        resumption_of(far)._sessions.remove(
            resumption_of(far).session.id
        )  # all that another process would lack
        cut(client)
        await until_broken(client)
        unsent = client.send(2)
        assert await fate(sent) is True
        assert await fate(unsent) is False
        assert client.is_closed
        with pytest.raises(SessionLostError, match="not known") as error:
            client.send(3)
        assert error.value.was_sent is False


async def test_address_refuses(transport: Any) -> None:
    """Nobody listens at the address any more: the calls fail after the refusal time, long before the grace
    time is over."""
    accepted: asyncio.Queue[Channel] = asyncio.Queue()
    limits = Limits(grace_time=60.0, refusal_time=0.1)
    async with await channels.start_server(
        transport.address(), accepted.put_nowait, resumable=True, limits=limits
    ) as server:
        client = await channels.open_connection(server.url, resumable=True, limits=limits)
        far = await accepted.get()
        await begin(client, far)
        gate = asyncio.Event()
        serve(far, slow(gate))
        reply = client.send(1)
        await until(lambda: far._exchange.jobs)
        server.close()
        cut(client)
        async with asyncio.timeout(10):
            assert await fate(reply) is True
        await far.close()
        await client.close()


async def test_grace_time_of_the_server(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A client that does not come back within the grace time has lost its session; calls to it fail, and work
    for it is cancelled."""
    async with open_link(transport, limits=SHORT) as (client, far):
        serve(client, slow(asyncio.Event()))
        reply = far.send(1)
        await until(lambda: client._exchange.jobs)
        resumption = resumption_of(client)
        resumption._redial = never
        cut(far)
        assert await fate(reply) is True
        assert far.is_closed
        assert "did not come back within 0.3 s" in caplog.text
        with pytest.raises(SessionLostError):
            await client.recv() if client._handler is None else await fate_of_close(client)


async def never(make: Any) -> Any:
    await asyncio.Event().wait()


async def fate_of_close(channel: Channel) -> None:
    await until(lambda: channel.is_closed)
    channel._check_open()


async def test_grace_time_of_the_client(transport: Any) -> None:
    """A server that does not answer within the grace time is given up."""
    async with open_link(transport, limits=SHORT) as (client, far):
        serve(far, slow(asyncio.Event()))
        reply = client.send(1)
        await until(lambda: far._exchange.jobs)
        resumption_of(client)._redial = never
        cut(client)
        with pytest.raises(SessionLostError, match=r"no answer within 0\.3 s"):
            await reply


async def test_too_many_broken_connections(transport: Any) -> None:
    """A server keeps so many broken connections and no more; the oldest is given up."""
    accepted: asyncio.Queue[Channel] = asyncio.Queue()
    limits = Limits(sessions=2, grace_time=60.0)
    async with await channels.start_server(
        transport.address(), accepted.put_nowait, resumable=True, limits=limits
    ) as server:
        ends = []
        for _ in range(3):
            client = await channels.open_connection(server.url, resumable=True)
            far = await accepted.get()
            await begin(client, far)
            resumption_of(client)._redial = never
            ends.append((client, far))
        for _, far in ends:
            cut(far)
            await until_broken(far)
        assert [far.is_closed for _, far in ends] == [True, False, False]
        for client, far in ends:
            await client.close()
            await far.close()


async def test_nothing_to_keep_beyond_the_limit(transport: Any) -> None:
    """While there is no transport, calls are accepted up to the limits, then refused; when it is back, those
    that were accepted are answered."""
    limits = Limits(resend_size=1000, backlog=2000)
    async with open_link(transport, limits=limits) as (client, _far):
        redial = resumption_of(client)._redial
        resumption_of(client)._redial = never
        cut(client)
        await until_broken(client)
        replies = []

        def send() -> None:
            replies.append(client.send("x" * 100))
            client._protocol.flush()

        for _ in range(1000):
            try:
                send()
            except OverloadError:
                break
        assert 20 < len(replies) < 40
        drain = asyncio.ensure_future(client.drain())
        await asyncio.sleep(0)
        assert not drain.done()
        resumption_of(client).task.cancel()
        resumption_of(client)._redial = redial
        resumption_of(client).task = asyncio.ensure_future(resumption_of(client)._dial())
        assert await asyncio.gather(*replies) == ["x" * 100] * len(replies)
        await drain


async def test_peer_that_acknowledges_nothing(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A peer that reads and never acknowledges cannot make us keep everything: its session is given up, its
    connection goes on."""
    async with open_link(transport, limits=Limits(resend_size=100_000)) as (client, far):
        resumption_of(far).look = lambda: None
        for _ in range(30):
            assert await client.send("x" * 10_000) == "x" * 10_000
        assert "has not acknowledged" in caplog.text
        assert client._protocol._session is None
        assert await client.send(1) == 1
        cut(client)
        with pytest.raises(ClosedByPeerError):
            await client.send(2)


# -- Who does not take part ------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_old_peers_see_nothing_new(transport: Any, codec: str) -> None:
    """A peer that knows types 0 to 2 only gets those only, and nothing is kept for it, whoever dials."""
    async with faults.open_raw_client(transport, codec, resumable=True) as (peer, channel):
        serve(channel, lambda content: content)
        assert await peer.call("a") == "a"
        assert channel._protocol._session is None
        reply = channel.send("b")
        request = await peer.recv()
        assert request[0] == 0
        peer.send(1, request[1], "c")
        assert await reply == "c"
        assert not peer.frames
        peer.abort()
        await until(lambda: channel.is_closed)
    async with faults.open_raw_server(transport, codec, resumable=True) as (channel, peer):
        reply = channel.send("b")
        request = await peer.recv()
        peer.send(1, request[1], "c")
        assert await reply == "c"
        assert channel._protocol._session is None
        assert not peer.frames


@pytest.mark.parametrize("who", ["client", "server"])
async def test_one_end_is_not_resumable(transport: Any, who: str) -> None:
    """Where only one end could resume, a break ends the connection at once."""
    accepted: asyncio.Queue[Channel] = asyncio.Queue()
    async with await channels.start_server(
        transport.address(), accepted.put_nowait, resumable=who == "server"
    ) as server:
        client = await channels.open_connection(server.url, resumable=who == "client")
        far = await accepted.get()
        serve(far, slow(gate := asyncio.Event()))
        gate.set()
        assert await client.send("first") == "first"
        gate.clear()
        reply = client.send(1)
        await until(lambda: far._exchange.jobs)
        for end in client, far:
            assert end._protocol._session is None or end is far
        (client if who == "server" else far).transport.abort() if who == "server" else far.transport.abort()
        with pytest.raises((ClosedByPeerError, ClosedByUsError)):
            await reply
        await client.close()
        await far.close()


# -- The end ---------------------------------------------------------------------------------------


async def test_close_is_no_break(transport: Any) -> None:
    """Who closes the connection says so, and the other end does not wait for it to come back."""
    for number in range(2):
        async with open_link(transport) as ends:
            closing, other = ends[number], ends[1 - number]
            reply = other.send(1) if number else None
            await closing.close()
            await until(lambda other=other: other.is_closed)
            assert isinstance(other._error, ClosedByPeerError)
            assert not isinstance(other._error, SessionLostError)
            if reply is not None:
                with contextlib.suppress(ClosedByPeerError):
                    await reply


@pytest.mark.parametrize("turns", range(12))
async def test_close_while_it_is_broken(transport: Any, turns: int) -> None:
    """Closing works at any moment of being taken up, and leaves nothing behind."""
    async with open_link(transport, limits=SHORT) as (client, far):
        reply = far.send(1)
        reply.cancel()
        cut(client)
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.gather(client.close(), far.close())
        assert client.is_closed
        assert far.is_closed
        assert resumption_of(client).session.state is State.ENDED
        assert not resumption_of(client).session._kept


async def test_abort_is_the_end(transport: Any) -> None:
    """A channel that gives up its peer is not taken up again, and the peer learns it from who refuses."""
    async with open_link(transport) as (client, far):
        far._abort("it misbehaves")
        with pytest.raises(ClosedByPeerError):
            await client.send(1)


# -- Others than the peer --------------------------------------------------------------------------


async def ask(server_url: str, request: Any) -> list[Any]:
    """Connect as somebody else, and return what the server answers to a request to take up a session."""
    peer = RawPeer()
    await connect_raw(server_url, peer)
    await peer.until(lambda: peer.transport)
    peer.send(SESSION, 0, {"version": 1, "resume": request})
    try:
        return await peer.recv()
    finally:
        await peer.until_lost()


@contextlib.asynccontextmanager
async def open_target(transport: Any) -> AsyncIterator[tuple[str, Channel, Channel]]:
    accepted: asyncio.Queue[Channel] = asyncio.Queue()
    async with await channels.start_server(
        transport.address(), accepted.put_nowait, resumable=True
    ) as server:
        client = await channels.open_connection(server.url, resumable=True)
        far = await accepted.get()
        await begin(client, far)
        yield server.url, client, far
        await client.close()
        await far.close()
        while not accepted.empty():
            await accepted.get_nowait().close()


@pytest.mark.parametrize("is_broken", [False, True])
async def test_hijacking(transport: Any, is_broken: bool) -> None:
    """Who has no secret does not get the session, changes nothing, and learns nothing but a refusal."""
    async with open_target(transport) as (url, client, far):
        session = resumption_of(far).session
        if is_broken:
            resumption_of(client)._redial = never
            cut(client)
            await until_broken(far)
        proof = hmac.new(b"guessed", b"resume:x", hashlib.sha256).hexdigest()
        for request in (
            None,
            [],
            7,
            ["unknown", 1, 0, proof],
            [session.id, 1, session.written, proof],
            [session.id, 1, session.written, ""],
            [session.id, 1, session.written],
            [session.id, 2**62, -1, proof],
            [session.id, 1, session.written, b"x"],
            [session.id, 1, session.written, "ü"],
            [[session.id], 1, 2, 3],
        ):
            before = session.state, session.acknowledged, session._attempt
            answer = await ask(url, request)
            assert answer[:2] == [SESSION, 0]
            assert set(answer[2]) == {"version", "refused"}
            assert before == (session.state, session.acknowledged, session._attempt)
        if not is_broken:
            assert await client.send(1) == 1


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority."""
    return Certificates(tmp_path_factory.mktemp("certificates") / "ours")


@contextlib.asynccontextmanager
async def open_secured(
    address: Any, certificates: Certificates
) -> AsyncIterator[tuple[Server, Channel, Channel]]:
    """Give a server with TLS, and the ends of a resumable connection whose client has shown a certificate."""
    accepted: asyncio.Queue[Channel] = asyncio.Queue()
    context = as_ssl_context(certificates.issue(), is_server=True)
    async with await channels.start_server(
        address, accepted.put_nowait, resumable=True, ssl=context, limits=LATE
    ) as server:
        own = as_ssl_context(certificates.issue(), is_server=False)
        client = await channels.open_connection(server.url, resumable=True, ssl=own, limits=LATE)
        far = await accepted.get()
        try:
            await begin(client, far)
            yield server, client, far
        finally:
            await client.close()
            await far.close()
            while not accepted.empty():
                await accepted.get_nowait().close()


LATE = Limits(grace_time=20.0)
SECURED = pytest.mark.parametrize("kind", ["tcp", "unix"])


@pytest.fixture
def place(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An address of that kind."""
    with tempfile.TemporaryDirectory(prefix="ng-") as directory:
        yield Transport(kind, Path(directory)).address()


@SECURED
async def test_same_certificate(place: Any, certificates: Certificates) -> None:
    """Over TLS a connection is taken up again by who has shown the same certificate; large frames that were
    cut go on, and the peer is who it was."""
    async with open_secured(place, certificates) as (_, client, far):
        before = far.identity
        assert before.fingerprint is not None
        data = bytes(3 * MIB)
        for number in range(4):
            reply = client.send(data)
            for _ in range(3 * number):
                await asyncio.sleep(0)
            cut(client if number % 2 else far)
            assert await reply == data
        assert far.identity == before
        assert not client.is_closed


@SECURED
@pytest.mark.parametrize("is_noticed", [True, False])
async def test_other_certificate(place: Any, certificates: Certificates, is_noticed: bool) -> None:
    """Another certificate of the same authority does not get the session, though it has the secret and the
    server lets it connect; the session stays with its owner."""
    async with open_secured(place, certificates) as (server, client, far):
        resumption, loop = resumption_of(client), asyncio.get_running_loop()
        own = resumption._redial
        other = as_ssl_context(certificates.issue(), is_server=False)
        before = far.identity
        if is_noticed:
            cut_off = until_broken(far)
        else:
            far.transport.wire.set_protocol(asyncio.Protocol())
            cut_off = asyncio.sleep(0)
        resumption._redial = never
        cut(client)
        await cut_off
        await until_broken(client)
        thief = RawPeer()
        await channels.dial(server.url, lambda: thief, loop=loop, ssl=other)
        thief.send(SESSION, 0, {"version": 1, "resume": resumption.session.ask()})
        answer = await thief.recv()
        assert answer[2]["refused"] == "the session belongs to somebody else"
        await thief.until_lost()
        assert far.identity == before
        resumption.task.cancel()
        resumption._redial = own
        resumption.task = asyncio.ensure_future(resumption._dial())
        assert await client.send(1) == 1


async def test_rights_of_this_host_stay_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that began on the loopback interface does not go on for a peer from elsewhere."""
    async with open_target(Transport("tcp", Path())) as (_, client, far):
        assert far.identity.is_loopback
        monkeypatch.setattr(resumptions, "is_loopback", lambda peername: False)
        cut(client)
        with pytest.raises(SessionLostError, match="belongs to somebody else"):
            await client.send(1)


async def test_overheard_request_is_of_no_use(transport: Any) -> None:
    """A request that was overheard is refused when it is said again."""
    async with open_target(transport) as (url, client, far):
        asked: list[Any] = []
        session = resumption_of(far).session
        answer = session.answer
        resumption_of(far).accept = lambda request, wire: (asked.append(request), answer(request))[1]
        cut(client)
        await until_broken(client)
        await until_resumed(client)
        assert len(asked) == 1
        assert "refused" in (await ask(url, asked[0]))[2]
        assert await client.send(1) == 1


async def test_resumption_on_a_connection_in_use(transport: Any) -> None:
    """Only a new connection can take up a session; one that has talked already cannot."""
    async with open_target(transport) as (url, client, _far):
        peer = RawPeer(greets=True)
        await connect_raw(url, peer)
        peer.request("hello")
        await peer.recv()
        resumption = resumption_of(client)
        session = resumption.session
        request = [session.id, 1, session.received, session._prove("resume", 1, session.received)]
        peer.frames.clear()
        peer.send(SESSION, 0, {"version": 1, "resume": request})
        await peer.until_lost()
        assert peer.frames[0][2]["refused"] == "this connection is in use already"
        assert await client.send(1) == 1


async def test_server_without_sessions_refuses(transport: Any) -> None:
    """A server that keeps no sessions says so."""
    async with faults.accept(transport) as (server, accepted):
        answer = await ask(server.url, ["id", 1, 0, "proof"])
        assert "no sessions" in answer[2]["refused"]
        await accepted


@pytest.mark.parametrize(
    "answer",
    [
        [SESSION, 0, {"resumed": None}],
        [SESSION, 0, {"resumed": [0, "x"]}],
        [SESSION, 0, {"resumed": [10**9, "0" * 64]}],
        [SESSION, 0, {"refused": "no"}],
        [SESSION, 0, {"refused": {"x": [1]}}],
        [1],
        "nonsense",
    ],
    ids=repr,
)
async def test_impostor_at_the_address(
    transport: Any, answer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who listens at the server's address without its secret gets none of our data, and the calls fail."""

    class Impostor(RawPeer):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            payload = self_encode(answer)
            if not self.transport.is_closing():
                self.transport.write(payload)

    def self_encode(content: Any) -> bytes:
        import msgpack

        return faults.frame(msgpack.packb(content))

    async with open_link(transport) as (client, far):
        serve(far, slow(asyncio.Event()))
        reply = client.send("secret")
        await until(lambda: far._exchange.jobs)
        impostor = Impostor()
        async with listen_raw(transport, lambda: impostor) as address:
            loop = asyncio.get_running_loop()
            resumption_of(client)._redial = lambda make: channels.dial(address, make, loop=loop)
            cut(client)
            assert await fate(reply) is True
        assert b"secret" not in impostor.received
        impostor.abort()


async def test_noise_before_the_answer(transport: Any) -> None:
    """What a server says to whoever connects is ignored until the answer is there."""
    accepted: list[Channel] = []

    def connected(channel: Channel) -> None:
        accepted.append(channel)
        serve(channel, lambda content: content)
        if len(accepted) > 1:
            channel.post("welcome")

    async with await channels.start_server(transport.address(), connected, resumable=True) as server:
        client = await channels.open_connection(server.url, resumable=True)
        assert await client.send("first") == "first"
        cut(client)
        assert await client.send(1) == 1
        await client.close()
        for channel in accepted:
            await channel.close()


async def test_errors_are_logged_without_tracebacks(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A break that is mended is no warning."""
    with caplog.at_level(logging.WARNING, "aiomas_ng"):
        async with open_link(transport) as (client, _):
            cut(client)
            await until_broken(client)
            await until_resumed(client)
            assert await client.send(1) == 1
    assert not [record for record in caplog.records if record.name.startswith("aiomas_ng.channel")]


async def test_rpc_clients_can_be_resumable(transport: Any) -> None:
    """The layer for remote procedure calls passes the option on."""

    class Service:
        router = rpc.Service()

        @expose
        def double(self, number: int) -> int:
            return 2 * number

    async with await rpc.start_server(transport.address(), Service(), resumable=True) as server:
        client = await rpc.open_connection(server.url, resumable=True)
        assert await client.remote.double(2) == 4
        cut(client.channel)
        assert await client.remote.double(3) == 6
        await client.close()
        server.close_clients()
