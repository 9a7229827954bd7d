"""By when work has to be done: what travels with calls, and what is told to the peer.

A deadline is a point in time on one or several clocks. The first one that passes counts, so a deadline within
another one can only make the time shorter. ``None`` stands for real time, which every process has; any other
clock keeps simulated time. What is told to a peer is the time that is left, for the clocks of two processes
need not agree about what time it is.

Nothing here reads a clock by itself: *now* is a function that returns the time of a clock, in seconds.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.option_values import DEFINITIONS, OptionNumber
from aiomas_ng.exceptions import DeserializationError

__all__ = [
    "CURRENT",
    "MAX_SECONDS",
    "Clock",
    "Deadline",
    "from_metadata",
    "from_options",
    "get_context_without",
    "get_deadline",
    "tighten",
    "to_metadata",
    "to_options",
]

#: What bounds the running code; ``None`` if nothing does.
CURRENT: contextvars.ContextVar[Deadline | None] = contextvars.ContextVar("CURRENT", default=None)

#: The same as a function, for the way of each call: it is one of C.
get_deadline: Final = CURRENT.get

#: The longest time that a peer may name, in seconds: up to here each whole number of them is exact.
MAX_SECONDS: Final = 2.0**53

#: Keys of the metadata of a remote procedure call: seconds that are left, of real and of simulated time.
REAL_KEY: Final = "deadline"
SIMULATED_KEY: Final = "simulated_deadline"

#: Options of a request to a resource have the same in microseconds.
REAL_OPTION: Final = int(OptionNumber.DEADLINE)
SIMULATED_OPTION: Final = int(OptionNumber.SIMULATED_DEADLINE)
MICROSECONDS: Final = 1_000_000
MAX_OPTION: Final = 256 ** DEFINITIONS[REAL_OPTION].high - 1


class Clock(Protocol):
    """Keeps simulated time."""

    def time(self) -> float:
        """Return the time in seconds."""


Now = Callable[["Clock | None"], float]


class Deadline:
    """By when something has to be done.

    Args:
        times: Clocks, and the time of each, in seconds; at least one, and none of the clocks twice.
    """

    __slots__ = ("times",)

    def __init__(self, times: tuple[tuple[Clock | None, float], ...]) -> None:
        self.times = times

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(f'{when} s of {clock}' for clock, when in self.times)}>"

    def get_left(self, now: Now) -> float:
        """Return the seconds that are left, on the clock of which the fewest are; 0 or less if it has
        passed."""
        return min([when - now(clock) for clock, when in self.times])

    def has_passed(self, now: Now) -> bool:
        """Return whether it has passed, on any of its clocks."""
        return any([now(clock) >= when for clock, when in self.times])

    def get_time(self, clock: Clock | None) -> float | None:
        """Return its time on *clock*, ``None`` if that does not matter to it."""
        return next((when for own, when in self.times if own is clock), None)


def tighten(deadline: Deadline | None, clock: Clock | None, when: float) -> Deadline | None:
    """Return *deadline*, made so that it passes at *when* on *clock* at the latest.

    Raises:
        ValueError: *when* is no number. Infinity is one, and changes nothing.
    """
    if math.isnan(when):
        raise ValueError("a deadline must be a number of seconds, not NaN")
    if when == math.inf:
        return deadline
    times = deadline.times if deadline is not None else ()
    for own, earlier in times:
        if own is clock:
            if earlier <= when:
                return deadline
            times = tuple([(each, when if each is clock else time) for each, time in times])
            return Deadline(times)
    return Deadline((*times, (clock, when)))


def get_context_without() -> contextvars.Context | None:
    """Return a copy of the current context that is bound by no deadline, ``None`` if that is so anyway.

    It is what ``create_task`` takes as its *context*: for work that goes on after what has begun it.
    """
    if get_deadline() is None:
        return None
    context = contextvars.copy_context()
    context.run(CURRENT.set, None)
    return context


# On the wire


def _get_remaining(deadline: Deadline, now: Now) -> tuple[float, float]:
    """Return the seconds of real and of simulated time that are left; infinity where there is no bound."""
    real = simulated = math.inf
    for clock, when in deadline.times:
        start = now(clock)
        left = when - start
        if start + left > when:  # it was rounded: with the same time on its clock, the peer must not be later
            left = math.nextafter(left, -math.inf)
        left = max(0.0, left)
        if clock is None:
            real = left
        else:
            simulated = min(simulated, left)
    return real, simulated


def _from_remaining(
    real: float | None, simulated: float | None, clock: Clock | None, now: Now
) -> Deadline | None:
    deadline = None
    if real is not None:
        deadline = tighten(None, None, now(None) + real)
    if simulated is not None and clock is not None:
        deadline = tighten(deadline, clock, now(clock) + simulated)
    return deadline


def to_metadata(deadline: Deadline, now: Now) -> dict[str, float]:
    """Return what a remote procedure call says about its deadline; times that are too long are left out."""
    pairs = zip((REAL_KEY, SIMULATED_KEY), _get_remaining(deadline, now), strict=True)
    return {key: left for key, left in pairs if left <= MAX_SECONDS}


def from_metadata(metadata: Any, clock: Clock | None, now: Now) -> Deadline | None:
    """Return the deadline that a peer has told with a remote procedure call.

    Args:
        metadata: What has come.
        clock: Keeps simulated time here; ``None`` where there is none, and it cannot be measured.
        now: See above.

    Raises:
        DeserializationError: It is malformed.
    """
    if type(metadata) is not dict:
        raise DeserializationError(f"the metadata of a call must be a map but is {short(metadata)}")
    real, simulated = [_check_seconds(key, metadata.get(key)) for key in (REAL_KEY, SIMULATED_KEY)]
    return _from_remaining(real, simulated, clock, now)


def _check_seconds(key: str, left: Any) -> float | None:
    if left is None or (type(left) in (int, float) and 0 <= left <= MAX_SECONDS):
        seconds: float | None = left
        return seconds
    raise DeserializationError(
        f"the {key!r} of a call must be a number of seconds from 0 to 2**53 but is {short(left)}"
    )


def to_options(deadline: Deadline, now: Now) -> dict[int, int]:
    """Return the options that tell a deadline with a request to a resource, by number.

    They are rounded up: the requester gives up by itself, and nobody should do so before it.
    """
    found = {}
    for number, left in zip((REAL_OPTION, SIMULATED_OPTION), _get_remaining(deadline, now), strict=True):
        if left < MAX_OPTION / MICROSECONDS:
            found[number] = math.ceil(left * MICROSECONDS)
    return found


def from_options(values: Mapping[int, Any], clock: Clock | None, now: Now) -> Deadline | None:
    """Return the deadline that the options of a request tell, see :func:`from_metadata`.

    Args:
        values: Numbers and values; those of a wrong type or length are not among them.
        clock: See :func:`from_metadata`.
        now: See above.
    """
    real, simulated = [
        values[number] / MICROSECONDS if number in values else None
        for number in (REAL_OPTION, SIMULATED_OPTION)
    ]
    return _from_remaining(real, simulated, clock, now)
