"""The half of a channel that answers requests: those that wait, those that are worked on, and the answers."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiomas_ng import codecs
from aiomas_ng._core import failure, frames
from aiomas_ng._core.frames import EXCEPTION, RESULT
from aiomas_ng._io.connection import Connection, logger
from aiomas_ng._io.job import Job, is_awaitable, is_stream
from aiomas_ng.exceptions import (
    ConnectionStalledError,
    FrameTooLargeError,
    OverloadError,
    ProtocolError,
    SerializationError,
)

if TYPE_CHECKING:
    from aiomas_ng.channel import ChannelProtocol

__all__ = ["Answerer", "Handler", "Request"]

#: What serves a channel's requests: called with id (``None``: one-way) and content, it answers through the
#: channel.
Handler = Callable[["int | str | None", Any], None]

#: Types of results that need no second look.
PLAIN_TYPES = frozenset({type(None), bool, int, float, str, bytes, tuple, list, dict})


class Request:
    """A request of the peer, returned by :meth:`aiomas_ng.channel.Channel.recv`.

    Args:
        content: What the peer sent.
        message_id: The request's id, unique among the peer's requests; ``None`` for a one-way message.
        protocol: The channel's protocol.
    """

    __slots__ = ("_content", "_msg_id", "_protocol")

    def __init__(self, content: Any, message_id: int | str | None, protocol: ChannelProtocol) -> None:
        self._content = content
        self._msg_id = message_id
        self._protocol = protocol

    @property
    def content(self) -> Any:
        """What the peer sent."""
        return self._content

    @property
    def is_oneway(self) -> bool:
        """Whether the peer does not wait for a reply; :meth:`reply` and :meth:`fail` then do nothing."""
        return self._msg_id is None

    async def reply(self, result: Any) -> None:
        """Answer with *result*; an async generator is streamed item by item, until its end.

        If the result cannot be encoded, the peer gets that as the error. Waits while the peer reads too
        slowly.

        Raises:
            ChannelClosedError: The connection has ended.
        """
        channel = self._channel()
        if self._msg_id is None:
            return
        if is_stream(result):
            job = Job(channel, self._msg_id, result)
            channel._begin(self._msg_id, job)
            await asyncio.wait([job.task])
        else:
            channel._answer(self._msg_id, result)
        await self._protocol.drain()

    async def fail(self, exception: BaseException) -> None:
        """Answer with *exception*, which the peer gets as a :exc:`~aiomas_ng.exceptions.RemoteException`.

        Raises:
            ChannelClosedError: The connection has ended.
        """
        channel = self._channel()
        if self._msg_id is None:
            return
        channel._answer_error(self._msg_id, exception)
        await self._protocol.drain()

    def _channel(self) -> Answerer:
        channel = self._protocol.channel
        assert channel is not None
        channel._check_open()
        return channel


class Answerer(Connection):
    """Takes the requests of the peer and answers them."""

    def __init__(
        self, protocol: ChannelProtocol, codec: codecs.Codec, transport: Any, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(protocol, codec, transport, loop)
        self._handler: Handler | None = None
        # Requests that nobody has taken yet, with their size in bytes.
        self._inbox: collections.deque[tuple[int | str | None, Any, int]] = collections.deque()
        self._inbox_size = 0

    async def recv(self) -> Request:
        """Wait for the next request of the peer and return it.

        Raises:
            ChannelClosedError: The connection has ended, and every request that had arrived was returned.
            RuntimeError: Another task waits in ``recv`` already, or the requests are served by an RPC
                service.

        Cancelling it is safe: no request is lost.
        """
        if self._handler is not None:
            raise RuntimeError("the requests of this channel are served by an RPC service")
        if self._waiter is not None:
            raise RuntimeError("recv() is called while another task waits in it")
        while not self._inbox:
            self._check_open()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        msg_id, content, size = self._inbox.popleft()
        self._inbox_size -= size
        if not self._is_reading:
            self._start_reading()
        return Request(content, msg_id, self._protocol)

    def _serve(self, handler: Handler) -> None:
        """Let *handler* take all requests, from those that wait on."""
        self._handler = handler
        self._serve_inbox()

    def _serve_inbox(self) -> None:
        handler = self._handler
        while handler is not None and self._inbox and not self._protocol.is_paused and self._error is None:
            msg_id, content, size = self._inbox.popleft()
            self._inbox_size -= size
            handler(msg_id, content)

    def _put_inbox(self, msg_id: int | str | None, content: Any, size: int) -> None:
        """Keep a request until it can be taken; beyond the bound stop reading, or refuse it where waiting is
        not safe."""
        limits = self._limits
        if len(self._inbox) >= limits.requests or self._inbox_size + size > max(limits.inbox_size, size):
            if self._is_reading and (not self._exchange.calls or self._protocol.is_paused):
                self._stop_reading()
            elif msg_id is not None and not self._protocol.is_paused:
                # Our own calls wait for replies that come behind this request, so it cannot be waited for.
                error = OverloadError(
                    f"{len(self._inbox)} requests wait here already; this one was not accepted"
                )
                self._answer_error(msg_id, error)
                return
        self._inbox.append((msg_id, content, size))
        self._inbox_size += size
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _drop_from_inbox(self, msg_id: Any) -> None:
        for entry in self._inbox:
            if entry[0] is not None and entry[0] == msg_id:
                self._inbox.remove(entry)
                self._inbox_size -= entry[2]
                return

    def _settle(self, msg_id: int | str | None, result: Any) -> None:
        """Answer with what a handler returned: now, or through a :class:`Job` if it has to be waited for."""
        if type(result) not in PLAIN_TYPES and (is_awaitable(result) or is_stream(result)):
            if msg_id is not None and len(self._exchange.jobs) >= self._limits.requests:
                _dispose(result)
                self._answer_error(
                    msg_id, OverloadError("too many requests of this connection are being worked on")
                )
                return
            job = Job(self, msg_id, result)
            if msg_id is None:
                self._oneway_jobs.add(job)
            else:
                self._begin(msg_id, job)
        elif msg_id is not None:
            self._answer(msg_id, result)

    def _begin(self, msg_id: int | str, job: Job) -> None:
        try:
            self._exchange.begin(msg_id, job)
        except ProtocolError:
            job._msg_id = None
            job.cancel()
            self._oneway_jobs.add(job)
            raise

    def _finish(
        self, msg_id: int | str | None, job: Job, result: Any = None, error: BaseException | None = None
    ) -> None:
        """Take the outcome of a :class:`Job`."""
        self._oneway_jobs.discard(job)
        if msg_id is not None and self._exchange.jobs.get(msg_id) is job:
            self._exchange.end(msg_id)
            if self._error is None:
                if error is None:
                    self._answer(msg_id, result)
                elif not (isinstance(error, asyncio.CancelledError) and job.task.cancelling()):
                    self._answer_error(msg_id, error)
        elif isinstance(error, Exception):
            logger.error("a one-way call from %s failed", self._protocol._peername(), exc_info=error)

    def _answer(self, msg_id: int | str, result: Any) -> None:
        try:
            self._protocol.write(self._encode((RESULT, msg_id, result)))
        except (SerializationError, FrameTooLargeError) as error:
            self._answer_error(msg_id, error)

    def _answer_error(self, msg_id: int | str | None, error: BaseException) -> None:
        if self._error is not None:
            return
        try:
            self._protocol.write(self._encode((EXCEPTION, msg_id, failure.describe(error))))
        except FrameTooLargeError:
            # A limit so small that even a traceback does not fit: the shortest form there is.
            self._protocol.write(self._encode((EXCEPTION, msg_id, [failure.describe(error)[0], ""])))

    def _open_stream(self, msg_id: int | str) -> None:
        self._send_control(frames.STREAM, msg_id)

    def _send_item(self, msg_id: int | str, item: Any) -> None:
        self._check_open()
        self._protocol.write(self._encode((frames.ITEM, msg_id, item)))

    def _stop_reading(self) -> None:
        self._is_reading = False
        self._transport.pause_reading()
        if self._protocol.is_paused:
            # Neither direction moves, and so it may be on the other side.
            self._stall_timer = self._loop.call_later(self._limits.stall_time, self._stalled)

    def _stalled(self) -> None:
        text = f"neither side read for {self._limits.stall_time} s"
        self._abort(text, ConnectionStalledError(text))

    def _writing_resumed(self) -> None:
        self._serve_inbox()
        if not self._is_reading and len(self._inbox) < self._limits.requests:
            self._start_reading()


def _dispose(result: Any) -> None:
    """Drop an awaitable that will not be awaited, without a warning that it was not."""
    if hasattr(result, "close"):
        result.close()
    elif asyncio.isfuture(result):
        result.cancel()
