"""What both halves of a channel share: the way out, and the end."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from aiomas_ng import codecs
from aiomas_ng._core.codec_errors import describe, short
from aiomas_ng._core.exchange import Exchange
from aiomas_ng._core.identity import Identity
from aiomas_ng._io.expiry import outside_deadlines
from aiomas_ng._io.job import CURRENT_JOB, Job, pass_on_interrupt
from aiomas_ng._io.limited_log import LimitedLog
from aiomas_ng._io.listeners import Listeners
from aiomas_ng._io.principal import Principal, identify
from aiomas_ng._io.reply import Reply, StreamState
from aiomas_ng.exceptions import (
    AiomasError,
    ChannelClosedError,
    ClosedByUsError,
    ConnectionStalledError,
    RemoteException,
    SerializationError,
)
from aiomas_ng.liveness import ConnectionState

if TYPE_CHECKING:
    from aiomas_ng.channel import ChannelProtocol

__all__ = ["Connection"]

#: Seconds that :meth:`Connection.close` waits for handlers that were cancelled and do not end, and that a
#: closed connection waits for a peer that takes nothing of what is still to be written.
CLOSE_GRACE: Final = 5.0

logger = logging.getLogger("aiomas_ng.channel")


class Connection:
    """The state of one end of a connection.

    Args:
        protocol: Reads and writes the frames.
        codec: The codec of this connection.
        transport: The transport.
        loop: The event loop.
    """

    def __init__(
        self, protocol: ChannelProtocol, codec: codecs.Codec, transport: Any, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._protocol = protocol
        self._codec = codec
        self._plain = codecs.as_plain_msgpack(codec)
        if self._plain is not None:
            self._encode = self._plain.encode  # type: ignore[assignment]  # others need a second look
        self._transport = transport
        self._loop = loop
        # Kept, because the transports of uvloop forget them when they are closed.
        self._names = {name: transport.get_extra_info(name) for name in ("peername", "sockname")}
        # Found out now, because there may be nobody to ask when the connection has ended.
        self._principal = Principal(identify(transport), self._names["peername"] or self._names["sockname"])
        self._limits = protocol.limits
        self._budget = protocol.budget
        self._exchange = Exchange(self._limits.calls, self._budget)
        self._error: ChannelClosedError | None = None  # why the connection has ended
        self._limited_log: LimitedLog | None = None  # made for the first line
        self._lost = loop.create_future()
        self._lost_callbacks: list[Callable[[ChannelClosedError], None]] = []
        self._closing: str | None = None  # why we take no new requests any more
        self._running: set[Job] = set()  # all work in tasks, also what nobody waits for any more
        self._waiter: asyncio.Future[None] | None = None  # of recv()
        self._watchdog: asyncio.TimerHandle | None = None
        self._is_reading = True
        self._unsent_from: float = math.inf  # the first call made since the connection broke, if it did
        self._state = ConnectionState.CONNECTED
        self._state_listeners = Listeners("on_state callback")

    def __repr__(self) -> str:
        state = "open" if self._error is None else f"closed: {self._error.reason}"
        return f"<Channel to {self._protocol._peername()}, {state}>"

    @property
    def codec(self) -> codecs.Codec:
        """The codec of this connection."""
        return self._codec

    @property
    def transport(self) -> Any:
        """The transport of this connection, an :class:`asyncio.Transport`."""
        return self._transport

    @property
    def identity(self) -> Identity:
        """Who the peer is, as far as its certificate and the system have shown: an
        :class:`~aiomas_ng.access.Identity`."""
        return self._principal.identity

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended, on whichever side."""
        return self._error is not None

    @property
    def state(self) -> ConnectionState:
        """What is known of the connection."""
        return self._state

    def on_state(self, callback: Callable[[Any, ConnectionState], Any]) -> Callable[[], None]:
        """Call *callback* with the channel and its new state whenever that changes; return a function that
        ends this.

        It is called from within the event loop, for each change once and in their order. If it fails, that is
        logged, and harms nothing.

        Raises:
            TypeError: *callback* is not a plain function.
        """
        return self._state_listeners.add(callback)

    def _set_state(self, state: ConnectionState) -> None:
        """Note the state and tell of it, if it is another one. ``CLOSED`` is the last."""
        if state is not self._state and self._state is not ConnectionState.CLOSED:
            self._state = state
            self._state_listeners.tell(self, state)

    def _ping_content(self) -> Any:
        """Return what is sent with a ping, or with the answer to one: how much has been received, if there is
        a session."""
        resumption = self._protocol._resumption
        return resumption.session.received if resumption is not None and resumption.can_resume else None

    def _give_up_transport(self, error: ChannelClosedError) -> None:
        """The transport is of no use any more, as nobody is at its other end."""
        resumption = self._protocol._resumption
        if resumption is not None and resumption.can_resume:
            # The peer finds out by itself that nothing arrives, and maybe later than we do.
            liveness = self._protocol.liveness
            more = liveness.interval + liveness.patience if liveness is not None else 0
            resumption.interrupt(error.reason, more)
            return
        self._set_error(error)
        self._transport.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows about the connection, see
        :meth:`asyncio.BaseTransport.get_extra_info`."""
        value = self._names.get(name)
        return value if value is not None else self._transport.get_extra_info(name, default)

    async def drain(self) -> None:
        """Wait until what was sent has left, as far as the peer's slowness requires; for senders of much.

        Raises:
            ChannelClosedError: The connection has ended.
        """
        await self._protocol.drain()

    def _encode(self, frame: tuple[int, Any, Any]) -> bytes:
        try:
            payload: bytes = self._codec.encode(frame)
        except AiomasError:
            raise
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # of a codec of the user's
            raise SerializationError(f"cannot encode {short(frame[2])}: {describe(error)}") from error
        return payload

    def _encode_pieces(self, frame: tuple[int, Any, Any]) -> list[bytes]:
        """Encode a frame with large bytes in it without copying those, if the codec can do that."""
        return [self._encode(frame)] if self._plain is None else self._plain.encode_pieces(frame)

    def _send_control(
        self, msg_type: int, msg_id: int | str, content: Any = None, *, gather: bool = False
    ) -> None:
        """Send a frame that nobody has to hear of if it cannot be sent any more.

        Args:
            msg_type: Its type.
            msg_id: Its id.
            content: Its content.
            gather: Others are likely to follow in this turn of the loop, so it should wait for them.
        """
        if self._error is None and not self._transport.is_closing():
            write = self._protocol.write if gather else self._protocol.write_now
            write(self._encode((msg_type, msg_id, content)))

    def _start_reading(self) -> None:
        if not self._is_reading and self._error is None:
            self._is_reading = True
            with outside_deadlines():  # whose context is that of all that is read from now on
                self._protocol.resume_reading()
            self._check_stall()

    def _stop_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._transport.pause_reading()
            self._check_stall()

    def _check_stall(self) -> None:
        """Watch a connection on which neither direction moves: the peer may be waiting just as we are."""
        if self._error is not None:
            return
        is_stalled = self._protocol.is_paused and not self._is_reading
        if is_stalled and self._watchdog is None:
            self._watch(self._limits.stall_time, self._stalled)
        elif not is_stalled:
            self._stop_watching()

    def _stalled(self) -> None:
        if self._protocol.is_interrupted:
            self._watch(self._limits.stall_time, self._stalled)  # nothing can move, and that has a time limit
            return
        text = f"neither side read for {self._limits.stall_time} s"
        self._abort(text, ConnectionStalledError(text))

    def _watch(self, seconds: float, give_up: Callable[[], None], size: int = -1) -> None:
        """Call *give_up* as soon as the peer takes nothing of what waits to be written for *seconds*."""
        waiting = self._protocol.get_unsent_size()
        if waiting == size:
            self._watchdog = None
            give_up()
        else:
            self._watchdog = self._loop.call_later(seconds, self._watch, seconds, give_up, waiting)

    def _stop_watching(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _check_open(self) -> None:
        if self._error is not None:
            self._raise_closed(was_sent=None)

    def _raise_closed(self, was_sent: bool | None = False) -> NoReturn:
        assert self._error is not None
        raise type(self._error)(self._error.reason, was_sent) from self._error.__cause__

    def _end_here(self) -> None:
        """Close the connection without waiting."""
        self._set_error(ClosedByUsError("the connection was closed on this side"))

    async def _wait_closed(self) -> None:
        """Wait until the connection is closed and its handlers have ended."""
        current = CURRENT_JOB.get()
        others = [job for job in self._running if job is not current]
        for job in others:
            job.cancel()
        tasks = {job.task for job in others}
        tasks.update(task for task in self._protocol.get_tasks() if task is not None)
        await asyncio.shield(self._lost)
        tasks.discard(asyncio.current_task())
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=CLOSE_GRACE)
            for task in pending:
                logger.warning("a handler of %r goes on although that has ended: %r", self, task)

    def _abort(self, reason: str, cause: BaseException | None = None) -> None:
        error = ClosedByUsError(reason)
        error.__cause__ = cause
        self._set_error(error)
        self._transport.abort()

    def _set_error(self, error: ChannelClosedError) -> None:
        """End everything that belongs to the connection; the first error counts."""
        if self._error is not None:
            return
        self._error = error
        calls, jobs = self._exchange.close()
        for call in calls:
            reason = type(error)(error.reason, call._msg_id < self._unsent_from)
            reason.__cause__ = error.__cause__
            self._fail_call(call, reason)
        current = CURRENT_JOB.get()
        for job in jobs:
            if current is not None and job is current:  # a handler may close its own channel
                current.cancel_others()
            else:
                job.cancel()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._stop_watching()
        self._principal.close()
        self._protocol.wake_drainers()
        self._protocol.close_transport()
        # What waits to be written can only leave if the peer reads, which it may never do.
        self._watch(CLOSE_GRACE, self._transport.abort)
        self._set_state(ConnectionState.CLOSED)
        callbacks, self._lost_callbacks = self._lost_callbacks, []
        for callback in callbacks:
            self._run_callback(callback, error)

    def _interrupted(self) -> None:
        """The transport broke; another one may take its place."""
        self._unsent_from = min(self._unsent_from, self._exchange.next_id)

    def _resumed(self) -> None:
        """Another transport has taken the place of the one that broke."""
        self._unsent_from = math.inf
        self._check_stall()
        if self._protocol.heartbeat is not None:
            self._protocol.heartbeat.resumed()
        self._set_state(ConnectionState.CONNECTED)

    def _when_lost(self, callback: Callable[[ChannelClosedError], None]) -> None:
        """Call *callback* with the error when the connection ends, at once if it has."""
        if self._error is not None:
            self._run_callback(callback, self._error)
        else:
            self._lost_callbacks.append(callback)

    def _run_callback(self, callback: Callable[..., None], *args: Any) -> None:
        """Call what is to learn of an event; that it fails concerns nobody else."""
        try:
            callback(*args)
        except BaseException as error:
            logger.exception("a callback of %r failed", self)
            pass_on_interrupt(error)

    def _log(
        self,
        level: int,
        text: str,
        *args: Any,
        log: logging.Logger | logging.LoggerAdapter[Any] = logger,
        error: BaseException | None = None,
    ) -> None:
        """Log what the peer has caused; of very many such lines, their number only."""
        if self._limited_log is None:
            self._limited_log = LimitedLog(logger, self._protocol._peername())
        self._limited_log.log(level, text, *args, error=error, to=log)

    def _fail_call(self, call: Reply | StreamState | None, error: BaseException) -> None:
        if call is None:
            return
        if isinstance(error, RemoteException):
            error.path = call.path
        if isinstance(call, StreamState):
            call.end(error)
        elif not call.done():
            call.set_exception(error)

    def _connection_lost(self) -> None:
        self._stop_watching()
        if self._limited_log is not None:
            self._limited_log.finish()
        if not self._lost.done():
            self._lost.set_result(None)
