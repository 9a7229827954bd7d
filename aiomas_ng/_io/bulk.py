"""Large frames on their way in: read straight into a buffer, which is used again for the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiomas_ng import tuning
from aiomas_ng._core.budget import Budget
from aiomas_ng._core.framing import Frame, FrameParser, Oversized

__all__ = ["BulkReader"]

#: The buffer that nobody reads into just now, if there is one. That the system clears a new one page by page
#: takes longer than to read into it.
_SPARE: Final[list[bytearray]] = []


class BulkReader(asyncio.BufferedProtocol):
    """Stands in for another protocol at its transport until one large frame has been read.

    Args:
        protocol: The protocol.
        parser: Has the begin of the frame, and knows where the rest belongs.
        take: Called with the payload.
        refuse: Called with what is known of the frame if there is no room for it.
        budget: What all connections of the container may hold.
        is_copied: Whether nothing refers to the payload any more when *take* returns.
    """

    def __init__(
        self,
        protocol: Any,
        parser: FrameParser,
        take: Callable[[list[Frame]], None],
        refuse: Callable[[Oversized], None],
        budget: Budget,
        *,
        is_copied: bool,
    ) -> None:
        self._protocol = protocol
        self._parser = parser
        self._take = take
        self._refuse = refuse
        self._budget = budget
        self._is_copied = is_copied
        self._held = 0  # bytes that are counted in the budget
        parser.begin_bulk(_SPARE.pop() if _SPARE and is_copied else bytearray())
        if self._count(parser.held):
            protocol.transport.set_protocol(self)
        else:
            refuse(parser.skip_bulk())

    def _count(self, size: int) -> bool:
        """Count *size* further bytes; return whether there is room for them."""
        has_room = self._budget.has_room_for(size)
        if has_room:
            self._held += size
            self._budget.put(size, 0)
        return has_room

    def _uncount(self) -> None:
        self._budget.take(self._held, 0)
        self._held = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        return self._parser.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Take note of what was read; hand the frame over when it is complete."""
        complete = self._parser.buffer_updated(nbytes)
        if complete is None:
            self._protocol.bulk_received(nbytes)
            growth = self._parser.growth
            if growth and not self._count(growth):
                self._uncount()
                self._protocol.transport.set_protocol(self._protocol)
                self._refuse(self._parser.skip_bulk())
            return
        self._uncount()
        buffer, size = complete
        self._protocol.transport.set_protocol(self._protocol)
        self._protocol.bulk_received(nbytes)
        self._take([memoryview(buffer)[:size]])
        if self._is_copied and not _SPARE and len(buffer) <= tuning.KEPT_SIZE and tuning.keep_freed_memory():
            _SPARE.append(buffer)

    def eof_received(self) -> Any:
        """Pass it on, as all the rest."""
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._uncount()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
