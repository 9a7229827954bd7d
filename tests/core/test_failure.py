"""Exceptions on the wire: every exception can be sent, and whatever arrives becomes a RemoteException."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomas_ng import codecs, exceptions
from aiomas_ng._core import failure
from aiomas_ng._core.exchange import Exchange
from aiomas_ng._core.failure import MAX_TEXT, MAX_TRACEBACK, describe, rebuild
from aiomas_ng.exceptions import (
    AiomasError,
    RemoteArgumentError,
    RemoteCancelledError,
    RemoteException,
    RemoteLookupError,
    RemoteOverloadError,
    RemoteRestartingError,
    RemoteSerializationError,
    RoutingError,
)

ORIGIN = ("127.0.0.1", 5555)


def caught(raise_it: Callable[[], Any]) -> BaseException:
    """Return the exception that *raise_it* raises, with its traceback."""
    try:
        raise_it()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def raising(exception: BaseException, depth: int = 0) -> Callable[[], Any]:
    """Return a function that raises *exception* from *depth* further calls."""

    def raise_it(n: int = depth) -> None:
        if n > 0:
            raise_it(n - 1)
        raise exception

    return raise_it


def check_content(content: Any) -> None:
    """Check that *content* is what the wire is to carry: bounded strings that every codec can encode."""
    assert isinstance(content, list)
    assert 2 <= len(content) <= 2 + MAX_TRACEBACK
    for text in content:
        assert type(text) is str
        assert len(text) <= MAX_TEXT
        text.encode()
    assert codecs.JSON().decode(codecs.JSON().encode(content)) == content


# -- Round trips -----------------------------------------------------------------------------------


def test_round_trip_of_an_exception() -> None:
    """Type name, message and traceback arrive, and the traceback is what Python prints."""
    error = caught(lambda: {}["key"])
    content = describe(error)
    check_content(content)
    remote = rebuild(ORIGIN, content)
    assert type(remote) is RemoteException
    assert (remote.origin, remote.type_name, remote.message) == (ORIGIN, "KeyError", "'key'")
    assert remote.remote_traceback == "".join(traceback.format_exception(error))
    assert remote.remote_traceback in str(remote)


@given(text=st.text(st.characters(), max_size=50), args=st.lists(st.text() | st.integers(), max_size=3))
def test_round_trip_of_any_text(text: str, args: list[Any]) -> None:
    """Any text is carried, lone surrogates replaced by question marks."""
    cleaned = text.encode("utf-8", "replace").decode()
    content = describe(caught(raising(ValueError(text))))
    check_content(content)
    assert rebuild(ORIGIN, content).message == cleaned
    check_content(describe(ValueError(*args)))


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb", "\ud83d\ude00 as two surrogates"])
def test_lone_surrogates_are_replaced(text: str) -> None:
    """What no codec can encode does not keep an exception from being sent, wherever it stands."""
    content = describe(caught(raising(ValueError(text))))
    check_content(content)
    assert "?" in content[1]
    assert any("?" in line for line in content[2:])


def test_exception_that_was_never_raised() -> None:
    """An exception without a traceback is described as well."""
    assert describe(ValueError("no")) == ["ValueError", "no", "ValueError: no\n"]
    assert describe(ValueError()) == ["ValueError", "", "ValueError\n"]


@pytest.mark.parametrize("error", [KeyboardInterrupt("k"), SystemExit(3), GeneratorExit(), StopIteration(5)])
def test_exceptions_special_to_python(error: BaseException) -> None:
    """Also exceptions that are no ``Exception`` are described, and arrive as one that is."""
    remote = rebuild(ORIGIN, describe(caught(raising(error))))
    assert type(remote) is RemoteException
    assert (remote.type_name, remote.message) == (type(error).__name__, str(error))


def test_causes_notes_and_groups_are_in_the_traceback() -> None:
    """All that Python prints of an exception reaches the caller."""

    def raise_it() -> None:
        try:
            raise ValueError("the cause")
        except ValueError as cause:
            error = ExceptionGroup("the group", [KeyError("inner"), OSError("other")])
            error.add_note("the note")
            raise error from cause

    text = rebuild(ORIGIN, describe(caught(raise_it))).remote_traceback
    for part in ("the cause", "the group", "inner", "other", "the note"):
        assert part in text


def test_exception_that_is_its_own_cause() -> None:
    """A chain of causes that has no end is no trouble."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    check_content(describe(first))


# -- Bounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MAX_TEXT - 1, MAX_TEXT, MAX_TEXT + 1, MAX_TEXT + 2, 10**6])
def test_long_messages_are_cut_in_the_middle(size: int) -> None:
    """Of a message that is too long, the beginning and the end arrive."""
    message = "a" * (size // 2) + "z" * (size - size // 2)
    content = describe(caught(raising(ValueError(message))))
    check_content(content)
    assert content[1].startswith("aaa")
    assert content[1].endswith("zzz")
    assert (content[1] == message) == (size <= MAX_TEXT)
    assert (" … " in content[1]) == (size > MAX_TEXT)


def test_surrogates_in_a_long_message() -> None:
    """Cutting and cleaning go together: neither undoes the other."""
    check_content(describe(ValueError("\ud800" * 100_000)))
    check_content(describe(ValueError("😀\udfff" * 100_000)))


def test_long_tracebacks_lose_their_beginning() -> None:
    """Of a traceback that is too long, the end arrives, where the cause is."""

    def even(n: int) -> None:
        odd(n - 1)

    def odd(n: int) -> None:
        if n < 0:
            raise ValueError("deep down")
        even(n - 1)

    content = describe(caught(lambda: even(300)))
    check_content(content)
    assert len(content) == 2 + MAX_TRACEBACK
    assert content[-1] == "ValueError: deep down\n"
    assert "deep down" in content[-2]


def test_endless_recursion_is_described() -> None:
    """A RecursionError, with its thousand frames, is an exception like any other."""

    def recurse() -> None:
        recurse()

    content = describe(caught(recurse))
    check_content(content)
    assert content[0] == "RecursionError"


def test_large_groups_are_bounded() -> None:
    """An exception group with many members is not sent in full."""
    members = [ValueError(str(n) * 1000) for n in range(1000)]
    check_content(describe(caught(raising(ExceptionGroup("many", members)))))


# -- Exceptions that defend themselves -------------------------------------------------------------


class StrFails(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class StrFailsWithItself(Exception):
    """Neither text nor representation can be had, not even of the error that says so."""

    def __str__(self) -> str:
        raise self

    __repr__ = __str__


class StrIsNone(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]  # on purpose


class StrRecurses(Exception):
    def __str__(self) -> str:
        return f"{self}"


class NotesFail(Exception):
    @property
    def __notes__(self) -> list[str]:
        raise RuntimeError("no notes")


class CauseFails(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]  # on purpose
        raise RuntimeError("no cause")


class EverythingFails(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("not even " + name)


class LiesAboutItsClass(Exception):
    @property
    def __class__(self) -> Any:
        return exceptions.OverloadError


HOSTILE: dict[str, Callable[[], Exception]] = {
    "str": StrFails,
    "str with itself": StrFailsWithItself,
    "str is none": StrIsNone,
    "str recurses": StrRecurses,
    "notes": NotesFail,
    "cause": CauseFails,
    "everything": EverythingFails,
    "class": LiesAboutItsClass,
    "syntax, offset": lambda: SyntaxError("odd", ("file", 1, "no offset", "text")),
    "syntax, line": lambda: SyntaxError("odd", ("file", object(), 5, 7)),
    "syntax, long": lambda: SyntaxError("odd", ("\ud800", 1, 10**9, "text" * 10_000)),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff" * 10_000, 0, 1, "reason"),
    "name": lambda: NameError("x", name="y"),
    "import": lambda: ImportError(name="\ud800", path="x"),
    "argument": lambda: ValueError([b"x"] * 10_000),
    "type name": lambda: type("x" * 100_000, (Exception,), {})(),
}
"""Made in the test, for pytest would look at them."""


@pytest.mark.parametrize("name", HOSTILE)
def test_exceptions_that_cannot_be_printed(name: str) -> None:
    """Whatever an exception does when it is asked, it can be described, or its call would never end."""
    error = HOSTILE[name]()
    fresh, raised = describe(error), describe(caught(raising(error)))
    for content in (fresh, raised):
        check_content(content)
        type_name = type(error).__name__
        assert content[0] == type_name or len(type_name) > MAX_TEXT
        assert type(rebuild(ORIGIN, content)) is RemoteException


def test_failure_to_print_is_told() -> None:
    """If the text of an exception cannot be had, the reason stands in its place."""
    assert describe(StrFails())[1] == "<str() of the exception failed: ValueError('no words')>"
    content = describe(SyntaxError("odd", ("file", 1, "no offset", "text")))
    assert content[2] == "SyntaxError: odd (file, line 1)\n"
    assert content[3].startswith("<the traceback could not be formatted: TypeError(")


# -- Whose frames are shown ------------------------------------------------------------------------


def call_from_our_files(call: Callable[[], Any]) -> Any:
    """Call *call* from a frame of the package."""
    scope: dict[str, Any] = {"call": call}
    package = Path(exceptions.__file__).parent
    exec(compile("def run():\n    call()\n", package / "_io" / "runner.py", "exec"), scope)
    return scope["run"]()


def test_frames_of_ours_that_lead_to_the_user_are_left_out() -> None:
    """The traceback begins with the user's code; what the user calls of ours from there is shown."""

    def user() -> None:
        call_from_our_files(inner)

    def inner() -> None:
        raise ValueError("mine")

    error = caught(lambda: call_from_our_files(lambda: call_from_our_files(user)))
    while error.__traceback__ and error.__traceback__.tb_frame.f_code.co_filename == __file__:
        error.__traceback__ = error.__traceback__.tb_next  # as for what is called by us and not by a test
    lines = describe(error)[3:-1]
    assert [line.split(", ")[0].rpartition("/")[2] for line in lines] == [
        'test_failure.py"',  # the lambda
        'test_failure.py"',
        'runner.py"',
        'test_failure.py"',
        'test_failure.py"',
        'runner.py"',
        'test_failure.py"',
    ]


def test_error_of_ours_shows_no_frame_of_ours() -> None:
    """If there is no frame of the user's at all, only what is wrong is shown."""
    error = caught(lambda: Exchange(1).settle(0))
    while error.__traceback__ and error.__traceback__.tb_frame.f_code.co_filename == __file__:
        error.__traceback__ = error.__traceback__.tb_next
    content = describe(error)
    assert content[0] == "aiomas_ng.UnknownReplyError"
    assert len(content) == 3
    assert content[1] in content[2]


# -- Our own errors --------------------------------------------------------------------------------

MAPPED = {
    exceptions.RoutingError("x"): RemoteLookupError,
    exceptions.NotExposedError("x"): RemoteLookupError,
    exceptions.AgentRestartingError("x"): RemoteRestartingError,
    exceptions.ArgumentError("x"): RemoteArgumentError,
    exceptions.SerializationError("x"): RemoteSerializationError,
    exceptions.DeserializationError("x"): RemoteSerializationError,
    exceptions.DecodedTooLargeError("x", "decoded_size", 4): RemoteSerializationError,
    exceptions.FrameTooLargeError(5, 4): RemoteSerializationError,
    exceptions.OverloadError("x"): RemoteOverloadError,
    asyncio.CancelledError("x"): RemoteCancelledError,
    exceptions.AccessDeniedError("agents/0/x"): exceptions.RemoteAccessError,
}


@pytest.mark.parametrize(("error", "remote_type"), MAPPED.items(), ids=lambda value: repr(value)[:40])
def test_errors_of_ours_have_a_counterpart(error: BaseException, remote_type: type[RemoteException]) -> None:
    """What the peer's side of the library says about a call arrives as the type that says so."""
    content = describe(error)
    remote = rebuild(ORIGIN, content)
    assert type(remote) is remote_type
    assert remote.message == str(error)
    assert remote.type_name == f"aiomas_ng.{type(error).__name__}"


def test_every_mapped_name_is_one_of_ours() -> None:
    """Each name in the table is that of an error that exists, or of the cancellation of a task."""
    names = {f"aiomas_ng.{name}" for name in exceptions.__all__} | {"aiomas_ng.CancelledError"}
    assert set(failure.REMOTE_TYPES) <= names
    assert {f"aiomas_ng.{type(error).__name__}" for error in MAPPED} == set(failure.REMOTE_TYPES)


@pytest.mark.parametrize(
    "name", ["RoutingError", "ArgumentError", "SerializationError", "OverloadError", "CancelledError"]
)
@pytest.mark.parametrize("base", [Exception, AiomasError, exceptions.OverloadError, asyncio.CancelledError])
def test_errors_of_users_have_none(name: str, base: type[BaseException]) -> None:
    """A user's error that is called like one of ours, or inherits from one, is only an error."""
    error = type(name, (base,), {"__module__": "simulation.errors"})("mine")
    remote = rebuild(ORIGIN, describe(caught(raising(error))))
    assert type(remote) is RemoteException
    assert (remote.type_name, remote.message) == (name, "mine")


def test_other_kinds_of_cancellation_are_errors() -> None:
    """That a job of an executor was cancelled does not say that the call was."""
    assert type(rebuild(ORIGIN, describe(concurrent.futures.CancelledError()))) is RemoteException


def test_error_of_a_nested_call_is_not_taken_for_one_of_the_first() -> None:
    """What a third party said about a nested call arrives as an error that names it, not as that error."""
    nested = rebuild(("third", 1), describe(RoutingError("not there")))
    assert type(nested) is RemoteLookupError
    for error in (nested, exceptions.SerializationError("not there")):
        remote = rebuild(ORIGIN, describe(caught(raising(error))))
        assert type(remote) is RemoteException
        assert remote.type_name == type(error).__name__
        assert "not there" in str(remote)


# -- What foreign peers send -----------------------------------------------------------------------

TRACEBACK = "Traceback (most recent call last):\n  …\nKeyError: 'x'\n"


class ReprFails:
    def __repr__(self) -> str:
        raise ValueError("no words")


def nest(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("content", "type_name", "message", "text"),
    [
        (TRACEBACK, "", TRACEBACK, TRACEBACK),
        ("", "", "", ""),
        (["KeyError", "'x'", "one\n", "two\n"], "KeyError", "'x'", "one\ntwo\n"),
        (("KeyError", "'x'", "one\n"), "KeyError", "'x'", "one\n"),
        (["KeyError", "'x'"], "KeyError", "'x'", "KeyError: 'x'"),
        (["KeyError", "'x'", ""], "KeyError", "'x'", "KeyError: 'x'"),
        (["KeyError"], "KeyError", "", "KeyError: "),
        ([""], "", "", ": "),
        ([], "", "[]", "[]"),
        ((), "", "()", "()"),
        (None, "", "None", "None"),
        (5, "", "5", "5"),
        (True, "", "True", "True"),
        (b"bytes", "", "b'bytes'", "b'bytes'"),
        ({}, "", "{}", "{}"),
        ({"error": "x"}, "", "{'error': 'x'}", "{'error': 'x'}"),
        (["KeyError", 5], "", "['KeyError', 5]", "['KeyError', 5]"),
        (["KeyError", None], "", "['KeyError', None]", "['KeyError', None]"),
        (
            ["KeyError", "'x'", ["line"]],
            "",
            "['KeyError', \"'x'\", ['line']]",
            "['KeyError', \"'x'\", ['line']]",
        ),
        ([["KeyError"]], "", "[['KeyError']]", "[['KeyError']]"),
    ],
    ids=lambda value: f"{value!r:.20}",
)
def test_content_of_any_shape(content: Any, type_name: str, message: str, text: str) -> None:
    """Lists, plain strings and odd things are understood as far as they can be."""
    error = rebuild(ORIGIN, content)
    assert type(error) is RemoteException
    assert (error.type_name, error.message, error.remote_traceback) == (type_name, message, text)
    assert (error.origin, error.path, error.agent, error.method) == (ORIGIN, None, None, None)


@pytest.mark.parametrize(
    "content",
    [2**20_000, [2**20_000], nest(100_000), ReprFails(), [ReprFails()], {"x": "y" * 10**6}, bytes(10**6)],
    ids=lambda value: type(value).__name__,
)
def test_content_that_cannot_be_printed(content: Any) -> None:
    """Numbers that are too large to print, deep nesting and much data do no harm, and are told in brief."""
    error = rebuild(ORIGIN, content)
    assert type(error) is RemoteException
    assert 0 < len(error.message) <= MAX_TEXT
    assert error.remote_traceback == error.message


@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_any_content_is_an_exception(content: Any) -> None:
    """Whatever arrives is a RemoteException that can be printed and, in a nested call, be sent on."""
    error = rebuild(ORIGIN, content)
    assert isinstance(error, RemoteException)
    assert str(error)
    check_content(describe(error))
    json.dumps([error.type_name, error.message])


@given(name=st.sampled_from([*failure.REMOTE_TYPES, "aiomas_ng.AiomasError", "aiomas_ng.", "RoutingError"]))
def test_peer_chooses_only_among_remote_exceptions(name: str) -> None:
    """Whatever name a peer sends, it cannot make us raise another kind of error."""
    error = rebuild(ORIGIN, [name, "message"])
    assert isinstance(error, RemoteException)
    assert type(error) is failure.REMOTE_TYPES.get(name, RemoteException)
    assert error.remote_traceback == f"{name}: message"
