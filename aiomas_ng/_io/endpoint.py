"""Dialling and listening: the same few steps for TCP, Unix sockets and LocalQueue."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import stat
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from aiomas_ng import local_queue
from aiomas_ng._core.addresses import Address, parse_host_port, parse_url, tcp_url
from aiomas_ng._io.closing import GRACE, check_grace
from aiomas_ng._io.connection import logger
from aiomas_ng._io.expiry import bounded, outside_deadlines
from aiomas_ng._io.limited_log import LimitedLog
from aiomas_ng._io.tls import Entrance, Threshold, secure_client
from aiomas_ng._io.tls_handshake import TLSSettings
from aiomas_ng.exceptions import (
    AddressError,
    AddressInUseError,
    ClosedByUsError,
    ConnectError,
    SocketPathError,
    TLSError,
)

if TYPE_CHECKING:
    from types import TracebackType

    from aiomas_ng.channel import ChannelProtocol

__all__ = ["Server", "address_of", "as_address", "dial", "listen"]

#: The first pause between two attempts to connect, its growth, and the longest one, in seconds.
FIRST_PAUSE: Final = 0.02
PAUSE_GROWTH: Final = 1.5
LONGEST_PAUSE: Final = 2.0

#: How often a port is looked for that is free on all addresses of a host.
PORT_ATTEMPTS: Final = 10

#: The name that certificates have to be issued to for Unix sockets, which have no host.
UNIX_HOST: Final = "localhost"
#: Addresses that stand for all interfaces.
WILDCARD_ADDRESSES: Final = ("0.0.0.0", "::")

T = TypeVar("T", bound=asyncio.BaseProtocol)
ProtocolFactory = Callable[[], "ChannelProtocol"]


class Network(Protocol):
    """What may lie between the transports and the protocols; see :mod:`aiomas_ng.faults`."""

    async def _dial(
        self, connect: Callable[[Callable[[], Any]], Awaitable[Any]], target: Any, factory: Callable[[], T]
    ) -> T:
        """Return the protocol of *factory* after a protocol was connected to *target* by *connect*."""

    def _accept(self, get_url: Callable[[], str], factory: Callable[[], Any]) -> Callable[[], Any]:
        """Return a factory in place of that of a server."""


def as_address(addr: Any) -> tuple[str, int] | str | local_queue.LocalQueue:
    """Return *addr*, which may be a URL, as ``(host, port)``, the path of a Unix socket or a LocalQueue.

    Raises:
        AddressError: It is none of these.
    """
    if isinstance(addr, Address):
        return local_queue.get_queue(str(addr.place)) if addr.protocol == "local" else addr.place
    if isinstance(addr, local_queue.LocalQueue):
        return addr
    if isinstance(addr, tuple | list):
        return parse_host_port(tuple(addr))
    if isinstance(addr, str | os.PathLike):
        path = os.fspath(addr)
        if isinstance(path, str) and "://" in path:
            address, rest = parse_url(path)
            if rest:
                raise AddressError(
                    f"{path!r} is the URL of an agent; expected that of a server: {address.url}"
                )
            return as_address(address)
        if isinstance(path, str) and re.fullmatch(r"[^/]*:\d{1,5}", path):
            host, _, port = path.rpartition(":")
            raise AddressError(f"{path!r} is no address; did you mean ({host!r}, {port}) or 'tcp://{path}'?")
        if isinstance(path, str) and path and "\0" not in path:
            return path
    raise AddressError(
        f"unknown type of address: {addr!r}; "
        f"expected (host, port), the path of a Unix socket, a LocalQueue or a URL"
    )


async def dial(
    addr: Any,
    factory: Callable[[], T],
    *,
    timeout: float | None = 0,
    loop: asyncio.AbstractEventLoop,
    network: Network | None = None,
    **kwds: Any,
) -> T:
    """Connect to *addr*; see :func:`aiomas_ng.channel.open_connection` for *timeout* and *network*."""
    target = as_address(addr)
    async with bounded(loop, f"the connection to {addr}"):
        return await _dial(addr, target, factory, timeout, loop, network, kwds)


async def _dial(
    addr: Any,
    target: tuple[str, int] | str | local_queue.LocalQueue,
    factory: Callable[[], T],
    timeout: float | None,
    loop: asyncio.AbstractEventLoop,
    network: Network | None,
    kwds: dict[str, Any],
) -> T:
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    pause = FIRST_PAUSE
    settings = None
    if not isinstance(target, local_queue.LocalQueue):
        settings = TLSSettings.pop(kwds, UNIX_HOST if isinstance(target, str) else target[0])

    async def connect(make: Callable[[], Any]) -> Any:
        return await _connect(target, make, loop, settings, kwds)

    while True:
        attempt = connect(factory) if network is None else network._dial(connect, target, factory)
        try:
            if not timeout:  # once, or for ever: as long as the system lets an attempt take
                return await attempt
            async with asyncio.timeout(max(0.001, deadline - time.monotonic())):
                return await attempt
        except TLSError:
            raise  # there is somebody, and time will not make them agree
        except ConnectError:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            # The last attempt is made when the time is up, not before.
            await asyncio.sleep(min(pause, left))
            pause = min(LONGEST_PAUSE, pause * PAUSE_GROWTH)
        except TimeoutError as error:
            raise ConnectError(addr, f"no answer within {timeout} s") from error


def address_of(target: tuple[str, int] | str | local_queue.LocalQueue) -> Address:
    """Return what :func:`as_address` has returned as an :class:`Address`."""
    if isinstance(target, local_queue.LocalQueue):
        return Address("local", target.queue_id)
    return Address("ipc", target) if isinstance(target, str) else Address("tcp", target)


async def _connect(
    target: tuple[str, int] | str | local_queue.LocalQueue,
    factory: Callable[[], T],
    loop: asyncio.AbstractEventLoop,
    settings: TLSSettings | None,
    kwds: dict[str, Any],
) -> T:
    connecting: Coroutine[Any, Any, tuple[Any, Any]]
    make: Callable[[], Any] = factory if settings is None else Threshold
    if isinstance(target, local_queue.LocalQueue):
        connecting = local_queue.create_connection(factory, target, loop=loop, **kwds)
    elif isinstance(target, str):
        connecting = loop.create_unix_connection(make, target, **kwds)
    else:
        connecting = loop.create_connection(make, *target, **kwds)
    try:
        with outside_deadlines():  # the transport keeps its context for as long as it lives
            _, protocol = await connecting
    except ConnectError:
        raise
    except FileNotFoundError as error:
        raise SocketPathError(target, "the path does not exist") from error
    except OSError as error:  # among them those of name resolution, and the system's TimeoutError
        raise ConnectError(target, error) from error
    if settings is not None:
        with outside_deadlines():
            return await secure_client(protocol, factory, settings, target, loop)
    return protocol  # type: ignore[no-any-return]  # typeshed does not tie it to the factory here


class Server:
    """A server as :mod:`asyncio` knows it, alike on every transport and every version of Python.

    ``close`` stops listening at once and frees the address; connections that are open stay so.
    ``wait_closed`` returns when it has stopped
    listening: it does not wait for connections, as :class:`asyncio.Server` has done since Python 3.12.
    """

    def __init__(
        self, server: asyncio.AbstractServer, address: Address, socket_file: tuple[str, int] | None
    ) -> None:
        self._server = server
        self._address = address
        self._url: str | None = None  # to find the name of a machine may take a while
        self._socket_file = (
            socket_file  # path and inode of a Unix socket, to remove it only if it is still ours
        )
        self._closed = server.get_loop().create_future()
        self._connections: set[ChannelProtocol] = set()
        self._entrance: Entrance | None = None  # where clients have to agree on TLS first
        self._log: LimitedLog | None = None  # for those that are refused

    def __repr__(self) -> str:
        return f"<Server at {self.url}{'' if self.is_serving() else ', not serving'}>"

    @property
    def url(self) -> str:
        """The server's base URL; with port 0 it has the port that was given by the system, and with the host
        ``None`` or ``''`` the name of this machine."""
        if self._url is None:
            self._url = _get_url(self._address)
        return self._url

    @property
    def address(self) -> Address:
        """Where the server listens."""
        return self._address

    @property
    def sockets(self) -> tuple[Any, ...]:
        """The listening sockets, none for LocalQueue or after the end."""
        return tuple(getattr(self._server, "sockets", ()) or ())

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that the server belongs to."""
        return self._server.get_loop()

    def is_serving(self) -> bool:
        """Return whether new connections are accepted."""
        return self._server.is_serving()

    async def start_serving(self) -> None:
        """Begin to accept connections, if that was put off by ``start_serving=False``.

        Raises:
            RuntimeError: The server is closed.
        """
        if self._closed.done():
            raise RuntimeError(f"{self!r} is closed")
        with outside_deadlines():
            await self._server.start_serving()

    def close(self) -> None:
        """Stop listening; safe to be called twice."""
        if self._closed.done():
            return
        self._closed.set_result(None)
        self._server.close()
        if self._entrance is not None:
            self._entrance.close()
        for protocol in list(self._connections):
            protocol.stop_waiting_for_return()
        if self._log is not None:
            self._log.finish()
        if self._socket_file is not None:
            path, inode = self._socket_file
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)

    def close_clients(self) -> None:
        """Close the connections that were accepted."""
        for protocol in list(self._connections):
            if protocol.channel is not None:
                protocol.channel._set_error(ClosedByUsError("the server closed its connections"))

    async def shutdown(self, *, grace: float = GRACE) -> None:
        """Stop listening, and close the connections that were accepted, in order.

        Args:
            grace: Seconds that running handlers are given to end by themselves, see
                :meth:`aiomas_ng.channel.Channel.close`.

        Raises:
            ValueError: *grace* is no number >= 0.
        """
        check_grace(grace)
        self.close()
        channels = [protocol.channel for protocol in self._connections if protocol.channel is not None]
        await asyncio.gather(*(channel.close(grace=grace) for channel in channels))

    async def wait_closed(self) -> None:
        """Wait until :meth:`close` was called."""
        await asyncio.shield(self._closed)

    async def serve_forever(self) -> None:
        """Accept connections until this is cancelled or the server is closed; then close it.

        Raises:
            RuntimeError: The server is closed already.
        """
        try:
            await self.start_serving()
            await self.wait_closed()
        finally:
            self.close()

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
        await self.wait_closed()


async def listen(
    addr: Any,
    factory: Callable[[set[ChannelProtocol]], ChannelProtocol],
    *,
    loop: asyncio.AbstractEventLoop,
    insecure: bool = False,
    network: Network | None = None,
    log: LimitedLog | None = None,
    **kwds: Any,
) -> Server:
    """Listen on *addr*; the *factory* is given the set that the server keeps its connections in.

    Args:
        addr: The address.
        factory: Makes the protocol of a connection.
        loop: The event loop.
        insecure: To listen on all interfaces without TLS is meant, and needs no warning.
        network: What the connections go through.
        log: For those that are refused; by default one of its own.
        **kwds: Options of the loop.

    Raises:
        ValueError: The *network* does not apply to accepted connections.
        AddressError: *addr* is no address.
        AddressInUseError: Somebody listens there already.
    """
    target = as_address(addr)
    log = log or LimitedLog(logger, f"refused connections to {addr}")
    connections: set[ChannelProtocol] = set()

    def make_protocol() -> ChannelProtocol:
        return factory(connections)

    entrance = settings = None
    address = address_of(target)
    make: Callable[[], Any] = make_protocol
    if network is not None:
        make = network._accept(lambda: _get_url(address), make)
    if not isinstance(target, local_queue.LocalQueue):
        settings = TLSSettings.pop(kwds, None)
        if settings is not None:
            make = entrance = Entrance(settings, make, loop, log)
    try:
        with outside_deadlines():  # what is accepted has the context that the server was made in
            server, address, socket_file = await _listen(target, make, loop, kwds)
    except AddressInUseError:
        raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(addr) from error
        raise
    result = Server(server, address, socket_file)
    result._connections = connections
    result._entrance = entrance
    result._log = log
    if settings is None and not insecure and _is_on_all_interfaces(result):
        logger.warning(
            "listening on all interfaces without TLS, at port %s: whoever can reach this machine can use "
            "it, and what is sent can be read on the way. Give it certificates (ssl=...), bind it to one "
            "address, or say that this is meant (insecure=True)",
            result.address.place[1],
        )
    return result


async def _listen(
    target: tuple[str, int] | str | local_queue.LocalQueue,
    factory: Callable[[], Any],
    loop: asyncio.AbstractEventLoop,
    kwds: dict[str, Any],
) -> tuple[asyncio.AbstractServer, Address, tuple[str, int] | None]:
    """Return a server, its address, and the path and inode of its socket if it has them."""
    server: asyncio.AbstractServer
    if isinstance(target, local_queue.LocalQueue):
        kwds.pop("start_serving", None)  # nothing is accepted before the caller lets the loop run
        server = await local_queue.create_server(factory, target, **kwds)
        return server, Address("local", target.queue_id), None
    if isinstance(target, str):
        _claim_path(target)
        server = await loop.create_unix_server(factory, target, **kwds)
        return server, Address("ipc", target), (target, os.stat(target).st_ino)
    server, port = await _listen_tcp(factory, target, loop, kwds)
    return server, Address("tcp", (target[0], port)), None


def _get_url(address: Address) -> str:
    """Return the base URL of a server at *address*, by the name of this machine if there is no host."""
    if isinstance(address.place, tuple) and not address.place[0]:
        return tcp_url(socket.getfqdn(), address.place[1])
    return address.url


def _is_on_all_interfaces(server: Server) -> bool:
    return server.address.protocol == "tcp" and any(
        sock.getsockname()[0] in WILDCARD_ADDRESSES for sock in server.sockets
    )


async def _listen_tcp(
    factory: Callable[[], Any], target: tuple[str, int], loop: asyncio.AbstractEventLoop, kwds: dict[str, Any]
) -> tuple[asyncio.AbstractServer, int]:
    """Return a server and its port, which is one and the same for all the addresses that a host name stands
    for."""
    host, port = target
    for _ in range(PORT_ATTEMPTS):
        server = await loop.create_server(factory, host, port, **kwds)
        ports = {sock.getsockname()[1] for sock in server.sockets}
        if len(ports) == 1:
            return server, ports.pop()
        # Port 0 gave each address a port of its own: try to have one of them everywhere.
        server.close()
        try:
            return await loop.create_server(factory, host, min(ports), **kwds), min(ports)
        except OSError:
            continue
    raise OSError(errno.EADDRINUSE, f"found no port that is free on all addresses of {host!r}")


def _claim_path(path: str) -> None:
    """Make sure that nobody listens on the Unix socket *path*: asyncio would take it away from them.

    Raises:
        AddressInUseError: Somebody does.
    """
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise AddressInUseError(f"{path} (a file that is no socket)")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        # Refused: left behind by a process that is gone. With any other error somebody may be there, with a
        # full backlog, for example, or of another user.
        if probe.connect_ex(path) in (errno.ECONNREFUSED, errno.ENOENT):
            return
    raise AddressInUseError(path)
