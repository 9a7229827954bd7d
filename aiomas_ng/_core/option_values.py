"""What an option is, by its number: its properties, and the values that it may have.

A value has three forms:

- *kept*, as programs see it: an int, a str, bytes, ``True``, or a :class:`Block`;
- in the *compact* form, which differs for a block only: it is an int;
- *binary*, as bytes (RFC 7252, section 3.2).

What a peer sends is looked at by :func:`take` and :func:`from_binary`, which never raise; what a program sets
by :func:`check` and :func:`check_all`, which raise an :exc:`OptionError` that says what would be right.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from aiomas_ng._core.codec_errors import short
from aiomas_ng.exceptions import AiomasError

__all__ = [
    "DEFINITIONS",
    "MAX_BLOCK_NUMBER",
    "MAX_LENGTH",
    "MAX_NUMBER",
    "UNDERSTOOD",
    "Block",
    "Definition",
    "Format",
    "OptionError",
    "OptionNumber",
    "check",
    "check_all",
    "check_number",
    "from_binary",
    "is_critical",
    "is_no_cache_key",
    "is_repeatable",
    "is_unsafe",
    "name_of",
    "take",
    "to_binary",
]

#: The largest option number (RFC 7252, section 12.2).
MAX_NUMBER: Final = 65535

#: Bytes of the longest value that the binary form can announce (RFC 7252, section 3.1).
MAX_LENGTH: Final = 65535 + 269

#: The largest number of a block (RFC 7959, section 2.2).
MAX_BLOCK_NUMBER: Final = 2**20 - 1


class OptionError(AiomasError, ValueError):
    """An option cannot have this value, or what a peer has sent is no list of options.

    Args:
        text: What is wrong, and what would be right.
        number: The option's number, where one option is concerned.
        value: Its value.
    """

    def __init__(self, text: str, number: int | None = None, value: Any = None) -> None:
        super().__init__(text)
        self.number = number
        self.value = value


# Numbers


def is_critical(number: int) -> bool:
    """Return whether a message must not be acted upon by who does not know this option."""
    return bool(number & 1)


def is_unsafe(number: int) -> bool:
    """Return whether a proxy that does not know this option must not pass the message on."""
    return bool(number & 2)


def is_no_cache_key(number: int) -> bool:
    """Return whether messages that differ in this option only are alike to a cache.

    That is so by the number (RFC 7252, section 5.4.6), and for Observe by definition (RFC 7641, section 2).
    """
    return number & 0x1E == 0x1C or number == OptionNumber.OBSERVE


def is_repeatable(number: int) -> bool:
    """Return whether a message may have this option several times; of unknown options that is assumed."""
    definition = DEFINITIONS.get(number)
    return definition is None or definition.is_repeatable


def name_of(number: int) -> str:
    """Return name and number of an option, for people: ``"Uri-Path (11)"``, or ``"option 4711"``."""
    definition = DEFINITIONS.get(number)
    return f"option {number:d}" if definition is None else f"{definition.number.name_printable} ({number:d})"


class OptionNumber(enum.IntEnum):
    """The numbers of the options that are known here.

    What the properties say also holds for unknown numbers, see the functions of the same names.
    """

    IF_MATCH = 1
    URI_HOST = 3
    ETAG = 4
    IF_NONE_MATCH = 5
    OBSERVE = 6  # RFC 7641
    URI_PORT = 7
    LOCATION_PATH = 8
    OSCORE = 9  # RFC 8613
    URI_PATH = 11
    CONTENT_FORMAT = 12
    MAX_AGE = 14
    URI_QUERY = 15
    HOP_LIMIT = 16  # RFC 8768
    ACCEPT = 17
    LOCATION_QUERY = 20
    BLOCK2 = 23  # RFC 7959
    BLOCK1 = 27  # RFC 7959
    SIZE2 = 28  # RFC 7959
    PROXY_URI = 35
    PROXY_SCHEME = 39
    SIZE1 = 60
    ECHO = 252  # RFC 9175
    NO_RESPONSE = 258  # RFC 7967
    REQUEST_TAG = 292  # RFC 9175
    # Ours, of the range for experiments: elective, safe to forward, and no matter to a cache.
    DEADLINE = 65020
    SIMULATED_DEADLINE = 65052

    @property
    def is_critical(self) -> bool:
        """Whether a message must not be acted upon by who does not know this option."""
        return is_critical(self)

    @property
    def is_unsafe(self) -> bool:
        """Whether a proxy that does not know this option must not pass the message on."""
        return is_unsafe(self)

    @property
    def is_no_cache_key(self) -> bool:
        """Whether messages that differ in this option only are alike to a cache."""
        return is_no_cache_key(self)

    @property
    def is_repeatable(self) -> bool:
        """Whether a message may have this option several times."""
        return is_repeatable(self)

    @property
    def definition(self) -> Definition:
        """Format and allowed length of its values."""
        return DEFINITIONS[self]

    @property
    def name_printable(self) -> str:
        """Its name as the RFCs write it: ``"Uri-Path"``."""
        words = [word if word == "OSCORE" else word.capitalize() for word in self.name.split("_")]
        return "ETag" if words == ["Etag"] else "-".join(words)


class Format(enum.Enum):
    """The format of an option's value (RFC 7252, section 3.2)."""

    #: No value; being there is all.
    EMPTY = "True"
    #: Bytes.
    OPAQUE = "bytes"
    #: A number from 0 on, big-endian, without leading zeros.
    UINT = "an integer"
    #: Text, in UTF-8.
    STRING = "a str"
    #: A uint that is made of the parts of a :class:`Block`.
    BLOCK = "a Block"


class Definition(NamedTuple):
    """What an option's value must be.

    Attributes:
        number: The option's number.
        format: Its format.
        low: The smallest length in bytes.
        high: The largest length in bytes.
        is_repeatable: Whether it may occur several times in one message.
    """

    number: OptionNumber
    format: Format
    low: int
    high: int
    is_repeatable: bool = False


_N = OptionNumber

#: The options that are known here (RFC 7252, section 5.10, and the RFCs named in :class:`OptionNumber`).
DEFINITIONS: Final[dict[int, Definition]] = {
    int(definition.number): definition
    for definition in (
        Definition(_N.IF_MATCH, Format.OPAQUE, 0, 8, is_repeatable=True),
        Definition(_N.URI_HOST, Format.STRING, 1, 255),
        Definition(_N.ETAG, Format.OPAQUE, 1, 8, is_repeatable=True),
        Definition(_N.IF_NONE_MATCH, Format.EMPTY, 0, 0),
        Definition(_N.OBSERVE, Format.UINT, 0, 3),
        Definition(_N.URI_PORT, Format.UINT, 0, 2),
        Definition(_N.LOCATION_PATH, Format.STRING, 0, 255, is_repeatable=True),
        Definition(_N.OSCORE, Format.OPAQUE, 0, 255),
        Definition(_N.URI_PATH, Format.STRING, 0, 255, is_repeatable=True),
        Definition(_N.CONTENT_FORMAT, Format.UINT, 0, 2),
        Definition(_N.MAX_AGE, Format.UINT, 0, 4),
        Definition(_N.URI_QUERY, Format.STRING, 0, 255, is_repeatable=True),
        Definition(_N.HOP_LIMIT, Format.UINT, 1, 1),
        Definition(_N.ACCEPT, Format.UINT, 0, 2),
        Definition(_N.LOCATION_QUERY, Format.STRING, 0, 255, is_repeatable=True),
        Definition(_N.BLOCK2, Format.BLOCK, 0, 3),
        Definition(_N.BLOCK1, Format.BLOCK, 0, 3),
        Definition(_N.SIZE2, Format.UINT, 0, 4),
        Definition(_N.PROXY_URI, Format.STRING, 1, 1034),
        Definition(_N.PROXY_SCHEME, Format.STRING, 1, 255),
        Definition(_N.SIZE1, Format.UINT, 0, 4),
        Definition(_N.ECHO, Format.OPAQUE, 1, 40),
        Definition(_N.NO_RESPONSE, Format.UINT, 0, 1),
        Definition(_N.REQUEST_TAG, Format.OPAQUE, 0, 8, is_repeatable=True),
        Definition(_N.DEADLINE, Format.UINT, 0, 7),
        Definition(_N.SIMULATED_DEADLINE, Format.UINT, 0, 7),
    )
}

#: Numbers of the options that are not only known by name.  A message under OSCORE must be refused by whoever
#: cannot undo the protection (RFC 8613, section 8.2).
UNDERSTOOD: Final = frozenset(DEFINITIONS) - {int(_N.OSCORE)}


class Block(NamedTuple):
    """A part of a body (RFC 7959, section 2.2).

    Attributes:
        number: Its number, in units of :attr:`size`.
        more: Whether further ones follow.
        szx: The exponent of the size, 0 to 6 for 16 to 1024 bytes; 7 for any number of units of 1024 bytes
            (BERT, RFC 8323, section 6).
    """

    number: int
    more: bool
    szx: int

    @property
    def size(self) -> int:
        """The bytes that the number counts; with BERT a block is any number of these."""
        return 16 << min(self.szx, 6)

    @property
    def start(self) -> int:
        """Where in the body the block begins, in bytes."""
        return self.number * self.size

    def to_uint(self) -> int:
        """Return the number that travels."""
        return self.number << 4 | self.more << 3 | self.szx

    @classmethod
    def from_uint(cls, value: int) -> Block:
        """Return the block that has travelled as *value*, a number below 2**24."""
        return cls(value >> 4, bool(value & 8), value & 7)


# Values of peers

_KINDS: Final[dict[Format, type[Any]]] = {
    Format.EMPTY: bool,
    Format.OPAQUE: bytes,
    Format.UINT: int,
    Format.STRING: str,
    Format.BLOCK: int,
}

# How a value is kept: as it is, in a tuple of all values of the option, or as a block.
_ALONE, _AMONG_OTHERS, _AS_BLOCK = range(3)

# Segments that a path must not have (RFC 7252, section 5.10.1).
_DOTS: Final = frozenset((".", ".."))

# Plain integers are compared and hashed in less time than members of an IntEnum.
_URI_PATH: Final = int(_N.URI_PATH)

#: For each number the type of the compact form, the bounds of its size, and how it is kept.  The size is the
#: number of bytes, in UTF-8 for text; of a number it is the number itself.
_Rule = tuple[type[Any], int, int, int]


def _make_rule(definition: Definition) -> _Rule:
    kind = _KINDS[definition.format]
    low, high = definition.low, definition.high
    if kind is int:
        low, high = 1 if low else 0, 256**high - 1
    elif kind is bool:
        low = high = 1  # True
    keeping = _AMONG_OTHERS if definition.is_repeatable else _ALONE
    return kind, low, high, _AS_BLOCK if definition.format is Format.BLOCK else keeping


_RULES: Final = {number: _make_rule(definition) for number, definition in DEFINITIONS.items()}
_RULE_FOR_UNKNOWN: Final[_Rule] = (bytes, 0, MAX_LENGTH, _AMONG_OTHERS)


def take(values: dict[int, Any], number: int, value: Any) -> bool:
    """Add to *values* what a peer has sent.

    Args:
        values: The kept values by number; a tuple of all of them where the option may be repeated.
        number: The option's number.
        value: In compact form, if it is of that type at all.

    Returns:
        Whether the option may have this value, beside those that it has; otherwise nothing was added.
    """
    kind, low, high, keeping = _RULES.get(number, _RULE_FOR_UNKNOWN)
    size: int
    if type(value) is not kind:
        return False
    if kind is str:
        size = len(value) if value.isascii() else _utf8_size(value)
    elif kind is bytes:
        size = len(value)
    else:
        size = value
    if not low <= size <= high:
        return False
    if keeping == _AMONG_OTHERS:
        if number == _URI_PATH and size < 3 and value in _DOTS:
            return False
        values[number] = (*values[number], value) if number in values else (value,)
        return True
    if number in values:
        return False
    values[number] = value if keeping == _ALONE else Block.from_uint(value)
    return True


def _utf8_size(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # surrogates
        return -1


def from_binary(number: int, data: bytes) -> Any:
    """Return a value in compact form, ``None`` where the option cannot have it."""
    definition = DEFINITIONS.get(number)
    if definition is None or definition.format is Format.OPAQUE:
        return data
    if len(data) > definition.high:
        return None
    if definition.format is Format.STRING:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError:
            return None
    return True if definition.format is Format.EMPTY else int.from_bytes(data, "big")


def to_binary(value: Any) -> bytes:
    """Return the binary form of a kept value."""
    kind = type(value)
    if kind is bytes:
        data: bytes = value
        return data
    if kind is str:
        text: str = value
        return text.encode()
    if value is True:
        return b""
    number: int = value.to_uint() if kind is Block else value
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


# Values of programs


def check_number(number: Any) -> int:
    """Return an option's number as a plain integer.

    Raises:
        OptionError: It is none.
    """
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_NUMBER:
        raise OptionError(
            f"an option's number must be an integer from 0 to {MAX_NUMBER} but is {short(number)}"
        )
    return int(number)


def check(number: int, value: Any) -> Any:
    """Return *value* as it is kept.

    Args:
        number: Number of an option that is known here.
        value: What a program sets.

    Raises:
        OptionError: The option cannot have it.
    """
    kind, low, high, keeping = _RULES[number]
    if kind is int and type(value) is int and low <= value <= high and keeping == _ALONE:
        return value  # the most frequent case
    kept: dict[int, Any] = {}
    if not take(kept, number, _to_compact(value, kind)):
        raise OptionError(
            f"{name_of(number)} must be {_describe(number)} but is {short(value)}", number, value
        )
    return kept[number][0] if keeping == _AMONG_OTHERS else kept[number]


def check_all(number: int, values: Any) -> tuple[Any, ...]:
    """Return all *values* of an option that may be repeated, as they are kept.

    Raises:
        OptionError: The option cannot have one of them, or this is one value rather than several.
    """
    if isinstance(values, str | bytes | bytearray | memoryview) or not isinstance(values, Iterable):
        raise OptionError(
            f"{name_of(number)} may be repeated, so it takes a sequence of values, as in [{short(values)}], "
            f"not {short(values)} itself",
            number,
            values,
        )
    return tuple([check(number, value) for value in values])


def _to_compact(value: Any, kind: type) -> Any:
    """Return *value* as exactly this type of the compact form, ``None`` if it cannot be."""
    if kind is bytes:
        return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else None
    if kind is str:
        return str.__str__(value) if isinstance(value, str) else None
    if kind is bool:
        return value if value is True else None
    if isinstance(value, tuple) and len(value) == 3:
        return _block_to_uint(*value)
    return _as_int(value)


def _block_to_uint(number: Any, more: Any, szx: Any) -> int | None:
    number, szx = _as_int(number), _as_int(szx)
    if number is None or szx is None or not isinstance(more, bool | int):
        return None
    is_right = 0 <= number <= MAX_BLOCK_NUMBER and 0 <= szx <= 7 and 0 <= more <= 1
    return Block(number, bool(more), szx).to_uint() if is_right else None


def _as_int(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return int(operator.index(value))
    except TypeError:
        return None


def _describe(number: int) -> str:
    """Return in words what values the option may have."""
    format = DEFINITIONS[number].format
    _, low, high, _ = _RULES[number]
    if format is Format.UINT:
        return f"an integer from {low} to {high}"
    if format is Format.BLOCK:
        return f"a Block(number, more, szx) with a number up to {MAX_BLOCK_NUMBER} and szx up to 7"
    if format is Format.EMPTY:
        return "True"
    if format is Format.OPAQUE:
        return f"{low} to {high} bytes"
    but = ", and not '.' or '..'" if number == _URI_PATH else ""
    return f"a str of {low} to {high} bytes in UTF-8{but}"
