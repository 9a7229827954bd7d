"""One connection, as the place that messages come from and go to."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiomas_ng._core import frames
from aiomas_ng._core.codec_errors import short
from aiomas_ng.error import InternalServerError, NetworkError, ServiceUnavailable
from aiomas_ng.exceptions import (
    AiomasError,
    ChannelClosedError,
    FrameTooLargeError,
    MalformedFrameError,
    ProtocolError,
)
from aiomas_ng.message import MAX_TOKEN, Code, Message
from aiomas_ng.pipe import WINDOW, get_closer

if TYPE_CHECKING:
    from aiomas_ng._coap.blockwise import Transfers
    from aiomas_ng._coap.incoming import IncomingPipe
    from aiomas_ng._core.identity import Identity
    from aiomas_ng.channel import Channel
    from aiomas_ng.pipe import Pipe
    from aiomas_ng.tokenmanager import TokenManager

__all__ = ["NO_RESPONSE_AT_ALL", "Outgoing", "Remote", "is_suppressed"]

#: Code of what is no message but says something about a request: its requester has lost interest in it, or
#: (with a number) grants that many further responses.
ABOUT_REQUEST: Final = 0
#: Code of what a responder says in place of a response that the requester asked it not to send (RFC 7967).
#: 7.00 is not assigned; signals of class 7 are between the two ends of one connection (RFC 8323).
NO_RESPONSE: Final = 0xE0

#: Bits of the option No-Response for classes 2, 4 and 5 (RFC 7967).
NO_RESPONSE_BITS: Final = {2: 2, 4: 8, 5: 16}
#: All of them: the requester does not wait for any response.
NO_RESPONSE_AT_ALL: Final = 2 | 8 | 16

SEQUENCES: Final = (list, tuple)


def is_suppressed(request: Message, response: Message) -> bool:
    """Return whether the requester has asked not to be sent such a response, or there is none to be sent."""
    suppressed: int = request.opt.no_response or 0
    return response.code == Code.EMPTY or bool(suppressed & NO_RESPONSE_BITS.get(response.code >> 5, 0))


class Waiter(Protocol):
    """Has something to send as soon as the peer reads again."""

    def writing_resumed(self) -> None:
        """The peer reads again."""


class Remote:
    """The other end of a connection.

    It keeps what belongs to the connection: the requests that are under way in both directions, and the
    transfers of large bodies. Remotes compare by identity, so one that has connected anew is another one.

    Args:
        channel: The connection.
        manager: Takes what arrives.
        url: Base URL, where we have dialled it.
    """

    __slots__ = ("__weakref__", "_manager", "channel", "incoming", "outgoing", "transfers", "url", "waiting")

    is_multicast: Final = False
    is_multicast_locally: Final = False

    def __init__(self, channel: Channel, manager: TokenManager, url: str | None = None) -> None:
        self.channel = channel
        self.url = url
        self._manager = manager
        #: Our requests, by token.
        self.outgoing: dict[bytes, Outgoing] = {}
        #: The peer's requests, by token.
        self.incoming: dict[bytes, IncomingPipe] = {}
        #: Those that have something to send as soon as the peer reads again.
        self.waiting: dict[Waiter, None] = {}
        #: Bodies that come and go block by block; made when there is one.
        self.transfers: Transfers | None = None

    def __repr__(self) -> str:
        return f"<Remote {self.hostinfo}{', closed' if self.is_closed else ''}>"

    @property
    def hostinfo(self) -> str:
        """Who it is, in words."""
        return self.url or str(self.channel._protocol._peername())

    @property
    def identity(self) -> Identity:
        """Who is at the other end, as of :attr:`aiomas_ng.channel.Channel.identity`."""
        return self.channel.identity

    @property
    def uri_base(self) -> str | None:
        """The base URL, ``None`` for one that has dialled us."""
        return self.url

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self.channel.is_closed

    @property
    def is_paused(self) -> bool:
        """Whether the peer reads too slowly for what we write."""
        return self.channel._protocol.is_paused

    # The way out

    def send_request(self, request: Message) -> None:
        """Send *request*, whose token is set.

        Raises:
            NetworkError: The connection has ended.
            FrameTooLargeError, OverloadError: As for :meth:`aiomas_ng.channel.Channel.post`.
            ValueError, TypeError: The message is no complete one.
        """
        try:
            gather = len(self.outgoing) > 1
            self.channel.post(request.to_compact(), lane=frames.LANE_RESOURCES, gather=gather)
        except ChannelClosedError as error:
            raise NetworkError(str(error)) from error

    def send_response(self, response: Message, token: bytes, more: bool) -> bool:
        """Send *response* to the request with that *token*; *more* says that others will follow.

        Returns:
            Whether it was sent. One that cannot be sent is replaced by a 5.00, which is the last response.
        """
        try:
            self._send(response.to_compact(token=token, more=more))
        except Exception as error:
            text, log = "%r cannot be sent to %s: %s", self._manager.log
            self.channel._log(logging.ERROR, text, response, self.hostinfo, error, log=log)
            text = f": {error}" if isinstance(error, FrameTooLargeError) else ""
            self._send_failure(token, f"the response cannot be sent{text}")
            return False
        return True

    def _send_failure(self, token: bytes, text: str) -> None:
        try:
            self._send(InternalServerError(text).to_message().to_compact(token=token))
        except FrameTooLargeError:  # a limit so small that even this does not fit
            self._send(Message(Code.INTERNAL_SERVER_ERROR).to_compact(token=token))

    def answer(self, request: Message, response: Message) -> None:
        """Send the last *response* to *request*, or what stands for one that the requester does not want."""
        if not is_suppressed(request, response):
            self.send_response(response, request.token, False)
        elif request.opt.no_response != NO_RESPONSE_AT_ALL:
            self._send((NO_RESPONSE, request.token))

    def stop(self, token: bytes) -> None:
        """Tell the peer that nobody is interested in a request any more."""
        self._send((ABOUT_REQUEST, token))

    def grant(self, token: bytes, count: int) -> None:
        """Tell the peer that it may send *count* further responses of a stream."""
        self._send((ABOUT_REQUEST, token, count))

    def ping(self) -> None:
        """Find out whether the peer is still there: if it is not, the connection ends."""
        if self.channel._exchange.is_peer_ours:
            self.channel._send_control(frames.PING, 0)

    def _send(self, content: Any) -> None:
        gather = len(self.incoming) > 1
        self.channel._send_control(frames.MESSAGE, frames.LANE_RESOURCES, content, gather=gather)

    # What arrives: the interface of aiomas_ng._io.answerer.Lane

    @property
    def is_waiting(self) -> bool:
        """Whether requests of ours wait for the peer."""
        return bool(self.outgoing)

    @property
    def is_working(self) -> bool:
        """Whether requests of the peer are worked on, apart from its observations."""
        return any(not pipe.is_observed for pipe in self.incoming.values())

    def get_waiting_key(self, content: Any) -> bytes | None:
        """Return the token if *content* is a request."""
        if (
            type(content) in SEQUENCES
            and len(content) > 1
            and type(content[0]) is int
            and 0 < content[0] < 32
            and type(content[1]) is bytes
        ):
            token: bytes = content[1]
            return token
        return None

    def refuse(self, content: Any) -> None:
        """Answer the request *content*, for which there is no room."""
        request, _ = Message.from_compact(content)
        error = ServiceUnavailable("too many requests wait here already", max_age=1)
        self.answer(request, error.to_message())

    def take(self, content: Any) -> None:
        """Take *content*, of which nothing is known yet.

        Raises:
            ProtocolError: It is no message, or one that the peer must not send.
        """
        if type(content) not in SEQUENCES or len(content) < 2:
            raise MalformedFrameError(f"a message must be an array of code, token, … but is {short(content)}")
        code = content[0]
        if type(code) is not int:
            raise MalformedFrameError(f"a message's code must be an integer but is {short(code)}")
        if code in (ABOUT_REQUEST, NO_RESPONSE):
            self._take_signal(*content)
            return
        message, more = Message.from_compact(content)
        message.remote = self
        if code < 32:
            if more:
                raise MalformedFrameError("nothing can follow a request")
            self._manager.process_request(message)
        elif 64 <= code < 0xC0:
            # A peer that does not read learns it from a later one.
            if not self._manager.process_response(message, is_last=not more) and not self.is_paused:
                self.stop(message.token)
        else:
            raise MalformedFrameError(f"a message has the reserved code {message.code.dotted}")

    def _take_signal(self, code: int, token: Any, count: Any = None, *rest: Any) -> None:
        if type(token) is not bytes or len(token) > MAX_TOKEN or rest:
            raise MalformedFrameError(f"a signal names the token {short(token)}")
        if count is None:
            if code == NO_RESPONSE:
                self._manager.process_silence(self, token)
            else:
                self.channel._withdraw(token)
                self._manager.stop(self, token)
        elif code == ABOUT_REQUEST and type(count) is int and count > 0:
            self._manager.process_credit(self, token, count)
        else:
            raise MalformedFrameError(f"credit must be an integer > 0 but is {short(count)}")

    def wind_down(self) -> list[asyncio.Future[None]]:
        """End the peer's observations; return what is done when its other requests have been answered, but
        for the one that the running code works on."""
        closer = get_closer()
        waiting = []
        for pipe in list(self.incoming.values()):
            if pipe.is_observed:
                pipe.refuse(ServiceUnavailable("shutting down"), closer)
            elif closer is None or pipe.driver is not closer:
                waiter = self.channel._loop.create_future()
                pipe.on_interest_end(functools.partial(_set_unless_done, waiter))
                waiting.append(waiter)
        return waiting

    def lose(self, error: AiomasError) -> None:
        """Fail our requests: one of them, or the response to it, was lost because it was too large."""
        outgoing, self.outgoing = self.outgoing, {}
        for item in outgoing.values():
            failure = NetworkError(f"a message was lost: {error}")
            failure.__cause__ = error
            item.pipe.add_exception(failure)
            self.stop(item.token)

    def writing_resumed(self) -> None:
        """Send what was held back while the peer did not read."""
        while self.waiting and not self.is_paused:
            waiter = next(iter(self.waiting))
            del self.waiting[waiter]
            waiter.writing_resumed()


def _set_unless_done(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Outgoing:
    """A request of ours that is under way, and how many responses of a stream the peer may still send.

    Args:
        pipe: Where the responses go.
        remote: Where they come from.
        token: What they are known by.
    """

    __slots__ = ("_credit", "_is_waiting", "pipe", "remote", "token")

    def __init__(self, pipe: Pipe, remote: Remote, token: bytes) -> None:
        self.pipe = pipe
        self.remote = remote
        self.token = token
        self._credit = WINDOW
        self._is_waiting = False

    def count(self) -> None:
        """Note that a response of a stream has come.

        Raises:
            ProtocolError: The peer had no credit for it.
        """
        if not self._credit:
            raise ProtocolError(f"the peer sends more responses than the {WINDOW} that may be under way")
        self._credit -= 1

    def grant(self) -> None:
        """Let the peer send further responses, as far as the requester and the connection keep up."""
        # In halves of the window: one small frame for many responses, and no pause between them.
        if 2 * self._credit > WINDOW or self._is_waiting or self.remote.outgoing.get(self.token) is not self:
            return
        if self.pipe.is_paused:
            self._is_waiting = True
            self.pipe.on_resume(self._resumed)
        elif self.remote.is_paused:
            self.remote.waiting[self] = None
        else:
            self.remote.grant(self.token, WINDOW - self._credit)
            self._credit = WINDOW

    def _resumed(self) -> None:
        self._is_waiting = False
        self.grant()

    def writing_resumed(self) -> None:
        """The peer reads again."""
        self.grant()
