"""Which of two notifications of an observation is the newer one (RFC 7641, section 3.4).

Numbers have 24 bits and wrap around, so that "newer" means ahead by less than half of their range.  Once 128
seconds have passed since the last notification that counted, the next one is newer whatever its number: by
then the numbers may have gone around, or the server may have started again.

Our own connections keep the order of what they carry, and there the numbers decide nothing (RFC 8323, section
7.1).  They count where notifications come a longer way: through a gateway from a network that reorders, or
from a server that was restarted behind a forwarding container.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_AGE_OF_ORDER", "MODULUS", "Freshness", "is_newer"]

#: Observe numbers are counted modulo this.
MODULUS: Final = 2**24

#: Seconds after which a number says nothing about the ones before.
MAX_AGE_OF_ORDER: Final = 128.0

_HALF: Final = MODULUS // 2


def is_newer(last_number: int, last_time: float, number: int, now: float) -> bool:
    """Return whether a notification is newer than the newest one so far.

    Two numbers exactly half of the range apart are not ordered by the RFC; neither is newer.

    Args:
        last_number: Observe number of the newest notification so far, 0 to 2**24 - 1.
        last_time: When it arrived, in seconds.
        number: Observe number of the notification in question.
        now: When that one arrived, in seconds of the same clock.
    """
    return 0 < (number - last_number) % MODULUS < _HALF or now > last_time + MAX_AGE_OF_ORDER


class Freshness:
    """The newest notification of one observation so far; tells new ones from those that were overtaken."""

    __slots__ = ("_number", "_time")

    def __init__(self) -> None:
        self._number: int | None = None
        self._time = 0.0

    def __repr__(self) -> str:
        return f"<Freshness: number {self._number} at {self._time} s>"

    @property
    def number(self) -> int | None:
        """Observe number of the newest notification, ``None`` before the first."""
        return self._number

    def accept(self, number: int, now: float) -> bool:
        """Return whether notification *number* is the newest so far, as the first one is; remember it then.

        Args:
            number: Its Observe number.
            now: When it arrived, in seconds.

        Raises:
            ValueError: *number* is not one of 0 to 2**24 - 1.
        """
        if not 0 <= number < MODULUS:
            raise ValueError(f"an Observe number must be from 0 to {MODULUS - 1} but is {number}")
        if self._number is not None and not is_newer(self._number, self._time, number, now):
            return False
        self._number = number
        self._time = now
        return True
