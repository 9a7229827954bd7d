"""The text of links: RFC 6690, section 2.

::

    </sensors/temp>;rt="temperature-c";ct="0 50";obs,</sensors/light>;rt="light-lux";sz=12
     ╰── href ───╯  ╰── attribute ──╯            ╰ flag

What is written is the grammar to the letter: no spaces between the parts, numbers as tokens, other values in
quotes.  What is read may differ from it where that leaves no doubt: there may be spaces and line breaks
between the parts, and values may be tokens or in quotes whatever the attribute.

Reading takes one pass; no expression goes back over what it has matched.
"""

from __future__ import annotations

import re
from typing import Final

from aiomas_ng._core.codec_errors import short
from aiomas_ng.exceptions import AiomasError

__all__ = [
    "MAX_ATTRIBUTES",
    "MAX_LINKS",
    "MAX_TEXT",
    "Attributes",
    "LinkFormatError",
    "format_link",
    "is_attribute_name",
    "is_href",
    "is_value",
    "parse_links",
]

#: Characters that a text may have.
MAX_TEXT: Final = 8 * 2**20

#: Links that a text may have.
MAX_LINKS: Final = 100_000

#: Attributes that all links of a text may have together.
MAX_ATTRIBUTES: Final = 500_000

Attributes = tuple[tuple[str, str | None], ...]
"""Names and values; the value of a flag, such as ``obs``, is ``None``."""

# What no part may contain: control characters, and surrogates, which UTF-8 does not have.
_CONTROL = r"\x00-\x1f\x7f\ud800-\udfff"
_NAME = r"[A-Za-z0-9!#$&+\-.^_`|~]++\*?"
_SPACE = re.compile(r"[ \t\r\n]*+")
_HREF = re.compile(rf"<([^<>{_CONTROL}]*+)>")
# Possessive, so that a quote that never ends is not searched again from each of its backslashes.
_QUOTED = re.compile(rf'"([^"\\{_CONTROL}]*+(?:\\[^{_CONTROL}][^"\\{_CONTROL}]*+)*+)"')
_TOKEN = re.compile(rf'[^",;\\ {_CONTROL}]++')
_PARAMETER = re.compile(_NAME)
_ESCAPED = re.compile(r"\\(.)")

_IS_NAME = re.compile(_NAME)
_IS_HREF = re.compile(rf"[^<>{_CONTROL}]*+")
_IS_VALUE = re.compile(rf"[^{_CONTROL}]*+")
_IS_CARDINAL = re.compile(r"0|[1-9][0-9]*+", re.ASCII)
_IS_LANGUAGE = re.compile(r"[A-Za-z0-9]++(?:-[A-Za-z0-9]++)*+")
_IS_EXTENDED = re.compile(r"[A-Za-z0-9!#$%&'+\-.^_`|~]++")

#: Attributes that the grammar has in quotes only, or whose values are words even if they look like numbers.
_ALWAYS_QUOTED: Final = frozenset({"anchor", "if", "media", "rel", "rev", "rt", "title", "type"})


class LinkFormatError(AiomasError, ValueError):
    """A text is not in link format.

    Args:
        reason: What is wrong.
        position: Where, as an index into the text; ``None`` where it is wrong as a whole.
    """

    def __init__(self, reason: str, position: int | None = None) -> None:
        super().__init__(reason, position)
        self.reason = reason
        self.position = position

    def __str__(self) -> str:
        return self.reason if self.position is None else f"{self.reason} (at character {self.position})"


def is_attribute_name(name: str) -> bool:
    """Return whether *name* can be the name of an attribute."""
    return _IS_NAME.fullmatch(name) is not None


def is_href(href: str) -> bool:
    """Return whether *href* can stand between angle brackets; whether it is a URI is not looked at."""
    return _IS_HREF.fullmatch(href) is not None


def is_value(value: str) -> bool:
    """Return whether *value* can be the value of an attribute."""
    return _IS_VALUE.fullmatch(value) is not None


def format_link(href: str, attributes: Attributes) -> str:
    """Return the text of one link, whose parts have been checked."""
    return f"<{href}>" + "".join([";" + _format_attribute(name, value) for name, value in attributes])


def _format_attribute(name: str, value: str | None) -> str:
    if value is None:
        return name
    kind = name.lower()
    if kind.endswith("*"):
        is_token = _IS_EXTENDED.fullmatch(value) is not None
    elif kind == "hreflang":
        is_token = _IS_LANGUAGE.fullmatch(value) is not None
    else:
        is_token = kind not in _ALWAYS_QUOTED and _IS_CARDINAL.fullmatch(value) is not None
    if is_token:
        return f"{name}={value}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"'


def parse_links(text: str) -> list[tuple[str, Attributes]]:
    """Return target and attributes of each link in *text*; an empty text has none.

    Raises:
        LinkFormatError: The text is not in link format, too long, or has too many links or attributes.
    """
    if len(text) > MAX_TEXT:
        raise LinkFormatError(f"the text has {len(text)} characters, the limit is {MAX_TEXT}")
    links: list[tuple[str, Attributes]] = []
    count = 0
    position = _skip(text, 0)
    if position == len(text):
        return links
    while True:
        if len(links) == MAX_LINKS:
            raise LinkFormatError(f"there are more than {MAX_LINKS} links", position)
        match = _HREF.match(text, position)
        if match is None:
            raise _expected("a target in angle brackets", text, position)
        href, position = match[1], _skip(text, match.end())
        attributes: list[tuple[str, str | None]] = []
        while text.startswith(";", position):
            attribute, position = _parse_attribute(text, _skip(text, position + 1))
            attributes.append(attribute)
            count += 1
            if count > MAX_ATTRIBUTES:
                raise LinkFormatError(f"the links have more than {MAX_ATTRIBUTES} attributes", position)
        links.append((href, tuple(attributes)))
        if position == len(text):
            return links
        if text[position] != ",":
            raise _expected("a comma, a semicolon or the end", text, position)
        position = _skip(text, position + 1)


def _parse_attribute(text: str, position: int) -> tuple[tuple[str, str | None], int]:
    """Return the attribute at *position*, and where the next part begins."""
    match = _PARAMETER.match(text, position)
    if match is None:
        raise _expected("the name of an attribute", text, position)
    name, position = match[0], _skip(text, match.end())
    if not text.startswith("=", position):
        return (name, None), position
    position = _skip(text, position + 1)
    if text.startswith('"', position):
        match = _QUOTED.match(text, position)
        if match is None:
            raise LinkFormatError(
                f"the quoted value of {short(name)} has no end, or a control character in it", position
            )
        value = match[1]
        if "\\" in value:
            value = _ESCAPED.sub(r"\1", value)
    else:
        match = _TOKEN.match(text, position)
        if match is None:
            raise _expected(f"a value of {short(name)}", text, position)
        value = match[0]
    return (name, value), _skip(text, match.end())


def _skip(text: str, position: int) -> int:
    """Return where the spaces at *position* end."""
    match = _SPACE.match(text, position)
    assert match is not None  # it may be empty
    return match.end()


def _expected(what: str, text: str, position: int) -> LinkFormatError:
    found = f"not {short(text[position : position + 20])}" if position < len(text) else "not the end"
    return LinkFormatError(f"expected {what}, {found}", position)
