"""Which response belongs to which request.

A :class:`TokenManager` gives a token to each request that goes out, and passes the responses with that token
into the request's pipe. For each request that comes in it makes a pipe, and sends what comes along it back
under the request's token.

Rules:

- Tokens are counted up, and none is used again while its request is under way.
- A token is matched together with the remote: the same one at another remote is another one.
- A response that nobody waits for is answered by the signal that nobody is interested.
- When the interest in a request ends before its last response, the peer is told so, and stops the work.
- A token that a peer uses again while its request is under way ends the first request. For observations this
  is how to register anew, or (with Observe 1) to deregister (RFC 7641, section 4.1).
- The end of a connection ends the requests of that remote, and no others.

The reference is the API page of ``aiocoap.tokenmanager``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._coap.deadlines import bind_incoming, is_too_late, make_exceeded, run_bound, with_options
from aiomas_ng._coap.incoming import IncomingPipe
from aiomas_ng._coap.remote import NO_RESPONSE_AT_ALL, Outgoing, Remote
from aiomas_ng.error import LibraryShutdown, NetworkError, ServiceUnavailable
from aiomas_ng.exceptions import OverloadError, ProtocolError
from aiomas_ng.message import Code, Message
from aiomas_ng.pipe import Pipe, get_closer

if TYPE_CHECKING:
    from aiomas_ng.protocol import Context

__all__ = ["PlumbingRequest", "TokenManager"]

#: The name that :class:`~aiomas_ng.pipe.Pipe` had before.
PlumbingRequest = Pipe

TOKENS: Final = 2**64


class TokenManager:
    """Matches requests and responses by token and remote.

    Args:
        context: What renders the requests that come in.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.log = context.log
        self._remotes: dict[Remote, None] = {}
        self._token = 0
        self._is_closed = False

    def __repr__(self) -> str:
        return (
            f"<TokenManager with {len(self.outgoing_requests)} outgoing and "
            f"{len(self.incoming_requests)} incoming requests>"
        )

    @property
    def outgoing_requests(self) -> Mapping[tuple[bytes, Remote], Pipe]:
        """The pipes of our requests that are under way, by token and remote."""
        return _ByTokenAndRemote(self._remotes, lambda remote: remote.outgoing, lambda item: item.pipe)

    @property
    def incoming_requests(self) -> Mapping[tuple[bytes, Remote], Pipe]:
        """The pipes of the peers' requests that are under way, by token and remote."""
        return _ByTokenAndRemote(self._remotes, lambda remote: remote.incoming, lambda pipe: pipe)

    @property
    def client_credentials(self) -> Any:
        """The context's credentials for connections that it opens."""
        return self.context.client_credentials

    @property
    def remotes(self) -> list[Remote]:
        """The connections."""
        return list(self._remotes)

    def join(self, remote: Remote) -> None:
        """Take note of a new connection."""
        self._remotes[remote] = None

    def next_token(self) -> bytes:
        """Return the next token, 1 to 8 bytes long; they come round after 2**64 of them."""
        self._token = (self._token + 1) % TOKENS or 1
        return self._token.to_bytes((self._token.bit_length() + 7) // 8, "big")

    # Requests of ours

    async def fill_or_recognize_remote(self, message: Message) -> bool:
        """Return whether *message* goes to one of our connections; connect first if that takes it there.

        Raises:
            NetworkError: Nobody answers at the message's address.
        """
        if not isinstance(message.remote, Remote):
            message.remote = await self.context.resolve_remote(message)
        return message.remote in self._remotes

    def request(self, request: Pipe) -> None:
        """Send the request of the pipe *request*, whose remote is resolved; the responses go into the pipe.

        What goes wrong becomes an event of the pipe. When the interest in the pipe ends, the peer is told to
        stop.
        """
        request.start()
        if request.is_ended:
            return
        try:
            self._send(request)
        except Exception as error:
            request.add_exception(error)

    def _send(self, request: Pipe) -> None:
        message = request.request
        remote = message.remote
        if self._is_closed:
            raise LibraryShutdown("the context was shut down")
        if not isinstance(remote, Remote):
            raise ValueError(f"{message!r} goes to no connection: await fill_or_recognize_remote() first")
        token = self.next_token()
        while token in remote.outgoing:
            token = self.next_token()
        message.token = token
        remote.send_request(with_options(message, request.deadline, self.context))
        if message.opt.no_response == NO_RESPONSE_AT_ALL:
            self._add_silence(request)  # nothing will come
            return
        remote.outgoing[token] = Outgoing(request, remote, token)
        request.on_poke(remote.ping)
        request.on_interest_end(functools.partial(self._interest_ended, remote, token))

    def _interest_ended(self, remote: Remote, token: bytes) -> None:
        # After the last response the token is not there any more.
        if remote.outgoing.pop(token, None) is not None:
            remote.stop(token)

    def process_response(self, response: Message, *, is_last: bool | None = None) -> bool:
        """Pass *response* into the pipe of its request.

        Args:
            response: Its remote is the connection it came from.
            is_last: Whether no response follows; ``None`` if only the message can tell: then a notification
                of an observation is not the last one, and any other is.

        Returns:
            Whether somebody waits for it.

        Raises:
            ProtocolError: The peer sends more than it may; the request has ended with this error.
        """
        remote: Remote = response.remote
        outgoing = remote.outgoing.get(response.token)
        if outgoing is None:
            self.log.info("nobody waits for %r from %s", response, remote.hostinfo)
            return False
        pipe = outgoing.pipe
        response.request = pipe.request
        is_notification = response.opt.observe is not None and pipe.request.opt.observe == 0
        if is_last is None:
            is_last = not is_notification
        if is_last:
            del remote.outgoing[response.token]
            if pipe.deadline is not None and is_too_late(response):
                pipe.add_exception(make_exceeded(pipe))
            else:
                pipe.add_response(response, is_last=True)
        elif is_notification:
            pipe.add_response(response)
        else:
            self._take_item(outgoing, response)
        return True

    def _take_item(self, outgoing: Outgoing, response: Message) -> None:
        """Take a response of a stream."""
        try:
            outgoing.count()
            outgoing.pipe.add_response(response)
        except (ProtocolError, OverloadError) as error:
            violation = error if isinstance(error, ProtocolError) else ProtocolError(str(error))
            outgoing.pipe.add_exception(violation)
            raise ProtocolError(str(violation)) from None
        outgoing.grant()

    def process_silence(self, remote: Remote, token: bytes) -> None:
        """The peer has done what a request asked for and, as that also asked for, sends no response."""
        outgoing = remote.outgoing.pop(token, None)
        if outgoing is not None:
            self._add_silence(outgoing.pipe)

    def _add_silence(self, pipe: Pipe) -> None:
        request = pipe.request
        response = Message(Code.EMPTY, token=request.token, remote=request.remote)
        response.request = request
        pipe.add_response(response, is_last=True)

    # Requests of the peers

    def process_request(self, request: Message) -> None:
        """Let the context respond to *request*; its remote is the connection it came from."""
        remote: Remote = request.remote
        token = request.token
        incoming = remote.incoming
        previous = incoming.get(token)
        if previous is not None:
            if not (previous.is_observed and request.opt.observe is not None):
                text = "%s has used a token again before its request was answered"
                remote.channel._log(logging.WARNING, text, remote.hostinfo, log=self.log)
            self.stop(remote, token)
        budget = remote.channel._budget
        if len(incoming) >= self.context.limits.requests or not budget.has_room_to_work():
            error = ServiceUnavailable("too many requests are worked on", max_age=1)
            remote.answer(request, error.to_message())
            return
        if request.opt.observe == 0 and not self._has_room_to_observe(remote):
            request.opt.observe = None  # as RFC 7641 (4.1) has it, the state is sent, and not observed
        if remote.channel._closing is not None:
            remote.answer(request, ServiceUnavailable("shutting down").to_message())
            return
        pipe = IncomingPipe(request, self, self.log)
        incoming[token] = pipe
        budget.begin()
        bind_incoming(pipe, self.context)
        if not pipe.is_ended:
            run_bound(pipe.deadline, self.context.render_to_pipe, pipe)

    def _has_room_to_observe(self, remote: Remote) -> bool:
        limit = self.context.limits.observations
        return len(remote.incoming) < limit or sum(p.is_observed for p in remote.incoming.values()) < limit

    def process_credit(self, remote: Remote, token: bytes, count: int) -> None:
        """The peer takes *count* further responses to its request."""
        pipe = remote.incoming.get(token)
        if pipe is not None:
            pipe.grant(count)

    def stop(self, remote: Remote, token: bytes) -> None:
        """The peer has lost interest in its request: stop the work on it."""
        pipe = remote.incoming.pop(token, None)
        if pipe is not None:
            remote.channel._budget.end()
            pipe._abandon()

    def finish(self, pipe: IncomingPipe) -> None:
        """Forget a request that was answered."""
        remote, token = pipe.remote, pipe.request.token
        if remote.incoming.get(token) is pipe:
            del remote.incoming[token]
            remote.channel._budget.end()

    # The end

    def dispatch_error(self, exception: BaseException, remote: Remote) -> None:
        """The connection to *remote* has ended: end its requests, in both directions.

        Those of ours fail with :exc:`~aiomas_ng.error.NetworkError`, whose cause is the *exception*.
        """
        self._remotes.pop(remote, None)
        self._end(remote, lambda: _as_network_error(exception))

    def _end(self, remote: Remote, make_error: Callable[[], NetworkError | LibraryShutdown]) -> None:
        outgoing, remote.outgoing = remote.outgoing, {}
        incoming, remote.incoming = remote.incoming, {}
        remote.channel._budget.end(len(incoming))
        remote.waiting.clear()
        for item in outgoing.values():
            item.pipe.add_exception(make_error())
        closer = get_closer()
        for pipe in incoming.values():
            pipe._abandon(closer)
        if remote.transfers is not None:
            remote.transfers.close()

    async def shutdown(self) -> None:
        """End all requests, in both directions; those of ours fail with
        :exc:`~aiomas_ng.error.LibraryShutdown`. Safe to be called twice."""
        self.end_requests()

    def end_requests(self) -> None:
        """The same as :meth:`shutdown`, without waiting."""
        self._is_closed = True
        for remote in self.remotes:
            for token in remote.outgoing:
                remote.stop(token)
            for pipe in list(remote.incoming.values()):
                pipe.refuse(ServiceUnavailable("shutting down"), get_closer())
            self._end(remote, lambda: LibraryShutdown("the context was shut down"))


def _as_network_error(exception: BaseException) -> NetworkError:
    # One for each request: who catches it adds a traceback.
    error = NetworkError(str(exception))
    error.__cause__ = exception
    return error


class _ByTokenAndRemote(Mapping[tuple[bytes, Remote], Any]):
    """Requests of all remotes, by token and remote.

    They are kept by remote and token, so that the end of a remote costs no more than what ends with it.
    """

    def __init__(
        self,
        remotes: Iterable[Remote],
        get_items: Callable[[Remote], dict[bytes, Any]],
        get_pipe: Callable[[Any], Pipe],
    ) -> None:
        self._remotes = remotes
        self._get_items = get_items
        self._get_pipe = get_pipe

    def __getitem__(self, key: tuple[bytes, Remote]) -> Pipe:
        token, remote = key
        return self._get_pipe(self._get_items(remote)[token])

    def __iter__(self) -> Iterator[tuple[bytes, Remote]]:
        for remote in self._remotes:
            for token in self._get_items(remote):
                yield token, remote

    def __len__(self) -> int:
        return sum(len(self._get_items(remote)) for remote in self._remotes)
