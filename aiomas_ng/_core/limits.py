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
    """Bounds of one connection, of one server, and of all connections of one container.

    Each can be set; each holds for this side alone.  What begins with ``container_`` is counted over all
    connections of a container, or where there is none, of a server; of a connection that stands alone, over
    that one.

    Attributes:
        frame_size: Largest payload of a frame, sent or received, in bytes.  A larger one is not sent
            (:exc:`~aiomas_ng.exceptions.FrameTooLargeError`); one that arrives is skipped as it comes, and
            its request is answered with that error.
        frame_time: Seconds in which a frame that has begun to arrive has to be complete, or to go on by
            ``frame_rate`` bytes for each of them.  Beyond: the connection is closed
            (:exc:`~aiomas_ng.exceptions.ConnectionStalledError`).  A peer that sends nothing is left alone.
        frame_rate: Bytes per second of a frame that is not complete after ``frame_time``.
        handshake_time: Seconds that a TLS handshake may take.  Beyond: the connection is closed.
        decoded_depth: How deep arrays and maps of a message may contain each other.  Beyond:
            :exc:`~aiomas_ng.exceptions.DecodedTooLargeError`, as the error of the request it is in.
        decoded_size: Bytes that a message may take in memory when it is decoded.  Beyond: the same.
        decompressed_size: Bytes that a message of :class:`~aiomas_ng.codecs.MsgPackBlosc` may have when it is
            decompressed.  Beyond: the same.
        calls: Requests of ours that wait for a reply.  Beyond: :exc:`~aiomas_ng.exceptions.OverloadError`.
        requests: Requests of the peer that are worked on or wait. Beyond: we stop reading where that is safe,
            else the request is refused (:exc:`~aiomas_ng.exceptions.RemoteOverloadError` at the peer).
        inbox_size: Bytes of the peer's requests that wait.  Beyond: as for ``requests``.
        oneways: One-way messages of the peer whose handlers have begun to wait for room among ``requests``.
            Beyond: we stop reading where that is safe, else the message is dropped, which is logged on both
            sides.
        oneway_time: Seconds for which we do not read because of that, while nothing of the work ends: it may
            be waiting, over whatever connections, for the peer.  Beyond: we read again, and drop.
        backlog: Bytes that wait to be written while the peer does not read.  Beyond:
            :exc:`~aiomas_ng.exceptions.OverloadError`.
        streams: Requests of the peer that are answered by streams, at a time.  Beyond: the request is
            refused, as for ``requests``.
        stream_window: Items of one stream that may be under way to us at a time.
        turn: Requests of the peer that are handled in a row before other connections have their turn.  One
            that needs a task counts as several, and a large reply ends the turn.
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
            that acknowledges nothing, the connection cannot be taken up again any more.  Not below some
            100 KiB: acknowledgements come every 32 KiB.
        grace_time: Seconds for which a connection that broke may be taken up again; its calls wait as long.
        refusal_time: Seconds after which that is given up if the peer's address refuses connections: no
            process listens there.
        sessions: Broken connections that a server keeps.  Beyond: the oldest one is given up.
        violations: Broken frames that are forgiven before the connection is closed.
        stall_time: Seconds for which both directions may stand still at once before the connection is given
            up.
        connections: Connections that a server has open.  Beyond: the newest one is closed, and its calls fail
            with :exc:`~aiomas_ng.exceptions.TooManyConnectionsError` there.
        host_connections: Those of them that come from one address.  Beyond: the same.
        container_calls: As ``calls``, over all connections.
        container_requests: As ``requests``, over all connections.  A connection on which nothing else waits
            may always have one request waiting.
        container_size: Bytes of requests that wait, and of large frames that are being received, over all
            connections.  Beyond: as for ``inbox_size``; a large frame is skipped as it comes, and its request
            is refused.
    """

    frame_size: int = 64 * MIB
    frame_time: float = 30.0
    frame_rate: float = 1024
    handshake_time: float = 10.0
    decoded_depth: int = 500
    decoded_size: int = 512 * MIB
    decompressed_size: int = 256 * MIB
    calls: int = 100_000
    requests: int = 100_000
    inbox_size: int = 128 * MIB
    oneways: int = 10_000
    oneway_time: float = 5.0
    backlog: int = 128 * MIB
    streams: int = 1_000
    stream_window: int = 64
    turn: int = 32
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
    connections: int = 20_000
    host_connections: int = 10_000
    container_calls: int = 1_000_000
    container_requests: int = 200_000
    container_size: int = 1024 * MIB

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
