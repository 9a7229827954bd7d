"""Who the other end of a connection is: what its certificate and the system say.

Rules:

- Only what was verified counts. Of a certificate that nobody has verified nothing is taken, not even its
  fingerprint.
- *Names* are the common names of the subject, and the alternative names of the kinds DNS (in lower case) and
  URI. *Roles* are the organizational units of the subject.
- What was forwarded is nobody's who forwards it: it has the forwarder, and no names, roles or ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

__all__ = ["SELF", "Identity", "make_identity"]

#: What a subject's attributes are called by :meth:`ssl.SSLSocket.getpeercert`.
COMMON_NAME: Final = "commonName"
UNIT: Final = "organizationalUnitName"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a peer is, as far as that was shown.

    Attributes:
        transport: How it is connected: ``'tcp'``, ``'tls'`` (TLS over TCP), ``'unix'`` (with TLS or without),
            ``'local'`` (LocalQueue: another container or client in this process), ``'self'`` (an agent of the
            same container), or ``''`` for a transport that is not known.
        names: The names in its certificate: common names of the subject, and alternative names of the kinds
            DNS (in lower case) and URI. Empty without a certificate that was verified.
        roles: What it may act as: the organizational units in its certificate, unless a
            :class:`~aiomas_ng.access.Policy` says something else.
        fingerprint: SHA-256 of its certificate (DER), in hexadecimal digits; ``None`` without one.
        pid: Its process id when it connected, over a Unix socket; ``None`` where the system does not tell.
        uid: Its user id, likewise.
        gid: Its group id, likewise.
        is_loopback: Whether it is connected to an address of this host that is for this host alone.
        forwarder: Who has forwarded the request; ``None`` if it came from the peer itself.
    """

    transport: str = ""
    names: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    fingerprint: str | None = None
    pid: int | None = None
    uid: int | None = None
    gid: int | None = None
    is_loopback: bool = False
    forwarder: Identity | None = None

    @property
    def is_self(self) -> bool:
        """Whether it is an agent of the same container, or the container."""
        return self.transport == "self" and self.forwarder is None

    @property
    def is_local(self) -> bool:
        """Whether it is in the same process."""
        return self.transport in ("self", "local") and self.forwarder is None

    @property
    def is_known(self) -> bool:
        """Whether it has shown anything that tells it from others."""
        return self.is_local or self.fingerprint is not None or self.uid is not None

    def __str__(self) -> str:
        if self.forwarder is not None:
            return f"somebody by way of {self.forwarder}"
        if self.is_local:
            return "this container" if self.is_self else "this process"
        parts = [", ".join(map(repr, sorted(self.names)))] if self.names else []
        if self.fingerprint is not None and not self.names:
            parts.append(f"certificate {self.fingerprint[:16]}…")
        if self.uid is not None:
            parts.append(f"user {self.uid}" + ("" if self.pid is None else f", process {self.pid}"))
        return ", ".join(parts) or "somebody unknown"

    def get_keys(self) -> Iterator[str | int]:
        """Yield what a policy may know it by: names, fingerprint, user id."""
        yield from self.names
        if self.fingerprint is not None:
            yield self.fingerprint
        if self.uid is not None:
            yield self.uid

    def forwarded(self) -> Identity:
        """Return the identity of what this one forwards for others."""
        return Identity(transport=self.transport, forwarder=self)

    def without_rights(self) -> Identity:
        """Return it without anything that could give it a right."""
        return Identity(transport="" if self.is_local else self.transport, forwarder=self.forwarder)

    def with_roles(self, roles: frozenset[str]) -> Identity:
        """Return it with other roles."""
        return self if roles == self.roles else replace(self, roles=roles)


#: The container itself, and all that lives in it.
SELF: Final = Identity(transport="self")


def make_identity(
    transport: str,
    certificate: Mapping[str, Any] | None = None,
    der: bytes | None = None,
    credentials: tuple[int | None, int | None, int | None] = (None, None, None),
    is_loopback: bool = False,
) -> Identity:
    """Return who a peer is.

    Args:
        transport: As of :class:`Identity`.
        certificate: Its certificate as :meth:`ssl.SSLSocket.getpeercert` gives it: empty if it was not
            verified.
        der: The same in binary form, which is there in any case.
        credentials: Ids of process, user and group.
        is_loopback: Whether its address is one of the loopback interface.
    """
    pid, uid, gid = credentials
    if not certificate or not der:
        return Identity(transport=transport, pid=pid, uid=uid, gid=gid, is_loopback=is_loopback)
    names = set(_get_subject(certificate, COMMON_NAME))
    for kind, value in certificate.get("subjectAltName", ()):
        if kind == "DNS":
            names.add(value.lower())
        elif kind == "URI":
            names.add(value)
    return Identity(
        transport=transport,
        names=frozenset(filter(None, names)),
        roles=frozenset(filter(None, _get_subject(certificate, UNIT))),
        fingerprint=hashlib.sha256(der).hexdigest(),
        pid=pid,
        uid=uid,
        gid=gid,
        is_loopback=is_loopback,
    )


def _get_subject(certificate: Mapping[str, Any], name: str) -> Iterator[str]:
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == name:
                yield value
