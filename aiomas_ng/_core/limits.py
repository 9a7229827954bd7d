"""What a peer can make us hold, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

__all__ = ["DEFAULT_LIMITS", "Limits"]

MIB: Final = 2**20
BLOCK_UNIT: Final = 1024  # what large blocks are counted in (RFC 8323, section 6)
LARGEST_FRAME: Final = 2**32 - 1  # what the 4-byte header can announce


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one connection.  Each can be set; each holds for this side of the connection alone.

    Attributes:
        frame_size: Largest payload of a frame, sent or received, in bytes.  A larger one is not sent
            (:exc:`~aiomas_ng.exceptions.FrameTooLargeError`); one that arrives is skipped as it comes, and
            its request is answered with that error.
        calls: Requests of ours that wait for a reply.  Beyond: :exc:`~aiomas_ng.exceptions.OverloadError`.
        requests: Requests of the peer that are worked on or wait. Beyond: we stop reading where that is safe,
            else the request is refused (:exc:`~aiomas_ng.exceptions.RemoteOverloadError` at the peer).
        inbox_size: Bytes of the peer's requests that wait.  Beyond: as for ``requests``.
        backlog: Bytes that wait to be written while the peer does not read.  Beyond:
            :exc:`~aiomas_ng.exceptions.OverloadError`.
        stream_window: Items of one stream that may be under way to us at a time.
        observations: Observations of the peer that are registered here.  Beyond: the peer gets the state
            once, without being registered.
        block_size: Bytes of a payload above which it is sent block by block, and bytes of a block; rounded
            down to a multiple of 1024, or if it is less, to a power of two from 16 on.
        body_size: Largest body that is put together from blocks, sent or received, in bytes.  Beyond: 4.13 at
            the peer, or :exc:`~aiomas_ng.exceptions.OverloadError` here.
        transfers: Bodies that are being put together from the peer's blocks, and as many that it fetches
            block by block, at a time.  Beyond: 5.03, or the oldest one has to be fetched anew.
        transfer_size: Bytes of all these bodies, for each of the two.
        transfer_time: Seconds after which such a body is given up if no block of it comes or is fetched.
        resend_size: Bytes that are kept until the peer has acknowledged them, to be sent again if the
            connection breaks.  Beyond: while it is broken, as while the peer does not read; else, with a peer
            that acknowledges nothing, the connection cannot be taken up again any more.
        grace_time: Seconds for which a connection that broke may be taken up again; its calls wait as long.
        refusal_time: Seconds after which that is given up if the peer's address refuses connections: no
            process listens there.
        sessions: Broken connections that a server keeps.  Beyond: the oldest one is given up.
        violations: Broken frames that are forgiven before the connection is closed.
        stall_time: Seconds for which both directions may stand still at once before the connection is given
            up.
    """

    frame_size: int = 64 * MIB
    calls: int = 100_000
    requests: int = 100_000
    inbox_size: int = 128 * MIB
    backlog: int = 128 * MIB
    stream_window: int = 64
    observations: int = 10_000
    block_size: int = 32 * 1024
    body_size: int = 128 * MIB
    transfers: int = 64
    transfer_size: int = 256 * MIB
    transfer_time: float = 60.0
    resend_size: int = 16 * MIB
    grace_time: float = 10.0
    refusal_time: float = 1.0
    sessions: int = 1000
    violations: int = 100
    stall_time: float = 120.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"limit {field.name} must be a number > 0 but is {value!r}")
        # They go on the wire, where infinity is no number.
        for name in ("frame_size", "stream_window", "block_size"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"limit {name} must be an integer but is {getattr(self, name)!r}")
        if self.frame_size > LARGEST_FRAME:
            raise ValueError(f"limit frame_size must be <= {LARGEST_FRAME} but is {self.frame_size}")

    @property
    def has_small_frames(self) -> bool:
        """Whether frames have no room for blocks of the usual size."""
        return self.payload_size < min(self.block_size, DEFAULT_LIMITS.block_size) // BLOCK_UNIT * BLOCK_UNIT

    @property
    def payload_size(self) -> int:
        """Bytes of a payload that fit into a message: ``block_size``, or less if frames are small."""
        # With JSON, bytes are base64; and there are the options.
        room = max(16, min(self.block_size, self.frame_size * 3 // 4 - BLOCK_UNIT))
        return room // BLOCK_UNIT * BLOCK_UNIT if room >= BLOCK_UNIT else 1 << (room.bit_length() - 1)


DEFAULT_LIMITS: Final = Limits()
