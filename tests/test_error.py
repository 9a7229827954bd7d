"""Errors: each says what it is, to a peer as to a program, and derives from what programs catch."""

from __future__ import annotations

import builtins
import copy
import pickle
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiomas_ng import error, exceptions
from aiomas_ng._core.codes import Code
from aiomas_ng.error import MAX_DIAGNOSTIC, RenderableError, ResponseWrappingError
from aiomas_ng.exceptions import AiomasError, CallTimeoutError, ProtocolError
from aiomas_ng.message import CONTENT, GET, NOT_FOUND, Message

ERROR_CODES = [code for code in Code if code.class_ in (4, 5)]

RENDERABLE = [
    value
    for value in vars(error).values()
    if isinstance(value, type) and issubclass(value, RenderableError) and not value.__name__.startswith("_")
]

STANDARD = {
    "BadRequest": ValueError,
    "Unauthorized": PermissionError,
    "BadOption": ValueError,
    "Forbidden": PermissionError,
    "NotFound": LookupError,
    "RequestEntityTooLarge": ValueError,
    "UnsupportedContentFormat": ValueError,
    "UnprocessableEntity": ValueError,
    "InternalServerError": RuntimeError,
    "NotImplemented": NotImplementedError,
    "BadGateway": ConnectionError,
    "GatewayTimeout": TimeoutError,
    "NetworkError": ConnectionError,
    "RequestTimedOut": TimeoutError,
    "LibraryShutdown": ConnectionError,
    "MulticastNotSupported": NotImplementedError,
    "PipeStateError": RuntimeError,
}

every_renderable = pytest.mark.parametrize("kind", RENDERABLE, ids=lambda kind: kind.__name__)


def public_errors() -> dict[str, type[BaseException]]:
    """Return all errors of the module by name, but for second names and foreign ones."""
    return {
        name: value
        for name, value in vars(error).items()
        if isinstance(value, type)
        and issubclass(value, BaseException)
        and value.__module__ == error.__name__
        and value.__name__ == name
        and not name.startswith("_")
    }


# -- The tree --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ERROR_CODES, ids=lambda code: code.name)
def test_one_class_for_each_code(code: Code) -> None:
    """Each code of an error has a class of its name."""
    name = "".join(word.title() for word in code.name.split("_"))
    assert getattr(error, name).code is code


@pytest.mark.needs("aiocoap")
def test_names_of_aiocoap() -> None:
    """Every error that becomes a response in aiocoap has the same name and code here."""
    import aiocoap.error as theirs

    for code in ERROR_CODES:
        name = "".join(word.title() for word in code.name.split("_"))
        assert int(getattr(theirs, name).code) == getattr(error, name).code
    assert hasattr(theirs, "ConstructionRenderableError")
    assert hasattr(theirs, "ResponseWrappingError")


def test_second_names() -> None:
    """Some classes have a second name, which aiocoap or its older versions use."""
    assert error.ConstructionRenderableError is RenderableError
    assert error.UnsupportedMediaType is error.UnsupportedContentFormat


def test_all_derive_from_the_root() -> None:
    """One except clause catches all of them; those that programs catch by a standard type are of it."""
    assert set(STANDARD) <= set(public_errors())
    for name, kind in public_errors().items():
        assert issubclass(kind, AiomasError)
        if name in STANDARD:
            assert issubclass(kind, STANDARD[name])
    assert issubclass(error.RequestTimedOut, CallTimeoutError)
    assert issubclass(error.UnexpectedBlock1Option, ProtocolError)
    assert issubclass(error.UnexpectedBlock2, ProtocolError)


def test_docstring_shows_the_tree() -> None:
    """The documentation names every error with its code and the standard type that it derives from."""
    assert error.__doc__ is not None
    lines = error.__doc__.splitlines()
    for name, kind in public_errors().items():
        (line,) = [line for line in lines if re.match(rf"[\s│├└─]*{name}\b", line)]
        if issubclass(kind, RenderableError):
            assert kind.code.dotted in line
        shown = re.search(r"\+ (\w+)", line)
        assert (getattr(builtins, shown[1]) if shown else None) is STANDARD.get(
            name
        ) or name == "RequestTimedOut"


def test_names_that_are_exported() -> None:
    """All are exported, except for the name that would hide a constant of Python."""
    exported = set(error.__all__)
    assert set(public_errors()) - exported == {"NotImplemented"}
    assert {"ConstructionRenderableError", "UnsupportedMediaType", "MAX_DIAGNOSTIC"} <= exported
    assert not exported & set(exceptions.__all__)
    assert not exported & set(vars(builtins))


# -- Errors that become responses ------------------------------------------------------------------


@every_renderable
def test_becomes_a_response(kind: type[RenderableError]) -> None:
    """An error becomes a response of its code, with its text as the payload and no content format."""
    response = kind("größer als 5").to_message()
    assert isinstance(response, Message)
    assert response.code is kind.code
    assert response.payload == "größer als 5".encode()
    assert response.opt.content_format is None
    assert not response.opt


@every_renderable
def test_text(kind: type[RenderableError]) -> None:
    """An error shows its text, or where it has none its code; a response without a text has no payload."""
    assert str(kind("why")) == kind("why").message == "why"
    for plain in (kind(), kind(""), kind(None)):
        assert str(plain) == kind.code.name_printable
        assert plain.to_message().payload == b""
    assert str(kind(ValueError("inner"))) == "inner"  # type: ignore[arg-type]  # an error as the text
    assert kind.__name__ in repr(kind("why"))
    assert "why" in repr(kind("why"))


@every_renderable
def test_can_be_raised_and_copied(kind: type[RenderableError]) -> None:
    """An error can be raised from another one, and survives pickling, as between processes."""
    inner = KeyError("inner")
    with pytest.raises(kind, match="why") as caught:
        raise kind("why") from inner
    assert caught.value.__cause__ is inner
    for duplicate in (pickle.loads(pickle.dumps(kind("why"))), copy.copy(kind("why"))):
        assert type(duplicate) is kind
        assert str(duplicate) == "why"
        assert duplicate.to_message().payload == b"why"


def test_subclasses() -> None:
    """A program's own error sets code and text in its class."""

    class Empty(error.Conflict):
        """The battery is empty."""

        message = "the battery is empty"

    assert str(Empty()) == "the battery is empty"
    assert Empty().to_message().payload == b"the battery is empty"
    assert Empty("it is broken").to_message().payload == b"it is broken"
    assert Empty().to_message().code is Code.CONFLICT


@given(st.text(alphabet=st.characters(), max_size=50) | st.text("aß€😀", min_size=300, max_size=1100))
@example("a" * MAX_DIAGNOSTIC)
@example("a" * (MAX_DIAGNOSTIC + 1))
@example("a" + "😀" * 256)
@example("\ud800")
@example("\ud800" * 1000)
def test_any_text_is_sent(text: str) -> None:
    """Whatever the text, the payload is UTF-8 within its bound, and all of a short text is there."""
    payload = error.BadRequest(text).to_message().payload
    assert len(payload) <= MAX_DIAGNOSTIC
    encoded = text.encode("utf-8", "backslashreplace")
    assert encoded.startswith(payload)
    assert payload.decode("utf-8") is not None
    assert len(encoded) - len(payload) == 0 or len(payload) > MAX_DIAGNOSTIC - 4


@pytest.mark.parametrize("kind", [error.TooManyRequests, error.ServiceUnavailable])
@pytest.mark.parametrize(
    ("max_age", "expected"),
    [(None, None), (0, 0), (5, 5), (0.2, 1), (1.0, 1), (-5, 0), (2**32 - 1, 2**32 - 1), (1e30, 2**32 - 1)],
)
def test_when_to_try_again(kind: Any, max_age: float | None, expected: int | None) -> None:
    """The time after which to try again is told in whole seconds, never too early."""
    failure = kind("busy", max_age=max_age)
    assert failure.max_age == max_age
    assert failure.to_message().opt.max_age == expected
    assert pickle.loads(pickle.dumps(failure)).to_message().opt.max_age == expected
    assert failure.to_message().payload == b"busy"


@pytest.mark.parametrize("max_age", [float("inf"), float("nan")])
def test_no_time_to_try_again(max_age: float) -> None:
    """A time that is no number of seconds still gives a response."""
    assert error.ServiceUnavailable(max_age=max_age).to_message().opt.max_age in (0, 2**32 - 1)


@pytest.mark.parametrize(
    ("size1", "expected"), [(None, None), (0, 0), (1024, 1024), (2**32 - 1, 2**32 - 1), (2**40, 2**32 - 1)]
)
def test_largest_body(size1: int | None, expected: int | None) -> None:
    """The largest body that is taken is told, as far as the option can."""
    failure = error.RequestEntityTooLarge("too large", size1=size1)
    assert failure.size1 == size1
    assert failure.to_message().opt.size1 == expected
    assert failure.to_message().code is Code.REQUEST_ENTITY_TOO_LARGE


# -- Errors of a requester -------------------------------------------------------------------------


def test_unsuccessful_response() -> None:
    """The error has the response, and says code, text and URI."""
    response = Message(NOT_FOUND, b"no such battery")
    response.request = Message(GET, uri="tcp://h:1/battery/soc")
    failure = ResponseWrappingError(response)
    assert failure.coapmessage is failure.message is failure.to_message() is response
    assert failure.code is NOT_FOUND
    assert str(failure) == "4.04 Not Found: no such battery (tcp://h:1/battery/soc)"
    assert repr(response) in repr(failure)


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (Message(NOT_FOUND), "4.04 Not Found"),
        (Message(0x9F, b"why"), "4.31: why"),
        (Message(NOT_FOUND, b"\xff"), "4.04 Not Found: \N{REPLACEMENT CHARACTER}"),
        (Message(NOT_FOUND, b"why", content_format=0), "4.04 Not Found: why"),
        (Message(NOT_FOUND, b"{}", content_format=50), "4.04 Not Found"),
        (Message(CONTENT, b"fine"), "2.05 Content: fine"),
    ],
)
def test_unsuccessful_response_without_request(response: Message, text: str) -> None:
    """What is not there, or no text, is left out."""
    assert str(ResponseWrappingError(response)) == text


def test_unsuccessful_response_is_short() -> None:
    """A peer cannot make the text of the error as long as it likes."""
    response = Message(NOT_FOUND, "ß".encode() * 100_000)
    response.request = Message(GET, remote=None, uri_path=["a" * 255] * 100)
    assert len(str(ResponseWrappingError(response))) < 3 * MAX_DIAGNOSTIC


@pytest.mark.parametrize(
    "kind",
    [
        error.NetworkError,
        error.LibraryShutdown,
        error.NotObservable,
        error.ObservationCancelled,
        error.ResourceChanged,
        error.UnexpectedBlock1Option,
        error.UnexpectedBlock2,
        error.MulticastNotSupported,
        error.PipeStateError,
    ],
    ids=lambda kind: kind.__name__,
)
def test_plain_errors(kind: type[AiomasError]) -> None:
    """They show their text, and survive pickling."""
    assert str(kind("why")) == "why"
    assert str(pickle.loads(pickle.dumps(kind("why")))) == "why"
    assert str(kind()) == ""


def test_timeout() -> None:
    """A request that timed out says which one, and how long it took."""
    failure = error.RequestTimedOut("GET tcp://h:1/a", 2.5)
    assert str(failure) == "GET tcp://h:1/a was not answered within 2.5 s"
    assert (failure.what, failure.timeout) == ("GET tcp://h:1/a", 2.5)
    assert str(pickle.loads(pickle.dumps(failure))) == str(failure)
