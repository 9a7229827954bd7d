"""The answerer's side of a request: the task of a handler that waits, and the producer of a stream."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import types
from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import TYPE_CHECKING, Any

from aiomas_ng.exceptions import ChannelClosedError, StreamError

if TYPE_CHECKING:
    from aiomas_ng._io.answerer import Answerer

__all__ = ["CURRENT_JOB", "Job", "is_awaitable", "is_stream"]

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


class Job:
    """Work on one request of the peer that takes a task of its own.

    Args:
        channel: Where the request came from and the answer goes to.
        msg_id: The request's id; ``None`` for a one-way message, which is not answered.
        result: What the handler returned: an awaitable or an async iterator.
    """

    __slots__ = ("_channel", "_credit", "_msg_id", "_waiter", "task")

    def __init__(self, channel: Answerer, msg_id: int | str | None, result: Any) -> None:
        self._channel = channel
        self._msg_id = msg_id
        self._credit = 0
        self._waiter: asyncio.Future[None] | None = None
        work = self._stream(result) if is_stream(result) else self._wait_for(result)
        self.task = channel._loop.create_task(self._run(work))

    def cancel(self) -> None:
        """Stop the work."""
        self.task.cancel()

    def grant(self, count: int) -> None:
        """Let *count* more items be sent."""
        self._credit += count
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        channel, msg_id = self._channel, self._msg_id
        CURRENT_JOB.set(self)
        try:
            result = await work
        except asyncio.CancelledError as error:
            # Either we were cancelled (by the peer's wish or at our end), or something that the handler
            # waited for.
            channel._finish(msg_id, self, error=error)
            if self.task.cancelling():
                raise
        except Exception as error:
            channel._finish(msg_id, self, error=error)
        except BaseException as error:
            channel._finish(msg_id, self, error=error)
            raise
        else:
            channel._finish(msg_id, self, result)

    async def _wait_for(self, result: Awaitable[Any]) -> Any:
        outcome = await result
        return await self._stream(outcome) if is_stream(outcome) else outcome

    async def _stream(self, items: AsyncIterator[Any]) -> None:
        """Send the *items* as far as the peer's credit allows, then wait for more."""
        channel, msg_id = self._channel, self._msg_id
        try:
            if msg_id is None or not channel._exchange.is_peer_ours:
                raise StreamError(
                    "this method streams its reply; call it as a request, from a peer that knows streams"
                )
            channel._open_stream(msg_id)
            while True:
                while self._credit <= 0:
                    self._waiter = channel._loop.create_future()
                    await self._waiter
                self._credit -= 1
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
                channel._send_item(msg_id, item)
                await channel.drain()
        except ChannelClosedError:
            return
        finally:
            if isinstance(items, types.AsyncGeneratorType):
                await items.aclose()
