"""The few words with which a new connection takes the place of one that broke, at both ends.

See :mod:`aiomas_ng._io.resumption` for what comes before and after, and the documentation of the wire.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._core import frames
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.framing import HEADER
from aiomas_ng._core.session import State
from aiomas_ng.exceptions import ClosedByPeerError, ResumptionError

if TYPE_CHECKING:
    from aiomas_ng._io.resumption import Resumption
    from aiomas_ng.channel import ChannelProtocol

__all__ = ["Handshake", "hand_over"]

logger = logging.getLogger("aiomas_ng.channel")

#: Bytes of a frame that answers a dialler, at most.
ANSWER_SIZE: Final = 64 * 1024
#: Characters of what a peer says why it refuses, at most.
MAX_REASON: Final = 200

SESSION: Final = frames.SESSION


class Handshake(asyncio.Protocol):
    """Speaks first on a new connection that is to carry a session on.

    Args:
        resumption: Of the connection that broke.
    """

    def __init__(self, resumption: Resumption) -> None:
        self._resumption = resumption
        self._received = b""
        self._skip = 0  # bytes of a frame that is too large for an answer
        self._wire: Any = None
        self.answered: asyncio.Future[None] = resumption._protocol._loop.create_future()

    def connection_made(self, transport: Any) -> None:
        resumption = self._resumption
        if self.answered.done() or resumption.session.state is not State.INTERRUPTED:
            transport.abort()  # nobody waits for it any more
            return
        self._wire = transport
        request = {"version": frames.WIRE_VERSION, "resume": resumption.session.ask()}
        transport.write(_frame(resumption._protocol, request))

    def data_received(self, data: bytes) -> None:
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        self._received += data
        while not self.answered.done() and len(self._received) >= HEADER.size:
            size = HEADER.unpack_from(self._received)[0]
            end = HEADER.size + size
            if size > ANSWER_SIZE:  # as what the server says to whoever connects may be
                self._skip = max(0, end - len(self._received))
                self._received = self._received[end:]
                continue
            if len(self._received) < end:
                return
            payload, self._received = self._received[HEADER.size : end], self._received[end:]
            try:
                self._take(payload)
            except Exception as error:
                self._fail(
                    error
                    if isinstance(error, ResumptionError)
                    else ResumptionError(f"the answer of the peer is malformed: {error}")
                )

    def _take(self, payload: bytes) -> None:
        msg_type, _, content = self._resumption._protocol.codec.decode(payload)
        if msg_type != SESSION or type(content) is not dict:
            return  # what the server says to whoever connects
        if "resumed" in content:
            wire, self._wire = self._wire, None
            try:
                self._resumption.answered(wire, content["resumed"], self._received)
            except ResumptionError:
                wire.abort()
                raise
            if not self.answered.done():
                self.answered.set_result(None)
        elif "refused" in content:
            reason = content["refused"]
            text = reason if type(reason) is str and len(reason) <= MAX_REASON else short(reason)
            raise ResumptionError(f"the peer says: {text}")

    def connection_lost(self, exc: Exception | None) -> None:
        error = ClosedByPeerError("the peer closed the connection" if exc is None else f"it broke: {exc}")
        error.__cause__ = exc
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)
        self.abandon()

    def abandon(self) -> None:
        """Close the connection, unless it carries the session now."""
        if self._wire is not None:
            self._wire.abort()
        if not self.answered.done():
            self.answered.cancel()
        elif not self.answered.cancelled():
            self.answered.exception()


def hand_over(protocol: ChannelProtocol, request: Any) -> None:
    """A new connection is there to take up an earlier one: give it the transport.

    Args:
        protocol: Of the new connection.
        request: What the dialler has said.
    """
    own, channel = protocol._resumption, protocol.channel
    assert channel is not None
    try:
        if own is None or own._sessions is None:
            raise ResumptionError("no sessions are kept here")
        if channel._has_greeted or own.session.id:
            raise ResumptionError("this connection is in use already")
        session_id = request[0] if type(request) in (list, tuple) and request else None
        earlier = own._sessions.find(session_id)
        if earlier is None:
            raise ResumptionError("the session is not known here (any more)")
        answer = earlier.accept(request, own.transport)
    except ResumptionError as error:
        logger.info("%s cannot take up a connection: %s", protocol._peername(), error)
        channel._send_control(SESSION, 0, {"version": frames.WIRE_VERSION, "refused": str(error)})
        channel._set_error(ClosedByPeerError(f"the peer wanted to take up another connection: {error}"))
        return
    head = _frame(protocol, {"version": frames.WIRE_VERSION, "resumed": answer})
    protocol.write_all()  # or the answer might get into the midst of a frame
    own.give_up()
    wire = own.transport.detach()
    own.transport.bypass()  # what this connection still writes is not for the earlier one
    earlier.take_over(wire, head)
    channel._set_error(ClosedByPeerError("the peer goes on with an earlier connection"))


def _frame(protocol: ChannelProtocol, content: dict[str, Any]) -> bytes:
    payload = protocol.codec.encode((SESSION, 0, content))
    return HEADER.pack(len(payload)) + payload
