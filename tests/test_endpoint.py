"""Dialling and listening: addresses, timeouts, addresses in use, and servers that end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aiomas_ng import channel as channels
from aiomas_ng import local_queue
from aiomas_ng._core.addresses import Address
from aiomas_ng._io import endpoint
from aiomas_ng._io.endpoint import as_address
from aiomas_ng.channel import Channel, Server
from aiomas_ng.exceptions import (
    AddressError,
    AddressInUseError,
    ClosedByPeerError,
    ClosedByUsError,
    ConnectError,
    SocketPathError,
)
from aiomas_ng.faults import Network
from tests.faults import accept, serve, until


def ignore(channel: Channel) -> None:
    """Take a connection and do nothing with it."""


async def echo(channel: Channel) -> None:
    """Answer every request with its content."""
    while True:
        request = await channel.recv()
        await request.reply(request.content)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def exists(path: str) -> bool:
    """Return whether there is a file."""
    return os.path.exists(path)


def unused_address(transport: Any) -> Any:
    """Return an address that nobody listens at, and that can be dialled."""
    return ("127.0.0.1", free_port()) if transport.kind == "tcp" else transport.address()


# -- Addresses -------------------------------------------------------------------------------------


async def test_every_form_of_an_address(transport: Any) -> None:
    """An address may be given as tuple, list, path, LocalQueue, Address or URL, the port as a string."""
    async with await channels.start_server(transport.address(), echo) as server:
        place: Any = server.address.place
        forms = [server.url, server.url.rstrip("/"), server.address]
        if transport.kind == "tcp":
            host, port = place
            forms += [(host, port), (host, str(port)), [host, port], f"tcp://{host}:{port}"]
        elif transport.kind == "unix":
            forms += [place, pathlib.Path(place), f"ipc://{place}", f"ipc://[{place}]"]
        else:
            forms += [local_queue.get_queue(place), f"local://{place}"]
        for form in forms:
            client = await channels.open_connection(form)
            assert await client.send("x") == "x", form
            await client.close()


async def test_a_server_takes_every_form_of_an_address(transport: Any) -> None:
    """What can be dialled can be listened at; the server's URL is the same for all forms."""
    address = transport.address()
    if transport.kind == "tcp":
        forms = [address, ("127.0.0.1", "0"), "tcp://127.0.0.1:0", Address("tcp", ("127.0.0.1", 0))]
    elif transport.kind == "unix":
        forms = [address, f"ipc://[{address}]/", pathlib.Path(address)]
    else:
        forms = [address, f"local://{address.queue_id}"]
    for form in forms:
        async with await channels.start_server(form, ignore) as server:
            if transport.kind == "tcp":
                host, port = server.address.place
                assert host == "127.0.0.1"
                assert port == server.sockets[0].getsockname()[1] != 0
                assert server.url == f"tcp://127.0.0.1:{port}/"
            elif transport.kind == "unix":
                assert server.url == f"ipc://[{address}]/"
            else:
                assert server.url == f"local://{address.queue_id}/"
                assert server.sockets == ()


@pytest.mark.parametrize(
    "address",
    [
        None,
        "",
        5,
        b"/tmp/x",
        "/tmp/\0x",
        ("localhost",),
        ("localhost", "http"),
        ("localhost", 65536),
        ("localhost", -1),
        ("localhost", None),
        ("localhost", 1, 2),
        "localhost:5555",
        "tcp://localhost",
        "udp://localhost:1",
        "tcp://localhost:1/agent",
        "ipc://[/tmp/x]/agent",
        "local://x/agent",
    ],
)
async def test_what_is_no_address(address: Any) -> None:
    """Both functions say what is wrong with it; the error is a ValueError."""
    with pytest.raises(AddressError) as caught:
        await channels.open_connection(address)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(AddressError):
        await channels.start_server(address, ignore)


def test_as_address_gives_plain_addresses() -> None:
    """The function of this package for addresses gives what the transports take."""
    assert as_address(("h", "5")) == ("h", 5)
    assert as_address("tcp://h:5/") == ("h", 5)
    assert as_address("ipc://[/a/b]") == "/a/b"
    assert as_address("local://q") is local_queue.get_queue("q")


@pytest.mark.parametrize("host", ["localhost", None, "127.0.0.1"])
async def test_port_0_is_one_port_on_all_addresses(host: str | None) -> None:
    """Where a host name stands for several addresses, port 0 gives the same port on all of them."""
    async with await channels.start_server((host, 0), echo) as server:
        ports = {sock.getsockname()[1] for sock in server.sockets}
        assert ports == {server.address.place[1]}
        for sock in server.sockets:
            loopback = "::1" if sock.family == socket.AF_INET6 else "127.0.0.1"
            client = await channels.open_connection((loopback, *ports))
            assert await client.send(1) == 1
            await client.close()


@pytest.mark.parametrize("host", [None, ""])
@pytest.mark.parametrize("is_faulty", [False, True])
async def test_url_without_a_host(monkeypatch: pytest.MonkeyPatch, host: str | None, is_faulty: bool) -> None:
    """A server on all interfaces that was given no host has the machine's name in its URL, for which it looks
    once; whoever has that URL reaches it."""
    asked = []

    def getfqdn() -> str:
        asked.append(1)
        return "localhost"

    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    options: dict[str, Any] = {"network": Network(0, applies_to="accepted")} if is_faulty else {}
    async with await channels.start_server((host, 0), echo, insecure=True, **options) as server:
        assert server.url == f"tcp://localhost:{server.address.place[1]}/"
        assert server.url in repr(server)
        assert server.url == server.url
        assert len(asked) == 1
        client = await channels.open_connection(server.url)
        assert await client.send(1) == 1
        await client.close()


class TwoPorts:
    """Stands for a loop on which a host has two addresses, whatever the machine has.

    Args:
        loop: The real loop.
        failures: How many times the port of one address is not free on the other.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, failures: int) -> None:
        self._loop = loop
        self._failures = failures
        self.servers: list[Any] = []

    async def create_server(self, factory: Any, host: str, port: int, **kwds: Any) -> Any:
        if not port:
            first = await self._loop.create_server(factory, "127.0.0.1", 0)
            second = await self._loop.create_server(factory, "127.0.0.2", 0)
            return self._join(first, second)
        if self._failures:
            self._failures -= 1
            raise OSError(errno.EADDRINUSE, "in use")
        first = await self._loop.create_server(factory, "127.0.0.1", port)
        second = await self._loop.create_server(factory, "127.0.0.2", port)
        return self._join(first, second)

    def _join(self, *servers: Any) -> Any:
        class Joined:
            sockets = tuple(sock for server in servers for sock in server.sockets)

            def close(self) -> None:
                for server in servers:
                    server.close()

            def get_loop(self) -> Any:
                return servers[0].get_loop()

        self.servers.append(Joined())
        return self.servers[-1]


@pytest.mark.parametrize("failures", [0, 3])
async def test_port_0_is_tried_again_where_it_is_not_free_everywhere(failures: int) -> None:
    """If the port of one address is taken on another, further ports are tried; those tried are freed."""
    loop = TwoPorts(asyncio.get_running_loop(), failures)
    connections: Any = set()
    server = await endpoint.listen(("two", 0), lambda _: None, loop=loop)  # type: ignore[arg-type, return-value]
    ports = {sock.getsockname()[1] for sock in loop.servers[-1].sockets}
    assert ports == {server.address.place[1]}
    assert all(sock.fileno() == -1 for other in loop.servers[:-1] for sock in other.sockets)
    server.close()
    assert not connections


async def test_no_port_that_is_free_everywhere() -> None:
    """After some attempts it is an error that says so, and nothing is left open."""
    loop = TwoPorts(asyncio.get_running_loop(), 1000)
    with pytest.raises(AddressInUseError):
        await endpoint.listen(("two", 0), lambda _: None, loop=loop)  # type: ignore[arg-type, return-value]
    assert len(loop.servers) == endpoint.PORT_ATTEMPTS


# -- Dialling --------------------------------------------------------------------------------------


async def test_nobody_answers(transport: Any) -> None:
    """A refused connection is a ConnectError at once, a ConnectionRefusedError that names the address."""
    address = unused_address(transport)
    for _ in range(2):
        with pytest.raises(ConnectError) as caught:
            await channels.open_connection(address)
        assert isinstance(caught.value, ConnectionRefusedError)
        assert (str(address[1]) if transport.kind == "tcp" else str(address)) in str(caught.value)
        assert isinstance(caught.value, SocketPathError) == (transport.kind == "unix")
    if transport.kind == "unix":
        assert isinstance(caught.value, FileNotFoundError)


async def test_socket_file_without_a_server() -> None:
    """A socket that was left behind refuses; its path exists, so it is no SocketPathError."""
    path = f"/tmp/ng-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    try:
        with pytest.raises(ConnectError) as caught:
            await channels.open_connection(path)
        assert not isinstance(caught.value, SocketPathError)
    finally:
        os.unlink(path)


async def test_unknown_host() -> None:
    """A host that has no address is a ConnectError as well, with the reason of the system."""
    with pytest.raises(ConnectError) as caught:
        await channels.open_connection(("no-such-host.invalid", 1))
    assert isinstance(caught.value.__cause__, OSError)


async def test_timeout_0_tries_once(transport: Any) -> None:
    """Without a timeout there is one attempt and no pause."""
    begin = time.monotonic()
    with pytest.raises(ConnectError):
        await channels.open_connection(unused_address(transport), timeout=0)
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("timeout", [30, None])
async def test_timeout_waits_for_a_server_that_starts_late(transport: Any, timeout: float | None) -> None:
    """With a timeout, or for ever, a server that is not there yet is waited for."""
    address = unused_address(transport)
    opening = asyncio.ensure_future(channels.open_connection(address, timeout=timeout))
    await asyncio.sleep(0.03)
    assert not opening.done()
    async with await channels.start_server(address, echo):
        client = await opening
        assert await client.send("x") == "x"
        await client.close()


async def test_timeout_fails_in_time(transport: Any) -> None:
    """When the time is up it is a ConnectError, not before and not much later."""
    begin = time.monotonic()
    with pytest.raises(ConnectError):
        await channels.open_connection(unused_address(transport), timeout=0.15)
    assert 0.15 <= time.monotonic() - begin < 5


@pytest.mark.parametrize("timeout", [1000, None])
async def test_opening_may_be_cancelled(transport: Any, timeout: float | None) -> None:
    """Cancelling gives up at once."""
    opening = asyncio.ensure_future(channels.open_connection(unused_address(transport), timeout=timeout))
    await asyncio.sleep(0.03)
    opening.cancel()
    await asyncio.wait([opening])
    assert opening.cancelled()


class ScriptedLoop:
    """Stands for a loop whose attempts to connect fail in a given way."""

    def __init__(self, *errors: BaseException | None) -> None:
        self.errors = list(errors)

    async def create_connection(self, factory: Any, host: str, port: int, **kwds: Any) -> Any:
        error = self.errors.pop(0)
        if error is not None:
            raise error
        if self.errors:
            await asyncio.Event().wait()  # the system lets an attempt take minutes
        return None, "protocol"


async def test_pauses_between_attempts_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """At first it is tried again soon, later less often, but never less often than every two seconds."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(endpoint.asyncio, "sleep", sleep)
    refused: list[BaseException | None] = [ConnectionRefusedError() for _ in range(30)]
    loop: Any = ScriptedLoop(*refused, None)
    assert await endpoint.dial(("x", 1), None, timeout=None, loop=loop) == "protocol"  # type: ignore[arg-type, comparison-overlap]
    assert pauses[0] == endpoint.FIRST_PAUSE
    assert pauses == sorted(pauses)
    assert pauses[-1] == endpoint.LONGEST_PAUSE
    assert pauses[1] < 2 * pauses[0]


async def test_timeout_of_the_system_is_an_attempt_that_failed() -> None:
    """An address that swallows packets is tried again for as long as it was asked for."""
    loop: Any = ScriptedLoop(TimeoutError(errno.ETIMEDOUT, "timed out"), None)
    assert await endpoint.dial(("x", 1), None, timeout=None, loop=loop) == "protocol"  # type: ignore[arg-type, comparison-overlap]
    loop = ScriptedLoop(TimeoutError(errno.ETIMEDOUT, "timed out"))
    with pytest.raises(ConnectError, match="timed out"):
        await endpoint.dial(("x", 1), None, timeout=0, loop=loop)  # type: ignore[arg-type]


async def test_timeout_ends_an_attempt_that_takes_too_long() -> None:
    """An attempt that gets no answer at all is ended by our timeout."""
    loop: Any = ScriptedLoop(None, None)
    with pytest.raises(ConnectError, match=r"no answer within 0\.02 s"):
        await endpoint.dial(("x", 1), None, timeout=0.02, loop=loop)  # type: ignore[arg-type]


async def test_errors_of_the_program_are_no_failed_attempts() -> None:
    """A wrong option is reported at once, whatever the timeout."""
    with pytest.raises(TypeError):
        await channels.open_connection(("127.0.0.1", 1), timeout=None, no_such_option=1)


# -- Listening -------------------------------------------------------------------------------------


async def test_address_in_use(transport: Any) -> None:
    """A second server at the same address is refused, and the first one is not disturbed."""
    async with await channels.start_server(transport.address(), echo) as server:
        with pytest.raises(AddressInUseError) as caught:
            await channels.start_server(server.url, ignore)
        assert caught.value.errno == errno.EADDRINUSE
        assert isinstance(caught.value, OSError)
        client = await channels.open_connection(server.url)
        assert await client.send("x") == "x"
        await client.close()


async def test_other_errors_of_listening() -> None:
    """An error that is not about an address in use stays what it is."""
    with pytest.raises(OSError, match="No such file") as caught:
        await channels.start_server("/nowhere/at/all", ignore)
    assert not isinstance(caught.value, AddressInUseError)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> Iterator[str]:
    """A short path for a Unix socket."""
    name = f"/tmp/ng-{os.getpid()}-{tmp_path.name[-8:]}"
    yield name
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name)


async def test_socket_that_was_left_behind_is_replaced(path: str) -> None:
    """A socket file of a process that is gone does not keep the next one from listening."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    async with await channels.start_server(path, echo) as server:
        client = await channels.open_connection(server.url)
        assert await client.send("x") == "x"
        await client.close()
    assert not exists(path)


def test_regular_file_is_not_deleted(path: str, arun: Any) -> None:
    """A path of something that is no socket is in use."""
    with open(path, "w") as file:
        file.write("precious")
    with pytest.raises(AddressInUseError, match="no socket"):
        arun(channels.start_server(path, ignore))
    with open(path) as file:
        assert file.read() == "precious"


async def test_socket_of_another_kind_is_not_stolen(path: str) -> None:
    """A socket that answers otherwise than by refusing belongs to somebody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        with pytest.raises(AddressInUseError):
            await channels.start_server(path, ignore)
        assert exists(path)


async def test_live_socket_with_a_full_backlog_is_not_stolen(path: str) -> None:
    """A server that is too busy to accept is alive."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(path)
        sock.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect_ex(path)
        with pytest.raises(AddressInUseError):
            await channels.start_server(path, ignore)


async def test_socket_file_of_a_successor_is_not_deleted(path: str) -> None:
    """A server whose socket file was replaced by another one leaves that alone when it closes."""
    first = await channels.start_server(path, ignore)
    os.unlink(path)
    async with await channels.start_server(path, echo) as second:
        first.close()
        client = await channels.open_connection(second.url)
        assert await client.send("x") == "x"
        await client.close()
    assert not exists(path)


async def test_start_serving_later() -> None:
    """With ``start_serving=False`` a server is bound, and accepts nobody until it is told to."""
    async with await channels.start_server(("127.0.0.1", 0), echo, start_serving=False) as server:
        assert not server.is_serving()
        with pytest.raises(ConnectError):
            await channels.open_connection(server.url)
        await server.start_serving()
        assert server.is_serving()
        client = await channels.open_connection(server.url)
        assert await client.send("x") == "x"
        await client.close()


async def test_start_serving_later_on_every_transport(transport: Any) -> None:
    """The option is accepted everywhere."""
    async with await channels.start_server(transport.address(), echo, start_serving=False) as server:
        await server.start_serving()
        assert server.is_serving()


# -- The end of a server ---------------------------------------------------------------------------


async def test_server_closes_at_once_with_open_connections(transport: Any) -> None:
    """close() and wait_closed() do not wait for connections, which stay open, on every version of Python."""
    async with accept(transport) as (server, accepted):
        client = await channels.open_connection(server.url)
        serve(await accepted, lambda content: content)
        assert server.is_serving()
        assert "not serving" not in repr(server)
        server.close()
        server.close()
        async with asyncio.timeout(5):
            await server.wait_closed()
        assert not server.is_serving()
        assert "not serving" in repr(server)
        assert server.sockets == ()
        assert await client.send("x") == "x"
        await client.close()


async def test_address_is_free_at_once(transport: Any) -> None:
    """A closed server's address can be listened at in the same moment, while its connections are open."""
    async with accept(transport) as (first, accepted):
        client = await channels.open_connection(first.url)
        await accepted
        url = first.url
        first.close()
        with pytest.raises(ConnectError):
            await channels.open_connection(url)
        second = await channels.start_server(url, echo)
        assert second.url == url
        other = await channels.open_connection(url)
        assert await other.send("x") == "x"
        await other.close()
        second.close()
        await client.close()


async def test_wait_closed_waits_for_close(transport: Any) -> None:
    """It is a way to wait until somebody else closes the server; cancelling it closes nothing."""
    server = await channels.start_server(transport.address(), ignore)
    waiting = asyncio.ensure_future(server.wait_closed())
    impatient = asyncio.ensure_future(server.wait_closed())
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait([impatient])
    assert server.is_serving()
    assert not waiting.done()
    server.close()
    await waiting
    assert server.get_loop() is asyncio.get_running_loop()


@pytest.mark.parametrize("by", ["cancel", "close"])
async def test_serve_forever(transport: Any, by: str) -> None:
    """It serves until it is cancelled or the server is closed, and the server is closed afterwards."""
    server = await channels.start_server(transport.address(), echo)
    serving = asyncio.ensure_future(server.serve_forever())
    client = await channels.open_connection(server.url)
    assert await client.send("x") == "x"
    await client.close()
    if by == "cancel":
        serving.cancel()
    else:
        server.close()
    await asyncio.wait([serving])
    assert serving.cancelled() == (by == "cancel")
    assert not server.is_serving()
    for start in (server.serve_forever, server.start_serving):
        with pytest.raises(RuntimeError, match="closed"):
            await start()


async def test_close_clients(transport: Any) -> None:
    """A server can close the connections that it has accepted; both sides know who did it."""
    serving: list[Channel] = []
    async with await channels.start_server(transport.address(), serving.append) as server:
        clients = [await channels.open_connection(server.url) for _ in range(3)]
        await until(lambda: len(serving) == 3)
        await clients[0].close()
        await until(lambda: serving[0].is_closed)
        replies = [client.send("x") for client in clients[1:]]
        server.close_clients()
        errors = await asyncio.gather(*replies, return_exceptions=True)
        assert [type(error) for error in errors] == [ClosedByPeerError] * 2
        assert [type(channel._error) for channel in serving[1:]] == [ClosedByUsError] * 2
        for channel in (*serving, *clients):
            await channel.close()
        server.close_clients()


async def test_server_is_what_start_server_gives(transport: Any) -> None:
    """The type is public, for annotations."""
    async with await channels.start_server(transport.address(), ignore) as server:
        assert isinstance(server, Server)
