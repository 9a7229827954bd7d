"""The physics and the economy of a battery: no agent, no clock, no I/O, and so easily tested.

    grid's side                                       cell's side
    ───────────                                       ───────────
    charge     power · hours ── × efficiency ──────▶  + energy
    discharge  power · hours ◀─ × efficiency ───────  − energy

The energy in the cells stays between two bounds that are kept to make them last longer.  Wear is paid for by
what goes through the cells.  Charging is the dearer the fuller they are, discharging the emptier they are; so
fuller batteries charge later and discharge earlier, and those that are alike stay alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from examples.virtual_power_plant.messages import TOLERANCE, Offer
from examples.virtual_power_plant.timeline import STEP_HOURS

#: What a kWh is worth in the grid, in EUR: losses are paid for at this price.
ENERGY_PRICE: Final = 0.08
#: Below this power (1 W, here in kW) it is not worth while to switch a converter on.
SMALLEST_POWER: Final = 1e-3


@dataclass(frozen=True, slots=True)
class StorageData:
    """What a battery's data sheet says.

    Args:
        capacity: Nominal energy of the cells in kWh.
        max_power: The most that the converter can take or give, in kW at the grid's side.
        efficiency: Of charging and of discharging, each way, cells and converter together.
        wear_cost: In EUR per kWh that goes into or out of cells that are half full.
        min_soc: State of charge that cells are not discharged below.
        max_soc: State of charge that cells are not charged above.

    Raises:
        ValueError: No battery can be like this.
    """

    capacity: float
    max_power: float
    efficiency: float = 0.96
    wear_cost: float = 0.03
    min_soc: float = 0.05
    max_soc: float = 0.95

    def __post_init__(self) -> None:
        if not (self.capacity > 0 and self.max_power > 0):
            raise ValueError(f"capacity and max_power must be > 0, but are {self.capacity}, {self.max_power}")
        if not 0 < self.efficiency <= 1:
            raise ValueError(f"efficiency must be > 0 and at most 1, but is {self.efficiency}")
        if not 0 <= self.min_soc < self.max_soc <= 1:
            raise ValueError(f"0 <= min_soc < max_soc <= 1 must hold for {self.min_soc}, {self.max_soc}")
        if not self.wear_cost >= 0:
            raise ValueError(f"wear_cost must be >= 0, but is {self.wear_cost}")

    @property
    def min_energy(self) -> float:
        """The least that the cells hold, in kWh."""
        return self.min_soc * self.capacity

    @property
    def max_energy(self) -> float:
        """The most that the cells hold, in kWh."""
        return self.max_soc * self.capacity


class Storage:
    """A battery that begins as empty as it may be.

    Args:
        data: Its data sheet.
    """

    def __init__(self, data: StorageData) -> None:
        self.data = data
        self._energy = data.min_energy

    @property
    def energy(self) -> float:
        """The energy in the cells, in kWh."""
        return self._energy

    @property
    def soc(self) -> float:
        """The state of charge."""
        return self._energy / self.data.capacity

    def offer_charge(self) -> Offer | None:
        """Return what could be taken in an hour, or ``None`` if the battery is full."""
        data = self.data
        room = (data.max_energy - self._energy) / data.efficiency
        wear = data.wear_cost * (0.5 + self.soc) * data.efficiency
        # Of a kWh that is taken, this much never comes back.
        loss = 1 - data.efficiency**2
        return _make_offer(min(data.max_power, room / STEP_HOURS), wear + loss * ENERGY_PRICE)

    def offer_discharge(self) -> Offer | None:
        """Return what could be given in an hour, or ``None`` if the battery is empty."""
        data = self.data
        content = (self._energy - data.min_energy) * data.efficiency
        wear = data.wear_cost * (1.5 - self.soc) / data.efficiency
        # For a kWh that is given, this much more is taken out of the cells.
        loss = 1 / data.efficiency - 1
        return _make_offer(min(data.max_power, content / STEP_HOURS), wear + loss * ENERGY_PRICE)

    def charge(self, power: float) -> float:
        """Take *power* (kW at the grid's side) for an hour; return what this costs in EUR.

        Raises:
            ValueError: It is more than the battery can take, or not positive.
        """
        cost = _check(power, self.offer_charge(), "take")
        gain = power * STEP_HOURS * self.data.efficiency
        # A bound that was reached is met exactly, however the floats were rounded.
        self._energy = min(self._energy + gain, self.data.max_energy)
        return cost

    def discharge(self, power: float) -> float:
        """Give *power* (kW at the grid's side) for an hour; return what this costs in EUR.

        Raises:
            ValueError: It is more than the battery can give, or not positive.
        """
        cost = _check(power, self.offer_discharge(), "give")
        loss = power * STEP_HOURS / self.data.efficiency
        self._energy = max(self._energy - loss, self.data.min_energy)
        return cost


def _make_offer(power: float, cost: float) -> Offer | None:
    return Offer(power, cost) if power >= SMALLEST_POWER else None


def _check(power: float, offer: Offer | None, verb: str) -> float:
    """Return the cost in EUR of *power* for an hour.

    Raises:
        ValueError: It is not within the *offer*.
    """
    most = offer.power if offer is not None else 0.0
    if offer is None or not 0 < power <= most + TOLERANCE:
        raise ValueError(f"this battery can {verb} more than 0 and up to {most} kW, but not {power} kW")
    return power * STEP_HOURS * offer.cost
