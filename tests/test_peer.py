"""Peers: connections that are made when they are needed, once, and anew when they have died."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest
from waiting import wait_until

from aiomas_ng._core.addresses import Address
from aiomas_ng._io import peer as module
from aiomas_ng._io.peer import Peer, Peers
from aiomas_ng._io.reply import Reply
from aiomas_ng.exceptions import (
    CallTimeoutError,
    ClosedByPeerError,
    ClosedByUsError,
    ConnectError,
    OverloadError,
    SerializationError,
)
from aiomas_ng.rpc import CallOptions

ADDRESS = Address("tcp", ("host", 1))
ONE_WAY = CallOptions(oneway=True)


class FakeChannel:
    """The little of a channel that a peer uses."""

    _shortcut = None

    def __init__(self, client: FakeClient) -> None:
        self._client = client
        self.error: Any = None
        self.callbacks: list[Callable[[Any], None]] = []

    @property
    def is_closed(self) -> bool:
        return self.error is not None

    @property
    def _error(self) -> Any:
        return self.error

    def _request(self, content: Any, values: Any, path: str) -> Any:
        return self._client.call(path, content[1], content[2], None)

    def _when_peer_closes(self, callback: Callable[[], None]) -> None:
        pass

    def _end_here(self) -> None:
        self._set_error(ClosedByUsError("closed"))

    def _when_lost(self, callback: Callable[[Any], None]) -> None:
        if self.error is None:
            self.callbacks.append(callback)
        else:
            callback(self.error)

    def _set_error(self, error: Any) -> None:
        if self.error is None:
            self.error = error
            for callback in self.callbacks:
                callback(error)


class FakeClient:
    """Stands for a connection; writes down the calls, and answers them with their path."""

    def __init__(self) -> None:
        self.channel = self._channel = FakeChannel(self)
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def call(self, path: str, args: Any, kwargs: Any, options: Any, reply: Reply | None = None) -> Any:
        if self.error is not None:
            raise self.error
        self.calls.append((path, args, kwargs))
        if reply is None:
            reply = Reply(loop=asyncio.get_running_loop())
            reply._channel = None
        reply.set_result(path)
        return None if options is not None and options.oneway else reply

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.channel._set_error(ClosedByUsError("closed"))


class Network:
    """Opens fake connections as the test lets it."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.attempts = 0
        self.failures = 0
        self.error: Exception = ConnectError("host", "nobody is there")
        self.make_client: type[FakeClient] = FakeClient
        self.clients: list[FakeClient] = []
        self.peers: Any = Peers(asyncio.get_running_loop(), self.open)
        self.peer: Any = self.peers.get(ADDRESS)

    async def open(self, address: Address, timeout: float | None) -> FakeClient:
        assert address == ADDRESS
        assert timeout == 0
        self.attempts += 1
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise self.error
        client = self.make_client()
        self.clients.append(client)
        return client

    def call(self, path: str = "path", *args: Any, options: CallOptions | None = None) -> Any:
        """Call through the peer."""
        return self.peer.call(path, args, {}, options)

    async def until_attempt(self, count: int) -> None:
        """Wait until the attempt of that number has begun."""
        await wait_until(lambda: self.attempts >= count)


async def test_peer_is_one_for_each_address() -> None:
    """The same address gives the same peer, which says where it is; unless nobody refers to it any more."""
    network = Network()
    assert network.peers.get(Address("tcp", ("host", 1))) is network.peer
    other = network.peers.get(Address("tcp", ("host", 2)))
    assert other is not network.peer
    assert repr(other) == "<Peer at tcp://host:2/>"
    assert other.url == "tcp://host:2/"
    del other
    gc.collect()
    assert len(network.peers._known) == 1


async def test_connection_is_shared() -> None:
    """Connecting many times, at once or later, dials once."""
    network = Network()
    clients = await asyncio.gather(*(network.peer.connect() for _ in range(10)))
    assert await network.peer.connect() is clients[0]
    assert set(clients) == {clients[0]} == {network.peer.client}
    assert network.attempts == 1
    assert network.peer.channel is clients[0].channel


async def test_connected_peer_is_kept() -> None:
    """A peer that is connected stays known though nobody refers to it, until the connection ends."""
    network = Network()
    await network.peer.connect()
    del network.peer
    gc.collect()
    assert isinstance(network.peers.get(ADDRESS), Peer)
    assert network.peers.get(ADDRESS).client is network.clients[0]
    network.clients[0].channel._set_error(ClosedByPeerError())
    gc.collect()
    assert not network.peers._known


async def test_connection_that_has_ended_is_replaced() -> None:
    """After the end of a connection there is none, until the next is needed."""
    network = Network()
    await network.peer.connect()
    network.clients[0].channel._set_error(ClosedByPeerError())
    assert network.peer.client is None
    assert network.peer.channel is None
    assert await network.peer.connect() is network.clients[1]


async def test_connection_that_ends_before_it_is_kept() -> None:
    """A connection that ended while it was made is not kept for ever."""
    network = Network()
    client = FakeClient()
    client.channel._set_error(ClosedByPeerError())
    network.peers._keep(network.peer, client)
    assert not network.peers._connected


async def test_failed_attempt_is_followed_by_the_next() -> None:
    """Of several that connect, each tries for itself if the one before has failed."""
    network = Network()
    network.failures = 2
    results = await asyncio.gather(*(network.peer.connect() for _ in range(4)), return_exceptions=True)
    assert [type(result) for result in results] == [ConnectError, ConnectError, FakeClient, FakeClient]
    assert network.attempts == 3


@pytest.mark.parametrize("timeout", [0, 100, None])
async def test_cancelled_attempt_is_followed_by_the_next(timeout: float | None) -> None:
    """Cancelling the one that dials lets the next one dial; cancelling another does nothing."""
    network = Network()
    network.gate.clear()
    tasks = [asyncio.ensure_future(network.peer.connect(timeout)) for _ in range(4)]
    await network.until_attempt(1)
    tasks[0].cancel()
    tasks[2].cancel()
    await network.until_attempt(2)
    network.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, FakeClient] * 2
    assert network.attempts == 2


async def test_connect_goes_on_for_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a timeout, or without limit, it tries until it succeeds."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.002)
    for timeout in (10, None):
        network = Network()
        network.failures = 10
        assert await network.peer.connect(timeout) is network.clients[0]
        assert network.attempts == 11


async def test_connect_raises_its_last_failure_when_the_time_is_up() -> None:
    """The error is that of the last attempt, or says that there was no answer; attempts become dense."""
    network = Network()
    network.failures = 1000
    with pytest.raises(ConnectError) as caught:
        await network.peer.connect(0.1)
    assert caught.value is network.error
    assert 3 <= network.attempts <= 7
    network.gate.clear()
    with pytest.raises(ConnectError, match=r"no answer within 0\.01 s"):
        await network.peer.connect(0.01)
    assert not network.peers._attempts


async def test_who_tries_for_ever_does_not_hold_up_who_tries_once() -> None:
    """A patient attempt leaves others their turn."""
    network = Network()
    network.failures = 2
    patient = asyncio.ensure_future(network.peer.connect(None))
    await network.until_attempt(1)
    with pytest.raises(ConnectError):
        await network.peer.connect()
    assert await patient is network.clients[0]


async def test_error_that_is_no_refusal_is_not_tried_again() -> None:
    """Errors that will not go away by waiting are raised at once."""
    network = Network()
    network.failures, network.error = 1, ValueError("wrong option")
    with pytest.raises(ValueError, match="wrong option"):
        await network.peer.connect(10)
    assert network.attempts == 1


# -- Calls -----------------------------------------------------------------------------------------


async def test_call_connects_when_needed() -> None:
    """A call without a connection makes one, and then uses it."""
    network = Network()
    assert await network.call("a", 1) == "a"
    assert await network.call("b", 2) == "b"
    assert network.clients[0].calls == [("a", (1,), {}), ("b", (2,), {})]
    assert network.attempts == 1


async def test_calls_keep_their_order() -> None:
    """Calls that were made before there was a connection are sent in their order, and before later ones."""
    network = Network()
    network.gate.clear()
    connecting = asyncio.ensure_future(network.peer.connect())
    await network.until_attempt(1)
    replies = [network.call(str(number)) for number in range(3)]
    assert network.call("3", options=ONE_WAY) is None
    network.gate.set()
    await connecting
    replies.append(network.call("4"))
    assert await asyncio.gather(*replies) == ["0", "1", "2", "4"]
    assert [call[0] for call in network.clients[0].calls] == ["0", "1", "2", "3", "4"]
    assert network.attempts == 1


async def test_calls_fail_with_the_attempt() -> None:
    """If no connection can be made, the calls that wait for it fail, and later ones try again."""
    network = Network()
    network.failures = 1
    replies = [network.call(str(number)) for number in range(2)]
    assert await asyncio.gather(*replies, return_exceptions=True) == [network.error] * 2
    assert await network.call() == "path"


async def test_calls_fail_with_any_error_of_the_attempt() -> None:
    """Nor does another error of the attempt leave a call without an end."""
    network = Network()
    network.failures, network.error = 1, ValueError("wrong option")
    with pytest.raises(ValueError, match="wrong option"):
        await network.call()


async def test_one_way_calls_that_were_not_sent_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody has the reply of a one-way call, so the log is told why it was not sent."""
    network = Network()
    network.failures = 1
    assert network.call("quiet", options=ONE_WAY) is None
    await wait_until(lambda: caplog.records)
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].getMessage() == f"the one-way call of 'quiet' was not sent: {network.error}"


async def test_call_that_cannot_be_encoded_fails_alone() -> None:
    """An error at the sending of a call that waited is the call's own; the others are sent."""

    class Choosy(FakeClient):
        def call(self, path: str, *args: Any) -> Any:
            if path == "failing":
                raise SerializationError("cannot")
            return super().call(path, *args)

    network = Network()
    network.make_client = Choosy
    failing, other = network.call("failing"), network.call("other")
    with pytest.raises(SerializationError):
        await failing
    assert await other == "other"


async def test_calls_end_when_the_task_is_cancelled() -> None:
    """Whoever ends all tasks of the loop leaves no call without an end."""
    network = Network()
    network.gate.clear()
    reply = network.call()
    await network.until_attempt(1)
    network.peer._task.cancel()
    with pytest.raises(ClosedByUsError, match="given up") as caught:
        await reply
    assert caught.value.was_sent is False


async def test_cancelled_call_is_not_sent() -> None:
    """A call that is given up while it waits for the connection is never sent, even if the attempt fails."""
    network = Network()
    network.gate.clear()
    cancelled, expired, sent = (
        network.call("cancelled"),
        network.call("expired", options=CallOptions(timeout=0.001)),
        network.call("sent", options=CallOptions(timeout=100)),
    )
    cancelled.cancel()
    with pytest.raises(CallTimeoutError, match=r"'expired' .* within 0\.001 s"):
        await expired
    network.gate.set()
    assert await sent == "sent"
    assert [call[0] for call in network.clients[0].calls] == ["sent"]
    network.clients[0].channel._set_error(ClosedByPeerError())
    network.failures = 1
    last, other = network.call("last"), network.call("other")
    last.cancel()
    with pytest.raises(ConnectError):
        await other


async def test_arguments_of_a_call_that_waits_may_be_changed() -> None:
    """What was passed is what is sent, also where the connection has to be made first."""
    network = Network()
    args: Any = [1, (2, [3]), {"a": [4]}]
    reply = network.call("path", args)
    args[1][1].append(5)
    args[2]["a"].append(6)
    args.clear()
    await reply
    assert network.clients[0].calls == [("path", ([1, (2, [3]), {"a": [4]}],), {})]


async def test_calls_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a connection is being made, no more than a limit of calls wait for it."""
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    network = Network()
    network.gate.clear()
    replies = [network.call(str(number)) for number in range(2)]
    for options in (None, ONE_WAY):
        with pytest.raises(OverloadError, match="2 calls wait"):
            network.call(options=options)
    network.gate.set()
    assert await asyncio.gather(*replies) == ["0", "1"]


# -- The end ---------------------------------------------------------------------------------------


async def test_close_ends_everything() -> None:
    """Closing closes the connections, and nobody can connect or call any more."""
    network = Network()
    await network.peer.connect()
    await network.peers.close()
    await network.peers.close()
    assert network.clients[0].channel.is_closed
    assert not network.peers._connected
    with pytest.raises(ClosedByUsError, match="shut down"):
        await network.peer.connect(10)
    with pytest.raises(ClosedByUsError, match="shut down"):
        network.call()


@pytest.mark.parametrize("timeout", [0, 100, None])
async def test_close_ends_attempts(timeout: float | None) -> None:
    """Attempts that are under way, and calls that wait for them, fail when the table is closed."""
    network = Network()
    network.gate.clear()
    tasks = [asyncio.ensure_future(network.peer.connect(timeout)) for _ in range(3)]
    await network.until_attempt(1)
    reply = network.call()
    await asyncio.sleep(0)
    await network.peers.close()
    for waiting in (*tasks, reply):
        with pytest.raises(ClosedByUsError, match="shut down") as caught:
            await waiting
        assert caught.value.was_sent is False


async def test_close_with_an_attempt_that_has_just_timed_out() -> None:
    """An attempt that ends by its own time while the table is closed is no obstacle."""
    network = Network()
    network.gate.clear()
    loop = asyncio.get_running_loop()
    connecting = asyncio.ensure_future(network.peer.connect(100))
    await network.until_attempt(1)
    (attempt,) = network.peers._attempts
    attempt.reschedule(loop.time() - 1)
    await asyncio.sleep(0)
    assert attempt.expired()
    await network.peers.close()
    with pytest.raises(ClosedByUsError):
        await connecting


async def test_drop_closes_connections_but_not_the_table() -> None:
    """Connections that are dropped are made anew by the next call."""
    network = Network()
    await network.peer.connect()
    network.peers.drop()
    assert network.clients[0].channel.is_closed
    assert await network.call() == "path"
    assert network.attempts == 2
