"""One-way messages whose handlers need a task, while there is no room to work on them.

A request for which there is no room is refused. A one-way message cannot be, as nobody waits for an answer;
so its handler, which has been called but not begun, waits for room. When too many wait, nothing more is read
from the connection, where that is safe. Requests do not wait behind them: the work that takes all the room
may wait for one of these.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from typing import TYPE_CHECKING, Final

from aiomas_ng._core.log_limit import LogLimit
from aiomas_ng._io.connection import logger
from aiomas_ng._io.limited_log import LimitedLog

if TYPE_CHECKING:
    from aiomas_ng._io.answerer import Answerer
    from aiomas_ng._io.job import Job

__all__ = ["Oneways"]

#: Seconds between two lines that say that messages are dropped; the peer is told as often.
DROP_PERIOD: Final = 5.0


class Oneways:
    """The one-way messages of one connection that wait for room.

    Args:
        channel: The connection.
    """

    __slots__ = ("_channel", "_has_waited_in_vain", "_log", "_timer", "jobs")

    def __init__(self, channel: Answerer) -> None:
        self._channel = channel
        self._timer: asyncio.TimerHandle | None = None
        self._has_waited_in_vain = False  # to read nothing did not help
        self._log: LimitedLog | None = None  # of drops; made for the first one
        #: In their order; each is counted in the budget as something that waits.
        self.jobs: collections.deque[Job] = collections.deque()

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be read because of them."""
        return len(self.jobs) >= self._channel._limits.oneways

    def put(self, job: Job) -> bool:
        """Let *job* wait; return whether it may."""
        channel = self._channel
        if channel._error is not None:
            return False  # its handler has closed the connection
        count, most = len(self.jobs) + 1, channel._limits.oneways
        if count >= most and not self._has_waited_in_vain and not channel._is_waiting():
            self._stop_reading(count)
        elif count > most:
            return False
        self.jobs.append(job)
        channel._budget.put(0)
        self._ask_for_room()
        return True

    def note_drop(self) -> bool:
        """Log that one has been dropped; return whether it is time to tell the peer as well."""
        peer = self._channel._protocol._peername()
        if self._log is None:
            self._log = LimitedLog(logger, f"dropped one-way messages from {peer}", LogLimit(1, DROP_PERIOD))
        return self._log.log(
            logging.WARNING,
            "one-way messages from %s are dropped: %d wait for room to be worked on, and to read nothing "
            "more does not help, as what we work on may wait for the peer",
            peer,
            len(self.jobs),
        )

    def begin(self) -> None:
        """Begin to work on them as far as there is room."""
        channel = self._channel
        if channel._error is not None:
            return
        while self.jobs:
            if not channel._has_room_to_work():
                self._ask_for_room()
                break
            channel._budget.take(0)
            channel._begin_work(self.jobs.popleft())
            self._has_waited_in_vain = False
        channel._read_if_there_is_room()

    def close(self) -> None:
        """Drop all of them."""
        if self._log is not None:
            self._log.finish()
        if self._timer is not None:
            self._timer.cancel()
        self._channel._budget.leave(self.begin)
        self._channel._budget.take(0, len(self.jobs))
        while self.jobs:
            self.jobs.popleft().dispose()

    def _ask_for_room(self) -> None:
        if not self._channel._budget.has_room_to_work():  # else it is this connection that has to go on
            self._channel._budget.ask(self.begin)

    def _stop_reading(self, count: int) -> None:
        """Read nothing until there is room, or time has shown that it does not help.

        The work that takes the room may wait for calls over other connections, whose other ends may do as we
        do: then it would be for ever.
        """
        if self._timer is None:
            self._channel._log(
                logging.WARNING,
                "%d one-way messages from %s wait for room to be worked on: nothing more is read until "
                "there is some",
                count,
                self._channel._protocol._peername(),
            )
            self._watch()
        self._channel._stop_reading()

    def _watch(self) -> None:
        first = self.jobs[0] if self.jobs else None
        channel = self._channel
        self._timer = channel._loop.call_later(channel._limits.oneway_time, self._look, first)

    def _look(self, first: Job | None) -> None:
        self._timer = None
        if self._channel._is_reading or not self.jobs:
            return
        if first is self.jobs[0]:  # none has begun meanwhile
            self._has_waited_in_vain = True
            self._channel._start_reading()
        else:
            self._watch()
