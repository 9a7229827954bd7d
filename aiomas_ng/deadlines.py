"""Deadlines around any amount of code, which travel with the calls in it.

::

    with deadlines.within(5):
        plan = await market.plan(day)       # both together have 5 seconds,
        await grid.announce(plan)           # and so has what these agents call

What a deadline bounds is every remote procedure call that is made inside, one-way calls, batches and streams
included, every request to a resource, and every connection that has to be made for them. What has not ended
when it passes fails with :exc:`~aiomas_ng.exceptions.DeadlineExceededError`, a ``TimeoutError``, and what
would be begun afterwards is not sent at all. Other code is not interrupted; for that there is
:func:`asyncio.timeout`.

The time that is left travels along. The peer works under the same deadline: its own calls are bound by it, to
any number of hops, and its coroutines and streams are cancelled when it passes, even if nobody tells it. A
plain function cannot be interrupted; it may call :func:`check`.

A deadline in *simulated* time is measured with a clock, ``within(60, clock=self.container.clock)``, and at
each hop by the clock of the container there. In a container whose clock keeps real time, nobody can measure
it, and only the caller does.

A deadline inside of another one can only be shorter: the first that passes counts, on whichever clock. The
timeout of a single call (:func:`aiomas_ng.rpc.with_options`) stays what it is, and does not travel.

Tasks inherit the deadlines around the place where they are created, as everything in a
:mod:`contextvars` context. What goes on when that place is left has to be begun within :func:`none`. So does
what cleans up after a deadline has passed. :func:`aiomas_ng.util.create_task`, timers of clocks, callbacks,
and the hooks of agents begin without a deadline by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import time
from typing import Self

from arrow.arrow import Arrow

from aiomas_ng._core.deadline import CURRENT, Clock, Deadline, get_deadline, tighten
from aiomas_ng.clocks import BaseClock
from aiomas_ng.exceptions import DeadlineExceededError

__all__ = ["Scope", "check", "none", "remaining", "until", "within"]


class Scope:
    """Code that is bound by a deadline, or by none; for one ``with``.

    Made by :func:`within`, :func:`until` and :func:`none`.

    Args:
        clock: What *when* is measured with, ``None`` for real time.
        when: A time in seconds; ``None`` for no deadline at all.
    """

    __slots__ = ("_clock", "_token", "_when")

    def __init__(self, clock: BaseClock | None, when: float | None) -> None:
        self._clock = clock
        self._when = when
        self._token: contextvars.Token[Deadline | None] | None = None

    def __enter__(self) -> Self:
        if self._token is not None:
            raise RuntimeError("a deadline is for one 'with' only: make another one")
        deadline = None if self._when is None else tighten(get_deadline(), self._clock, self._when)
        self._token = CURRENT.set(deadline)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        # An async generator that was not run to its end may be closed by another task, which has a context of
        # its own. There is nothing to be taken back then.
        with contextlib.suppress(ValueError):
            CURRENT.reset(self._token)


def within(seconds: float | None, *, clock: BaseClock | None = None) -> Scope:
    """Give all calls inside that many seconds together.

    Args:
        seconds: How long; 0 or less has passed already, ``None`` and infinity do not bound.
        clock: What they are measured with, by default real time.

    Raises:
        ValueError: *seconds* is not a number.
    """
    own = None if clock is None or clock.is_real else clock
    if seconds is None:
        return Scope(own, math.inf)
    if not isinstance(seconds, int | float):
        raise TypeError(f"a deadline must be a number of seconds but is {seconds!r}")
    if math.isnan(seconds):
        raise ValueError("a deadline must be a number of seconds, not NaN")
    return Scope(own, _now(own) + seconds)


def until(when: float | Arrow, *, clock: BaseClock | None = None) -> Scope:
    """Let all calls inside end by *when*.

    Args:
        when: A date, or a time in seconds of *clock*.
        clock: What it is measured with, by default real time, which is that of the event loop.

    Raises:
        ValueError: *when* is not a number.
    """
    if isinstance(when, Arrow):
        left = (when - (Arrow.utcnow() if clock is None else clock.utcnow())).total_seconds()
    else:
        left = when - (_now(None) if clock is None else clock.time())
        if math.isnan(left):
            raise ValueError("a deadline must be a time in seconds, not NaN")
    if clock is None or clock.is_real:
        return within(left)
    # Rounded as by timers: dates have microseconds.
    return Scope(clock, round(clock.time() + left, 6) if isinstance(when, Arrow) else when)


def none() -> Scope:
    """Let no deadline bound the calls inside, whatever is around.

    For work that goes on after what has begun it, and for what has to be cleaned up when time is over.
    """
    return Scope(None, None)


def remaining(*, clock: BaseClock | None = None) -> float | None:
    """Return the seconds that are left for the running code, 0 if none are; ``None`` if nothing bounds it.

    Args:
        clock: What they are measured with, by default real time. Deadlines on other clocks do not count.
    """
    deadline = get_deadline()
    own = None if clock is None or clock.is_real else clock
    when = None if deadline is None else deadline.get_time(own)
    return None if when is None else max(0.0, when - _now(own))


def check(what: str = "the work") -> None:
    """Raise an error if the deadline has passed; for functions that take long and make no calls.

    Args:
        what: What is done, for the error.

    Raises:
        DeadlineExceededError: It has passed, on any clock.
    """
    deadline = get_deadline()
    if deadline is not None and deadline.has_passed(_now):
        raise DeadlineExceededError(what, deadline.get_left(_now))


def _now(clock: Clock | None) -> float:
    """Return the time of *clock*; real time is that of the event loop."""
    if clock is not None:
        return clock.time()
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()  # what loops go by
