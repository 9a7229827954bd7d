"""What a bad network does to which route: conditions, outages, and the order of precedence among them.

A route is what lies between two places, each known by a name: the base URL of a server, or a name that was
chosen. Conditions and outages apply to the bytes that go from one place to the other, so the two directions
of a route may differ.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

__all__ = [
    "Apart",
    "Between",
    "Conditions",
    "Draw",
    "Event",
    "Exponential",
    "Fate",
    "Route",
    "Rules",
    "Scope",
    "draw",
]

#: A number, two numbers to choose between evenly, or a function that is given the generator and returns one.
Draw = float | tuple[float, float] | Callable[[Random], float]

#: Names on one side of a route; ``None`` for all.
Names = frozenset[str] | None

MIB: Final = 2**20


class Fate(enum.IntEnum):
    """What becomes of the bytes in one direction, from mild to severe."""

    PASS = 0
    HOLD = 1  #: they wait, and arrive when that is over
    LOSE = 2  #: they vanish, and neither side is told


@dataclass(frozen=True, slots=True)
class Exponential:
    """Draws numbers with this mean from an exponential distribution, as if each unit had the same risk.

    Args:
        mean: Their mean, > 0.
    """

    mean: float

    def __post_init__(self) -> None:
        if not self.mean > 0 or not math.isfinite(self.mean):
            raise ValueError(f"the mean must be a number > 0 but is {self.mean!r}")

    def __call__(self, rng: Random) -> float:
        return rng.expovariate(1 / self.mean)


def draw(spec: Draw, rng: Random) -> float:
    """Return a number >= 0 as *spec* says; what a function gives below 0 counts as 0.

    Raises:
        ValueError: A function has returned what is no finite number.
    """
    if callable(spec):
        value = spec(rng)
        if not _is_number(value):
            raise ValueError(f"{spec!r} must return a finite number, not {value!r}")
        return max(0.0, value)
    return rng.uniform(*spec) if isinstance(spec, tuple) else spec


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_draw(name: str, spec: Any) -> None:
    numbers = spec if isinstance(spec, tuple) else (spec,)
    is_number = all(_is_number(number) and number >= 0 for number in numbers)
    is_range = not isinstance(spec, tuple) or (len(spec) == 2 and is_number and spec[0] <= spec[1])
    if not callable(spec) and not (is_number and is_range):
        raise ValueError(
            f"{name} must be a number >= 0, a pair (low, high) of them, or a function of a random.Random, "
            f"but is {spec!r}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How a route treats the bytes of each connection, in one direction.

    Where it says *draw*, a number is that number, a pair ``(low, high)`` is chosen from evenly, and a
    function is called with a :class:`random.Random`, for example :class:`Exponential`.

    Args:
        delay: Seconds that bytes take, a draw for each connection and direction.
        jitter: Seconds on top of it, a draw for each write. No byte overtakes another one of the same
            connection, so a long delay holds up what comes after.
        rate: Bytes per second; ``None`` for no limit. It includes no overhead: only our bytes count.
        window: Bytes that may be under way in one direction; who sends more has to wait, as with TCP.
        cut_after: The connection breaks when so many bytes have arrived in one of the directions, a draw for
            each; ``None`` for never.
        blackhole_after: The connection falls silent in both directions when so many bytes have arrived in one
            of them, a draw for each; ``None`` for never.
        blackhole_for: Seconds for which it stays silent, a draw; ``None`` until it is told otherwise.
        refusals: The share of attempts to connect that are refused, from 0 to 1.

    Raises:
        ValueError: One of them is out of its range.
    """

    delay: Draw = 0
    jitter: Draw = 0
    rate: float | None = None
    window: int = MIB
    cut_after: Draw | None = None
    blackhole_after: Draw | None = None
    blackhole_for: Draw | None = None
    refusals: float = 0

    def __post_init__(self) -> None:
        for name in ("delay", "jitter"):
            _check_draw(name, getattr(self, name))
        for name in ("cut_after", "blackhole_after", "blackhole_for"):
            if getattr(self, name) is not None:
                _check_draw(name, getattr(self, name))
        if self.rate is not None and not (_is_number(self.rate) and self.rate > 0):
            raise ValueError(f"rate must be a number of bytes per second > 0, or None, but is {self.rate!r}")
        if not _is_number(self.window) or self.window < 1 or self.window != int(self.window):
            raise ValueError(f"window must be a number of bytes >= 1 but is {self.window!r}")
        if not _is_number(self.refusals) or not 0 <= self.refusals <= 1:
            raise ValueError(f"refusals must be a number from 0 to 1 but is {self.refusals!r}")


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """Between which places a connection lies.

    Args:
        source: Name of the place that has dialled, ``""`` if it has none.
        target: Name of the place that was dialled.
    """

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source or '?'} → {self.target}"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the network has done, or that it saw.

    Args:
        time: When, in seconds of the network's clock; without one, since the first event.
        what: What, in a word.
        route: Where, ``None`` for what concerns no single connection.
        connection: Number of the connection, or of the attempt to make one; 0 as with *route*.
        detail: More about it: a number of bytes or of seconds, or a text.
    """

    time: float
    what: str
    route: Route | None = None
    connection: int = 0
    detail: float | str = ""

    def __str__(self) -> str:
        where = f" #{self.connection} {self.route}" if self.route is not None else ""
        return f"{self.time:.6f} {self.what}{where} {self.detail}".rstrip()


@dataclass(frozen=True, slots=True)
class Between:
    """The routes between two sets of places, as a scope of conditions or outages.

    Args:
        a: The ones; ``None`` for all.
        b: The others; ``None`` for all.
        is_one_way: Only what goes from *a* to *b* is meant.
    """

    a: Names = None
    b: Names = None
    is_one_way: bool = False

    def covers(self, sender: str, receiver: str) -> bool:
        """Return whether bytes from *sender* to *receiver* are meant."""
        return self._is_pair(sender, receiver) or (not self.is_one_way and self._is_pair(receiver, sender))

    def _is_pair(self, first: str, second: str) -> bool:
        return (self.a is None or first in self.a) and (self.b is None or second in self.b)


@dataclass(frozen=True, slots=True)
class Apart:
    """The routes from one group of places to another one, as a scope of outages.

    Args:
        groups: The groups. Places in none of them are not meant, except where there is a single group: then
            all others are the second one.
    """

    groups: tuple[frozenset[str], ...]

    def covers(self, sender: str, receiver: str) -> bool:
        """Return whether bytes from *sender* to *receiver* are meant."""
        if len(self.groups) == 1:
            return (sender in self.groups[0]) is not (receiver in self.groups[0])
        return any(
            sender in one and receiver in other
            for one in self.groups
            for other in self.groups
            if one is not other
        )


Scope = Between | Apart


@dataclass(slots=True)
class Rules:
    """The conditions of all routes: those of the network, and changes that apply to some.

    Args:
        base: The conditions where nothing else was said.
    """

    base: Conditions
    _changes: dict[Between, dict[str, Any]] = field(default_factory=dict)

    def change(self, scope: Between, changes: dict[str, Any]) -> None:
        """Apply *changes* to what *scope* covers; of two for the same route the later one counts.

        Raises:
            TypeError: There is no such condition.
            ValueError: A value is out of its range.
        """
        replace(self.base, **changes)  # raises the error before anything is changed
        # At the end, so that it counts more than what was said before.
        self._changes[scope] = {**self._changes.pop(scope, {}), **changes}

    def get(self, sender: str, receiver: str) -> Conditions:
        """Return the conditions of bytes from *sender* to *receiver*."""
        changes: dict[str, Any] = {}
        for scope, own in self._changes.items():
            if scope.covers(sender, receiver):
                changes |= own
        return replace(self.base, **changes) if changes else self.base
