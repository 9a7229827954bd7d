"""What goes wrong with requests to resources, named as in ``aiocoap.error``.

Errors that a handler raises, and that become the response by themselves::

    RenderableError                  5.00 (the base class; ConstructionRenderableError is another name of it)
    ├── BadRequest                   4.00  + ValueError
    ├── Unauthorized                 4.01  + PermissionError
    ├── BadOption                    4.02  + ValueError
    ├── Forbidden                    4.03  + PermissionError
    ├── NotFound                     4.04  + LookupError
    ├── MethodNotAllowed             4.05
    ├── NotAcceptable                4.06
    ├── RequestEntityIncomplete      4.08
    ├── Conflict                     4.09
    ├── PreconditionFailed           4.12
    ├── RequestEntityTooLarge        4.13  + ValueError
    ├── UnsupportedContentFormat     4.15  + ValueError (UnsupportedMediaType is another name of it)
    ├── UnprocessableEntity          4.22  + ValueError
    ├── TooManyRequests              4.29
    ├── InternalServerError          5.00  + RuntimeError
    ├── NotImplemented               5.01  + NotImplementedError
    ├── BadGateway                   5.02  + ConnectionError
    ├── ServiceUnavailable           5.03
    ├── GatewayTimeout               5.04  + TimeoutError
    ├── ProxyingNotSupported         5.05
    └── HopLimitReached              5.08

Errors that a requester gets::

    ResponseWrappingError            (the response is unsuccessful; it is in the error)
    NetworkError                     + ConnectionError: there is no way to the server, or it was lost
    RequestTimedOut                  (a CallTimeoutError, hence a TimeoutError)
    LibraryShutdown                  + ConnectionError: the context was shut down meanwhile
    NotObservable                    (the server does not let the resource be observed)
    ObservationCancelled             (the server has ended the observation)
    ResourceChanged                  (the body changed each time while its blocks were fetched)
    UnexpectedBlock1Option           (a ProtocolError: the server acknowledges another block than was sent)
    UnexpectedBlock2                 (a ProtocolError: the server sends another block than was asked for)

Errors of a program::

    MulticastNotSupported            + NotImplementedError
    PipeStateError                   + RuntimeError: a pipe is used in a way that its state does not allow

All derive from :exc:`~aiomas_ng.exceptions.AiomasError`; see :mod:`aiomas_ng.exceptions` for the others.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

from aiomas_ng._core.codes import Code
from aiomas_ng.exceptions import AiomasError, CallTimeoutError, ProtocolError
from aiomas_ng.message import Message

# Without NotImplemented, so that `from aiomas_ng.error import *` does not hide the constant of Python.
__all__ = [
    "MAX_DIAGNOSTIC",
    "BadGateway",
    "BadOption",
    "BadRequest",
    "Conflict",
    "ConstructionRenderableError",
    "Forbidden",
    "GatewayTimeout",
    "HopLimitReached",
    "InternalServerError",
    "LibraryShutdown",
    "MethodNotAllowed",
    "MulticastNotSupported",
    "NetworkError",
    "NotAcceptable",
    "NotFound",
    "NotObservable",
    "ObservationCancelled",
    "PipeStateError",
    "PreconditionFailed",
    "ProxyingNotSupported",
    "RenderableError",
    "RequestEntityIncomplete",
    "RequestEntityTooLarge",
    "RequestTimedOut",
    "ResourceChanged",
    "ResponseWrappingError",
    "ServiceUnavailable",
    "TooManyRequests",
    "Unauthorized",
    "UnexpectedBlock1Option",
    "UnexpectedBlock2",
    "UnprocessableEntity",
    "UnsupportedContentFormat",
    "UnsupportedMediaType",
]

#: Bytes of the text that a response carries: it is for people, and texts of errors may print all their data.
MAX_DIAGNOSTIC: Final = 1024

_MAX_AGE: Final = 2**32 - 1
_MAX_SIZE: Final = 2**32 - 1


class RenderableError(AiomasError):
    """An error that becomes the response to the request in whose handling it is raised.

    Args:
        message: What is wrong, for people; by default the attribute of the class.

    Subclasses set the attributes ``code``, and ``message`` if they have a text of their own.
    """

    code: ClassVar[Code] = Code.INTERNAL_SERVER_ERROR
    message: str = ""

    def __init__(self, message: str | None = None) -> None:
        if message is not None:
            self.message = str(message)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message or self.code.name_printable

    def to_message(self) -> Message:
        """Return the response.

        Its payload is the text (RFC 7252, section 5.5.2), :data:`MAX_DIAGNOSTIC` bytes of it at most.
        """
        return Message(self.code, _truncate(self.message.encode("utf-8", "backslashreplace")))


ConstructionRenderableError = RenderableError


def _truncate(text: bytes) -> bytes:
    """Return the beginning of *text*, which is UTF-8, and cut no character in two."""
    return text if len(text) <= MAX_DIAGNOSTIC else text[:MAX_DIAGNOSTIC].decode("utf-8", "ignore").encode()


class BadRequest(RenderableError, ValueError):
    """The request cannot be understood."""

    code = Code.BAD_REQUEST


class Unauthorized(RenderableError, PermissionError):
    """The requester has to show who it is first."""

    code = Code.UNAUTHORIZED


class BadOption(RenderableError, ValueError):
    """The request has a critical option that is not known here, or is malformed."""

    code = Code.BAD_OPTION


class Forbidden(RenderableError, PermissionError):
    """The requester may not do this."""

    code = Code.FORBIDDEN


class NotFound(RenderableError, LookupError):
    """There is no such resource."""

    code = Code.NOT_FOUND


class MethodNotAllowed(RenderableError):
    """The resource does not offer this method."""

    code = Code.METHOD_NOT_ALLOWED


class NotAcceptable(RenderableError):
    """The resource cannot give the content format that was asked for."""

    code = Code.NOT_ACCEPTABLE


class RequestEntityIncomplete(RenderableError):
    """Blocks of the body are missing, or not in order (RFC 7959)."""

    code = Code.REQUEST_ENTITY_INCOMPLETE


class Conflict(RenderableError):
    """The state of the resource does not allow this (RFC 8132)."""

    code = Code.CONFLICT


class PreconditionFailed(RenderableError):
    """An If-Match or If-None-Match of the request does not hold."""

    code = Code.PRECONDITION_FAILED


class RequestEntityTooLarge(RenderableError, ValueError):
    """The body is too large.

    Args:
        message: What is wrong, for people.
        size1: The largest body that is taken, in bytes; told by the option Size1 (RFC 7252, section 5.9.2.9).
    """

    code = Code.REQUEST_ENTITY_TOO_LARGE

    def __init__(self, message: str | None = None, *, size1: int | None = None) -> None:
        super().__init__(message)
        self.size1 = size1

    def to_message(self) -> Message:
        """Return the response, with the option Size1."""
        response = super().to_message()
        response.opt.size1 = None if self.size1 is None else min(self.size1, _MAX_SIZE)
        return response


class UnsupportedContentFormat(RenderableError, ValueError):
    """The resource does not take this content format."""

    code = Code.UNSUPPORTED_CONTENT_FORMAT


UnsupportedMediaType = UnsupportedContentFormat


class UnprocessableEntity(RenderableError, ValueError):
    """The body is well-formed but says something that cannot be done (RFC 8132)."""

    code = Code.UNPROCESSABLE_ENTITY


class _RetryLater(RenderableError):
    """Base of errors that tell when to try again.

    Args:
        message: What is wrong, for people.
        max_age: Seconds after which it makes sense to try again, ``None`` if that is not known; told by the
            option Max-Age, in whole seconds, rounded up.
    """

    def __init__(self, message: str | None = None, *, max_age: float | None = None) -> None:
        super().__init__(message)
        self.max_age = max_age

    def to_message(self) -> Message:
        """Return the response, with the option Max-Age."""
        response = super().to_message()
        if self.max_age is not None:
            # In this order, so that what is no number counts as 0.
            response.opt.max_age = math.ceil(min(max(0, self.max_age), _MAX_AGE))
        return response


class TooManyRequests(_RetryLater):
    """The requester sends too many requests (RFC 8516)."""

    code = Code.TOO_MANY_REQUESTS


class InternalServerError(RenderableError, RuntimeError):
    """Something went wrong in the server."""

    code = Code.INTERNAL_SERVER_ERROR


class NotImplemented(RenderableError, NotImplementedError):
    """The server does not know how to do this."""

    code = Code.NOT_IMPLEMENTED


class BadGateway(RenderableError, ConnectionError):
    """A server behind this one cannot be reached, or has answered something that makes no sense."""

    code = Code.BAD_GATEWAY


class ServiceUnavailable(_RetryLater):
    """The server cannot do this at present."""

    code = Code.SERVICE_UNAVAILABLE


class GatewayTimeout(RenderableError, TimeoutError):
    """A server behind this one has not answered in time."""

    code = Code.GATEWAY_TIMEOUT


class ProxyingNotSupported(RenderableError):
    """The server does not forward this."""

    code = Code.PROXYING_NOT_SUPPORTED


class HopLimitReached(RenderableError):
    """The request was forwarded too often, perhaps in a circle (RFC 8768)."""

    code = Code.HOP_LIMIT_REACHED


class ResponseWrappingError(AiomasError):
    """The response is unsuccessful.

    Args:
        coapmessage: The response.
    """

    def __init__(self, coapmessage: Message) -> None:
        super().__init__(coapmessage)
        self.coapmessage = coapmessage

    @property
    def message(self) -> Message:
        """The response."""
        return self.coapmessage

    @property
    def code(self) -> Code:
        """The response's code."""
        code: Code = self.coapmessage.code
        return code

    def to_message(self) -> Message:
        """Return the response."""
        return self.coapmessage

    def __str__(self) -> str:
        response = self.coapmessage
        text = self.code.name_printable
        if response.payload and response.opt.content_format in (None, 0):
            text += f": {_truncate(response.payload).decode('utf-8', 'replace')}"
        if response.request is not None:
            uri = response.request.get_request_uri()
            text += f" ({uri if len(uri) <= MAX_DIAGNOSTIC else uri[:MAX_DIAGNOSTIC] + '…'})"
        return text


class NetworkError(AiomasError, ConnectionError):
    """There is no way to the server, or the connection was lost."""


class RequestTimedOut(CallTimeoutError):
    """A request was not answered in time; the server was told to stop working on it."""


class LibraryShutdown(AiomasError, ConnectionError):
    """The context was shut down, so the request will not be answered."""


class NotObservable(AiomasError):
    """The server does not let the resource be observed; its response is the present state."""


class ObservationCancelled(AiomasError):
    """The server has ended the observation."""


class ResourceChanged(AiomasError):
    """The body changed each time while its blocks were fetched."""


class UnexpectedBlock1Option(ProtocolError):
    """The server acknowledges another block of the request than was sent."""


class UnexpectedBlock2(ProtocolError):
    """The server sends another block of the response than was asked for."""


class MulticastNotSupported(AiomasError, NotImplementedError):
    """There is no multicast: messages travel over connections, from one to one."""


class PipeStateError(AiomasError, RuntimeError):
    """A pipe is used in a way that its state does not allow."""
