"""Request-reply channels over TCP, TLS, Unix domain sockets and LocalQueue.

One :class:`Channel` is one connection; both of its ends may send requests and answer those of the other. The
way of a request::

    Channel.send ── codec ── frame ──▶ transport ──▶ ChannelProtocol.data_received
        │ Reply (a future)                               │ FrameParser, codec
        ▼                                                ▼
    data_received ◀── transport ◀── frame ── codec ◀── handler, or Channel.recv and Request.reply

A handler that is a plain function is run inside ``data_received``: no task and no queue lie between the bytes
of a request and those of its reply, and the replies to all requests of one read go out in one write.

The reference is the API page of ``aiomas.channel``. We differ in that a call that ends early harms no other,
that everything is bounded (see :class:`Limits`), and in what is new: URLs as addresses, one-way messages,
streamed replies, cancellation that reaches the peer.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from aiomas_ng import codecs, local_queue, tuning, util
from aiomas_ng._core.budget import Budget
from aiomas_ng._core.codec_errors import describe
from aiomas_ng._core.frames import BUNDLE, CLOSE, EXCEPTION, REQUEST, RESULT
from aiomas_ng._core.framing import HEADER as Header
from aiomas_ng._core.framing import Frame, FrameParser, Oversized
from aiomas_ng._core.limits import DEFAULT_LIMITS, Limits
from aiomas_ng._core.session import Session, Tally
from aiomas_ng._io import tls_mistakes
from aiomas_ng._io.admission import Admission
from aiomas_ng._io.answerer import Request
from aiomas_ng._io.bulk import BulkReader
from aiomas_ng._io.connection import logger
from aiomas_ng._io.dispatcher import BUNDLE_SIZE, Dispatcher
from aiomas_ng._io.endpoint import Server, dial, listen
from aiomas_ng._io.frame_watch import FrameWatch
from aiomas_ng._io.handshake import hand_over
from aiomas_ng._io.heartbeat import Heartbeat, begin_heartbeat
from aiomas_ng._io.job import is_awaitable, pass_on_interrupt
from aiomas_ng._io.limited_log import LimitedLog
from aiomas_ng._io.reply import Reply, ReplyStream
from aiomas_ng._io.resumption import Redial, Resumption, Sessions
from aiomas_ng._io.returning import Returning, wait_for_return
from aiomas_ng._io.turns import Messages, Turns
from aiomas_ng._io.writer import FrameWriter
from aiomas_ng.exceptions import (
    AiomasError,
    ChannelClosedError,
    ClosedByPeerError,
    ClosedByUsError,
    ConnectionStalledError,
    DeserializationError,
    FrameTooLargeError,
    MalformedFrameError,
    OverloadError,
    PeerUnresponsiveError,
    ProtocolError,
)
from aiomas_ng.liveness import Liveness

__all__ = [
    "DEFAULT_CODEC",
    "EXCEPTION",
    "REQUEST",
    "RESULT",
    "Channel",
    "ChannelProtocol",
    "Header",
    "Limits",
    "Reply",
    "ReplyStream",
    "Request",
    "Server",
    "open_connection",
    "open_pair",
    "start_server",
]

DEFAULT_CODEC: Final = codecs.MsgPack

#: Bytes of a read that may well be a single frame.
SMALL: Final = 4096

#: Seconds of a TLS handshake that asyncio is asked for where there is no limit.
LONGEST_HANDSHAKE: Final = 10**6

CodecFactory = Callable[[], codecs.Codec]
Serializers = Iterable[Callable[[], tuple[Any, ...]]]


async def open_connection(
    addr: Any,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    codec: CodecFactory | None = None,
    extra_serializers: Serializers = (),
    timeout: float | None = 0,
    limits: Limits = DEFAULT_LIMITS,
    resumable: bool = False,
    liveness: Liveness | None = None,
    tracebacks: bool = False,
    budget: Budget | None = None,
    **kwds: Any,
) -> Channel:
    """Connect to *addr* and return the :class:`Channel`.

    Args:
        addr: ``(host, port)``, the path of a Unix domain socket, a
            :class:`~aiomas_ng.local_queue.LocalQueue`, or one of them as a URL: ``tcp://host:port``,
            ``ipc://[path]``, ``local://id``.
        loop: The event loop, by default the running one.
        codec: A subclass of :class:`~aiomas_ng.codecs.Codec`, by default :class:`~aiomas_ng.codecs.MsgPack`.
        extra_serializers: Callables that return the arguments of
            :meth:`~aiomas_ng.codecs.Codec.add_serializer`.
        timeout: Seconds to go on trying, with growing pauses, while nobody answers; 0 tries once, ``None``
            for ever.
        limits: Bounds of this side of the connection.
        resumable: If the connection breaks, take it up again, with all that was under way, provided that the
            server is resumable as well.
        liveness: When and how patiently the peer is asked whether it is there, by default never.
        tracebacks: Whether the peer gets the tracebacks of exceptions on this side, besides type and message;
            else these are in our log.
        budget: What it shares with other connections of a container.
        **kwds: ``network`` is a :class:`~aiomas_ng.faults.Network` that the connection goes through. The rest
            is passed on to the loop's ``create_connection`` or ``create_unix_connection``. ``ssl`` is a
            context for TLS; the certificate of a server at a Unix socket has to be for ``localhost``, or for
            ``server_hostname``.

    Raises:
        ConnectError: Nobody answers at *addr* (a ``ConnectionRefusedError``).
        TLSError: One of both sides refuses the other one; it is not tried again. That a server refuses the
            certificate of the client only shows at the first call
            (:exc:`~aiomas_ng.exceptions.TLSRefusedError`).
        SocketPathError: Nor does the socket's path exist (a ``FileNotFoundError`` as well).
        AddressError: *addr* is no address.

    Cancelling it is safe; the attempt is given up.
    """
    loop = loop or util.get_loop()
    _check_figures(limits, liveness)
    make_codec = _codec_factory(codec, extra_serializers)
    instance = make_codec()  # before anything is dialled: a codec may miss its package

    async def redial(make_protocol: Callable[[], Any]) -> Any:
        return await dial(addr, make_protocol, timeout=0, loop=loop, **kwds)

    def factory() -> ChannelProtocol:
        protocol = ChannelProtocol(
            instance, loop=loop, limits=limits, liveness=liveness, tracebacks=tracebacks, budget=budget
        )
        if resumable:
            protocol.make_resumable(redial=redial)
        return protocol

    _limit_handshake(kwds, limits)
    protocol = await dial(addr, factory, timeout=timeout, loop=loop, **kwds)
    assert protocol.channel is not None
    return protocol.channel


async def start_server(
    addr: Any,
    client_connected_cb: Callable[[Channel], Any],
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    codec: CodecFactory | None = None,
    extra_serializers: Serializers = (),
    limits: Limits = DEFAULT_LIMITS,
    resumable: bool = False,
    liveness: Liveness | None = None,
    tracebacks: bool = False,
    insecure: bool = False,
    budget: Budget | None = None,
    **kwds: Any,
) -> Server:
    """Listen on *addr* and call *client_connected_cb* with the :class:`Channel` of every client.

    Args:
        addr: As for :func:`open_connection`.  With port 0 the system gives one: see :attr:`Server.url`.
        client_connected_cb: A function or coroutine function.  If it fails, that connection is closed.
        loop: The event loop, by default the running one.
        codec: As for :func:`open_connection`; each connection gets an instance.
        extra_serializers: As for :func:`open_connection`.
        limits: Bounds of this side of each connection, and of all of them.
        resumable: Let clients that ask for it take up connections that broke.
        liveness: As for :func:`open_connection`.
        tracebacks: As for :func:`open_connection`.
        insecure: To listen on all interfaces without TLS is meant; else the log gets a warning.
        budget: What they share with other connections of a container; by default they share one.
        **kwds: ``network`` is a :class:`~aiomas_ng.faults.Network` that applies to the connections. The rest
            is passed on to the loop's ``create_server`` or ``create_unix_server``. ``ssl`` is a context for
            TLS; who is refused then leaves a line in the log, and meets no part of the program.

    Raises:
        AddressInUseError: Somebody listens on *addr* already.
        AddressError: *addr* is no address.
    """
    loop = loop or util.get_loop()
    _check_figures(limits, liveness)
    make_codec = _codec_factory(codec, extra_serializers)
    make_codec()
    sessions = Sessions(limits)
    shared = budget or Budget(limits)
    log = LimitedLog(logger, f"refused connections to {addr}")
    admission = Admission(limits, log)

    def factory(connections: set[ChannelProtocol]) -> ChannelProtocol:
        protocol = ChannelProtocol(
            make_codec(),
            client_connected_cb,
            loop=loop,
            limits=limits,
            liveness=liveness,
            tracebacks=tracebacks,
            budget=shared,
        )
        protocol._connections = connections
        if resumable:
            protocol.make_resumable(sessions=sessions)
        protocol._admission = admission
        return protocol

    _limit_handshake(kwds, limits)
    return await listen(addr, factory, loop=loop, insecure=insecure, log=log, **kwds)


async def open_pair(
    name: str,
    *,
    loop: asyncio.AbstractEventLoop,
    codec: CodecFactory | None = None,
    extra_serializers: Serializers = (),
    limits: Limits = DEFAULT_LIMITS,
    tracebacks: bool = False,
    budget: Budget | None = None,
) -> tuple[Channel, Channel]:
    """Return the two ends of a channel within this process: no server, no socket, the same semantics.

    Args:
        name: What both ends call their peer.
        loop: The event loop.
        codec: As for :func:`open_connection`.
        extra_serializers: As for :func:`open_connection`.
        limits: Bounds of both ends.
        tracebacks: As for :func:`open_connection`, for both ends.
        budget: What they share with other connections of a container.
    """
    _check_figures(limits)
    make_codec = _codec_factory(codec, extra_serializers)
    near, far = (
        ChannelProtocol(make_codec(), loop=loop, limits=limits, tracebacks=tracebacks, budget=budget)
        for _ in range(2)
    )
    await local_queue.create_pair(lambda: near, lambda: far, names=(name, name), loop=loop)
    assert near.channel is not None
    assert far.channel is not None
    return near.channel, far.channel


def _limit_handshake(kwds: dict[str, Any], limits: Limits) -> None:
    """Give asyncio the time that a TLS handshake may take, unless the caller has."""
    if kwds.get("ssl") and kwds.get("ssl_handshake_timeout") is None:
        kwds["ssl_handshake_timeout"] = min(limits.handshake_time, LONGEST_HANDSHAKE)


def _check_figures(limits: Any, liveness: Any = None) -> None:
    if not isinstance(limits, Limits):
        raise TypeError(f"limits must be Limits, as in Limits(calls=100), but is {limits!r}")
    if liveness is not None and not isinstance(liveness, Liveness):
        raise TypeError(
            f"liveness must be Liveness, as in Liveness(interval=5), or None, but is {liveness!r}"
        )


def _codec_factory(codec: CodecFactory | None, extra_serializers: Serializers) -> CodecFactory:
    make = codec or DEFAULT_CODEC
    if not callable(make):
        raise TypeError(f"codec must be a subclass of Codec, not an instance or a name: {make!r}")
    if callable(extra_serializers):
        raise TypeError(
            f"extra_serializers must be a list, as in [Class.__serializer__], not {extra_serializers!r}"
        )
    serializers = tuple(extra_serializers or ())

    def factory() -> codecs.Codec:
        instance = make()
        for serializer in serializers:
            try:
                type_, serialize, deserialize = serializer()
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"each of extra_serializers must be callable and return type, serializer, deserializer, "
                    f"as Class.__serializer__ does; {serializer!r} does not: {error}"
                ) from error
            instance.add_serializer(type_, serialize, deserialize)
        return instance

    return factory


class ChannelProtocol(FrameWriter, asyncio.Protocol):
    """Between a transport and a :class:`Channel`: bytes to frames and back, and flow control.

    Args:
        codec: Encodes and decodes the frames.
        client_connected_cb: A function or coroutine function that is called with the new channel.
        loop: The event loop.
        limits: Bounds of this side.
        liveness: When the peer is asked whether it is there, by default never.
        tracebacks: Whether the peer gets tracebacks.
        budget: What it shares with other connections of a container.
    """

    def __init__(
        self,
        codec: codecs.Codec,
        client_connected_cb: Callable[[Channel], Any] | None = None,
        *,
        loop: asyncio.AbstractEventLoop,
        limits: Limits = DEFAULT_LIMITS,
        liveness: Liveness | None = None,
        tracebacks: bool = False,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(loop, limits)
        self.tracebacks = tracebacks
        tuning.keep_freed_memory()
        self._resumption: Resumption | None = None
        self.codec = codec
        codec.use_limits(limits)
        self.budget = budget or Budget(limits)
        self.channel: Channel | None = None
        self._client_connected_cb = client_connected_cb
        self._parser = FrameParser(limits.frame_size)
        self._connections: set[ChannelProtocol] | None = None
        self._admission: Admission | None = None
        self._returning: Returning | None = None  # if there was no room for it
        self._turns = Turns(self, limits.turn, loop)
        self._frame_watch = FrameWatch(self._parser, limits, loop, self._is_read, self._give_up_frame)
        # Both are found once for a connection, and not once for a frame.
        self._decode: Callable[[Any], Any] = self._decode_first
        self._take_frame: Callable[[Any, Any, Any, int], None]
        self._plain = codecs.as_plain_msgpack(codec)
        self._is_decoding_known = False  # whether a frame of the peer was ever decoded
        self._callback_task: asyncio.Task[None] | None = None
        self._tally: Tally | Session = Tally()  # of the bytes that have come
        self.liveness = liveness
        self.heartbeat: Heartbeat | None = None

    def connection_made(self, transport: Any) -> None:
        """Make the :class:`Channel` and hand it to the ``client_connected_cb``."""
        wire = transport
        if self._resumption is not None:
            transport = self._resumption.begin(transport)
        self.transport = transport
        self.channel = Channel(self, self.codec, transport, self._loop)
        self._take_frame = self.channel._take_frame
        if self._admission is not None:
            reason = self._admission.admit(self, transport.get_extra_info("peername"))
            if reason is not None:
                self._returning = wait_for_return(self, reason)
                if self._returning is None:
                    self.refuse_connection(reason)
                elif self._connections is not None:
                    self._connections.add(self)
                return
        self.heartbeat = begin_heartbeat(self.channel, wire, self.liveness)
        if self._connections is not None:
            self._connections.add(self)
        if self._client_connected_cb is None:
            return
        try:
            result = self._client_connected_cb(self.channel)
        except BaseException as error:
            self._callback_failed(error)
            pass_on_interrupt(error)
        else:
            if is_awaitable(result):
                self._callback_task = self._loop.create_task(self._run_callback(result))

    def refuse_connection(self, reason: str) -> None:
        """There is no room for the connection: close it."""
        self._log_refusal("the connection from %s is refused: %s", self._peername(), reason)
        assert self.channel is not None
        self.channel._refuse_connection(reason)

    def stop_waiting_for_return(self) -> None:
        """The server has stopped listening: nobody returns any more."""
        if self._returning is not None:
            self._returning.refuse()

    async def _run_callback(self, result: Awaitable[Any]) -> None:
        try:
            await result
        except BaseException as error:
            assert self.channel is not None
            is_cancelled = isinstance(error, asyncio.CancelledError)
            # The usual way for such a callback to end is that its recv() meets the end of the connection.
            is_usual = is_cancelled or isinstance(error, ChannelClosedError)
            if not (is_usual and self.channel.is_closing):
                self._callback_failed(error)  # nobody serves the peer any more
            if is_cancelled:
                raise
            pass_on_interrupt(error)

    def _callback_failed(self, error: BaseException) -> None:
        assert self.channel is not None
        text = "client_connected_cb failed; closing the connection from %s"
        self._log_refusal(text, self._peername(), level=logging.ERROR, error=error)
        self.channel._set_error(ClosedByUsError("client_connected_cb failed"))

    def _log_refusal(
        self, text: str, *args: Any, level: int = logging.WARNING, error: BaseException | None = None
    ) -> None:
        """Log why there is no such connection any more: with the others that its server refuses, as who is
        refused may come again with a new one."""
        assert self.channel is not None
        log = self.channel._log if self._admission is None else self._admission.log.log
        log(level, text, *args, error=error)

    def _peername(self) -> Any:
        assert self.channel is not None
        return self.channel.get_extra_info("peername") or self.channel.get_extra_info("sockname")

    def data_received(self, data: bytes) -> None:
        """Cut *data* into frames, decode them and pass them to the channel; write the answers in one go."""
        parser = self._parser
        tally = self._tally
        tally.received += len(data)
        if len(data) < SMALL and parser.is_frame(data):
            # As nearly always where one call follows the other: there is nothing to gather.
            if self.channel is not None and self.channel._error is None:
                self._take_payload(data[4:])
        elif not self._is_decoding_known and not parser.unfinished and tls_mistakes.is_mistaken(data):
            assert self.channel is not None
            tls_mistakes.refuse_mistaken(self.channel, data)
        else:
            frames = parser.feed(data)
            if frames:
                self._take_payloads(frames)
            if parser.is_in_bulk and not self.transport.is_closing():
                # Into one large buffer, and not piece by piece: twice as fast. For small frames it is slower.
                BulkReader(
                    self,
                    parser,
                    self._take_payloads,
                    self._refuse_frame,
                    self.budget,
                    is_copied=self._plain is not None,
                )
            self._frame_watch.look()
        if tally.received >= tally.ack_at:
            self._look()

    @property
    def received(self) -> int:
        """Bytes that have come."""
        return self._tally.received

    def bulk_received(self, size: int) -> None:
        """A :class:`~aiomas_ng._io.bulk.BulkReader` has read *size* bytes."""
        tally = self._tally
        tally.received += size
        if tally.received >= tally.ack_at:
            self._look()

    def _look(self) -> None:
        if self._resumption is not None:
            self._resumption.look()

    def _take_payloads(self, payloads: Sequence[Frame | Oversized]) -> None:
        turns = self._turns
        if not turns.begin(payloads):
            return
        channel = self.channel
        assert channel is not None
        self.gather()
        try:
            for index, payload in enumerate(payloads):
                if channel._error is not None:
                    break
                if not turns.count(payload):
                    turns.put_aside(payloads[index:])
                    break
                self._take_any(payload)
        finally:
            self.release()

    def _handle_waiting(self, waiting: collections.deque[Any]) -> None:
        """Take payloads that have waited, as many as have their turn."""
        channel = self.channel
        assert channel is not None
        self.gather()
        try:
            while waiting and channel._is_reading and channel._error is None:
                payload = waiting[0]
                if isinstance(payload, Messages) or not self._turns.count(payload):
                    break
                waiting.popleft()
                self._take_any(payload)
        finally:
            self.release()

    def _take_any(self, payload: Frame | Oversized) -> None:
        if isinstance(payload, Oversized):
            self._reject_oversized(payload)
        else:
            self._take_payload(payload)

    def _take_messages(self, rest: Messages) -> None:
        """Take what is left of a bundle."""
        assert self.channel is not None
        self.gather()
        try:
            self.channel._take_messages(rest.messages, rest.share)
        finally:
            self.release()

    def resume_reading(self) -> None:
        """Read again, after all that has been read already."""
        if self._turns.waiting:
            self._turns.schedule()
        else:
            self._frame_watch.excuse()
            self.transport.resume_reading()

    def _decode_first(self, payload: Frame) -> tuple[Any, Any, Any]:
        """Decode a payload as long as none could be decoded."""
        decode = self.codec.decode
        msg_type, msg_id, content = decode(payload)
        self._is_decoding_known = True
        self._decode = decode
        return msg_type, msg_id, content

    def _take_payload(self, payload: Frame, is_bundled: bool = False) -> None:
        try:
            msg_type, msg_id, content = self._decode(payload)
        except BaseException as error:  # a deserializer of the user's may raise anything
            self._reject_undecodable(payload, error, is_bundled)
            pass_on_interrupt(error)
            return
        try:
            if msg_type == BUNDLE and not is_bundled:
                if len(payload) > BUNDLE_SIZE:
                    self._reject(
                        payload, FrameTooLargeError(len(payload), BUNDLE_SIZE, "a bundle from the peer")
                    )
                    return
                assert self.channel is not None
                self.gather()
                try:
                    self.channel._take_bundle(content, len(payload))
                finally:
                    self.release()
            else:
                self._take_frame(msg_type, msg_id, content, len(payload))
        except ProtocolError as error:
            assert self.channel is not None
            self.channel._note_violation(error)

    def _refuse_frame(self, frame: Oversized) -> None:
        """There is no room for a large frame, although it is within the limit for one."""
        envelope = self.codec.peek(frame.head)
        if envelope is not None and envelope[0] == REQUEST:
            text = f"there is no room for a request of {frame.size} bytes beside those of other connections"
            self._reject(frame.head, OverloadError(text))
        else:
            what = "a frame from the peer, for which there is no room beside those of other connections,"
            self._reject(frame.head, FrameTooLargeError(frame.size, self.limits.frame_size, what))

    def _is_read(self) -> bool:
        if self.channel is None or self._turns.waiting or not self.channel._is_reading:
            return False
        return not self.is_interrupted

    @property
    def is_interrupted(self) -> bool:
        """Whether the transport broke, and another one may come."""
        return self._resumption is not None and self._resumption.is_interrupted

    def _give_up_frame(self, reason: str) -> None:
        if self.channel is not None and self.channel._error is None:
            error = ConnectionStalledError(reason)
            self._log_refusal("the connection from %s is given up: %s", self._peername(), reason)
            self.channel._answer_error(None, error)
            closed = ClosedByUsError(reason)
            closed.__cause__ = error
            self.channel._set_error(closed)

    def _reject_oversized(self, frame: Oversized) -> None:
        error = FrameTooLargeError(frame.size, self.limits.frame_size, "a frame from the peer")
        self._reject(frame.head, error)

    def _reject_undecodable(self, payload: Frame, error: BaseException, is_bundled: bool) -> None:
        if self._plain is not None and not is_bundled and len(payload) <= BUNDLE_SIZE:
            messages = self._plain.split(payload)
            if messages is not None:  # one of a bundle is bad; the others are fine
                for message in messages:
                    if self.channel is not None and self.channel._error is None:  # else one has ended it
                        self._take_payload(message, is_bundled=True)
                return
        cause = (
            error
            if isinstance(error, DeserializationError)
            else MalformedFrameError(f"not [type, id, content]: {describe(error)}")
        )
        # Without its way through the codec: it is not a handler that raised.
        self._reject(payload, cause.with_traceback(None))

    def _reject(self, payload: Frame, error: AiomasError) -> None:
        """Answer or end the request that a bad frame belongs to, if that can still be read from it."""
        channel = self.channel
        assert channel is not None
        try:
            envelope = self.codec.peek(payload)
        except Exception:  # of a codec of the user's
            envelope = None
        if envelope is not None:
            self._is_decoding_known = True
            channel._reject_frame(*envelope, error, len(payload))
            return
        violation = MalformedFrameError(f"{type(error).__name__}: {error}")
        violation.__cause__ = error
        if isinstance(error, FrameTooLargeError):
            # It may have been the reply to any call: waiting on would be waiting for ever.
            channel._fail_calls(error)
        elif not self._is_decoding_known:
            hint = (
                f"{violation} (do both sides use the same codec? this one uses {type(self.codec).__name__})"
            )
            violation = MalformedFrameError(hint)
            violation.__cause__ = error
            if channel._is_waiting():
                # What answers us does not understand us: to complain to it would have no end.
                channel._fail_calls(violation)
                channel._abort(str(violation), violation)
                return
        channel._note_violation(violation)

    def eof_received(self) -> None:
        """The peer has closed its side: fail what waits, and let the transport close."""
        if self.channel is not None and not self._is_resumable(None):
            self.channel._set_error(self._lost_error(None))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail everything that waits with a :exc:`~aiomas_ng.exceptions.ChannelClosedError`, unless the
        connection can be taken up again."""
        if self._is_resumable(exc):
            return
        if self._connections is not None:
            self._connections.discard(self)
        if self._admission is not None:
            self._admission.leave(self)
        self._frame_watch.stop()
        if self.channel is not None:
            self.channel._set_error(self._lost_error(exc))
            self.channel._connection_lost()
        self.is_paused = False

    def _is_resumable(self, exc: Exception | None) -> bool:
        """The transport has ended: return whether another one may take its place."""
        resumption = self._resumption
        if resumption is None or not resumption.can_resume:
            return False
        if self.channel is None or self.channel._error is not None:
            return False
        resumption.interrupt(self._lost_error(exc).reason)
        return True

    def interrupted(self) -> None:
        """The connection has no transport any more, and may get another one."""
        if self._admission is not None:
            self._admission.leave(self)

    def resumed(self, wire: Any) -> None:
        """The connection goes on with the transport *wire*."""
        self._frame_watch.excuse()
        if self._admission is not None:
            self._admission.readmit(self, wire.get_extra_info("peername"))

    def peer_closes(self) -> None:
        """The peer has said that it closes the connection: it is not taken up again."""
        if self._resumption is not None:
            self._resumption.give_up()

    def stop_resuming(self) -> None:
        """The peer was told that we are about to close the connection; if it breaks, it has ended."""
        resumption = self._resumption
        if resumption is not None and not resumption.is_interrupted:
            resumption.give_up()

    def hand_over(self, request: Any) -> None:
        """The peer has connected to take up an earlier connection."""
        hand_over(self, request)

    def close_transport(self) -> None:
        """Close the transport, after telling a peer that would connect anew."""
        resumption = self._resumption
        if resumption is not None:
            if resumption.can_resume and not self.transport.is_closing():
                with contextlib.suppress(FrameTooLargeError):
                    self.write(self.codec.encode((CLOSE, 0, "the connection is closed")))
                self.flush()
            resumption.give_up()
        super().close_transport()

    def make_resumable(self, *, redial: Redial | None = None, sessions: Sessions | None = None) -> None:
        """Take the connection up again when it breaks, if the peer is able to; to be called before there is a
        transport.

        Args:
            redial: Connects anew, if we dial.
            sessions: Where who connects anew finds this connection, if we are dialled.
        """
        self._resumption = Resumption(self, redial=redial, sessions=sessions)
        self._session = self._tally = self._resumption.session

    def get_tasks(self) -> list[asyncio.Task[None] | None]:
        """Return the tasks that belong to the connection."""
        return [self._callback_task, self._resumption.task if self._resumption is not None else None]

    def _lost_error(self, exc: Exception | None) -> ChannelClosedError:
        if not self._is_decoding_known and self.channel is not None:
            error = tls_mistakes.explain_loss(self.channel, exc)
            if error is not None:
                error.__cause__ = exc
                return error
        reason = "the peer closed the connection" if exc is None else f"the connection broke: {exc}"
        unfinished = self._parser.unfinished
        if unfinished:
            reason += f" in the middle of a frame ({unfinished} bytes of it had arrived)"
        # The kernel has given it up: its own questions were not answered either.
        error = (PeerUnresponsiveError if isinstance(exc, TimeoutError) else ClosedByPeerError)(reason)
        error.__cause__ = exc
        return error

    def pause_writing(self) -> None:
        """The transport's buffer is full: new requests of the peer wait until it has emptied."""
        super().pause_writing()
        if self.channel is not None:
            self.channel._check_stall()

    def resume_writing(self) -> None:
        """The transport's buffer has emptied: go on, first with what was held back meanwhile."""
        super().resume_writing()
        if not self.is_paused and self.channel is not None:
            self.channel._writing_resumed()

    async def drain(self) -> None:
        """Wait until the transport's buffer has room.

        Raises:
            ChannelClosedError: The connection has ended.
        """
        assert self.channel is not None
        while self.is_paused and self.channel._error is None:
            waiter = self._loop.create_future()
            self._drain_waiters.append(waiter)
            await waiter
        self.channel._check_open()


class Channel(Dispatcher):
    """One end of a connection: sends requests (:meth:`send`), and receives those of the other end
    (:meth:`recv`).

    Made by :func:`open_connection` and :func:`start_server`.

    Args:
        protocol: Reads and writes the frames.
        codec: The codec of this connection.
        transport: The transport.
        loop: The event loop.
    """
