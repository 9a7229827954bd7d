"""The controller: keeps what is fed in under the grid's limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import aiomas_ng
from examples.virtual_power_plant.calls import CallCounter
from examples.virtual_power_plant.market import award, divide
from examples.virtual_power_plant.messages import BatteryAccount, Hour, Report
from examples.virtual_power_plant.monitor import StateMonitor
from examples.virtual_power_plant.timeline import get_hour_of_day

#: Hours of the day in which batteries are emptied: people are at home, and the sun goes down.
EVENING: Final = range(17, 24)


class Controller(aiomas_ng.Agent):
    """Balances plants and batteries, hour by hour; made by :meth:`create`.

    It talks to proxies.  Some of the agents behind them live in its own container, others in other processes;
    there is no difference, except in speed.

    Args:
        container: Where the controller lives.
        grid_limit: The most that may be fed in, in kW.
        plants: Proxies of the plants.
        batteries: Proxies of the batteries.
        accounts: What the batteries have told of themselves in the beginning.
        monitor: Observes the batteries.
        calls: Counts the controller's calls.
    """

    def __init__(
        self,
        container: aiomas_ng.Container,
        grid_limit: float,
        plants: Sequence[Any],
        batteries: Sequence[Any],
        accounts: Sequence[BatteryAccount],
        monitor: StateMonitor,
        calls: CallCounter,
    ) -> None:
        super().__init__(container, aid="controller")
        self._grid_limit = grid_limit
        self._plants = plants
        self._batteries = batteries
        self._calls = calls
        # By what the batteries have told, in kWh; what the monitor sees has to agree with it.
        self._energies = [account.stored for account in accounts]
        self._capacities = [account.capacity for account in accounts]
        self._monitor = monitor

    @classmethod
    async def create(
        cls,
        container: aiomas_ng.Container,
        grid_limit: float,
        plants: Sequence[str],
        batteries: Sequence[str],
        directory_url: str | None = None,
    ) -> Controller:
        """Connect to all *plants* and *batteries*, given by their addresses, and return their controller.

        The directory is where it finds what it can observe of the batteries, if there are some.

        ``__init__`` cannot wait, so an agent that has to, before it is ready, is made by a coroutine; a
        manager spawns it under the name ``"module:Controller.create"``.
        """
        calls = CallCounter()
        plant_proxies = await calls.all(map(container.connect, plants))
        battery_proxies = await calls.all(map(container.connect, batteries))
        accounts = await calls.all(battery.get_account() for battery in battery_proxies)
        monitor = await StateMonitor.create(container.context, batteries, directory_url)
        controller = cls(container, grid_limit, plant_proxies, battery_proxies, accounts, monitor, calls)
        await controller._wait_until_seen()
        return controller

    async def on_stop(self) -> None:
        """Stop observing."""
        await self._monitor.close()

    @aiomas_ng.expose
    def count_calls(self) -> int:
        """Return how many calls the controller has made."""
        return self._calls.count

    @aiomas_ng.state(rt="vpp.count")
    def states(self) -> int:
        """Return how many states of charge have been observed."""
        return self._monitor.count

    @aiomas_ng.expose
    async def balance(self) -> Hour:
        """Balance the hour that has begun; to be called once per hour.

        It does not return before each battery's state of charge is observed to be what the battery has told.

        Returns:
            What happens in this hour.

        Raises:
            RuntimeError: A plant lives in another hour, or a battery is not observed to do what it was told.
        """
        powers = await self._ask_plants()
        # fsum() is exact, so not even rounding depends on anything but the powers.
        available = math.fsum(powers)
        surplus = available - self._grid_limit
        charged = discharged = curtailed = 0.0
        if surplus > 0:
            charged = await self._charge(surplus)
            curtailed = max(0.0, surplus - charged)  # rounding could make it negative
            await self._share_surplus(powers, charged, curtailed)
        elif get_hour_of_day(self.container.clock.utcnow()) in EVENING:
            discharged = await self._discharge(-surplus)
        await self._wait_until_seen()
        return Hour(
            time=self.container.clock.time(),
            available=available,
            curtailed=curtailed,
            charged=charged,
            discharged=discharged,
            stored=math.fsum(self._energies),
        )

    async def _ask_plants(self) -> list[float]:
        """Return what each plant can feed in, in kW."""
        reports: list[Report] = await self._calls.all(plant.report() for plant in self._plants)
        now = self.container.clock.time()
        for report in reports:
            if report.time != now:
                raise RuntimeError(f"a plant lives at {report.time} s, but the controller at {now} s")
        return [report.power for report in reports]

    async def _charge(self, demand: float) -> float:
        """Let the batteries take up to *demand* (kW), and return what they take."""
        offers = await self._calls.all(battery.offer_charge() for battery in self._batteries)
        awards = award(offers, demand)
        await self._instruct("charge", awards)
        return math.fsum(awards)

    async def _discharge(self, demand: float) -> float:
        """Let the batteries give up to *demand* (kW), and return what they give."""
        offers = await self._calls.all(battery.offer_discharge() for battery in self._batteries)
        awards = award(offers, demand)
        await self._instruct("discharge", awards)
        return math.fsum(awards)

    async def _instruct(self, method: str, awards: Sequence[float]) -> None:
        """Tell the batteries that were awarded something how much it is."""
        chosen = [i for i, power in enumerate(awards) if power > 0]
        energies = await self._calls.all(getattr(self._batteries[i], method)(awards[i]) for i in chosen)
        for i, energy in zip(chosen, energies, strict=True):
            self._energies[i] = energy

    async def _wait_until_seen(self) -> None:
        """Wait until each battery is seen to be in the state that it has told."""
        await self._monitor.wait_for(
            [energy / capacity for energy, capacity in zip(self._energies, self._capacities, strict=True)]
        )

    async def _share_surplus(self, powers: Sequence[float], charged: float, curtailed: float) -> None:
        """Tell each plant its share; it is in proportion to what they can feed in."""
        shares = zip(self._plants, divide(charged, powers), divide(curtailed, powers), strict=True)
        await self._calls.all(plant.share_surplus(stored, cut) for plant, stored, cut in shares)
