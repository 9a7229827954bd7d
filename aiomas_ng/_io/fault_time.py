"""The time that a bad network lives in: that of the event loop, or that of a clock."""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import math
from collections.abc import Callable
from typing import Final, Protocol

from aiomas_ng import clocks

__all__ = ["Handle", "Timing"]

#: Fewer calls than this are not searched for cancelled ones.
MIN_SWEEP: Final = 64


class Handle(Protocol):
    """Something that will be called, and can be cancelled until then."""

    def cancel(self) -> None:
        """Do not call it."""


class Timing:
    """Tells the time and calls at a time.

    A simulated clock may pass many times at once. What was due is then done in the order of these times, each
    in a turn of the loop of its own, so that what follows from one is known before the next one.

    Args:
        clock: Whose time; ``None`` for that of the running event loop.
    """

    def __init__(self, clock: clocks.BaseClock | None) -> None:
        self.clock = clock
        self.is_real = clock is None or isinstance(clock, clocks.AsyncioClock)
        # In simulated time: what waits, by time and then in the order in which that was asked for.
        self._calls: list[tuple[float, int, _Call]] = []
        self._count = itertools.count()
        self._timer: Handle | None = None
        self._armed = math.inf
        self._sweep_at = MIN_SWEEP

    def now(self) -> float:
        """Return the time in seconds."""
        if self.is_real:
            return asyncio.get_running_loop().time()
        assert self.clock is not None
        return self.clock.time()

    def call_at(
        self, when: float, func: Callable[[], object], context: contextvars.Context | None = None
    ) -> Handle:
        """Call *func* at *when*, from the loop; as soon as possible if that has passed."""
        if self.is_real:
            return asyncio.get_running_loop().call_at(when, func, context=context)
        call = _Call(func, context or contextvars.copy_context())
        if len(self._calls) >= self._sweep_at:
            self._calls = [entry for entry in self._calls if entry[2].func is not None]
            heapq.heapify(self._calls)
            self._sweep_at = max(MIN_SWEEP, 2 * len(self._calls))
        heapq.heappush(self._calls, (when, next(self._count), call))
        self._arm()
        return call

    def _arm(self) -> None:
        """Set the timer for the first call."""
        while self._calls and self._calls[0][2].func is None:
            heapq.heappop(self._calls)
        when = self._calls[0][0] if self._calls else math.inf
        if when != self._armed:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._armed = when
            if self._calls:
                assert self.clock is not None
                if when > self.clock.time():
                    self._timer = self.clock.call_at(when, self._run)
                else:
                    self._timer = asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._timer, self._armed = None, math.inf
        if self._calls and self._calls[0][0] <= self.now():
            _, _, call = heapq.heappop(self._calls)
            func, call.func = call.func, None
            if func is not None:
                call.context.run(func)
        self._arm()


class _Call:
    """A call that waits for its time."""

    __slots__ = ("context", "func")

    def __init__(self, func: Callable[[], object], context: contextvars.Context) -> None:
        self.func: Callable[[], object] | None = func
        self.context = context

    def cancel(self) -> None:
        """Do not call it."""
        self.func = None
