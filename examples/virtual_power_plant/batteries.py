"""Batteries as agents: they make offers, do as they were awarded, keep account, and can be watched."""

from __future__ import annotations

import aiomas_ng
from examples.virtual_power_plant.herald import Herald
from examples.virtual_power_plant.messages import STATE_OF_CHARGE, BatteryAccount, Offer
from examples.virtual_power_plant.storage import Storage, StorageData
from examples.virtual_power_plant.timeline import STEP_HOURS


class Battery(aiomas_ng.Agent):
    """A battery, empty in the beginning.

    An agent is a thin shell: what is exposed can be called by any other agent, and hands on to
    :class:`Storage`, which knows nothing of agents.  The state of charge is a resource as well, which anybody
    can observe: ``tcp://host:port/battery-01/soc``.

    Args:
        container: Where the battery lives.
        name: Its id there, and its name in the report.
        data: The arguments of :class:`StorageData`.
    """

    def __init__(self, container: aiomas_ng.Container, name: str, data: dict[str, float]) -> None:
        super().__init__(container, aid=name)
        self._name = name
        self._storage = Storage(StorageData(**data))
        self._first_energy = self._storage.energy
        # Totals, in kWh and EUR.
        self._charged = 0.0
        self._discharged = 0.0
        self._cost = 0.0

    @classmethod
    async def create(
        cls, container: aiomas_ng.Container, name: str, data: dict[str, float], directory_url: str
    ) -> Battery:
        """Return a battery that was registered at a directory, so that others find what they can observe."""
        battery = cls(container, name, data)
        await Herald.announce(container, directory_url)
        return battery

    @aiomas_ng.state(rt=STATE_OF_CHARGE)
    def soc(self) -> float:
        """Return the state of charge."""
        return self._storage.soc

    @aiomas_ng.expose
    def offer_charge(self) -> Offer | None:
        """Return what could be taken in this hour, or ``None`` if the battery is full."""
        return self._storage.offer_charge()

    @aiomas_ng.expose
    def offer_discharge(self) -> Offer | None:
        """Return what could be given in this hour, or ``None`` if the battery is empty."""
        return self._storage.offer_discharge()

    @aiomas_ng.expose
    def charge(self, power: float) -> float:
        """Take *power* (kW) during this hour; return the energy in the cells after it, in kWh.

        Raises:
            ValueError: It is more than the battery can take, or not positive.
        """
        self._cost += self._storage.charge(power)
        self._charged += power * STEP_HOURS
        self.soc.changed()
        return self._storage.energy

    @aiomas_ng.expose
    def discharge(self, power: float) -> float:
        """Give *power* (kW) during this hour; return the energy in the cells after it, in kWh.

        Raises:
            ValueError: It is more than the battery can give, or not positive.
        """
        self._cost += self._storage.discharge(power)
        self._discharged += power * STEP_HOURS
        self.soc.changed()
        return self._storage.energy

    @aiomas_ng.expose
    def get_account(self) -> BatteryAccount:
        """Return the totals so far."""
        energy = self._storage.energy
        return BatteryAccount(
            name=self._name,
            capacity=self._storage.data.capacity,
            charged=self._charged,
            discharged=self._discharged,
            stored=energy,
            gained=energy - self._first_energy,
            cost=self._cost,
        )
