"""The resources of a directory: requests are taken apart here, and the answers put together (RFC 9176)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from aiomas_ng import error, linkformat
from aiomas_ng._core.addresses import Address, parse_url
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.directory_query import ParameterError, Parameters, parse_page, parse_parameters
from aiomas_ng._core.registry import RegistrationTooLargeError, RegistryFullError, ResolvedLink
from aiomas_ng.exceptions import AddressError
from aiomas_ng.linkformat import LinkFormat
from aiomas_ng.message import Code, ContentFormat, Message
from aiomas_ng.resource import ObservableResource, PathCapable, Resource, hashing_etag, negotiate

if TYPE_CHECKING:
    from aiomas_ng.directory import Directory

__all__ = [
    "LINK_FORMAT",
    "Lookup",
    "RegistrationSite",
    "Registrations",
    "SimpleRegistration",
    "check_base",
    "find_base",
    "get_address",
    "parse_links",
    "resolve",
    "translate",
]

#: Seconds after which to try again when there is no room.
RETRY_AFTER: Final = 60

LINK_FORMAT: Final = int(ContentFormat.LINK_FORMAT)

#: Some URL: only references that are whole URLs stay as they are when they are resolved against it.
ANY_URL: Final = "none://none/"

Find = Callable[[Iterable[str]], Iterator[str]]


class Registrations(Resource):
    """Where endpoints register.

    Args:
        directory: The directory.
    """

    rt = "core.rd"
    ct = LINK_FORMAT

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def render_post(self, request: Message) -> Message:
        """Register an endpoint (section 5)."""
        parameters = parse_parameters_of(request)
        base = find_base(request) if parameters.base is None else check_base(parameters.base)
        directory = self._directory
        directory.check(request, parameters.endpoint or "", parameters.sector)
        number = directory._put(parameters, base, directory._parse(request))
        return Message(Code.CREATED, location_path=(*directory._path, str(number)))


class RegistrationSite(Resource, PathCapable):
    """The registrations, each below its number.

    Args:
        directory: The directory.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def render_get(self, request: Message) -> Message:
        """Return the links of a registration as they were registered (section 5.3.3)."""
        registration = self._directory._get_registration(request)
        negotiate(request, [LINK_FORMAT])
        response = Message(Code.CONTENT, registration.source.encode(), content_format=LINK_FORMAT, max_age=0)
        hashing_etag(request, response)
        return response

    def render_post(self, request: Message) -> Message:
        """Update a registration (section 5.3.1)."""
        registration = self._directory._get_registration(request)
        self._directory.check(request, registration.endpoint, registration.sector)
        if request.payload:
            raise error.BadRequest("an update has no payload; to register other links, register again")
        parameters = parse_parameters_of(request, is_update=True)
        for name, value, fixed in (
            ("ep", parameters.endpoint, registration.endpoint),
            ("d", parameters.sector, registration.sector),
        ):
            if value is not None and value != fixed:
                raise error.BadRequest(f"parameter {name!r} cannot be changed; register anew")
        self._directory._update(request, registration, parameters)
        return Message(Code.CHANGED)

    def render_delete(self, request: Message) -> Message:
        """Remove a registration (section 5.3.2)."""
        registration = self._directory._get_registration(request)
        self._directory.check(request, registration.endpoint, registration.sector)
        self._directory._remove(registration)
        return Message(Code.DELETED)


class SimpleRegistration(Resource):
    """Where endpoints register whose links are then fetched from them.

    Args:
        directory: The directory.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def render_post(self, request: Message) -> Message:
        """Register an endpoint (section 5.1)."""
        parameters = parse_parameters_of(request)
        if request.payload:
            raise error.BadRequest("a simple registration has no payload: the links are fetched from you")
        directory = self._directory
        directory.check(request, parameters.endpoint or "", parameters.sector)
        base = parameters.base
        if base is None and request.opt.hop_limit is not None:
            raise error.BadRequest("this came by way of others: say your 'base'")
        links = await directory._fetch(request, base)
        directory._put(parameters, find_base(request) if base is None else check_base(base), links)
        return Message(Code.CHANGED)


class Lookup(ObservableResource):
    """One kind of look-up.

    Args:
        rt: Its resource type.
        find: Yields the texts of the links that meet criteria.
        on_cost: Called with the seconds that it took to render a notification.
    """

    is_alike_for_all = True
    ct = LINK_FORMAT

    def __init__(self, rt: str, find: Find, on_cost: Callable[[float], object]) -> None:
        self.rt = rt
        self._find = find
        self._on_cost = on_cost

    def render_get(self, request: Message) -> Message:
        """Return what the request's query looks for (section 6.2)."""
        begin = time.perf_counter()
        negotiate(request, [LINK_FORMAT])
        try:
            page, criteria = parse_page(request.opt.uri_query)
        except ParameterError as failure:
            raise error.BadRequest(str(failure)) from failure
        text = ",".join(page.cut(self._find(criteria)))
        # It may change at any moment, and simulated time may stand still for long.
        response = Message(Code.CONTENT, text.encode(), content_format=LINK_FORMAT, max_age=0)
        hashing_etag(request, response)
        if request.opt.observe == 0:
            self._on_cost(time.perf_counter() - begin)
        return response


def parse_parameters_of(request: Message, *, is_update: bool = False) -> Parameters:
    """Return what the query of a registration says.

    Raises:
        BadRequest: It is malformed, or does not name the endpoint.
    """
    try:
        parameters = parse_parameters(request.opt.uri_query)
    except ParameterError as failure:
        raise error.BadRequest(str(failure)) from failure
    if parameters.endpoint is None and not is_update:
        raise error.BadRequest("parameter 'ep' is missing, the name of the endpoint")
    return parameters


def parse_links(message: Message) -> LinkFormat:
    """Return the links in the payload of *message*.

    Raises:
        UnsupportedContentFormat: It has another content format.
        BadRequest: It is malformed.
    """
    content_format = message.opt.content_format
    if content_format is not None and content_format != LINK_FORMAT:
        raise error.UnsupportedContentFormat("links are taken in link format, application/link-format (40)")
    try:
        return linkformat.parse(message.payload)
    except linkformat.LinkFormatError as failure:
        raise error.BadRequest(f"malformed links: {failure}") from failure


def find_base(request: Message) -> str | None:
    """Return the URL at which who sends *request* can be reached, ``None`` if that is not known.

    Of who has connected to us, we only know the port that it has connected from; and of what was forwarded,
    the connection is that of who did that.
    """
    if request.opt.hop_limit is not None:
        return None
    url: str | None = getattr(request.remote, "url", None)
    return url


def check_base(base: str) -> str:
    """Check the base of a registration, and return it.

    Raises:
        BadRequest: Links cannot be relative to it.
    """
    try:
        linkformat.resolve(base, "/")
        linkformat.Link(base)
    except ValueError as failure:
        raise error.BadRequest(f"parameter 'base' must be a URL, not {short(base)}: {failure}") from failure
    if "?" in base or "#" in base:
        raise error.BadRequest(f"parameter 'base' must have no query and no fragment: {short(base)}")
    return base


def get_address(base: str) -> Address:
    """Return where links can be fetched.

    Raises:
        BadRequest: Nowhere that we could connect to.
    """
    try:
        return parse_url(check_base(base))[0]
    except AddressError as failure:
        raise error.BadRequest(f"links cannot be fetched from 'base': {failure}") from failure


def resolve(links: LinkFormat, base: str | None) -> list[ResolvedLink]:
    """Return *links* as look-ups find them: with whole URLs, and the base for a missing anchor (section 6.1).

    Raises:
        BadRequest: There is no base, and one is needed.
    """
    if base is not None:
        anchor = (("anchor", base),)
        return [
            (link.href, link.attributes if "anchor" in link else link.attributes + anchor)
            for link in links.resolve(base)
        ]
    for link in links:
        for reference in (link.href, *link.get_all("anchor")):
            if linkformat.resolve(ANY_URL, reference) != reference:
                raise error.BadRequest(
                    f"link {short(reference)} is relative, so 'base' has to say where you can be reached"
                )
    return [(link.href, link.attributes) for link in links]


def translate(failure: RegistrationTooLargeError | RegistryFullError) -> error.RenderableError:
    """Return what who registers is told."""
    if isinstance(failure, RegistrationTooLargeError):
        return error.RequestEntityTooLarge(str(failure))
    return error.ServiceUnavailable(str(failure), max_age=RETRY_AFTER)
