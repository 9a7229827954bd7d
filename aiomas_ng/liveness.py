"""How a connection finds out that its peer has gone without a word, and how it tells.

A host that loses power, or a cable that is pulled, closes no connection: both sides would wait for ever. So a
connection on which nothing has come for a while is pinged, see :class:`Liveness` for when and how patiently.
What becomes of a connection is its :class:`ConnectionState`; what a container knows of another one is a
:class:`PeerStatus`.
"""

from __future__ import annotations

import datetime
import enum
import math
from dataclasses import dataclass
from typing import Final

__all__ = ["DEFAULT_LIVENESS", "ConnectionState", "Liveness", "PeerStatus"]

#: The shortest time that can be set, in seconds: what is shorter tells more of the event loop than of a peer.
SHORTEST: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """When a peer is asked whether it is there, and how long it is waited for.

    Any byte of the peer counts as a sign of life, in the middle of a large message as well. Time during which
    our own event loop was blocked does not count, nor does time in which we do not read.

    A peer whose program computes, and does not get to its event loop, answers no ping either. Where the
    kernel of its host still confirms what we send (TCP on Linux), or must be there (Unix domain sockets), it
    is *busy* and not dead, and is waited for longer. Through a relay, such as a tunnel, one cannot tell the
    two apart: there a dead peer counts as busy.

    Attributes:
        interval: Seconds without a byte of the peer after which it is sent a ping; up to a third later.
        patience: Seconds after the ping in which a byte has to come. Then the peer is
            :attr:`~ConnectionState.UNRESPONSIVE`; and if its host confirms nothing either, it is given up.
        busy_patience: Seconds after the ping in which a byte has to come of a busy peer, else it is given up;
            ``None`` waits for ever.

    Raises:
        ValueError: Not ``0.01 <= interval``, or not ``0.01 <= patience <= busy_patience``, or not finite.
    """

    interval: float = 15.0
    patience: float = 30.0
    busy_patience: float | None = 3600.0

    def __post_init__(self) -> None:
        for name in ("interval", "patience", "busy_patience"):
            value = getattr(self, name)
            if name == "busy_patience" and value is None:
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not SHORTEST <= value < math.inf
            ):
                raise ValueError(f"{name} must be a number of seconds from {SHORTEST} on but is {value!r}")
        if self.busy_patience is not None and self.busy_patience < self.patience:
            raise ValueError(
                f"busy_patience must not be less than patience, {self.patience}, but is {self.busy_patience}"
            )


DEFAULT_LIVENESS: Final = Liveness()


class ConnectionState(enum.Enum):
    """What is known of a connection, or of the peer at its other end."""

    CONNECTED = "connected"  #: All is well, as far as anybody can know.
    UNRESPONSIVE = "unresponsive"  #: The peer does not answer a ping; it may be busy, or gone.
    INTERRUPTED = "interrupted"  #: The connection broke and is being taken up again.
    CLOSED = "closed"  #: It has ended, on whichever side.


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What a container knows of another one that it has dialled.

    Attributes:
        url: Base URL of the other container.
        state: State of the connection to it.
        since: When it came into this state, in UTC.
        error: Why the latest connection has ended, or the latest attempt to connect has failed; ``None`` if
            neither has happened. It is kept when the peer has returned.
    """

    url: str
    state: ConnectionState
    since: datetime.datetime
    error: Exception | None = None
