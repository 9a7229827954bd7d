"""The time that a frame may take to arrive.

A frame that has begun has to be complete within ``Limits.frame_time``, or else to go on by
``Limits.frame_rate`` bytes per second, looked at once in that time. So a large frame may take long on a slow
line, and a peer that sends a byte now and then cannot keep memory and a connection for ever. Between two
frames nothing is watched: a peer may be silent. Nor is it while we do not read ourselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiomas_ng._core.framing import FrameParser
from aiomas_ng._core.limits import Limits

__all__ = ["FrameWatch"]


class FrameWatch:
    """Watches the frames of one connection.

    Args:
        parser: Knows how much of a frame has arrived.
        limits: ``frame_time`` and ``frame_rate`` count.
        loop: The event loop.
        is_reading: Returns whether we read what the peer sends.
        give_up: Called with the reason when a frame is too slow.
    """

    __slots__ = (
        "_arrived",
        "_count",
        "_give_up",
        "_is_excused",
        "_is_reading",
        "_limits",
        "_loop",
        "_parser",
        "_timer",
    )

    def __init__(
        self,
        parser: FrameParser,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        is_reading: Callable[[], bool],
        give_up: Callable[[str], None],
    ) -> None:
        self._parser = parser
        self._limits = limits
        self._loop = loop
        self._is_reading = is_reading
        self._give_up = give_up
        self._timer: asyncio.TimerHandle | None = None
        self._count = 0  # of the frame that is watched: how many were complete before
        self._arrived: float = 0  # bytes of it that had arrived when it was looked at last
        self._is_excused = False  # since then we have not read all the time

    def look(self) -> None:
        """Watch the frame that has begun, if one has."""
        if self._timer is None and self._parser.arrived:
            # What has arrived by now does not count: it is the time that the rest takes which is watched.
            self._begin()

    def excuse(self) -> None:
        """We begin to read again: begin to count anew."""
        self._is_excused = True

    def stop(self) -> None:
        """Watch nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._is_excused = False
        self._count = self._parser.count
        self._arrived = self._parser.arrived
        self._timer = self._loop.call_later(self._limits.frame_time, self._check)

    def _check(self) -> None:
        self._timer = None
        parser, limits = self._parser, self._limits
        arrived = parser.arrived
        if not arrived:
            return
        least = limits.frame_rate * limits.frame_time
        is_watched = parser.count == self._count and not self._is_excused and self._is_reading()
        if is_watched and arrived - self._arrived < least:
            self._give_up(
                f"a frame came too slowly: {arrived - self._arrived} bytes of it in {limits.frame_time} s"
            )
        else:
            self._begin()
