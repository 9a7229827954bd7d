"""The half of a channel that answers requests: those that wait, those that are worked on, and the answers."""

from __future__ import annotations

import asyncio
import collections
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiomas_ng import codecs
from aiomas_ng._core import failure, frames
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.frames import EXCEPTION, RESULT
from aiomas_ng._core.identity import Identity
from aiomas_ng._io.connection import Connection
from aiomas_ng._io.job import Job, is_awaitable, is_stream, pass_on_interrupt
from aiomas_ng._io.oneways import Oneways
from aiomas_ng._io.turns import COST_OF_TASK
from aiomas_ng.exceptions import (
    AiomasError,
    ChannelClosedError,
    ClosedByUsError,
    FrameTooLargeError,
    MalformedFrameError,
    OverloadError,
    ProtocolError,
    SerializationError,
)

if TYPE_CHECKING:
    from aiomas_ng.channel import ChannelProtocol

__all__ = ["Answerer", "Handler", "Lane", "LaneMessage", "Request"]

#: What serves a channel's requests: called with id (``None``: one-way) and content, it answers through the
#: channel.
Handler = Callable[["int | str | None", Any], None]


class Lane(Protocol):
    """Serves the one-way messages of a lane of its own, beside those of RPC."""

    @property
    def is_waiting(self) -> bool:
        """Whether requests of ours wait for the peer, so that we have to go on reading."""

    @property
    def is_working(self) -> bool:
        """Whether requests of the peer are worked on, apart from its observations."""

    def get_waiting_key(self, content: Any) -> bytes | None:
        """Return what a message is known by if it is a request, which waits in its turn while the peer does
        not read; ``None`` for any other, which never waits."""

    def refuse(self, content: Any) -> None:
        """Answer a request for which there is no room."""

    def take(self, content: Any) -> None:
        """Take a message.

        Raises:
            ProtocolError: It breaks the rules.
        """

    def wind_down(self) -> list[asyncio.Future[None]]:
        """End the peer's observations; return what is done when its other requests have been answered."""

    def lose(self, error: AiomasError) -> None:
        """A message has been lost, in whichever direction, and nobody can say which."""

    def writing_resumed(self) -> None:
        """The peer reads again."""


#: Bytes that a request which is to be rejected counts for in the inbox, at least: its error has a text.
REJECTED_SIZE: Final = 1024

#: Types of results that need no second look.
PLAIN_TYPES = frozenset({type(None), bool, int, float, str, bytes, tuple, list, dict})


class Request:
    """A request of the peer, returned by :meth:`aiomas_ng.channel.Channel.recv`.

    Args:
        content: What the peer sent.
        message_id: The request's id, unique among the peer's requests; ``None`` for a one-way message.
        protocol: The channel's protocol.
    """

    __slots__ = ("_content", "_msg_id", "_protocol")

    def __init__(self, content: Any, message_id: int | str | None, protocol: ChannelProtocol) -> None:
        self._content = content
        self._msg_id = message_id
        self._protocol = protocol

    @property
    def content(self) -> Any:
        """What the peer sent."""
        return self._content

    @property
    def is_oneway(self) -> bool:
        """Whether the peer does not wait for a reply; :meth:`reply` and :meth:`fail` then do nothing."""
        return self._msg_id is None

    @property
    def identity(self) -> Identity:
        """Who the peer is, as of :attr:`aiomas_ng.channel.Channel.identity`."""
        channel = self._protocol.channel
        assert channel is not None
        return channel.identity

    async def reply(self, result: Any) -> None:
        """Answer with *result*; an async generator is streamed item by item, until its end.

        If the result cannot be encoded, the peer gets that as the error. Waits while the peer reads too
        slowly. Cancelling it ends a stream, and the peer is told so.

        Raises:
            ChannelClosedError: The connection has ended.
        """
        channel = self._channel()
        if self._msg_id is None:
            return
        if is_stream(result):
            job = channel._start_job(self._msg_id, result)
            if job is not None:
                try:
                    await asyncio.wait([job.task])
                except asyncio.CancelledError:
                    job.cancel()
                    raise
        else:
            await self._protocol.drain()
            channel._answer(self._msg_id, result)
        await self._protocol.drain()

    async def fail(self, exception: BaseException) -> None:
        """Answer with *exception*, which the peer gets as a :exc:`~aiomas_ng.exceptions.RemoteException`.

        Raises:
            ChannelClosedError: The connection has ended.
        """
        channel = self._channel()
        if self._msg_id is None:
            return
        await self._protocol.drain()
        channel._answer_error(self._msg_id, exception)
        await self._protocol.drain()

    def _channel(self) -> Answerer:
        channel = self._protocol.channel
        assert channel is not None
        channel._check_open()
        return channel


class Answerer(Connection):
    """Takes the requests of the peer and answers them."""

    def __init__(
        self, protocol: ChannelProtocol, codec: codecs.Codec, transport: Any, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(protocol, codec, transport, loop)
        self._handler: Handler | None = None
        self._lane: Lane | None = None
        # Requests that nobody has taken yet, by id, with their size in bytes; those of the lane by their
        # token.  One-way messages have a key of their own; a peer may cancel as many requests as it likes, so
        # they are not searched for.
        self._inbox: collections.OrderedDict[Any, tuple[Any, int]] = collections.OrderedDict()
        self._inbox_size = 0
        self._violations = 0
        self._batched = 0  # tasks that work on the calls of batches
        self._streams = 0  # jobs that stream
        self._oneways = Oneways(self)
        self._when_lost(self._drop_waiting)

    async def recv(self) -> Request:
        """Wait for the next request of the peer and return it.

        Raises:
            ChannelClosedError: The connection has ended, and every request that had arrived was returned; or
                it is about to be closed on this side, and takes no new requests.
            RuntimeError: Another task waits in ``recv`` already, or the requests are served by an RPC
                service.

        Cancelling it is safe: no request is lost.
        """
        if self._handler is not None and self._closing is None:
            raise RuntimeError("the requests of this channel are served by an RPC service")
        if self._waiter is not None:
            raise RuntimeError("recv() is called while another task waits in it")
        while True:
            while not self._inbox:
                self._check_open()
                if self._closing is not None:
                    raise ClosedByUsError(self._closing)
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            msg_id, content = self._take_from_inbox()
            self._read_if_there_is_room()
            if type(content) is LaneMessage:
                self._pass_to_lane(content)
            elif type(content) is _Rejected:
                self._answer_error(msg_id, content.error)
            else:
                return Request(content, msg_id, self._protocol)

    def _serve(self, handler: Handler) -> None:
        """Let *handler* take all requests, from those that wait on."""
        self._handler = handler
        self._serve_inbox()

    def _serve_inbox(self, count: int = sys.maxsize) -> None:
        """Let handler and lane take *count* requests that wait, as far as the peer reads the replies."""
        handler = self._handler
        while count and self._inbox and not self._protocol.is_paused and self._error is None:
            if handler is None and type(next(iter(self._inbox.values()))[0]) is not LaneMessage:
                break  # for recv()
            msg_id, content = self._take_from_inbox()
            if type(content) is LaneMessage:
                self._pass_to_lane(content)
            elif type(content) is _Rejected:
                self._answer_error(msg_id, content.error)
            else:
                assert handler is not None
                handler(msg_id, content)
            count -= 1
        self._read_if_there_is_room()

    def _read_if_there_is_room(self) -> None:
        if not self._is_reading and self._has_room(0) and not self._oneways.is_full:
            self._start_reading()

    def _serve_lane(self, lane: Lane) -> None:
        """Let *lane* take all messages that are not for RPC."""
        self._lane = lane

    def _pass_to_lane(self, message: LaneMessage) -> None:
        assert self._lane is not None
        try:
            self._lane.take(message.content)
        except ProtocolError as violation:
            self._note_violation(violation)

    def _take_from_inbox(self) -> tuple[Any, Any]:
        key, (content, size) = self._inbox.popitem(last=False)
        self._note_taken(size)
        return (None if type(key) is object else key), content

    def _note_taken(self, size: int) -> None:
        self._inbox_size -= size
        if self._error is None:  # else nothing of it counts any more
            self._budget.take(size)

    def _has_room(self, size: int) -> bool:
        limits, waiting = self._limits, len(self._inbox)
        if waiting >= limits.requests or self._inbox_size + size > max(limits.inbox_size, size):
            return False
        # One may always wait, so that each connection goes on, whatever the others hold.
        return not waiting or self._budget.has_room_to_wait(size)

    def _put_inbox(self, msg_id: int | str | bytes | None, content: Any, size: int) -> None:
        """Keep a request until it can be taken; beyond the bound stop reading, or refuse it where waiting is
        not safe.

        Raises:
            MalformedFrameError: A request of that id waits already.
        """
        if msg_id is not None and msg_id in self._inbox:
            raise MalformedFrameError(
                f"the peer used id {short(msg_id)} again before its request was answered"
            )
        if not self._has_room(size):
            if not self._is_waiting() or self._protocol.is_backlogged():
                self._stop_reading()
            elif type(content) is LaneMessage:
                assert self._lane is not None
                self._lane.refuse(content.content)
                return
            else:
                assert not isinstance(msg_id, bytes)
                # Our own calls wait for replies that come behind this request, so it cannot be waited for.
                error = OverloadError(
                    f"{len(self._inbox)} requests wait here already; this one was not accepted"
                )
                self._answer_error(msg_id, error)
                return
        self._inbox[object() if msg_id is None else msg_id] = content, size
        self._inbox_size += size
        self._budget.put(size)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _is_waiting(self) -> bool:
        """Return whether requests of ours wait for the peer."""
        return bool(self._exchange.calls) or (self._lane is not None and self._lane.is_waiting)

    def _reject_request(self, msg_id: int | str, error: AiomasError, size: int) -> None:
        """Answer a request that cannot be taken, in its turn if the peer does not read our answers."""
        if self._protocol.is_paused:
            self._put_inbox(msg_id, _Rejected(error), size + REJECTED_SIZE)
        else:
            self._answer_error(msg_id, error)

    def _take_cancel(self, msg_id: Any) -> None:
        """The peer does not want the result of a request any more: stop the work, answer nothing."""
        if not isinstance(msg_id, int | str):
            return
        job = self._exchange.end(msg_id)
        if job is not None:
            job.cancel()
        else:
            self._withdraw(msg_id)

    def _withdraw(self, key: int | str | bytes) -> None:
        """Drop a request that waits in the inbox, if it is there."""
        if key in self._inbox:
            self._note_taken(self._inbox.pop(key)[1])

    def _settle(self, msg_id: int | str | None, result: Any, path: str | None = None) -> None:
        """Answer with what the handler at *path* returned: now, or through a :class:`Job` if it has to be
        waited for."""
        if type(result) not in PLAIN_TYPES and (is_awaitable(result) or is_stream(result)):
            self._start_job(msg_id, result, path)
        elif msg_id is not None:
            self._answer(msg_id, result)

    def _start_job(self, msg_id: int | str | None, result: Any, path: str | None = None) -> Job | None:
        """Work on *result* in a task; return ``None`` if there is no room for it, or the id is in use."""
        job = Job(self, msg_id, result, path)
        if not self._has_room_to_work():
            if msg_id is None and self._oneways.put(job):
                return None
            job.dispose()
            self._refuse_work(msg_id)
            return None
        if msg_id is not None:
            try:
                self._exchange.begin(msg_id, job)
            except ProtocolError as violation:
                job.dispose()
                self._note_violation(violation)
                return None
        self._begin_work(job)
        return job

    def _give_up(self, job: Job, error: BaseException) -> None:
        """Answer with *error* although the *job* has not ended."""
        msg_id = job.msg_id
        if msg_id is None:
            text = "a one-way call from %s was given up: %s"
            self._log(logging.WARNING, text, self._protocol._peername(), error)
        elif self._exchange.jobs.get(msg_id) is job:
            self._exchange.end(msg_id)
            self._answer_error(msg_id, error)

    def _has_room_to_work(self, count: int = 1) -> bool:
        """Return whether *count* further tasks may work on requests."""
        has_room = len(self._running) + self._batched + count <= self._limits.requests
        return has_room and self._budget.has_room_to_work(count)

    def _begin_work(self, job: Job) -> None:
        self._running.add(job)
        self._budget.begin()
        self._protocol._turns.left -= COST_OF_TASK
        job.start()

    def _refuse_work(self, msg_id: int | str | None) -> None:
        if msg_id is not None or self._oneways.note_drop():
            self._answer_error(msg_id, OverloadError("too many requests are being worked on"))

    def _drop_waiting(self, error: ChannelClosedError) -> None:
        """The connection has ended: what waits to be worked on is dropped, what waits for recv() stays."""
        self._oneways.close()
        self._budget.take(self._inbox_size, len(self._inbox))

    def _finish(self, job: Job, result: Any = None, error: BaseException | None = None) -> None:
        """Take the outcome of a :class:`Job`."""
        if job in self._running:
            self._running.remove(job)
            self._budget.end()
            if self._oneways.jobs:
                self._oneways.begin()
        msg_id = job.msg_id
        if msg_id is not None and self._exchange.jobs.get(msg_id) is job:
            self._exchange.end(msg_id)
            if error is None:
                self._answer(msg_id, result)
            else:
                self._answer_error(msg_id, error)
        elif error is None or (self.is_closed and isinstance(error, ChannelClosedError)):
            pass
        elif isinstance(error, Exception) or not job.task.cancelling():
            what = "a one-way call" if msg_id is None else "a call that was given up"
            self._log(logging.ERROR, "%s from %s failed", what, self._protocol._peername(), error=error)

    def _answer(self, msg_id: int | str, result: Any) -> None:
        try:
            if type(result) is bytes and codecs.is_large(result):
                self._protocol.write_pieces(self._encode_pieces((RESULT, msg_id, result)))
                self._protocol._turns.left = 0  # to copy it has taken long enough
                return
            payload = self._encode((RESULT, msg_id, result))
            if self._running:  # others may end in the same turn of the loop
                self._protocol.write(payload)
            else:
                self._protocol.write_now(payload)
        except BaseException as error:  # also what a serializer of the user's raises
            self._answer_error(msg_id, error)
            pass_on_interrupt(error)

    def _describe(self, error: BaseException) -> list[str]:
        """Return *error* as the peer is told of it; what it is not told goes to the log."""
        has_traceback = self._protocol.tracebacks
        if not has_traceback and failure.is_fault(error):
            peer = self._protocol._peername()
            self._log(logging.ERROR, "a request from %s failed", peer, error=error)
        return failure.describe(error, has_traceback=has_traceback)

    def _answer_error(self, msg_id: int | str | None, error: BaseException) -> None:
        if self._error is not None:
            return
        description = self._describe(error)
        try:
            self._protocol.write(self._encode((EXCEPTION, msg_id, description)))
        except FrameTooLargeError:
            # A limit so small that even a traceback does not fit: the shortest form there is.
            self._protocol.write(self._encode((EXCEPTION, msg_id, [description[0], ""])))
        except SerializationError as cause:
            # Of all that is in the frame, only the id is not ours.
            self._note_violation(MalformedFrameError(f"a request has an id that cannot be encoded: {cause}"))

    def _note_violation(self, error: AiomasError) -> None:
        """Log a broken rule and tell the peer; close the connection when there were too many."""
        self._violations += 1
        peer = self._protocol._peername()
        self._log(
            logging.WARNING, "%s broke the rules of the wire: %s: %s", peer, type(error).__name__, error
        )
        if self._violations > self._limits.violations:
            self._abort(
                f"the peer broke the rules of the wire {self._violations} times, last: {error}", error
            )
        elif not self._protocol.is_paused:
            self._answer_error(None, error)

    def _open_stream(self, msg_id: int | str) -> None:
        """Begin to answer a request by a stream; :meth:`_close_stream` ends it.

        Raises:
            OverloadError: There are too many streams.
        """
        if self._streams >= self._limits.streams:
            raise OverloadError(f"{self._streams} streams go over this connection, which is the limit")
        self._streams += 1
        self._send_control(frames.STREAM, msg_id)

    def _close_stream(self) -> None:
        self._streams -= 1

    def _send_item(self, msg_id: int | str, item: Any) -> None:
        self._check_open()
        self._protocol.write(self._encode((frames.ITEM, msg_id, item)))

    def _writing_resumed(self) -> None:
        self._check_stall()
        # In between comes what waits in drain(), streams for example, lest one starves the other.
        self._serve_inbox(1)
        if self._inbox:
            self._loop.call_soon(self._serve_inbox)


class _Rejected:
    """Lies in the inbox in the place of a request that could not be decoded."""

    __slots__ = ("error",)

    def __init__(self, error: AiomasError) -> None:
        self.error = error


class LaneMessage:
    """Lies in the inbox in the place of a message that is for the :class:`Lane`."""

    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content
