"""The run: spawn the agents, set all clocks hour by hour, and collect the figures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiomas_ng
from aiomas_ng.directory import Directory
from examples.virtual_power_plant.calls import CallCounter
from examples.virtual_power_plant.containers import BATTERY, CONTROLLER, PLANT, Transport, open_containers
from examples.virtual_power_plant.messages import BatteryAccount, Hour, PlantAccount
from examples.virtual_power_plant.portfolio import Scenario
from examples.virtual_power_plant.timeline import HOURS_PER_DAY, STEP, get_start


@dataclass(frozen=True)
class Figures:
    """What came out; for the same scenario it is the same to the last digit, wherever the agents live.

    Args:
        hours: What happened, hour by hour.
        plants: The accounts of the plants.
        batteries: The accounts of the batteries.
        calls: How many calls were made, by this process and by the controller.
    """

    hours: list[Hour]
    plants: list[PlantAccount]
    batteries: list[BatteryAccount]
    calls: int

    @property
    def fingerprint(self) -> str:
        """A short text that differs if a single digit does."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Result:
    """What came out, and how long it took.

    Args:
        figures: What came out.
        seconds: Real time that the simulated hours took, without starting and stopping.
        calls_per_second: Calls made in this time, per second.
        states: How many states of charge the controller has observed.
    """

    figures: Figures
    seconds: float
    calls_per_second: float
    states: int = 0


async def simulate(
    scenario: Scenario, transport: Transport = "tcp", on_hour: Callable[[Hour], object] = lambda _: None
) -> Result:
    """Simulate *scenario*.

    Args:
        scenario: What is simulated.
        transport: Where the agents live, see :func:`.containers.open_containers`.
        on_hour: Called after each hour.

    Raises:
        AiomasError: An agent failed, a process died, or one could not be started.

    Cancelling it is safe: no process is left behind.
    """
    calls = CallCounter()
    async with open_containers(transport, get_start(scenario.days)) as (container, manager_addrs):
        directory = Directory(container)
        managers = await calls.all(map(container.connect, manager_addrs))
        plants = await _spawn(calls, managers, PLANT, scenario.get_plants())
        batteries = await _spawn(calls, managers, BATTERY, scenario.get_batteries(), directory.addr)
        controller, controller_addr = await calls.one(
            managers[0].spawn(
                CONTROLLER,
                scenario.get_grid_limit(),
                _get_addrs(plants),
                _get_addrs(batteries),
                directory.addr,
            )
        )
        calls_before = await _count_calls(calls, controller)
        begin = time.perf_counter()
        hours = []
        for number in range(scenario.days * HOURS_PER_DAY):
            await _set_time(calls, container, managers, number * STEP)
            hours.append(await calls.one(controller.balance()))
            on_hour(hours[-1])
        seconds = time.perf_counter() - begin
        calls_after = await _count_calls(calls, controller)
        plant_accounts = await calls.all(plant.get_account() for plant, _ in plants)
        battery_accounts = await calls.all(battery.get_account() for battery, _ in batteries)
        total = await _count_calls(calls, controller)
        # No call: it is a resource.
        states = await container.context.get(f"{controller_addr}/states")
    figures = Figures(hours, plant_accounts, battery_accounts, total)
    return Result(figures, seconds, (calls_after - calls_before) / seconds, states)


async def _spawn(
    calls: CallCounter,
    managers: Sequence[Any],
    qualname: str,
    data: Mapping[str, dict[str, float]],
    *further: Any,
) -> list[tuple[Any, str]]:
    """Spawn an agent for each entry of *data*, on all managers in turn.

    *further* are arguments that are the same for all of them.

    Returns:
        The proxy and the address of each agent, in the order of *data*.
    """
    return await calls.all(
        managers[i % len(managers)].spawn(qualname, name, values, *further)
        for i, (name, values) in enumerate(data.items())
    )


async def _count_calls(calls: CallCounter, controller: Any) -> int:
    """Return how many calls were made so far, with the one that asks the controller for its own."""
    of_controller: int = await calls.one(controller.count_calls())
    return calls.count + of_controller


def _get_addrs(agents: Sequence[tuple[Any, str]]) -> list[str]:
    return [addr for _, addr in agents]


async def _set_time(
    calls: CallCounter, container: aiomas_ng.Container, managers: Sequence[Any], seconds: float
) -> None:
    """Set the clocks of all containers; nobody does anything before all have the same time."""
    assert isinstance(container.clock, aiomas_ng.ExternalClock)  # open_containers() has seen to it
    container.clock.set_time(seconds)
    await calls.all(manager.set_time(seconds) for manager in managers)
