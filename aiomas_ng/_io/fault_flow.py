"""What passes through a bad connection, and when: between the real transport and the protocol.

Two :class:`~aiomas_ng._core.line.Line` decide what arrives when; here it is done, by one timer for each
connection. What is under way in a line is out of the hands of the sender: it arrives even where the sender
closes or aborts the connection meanwhile. So the real connection may outlive the one that the protocol sees.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import math
from collections.abc import Callable
from typing import Any, Final, Protocol

from aiomas_ng._core.fault_rules import Fate, Route
from aiomas_ng._core.line import Data, Line, Mark
from aiomas_ng._io.fault_time import Handle, Timing

__all__ = ["FaultFlow", "Owner"]

#: Bytes that are handed over at a time, as by asyncio's own transports.
MAX_PIECE: Final = 256 * 1024
#: Bytes that a sender has to hold from which on it is told to pause, unless it sets another limit.
HIGH_WATER: Final = 64 * 1024
#: Seconds that a peer has to take what passed before a cut, until that is enforced.
CUT_GRACE: Final = 5.0


class Owner(Protocol):
    """What a :class:`FaultyTransport` asks of the network that it belongs to."""

    @property
    def is_tracing(self) -> bool:
        """Whether each piece that passes is to be noted."""

    def _note_of(self, transport: Any, what: str, detail: float | str = "") -> None:
        """Something has happened to a connection."""

    def _get_fate(self, sender: str, receiver: str) -> Fate:
        """Return what outages do to bytes between two places."""

    def _begin(self, transport: Any) -> None:
        """A connection is there."""

    def _forget(self, transport: Any) -> None:
        """A connection is over for both ends."""


class Wire(asyncio.Protocol):
    """The protocol of the real transport."""

    def __init__(self, flow: FaultFlow) -> None:
        self._flow = flow

    def connection_made(self, real: Any) -> None:
        self._flow._connected(real)

    def data_received(self, data: bytes) -> None:
        self._flow._data_arrived(data)

    def eof_received(self) -> bool:
        return self._flow._eof_arrived()

    def connection_lost(self, exc: Exception | None) -> None:
        self._flow._real_lost(exc)

    def pause_writing(self) -> None:
        self._flow._is_real_full = True

    def resume_writing(self) -> None:
        self._flow._real_drained()


class FaultFlow(asyncio.Transport):
    """The half of a :class:`~aiomas_ng._io.fault_transport.FaultyTransport` that lets bytes pass.

    Args:
        protocol: The protocol.
        owner: The network.
        route: Between which places the connection lies.
        number: Its number in the network.
        lines: The way out and the way in.
        timing: The time that delays take.
        has_dialled: Whether our end is the one that has dialled.
    """

    def __init__(
        self,
        protocol: Any,
        owner: Owner,
        route: Route,
        number: int,
        lines: tuple[Line, Line],
        timing: Timing,
        *,
        has_dialled: bool,
    ) -> None:
        super().__init__()
        self.route = route
        self.number = number
        self.wire = Wire(self)
        self._owner = owner
        self._out, self._in = lines
        self._timing = timing
        self._way_out = (route.source, route.target) if has_dialled else (route.target, route.source)
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._real: Any = None
        self._fate = Fate.PASS  # of this connection, whatever else the outages of the network do
        self._fate_end: Handle | None = None
        self._timer: Handle | None = None
        self._armed = math.inf  # what the timer is set for
        self._until: float | None = None  # what it was set for, while that is done
        self._grace: asyncio.TimerHandle | None = None
        self._has_peer_ended = False  # as far as the real transport knows
        self._is_real_lost = False
        self._is_real_full = False
        self._is_real_paused = False
        self._real_error: Exception | None = None
        self._is_reading_paused = False
        self._is_writing_paused = False
        self._is_resume_due = False
        self._is_eof_sent = False
        self._is_closing = False
        self._is_lost = False  # connection_lost() was called or will be, by the loop
        self._is_end_passed = False  # the real transport was told to close
        self._is_cut = False
        self._writes_after_close = 0
        self._high, self._low = HIGH_WATER, HIGH_WATER // 4
        self._protocol = protocol
        self._is_buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def _fall_silent(self, seconds: float | None) -> None:
        """Let nothing pass for so many seconds."""
        raise NotImplementedError

    def _refresh(self) -> None:
        """Look anew at the outages of the network."""
        sender, receiver = self._way_out
        for line, fate in (
            (self._out, self._owner._get_fate(sender, receiver)),
            (self._in, self._owner._get_fate(receiver, sender)),
        ):
            line.set_fate(max(self._fate, fate))
        if self._is_lost and self._out.fate is Fate.PASS and self._out.has_gap:
            self._abort_real()  # our end has gone, and the peer could not be told
        self._pump_soon()

    # Events of the real transport

    def _connected(self, real: Any) -> None:
        self._real = real
        self._owner._begin(self)
        self._protocol.connection_made(self)
        self._refresh()

    def _data_arrived(self, data: bytes) -> None:
        if self._is_closing:
            return
        self._in.put(bytes(data), self._timing.now())
        self._pump_in()
        self._settle()

    def _eof_arrived(self) -> bool:
        self._has_peer_ended = True
        if self._is_lost:
            # Only what is under way to the peer keeps the real connection.
            if self._out.is_empty():
                self._abort_real()
        elif not self._is_closing:
            self._in.put_mark(Mark.EOF, self._timing.now())
            self._pump_in()
            self._settle()
        # It is for our protocol to decide whether it closes; but with TLS there is no such choice.
        return self._real.get_extra_info("sslcontext") is None

    def _real_lost(self, exc: Exception | None) -> None:
        self._is_real_lost = self._has_peer_ended = True
        self._is_real_full = False
        self._real_error = exc
        self._out.discard()
        if self._is_cut:
            self._finish(_cut_error())
        elif self._is_closing:
            self._finish(exc)
        else:
            self._owner._note_of(self, "lost", "" if exc is None else type(exc).__name__)
            self._in.put_mark(Mark.CLOSE, self._timing.now())
            self._pump_in()
        self._settle()

    def _real_drained(self) -> None:
        self._is_real_full = False
        # Not at once: a transport of asyncio that is closed by what it calls here loses its connection twice.
        self._soon(self._abort_real if self._is_cut else self._pump)

    # What passes

    def _pump(self) -> None:
        """Let pass what is due, in both directions."""
        self._pump_out()
        self._pump_in()
        self._settle()

    def _pump_soon(self) -> None:
        """Let pass what is due, but not from within the call of somebody, nor in a context of theirs."""
        if not self._is_over():
            self._soon(self._pump)

    def _fire(self) -> None:
        """The timer has fired."""
        self._until = self._armed
        self._timer, self._armed = None, math.inf
        try:
            self._pump_out()
            self._pump_in()
        finally:
            self._until = None
            self._settle()

    def _limit(self) -> float:
        """Return up to when things are due now."""
        now = self._timing.now()
        if self._timing.is_real:
            return now
        # Other connections have their turn by the order of times, and so has what we still wait for.
        if self._until is not None:
            return min(now, self._until)
        return now if self._armed > now else -math.inf

    def _pump_out(self) -> None:
        if self._real is None:
            return
        limit = self._limit()
        while not (self._is_real_full or self._is_cut or self._is_end_passed or self._is_over()):
            data, mark = _gather(self._out, limit)
            if data is not None and not self._real.is_closing():
                if self._owner.is_tracing:
                    self._owner._note_of(self, "out", len(data))
                self._real.write(data)
            if mark is not None:
                self._pass_end(mark)
            elif data is None:
                break

    def _pass_end(self, mark: Mark) -> None:
        """Let the end, or a fault, of the way out pass."""
        if mark is Mark.CUT:
            self._cut()
        elif mark is Mark.HOLE:
            self._fall_silent(self._out.draw_hole())
        elif mark is Mark.EOF:
            if not self._real.is_closing():
                self._real.write_eof()
        else:
            self._is_end_passed = True
            if mark is Mark.CLOSE:
                self._real.close()
            else:
                self._real.abort()

    def _pump_in(self) -> None:
        if self._real is None:
            return
        limit = self._limit()
        while self.is_reading():
            data, mark = _gather(self._in, limit)
            if data is not None:
                if self._owner.is_tracing:
                    self._owner._note_of(self, "in", len(data))
                self._feed(data)
            if mark is not None and not self._is_cut:
                self._take_end(mark)
            elif data is None:
                break

    def _take_end(self, mark: Mark) -> None:
        """Take the end, or a fault, of the way in."""
        if mark is Mark.CUT:
            self._cut()
        elif mark is Mark.HOLE:
            self._fall_silent(self._in.draw_hole())
        elif self._is_closing:
            pass  # the protocol has closed the connection when it got the last bytes
        elif mark is Mark.EOF:
            if not self._call("eof_received"):
                self.close()
        else:
            self._finish(self._real_error)

    def _feed(self, data: Data) -> None:
        """Give our protocol what has arrived; it may be replaced by another one meanwhile."""
        while self._is_buffered and len(data) and not self._is_closing:
            if self._is_reading_paused:
                self._in.put_back(data)
                return
            count = self._call("get_buffer/buffer_updated", self._fill_buffer, data)
            if not count:
                return
            data = memoryview(data)[count:]
        if len(data) and not self._is_closing:
            if self._is_reading_paused:
                self._in.put_back(data)
            else:
                self._call("data_received", self._protocol.data_received, bytes(data))

    def _fill_buffer(self, data: Data) -> int:
        with memoryview(self._protocol.get_buffer(len(data))) as view, view.cast("B") as buffer:
            count = min(len(buffer), len(data))
            if not count:
                raise RuntimeError("get_buffer() returned an empty buffer")
            buffer[:count] = data[:count]
        self._protocol.buffer_updated(count)
        return count

    def _call(self, name: str, func: Callable[..., Any] | None = None, *args: Any) -> Any:
        """Call our protocol; the connection ends if that raises."""
        try:
            return func(*args) if func is not None else getattr(self._protocol, name)()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._loop.call_exception_handler(
                {
                    "message": f"protocol.{name}() failed",
                    "exception": exc,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
            self._finish(exc if isinstance(exc, Exception) else None)
            self._abort_real()
            return None

    # The end

    def _cut(self) -> None:
        """Break the connection for both ends, after what has passed."""
        if self._is_cut or self._is_over():
            return
        self._is_cut = self._is_closing = True
        self._owner._note_of(self, "cut")
        self._out.discard()
        self._in.discard()
        if self._is_real_lost:
            self._finish(_cut_error())
        elif self._real is not None:
            # What has passed is to arrive, and not a byte more: it breaks when nothing waits any more.
            self._real.set_write_buffer_limits(0)
            if not self._real.get_write_buffer_size():
                self._real.abort()
            else:
                self._grace = self._loop.call_later(CUT_GRACE, self._abort_real)
        self._settle()

    def _abort_real(self) -> None:
        self._out.discard()
        if self._real is not None and not self._is_real_lost:
            self._is_end_passed = True
            self._real.abort()

    def _finish(self, exc: Exception | None) -> None:
        """End the connection for our protocol."""
        if not self._is_lost:
            self._is_lost = self._is_closing = True
            self._in.discard()
            self._soon(self._protocol_lost, exc)

    def _protocol_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)  # if it raises, the loop reports it

    def _is_over(self) -> bool:
        return self._is_lost and (self._is_real_lost or self._real is None)

    # After each event

    def _settle(self) -> None:
        """See what follows from what has passed, for both ends, and set the timer."""
        now = self._timing.now()
        held = self._out.count_held(now)
        if self._is_closing and not (self._is_lost or self._is_cut or self._is_end_passed or held):
            self._finish(None)  # the rest is out of our hands
        if not self._is_closing:
            self._pace_protocol(held)
        self._pace_real(now)
        if self._is_over():
            self._end()
        else:
            self._arm()

    def _pace_protocol(self, held: int) -> None:
        if not self._is_writing_paused and (held > self._high or self._is_real_full):
            self._is_writing_paused = True
            self._call("pause_writing")
        elif self._is_writing_paused and self._has_room(held) and not self._is_resume_due:
            self._is_resume_due = True
            self._soon(self._resume_writing)

    def _has_room(self, held: int) -> bool:
        return held <= self._low and not self._is_real_full

    def _resume_writing(self) -> None:
        self._is_resume_due = False
        if not self._is_lost and self._has_room(self._out.count_held(self._timing.now())):
            self._is_writing_paused = False
            self._call("resume_writing")

    def _pace_real(self, now: float) -> None:
        """Read from the peer as our protocol does, and as there is room in the line."""
        if self._real is None or self._is_real_lost or self._real.is_closing():
            return
        is_paused = not self._is_closing and (
            self._is_reading_paused
            or self._in.count_held(now) > (HIGH_WATER // 4 if self._is_real_paused else HIGH_WATER)
        )
        if is_paused is not self._is_real_paused:
            self._is_real_paused = is_paused
            if is_paused:
                self._real.pause_reading()
            else:
                self._real.resume_reading()

    def _arm(self) -> None:
        """Set the timer for what comes next."""
        due = None
        if not self._is_cut and self._real is not None:
            out = None if self._is_real_full or self._is_end_passed else self._out.next_due()
            in_ = self._in.next_due() if self.is_reading() else None
            due = min((when for when in (out, in_) if when is not None), default=None)
        when = math.inf if due is None else due
        if when != self._armed:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._armed = when
            if due is not None:
                when = self._timing.now() if due == -math.inf else due
                self._timer = self._timing.call_at(when, self._fire, self._context)

    def _end(self) -> None:
        """It is over for both ends."""
        for handle in (self._timer, self._grace, self._fate_end):
            if handle is not None:
                handle.cancel()
        self._timer = self._grace = self._fate_end = None
        self._owner._forget(self)

    def _soon(self, callback: Callable[..., object], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon(callback, *args, context=self._context)


def _gather(line: Line, limit: float) -> tuple[Data | None, Mark | None]:
    """Take from *line* what arrives up to *limit*: bytes, and the mark behind them."""
    pieces: list[Data] = []
    size = 0
    while size < MAX_PIECE:
        item = line.take(limit)
        if item is None or isinstance(item, Mark):
            mark = item
            break
        pieces.append(item)
        size += len(item)
    else:
        mark = None
    return (None if not pieces else pieces[0] if len(pieces) == 1 else b"".join(pieces)), mark


def _cut_error() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "the network has cut the connection")
