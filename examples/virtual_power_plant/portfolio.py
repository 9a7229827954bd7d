"""What is simulated: plants, batteries, the grid's limit and the number of days."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Final

#: Plants are built by these patterns in turn.  Their lengths have no common divisor, so that no two of the
#: first 35 plants are alike.
PEAK_POWERS: Final = (120.0, 30.0, 75.0, 200.0, 10.0, 55.0, 90.0)  # kWp
ORIENTATIONS: Final = (
    (30.0, 180.0),
    (15.0, 90.0),
    (15.0, 270.0),
    (40.0, 225.0),
    (10.0, 150.0),
)  # tilt, azimuth

#: Capacity in kWh, power in kW, efficiency each way, wear in EUR per kWh; from a cheap one to a good one.
BATTERIES: Final = (
    (200.0, 60.0, 0.92, 0.025),
    (120.0, 60.0, 0.95, 0.030),
    (250.0, 100.0, 0.96, 0.028),
    (60.0, 40.0, 0.97, 0.040),
)

#: The grid's limit by default, as a share of the peak power of all plants.
GRID_SHARE: Final = 0.5


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Args:
        days: How many, from 1 to 365.
        plants: How many, at least 1.
        batteries: How many; may be 0.
        grid_limit: The most that may be fed in, in kW; by default a share of all plants' peak power.
    """

    days: int = 7
    plants: int = 12
    batteries: int = 4
    grid_limit: float | None = None

    def get_plants(self) -> dict[str, dict[str, float]]:
        """Return the data of each plant, by name."""
        patterns = islice(zip(cycle(PEAK_POWERS), cycle(ORIENTATIONS), strict=False), self.plants)
        return {
            f"plant-{number:02}": {"peak_power": peak_power, "tilt": tilt, "azimuth": azimuth}
            for number, (peak_power, (tilt, azimuth)) in enumerate(patterns, start=1)
        }

    def get_batteries(self) -> dict[str, dict[str, float]]:
        """Return the data of each battery, by name."""
        names = ("capacity", "max_power", "efficiency", "wear_cost")
        return {
            f"battery-{number:02}": dict(zip(names, values, strict=True))
            for number, values in enumerate(islice(cycle(BATTERIES), self.batteries), start=1)
        }

    def get_grid_limit(self) -> float:
        """Return the grid's limit in kW."""
        if self.grid_limit is not None:
            return self.grid_limit
        return GRID_SHARE * sum(plant["peak_power"] for plant in self.get_plants().values())
