"""What a resource directory knows, and what of it a look-up finds (RFC 9176); time is an argument.

::

    registry = Registry("/directory/rd/", "tcp://host:5555/directory/rd/")
    registration, is_new = registry.put(parameters, base, text, links, now)
    registry.expire(now)
    list(registry.find_resources(["rt=energy.*", "d=north"]))      # the texts of links

Whatever can be searched for is a *facet*: the text ``name=value`` as it stands in a query. An index leads
from each facet to the registrations that have it, themselves or in one of their links, so that a look-up only
deals with registrations that it may find something in. Texts are made when a registration comes, and not once
more for each look-up.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from aiomas_ng._core.directory_query import DEFAULT_LIFETIME, Parameters
from aiomas_ng._core.link_text import Attributes, format_link
from aiomas_ng.exceptions import AiomasError

__all__ = [
    "Bounds",
    "RegisteredEndpoint",
    "RegistrationTooLargeError",
    "Registry",
    "RegistryFullError",
    "ResolvedLink",
]

#: The type of the resource that a registration is.
REGISTRATION_TYPE: Final = "core.rd-ep"

#: Attributes whose values are lists, each item of which can be searched for (RFC 6690, section 4.1).
LISTS: Final = frozenset({"ct", "if", "rel", "rev", "rt"})

#: Estimated bytes of memory that a link and a facet take beside their texts.
LINK_COST: Final = 150
FACET_COST: Final = 150

#: Outdated entries of the schedule that are put up with, beside as many as there are valid ones.
MIN_SWEEP: Final = 64

ResolvedLink = tuple[str, Attributes]
"""Target and attributes of a link, with whole URLs as target and anchor."""

Matching = Set[str]
"""The facets that meet a criterion."""


class RegistrationTooLargeError(AiomasError, ValueError):
    """A registration is larger than any may be."""


class RegistryFullError(AiomasError):
    """There is no room for a registration now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a registry holds at most.

    Attributes:
        registrations: Registrations.
        links: Links of one registration.
        size: Estimated bytes of memory that one registration takes.
        total_size: Estimated bytes of memory that all of them take.
    """

    registrations: int = 100_000
    links: int = 10_000
    size: int = 16 * 2**20
    total_size: int = 256 * 2**20

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise ValueError(f"bound {name} must be an integer > 0 but is {value!r}")


class _Entry:
    """A link of a registration, ready to be found."""

    __slots__ = ("facets", "text")

    def __init__(self, href: str, attributes: Attributes) -> None:
        self.text = format_link(href, attributes)
        facets = [f"href={href}"]
        if "%" in href:
            facets.append(f"href={unquote(href)}")
        self.facets = (*facets, *_make_facets(attributes))


def _make_facets(attributes: Attributes) -> Iterator[str]:
    for name, value in attributes:
        if name not in LISTS:
            yield f"{name}={value or ''}"  # a flag can be searched for as an empty value
            continue
        items = value.split(" ") if value else ()
        yield from [f"{name}={item}" for item in items if item] or [name]


class RegisteredEndpoint:
    """An endpoint that has registered, and its links; made and changed by a :class:`Registry`.

    Registrations compare by identity.
    """

    __slots__ = (
        "attributes",
        "base",
        "due",
        "endpoint",
        "entries",
        "expires",
        "facets",
        "lifetime",
        "number",
        "sector",
        "size",
        "source",
        "text",
    )

    def __init__(self, number: int, endpoint: str, sector: str | None) -> None:
        self.number = number  #: What tells it from all others, the last segment of its location.
        self.endpoint = endpoint  #: Name of the endpoint.
        self.sector = sector  #: Name of its sector.
        self.base: str | None = None  #: The URL that its links are relative to, if it has one.
        self.lifetime = DEFAULT_LIFETIME  #: Seconds from the last registration or update on.
        self.attributes: Attributes = ()  #: Further attributes of the endpoint.
        self.source = ""  #: Its links as they were registered, in link format.
        self.entries: Sequence[_Entry] = ()  #: The same, resolved.
        self.text = ""  #: The link to the registration, as a look-up of endpoints finds it.
        self.facets: tuple[str, ...] = ()  #: What the endpoint itself can be found by.
        self.size = 0  #: Estimated bytes of memory.
        self.expires = 0.0  #: When its lifetime ends, in seconds.
        self.due: float | None = None  #: When the schedule looks at it next; ``None`` if it was removed.

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.number} of {self.endpoint!r}, {len(self.entries)} links>"


class Registry:
    """The registrations of a directory, by location and by endpoint.

    Args:
        path: The path that the locations of registrations begin with, ``/directory/rd/``.
        url: The same as a whole URL.
        bounds: What is held at most.
        first_number: The number of the first registration; the others count on from there.  Where numbers of
            one run of a directory do not occur in another one, nobody takes the registration of somebody else
            for a former one of his own.
    """

    def __init__(self, path: str, url: str, *, bounds: Bounds | None = None, first_number: int = 1) -> None:
        self.bounds = bounds or Bounds()
        self.size = 0  #: Estimated bytes of memory that all registrations take.
        self._path = path
        self._url = url
        self._numbers = itertools.count(first_number)
        self._by_number: dict[int, RegisteredEndpoint] = {}
        self._by_name: dict[tuple[str, str | None], RegisteredEndpoint] = {}
        self._index: dict[str, dict[str, RegisteredEndpoint | set[RegisteredEndpoint]]] = {}
        self._schedule: list[tuple[float, int, RegisteredEndpoint]] = []
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._by_number)

    def get(self, number: str) -> RegisteredEndpoint | None:
        """Return the registration whose location ends with *number*, ``None`` if there is none."""
        if not _is_canonical(number):
            return None
        return self._by_number.get(int(number))

    def find(self, endpoint: str, sector: str | None) -> RegisteredEndpoint | None:
        """Return the registration of an endpoint, ``None`` if there is none."""
        return self._by_name.get((endpoint, sector))

    # Changes

    def put(
        self,
        parameters: Parameters,
        base: str | None,
        source: str,
        links: Collection[ResolvedLink],
        now: float,
    ) -> tuple[RegisteredEndpoint, bool]:
        """Register an endpoint, in place of what is known of it.

        Args:
            parameters: They name the endpoint.
            base: The URL that its links are relative to.
            source: The links as they were registered.
            links: The same, resolved.
            now: The time, in seconds.

        Returns:
            The registration, and whether look-ups find something else than before.

        Raises:
            RegistrationTooLargeError: There is too much of it for any registry.
            RegistryFullError: There is too much of it now.
        """
        assert parameters.endpoint is not None
        name = parameters.endpoint, parameters.sector
        registration = self._by_name.get(name)
        is_new = registration is None
        if registration is None:
            if len(self) >= self.bounds.registrations:
                raise RegistryFullError(f"there are {len(self)} registrations already")
            registration = RegisteredEndpoint(next(self._numbers), *name)
        is_changed = is_new or not (
            registration.base == base
            and registration.attributes == parameters.attributes
            and registration.source == source
        )
        if is_changed:
            self._fill(registration, base, parameters.attributes, source, links)
        if is_new:
            self._by_number[registration.number] = self._by_name[name] = registration
        registration.lifetime = DEFAULT_LIFETIME if parameters.lifetime is None else parameters.lifetime
        self._prolong(registration, now)
        return registration, is_changed

    def update(
        self,
        registration: RegisteredEndpoint,
        parameters: Parameters,
        links: Collection[ResolvedLink] | None,
        now: float,
    ) -> bool:
        """Update a registration, and let its lifetime begin anew.

        Args:
            registration: The registration.
            parameters: What they do not say stays as it is; the endpoint does so in any case.
            links: The links, resolved against a new base; ``None`` if it is not new.
            now: The time, in seconds.

        Returns:
            Whether look-ups find something else than before.

        Raises:
            RegistrationTooLargeError, RegistryFullError: As for :meth:`put`.
        """
        names = {name for name, _ in parameters.attributes}
        kept = tuple(pair for pair in registration.attributes if pair[0] not in names)
        attributes = kept + parameters.attributes
        base = registration.base if links is None else parameters.base
        is_changed = base != registration.base or sorted(attributes, key=str) != sorted(
            registration.attributes, key=str
        )
        if is_changed:
            self._fill(registration, base, attributes, registration.source, links)
        if parameters.lifetime is not None:
            registration.lifetime = parameters.lifetime
        self._prolong(registration, now)
        return is_changed

    def remove(self, registration: RegisteredEndpoint) -> None:
        """Remove a registration."""
        self._unindex(registration)
        del self._by_number[registration.number]
        del self._by_name[registration.endpoint, registration.sector]
        self.size -= registration.size
        registration.due = None
        self._sweep()

    def _fill(
        self,
        registration: RegisteredEndpoint,
        base: str | None,
        attributes: Attributes,
        source: str,
        links: Collection[ResolvedLink] | None,
    ) -> None:
        """Set the contents of a registration if there is room; without *links* these stay."""
        bounds = self.bounds
        if links is not None and len(links) > bounds.links:
            raise RegistrationTooLargeError(f"there are {len(links)} links, the limit is {bounds.links}")
        entries = registration.entries if links is None else [_Entry(*link) for link in links]
        shown: list[tuple[str, str | None]] = [("ep", registration.endpoint)]
        if registration.sector is not None:
            shown.append(("d", registration.sector))
        if base is not None:
            shown.append(("base", base))
        shown += [("rt", REGISTRATION_TYPE), *attributes]
        text = format_link(f"{self._path}{registration.number}", tuple(shown))
        facets = (
            f"href={self._path}{registration.number}",
            f"href={self._url}{registration.number}",
            *_make_facets(tuple(shown)),
        )
        size = _estimate(text, facets) + sys.getsizeof(source)
        size += sum(_estimate(entry.text, entry.facets) for entry in entries)
        if size > bounds.size:
            raise RegistrationTooLargeError(
                f"the registration would take {size} bytes of memory, the limit is {bounds.size}"
            )
        total = self.size - registration.size + size
        if total > bounds.total_size:
            raise RegistryFullError(
                f"all registrations would take {total} bytes of memory, the limit is {bounds.total_size}"
            )
        self._unindex(registration)
        self.size = total
        registration.base = base
        registration.attributes = attributes
        registration.source = source
        registration.entries = entries
        registration.text = text
        registration.facets = facets
        registration.size = size
        self._add_to_index(registration)

    # Lifetimes

    def _prolong(self, registration: RegisteredEndpoint, now: float) -> None:
        registration.expires = now + registration.lifetime
        # One that is looked at earlier is put off then.
        if registration.due is None or registration.expires < registration.due:
            self._enter(registration)
            self._sweep()

    def _enter(self, registration: RegisteredEndpoint) -> None:
        registration.due = registration.expires
        heapq.heappush(self._schedule, (registration.expires, next(self._count), registration))

    def _sweep(self) -> None:
        """Drop outdated entries of the schedule if there are many."""
        if len(self._schedule) > 2 * len(self) + MIN_SWEEP:
            self._schedule = []
            for registration in self._by_number.values():
                self._enter(registration)

    def next_expiry(self) -> float | None:
        """Return when the next lifetime ends, in seconds; ``None`` if there is no registration."""
        while self._schedule:
            due, _, registration = self._schedule[0]
            if registration.due == due == registration.expires:
                return due
            heapq.heappop(self._schedule)
            if registration.due == due:
                self._enter(registration)
        return None

    def expire(self, now: float) -> list[RegisteredEndpoint]:
        """Remove the registrations whose lifetime has ended by *now*, and return them in that order."""
        expired: list[RegisteredEndpoint] = []
        while True:
            due = self.next_expiry()
            if due is None or due > now:
                return expired
            registration = heapq.heappop(self._schedule)[2]
            expired.append(registration)
            self.remove(registration)

    # Look-ups

    def find_resources(self, criteria: Iterable[str]) -> Iterator[str]:
        """Yield the texts of the links that meet all *criteria*, by themselves or by their endpoint.

        Args:
            criteria: Texts ``name=value``, ``name=start*`` or ``name``, as of
                :func:`aiomas_ng.linkformat.filter`.
        """
        wanted, registrations = self._search(criteria)
        for registration in registrations:
            open_criteria = [matching for matching in wanted if matching.isdisjoint(registration.facets)]
            for entry in registration.entries:
                if not any(matching.isdisjoint(entry.facets) for matching in open_criteria):
                    yield entry.text

    def find_endpoints(self, criteria: Iterable[str]) -> Iterator[str]:
        """Yield the texts of links to the registrations that meet all *criteria*, by themselves or by a link.

        Args and semantics are as for :meth:`find_resources`.
        """
        return (registration.text for registration in self._search(criteria)[1])

    def _search(self, criteria: Iterable[str]) -> tuple[list[Matching], Iterable[RegisteredEndpoint]]:
        """Return the facets that meet each criterion, and the registrations that have one for each."""
        wanted: list[Matching] = []
        found: set[RegisteredEndpoint] | None = None
        for criterion in criteria:
            matching, owners = self._match(criterion)
            wanted.append(matching)
            found = owners if found is None else found & owners
            if not found:
                return wanted, ()
        if found is None:
            return wanted, list(self._by_number.values())
        return wanted, sorted(found, key=_get_number)

    def _match(self, criterion: str) -> tuple[Matching, set[RegisteredEndpoint]]:
        name, separator, pattern = criterion.partition("=")
        table = self._index.get(name, {})
        matching: Matching
        if not separator:
            matching = table.keys()
        elif pattern.endswith("*"):
            start = criterion[:-1]
            matching = {facet for facet in table if facet.startswith(start)}
        else:
            matching = {criterion} if criterion in table else set()
        owners: set[RegisteredEndpoint] = set()
        for facet in matching:
            registrations = table[facet]
            if isinstance(registrations, set):
                owners |= registrations
            else:
                owners.add(registrations)
        return matching, owners

    # The index: most facets have one owner, which then needs no set

    def _add_to_index(self, registration: RegisteredEndpoint) -> None:
        for facet in _get_all_facets(registration):
            table = self._index.setdefault(facet.partition("=")[0], {})
            owners = table.get(facet)
            if owners is None:
                table[facet] = registration
            elif isinstance(owners, set):
                owners.add(registration)
            else:
                table[facet] = {owners, registration}

    def _unindex(self, registration: RegisteredEndpoint) -> None:
        for facet in _get_all_facets(registration):
            name = facet.partition("=")[0]
            table = self._index[name]
            owners = table[facet]
            if isinstance(owners, set):
                owners.discard(registration)
            if not isinstance(owners, set) or not owners:
                del table[facet]
                if not table:
                    del self._index[name]


def _get_all_facets(registration: RegisteredEndpoint) -> set[str]:
    facets = set(registration.facets)
    for entry in registration.entries:
        facets.update(entry.facets)
    return facets


def _get_number(registration: RegisteredEndpoint) -> int:
    return registration.number


def _is_canonical(number: str) -> bool:
    # Digits of other scripts, signs and zeros in front would be other names of the same.
    return number.isascii() and number.isdigit() and number[0] != "0" and len(number) <= 20


def _estimate(text: str, facets: Sequence[str]) -> int:
    """Return the estimated bytes of memory of a link or of a registration."""
    return LINK_COST + sys.getsizeof(text) + sum(map(sys.getsizeof, facets)) + FACET_COST * len(facets)
