"""Resources: what requests are answered from, and sites, which find the resource of a request.

::

    class Counter(ObservableResource):
        rt = "example.counter"

        async def render_get(self, request):
            return Message(payload=str(self.count).encode())

    site = Site()
    site.add_resource([".well-known", "core"], WKCResource(site.get_resources_as_linkheader))
    site.add_resource(["counter"], Counter())

A handler is a plain or an ``async`` function. It returns a :class:`~aiomas_ng.message.Message`, whose code it
may leave out, or raises one of the errors that render themselves (:mod:`aiomas_ng.error`). Whatever else it
raises is logged, and the requester gets 5.00, without internals.

What this module sees to by itself: methods that are not offered (4.05), preconditions (4.12), formats that
cannot be given (4.06), unchanged states (2.03), and who has to be notified of what.

The reference is the API page of ``aiocoap.resource``. We differ in that an observation can be declined, that
resources can be removed, that a slow observer gets the latest state instead of each, and in what is new:
If-Match and If-None-Match, content negotiation, plain functions as handlers.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final

from aiomas_ng import error
from aiomas_ng._coap.admission import listing_for
from aiomas_ng._coap.observation import ServerObservation
from aiomas_ng._coap.observers import Observer, Observers
from aiomas_ng._coap.site import PathCapable, Renderer, RoutedRequest, Site
from aiomas_ng._core.blocks import entity_tag_of
from aiomas_ng._core.codes import SAFE_METHODS
from aiomas_ng.content import media_type_of
from aiomas_ng.linkformat import Link, LinkFormat
from aiomas_ng.message import Code, ContentFormat, Message, OptionNumber
from aiomas_ng.pipe import Pipe

__all__ = [
    "ObservableResource",
    "PathCapable",
    "Renderer",
    "Resource",
    "ServerObservation",
    "Site",
    "WKCResource",
    "hashing_etag",
    "negotiate",
]

logger = logging.getLogger(__name__)

#: The code of a response whose handler has not chosen one.
DEFAULT_CODES: Final = {
    Code.GET: Code.CONTENT,
    Code.FETCH: Code.CONTENT,
    Code.POST: Code.CHANGED,
    Code.PUT: Code.CHANGED,
    Code.PATCH: Code.CHANGED,
    Code.iPATCH: Code.CHANGED,
    Code.DELETE: Code.DELETED,
}

#: Options that say how a request travels and not what is asked for.
OPTIONS_OF_TRANSPORT: Final = (OptionNumber.HOP_LIMIT, OptionNumber.REQUEST_TAG)


def hashing_etag(request: Message, response: Message) -> None:
    """Give *response* an entity tag made from its payload; make it 2.03 if the requester has that version.

    To be called before ``render_get`` returns. Responses other than 2.05 are left as they are. The tag is the
    first 8 bytes of the SHA-1 of the payload; it tells versions from each other and is no protection.
    """
    if response.code != Code.CONTENT and response.code is not None:
        return
    if response.opt.etag is None:
        response.opt.etag = entity_tag_of(response.payload)
    if response.opt.etag in request.opt.etags:
        response.code = Code.VALID
        response.payload = b""
        response.opt.content_format = None


def negotiate(request: Message, offered: Sequence[int]) -> int:
    """Return the content format to answer *request* in: the one asked for, or else the first one offered.

    Raises:
        NotAcceptable: The one asked for is not offered.
    """
    wanted = request.opt.accept
    if wanted is None:
        return offered[0]
    if wanted not in offered:
        raise _make_not_acceptable(wanted, offered)
    return wanted


def _make_not_acceptable(wanted: int, offered: Sequence[int]) -> error.NotAcceptable:
    names = ", ".join(f"{media_type_of(number)} ({int(number)})" for number in offered)
    return error.NotAcceptable(f"content format {int(wanted)} is not offered; what is: {names}")


class _Described:
    """Attributes that a link to a resource shows (RFC 6690); a class or an instance sets them."""

    #: Resource type: one or several, separated by spaces.
    rt: str | None = None
    #: Interface description: one or several, separated by spaces.
    if_: str | None = None
    #: Content format: a number or several.
    ct: int | str | Iterable[int] | None = None
    #: What it is, for people.
    title: str | None = None

    def get_link_description(self) -> dict[str, Any]:
        """Return the attributes of a link to this resource, by name; ``None`` for those without a value."""
        found: dict[str, Any] = {}
        for name, value in (("rt", self.rt), ("if", self.if_), ("ct", self.ct), ("title", self.title)):
            if value is None:
                continue
            if name == "ct" and not isinstance(value, int | str):
                value = " ".join(str(int(number)) for number in value)
            found[name] = str(int(value)) if isinstance(value, int) else str(value)
        return found


class Resource(_Described):
    """Base of resources with a handler for each method that they offer.

    Subclasses define ``render_get``, ``render_put``, ``render_post``, ``render_delete``, ``render_fetch``,
    ``render_patch``, ``render_ipatch``, as far as they offer them: plain or ``async`` functions of the
    request.
    """

    #: Who may reach it, a rule of :mod:`aiomas_ng.access`; ``None`` for everybody. Set by a class or an
    #: instance.
    access: Any = None

    #: Who may, besides, do anything else than read: send another method than GET or FETCH.
    write_access: Any = None

    _lock: asyncio.Lock | None = None

    async def needs_blockwise_assembly(self, request: Message) -> bool:
        """Return whether handlers are to get the whole body; they do, unless a subclass says otherwise."""
        return True

    async def render(self, request: Message) -> Message:
        """Return the response to *request*, from the handler of its method.

        Requests with a condition are handled one after the other, and none that may change the state begins
        meanwhile, so that the condition still holds when the handler begins. Their handlers must therefore
        not wait for another request to change the same resource.

        Raises:
            MethodNotAllowed: There is no such handler.
            PreconditionFailed: The request's If-Match or If-None-Match does not hold.
            NotAcceptable: The handler cannot give the format that the request asks for.
            TypeError: The handler has not returned a response.
        """
        handler = self._find_handler(request)
        if request.code in SAFE_METHODS:
            response = await _call(handler, request)
        elif request.opt.if_match or request.opt.if_none_match:
            response = await self._call_on_condition(handler, request)
        else:
            while self._lock is not None and self._lock.locked():
                async with self._lock:
                    pass
            response = await _call(handler, request)
        if not isinstance(response, Message) or not (response.code is None or response.code.is_response()):
            name = getattr(handler, "__qualname__", repr(handler))
            raise TypeError(f"{name} must return a Message with a response but has returned {response!r}")
        if response.code is None:
            response.code = DEFAULT_CODES[request.code]
        wanted = request.opt.accept
        if wanted is not None and response.code == Code.CONTENT:
            given = response.opt.content_format
            if given is not None and given != wanted:
                raise _make_not_acceptable(wanted, [given])
        return response

    def _find_handler(self, request: Message) -> Callable[[Message], Any]:
        found: Callable[[Message], Any] | None = None
        if request.code in DEFAULT_CODES:
            found = self._get_handler(request.code)
        if found is None:
            offered = [method.name for method in DEFAULT_CODES if self._get_handler(method) is not None]
            raise error.MethodNotAllowed(f"offered: {', '.join(offered) or 'nothing'}")
        return found

    def _get_handler(self, method: Code) -> Callable[[Message], Any] | None:
        return getattr(self, f"render_{method.name.lower()}", None)

    async def _call_on_condition(self, handler: Callable[[Message], Any], request: Message) -> Any:
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            await self._check_preconditions(request)
            return await _call(handler, request)

    async def get_etags(self, request: Message) -> Sequence[bytes] | None:
        """Return the entity tags of the present state, for If-Match; ``None`` if there is no state.

        By default it renders the state for that, and makes a tag by :func:`hashing_etag` if it has none.
        """
        probe = request.copy(code=Code.GET, payload=b"", if_match=(), if_none_match=False, block1=None)
        probe.opt.etags = ()
        probe.opt.content_format = None
        try:
            handler = self._find_handler(probe)
            state = await _call(handler, probe)
        except (error.NotFound, error.MethodNotAllowed):
            return None
        if state.code is not None and state.code != Code.CONTENT:
            return None
        if state.opt.etag is not None:
            return [state.opt.etag]
        state = state.copy(code=Code.CONTENT)
        hashing_etag(probe, state)
        return [state.opt.etag]

    async def _check_preconditions(self, request: Message) -> None:
        """Check If-Match and If-None-Match (RFC 7252, section 5.10.8)."""
        etags = await self.get_etags(request)
        if request.opt.if_none_match and etags is not None:
            raise error.PreconditionFailed("the resource exists already")
        wanted = request.opt.if_match
        if wanted and etags is None:
            raise error.PreconditionFailed("there is no state")
        # An empty If-Match holds if there is any state at all.
        if wanted and b"" not in wanted and set(wanted).isdisjoint(etags or ()):
            raise error.PreconditionFailed("the resource has another version")

    async def render_to_pipe(self, pipe: Pipe) -> None:
        """Add the response to the request of *pipe* to it."""
        pipe.add_response(await self.render(pipe.request), is_last=True)


async def _call(handler: Callable[[Message], Any], request: Message) -> Any:
    result = handler(request)
    return await result if inspect.isawaitable(result) else result


class ObservableResource(Resource):
    """A resource whose state can be observed: those who do are notified after :meth:`updated_state`.

    A notification is the response to the observer's request as it would be now. Changes in quick succession
    may be answered by one notification; everybody gets the latest state in the end.
    """

    #: Whether all who send the same request get the same response, so that it is rendered once for all of
    #: them. Not so where handlers look at who asks (``request.remote``, or
    #: :func:`aiomas_ng.access.get_caller`).
    is_alike_for_all: bool = False

    _observers: Observers | None = None

    def get_link_description(self) -> dict[str, Any]:
        """Return the attributes of a link to this resource, among them that it can be observed."""
        return {**super().get_link_description(), "obs": None}

    @property
    def observation_count(self) -> int:
        """How many observers there are."""
        return len(self._observers) if self._observers is not None else 0

    async def add_observation(self, request: Message, serverobservation: ServerObservation) -> None:
        """Take the observer that *request* comes from: call ``serverobservation.accept``.

        Overridden, it may decline, by not doing so. The requester then gets the state once.
        """
        serverobservation.accept(lambda: None)

    def update_observation_count(self, newcount: int) -> None:
        """Called when the number of observers has changed; to be overridden by who wants to know."""

    def updated_state(self, response: Message | None = None) -> None:
        """Notify the observers: the state has changed.

        Args:
            response: What they get; by default each gets what its request is answered by now.
        """
        if self._observers is None:
            return
        if response is None:
            self._observers.changed()
        else:
            for observer in self._observers.members:
                observer.observation.trigger(response)

    def close_observations(self) -> None:
        """End all observations by 4.04, because the resource was removed."""
        if self._observers is not None:
            gone = error.NotFound("the resource was removed").to_message()
            for observer in self._observers.members:
                observer.send(gone, is_last=True)

    async def render_to_pipe(self, pipe: Pipe) -> None:
        """Add the response, and for an observer further ones, to *pipe*."""
        request = pipe.request
        if request.opt.observe != 0 or request.code not in SAFE_METHODS:
            await super().render_to_pipe(pipe)
            return
        observation = ServerObservation(pipe)
        try:
            await self.add_observation(request, observation)
            if observation.is_accepted:
                await self._notify(pipe, observation)
            else:
                await super().render_to_pipe(pipe)
        finally:
            observation._finish()

    async def _notify(self, pipe: Pipe, observation: ServerObservation) -> None:
        """Answer the request of *pipe*, and go on to do so until the observation has ended."""
        if self._observers is None:
            self._observers = Observers(self.render, self.update_observation_count, logger)
        observer = Observer(pipe, observation)
        self._observers.join(self._get_audience(pipe.request), pipe.request, observer)
        try:
            observer.begin(await self.render(pipe.request))
            await observer.ended
        finally:
            observer.end()
            await self._observers.settle()

    def _get_audience(self, request: Message) -> Hashable:
        """Return what those have in common to whom this resource looks the same."""
        return request.get_cache_key(OPTIONS_OF_TRANSPORT) if self.is_alike_for_all else object()


class WKCResource(Resource):
    """The list of a server's resources, in link format, for ``/.well-known/core`` (RFC 6690).

    Filters as of RFC 6690, section 4.1 (``?rt=example.*``) are applied. In a site within a site, the paths
    are given from the root on.

    Args:
        listgenerator: Returns the links; typically :meth:`Site.get_resources_as_linkheader` of the site that
            this resource is added to.
    """

    ct = int(ContentFormat.LINK_FORMAT)

    def __init__(self, listgenerator: Callable[[], Iterable[Link]]) -> None:
        self.listgenerator = listgenerator

    def render_get(self, request: Message) -> Message:
        """Return the links that match the request's query."""
        negotiate(request, [ContentFormat.LINK_FORMAT])
        with listing_for(request):  # who may not read something is not told of it either
            links = LinkFormat(self.listgenerator())
        if isinstance(request, RoutedRequest):
            links = links.prefixed(request.site)
        links = links.filter(request.opt.uri_query)
        response = Message(Code.CONTENT, str(links).encode(), content_format=ContentFormat.LINK_FORMAT)
        hashing_etag(request, response)
        return response
