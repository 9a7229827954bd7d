"""What is remembered of a peer's rights, and what systems say of who is at the other end of a socket."""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
from typing import Any

import pytest

from aiomas_ng._core.identity import SELF, Identity
from aiomas_ng._core.log_limit import LOG_LINES
from aiomas_ng._io import limited_log
from aiomas_ng._io.principal import MAX_VERDICTS, Principal, get_credentials, get_xucred, identify
from aiomas_ng.access import EVERYBODY, NOBODY, Policy, Rule, names, roles
from aiomas_ng.exceptions import AccessDeniedError

SCADA = Identity(transport="tls", names=frozenset({"scada"}), roles=frozenset({"operator"}), fingerprint="f")


class CountingRule(Rule):
    """Lets in everybody, and counts how often it is asked."""

    def __init__(self, is_changing: bool) -> None:
        self.is_changing = is_changing
        self.count = 0

    def allows(self, identity: Identity) -> bool:
        self.count += 1
        return True


class FailingRule(Rule):
    """Raises an error, or returns what is neither yes nor no."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def allows(self, identity: Identity) -> bool:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]  # the mistake


def test_an_answer_is_remembered_if_it_cannot_change() -> None:
    """A rule is asked once for a connection, and again after a change of the policy; one that may change,
    each time."""
    constant, changing = CountingRule(False), CountingRule(True)
    policy = Policy()
    principal = Principal(SCADA)
    for _ in range(3):
        principal.check([policy, constant, changing, constant & changing], "x")
    assert (constant.count, changing.count) == (4, 6)
    policy.grant("somebody", "operator")
    principal.check([policy, constant], "x")
    assert constant.count == 5


def test_what_is_remembered_is_bounded() -> None:
    """A program that makes rules all the time does not fill the memory."""
    principal = Principal(SCADA)
    for _ in range(MAX_VERDICTS + 10):
        principal.check([None, names("scada")], "x")
    assert len(principal._verdicts) <= MAX_VERDICTS


@pytest.mark.parametrize("answer", [ZeroDivisionError(), KeyError("x"), None, "yes", 1, [1]])
def test_a_rule_that_fails_says_no(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a rule of the user's raises, or returns in place of True, nobody is let in by it."""
    principal = Principal(SCADA)
    with pytest.raises(AccessDeniedError):
        principal.check([FailingRule(answer)], "x")
    assert ("has failed" in caplog.text) is isinstance(answer, Exception)


def test_oneself_is_not_asked() -> None:
    """For what lives in the container no rule is asked, not even one that would fail."""
    principal = Principal(SELF)
    principal.check([NOBODY, FailingRule(ZeroDivisionError())], "x")
    assert principal.allows(NOBODY)
    assert not principal.forwarded.allows(NOBODY)


def test_the_policy_is_that_of_the_root() -> None:
    """Only the outermost rule gives roles to what is inside; another policy only to itself."""
    principal = Principal(SCADA)
    inner = Policy(roles("admin"), roles={"scada": ["admin"]})
    principal.check([None, inner], "x")
    with pytest.raises(AccessDeniedError):
        principal.check([None, inner, roles("admin")], "x")
    principal.check([inner, roles("admin")], "x")
    assert principal.identity.roles == {"admin"}
    with pytest.raises(AccessDeniedError):
        principal.check([EVERYBODY, roles("admin")], "x")
    assert principal.identity == SCADA


def test_lost_rights() -> None:
    """What has been taken since is noticed, and what has been given is no loss."""
    policy = Policy()
    principal = Principal(SCADA)
    principal.bind(policy)
    before = principal.identity
    assert principal.has_policy
    assert not principal.has_lost(before)
    policy.grant("scada", "admin")
    assert not principal.has_lost(before)
    policy.revoke("scada", "operator")
    assert principal.has_lost(before)
    policy.grant("scada", "operator")
    assert not principal.has_lost(before)
    policy.block("f")
    assert principal.has_lost(before)


def test_the_log_is_bounded_in_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In each minute there are some lines, one that says that there will be no more, and later how many were
    left out."""
    now = 100.0
    left_out = "30 more lines about what 'scada' (('192.0.2.1', 5)) was denied were left out of the log"
    monkeypatch.setattr(limited_log.time, "monotonic", lambda: now)
    principal = Principal(SCADA, ("192.0.2.1", 5))
    for _ in range(2):
        caplog.clear()
        for _ in range(50):
            principal.note_denial("agents/0/x")
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert lines.count("denied 'scada' (('192.0.2.1', 5)): 'agents/0/x'") == LOG_LINES
        assert any("not logged" in line for line in lines)
        assert len(lines) <= LOG_LINES + 2
        now += 61
    assert lines[0] == left_out
    caplog.clear()
    principal.close()
    principal.close()
    assert [record.getMessage() for record in caplog.records] == [left_out]


# -- Sockets ---------------------------------------------------------------------------------------


class FakeSocket:
    """A socket whose options are what a test says.

    Args:
        data: What the system fills in; an exception is raised.
    """

    family = getattr(socket, "AF_UNIX", None)

    def __init__(self, data: Any) -> None:
        self.data = data

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        if isinstance(self.data, Exception):
            raise self.data
        assert len(self.data) <= size
        return self.data  # type: ignore[no-any-return]  # a test says what


@pytest.mark.skipif(sys.platform != "linux", reason="the structure is that of Linux")
@pytest.mark.parametrize(
    ("data", "found"),
    [
        (struct.pack("iII", 7, 1000, 100), (7, 1000, 100)),
        (struct.pack("iII", 0, 1000, 100), (None, 1000, 100)),
        (struct.pack("iII", 7, 2**32 - 1, 100), (None, None, None)),
        (b"", (None, None, None)),
        (OSError("no such option"), (None, None, None)),
    ],
)
def test_credentials_of_linux(data: Any, found: Any) -> None:
    """What the kernel tells is taken, a process of another namespace has no id, and where it does not tell,
    nobody is known."""
    assert get_credentials(FakeSocket(data)) == found


def test_credentials_of_linux_by_a_real_socket() -> None:
    """A pair of sockets of this process belongs to this process."""
    one, two = socket.socketpair()
    with one, two:
        pid, uid, gid = get_credentials(one)
        assert (uid, gid) == (os.geteuid(), os.getegid())
        assert pid in (os.getpid(), None)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (struct.pack("IIhxx16I", 0, 501, 2, 20, 12, *[0] * 14), (None, 501, 20)),
        (struct.pack("IIhxx16I", 0, 501, 0, *[0] * 16), (None, 501, None)),
        (struct.pack("IIhxx16I", 1, 501, 1, *[0] * 16), (None, None, None)),
    ],
)
def test_credentials_of_macos(data: bytes, found: Any) -> None:
    """The structure that macOS and FreeBSD fill in is read, unless it is of another version."""
    assert get_xucred(FakeSocket(data)) == found


class FakeTransport:
    """A transport that knows what a test says."""

    def __init__(self, **info: Any) -> None:
        self.info = info

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.info.get(name, default)


@pytest.mark.parametrize(
    ("peername", "is_loopback"),
    [
        (("127.0.0.1", 5), True),
        (("127.3.2.1", 5), True),
        (("::1", 5, 0, 0), True),
        (("::ffff:127.0.0.1", 5, 0, 0), True),
        (("::ffff:192.0.2.1", 5, 0, 0), False),
        (("fe80::1%lo", 5, 0, 0), False),
        (("192.0.2.1", 5), False),
        (("0.0.0.0", 5), False),
        (("localhost", 5), False),
        (None, False),
        ("", False),
    ],
)
def test_loopback(peername: Any, is_loopback: bool) -> None:
    """Who comes from an address of the loopback interface is on this host, and nobody else."""
    sock = FakeSocket(b"")
    sock.family = socket.AF_INET
    assert identify(FakeTransport(socket=sock, peername=peername)).is_loopback is is_loopback


def test_unknown_transports() -> None:
    """A transport that tells nothing has nobody at its other end."""
    assert identify(FakeTransport()) == Identity()
