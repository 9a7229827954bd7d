"""Certificates of all sorts for tests, as files."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import Any

import trustme

from aiomas_ng.util import SSLCerts, as_ssl_context

NAMES = ("localhost", "127.0.0.1")


class Certificates:
    """Files of an authority, and of what it has issued.

    Args:
        directory: Where they are put; it is made.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self.authority = trustme.CA()
        self.cafile = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(self.cafile)
        self._count = 0

    def issue(self, *names: str, cafile: Path | None = None, **kwds: Any) -> SSLCerts:
        """Return the files of a certificate for *names*, by default those of the own machine.

        Args:
            *names: The names.
            cafile: Whom its owner trusts, by default the authority that has issued it.
            **kwds: Passed on to :meth:`trustme.CA.issue_cert`.
        """
        self._count += 1
        cert = self.authority.issue_cert(*names or NAMES, **kwds)
        chain, key = (self._directory / f"{self._count}.{kind}" for kind in ("pem", "key"))
        cert.private_key_pem.write_to_path(key)
        chain.write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
        return SSLCerts(str(cafile or self.cafile), str(chain), str(key))

    def self_signed(self) -> SSLCerts:
        """Return the files of a certificate that nobody has signed, and of who trusts this authority."""
        certificate, key = self._directory / "self.pem", self._directory / "self.key"
        alone = trustme.CA()
        alone.cert_pem.write_to_path(certificate)
        alone.private_key_pem.write_to_path(key)
        return SSLCerts(str(self.cafile), str(certificate), str(key))


class Parties:
    """Those who may want to talk to each other, by what is odd about them.

    Args:
        directory: Where their files are put.
    """

    def __init__(self, directory: Path) -> None:
        self.ours = ours = Certificates(directory / "ours")
        theirs = Certificates(directory / "theirs")
        now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017  # as trustme has it
        day = datetime.timedelta(days=1)
        self.certs = {
            "good": ours.issue(),
            "wrong authority": theirs.issue(cafile=ours.cafile),
            "expired": ours.issue(not_before=now - 2 * day, not_after=now - day),
            "not yet valid": ours.issue(not_before=now + day, not_after=now + 2 * day),
            "wrong name": ours.issue("elsewhere.example", "192.0.2.1"),
            "self-signed": ours.self_signed(),
        }

    def context(self, name: str, *, is_server: bool) -> ssl.SSLContext | None:
        """Return the context of a party."""
        if name == "plain":
            return None
        if name == "no certificate":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(self.ours.cafile)
            return context
        context = as_ssl_context(self.certs["good" if name == "TLS 1.2" else name], is_server=is_server)
        assert context is not None
        if name == "TLS 1.2":
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context
