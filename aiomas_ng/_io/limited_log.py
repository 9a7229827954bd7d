"""Log lines about what somebody else may cause as often as they like: of very many their number only.

Each connection has such a log of its own, so that a peer that floods it hides no other one; each server has
one for those that it refuses, who come with a new connection each time.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from aiomas_ng._core.log_limit import LogLimit

__all__ = ["LimitedLog"]


class LimitedLog:
    """Writes so many lines in a while, then one that says that there will be no more, and later their number.

    Args:
        logger: Where they are written.
        about: Whom they are about, in words.
        limit: How many there may be, by default 20 in a minute.
    """

    __slots__ = ("_limit", "_logger", "about")

    def __init__(self, logger: logging.Logger, about: object, limit: LogLimit | None = None) -> None:
        self._logger = logger
        self._limit = limit or LogLimit()
        #: Whom they are about, in words.
        self.about = about

    def log(
        self,
        level: int,
        text: str,
        *args: Any,
        error: BaseException | None = None,
        to: logging.Logger | logging.LoggerAdapter[Any] | None = None,
    ) -> bool:
        """Write a line unless there were too many; return whether it was written.

        Args:
            level: Its level.
            text: What it says.
            *args: What is put into *text*.
            error: Whose traceback is added.
            to: Another logger to write it to.
        """
        logger, limit = to or self._logger, self._limit
        if limit.admit(time.monotonic()):
            self.finish(logger)
            logger.log(level, text, *args, exc_info=error)
            return True
        if limit.left_out == 1:
            text = "further lines about %s are counted and not logged, until %g s after the first one"
            logger.warning(text, self.about, limit.period)
        return False

    def finish(self, to: logging.Logger | logging.LoggerAdapter[Any] | None = None) -> None:
        """Write how many lines were left out, if any were."""
        count = self._limit.collect()
        if count:
            (to or self._logger).warning("%d more lines about %s were left out of the log", count, self.about)
