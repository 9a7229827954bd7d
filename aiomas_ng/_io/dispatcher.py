"""Both halves of a channel together: which of them a frame of the peer concerns."""

from __future__ import annotations

import logging
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng import codecs
from aiomas_ng._core import failure, frames
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.frames import BUNDLE, EXCEPTION, MESSAGE, REQUEST, RESULT
from aiomas_ng._io.answerer import LaneMessage
from aiomas_ng._io.closing import Closer
from aiomas_ng._io.principal import CURRENT_PRINCIPAL
from aiomas_ng._io.reply import StreamState
from aiomas_ng._io.writer import CORK_SIZE, MAX_GATHERED
from aiomas_ng.exceptions import (
    AiomasError,
    ClosedByUsError,
    MalformedFrameError,
    ProtocolError,
    TooManyConnectionsError,
    UnknownFrameTypeError,
)

if TYPE_CHECKING:
    import asyncio

    from aiomas_ng.channel import ChannelProtocol

__all__ = ["BUNDLE_SIZE", "Dispatcher"]

#: What those are told who request a resource of a peer that has none: 4.04, and why.
NOT_FOUND: Final = 0x84
NO_RESOURCES: Final = b"there are no resources here"

#: Bytes of a bundle that we take, at most.
BUNDLE_SIZE: Final = 2 * CORK_SIZE

SEQUENCES: Final = (tuple, list)

#: Codes of requests are below.
FIRST_RESPONSE: Final = 32


class Dispatcher(Closer):
    """Takes the decoded frames of the peer."""

    def __init__(
        self, protocol: ChannelProtocol, codec: codecs.Codec, transport: Any, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(protocol, codec, transport, loop)
        self._due_pong: int | None = None
        self._has_greeted = False

    def _take_frame(self, msg_type: Any, msg_id: Any, content: Any, size: int) -> None:
        """Take a decoded frame.

        Raises:
            ProtocolError: It breaks the rules.
        """
        if type(msg_type) is not int:
            raise MalformedFrameError(f"a frame's type must be an integer but is {short(msg_type)}")
        if msg_type == RESULT:
            call = self._exchange.calls.pop(msg_id, None) if type(msg_id) is int else None
            if type(call) is StreamState:
                call.end()
            elif call is None:
                self._exchange.settle(msg_id)  # it has ended before, or never was
            elif not call.done():
                call.set_result(content)
        elif msg_type == REQUEST:
            if type(msg_id) is not int and type(msg_id) is not str:
                raise MalformedFrameError(
                    f"a request's id must be an integer or a string but is {short(msg_id)}"
                )
            exchange = self._exchange
            if not exchange._has_seen_request and exchange.greet(msg_id):
                self._welcome()
            if self._handler is not None and not self._inbox and not self._protocol.is_paused:
                self._handler(msg_id, content)
            else:
                self._put_inbox(msg_id, content, size)
        elif msg_type == EXCEPTION:
            self._take_exception(msg_id, content)
        else:
            self._take_extension(msg_type, msg_id, content, size)

    def _take_bundle(self, messages: Any, size: int) -> None:
        """Take several frames that came as one.

        Args:
            messages: The content of the frame, a sequence of ``(type, id, content)``.
            size: Bytes of all of them.

        Raises:
            ProtocolError: It is no such sequence.
        """
        if type(messages) not in SEQUENCES or not messages:
            raise MalformedFrameError(f"a bundle must be an array of frames but is {short(messages)}")
        self._take_messages(messages, size // len(messages))

    def _take_messages(self, messages: Any, share: int) -> None:
        """Take frames of a bundle, each of which counts for *share* bytes, as many as have their turn."""
        turns = self._protocol._turns
        before = turns.begin_bundle()
        if len(messages) > MAX_GATHERED:
            turns.put_back(messages[MAX_GATHERED:], share)
            messages, before = messages[:MAX_GATHERED], 0  # nothing else has its turn before them
        rest = iter(messages)
        token = CURRENT_PRINCIPAL.set(self._principal)  # once for all: to do it for each costs 2 %
        try:
            for message in rest:
                if self._error is not None or turns.left <= 0:
                    if self._error is None:
                        turns.put_back([message, *rest], share)
                        before = 0
                    break
                try:
                    try:
                        msg_type, msg_id, content = message
                    except (TypeError, ValueError):
                        raise MalformedFrameError(f"not [type, id, content]: {short(message)}") from None
                    self._take_frame(msg_type, msg_id, content, share)
                except ProtocolError as violation:
                    self._note_violation(violation)
        finally:
            CURRENT_PRINCIPAL.reset(token)
        turns.left = min(before, turns.left)

    def _refuse_connection(self, reason: str) -> None:
        """Close a connection for which there is no room, and say so."""
        self._answer_error(None, TooManyConnectionsError(reason))
        self._set_error(ClosedByUsError(reason))

    def _take_session(self, content: Any) -> None:
        """The peer says what it is capable of; say the same of us, once."""
        if type(content) is not dict:
            raise MalformedFrameError(f"a session must be a map but is {short(content)}")
        if "resume" in content:
            self._protocol.hand_over(content["resume"])
            return
        bundle_size = content.get("bundle")
        if bundle_size is not None and (type(bundle_size) is not int or bundle_size < 0):
            raise MalformedFrameError(
                f"a session's 'bundle' must be an integer >= 0 but is {short(bundle_size)}"
            )
        if self._plain is not None and bundle_size:
            self._protocol.take_up_bundles(self._plain.join, bundle_size)
        resumption = self._protocol._resumption
        if resumption is not None:
            resumption.take_greeting(content.get("session"))
        self._knows_close = content.get("close") is True
        self._greet()

    def _take_extension(self, msg_type: int, msg_id: Any, content: Any, size: int) -> None:
        """Take a frame of a type that only peers of ours send."""
        if not (frames.CANCEL <= msg_type <= frames.STREAM or frames.ACK <= msg_type <= frames.CLOSE):
            raise UnknownFrameTypeError(f"a frame has the unknown type {short(msg_type)}")
        if not self._exchange.is_peer_ours:
            self._welcome(greet=self._protocol._resumption is not None and msg_type != frames.SESSION)
        if msg_type == MESSAGE:
            if msg_id != frames.LANE_RPC:
                self._take_lane_message(msg_id, content, size)
            elif self._handler is not None and not self._inbox and not self._protocol.is_paused:
                self._handler(None, content)
            else:
                self._put_inbox(None, content, size)
        elif msg_type == frames.ITEM or msg_type == frames.STREAM:
            self._take_stream_frame(msg_type, msg_id, content)
        elif msg_type == frames.CREDIT:
            if type(content) is not int or content <= 0:
                raise MalformedFrameError(f"credit must be an integer > 0 but is {short(content)}")
            job = self._exchange.jobs.get(msg_id) if isinstance(msg_id, int | str) else None
            if job is not None:
                job.grant(content)
        elif msg_type == frames.CANCEL:
            self._take_cancel(msg_id)
        elif msg_type == frames.PING:
            if type(msg_id) is not int:
                raise MalformedFrameError(f"a ping's number must be an integer but is {short(msg_id)}")
            self._take_acknowledgement(content)
            self._due_pong = msg_id
            self._send_due_pong()
        elif msg_type == frames.ACK:
            self._take_acknowledgement(msg_id)
        elif msg_type == frames.PONG:
            self._take_acknowledgement(content)
            self._take_pong(msg_id)
            if self._protocol.heartbeat is not None:
                self._protocol.heartbeat.heard()
        elif msg_type == frames.SESSION:
            self._take_session(content)
        elif msg_type == frames.CLOSE:
            self._take_close(content)
            self._protocol.peer_closes()

    def _take_acknowledgement(self, count: Any) -> None:
        """The peer has said how much it has received, or nothing (``None``)."""
        session = self._protocol._session
        if session is not None and count is not None:
            session.acknowledge(count)

    def _take_lane_message(self, lane: Any, content: Any, size: int) -> None:
        if lane != frames.LANE_RESOURCES:
            raise MalformedFrameError(f"a one-way message is for lane {short(lane)}, which nobody serves")
        if self._lane is None:
            self._deny_resources(content)
            return
        key = self._lane.get_waiting_key(content) if self._inbox or self._protocol.is_paused else None
        if key is None:
            self._lane.take(content)
        else:
            self._withdraw(key)  # a token that is used again ends the request before
            self._put_inbox(key, LaneMessage(content), size)

    def _deny_resources(self, content: Any) -> None:
        """Answer a request to resources where there are none; what is no request needs no answer."""
        if type(content) not in (list, tuple) or len(content) < 2 or type(content[0]) is not int:
            raise MalformedFrameError(f"a message must be an array of code, token, … but is {short(content)}")
        code, token = content[:2]
        if not 0 < code < FIRST_RESPONSE:
            return
        if type(token) is not bytes or self._protocol.is_backlogged():
            raise MalformedFrameError("requests to resources come to where there are none")
        self._send_control(MESSAGE, frames.LANE_RESOURCES, (NOT_FOUND, token, (), NO_RESOURCES))

    def _send_due_pong(self) -> None:
        # To a peer that does not read, only the latest of its pings is answered.
        if self._due_pong is not None and not self._protocol.is_paused:
            self._send_control(frames.PONG, self._due_pong, self._ping_content())
            self._due_pong = None

    def _writing_resumed(self) -> None:
        self._send_due_pong()
        if self._lane is not None:
            self._lane.writing_resumed()
        super()._writing_resumed()

    def _welcome(self, greet: bool = True) -> None:
        """The peer has shown that it is one of ours: say the same of us, and cancel what was abandoned
        before."""
        abandoned = self._exchange.recognize()
        if greet:
            self._greet()
        for msg_id in abandoned:
            self._send_control(frames.CANCEL, msg_id)

    def _greet(self) -> None:
        """Say that we are one of ours, once."""
        if not self._has_greeted:
            self._has_greeted = True
            session: dict[str, Any] = {"version": frames.WIRE_VERSION, "close": True}
            if self._plain is not None:
                session["bundle"] = min(BUNDLE_SIZE, self._limits.frame_size)
            resumption = self._protocol._resumption
            offer = resumption.greet() if resumption is not None else None
            if offer is not None:
                session["session"] = offer
            self._send_control(frames.SESSION, 0, session)

    def _reject_frame(self, msg_type: int, msg_id: Any, error: AiomasError, size: int) -> None:
        """A frame whose type and id are known cannot be taken: end the request it belongs to, and nothing
        else."""
        try:
            if msg_type == REQUEST and isinstance(msg_id, int | str):
                peer = self._protocol._peername()
                text = "a request from %s cannot be taken: %s"
                self._log(logging.WARNING, text, peer, error, error=_get_fault_of_ours(error))
                if self._exchange.greet(msg_id):
                    self._welcome()
                self._reject_request(msg_id, error, size)
            elif msg_type in (RESULT, EXCEPTION):
                self._fail_call(self._exchange.settle(msg_id), error)
            elif msg_type == frames.ITEM:
                call = self._exchange.find(msg_id)
                if call is not None:
                    self._abandon(msg_id)
                    self._fail_call(call, error)
            elif msg_type == MESSAGE and msg_id == frames.LANE_RESOURCES and self._lane is not None:
                # It may have been the response to any of our requests: waiting on would be waiting for ever.
                self._lane.lose(error)
                self._note_violation(error)
            else:
                if msg_type == BUNDLE:
                    # The replies to any requests of ours may have been in it: they might wait for ever.
                    self._fail_calls(error)
                    if self._lane is not None:
                        self._lane.lose(error)
                raise MalformedFrameError(f"a frame of type {short(msg_type)} cannot be taken: {error}")
        except ProtocolError as violation:
            self._note_violation(violation)


def _get_fault_of_ours(error: AiomasError) -> BaseException | None:
    """Return what a deserializer or codec of the user's has raised, whose traceback helps to mend it."""
    cause = error.__cause__
    is_of_peer = cause is None or isinstance(cause, AiomasError | UnicodeDecodeError | JSONDecodeError)
    return None if is_of_peer or not failure.is_of_user(cause) else cause
