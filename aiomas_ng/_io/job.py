"""The answerer's side of a request: the task of a handler that waits, and the producer of a stream."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import types
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, NoReturn

from aiomas_ng._core.deadline import get_deadline
from aiomas_ng._io.expiry import Expiry
from aiomas_ng._io.principal import CURRENT_PRINCIPAL
from aiomas_ng.exceptions import AccessDeniedError, DeadlineExceededError, StreamError

if TYPE_CHECKING:
    from aiomas_ng._io.answerer import Answerer

__all__ = ["CURRENT_JOB", "Job", "dispose", "is_awaitable", "is_stream", "pass_on_interrupt", "raise_"]

logger = logging.getLogger("aiomas_ng.channel")

#: The job that the running code is part of: it may close its own channel without being cancelled by that.
CURRENT_JOB: contextvars.ContextVar[Job | None] = contextvars.ContextVar("CURRENT_JOB", default=None)


def is_stream(result: Any) -> bool:
    """Return whether a handler's *result* is to be streamed: an async generator, or another async
    iterator."""
    return isinstance(result, types.AsyncGeneratorType) or (
        hasattr(type(result), "__anext__") and hasattr(type(result), "__aiter__")
    )


def is_awaitable(result: Any) -> bool:
    """Return whether a handler's *result* has to be awaited first."""
    return isinstance(result, types.CoroutineType) or asyncio.isfuture(result) or inspect.isawaitable(result)


def dispose(result: Any) -> None:
    """Drop a handler's *result* that was to be awaited and will not be."""
    try:
        if hasattr(result, "close"):
            result.close()
        elif asyncio.isfuture(result):
            result.cancel()
    except Exception:
        logger.exception("%r cannot be closed", type(result))


def raise_(error: BaseException) -> NoReturn:
    """Raise *error*; for the loop to call."""
    raise error


def pass_on_interrupt(error: BaseException) -> None:
    """Let the loop raise *error* if it is one that ends the program.

    It must not be raised where a transport called us: uvloop lets nothing through that a protocol raises, and
    asyncio would leave in the middle what is under way.
    """
    if isinstance(error, SystemExit | KeyboardInterrupt):
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise error from None
        loop.call_soon(raise_, error)


class Job:
    """Work on one request of the peer that takes a task of its own.

    Args:
        channel: Where the request came from and the answer goes to.
        msg_id: The request's id; ``None`` for a one-way message, which is not answered.
        result: What the handler returned: an awaitable or an async iterator.
        path: Of the handler; ``None`` if it is not known, or there are several.
    """

    __slots__ = (
        "_cancel_others",
        "_channel",
        "_credit",
        "_has_begun",
        "_is_cancelled",
        "_result",
        "_waiter",
        "msg_id",
        "path",
        "task",
    )

    def __init__(
        self, channel: Answerer, msg_id: int | str | None, result: Any, path: str | None = None
    ) -> None:
        self.msg_id = msg_id
        self.path = path
        self._channel = channel
        self._result = result
        self._cancel_others: Callable[..., None] | None = getattr(result, "cancel_others", None)
        self._credit = 0
        self._waiter: asyncio.Future[None] | None = None
        self._has_begun = False
        self._is_cancelled = False

    def start(self) -> None:
        """Begin the work in a task."""
        self.task = self._channel._loop.create_task(self._run())
        deadline = get_deadline()
        if deadline is not None:
            expiry = Expiry(deadline, self._channel._loop, self._exceed)
            self.task.add_done_callback(lambda _: expiry.cancel())

    def _exceed(self, seconds: float) -> None:
        """Stop the work, because its deadline has passed; the caller knows by itself, or hears of it."""
        self._channel._give_up(self, DeadlineExceededError("the work on a call", seconds))
        self.cancel()

    def cancel(self) -> None:
        """Stop the work; once, so that what the handler does to end in order is not cancelled as well."""
        if self._is_cancelled:
            return
        self._is_cancelled = True
        self.task.cancel()
        if not self._has_begun:  # then the task never will
            self.dispose()
            self._channel._finish(self, error=asyncio.CancelledError())

    def cancel_below(self, prefix: str) -> None:
        """Stop the work, or what parts of it, that is done by handlers whose path begins with *prefix*."""
        if self.path is not None:
            if self.path.startswith(prefix):
                self.cancel()
        elif self._cancel_others is not None:
            self._cancel_others(prefix)

    def cancel_others(self) -> None:
        """The running code, a part of this work, ends the connection: stop the other parts, if any."""
        if self._cancel_others is not None:
            self._cancel_others()

    def dispose(self) -> None:
        """Drop what was not begun, without a warning that it was not awaited."""
        dispose(self._result)

    def grant(self, count: int) -> None:
        """Let *count* more items be sent."""
        self._credit += count
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _run(self) -> None:
        channel = self._channel
        self._has_begun = True
        CURRENT_JOB.set(self)
        CURRENT_PRINCIPAL.set(channel._principal)
        try:
            result = self._result
            self._result = None
            if not is_stream(result):
                result = await result
            if is_stream(result):
                await self._stream(result)
                result = None
            if channel._protocol.is_paused:
                # Or a peer that never reads could make us hold the results of all its requests, encoded.
                await channel.drain()
        except asyncio.CancelledError as error:
            # Either we were cancelled (by the peer's wish or at our end), or something that the handler
            # waited for.
            channel._finish(self, error=error)
            if self.task.cancelling():
                raise
        except BaseException as error:
            channel._finish(self, error=error)
            pass_on_interrupt(error)
        else:
            channel._finish(self, result)

    async def _stream(self, items: AsyncIterator[Any]) -> None:
        """Send the *items* as far as the peer's credit allows, then wait for more."""
        channel, msg_id = self._channel, self.msg_id
        try:
            if msg_id is None or not channel._exchange.is_peer_ours:
                raise StreamError(
                    "this method streams its reply; call it as a request, from a peer that knows streams"
                )
            channel._open_stream(msg_id)
            principal = channel._principal
            identity = principal.identity
            while True:
                while self._credit <= 0:
                    self._waiter = channel._loop.create_future()
                    await self._waiter
                self._credit -= 1
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
                await channel.drain()
                if principal.has_policy and principal.has_lost(identity):
                    principal.note_denial("the rest of a stream")
                    raise AccessDeniedError("the rest of a stream")
                channel._send_item(msg_id, item)
        finally:
            aclose = getattr(items, "aclose", None)
            if aclose is not None:
                await aclose()
