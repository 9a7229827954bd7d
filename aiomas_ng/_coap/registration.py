"""Registrations in a directory that renew themselves (RFC 9176, section 5): the endpoint's side."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from typing import TYPE_CHECKING, Any, Final, Self

from aiomas_ng import linkformat
from aiomas_ng._core.addresses import parse_url
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.directory_query import (
    DEFAULT_LIFETIME,
    MAX_LIFETIME,
    MAX_NAME,
    ParameterError,
    check_name,
    parse_parameters,
)
from aiomas_ng.error import LibraryShutdown, ResponseWrappingError
from aiomas_ng.exceptions import AiomasError, ProtocolError
from aiomas_ng.linkformat import Link
from aiomas_ng.message import Code, ContentFormat, Message

if TYPE_CHECKING:
    from aiomas_ng._coap.remote import Remote
    from aiomas_ng.agent import Container

__all__ = ["Registration", "make_endpoint_name", "register"]

logger = logging.getLogger("aiomas_ng.directory")

#: The part of its lifetime after which a registration is renewed.
RENEWAL: Final = 0.75

#: Seconds, of real time, that a directory is given for its answer.
ANSWER_TIMEOUT: Final = 30.0

#: Seconds, of real time, that a directory is given for its answer when a registration is closed.
LEAVE_TIMEOUT: Final = 5.0

#: Seconds, of real time, between two attempts to register again: at first, and at most.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 10.0

#: Bytes that a part of a query may have (RFC 7252, section 5.10).
MAX_ARGUMENT: Final = 255

LINK_FORMAT: Final = int(ContentFormat.LINK_FORMAT)


async def register(
    container: Container,
    directory_url: str,
    *,
    endpoint: str | None = None,
    sector: str | None = None,
    lifetime: float = DEFAULT_LIFETIME,
    base: str | None = None,
    timeout: float | None = 0,
    **attributes: Any,
) -> Registration:
    """Register all resources of a container in a directory, and keep them registered.

    Args:
        container: What is registered: the links to all resources of its agents, as they are now.
        directory_url: URL of the directory, ``tcp://host:port/directory``.
        endpoint: The name of the container there, at most 63 bytes; by default it is made from its base URL.
            Who registers by the same name and sector takes its place.
        sector: A name for a part of all endpoints, for look-ups.
        lifetime: Seconds, by the container's clock, after which the directory forgets the registration if it
            is not renewed; it is renewed after three quarters of them. Where time is simulated, this should
            be more than what is simulated in one step.
        base: The URL at which others can reach the container; by default its base URL.
        timeout: Seconds to go on trying while nobody answers; 0 tries once, ``None`` for ever.
        **attributes: Further attributes of the endpoint, for look-ups, such as ``et="battery"``. ``if_``
            stands for ``if``.

    Returns:
        The registration, to be closed when the container leaves. What it does in the background ends with the
        container.

    Raises:
        NetworkError: Nobody answers there (a ``ConnectionError``).
        ResponseWrappingError: There is no directory (4.04), or it says no: ``code`` and text say why.
        RequestTimedOut: The directory has not answered in time (a ``TimeoutError``).
        ParameterError: A name, the lifetime or an attribute cannot be registered (a ``ValueError``).
        AddressError: *directory_url* is no URL (a ``ValueError``).

    Cancelling it is safe; what has been registered by then expires.
    """
    if not hasattr(container, "context"):
        raise TypeError(f"container must be a Container but is {container!r}")
    parse_url(directory_url)  # raises an error for what is none
    registration = Registration(
        container,
        directory_url,
        make_endpoint_name(container._base_url) if endpoint is None else endpoint,
        sector,
        lifetime,
        container._base_url if base is None else base,
        attributes,
    )
    await registration._begin(timeout)
    return registration


class Registration:
    """Keeps a container registered in a directory; made by :func:`register`.

    It is renewed in time, and made anew if the directory has forgotten it, or was restarted, or if the
    connection was lost: at once, and then with growing pauses, of real time, until that succeeds. What goes
    wrong meanwhile is logged. Resources that have come or gone are told with the next renewal, or by
    :meth:`update`.

    ::

        async with await register(container, directory_url):
            ...

    Args:
        container: What is registered.
        directory_url: URL of the directory.
        endpoint: The name of the container there.
        sector: The name of its sector.
        lifetime: Seconds.
        base: Where others can reach the container.
        attributes: Further attributes of the endpoint.

    Raises:
        ParameterError: One of them cannot be registered.
    """

    def __init__(
        self,
        container: Container,
        directory_url: str,
        endpoint: str,
        sector: str | None,
        lifetime: float,
        base: str,
        attributes: dict[str, Any],
    ) -> None:
        self._container = container
        self._context = container.context
        self._clock = container.clock
        self.directory_url = directory_url.rstrip("/")  #: URL of the directory.
        self.endpoint = endpoint  #: The name of the container there.
        self.sector = sector  #: The name of its sector.
        self.lifetime = _check_lifetime(lifetime)  #: Seconds, by the container's clock.
        self.base = base  #: Where others can reach the container.
        self._address, _ = parse_url(directory_url)
        self._query = _make_query(endpoint, sector, self.lifetime, base, attributes)
        self._location: tuple[str, ...] | None = None
        self._registered_links = ""
        self._renewal_due = 0.0
        self._expires = 0.0
        self._remote: Remote | None = None
        self._is_known = False  # to the directory, as far as we know
        self._is_closed = False
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "registered" if self.is_registered else "not registered"
        return f"<{type(self).__name__} of {self.endpoint!r} in {self.directory_url}, {state}>"

    @property
    def is_registered(self) -> bool:
        """Whether the directory has the registration, as far as is known here."""
        return self._is_known and self._clock.time() < self._expires

    @property
    def url(self) -> str | None:
        """Where the registration is in the directory; ``None`` before and after."""
        if self._location is None:
            return None
        return self._address.url + linkformat.quote_path(self._location)

    async def update(self) -> None:
        """Register the resources that the container has now.

        Raises:
            RuntimeError: The registration was closed.
            NetworkError, ResponseWrappingError, RequestTimedOut: As for :func:`register`. What is registered
                by then stays so, and it is tried again in the background.

        A second call waits for the first one. Cancelling it is safe.
        """
        async with self._lock:
            if self._is_closed:
                raise RuntimeError(f"{self!r} was closed")
            try:
                await self._register(0)
            except BaseException:
                # Perhaps it has arrived, and perhaps not.
                self._registered_links = ""
                self._renewal_due = self._clock.time()
                self._wake.set()
                raise

    async def close(self) -> None:
        """Leave the directory, and stop renewing; safe to be called twice.

        If the directory cannot be told, it forgets the registration after its lifetime.
        """
        self._is_closed = True
        self._is_known = False
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        async with self._lock:
            url, self._location = self.url, None
            if url is None:
                return
            try:
                response = await self._context.request(
                    Message(Code.DELETE, uri=url), timeout=LEAVE_TIMEOUT
                ).response
            except AiomasError as failure:
                logger.info("%s was not told that %r leaves: %s", self.directory_url, self.endpoint, failure)
                return
            if not response.code.is_successful() and response.code != Code.NOT_FOUND:
                logger.info("%r could not leave: %s", self, ResponseWrappingError(response))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # In the background

    async def _begin(self, timeout: float | None) -> None:
        await self._register(timeout)
        self._keeper = self._context.spawn(self._keep())

    async def _keep(self) -> None:
        """Renew the registration whenever it is due or lost."""
        loop = self._container.loop
        attempts = 0  # since it was renewed in time, or has held for a while
        while True:
            begun = loop.time()
            await self._rest()
            if loop.time() - begun > LONGEST_PAUSE:
                attempts = 0
            if attempts:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempts, 30))
                # Not all at once where many have lost the same directory.
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            attempts += 1
            was_known = self._is_known
            try:
                async with self._lock:
                    await self._renew()
            except LibraryShutdown:
                return
            except Exception as failure:
                self._log(failure)
            else:
                if was_known:
                    attempts = 0

    def _log(self, failure: Exception) -> None:
        text = "%r could not be renewed; it will be tried again: %s"
        if isinstance(failure, ResponseWrappingError):
            logger.warning(text, self, failure)
        elif isinstance(failure, AiomasError):
            logger.info(text, self, failure)
        else:
            logger.error(text, self, failure, exc_info=failure)

    async def _rest(self) -> None:
        """Wait until the renewal is due, or the connection is lost."""
        while self._is_known and self._clock.time() < self._renewal_due:
            self._wake.clear()
            try:
                timer = self._clock.call_at(self._renewal_due, self._wake.set)
            except ValueError:
                return  # of real time, some has passed since we have looked
            try:
                await self._wake.wait()
            finally:
                timer.cancel()

    async def _renew(self) -> None:
        """Renew the registration, or make it anew if need be."""
        url = self.url
        if not self._is_known or url is None or self._registered_links != self._get_links():
            await self._register(0)
            return
        begun = self._clock.time()
        response = await self._context.request(Message(Code.POST, uri=url), timeout=ANSWER_TIMEOUT).response
        if response.code == Code.NOT_FOUND:
            logger.info("%s has forgotten %r; registering it anew", self.directory_url, self.endpoint)
            self._is_known = False
            await self._register(0)
            return
        if not response.code.is_successful():
            raise ResponseWrappingError(response)
        self._note_success(begun)

    async def _register(self, timeout: float | None) -> None:
        """Register all links, in place of what the directory has."""
        links = self._get_links()
        message = Message(
            Code.POST,
            links.encode(),
            f"{self.directory_url}/rd",
            content_format=LINK_FORMAT,
            uri_query=self._query,
        )
        message.remote = remote = await self._context.resolve_remote(message, timeout)
        begun = self._clock.time()
        response = await self._context.request(message, timeout=ANSWER_TIMEOUT).response_raising
        if not response.opt.location_path:
            raise ProtocolError(f"{self.directory_url} has not said where the registration is")
        self._location = response.opt.location_path
        self._registered_links = links
        self._note_success(begun)
        if remote is not self._remote:
            # A connection that is lost may mean that the directory was restarted.
            self._remote = remote
            remote.channel._when_lost(lambda _: self._lost(remote))

    def _get_links(self) -> str:
        return str(self._container.site.get_resources_as_linkheader())

    def _note_success(self, begun: float) -> None:
        """Note that what was sent at the time *begun* was accepted, at that time at the earliest."""
        self._renewal_due = begun + RENEWAL * self.lifetime
        self._expires = begun + self.lifetime
        self._is_known = not self._is_closed

    def _lost(self, remote: Remote) -> None:
        if remote is self._remote:
            self._is_known = False
            self._wake.set()


def make_endpoint_name(base_url: str) -> str:
    """Return a name for the container at *base_url*: the URL, or a part and a hash if that is too long."""
    name = base_url.rstrip("/")
    data = name.encode("utf-8", "surrogatepass")  # the path of a socket can have them
    if len(data) <= MAX_NAME:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    start = data[: MAX_NAME - len(digest) - 1].decode("utf-8", "ignore")
    return f"{start}~{digest}"


def _check_lifetime(lifetime: Any) -> int:
    # NaN is not in any range.
    if (
        isinstance(lifetime, bool)
        or not isinstance(lifetime, int | float)
        or not 1 <= lifetime <= MAX_LIFETIME
    ):
        raise ParameterError(f"a lifetime must be from 1 to {MAX_LIFETIME} seconds, not {lifetime!r}")
    return int(lifetime)


def _make_query(
    endpoint: str, sector: str | None, lifetime: int, base: str, attributes: dict[str, Any]
) -> tuple[str, ...]:
    """Return the query of a registration.

    Raises:
        ParameterError: A part of it cannot be registered.
    """
    check_name("endpoint", endpoint)
    query = [f"ep={endpoint}", f"lt={lifetime}", f"base={base}"]
    if sector is not None:
        check_name("sector", sector)
        query.append(f"d={sector}")
    try:
        # As a link has them, with its rules for values.
        pairs = Link("", **attributes).attributes
    except (TypeError, ValueError) as failure:
        raise ParameterError(str(failure)) from failure
    query += [name if value is None else f"{name}={value}" for name, value in pairs]
    parse_parameters(query)
    for text in query:
        if len(text.encode()) > MAX_ARGUMENT:
            raise ParameterError(f"{short(text)} has {len(text.encode())} bytes, the limit is {MAX_ARGUMENT}")
    return tuple(query)
