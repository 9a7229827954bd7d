"""Both halves of a channel together: which of them a frame of the peer concerns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiomas_ng import codecs
from aiomas_ng._core import frames
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.frames import EXCEPTION, MESSAGE, REQUEST, RESULT
from aiomas_ng._io.answerer import Answerer
from aiomas_ng._io.caller import Caller
from aiomas_ng._io.connection import logger
from aiomas_ng._io.reply import Reply
from aiomas_ng.exceptions import AiomasError, MalformedFrameError, ProtocolError, UnknownFrameTypeError

if TYPE_CHECKING:
    import asyncio

    from aiomas_ng.channel import ChannelProtocol

__all__ = ["Dispatcher"]


class Dispatcher(Caller, Answerer):
    """Takes the decoded frames of the peer."""

    def __init__(
        self, protocol: ChannelProtocol, codec: codecs.Codec, transport: Any, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(protocol, codec, transport, loop)
        self._due_pong: int | None = None

    def _take_frame(self, msg_type: Any, msg_id: Any, content: Any, size: int) -> None:
        """Take a decoded frame.

        Raises:
            ProtocolError: It breaks the rules.
        """
        if type(msg_type) is not int:
            raise MalformedFrameError(f"a frame's type must be an integer but is {short(msg_type)}")
        if msg_type == RESULT:
            call = self._exchange.settle(msg_id)
            if type(call) is Reply:
                if not call.done():
                    call.set_result(content)
            elif call is not None:
                call.end()
        elif msg_type == REQUEST:
            if type(msg_id) is not int and type(msg_id) is not str:
                raise MalformedFrameError(
                    f"a request's id must be an integer or a string but is {short(msg_id)}"
                )
            exchange = self._exchange
            if not exchange._has_seen_request and exchange.greet(msg_id):
                self._welcome()
            if self._handler is not None and not self._inbox and not self._protocol.is_paused:
                self._handler(msg_id, content)
            else:
                self._put_inbox(msg_id, content, size)
        elif msg_type == EXCEPTION:
            self._take_exception(msg_id, content)
        else:
            self._take_extension(msg_type, msg_id, content, size)

    def _take_extension(self, msg_type: int, msg_id: Any, content: Any, size: int) -> None:
        """Take a frame of a type that only peers of ours send."""
        if not frames.CANCEL <= msg_type <= frames.STREAM:
            raise UnknownFrameTypeError(f"a frame has the unknown type {short(msg_type)}")
        if not self._exchange.is_peer_ours:
            self._welcome(greet=False)
        if msg_type == MESSAGE:
            if msg_id != frames.LANE_RPC:
                raise MalformedFrameError(
                    f"a one-way message is for lane {short(msg_id)}, which nobody serves"
                )
            if self._handler is not None and not self._inbox and not self._protocol.is_paused:
                self._handler(None, content)
            else:
                self._put_inbox(None, content, size)
        elif msg_type == frames.ITEM or msg_type == frames.STREAM:
            self._take_stream_frame(msg_type, msg_id, content)
        elif msg_type == frames.CREDIT:
            if type(content) is not int or content <= 0:
                raise MalformedFrameError(f"credit must be an integer > 0 but is {short(content)}")
            job = self._exchange.jobs.get(msg_id) if isinstance(msg_id, int | str) else None
            if job is not None:
                job.grant(content)
        elif msg_type == frames.CANCEL:
            self._take_cancel(msg_id)
        elif msg_type == frames.PING:
            if type(msg_id) is not int:
                raise MalformedFrameError(f"a ping's number must be an integer but is {short(msg_id)}")
            self._due_pong = msg_id
            self._send_due_pong()

    def _send_due_pong(self) -> None:
        # To a peer that does not read, only the latest of its pings is answered.
        if self._due_pong is not None and not self._protocol.is_paused:
            self._send_control(frames.PONG, self._due_pong)
            self._due_pong = None

    def _writing_resumed(self) -> None:
        self._send_due_pong()
        super()._writing_resumed()

    def _welcome(self, greet: bool = True) -> None:
        """The peer has shown that it is one of ours: say the same of us, and cancel what was abandoned
        before."""
        abandoned = self._exchange.recognize()
        if greet:
            self._send_control(frames.SESSION, 0, {"version": frames.WIRE_VERSION})
        for msg_id in abandoned:
            self._send_control(frames.CANCEL, msg_id)

    def _reject_frame(self, msg_type: int, msg_id: Any, error: AiomasError, size: int) -> None:
        """A frame whose type and id are known cannot be taken: end the request it belongs to, and nothing
        else."""
        try:
            if msg_type == REQUEST and isinstance(msg_id, int | str):
                logger.warning("a request from %s cannot be taken: %s", self._protocol._peername(), error)
                if self._exchange.greet(msg_id):
                    self._welcome()
                self._reject_request(msg_id, error, size)
            elif msg_type in (RESULT, EXCEPTION):
                self._fail_call(self._exchange.settle(msg_id), error)
            elif msg_type == frames.ITEM:
                call = self._exchange.find(msg_id)
                if call is not None:
                    self._abandon(msg_id)
                    self._fail_call(call, error)
            else:
                raise MalformedFrameError(f"a frame of type {short(msg_type)} cannot be taken: {error}")
        except ProtocolError as violation:
            self._note_violation(violation)
