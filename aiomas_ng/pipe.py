"""The meeting point of a request and the responses to it.

::

    requester                         Pipe                        responder
    ─────────                  ─────────────────                  ─────────
    Pipe(request)              PREPARING
    on_event(callback)             │
    ── hand over ──▶           ACTIVE           start()   ──▶     run_driving_pipe(pipe, coroutine)
    callback(event)     ◀──        │                      ◀──     add_response(), add_exception()
    unregister()        ──▶        │                      ──▶     on_interest_end(callback): cancel the work
                               ENDED

A pipe goes through its three states in this order, once. While it is *preparing*, the requester registers
what is to be called; only then can there be interest. Handing it over, or the first act of a responder, makes
it *active*: events flow, and no new interest may come up. The last event, or the end of all interest, *ends*
it; what is produced afterwards is dropped.

A requester that is slow calls :meth:`Pipe.pause`; a responder that sends more than one response awaits
:meth:`Pipe.drain` in between.

The reference is the API page of ``aiocoap.pipe``. We differ in that the states are explicit, that each
callback gets at most one event that is the last, that iteration ends after it and is bounded, and in what is
new: back pressure.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from typing import Any, Self, TypeAlias

from aiomas_ng._coap.driving import CURRENT_DRIVER as CURRENT_DRIVER
from aiomas_ng._coap.driving import check_response, run_driving_pipe
from aiomas_ng._coap.driving import get_closer as get_closer
from aiomas_ng._coap.driving import render_exception as render_exception
from aiomas_ng._coap.events import WINDOW as WINDOW
from aiomas_ng._coap.events import Event as Event
from aiomas_ng._coap.events import Event as EventType
from aiomas_ng._coap.events import EventQueue
from aiomas_ng._coap.events import Iterator as EventIterator
from aiomas_ng._core.deadline import Deadline
from aiomas_ng._io.job import pass_on_interrupt
from aiomas_ng.error import PipeStateError
from aiomas_ng.exceptions import AiomasError
from aiomas_ng.message import Message

__all__ = ["IterablePipe", "Pipe", "PipeState", "error_to_message", "run_driving_pipe"]

logger = logging.getLogger(__name__)

EventCallback = Callable[[Event], "bool | None"]


class PipeState(enum.Enum):
    """Where a :class:`Pipe` is in its life."""

    #: The requester registers its callbacks; there are no events yet.
    PREPARING = "preparing"
    #: The responder produces events; there is interest in them.
    ACTIVE = "active"
    #: There was a last event, or all interest was lost.
    ENDED = "ended"


class _Entry:
    """A callback, and whether it is interest."""

    __slots__ = ("callback", "is_interest")

    def __init__(self, callback: EventCallback, is_interest: bool) -> None:
        self.callback = callback
        self.is_interest = is_interest


class Pipe:
    """Takes one request to whoever responds, and the responses back.

    Args:
        request: The request.
        log: Where failing callbacks and dropped events are noted; by default the logger of this module.
    """

    Event: TypeAlias = EventType

    __slots__ = (
        "__weakref__",
        "_closer",
        "_entries",
        "_interests",
        "_is_emitting",
        "_is_paused",
        "_on_interest_end",
        "_on_poke",
        "_on_resume",
        "_state",
        "_was_abandoned",
        "deadline",
        "log",
        "request",
        "rules",
    )

    def __init__(self, request: Message, log: Any = None) -> None:
        self.request = request
        self.rules: tuple[Any, ...] = ()  # those that have let in the requester
        #: By when there has to be a last response, if it matters; set by who sends or takes the request.
        self.deadline: Deadline | None = None
        self.log: logging.Logger | logging.LoggerAdapter[Any] = log or logger
        self._state = PipeState.PREPARING
        self._entries: list[_Entry] = []
        self._interests = 0
        self._is_emitting = False
        self._is_paused = False
        self._was_abandoned = False
        self._closer: asyncio.Task[Any] | None = None  # the driver that ends the pipe with its connection
        # Few pipes have more than one of these, and many none.
        self._on_interest_end: list[Callable[[], object]] | None = None
        self._on_poke: list[Callable[[], object]] | None = None
        self._on_resume: list[Callable[[], object]] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.value}, {self._interests} interested, {self.request!r}>"

    @property
    def state(self) -> PipeState:
        """Where the pipe is in its life."""
        return self._state

    @property
    def is_ended(self) -> bool:
        """Whether there was a last event, or all interest was lost."""
        return self._state is PipeState.ENDED

    @property
    def was_abandoned(self) -> bool:
        """Whether the pipe ended because all interest was lost, and not by a last event."""
        return self._was_abandoned

    # The requester's side

    def on_event(self, callback: EventCallback, is_interest: bool = True) -> Callable[[], None]:
        """Call *callback* with each :class:`Event`, as long as it returns ``True``.

        Args:
            callback: Must not produce events of this pipe, nor unregister callbacks of others.  If it raises,
                that is logged, and it is not called again.
            is_interest: Whether somebody wants the events.  Who only watches says ``False``, and gets the
                event ``(None, None, True)`` if the pipe ends by a loss of interest.

        Returns:
            A function that unregisters the callback; calling it twice does no harm.  If that is the end of
            all interest, and an event is just being passed on, all other callbacks still get that event
            first.

        Raises:
            PipeStateError: The pipe has ended; or it is active, and the callback would be new interest.
        """
        if self._state is not PipeState.PREPARING and (is_interest or self._state is PipeState.ENDED):
            raise PipeStateError(
                f"interest in a pipe can only come up while it is being prepared, but it is "
                f"{self._state.value}: register callbacks before handing it over"
            )
        entry = _Entry(callback, is_interest)
        self._entries.append(entry)
        if is_interest:
            self._interests += 1

        def unregister() -> None:
            self._remove(entry)

        return unregister

    def start(self) -> None:
        """End the preparation: from now on there can be events, and no new interest.

        Who responds calls this at the latest with the first event or callback; without any interest the pipe
        ends at once.
        """
        if self._state is PipeState.PREPARING:
            self._state = PipeState.ACTIVE
            self._check_interest()

    def poke(self) -> None:
        """Ask the responder for a sign of life; see :meth:`on_poke`.

        Nothing is returned. If it turns out that the responder is gone, an event says so.
        """
        for callback in self._on_poke or ():
            self._run(callback)

    def pause(self) -> None:
        """Ask the responder to wait before it produces further events."""
        self._is_paused = True

    def resume(self) -> None:
        """Let the responder go on."""
        self._is_paused = False
        self._wake()

    # The responder's side

    @property
    def is_paused(self) -> bool:
        """Whether the responder should wait before it produces further events."""
        return self._is_paused and self._state is not PipeState.ENDED

    def on_interest_end(self, callback: Callable[[], object]) -> None:
        """Call *callback* exactly once: when there was a last event, when all interest is lost, or right now
        if that is the case already. It ends the preparation."""
        self.start()
        if self._state is PipeState.ENDED:
            self._run(callback)
        elif self._on_interest_end is None:
            self._on_interest_end = [callback]
        else:
            self._on_interest_end.append(callback)

    def on_poke(self, callback: Callable[[], object]) -> None:
        """Call *callback* whenever the requester asks for a sign of life, until the pipe has ended."""
        if self._state is not PipeState.ENDED:
            self._on_poke = [*(self._on_poke or ()), callback]

    def on_resume(self, callback: Callable[[], object]) -> None:
        """Call *callback* once: when the pipe is no longer paused, or has ended; right now if it is not
        paused."""
        if not self.is_paused:
            self._run(callback)
            return
        if self._on_resume is None:
            self._on_resume = [callback]
        else:
            self._on_resume.append(callback)
        self._watch()

    async def drain(self) -> None:
        """Wait until the requester is ready for a further event, or the pipe has ended.

        Cancelling it is safe; any number of tasks may wait.
        """
        if self._state is PipeState.ENDED:
            # Who goes on for ever finds out here that he was cancelled.
            await asyncio.sleep(0)
        while self.is_paused:
            waiter = asyncio.get_running_loop().create_future()

            def wake(waiter: asyncio.Future[None] = waiter) -> None:
                if not waiter.done():
                    waiter.set_result(None)

            self.on_resume(wake)
            try:
                await waiter
            finally:
                if self._on_resume is not None and wake in self._on_resume:
                    self._on_resume.remove(wake)

    def add_response(self, response: Message, is_last: bool = False) -> None:
        """Pass *response* to the requester; drop it if the pipe has ended.

        Raises:
            TypeError, ValueError: *response* is no message, or its code is not that of a response.
            OverloadError: The responder does not await :meth:`drain`, and too many wait already. A last
                response always has room.
            PipeStateError: It is called by one of the callbacks that pass an event on.
        """
        check_response(response)
        if not is_last and self._state is PipeState.ACTIVE:
            self._check_room(response)
        self._emit(Event(response, None, is_last))

    def add_exception(self, exception: BaseException) -> None:
        """Pass *exception* to the requester, as the last event; log it if the pipe has ended.

        Raises:
            PipeStateError: It is called by one of the callbacks that pass an event on.
        """
        self._emit(Event(None, exception, True))

    # For pipes of other kinds

    def _check_room(self, response: Message) -> None:
        """Raise :exc:`~aiomas_ng.exceptions.OverloadError` if there is no room for *response*, not even for a
        responder that does not wait."""

    def _watch(self) -> None:
        """See to it that :meth:`_wake` is called when the pipe is no longer paused."""

    def _wake(self) -> None:
        """Call those that wait for the pipe to be resumed, if it is."""
        if not self._on_resume:
            return
        if self.is_paused:
            self._watch()
            return
        callbacks, self._on_resume = self._on_resume, None
        for callback in callbacks:
            self._run(callback)

    def _abandon(self, closer: asyncio.Task[Any] | None = None) -> None:
        """Take back all interest.

        Args:
            closer: The driver that does this by closing the connection, and that is not to be cancelled.
        """
        if self._state is not PipeState.ENDED:
            self._closer = closer
            self._entries = [entry for entry in self._entries if not entry.is_interest]
            self._interests = 0
            if self._state is PipeState.PREPARING:
                self.start()
            else:
                self._check_interest()

    # In common

    def _emit(self, event: Event) -> None:
        if self._state is not PipeState.ACTIVE:
            self.start()
            if self._state is PipeState.ENDED:
                self._drop(event)
                return
        if self._is_emitting:
            raise PipeStateError(f"a callback of {self!r} must not produce events of it")
        self._is_emitting = True
        try:
            for entry in tuple(self._entries):
                if entry not in self._entries:  # it was unregistered by one before it
                    continue
                try:
                    keep = entry.callback(event)
                except BaseException as error:
                    self.log.exception("a callback of %r failed", self)
                    pass_on_interrupt(error)
                    keep = False
                if not keep:
                    self._remove(entry)
        finally:
            self._is_emitting = False
        if event.is_last:
            self._end()
        else:
            self._check_interest()

    def _drop(self, event: Event) -> None:
        exception = event.exception
        if exception is None:
            self.log.debug("%r has ended; dropped %r", self, event.message)
        elif isinstance(exception, AiomasError):
            self.log.info("%r has ended; dropped %r", self, exception)
        else:
            self.log.error("%r has ended; an exception came after that", self, exc_info=exception)

    def _remove(self, entry: _Entry) -> None:
        if entry in self._entries:
            self._entries.remove(entry)
            self._interests -= entry.is_interest
            self._check_interest()

    def _check_interest(self) -> None:
        """End the pipe if nobody is interested any more; not in the middle of an event, which may be its
        last."""
        if not self._interests and self._state is PipeState.ACTIVE and not self._is_emitting:
            self._end(was_abandoned=True)

    def _end(self, *, was_abandoned: bool = False) -> None:
        self._state = PipeState.ENDED
        self._was_abandoned = was_abandoned
        entries, self._entries = self._entries, []
        self._interests = 0
        if was_abandoned:
            for entry in entries:
                self._run(lambda entry=entry: entry.callback(Event(None, None, True)))  # type: ignore[misc]  # mypy cannot type the default
        callbacks, self._on_interest_end = self._on_interest_end, None
        for callback in callbacks or ():
            self._run(callback)
        self._on_poke = None
        self._wake()

    def _run(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except BaseException as error:
            self.log.exception("a callback of %r failed", self)
            pass_on_interrupt(error)


def error_to_message(old_pr: Pipe, log: Any) -> Pipe:
    """Return a new pipe for a responder, in place of *old_pr*, whose requester then sees no exceptions.

    Exceptions arrive at the old pipe as last responses: a :class:`~aiomas_ng.error.RenderableError` as what
    it says, anything else as 5.00. Loss of interest, and back pressure, are passed on from the old to the new
    one.

    Args:
        old_pr: The pipe that the requester has set up.
        log: Where faults of the responder are logged.
    """
    next_pr = LinkedPipe(old_pr, log)

    def on_event(event: Event) -> bool:
        response = event.message
        if response is None:
            assert event.exception is not None
            response = render_exception(event.exception, old_pr.request, log)
        old_pr.add_response(response, event.is_last)
        return True

    next_pr.on_event(on_event)
    old_pr.on_interest_end(next_pr._abandon)
    return next_pr


class LinkedPipe(Pipe):
    """A pipe whose events end up in another one, and which is paused when that is.

    Args:
        outlet: The other one.
        log: As for :class:`Pipe`.
        request: The request, if it is not that of the outlet.
    """

    __slots__ = ("_is_watching", "_outlet")

    def __init__(self, outlet: Pipe, log: Any, request: Message | None = None) -> None:
        super().__init__(request or outlet.request, log)
        self._outlet = outlet
        self._is_watching = False

    @property
    def is_paused(self) -> bool:
        """Whether this pipe or the outlet is paused."""
        return self._state is not PipeState.ENDED and (self._is_paused or self._outlet.is_paused)

    def _check_room(self, response: Message) -> None:
        self._outlet._check_room(response)

    def _watch(self) -> None:
        if not self._is_watching and self._outlet.is_paused:
            self._is_watching = True
            self._outlet.on_resume(self._outlet_resumed)

    def _outlet_resumed(self) -> None:
        self._is_watching = False
        self._wake()

    def _abandon(self, closer: asyncio.Task[Any] | None = None) -> None:
        super()._abandon(closer or self._outlet._closer)


class IterablePipe(Pipe):
    """A pipe whose requester iterates over the events instead of registering callbacks::

        async with IterablePipe(request) as pipe:
            context.render_to_pipe(pipe)
            async for event in pipe:
                ...

    Iteration ends after the last event. Leaving it takes back the interest: at once at the end of
    ``async with``; without that, where the loop is left by ``break`` or an exception, as soon as the iterator
    is dropped.

    At most :data:`WINDOW` events wait to be iterated over; then the responder is paused. Notifications of an
    observation are states and no log: one that waits is replaced by the next.

    Args:
        request: The request.
    """

    Iterator: TypeAlias = EventIterator

    __slots__ = ("_has_iterator", "_queue")

    def __init__(self, request: Message) -> None:
        super().__init__(request)
        self._queue = EventQueue()
        self._has_iterator = False
        super().on_event(self._put)

    def on_event(self, callback: EventCallback, is_interest: bool = True) -> Callable[[], None]:
        """Watch the events; there is no interest but that of the iteration.

        Raises:
            PipeStateError: *is_interest*, or the pipe has ended.
        """
        if is_interest:
            raise PipeStateError("an IterablePipe is iterated over; its callbacks can only watch")
        return super().on_event(callback, is_interest=False)

    def _check_room(self, response: Message) -> None:
        self._queue.check_room(response)

    def _put(self, event: Event) -> bool:
        self._queue.put(event)
        if self._queue.is_full:
            self.pause()
        return True

    def _taken(self) -> None:
        if self._is_paused and not self._queue.is_full:
            self.resume()

    def _end(self, *, was_abandoned: bool = False) -> None:
        if was_abandoned:
            self._queue.close()
        super()._end(was_abandoned=was_abandoned)

    def __aiter__(self) -> Iterator:
        """Return the iterator over the events, an async iterator of :class:`Event`.

        Raises:
            PipeStateError: It is the second one; a pipe can be iterated over only once.
        """
        if self._has_iterator:
            raise PipeStateError("a pipe can be iterated over only once")
        self._has_iterator = True
        return EventIterator(self._queue, self._abandon, self._taken)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._abandon()
        self._queue.close()
