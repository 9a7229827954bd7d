"""The authority: what it issues, renews and revokes."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aiomas_ng.ca._files import PRIVATE, PUBLIC, make_directory, write
from aiomas_ng.ca._parts import (
    LATE_CLOCKS,
    begin,
    check_length,
    days_of,
    dump_key,
    key_usage,
    load_certificate,
    load_key,
    now,
    parse_host,
)
from aiomas_ng.exceptions import CredentialsError
from aiomas_ng.util import CRL_HEADER, SSLCerts

__all__ = ["DEFAULT_HOSTS", "Authority", "Certificate"]

#: Hosts of a certificate for which none are named: those of the own machine, and of Unix sockets.
DEFAULT_HOSTS: Final = ("localhost", "127.0.0.1", "::1")

#: Days for which the certificate of an authority is valid.
AUTHORITY_DAYS: Final = 3650
#: Days for which a certificate is valid.
DAYS: Final = 365
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@-]*[A-Za-z0-9])?")

StrPath = str | PathLike[str]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says.

    Attributes:
        name: The subject's common name.
        hosts: Its alternative names: DNS names and addresses that it may be connected to by.
        roles: The subject's organizational units.
        not_before: From when on it is valid.
        not_after: Until when.
        serial_number: Its number, unique among those of the authority.
        is_revoked: Whether the authority has taken it back.
    """

    name: str
    hosts: tuple[str, ...]
    roles: tuple[str, ...]
    not_before: datetime.datetime
    not_after: datetime.datetime
    serial_number: int
    is_revoked: bool

    @property
    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.not_after <= now()


class Authority:
    """A private certificate authority in a directory; made by :meth:`create` and :meth:`open`.

    Attributes:
        directory: The directory, as an absolute path.
    """

    def __init__(
        self, directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> None:
        self.directory = directory
        self._certificate = certificate
        self._key = key

    def __repr__(self) -> str:
        return f"<Authority in {self.directory}>"

    @classmethod
    def create(
        cls,
        directory: StrPath,
        *,
        name: str = "aiomas_ng private authority",
        days: int = AUTHORITY_DAYS,
        force: bool = False,
    ) -> Self:
        """Make an authority.

        Args:
            directory: Where its files are put; it is made if need be.
            name: What it calls itself in certificates.
            days: For how long it is valid.
            force: Replace one that is there. All that it has issued is worth nothing then.

        Raises:
            FileExistsError: There is one already.
            ValueError: An argument is out of its range.
            OSError: The files cannot be written.
        """
        check_length(name, "name")
        path = Path(directory).resolve()
        make_directory(path)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        # An authority of an authority would be more than a private one needs, so its length of path is 0.
        usage = key_usage(key_cert_sign=True, crl_sign=True)
        certificate = (
            begin(subject, subject, key.public_key(), now() + days_of(days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        if not force and (path / "ca.pem").exists():
            raise FileExistsError(f"{path} has an authority already; --force or force=True replaces it")
        write(path / "ca.key", dump_key(key), PRIVATE, force=force)
        write(path / "ca.pem", certificate.public_bytes(Encoding.PEM), PUBLIC, force=force)
        return cls(path, certificate, key)

    @classmethod
    def open(cls, directory: StrPath) -> Self:
        """Return the authority in *directory*.

        Raises:
            OSError: There is none that can be read.
            CredentialsError: Its files hold something else.
        """
        path = Path(directory).resolve()
        certificate = load_certificate(path / "ca.pem")
        return cls(path, certificate, load_key(path / "ca.key", certificate))

    @property
    def cafile(self) -> str:
        """The file with the authority's certificate, which everybody needs."""
        return str(self.directory / "ca.pem")

    @property
    def names(self) -> list[str]:
        """The names that certificates were issued to, in order."""
        return sorted(path.stem for path in self.directory.glob("*.pem") if path.stem != "ca")

    def issue(
        self,
        name: str,
        *,
        hosts: Iterable[str] = (),
        roles: Iterable[str] = (),
        days: int = DAYS,
        force: bool = False,
    ) -> SSLCerts:
        """Issue a certificate with a new private key, and return its files.

        Args:
            name: Whom it is for; it is the name of the files as well.
            hosts: DNS names and addresses that its owner can be connected to by; by default
                ``DEFAULT_HOSTS``.
            roles: What its owner may be taken for.
            days: For how long it is valid, at most as long as the authority.
            force: Replace files that are there. The certificate in them stays valid, unless it is revoked
                before.

        Raises:
            FileExistsError: There is a certificate of that name already.
            ValueError: An argument is malformed or out of its range.
            TypeError: *hosts* or *roles* are a single string.
            OSError: The files cannot be written.
        """
        for what, texts in (("hosts", hosts), ("roles", roles)):
            if isinstance(texts, str):
                raise TypeError(f"{what} must be a list of strings but is the string {texts!r}")
        certfile, keyfile = self._files(name)
        if not force and (certfile.exists() or keyfile.exists()):
            raise FileExistsError(
                f"{self.directory} has a certificate for {name!r} already; renew it, or replace it by "
                f"--force or force=True"
            )
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(
            name, list(hosts) or list(DEFAULT_HOSTS), list(roles), days, key.public_key()
        )
        write(keyfile, dump_key(key), PRIVATE, force=force)
        write(certfile, certificate.public_bytes(Encoding.PEM), PUBLIC, force=force)
        return self.get(name)

    def renew(self, name: str, *, days: int | None = None) -> SSLCerts:
        """Issue a new certificate for a name, with the same hosts, roles and private key; return its files.

        Only one file changes, at once, so that a container which starts meanwhile has the one or the other.

        Args:
            name: Whom it is for.
            days: For how long it is valid, by default as long as the last one.

        Raises:
            FileNotFoundError: There is none to renew.
            ValueError: It was revoked; issue another one, with a new key.
        """
        certfile, keyfile = self._files(name)
        old = load_certificate(certfile)
        said = self.describe(name)
        if said.is_revoked:
            raise ValueError(
                f"the certificate of {name!r} was revoked; issue a new one with --force or force=True"
            )
        if days is None:
            days = max(1, round((said.not_after - said.not_before - LATE_CLOCKS).total_seconds() / 86400))
        key = load_key(keyfile, old)
        certificate = self._sign(name, said.hosts, said.roles, days, key.public_key())
        write(certfile, certificate.public_bytes(Encoding.PEM), PUBLIC, force=True)
        return self.get(name)

    def revoke(self, name: str) -> None:
        """Take a certificate back: who gets the new ``ca.pem`` refuses it.

        The list of what was revoked is part of that file. Containers that run go on with the one that they
        have read; connections that are open stay so.

        Args:
            name: Whose certificate, the latest one.

        Raises:
            FileNotFoundError: There is none of that name.
        """
        number = load_certificate(self._files(name)[0]).serial_number
        revoked = {item.serial_number: item for item in self._revoked()}
        if number in revoked:
            return
        item = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(now()).build()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now() - LATE_CLOCKS)
            # It is as good as the authority: there is nobody to fetch a newer one from.
            .next_update(self._certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(len(revoked) + 1), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        for entry in (*revoked.values(), item):
            builder = builder.add_revoked_certificate(entry)
        content = self._certificate.public_bytes(Encoding.PEM)
        content += builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        write(self.directory / "ca.pem", content, PUBLIC, force=True)

    def get(self, name: str) -> SSLCerts:
        """Return the files of a name, to be given as ``ssl`` to a container.

        Raises:
            FileNotFoundError: There are none.
        """
        certfile, keyfile = self._files(name)
        for path in (certfile, keyfile):
            if not path.exists():
                raise FileNotFoundError(f"no certificate was issued for {name!r} here: {path} does not exist")
        return SSLCerts(self.cafile, str(certfile), str(keyfile))

    def describe(self, name: str) -> Certificate:
        """Return what the certificate of a name says.

        Raises:
            FileNotFoundError: There is none.
            CredentialsError: The file holds something else, or what another authority has issued.
        """
        path = self._files(name)[0]
        certificate = load_certificate(path)
        try:
            certificate.verify_directly_issued_by(self._certificate)
        except (InvalidSignature, ValueError) as error:
            raise CredentialsError(path, "this authority has not issued it") from error
        subject = certificate.subject
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return Certificate(
            name=str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value),
            hosts=tuple(str(host.value) for host in alternative),
            roles=tuple(
                str(unit.value) for unit in subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
            ),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            serial_number=certificate.serial_number,
            is_revoked=certificate.serial_number in {item.serial_number for item in self._revoked()},
        )

    def _files(self, name: str) -> tuple[Path, Path]:
        self._check_name(name)
        return self.directory / f"{name}.pem", self.directory / f"{name}.key"

    def _check_name(self, name: str) -> None:
        check_length(name, "name")
        if not _NAME.fullmatch(name) or name.lower() == "ca":
            raise ValueError(
                f"a name must consist of letters, digits and '._@-' inside, and not be 'ca', but is {name!r}"
            )

    def _sign(
        self,
        name: str,
        hosts: Iterable[str],
        roles: Iterable[str],
        days: int,
        public_key: ec.EllipticCurvePublicKey,
    ) -> x509.Certificate:
        units = [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, check_length(role, "role")) for role in roles
        ]
        subject = x509.Name([*units, x509.NameAttribute(NameOID.COMMON_NAME, name)])
        end = min(now() + days_of(days), self._certificate.not_valid_after_utc)
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return (
            begin(subject, self._certificate.subject, public_key, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(list(map(parse_host, hosts))), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(self._key_identifier(), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        own = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)

    def _revoked(self) -> list[x509.RevokedCertificate]:
        content = (self.directory / "ca.pem").read_bytes()
        if CRL_HEADER.encode() not in content:
            return []
        return list(x509.load_pem_x509_crl(content[content.index(CRL_HEADER.encode()) :]))
