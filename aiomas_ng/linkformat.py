"""Descriptions of resources: the link format of RFC 6690.

A :class:`Link` says where a resource is and what it offers, a :class:`LinkFormat` is a list of them, and the
form in which they travel (content format 40).

>>> temperature = Link("/temp", rt="temperature-c", ct=[0, 50], obs=True)
>>> links = LinkFormat([temperature, Link("/light", rt="light-lux")])
>>> print(links)
</temp>;rt="temperature-c";ct="0 50";obs,</light>;rt="light-lux"
>>> parse(str(links)) == links
True
>>> [link.href for link in links.filter(["rt=temperature*", "ct=50"])]
['/temp']
>>> links.prefixed("/house/cellar").resolve("tcp://localhost:5555/")[1].href
'tcp://localhost:5555/house/cellar/light'

Links do not change; what changes them returns others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, overload
from urllib.parse import quote, unquote

from aiomas_ng._core.addresses import PROTOCOLS, parse_url
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.link_text import (
    MAX_ATTRIBUTES,
    MAX_LINKS,
    MAX_TEXT,
    Attributes,
    LinkFormatError,
    format_link,
    is_attribute_name,
    is_href,
    is_value,
    parse_links,
)

__all__ = [
    "MAX_ATTRIBUTES",
    "MAX_LINKS",
    "MAX_TEXT",
    "Link",
    "LinkFormat",
    "LinkFormatError",
    "filter",
    "parse",
    "quote_path",
    "resolve",
]

#: Attributes whose values are lists, separated by spaces.
_LISTS: Final = frozenset({"ct", "if", "rel", "rev", "rt"})

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*+):")
_AUTHORITY = re.compile(r"//[^/?#]*+")
_PATH = re.compile(r"[^?#]*+")

#: What a segment of a path may have as it is: pchar of RFC 3986, section 3.3.
_SEGMENT_CHARS: Final = "!$&'()*+,;=:@~"

AttributeValue = str | int | bool | None | Sequence[str | int]
"""What an attribute can be set to; ``None`` and ``True`` make a flag, ``False`` and ``[]`` leave it out, the
items of a list are separated by spaces."""


class Link:
    """A resource and what is known about it.

    Args:
        href: The target, a URI reference: ``/path/of/resource``, or a whole URL.
        pairs: Attributes by name, in order; a name may come more than once.
        **attributes: Further attributes.  One underscore at the end of a name is dropped: ``if_`` is ``if``.

    Raises:
        ValueError: *href*, a name or a value has characters that it cannot have.
        TypeError: One has a type that it cannot have.
    """

    __slots__ = ("attributes", "href")

    #: The target.
    href: str

    #: Names and values, in order; the value of a flag is ``None``.
    attributes: Attributes

    def __init__(
        self, href: str, pairs: Iterable[tuple[str, AttributeValue]] = (), /, **attributes: AttributeValue
    ) -> None:
        if not isinstance(href, str):
            raise TypeError(f"the target of a link must be a string but is {short(href)}")
        if not is_href(href):
            raise ValueError(f"the target of a link cannot have < or > or control characters: {short(href)}")
        checked = list(_check(pairs))
        if attributes:
            checked += _check((name.removesuffix("_") or name, value) for name, value in attributes.items())
        _set(self, href, tuple(checked))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a link does not change; make another one with another {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a link does not change; make another one without {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Link, (self.href, self.attributes)

    def __str__(self) -> str:
        return format_link(self.href, self.attributes)

    def __repr__(self) -> str:
        return f"<Link {self}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Link):
            return NotImplemented
        return self.href == other.href and self.attributes == other.attributes

    def __hash__(self) -> int:
        return hash((self.href, self.attributes))

    def __contains__(self, name: str) -> bool:
        """Return whether there is an attribute of this name."""
        return any(key == name for key, _ in self.attributes)

    def __getitem__(self, name: str) -> str | None:
        """Return the value of the first attribute of this name, ``None`` if it is a flag.

        Raises:
            KeyError: There is none.
        """
        for key, value in self.attributes:
            if key == name:
                return value
        raise KeyError(name)

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the value of the first attribute of this name; *default* for a flag, or if there is none."""
        for key, value in self.attributes:
            if key == name:
                return default if value is None else value
        return default

    def get_all(self, name: str) -> list[str]:
        """Return the values of all attributes of this name; a flag has ``""``.

        Those of ``rt``, ``if``, ``ct``, ``rel`` and ``rev`` are lists, whose items are returned one by one.
        """
        values = [value or "" for key, value in self.attributes if key == name]
        return [item for value in values for item in value.split(" ") if item] if name in _LISTS else values

    def resolve(self, base: str) -> Link:
        """Return the link with target and anchor as whole URLs; see :func:`resolve`."""
        return self._map(lambda reference: resolve(base, reference))

    def prefixed(self, prefix: str | Iterable[str]) -> Link:
        """Return the link with *prefix* before target and anchor; see :meth:`LinkFormat.prefixed`."""
        return self._map(_prefixer(prefix))

    def _map(self, change: Callable[[str], str]) -> Link:
        """Return the link with target and anchor changed."""
        link = Link.__new__(Link)
        attributes = self.attributes
        if "anchor" in self:
            attributes = tuple(
                (name, change(value) if name == "anchor" and value is not None else value)
                for name, value in attributes
            )
        _set(link, change(self.href), attributes)
        return link


def _set(link: Link, href: str, attributes: Attributes) -> None:
    object.__setattr__(link, "href", href)
    object.__setattr__(link, "attributes", attributes)


def _check(pairs: Iterable[tuple[str, AttributeValue]]) -> Iterator[tuple[str, str | None]]:
    """Yield the attributes as they are kept."""
    for name, value in pairs:
        if not isinstance(name, str):
            raise TypeError(f"the name of an attribute must be a string but is {short(name)}")
        if not is_attribute_name(name):
            raise ValueError(f"{short(name)} cannot be the name of an attribute")
        if value is None or value is True:
            yield name, None
        elif isinstance(value, str):
            yield name, _check_text(name, value)
        elif value is False:
            continue
        elif isinstance(value, int):
            yield name, str(int(value))
        elif isinstance(value, list | tuple):
            items = [_check_item(name, item) for item in value]
            if items:
                yield name, " ".join(items)
        else:
            raise TypeError(
                f"attribute {name!r} must be a string, a number, a list of them, or a bool, "
                f"but is {short(value)}"
            )


def _check_item(name: str, item: Any) -> str:
    if isinstance(item, int) and not isinstance(item, bool):
        return str(int(item))
    if not isinstance(item, str):
        raise TypeError(f"attribute {name!r} must have strings and numbers in its list, not {short(item)}")
    if not item or " " in item:
        raise ValueError(f"attribute {name!r} is a list, where {short(item)} would be none or several items")
    return _check_text(name, item)


def _check_text(name: str, value: str) -> str:
    if not is_value(value):
        raise ValueError(f"attribute {name!r} cannot have control characters: {short(value)}")
    return str(value)


class LinkFormat(Sequence[Link]):
    """A list of links that does not change; ``str()`` gives its text.

    Args:
        links: The links.
    """

    __slots__ = ("links",)

    def __init__(self, links: Iterable[Link] = ()) -> None:
        self.links = tuple(links)  #: The links.
        for link in self.links:
            if not isinstance(link, Link):
                raise TypeError(f"expected a Link, not {short(link)}")

    def __str__(self) -> str:
        return ",".join([format_link(link.href, link.attributes) for link in self.links])

    def __repr__(self) -> str:
        return f"<LinkFormat of {len(self.links)} links>"

    def __len__(self) -> int:
        return len(self.links)

    def __iter__(self) -> Iterator[Link]:
        return iter(self.links)

    @overload
    def __getitem__(self, index: int) -> Link: ...
    @overload
    def __getitem__(self, index: slice) -> LinkFormat: ...
    def __getitem__(self, index: int | slice) -> Link | LinkFormat:
        return LinkFormat(self.links[index]) if isinstance(index, slice) else self.links[index]

    def __eq__(self, other: object) -> bool:
        return self.links == other.links if isinstance(other, LinkFormat) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.links)

    def filter(self, query: Iterable[str]) -> LinkFormat:
        """Return the links that match *query*; see :func:`filter`."""
        return filter(self.links, query)

    def resolve(self, base: str) -> LinkFormat:
        """Return the links with whole URLs as targets and anchors; see :func:`resolve`.

        Args:
            base: The URL of the server where the links were found, ``tcp://host:port/``.

        Raises:
            ValueError: *base* is no whole URL.
        """
        resolver = _Resolver(base)
        return LinkFormat(link._map(resolver.resolve) for link in self.links)

    def prefixed(self, prefix: str | Iterable[str]) -> LinkFormat:
        """Return the links as they are seen where their site is mounted.

        Of targets and anchors, paths from the root (``/x``) are changed; whole URLs, ``//host/x`` and paths
        relative to somewhere else are kept.

        Args:
            prefix: The path where the site is mounted: a string as in a URL (``"/house/cellar"``), or its
                segments (``["house", "cellar"]``), in which all characters may occur.
        """
        change = _prefixer(prefix)
        return LinkFormat(link._map(change) for link in self.links)


def parse(text: str | bytes) -> LinkFormat:
    """Return the links in *text*; an empty one has none.

    Args:
        text: The text, or the payload that has it in UTF-8.

    Raises:
        LinkFormatError: It is not in link format, or exceeds :data:`MAX_TEXT`, :data:`MAX_LINKS` or
            :data:`MAX_ATTRIBUTES`.
    """
    if not isinstance(text, str):
        if len(text) > 4 * MAX_TEXT:
            raise LinkFormatError(f"the text has {len(text)} bytes, the limit is {MAX_TEXT} characters")
        try:
            text = bytes(text).decode()
        except UnicodeDecodeError as error:
            raise LinkFormatError(f"the text is not in UTF-8: {error.reason} at byte {error.start}") from None
    links = []
    for href, attributes in parse_links(text):
        link = Link.__new__(Link)
        _set(link, href, attributes)
        links.append(link)
    return LinkFormat(links)


# -- Filters ---------------------------------------------------------------------------------------


def filter(links: Iterable[Link], query: Iterable[str]) -> LinkFormat:
    """Return the links that match all criteria of *query* (RFC 6690, section 4.1).

    A criterion is ``name=value``, or ``name=start*`` for all values that begin so. It is compared

    - with each item of ``rt``, ``if``, ``ct``, ``rel`` and ``rev``, whose values are lists,
    - with the target for ``href``, both as it is written and with its percent-encoding decoded,
    - with the whole value of any other attribute; ``name=`` also matches a flag.

    Of an attribute that comes more than once, one that matches is enough.  Beyond the RFC, ``name`` alone
    matches every link with such an attribute, and several criteria can be given.

    Args:
        links: The links.
        query: Criteria, as in ``opt.uri_query``; empty ones are skipped.
    """
    criteria = [_parse_criterion(text) for text in query if text]
    return LinkFormat(link for link in links if all(matches(link) for matches in criteria))


def _parse_criterion(text: str) -> Callable[[Link], bool]:
    """Return the test whether a link meets the criterion *text*."""
    name, separator, pattern = text.partition("=")
    is_prefix = pattern.endswith("*")
    pattern = pattern[:-1] if is_prefix else pattern

    def fits(value: str) -> bool:
        return value.startswith(pattern) if is_prefix else value == pattern

    if name == "href":
        return lambda link: (
            not separator or fits(link.href) or ("%" in link.href and fits(unquote(link.href)))
        )
    if not separator:
        return lambda link: name in link
    return lambda link: any(map(fits, link.get_all(name)))


# -- References ------------------------------------------------------------------------------------


def resolve(base: str, reference: str) -> str:
    """Return *reference* as a whole URL (RFC 3986, section 5.2).

    Unlike :func:`urllib.parse.urljoin`, this knows the schemes of ours and the brackets of Unix sockets.

    Args:
        base: The URL that it is relative to; without a fragment.
        reference: ``/path``, ``path``, ``../path``, ``?query``, ``//host:port/path``, or a whole URL, which
            is returned as it is.

    Raises:
        ValueError: *base* is no whole URL.
    """
    return _Resolver(base).resolve(reference)


def quote_path(path: Iterable[str]) -> str:
    """Return the segments of a path as they are written in a URL, without a slash at the beginning.

    Args:
        path: The segments, as in ``opt.uri_path``; slashes and all other characters may occur in them.
    """
    return "/".join([quote(segment, safe=_SEGMENT_CHARS) for segment in path])


class _Resolver:
    """A base URL, taken apart once for all references."""

    __slots__ = ("_path", "_query", "_root", "_scheme")

    def __init__(self, base: str) -> None:
        match = _SCHEME.match(base)
        if match is None:
            raise ValueError(f"cannot resolve anything against {short(base)}: expected a URL, scheme://…")
        self._scheme = match[0]
        if match[1] in PROTOCOLS:
            address, tail = parse_url(base)
            self._root = address.url[:-1]
            rest = f"/{tail}"
        else:
            authority = _AUTHORITY.match(base, match.end())
            if authority is None:
                raise ValueError(f"cannot resolve anything against {short(base)}: expected a URL, scheme://…")
            self._root, rest = base[: authority.end()], base[authority.end() :]
        self._path, self._query = _split(rest.partition("#")[0])

    def resolve(self, reference: str) -> str:
        if _SCHEME.match(reference):
            return reference
        if reference.startswith("//"):
            return self._scheme + reference
        path, rest = _split(reference)
        if not path:
            query = "" if rest.startswith("?") else self._query
            return f"{self._root}{self._path}{query}{rest}"
        if not path.startswith("/"):
            path = f"{self._path.rpartition('/')[0]}/{path}"
        return f"{self._root}{_remove_dots(path)}{rest}"


def _split(reference: str) -> tuple[str, str]:
    """Return the path of *reference*, and what follows it."""
    match = _PATH.match(reference)
    assert match is not None  # it may be empty
    return match[0], reference[match.end() :]


def _remove_dots(path: str) -> str:
    """Return the absolute *path* without ``.`` and ``..`` (RFC 3986, section 5.2.4)."""
    if "/." not in path:
        return path
    first, *segments = path.split("/")
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/".join([first, *kept])


def _prefixer(prefix: str | Iterable[str]) -> Callable[[str], str]:
    """Return a function that puts *prefix* in front of a path from the root."""
    if not isinstance(prefix, str):
        prefix = quote_path(prefix)
    elif not is_href(prefix):
        raise ValueError(f"a prefix cannot have < or > or control characters: {short(prefix)}")
    path = prefix.strip("/")
    if not path:
        return lambda reference: reference
    start = f"/{path}"

    def change(reference: str) -> str:
        is_path = reference.startswith("/") and not reference.startswith("//")
        return start + reference if is_path else reference

    return change
