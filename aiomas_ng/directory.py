"""A directory, in which agents on several hosts find each other: the resource directory of RFC 9176.

One container has the directory; the others register there, and renew that in the background::

    Directory(hub)                                       # an agent: tcp://hub.example:5555/directory

    registration = await register(container, "tcp://hub.example:5555/directory")

Then everybody finds everybody's resources by what they are, and uses them by their URLs::

    for link in await lookup(context, "tcp://hub.example:5555/directory", rt="energy.soc"):
        print(link.href, await context.get(link.href))

The resources of a directory lie below the id of its agent:

==================  ====================================================================================
``rd``              POST registers an endpoint and its links (section 5)
``rd/NUMBER``       a registration: POST updates and renews it, DELETE removes it, GET reads its links
``rd-lookup/res``   GET finds links, by their attributes and those of their endpoints (section 6.1)
``rd-lookup/ep``    GET finds endpoints, by their attributes and those of their links (section 6.4)
``.well-known/rd``  POST registers an endpoint, whose links are then fetched from it (section 5.1)
==================  ====================================================================================

Look-ups can be observed. Lifetimes are measured by the clock of the container, so they hold in simulated
time.

We differ from the RFC in that a registration which has expired is gone at once, and in that a simple
registration may say its base, without which nobody could be found who has connected over TCP.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from aiomas_ng import error, linkformat
from aiomas_ng._coap.directory_site import (
    LINK_FORMAT,
    Lookup,
    Registrations,
    RegistrationSite,
    SimpleRegistration,
    check_base,
    find_base,
    get_address,
    parse_links,
    resolve,
    translate,
)
from aiomas_ng._coap.lookups import Lookups, lookup, lookup_endpoints, observe_endpoints, observe_lookup
from aiomas_ng._coap.registration import Registration, register
from aiomas_ng._core.directory_query import DEFAULT_LIFETIME, ParameterError, Parameters
from aiomas_ng._core.registry import (
    Bounds,
    RegisteredEndpoint,
    RegistrationTooLargeError,
    Registry,
    RegistryFullError,
)
from aiomas_ng.agent import Agent, Container
from aiomas_ng.clocks import TimerHandle
from aiomas_ng.exceptions import AiomasError, CallTimeoutError
from aiomas_ng.forwarding import DEFAULT_HOP_LIMIT
from aiomas_ng.linkformat import LinkFormat
from aiomas_ng.message import Code, Message

__all__ = [
    "DEFAULT_LIFETIME",
    "Bounds",
    "Directory",
    "Lookups",
    "ParameterError",
    "Registration",
    "lookup",
    "lookup_endpoints",
    "observe_endpoints",
    "observe_lookup",
    "register",
]

#: Seconds, of real time, that who registers simply is given to send its links.
FETCH_TIMEOUT: Final = 30.0

#: Simple registrations whose links are being fetched, at a time.
MAX_FETCHES: Final = 32

#: Seconds, of real time, between two notifications of one observer, while registrations come and go.
PAUSE: Final = 0.05

#: How much longer than it took to render the notifications a pause lasts, so that there is time for all else.
REST: Final = 4.0

#: The first number of a registration is chosen at random below this.
FIRST_NUMBERS: Final = 2**48


class Directory(Agent):
    """An agent that knows where the resources of others are.

    Args:
        container: The container that it lives in; its clock measures the lifetimes of registrations.
        aid: The agent's id.
        bounds: What it holds at most; beyond, who registers gets 5.03, or 4.13 for what is too large in any
            case.

    Raises:
        AgentIdError: *aid* is malformed, or was given before.

    Whoever reaches the container can register, also in place of somebody else. Subclasses that want to decide
    who may override :meth:`check`.
    """

    def __init__(self, container: Container, *, aid: str = "directory", bounds: Bounds | None = None) -> None:
        super().__init__(container, aid=aid)
        path = f"{linkformat.quote_path([aid])}/rd/"
        self._registry = Registry(
            f"/{path}",
            f"{container._base_url}{path}",
            bounds=bounds,
            first_number=1 + secrets.randbelow(FIRST_NUMBERS),
        )
        self._path = (aid, "rd")
        self._timer: TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._has_news = False
        self._cost = 0.0  # seconds that notifications took to render since the last pause
        self._is_stopped = False
        self._fetches = 0
        self._lookups = [
            Lookup("core.rd-lookup-res", self._find_resources, self._add_cost),
            Lookup("core.rd-lookup-ep", self._find_endpoints, self._add_cost),
        ]
        site = self.site
        site.add_resource("rd", Registrations(self))
        site.add_resource("rd", RegistrationSite(self))
        site.add_resource("rd-lookup/res", self._lookups[0])
        site.add_resource("rd-lookup/ep", self._lookups[1])
        site.add_resource(".well-known/rd", SimpleRegistration(self))

    @property
    def registration_count(self) -> int:
        """How many registrations there are."""
        self._expire()
        return len(self._registry)

    def check(self, request: Message, endpoint: str, sector: str | None) -> None:
        """Refuse a request by raising an error that renders itself; by default everybody may do everything.

        Args:
            request: It registers, updates or removes an endpoint; ``request.remote`` is the connection.
            endpoint: The name of the endpoint.
            sector: The name of its sector.
        """

    def on_stop(self) -> None:
        """Stop the timers; subclasses that override it call it."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._pause is not None:
            self._pause.cancel()

    # Registrations

    def _parse(self, message: Message) -> LinkFormat:
        """Return the links in the payload of *message*."""
        limit = self._registry.bounds.size
        if len(message.payload) > limit:
            raise error.RequestEntityTooLarge(
                f"there are {len(message.payload)} bytes of links, the limit is {limit}", size1=limit
            )
        return parse_links(message)

    def _put(self, parameters: Parameters, base: str | None, links: LinkFormat) -> int:
        """Register an endpoint and return its number."""
        limit = self._registry.bounds.links
        if len(links) > limit:  # before they are resolved, which makes them larger
            raise error.RequestEntityTooLarge(f"there are {len(links)} links, the limit is {limit}")
        resolved = resolve(links, base)
        now = self._expire()
        try:
            registration, is_changed = self._registry.put(parameters, base, str(links), resolved, now)
        except (RegistrationTooLargeError, RegistryFullError) as failure:
            raise translate(failure) from failure
        self._settle(is_changed)
        return registration.number

    def _update(self, request: Message, registration: RegisteredEndpoint, parameters: Parameters) -> None:
        base = parameters.base
        links = None
        if base is None and registration.base is None:
            # Who had no address before may have one now (section 5.3.1).
            base = find_base(request)
            parameters = replace(parameters, base=base)
        if base is not None and base != registration.base:
            links = resolve(linkformat.parse(registration.source), check_base(base))
        try:
            is_changed = self._registry.update(registration, parameters, links, self.container.clock.time())
        except (RegistrationTooLargeError, RegistryFullError) as failure:
            raise translate(failure) from failure
        self._settle(is_changed)

    def _remove(self, registration: RegisteredEndpoint) -> None:
        self._registry.remove(registration)
        self._settle(is_changed=True)

    def _get_registration(self, request: Message) -> RegisteredEndpoint:
        """Return the registration that *request* is for.

        Raises:
            NotFound: There is none.
        """
        self._expire()
        path = request.opt.uri_path
        registration = self._registry.get(path[0]) if len(path) == 1 else None
        if registration is None:
            raise error.NotFound("there is no such registration; it has expired, or was never made")
        return registration

    async def _fetch(self, request: Message, base: str | None) -> LinkFormat:
        """Return the links of who sends *request*, fetched from *base* or over its own connection."""
        if self._fetches >= MAX_FETCHES:
            raise error.ServiceUnavailable("too many simple registrations are under way", max_age=1)
        remote = request.remote if base is None else get_address(base)
        message = Message(Code.GET, remote=remote, accept=LINK_FORMAT, uri_path=(".well-known", "core"))
        if base is not None:
            # We ask for somebody else, who must not see by our eyes what is not for him, of our own
            # container, for example.
            message.opt.hop_limit = DEFAULT_HOP_LIMIT
        self._fetches += 1
        try:
            context = self.container.context
            response = await context.request(message, timeout=FETCH_TIMEOUT).response_raising
            return self._parse(response)
        except CallTimeoutError as failure:
            raise error.GatewayTimeout(f"your links could not be fetched: {failure}") from failure
        except error.RequestEntityTooLarge:
            raise
        except AiomasError as failure:
            raise error.BadGateway(f"your links could not be fetched: {failure}") from failure
        finally:
            self._fetches -= 1

    # Look-ups

    def _find_resources(self, criteria: Iterable[str]) -> Iterator[str]:
        self._expire()
        return self._registry.find_resources(criteria)

    def _find_endpoints(self, criteria: Iterable[str]) -> Iterator[str]:
        self._expire()
        return self._registry.find_endpoints(criteria)

    # Time

    def _expire(self) -> float:
        """Remove registrations whose lifetime has ended, and return the time."""
        now = self.container.clock.time()
        if self._registry.expire(now):
            self._settle(is_changed=True)
        return now

    def _settle(self, is_changed: bool) -> None:
        """After a change: notify the observers, and set the timer for the next expiry."""
        if self._is_stopped:
            return
        if is_changed:
            self._notify()
        due = self._registry.next_expiry()
        if self._timer is not None:
            if self._timer.when() == due:
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self._call_at(due)

    def _call_at(self, due: float) -> TimerHandle:
        clock = self.container.clock
        try:
            return clock.call_at(due, self._expire_in_time)
        except ValueError:
            # Of real time, some has passed since we have looked.
            return clock.call_in(0, self._expire_in_time)

    def _expire_in_time(self) -> None:
        self._timer = None
        self._expire()
        self._settle(is_changed=False)  # where it is too early still, by the rounding of real time

    def _notify(self) -> None:
        """Notify the observers, now or at the end of the pause after the last notification."""
        if self._pause is not None:
            self._has_news = True
            return
        for resource in self._lookups:
            resource.updated_state()
        self._pause = self.container.loop.call_later(PAUSE, self._end_pause)

    def _add_cost(self, seconds: float) -> None:
        self._cost += seconds

    def _end_pause(self) -> None:
        self._pause = None
        rest, self._cost = REST * self._cost - PAUSE, 0.0
        if rest > 0:
            self._pause = self.container.loop.call_later(rest, self._end_pause)
        elif self._has_news:
            self._has_news = False
            self._notify()
