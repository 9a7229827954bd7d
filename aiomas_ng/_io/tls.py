"""TLS on a connection that is there already, so that both sides learn why the other one refuses it.

::

    connection_made ─▶ Threshold ── start_tls ── handshake ─┬─▶ the channel's protocol, and what has come
                                                            └─▶ alert to the peer, one line in the log

What the servers of :mod:`asyncio` say about a handshake that fails is nothing, or a traceback; here it is one
line. Nothing of a channel exists before the peer is known.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiomas_ng._core.tls_reasons import explain_handshake
from aiomas_ng._io.limited_log import LimitedLog
from aiomas_ng._io.tls_handshake import Attempt, TLSSettings
from aiomas_ng.exceptions import ConnectError, TLSError

if TYPE_CHECKING:
    from aiomas_ng.channel import ChannelProtocol

__all__ = ["Entrance", "Threshold", "secure_client"]

#: Handshakes that one server has under way at a time.
MAX_HANDSHAKES: Final = 500

T = TypeVar("T", bound=asyncio.BaseProtocol)
ProtocolFactory = Callable[[], "ChannelProtocol"]


class Threshold(asyncio.Protocol):
    """Stands at a connection until TLS has been agreed on, and keeps what comes right behind it.

    Args:
        connected: Called with this when the connection is there.
    """

    def __init__(self, connected: Callable[[Threshold], object] | None = None) -> None:
        self.transport: Any = None
        self.has_ended = False
        self._connected = connected
        self._lost: tuple[Exception | None] | None = None  # why the connection has ended, if it has
        self._received: list[bytes] = []
        self._is_paused = False
        self._ended: _EndedTransport | None = None  # if it has ended before it was handed over

    def connection_made(self, transport: Any) -> None:
        """Read nothing before TLS does; uvloop reads all the same."""
        self.transport = transport
        transport.pause_reading()
        if self._connected is not None:
            self._connected(self)

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self._received.append(data)

    def eof_received(self) -> None:
        """The peer has ended the connection right after what it has sent."""
        self.has_ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on, if there is somebody to pass it on to."""
        self.has_ended = True
        if self._ended is not None:
            self._ended.get_protocol().connection_lost(exc)
        else:
            self._lost = (exc,)

    def pause_writing(self) -> None:
        """Keep it."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Keep it."""
        self._is_paused = False

    def hand_over(self, transport: Any, protocol: Any) -> None:
        """Let *protocol* take the place of this one, with all that has happened so far."""
        if self.has_ended:
            # Of a transport that is closing it would hear no more than what it does by itself.
            transport = self._ended = _EndedTransport(transport)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._is_paused:
            protocol.pause_writing()
        if self._received:
            protocol.data_received(b"".join(self._received))
        if self._ended is not None:
            protocol.eof_received()
            if self._lost is not None:
                self._ended.get_protocol().connection_lost(*self._lost)

    async def secure(
        self,
        settings: TLSSettings,
        loop: asyncio.AbstractEventLoop,
        *,
        is_server: bool,
        refused: Callable[[ssl.SSLError], object] | None = None,
    ) -> Any:
        """Agree on TLS with the peer; return the transport.

        Args:
            settings: How.
            loop: The event loop.
            is_server: Our side.
            refused: Called with the error as soon as one of both sides refuses the other one; the peer may
                still be reading why.

        Raises:
            OSError: That has failed; among them :exc:`ssl.SSLError`. The connection is closed.
        """
        raw = self.transport
        if self.has_ended:
            raw.abort()
            raise ConnectionResetError("the connection ended before the TLS handshake")
        attempt = Attempt(raw, loop, refused, self._received)
        context = settings.take_context(attempt)
        transport = None
        try:
            transport = await loop.start_tls(
                raw,
                self,
                context,
                server_side=is_server,
                server_hostname=settings.hostname,
                ssl_handshake_timeout=settings.handshake_time,
                ssl_shutdown_timeout=settings.shutdown_time,
            )
        except OSError as error:
            raise attempt.error or error from None
        finally:
            settings.give_back(context)
            attempt.end()
            if transport is None or attempt.error is not None:
                raw.abort()
        if attempt.error is not None:
            raise attempt.error
        if transport is None or transport.get_extra_info("ssl_object") is None:
            # Both loops take an end of the connection for one of the handshake.
            raise ConnectionResetError("the connection ended during the TLS handshake")
        return transport


class _EndedTransport(asyncio.Transport):
    """Stands for the transport of a connection that the peer has ended before it was handed over: what it
    has sent is still taken, but nothing can be answered."""

    def __init__(self, transport: Any) -> None:
        super().__init__()
        self._transport = transport
        self._protocol = asyncio.BaseProtocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return True

    def write(self, data: Any) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        self._transport.abort()


class Entrance:
    """Lets clients in that TLS has been agreed on with; the others leave one line each in the log, as far as
    there are not too many.

    Args:
        settings: How to agree.
        factory: Makes the protocol of a channel.
        loop: The event loop.
        log: For those that are refused.
    """

    def __init__(
        self,
        settings: TLSSettings,
        factory: ProtocolFactory,
        loop: asyncio.AbstractEventLoop,
        log: LimitedLog,
    ) -> None:
        self._log = log
        self._settings = settings
        self._factory = factory
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_crowded = False

    def __call__(self) -> Threshold:
        return Threshold(self._connected)

    def close(self) -> None:
        """Give up the handshakes that are under way."""
        for task in self._tasks:
            task.cancel()

    def _connected(self, threshold: Threshold) -> None:
        if len(self._tasks) >= MAX_HANDSHAKES:
            # Each holds some 300 KB, and whoever can reach the port can begin one.
            if not self._is_crowded:
                self._is_crowded = True
                text = "refusing connections: %d TLS handshakes are under way"
                self._log.log(logging.WARNING, text, MAX_HANDSHAKES)
            threshold.transport.abort()
            return
        self._is_crowded = False
        task = self._loop.create_task(self._let_in(threshold))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _let_in(self, threshold: Threshold) -> None:
        peer = threshold.transport.get_extra_info("peername") or threshold.transport.get_extra_info(
            "sockname"
        )
        is_logged = False

        def refused(error: OSError) -> None:
            nonlocal is_logged
            if not is_logged:
                is_logged = True
                reason = _describe_failure(error, "client", self._settings.handshake_time)
                self._log.log(logging.WARNING, "refused the connection from %s: %s", peer, reason)

        try:
            transport = await threshold.secure(self._settings, self._loop, is_server=True, refused=refused)
        except OSError as error:
            refused(error)
            return
        threshold.hand_over(transport, self._factory())


async def secure_client(
    threshold: Threshold,
    factory: Callable[[], T],
    settings: TLSSettings,
    address: Any,
    loop: asyncio.AbstractEventLoop,
) -> T:
    """Agree on TLS with the server at *address*, and return a protocol of *factory* for the connection.

    Raises:
        TLSError: That has failed.
        ConnectError: The connection has ended before.
    """
    try:
        transport = await threshold.secure(settings, loop, is_server=False)
    except OSError as error:
        reason = _describe_failure(error, "server", settings.handshake_time)
        # An end without a reason may as well be that of a server which is just about to stop, or to start.
        is_final = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
        raise (TLSError if is_final else ConnectError)(address, reason) from error
    protocol = factory()
    threshold.hand_over(transport, protocol)
    return protocol


def _describe_failure(error: OSError, peer: str, seconds: float) -> str:
    if isinstance(error, ConnectionAbortedError):
        return f"the {peer} has not completed the TLS handshake within {seconds:g} s; does it use TLS at all?"
    return explain_handshake(error, peer)
