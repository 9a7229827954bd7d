"""The orderly end of one connection: CLOSE on the wire, what is refused, and what is waited for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from conftest import Transport
from faults import (
    MESSAGE,
    PING,
    PONG,
    SESSION,
    open_faulty_link,
    open_raw_client,
    open_raw_server,
    until,
)
from waiting import wait_until

from aiomas_ng import channel as channels
from aiomas_ng import rpc
from aiomas_ng._io import closing
from aiomas_ng.channel import Channel
from aiomas_ng.exceptions import (
    ChannelClosedError,
    ClosedByPeerError,
    ClosedByUsError,
    RemoteException,
    ShutdownError,
)

CLOSE = 13
SESSION_CONTENT = {"version": 1, "close": True}


class Service:
    """What is called."""

    router = rpc.Service()

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun: list[Any] = []
        self.ended: list[Any] = []

    @rpc.expose
    def note(self, value: Any) -> Any:
        self.begun.append(value)
        return value

    @rpc.expose
    async def wait(self, value: Any) -> Any:
        self.begun.append(value)
        try:
            await self.gate.wait()
        finally:
            self.ended.append(value)
        return value

    @rpc.expose
    async def count(self, number: int) -> AsyncIterator[int]:
        self.begun.append("count")
        for value in range(number):
            await asyncio.sleep(0)
            yield value


async def open_ends(transport: Transport, service: Any) -> tuple[rpc.RpcClient, rpc.RpcClient]:
    """Return both ends of a connection, the second of which serves; they know each other."""
    accepted: asyncio.Future[rpc.RpcClient] = asyncio.get_running_loop().create_future()
    server = await rpc.start_server(transport.address(), service, accepted.set_result)
    near = await rpc.open_connection(server.url)
    far = await accepted
    server.close()
    await near.remote.note("hello")
    await until(lambda: far.channel._knows_close and near.channel._knows_close)
    service.begun.clear()
    return near, far


# -- The wire --------------------------------------------------------------------------------------


async def test_close_is_sent_to_who_knows_it(transport: Transport) -> None:
    """A peer whose SESSION has said so gets CLOSE with a reason, and a PING behind it; ours says so."""
    async with open_raw_client(transport, greets=True) as (peer, channel):
        service = Service()
        client = rpc.RpcClient(channel, service)
        peer.request(["note", [1], {}])
        session = await peer.recv()
        assert session[0] == SESSION
        assert session[2]["close"] is True
        peer.send(SESSION, 0, SESSION_CONTENT)
        await until(lambda: channel._knows_close)
        running = peer.request(["wait", [2], {}])
        await until(lambda: service.begun == [1, 2])
        end = asyncio.ensure_future(client.close(grace=10))
        close = await peer.recv()
        while close[0] != CLOSE:
            close = await peer.recv()
        assert close[1] == 0
        assert isinstance(close[2], str)
        ping = await peer.recv()
        assert ping[0] == PING
        crossing = peer.request(["note", [3], {}])
        refused = await peer.recv_reply(crossing)
        assert refused[2][0] == "aiomas_ng.ShutdownError"
        peer.send(PONG, ping[1])
        service.gate.set()
        assert await peer.recv_reply(running) == [1, running, 2]
        await end
        await peer.until_lost()
        assert service.begun == [1, 2]


@pytest.mark.parametrize("session", [None, {"version": 1}, {"version": 1, "close": False}, {"close": 1}])
async def test_close_is_not_sent_to_others(transport: Transport, session: Any) -> None:
    """A peer that does not know CLOSE sees none, gets the reply under way, and the error for later ones."""
    async with open_raw_client(transport, greets=session is not None) as (peer, channel):
        service = Service()
        client = rpc.RpcClient(channel, service)
        if session is not None:
            peer.send(SESSION, 0, session)
        running = peer.request(["wait", [1], {}])
        await until(lambda: service.begun)
        end = asyncio.ensure_future(client.close(grace=10))
        await asyncio.sleep(0)
        late = peer.request(["note", [2], {}])
        assert (await peer.recv_reply(late))[2][0] == "aiomas_ng.ShutdownError"
        service.gate.set()
        assert await peer.recv_reply(running) == [1, running, 1]
        await end
        await peer.until_lost()
        assert all(frame[0] not in (CLOSE, PING) for frame in peer.frames)


@pytest.mark.parametrize("content", [5, ["why"], {"why": 1}, True])
async def test_malformed_close_is_a_fault(transport: Transport, content: Any) -> None:
    """A reason that is no text breaks the rules; the connection is as usable as before."""
    async with open_raw_server(transport) as (channel, peer):
        peer.send(CLOSE, 0, content)
        fault = await peer.recv()
        while fault[:2] != [2, None]:
            fault = await peer.recv()
        assert fault[2][0] == "aiomas_ng.MalformedFrameError"
        assert not channel.is_peer_closing
        reply = channel.send("x")
        request = await peer.recv()
        peer.send(1, request[1], "y")
        assert await reply == "y"


@pytest.mark.parametrize("content", [None, "", "going", "r" * 100_000])
async def test_close_of_the_peer(transport: Transport, content: Any) -> None:
    """After CLOSE new calls fail at once, those under way go on, and the peer's requests are served."""
    async with open_raw_server(transport) as (channel, peer):
        client = rpc.RpcClient(channel, Service())
        under_way = client.remote.work(1)
        request = await peer.recv()
        for _ in range(2):  # the second one changes nothing
            peer.send(CLOSE, 0, content)
        await until(lambda: channel.is_peer_closing)
        assert not channel.is_closing
        for call in (
            lambda: client.remote.work(2),
            lambda: channel.send("x"),
            lambda: channel.post("x"),
            lambda: rpc.with_options(client.remote.work, oneway=True)(3),
        ):
            with pytest.raises(ClosedByPeerError) as caught:
                call()
            assert caught.value.was_sent is False
            assert len(caught.value.reason) <= closing.MAX_REASON
        assert await peer.call(["note", [5], {}]) == 5
        peer.send(1, request[1], "done")
        assert await under_way == "done"
        peer.close()
        await until(lambda: channel.is_closed)
        with pytest.raises(ClosedByPeerError):
            channel.send("x")


async def test_call_under_way_when_the_peer_closes_in_the_end(transport: Transport) -> None:
    """A call that is not answered before the connection ends may have been executed."""
    async with open_raw_server(transport) as (channel, peer):
        reply = channel.send("x")
        await peer.recv()
        peer.send(CLOSE, 0, "going")
        peer.close()
        with pytest.raises(ClosedByPeerError) as caught:
            await reply
        assert caught.value.was_sent is True


async def test_peer_that_says_close_and_does_not(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while we close the connection, but not while a call of one side is under way."""
    monkeypatch.setattr(closing, "LEAVE_TIME", 0.02)
    async with open_raw_server(transport) as (channel, peer):
        service = Service()
        client = rpc.RpcClient(channel, service)
        ours = client.remote.work(1)
        request = await peer.recv()
        theirs = peer.request(["wait", [1], {}])
        peer.send(CLOSE, 0, None)
        await until(lambda: channel.is_peer_closing and service.begun)
        await asyncio.sleep(0.05)
        assert not channel.is_closed
        peer.send(1, request[1], "done")
        assert await ours == "done"
        await asyncio.sleep(0.05)
        assert not channel.is_closed
        service.gate.set()
        await peer.recv_reply(theirs)
        await peer.until_lost()
        assert channel.is_closed


# -- What a caller sees ----------------------------------------------------------------------------


async def test_running_handlers_finish(transport: Transport) -> None:
    """Calls, streams, and batches that are under way end as if nothing were; the end comes with the last."""
    service = Service()
    near, far = await open_ends(transport, service)
    calls = [near.remote.wait(number) for number in range(3)]
    batch = asyncio.ensure_future(rpc.batch(partial(near.remote.wait, name) for name in "ab"))
    stream = near.remote.count(200)
    await wait_until(lambda: len(service.begun) >= 5)
    end = asyncio.ensure_future(far.close(grace=10))
    await until(lambda: near.channel.is_peer_closing)
    assert [item async for item in stream] == list(range(200))
    assert not end.done()
    service.gate.set()
    assert await asyncio.gather(*calls) == [0, 1, 2]
    assert await batch == ["a", "b"]
    await end
    assert not far.channel._running
    await near.close()


async def test_crossing_calls_were_not_executed(transport: Transport) -> None:
    """A call that crosses CLOSE is refused, and its caller can be sure that it was not executed."""
    service = Service()
    near, far = await open_ends(transport, service)
    end = asyncio.ensure_future(far.close(grace=5))
    await asyncio.sleep(0)  # CLOSE is on its way
    assert far.channel.is_closing
    assert not near.channel.is_peer_closing
    calls = [near.remote.note(number) for number in range(100)]
    near.channel.post(("note", ("oneway",), {}))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, ClosedByPeerError) and error.was_sent is False for error in outcomes)
    assert "not executed" in str(outcomes[0])
    await end
    assert service.begun == []
    await near.close()


async def test_grace_ends(transport: Transport) -> None:
    """What has not ended by then is cancelled, and its caller told that it may have been executed."""
    service = Service()
    near, far = await open_ends(transport, service)
    call = near.remote.wait(1)
    stream = near.remote.count(10**9)
    items = aiter(stream)
    assert await anext(items) == 0
    begin = asyncio.get_running_loop().time()
    await far.close(grace=0.05)
    assert 0.04 < asyncio.get_running_loop().time() - begin < 2
    with pytest.raises(ClosedByPeerError) as caught:
        await call
    assert caught.value.was_sent is True
    with pytest.raises(ClosedByPeerError):
        [item async for item in items]
    assert service.ended == [1]
    await near.close()


async def test_nothing_to_wait_for(transport: Transport) -> None:
    """With nothing under way the end does not take its grace."""
    near, far = await open_ends(transport, Service())
    begin = asyncio.get_running_loop().time()
    await far.close(grace=100)
    assert asyncio.get_running_loop().time() - begin < 0.5
    await near.close(grace=100)


async def test_both_ends_close_at_once(transport: Transport) -> None:
    """Both wait for what they work on for the other, and both end."""
    service, back = Service(), Service()
    near, far = await open_ends(transport, service)
    near._router = back.router  # serve in this direction as well
    there, here = near.remote.wait(1), far.remote.wait(2)
    await wait_until(lambda: service.begun and back.begun)
    ends = asyncio.gather(near.close(grace=10), far.close(grace=10))
    await wait_until(lambda: near.channel.is_peer_closing and far.channel.is_peer_closing)
    service.gate.set()
    back.gate.set()
    assert await asyncio.gather(there, here) == [1, 2]
    await ends


async def test_second_close_shortens_the_first(transport: Transport) -> None:
    """Who closes again with less grace ends it earlier, for both."""
    service = Service()
    near, far = await open_ends(transport, service)
    call = near.remote.wait(1)
    await wait_until(lambda: service.begun)
    first = asyncio.ensure_future(far.close(grace=100))
    await asyncio.sleep(0)
    await far.close()
    await first
    with pytest.raises(ClosedByPeerError):
        await call
    await near.close()


async def test_cancelled_close_closes(transport: Transport) -> None:
    """Cancelling it closes the connection at once."""
    service = Service()
    near, far = await open_ends(transport, service)
    call = near.remote.wait(1)
    await wait_until(lambda: service.begun)
    end = asyncio.ensure_future(far.close(grace=100))
    await asyncio.sleep(0)
    end.cancel()
    with pytest.raises(asyncio.CancelledError):
        await end
    assert far.channel.is_closed
    with pytest.raises(ClosedByPeerError):
        await call
    assert service.ended == [1]
    await far.close()
    await near.close()


async def test_handler_closes_its_own_connection(transport: Transport) -> None:
    """It is not waited for by itself, but the others are."""

    class Closing(Service):
        router = rpc.Service()

        @rpc.expose
        async def close(self) -> None:
            await far.close(grace=100)
            self.ended.append("closed")

    service = Closing()
    near, far = await open_ends(transport, service)
    other, closing_call = near.remote.wait(1), near.remote.close()
    await wait_until(lambda: far.channel.is_closing)
    service.gate.set()
    assert await other == 1
    with pytest.raises(ClosedByPeerError):
        await closing_call
    await wait_until(lambda: service.ended == [1, "closed"])
    await near.close()


async def test_recv_ends(transport: Transport) -> None:
    """A task that takes requests by itself is waited for: it answers the last one, then meets the end."""
    gate = asyncio.Event()
    answered: list[Any] = []

    async def serve(channel: Channel) -> None:
        made.set_result(channel)
        while True:
            request = await channel.recv()
            if request.content == "slow":
                await gate.wait()
            await request.reply(request.content)
            answered.append(request.content)

    made: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
    server = await channels.start_server(transport.address(), serve)
    client = await channels.open_connection(server.url)
    assert await client.send("quick") == "quick"
    slow, waiting = client.send("slow"), client.send("waiting")
    far = await made
    await until(lambda: far._inbox)
    end = asyncio.ensure_future(server.shutdown(grace=10))
    with pytest.raises(ClosedByPeerError) as caught:
        await waiting
    assert caught.value.was_sent is False
    assert not end.done()
    gate.set()
    assert await slow == "slow"
    await end
    assert answered == ["quick", "slow"]
    with pytest.raises(ClosedByUsError):
        await far.recv()
    await client.close()


async def test_waiting_recv_is_woken(transport: Transport) -> None:
    """``recv`` that waits when the connection is about to be closed ends with ``ClosedByUsError``."""
    async with open_raw_client(transport) as (peer, channel):
        receiving = asyncio.ensure_future(channel.recv())
        await asyncio.sleep(0)
        end = asyncio.ensure_future(channel.close(grace=10))
        with pytest.raises(ClosedByUsError):
            await receiving
        await end
        await peer.until_lost()


@pytest.mark.parametrize("grace", [-1, float("inf"), float("nan")])
async def test_bad_grace(transport: Transport, grace: Any) -> None:
    """A grace that is no number of seconds is refused, and nothing is closed."""
    async with open_raw_server(transport) as (channel, _):
        with pytest.raises(ValueError, match="grace"):
            await channel.close(grace=grace)
        assert not channel.is_closing


# -- Peers that misbehave --------------------------------------------------------------------------


async def test_peer_that_never_reads(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """It delays the end by the barrier and by what the transport is given, and no more."""
    monkeypatch.setattr(closing, "LINGER", 0.02)
    monkeypatch.setattr("aiomas_ng._io.connection.CLOSE_GRACE", 0.05)
    async with open_raw_client(transport, greets=True) as (peer, channel):
        client = rpc.RpcClient(channel, Service())
        assert await peer.call(["note", [1], {}]) == 1
        peer.send(SESSION, 0, SESSION_CONTENT)
        await until(lambda: channel._knows_close)
        peer.stop_reading()
        while not channel._protocol.is_paused:
            channel.post(bytes(1_000_000))
            await asyncio.sleep(0)
        begin = asyncio.get_running_loop().time()
        await client.close(grace=20)
        assert asyncio.get_running_loop().time() - begin < 2


async def test_peer_that_sends_nothing_more(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that does not answer the PING is waited for no longer than ``LINGER``."""
    monkeypatch.setattr(closing, "LINGER", 0.05)
    service = Service()
    async with open_faulty_link(transport) as (near, far, link):
        client, server = rpc.RpcClient(near), rpc.RpcClient(far, service)
        assert await client.remote.note(1) == 1
        await until(lambda: far._knows_close)
        link.hold()
        begin = asyncio.get_running_loop().time()
        await server.close(grace=20)
        assert 0.04 < asyncio.get_running_loop().time() - begin < 2


async def test_flood_of_late_messages_is_one_line_in_the_log(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """One-way messages that come too late are dropped; the log is told once per connection."""
    caplog.set_level(logging.INFO, "aiomas_ng.channel")
    async with open_raw_client(transport, greets=True) as (peer, channel):
        service = Service()
        client = rpc.RpcClient(channel, service)
        running = peer.request(["wait", [1], {}])
        await until(lambda: service.begun)
        end = asyncio.ensure_future(client.close(grace=10))
        await asyncio.sleep(0)
        for number in range(50):
            peer.send(MESSAGE, 0, ["note", [number], {}])
        await peer.recv_reply(peer.request(["note", [0], {}]))
        service.gate.set()
        await peer.recv_reply(running)
        await end
        assert service.begun == [1]
        assert len([r for r in caplog.records if "one-way message" in r.getMessage()]) == 1


async def test_errors_are_told_apart(transport: Transport) -> None:
    """The error of a handler that is called ``ShutdownError`` is not taken for the refusal."""

    class Failing(Service):
        router = rpc.Service()

        @rpc.expose
        def fail(self) -> None:
            raise ShutdownError("of some other container")

        @rpc.expose
        def note(self, value: Any) -> Any:
            return value

    near, far = await open_ends(transport, Failing())
    with pytest.raises(RemoteException, match="some other") as caught:
        await near.remote.fail()
    assert not isinstance(caught.value, ChannelClosedError)
    await far.close()
    await near.close()
