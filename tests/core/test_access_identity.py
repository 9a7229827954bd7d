"""Who a peer is, made from what certificates and the system say."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from aiomas_ng._core.identity import SELF, Identity, make_identity

DER = b"a certificate"


def certificate(*, subject: Any = (), alternatives: Any = ()) -> dict[str, Any]:
    """Return a certificate in the form that :mod:`ssl` gives it."""
    return {
        "subject": tuple((pair,) for pair in subject),
        "subjectAltName": tuple(alternatives),
        "notAfter": "Jan  1 00:00:00 2030 GMT",
    }


def test_names_and_roles_of_a_certificate() -> None:
    """Names are common names, DNS names in lower case and URIs; roles are organizational units."""
    found = make_identity(
        "tls",
        certificate(
            subject=[
                ("countryName", "DE"),
                ("organizationName", "operator"),
                ("organizationalUnitName", "operator"),
                ("organizationalUnitName", "viewer"),
                ("commonName", "Scada 1"),
                ("emailAddress", "admin@example.org"),
            ],
            alternatives=[
                ("DNS", "SCADA.example"),
                ("URI", "spiffe://example/Scada"),
                ("IP Address", "127.0.0.1"),
                ("email", "root@example.org"),
                ("DirName", ((("commonName", "root"),),)),
            ],
        ),
        DER,
    )
    assert found.names == {"Scada 1", "scada.example", "spiffe://example/Scada"}
    assert found.roles == {"operator", "viewer"}
    assert found.fingerprint == hashlib.sha256(DER).hexdigest()
    assert found.is_known
    assert not found.is_local


def test_several_attributes_in_one_part_of_a_subject() -> None:
    """A part of a subject may have several attributes; all of them count."""
    subject = (("commonName", "a"), ("organizationalUnitName", "x")), (("commonName", "b"),)
    found = make_identity("tls", {"subject": subject, "notAfter": "…"}, DER)
    assert (found.names, found.roles) == ({"a", "b"}, {"x"})


@pytest.mark.parametrize(
    ("dictionary", "der"), [(None, None), ({}, DER), (None, DER), ({"subject": ()}, None)]
)
def test_what_was_not_verified_does_not_count(dictionary: Any, der: bytes | None) -> None:
    """Of a certificate that was not verified, nothing is taken, not even the fingerprint."""
    found = make_identity("tls", dictionary, der)
    assert found == Identity(transport="tls")
    assert not found.is_known


def test_empty_names_are_none() -> None:
    """An empty common name or unit is no name and no role that a rule could mean."""
    found = make_identity(
        "tls", certificate(subject=[("commonName", ""), ("organizationalUnitName", "")]), DER
    )
    assert (found.names, found.roles) == (frozenset(), frozenset())


def test_credentials_and_certificate_together() -> None:
    """Over a Unix socket with TLS, both are known."""
    found = make_identity("unix", certificate(subject=[("commonName", "a")]), DER, (7, 1000, 100))
    assert (found.pid, found.uid, found.gid, found.names) == (7, 1000, 100, {"a"})
    assert set(found.get_keys()) == {"a", found.fingerprint, 1000}


def test_what_is_forwarded_has_nothing_of_the_forwarder() -> None:
    """Names, roles and ids of who forwards are not those of who asks, and nor is that it is local."""
    hub = make_identity("unix", certificate(subject=[("commonName", "hub")]), DER, (7, 1000, 100), True)
    for identity in (hub, SELF, Identity(transport="local")):
        found = identity.forwarded()
        assert found == Identity(transport=identity.transport, forwarder=identity)
        assert not any((found.is_self, found.is_local, found.is_known, found.is_loopback))
        assert not list(found.get_keys())


def test_without_rights_nothing_is_left() -> None:
    """Who is shut out keeps nothing that a rule could ask for."""
    identity = Identity(transport="local", names=frozenset("a"), uid=1, gid=1, pid=1, fingerprint="f")
    found = identity.without_rights()
    assert not any((found.is_local, found.is_known, found.names, found.gid is not None))


@pytest.mark.parametrize(
    ("identity", "text"),
    [
        (SELF, "this container"),
        (Identity(transport="local"), "this process"),
        (Identity(transport="tcp"), "somebody unknown"),
        (Identity(transport="unix", uid=1000, pid=7), "user 1000, process 7"),
        (Identity(transport="unix", uid=1000), "user 1000"),
        (Identity(transport="tls", names=frozenset(["b", "a\n"])), "'a\\n', 'b'"),
        (Identity(transport="tls", fingerprint="0123456789abcdef01"), "certificate 0123456789abcdef…"),
        (Identity(transport="tls", names=frozenset("h")).forwarded(), "somebody by way of 'h'"),
    ],
)
def test_in_words(identity: Identity, text: str) -> None:
    """An identity says who it is in a line, whatever is in the names of a certificate."""
    assert str(identity) == text
