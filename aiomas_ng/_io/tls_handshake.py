"""The handshake of TLS as event loops do it, with the alert that says why it failed.

The event loops drop a connection whose handshake fails before OpenSSL's alert has left, so the peer sees no
more than an end. Here the alert leaves first: on both loops, and without anything of theirs that is private.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final, Self

from aiomas_ng._core.limits import DEFAULT_LIMITS
from aiomas_ng._core.tls_reasons import ALERT, has_no_tls

__all__ = ["Attempt", "TLSSettings"]

#: Seconds that a peer is given to read why it is refused, before the connection is reset.
LINGER_TIME: Final = 1.0
#: Stand-ins for a context that are kept for the next connections.
KEPT_CONTEXTS: Final = 16


class TLSSettings:
    """What of the options of ``create_connection`` and ``create_server`` is about TLS.

    Args:
        context: The context.
        hostname: Whose certificate the server has to show, for clients.
        handshake_time: Seconds that a handshake may take.
        shutdown_time: Seconds that an orderly end may take, ``None`` for asyncio's default.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        hostname: str | None,
        handshake_time: float,
        shutdown_time: float | None,
    ) -> None:
        self.context = context
        self.hostname = hostname
        self.handshake_time = handshake_time
        self.shutdown_time = shutdown_time
        self._contexts: list[_Context] = []  # to make one takes a sixth of a millisecond

    def take_context(self, attempt: Attempt) -> _Context:
        """Return the context for a connection, which reports to *attempt*."""
        context = self._contexts.pop() if self._contexts else _Context(self.context)
        context.attempt = attempt
        return context

    def give_back(self, context: _Context) -> None:
        """Let *context* serve others; its SSL object is made."""
        context.attempt = None
        if len(self._contexts) < KEPT_CONTEXTS:
            self._contexts.append(context)

    @classmethod
    def pop(cls, kwds: dict[str, Any], host: str | None) -> Self | None:
        """Take the settings out of *kwds*; return ``None`` if there is to be no TLS.

        Args:
            kwds: Options of ``create_connection`` or ``create_server``. Without ``ssl_handshake_timeout`` it
                is the default of ``Limits.handshake_time``.
            host: The host that is connected to, ``None`` for servers.

        Raises:
            TypeError: ``ssl`` is no context.
            ValueError: ``ssl_handshake_timeout`` is not positive.
        """
        names = ("ssl", "server_hostname", "ssl_handshake_timeout", "ssl_shutdown_timeout")
        context, hostname, handshake_time, shutdown_time = (kwds.pop(name, None) for name in names)
        if not context:
            return None
        if context is True and host is not None:
            context = ssl.create_default_context()
        if not isinstance(context, ssl.SSLContext):
            raise TypeError(f"ssl must be an ssl.SSLContext but is {context!r}")
        if hostname is None:
            hostname = host
        if handshake_time is None:
            handshake_time = DEFAULT_LIMITS.handshake_time
        if not handshake_time > 0:  # the loops would say so at each connection
            raise ValueError(f"ssl_handshake_timeout must be > 0 but is {handshake_time!r}")
        return cls(context, hostname or None, handshake_time, shutdown_time)


class Attempt:
    """A handshake that is under way.

    Args:
        transport: The transport below TLS.
        loop: The event loop.
        refused: Called with the error when it fails.
        early: What the peer has sent before the loop's TLS was there to read it.
    """

    def __init__(
        self,
        transport: Any,
        loop: asyncio.AbstractEventLoop,
        refused: Callable[[ssl.SSLError], object] | None,
        early: list[bytes],
    ) -> None:
        self.error: ssl.SSLError | None = None
        self.early = early
        self._refused = refused
        self._transport = transport
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def fail(self, error: ssl.SSLError) -> None:
        """Take note of why it failed, and end the connection after the alert has left.

        What the peer has sent meanwhile has to be read: else the system resets the connection, and the peer
        may not get the alert.
        """
        self.error = error
        self._timer = self._loop.call_later(LINGER_TIME, self._transport.abort)
        if has_no_tls(error):
            self._transport.write(ALERT)  # OpenSSL has nothing to say to somebody who does not speak TLS
        self._loop.call_soon(self._end_output)
        if self._refused is not None:
            self._refused(error)

    def _end_output(self) -> None:
        if self._transport is not None:
            with contextlib.suppress(OSError, RuntimeError):  # it has ended meanwhile
                self._transport.write_eof()

    def end(self) -> None:
        """The handshake is over, or the connection."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()


class _Handshake(ssl.SSLObject):
    """An SSL object that lets the alert of a failed handshake leave.

    Event loops write what OpenSSL has to say where it wants to read on, and not where it raises another
    error; so that is kept, and said to be the former.
    """

    attempt: Attempt | None
    incoming: ssl.MemoryBIO

    def do_handshake(self) -> None:
        attempt = self.attempt
        if attempt is None:
            super().do_handshake()
            return
        if attempt.error is None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError):
                raise
            except ssl.SSLError as error:
                attempt.fail(error)
            else:
                self.attempt = None
                return
        self.incoming.read()  # of no use any more
        raise ssl.SSLWantReadError


class _Context(ssl.SSLContext):
    """Stands for another context for as long as a loop needs to make an SSL object of it, and makes a
    :class:`_Handshake`.

    Args:
        context: The other one.
    """

    def __new__(cls, context: ssl.SSLContext) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.attempt: Attempt | None = None

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwds: Any) -> Any:
        context, attempt = self._context, self.attempt
        assert attempt is not None
        incoming.write(b"".join(attempt.early))
        attempt.early.clear()
        if context.sslobject_class is not ssl.SSLObject:  # one of the user's own
            return context.wrap_bio(incoming, outgoing, *args, **kwds)
        context.sslobject_class = _Handshake
        try:
            made = context.wrap_bio(incoming, outgoing, *args, **kwds)
        finally:
            context.sslobject_class = ssl.SSLObject
        assert isinstance(made, _Handshake)
        made.attempt, made.incoming = attempt, incoming
        return made
