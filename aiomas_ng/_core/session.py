"""A connection that outlives its transports: it is taken up again where the last one broke.

Each direction of a connection is one stream of bytes, whatever transports carry it. Rules, for both ends:

- Bytes are counted from the first one of the connection on. What was written is kept until the other end has
  acknowledged it; when a new transport is there, both say how much has arrived, and each writes the rest.
  So each byte arrives once and in order, even from the middle of a frame on.
- The *acceptor* offers a session in its SESSION frame: an id, a secret, and the time for which it will be
  kept. It is open for the dialler when it has read that, and for the acceptor as soon as it is written.
- Only the *dialler* can take it up again: it connects anew, and proves by the secret, which does not travel
  a second time, that the session is its own. Each attempt has a number that has to go up, so what somebody
  has overheard is of no use. The acceptor proves in its answer that it has the secret too.
- An acknowledgement is never more than was written. One that is less than an earlier one says nothing.
- What is kept is bounded. Without a transport, writers have to wait; with one, a peer that takes all and
  acknowledges nothing loses the session: to wait for it might be for ever.
- A session ends for good when either end closes it, when the peer does not know it any more, or when its time
  is up. It is never taken up after that.
- A peer that offers none, or does not ask for one, has none: then nothing is kept.

Known to this module are counts, bytes and proofs; it has no clock, no transport and no codec.
"""

from __future__ import annotations

import collections
import enum
import hashlib
import hmac
import math
from collections.abc import Callable
from typing import Any, Final

from aiomas_ng._core.codec_errors import short
from aiomas_ng.exceptions import MalformedFrameError, ResumptionError

__all__ = ["ACK_EVERY", "ID_SIZE", "SECRET_SIZE", "Session", "State", "Tally"]

#: Received bytes after which they are acknowledged. As much is kept at the other end, at least.
ACK_EVERY: Final = 32 * 1024
#: Random bytes of the id and of the secret.
ID_SIZE: Final = 16
SECRET_SIZE: Final = 32

Chunk = bytes | memoryview


class State(enum.Enum):
    """What a session is doing."""

    UNKNOWN = "unknown"  #: It is not known yet whether the peer takes part.
    OPEN = "open"
    INTERRUPTED = "interrupted"  #: The transport broke; a new one may come.
    ENDED = "ended"  #: It cannot be taken up, any more or at all.


class Tally:
    """Counts what is received over a connection that is not, or not any more, taken up again; as a
    :class:`Session` does, but nothing has to be acknowledged.

    Args:
        received: Bytes received so far.
    """

    __slots__ = ("ack_at", "received")

    def __init__(self, received: int = 0) -> None:
        self.received = received
        self.ack_at = float("inf")


class Session:
    """One end of a session.

    Args:
        is_dialler: Whether this end has dialled, and will do so again.
        limit: Bytes that are kept without an acknowledgement before :attr:`on_full` is called.
    """

    __slots__ = (
        "_attempt",
        "_full_at",
        "_kept",
        "_limit",
        "_secret",
        "ack_at",
        "acknowledged",
        "grace",
        "id",
        "is_dialler",
        "on_full",
        "pass_on",
        "received",
        "state",
        "written",
    )

    def __init__(self, *, is_dialler: bool, limit: int) -> None:
        self.is_dialler = is_dialler
        self.state = State.UNKNOWN
        self.id = ""  #: Known to both ends; empty as long as there is no session.
        self.grace = 0.0  #: Seconds for which the acceptor keeps the session without a transport.
        self.written = 0  #: Bytes written since the connection was made.
        self.acknowledged = 0  #: Those of them that have arrived for certain.
        self.received = 0  #: Bytes received since the connection was made; counted by the caller.
        #: The count of received bytes at which to look again: whether to acknowledge, or who the peer is.
        self.ack_at: float = 0
        #: Writes to the transport; ``None`` while there is none.
        self.pass_on: Callable[[Chunk], None] | None = None
        #: Called when more is kept than the limit, once until there is room again.
        self.on_full: Callable[[], None] | None = None
        self._limit = limit
        self._full_at: float = limit
        self._kept: collections.deque[Chunk] = collections.deque()
        self._secret = b""
        self._attempt = 0

    # What leaves

    def write(self, data: Chunk) -> None:
        """Write *data*, and keep it until it is acknowledged."""
        self._kept.append(data)
        self.written = written = self.written + len(data)
        if self.pass_on is not None:
            self.pass_on(data)
        if written > self._full_at:
            self._full_at = math.inf
            if self.on_full is not None:
                self.on_full()

    @property
    def kept_size(self) -> int:
        """Bytes that are kept."""
        return self.written - self.acknowledged

    @property
    def excess(self) -> int:
        """Bytes kept beyond the limit."""
        return max(0, self.written - self.acknowledged - self._limit)

    def acknowledge(self, count: Any) -> None:
        """The peer has received *count* bytes: forget them.

        Raises:
            MalformedFrameError: It cannot have.
        """
        if type(count) is not int or not 0 <= count <= self.written:
            raise MalformedFrameError(
                f"an acknowledgement must be an integer from 0 to the {self.written} bytes that were "
                f"written, but is {short(count)}"
            )
        acknowledged, kept = self.acknowledged, self._kept
        if count <= acknowledged:
            return
        while acknowledged < count:
            chunk = kept.popleft()
            size = len(chunk)
            if acknowledged + size > count:
                kept.appendleft(memoryview(chunk)[count - acknowledged :])
                acknowledged = count
            else:
                acknowledged += size
        self.acknowledged = acknowledged
        self._full_at = acknowledged + self._limit if not self.excess else math.inf

    # What arrives

    def take_due_ack(self) -> int | None:
        """Return the number of bytes to acknowledge, if it is time for that."""
        if self.state is not State.OPEN or self.received < self.ack_at:
            return None
        self.ack_at = self.received + ACK_EVERY
        return self.received

    # How it begins

    def offer(self, session_id: str, secret: bytes, grace: float) -> list[Any]:
        """Return what an acceptor offers, as it travels: ``[id, secret in hexadecimal, grace in seconds]``.

        Args:
            session_id: Not used before.
            secret: Not to be guessed.
            grace: Seconds for which the session is kept without a transport.
        """
        assert not self.is_dialler
        assert self.state is State.UNKNOWN
        self._open(session_id, secret, grace)
        return [session_id, secret.hex(), grace]

    def accept(self, offer: Any) -> None:
        """Take what the acceptor offers.

        Raises:
            MalformedFrameError: It is no offer.
        """
        assert self.is_dialler
        if self.state is not State.UNKNOWN:
            return
        try:
            session_id, secret, grace = offer
            secret = bytes.fromhex(secret)
            is_valid = (
                type(session_id) is str
                and 0 < len(session_id) <= 4 * ID_SIZE
                and 0 < len(secret) <= 4 * SECRET_SIZE
                and type(grace) in (int, float)
                and 0 < grace < math.inf
            )
        except (TypeError, ValueError):
            is_valid = False
        if not is_valid:
            raise MalformedFrameError(
                f"the offer of a session must be [id, secret, seconds] but is {short(offer)}"
            )
        self._open(session_id, secret, grace)

    def _open(self, session_id: str, secret: bytes, grace: float) -> None:
        self.id = session_id
        self._secret = secret
        self.grace = grace
        self.ack_at = self.received + ACK_EVERY
        self.state = State.OPEN

    # How it goes on

    def interrupt(self) -> None:
        """The transport broke."""
        assert self.state in (State.OPEN, State.INTERRUPTED)
        self.pass_on = None
        self.state = State.INTERRUPTED

    def ask(self) -> list[Any]:
        """Return what a dialler says first on a new connection: ``[id, attempt, bytes received, proof]``."""
        assert self.is_dialler
        assert self.state is State.INTERRUPTED
        self._attempt += 1
        return [self.id, self._attempt, self.received, self._prove("resume", self._attempt, self.received)]

    def answer(self, request: Any) -> list[Any]:
        """Return what an acceptor answers to that: ``[bytes received, proof]``. From then on the bytes are
        acknowledged that the dialler has received.

        Raises:
            ResumptionError: The dialler may not take up this session.
        """
        assert not self.is_dialler
        if self.state not in (State.OPEN, State.INTERRUPTED):
            raise ResumptionError("the session has ended")
        try:
            session_id, attempt, received, proof = request
            is_proven = session_id == self.id and hmac.compare_digest(
                proof, self._prove("resume", attempt, received)
            )
        except (TypeError, ValueError):
            is_proven = False
        if not is_proven:
            raise ResumptionError("the proof is wrong")
        if type(attempt) is not int or attempt <= self._attempt:
            raise ResumptionError("the attempt is not a new one")
        try:
            self.acknowledge(received)
        except MalformedFrameError as error:
            raise ResumptionError(str(error)) from error
        self._attempt = attempt
        return [self.received, self._prove("resumed", attempt, self.received)]

    def take_answer(self, answer: Any) -> None:
        """Take what the acceptor has answered; the bytes are acknowledged that it has received.

        Raises:
            ResumptionError: It is not the peer that the session was begun with, or has lost count.
        """
        assert self.is_dialler
        assert self.state is State.INTERRUPTED
        try:
            received, proof = answer
            is_proven = hmac.compare_digest(proof, self._prove("resumed", self._attempt, received))
        except (TypeError, ValueError):
            is_proven = False
        if not is_proven:
            raise ResumptionError("the peer did not prove that it has the session's secret")
        try:
            self.acknowledge(received)
        except MalformedFrameError as error:
            raise ResumptionError(str(error)) from error

    def resume(self, pass_on: Callable[[Chunk], None]) -> None:
        """There is a new transport, and what has arrived is acknowledged: write the rest to it.

        Args:
            pass_on: Writes to the transport.
        """
        assert self.state in (State.OPEN, State.INTERRUPTED)
        self.state = State.OPEN
        self.pass_on = pass_on
        self.ack_at = self.received + ACK_EVERY
        if self._kept:
            # In one go: there may be thousands of small ones.
            pass_on(b"".join(self._kept))

    def end(self) -> None:
        """Forget all that is kept: the session is not taken up any more."""
        self.state = State.ENDED
        self._kept.clear()
        self._secret = b""
        self._full_at = math.inf

    def _prove(self, what: str, attempt: Any, received: Any) -> str:
        text = f"{what}:{self.id}:{attempt}:{received}"
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()
