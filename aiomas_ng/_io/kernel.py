"""What the kernel knows of a connection, and what it is told to look after."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aiomas_ng.liveness import Liveness

__all__ = ["is_host_there", "keep_alive"]

INTERNET: Final = (socket.AF_INET, socket.AF_INET6)

#: Probes of the kernel that are not answered before it gives up a connection.
PROBES: Final = 3
#: The most seconds that Linux takes for the time between probes.
LONGEST: Final = 32767

#: The begin of Linux' ``struct tcp_info``: how many probes of a closed window wait for an answer, how many
#: segments do, and milliseconds since the latest acknowledgement.
TCP_INFO: Final = struct.Struct("=3xB20xI28xI")


def keep_alive(transport: Any, liveness: Liveness) -> None:
    """Let the kernel look after a TCP connection, too: while our loop is blocked, and where the peer is not
    one of ours.

    It ends connections on which nothing is sent. There is ``TCP_USER_TIMEOUT`` for those on which something
    is, and it is not used: it ends the connection to a peer that is merely slow to read. What is sent in vain
    is noticed by our pings.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in INTERNET:
        return
    idle = min(LONGEST, max(1, math.ceil(liveness.interval)))
    pause = min(LONGEST, max(1, math.ceil(liveness.patience / PROBES)))
    with contextlib.suppress(OSError):  # without it there are still the pings
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # macOS has its own name for the first of them.
        for names, value in [
            (("TCP_KEEPIDLE", "TCP_KEEPALIVE"), idle),
            (("TCP_KEEPINTVL",), pause),
            (("TCP_KEEPCNT",), PROBES),
        ]:
            option = next((getattr(socket, name) for name in names if hasattr(socket, name)), None)
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def is_host_there(transport: Any, age: float) -> bool:
    """Return whether the host at the other end has confirmed what was sent *age* seconds ago, although its
    program does not answer.

    Of a transport that shows no socket nothing is known, so it is not there. On the same host it is. Where
    the system does not tell, the answer is that it is: the kernel would have given up the connection.
    """
    sock = transport.get_extra_info("socket")
    if sock is None:
        return False
    if sock.family not in INTERNET or sys.platform != "linux":
        return True
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
        probes, unconfirmed, silence = TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return True
    # Either all has been confirmed, but for what waits for a peer that does not read: of its closed window
    # the host is asked now and then, and one such question may be under way. Or something has been confirmed
    # since, as on a line on which much is sent.
    is_all_confirmed = not unconfirmed and probes <= 1
    return is_all_confirmed or bool(silence < age * 1000)
