"""Both ends of an observation: what the observer holds, and what the observed resource holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Self

from aiomas_ng._io.job import pass_on_interrupt
from aiomas_ng.error import PipeStateError, ServiceUnavailable
from aiomas_ng.message import Message
from aiomas_ng.pipe import Pipe

__all__ = ["ClientObservation", "ServerObservation"]

logger = logging.getLogger("aiomas_ng.protocol")


class ClientObservation:
    """Hands the notifications of an observed resource on, to callbacks or to who iterates::

        request = context.request(Message(GET, uri=url, observe=0))
        first = await request.response
        async with request.observation as notifications:
            async for response in notifications:
                ...

    It does nothing by itself: a request drives it. Notifications are states: who iterates slowly gets the
    latest one, and not each. Leaving the iteration cancels the observation, unless somebody else is
    registered: at once at the end of ``async with``, else as soon as the iterator is dropped.
    """

    def __init__(self) -> None:
        self.callbacks: list[Callable[[Message], object]] = []
        self.errbacks: list[Callable[[BaseException], object]] = []
        #: Whether there will be no further notification, for whichever reason.
        self.cancelled = False
        self._latest: Message | None = None
        self._failure: BaseException | None = None
        self._cancel_callbacks: list[Callable[[], object]] = []

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled else "active"
        return f"<{type(self).__name__}, {state}, {len(self.callbacks)} callbacks>"

    def register_callback(self, callback: Callable[[Message], object]) -> None:
        """Call *callback* with each notification; at once with the latest one, if there was one already."""
        if self.cancelled:
            return
        self.callbacks.append(callback)
        if self._latest is not None:
            self._run(callback, self._latest)

    def register_errback(self, callback: Callable[[BaseException], object]) -> None:
        """Call *callback* with the exception that ends the observation; at once if it has ended so.

        After it no callback is called any more.
        """
        if self._failure is not None:
            self._run(callback, self._failure)
        elif not self.cancelled:
            self.errbacks.append(callback)

    def callback(self, response: Message) -> None:
        """Notify all listeners of *response*; for who drives the observation."""
        if self.cancelled:
            return
        self._latest = response
        for callback in tuple(self.callbacks):
            self._run(callback, response)

    def error(self, exception: BaseException) -> None:
        """Notify all listeners that the observation went wrong; for who drives it.

        Raises:
            PipeStateError: It has ended already.
        """
        if self.cancelled:
            raise PipeStateError(f"{self!r} has ended already")
        self._failure = exception
        errbacks = self.errbacks
        self._end()
        for errback in errbacks:
            self._run(errback, exception)

    def cancel(self) -> None:
        """Stop observing: there will be no further notification, and no error; the server is told so.

        Iterations end. If there was no response yet, the request is taken back altogether, and the future of
        its response cancelled. Calling it again does no harm.
        """
        if not self.cancelled:
            callbacks = self._cancel_callbacks
            self._end()
            for callback in callbacks:
                self._run(callback)

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Call *callback* when the observation is cancelled from this side; at once if it was."""
        if not self.cancelled:
            self._cancel_callbacks.append(callback)
        elif self._failure is None:
            self._run(callback)

    def _end(self) -> None:
        self.cancelled = True
        # Those who iterate find out by what they have registered here.
        self._cancel_callbacks = []
        self.callbacks, callbacks = [], self.callbacks
        self.errbacks = []
        for callback in callbacks:
            owner = getattr(callback, "__self__", None)
            if isinstance(owner, _LatestOnly):
                owner.finish(self._failure)

    def _run(self, callback: Callable[..., object], *args: Any) -> None:
        try:
            callback(*args)
        except BaseException as error:
            logger.exception("a callback of %r failed", self)
            pass_on_interrupt(error)

    def __aiter__(self) -> NotificationIterator:
        """Return an iterator over the notifications: the latest one, if there was one already, and those to
        come.

        It raises the error that the observation ends with, and just ends when it is cancelled here.
        """
        slot = _LatestOnly()
        if self.cancelled:
            slot.finish(self._failure)
        else:
            self.register_callback(slot.put)
        return NotificationIterator(slot, self._left)

    def _left(self, slot: _LatestOnly) -> None:
        if slot.put in self.callbacks:
            self.callbacks.remove(slot.put)
            if not self.callbacks:
                self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


class _LatestOnly:
    """Room for one notification."""

    __slots__ = ("_failure", "_is_finished", "_value", "_waiter")

    def __init__(self) -> None:
        self._value: Message | None = None
        self._failure: BaseException | None = None
        self._is_finished = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, value: Message) -> None:
        self._value = value
        self._wake()

    def finish(self, failure: BaseException | None) -> None:
        self._failure = failure
        self._is_finished = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Message:
        """Wait for a value; what comes last is still given out before the end.

        Raises:
            StopAsyncIteration: There is none any more.
        """
        if self._waiter is not None:
            raise PipeStateError("another task waits for the next notification already")
        while self._value is None:
            if self._is_finished:
                failure, self._failure = self._failure, None
                if failure is not None:
                    raise failure
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        value, self._value = self._value, None
        return value


class NotificationIterator:
    """Iterates over the notifications of a :class:`ClientObservation`; safe to be cancelled while it waits.

    Args:
        slot: Where they come.
        on_left: Called when the iteration was left.
    """

    __slots__ = ("_on_left", "_slot")

    def __init__(self, slot: _LatestOnly, on_left: Callable[[_LatestOnly], object]) -> None:
        self._slot = slot
        self._on_left = on_left

    def __aiter__(self) -> NotificationIterator:
        return self

    async def __anext__(self) -> Message:
        # It holds the iterator, so that ``await anext(aiter(observation))`` does not drop it at once.
        return await self._slot.get()

    async def aclose(self) -> None:
        """End the iteration; safe to be called twice."""
        self._on_left(self._slot)
        self._slot.finish(None)

    def __del__(self) -> None:
        # Who leaves an ``async for`` early only drops the iterator; there is no other sign of it.
        self._on_left(self._slot)


class ServerObservation:
    """One observer of a resource, given to :meth:`~aiomas_ng.resource.ObservableResource.add_observation`.

    The resource accepts it or does not; only then is the requester an observer.

    Args:
        pipe: Where the notifications go; ``None`` for one that is only asked whether it was accepted.
    """

    def __init__(self, pipe: Pipe | None = None) -> None:
        self._pipe = pipe
        self._cancellation_callback: Callable[[], object] | None = None
        self._is_ended = False
        self._trigger: Callable[[Message | None, bool], object] | None = None
        self._early: tuple[Message | None, bool] | None = None  # a trigger before the first response

    def __repr__(self) -> str:
        state = "ended" if self._is_ended else "accepted" if self.is_accepted else "not accepted"
        return f"<{type(self).__name__}, {state}>"

    @property
    def is_accepted(self) -> bool:
        """Whether the resource has accepted the observation, and it goes on."""
        return self._cancellation_callback is not None and not self._is_ended

    def accept(self, cancellation_callback: Callable[[], object]) -> None:
        """Make the requester an observer.

        Args:
            cancellation_callback: Called once when the observation has ended, for whichever reason.

        Raises:
            PipeStateError: It was accepted already.
        """
        if self._cancellation_callback is not None:
            raise PipeStateError(f"{self!r} was accepted already")
        self._cancellation_callback = cancellation_callback

    def deregister(self, reason: Any = None) -> None:
        """End the observation; called before it was answered, it declines it.

        Args:
            reason: Why, in words; an observer gets it with a 5.03 as its last notification.
        """
        text = str(reason) if reason is not None else "the observation was ended by the server"
        self.trigger(ServiceUnavailable(text).to_message(), is_last=True)
        if self._trigger is None:
            self._finish()

    def trigger(self, response: Message | None = None, *, is_last: bool = False) -> None:
        """Send the observer an updated response.

        Args:
            response: What is sent; ``None`` lets the resource render its state.
            is_last: Whether the observation ends with it. An unsuccessful response always ends it.

        Several triggers in a row may be answered by one notification, of the latest state.
        """
        if self._is_ended:
            return
        if self._trigger is not None:
            self._trigger(response, is_last)
        elif self._early is None or not self._early[1]:
            self._early = (response, is_last)

    def _begin(self, trigger: Callable[[Message | None, bool], object]) -> None:
        """The first response was sent: from now on triggers are passed to *trigger*."""
        self._trigger = None if self._is_ended else trigger
        early, self._early = self._early, None
        if early is not None:
            trigger(*early)

    def _finish(self) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        self._trigger = None
        if self._cancellation_callback is not None:
            try:
                self._cancellation_callback()
            except BaseException as error:
                logger.exception("the cancellation callback of %r failed", self)
                pass_on_interrupt(error)
