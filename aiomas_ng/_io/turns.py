"""Turns: a connection on which much arrives at once leaves the loop to others in between.

One read may bring thousands of requests. They are handled in pieces, one in each turn of the event loop, and
nothing more is read meanwhile. So who sends one request now and then waits for one piece of each busy
connection, and not for all that they have sent.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._core.framing import Frame, Oversized

if TYPE_CHECKING:
    from aiomas_ng.channel import ChannelProtocol

__all__ = ["COST_OF_TASK", "Messages", "Turns"]

#: Bytes of a frame that count as much as a request. Several may be in it.
BYTES_OF_REQUEST: Final = 64
#: Requests that one counts for whose handler runs in a task: so long that takes.
COST_OF_TASK: Final = 4


class Messages:
    """Decoded frames of one bundle that have not had their turn.

    Args:
        messages: The frames.
        share: Bytes that each of them counts for.
    """

    __slots__ = ("messages", "share")

    def __init__(self, messages: Sequence[Any], share: int) -> None:
        self.messages = messages
        self.share = share


class Turns:
    """What has arrived on one connection and waits for a further turn.

    Args:
        protocol: Where it has arrived.
        size: Requests that are handled in a turn.
        loop: The event loop.
    """

    __slots__ = ("_is_due", "_loop", "_protocol", "_size", "left", "waiting")

    def __init__(self, protocol: ChannelProtocol, size: float, loop: asyncio.AbstractEventLoop) -> None:
        self._protocol = protocol
        self._size = size
        self._loop = loop
        self._is_due = False
        #: Requests that are left of this turn; whoever does what takes long takes off some.
        self.left = size
        #: Payloads, in their order.
        self.waiting: collections.deque[Frame | Oversized | Messages] = collections.deque()

    def begin(self, payloads: Sequence[Frame | Oversized]) -> bool:
        """Return whether *payloads*, which have just been read, have their turn now; else they wait."""
        if self.waiting:
            self.put_aside(payloads)
            return False
        self.left = self._size
        return True

    def count(self, payload: Frame | Oversized) -> bool:
        """Count *payload*; return whether it has its turn now."""
        if self.left <= 0:
            return False
        self.left -= 1 if isinstance(payload, Oversized) else 1 + len(payload) // BYTES_OF_REQUEST
        return True

    def begin_bundle(self) -> float:
        """Frames of a bundle, which has been counted by its bytes, have a turn of their own; return what was
        left of the one before."""
        before, self.left = self.left, self._size
        return before

    def put_aside(self, payloads: Sequence[Frame | Oversized]) -> None:
        """Let *payloads* wait for the next turn, behind all that wait already."""
        # A view is into a buffer that is used again.
        self.waiting.extend(bytes(item) if type(item) is memoryview else item for item in payloads)
        self.schedule()

    def put_back(self, messages: Sequence[Any], share: int) -> None:
        """Let the rest of a bundle wait for the next turn, before all that wait already."""
        self.waiting.appendleft(Messages(messages, share))
        self.schedule()

    def schedule(self) -> None:
        """Go on in the next turn of the loop, and read nothing before."""
        if not self._is_due:
            self._is_due = True
            self._protocol.transport.pause_reading()
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_due = False
        channel = self._protocol.channel
        assert channel is not None
        if channel._error is not None:
            self.waiting.clear()
        if not channel._is_reading:
            return  # whoever reads again goes on with what waits
        self.left = self._size
        if self.waiting:
            first = self.waiting[0]
            if isinstance(first, Messages):
                self.waiting.popleft()
                self._protocol._take_messages(first)
            else:
                self._protocol._handle_waiting(self.waiting)
        if self.waiting:
            if channel._is_reading:
                self.schedule()
        elif channel._is_reading:
            self._protocol.resume_reading()
