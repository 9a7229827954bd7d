"""What keeps a connection going when its transport breaks: dialling anew, and waiting for who dials anew.

::

    dialler                                            acceptor
    the transport breaks                               … or seems to be there still
    dial ── [9, 0, {"resume": [id, …, proof]}] ──────▶ a new channel, which finds the session of that id
    check ◀── [9, 0, {"resumed": [received, proof]}] ─ gives it the transport, and vanishes
    the rest of the bytes ──▶                      ◀── the rest of the bytes

The rules are those of :mod:`aiomas_ng._core.session`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._core import frames
from aiomas_ng._core.limits import Limits
from aiomas_ng._core.session import ID_SIZE, SECRET_SIZE, Session, State, Tally
from aiomas_ng._io.endpoint import FIRST_PAUSE, LONGEST_PAUSE, PAUSE_GROWTH
from aiomas_ng._io.handshake import Handshake
from aiomas_ng._io.principal import get_credentials, is_loopback
from aiomas_ng._io.session_transport import SessionTransport, feed
from aiomas_ng.exceptions import ClosedByPeerError, ConnectError, ResumptionError, SessionLostError
from aiomas_ng.liveness import ConnectionState

if TYPE_CHECKING:
    from aiomas_ng._io.returning import Returning
    from aiomas_ng.channel import ChannelProtocol

__all__ = ["Redial", "Resumption", "Sessions"]

logger = logging.getLogger("aiomas_ng.channel")

#: Connects to the peer once more, with a protocol of that factory.
Redial = Callable[[Callable[[], asyncio.BaseProtocol]], Awaitable[asyncio.BaseProtocol]]

#: Seconds that the peer has to answer on a new connection, before another one is tried.
ANSWER_TIME: Final = 5.0


class Sessions:
    """The sessions of one server that can be taken up.

    Args:
        limits: Bounds of the server's connections.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._known: dict[str, Resumption] = {}
        self._broken: dict[str, Resumption] = {}  # in the order in which they broke
        self.returning: set[Returning] = set()  #: Connections beyond the limit, which may take up one.

    def __len__(self) -> int:
        return len(self._known)

    def add(self, session_id: str, resumption: Resumption) -> None:
        """Remember a session."""
        self._known[session_id] = resumption

    def find(self, session_id: Any) -> Resumption | None:
        """Return the session of that id, if it is known."""
        return self._known.get(session_id) if isinstance(session_id, str) else None

    def note_broken(self, session_id: str, resumption: Resumption) -> None:
        """A session has lost its transport; there may be too many of these."""
        self._broken[session_id] = resumption
        if len(self._broken) > self.limits.sessions:
            oldest = next(iter(self._broken.values()))
            oldest.fail(f"more than {self.limits.sessions} broken connections are kept here")

    def note_resumed(self, session_id: str) -> None:
        """A session has a transport again."""
        self._broken.pop(session_id, None)

    def remove(self, session_id: str) -> None:
        """Forget a session."""
        self._known.pop(session_id, None)
        self._broken.pop(session_id, None)


class Resumption:
    """Lets one connection be taken up again.

    Args:
        protocol: Reads and writes the frames of the connection.
        redial: Connects anew, at the end that has dialled.
        sessions: Where other connections find this one, at the other end.
    """

    def __init__(
        self, protocol: ChannelProtocol, *, redial: Redial | None = None, sessions: Sessions | None = None
    ) -> None:
        self.session = Session(is_dialler=redial is not None, limit=protocol.limits.resend_size)
        self.session.on_full = self._full
        self.transport: SessionTransport
        self.task: asyncio.Task[None] | None = None  #: Connects anew.
        self._protocol = protocol
        self._redial = redial
        self._sessions = sessions
        self._expiry: asyncio.TimerHandle | None = None
        self._lost_because = ""
        self._identity: tuple[Any, Any] = (None, None)  # whose session it is
        self._is_loopback = False  # whether that is somebody on this host

    def __repr__(self) -> str:
        return f"<Resumption of {self._protocol.channel!r}, {self.session.state.value}>"

    def begin(self, wire: Any) -> SessionTransport:
        """Return what the protocol writes to, in place of its first transport."""
        self.transport = SessionTransport(wire, self.session, self._protocol._loop)
        if self._redial is None:
            self._identity = _get_identity(wire)
            self._is_loopback = is_loopback(wire.get_extra_info("peername"))
        return self.transport

    # Who the peer is

    def look(self) -> None:
        """Something has been received: acknowledge it if it is time for that."""
        session, channel = self.session, self._protocol.channel
        assert channel is not None
        if session.state is State.UNKNOWN:
            if self._protocol._is_decoding_known and not channel._exchange.is_peer_ours:
                self.give_up()  # of the peers that know sessions, each has shown itself by now
            return
        count = session.take_due_ack()
        if count is not None:
            channel._send_control(frames.ACK, count, gather=True)

    def greet(self) -> Any:
        """Return what we say about sessions when we say that we are one of ours."""
        session = self.session
        if session.is_dialler:
            return True
        if session.state is not State.UNKNOWN or self._sessions is None:
            return None
        offer = session.offer(
            secrets.token_hex(ID_SIZE), secrets.token_bytes(SECRET_SIZE), self._protocol.limits.grace_time
        )
        self._sessions.add(session.id, self)
        return offer

    def take_greeting(self, said: Any) -> None:
        """The peer has said something about sessions, or nothing (``None``).

        Raises:
            MalformedFrameError: It is no offer.
        """
        if said is None:
            self.give_up()
        elif self.session.is_dialler and said is not True:
            self.session.accept(said)

    def _full(self) -> None:
        session = self.session
        if session.pass_on is None:
            self._protocol.check_room()
        elif session.state is State.UNKNOWN:
            self.give_up()
        else:
            logger.warning(
                "the connection to %s cannot be taken up any more if it breaks: the peer has not "
                "acknowledged %d bytes",
                self._protocol._peername(),
                session.kept_size,
            )
            self.give_up()

    def give_up(self) -> None:
        """The connection will not be taken up; keep nothing any more, and go on as long as it lasts."""
        session = self.session
        if session.state is State.ENDED:
            return
        if self._sessions is not None and session.id:
            self._sessions.remove(session.id)
        session.end()
        self._protocol._tally = Tally(session.received)
        self._stop()
        self.transport.bypass()
        self._protocol._session = None

    def _stop(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self.task is not None:
            self.task.cancel()

    # When the transport breaks

    @property
    def can_resume(self) -> bool:
        """Whether the connection can be taken up if it breaks now."""
        return self.session.state in (State.OPEN, State.INTERRUPTED)

    @property
    def is_interrupted(self) -> bool:
        """Whether the transport broke, and there is no other one yet."""
        return self.session.state is State.INTERRUPTED

    def interrupt(self, reason: str, more: float = 0) -> None:
        """The transport broke, or is given up: wait for another one.

        Args:
            reason: Why, in words.
            more: Seconds that the peer may take to find out, on top of the grace time.
        """
        session, protocol = self.session, self._protocol
        if session.state is State.INTERRUPTED:
            return
        wire = self.transport.detach()
        if wire is not None:
            wire.abort()
        session.interrupt()
        self._lost_because = reason
        channel, loop = protocol.channel, protocol._loop
        assert channel is not None
        logger.info("%s: %s; it may be taken up again", protocol._peername(), reason)
        channel._interrupted()
        protocol.interrupted()
        if session.is_dialler:
            # In a context of its own: no deadline of who happened to connect first holds for it.
            self.task = loop.create_task(self._dial(), context=contextvars.Context())
        else:
            assert self._sessions is not None
            grace = session.grace + more
            self._expiry = loop.call_later(grace, self._expire, grace)
            self._sessions.note_broken(session.id, self)
        protocol.resume_writing()  # what was held back is kept by the session from now on
        channel._set_state(ConnectionState.INTERRUPTED)  # at the end: who is told may close the channel

    def _expire(self, seconds: float) -> None:
        self.fail(f"the peer did not come back within {seconds:g} s")

    def fail(self, reason: str) -> None:
        """The connection cannot be taken up: end it."""
        protocol, kept = self._protocol, self.session.kept_size
        assert protocol.channel is not None
        if self.session.state is State.ENDED:
            return
        text = f"{self._lost_because}, and could not be taken up again: {reason}"
        logger.warning(
            "the connection to %s is lost: %s; %d bytes of ours may not have arrived",
            protocol._peername(),
            text,
            kept,
        )
        self.give_up()
        protocol.channel._set_error(SessionLostError(text))

    async def _dial(self) -> None:
        """Connect anew, until the peer has answered or the time is up."""
        assert self._redial is not None
        limits, loop = self._protocol.limits, self._protocol._loop
        grace = min(limits.grace_time, self.session.grace)
        deadline = loop.time() + grace
        refused_since: float | None = None
        pause = FIRST_PAUSE
        reason = f"no answer within {grace:g} s"
        task = asyncio.current_task()
        # Another one is in charge if an answer came just as the time was up, and then the next break.
        while self.session.state is State.INTERRUPTED and self.task is task:
            now = loop.time()
            if now >= deadline:
                self._fail_dialling(reason)
                return
            handshake = Handshake(self)
            try:
                async with asyncio.timeout(min(ANSWER_TIME, deadline - now)):
                    await self._redial(lambda handshake=handshake: handshake)  # type: ignore[misc]
                    await handshake.answered
                return
            except ResumptionError as error:
                self._fail_dialling(str(error))
                return
            except TimeoutError:
                refused_since = None
                reason = f"no answer within {grace:g} s"
            except (ConnectError, ClosedByPeerError) as error:
                reason = str(error)
                if not _is_refusal(error):
                    refused_since = None
                elif refused_since is None:
                    refused_since = loop.time()
                elif loop.time() - refused_since >= limits.refusal_time:
                    self._fail_dialling(reason)
                    return
            except Exception as error:  # of a transport or a context of the user's
                logger.exception("cannot connect to %s anew", self._protocol._peername())
                self._fail_dialling(f"{type(error).__name__}: {error}")
                return
            finally:
                handshake.abandon()
            await asyncio.sleep(min(pause, max(0.0, deadline - loop.time())))
            pause = min(LONGEST_PAUSE, pause * PAUSE_GROWTH)

    def _fail_dialling(self, reason: str) -> None:
        if self.session.state is State.INTERRUPTED:
            self.task = None  # the one that runs this, which ends by itself
            self.fail(reason)

    # When there is a new one

    def accept(self, request: Any, wire: Any) -> list[Any]:
        """A new connection asks to take up this one; return the answer.

        Args:
            request: What the dialler has said.
            wire: The transport of the new connection.

        Raises:
            ResumptionError: It may not.
        """
        # Who was on this host may have rights for that, and must not pass them on to another.
        is_elsewhere = self._is_loopback and not is_loopback(wire.get_extra_info("peername"))
        if is_elsewhere or _get_identity(wire) != self._identity:
            raise ResumptionError("the session belongs to somebody else")
        return self.session.answer(request)

    def take_over(self, wire: Any, head: bytes, rest: bytes = b"") -> None:
        """Go on with *wire*.

        Args:
            wire: The transport of a new connection.
            head: Is written to it first.
            rest: What it has received after its first frame.
        """
        session, protocol, channel = self.session, self._protocol, self._protocol.channel
        assert channel is not None
        was_paused = protocol.is_paused
        old = self.transport.detach()
        if old is not None:
            # It seemed to be there still, and the peer knows better.
            old.abort()
            channel._interrupted()
            protocol.write_held()  # is kept by the session; nobody else is told yet
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._sessions is not None:
            self._sessions.note_resumed(session.id)
        self.transport.attach(wire)
        protocol.resumed(wire)
        if head:
            wire.write(head)
        session.resume(wire.write)
        protocol.check_room()
        logger.info("%s: the connection was taken up again", protocol._peername())
        channel._resumed()
        if was_paused and not protocol.is_paused:
            channel._writing_resumed()
        feed(self.transport, rest)

    def answered(self, wire: Any, answer: Any, rest: bytes) -> None:
        """The peer has answered on a new connection of ours.

        Raises:
            ResumptionError: It is not the peer that we had, or has lost count.
        """
        self.session.take_answer(answer)
        self.task = None  # it ends by itself
        self.take_over(wire, b"", rest)


def _is_refusal(error: Exception) -> bool:
    """Return whether nobody listens at the address, as far as the system can tell."""
    cause = error.__cause__
    return isinstance(error, ConnectError) and (
        not isinstance(cause, OSError) or isinstance(cause, ConnectionRefusedError | FileNotFoundError)
    )


def _get_identity(transport: Any) -> tuple[Any, Any]:
    """Return what a transport knows for certain about the peer: its TLS certificate, and its user.

    Its :class:`~aiomas_ng.access.Identity` leaves out certificates that were not verified; here it has to be
    the same one all the same.
    """
    ssl_object = transport.get_extra_info("ssl_object")
    certificate = ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != getattr(socket, "AF_UNIX", None):
        return certificate, None
    return certificate, get_credentials(sock)[1:]
