"""What the queries of registrations and look-ups in a resource directory say (RFC 9176, sections 5 and 6)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.link_text import Attributes, is_attribute_name, is_value
from aiomas_ng.exceptions import AiomasError

__all__ = [
    "DEFAULT_LIFETIME",
    "MAX_LIFETIME",
    "MAX_NAME",
    "MAX_PAGE",
    "Page",
    "ParameterError",
    "Parameters",
    "check_name",
    "parse_page",
    "parse_parameters",
]

#: Seconds that a registration lasts if it does not say (RFC 9176, section 5): 25 hours.
DEFAULT_LIFETIME: Final = 90_000

#: Seconds that a registration may last at most: some 136 years.
MAX_LIFETIME: Final = 2**32 - 1

#: Bytes that the name of an endpoint or sector may have (RFC 9176, section 5).
MAX_NAME: Final = 63

#: Names that an attribute of an endpoint cannot have: they mean something else in a look-up or its result.
RESERVED: Final = frozenset({"anchor", "count", "href", "page", "rt"})

#: The largest number of a page, and of links on a page; with it, counting links stays within 64 bits.
MAX_PAGE: Final = 2**31 - 1

_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class ParameterError(AiomasError, ValueError):
    """A parameter of a registration or look-up is malformed."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the query of a registration or update says; ``None`` where it says nothing.

    Attributes:
        endpoint: Name of the endpoint.
        sector: Name of the sector that it belongs to.
        lifetime: Seconds.
        base: The URL that relative links are relative to; it was not looked at yet.
        attributes: Further attributes of the endpoint.
    """

    endpoint: str | None = None
    sector: str | None = None
    lifetime: int | None = None
    base: str | None = None
    attributes: Attributes = ()


def parse_parameters(query: Iterable[str]) -> Parameters:
    """Return what *query* says about a registration (RFC 9176, section 5).

    Args:
        query: Texts ``name=value``, as in ``opt.uri_query``; empty ones are skipped.

    Raises:
        ParameterError: A parameter is malformed, or comes twice.
    """
    known: dict[str, str] = {}
    attributes: list[tuple[str, str | None]] = []
    for text in query:
        if not text:
            continue
        name, separator, value = text.partition("=")
        if name in ("ep", "d", "lt", "base"):
            if name in known:
                raise ParameterError(f"parameter {name!r} comes twice")
            known[name] = value
        else:
            _check_attribute(name, value)
            attributes.append((name, value if separator else None))
    for name, what in (("ep", "endpoint"), ("d", "sector")):
        if name in known:
            check_name(what, known[name])
    lifetime = known.get("lt")
    return Parameters(
        known.get("ep"),
        known.get("d"),
        None if lifetime is None else _parse_number("lt", lifetime, 1, MAX_LIFETIME),
        known.get("base"),
        tuple(attributes),
    )


def check_name(what: str, name: str) -> None:
    """Check the name of an endpoint or sector.

    Args:
        what: ``"endpoint"`` or ``"sector"``.
        name: The name.

    Raises:
        ParameterError: It is empty, too long, or has control characters.
    """
    if not name:
        raise ParameterError(f"the name of the {what} is empty")
    if _CONTROL.search(name):
        raise ParameterError(f"the name of the {what} has control characters: {short(name)}")
    size = len(name.encode())
    if size > MAX_NAME:
        raise ParameterError(f"the name of the {what} has {size} bytes, the limit is {MAX_NAME}")


def _check_attribute(name: str, value: str) -> None:
    if name in RESERVED:
        raise ParameterError(f"{name!r} cannot be an attribute of an endpoint: it has a meaning of its own")
    if not is_attribute_name(name):
        raise ParameterError(f"{short(name)} cannot be the name of an attribute")
    if not is_value(value):
        raise ParameterError(f"attribute {name!r} cannot have control characters: {short(value)}")


def _parse_number(name: str, text: str, least: int, most: int) -> int:
    number = int(text) if _NUMBER.fullmatch(text) else -1
    if not least <= number <= most:
        raise ParameterError(f"parameter {name!r} must be a number from {least} to {most}, not {short(text)}")
    return number


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of the result of a look-up is wanted.

    Attributes:
        start: Links that are left out at the beginning.
        count: Links that are wanted at most; ``None`` for all.
    """

    start: int = 0
    count: int | None = None

    def cut(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield what is on this page."""
        stop = None if self.count is None else self.start + self.count
        return itertools.islice(texts, self.start, stop)


def parse_page(query: Iterable[str]) -> tuple[Page, list[str]]:
    """Return which part of its result a look-up wants, and the criteria that are left of its *query*.

    Raises:
        ParameterError: ``page`` or ``count`` is malformed, comes twice, or ``page`` comes without ``count``.
    """
    criteria: list[str] = []
    numbers: dict[str, int] = {}
    for text in query:
        name, _, value = text.partition("=")
        if name in ("page", "count"):
            if name in numbers:
                raise ParameterError(f"parameter {name!r} comes twice")
            numbers[name] = _parse_number(name, value, 0, MAX_PAGE)
        elif text:
            criteria.append(text)
    count = numbers.get("count")
    if count is None:
        if "page" in numbers:
            raise ParameterError("parameter 'page' needs 'count', the number of links on a page")
        return Page(), criteria
    return Page(numbers.get("page", 0) * count, count), criteria
