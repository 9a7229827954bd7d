"""Looks after one connection: the timer, the pings, and what follows from what is decided in
:mod:`~aiomas_ng._core.pulse`."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._core.frames import PING
from aiomas_ng._core.pulse import Pulse, Step, Verdict
from aiomas_ng._io.kernel import is_host_there, keep_alive
from aiomas_ng._io.local_transport import LocalQueueTransport
from aiomas_ng.exceptions import PeerUnresponsiveError
from aiomas_ng.liveness import ConnectionState, Liveness

if TYPE_CHECKING:
    from aiomas_ng._io.connection import Connection

__all__ = ["Heartbeat", "begin_heartbeat"]

#: Largest share by which a look comes late on purpose: those of 10,000 connections that were made at once, or
#: that have waited while the loop was blocked, are not to coincide for ever.
JITTER: Final = 0.05

#: Turns of the loop that pass before a peer is judged. In the first one, asyncio calls us before it reads.
TURNS: Final = 2

# Of its own, so that nobody's seeded numbers change.
_random: Final = random.Random()


def begin_heartbeat(channel: Connection, wire: Any, liveness: Liveness | None) -> Heartbeat | None:
    """Look after *channel*, whose bytes *wire* carries, from now on; ``None`` if there is no need.

    The two ends of a LocalQueue live in one event loop: neither can vanish without the other. And pings,
    which leave by real time, would make a simulation differ from one run to the next.
    """
    if liveness is None or isinstance(wire, LocalQueueTransport):
        return None
    keep_alive(wire, liveness)
    return Heartbeat(channel, liveness)


class Heartbeat:
    """The pulse of one connection and its timer, until it is closed.

    It costs a timer per connection, which is due some times per interval, and nothing per message.

    Args:
        channel: The connection.
        liveness: The figures.
    """

    __slots__ = ("_channel", "_due", "_handle", "_liveness", "_loop", "_number", "_pulse")

    def __init__(self, channel: Connection, liveness: Liveness) -> None:
        self._channel = channel
        self._liveness = liveness
        self._loop = channel._loop
        self._number = 0  # of the latest ping
        now = self._loop.time()
        self._pulse = Pulse(liveness, now, channel._protocol.received)
        self._due = now
        self._handle: asyncio.Handle | None = None
        # Connections that are made at once are spread over the time between two looks.
        self._look_after(liveness.interval * _random.random() / 3)
        channel._when_lost(self._stop)

    def heard(self) -> None:
        """The peer has answered a ping: do not wait for the next look to say that it is there again."""
        self._pulse.hear(self._loop.time(), self._channel._protocol.received)
        self._tell()

    def resumed(self) -> None:
        """Another transport carries the bytes: begin anew."""
        keep_alive(self._channel.transport, self._liveness)
        self._pulse.reset(self._loop.time(), self._channel._protocol.received)

    def _stop(self, error: BaseException) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _look_after(self, delay: float) -> None:
        self._due = self._loop.time() + delay * (1 + JITTER * _random.random())
        self._handle = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        channel, pulse = self._channel, self._pulse
        now, received = self._loop.time(), channel._protocol.received
        if not self._is_watched():
            pulse.reset(now, received)
            self._look_after(self._liveness.interval / 3)
            return
        late = max(0.0, now - self._due)
        step, delay = pulse.look(now, received, late=late, is_reading=channel._is_reading)
        if step is Step.JUDGE:
            self._let_turns_pass(TURNS)
            return
        if step is Step.PING:
            # To one who does not read, pings are no use, and would pile up.
            self._ping(is_repeated=not channel._is_reading)
        self._tell()
        if self._handle is not None:  # else a callback has closed the channel
            self._look_after(delay)

    def _is_watched(self) -> bool:
        """Whether there is a connection, to a peer that understands pings."""
        channel = self._channel
        return channel._exchange.is_peer_ours and channel.state is not ConnectionState.INTERRUPTED

    def _let_turns_pass(self, turns: int) -> None:
        self._handle = self._loop.call_soon(*((self._let_turns_pass, turns - 1) if turns else (self._judge,)))

    def _judge(self) -> None:
        channel, pulse = self._channel, self._pulse
        now = self._loop.time()
        if not (self._is_watched() and channel._is_reading):
            pulse.reset(now, channel._protocol.received)
        is_host_there_ = is_host_there(channel.transport, now - pulse.pinged)
        verdict, delay = pulse.judge(now, channel._protocol.received, is_host_there_)
        self._tell()
        if self._handle is None:
            return
        if verdict is Verdict.DEAD:
            error = PeerUnresponsiveError(self._explain(now, is_host_there_))
            pulse.reset(now, channel._protocol.received)
            channel._give_up_transport(error)
        elif verdict is Verdict.BUSY:
            self._ping(is_repeated=True)
        if self._handle is not None:
            self._look_after(delay)

    def _ping(self, is_repeated: bool) -> None:
        channel = self._channel
        # What lies unsent does the same for us, if it is only the kernel that has to say something.
        if not (is_repeated and channel._protocol.get_unsent_size()):
            self._number += 1
            channel._send_control(PING, self._number, channel._ping_content())

    def _tell(self) -> None:
        """Let the state of the channel be what has been found."""
        states = (ConnectionState.CONNECTED, ConnectionState.UNRESPONSIVE)
        if self._channel.state in states:
            self._channel._set_state(states[self._pulse.is_unresponsive])

    def _explain(self, now: float, is_host_there: bool) -> str:
        figures, silence = self._liveness, self._pulse.get_silence(now)
        host = (
            f"its host is there (busy_patience is {figures.busy_patience:g} s)"
            if is_host_there
            else f"its host is silent, too (patience is {figures.patience:g} s)"
        )
        return f"nothing has come from the peer for {silence:.3g} s, although it was pinged; {host}"
