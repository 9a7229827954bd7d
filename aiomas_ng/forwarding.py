"""Reaching the resources of a container through another one.

A :class:`Forwarder` is added to a site like a resource. What is requested below its path is requested from
the other container, over the connection between the two, and whatever comes back is passed on: one response,
a stream of them, notifications, errors, blocks of large bodies. Loss of interest goes the other way. So
agents reach each other through a container that both can reach, over as many hops as it takes::

    site.add_resource("north", Forwarder(context, "tcp://north.example:5555/"))
    await context.get("tcp://hub.example:5555/north/battery/soc")

A request that goes round in circles ends with 5.08, as of RFC 8768. Where there is no way to the other
container, the response is 5.02, and 5.04 where it does not answer in time.
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Callable
from typing import Any, Final

from aiomas_ng import error, linkformat
from aiomas_ng._coap.deadlines import TooLate
from aiomas_ng._coap.site import get_prefix
from aiomas_ng._core.access import Rule, check_rule
from aiomas_ng._core.addresses import parse_url
from aiomas_ng.exceptions import AddressError, AiomasError, CallTimeoutError, DeadlineExceededError
from aiomas_ng.linkformat import Link, LinkFormat
from aiomas_ng.message import Code, ContentFormat, Message
from aiomas_ng.pipe import IterablePipe, Pipe
from aiomas_ng.protocol import ClientObservation, Context
from aiomas_ng.resource import PathCapable, hashing_etag

__all__ = ["DEFAULT_HOP_LIMIT", "Forwarder"]

#: How often a request that says nothing else may be forwarded (RFC 8768, section 3).
DEFAULT_HOP_LIMIT: Final = 16

#: Observe numbers have 24 bits.
NUMBERS: Final = 2**24

WELL_KNOWN_CORE: Final = (".well-known", "core")


class Forwarder(PathCapable):
    """Stands for the site of another container, or for a part of it.

    Args:
        context: Sends the requests.
        url: Base URL of the other container, or of an agent or resource there.
        name: Who we are, for the diagnosis of circles; by default where the context listens.
        timeout: Seconds that the other container has for the first response; ``None`` leaves it to who asks.
        access: Who may use it, a rule of :mod:`aiomas_ng.access`; ``None`` for everybody.

    Raises:
        AddressError: *url* is none, or has a query.
        TypeError: *access* is no rule.

    The other container sees our identity, and that we do not ask for ourselves. So it lets in what is
    forwarded only where no rule is declared, or one that says so (:func:`aiomas_ng.access.via`).
    """

    def __init__(
        self,
        context: Context,
        url: str,
        *,
        name: str | None = None,
        timeout: float | None = None,
        access: Rule | None = None,
    ) -> None:
        check_rule(access)
        self.access = access
        self._context = context
        self._address, _ = parse_url(url)
        base = Message(Code.GET, uri=url).opt
        if base.uri_query:
            raise AddressError(
                f"cannot forward to {url!r}: the base URL of a container or agent has no query"
            )
        self._base = base.uri_path[:-1] if base.uri_path[-1:] == ("",) else base.uri_path
        self._name = name
        self._timeout = timeout
        self._observations: set[ClientObservation] = set()
        self._tags: weakref.WeakKeyDictionary[Any, bytes] = weakref.WeakKeyDictionary()
        self._next_tag = itertools.count(1)

    def __repr__(self) -> str:
        return f"<Forwarder to {self._address.url}{linkformat.quote_path(self._base)}>"

    def get_resources_as_linkheader(self) -> LinkFormat:
        """Return a link to the other container's list of resources; what is there is not asked for."""
        attributes: dict[str, Any] = {"ct": int(ContentFormat.LINK_FORMAT), "rt": "aiomas_ng.mount"}
        return LinkFormat([Link("/.well-known/core", **attributes)])

    def close_observations(self) -> None:
        """End all observations by 4.04, because the mount was removed."""
        for observation in list(self._observations):
            observation.cancel()

    async def needs_blockwise_assembly(self, request: Message) -> bool:
        """Return whether blocks are put together here: only those of lists of links, which are changed."""
        return _is_list(request)

    async def render(self, request: Message) -> Message:
        """Forward *request* and return the response.

        Raises:
            BadRequest: Its hop limit is not allowed.
            HopLimitReached: It was forwarded too often.
            BadGateway: There is no way to the other container.
            GatewayTimeout: The other container has not answered in time.
        """
        forwarded = self._make_forwarded(request)
        forwarded.opt.observe = None
        is_list = _is_list(request)
        if is_list:  # what we make of it has other tags and blocks
            forwarded.opt.etags = ()
            forwarded.opt.block2 = None
        try:
            response = await self._context.request(
                forwarded, handle_blockwise=is_list, timeout=self._timeout
            ).response
            response = self._make_response(request, response)
            if is_list and response.opt.content_format == ContentFormat.LINK_FORMAT:
                self._move_links(request, response)
        except AiomasError as failure:
            raise _translate(failure) from failure
        return response

    async def render_to_pipe(self, pipe: Pipe) -> None:
        """Forward the request of *pipe*, and pass on what comes back, as fast as the requester takes it."""
        if _is_list(pipe.request):
            pipe.add_response(await self.render(pipe.request), is_last=True)
            return
        try:
            if pipe.request.opt.observe == 0:
                await self._forward_observation(pipe)
            else:
                await self._forward_through_cache(pipe)
        except AiomasError as failure:
            raise _translate(failure) from failure

    async def _forward_through_cache(self, pipe: Pipe) -> None:
        """Answer from the context's cache if it has one, or let it know the response."""
        request = pipe.request
        forwarded = self._make_forwarded(request)
        cache = self._context.cache
        if cache is None:
            await self._forward_stream(pipe, forwarded)
            return
        hit, forwarded, ticket = cache.prepare(self._address.url, forwarded)
        if hit is not None:
            pipe.add_response(self._make_response(request, hit), is_last=True)
        elif ticket is None:
            await self._forward_stream(pipe, forwarded)
        else:
            is_settled = False

            def settle(response: Message) -> Message:
                nonlocal is_settled
                is_settled = True
                return cache.settle(ticket, response)

            try:
                await self._forward_stream(pipe, forwarded, settle)
            finally:
                if not is_settled:
                    cache.abandon(ticket)

    async def _forward_stream(
        self, pipe: Pipe, forwarded: Message, settle: Callable[[Message], Message] | None = None
    ) -> None:
        """Pass on what comes for *forwarded*; if that is a single response, what *settle* makes of it."""
        request = pipe.request
        async with IterablePipe(forwarded) as beyond:
            self._context.begin(beyond)
            events = aiter(beyond)
            try:
                async with asyncio.timeout(self._timeout):
                    event = await anext(events)
            except TimeoutError as failure:
                raise error.GatewayTimeout(f"{self!r} has not answered in time") from failure
            while True:
                if event.exception is not None:
                    raise event.exception
                response = event.message
                assert response is not None
                if settle is not None and event.is_last:
                    response = settle(response)
                pipe.add_response(self._make_response(request, response), event.is_last)
                if event.is_last:
                    break
                settle = None
                await pipe.drain()
                event = await anext(events)

    async def _forward_observation(self, pipe: Pipe) -> None:
        request = pipe.request
        # A request of its own, and no pipe alone, because it outlives a lost connection.
        forwarded = self._context.request(
            self._make_forwarded(request), handle_blockwise=False, timeout=self._timeout
        )
        observation = forwarded.observation
        assert observation is not None
        self._observations.add(observation)
        number = 0
        try:
            notifications = aiter(observation)
            response = await forwarded.response
            while response.opt.observe is not None and response.code.is_successful():
                number += 1  # a server that was restarted begins anew with its own
                pipe.add_response(self._make_response(request, response, observe=number % NUMBERS))
                await pipe.drain()
                response = await anext(notifications)
            pipe.add_response(self._make_response(request, response), is_last=True)
        except StopAsyncIteration:
            raise error.NotFound("the mount was removed") from None
        finally:
            self._observations.discard(observation)
            observation.cancel()

    def _make_forwarded(self, request: Message) -> Message:
        hop_limit = request.opt.hop_limit
        if hop_limit == 0:
            raise error.BadRequest("the hop limit must be 1 to 255")
        if hop_limit == 1:
            raise error.HopLimitReached(self._get_name())
        forwarded = Message(request.code, request.payload, remote=self._address)
        opt = forwarded.opt = request.opt.copy()
        opt.uri_host = opt.uri_port = None
        path = opt.uri_path
        opt.uri_path = self._base + (path if path or not self._base else ("",))
        opt.hop_limit = DEFAULT_HOP_LIMIT if hop_limit is None else hop_limit - 1
        opt.no_response = None  # what is not wanted, we do not pass on; we have to know when it is done
        opt.request_tag = (*opt.request_tag, *self._get_tag(request.remote))
        return forwarded

    def _get_tag(self, remote: Any) -> tuple[bytes, ...]:
        """Return what tells the transfers of one requester from those of another (RFC 9175, 3.5.1)."""
        if remote is None:
            return ()
        tag = self._tags.get(remote)
        if tag is None:
            number = next(self._next_tag)
            tag = self._tags[remote] = number.to_bytes((number.bit_length() + 7) // 8, "big")
        return (tag,)

    def _get_name(self) -> str:
        return self._name or next(iter(self._context.urls), "") or repr(self)

    def _make_response(self, request: Message, response: Message, **options: Any) -> Message:
        """Return *response* as it looks from the place that the other container is mounted at."""
        changed = response.copy(token=b"", remote=None, **options)
        changed.request = None
        location = changed.opt.location_path
        if location:
            is_below = location[: len(self._base)] == self._base
            changed.opt.location_path = get_prefix(request) + location[len(self._base) :] if is_below else ()
        if changed.code == Code.HOP_LIMIT_REACHED:
            # Each on the way adds itself in front (RFC 8768, section 3).
            names = self._get_name().encode() + b" " + changed.payload
            changed.payload = names[: error.MAX_DIAGNOSTIC]
        return changed

    def _move_links(self, request: Message, response: Message) -> None:
        """Let the links in *response* lead through here; drop those that do not lie below our base."""
        base = "/" + "".join(linkformat.quote_path([segment]) + "/" for segment in self._base)
        links = LinkFormat(
            Link("/" + link.href.removeprefix(base), link.attributes) if link.href.startswith(base) else link
            for link in linkformat.parse(response.payload)
            if link.href.startswith(base) or not link.href.startswith("/")
        )
        path = get_prefix(request)
        response.payload = str(links.prefixed(path)).encode()
        response.opt.etags = ()
        hashing_etag(request, response)


def _is_list(request: Message) -> bool:
    return request.opt.uri_path[-2:] == WELL_KNOWN_CORE and request.code == Code.GET


def _translate(failure: AiomasError) -> error.RenderableError:
    """Return what a requester is told when there was no response to pass on."""
    if isinstance(failure, error.RenderableError):
        return failure
    if isinstance(failure, DeadlineExceededError):
        return TooLate(str(failure))
    if isinstance(failure, CallTimeoutError):
        return error.GatewayTimeout(str(failure))
    return error.BadGateway(str(failure))
