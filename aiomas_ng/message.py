"""Messages: requests to resources, and the responses to them.

::

    request = Message(GET, uri="tcp://localhost:5555/battery/soc", observe=0)
    response = Message(CONTENT, b"0.75", content_format=ContentFormat.TEXT, max_age=10)

A message has a code, options, a payload, and a token that tells which request a response belongs to.  It
travels in one of two forms:

- Between our own, in compact form: ``[code, token, options, payload, more]`` is the content of a one-way
  frame of the channel, and is encoded by its codec.  *options* is the flat list ``[number, value, …]`` of
  :meth:`Options.to_compact`; *more* is true if further responses to the same request follow.  Trailing
  defaults are dropped, so ``[code, token]`` is the shortest.
- To and from others, in the binary form of CoAP over TCP (RFC 8323, section 3.2): :meth:`Message.encode`.

The codes stand in this module by their names, as ``message.GET``.  The model is ``aiocoap.Message``; we
differ in that there are no message types and ids, which belong to UDP.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Final, Self
from urllib.parse import quote, unquote

from aiomas_ng._core import coap_binary
from aiomas_ng._core.addresses import Address, parse_url
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.codes import CODES, Code
from aiomas_ng._core.options import Block, OptionError, OptionNumber, Options
from aiomas_ng.content import Coder, ContentFormat
from aiomas_ng.exceptions import AddressError, DeserializationError, MalformedFrameError

__all__ = [
    "ABORT",
    "BAD_GATEWAY",
    "BAD_OPTION",
    "BAD_REQUEST",
    "CHANGED",
    "CONFLICT",
    "CONTENT",
    "CONTINUE",
    "CREATED",
    "CSM",
    "DELETE",
    "DELETED",
    "EMPTY",
    "FETCH",
    "FORBIDDEN",
    "GATEWAY_TIMEOUT",
    "GET",
    "HOP_LIMIT_REACHED",
    "INTERNAL_SERVER_ERROR",
    "MAX_TOKEN",
    "METHOD_NOT_ALLOWED",
    "NOT_ACCEPTABLE",
    "NOT_FOUND",
    "NOT_IMPLEMENTED",
    "PATCH",
    "PING",
    "PONG",
    "POST",
    "PRECONDITION_FAILED",
    "PROXYING_NOT_SUPPORTED",
    "PUT",
    "RELEASE",
    "REQUEST_ENTITY_INCOMPLETE",
    "REQUEST_ENTITY_TOO_LARGE",
    "SERVICE_UNAVAILABLE",
    "TOO_MANY_REQUESTS",
    "UNAUTHORIZED",
    "UNPROCESSABLE_ENTITY",
    "UNSUPPORTED_CONTENT_FORMAT",
    "UNSUPPORTED_MEDIA_TYPE",
    "VALID",
    "Block",
    "Code",
    "ContentFormat",
    "Message",
    "OptionError",
    "OptionNumber",
    "Options",
    "iPATCH",
]

#: Bytes that a token may have (RFC 7252, section 3).
MAX_TOKEN: Final = 8

SEQUENCES: Final = (list, tuple)

#: Methods whose payload says nothing, so that it does not matter to a cache.
BODILESS: Final = frozenset((Code.GET, Code.DELETE))

# What may stand as it is in a segment of a path, and in an argument of a query (RFC 7252, section 6.5).
_IN_PATH: Final = "!$&'()*+,;=:@"
_IN_QUERY: Final = "!$'()*+,;=:@/?"

_URI_OPTIONS: Final = (int(OptionNumber.URI_PATH), int(OptionNumber.URI_QUERY))

_SHOWN_URI: Final = 200
"""Characters of a URI that a representation shows: a peer may have made it as long as it likes."""


class Message:
    """A request or a response.

    Args:
        code: A :class:`Code` or its number; ``None`` for a response whose resource leaves the choice to us.
        payload: Bytes.
        uri: Of a request: where it goes, see :meth:`set_request_uri`.
        token: At most 8 bytes; given by who sends the message.
        remote: Where the message goes to or comes from: a connection, or an address.
        **options: Options by name, as ``observe=0``; see :class:`Options`.

    Messages are compared by identity.

    Raises:
        ValueError: The code is no number from 0 to 255, or the URI does not parse.
        TypeError: The payload is not bytes.
        OptionError: An option cannot have this value.
        AttributeError: There is no such option.
    """

    __slots__ = ("code", "opt", "payload", "remote", "request", "token")

    #: What is asked for, or what became of it: a :class:`Code`, or ``None``.
    code: Any
    #: The body.
    payload: bytes
    #: The options.  Those of signals are :class:`~aiomas_ng._core.options.SignalOptions`.
    opt: Options
    #: What tells to which request a response belongs.
    token: bytes
    #: Where the message goes to or comes from.
    remote: Any
    #: Of a response: the request that it answers, if that was one of ours.
    request: Message | None

    def __init__(
        self,
        code: Code | int | None = None,
        payload: bytes = b"",
        uri: str | None = None,
        *,
        token: bytes = b"",
        remote: Any = None,
        **options: Any,
    ) -> None:
        self.code = code if type(code) is Code or code is None else Code(code)
        self.payload = payload if type(payload) is bytes else _as_payload(payload)
        self.opt = opt = Options()
        self.token = token
        self.remote = remote
        self.request = None
        if uri is not None:
            self.set_request_uri(uri)
        for name in options:
            setattr(opt, name, options[name])

    def __repr__(self) -> str:
        code = None if self.code is None else self._get_code()
        head = "without code" if code is None else code.name_printable
        if code is not None and code.is_request():
            uri = self.get_request_uri()
            head += f" {uri if len(uri) <= _SHOWN_URI else uri[:_SHOWN_URI] + '…'}"
        parts = [head]
        if self.payload:
            parts.append(f"{len(self.payload)} bytes")
        if self.opt:
            parts.append(f"{len(self.opt)} option(s)")
        return f"<{type(self).__name__} {', '.join(parts)}>"

    def copy(self, **changes: Any) -> Self:
        """Return a copy, with *changes*: any argument of :class:`Message`. The options are its own.

        Raises:
            ValueError, TypeError, OptionError, AttributeError: As for :class:`Message`.
        """
        new = type(self).__new__(type(self))
        new.code = self.code
        new.payload = self.payload
        new.opt = opt = self.opt.copy()
        new.token = self.token
        new.remote = self.remote
        new.request = self.request
        if "uri" in changes:
            # First, as the constructor does: options that are given beside it count.
            new.set_request_uri(changes["uri"])
        for name, value in changes.items():
            if name == "code":
                new.code = value if type(value) is Code or value is None else Code(value)
            elif name == "payload":
                new.payload = value if type(value) is bytes else _as_payload(value)
            elif name == "token" or name == "remote":
                setattr(new, name, value)
            elif name != "uri":
                setattr(opt, name, value)
        return new

    __copy__ = copy

    # Values

    @property
    def text(self) -> str:
        """The payload as text.

        Raises:
            DeserializationError: It is not UTF-8.
        """
        try:
            return str(self.payload, "utf-8")
        except UnicodeDecodeError as exc:
            raise DeserializationError(f"the payload is no text in UTF-8: {exc}") from exc

    def set_value(self, value: Any, content_format: int | None = None, *, coder: Coder | None = None) -> None:
        """Set payload and content format from *value*.

        Args:
            value: What is to be sent.
            content_format: See :meth:`~aiomas_ng.content.Coder.encode`.
            coder: What encodes it; needed only for own types.

        Raises:
            SerializationError: The value cannot be encoded in this format.
            OptionError: The content format is no number from 0 to 65535.
        """
        payload, self.opt.content_format = (coder or _get_coder()).encode(value, content_format)
        self.payload = payload

    def get_value(self, *, coder: Coder | None = None) -> Any:
        """Return the value of the payload, by its content format; without one the bytes.

        Raises:
            DeserializationError: The payload is not in this format.
        """
        return (coder or _get_coder()).decode(self.payload, self.opt.content_format)

    # URIs

    def set_request_uri(self, uri: str) -> None:
        """Set remote, ``opt.uri_path`` and ``opt.uri_query`` (RFC 7252, section 6.4).

        Args:
            uri: ``tcp://host:port/path?query``, ``ipc://[/path/of/socket]/path?query`` or
                ``local://queue-id/path?query``. Segments of the path and arguments of the query are
                percent-decoded; ``.`` and ``..`` in the path are resolved.

        Raises:
            AddressError: It is no such URI, or has a fragment.
            OptionError: A segment or an argument has more than 255 bytes.
        """
        if not isinstance(uri, str):
            raise AddressError(f"a URI must be a str but is {short(uri)}")
        # The same few are set over and over, so those of a usual length are remembered.
        self.remote, found = (_parse_uri if len(uri) <= _SHOWN_URI else _parse_uri.__wrapped__)(uri)
        values = self.opt._values
        for number in _URI_OPTIONS:
            values.pop(number, None)
        values.update(found)

    def get_request_uri(self) -> str:
        """Return the URI of a request, of a response that of its request (RFC 7252, section 6.5).

        It begins with the path where the address is not known, as that of a peer that has dialled us.
        """
        if self.request is not None and self.code is not None and self.code.is_response():
            return self.request.get_request_uri()
        opt = self.opt
        if opt.proxy_uri is not None:
            return opt.proxy_uri
        remote = self.remote
        base = remote.url if isinstance(remote, Address) else getattr(remote, "uri_base", None)
        path = "/".join([quote(segment, safe=_IN_PATH) for segment in opt.uri_path])
        query = "&".join([quote(argument, safe=_IN_QUERY) for argument in opt.uri_query])
        return f"{base or '/'}{path}{'?' if opt.uri_query else ''}{query}"

    # What caches and proxies want to know

    def get_cache_key(self, ignore_options: Iterable[int] = ()) -> tuple[Any, ...]:
        """Return something hashable that is equal for requests that a cache may answer alike.

        It is made of the code, the payload (but for GET and DELETE), and the options, except those that never
        matter to a cache (RFC 7252, section 5.4.6; Observe, RFC 7641, section 2).

        Args:
            ignore_options: Numbers of further options that do not matter.
        """
        payload = b"" if self.code in BODILESS else self.payload
        return self.code, payload, self.opt.cache_key(ignore_options)

    # On the wire

    def to_compact(self, *, token: bytes | None = None, more: bool = False) -> list[Any]:
        """Return the message in compact form, see above.

        Args:
            token: Used in place of the message's own.
            more: Whether further responses to the same request follow.

        Raises:
            ValueError: The message has no code.
            TypeError: The payload is not bytes.
        """
        payload = self.payload if type(self.payload) is bytes else _as_payload(self.payload)
        content: list[Any] = [self._get_code()._value_, self.token if token is None else token]
        if self.opt._values or payload or more:
            content.append(self.opt.to_compact())
            if payload or more:
                content.append(payload)
                if more:
                    content.append(True)
        return content

    @classmethod
    def from_compact(cls, content: Any) -> tuple[Self, bool]:
        """Return the message that a peer has sent in compact form, and whether further responses follow.

        Raises:
            MalformedFrameError: It has not this form, or the code is 0.
        """
        if type(content) not in SEQUENCES or not 2 <= len(content) <= 5:
            raise MalformedFrameError(
                f"a message must be [code, token, options, payload, more] but is {short(content)}"
            )
        size = len(content)
        code, token = content[0], content[1]
        if type(code) is not int or not 0 < code < 256:
            raise MalformedFrameError(
                f"a message's code must be an integer from 1 to 255 but is {short(code)}"
            )
        if type(token) is not bytes or len(token) > MAX_TOKEN:
            raise MalformedFrameError(f"a token must be at most {MAX_TOKEN} bytes but is {short(token)}")
        message = cls.__new__(cls)
        message.code = CODES[code]
        message.token = token
        message.remote = message.request = None
        try:
            message.opt = Options.from_compact(content[2]) if size > 2 else Options()
        except OptionError as error:
            raise MalformedFrameError(str(error)) from error
        message.payload = payload = content[3] if size > 3 else b""
        if type(payload) is not bytes:
            raise MalformedFrameError(f"a payload must be bytes but is {short(payload)}")
        more = content[4] if size > 4 else False
        if type(more) is not bool:
            raise MalformedFrameError(f"'more' must be a boolean but is {short(more)}")
        return message, more

    def encode(self) -> bytes:
        """Return the message in the binary form of CoAP over TCP, one whole frame (RFC 8323, section 3.2).

        Raises:
            ValueError: The message has no code, or the token has more than 8 bytes.
            TypeError: The payload is not bytes.
        """
        return coap_binary.encode_frame(self._get_code(), self.token, self.opt, _as_payload(self.payload))

    def _get_code(self) -> Code:
        code = self.code
        if type(code) is Code:
            return code
        if code is None:
            raise ValueError(f"{self!r} cannot be sent without a code")
        return Code(code)

    @classmethod
    def decode(cls, data: bytes, remote: Any = None) -> Self:
        """Return the message that *data* is, one whole frame of CoAP over TCP.

        Args:
            data: The bytes.
            remote: Where they come from.

        Raises:
            MalformedFrameError: It is not exactly one frame, or violates the rules of RFC 7252, section 3.1.
        """
        code, token, options, payload = coap_binary.decode_frame(data)
        message = cls(CODES[code], payload, token=token, remote=remote)
        message.opt = options
        return message


def _as_payload(payload: Any) -> bytes:
    if type(payload) is bytes:
        return payload
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload)
    raise TypeError(f"a payload must be bytes but is {short(payload)}; set_value() encodes values")


_coder: Coder | None = None


def _get_coder() -> Coder:
    """Return the coder for values without own types; it is made when it is needed first."""
    global _coder
    if _coder is None:
        _coder = Coder()
    return _coder


@functools.lru_cache(maxsize=1024)
def _parse_uri(uri: str) -> tuple[Address, dict[int, tuple[str, ...]]]:
    """Return the address, and the values of the options for path and query."""
    # In ipc://[path] a question mark may be part of the path of the socket.
    mark = uri.find("?", uri.find("]") if uri.startswith("ipc://[") else 0)
    if uri.startswith("ipc://") and not uri.startswith("ipc://["):
        mark = -1
    address, tail = parse_url(uri if mark < 0 else uri[:mark])
    query = None if mark < 0 else uri[mark + 1 :]
    if "#" in tail or "#" in (query or ""):
        raise AddressError(f"URI {short(uri)} has a fragment, which a request cannot carry")
    try:
        options = Options()
        options.uri_path = _resolve_dots([_unquote(segment) for segment in tail.split("/")]) if tail else ()
        options.uri_query = () if query is None else [_unquote(argument) for argument in query.split("&")]
        return address, options._values
    except UnicodeDecodeError as exc:
        raise AddressError(f"URI {short(uri)} is not percent-encoded UTF-8: {exc}") from exc


def _unquote(text: str) -> str:
    return unquote(text, errors="strict") if "%" in text else text


def _resolve_dots(segments: list[str]) -> list[str]:
    """Remove ``.`` and ``..`` as RFC 3986, section 5.2.4, has it."""
    if "." not in segments and ".." not in segments:
        return segments
    resolved: list[str] = []
    for segment in segments:
        if segment == "..":
            del resolved[-1:]
        elif segment != ".":
            resolved.append(segment)
    if segments[-1] in (".", "..") and resolved:
        resolved.append("")
    return resolved


EMPTY: Final = Code.EMPTY
GET: Final = Code.GET
POST: Final = Code.POST
PUT: Final = Code.PUT
DELETE: Final = Code.DELETE
FETCH: Final = Code.FETCH
PATCH: Final = Code.PATCH
iPATCH: Final = Code.iPATCH
CREATED: Final = Code.CREATED
DELETED: Final = Code.DELETED
VALID: Final = Code.VALID
CHANGED: Final = Code.CHANGED
CONTENT: Final = Code.CONTENT
CONTINUE: Final = Code.CONTINUE
BAD_REQUEST: Final = Code.BAD_REQUEST
UNAUTHORIZED: Final = Code.UNAUTHORIZED
BAD_OPTION: Final = Code.BAD_OPTION
FORBIDDEN: Final = Code.FORBIDDEN
NOT_FOUND: Final = Code.NOT_FOUND
METHOD_NOT_ALLOWED: Final = Code.METHOD_NOT_ALLOWED
NOT_ACCEPTABLE: Final = Code.NOT_ACCEPTABLE
REQUEST_ENTITY_INCOMPLETE: Final = Code.REQUEST_ENTITY_INCOMPLETE
CONFLICT: Final = Code.CONFLICT
PRECONDITION_FAILED: Final = Code.PRECONDITION_FAILED
REQUEST_ENTITY_TOO_LARGE: Final = Code.REQUEST_ENTITY_TOO_LARGE
UNSUPPORTED_CONTENT_FORMAT: Final = Code.UNSUPPORTED_CONTENT_FORMAT
UNSUPPORTED_MEDIA_TYPE: Final = Code.UNSUPPORTED_MEDIA_TYPE
UNPROCESSABLE_ENTITY: Final = Code.UNPROCESSABLE_ENTITY
TOO_MANY_REQUESTS: Final = Code.TOO_MANY_REQUESTS
INTERNAL_SERVER_ERROR: Final = Code.INTERNAL_SERVER_ERROR
NOT_IMPLEMENTED: Final = Code.NOT_IMPLEMENTED
BAD_GATEWAY: Final = Code.BAD_GATEWAY
SERVICE_UNAVAILABLE: Final = Code.SERVICE_UNAVAILABLE
GATEWAY_TIMEOUT: Final = Code.GATEWAY_TIMEOUT
PROXYING_NOT_SUPPORTED: Final = Code.PROXYING_NOT_SUPPORTED
HOP_LIMIT_REACHED: Final = Code.HOP_LIMIT_REACHED
CSM: Final = Code.CSM
PING: Final = Code.PING
PONG: Final = Code.PONG
RELEASE: Final = Code.RELEASE
ABORT: Final = Code.ABORT
