"""Exceptions on the wire: ``[type name, message, *traceback lines]``, and back."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from typing import Any, Final

from aiomas_ng import exceptions
from aiomas_ng._core.codec_errors import short
from aiomas_ng.exceptions import (
    AccessDeniedError,
    AiomasError,
    RemoteAccessError,
    RemoteArgumentError,
    RemoteCancelledError,
    RemoteException,
    RemoteLookupError,
    RemoteOverloadError,
    RemoteRestartingError,
    RemoteSerializationError,
    SerializationError,
)

__all__ = ["MAX_TEXT", "MAX_TRACEBACK", "describe", "is_fault", "is_of_user", "rebuild"]

#: Longest message or traceback line that is sent, in characters.
MAX_TEXT: Final = 8192
#: Most traceback lines that are sent; of a longer traceback the end stays, where the cause is.
MAX_TRACEBACK: Final = 100

_CUT: Final = " … "

#: Our own errors, and the cancellation of a task, are named with this prefix, so that a user's error of the
#: same name is not taken for them.
PREFIX: Final = "aiomas_ng."

REMOTE_TYPES: Final[dict[str, type[RemoteException]]] = {
    "aiomas_ng.RoutingError": RemoteLookupError,
    "aiomas_ng.NotExposedError": RemoteLookupError,
    "aiomas_ng.AgentRestartingError": RemoteRestartingError,
    "aiomas_ng.ArgumentError": RemoteArgumentError,
    "aiomas_ng.SerializationError": RemoteSerializationError,
    "aiomas_ng.DeserializationError": RemoteSerializationError,
    "aiomas_ng.DecodedTooLargeError": RemoteSerializationError,
    "aiomas_ng.FrameTooLargeError": RemoteSerializationError,
    "aiomas_ng.OverloadError": RemoteOverloadError,
    "aiomas_ng.CancelledError": RemoteCancelledError,
    "aiomas_ng.AccessDeniedError": RemoteAccessError,
}

_OUR_FILES = os.path.dirname(exceptions.__file__) + os.sep


def describe(exception: BaseException, *, has_traceback: bool = True) -> list[str]:
    """Return *exception* as the list of strings that is sent: type name, message, traceback lines.

    Args:
        exception: The exception.
        has_traceback: Whether the peer is told the traceback, which shows code, paths and what is in the
            messages of the causes.
    """
    name = type(exception).__name__
    if type(exception) is AccessDeniedError:
        # Also of a handler's own check. Who is denied something is told that, and not how it is decided.
        return [_clean(PREFIX + name), _clean(str(exception))]
    module = type(exception).__module__
    # By its type alone: an exception may also lie about its class, or fail when it is asked.
    is_ours = issubclass(type(exception), AiomasError) and module == exceptions.__name__
    # One of ours that came out of a handler is about a call of that handler's own.
    is_ours = is_ours and _user_traceback(exception) is None
    if is_ours or (name == "CancelledError" and module == "asyncio.exceptions"):
        name = PREFIX + name
    try:
        message = str(exception)
    except Exception as error:
        message = f"<str() of the exception failed: {short(error)}>"
    if not has_traceback:
        return [_clean(name), _clean(message)]
    try:
        tb, cause = _user_traceback(exception), exception.__cause__
        # Where no code of a user's took part, the way through ours would only hide what is wrong.
        chain = not is_ours or (cause is not None and _user_traceback(cause) is not None)
        lines = traceback.format_exception(type(exception), exception, tb, chain=chain)
    except Exception as error:  # the module relies on the attributes of exceptions, and they can be anything
        lines = [f"{name}: {message}\n", f"<the traceback could not be formatted: {short(error)}>\n"]
    return [_clean(text) for text in (name, message, *lines[-MAX_TRACEBACK:])]


def is_fault(exception: BaseException) -> bool:
    """Return whether *exception* has come out of a user's code, so that somebody has to see its traceback.

    A peer that asks for what is not there, or sends what cannot be decoded, is none of these.
    """
    if not isinstance(exception, Exception):
        return False  # a cancellation, or the end of the program
    return is_of_user(exception) or (
        isinstance(exception, SerializationError) and is_of_user(exception.__cause__)
    )


def rebuild(origin: Any, content: Any) -> RemoteException:
    """Return the exception for the *content* of an EXCEPTION frame from the peer *origin*.

    Besides our list a plain string is understood (aiomas sends the traceback so), and anything else by its
    ``repr``.
    """
    if isinstance(content, str):
        return RemoteException(origin, content, "", content)
    if not isinstance(content, Sequence) or not content or not all(isinstance(part, str) for part in content):
        text = _represent(content)
        return RemoteException(origin, text, "", text)
    type_name, message = content[0], content[1] if len(content) > 1 else ""
    text = "".join(content[2:]) or f"{type_name}: {message}"
    cls = REMOTE_TYPES.get(type_name, RemoteException)
    return cls(origin, text, type_name, message)


def is_of_user(exception: BaseException | None) -> bool:
    """Return whether code of the user's took part in *exception*."""
    return exception is not None and _user_traceback(exception) is not None


def _user_traceback(exception: BaseException) -> Any:
    """Return the traceback from the user's code on, ``None`` if there is none of that in it."""
    tb = exception.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_OUR_FILES):
        tb = tb.tb_next
    return tb


def _represent(content: Any) -> str:
    """Return ``repr(content)``, cut to a length; it fails for very large integers and very deep nesting."""
    try:
        return _clean(repr(content))
    except Exception:
        return short(content)


def _clean(text: str) -> str:
    """Cut *text* to a length, and replace what no codec can encode (lone surrogates)."""
    if len(text) > MAX_TEXT:
        half = (MAX_TEXT - len(_CUT)) // 2
        text = text[:half] + _CUT + text[-half:]
    return text.encode("utf-8", "replace").decode("utf-8")
