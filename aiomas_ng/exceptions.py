"""The errors of aiomas_ng, one tree, named after their cause::

    AiomasError
    ├── RemoteException            (the peer raised while it worked on our call)
    │   ├── RemoteLookupError        + LookupError: no such method there, or it is not exposed
    │   │   └── RemoteRestartingError    the agent is just being restarted: call again
    │   ├── RemoteArgumentError      + TypeError: the arguments do not fit the method
    │   ├── RemoteSerializationError + ValueError: request or result could not cross the wire
    │   ├── RemoteOverloadError      the peer has no room for the request
    │   ├── RemoteAccessError        + PermissionError: the peer does not let us call that
    │   └── RemoteCancelledError     the peer gave up the work before it was done
    ├── SerializationError         + ValueError: our value cannot be encoded
    ├── DeserializationError       + ValueError: the peer's value cannot be decoded
    ├── FrameTooLargeError         + ValueError
    ├── ProtocolError              (the peer broke the rules of the wire)
    │   ├── MalformedFrameError      + ValueError
    │   ├── UnknownFrameTypeError
    │   ├── UnknownReplyError        + LookupError
    │   ├── ConnectionStalledError   + ConnectionAbortedError
    │   └── ResumptionError          a session could not be proven to be the one that was interrupted
    ├── ConnectError               + ConnectionRefusedError: nobody answers at the address
    │   ├── SocketPathError          + FileNotFoundError: nor does its path exist
    │   └── TLSError                 + ssl.SSLError: the two sides cannot agree on a TLS connection
    ├── ChannelClosedError         + ConnectionResetError
    │   ├── ClosedByPeerError
    │   │   ├── PeerUnresponsiveError  it gave no sign of life
    │   │   ├── SessionLostError       it broke, and could not be taken up again
    │   │   └── TLSRefusedError        + TLSError: it has refused us, for reasons of TLS
    │   └── ClosedByUsError
    ├── CallTimeoutError           + TimeoutError
    │   └── DeadlineExceededError    the deadline around the call has passed
    ├── WaitTimeoutError           + TimeoutError: what was waited for has not come
    ├── OverloadError              (a limit of ours is reached; nothing was sent)
    ├── ShutdownError              (we shut down and take no new requests; nothing was executed)
    ├── StreamError                + RuntimeError: a stream is used in a way it cannot be
    ├── AddressError               + ValueError: an address or URL does not parse
    ├── AddressInUseError          + OSError
    ├── CredentialsError           + ssl.SSLError: a file of certificates or keys holds something else
    ├── RoutingError               + LookupError: a path leads nowhere
    │   ├── NotExposedError          it leads to something that is not exposed
    │   └── AgentRestartingError     it leads to an agent that is just being restarted
    ├── ArgumentError              + TypeError: the arguments do not fit the method
    ├── AccessDeniedError          + PermissionError: a peer may not reach what it has called
    ├── AgentIdError               + ValueError: an agent id is malformed or was given before
    ├── AgentNotFoundError         + ConnectionError: no agent of that id in the container
    ├── SpawnError                 + PermissionError: a manager may not create this
    ├── TaskEndedError             + RuntimeError: a task that is to run always has returned
    └── ProcessError               + RuntimeError: a container process did not start, or died

Each also inherits the standard type that a program would catch.  Errors carry their data in attributes
and put it into words in ``str()``.
"""

from __future__ import annotations

import errno
import ssl
from typing import Any

__all__ = [
    "AccessDeniedError",
    "AddressError",
    "AddressInUseError",
    "AgentIdError",
    "AgentNotFoundError",
    "AgentRestartingError",
    "AiomasError",
    "ArgumentError",
    "CallTimeoutError",
    "ChannelClosedError",
    "ClosedByPeerError",
    "ClosedByUsError",
    "ConnectError",
    "ConnectionStalledError",
    "CredentialsError",
    "DeadlineExceededError",
    "DeserializationError",
    "FrameTooLargeError",
    "MalformedFrameError",
    "NotExposedError",
    "OverloadError",
    "PeerUnresponsiveError",
    "ProcessError",
    "ProtocolError",
    "RemoteAccessError",
    "RemoteArgumentError",
    "RemoteCancelledError",
    "RemoteException",
    "RemoteLookupError",
    "RemoteOverloadError",
    "RemoteRestartingError",
    "RemoteSerializationError",
    "ResumptionError",
    "RoutingError",
    "SerializationError",
    "SessionLostError",
    "ShutdownError",
    "SocketPathError",
    "SpawnError",
    "StreamError",
    "TLSError",
    "TLSRefusedError",
    "TaskEndedError",
    "UnknownFrameTypeError",
    "UnknownReplyError",
    "WaitTimeoutError",
]


class AiomasError(Exception):
    """Base of every error that aiomas_ng raises by itself."""


class RemoteException(AiomasError):
    """An exception that the peer raised while it worked on our call.

    Args:
        origin: The peer's name, as ``get_extra_info('peername')`` gives it.
        remote_traceback: The peer's traceback as text.
        type_name: Name of the exception's type at the peer, ``""`` where the peer did not say.
        message: The exception's message at the peer.

    The attribute ``path`` is the called path (``'agents/0/step'``) where the call was an RPC, else
    ``None``; ``agent`` and ``method`` are taken from it.
    """

    def __init__(self, origin: Any, remote_traceback: str, type_name: str = "", message: str = "") -> None:
        super().__init__(origin, remote_traceback)
        self.origin = origin
        self.remote_traceback = remote_traceback
        self.type_name = type_name
        self.message = message
        self.path: str | None = None

    @property
    def agent(self) -> str | None:
        """Id of the agent that raised, or ``None`` where no agent was called."""
        parts = (self.path or "").split("/")
        return parts[1] if len(parts) > 2 and parts[0] == "agents" else None

    @property
    def method(self) -> str | None:
        """Name of the method that raised, or ``None`` where the call was no RPC."""
        return self.path.rpartition("/")[2] if self.path else None

    def __str__(self) -> str:
        where = f"Origin: {self.origin}"
        if self.path:
            where += f", in {self.path}"
        return f"{where}\n{self.remote_traceback}"


class RemoteLookupError(RemoteException, LookupError):
    """The path that we called leads nowhere at the peer, or to something that is not exposed."""


class RemoteRestartingError(RemoteLookupError):
    """The agent that we called is just being restarted after a failure; the call was not executed."""


class RemoteArgumentError(RemoteException, TypeError):
    """The arguments of our call do not fit the peer's method."""


class RemoteSerializationError(RemoteException, ValueError):
    """Our request could not be decoded by the peer, or its result could not be encoded or is too large."""


class RemoteOverloadError(RemoteException):
    """The peer had no room for the request; it was not executed."""


class RemoteAccessError(RemoteException, PermissionError):
    """The peer does not let us call that: its owner has narrowed it to others."""

    def __init__(self, origin: Any, remote_traceback: str, type_name: str = "", message: str = "") -> None:
        super().__init__(origin, remote_traceback, type_name, message)
        self.errno = errno.EACCES  # for which an OSError would take the first argument


class RemoteCancelledError(RemoteException):
    """The peer gave up the work before it was done: its handler was cancelled."""


class SerializationError(AiomasError, ValueError):
    """A value of ours cannot be encoded; nothing was sent."""


class DeserializationError(AiomasError, ValueError):
    """A value of the peer cannot be decoded."""


class FrameTooLargeError(AiomasError, ValueError):
    """A frame is larger than the limit.

    Args:
        size: Size of the frame's payload in bytes.
        limit: The largest size allowed, in bytes.
        what: Which frame, in words.
    """

    def __init__(self, size: int, limit: int, what: str = "frame") -> None:
        super().__init__(size, limit, what)
        self.size = size
        self.limit = limit
        self.what = what

    def __str__(self) -> str:
        return (
            f"{self.what} has {self.size} bytes, the limit is {self.limit}; "
            f"send less at a time or raise Limits(frame_size=...) on both sides"
        )


class ProtocolError(AiomasError):
    """The peer broke the rules of the wire."""


class MalformedFrameError(ProtocolError, ValueError):
    """A frame of the peer is not what its codec writes, or not ``[type, id, content]``."""


class UnknownFrameTypeError(ProtocolError):
    """A frame of the peer has a type that this version does not know."""


class UnknownReplyError(ProtocolError, LookupError):
    """The peer replied to a request that was never sent."""


class ConnectionStalledError(ProtocolError, ConnectionAbortedError):
    """Both directions of a connection stood still for too long, so it was given up."""


class ResumptionError(ProtocolError):
    """A connection was made to take up an interrupted session, and the peer could not prove that it may, or
    does not know the session."""


class ConnectError(AiomasError, ConnectionRefusedError):
    """No connection could be made to an address.

    Args:
        address: Where we wanted to connect to.
        reason: Why it failed.
    """

    def __init__(self, address: Any, reason: object) -> None:
        reason = str(reason) or repr(reason)
        super().__init__(errno.ECONNREFUSED, f"cannot connect to {address}: {reason}")
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot connect to {self.address}: {self.reason}"


class SocketPathError(ConnectError, FileNotFoundError):
    """The path of a Unix domain socket does not exist."""


class TLSError(ConnectError, ssl.SSLError):
    """No TLS connection could be agreed on: certificates, versions, or only one of the two sides uses TLS.

    It says which side objects, to what, and what would be right. It is not tried again: time mends nothing
    of it. The error of the :mod:`ssl` module, if there was one, is its cause.
    """


class ChannelClosedError(AiomasError, ConnectionResetError):
    """The channel is closed.

    Args:
        reason: Why, in words.
        was_sent: Of the call that fails with this error: ``False`` if it was certainly not executed, because
            it did not leave this process, or because the peer shut down and has refused it; ``True`` if the
            peer may have executed it; ``None`` where no call is concerned.
    """

    def __init__(self, reason: str = "the connection is closed", was_sent: bool | None = None) -> None:
        super().__init__(errno.ECONNRESET, reason)
        self.reason = reason
        self.was_sent = was_sent

    def __str__(self) -> str:
        if self.was_sent is None:
            return self.reason
        fate = "the peer may have executed this call" if self.was_sent else "this call was not executed"
        return f"{self.reason}; {fate}"


class ClosedByPeerError(ChannelClosedError):
    """The peer closed the connection, or it broke."""


class SessionLostError(ClosedByPeerError):
    """The connection broke and could not be taken up again: the peer is gone or has been restarted, or the
    network did not come back in time."""


class PeerUnresponsiveError(ClosedByPeerError):
    """The peer has given no sign of life for too long, so the connection was given up; see
    :class:`~aiomas_ng.liveness.Liveness`."""


class TLSRefusedError(ClosedByPeerError, TLSError):
    """The peer has refused us for reasons of TLS after the connection was made.

    With TLS 1.3 the client's side of a connection is complete before the server has looked at the client's
    certificate, so this comes with the first call. Calls that it fails were certainly not executed.

    Args:
        reason: Why, in words.
        was_sent: As for :class:`ChannelClosedError`.
    """

    def __init__(self, reason: str, was_sent: bool | None = None) -> None:
        super().__init__(reason, None if was_sent is None else False)
        # The two bases have different arguments; what counts here is that the connection has ended.
        self.args = (errno.ECONNRESET, reason)
        self.errno, self.strerror = self.args
        self.address: Any = None
        self.reason = reason

    __str__ = ChannelClosedError.__str__


class ClosedByUsError(ChannelClosedError):
    """The connection was closed on this side."""


class CallTimeoutError(AiomasError, TimeoutError):
    """A call was not answered in time; the peer was told to stop working on it.

    Args:
        what: The call, in words.
        timeout: How long we waited, in seconds.
    """

    def __init__(self, what: str, timeout: float) -> None:
        super().__init__(what, timeout)
        self.what = what
        self.timeout = timeout

    def __str__(self) -> str:
        return f"{self.what} was not answered within {self.timeout} s"


class DeadlineExceededError(CallTimeoutError):
    """The deadline around a call has passed, see :mod:`aiomas_ng.deadlines`.

    Args:
        what: The call, in words.
        timeout: How long there was when it was begun, in seconds of the clock whose time has come.
        was_sent: ``False`` if it certainly did not leave this process; else the peer has been told to stop.
    """

    def __init__(self, what: str, timeout: float, was_sent: bool = True) -> None:
        super().__init__(what, timeout)
        self.was_sent = was_sent

    def __str__(self) -> str:
        if not self.was_sent:
            return f"{self.what} was not sent: its deadline has passed"
        if self.timeout <= 0:
            return f"{self.what} has no time left: its deadline has passed"
        return f"{self.what} did not end by its deadline, {self.timeout:g} s after it was begun"


class WaitTimeoutError(AiomasError, TimeoutError):
    """What was waited for has not come in time.

    Args:
        what: What that is, in words.
        timeout: How long we waited, in seconds.
    """

    def __init__(self, what: str, timeout: float) -> None:
        super().__init__(what, timeout)
        self.what = what
        self.timeout = timeout

    def __str__(self) -> str:
        return f"{self.what}: not within {self.timeout} s"


class OverloadError(AiomasError):
    """A limit of this side is reached (calls in flight, unsent bytes); the request was not sent or not
    accepted."""


class ShutdownError(AiomasError):
    """This side shuts down and takes no new requests: the peer's request was not executed.

    A caller at the other end gets :exc:`ClosedByPeerError` for it, with ``was_sent`` ``False``.
    """


class StreamError(AiomasError, RuntimeError):
    """A streamed reply is used in a way it cannot be, or the peer cannot stream."""


class AddressError(AiomasError, ValueError):
    """An address or URL does not parse."""


class AddressInUseError(AiomasError, OSError):
    """Somebody listens on the address already.

    Args:
        address: Where we wanted to listen.
    """

    def __init__(self, address: Any) -> None:
        super().__init__(errno.EADDRINUSE, f"address {address} is in use")
        self.address = address

    def __str__(self) -> str:
        return f"address {self.address} is in use: somebody listens there already"


class CredentialsError(AiomasError, ssl.SSLError):
    """A file for TLS does not hold what it should, or does not fit the others.

    Args:
        path: The file.
        reason: What is wrong, and what was expected.
    """

    def __init__(self, path: Any, reason: str) -> None:
        super().__init__(errno.EINVAL, f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class RoutingError(AiomasError, LookupError):
    """A path leads nowhere."""


class NotExposedError(RoutingError):
    """A path leads to something that is not exposed."""


class AgentRestartingError(RoutingError):
    """A path leads to an agent that is just being restarted.

    Args:
        aid: The agent's id.
    """

    def __init__(self, aid: str) -> None:
        super().__init__(f"agent {aid!r} is just being restarted after a failure; call it again")
        self.aid = aid


class ArgumentError(AiomasError, TypeError):
    """The arguments of a call do not fit the signature of the method."""


class AccessDeniedError(AiomasError, PermissionError):
    """A peer may not reach what it has called, by a rule of :mod:`aiomas_ng.access`.

    Args:
        path: What it has called.
    """

    def __init__(self, path: str) -> None:
        super().__init__(errno.EACCES, f"access to {path!r} is not allowed")
        self.path = path

    def __str__(self) -> str:
        return f"access to {self.path!r} is not allowed"


class AgentIdError(AiomasError, ValueError):
    """An agent id is malformed, or was given before (ids are never given twice)."""


class AgentNotFoundError(AiomasError, ConnectionError):
    """There is no agent of that id in the container.

    Args:
        aid: The agent's id.
        container: The container that was asked.
    """

    def __init__(self, aid: str, container: Any) -> None:
        super().__init__(f"agent {aid!r} does not exist in the container at {container}")
        self.aid = aid
        self.container = container


class SpawnError(AiomasError, PermissionError):
    """A manager was asked to create something that its owner did not allow."""


class TaskEndedError(AiomasError, RuntimeError):
    """A background task that is to run always has returned."""


class ProcessError(AiomasError, RuntimeError):
    """A container process did not start, or died."""
