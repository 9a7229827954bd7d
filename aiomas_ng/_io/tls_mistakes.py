"""Connections of which only one side uses TLS, and those that end because a server refuses its client."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

from aiomas_ng._core.tls_reasons import NO_TLS, explain_handshake, is_alert, is_client_hello
from aiomas_ng.exceptions import ClosedByPeerError, ClosedByUsError, MalformedFrameError, TLSRefusedError

if TYPE_CHECKING:
    from aiomas_ng.channel import Channel

__all__ = ["explain_loss", "is_mistaken", "refuse_mistaken"]

ONE_SIDED: Final = "the peer speaks TLS, and this side does not"


def is_mistaken(data: bytes) -> bool:
    """Return whether *data*, the first that a peer sends, show that only one of both sides uses TLS."""
    return is_client_hello(data) or is_alert(data)


def refuse_mistaken(channel: Channel, data: bytes) -> None:
    """End a *channel* on which only one of both sides uses TLS, and say so at both."""
    if is_alert(data):
        channel._set_error(
            TLSRefusedError(f"{channel._protocol._peername()}: {ONE_SIDED}; give it certificates (ssl=...)")
        )
        return
    protocol = channel._protocol
    protocol._log_refusal("refused the connection from %s: %s", protocol._peername(), ONE_SIDED)
    # Whatever it is, it is no TLS, so that the peer knows at once and does not wait on.
    channel._answer_error(None, MalformedFrameError(f"{ONE_SIDED}: {NO_TLS}"))
    channel._set_error(ClosedByUsError(ONE_SIDED))


def explain_loss(channel: Channel, exc: Exception | None) -> ClosedByPeerError | None:
    """Return why the peer has ended a *channel* before it has sent anything, if that has to do with TLS.

    Args:
        channel: The channel.
        exc: What the transport says about it.
    """
    ssl_object = channel.get_extra_info("ssl_object")
    if ssl_object is None or ssl_object.server_side:
        return None
    if isinstance(exc, ssl.SSLError) and "_ALERT_" in (exc.reason or ""):
        return TLSRefusedError(f"{channel._protocol._peername()}: {explain_handshake(exc, 'server')}")
    what = "the peer closed the connection" if exc is None else f"the connection broke: {exc}"
    return ClosedByPeerError(f"{what} before it has sent anything; it may not accept our certificate")
