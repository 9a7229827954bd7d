"""The binary form of messages, as CoAP puts it on the wire.

Options and payload (RFC 7252, section 3.1), the same on all transports::

    for each option: | delta : 4 | length : 4 | delta, extended | length, extended | value |
    if there is a payload: | 0xff | payload |

*delta* is what the number of the option is more than that of the one before.  A nibble of 13 or 14 says that
one or two bytes follow, which hold the number less 13 or 269; 15 stands only in the byte before the payload.

Over connections (RFC 8323, section 3.2), one message after the other::

    | length : 4 | token length : 4 | length, extended | code : 8 | token | options and payload |

*length* is that of options and payload.  13, 14 and 15 say that 1, 2 or 4 bytes follow, which hold it less
13, 269 or 65805.

In datagrams (RFC 7252, section 3), one message each::

    | version : 2 | type : 2 | token length : 4 | code : 8 | message id : 16 | token | options and payload |

Malformed bytes of a peer are a :exc:`~aiomas_ng.exceptions.MalformedFrameError`.  Options with values that
they must not have are no such error, see :mod:`aiomas_ng._core.options`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from aiomas_ng._core.codes import CODES, Code
from aiomas_ng._core.options import MAX_NUMBER, OptionError, Options, SignalOptions
from aiomas_ng.exceptions import FrameTooLargeError, MalformedFrameError

__all__ = [
    "DEFAULT_MAX_SIZE",
    "MAX_TOKEN",
    "Datagram",
    "FrameParser",
    "MessageType",
    "Parts",
    "decode_datagram",
    "decode_frame",
    "decode_options",
    "encode_datagram",
    "encode_frame",
    "encode_options",
]

#: Bytes that a token may have (RFC 7252, section 3).
MAX_TOKEN: Final = 8

#: Largest message that a :class:`FrameParser` takes by default, in bytes of options and payload.
DEFAULT_MAX_SIZE: Final = 2**20

#: Largest length that the header of a frame can announce, in bytes.
MAX_LENGTH: Final = 65805 + 2**32 - 1

_PAYLOAD_MARKER: Final = 0xFF
_VERSION: Final = 1
_DATAGRAM_HEADER: Final = struct.Struct("!BBH")

#: For the nibbles that say so: how many bytes follow, and what is to be added to the number in them.
_EXTENSIONS: Final = {13: (1, 13), 14: (2, 269), 15: (4, 65805)}


class Parts(NamedTuple):
    """A message on a connection, taken apart.

    Attributes:
        code: The code, 0 to 255.
        token: At most 8 bytes.
        options: The options.
        payload: The body.
    """

    code: int
    token: bytes
    options: Options
    payload: bytes


class MessageType(enum.IntEnum):
    """What a datagram is (RFC 7252, section 3)."""

    CON = 0  #: To be acknowledged.
    NON = 1  #: Not to be acknowledged.
    ACK = 2  #: An acknowledgement, with or without a response.
    RST = 3  #: The recipient cannot do anything with the message of this id.


class Datagram(NamedTuple):
    """A message in a datagram, taken apart.

    Attributes:
        type: What it is.
        message_id: What an acknowledgement refers to, 0 to 65535.
        code: The code, 0 to 255.
        token: At most 8 bytes.
        options: The options.
        payload: The body.
    """

    type: MessageType
    message_id: int
    code: int
    token: bytes
    options: Options
    payload: bytes


# Options and payload


def encode_options(options: Options) -> bytes:
    """Return the binary form of *options*, without the payload's marker."""
    data = bytearray()
    last = 0
    for number, value in options.option_list():
        delta, extended_delta = _split(number - last)
        length, extended_length = _split(len(value))
        data.append(delta << 4 | length)
        data += extended_delta
        data += extended_length
        data += value
        last = number
    return bytes(data)


def decode_options(data: bytes, *, is_signal: bool = False) -> tuple[Options, bytes]:
    """Return options and payload.

    Args:
        data: Their bytes.
        is_signal: Whether the message has a code of class 7, whose options are others.

    Raises:
        MalformedFrameError: The bytes end within an option, a number is too large, there are too many
            options, or no payload follows its marker.
    """
    reader = _Reader(bytes(data))
    try:
        options = (SignalOptions if is_signal else Options).from_option_list(reader)
        return options, reader.payload
    except OptionError as error:
        raise MalformedFrameError(str(error)) from error


class _Reader:
    """Iterates over numbers and values of options, and then has the payload."""

    def __init__(self, data: bytes) -> None:
        self.payload = b""
        self._data = data
        self._place = 0

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        data, end = self._data, len(self._data)
        number = 0
        while self._place < end:
            head = data[self._place]
            self._place += 1
            if head == _PAYLOAD_MARKER:
                self.payload = data[self._place :]
                if not self.payload:
                    raise MalformedFrameError("no payload follows its marker")
                return
            number += self._read_extended(head >> 4)
            if number > MAX_NUMBER:
                raise MalformedFrameError(
                    f"an option has the number {number}, the largest one is {MAX_NUMBER}"
                )
            length = self._read_extended(head & 15)
            yield number, self._read(length)

    def _read_extended(self, nibble: int) -> int:
        if nibble < 13:
            return nibble
        if nibble == 15:
            raise MalformedFrameError("an option begins like the marker of the payload")
        size, offset = _EXTENSIONS[nibble]
        return int.from_bytes(self._read(size), "big") + offset

    def _read(self, size: int) -> bytes:
        start = self._place
        self._place += size
        if self._place > len(self._data):
            raise MalformedFrameError("the message ends within an option")
        return self._data[start : self._place]


def _split(value: int) -> tuple[int, bytes]:
    """Return the nibble for *value* and the bytes that extend it.

    A length of 65805 and more exists in the header of a frame only.
    """
    if value < 13:
        return value, b""
    if value < 269:
        return 13, (value - 13).to_bytes(1, "big")
    if value < 65805:
        return 14, (value - 269).to_bytes(2, "big")
    return 15, (value - 65805).to_bytes(4, "big")


def _encode_body(options: Options, payload: bytes) -> bytes:
    body = encode_options(options)
    return b"".join((body, bytes((_PAYLOAD_MARKER,)), payload)) if payload else body


def _check_header(code: int, token: bytes) -> None:
    if not 0 <= code <= 255:
        raise ValueError(f"a code must be from 0 to 255 but is {code}")
    if len(token) > MAX_TOKEN:
        raise ValueError(f"a token has {MAX_TOKEN} bytes at most, not {len(token)}")


# On connections


def encode_frame(code: int, token: bytes, options: Options, payload: bytes) -> bytes:
    """Return a message as it travels over connections.

    Raises:
        ValueError: The code is not from 0 to 255, or the token has more than 8 bytes.
        FrameTooLargeError: Options and payload have more than 4 GiB.
    """
    _check_header(code, token)
    body = _encode_body(options, payload)
    if len(body) > MAX_LENGTH:
        raise FrameTooLargeError(len(body), MAX_LENGTH, "a message of CoAP")
    length, extended = _split(len(body))
    return b"".join((bytes((length << 4 | len(token),)), extended, bytes((code,)), token, body))


def decode_frame(data: bytes) -> Parts:
    """Return the message that *data* is, which must be exactly one frame.

    Raises:
        MalformedFrameError: It is not.
    """
    data = bytes(data)
    header = _read_header(data)
    if header is None or header.end != len(data):
        raise MalformedFrameError(
            f"{len(data)} bytes are no message of CoAP over TCP"
            + (f", its header announces {header.end}" if header is not None else "")
        )
    return _decode_parts(data, header)


class _Header(NamedTuple):
    """Where in a frame its parts are: from the frame's first byte, in bytes."""

    code_at: int
    body_at: int
    end: int


def _read_header(data: bytes | bytearray, start: int = 0) -> _Header | None:
    """Return where the parts of the frame at *start* are, ``None`` if its header is not complete.

    Raises:
        MalformedFrameError: The token is announced with more than 8 bytes.
    """
    if len(data) <= start:
        return None
    length, token_length = data[start] >> 4, data[start] & 15
    if token_length > MAX_TOKEN:
        raise MalformedFrameError(f"a token has {MAX_TOKEN} bytes at most, not {token_length}")
    code_at = 1
    if length >= 13:
        size, offset = _EXTENSIONS[length]
        code_at += size
        if len(data) < start + code_at:
            return None
        length = int.from_bytes(data[start + 1 : start + code_at], "big") + offset
    body_at = code_at + 1 + token_length
    return _Header(code_at, body_at, body_at + length)


def _decode_parts(frame: bytes, header: _Header) -> Parts:
    code = frame[header.code_at]
    options, payload = decode_options(frame[header.body_at :], is_signal=CODES[code].is_signalling())
    return Parts(code, frame[header.code_at + 1 : header.body_at], options, payload)


class FrameParser:
    """Takes the bytes of a connection, in any pieces, and gives the messages in them.

    What comes after something malformed is lost, and the connection of no use any more.  The messages before
    it are given first, however the bytes were cut: then it is in :attr:`error`, and raised by the next call.

    Args:
        max_size: Largest message, in bytes of options and payload.  What arrives is kept until it is a whole
            message, so a little more than this at most.

    Raises:
        ValueError: *max_size* is negative.
    """

    def __init__(self, max_size: int = DEFAULT_MAX_SIZE) -> None:
        if max_size < 0:
            raise ValueError(f"max_size must be >= 0 but is {max_size}")
        self._max_size = max_size
        self._buffer = bytearray()
        #: What is malformed in the bytes after the messages that were given, ``None`` as long as nothing is.
        self.error: MalformedFrameError | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no part of a message waits for the rest; so a connection may end here."""
        return not self._buffer

    def feed(self, data: bytes | bytearray | memoryview) -> list[Parts]:
        """Take the next bytes and return the messages that are complete by now.

        Raises:
            MalformedFrameError: What comes next is none, or is too large.
        """
        if self.error is not None:
            raise self.error
        self._buffer += data
        parsed: list[Parts] = []
        place = 0
        try:
            while (header := _read_header(self._buffer, place)) is not None:
                size = header.end - header.body_at
                if size > self._max_size:
                    raise MalformedFrameError(f"a message has {size} bytes, the limit is {self._max_size}")
                end = place + header.end
                if end > len(self._buffer):
                    break
                with memoryview(self._buffer) as view:
                    frame = bytes(view[place:end])
                parsed.append(_decode_parts(frame, header))
                place = end
        except MalformedFrameError as error:
            self._buffer.clear()
            self.error = error
            if not parsed:
                raise
            return parsed
        # Once per call, not per message, so that many small ones take no quadratic time.
        del self._buffer[:place]
        return parsed


# In datagrams


def encode_datagram(
    type: MessageType, message_id: int, code: int, token: bytes, options: Options, payload: bytes
) -> bytes:
    """Return a message as it travels in a datagram.

    Raises:
        ValueError: Code, token or message id are not allowed, or it is an empty message with something in it.
    """
    _check_header(code, token)
    if not 0 <= message_id <= 65535:
        raise ValueError(f"a message id must be from 0 to 65535 but is {message_id}")
    body = _encode_body(options, payload)
    if code == Code.EMPTY and (token or body):
        raise ValueError("an empty message can have no token, options or payload (RFC 7252, section 4.1)")
    head = _DATAGRAM_HEADER.pack(_VERSION << 6 | MessageType(type) << 4 | len(token), code, message_id)
    return b"".join((head, token, body))


def decode_datagram(data: bytes) -> Datagram:
    """Return the message in a datagram.

    Raises:
        MalformedFrameError: There is none in it, or its version is not 1, or it is an empty message that has
            something in it.
    """
    data = bytes(data)
    if len(data) < _DATAGRAM_HEADER.size:
        raise MalformedFrameError(f"{len(data)} bytes are no message of CoAP")
    head, code, message_id = _DATAGRAM_HEADER.unpack_from(data)
    if head >> 6 != _VERSION:
        raise MalformedFrameError(f"the version must be {_VERSION} but is {head >> 6}")
    token_length = head & 15
    if token_length > MAX_TOKEN:
        raise MalformedFrameError(f"a token has {MAX_TOKEN} bytes at most, not {token_length}")
    body_at = _DATAGRAM_HEADER.size + token_length
    if len(data) < body_at:
        raise MalformedFrameError("the message ends within its token")
    if code == Code.EMPTY and len(data) > _DATAGRAM_HEADER.size:
        raise MalformedFrameError("an empty message has a token, options or a payload")
    options, payload = decode_options(data[body_at:])
    return Datagram(MessageType(head >> 4 & 3), message_id, code, data[4:body_at], options, payload)
