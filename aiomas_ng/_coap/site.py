"""Sites, which find the resource of a request by its path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

from aiomas_ng import error, linkformat
from aiomas_ng._coap.admission import admit, is_admitted, is_listed
from aiomas_ng._coap.observation import ServerObservation
from aiomas_ng._core.access import Rule, rule_of_resource
from aiomas_ng.linkformat import Link, LinkFormat
from aiomas_ng.message import Message
from aiomas_ng.pipe import Pipe

__all__ = ["PathCapable", "Renderer", "RoutedRequest", "Site", "as_path", "close_observations", "get_prefix"]


@runtime_checkable
class Renderer(Protocol):
    """What a context can have as its site: anything that renders requests."""

    async def needs_blockwise_assembly(self, request: Message) -> bool:
        """Return whether bodies of requests are to be put together from their blocks first."""

    async def render_to_pipe(self, pipe: Pipe) -> None:
        """Add the responses to the request of *pipe* to it.

        It is cancelled when nobody is interested in them any more.
        """


class RoutedRequest(Message):
    """A request as it is below a site: its path is what the sites above have not looked at yet."""

    __slots__ = ("prefix", "site")

    #: The segments of the path that have led here.
    prefix: tuple[str, ...]
    #: Those of them that have led to the site that this was found in.
    site: tuple[str, ...]

    @classmethod
    def descend(cls, request: Message, depth: int) -> RoutedRequest:
        """Return *request* without the first *depth* segments of its path.

        A slash at the end, which leads to the root of a site, is left out as well.
        """
        path = request.opt.uri_path
        rest = path[depth:]
        routed = cls.__new__(cls)
        routed.code, routed.payload = request.code, request.payload
        routed.token, routed.remote, routed.request = request.token, request.remote, request.request
        routed.opt = request.opt.copy()
        routed.opt.uri_path = () if rest == ("",) else rest
        routed.site = get_prefix(request)
        routed.prefix = routed.site + path[:depth]
        return routed

    def copy(self, **changes: Any) -> Self:
        """Return a copy, with *changes*, that has come the same way."""
        new = super().copy(**changes)
        new.prefix, new.site = self.prefix, self.site
        return new

    def get_request_uri(self) -> str:
        """Return the URI that was asked for, from the root on."""
        asked = Message(self.code, remote=self.remote)
        asked.opt = self.opt.copy()
        asked.opt.uri_path = self.prefix + self.opt.uri_path
        return asked.get_request_uri()


def get_prefix(request: Message) -> tuple[str, ...]:
    """Return the segments of the path that have led *request* to where it is, past all sites."""
    return request.prefix if isinstance(request, RoutedRequest) else ()


class PathCapable:
    """Marks what handles the rest of a path by itself, below the place where a :class:`Site` has it."""

    #: Who may reach it, and all that lies below, a rule of :mod:`aiomas_ng.access`; ``None`` for everybody.
    access: Any = None

    #: Who may, besides, do anything else than read: send another method than GET or FETCH.
    write_access: Any = None


class Site(PathCapable):
    """Finds the resource of a request by its path, and lets it answer.

    A site within a site, or anything else that is :class:`PathCapable`, answers all that lies below its path;
    a resource in it at ``[]`` then has the path with a slash at its end. Where paths compete, the longest one
    counts, and a resource before a site.
    """

    def __init__(self) -> None:
        self._resources: dict[tuple[str, ...], Any] = {}
        self._subsites: dict[tuple[str, ...], Any] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self._resources) + len(self._subsites)} resources>"

    def add_resource(self, path: Sequence[str] | str, resource: Any) -> None:
        """Add *resource* at *path*, in place of what was there, whose observers get 4.04.

        Args:
            path: The segments of the path, ``["sensors", "temp"]``, or the same as text, ``"sensors/temp"``.
            resource: A :class:`Resource`, another site, or whatever else renders requests.

        Raises:
            TypeError: *resource* cannot render requests.
            ValueError: *path* ends with an empty segment (``[]`` is the root), or a site would lie within
                itself.
        """
        key = as_path(path)
        if isinstance(resource, type) or not isinstance(resource, Renderer):
            hint = ": give an instance of the class" if isinstance(resource, type) else ""
            raise TypeError(
                f"a resource must render requests, as Resource and Site do, but is {resource!r}{hint}"
            )
        if isinstance(resource, Site) and resource._contains(self):
            raise ValueError("a site cannot lie within itself")
        table = self._subsites if isinstance(resource, PathCapable) else self._resources
        replaced = table.get(key)
        table[key] = resource
        if replaced is not None and replaced is not resource:
            close_observations(replaced)

    def _contains(self, site: Site) -> bool:
        return site is self or any(
            isinstance(within, Site) and within._contains(site) for within in self._subsites.values()
        )

    def remove_resource(self, path: Sequence[str] | str) -> None:
        """Remove the resource or site at *path*; who observes it gets 4.04 as the last notification.

        Raises:
            KeyError: There is none.
        """
        key = as_path(path)
        found = [table.pop(key) for table in (self._resources, self._subsites) if key in table]
        if not found:
            raise KeyError(f"there is no resource at {'/'.join(key)!r}")
        for resource in found:
            close_observations(resource)

    def get_resources_as_linkheader(self) -> LinkFormat:
        """Return links to all resources, those of sites within included."""
        links: list[Link] = []
        for path, resource in self._resources.items():
            if not is_listed(rule_of_resource(resource)):
                continue
            describe = getattr(resource, "get_link_description", None)
            attributes = describe() if describe is not None else {}
            if attributes is not None:
                links.append(Link(_make_href(path), **attributes))
        for path, site in self._subsites.items():
            get_links = getattr(site, "get_resources_as_linkheader", None)
            if get_links is not None and is_listed(rule_of_resource(site)):
                links.extend(get_links().prefixed(path))
        return LinkFormat(links)

    def find(self, path: tuple[str, ...]) -> tuple[Any, int]:
        """Return the resource that answers for *path*, and how many segments of the path lead to it.

        What follows these is left to the resource, which is :class:`PathCapable` then.

        Raises:
            NotFound: There is none.
        """
        resource = self._resources.get(path)
        if resource is not None:
            return resource, len(path)
        for depth in range(max(len(path) - 1, 0), -1, -1):
            site = self._subsites.get(path[:depth])
            if site is not None:
                return site, depth
        raise error.NotFound(f"there is no resource at /{linkformat.quote_path(path)}")

    def _route(self, request: Message) -> tuple[Any, Message]:
        resource, depth = self.find(request.opt.uri_path)
        return resource, RoutedRequest.descend(request, depth) if depth else request

    def _enter(self, request: Message) -> tuple[Any, Message, tuple[Rule, ...]]:
        """Return resource and request as :meth:`_route`, and the rules that have let in who has sent it.

        Raises:
            NotFound: There is no resource.
            Forbidden, Unauthorized: It is not for them.
        """
        resource, below = self._route(request)
        return resource, below, admit(request, resource, get_prefix(request))

    async def needs_blockwise_assembly(self, request: Message) -> bool:
        """Ask the resource; errors are to come from rendering."""
        try:
            resource, below = self._route(request)
        except error.RenderableError:
            return True
        if not is_admitted(request, resource):
            return False  # nothing is kept for who is to be refused
        needs: bool = await resource.needs_blockwise_assembly(below)
        return needs

    async def render(self, request: Message) -> Message:
        """Return the response of the resource that *request* is for.

        Raises:
            NotFound: There is none.
        """
        resource, below, _ = self._enter(request)
        response: Message = await resource.render(below)
        return response

    async def add_observation(self, request: Message, serverobservation: ServerObservation) -> None:
        """Pass the observer on to the resource; one that cannot be observed declines."""
        resource, below, _ = self._enter(request)
        if hasattr(resource, "add_observation"):
            await resource.add_observation(below, serverobservation)

    async def render_to_pipe(self, pipe: Pipe) -> None:
        """Let the resource that the request is for add its responses to *pipe*."""
        resource, pipe.request, rules = self._enter(pipe.request)
        pipe.rules += rules
        await resource.render_to_pipe(pipe)

    def close_observations(self) -> None:
        """End all observations of what the site has, because it was removed."""
        for resource in [*self._resources.values(), *self._subsites.values()]:
            close_observations(resource)


def close_observations(resource: Any) -> None:
    """End all observations of *resource*, because it was removed."""
    close = getattr(resource, "close_observations", None)
    if close is not None:
        close()


def _make_href(path: tuple[str, ...]) -> str:
    href = "/" + linkformat.quote_path(path)
    return "/." + href if href.startswith("//") else href  # else it would begin with a host (RFC 3986, 4.2)


def as_path(path: Sequence[str] | str) -> tuple[str, ...]:
    """Return the segments of *path*.

    Raises:
        TypeError: They are not strings.
        ValueError: The last one is empty, or one is ``.`` or ``..`` (RFC 7252, section 5.10.1).
    """
    segments = tuple(path.strip("/").split("/")) if isinstance(path, str) else tuple(path)
    if segments == ("",):
        segments = ()
    for segment in segments:
        if not isinstance(segment, str):
            raise TypeError(f"the segments of a path must be strings, not {segment!r}")
        if segment in (".", ".."):
            raise ValueError(f"a path must not have the segment {segment!r}, which no URL can have")
    if segments and segments[-1] == "":
        raise ValueError(f"a path must not end with an empty segment: {list(segments)}")
    return segments
