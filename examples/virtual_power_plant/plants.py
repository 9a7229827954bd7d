"""Photovoltaic plants as agents: they report what they can feed in, and keep account."""

from __future__ import annotations

import aiomas_ng
from examples.virtual_power_plant.messages import TOLERANCE, PlantAccount, Report
from examples.virtual_power_plant.photovoltaics import PlantData, compute_power
from examples.virtual_power_plant.timeline import STEP_HOURS, get_hour_of_year


class Plant(aiomas_ng.Agent):
    """A photovoltaic plant.

    It knows the time from its container's clock, which is that of the simulation and not of this computer.

    Args:
        container: Where the plant lives.
        name: Its id there, and its name in the report.
        data: The arguments of :class:`PlantData`.
    """

    def __init__(self, container: aiomas_ng.Container, name: str, data: dict[str, float]) -> None:
        super().__init__(container, aid=name)
        self._name = name
        self._data = PlantData(**data)
        # Once and for the whole year.  It takes a moment, in which this process does nothing else; were there
        # anything else to do, asyncio.to_thread() would be the way.
        self._powers = compute_power(self._data)
        # Totals, in kWh.
        self._available = 0.0
        self._stored = 0.0
        self._curtailed = 0.0

    def _get_power(self) -> float:
        """Return what the sun gives in this hour, in kW."""
        return self._powers[get_hour_of_year(self.container.clock.utcnow())]

    @aiomas_ng.expose
    def report(self) -> Report:
        """Return what the plant can feed in during this hour; to be called once per hour."""
        power = self._get_power()
        self._available += power * STEP_HOURS
        return Report(self.container.clock.time(), power)

    @aiomas_ng.expose
    def share_surplus(self, stored: float, curtailed: float) -> None:
        """Take note of this plant's share of what the grid cannot take in this hour.

        Args:
            stored: What goes into batteries, in kW.
            curtailed: What must not be produced, in kW.

        Raises:
            ValueError: One is negative, or both are more than what the plant can feed in.
        """
        power = self._get_power()
        if not (stored >= 0 and curtailed >= 0 and stored + curtailed <= power + TOLERANCE):
            raise ValueError(f"of {power} kW, {stored} kW cannot be stored and {curtailed} kW curtailed")
        self._stored += stored * STEP_HOURS
        self._curtailed += curtailed * STEP_HOURS

    @aiomas_ng.expose
    def get_account(self) -> PlantAccount:
        """Return the totals so far."""
        return PlantAccount(
            name=self._name,
            peak_power=self._data.peak_power,
            produced=self._available - self._curtailed,
            stored=self._stored,
            curtailed=self._curtailed,
        )
