"""What a container knows of the others: who is there, who has gone, who has returned, and whom it tells."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiomas_ng import Agent, Container, expose
from aiomas_ng._io import listeners, peer_states
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import (
    AddressError,
    ClosedByPeerError,
    ClosedByUsError,
    ConnectError,
    PeerUnresponsiveError,
    SessionLostError,
    WaitTimeoutError,
)
from aiomas_ng.liveness import ConnectionState, Liveness
from aiomas_ng.rpc import Service
from tests.busy_peer import open_process
from tests.conftest import Transport
from tests.waiting import wait_until

CONNECTED, UNRESPONSIVE, INTERRUPTED, CLOSED = ConnectionState

SHORT = Liveness(interval=0.03, patience=0.06, busy_patience=None)


class Echo(Agent):
    """What is called."""

    router = Service()

    @expose
    def echo(self, value: Any) -> Any:
        return value


class News:
    """What a container has told of its peers."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.seen: list[tuple[str, ConnectionState]] = []
        self._changed = asyncio.Event()
        self.remove = container.on_peer(self._note)

    def _note(self, url: str, state: ConnectionState) -> None:
        assert self.container.peers[url].state is state
        self.seen.append((url, state))
        self._changed.set()

    async def until(self, *states: ConnectionState) -> None:
        """Wait for the states that come first, and no others, of one peer."""
        while len(self.seen) < len(states):
            self._changed.clear()
            await self._changed.wait()
        assert tuple(state for _, state in self.seen) == states
        assert len({url for url, _ in self.seen}) == 1


@contextlib.asynccontextmanager
async def containers(*addresses: Any, **kwds: Any) -> AsyncIterator[list[Container]]:
    """Give a container at each address, with an agent ``echo``; they are shut down at the end."""
    made = [await make(address, **kwds) for address in addresses]
    try:
        yield made
    finally:
        await asyncio.gather(*[container.shutdown(as_coro=True) for container in made])


async def make(address: Any, **kwds: Any) -> Container:
    container = await Container.create(address, as_coro=True, **kwds)
    Echo(container, aid="echo")
    return container


def address_of(container: Container, transport: Transport, address: Any) -> Any:
    """Return where a further container has to listen to have the same URL."""
    if transport.kind != "tcp":
        return address
    return ("127.0.0.1", int(container._base_url.rstrip("/").rpartition(":")[2]))


# -- Who is there ----------------------------------------------------------------------------------


async def test_peers_are_those_that_were_dialled(transport: Transport) -> None:
    """A peer is known from when the connection to it is there, by its base URL; not who has dialled us, and
    not ourselves."""
    async with containers(transport.address(), transport.address()) as (near, far):
        assert dict(near.peers) == {}
        before = datetime.datetime.now(datetime.UTC)
        proxy = await near.connect(far._base_url + "echo")
        own = await near.connect(near._base_url + "echo")
        assert await proxy.echo(1) == await own.echo(1) == 1
        assert list(near.peers) == [far._base_url]
        status = near.peers[far._base_url]
        assert (status.url, status.state, status.error) == (far._base_url, CONNECTED, None)
        assert before <= status.since <= datetime.datetime.now(datetime.UTC)
        assert dict(far.peers) == {}


async def test_mapping_is_read_only_and_up_to_date(transport: Transport) -> None:
    """One may keep it; it cannot be changed."""
    async with containers(transport.address(), transport.address()) as (near, far):
        peers = near.peers
        await near.connect(far._base_url + "echo")
        assert peers[far._base_url].state is CONNECTED
        with pytest.raises(TypeError):
            peers[far._base_url] = None  # type: ignore[index]
        with pytest.raises(KeyError):
            peers["tcp://nowhere:1/"]


async def test_peer_goes_and_returns(transport: Transport) -> None:
    """Each change is told once: the first connection, its end, and the next one to the same address."""
    address = transport.address()
    async with containers(transport.address()) as (near,):
        news = News(near)
        far = await make(address)
        url = far._base_url
        address = address_of(far, transport, address)
        proxy = await near.connect(url + "echo")
        assert await proxy.echo(1) == 1
        await news.until(CONNECTED)
        first = near.peers[url].since
        await far.shutdown(as_coro=True)
        await news.until(CONNECTED, CLOSED)
        status = near.peers[url]
        assert isinstance(status.error, ClosedByPeerError)
        assert status.since >= first

        with pytest.raises(ConnectionError):
            await proxy.echo(2)
        await news.until(CONNECTED, CLOSED)  # it is still as gone as it was
        again = near.peers[url]
        assert isinstance(again.error, ConnectError)
        assert again.error.__traceback__ is None
        assert (again.since, again.state) == (status.since, CLOSED)

        far = await make(address)
        assert await proxy.echo(3) == 3
        await news.until(CONNECTED, CLOSED, CONNECTED)
        assert isinstance(near.peers[url].error, ConnectError)  # what has happened last
        news.remove()
        news.remove()
        await far.shutdown(as_coro=True)
        await wait_until(lambda: near.peers[url].state is CLOSED)
        await news.until(CONNECTED, CLOSED, CONNECTED)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_killed_process_returns(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A process that is killed, and started anew where it was, has gone and returned; who waits for it is
    woken."""
    transport = Transport(kind, tmp_path_factory.mktemp("s"))
    limits = Limits(refusal_time=0.1)
    async with (
        containers(transport.address(), limits=limits) as (near,),
        open_process(transport.address()) as process,
    ):
        news = News(near)
        url = await process.start()
        proxy = await near.connect(url)
        assert await proxy.echo(1) == 1
        gone = asyncio.create_task(near.wait_for_peer(url, CLOSED, 20))
        await asyncio.sleep(0)
        await process.kill()
        assert (await gone).state is CLOSED
        waiting = asyncio.create_task(near.wait_for_peer(url, timeout=20))
        assert await process.start() == url
        status = await waiting
        assert (status.url, status.state) == (process.url, CONNECTED)
        assert await proxy.echo(2) == 2
        await news.until(CONNECTED, INTERRUPTED, CLOSED, CONNECTED)
        assert isinstance(near.peers[process.url].error, SessionLostError | ConnectError)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_busy_process(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A process that is busy is unresponsive, and then connected again by the same connection."""
    transport = Transport(kind, tmp_path_factory.mktemp("s"))
    async with (
        containers(transport.address(), liveness=SHORT) as (near,),
        open_process(transport.address()) as process,
    ):
        url = await process.start()
        proxy = await near.connect(url)
        news = News(near)
        process.stop()
        status = await near.wait_for_peer(url, UNRESPONSIVE, 20)
        assert status.error is None
        with pytest.raises(WaitTimeoutError):
            await near.wait_for_peer(url, timeout=0.1)
        process.go_on()
        assert (await near.wait_for_peer(url, timeout=20)).state is CONNECTED
        assert await proxy.echo(1) == 1
        await news.until(UNRESPONSIVE, CONNECTED)


async def test_why_a_peer_was_given_up_is_known(transport: Transport) -> None:
    """The error of the status is that of the connection."""
    async with containers(transport.address(), transport.address(), resumable=False) as (near, far):
        await near.connect(far._base_url + "echo")
        news = News(near)
        (client,) = near._connections
        client.channel._give_up_transport(PeerUnresponsiveError("silent"))
        await news.until(CLOSED)
        assert isinstance(near.peers[far._base_url].error, PeerUnresponsiveError)


async def test_states_that_others_set_are_told(transport: Transport) -> None:
    """Whatever state the connection gets, the peer has it, too."""
    async with containers(transport.address(), transport.address()) as (near, far):
        await near.connect(far._base_url + "echo")
        news = News(near)
        (client,) = near._connections
        client.channel._set_state(INTERRUPTED)
        client.channel._set_state(CONNECTED)
        await news.until(INTERRUPTED, CONNECTED)


async def test_connection_that_is_taken_up_again(transport: Transport) -> None:
    """A transport that breaks is an interruption, and no end; also in the status."""
    async with containers(transport.address(), transport.address()) as (near, far):
        proxy = await near.connect(far._base_url + "echo")
        assert await proxy.echo(1) == 1
        news = News(near)
        (client,) = near._connections
        client.channel._give_up_transport(PeerUnresponsiveError("silent"))
        assert near.peers[far._base_url].state is INTERRUPTED
        assert await proxy.echo(2) == 2
        await news.until(INTERRUPTED, CONNECTED)
        assert (await near.wait_for_peer(far._base_url, timeout=0)).error is None


async def test_end_of_an_older_connection_is_not_that_of_the_peer(transport: Transport) -> None:
    """Only the latest connection to a peer says whether it is there."""
    async with containers(transport.address(), transport.address()) as (near, far):
        url = far._base_url
        await near.connect(url + "echo")
        (older,) = near._connections
        newer = await near._open_connection(near._peers.get(peer_states.parse_url(url)[0]).address, 0)
        news = News(near)
        await older.close()
        assert near.peers[url].state is CONNECTED
        assert news.seen == []
        await newer.close()
        await news.until(CLOSED)


async def test_shutdown_is_the_end_of_all(transport: Transport) -> None:
    """When the container itself ends, so do the connections, by us."""
    async with containers(transport.address(), transport.address()) as (near, far):
        await near.connect(far._base_url + "echo")
        news = News(near)
        await near.shutdown(as_coro=True)
        await news.until(CLOSED)
        assert isinstance(near.peers[far._base_url].error, ClosedByUsError)


async def test_peer_that_was_never_there_is_unknown(transport: Transport) -> None:
    """An address at which nobody has ever answered is no peer."""
    async with containers(transport.address()) as (near,):
        url = {"tcp": "tcp://127.0.0.1:1/", "unix": "ipc://[/nowhere]/", "local": "local://nobody/"}
        with pytest.raises(ConnectionError):
            await near.connect(url[transport.kind] + "0")
        assert dict(near.peers) == {}


async def test_peers_that_have_gone_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that have gone the latest are remembered; those that are there are never forgotten."""
    monkeypatch.setattr(peer_states, "MAX_GONE", 2)
    transport = Transport("local", None)  # type: ignore[arg-type]
    async with containers(transport.address()) as (near,):
        stays = await make(transport.address())
        await near.connect(stays._base_url + "echo")
        urls = []
        for _ in range(4):
            far = await make(transport.address())
            urls.append(far._base_url)
            await near.connect(far._base_url + "echo")
            await far.shutdown(as_coro=True)
            await wait_until(lambda: near.peers[urls[-1]].state is CLOSED)
        assert set(near.peers) == {stays._base_url, *urls[2:]}
        await stays.shutdown(as_coro=True)


# -- Who is told -----------------------------------------------------------------------------------


async def test_function_that_fails_harms_nothing(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """Its failure is logged once for each change; others are told, and calls work."""
    async with containers(transport.address(), transport.address()) as (near, far):

        def broken(url: str, state: ConnectionState) -> None:
            raise ValueError(state)

        near.on_peer(broken)
        news = News(near)
        with caplog.at_level(logging.ERROR, "aiomas_ng.liveness"):
            proxy = await near.connect(far._base_url + "echo")
        assert await proxy.echo(1) == 1
        await news.until(CONNECTED)
        (record,) = caplog.records
        assert record.exc_info is not None
        assert "on_peer callback" in record.getMessage()


async def test_function_may_connect_anew(transport: Transport) -> None:
    """Who is told that a peer has gone may dial it right then."""
    address = transport.address()
    async with containers(transport.address()) as (near,):
        far = await make(address)
        url, address = far._base_url, address_of(far, transport, address)
        await near.connect(url + "echo")
        tasks = []

        def dial(url: str, state: ConnectionState) -> None:
            if state is CLOSED and not tasks:
                tasks.append(asyncio.create_task(near.wait_for_peer(url, timeout=20)))

        near.on_peer(dial)
        news = News(near)
        await far.shutdown(as_coro=True)
        far = await make(address)
        await news.until(CLOSED, CONNECTED)
        assert (await tasks[0]).state is CONNECTED
        await far.shutdown(as_coro=True)


async def test_what_is_no_function_is_refused(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coroutine function would never be awaited; and who registers for ever is told so."""

    async def later(url: str, state: ConnectionState) -> None:
        raise AssertionError

    async with containers(transport.address()) as (near,):
        for callback in (later, None, 5):
            with pytest.raises(TypeError, match="on_peer callback must be a plain function"):
                near.on_peer(callback)  # type: ignore[arg-type]
        monkeypatch.setattr(listeners, "MAX_LISTENERS", 2)
        near.on_peer(print)
        near.on_peer(print)
        with pytest.raises(RuntimeError, match="2 functions are registered"):
            near.on_peer(print)


# -- Waiting ---------------------------------------------------------------------------------------


async def test_wait_dials_until_the_peer_is_there(transport: Transport) -> None:
    """It need not be there when one begins to wait; any number of tasks wait for the same connection."""
    address = transport.address()
    async with containers(transport.address()) as (near,):
        far = await make(address)
        url, address = far._base_url, address_of(far, transport, address)
        await far.shutdown(as_coro=True)
        waiting = [asyncio.create_task(near.wait_for_peer(url + "echo", timeout=20)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        far = await make(address)
        for status in await asyncio.gather(*waiting):
            assert (status.url, status.state) == (url, CONNECTED)
        await wait_until(lambda: len(far._connections) == 1)
        assert (await near.wait_for_peer(url, timeout=0)).state is CONNECTED
        await far.shutdown(as_coro=True)


async def test_wait_dials_anew_if_the_peer_goes_meanwhile(transport: Transport) -> None:
    """Who waits for a peer that is unresponsive, and then goes, waits for its return."""
    address = transport.address()
    async with containers(transport.address()) as (near,):
        far = await make(address)
        url, address = far._base_url, address_of(far, transport, address)
        await near.connect(url + "echo")
        (client,) = near._connections
        client.channel._set_state(UNRESPONSIVE)
        waiting = asyncio.create_task(near.wait_for_peer(url, timeout=20))
        await asyncio.sleep(0)
        await far.shutdown(as_coro=True)
        await asyncio.sleep(0.02)
        assert not waiting.done()
        far = await make(address)
        assert (await waiting).state is CONNECTED
        await far.shutdown(as_coro=True)


async def test_wait_sees_states_that_pass(transport: Transport) -> None:
    """A state that has passed before the waiting task gets its turn is not missed."""
    async with containers(transport.address(), transport.address()) as (near, far):
        await near.connect(far._base_url + "echo")
        (client,) = near._connections
        waiting = asyncio.create_task(near.wait_for_peer(far._base_url, UNRESPONSIVE, 20))
        await asyncio.sleep(0)
        client.channel._set_state(UNRESPONSIVE)
        client.channel._set_state(CONNECTED)
        assert (await waiting).state is UNRESPONSIVE


@pytest.mark.parametrize("timeout", [0, -1, 0.05])
async def test_wait_ends_in_time(transport: Transport, timeout: float) -> None:
    """If the peer does not come, or go, in time, there is an error, which is a TimeoutError."""
    async with containers(transport.address(), transport.address()) as (near, far):
        url = far._base_url
        await near.connect(url + "echo")
        with pytest.raises(TimeoutError, match=f"{re.escape(url)} is closed: not within") as caught:
            await near.wait_for_peer(url, CLOSED, timeout)
        assert isinstance(caught.value, WaitTimeoutError)
        await far.shutdown(as_coro=True)
        await near.wait_for_peer(url, CLOSED, 20)
        with pytest.raises(WaitTimeoutError):
            await near.wait_for_peer(url, timeout=timeout)
        assert near._peer_states._listeners._entries == {}


async def test_wait_ends_with_the_container(transport: Transport) -> None:
    """Shutdown ends all waiting at once, also for what would never come."""
    async with containers(transport.address(), transport.address()) as (near, far):
        url = far._base_url
        await far.shutdown(as_coro=True)
        waiting = [
            asyncio.create_task(near.wait_for_peer(url, state, timeout))
            for state in ConnectionState
            for timeout in (None, 20)
        ]
        await asyncio.sleep(0.05)
        await near.shutdown(as_coro=True)
        for task in waiting:
            with pytest.raises(ClosedByUsError):
                await task
        with pytest.raises(ClosedByUsError):
            await near.wait_for_peer(url)


@pytest.mark.parametrize("turns", range(5))
@pytest.mark.parametrize("state", [CONNECTED, CLOSED])
async def test_wait_can_be_cancelled(transport: Transport, turns: int, state: ConnectionState) -> None:
    """At each point, and nothing is left of it."""
    async with containers(transport.address(), transport.address()) as (near, far):
        waiting = asyncio.create_task(near.wait_for_peer(far._base_url, state))
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert near._peer_states._listeners._entries == {}
        assert (await near.wait_for_peer(far._base_url, timeout=20)).state is CONNECTED


async def test_wait_for_an_address_that_is_none(transport: Transport) -> None:
    """An address that does not parse is an error, and so is the own one."""
    async with containers(transport.address()) as (near,):
        with pytest.raises(AddressError):
            await near.wait_for_peer("nonsense")
        with pytest.raises(AddressError, match="this container itself"):
            await near.wait_for_peer(near._base_url + "echo")
