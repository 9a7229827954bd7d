"""The task that works on the request of a pipe, and what becomes of its exceptions."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from aiomas_ng._core.codec_errors import describe, short
from aiomas_ng.error import Forbidden, InternalServerError, RenderableError, ServiceUnavailable
from aiomas_ng.exceptions import AccessDeniedError
from aiomas_ng.message import Message

if TYPE_CHECKING:
    from aiomas_ng.pipe import Pipe

__all__ = [
    "CURRENT_DRIVER",
    "check_response",
    "get_closer",
    "log_about",
    "render_exception",
    "run_driving_pipe",
]

#: The task that :func:`run_driving_pipe` has made, for what runs in it: who closes a connection waits for the
#: others only.
CURRENT_DRIVER: contextvars.ContextVar[asyncio.Task[Any] | None] = contextvars.ContextVar(
    "CURRENT_DRIVER", default=None
)


def get_closer() -> asyncio.Task[Any] | None:
    """Return the driver that the running code is part of; ``None`` if it is part of none.

    A driver that closes a connection, maybe its own, is to get that done, and not to be cancelled by it.
    """
    try:
        # Callbacks of transports and timers run in the context of whatever has once made them.
        return CURRENT_DRIVER.get() if asyncio.current_task() is not None else None
    except RuntimeError:  # there is no running loop
        return None


def run_driving_pipe(
    pipe: Pipe,
    coroutine: Coroutine[Any, Any, Any],
    name: str | None = None,
    *,
    tasks: set[asyncio.Task[Any]] | None = None,
) -> None:
    """Run *coroutine*, which fills *pipe*, in a task, and connect the ends of both.

    An exception of the coroutine becomes the last event. So does its end without a last event, which is a
    fault of the coroutine; and its cancellation from elsewhere, as 5.03. When all interest in the pipe is
    lost, the task is cancelled; after a last event it is not, so it can clean up.

    Args:
        pipe: What the coroutine fills.
        coroutine: Typically ``render_to(pipe)``.
        name: The task's name.
        tasks: Where the task is to be kept until it has ended, for who has to wait for it.
    """
    task = asyncio.get_running_loop().create_task(_drive(pipe, coroutine), name=name)
    if tasks is not None:
        tasks.add(task)

    def work_ended(task: asyncio.Task[Any]) -> None:
        if tasks is not None:
            tasks.discard(task)
        if not task.cancelled():
            task.exception()  # an interrupt, which has stopped the loop by itself
        # The rest only matters if the task was cancelled before its first step: then nothing of it has run.
        coroutine.close()
        if not pipe.is_ended:
            pipe.add_exception(_make_given_up())

    def interest_ended() -> None:
        if pipe.was_abandoned and pipe._closer is not task:
            task.cancel()

    task.add_done_callback(work_ended)
    pipe.on_interest_end(interest_ended)


async def _drive(pipe: Pipe, coroutine: Coroutine[Any, Any, Any]) -> None:
    CURRENT_DRIVER.set(asyncio.current_task())
    try:
        await coroutine
    except asyncio.CancelledError:
        # From the pipe, then it is of no use to anybody. Or else from elsewhere, and somebody waits.
        if not pipe.is_ended:
            pipe.add_exception(_make_given_up())
        raise
    except (SystemExit, KeyboardInterrupt) as exception:
        pipe.add_exception(exception)
        raise
    except BaseException as exception:
        pipe.add_exception(exception)
    else:
        if not pipe.is_ended:
            pipe.add_exception(RuntimeError(f"there was no last response to {pipe.request!r}"))


def _make_given_up() -> ServiceUnavailable:
    return ServiceUnavailable("the work on the request was given up")


def check_response(response: Any) -> None:
    """Check that *response* can be one.

    Raises:
        TypeError: It is no message.
        ValueError: It has no code, or that of a request or a signal.
    """
    if not isinstance(response, Message):
        raise TypeError(f"a response must be a Message but is {short(response)}")
    code = response.code
    if code is None or 0 < code < 64 or code >= 192:  # 0 stands for one that was not sent (RFC 7967)
        raise ValueError(f"a response must have the code of one, as CONTENT, but {response!r} has {code!r}")


def log_about(
    request: Message, log: Any, level: int, text: str, *args: Any, error: BaseException | None = None
) -> None:
    """Log what has to do with a *request*: with all else that its connection has caused, of which very much
    is only counted. What comes over no connection is always logged.

    Args:
        request: The request.
        log: Where it is logged.
        level: The level.
        text: What is logged.
        *args: What is put into *text*.
        error: Whose traceback is added.
    """
    channel = getattr(request.remote, "channel", None)
    if channel is None:
        log.log(level, text, *args, exc_info=error)
    else:
        channel._log(level, text, *args, log=log, error=error)


def render_exception(
    exception: BaseException, request: Message, log: Any, *, has_details: bool = False
) -> Message:
    """Turn what a responder raised into a response.

    An :class:`~aiomas_ng.error.RenderableError` says by itself what it is. Anything else is a fault of the
    responder: it is logged, and the response is 5.00, without internals.

    Args:
        exception: What was raised.
        request: What it was raised for.
        log: Where a fault is logged.
        has_details: Whether the response tells type and text of a fault.
    """
    if isinstance(exception, AccessDeniedError):  # by a handler's own check
        exception = Forbidden("not allowed")
    if isinstance(exception, RenderableError):
        try:
            response = exception.to_message()
            check_response(response)
            return response
        except Exception as failure:
            exception = failure
    text = "an error occurred while %r was worked on: %s"
    log_about(request, log, logging.ERROR, text, request, describe(exception), error=exception)
    return InternalServerError(describe(exception) if has_details else "").to_message()
