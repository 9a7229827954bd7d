"""Codes: each byte is one, and says by its class what it means."""

from __future__ import annotations

import copy
import enum
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from aiomas_ng._core.codes import CODES, Code

EVERY_CODE = range(256)

# RFC 7252 (12.1), 7959 (6), 8132 (5), 8323 (11.1), 8516 (6) and 8768 (6.1).
REGISTERED = {
    "0.00": "EMPTY",
    "0.01": "GET",
    "0.02": "POST",
    "0.03": "PUT",
    "0.04": "DELETE",
    "0.05": "FETCH",
    "0.06": "PATCH",
    "0.07": "iPATCH",
    "2.01": "CREATED",
    "2.02": "DELETED",
    "2.03": "VALID",
    "2.04": "CHANGED",
    "2.05": "CONTENT",
    "2.31": "CONTINUE",
    "4.00": "BAD_REQUEST",
    "4.01": "UNAUTHORIZED",
    "4.02": "BAD_OPTION",
    "4.03": "FORBIDDEN",
    "4.04": "NOT_FOUND",
    "4.05": "METHOD_NOT_ALLOWED",
    "4.06": "NOT_ACCEPTABLE",
    "4.08": "REQUEST_ENTITY_INCOMPLETE",
    "4.09": "CONFLICT",
    "4.12": "PRECONDITION_FAILED",
    "4.13": "REQUEST_ENTITY_TOO_LARGE",
    "4.15": "UNSUPPORTED_CONTENT_FORMAT",
    "4.22": "UNPROCESSABLE_ENTITY",
    "4.29": "TOO_MANY_REQUESTS",
    "5.00": "INTERNAL_SERVER_ERROR",
    "5.01": "NOT_IMPLEMENTED",
    "5.02": "BAD_GATEWAY",
    "5.03": "SERVICE_UNAVAILABLE",
    "5.04": "GATEWAY_TIMEOUT",
    "5.05": "PROXYING_NOT_SUPPORTED",
    "5.08": "HOP_LIMIT_REACHED",
    "7.01": "CSM",
    "7.02": "PING",
    "7.03": "PONG",
    "7.04": "RELEASE",
    "7.05": "ABORT",
}


def test_all_registered_codes_have_their_names() -> None:
    """The codes of the registry are there, and no others, under their names and numbers."""
    assert {code.dotted: code.name for code in Code} == REGISTERED


def test_older_name() -> None:
    """4.15 has two names."""
    assert Code.UNSUPPORTED_MEDIA_TYPE is Code.UNSUPPORTED_CONTENT_FORMAT
    assert Code["UNSUPPORTED_MEDIA_TYPE"] is Code(0x8F)


def test_every_byte_is_a_code() -> None:
    """Assigned or not, a code is an integer, one object, and survives copying and pickling."""
    for number in EVERY_CODE:
        code = Code(number)
        assert isinstance(code, Code)
        assert code == number
        assert hash(code) == hash(number)
        assert code is Code(number) is CODES[number] is Code(code)
        assert code.value == number
        assert pickle.loads(pickle.dumps(code)) is code
        assert copy.deepcopy(code) is code
        assert f"{code:d} {code:02x}" == f"{number:d} {number:02x}"


def test_classes_do_not_overlap() -> None:
    """A code is a request, a response, a signal, or none of them; a success is a response."""
    for code in CODES:
        kinds = [code.is_request(), code.is_response(), code.is_signalling()]
        assert sum(kinds) <= 1
        assert code.class_ == int(code) // 32
        assert kinds == [code in range(1, 32), code.class_ in (2, 3, 4, 5), code.class_ == 7]
        assert code.is_successful() == (code.class_ == 2)
        assert all(type(kind) is bool for kind in kinds)


def test_dotted_names_the_number() -> None:
    """Class and detail can be read back from the dotted form, whose detail has two digits."""
    for code in CODES:
        class_, detail = code.dotted.split(".")
        assert int(class_) * 32 + int(detail) == code
        assert len(detail) == 2


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (Code.GET, "GET"),
        (Code.iPATCH, "iPATCH"),
        (Code.EMPTY, "EMPTY"),
        (Code.CONTENT, "2.05 Content"),
        (Code.NOT_FOUND, "4.04 Not Found"),
        (Code.HOP_LIMIT_REACHED, "5.08 Hop Limit Reached"),
        (Code.CSM, "7.01 CSM"),
        (Code.ABORT, "7.05 Abort"),
        (Code(0x9F), "4.31"),
        (Code(0x08), "0.08"),
        (Code(0xFF), "7.31"),
    ],
)
def test_text(code: Code, text: str) -> None:
    """Wherever a code is printed, people can read it."""
    assert code.name_printable == text
    assert str(code) == text
    assert f"{code}" == text
    assert f"{code!s:>30}" == text.rjust(30)
    assert text in repr(code)
    assert str(int(code)) in repr(code)


def test_unassigned_codes_do_not_appear() -> None:
    """However many unassigned codes were made, iteration and look-up by name see the assigned ones only."""
    for number in EVERY_CODE:
        Code(number)
    assert len(Code) == len(REGISTERED)
    assert all(code.dotted in REGISTERED for code in Code)
    with pytest.raises(KeyError):
        Code["UNASSIGNED_4_31"]
    assert not hasattr(Code, "UNASSIGNED_4_31")


@pytest.mark.parametrize(
    "number",
    [-1, 256, 10**4000, None, "1", "GET", b"\x01", 1.5, float("nan"), (), object],
    ids=lambda number: type(number).__name__,
)
def test_what_is_no_byte_is_refused(number: Any) -> None:
    """Anything else is a ValueError with a short text."""
    with pytest.raises(ValueError, match=r"a code must be an integer from 0 to 255 but is .{0,100}$"):
        Code(number)


@pytest.mark.parametrize("operation", [lambda: Code(1) + 1, lambda: Code(0xE0) >> 5, lambda: Code(5) * 2])
def test_arithmetic_gives_plain_integers(operation: Callable[[], Any]) -> None:
    """Codes count as the integers that they are."""
    assert type(operation()) is int


def test_is_an_int_enum() -> None:
    """Programs that expect an enumeration of integers find one."""
    assert issubclass(Code, enum.IntEnum)
