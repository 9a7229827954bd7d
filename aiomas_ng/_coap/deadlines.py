"""Deadlines of requests to resources, on both sides of a connection.

A deadline bounds all of a request, up to the last response of a stream. Of an observation it only bounds the
registration: the notifications that follow have no end.

It travels as an option, which nobody but the two ends of the connection get to see: what is forwarded, by
whomever, has the deadline of whoever forwards it, and what goes to other networks has none.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aiomas_ng._core.deadline import (
    CURRENT,
    REAL_OPTION,
    SIMULATED_OPTION,
    Deadline,
    from_options,
    get_deadline,
    to_options,
)
from aiomas_ng._io.expiry import Expiry, check_deadline, now_in
from aiomas_ng.error import GatewayTimeout
from aiomas_ng.exceptions import DeadlineExceededError
from aiomas_ng.message import Code, Message

if TYPE_CHECKING:
    from aiomas_ng._coap.incoming import IncomingPipe
    from aiomas_ng.pipe import Event, Pipe
    from aiomas_ng.protocol import Context

__all__ = [
    "TooLate",
    "bind_incoming",
    "bind_outgoing",
    "is_too_late",
    "lift",
    "make_exceeded",
    "run_bound",
    "with_options",
]

NUMBERS: Final = (REAL_OPTION, SIMULATED_OPTION)


# Requests of ours


def bind_outgoing(pipe: Pipe, loop: asyncio.AbstractEventLoop) -> None:
    """Let the request of *pipe* end when the current deadline passes.

    Raises:
        DeadlineExceededError: It has passed already.
    """
    deadline = get_deadline()
    if deadline is None:
        return
    check_deadline(deadline, loop, repr(pipe.request))
    pipe.deadline = deadline

    def expire(seconds: float) -> None:
        pipe.add_exception(DeadlineExceededError(repr(pipe.request), seconds, _was_sent(pipe)))

    def watch(event: Event) -> bool:
        if _is_notification(pipe, event.message):
            pipe.deadline = None
            expiry.cancel()
            return False
        return True

    expiry = Expiry(deadline, loop, expire)
    if pipe.request.opt.observe == 0:
        pipe.on_event(watch, is_interest=False)
    pipe.on_interest_end(expiry.cancel)


def with_options(message: Message, deadline: Deadline | None, context: Context) -> Message:
    """Return *message* as it is sent to a peer that has to know about *deadline*."""
    if deadline is None:
        return message
    sent = message.copy()
    sent.opt._values.update(to_options(deadline, now_in(context.loop)))
    return sent


def is_too_late(response: Message) -> bool:
    """Return whether the peer says by *response* that its clock was the first to reach the deadline."""
    return response.code == Code.GATEWAY_TIMEOUT and REAL_OPTION in response.opt


def make_exceeded(pipe: Pipe) -> DeadlineExceededError:
    """Return the error of a request whose deadline has passed at the peer."""
    return DeadlineExceededError(repr(pipe.request), 0.0)


# Requests of the peer


def bind_incoming(pipe: IncomingPipe, context: Context) -> None:
    """Take the deadline of a request off its options, and answer 5.04 when it passes, or if it has."""
    values = pipe.request.opt._values
    if REAL_OPTION not in values and SIMULATED_OPTION not in values:
        return
    clock, loop = context.clock, context.loop
    deadline = from_options(values, None if clock.is_real else clock, now_in(loop))
    for number in NUMBERS:
        values.pop(number, None)
    if deadline is None:
        return
    pipe.deadline = deadline

    def expire(seconds: float = 0.0) -> None:
        pipe.refuse(TooLate("the deadline of the request has passed"), None)

    if deadline.has_passed(now_in(loop)):
        expire()
    else:
        pipe.expiry = Expiry(deadline, loop, expire)


def run_bound(deadline: Deadline | None, function: Callable[..., object], *args: object) -> None:
    """Call *function* so that all that it begins is bound by *deadline* alone.

    Another one may be there: an event loop calls a transport's callbacks in the context in which somebody has
    last resumed it.
    """
    if deadline is get_deadline():
        function(*args)
        return
    context = contextvars.copy_context()
    context.run(CURRENT.set, deadline)
    context.run(function, *args)


class TooLate(GatewayTimeout):
    """The deadline of a request has passed; an option tells this from any other 5.04."""

    def to_message(self) -> Message:
        """Return the response."""
        response = super().to_message()
        response.opt.deadline = 0
        return response


def lift(pipe: IncomingPipe) -> None:
    """Let an observation go on, now that it is registered."""
    if pipe.expiry is not None:
        pipe.expiry.cancel()
        pipe.expiry = None
    if pipe.deadline is not None and get_deadline() is pipe.deadline:
        CURRENT.set(None)  # for what the resource does next
    pipe.deadline = None


def _was_sent(pipe: Pipe) -> bool:
    """Return whether the request of *pipe*, to which there is no last response yet, was sent."""
    outgoing = getattr(pipe.request.remote, "outgoing", {}).get(pipe.request.token)
    return outgoing is not None and outgoing.pipe is pipe


def _is_notification(pipe: Pipe, response: Message | None) -> bool:
    return response is not None and response.opt.observe is not None and pipe.request.opt.observe == 0
