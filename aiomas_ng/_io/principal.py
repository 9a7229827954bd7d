"""What is known of a peer, and what it may reach: one :class:`Principal` for each end of a connection.

The principal of the call that is worked on is in a context variable, so that handlers, and what they start,
know on whose behalf they run. To set it costs a tenth of a microsecond for a call; to ask for it costs those
who ask.
"""

from __future__ import annotations

import contextvars
import ipaddress
import logging
import reprlib
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final

from aiomas_ng._core.access import Rule
from aiomas_ng._core.identity import SELF, Identity, make_identity
from aiomas_ng._core.policy import Policy
from aiomas_ng._io.limited_log import LimitedLog
from aiomas_ng.exceptions import AccessDeniedError

__all__ = ["CURRENT_PRINCIPAL", "Principal", "allow_caller", "identify", "is_loopback", "make_own_principal"]

logger = logging.getLogger("aiomas_ng.access")

#: Characters of a path in the log.
MAX_PATH: Final = 200

#: Answers that are remembered for one connection.
MAX_VERDICTS: Final = 4096

#: Who has sent the call or request that is worked on; ``None`` where none is.
CURRENT_PRINCIPAL: contextvars.ContextVar[Principal | None] = contextvars.ContextVar(
    "CURRENT_PRINCIPAL", default=None
)


_repr = reprlib.Repr()
_repr.maxstring = MAX_PATH


class Principal:
    """A peer as somebody who may reach some things and not others.

    Args:
        identity: Who it is, as the connection shows it.
        label: What it is called in the log, besides what its identity says.
    """

    __slots__ = (
        "_bound",
        "_effective",
        "_forwarded",
        "_is_self",
        "_label",
        "_log",
        "_policy",
        "_shown",
        "_verdicts",
        "_version",
    )

    def __init__(self, identity: Identity, label: Any = None) -> None:
        self._shown = identity
        self._is_self = identity.is_self
        self._bound: Rule | None = None  # the outermost rule
        self._effective = identity
        self._label = label
        self._log: LimitedLog | None = None  # of denials; made for the first one
        self._policy: Policy | None = None
        self._version = 0
        self._verdicts: dict[Rule, bool] = {}
        self._forwarded: Principal | None = None

    def __repr__(self) -> str:
        return f"<Principal {self._shown}>"

    @property
    def identity(self) -> Identity:
        """Who it is, with the roles that it has now."""
        self._renew()
        return self._effective

    @property
    def is_known(self) -> bool:
        """Whether it has shown anything that tells it from others."""
        return self._shown.is_known

    @property
    def has_policy(self) -> bool:
        """Whether its rights may change."""
        return self._policy is not None

    @property
    def forwarded(self) -> Principal:
        """The principal of what this one forwards for others."""
        if self._forwarded is None:
            self._forwarded = Principal(self._shown.forwarded(), self._label)
        return self._forwarded

    def has_lost(self, identity: Identity) -> bool:
        """Return whether something of what gave *identity*, which it had before, its rights is gone."""
        now = self.identity
        return not (identity.names <= now.names and identity.roles <= now.roles and identity.uid == now.uid)

    def bind(self, rule: Rule | None) -> None:
        """Let the outermost *rule*, if it is a policy, say which roles the peer has."""
        self._bound = rule
        policy = rule if isinstance(rule, Policy) else None
        if policy is not self._policy:
            self._policy = policy
            self._effective = self._shown
            self._verdicts.clear()
            self._version = -1
            self._renew()

    def _renew(self) -> None:
        """Forget what is not true any more."""
        policy = self._policy
        if policy is None or (self._version == policy.version and not policy.has_function):
            return
        version = policy.version  # before it is asked: another thread may change it meanwhile
        self._verdicts.clear()
        try:
            self._effective = policy.identify(self._shown)
        except Exception:
            logger.exception("the function for the roles of %s has failed; it gets none", self._shown)
            self._effective = self._shown.without_rights()
        self._version = version

    def allows(self, rule: Rule) -> bool:
        """Return whether the peer may reach what *rule* guards."""
        if self._is_self:
            return True
        self._renew()
        verdict = self._verdicts.get(rule)
        if verdict is None:
            verdict = self._judge(rule)
            if not rule.is_changing or rule is self._policy:
                if len(self._verdicts) >= MAX_VERDICTS:
                    self._verdicts.clear()
                self._verdicts[rule] = verdict
        return verdict

    def _judge(self, rule: Rule) -> bool:
        try:
            # A policy gives roles by itself.
            return rule.allows(self._shown if isinstance(rule, Policy) else self._effective) is True
        except Exception:
            logger.exception("%r has failed for %s, which is a no", rule, self._shown)
            return False

    def check(self, rules: Sequence[Rule | None], path: str) -> None:
        """Check the *rules* on the way to what a call names, from the outside to the inside.

        Args:
            rules: The first one is that of the root, ``None`` if that has none.
            path: What was called.

        Raises:
            AccessDeniedError: One of them says no.
        """
        if self._is_self:
            return
        if rules[0] is not self._bound:
            self.bind(rules[0])
        policy = self._policy
        if policy is not None and (policy.version != self._version or policy.has_function):
            self._renew()
        verdicts = self._verdicts
        for rule in rules:
            # As nearly always, the answer is known, and is yes.
            if rule is not None and verdicts.get(rule) is not True and not self.allows(rule):
                self.note_denial(path)
                raise AccessDeniedError(path)

    def note_denial(self, what: str) -> None:
        """Log that the peer was denied *what*, unless there were too many lines about it already."""
        if self._log is None:
            self._log = LimitedLog(logger, f"what {self._describe()} was denied")
        self._log.log(logging.WARNING, "denied %s: %s", self._describe(), _repr.repr(what))

    def _describe(self) -> str:
        return str(self._shown) if not self._label else f"{self._shown} ({self._label})"

    def close(self) -> None:
        """The connection has ended: log what is left to be said."""
        if self._log is not None:
            self._log.finish()
        if self._forwarded is not None:
            self._forwarded.close()


def make_own_principal() -> Principal:
    """Return the principal of a container for what lives in it."""
    return Principal(SELF)


def allow_caller(rule: Rule) -> bool:
    """Return whether who has called the running code is let in by *rule*; own code always is."""
    principal = CURRENT_PRINCIPAL.get()
    return principal is None or principal.allows(rule)


# Who is at the other end of a transport

#: The structure that SO_PEERCRED fills: ids of process, user and group.
_CREDENTIALS: Final = struct.Struct("iII")
#: What the kernel says of an id that has no counterpart in our user namespace.
_UNMAPPED: Final = 2**32 - 1


def identify(transport: Any) -> Identity:
    """Return who is at the other end of *transport*, as far as certificates and the system tell."""
    get = transport.get_extra_info
    if get("local_queue") is not None:
        return make_identity("local")
    sock = get("socket")
    family = getattr(sock, "family", None)
    is_unix = family is not None and family == getattr(socket, "AF_UNIX", None)
    credentials = get_credentials(sock) if is_unix else (None, None, None)
    is_loopback_ = family in _INTERNET and is_loopback(get("peername"))
    ssl_object = get("ssl_object")
    if ssl_object is None:
        kind = "unix" if is_unix else "tcp" if family in _INTERNET else ""
        return make_identity(kind, credentials=credentials, is_loopback=is_loopback_)
    # None: no certificate. Empty: it was not verified, because the context does not ask for that.
    certificate = ssl_object.getpeercert()
    der = ssl_object.getpeercert(True) if certificate else None
    return make_identity("unix" if is_unix else "tls", certificate, der, credentials, is_loopback_)


_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)


def is_loopback(peername: Any) -> bool:
    """Return whether *peername*, which a transport gives, is an address that is for its host alone."""
    try:
        address = ipaddress.ip_address(peername[0].partition("%")[0])
    except (TypeError, ValueError, IndexError, AttributeError):
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # of IPv4, at a socket for IPv6
    return (mapped or address).is_loopback


def get_credentials(sock: Any) -> tuple[int | None, int | None, int | None]:
    """Return the ids of process, user and group of who is at the other end of a Unix socket, as they were
    when it connected or began to listen; ``None`` for what the system does not tell."""
    nothing = (None, None, None)
    try:
        # Others that have SO_PEERCRED put other things there.
        if sys.platform in ("linux", "android"):
            data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, gid = _CREDENTIALS.unpack(data)
            if _UNMAPPED in (uid, gid):
                return nothing
            return pid or None, uid, gid  # 0: it is in another pid namespace
        if sys.platform == "darwin" or sys.platform.startswith("freebsd"):
            return get_xucred(sock)
    except (OSError, struct.error, AttributeError):
        pass
    return nothing


#: Of the structure xucred of FreeBSD and macOS, which LOCAL_PEERCRED fills: version, user id, and the number
#: of groups; the first of the groups, the effective one, follows.
_XUCRED: Final = struct.Struct("IIhxxI")
_XUCRED_SIZE: Final = 128  # of the whole at least
_SOL_LOCAL: Final = 0
_LOCAL_PEERCRED: Final = 1


def get_xucred(sock: Any) -> tuple[None, int | None, int | None]:
    """Return the same as :func:`get_credentials`, where the system fills a structure xucred."""
    data = sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_SIZE)
    version, uid, count, gid = _XUCRED.unpack_from(data)
    return (None, uid, gid if count > 0 else None) if version == 0 else (None, None, None)
