"""A request of ours, from the application's side: its response, its observation, its blocks.

The way of a request that fits into one message::

    Context.request ── Request ── Pipe ── TokenManager.request ──▶ Remote
        │ response (a future)                                        │
        ▼                                                            ▼
    _on_event   ◀──  Pipe.add_response  ◀──  TokenManager.process_response

No task takes part, unless there is something to wait for: a connection, or further blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._coap.bodies import Bodies, has_more
from aiomas_ng._coap.observation import ClientObservation
from aiomas_ng._core.deadline import get_deadline
from aiomas_ng._core.freshness import Freshness
from aiomas_ng._io.endpoint import FIRST_PAUSE, LONGEST_PAUSE, PAUSE_GROWTH
from aiomas_ng._io.expiry import Expiry, outside_deadlines, run_under
from aiomas_ng.error import (
    BadGateway,
    GatewayTimeout,
    NetworkError,
    NotObservable,
    ObservationCancelled,
    RenderableError,
    RequestTimedOut,
    ResourceChanged,
    ResponseWrappingError,
)
from aiomas_ng.exceptions import CallTimeoutError, DeadlineExceededError, ProtocolError
from aiomas_ng.message import Code, Message
from aiomas_ng.pipe import Event, Pipe

if TYPE_CHECKING:
    from aiomas_ng._coap.remote import Remote
    from aiomas_ng._core.addresses import Address
    from aiomas_ng.cache import Ticket
    from aiomas_ng.protocol import Context

__all__ = ["BaseRequest", "BaseUnicastRequest", "BlockwiseRequest", "Reopener", "Request"]

#: Seconds for which a connection has to last so that it is made anew at once when it is lost.
CALM: Final = 10.0

#: What a server that has just started may say of a resource that will be there in a moment, or that one may
#: say which forwards to it.
PASSING: Final = (Code.NOT_FOUND, Code.SERVICE_UNAVAILABLE, Code.BAD_GATEWAY, Code.GATEWAY_TIMEOUT)


class BaseRequest:
    """What all requests have in common."""


class BaseUnicastRequest(BaseRequest):
    """A request with one response: the future :attr:`response`, and other ways to wait for it."""

    #: Done with the response, whatever its code, or with what went wrong. Cancelling it takes back the
    #: request.
    response: asyncio.Future[Message]

    @property
    def response_raising(self) -> Coroutine[Any, Any, Message]:
        """An awaitable for the response if it is successful.

        Raises:
            ResponseWrappingError: The response is unsuccessful, as 4.04 is.
            NetworkError, CallTimeoutError: As for :attr:`response`.
        """
        return self._wait_raising()

    @property
    def response_nonraising(self) -> Coroutine[Any, Any, Message]:
        """An awaitable that turns errors into messages, as a proxy would: 5.04 when it took too long, 5.02
        when there is no way to the server."""
        return self._wait_nonraising()

    async def _wait_raising(self) -> Message:
        response = await self.response
        if not response.code.is_successful() and response.code != Code.EMPTY:
            raise ResponseWrappingError(response)
        return response

    async def _wait_nonraising(self) -> Message:
        try:
            return await self.response
        except RenderableError as error:
            return error.to_message()
        except CallTimeoutError as error:
            return GatewayTimeout(str(error)).to_message()
        except Exception as error:
            return BadGateway(str(error)).to_message()


class Request(BaseUnicastRequest):
    """A request that is sent as one message.

    Args:
        pipe: Takes the request to the responder; it is being prepared still.
        loop: The event loop.
        log: As for :class:`~aiomas_ng.pipe.Pipe`.
        timeout: Seconds to wait for the response; ``None`` for no limit.
        reopener: Registers an observation anew when the connection was lost; without it that ends the
            observation.
    """

    def __init__(
        self,
        pipe: Pipe,
        loop: asyncio.AbstractEventLoop,
        log: Any,
        *,
        timeout: float | None = None,
        reopener: Reopener | None = None,
    ) -> None:
        self.response = loop.create_future()
        self.observation: ClientObservation | None = None
        self.log = log
        self._loop = loop
        self._reopener = reopener
        self._timer: asyncio.TimerHandle | None = None
        self._is_established = False  # whether the server has accepted the observation
        self._has_begun = False  # whether there was a first response
        self._freshness = Freshness()
        self._unregister: Callable[[], None] = _do_nothing
        self.request = pipe.request
        if pipe.request.opt.observe == 0:
            self.observation = ClientObservation()
            self.observation.on_cancel(self._release)
        if timeout is not None:
            self._timer = loop.call_later(timeout, self._expire, timeout)
        self._deadline = get_deadline()
        if self._deadline is not None:
            self._expiry: Expiry | None = Expiry(self._deadline, loop, self._exceed)
        else:
            self._expiry = None
        self.response.add_done_callback(self._response_done)
        self.attach(pipe)

    def __repr__(self) -> str:
        state = "waiting" if not self.response.done() else "done"
        return f"<{type(self).__name__} {self.request!r}, {state}>"

    def attach(self, pipe: Pipe) -> None:
        """Take responses from *pipe*."""
        self._unregister = pipe.on_event(self._on_event)

    def send_again(self, remote: Remote, begin: Callable[[Pipe], object]) -> None:
        """Register the observation anew.

        Args:
            remote: The connection in place of the one that was lost.
            begin: Sends the request of a pipe.
        """
        pipe = Pipe(self.request.copy(remote=remote), self.log)
        self.attach(pipe)
        begin(pipe)

    def _release_interest(self) -> None:
        """Take back the interest in further responses."""
        unregister, self._unregister = self._unregister, _do_nothing
        unregister()

    def _release(self) -> None:
        """Stop everything: nobody waits any more."""
        self._release_interest()
        if self._reopener is not None:
            self._reopener.cancel()
        if not self.response.done():
            self.response.cancel()

    def _response_done(self, response: asyncio.Future[Message]) -> None:
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
        if self._expiry is not None:
            self._expiry.cancel()
        if response.cancelled() or (self.observation is not None and response.exception() is not None):
            self._release()
            if self.observation is not None and not self.observation.cancelled:
                self.observation.cancel()

    def _expire(self, timeout: float) -> None:
        if not self.response.done():
            self.log.info("%r was not answered within %s s", self.request, timeout)
            self._fail(RequestTimedOut(repr(self.request), timeout))
            self._release()

    def _exceed(self, seconds: float) -> None:
        if not self.response.done():
            self.log.info("%r was not answered by its deadline", self.request)
            self._fail(DeadlineExceededError(repr(self.request), seconds, was_sent=seconds > 0))
            self._release()

    def _fail(self, exception: BaseException) -> None:
        """Nothing more will come."""
        if not self.response.done():
            self.response.set_exception(exception)
        if self.observation is not None and not self.observation.cancelled:
            self.observation.error(exception)

    # What comes along the pipe

    def _on_event(self, event: Event) -> bool:
        response = event.message
        if response is None:
            assert event.exception is not None
            self._take_exception(event.exception)
            return False
        if not self._has_begun:
            return self._take_first(response, event.is_last)
        observation = self.observation
        if observation is None or observation.cancelled:
            return False
        number = response.opt.observe
        if event.is_last or number is None or not response.code.is_successful():
            if response.code not in PASSING or not self._try_again():
                self._is_established = False
                self._take_last_notification(response)
            return False
        if self._freshness.accept(number, self._loop.time()):
            if self._reopener is not None:
                self._reopener.end_outage()
            self._take_notification(response)
        else:
            self.log.info("dropped a notification that is older than the last one: %r", response)
        return True

    def _take_first(self, response: Message, is_last: bool) -> bool:
        """Take the first response, and return whether notifications are to follow it."""
        observation = self.observation
        number = response.opt.observe
        self._has_begun = True
        if observation is not None and not is_last and number is not None and response.code.is_successful():
            self._is_established = self._freshness.accept(number, self._loop.time())
        self._take_response(response)
        if not self._is_established and observation is not None and not observation.cancelled:
            observation.error(NotObservable(f"{self.request!r} cannot be observed: {response.code.dotted}"))
        return self._is_established

    def _take_exception(self, exception: BaseException) -> None:
        if not isinstance(exception, NetworkError) or not self._lose_connection():
            self._fail(exception)
            return
        self.log.info("lost the connection of %r: %s; registering it anew", self, exception)

    def _lose_connection(self) -> bool:
        """Return whether the observation goes on over another connection."""
        if not self._is_established or self.observation is None or self.observation.cancelled:
            return False
        if self._reopener is None or not self._reopener.lost(self):
            return False
        self._freshness = Freshness()
        return True

    def _try_again(self) -> bool:
        """Return whether an observation that is not registered anew yet may be a little later."""
        reopener = self._reopener
        return reopener is not None and reopener.has_outage and self._lose_connection()

    def _take_response(self, response: Message) -> None:
        """Take the first response."""
        if not self.response.done():
            self.response.set_result(response)

    def _take_notification(self, response: Message) -> None:
        assert self.observation is not None
        self.observation.callback(response)

    def _take_last_notification(self, response: Message) -> None:
        assert self.observation is not None
        self.observation.callback(response)
        self._end_observation(response)

    def _end_observation(self, response: Message) -> None:
        if self.observation is not None and not self.observation.cancelled:
            self.observation.error(ObservationCancelled(_describe_end(response)))


def _describe_end(response: Message) -> str:
    text = response.payload[:200].decode("utf-8", "replace") if not response.code.is_successful() else ""
    return f"the server ended the observation: {response.code.dotted} {text}".rstrip()


class Reopener:
    """Registers an observation anew after its connection was lost.

    At once if that connection has lasted, else after pauses that grow; but not for ever: if there was no
    notification for the context's patience, the observation is given up.

    Args:
        context: What connects.
        address: Where the server was dialled.
    """

    def __init__(self, context: Context, address: Address) -> None:
        self._context = context
        self._address = address
        self._since: float | None = None  # the loss after the last notification
        self._last_loss = float("-inf")
        self._pause = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def has_outage(self) -> bool:
        """Whether there was no notification since the connection was lost."""
        return self._since is not None

    def end_outage(self) -> None:
        """Take note of a notification."""
        self._since = None

    def lost(self, request: Request) -> bool:
        """Begin to register the observation of *request* anew; return whether patience is left for it."""
        now = self._context.loop.time()
        if self._since is None:
            self._since = now
        left = self._context.patience - (now - self._since)
        if left <= 0:
            return False
        has_lasted = now - self._last_loss > CALM
        self._pause = 0.0 if has_lasted else max(FIRST_PAUSE, min(self._pause * PAUSE_GROWTH, LONGEST_PAUSE))
        self._last_loss = now
        self._task = self._context.spawn(self._register(request, left), request._fail)
        return True

    async def _register(self, request: Request, left: float) -> None:
        pause = min(self._pause, left)
        await asyncio.sleep(pause)
        remote = await self._context.resolve_remote(Message(remote=self._address), left - pause)
        request.send_again(remote, self._context.begin)

    def cancel(self) -> None:
        """Stop it."""
        if self._task is not None:
            self._task.cancel()


class BlockwiseRequest(Request):
    """A request whose bodies, in both directions, may be larger than a message.

    What fits into one message is sent and received as by a :class:`Request`. A larger body is sent in blocks,
    each after the one before was acknowledged, so that other messages of the connection get their turn; and
    so it is fetched, with a check that all blocks are of the same version.

    Args:
        protocol: The context.
        app_request: The request.
        timeout: Seconds for all of it; ``None`` for no limit.
    """

    def __init__(self, protocol: Context, app_request: Message, *, timeout: float | None = None) -> None:
        self._context = protocol
        self._worker: asyncio.Task[None] | None = None
        self._pending: Message | None = None  # the notification whose blocks are fetched next
        self._cache = cache = protocol.cache
        self._ticket: Ticket | None = None
        self._is_settled = False  # whether the cache knows the response
        sent = app_request
        hit: Message | None = None
        if cache is not None:
            hit, sent, self._ticket = cache.prepare(protocol.get_cache_name(app_request), app_request)
        self._bodies = Bodies(protocol, sent)
        pipe = Pipe(self._bodies.request, protocol.log)
        reopener = protocol.get_reopener(app_request)
        super().__init__(pipe, protocol.loop, protocol.log, timeout=timeout, reopener=reopener)
        self.request = app_request
        if hit is not None:
            self._release_interest()
            self.response.set_result(hit)
        elif self._bodies.is_large:
            self._work(self._send)
        else:
            protocol.begin(pipe)

    def send_again(self, remote: Remote, begin: Callable[[Pipe], object]) -> None:
        """Register the observation anew, as of :meth:`Request.send_again`."""
        self._bodies.request.remote = remote
        if self._bodies.is_large:
            self._work(self._send)
        else:
            super().send_again(remote, begin)

    # Work that takes more than one message

    def _work(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        self._worker = self._context.spawn(self._run(function, *args), self._work_failed)

    async def _run(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        try:
            with run_under(self._deadline):
                await function(*args)
        finally:
            if self._worker is asyncio.current_task():
                self._worker = None

    def _work_failed(self, exception: BaseException) -> None:
        if isinstance(exception, ProtocolError):
            self.log.warning("%r: %s", self, exception)
        self._release_interest()
        self._fail(exception)

    def _stop_work(self) -> None:
        worker, self._worker = self._worker, None
        self._pending = None
        if worker is not None and worker is not asyncio.current_task():
            worker.cancel()

    async def _send(self) -> None:
        """Send the body block by block, the last one through a pipe, so that it may be observed."""
        message = await self._bodies.send()
        self._worker = None
        self._release_interest()
        if message.code.is_request():
            pipe = Pipe(message, self.log)
            self.attach(pipe)
            self._context.begin(pipe)
        else:
            self._on_event(Event(message, None, True))

    def _release(self) -> None:
        self._stop_work()
        super()._release()
        self._leave_cache()

    def _fail(self, exception: BaseException) -> None:
        self._leave_cache()
        super()._fail(exception)

    # What the cache is told

    def _settle(self, response: Message) -> None:
        """Take the whole of the first response."""
        if self._cache is not None and self._ticket is not None:
            self._is_settled = True
            response = self._cache.settle(self._ticket, response, is_observed=self._is_established)
        super()._take_response(response)

    def _pass_notification(self, response: Message) -> None:
        """Take the whole of a notification."""
        if not self.response.done():  # the connection was lost before we had the whole of the first response
            self._settle(response)
            return
        if self._cache is not None and self._ticket is not None:
            response = self._cache.notify(self._ticket, response)
        super()._take_notification(response)

    def _leave_cache(self) -> None:
        """There will be no response, or no notification for now."""
        if self._cache is None or self._ticket is None:
            return
        if self._is_settled:
            self._cache.unobserve(self._ticket)
        else:
            self._is_settled = True
            self._cache.abandon(self._ticket)

    # Responses, whose blocks are to be fetched if there are more

    def _lose_connection(self) -> bool:
        is_regained = super()._lose_connection()
        if is_regained:
            self._stop_work()
            self._leave_cache()
        return is_regained

    def _take_response(self, response: Message) -> None:
        if has_more(response) and self.request.opt.block2 is None:
            self._work(self._fetch_response, response)
        else:
            self._settle(response)

    async def _fetch_response(self, first: Message) -> None:
        try:
            self._settle(await self._fetch(first))
        except ResourceChanged:
            if not self._is_established:
                raise  # else the next notification will be the response
        with outside_deadlines():
            await self._fetch_notifications()

    def _take_notification(self, response: Message) -> None:
        if self._worker is None and not has_more(response):
            self._pass_notification(response)
            return
        self._pending = response  # in place of an older one
        if self._worker is None:
            self._work(self._fetch_notifications)

    async def _fetch_notifications(self) -> None:
        while self._pending is not None:
            response, self._pending = self._pending, None
            if has_more(response):
                try:
                    response = await self._fetch(response)
                except ResourceChanged:
                    continue  # of each change there will be a notification
            if not response.code.is_successful():
                self._release_interest()
                self._end_with(response)
                return
            self._pass_notification(response)

    async def _fetch(self, first: Message) -> Message:
        return await self._bodies.fetch(first, self._forget_pending)

    def _forget_pending(self) -> None:
        """What is fetched from now on is newer than a notification that waits."""
        self._pending = None

    def _take_last_notification(self, response: Message) -> None:
        self._stop_work()
        if has_more(response):
            self._work(self._fetch_last, response)
        else:
            self._end_with(response)

    async def _fetch_last(self, first: Message) -> None:
        self._end_with(await self._fetch(first))

    def _end_with(self, response: Message) -> None:
        """Take the whole of the last notification."""
        is_first = not self.response.done()
        if is_first:
            self._settle(response)
        elif self._cache is not None and self._ticket is not None:
            self._cache.notify(self._ticket, response)  # it may say that there is no such state any more
        self._leave_cache()
        if is_first:
            self._end_observation(response)
        else:
            super()._take_last_notification(response)


def _do_nothing() -> None:
    pass
