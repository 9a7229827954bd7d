"""One direction of a connection over a bad network: bytes and the time go in, and what arrives comes out.

Rules that hold whatever the conditions are:

- What arrives is a prefix of what was put in, in the same order, and all of it unless the line loses bytes.
- Nothing arrives before it is due, and the times of what arrives never go back.
- The end of the bytes travels like a byte: behind what was put in before, and no faster.
- A cut, or the begin of a blackhole, comes when exactly the drawn number of bytes has arrived.
- Once bytes were lost, nothing put in later arrives: a stream with a gap is none. It is cut instead, as soon
  as somebody writes and the line no longer loses what it is given.

The same generator, and the same calls, give the same results.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Final

from aiomas_ng._core.fault_rules import Conditions, Draw, Fate, draw

__all__ = ["Data", "Line", "Mark"]

#: Seconds between two parts of what is throttled: it arrives bit by bit, not at once at the end.
TICK: Final = 0.05

Data = bytes | memoryview


class Mark(enum.Enum):
    """What arrives besides bytes."""

    EOF = "eof"  #: the sender writes nothing more
    CLOSE = "close"  #: the sender has closed both directions
    RESET = "reset"  #: the sender has broken the connection
    CUT = "cut"  #: the line breaks now, for both ends
    HOLE = "hole"  #: from now on nothing passes


@dataclass(slots=True)
class _Piece:
    """What was put in at a time: bytes that leave one after the other from *start* on, or a mark."""

    data: Data | Mark
    start: float
    rate: float | None  # bytes per second
    lag: float  # seconds from leaving to arriving
    offset: int = 0  # bytes that have arrived

    def next_end(self) -> int:
        """Return up to which byte it arrives next."""
        assert not isinstance(self.data, Mark)
        if self.rate is None:
            return len(self.data)
        return min(len(self.data), self.offset + max(1, int(self.rate * TICK)))

    def next_due(self) -> float:
        """Return when that byte, or the mark, arrives."""
        if self.rate is None or isinstance(self.data, Mark):
            return self.start + self.lag
        return self.start + self.next_end() / self.rate + self.lag


class Line:
    """One direction of one connection.

    Args:
        conditions: How it treats the bytes.
        rng: What it draws from; nobody else should.
    """

    def __init__(self, conditions: Conditions, rng: Random) -> None:
        self.size = 0  #: Bytes that are under way.
        self.passed = 0  #: Bytes that have arrived.
        self.lost = 0  #: Bytes that have vanished.
        self.fate = Fate.PASS  #: What becomes of bytes now; see :meth:`set_fate`.
        self.has_gap = False  #: Whether anything has vanished, be it only the end.
        self.delay = draw(conditions.delay, rng)  #: Seconds that each byte takes, before jitter.
        self._conditions = conditions
        self._rng = rng
        self._pieces: deque[_Piece] = deque()
        self._floor = -math.inf  # when the last byte has arrived; nothing arrives earlier
        self._free = -math.inf  # when all that was put in has left
        self._is_broken = False
        self._is_rushing = False
        self._cut_at = self._draw_bytes(conditions.cut_after)
        self._hole_at = self._draw_bytes(conditions.blackhole_after)

    def _draw_bytes(self, spec: Draw | None) -> float:
        return math.inf if spec is None else self.passed + int(draw(spec, self._rng))

    def apply(self, conditions: Conditions) -> None:
        """Treat what is put in from now on by other conditions; draw anew where the draw is another one."""
        old, self._conditions = self._conditions, conditions
        if conditions.delay != old.delay:
            self.delay = draw(conditions.delay, self._rng)
        if conditions.cut_after != old.cut_after:
            self._cut_at = self._draw_bytes(conditions.cut_after)
        if conditions.blackhole_after != old.blackhole_after:
            self._hole_at = self._draw_bytes(conditions.blackhole_after)

    def draw_hole(self) -> float | None:
        """Return for how many seconds a blackhole that begins now is to last, ``None`` for ever."""
        spec = self._conditions.blackhole_for
        return None if spec is None else draw(spec, self._rng)

    def cut_after(self, count: int) -> None:
        """Let it break when *count* more bytes have arrived."""
        self._cut_at = self.passed + count

    # In

    def put(self, data: Data, now: float) -> None:
        """Send bytes, which must not change any more."""
        if self._is_gone(len(data)):
            return
        conditions = self._conditions
        jitter = draw(conditions.jitter, self._rng) if conditions.jitter else 0.0
        start = max(now, self._free)
        self._free = start if conditions.rate is None else start + len(data) / conditions.rate
        self._pieces.append(_Piece(data, start, conditions.rate, self.delay + jitter))
        self.size += len(data)

    def put_mark(self, mark: Mark, now: float) -> None:
        """Send the end of the bytes, or of the connection."""
        if not self._is_gone(0):
            self._pieces.append(_Piece(mark, max(now, self._free), None, self.delay))

    def put_back(self, data: Data) -> None:
        """Take back the rest of what has just arrived, to let it arrive next."""
        self.passed -= len(data)
        self.size += len(data)
        self._pieces.appendleft(_Piece(data, self._floor, None, 0.0))

    def _is_gone(self, count: int) -> bool:
        """Return whether what is put in now will not arrive."""
        if self.fate is Fate.LOSE:
            self.has_gap = True
        elif self.has_gap:
            self._is_broken = True
        else:
            return False
        self.lost += count
        return True

    # Out

    def next_due(self) -> float | None:
        """Return when :meth:`take` should be called next: a time, minus infinity for at once, ``None`` if
        there is nothing to wait for."""
        if self.fate is not Fate.PASS:
            return None
        if self._is_broken or self.passed >= min(self._cut_at, self._hole_at):
            return -math.inf
        if not self._pieces:
            return None
        return -math.inf if self._is_rushing else max(self._floor, self._pieces[0].next_due())

    def take(self, now: float) -> Data | Mark | None:
        """Return what arrives next, ``None`` if nothing has arrived yet."""
        due = self.next_due()
        if due is None or due > now:
            return None
        if self._is_broken or self.passed >= self._cut_at:
            return Mark.CUT
        if self.passed >= self._hole_at:
            self._hole_at = math.inf
            return Mark.HOLE
        self._floor = max(self._floor, due)
        piece = self._pieces[0]
        if isinstance(piece.data, Mark):
            self._pieces.popleft()
            return piece.data
        start = piece.offset
        end = len(piece.data) if self._is_rushing else piece.next_end()
        end = int(min(end, start + min(self._cut_at, self._hole_at) - self.passed))
        piece.offset = end
        self.passed += end - start
        self.size -= end - start
        if end < len(piece.data):
            return memoryview(piece.data)[start:end]
        self._pieces.popleft()
        return memoryview(piece.data)[start:] if start else piece.data

    # What a transport has to know

    def is_empty(self) -> bool:
        """Return whether nothing is under way, not even the end."""
        return not self._pieces

    def count_held(self, now: float) -> int:
        """Return how many bytes the sender still has: those that wait for the rate, or for the window."""
        unsent = self._count_unsent(now)
        return unsent + max(0, self.size - unsent - self._conditions.window)

    def _count_unsent(self, now: float) -> int:
        if self._free <= now or self._is_rushing:
            return 0
        rate = self._conditions.rate
        return self.size if rate is None else min(self.size, math.ceil((self._free - now) * rate))

    # Faults

    def set_fate(self, fate: Fate) -> None:
        """Decide what becomes of the bytes, among them those that are under way."""
        self.fate = fate
        if fate is Fate.LOSE and self._pieces:
            self.has_gap = True
            self.lost += self.size
            self.discard()

    def drop_held(self, now: float) -> None:
        """Forget what has not left yet: who wrote it has gone."""
        excess = self.count_held(now)
        while excess > 0 or (self._pieces and isinstance(self._pieces[-1].data, Mark)):
            piece = self._pieces[-1]
            if not isinstance(piece.data, Mark):
                count = min(excess, len(piece.data) - piece.offset)
                excess -= count
                self.size -= count
                piece.data = memoryview(piece.data)[: len(piece.data) - count]
                if len(piece.data) > piece.offset:
                    break
            self._pieces.pop()
        self._free = min(self._free, now)

    def discard(self) -> None:
        """Forget what is under way: nobody is there to take it."""
        self._pieces.clear()
        self.size = 0
        self._free = -math.inf

    def rush(self) -> None:
        """From now on let everything arrive at once, what is under way as well, and end no connection."""
        self._is_rushing = True
        self._cut_at = self._hole_at = math.inf
        self._conditions = Conditions()
        self.delay = 0.0
        self._free = -math.inf
