"""The transport that makes a connection bad: it lies between the real one and the protocol.

::

    ChannelProtocol ── write ──▶ FaultyTransport ── Line ──▶ real transport ──▶ peer
                    ◀─ data_received ──  │   ◀── Line ────── Wire  ◀────────────┘
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from aiomas_ng._core.fault_rules import Conditions, Fate, Route
from aiomas_ng._core.line import Mark
from aiomas_ng._io.fault_flow import HIGH_WATER, FaultFlow

__all__ = ["FaultyTransport"]

#: Writes to a closed connection from which on each is logged.
WARN_AFTER: Final = 5

logger = logging.getLogger("aiomas_ng.faults")


class FaultyTransport(FaultFlow):
    """A connection through a :class:`~aiomas_ng.faults.Network`, as the protocol at one end sees it.

    To that it does what :class:`asyncio.Transport` describes. ``get_extra_info()`` passes on what the real
    transport knows, except for ``socket``, which is ``None``: the system sees a healthy connection where ours
    is a blackhole. The size of the write buffer does not include the bytes that are under way.

    Made by a network; see its ``connections``, and the ``transport`` of a channel.
    """

    route: Route  #: Between which places it lies.
    number: int  #: Number of the connection in its network, counted from 1 in the order of the attempts.

    def __repr__(self) -> str:
        state = "closed" if self._is_lost else "closing" if self._is_closing else "open"
        return f"<{type(self).__name__} #{self.number} {self.route}, {state}>"

    # What a study may look at and do

    @property
    def bytes_sent(self) -> int:
        """Bytes of this end that have passed."""
        return self._out.passed

    @property
    def bytes_received(self) -> int:
        """Bytes of the other end that have passed."""
        return self._in.passed

    @property
    def bytes_lost(self) -> int:
        """Bytes that have vanished, in both directions."""
        return self._out.lost + self._in.lost

    def cut(self, after: int | None = None) -> None:
        """Break the connection for both ends.

        Args:
            after: Only when so many more bytes have passed in one of the directions; ``None`` for now.
        """
        if after is None:
            self._cut()
            return
        for line in (self._out, self._in):
            line.cut_after(after)
        self._pump_soon()

    def blackhole(self, seconds: float | None = None) -> None:
        """Let all bytes vanish, in both directions, without a sign to either side.

        Args:
            seconds: For how long; ``None`` until :meth:`release`. What was written to a connection that has
                lost something does not arrive any more: it breaks instead.
        """
        self._set_fate(Fate.LOSE, "blackhole", seconds)

    _fall_silent = blackhole

    def hold(self, seconds: float | None = None) -> None:
        """Hold all bytes back, in both directions.

        Args:
            seconds: For how long; ``None`` until :meth:`release`. Then they arrive.
        """
        self._set_fate(Fate.HOLD, "hold", seconds)

    def release(self) -> None:
        """End what :meth:`blackhole` or :meth:`hold` has begun."""
        if self._fate is not Fate.PASS:
            self._set_fate(Fate.PASS, "release", None)

    def _set_fate(self, fate: Fate, what: str, seconds: float | None) -> None:
        if self._is_over():
            return
        if self._fate_end is not None:
            self._fate_end.cancel()
            self._fate_end = None
        self._fate = fate
        self._owner._note_of(self, what, "" if seconds is None else seconds)
        if seconds is not None:
            self._fate_end = self._timing.call_at(self._timing.now() + seconds, self.release, self._context)
        self._refresh()

    def _apply(self, get_conditions: Callable[[str, str], Conditions]) -> None:
        """Go on under other conditions, of which those for what goes from one place to another can be got."""
        sender, receiver = self._way_out
        self._out.apply(get_conditions(sender, receiver))
        self._in.apply(get_conditions(receiver, sender))
        self._pump_soon()

    def _rush(self) -> None:
        """Be as good as the real connection from now on."""
        self._out.rush()
        self._in.rush()
        self._refresh()

    # Protocol and state

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand all further events to another protocol; its ``connection_made()`` is not called."""
        self._protocol: Any = protocol
        self._is_buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol that is given the events."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the real transport knows about the connection; ``None`` for ``socket``."""
        if name == "socket" or self._real is None:
            return default
        return self._real.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""
        return self._is_closing

    def close(self) -> None:
        """Close the connection after what was written has left.

        Our protocol is told as soon as that is under way, the peer when it has arrived.
        """
        if self._is_closing:
            return
        self._is_closing = True
        self._in.discard()
        self._owner._note_of(self, "close")
        if self._is_real_lost:
            self._finish(None)
        else:
            self._out.put_mark(Mark.CLOSE, self._timing.now())
        self._pump_out()
        self._settle()

    def abort(self) -> None:
        """Close the connection at once; what has not left yet is lost."""
        if self._is_lost:
            return
        now = self._timing.now()
        self._in.discard()
        self._owner._note_of(self, "abort")
        if not self._is_cut:
            self._out.drop_held(now)
            self._out.put_mark(Mark.RESET, now)
        self._finish(None)
        self._pump_out()
        self._settle()

    # Reading

    def is_reading(self) -> bool:
        """Return whether our protocol is given what arrives."""
        return not (self._is_closing or self._is_reading_paused)

    def pause_reading(self) -> None:
        """Hold back data and the end of the data until :meth:`resume_reading`."""
        self._is_reading_paused = True
        self._settle()

    def resume_reading(self) -> None:
        """Let data come again, not before the next turn of the loop."""
        if self._is_reading_paused:
            self._is_reading_paused = False
            self._pump_soon()

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; mutable ones are copied.

        Raises:
            TypeError: *data* is not bytes-like.
            RuntimeError: :meth:`write_eof` was called before.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be bytes, bytearray or memoryview, not {type(data).__name__}")
        if self._is_closing:
            if self._writes_after_close >= WARN_AFTER:
                logger.warning("write() on the closed connection %r", self)
            self._writes_after_close += 1
            return
        if self._is_eof_sent:
            raise RuntimeError("cannot write after write_eof()")
        if not data:
            return
        if self._has_peer_ended and self._in.has_gap and self._in.fate is self._out.fate is Fate.PASS:
            self._cut()  # the peer has gone, and that news was lost
            return
        self._out.put(bytes(data), self._timing.now())
        self._pump_out()
        self._settle()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send several bytes-like objects, as one piece."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """Return whether the real transport can."""
        return bool(self._real.can_write_eof())

    def write_eof(self) -> None:
        """Tell the peer, behind what was written, that nothing more comes.

        Raises:
            NotImplementedError: The real transport cannot do that.
        """
        if self._is_closing or self._is_eof_sent:
            return
        if not self.can_write_eof():
            raise NotImplementedError("this kind of connection has no end of one direction only")
        self._is_eof_sent = True
        self._out.put_mark(Mark.EOF, self._timing.now())
        self._pump_out()
        self._settle()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when our protocol is told to pause and to resume writing.

        Args:
            high: More bytes than this that wait to leave call ``pause_writing()``; four times *low* or 64 KiB
                by default.
            low: As few as this call ``resume_writing()``; a quarter of *high* by default.

        Raises:
            ValueError: Not ``high >= low >= 0``.
        """
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"write buffer limits must be high >= low >= 0, but high={high!r}, low={low!r}")
        self._high, self._low = high, low
        if self._real is not None and not self._is_real_lost:
            self._real.set_write_buffer_limits(high, low)
            self._settle()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return ``(low, high)``, in bytes."""
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        """Return how many bytes have not left yet."""
        size = self._out.count_held(self._timing.now())
        if self._real is not None and not self._is_real_lost:
            size += self._real.get_write_buffer_size()
        return size
