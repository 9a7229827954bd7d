"""The half of a channel that sends requests: calls, one-way messages, and the replies to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._core import failure, frames
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.deadline import Deadline, get_deadline, to_metadata
from aiomas_ng._core.frames import MESSAGE, REQUEST
from aiomas_ng._io.connection import Connection
from aiomas_ng._io.expiry import check_deadline, now_in
from aiomas_ng._io.reply import Reply, ReplyStream, StreamState, as_exceeded, describe_call
from aiomas_ng.codecs import BINARY, is_large
from aiomas_ng.exceptions import (
    AiomasError,
    ClosedByPeerError,
    MalformedFrameError,
    OverloadError,
    ProtocolError,
)

if TYPE_CHECKING:
    from aiomas_ng._io.answerer import Lane
    from aiomas_ng._io.shortcut import Shortcut

__all__ = ["Caller"]

#: How a peer calls the error of a frame that is above its limit.
TOO_LARGE: Final = "aiomas_ng.FrameTooLargeError"
#: And that of a request which came when it had said that it takes no new ones.
SHUTDOWN: Final = "aiomas_ng.ShutdownError"

#: And that of a call whose deadline has passed there.
TOO_LATE: Final = "aiomas_ng.DeadlineExceededError"


class Caller(Connection):
    """Sends requests and takes their replies."""

    _lane: Lane | None
    _shortcut: Shortcut | None = None  #: The short way, if the other end is in this container.

    def send(
        self,
        content: Any,
        *,
        timeout: float | None = None,
        path: str | None = None,
    ) -> Reply:
        """Send the request *content*; return the :class:`Reply`, a future, which need not be awaited.

        Args:
            content: Anything the codec encodes.  It is encoded at once, so it may be changed afterwards.
            timeout: Seconds to wait for the reply; ``None`` for no limit.
            path: Name of what is called, for errors.

        Raises:
            SerializationError: *content* cannot be encoded.
            FrameTooLargeError: It is too large.
            OverloadError: Too many requests or bytes wait already.
            ChannelClosedError: The connection has ended.
            DeadlineExceededError: A deadline around the call has passed.

        The reply fails with :exc:`~aiomas_ng.exceptions.RemoteException` if the peer raised, with
        :exc:`~aiomas_ng.exceptions.ChannelClosedError` if the connection ended first, with
        :exc:`~aiomas_ng.exceptions.CallTimeoutError` after *timeout*, or when a deadline around the call
        passes (:mod:`aiomas_ng.deadlines`).
        """
        return self._request(content, (content,), path, timeout, None, is_rpc=False)

    def _request(
        self,
        content: Any,
        values: Sequence[Any],
        path: str | None,
        timeout: float | None = None,
        reply: Reply | None = None,
        *,
        is_rpc: bool = True,
    ) -> Reply:
        """Send a request.

        Args:
            content: See :meth:`send`, as for *path*, *timeout* and the errors.
            values: What of *content* may be large bytes.
            path: Name of what is called.
            timeout: Seconds.
            reply: A reply that was made before there was a connection, to be used and returned.
            is_rpc: Whether *content* is that of a remote procedure call, which takes its deadline along.
        """
        if self._error is not None:
            self._raise_closed()
        if self._shortcut is not None:
            self._shortcut.make_way()
        protocol = self._protocol
        if protocol.is_paused:
            self._check_backlog()
        deadline = get_deadline()
        if deadline is not None:
            content = self._add_deadline(content, deadline, path, is_rpc)
        if reply is None:
            reply = Reply(loop=self._loop)
            reply.path = path
        exchange = self._exchange
        reply._msg_id = msg_id = exchange.open(reply)
        reply._channel = self
        try:
            for value in values:
                if type(value) in BINARY and is_large(value):
                    protocol.write_pieces(self._encode_pieces((REQUEST, msg_id, content)))
                    break
            else:
                payload = self._encode((REQUEST, msg_id, content))
                if len(exchange.calls) > 1:
                    protocol.write(payload)
                else:  # nothing else is likely to leave in this turn of the loop
                    protocol.write_now(payload)
        except BaseException:
            exchange.withdraw(msg_id)
            raise
        if timeout is not None or deadline is not None:
            reply.expire(timeout, deadline)
        if not self._is_reading:
            self._start_reading()
        return reply

    def _add_deadline(self, content: Any, deadline: Deadline, path: str | None, is_rpc: bool = True) -> Any:
        """Return *content* with what the peer has to know about *deadline*.

        Raises:
            DeadlineExceededError: It has passed.
        """
        check_deadline(deadline, self._loop, describe_call(path))
        if not is_rpc or not self._exchange.is_peer_ours:
            return content
        metadata = to_metadata(deadline, now_in(self._loop))
        return (*content, metadata) if metadata else content

    def post(self, content: Any, *, lane: int = frames.LANE_RPC, gather: bool = True) -> None:
        """Send the one-way message *content*: it is not answered.

        At a peer of ours it arrives as a :class:`Request` with ``is_oneway``, in order with the requests. A
        peer that is not (yet) known to be one of ours gets a request, whose reply is dropped. Messages of
        other lanes are sent as they are: who uses them knows that the peer is one of ours.

        Args:
            content: Anything the codec encodes.
            lane: What the message is for.
            gather: Others are likely to follow in this turn of the loop, so it waits for them.

        Raises:
            SerializationError, FrameTooLargeError, OverloadError, ChannelClosedError: As for :meth:`send`.
        """
        if self._error is not None:
            self._raise_closed()
        if self._shortcut is not None:
            self._shortcut.make_way()
        if self._protocol.is_paused:
            self._check_backlog()
        if self._exchange.is_peer_ours or lane != frames.LANE_RPC:
            write = self._protocol.write if gather else self._protocol.write_now
            write(self._encode((MESSAGE, lane, content)))
            if lane != frames.LANE_RPC and not self._is_reading:
                self._start_reading()
        else:
            self.send(content).add_done_callback(_drop_outcome)

    def _check_backlog(self) -> None:
        if self._protocol.is_backlogged():
            size = self._protocol.get_unsent_size()
            raise OverloadError(
                f"the peer does not read: {size} bytes wait to be sent, the limit is {self._limits.backlog}"
            )

    def _abandon(self, msg_id: int) -> None:
        """The caller of request *msg_id* gave up: forget it, and tell a peer that understands."""
        if self._exchange.abandon(msg_id):
            self._send_control(frames.CANCEL, msg_id)

    def _grant(self, msg_id: int, count: int) -> None:
        self._send_control(frames.CREDIT, msg_id, count)

    def _take_exception(self, msg_id: Any, content: Any) -> None:
        error = failure.rebuild(self._protocol._peername(), content)
        if msg_id is None:
            text = "%s rejected a frame of ours: %s: %s"
            self._log(logging.WARNING, text, error.origin, error.type_name, error.message)
            if self._lane is not None and error.type_name == TOO_LARGE:
                self._lane.lose(error)
            return
        call = self._exchange.settle(msg_id)
        if call is not None and error.type_name == TOO_LATE:
            self._fail_call(call, as_exceeded(call, error))  # the peer's clock was ahead of ours
        elif error.type_name == SHUTDOWN and isinstance(call, Reply):
            self._fail_call(call, ClosedByPeerError(error.message, was_sent=False))
        else:
            self._fail_call(call, error)

    def _take_stream_frame(self, msg_type: int, msg_id: Any, content: Any) -> None:
        call = self._exchange.find(msg_id)
        if msg_type == frames.STREAM and isinstance(call, Reply):
            state = StreamState(self, msg_id, self._limits.stream_window, call.path)
            self._exchange.calls[msg_id] = state
            if call.expiry is not None:
                state.expire_at(call.expiry.deadline)
            self._grant(msg_id, self._limits.stream_window)
            if not call.done():
                call.set_result(ReplyStream(state))
        elif msg_type == frames.ITEM and type(call) is StreamState:
            try:
                call.put(content)
            except ProtocolError as error:
                self._abandon(msg_id)
                call.end(error)
                raise
        elif call is not None:
            raise MalformedFrameError(
                f"a frame of type {short(msg_type)} does not fit the state of request {short(msg_id)}"
            )

    def _fail_calls(self, error: AiomasError) -> None:
        """Fail all calls that wait with *error*, without closing."""
        for call in list(self._exchange.calls.values()):
            self._abandon(call._msg_id)
            self._fail_call(call, error)


def _drop_outcome(reply: asyncio.Future[Any]) -> None:
    if not reply.cancelled():
        reply.exception()
