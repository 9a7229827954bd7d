"""Clocks: the time that agents live in, be it real or simulated.

:class:`AsyncioClock` follows the event loop and the computer's clock.  An :class:`ExternalClock` stands still
until somebody sets it, for example a simulator.  Both have two scales: ``time()`` in seconds from some start,
and ``utcnow()`` as a date.  Methods that take a point in time accept both, a number or an
:class:`arrow.arrow.Arrow`.

What all timers have in common:

- A callback is called by the event loop, in the :mod:`contextvars` context in which it was scheduled, but for
  the deadline there (:mod:`aiomas_ng.deadlines`): what happens later is not bound by it.
- A timer set while a loop runs belongs to that loop.  If the loop is closed, the timer is dropped.

Clocks are not safe for threads.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, ClassVar

import arrow
from arrow.arrow import Arrow

from aiomas_ng._core.deadline import get_context_without
from aiomas_ng.util import get_loop

__all__ = ["AsyncioClock", "BaseClock", "ExternalClock", "TimerHandle"]

#: Fewer timers than this are not searched for cancelled ones; it would not pay.
MIN_SWEEP = 64


class BaseClock:
    """Interface of all clocks.

    A clock of your own must define :meth:`time` and :meth:`utcnow`, and of the rest what its users need;
    everything else raises :exc:`NotImplementedError`.
    """

    #: Whether it keeps real time, which every process has, and no simulated time of its own.
    is_real: ClassVar[bool] = False

    def time(self) -> float:
        """Return the time in seconds; it never goes back, and its zero can be anywhere."""
        raise NotImplementedError

    def utcnow(self) -> Arrow:
        """Return the date in UTC."""
        raise NotImplementedError

    def sleep(self, dt: float, result: Any = None) -> asyncio.Future[Any]:
        """Return a future that is done in *dt* seconds.

        Args:
            dt: A number of seconds.
            result: Becomes the future's result.

        Returns:
            A future; cancelling it removes the timer.
        """
        raise NotImplementedError

    def sleep_until(self, t: float | Arrow, result: Any = None) -> asyncio.Future[Any]:
        """Return a future that is done at *t*.

        Args:
            t: A time in seconds, or a date.
            result: Becomes the future's result.

        Returns:
            A future; cancelling it removes the timer.

        Raises:
            ValueError: *t* is not in the future, or not finite.
        """
        raise NotImplementedError

    def call_in(self, dt: float, func: Callable[..., object], *args: Any) -> TimerHandle:
        """Call ``func(*args)`` in *dt* seconds.

        Args:
            dt: A number of seconds.
            func: A plain function; what it returns is ignored.
            *args: Its arguments.

        Returns:
            A handle to cancel the call.
        """
        raise NotImplementedError

    def call_at(self, t: float | Arrow, func: Callable[..., object], *args: Any) -> TimerHandle:
        """Call ``func(*args)`` at *t*.

        Args:
            t: A time in seconds, or a date.
            func: A plain function; what it returns is ignored.
            *args: Its arguments.

        Returns:
            A handle to cancel the call.

        Raises:
            ValueError: *t* is not in the future, or not finite.
        """
        raise NotImplementedError

    def next_due(self) -> float | None:
        """Return the time in seconds of the first timer that waits, or ``None`` if there is none."""
        raise NotImplementedError

    def _check_date(self, date: float | Arrow) -> float:
        """Return a point in time in seconds, after making sure that it is still to come."""
        now = self.time()
        today = f"{now} s"
        if isinstance(date, Arrow):
            utcnow = self.utcnow()
            today = str(utcnow)
            # Dates have microseconds. utcnow() is rounded to them, time() is not; without rounding the sum,
            # a date of a whole second could become a time just after it.
            seconds: float = (date - utcnow).total_seconds()
            t = round(seconds + now, 6)
        else:
            t = _check_finite("time", date)
        if t <= now:
            raise ValueError(f"{date} is in the past: it is {today} now")
        return t


def _check_finite(what: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number of seconds, but is {value}")
    return value


class _Schedule:
    """Timers in the order of their times, those of the same time in the order in which they were added."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Timer]] = []
        self._count = 0
        self._dead = 0  # at least as many timers of the heap are dead
        self._sweep_at = MIN_SWEEP

    def add(self, when: float, timer: _Timer) -> None:
        # Timers also die unnoticed, with their loop. Looking at all of them whenever their number has
        # doubled costs next to nothing per timer and bounds what is kept.
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        heapq.heappush(self._heap, (when, self._count, timer))
        self._count += 1

    def discard(self) -> None:
        """Take note that a timer has died, that is, it will never fire again."""
        self._dead += 1
        if self._dead >= MIN_SWEEP and 2 * self._dead > len(self._heap):
            self._sweep()

    def next_due(self) -> float | None:
        while self._heap:
            when, _, timer = self._heap[0]
            if not timer.is_dead():
                return when
            self._pop()
        return None

    def fire_due(self, now: float) -> None:
        """Fire all timers that are due at *now*."""
        while self._heap and self._heap[0][0] <= now:
            timer = self._pop()
            if not timer.is_dead():
                timer.fire()

    def _pop(self) -> _Timer:
        timer = heapq.heappop(self._heap)[2]
        timer.schedule = None
        if timer.is_dead():
            self._dead = max(0, self._dead - 1)
        return timer

    def _sweep(self) -> None:
        alive = []
        for entry in self._heap:
            if entry[2].is_dead():
                entry[2].schedule = None
            else:
                alive.append(entry)
        heapq.heapify(alive)
        self._heap = alive
        self._dead = 0
        self._sweep_at = max(MIN_SWEEP, 2 * len(alive))


class _Timer:
    """Something that happens once, at a certain time, unless it dies before."""

    __slots__ = ("_loop", "_loop_handle", "schedule")

    def __init__(self, loop: asyncio.AbstractEventLoop | None, schedule: _Schedule, when: float) -> None:
        self._loop = loop  # None: whichever runs when the time has come
        self._loop_handle: asyncio.TimerHandle | None = None
        self.schedule: _Schedule | None = schedule  # None: it was taken out
        schedule.add(when, self)

    def is_done(self) -> bool:
        """Return whether it has happened or was cancelled."""
        raise NotImplementedError

    def fire(self) -> None:
        """Let it happen, but call nobody's code before the next turn of the loop."""
        raise NotImplementedError

    def is_dead(self) -> bool:
        return self.is_done() or (self._loop is not None and self._loop.is_closed())

    def _leave(self) -> None:
        """Let go of loop and schedule, after it has happened or was cancelled."""
        if self._loop_handle is not None:
            self._loop_handle.cancel()
        if self.schedule is not None:
            self.schedule.discard()


class TimerHandle(_Timer):
    """A call that waits for its time; made by :meth:`BaseClock.call_in` and :meth:`BaseClock.call_at`."""

    __slots__ = ("__weakref__", "_call", "_context", "_is_cancelled", "_when")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None,
        schedule: _Schedule,
        when: float,
        func: Callable[..., object],
        args: tuple[Any, ...],
    ) -> None:
        self._call: tuple[Callable[..., object], tuple[Any, ...]] | None = (func, args)
        self._context = get_context_without() or contextvars.copy_context()
        self._is_cancelled = False
        self._when = when
        super().__init__(loop, schedule, when)

    def __repr__(self) -> str:
        state = "cancelled" if self._is_cancelled else "waiting" if self._call else "called"
        return f"<{type(self).__name__} at {self._when} s, {state}>"

    def when(self) -> float:
        """Return the time of the call, in seconds of the clock."""
        return self._when

    def cancelled(self) -> bool:
        """Return whether the call was cancelled."""
        return self._is_cancelled

    def cancel(self) -> None:
        """Cancel the call; without effect if it was made, or cancelled, before."""
        if self._call is not None:
            self._is_cancelled = True
            self._call = None  # what it refers to is free now, even while the schedule keeps the timer
            self._leave()

    def is_done(self) -> bool:
        """Return whether the call was made or cancelled."""
        return self._call is None

    def fire(self) -> None:
        """Make the call in the next turn of the loop; until then it can still be cancelled."""
        (self._loop or get_loop()).call_soon(self._run, context=self._context)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop_handle = loop.call_at(self._when, self._run, context=self._context)

    def _run(self) -> None:
        if self._call is not None:
            (func, args), self._call = self._call, None
            self._leave()
            func(*args)


class _Sleep(_Timer):
    """A future that waits for its time."""

    __slots__ = ("_result", "_when", "future")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, schedule: _Schedule, when: float, result: Any
    ) -> None:
        self._result = result
        self._when = when
        self.future: asyncio.Future[Any] = loop.create_future()
        self.future.add_done_callback(self._on_done)
        super().__init__(loop, schedule, when)

    def is_done(self) -> bool:
        return self.future.done()

    def fire(self) -> None:
        if not self.future.done():
            self.future.set_result(self._result)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop_handle = loop.call_at(self._when, self.fire)

    def _on_done(self, future: asyncio.Future[Any]) -> None:
        self._leave()


class _TimerClock(BaseClock):
    """What our clocks share: a loop that is found when it is needed, and a schedule."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        self._schedule = _Schedule()

    def __getstate__(self) -> dict[str, Any]:
        # Loops and timers belong to this process.
        return {**self.__dict__, "_loop": None, "_schedule": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._schedule = _Schedule()

    def next_due(self) -> float | None:
        """Return the time in seconds of the first timer that waits, or ``None`` if there is none."""
        return self._schedule.next_due()

    def _find_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that was given, while it is open, else the running or the current one."""
        if self._loop is not None and not self._loop.is_closed():
            return self._loop
        return get_loop()


class AsyncioClock(_TimerClock):
    """Real time: ``time()`` is the event loop's, ``utcnow()`` the computer's.

    As with :func:`asyncio.sleep`, a time span of zero or less means as soon as possible.

    Args:
        loop: The event loop; by default the one that runs when the clock is used.
    """

    is_real: ClassVar[bool] = True

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(loop)

    def time(self) -> float:
        """Return the time of the event loop in seconds; its zero can be anywhere."""
        return self._find_loop().time()

    def utcnow(self) -> Arrow:
        """Return the current date in UTC."""
        return arrow.utcnow()

    def sleep(self, dt: float, result: Any = None) -> asyncio.Future[Any]:
        """Return a future that is done in *dt* seconds; see :meth:`BaseClock.sleep`.

        Raises:
            ValueError: *dt* is not finite.
        """
        return self._sleep(self.time() + _check_finite("dt", dt), result)

    def sleep_until(self, t: float | Arrow, result: Any = None) -> asyncio.Future[Any]:
        """Return a future that is done at *t*; see :meth:`BaseClock.sleep_until`."""
        return self._sleep(self._check_date(t), result)

    def call_in(self, dt: float, func: Callable[..., object], *args: Any) -> TimerHandle:
        """Call ``func(*args)`` in *dt* seconds; see :meth:`BaseClock.call_in`.

        Raises:
            ValueError: *dt* is not finite.
        """
        return self._call(self.time() + _check_finite("dt", dt), func, args)

    def call_at(self, t: float | Arrow, func: Callable[..., object], *args: Any) -> TimerHandle:
        """Call ``func(*args)`` at *t*; see :meth:`BaseClock.call_at`."""
        return self._call(self._check_date(t), func, args)

    def _sleep(self, when: float, result: Any) -> asyncio.Future[Any]:
        loop = self._find_loop()
        sleep = _Sleep(loop, self._schedule, when, result)
        sleep.start(loop)
        return sleep.future

    def _call(self, when: float, func: Callable[..., object], args: tuple[Any, ...]) -> TimerHandle:
        loop = self._find_loop()
        handle = TimerHandle(loop, self._schedule, when, func, args)
        handle._start(loop)
        return handle


class ExternalClock(_TimerClock):
    """Simulated time: it stands still until :meth:`set_time` is called.

    The clock can be made before there is an event loop, shared by containers, and pickled; a copy has the
    same time, but none of the timers.  Timers fire in the order of their times, those of the same time in the
    order in which they were set.

    Args:
        utc_start: The date at time zero: a date, a string, or a number of seconds since 1970, everything that
            :func:`arrow.get` takes.  It is converted to UTC.
        init_time: The time to begin with, in seconds.
        loop: The event loop; by default the one that runs when the clock is used.

    Raises:
        ValueError: *utc_start* is no date, or *init_time* is not finite.
    """

    def __init__(
        self,
        utc_start: Arrow | datetime | str | float,
        init_time: float = 0,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(loop)
        self._utc_start = arrow.get(utc_start).to("UTC")
        self._time = _check_finite("init_time", init_time)

    def time(self) -> float:
        """Return the time that was set last, in seconds."""
        return self._time

    def utcnow(self) -> Arrow:
        """Return the date in UTC, *utc_start* shifted by :meth:`time`, rounded to microseconds."""
        return self._utc_start + timedelta(seconds=float(self.time()))

    def set_time(self, t: float) -> None:
        """Set the time, and fire all timers that are due.

        Futures get their results here, callbacks are called in the next turn of the loop.  For all of them
        the time is *t*, even if they were due before; a timer that they set for *t* or before is in the past.

        Args:
            t: The new time in seconds.

        Raises:
            ValueError: *t* is not greater than the current time, or not finite.
        """
        if _check_finite("time", t) <= self._time:
            raise ValueError(
                f"time must be set to more than {self._time} s, which it is now, but not to {t} s"
            )
        self._time = t
        self._schedule.fire_due(t)

    def sleep(self, dt: float, result: Any = None) -> asyncio.Future[Any]:
        """Return a future that is done in *dt* seconds; see :meth:`BaseClock.sleep`.

        Raises:
            ValueError: *dt* is not positive, or not finite.
        """
        return self.sleep_until(self._add(dt), result)

    def sleep_until(self, t: float | Arrow, result: Any = None) -> asyncio.Future[Any]:
        """Return a future that is done at *t*; see :meth:`BaseClock.sleep_until`.

        Without a running loop the future belongs to the current one of the thread.
        """
        when = self._check_date(t)
        return _Sleep(self._find_loop(), self._schedule, when, result).future

    def call_in(self, dt: float, func: Callable[..., object], *args: Any) -> TimerHandle:
        """Call ``func(*args)`` in *dt* seconds; see :meth:`BaseClock.call_in`.

        Raises:
            ValueError: *dt* is not positive, or not finite.
        """
        return self.call_at(self._add(dt), func, *args)

    def call_at(self, t: float | Arrow, func: Callable[..., object], *args: Any) -> TimerHandle:
        """Call ``func(*args)`` at *t*; see :meth:`BaseClock.call_at`.

        If no loop runs now, the call is made by the one in which the time is set.
        """
        return TimerHandle(self._find_open_loop(), self._schedule, self._check_date(t), func, args)

    def _add(self, dt: float) -> float:
        """Return the time in *dt* seconds."""
        if _check_finite("dt", dt) <= 0:
            raise ValueError(f"dt must be > 0, but is {dt}")
        return self.time() + dt

    def _find_open_loop(self) -> asyncio.AbstractEventLoop | None:
        if self._loop is not None and not self._loop.is_closed():
            return self._loop
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            return None
