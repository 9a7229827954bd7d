"""What makes a whole process faster, at a price that its owner has to agree with.

- :func:`keep_freed_memory` is done by itself when the first connection is made; the environment variable
  ``AIOMAS_NG_MALLOC=system`` prevents it.
- :class:`BusyPollingEventLoop` is an event loop for two processes that call each other all the time, on a
  machine that has a processor to spare for each.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import platform
import selectors
import time
from typing import Any, Final

__all__ = ["BusyPollingEventLoop", "keep_freed_memory"]

#: The largest block that is kept, in bytes: the most that glibc allows on machines of 64 bits.
KEPT_SIZE: Final = 32 * 2**20

#: Parameters of glibc's ``mallopt``.
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3

#: Seconds for which :class:`BusyPollingEventLoop` polls before it sleeps.
POLL_TIME: Final = 100e-6


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep freed blocks of up to 32 MiB, to give them out again; return whether it does.

    By default glibc gets blocks of more than 128 KiB from the system one by one and gives each back at once.
    asyncio reads into a new block of 256 KiB each time, however little there is to read, and each large
    message needs some. That the system maps them, clears each page as it is touched, and takes them back
    takes more time than reading and decoding. glibc raises the limit by itself as soon as the process frees
    a larger block for the first time; here this is done in advance.

    The price: a process that has freed much memory keeps up to 64 MiB of it.

    Nothing is done, and ``False`` returned, on other C libraries than glibc, and if the environment has
    ``AIOMAS_NG_MALLOC=system`` or sets the limit itself by ``MALLOC_MMAP_THRESHOLD_``.
    """
    if os.environ.get("AIOMAS_NG_MALLOC", "") == "system" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_SIZE) and mallopt(M_TRIM_THRESHOLD, 2 * KEPT_SIZE))


class _BusySelector(selectors.DefaultSelector):
    """Polls for a while before it sleeps."""

    def __init__(self, poll_time: float) -> None:
        super().__init__()
        self._poll_time = poll_time

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready, see :meth:`selectors.BaseSelector.select`."""
        select = super().select
        ready: list[Any] = select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        now = time.monotonic
        start = now()
        end = start + (self._poll_time if timeout is None else min(timeout, self._poll_time))
        while now() < end:
            ready = select(0)
            if ready:
                return ready
        return list(select(timeout if timeout is None else max(0.0, timeout - (now() - start))))


class BusyPollingEventLoop(asyncio.SelectorEventLoop):
    """asyncio's event loop, which looks for *poll_time* whether something has come before it sleeps.

    To be woken from sleep takes most of the time of a call from one process to another. Both processes need
    such a loop, and a processor each: where they are fewer, both become slower. A process that has nothing to
    do sleeps as ever.

    Use it as ``asyncio.Runner(loop_factory=BusyPollingEventLoop)``.

    Args:
        poll_time: Seconds; more than it takes the other process to answer.

    Raises:
        ValueError: *poll_time* is not > 0.
    """

    _closed = True  # for __del__, where __init__ has failed

    def __init__(self, poll_time: float = POLL_TIME) -> None:
        if not poll_time > 0:
            raise ValueError(f"poll_time must be > 0 seconds but is {poll_time!r}")
        super().__init__(_BusySelector(poll_time))
