"""Lines in the log that a peer can cause: so many at most, and then their number."""

from __future__ import annotations

from typing import Final

__all__ = ["LOG_LINES", "LOG_PERIOD", "LogLimit"]

#: Lines that are logged in a period.
LOG_LINES: Final = 20
#: Length of a period, in seconds.
LOG_PERIOD: Final = 60.0


class LogLimit:
    """Lets through some lines of each period, and counts the others.

    Args:
        lines: Lines of a period that are let through.
        period: Length of a period, in seconds; the first line after one begins the next.
    """

    __slots__ = ("_begin", "_count", "left_out", "lines", "period")

    def __init__(self, lines: int = LOG_LINES, period: float = LOG_PERIOD) -> None:
        self.lines = lines
        self.period = period
        self._begin = float("-inf")
        self._count = 0
        #: Lines that were left out since :meth:`collect` was last called.
        self.left_out = 0

    def admit(self, now: float) -> bool:
        """Return whether a line is to be logged.

        Args:
            now: The time, in seconds, of a clock that never goes back.
        """
        if now - self._begin >= self.period:
            self._begin = now
            self._count = 0
        self._count += 1
        if self._count <= self.lines:
            return True
        self.left_out += 1
        return False

    def collect(self) -> int:
        """Return how many lines were left out since this was last called; to be logged as well."""
        left_out, self.left_out = self.left_out, 0
        return left_out
