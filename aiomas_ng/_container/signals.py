"""Signals of the operating system that end a container."""

from __future__ import annotations

import asyncio
import signal
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final

__all__ = ["END_SIGNALS", "SignalWatch"]

#: The signals that ask a program to end.
END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

#: A loop has one handler for each signal, and there may be several containers.
_watches: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, list[SignalWatch]]]
_watches = weakref.WeakKeyDictionary()


class SignalWatch:
    """Calls back when the process gets one of some signals, as long as it is entered by ``with``.

    Several may watch the same signal in one loop. What the signal did before is put back at the end.

    Args:
        loop: The event loop; it has to run in the main thread.
        signals: Numbers of signals.
        callback: Called by the loop with the number of the signal, each time.

    Raises:
        RuntimeError: This is not the main thread.
        ValueError: One of *signals* cannot be handled.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        signals: Iterable[int],
        callback: Callable[[signal.Signals], object],
    ) -> None:
        self._loop = loop
        self._signals = tuple(dict.fromkeys(signal.Signals(number) for number in signals))
        self._callback = callback
        self._former: dict[int, Any] = {}

    def __enter__(self) -> SignalWatch:
        if self._signals and threading.current_thread() is not threading.main_thread():
            raise RuntimeError("signals can be watched only by the main thread: pass signals=()")
        watches = _watches.setdefault(self._loop, {})
        try:
            for number in self._signals:
                if number not in watches:
                    former = signal.getsignal(number)
                    try:
                        self._loop.add_signal_handler(number, _notify, watches, number)
                    except (RuntimeError, OSError) as error:  # as SIGKILL
                        raise ValueError(f"{number.name} cannot be watched: {error}") from error
                    watches[number] = []
                    self._former[number] = former
                watches[number].append(self)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        watches = _watches.get(self._loop, {})
        for number in self._signals:
            if self not in watches.get(number, ()):
                continue
            watches[number].remove(self)
            former = self._former.pop(number, None)
            if watches[number]:
                watches[number][0]._former.setdefault(number, former)  # the last one puts it back
                continue
            del watches[number]
            if not self._loop.is_closed():
                self._loop.remove_signal_handler(number)
            if former is not None:
                signal.signal(number, former)


def _notify(watches: dict[int, list[SignalWatch]], number: signal.Signals) -> None:
    for watch in list(watches.get(number, ())):
        watch._callback(number)
