"""Whether a peer is there, judged by when bytes of it came and by nothing else.

The rules:

- Any byte is a sign of life. The peer is asked by a ping only if none came for ``interval``.
- If none comes for ``patience`` after the ping, it is unresponsive: it is judged whether it is busy or dead.
- It is dead if its host does not confirm what we send either, or ``busy_patience`` after the first ping that
  was not answered. Until then it is pinged again, so that the host has something to confirm.
- It is never judged before the event loop has had a full turn in which it has read: what has come may lie
  unread since our own program was busy. So :meth:`Pulse.look` asks for a judgement, and :meth:`Pulse.judge`
  gives it.
- Time in which our loop did not get to look does not count.
- While we do not read, nothing can be said of the peer. It cannot know that, so we send it pings all the
  same: they are signs of life of ours.
"""

from __future__ import annotations

import enum
from typing import Final

from aiomas_ng.liveness import Liveness

__all__ = ["LOOKS", "Pulse", "Step", "Verdict"]

#: How often one looks during an interval. Nobody notes when bytes come, as that would be done for each
#: message, so this says how exactly it is known.
LOOKS: Final = 3

#: Seconds that are not worth a further look.
SOON: Final = 0.001


class Step(enum.Enum):
    """What :meth:`Pulse.look` asks for."""

    WAIT = enum.auto()  #: Nothing.
    PING = enum.auto()  #: Send a ping.
    JUDGE = enum.auto()  #: Let a turn of the loop pass, and judge.


class Verdict(enum.Enum):
    """What :meth:`Pulse.judge` has found."""

    ALIVE = enum.auto()
    BUSY = enum.auto()  #: Unresponsive, but its host is there. Ping it again.
    DEAD = enum.auto()


class Pulse:
    """What is known of the life of one peer.

    Times are in seconds of any clock that does not go back. *received* is a number that changes whenever
    bytes have come.

    Args:
        liveness: The figures.
        now: The time.
        received: What has come until now.
    """

    __slots__ = (
        "_asked",
        "_due",
        "_liveness",
        "_quiet_since",
        "_received",
        "_rest",
        "is_unresponsive",
        "pinged",
    )

    def __init__(self, liveness: Liveness, now: float, received: int) -> None:
        self._liveness = liveness
        self._rest = liveness.interval / LOOKS
        #: Whether a ping was not answered in time, and nothing has come since.
        self.is_unresponsive = False
        #: When the latest ping was sent.
        self.pinged = now
        self.reset(now, received)

    def reset(self, now: float, received: int) -> None:
        """Begin anew, as on a new connection."""
        self._received = received
        self._quiet_since = now  # taking off the time that does not count
        self._asked: float | None = None  # when the first ping was sent that is not answered; the same
        self._due = now  # when it is judged
        self.is_unresponsive = False

    def hear(self, now: float, received: int) -> bool:
        """Note that time and the number of what has come; return whether bytes have come."""
        if received == self._received:
            return False
        self.reset(now, received)
        return True

    def get_silence(self, now: float) -> float:
        """Return for how many seconds, of those that count, nothing has come."""
        return now - self._quiet_since

    def look(
        self, now: float, received: int, *, late: float = 0.0, is_reading: bool = True
    ) -> tuple[Step, float]:
        """Return what is to be done now, and after how many seconds to look again.

        Args:
            now: The time.
            received: What has come until now.
            late: Seconds for which our loop did not get to look, though it was due.
            is_reading: Whether bytes of the peer are read at all.
        """
        self._quiet_since += late
        if self._asked is not None:
            self._asked += late
            self._due += late
        if self.hear(now, received):
            return Step.WAIT, self._rest
        interval = self._liveness.interval
        if self._asked is not None and is_reading:
            left = self._due - now
            return (Step.WAIT, min(self._rest, left)) if left > SOON else (Step.JUDGE, 0.0)
        left = self._quiet_since + interval - now
        if left > SOON and self._asked is None:
            return Step.WAIT, min(self._rest, left)
        if not is_reading:
            # The answer, if there is one, is not seen: begin anew when we read again.
            self._quiet_since, self._asked = now, None
            return Step.PING, self._rest
        self._asked = self.pinged = now
        self._due = now + self._liveness.patience
        return Step.PING, min(self._rest, self._liveness.patience)

    def judge(self, now: float, received: int, is_host_there: bool) -> tuple[Verdict, float]:
        """Return what has become of the peer, and after how many seconds to look again.

        Args:
            now: The time.
            received: What has come until now.
            is_host_there: Whether the host of the peer has confirmed the latest ping.
        """
        if self.hear(now, received) or self._asked is None:
            return Verdict.ALIVE, self._rest
        self.is_unresponsive = True
        patience = self._liveness.busy_patience
        left = patience - (now - self._asked) if patience is not None else self._liveness.patience
        if left <= SOON or not is_host_there:
            return Verdict.DEAD, self._rest
        self.pinged = now
        left = min(left, self._liveness.patience)
        self._due = now + left
        return Verdict.BUSY, min(self._rest, left)
