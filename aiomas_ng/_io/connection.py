"""What both halves of a channel share: the way out, and the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from aiomas_ng import codecs
from aiomas_ng._core.exchange import Exchange
from aiomas_ng._io.job import CURRENT_JOB, Job
from aiomas_ng._io.reply import Reply, StreamState
from aiomas_ng.exceptions import (
    AiomasError,
    ChannelClosedError,
    ClosedByUsError,
    RemoteException,
    SerializationError,
)

if TYPE_CHECKING:
    from aiomas_ng.channel import ChannelProtocol

__all__ = ["Connection"]

#: Seconds that :meth:`Connection.close` waits for handlers that were cancelled and do not end.
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
        self._transport = transport
        self._loop = loop
        self._limits = protocol.limits
        self._exchange = Exchange(self._limits.calls)
        self._error: ChannelClosedError | None = None  # why the connection has ended
        self._lost = loop.create_future()
        self._lost_callbacks: list[Callable[[ChannelClosedError], None]] = []
        self._oneway_jobs: set[Job] = set()
        self._waiter: asyncio.Future[None] | None = None  # of recv()
        self._stall_timer: asyncio.TimerHandle | None = None
        self._is_reading = True

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
    def is_closed(self) -> bool:
        """Whether the connection has ended, on whichever side."""
        return self._error is not None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows about the connection, see
        :meth:`asyncio.BaseTransport.get_extra_info`."""
        return self._transport.get_extra_info(name, default)

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
        except Exception as error:  # of a codec of the user's
            raise SerializationError(f"cannot encode {frame[2]!r:.200}: {error}") from error
        return payload

    def _send_control(self, msg_type: int, msg_id: int | str, content: Any = None) -> None:
        if self._error is None and not self._transport.is_closing():
            self._protocol.write(self._encode((msg_type, msg_id, content)))

    def _start_reading(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if not self._is_reading and self._error is None:
            self._is_reading = True
            self._transport.resume_reading()

    def _check_open(self) -> None:
        if self._error is not None:
            self._raise_closed(was_sent=None)

    def _raise_closed(self, was_sent: bool | None = False) -> NoReturn:
        assert self._error is not None
        raise type(self._error)(self._error.reason, was_sent) from self._error.__cause__

    async def close(self) -> None:
        """Close the connection; wait until it is closed and the handlers of its requests have ended.

        Calls that wait fail with :exc:`~aiomas_ng.exceptions.ClosedByUsError`; handlers that still run are
        cancelled. Safe to be called twice, and from within a handler of this channel.
        """
        current = CURRENT_JOB.get()
        jobs = [job.task for job in (*self._exchange.jobs.values(), *self._oneway_jobs) if job is not current]
        self._set_error(ClosedByUsError("the connection was closed on this side"))
        for job in list(self._oneway_jobs):
            if job is not current:
                job.cancel()
        self._transport.close()
        if self._protocol.is_paused or not self._is_reading:
            # What waits to be written can only leave if the peer reads, which it may never do.
            self._loop.call_later(CLOSE_GRACE, self._transport.abort)
        await asyncio.shield(self._lost)
        callback = self._protocol._callback_task
        tasks = {*jobs, *([callback] if callback else [])} - {asyncio.current_task()}
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=CLOSE_GRACE)
            for task in pending:
                logger.warning("a handler of %r goes on although it was cancelled: %r", self, task)

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
            reason = type(error)(error.reason, True)
            reason.__cause__ = error.__cause__
            self._fail_call(call, reason)
        current = CURRENT_JOB.get()
        for job in jobs:
            if job is not current:  # a handler may close its own channel
                job.cancel()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self._transport.close()
        callbacks, self._lost_callbacks = self._lost_callbacks, []
        for callback in callbacks:
            callback(error)

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
        if not self._lost.done():
            self._lost.set_result(None)
