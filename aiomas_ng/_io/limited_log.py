"""Log lines about what a peer may cause as often as it likes: not more than one in some seconds."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

__all__ = ["INTERVAL", "LimitedLog"]

#: Seconds between two lines.
INTERVAL: Final = 5.0


class LimitedLog:
    """Writes the first line at once, and further ones with the number of those that were left out.

    Args:
        logger: Where they are written.
        interval: Seconds between two of them.
    """

    __slots__ = ("_due", "_interval", "_left_out", "_logger")

    def __init__(self, logger: logging.Logger, interval: float = INTERVAL) -> None:
        self._logger = logger
        self._interval = interval
        self._due = 0.0
        self._left_out = 0

    def warning(self, text: str, *args: Any) -> bool:
        """Write a line at level WARNING if it is time for one; return whether it was."""
        now = time.monotonic()
        if now < self._due:
            self._left_out += 1
            return False
        if self._left_out:
            text, args = text + " (and %d more like this)", (*args, self._left_out)
        self._due = now + self._interval
        self._left_out = 0
        self._logger.warning(text, *args)
        return True
