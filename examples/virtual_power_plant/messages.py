"""What the agents send each other, beyond numbers.

The classes are dataclasses, made ready for the wire by :func:`aiomas_ng.serializable`.  A container has to be
told of them: :data:`SERIALIZERS` is its argument ``extra_serializers``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import aiomas_ng

#: Resource type of states of charge, by which they are found in a directory.
STATE_OF_CHARGE: Final = "energy.soc"

#: Powers that agents tell each other may be off by this much, in kW: floats are rounded.
TOLERANCE: Final = 1e-9


@aiomas_ng.serializable
@dataclass(frozen=True, slots=True)
class Report:
    """What a plant could feed in.

    Args:
        time: The hour that is meant: the plant's clock at its beginning, in seconds.
        power: In kW.
    """

    time: float
    power: float


@aiomas_ng.serializable
@dataclass(frozen=True, slots=True)
class Offer:
    """What a battery could do within the hour, and for how much.

    Args:
        power: The most that it could take or give, in kW at the grid's side.
        cost: Its marginal cost in EUR per kWh at the grid's side.
    """

    power: float
    cost: float


@aiomas_ng.serializable
@dataclass(frozen=True, slots=True)
class Hour:
    """What happened in one hour, all plants and all batteries together.

    Args:
        time: The beginning of the hour, in seconds since the simulation began.
        available: What the plants could have produced, in kW.
        curtailed: What they were told not to, in kW.
        charged: What the batteries took, in kW.
        discharged: What the batteries gave, in kW.
        stored: What the batteries held at the end of the hour, in kWh.
    """

    time: float
    available: float
    curtailed: float
    charged: float
    discharged: float
    stored: float

    @property
    def produced(self) -> float:
        """What the plants did produce, in kW."""
        return self.available - self.curtailed

    @property
    def feed_in(self) -> float:
        """What went into the grid, in kW."""
        return self.produced - self.charged + self.discharged


@aiomas_ng.serializable
@dataclass(frozen=True, slots=True)
class PlantAccount:
    """The energy of a plant since the simulation began, in kWh.

    Args:
        name: The plant.
        peak_power: Its size in kWp.
        produced: What it produced.
        stored: The part of it that batteries took; the rest went into the grid at once.
        curtailed: What it could have produced in addition.
    """

    name: str
    peak_power: float
    produced: float
    stored: float
    curtailed: float


@aiomas_ng.serializable
@dataclass(frozen=True, slots=True)
class BatteryAccount:
    """The energy of a battery since the simulation began, in kWh.

    Args:
        name: The battery.
        capacity: Its size.
        charged: What it took from the plants.
        discharged: What it gave to the grid.
        stored: What it holds now.
        gained: How much more that is than in the beginning.
        cost: What its wear and its losses have cost, in EUR.
    """

    name: str
    capacity: float
    charged: float
    discharged: float
    stored: float
    gained: float
    cost: float

    @property
    def lost(self) -> float:
        """What became heat."""
        return self.charged - self.discharged - self.gained


#: What serializable() adds to a class is not known to type checkers, hence Any.
MESSAGES: Final[tuple[Any, ...]] = (Report, Offer, Hour, PlantAccount, BatteryAccount)
SERIALIZERS: Final[list[Any]] = [cls.__serializer__ for cls in MESSAGES]
