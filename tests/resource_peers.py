"""Ends of the lane for messages without a network between them, and resources that stream.

:class:`FakeChannel` takes the place of a connection: what would be sent is kept, and it can be paused or
closed. :class:`FakeContext` takes the place of a context: the pipes of requests that came in are kept. Peers
by hand over real connections are in :mod:`tests.coap_contexts`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiomas_ng._coap.remote import Remote
from aiomas_ng._core.budget import Budget
from aiomas_ng._core.frames import LANE_RESOURCES, MESSAGE, PING
from aiomas_ng._core.limits import DEFAULT_LIMITS
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import ClosedByPeerError
from aiomas_ng.message import CONTENT, GET, Message
from aiomas_ng.pipe import Pipe
from aiomas_ng.resource import Resource
from aiomas_ng.tokenmanager import TokenManager

SILENT = logging.getLogger("silent")


class FakeChannel:
    """A connection that leads nowhere.

    Attributes:
        sent: What was sent on the lane.
        pings: How often the peer was asked whether it is there.
        failure: What the next frame fails with, once.
        withdrawn: Tokens whose requests were taken back from the inbox.
    """

    _closing = None

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.pings = 0
        self.is_closed = False
        self.is_paused = False
        self._budget = Budget(DEFAULT_LIMITS)
        self.failure: Exception | None = None
        self.withdrawn: list[bytes] = []
        self.is_peer_ours = True
        # The real one has these in other objects.
        self._protocol = self
        self._exchange = self

    def _log(self, level: int, text: str, *args: Any, log: Any, error: Any = None) -> None:
        log.log(level, text, *args, exc_info=error)

    def _peername(self) -> str:
        return "nowhere"

    def post(self, content: Any, *, lane: int, gather: bool = True) -> None:
        if self.is_closed:
            raise ClosedByPeerError("the peer closed the connection")
        self._send_control(MESSAGE, lane, content)

    def _send_control(self, msg_type: int, msg_id: int, content: Any = None, *, gather: bool = False) -> None:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if self.is_closed:
            return
        if msg_type == PING:
            self.pings += 1
        else:
            assert (msg_type, msg_id) == (MESSAGE, LANE_RESOURCES)
            self.sent.append(list(content))

    def _withdraw(self, token: bytes) -> None:
        self.withdrawn.append(token)

    def take_sent(self) -> list[Any]:
        """Return what was sent since the last time."""
        sent, self.sent = self.sent, []
        return sent


class FakeContext:
    """What a token manager needs of a context.

    Attributes:
        pipes: Those of the requests that came in.
    """

    def __init__(self, **limits: Any) -> None:
        self.log = SILENT
        self.limits = Limits(**limits)
        self.client_credentials = object()
        self.pipes: list[Any] = []

    def render_to_pipe(self, pipe: Pipe) -> None:
        self.pipes.append(pipe)


class FakeEnd:
    """A token manager, its context and one remote, without a network.

    Args:
        **limits: Those of the context.
    """

    def __init__(self, **limits: Any) -> None:
        self.context = FakeContext(**limits)
        self.manager = TokenManager(self.context)  # type: ignore[arg-type]  # it needs no more of a context
        self.remote, self.channel = self.connect()

    def connect(self) -> tuple[Remote, FakeChannel]:
        """Return a further remote, and its channel."""
        channel = FakeChannel()
        remote = Remote(channel, self.manager)  # type: ignore[arg-type]  # it needs no more of a channel
        self.manager.join(remote)
        return remote, channel

    def request(self, remote: Remote | None = None, **options: Any) -> tuple[Pipe, list[Any]]:
        """Send a request; return its pipe, and the list that its events go to."""
        message = Message(GET, uri_path=("x",), remote=remote or self.remote, **options)
        pipe = Pipe(message, SILENT)
        events: list[Any] = []
        pipe.on_event(lambda event: events.append(event) or True)  # type: ignore[func-returns-value]  # it is not used
        self.manager.request(pipe)
        return pipe, events

    def receive(self, remote: Remote | None = None, token: bytes = b"t", **options: Any) -> Any:
        """Take a request of the peer; return its pipe."""
        message = Message(GET, uri_path=("x",), token=token, **options)
        (remote or self.remote).take(message.to_compact())
        return self.context.pipes[-1]

    def respond(self, token: bytes, payload: bytes = b"", *, more: bool = False, **options: Any) -> None:
        """Take a response of the peer."""
        self.remote.take(Message(CONTENT, payload, **options).to_compact(token=token, more=more))


class Stream(Resource):
    """Streams numbers, and knows how far it got and how it ended.

    Args:
        count: How many numbers; ``None`` for no end.
        waits: Whether it awaits ``drain()`` in between.
    """

    def __init__(self, count: int | None = None, *, waits: bool = True) -> None:
        self.count = count
        self.waits = waits
        self.produced = 0
        self.error: BaseException | None = None
        self.ended = asyncio.Event()

    async def render_to_pipe(self, pipe: Pipe) -> None:
        """Add the numbers to *pipe*; the last one is the last response."""
        try:
            while self.count is None or self.produced < self.count - 1:
                self.produced += 1
                pipe.add_response(Message(CONTENT, str(self.produced).encode()))
                if self.waits:
                    await pipe.drain()
            self.produced += 1
            pipe.add_response(Message(CONTENT, str(self.produced).encode()), is_last=True)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended.set()
