"""Why a TLS connection failed, in words: what was wrong, at which side, and what would be right.

OpenSSL names its errors for those who know TLS (``TLSV1_ALERT_UNKNOWN_CA``); an alert is what the peer has
objected to, everything else is what we have.
"""

from __future__ import annotations

import ssl
from typing import Final

__all__ = ["ALERT", "NO_TLS", "explain_handshake", "has_no_tls", "is_alert", "is_client_hello"]

NO_TLS: Final = "it does not speak TLS: give both sides certificates (ssl=...), or neither"

#: What a verification has found, by OpenSSL's code (``X509_V_ERR_…``); ``{peer}`` is the other side.
_VERIFY: Final = {
    9: "the certificate of the {peer} is not valid yet; check the clocks of both machines, or renew it",
    10: "the certificate of the {peer} has expired; renew it",
    18: "the certificate of the {peer} is self-signed; it needs one that an authority of cafile has signed",
    19: "the certificate of the {peer} is signed by an authority that is not in cafile; "
    "both sides need certificates of the same one",
    20: "the certificate of the {peer} is signed by an authority that is not in cafile; "
    "both sides need certificates of the same one",
    21: "the certificate of the {peer} is signed by an authority that is not in cafile; "
    "both sides need certificates of the same one",
    23: "the certificate of the {peer} was revoked",
    26: "the certificate of the {peer} was issued for another purpose (see its extended key usage)",
    62: "the certificate of the {peer} is for another name ({detail}); connect to a name that it has, "
    "or issue one that has this name",
    63: "the certificate of the {peer} is for another name ({detail})",
    64: "the certificate of the {peer} is for another address ({detail}); connect to a name that it has, "
    "or issue one that has this address",
}

#: What the peer has objected to, by the name of the alert that it has sent.
_ALERTS: Final = {
    "ACCESS_DENIED": "it denies us access",
    "BAD_CERTIFICATE": "our certificate is not valid yet, or damaged; check the clocks of both machines",
    "CERTIFICATE_EXPIRED": "our certificate has expired; renew it",
    "CERTIFICATE_REQUIRED": "we have shown no certificate; give one (certfile and keyfile)",
    "CERTIFICATE_REVOKED": "our certificate was revoked",
    "CERTIFICATE_UNKNOWN": "it does not accept our certificate",
    "HANDSHAKE_FAILURE": "the two sides have no version, cipher or certificate in common",
    "PROTOCOL_VERSION": "it speaks other versions of TLS than we do, or no TLS at all; containers speak 1.3",
    "UNKNOWN_CA": "our certificate is self-signed, or signed by an authority that it does not know; "
    "both sides need certificates of the same one",
    "UNSUPPORTED_CERTIFICATE": "our certificate was issued for another purpose (see its extended key usage)",
}

#: What we have objected to, by OpenSSL's reason.
_REASONS: Final = {
    "HTTPS_PROXY_REQUEST": NO_TLS,
    "HTTP_REQUEST": NO_TLS,
    "PACKET_LENGTH_TOO_LONG": NO_TLS,
    "RECORD_LAYER_FAILURE": NO_TLS,
    "RECORD_TOO_SMALL": NO_TLS,
    "UNKNOWN_PROTOCOL": NO_TLS,
    "WRONG_VERSION_NUMBER": NO_TLS,
    "NO_SHARED_CIPHER": "the two sides have no cipher in common",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has shown no certificate; it has to give one "
    "(certfile and keyfile)",
    "UNSUPPORTED_PROTOCOL": "it only speaks versions of TLS that are not accepted here; containers speak 1.3",
    "VERSION_TOO_LOW": "it only speaks versions of TLS that are not accepted here; containers speak 1.3",
}

#: Types of TLS records (RFC 8446, section 5.1), and what such a handshake begins with.
_ALERT_RECORD, _HANDSHAKE_RECORD, _CLIENT_HELLO = 0x15, 0x16, 1


#: What who speaks TLS says to who does not: version not accepted (RFC 8446, section 6).
ALERT: Final = bytes((_ALERT_RECORD, 3, 3, 0, 2, 2, 70))


def has_no_tls(error: ssl.SSLError) -> bool:
    """Return whether the handshake failed because the peer does not speak TLS."""
    return _REASONS.get(error.reason or "") is NO_TLS


def explain_handshake(error: BaseException, peer: str) -> str:
    """Return in words why TLS with *peer*, ``'client'`` or ``'server'``, failed with *error*."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = _VERIFY.get(error.verify_code)
        if text is not None:
            return text.format(peer=peer, detail=error.verify_message.rstrip("."))
        return f"the certificate of the {peer} is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError):
        return f"the {peer} ended the connection during the TLS handshake; does it use TLS at all?"
    reason = error.reason or ""
    if "_ALERT_" in reason:
        alert = reason.partition("_ALERT_")[2]
        words = _ALERTS.get(alert, f"alert {alert.lower().replace('_', ' ')!r}")
        return f"the {peer} refuses the connection: {words}"
    if reason in _REASONS:
        return f"the {peer} is refused: {_REASONS[reason]}"
    return f"TLS with the {peer} failed: {reason.lower().replace('_', ' ') or error}"


def is_client_hello(data: bytes) -> bool:
    """Return whether *data*, the first of a connection, begin a TLS handshake.

    As the length of a frame they would stand for more than 350 MB, and as its type for a reply.
    """
    return _is_record(data, _HANDSHAKE_RECORD) and data[5] == _CLIENT_HELLO


def is_alert(data: bytes) -> bool:
    """Return whether *data*, the first of a connection, are a TLS alert: the peer speaks TLS, and has got
    something else."""
    return _is_record(data, _ALERT_RECORD) and data[3:5] == b"\0\2"


def _is_record(data: bytes, kind: int) -> bool:
    return len(data) > 5 and data[0] == kind and data[1] == 3 and data[2] <= 4
