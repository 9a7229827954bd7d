"""What all connections of a container may hold together.

Rules:

- Requests that are worked on or wait, and bytes that wait, are counted where they begin and end. Neither is
  done for a call whose handler is a plain function.
- Calls are not counted one by one, as that would cost time in each: a connection borrows the right to some
  calls at a time. When all rights are given out, those that nobody uses are taken back.
- Who waits for room is told when there is some, in the order of asking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from aiomas_ng._core.limits import Limits

__all__ = ["LEASE", "Borrower", "Budget"]

#: Calls that a connection borrows the right to at a time.
LEASE: Final = 256


class Borrower(Protocol):
    """Has calls that wait, and the right to some."""

    calls: dict[int, object]
    max_calls: float  #: The right: calls that may wait.


class Budget:
    """What is left of the limits that all connections of a container share.

    Args:
        limits: Those that are called ``container_…`` count.
    """

    __slots__ = ("_borrowers", "_lent", "_limits", "_queue", "size", "waiting", "working")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        #: Requests that are worked on, in tasks.
        self.working = 0
        #: Requests that wait.
        self.waiting = 0
        #: Bytes of requests that wait, and of large frames that have arrived in part.
        self.size = 0
        self._borrowers: dict[Borrower, None] = {}
        self._lent: float = 0
        self._queue: dict[Callable[[], object], None] = {}

    # Requests of the peers

    def has_room_to_work(self, count: int = 1) -> bool:
        """Return whether *count* further requests may be worked on."""
        return self.working + count <= self._limits.container_requests

    def has_room_to_wait(self, size: int) -> bool:
        """Return whether a further request of *size* bytes may wait."""
        return self.waiting < self._limits.container_requests and self.has_room_for(size)

    def has_room_for(self, size: int) -> bool:
        """Return whether there is room for *size* bytes."""
        return self.size + size <= self._limits.container_size

    def begin(self, count: int = 1) -> None:
        """*count* requests begin to be worked on."""
        self.working += count

    def end(self, count: int = 1) -> None:
        """The work on *count* requests has ended: tell those who wait for that, as long as there is room."""
        self.working -= count
        while self._queue and self.has_room_to_work():
            tell = next(iter(self._queue))
            del self._queue[tell]
            tell()

    def put(self, size: int, count: int = 1) -> None:
        """*count* requests of *size* bytes begin to wait."""
        self.waiting += count
        self.size += size

    def take(self, size: int, count: int = 1) -> None:
        """*count* requests of *size* bytes do not wait any more."""
        self.waiting -= count
        self.size -= size

    def ask(self, tell: Callable[[], object]) -> None:
        """Call *tell*, once, when there is room to work on a request."""
        self._queue[tell] = None

    def leave(self, tell: Callable[[], object]) -> None:
        """Forget who has asked."""
        self._queue.pop(tell, None)

    # Calls of ours

    def lend(self, borrower: Borrower, most: float) -> float:
        """Return to how many further calls *borrower* has the right; 0 if all rights are used.

        Args:
            borrower: Has used up what it had.
            most: Calls that it may have at all.
        """
        if self._lent >= self._limits.container_calls:
            self._take_back()
        count = min(LEASE, self._limits.container_calls - self._lent, most - borrower.max_calls)
        if count <= 0:
            return 0
        self._lent += count
        self._borrowers[borrower] = None
        return count

    def settle(self, borrower: Borrower) -> None:
        """Take back all rights of *borrower*, which has ended."""
        if borrower in self._borrowers:
            del self._borrowers[borrower]
            self._lent -= borrower.max_calls
        borrower.max_calls = 0

    def _take_back(self) -> None:
        """Take back the rights that nobody uses."""
        for borrower in list(self._borrowers):
            self._lent -= borrower.max_calls
            borrower.max_calls = len(borrower.calls)
            self._lent += borrower.max_calls
            if not borrower.calls:
                del self._borrowers[borrower]
