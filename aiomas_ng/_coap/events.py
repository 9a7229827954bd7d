"""What comes along a pipe, and the queue in which it waits for who iterates over it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

from aiomas_ng.error import PipeStateError
from aiomas_ng.exceptions import OverloadError
from aiomas_ng.message import Message

__all__ = ["WINDOW", "Event", "EventQueue", "Iterator"]

#: Responses of a stream that may be under way, and events that wait to be iterated over, before the responder
#: is paused.  A responder that does not wait may produce as many again.
WINDOW: Final = 64


class Event(NamedTuple):
    """What came along a :class:`~aiomas_ng.pipe.Pipe`.

    Attributes:
        message: A response, or ``None``.
        exception: What went wrong, or ``None``.
        is_last: Whether no event follows; always so with an exception.  ``(None, None, True)`` is what those
            get who only watch, when all interest was lost.
    """

    message: Message | None
    exception: BaseException | None
    is_last: bool


def _is_notification(event: Event) -> bool:
    return not event.is_last and event.message is not None and event.message.opt.observe is not None


class EventQueue:
    """Events that wait to be iterated over."""

    __slots__ = ("_events", "_is_closed", "_waiter")

    def __init__(self) -> None:
        self._events: collections.deque[Event] = collections.deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._events)

    @property
    def is_full(self) -> bool:
        """Whether the responder should wait."""
        return len(self._events) >= WINDOW

    def check_room(self, response: Message) -> None:
        """Check that there is room even for a responder that does not wait.

        Raises:
            OverloadError: There is none.
        """
        if len(self._events) >= 2 * WINDOW and response.opt.observe is None:
            raise OverloadError(
                f"{len(self._events)} responses wait to be read: await pipe.drain() between responses"
            )

    def put(self, event: Event) -> None:
        """Add *event*; it replaces a notification that is not read yet, if it is one itself."""
        events = self._events
        if self._is_closed:
            return
        if events and _is_notification(event) and _is_notification(events[-1]):
            events[-1] = event
        else:
            events.append(event)
        self._wake()

    def close(self) -> None:
        """Drop everything; the iteration ends."""
        self._is_closed = True
        self._events.clear()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Event | None:
        """Wait for the next event; ``None`` if there is none any more. Cancelling it loses no event.

        Raises:
            PipeStateError: Another task waits already.
        """
        if self._waiter is not None:
            raise PipeStateError("another task waits for the next event already")
        while not self._events:
            if self._is_closed:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event = self._events.popleft()
        if event.is_last:
            self._is_closed = True
        return event


class Iterator:
    """Iterates over the events of an :class:`~aiomas_ng.pipe.IterablePipe`.

    Args:
        queue: The events.
        on_interest_end: Called when the iteration was left.
        on_taken: Called after each event that was taken.
    """

    __slots__ = ("_loop", "_on_interest_end", "_on_taken", "_queue")

    def __init__(
        self,
        queue: EventQueue,
        on_interest_end: Callable[[], object],
        on_taken: Callable[[], object] = lambda: None,
    ) -> None:
        self._queue = queue
        self._on_interest_end = on_interest_end
        self._on_taken = on_taken
        self._loop: asyncio.AbstractEventLoop | None = _find_loop()

    def __aiter__(self) -> Iterator:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Event]:
        # No coroutine of its own: the traceback of who is cancelled in it would keep the iterator alive, and
        # with it the interest.
        return _take(self._queue, self._on_taken)

    async def aclose(self) -> None:
        """End the iteration; safe to be called twice."""
        self._queue.close()
        self._on_interest_end()

    def __del__(self) -> None:
        # Who leaves an ``async for`` early only drops the iterator; there is no other sign of it. Reference
        # counts see that at once; the garbage collector may run in any thread.
        if self._loop is None or self._loop is _find_loop():
            self._on_interest_end()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it everything
                self._loop.call_soon_threadsafe(self._on_interest_end)


async def _take(queue: EventQueue, on_taken: Callable[[], object]) -> Event:
    event = await queue.get()
    if event is None:
        raise StopAsyncIteration
    on_taken()
    return event


def _find_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
