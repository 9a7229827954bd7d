"""Parts of certificates and keys, made and read."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import re
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from aiomas_ng.exceptions import CredentialsError

__all__ = [
    "LATE_CLOCKS",
    "begin",
    "check_length",
    "days_of",
    "dump_key",
    "key_usage",
    "load_certificate",
    "load_key",
    "now",
    "parse_host",
]

#: How long before now a certificate begins to be valid, for machines whose clocks are late.
LATE_CLOCKS: Final = datetime.timedelta(hours=1)
#: Longest name and role (RFC 5280, appendix A).
MAX_NAME: Final = 64

_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")


def now() -> datetime.datetime:
    """Return the time, in whole seconds as certificates have it."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def days_of(days: Any) -> datetime.timedelta:
    """Return a time of *days*.

    Raises:
        ValueError: It is none that a certificate could be valid for.
    """
    if isinstance(days, bool) or not isinstance(days, int) or not 0 < days <= 36500:
        raise ValueError(f"days must be an integer from 1 to 36500 but is {days!r}")
    return datetime.timedelta(days=days)


def check_length(text: Any, what: str) -> str:
    """Return *text*, a name or role.

    Raises:
        ValueError: It cannot be one.
    """
    if not isinstance(text, str) or not 0 < len(text) <= MAX_NAME or not text.isprintable():
        raise ValueError(f"a {what} must have 1 to {MAX_NAME} printable characters but is {text!r}")
    return text


def parse_host(host: Any) -> x509.GeneralName:
    """Return a host as an alternative name.

    Raises:
        ValueError: It is neither an address nor a DNS name.
    """
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(str(host)))
    if not isinstance(host, str) or not _HOST.fullmatch(host) or len(host) > 253:
        raise ValueError(f"a host must be a DNS name or an address, without a port, but is {host!r}")
    return x509.DNSName(host)


def begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, end: datetime.datetime
) -> x509.CertificateBuilder:
    """Return what all certificates have."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - LATE_CLOCKS)
        .not_valid_after(end)
    )


def key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    """Return the usage of a key: none but what is named."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def dump_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_certificate(path: Path) -> x509.Certificate:
    """Return the first certificate in a file.

    Raises:
        OSError: It cannot be read.
        CredentialsError: It holds something else.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise CredentialsError(path, f"expected a certificate (PEM): {error}") from error


def load_key(path: Path, certificate: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    """Return the private key in a file, that of *certificate*.

    Raises:
        OSError: It cannot be read.
        CredentialsError: It holds something else.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:  # the latter: it is encrypted
        raise CredentialsError(path, f"expected a private key (PEM) without a password: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CredentialsError(path, "the private key does not belong to the certificate beside it")
    return key
