"""The orderly end of a connection, on both sides of it.

Who closes says CLOSE first, if the peer understands that. From then on it takes no new requests, and the
peer sends none. Those that cross the frame are refused, and the caller is told that they were not executed.
What is under way is answered. Then the connection is closed as ever.

A PING goes behind CLOSE. When its PONG is there, all that the peer sent before it knew has been read, and was
answered: to close before would leave the callers in doubt.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from aiomas_ng import codecs
from aiomas_ng._core import frames
from aiomas_ng._core.codec_errors import short
from aiomas_ng._io.answerer import Answerer
from aiomas_ng._io.caller import Caller
from aiomas_ng._io.connection import logger
from aiomas_ng._io.job import CURRENT_JOB
from aiomas_ng.exceptions import ChannelClosedError, ClosedByPeerError, MalformedFrameError, ShutdownError

if TYPE_CHECKING:
    from aiomas_ng.channel import ChannelProtocol

__all__ = ["GRACE", "Closer", "check_grace"]

#: Seconds that running handlers are given to end by themselves when all is shut down in order.
GRACE: Final = 5.0
#: Seconds that are waited for a peer to show that it has read CLOSE, at most.
LINGER: Final = 1.0
#: The number of the PING that goes behind CLOSE, unlike any other.
BARRIER: Final = 0x436C6F73
#: Seconds after which we close a connection that the peer has said to close, if it does not and nothing is
#: under way: else it could make us hold any number of them, one for each time that we dial anew.
LEAVE_TIME: Final = 60.0
#: Characters of a peer's reason that are kept.
MAX_REASON: Final = 200


def check_grace(grace: float) -> float:
    """Return *grace* if it is a number of seconds >= 0.

    Raises:
        ValueError: It is none.
    """
    if not 0 <= grace < math.inf:
        raise ValueError(f"grace must be a number of seconds >= 0 but is {grace!r}")
    return grace


class Closer(Caller, Answerer):
    """Closes a connection in order, and notices that the peer does."""

    def __init__(
        self, protocol: ChannelProtocol, codec: codecs.Codec, transport: Any, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(protocol, codec, transport, loop)
        self._knows_close = False  # whether the peer understands CLOSE
        self._peer_closing: str | None = None  # why the peer takes no new requests
        self._peer_closing_callbacks: list[Callable[[], None]] = []
        self._barrier: asyncio.Future[None] | None = None
        self._barrier_timer: asyncio.TimerHandle | None = None
        self._leave_timer: asyncio.TimerHandle | None = None
        self._has_recv = False  # whether requests are taken by recv(), by a task of the user's
        self._dropped = 0  # one-way messages that came too late

    @property
    def is_closing(self) -> bool:
        """Whether this side takes no new requests, because it is about to close or has closed."""
        return self._closing is not None or self._error is not None

    @property
    def is_peer_closing(self) -> bool:
        """Whether the peer takes no new requests: it has said that it is about to close the connection."""
        return self._peer_closing is not None

    # Our end

    def _begin_close(self, reason: str) -> None:
        """From now on refuse new requests, and tell the peer why; safe to be called twice."""
        if self.is_closing:
            return
        self._closing = reason
        self._has_recv = self._handler is None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._knows_close:
            self._barrier = self._loop.create_future()
            self._barrier_timer = self._loop.call_later(LINGER, self._lift_barrier)
            self._send_control(frames.CLOSE, 0, reason, gather=True)
            self._send_control(frames.PING, BARRIER, gather=True)
            self._protocol.stop_resuming()
        self._serve(self._refuse)

    def _resumed(self) -> None:
        super()._resumed()
        if self._closing is not None and self._knows_close:
            self._protocol.stop_resuming()  # CLOSE, which had to wait, is on its way

    def _refuse(self, msg_id: int | str | None, content: Any) -> None:
        """Take a request that has come too late; in place of the handler."""
        if msg_id is not None:
            self._answer_error(msg_id, ShutdownError(str(self._closing)))
            return
        self._dropped += 1
        if self._dropped == 1:
            logger.info(
                "a one-way message from %s was dropped: %s", self._protocol._peername(), self._closing
            )

    def _take_pong(self, msg_id: Any) -> None:
        if msg_id == BARRIER:
            self._lift_barrier()

    def _lift_barrier(self) -> None:
        if self._barrier_timer is not None:
            self._barrier_timer.cancel()
        if self._barrier is not None and not self._barrier.done():
            self._barrier.set_result(None)

    def _set_error(self, error: ChannelClosedError) -> None:
        super()._set_error(error)
        self._lift_barrier()
        if self._leave_timer is not None:
            self._leave_timer.cancel()

    def _get_under_way(self) -> list[asyncio.Future[Any]]:
        """Return what has to be done before the connection can be closed without loss, but for the running
        code itself."""
        current = CURRENT_JOB.get()
        waiting: list[asyncio.Future[Any]] = [job.task for job in self._running if job is not current]
        if self._error is not None:
            return waiting
        if self._lane is not None:
            waiting += self._lane.wind_down()
        callback = self._protocol._callback_task
        if self._has_recv and callback is not None and not callback.done() and not _is_current(callback):
            waiting.append(callback)
        if self._barrier is not None and not self._barrier.done():
            waiting.append(self._barrier)
        return waiting

    async def close(self, *, grace: float = 0) -> None:
        """Close the connection; wait until it is closed and the handlers of its requests have ended.

        Calls that wait fail with :exc:`~aiomas_ng.exceptions.ClosedByUsError`; handlers that still run are
        cancelled. What was sent still leaves, unless the peer reads nothing for some seconds. Safe to be
        called twice, by several tasks, and from within a handler of this channel.

        Args:
            grace: Seconds that running handlers are given to end by themselves before that. Meanwhile the
                peer is told, new requests are refused, and calls of ours that are under way go on. Who calls
                it again with less shortens it. Cancelling it closes the connection at once.

        Raises:
            ValueError: *grace* is no number >= 0.
        """
        if check_grace(grace):
            try:
                await self._wind_down(self._loop.time() + grace)
            except asyncio.CancelledError:
                self._end_here()
                raise
        self._end_here()
        await self._wait_closed()

    async def _wind_down(self, deadline: float) -> None:
        self._begin_close("the connection is being closed")
        while waiting := self._get_under_way():
            left = deadline - self._loop.time()
            if left <= 0:
                return
            await asyncio.wait(waiting, timeout=left)

    # The peer's end

    def _take_close(self, content: Any) -> None:
        """The peer takes no new requests, answers those under way, and then closes.

        Raises:
            MalformedFrameError: The reason is no text.
        """
        if not isinstance(content, str | None):
            raise MalformedFrameError(f"the reason of a CLOSE must be a string but is {short(content)}")
        if self._peer_closing is not None:
            return
        self._peer_closing = (content or "the peer is about to close the connection")[:MAX_REASON]
        # In place of a look at each call whether it may go.
        self._request = self._refuse_to_send  # type: ignore[method-assign]
        self.post = self._refuse_to_send  # type: ignore[method-assign]
        self._leave_timer = self._loop.call_later(LEAVE_TIME, self._leave)
        callbacks, self._peer_closing_callbacks = self._peer_closing_callbacks, []
        for callback in callbacks:
            self._run_callback(callback)

    def _leave(self) -> None:
        """Close the connection if the peer has not done so, and nothing is under way."""
        is_working = bool(self._running) or (self._lane is not None and self._lane.is_working)
        if self._is_waiting() or is_working:
            self._leave_timer = self._loop.call_later(LEAVE_TIME, self._leave)
        else:
            self._set_error(ClosedByPeerError(str(self._peer_closing)))

    def _refuse_to_send(self, *args: Any, **kwds: Any) -> NoReturn:
        if self._error is not None:
            self._raise_closed()
        assert self._peer_closing is not None
        raise ClosedByPeerError(self._peer_closing, was_sent=False)

    def _when_peer_closes(self, callback: Callable[[], None]) -> None:
        """Call *callback* when the peer says that it takes no new requests, at once if it has."""
        if self._peer_closing is not None:
            self._run_callback(callback)
        else:
            self._peer_closing_callbacks.append(callback)


def _is_current(task: asyncio.Task[Any]) -> bool:
    return task is asyncio.current_task()
