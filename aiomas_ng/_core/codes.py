"""Codes of messages: what a request asks for, and what became of it.

A code is a byte: a class of three bits and a detail of five, written as ``c.dd`` (RFC 7252, section 3):

======  ============================  =============================================
class   codes                         meaning
======  ============================  =============================================
0       0.00                          empty
0       0.01 to 0.31                  methods of requests
2       2.00 to 2.31                  success
4       4.00 to 4.31                  the request is at fault
5       5.00 to 5.31                  the server is at fault
7       7.00 to 7.31                  signals between the two ends of a connection
======  ============================  =============================================

The assigned ones are those of RFC 7252, RFC 7959 (2.31, 4.08), RFC 8132 (FETCH, PATCH, iPATCH, 4.09, 4.22),
RFC 8323 (7.01 to 7.05), RFC 8516 (4.29) and RFC 8768 (5.08).
"""

from __future__ import annotations

import enum
from typing import Final, Self

from aiomas_ng._core.codec_errors import short

__all__ = ["CODES", "SAFE_METHODS", "Code"]


class Code(enum.IntEnum):
    """The code of a message.

    ``Code(0x9f)`` gives a code for each number from 0 to 255, also for those that nobody has assigned: who
    receives one treats it by its class (RFC 7252, section 5.9).  The unassigned ones are no attributes of the
    class and do not appear when it is iterated over; there is one object of each, as of the others.

    Raises:
        ValueError: The number is not an integer from 0 to 255.
    """

    EMPTY = 0

    GET = 1
    POST = 2
    PUT = 3
    DELETE = 4
    FETCH = 5
    PATCH = 6
    iPATCH = 7

    CREATED = 0x41
    DELETED = 0x42
    VALID = 0x43
    CHANGED = 0x44
    CONTENT = 0x45
    CONTINUE = 0x5F

    BAD_REQUEST = 0x80
    UNAUTHORIZED = 0x81
    BAD_OPTION = 0x82
    FORBIDDEN = 0x83
    NOT_FOUND = 0x84
    METHOD_NOT_ALLOWED = 0x85
    NOT_ACCEPTABLE = 0x86
    REQUEST_ENTITY_INCOMPLETE = 0x88
    CONFLICT = 0x89
    PRECONDITION_FAILED = 0x8C
    REQUEST_ENTITY_TOO_LARGE = 0x8D
    UNSUPPORTED_CONTENT_FORMAT = 0x8F
    UNSUPPORTED_MEDIA_TYPE = 0x8F  # an older name of the same
    UNPROCESSABLE_ENTITY = 0x96
    TOO_MANY_REQUESTS = 0x9D

    INTERNAL_SERVER_ERROR = 0xA0
    NOT_IMPLEMENTED = 0xA1
    BAD_GATEWAY = 0xA2
    SERVICE_UNAVAILABLE = 0xA3
    GATEWAY_TIMEOUT = 0xA4
    PROXYING_NOT_SUPPORTED = 0xA5
    HOP_LIMIT_REACHED = 0xA8

    CSM = 0xE1
    PING = 0xE2
    PONG = 0xE3
    RELEASE = 0xE4
    ABORT = 0xE5

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if type(value) is not int or not 0 <= value <= 255:
            raise ValueError(f"a code must be an integer from 0 to 255 but is {short(value)}")
        code = int.__new__(cls, value)
        code._value_ = value
        code._name_ = f"UNASSIGNED_{value >> 5}_{value & 31:02d}"
        # Kept, so that codes may be compared by identity; there can be 256 at most.
        return cls._value2member_map_.setdefault(value, code)  # type: ignore[return-value]  # typed as Enum

    def is_request(self) -> bool:
        """Return whether this is a method."""
        return 0 < self < 32

    def is_response(self) -> bool:
        """Return whether this is the code of a response; those of the reserved class 3 are taken for some."""
        return 64 <= self < 192

    def is_successful(self) -> bool:
        """Return whether this is the code of a response that says that all went well."""
        return 64 <= self < 96

    def is_signalling(self) -> bool:
        """Return whether this is a signal between the two ends of a connection (RFC 8323, section 5)."""
        return self >= 224

    @property
    def class_(self) -> int:
        """The class, from 0 to 7."""
        return self >> 5

    @property
    def dotted(self) -> str:
        """The number as class and detail: ``"4.04"``."""
        return f"{self >> 5}.{self & 31:02d}"

    @property
    def name_printable(self) -> str:
        """The code for people: ``"GET"``, ``"4.04 Not Found"``, or ``"4.31"`` where it has no name."""
        if self._name_.startswith("UNASSIGNED"):
            return self.dotted
        if self < 32:
            return self._name_
        words = self._name_ if self._name_ == "CSM" else self._name_.replace("_", " ").title()
        return f"{self.dotted} {words}"

    def __str__(self) -> str:
        return self.name_printable

    def __format__(self, format_spec: str) -> str:
        return format(int(self) if format_spec else self.name_printable, format_spec)

    def __repr__(self) -> str:
        return f"<Code {int(self)} {self.name_printable!r}>"


#: All 256 codes by their numbers; to look one up costs less than to call the class.
CODES: Final = tuple(Code(number) for number in range(256))

#: Methods that change nothing (RFC 7252, section 5.1; RFC 8132, section 2).
SAFE_METHODS: Final = (Code.GET, Code.FETCH)
