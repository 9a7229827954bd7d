"""A request of the peer: what comes along its pipe is sent back, as far as the peer takes it.

What happens to a response depends on what follows it:

- The last one is sent.
- A notification of an observation is sent, or while the peer does not read, kept until it does or until there
  is a newer one: an observation is state, no log.
- Any other is one of a stream and costs credit, of which the peer grants more as it takes them. Without
  credit the pipe is paused. Who produces nevertheless fills a bounded queue; when that is full, it gets an
  error.
"""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING, Any

from aiomas_ng._coap.deadlines import lift
from aiomas_ng._coap.remote import Remote, is_suppressed
from aiomas_ng._io.expiry import Expiry
from aiomas_ng.error import RenderableError
from aiomas_ng.exceptions import OverloadError
from aiomas_ng.message import Message
from aiomas_ng.pipe import WINDOW, Event, Pipe, PipeState, render_exception

if TYPE_CHECKING:
    from aiomas_ng.tokenmanager import TokenManager

__all__ = ["IncomingPipe"]


class IncomingPipe(Pipe):
    """The pipe of a request that a peer has sent.

    Args:
        request: The request.
        manager: Knows about the request until it has ended.
        log: As for :class:`~aiomas_ng.pipe.Pipe`.
    """

    __slots__ = ("_credit", "_held", "_last", "_latest", "_manager", "driver", "expiry", "remote")

    def __init__(self, request: Message, manager: TokenManager, log: Any) -> None:
        super().__init__(request, log)
        self.remote: Remote = request.remote
        self._manager = manager
        #: The task that works on the request, once it has begun.
        self.driver: asyncio.Task[Any] | None = None
        self._credit = WINDOW
        self._latest: Message | None = None  # the notification that is sent when the peer reads again
        self._held: collections.deque[Message] | None = None  # what is sent when there is credit
        self._last: Message | None = None  # what is sent behind these
        self.expiry: Expiry | None = None  # what ends it when its deadline passes
        self.on_event(self._take)

    @property
    def is_observed(self) -> bool:
        """Whether the request is to register an observation."""
        return self.request.opt.observe == 0

    @property
    def is_paused(self) -> bool:
        """Whether the peer does not read, or has not granted a further response."""
        return self._state is not PipeState.ENDED and (self._credit <= 0 or self.remote.is_paused)

    def _is_notification(self, response: Message) -> bool:
        return response.opt.observe is not None and self.is_observed

    def _check_room(self, response: Message) -> None:
        if self._held is None or len(self._held) < WINDOW or self._is_notification(response):
            return
        raise OverloadError(f"{WINDOW} responses wait to be sent: await pipe.drain() between responses")

    def _watch(self) -> None:
        # Credit needs no watching: whoever grants some wakes the pipe.
        if self.remote.is_paused:
            self.remote.waiting[self] = None

    def writing_resumed(self) -> None:
        """The peer reads again."""
        latest, self._latest = self._latest, None
        if latest is not None:
            self._send(latest)
        self._wake()

    def grant(self, count: int) -> None:
        """Allow *count* further responses of a stream; all in all never more than at the beginning."""
        self._credit = min(self._credit + count, WINDOW)
        while self._held and self._credit:
            self._credit -= 1
            self._send(self._held.popleft())
        if not self._held and self._last is not None:
            last, self._last = self._last, None
            self._send_last(last)
        self._wake()

    def refuse(self, error: RenderableError, closer: asyncio.Task[Any] | None) -> None:
        """Answer with *error*, whatever else is under way, and stop the work, but for the driver *closer*."""
        self._send_last(error.to_message())
        self._abandon(closer)

    def _take(self, event: Event) -> bool:
        response = event.message
        if response is None:
            assert event.exception is not None
            response = render_exception(event.exception, self.request, self.log)
        if event.is_last:
            if self._held:
                self._last = response
            else:
                self._send_last(response)
        elif is_suppressed(self.request, response):
            pass
        elif self._is_notification(response):
            if self.deadline is not None:
                lift(self)
            if self.remote.is_paused:
                self._latest = response
                self.remote.waiting[self] = None
            else:
                self._send(response)
        elif self._credit:
            self._credit -= 1
            self._send(response)
        else:
            if self._held is None:
                self._held = collections.deque()
            self._held.append(response)
        return True

    def _send(self, response: Message) -> None:
        """Send *response*, which others may follow; one that cannot be sent ends the pipe."""
        if not self.remote.send_response(response, self.request.token, True):
            self._manager.finish(self)
            self._abandon()

    def _send_last(self, response: Message) -> None:
        self._manager.finish(self)
        self.remote.answer(self.request, response)

    def _abandon(self, closer: asyncio.Task[Any] | None = None) -> None:
        # Also after the last event, which may be waiting still.
        self._held = self._last = self._latest = None
        super()._abandon(closer)

    def _end(self, *, was_abandoned: bool = False) -> None:
        super()._end(was_abandoned=was_abandoned)
        if self.expiry is not None:
            self.expiry.cancel()
        self.remote.waiting.pop(self, None)
