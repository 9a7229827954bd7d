"""Connections beyond the limit of a server, which may be those of clients that return.

A client that takes its connection up again may find that its old one still counts, as the server has not
noticed the break, or that others have come meanwhile. So where there are sessions to be taken up, who comes
when there is no room is refused only when it has begun with something else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._core.frames import SESSION
from aiomas_ng._core.framing import HEADER

if TYPE_CHECKING:
    from aiomas_ng.channel import ChannelProtocol

__all__ = ["Returning", "wait_for_return"]

#: Connections beyond its limit that a server waits for at a time.
MAX_RETURNING: Final = 100
#: Seconds that such a connection has to show what it is for.
RETURN_TIME: Final = 5.0
#: Bytes of a request to take up a connection, at most.
REQUEST_SIZE: Final = 4096


def wait_for_return(protocol: ChannelProtocol, reason: str) -> Returning | None:
    """Wait for what a connection, for which there is no room, begins with; ``None`` if it cannot be a client
    that returns, or too many are waited for.

    Args:
        protocol: Of the new connection.
        reason: Why there is no room.
    """
    sessions = protocol._resumption._sessions if protocol._resumption is not None else None
    if sessions is None or not len(sessions) or len(sessions.returning) >= MAX_RETURNING:
        return None
    return Returning(protocol, reason, sessions.returning)


class Returning(asyncio.Protocol):
    """Stands in for the protocol of a connection until its first frame is there.

    Args:
        protocol: The protocol.
        reason: Why there is no room for the connection.
        others: Those that are waited for; this is added to them.
    """

    def __init__(self, protocol: ChannelProtocol, reason: str, others: set[Returning]) -> None:
        self._protocol = protocol
        self._reason = reason
        self._others = others
        self._received = b""
        self._timer = protocol._loop.call_later(RETURN_TIME, self.refuse)
        others.add(self)
        protocol.transport.set_protocol(self)

    def refuse(self) -> None:
        """Close the connection, unless it has shown already what it is for."""
        if self._end():
            self._protocol.refuse_connection(self._reason)

    def _end(self) -> bool:
        """Let the protocol take its place again; return whether it had not before."""
        if self not in self._others:
            return False
        self._others.discard(self)
        self._timer.cancel()
        self._protocol.transport.set_protocol(self._protocol)
        return True

    def data_received(self, data: bytes) -> None:
        """Look at the first frame when it is complete."""
        self._received += data
        if len(self._received) < HEADER.size:
            return
        size = HEADER.unpack_from(self._received)[0]
        if size <= REQUEST_SIZE and len(self._received) < HEADER.size + size:
            return
        if size <= REQUEST_SIZE and self._is_return(self._received[HEADER.size : HEADER.size + size]):
            if self._end():
                self._protocol.data_received(self._received)  # which ends it in any case
        else:
            self.refuse()

    def _is_return(self, payload: bytes) -> bool:
        codec = self._protocol.codec
        try:
            envelope = codec.peek(payload)
            if envelope is None or envelope[0] != SESSION:
                return False
            content: Any = codec.decode(payload)[2]
        except Exception:  # of a codec of the user's, or as it is no frame
            return False
        return type(content) is dict and "resume" in content

    def eof_received(self) -> None:
        """Nothing more comes, and it has not returned."""
        self.refuse()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._end()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._protocol.resume_writing()
