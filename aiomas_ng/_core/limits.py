"""What a peer can make us hold, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

__all__ = ["DEFAULT_LIMITS", "Limits"]

MIB: Final = 2**20
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
    violations: int = 100
    stall_time: float = 120.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"limit {field.name} must be a number > 0 but is {value!r}")
        for name in ("frame_size", "stream_window"):  # they go on the wire, where infinity is no number
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"limit {name} must be an integer but is {getattr(self, name)!r}")
        if self.frame_size > LARGEST_FRAME:
            raise ValueError(f"limit frame_size must be <= {LARGEST_FRAME} but is {self.frame_size}")


DEFAULT_LIMITS: Final = Limits()
