"""What happens when a deadline passes: timers, on as many clocks as the deadline has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from aiomas_ng._core.deadline import CURRENT, Clock, Deadline, Now, get_deadline
from aiomas_ng.exceptions import DeadlineExceededError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Expiry", "bounded", "check_deadline", "now_in", "outside_deadlines", "run_under"]


def now_in(loop: asyncio.AbstractEventLoop) -> Now:
    """Return the function that reads clocks, and *loop* for real time."""

    def now(clock: Clock | None) -> float:
        return loop.time() if clock is None else clock.time()

    return now


class Expiry:
    """Calls something once when a deadline passes, unless it is cancelled before.

    If the deadline has passed already, the call is made in the next turn of the loop.

    Args:
        deadline: The deadline.
        loop: The event loop.
        expire: Called with the seconds that there were, of the clock whose time has come.
    """

    __slots__ = ("_expire", "_handles", "deadline", "seconds")

    def __init__(
        self, deadline: Deadline, loop: asyncio.AbstractEventLoop, expire: Callable[[float], object]
    ) -> None:
        self.deadline = deadline
        #: How long there was in the beginning.
        self.seconds = deadline.get_left(now_in(loop))
        self._expire: Callable[[float], object] | None = expire
        self._handles: list[Any] = []
        for clock, when in deadline.times:
            if clock is None:
                left = when - loop.time()
                self._handles.append(loop.call_at(when, self._run, left))
                continue
            left = when - clock.time()
            if left > 0:
                # Clocks that keep simulated time have timers as well, see aiomas_ng.clocks.BaseClock.
                self._handles.append(clock.call_at(when, self._run, left))  # type: ignore[attr-defined]
            else:
                self._handles.append(loop.call_soon(self._run, left))

    def _run(self, seconds: float) -> None:
        expire = self._expire
        self.cancel()
        if expire is not None:
            expire(seconds)

    def cancel(self) -> None:
        """Call nothing; safe to be called twice."""
        self._expire = None
        for handle in self._handles:
            handle.cancel()
        self._handles.clear()


def check_deadline(deadline: Deadline, loop: asyncio.AbstractEventLoop, what: str) -> None:
    """Raise :exc:`~aiomas_ng.exceptions.DeadlineExceededError` if *deadline* has passed.

    Args:
        deadline: The deadline.
        loop: The event loop.
        what: What is not begun any more.
    """
    now = now_in(loop)
    if deadline.has_passed(now):
        raise DeadlineExceededError(what, deadline.get_left(now), was_sent=False)


@contextlib.contextmanager
def run_under(deadline: Deadline | None) -> Iterator[None]:
    """Let what is begun within be bound by *deadline* alone, whatever bounds the code around it."""
    token = CURRENT.set(deadline)
    try:
        yield
    finally:
        CURRENT.reset(token)


@contextlib.contextmanager
def outside_deadlines() -> Iterator[None]:
    """Let what is begun within be bound by no deadline: it goes on after what has begun it.

    Transports, for example, keep the context that they were made or resumed in for all that comes later.
    """
    if get_deadline() is None:
        yield
        return
    with run_under(None):
        yield


@contextlib.asynccontextmanager
async def bounded(loop: asyncio.AbstractEventLoop, what: str) -> AsyncIterator[None]:
    """End what runs within when the current deadline passes.

    Args:
        loop: The event loop.
        what: What is done there, for the error.

    Raises:
        DeadlineExceededError: The deadline has passed, before or while it ran.
    """
    deadline = get_deadline()
    if deadline is None:
        yield
        return
    check_deadline(deadline, loop, what)
    exceeded: DeadlineExceededError | None = None
    try:
        async with asyncio.timeout(None) as limit:

            def expire(seconds: float) -> None:
                nonlocal exceeded
                exceeded = DeadlineExceededError(what, seconds)
                limit.reschedule(loop.time())

            expiry = Expiry(deadline, loop, expire)
            try:
                yield
            finally:
                expiry.cancel()
    except TimeoutError as error:
        if exceeded is None or not limit.expired():
            raise
        raise exceeded from error
