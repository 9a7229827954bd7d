"""What does not get through a bad network, where, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self

from aiomas_ng._core.fault_rules import Fate, Route, Scope
from aiomas_ng._io.fault_time import Handle, Timing

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Note", "Outage", "Outages"]


class Note(Protocol):
    """Takes note of an event, see :class:`~aiomas_ng.faults.Event`."""

    def __call__(
        self, what: str, route: Route | None = None, number: int = 0, detail: float | str = ""
    ) -> None: ...


class Outage:
    """Something that does not get through, made by the methods of a :class:`~aiomas_ng.faults.Network`.

    As a context manager it ends with the block.
    """

    def __init__(self, outages: Outages, what: str, scope: Scope, fate: Fate) -> None:
        self.what = what  #: ``'blackhole'``, ``'hold'``, ``'partition'`` or ``'refuse'``.
        self.scope = scope
        self.fate = fate
        self.timer: Handle | None = None
        self._outages = outages

    def __repr__(self) -> str:
        return f"<Outage {self.what}, {'over' if self.is_over else 'going on'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.end()

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self not in self._outages.current

    def end(self) -> None:
        """End it; safe to be called twice."""
        self._outages.end([self])


class Outages:
    """All that does not get through now.

    Args:
        timing: How long they last is measured by it.
        note: Takes note of them.
        changed: Called when one has begun or ended.
    """

    def __init__(self, timing: Timing, note: Note, changed: Callable[[], None]) -> None:
        self.current: dict[Outage, None] = {}  # no set: its order would differ from run to run
        self._timing = timing
        self._note = note
        self._changed = changed

    def begin(self, what: str, scope: Scope, fate: Fate, seconds: float | None) -> Outage:
        """Begin an outage, which ends by itself after *seconds* if they are given.

        Raises:
            ValueError: *seconds* is not > 0.
        """
        if seconds is not None and not seconds > 0:
            raise ValueError(f"seconds must be a number > 0, or None, but is {seconds!r}")
        outage = Outage(self, what, scope, fate)
        self.current[outage] = None
        if seconds is not None:
            outage.timer = self._timing.call_at(self._timing.now() + seconds, outage.end)
        self._note(what, detail="" if seconds is None else seconds)
        self._changed()
        return outage

    def end(self, outages: list[Outage]) -> None:
        """End those of *outages* that are going on."""
        ended = [outage for outage in outages if outage in self.current]
        for outage in ended:
            del self.current[outage]
            if outage.timer is not None:
                outage.timer.cancel()
            self._note("heal", detail=outage.what)
        if ended:
            self._changed()

    def get_fate(self, sender: str, receiver: str) -> Fate:
        """Return what becomes of bytes from one place to another."""
        fates = (outage.fate for outage in self.current if outage.scope.covers(sender, receiver))
        return max(fates, default=Fate.PASS)

    def is_blocked(self, route: Route) -> bool:
        """Return whether nobody can connect; that takes packets in both directions."""
        ways = ((route.source, route.target), (route.target, route.source))
        return any(self.get_fate(*way) is not Fate.PASS for way in ways)

    def is_refused(self, route: Route) -> bool:
        """Return whether attempts to connect are refused."""
        return any(
            outage.what == "refuse" and outage.scope.covers(route.source, route.target)
            for outage in self.current
        )
